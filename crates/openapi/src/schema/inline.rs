//! The conversion of one schema, keyword by keyword.

use serde_json::{Map, Value, json};

use super::{
    Budget, Limits, Refs, Target, TooLarge, Warnings, any, complete, is_never, merge::both, named,
    never, write,
};

/// One attempt at converting a schema within the given limits.
pub struct Inliner<'a> {
    refs: &'a Refs<'a>,
    limits: Limits,
    budget: Budget,
    pub warnings: Warnings,
    /// The references being followed, outermost first.
    trail: Vec<&'a Value>,
    /// The target of `#` at this place.
    resource: &'a Value,
    depth: usize,
    /// Within `not` and `if` nothing may be added: a stricter inner schema makes the outer one less strict.
    exact: bool,
}

type Step<T> = Result<T, TooLarge>;

impl<'a> Inliner<'a> {
    pub fn new(root: &'a Value, refs: &'a Refs<'a>, limits: Limits) -> Self {
        Self {
            refs,
            limits,
            budget: Budget::WHOLE,
            warnings: Warnings::default(),
            trail: Vec::new(),
            resource: root,
            depth: 0,
            exact: false,
        }
    }

    /// A self-contained schema with an explicit type.
    pub fn convert(&mut self, schema: &'a Value) -> Step<Value> {
        let mut converted = self.untyped(schema)?;
        let incomplete = !self.exact && !is_never(&converted);
        if let Some(map) = converted.as_object_mut().filter(|_| incomplete) {
            complete(map);
        }
        Ok(converted)
    }

    /// The same without derived types, for merging.
    pub fn untyped(&mut self, schema: &'a Value) -> Step<Value> {
        self.budget.node()?;
        match schema {
            Value::Bool(false) => Ok(never()),
            Value::Object(map) if self.depth >= self.limits.depth => {
                self.warnings
                    .add("the schema is truncated where it is nested too deeply".into());
                Ok(self.stub(map)?.into())
            }
            Value::Object(map) => {
                let resource = self.resource;
                self.resource = Target { schema, resource }.own_resource();
                self.depth += 1;
                let converted = self.keywords(map)?;
                self.depth -= 1;
                self.resource = resource;
                Ok(converted.into())
            }
            Value::Bool(true) => Ok(json!({})),
            _ => {
                self.warnings
                    .add("a schema that is neither object nor boolean was ignored".into());
                Ok(json!({}))
            }
        }
    }

    fn keywords(&mut self, map: &'a Map<String, Value>) -> Step<Map<String, Value>> {
        let mut out = Map::new();
        let mut parts = Vec::new();
        for (key, value) in map {
            match key.as_str() {
                "$ref" | "$dynamicRef" | "$recursiveRef" => parts.push(self.follow(value)?),
                "allOf" => {
                    for part in value.as_array().into_iter().flatten() {
                        parts.push(self.untyped(part)?);
                    }
                }
                "anyOf" | "oneOf" => self.variants(key, value, &mut out)?,
                "properties" if !value.is_object() => {}
                "properties" | "patternProperties" | "dependentSchemas" => {
                    let mut schemas = self.named_schemas(value)?;
                    if key == "properties" {
                        // `false` forbids the property, so it is omitted.
                        schemas.retain(|_, schema| !is_never(schema));
                    }
                    out.insert(key.clone(), schemas.into());
                }
                "dependencies" => self.dependencies(value, &mut out)?,
                "items" | "prefixItems" | "additionalItems" => {}
                "not" | "if" => {
                    let outer = std::mem::replace(&mut self.exact, true);
                    let inner = self.convert(value)?;
                    self.exact = outer;
                    out.insert(key.clone(), inner);
                }
                "additionalProperties" | "unevaluatedProperties" | "unevaluatedItems"
                    if value.is_boolean() =>
                {
                    out.insert(key.clone(), value.clone());
                }
                "additionalProperties"
                | "unevaluatedProperties"
                | "unevaluatedItems"
                | "contains"
                | "propertyNames"
                | "contentSchema"
                | "then"
                | "else" => {
                    let inner = self.convert(value)?;
                    out.insert(key.clone(), inner);
                }
                _ => self.plain(key, value, map, &mut out)?,
            }
        }
        self.arrays(map, &mut out)?;
        drop_impossible(map, &mut out);
        for part in parts {
            both(&mut out, part);
        }
        if out.get("not") == Some(&json!({})) {
            return Ok(never().as_object().cloned().unwrap_or_default());
        }
        Ok(out)
    }

    /// The target of a reference, or a permissive schema if it cannot be followed.
    fn follow(&mut self, reference: &'a Value) -> Step<Value> {
        let found = reference
            .as_str()
            .and_then(|text| self.refs.resolve(text, self.resource));
        let Some(target) = found else {
            let shown: String = reference.to_string().chars().take(120).collect();
            self.warnings.add(format!(
                "the reference {shown} cannot be resolved within the schema: any value is \
                 accepted there"
            ));
            return Ok(json!({}));
        };
        let open = self.trail.iter();
        let inside = open.filter(|open| std::ptr::eq(**open, target.schema));
        if inside.count() >= self.limits.repeats || self.trail.len() >= self.limits.refs {
            let stub = target.schema.as_object().map(|map| self.stub(map));
            return Ok(stub.transpose()?.map_or_else(any, Value::Object));
        }
        let resource = std::mem::replace(&mut self.resource, target.resource);
        self.trail.push(target.schema);
        let converted = self.untyped(target.schema)?;
        self.trail.pop();
        self.resource = resource;
        Ok(converted)
    }

    /// The replacement of a truncated schema: its type and its texts, without subschemas.
    fn stub(&mut self, map: &Map<String, Value>) -> Step<Map<String, Value>> {
        self.budget.bytes(64)?;
        let types = named(map);
        let object =
            types.contains(&"object") || (types.is_empty() && map.contains_key("properties"));
        let mut stub = match &*types {
            _ if object => json!({"type": "object", "additionalProperties": true}),
            ["array"] => json!({"type": "array", "items": any()}),
            [] => any(),
            _ => json!({"type": write(types.iter().copied())}),
        };
        for key in ["title", "description"] {
            if let Some(Value::String(text)) = map.get(key) {
                self.budget.bytes(text.len())?;
                stub[key] = text.clone().into();
            }
        }
        Ok(stub.as_object().cloned().unwrap_or_default())
    }

    fn variants(&mut self, key: &str, value: &'a Value, out: &mut Map<String, Value>) -> Step<()> {
        let Value::Array(list) = value else {
            return Ok(());
        };
        let mut branches = Vec::new();
        for branch in list {
            let branch = self.convert(branch)?;
            if !is_never(&branch) {
                branches.push(branch);
            }
        }
        if key == "anyOf" {
            branches = flat(branches);
        }
        if !branches.is_empty() {
            out.insert(key.into(), branches.into());
        } else if !list.is_empty() {
            out.insert("not".into(), json!({}));
        }
        Ok(())
    }

    fn named_schemas(&mut self, value: &'a Value) -> Step<Map<String, Value>> {
        let mut schemas = Map::new();
        for (name, schema) in value.as_object().into_iter().flatten() {
            self.budget.bytes(name.len())?;
            schemas.insert(name.clone(), self.convert(schema)?);
        }
        Ok(schemas)
    }

    /// Draft 7's `dependencies` became two keywords.
    fn dependencies(&mut self, value: &'a Value, out: &mut Map<String, Value>) -> Step<()> {
        let (mut names, mut schemas) = (Map::new(), Map::new());
        for (name, dependency) in value.as_object().into_iter().flatten() {
            self.budget.bytes(name.len())?;
            if dependency.is_array() {
                self.budget.value(dependency)?;
                names.insert(name.clone(), dependency.clone());
            } else {
                schemas.insert(name.clone(), self.convert(dependency)?);
            }
        }
        let both = [("dependentRequired", names), ("dependentSchemas", schemas)];
        for (key, members) in both.into_iter().filter(|(_, members)| !members.is_empty()) {
            out.entry(key).or_insert(members.into());
        }
        Ok(())
    }

    /// `items` before 2020-12 could be a list, with `additionalItems` for the rest.
    fn arrays(&mut self, map: &'a Map<String, Value>, out: &mut Map<String, Value>) -> Step<()> {
        let (items, prefix) = (map.get("items"), map.get("prefixItems"));
        let (places, rest) = match (items, prefix) {
            (Some(Value::Array(places)), None) => (Some(places), map.get("additionalItems")),
            (items, prefix) => (prefix.and_then(Value::as_array), items),
        };
        if let Some(places) = places.filter(|places| !places.is_empty()) {
            let places: Result<Vec<_>, _> =
                places.iter().map(|place| self.convert(place)).collect();
            out.insert("prefixItems".into(), places?.into());
        }
        match rest {
            Some(Value::Bool(false)) => {
                let most = places.map_or(0, Vec::len) as u64;
                let limit = out.get("maxItems").and_then(Value::as_u64);
                let limit = limit.map_or(most, |limit| limit.min(most));
                out.insert("maxItems".into(), limit.into());
            }
            Some(rest @ (Value::Object(_) | Value::Bool(true))) => {
                let rest = self.convert(rest)?;
                out.insert("items".into(), rest);
            }
            _ => {}
        }
        Ok(())
    }

    /// Keywords without subschemas, kept where they are valid.
    fn plain(
        &mut self,
        key: &str,
        value: &Value,
        map: &Map<String, Value>,
        out: &mut Map<String, Value>,
    ) -> Step<()> {
        let kept = match key {
            "$schema" | "$id" | "id" | "$anchor" | "$dynamicAnchor" | "$recursiveAnchor"
            | "$vocabulary" | "$comment" | "$defs" | "definitions" => None,
            "type" => write(named(map)),
            "title" | "description" | "pattern" | "format" => {
                value.is_string().then(|| value.clone())
            }
            "required" => value.as_array().map(|names| {
                let names = names.iter().filter(|name| name.is_string());
                names.cloned().collect::<Vec<_>>().into()
            }),
            "enum" => {
                let filled = value.as_array().is_some_and(|list| !list.is_empty());
                filled.then(|| value.clone())
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                bound(key, value, map)
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" | "minContains" | "maxContains" => {
                value.is_u64().then(|| value.clone())
            }
            "const" | "default" | "example" | "examples" | "dependentRequired" => {
                Some(value.clone())
            }
            _ if key.starts_with("x-") => Some(value.clone()),
            // An unknown structure may contain references, which would be dangling.
            _ => (!value.is_object() && !value.is_array()).then(|| value.clone()),
        };
        if let Some(kept) = kept {
            self.budget.bytes(key.len())?;
            self.budget.value(&kept)?;
            out.insert(key.into(), kept);
        }
        Ok(())
    }
}

/// Replaces a variant that consists only of variants by these: Open WebUI unwraps the only variant besides
/// `null` and then drops its `anyOf`.
fn flat(branches: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::with_capacity(branches.len());
    for branch in branches {
        let words = |key: &String| ["anyOf", "title", "description"].contains(&&**key);
        match branch {
            Value::Object(mut map) if map.contains_key("anyOf") && map.keys().all(words) => {
                match map.shift_remove("anyOf") {
                    Some(Value::Array(inner)) => all.extend(inner),
                    _ => all.push(map.into()),
                }
            }
            other => all.push(other),
        }
    }
    all
}

/// Draft 4 had `exclusiveMinimum: true` in addition to `minimum`.
fn bound(key: &str, value: &Value, map: &Map<String, Value>) -> Option<Value> {
    let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let value = match (key, value) {
        ("minimum", _) if flag("exclusiveMinimum") => return None,
        ("maximum", _) if flag("exclusiveMaximum") => return None,
        ("exclusiveMinimum", Value::Bool(true)) => map.get("minimum")?,
        ("exclusiveMaximum", Value::Bool(true)) => map.get("maximum")?,
        _ => value,
    };
    value.is_number().then(|| value.clone())
}

/// Removes omitted properties from `required`.
fn drop_impossible(map: &Map<String, Value>, out: &mut Map<String, Value>) {
    let left_out = |name: &&Value| {
        let name = name.as_str().unwrap_or_default();
        let has = |schema: &Map<String, Value>| schema.get("properties")?.get(name).map(drop);
        has(map).is_some() && has(out).is_none()
    };
    let Some(Value::Array(required)) = out.get("required") else {
        return;
    };
    let kept = required.iter().filter(|name| !left_out(name));
    let kept: Vec<Value> = kept.cloned().collect();
    if kept.is_empty() {
        out.shift_remove("required");
    } else {
        out.insert("required".into(), kept.into());
    }
}
