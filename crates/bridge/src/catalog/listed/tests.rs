use serde_json::{Value, json};

use super::*;

fn raw(text: &str) -> RawJson {
    RawJson::parse(text.to_owned().into()).expect(text)
}

fn tool(text: &str) -> (Value, Vec<String>) {
    let tools: Vec<Tool> = Tool::read_raw(&raw(text)).into_iter().collect();
    let listed = Listed::of(tools.iter(), &[], &[], &[]);
    let item = listed.tools.first().map(|item| item.raw.read().unwrap());
    (item.unwrap_or_default(), listed.mended.first)
}

fn others(kind: &str, text: &str) -> (Vec<Value>, Listed) {
    let items: Vec<RawJson> = raw(text).elements().unwrap();
    let of = |wanted: &str| if kind == wanted { &items[..] } else { &[] };
    let listed = Listed::of(
        std::iter::empty(),
        of("prompts"),
        of("resources"),
        of("templates"),
    );
    let found = listed.prompts.iter();
    let found = found.chain(&listed.resources).chain(&listed.templates);
    let found = found.map(|item| item.raw.read().unwrap()).collect();
    (found, listed)
}

#[test]
fn what_fits_keeps_every_byte() {
    let text = r##"{ "name":"t", "title":"T","x":null,"n":1.0,
        "inputSchema" : {"type":"object","properties":{"a":{"type":"STRING"}},"required":["a"]},
        "outputSchema":{"type":"object","properties":{"r":{"$ref":"#/$defs/R"}},"$defs":{"R":{"type":"string","pattern":"^[a-z]{1,3}$"}}},
        "annotations":{"readOnlyHint":true,"x":null},"execution":{"taskSupport":"optional"},
        "icons":[{"src":"data:,"}],"_meta":{"a":null,"emoji":"\ud83d\ude00"} }"##;
    let tools = [Tool::read_raw(&raw(text)).unwrap()];
    let prompt = [raw(
        r#"{"name":"p","arguments":[{"name":"a","required":false}]}"#,
    )];
    let resource = [raw(
        r#"{"uri":"x:1","name":"r","size":5,"annotations":{"audience":["user"],"priority":0.5,"lastModified":"2025-01-12T15:00:58Z"}}"#,
    )];
    let template = [raw(
        r#"{"uriTemplate":"x:{a}","name":"t","mimeType":"a/b"}"#,
    )];
    let listed = Listed::of(tools.iter(), &prompt, &resource, &template);
    assert_eq!(listed.tools[0].raw.as_str(), raw(text).as_str());
    assert_eq!(listed.prompts[0].raw, prompt[0]);
    assert_eq!(listed.resources[0].raw, resource[0]);
    assert_eq!(listed.templates[0].raw, template[0]);
    assert_eq!(listed.warnings(&"s".parse().unwrap()).count(), 0);
}

#[test]
fn an_input_schema_becomes_one_of_an_object() {
    for (said, shown) in [
        ("null", json!({"type": "object"})),
        ("true", json!({"type": "object"})),
        ("[]", json!({"type": "object"})),
        (r#""x""#, json!({"type": "object"})),
        ("{}", json!({"type": "object"})),
        (r#"{"type":"OBJECT"}"#, json!({"type": "object"})),
        (r#"{"type":["object","null"]}"#, json!({"type": "object"})),
        (
            r#"{"type":null,"properties":null,"required":null}"#,
            json!({"type": "object"}),
        ),
        (
            r#"{"type":"object","properties":[]}"#,
            json!({"type": "object"}),
        ),
        (
            r#"{"oneOf":[{"required":["a"]}]}"#,
            json!({"type": "object", "oneOf": [{"required": ["a"]}]}),
        ),
        (
            r#"{"type":"object","properties":{"a":true,"b":false,"c":null,"d":{}},"required":["a",1,null]}"#,
            json!({"type": "object", "properties": {"a": {}, "b": {"not": {}}, "c": {}, "d": {}}, "required": ["a"]}),
        ),
    ] {
        let (item, mended) = tool(&format!(r#"{{"name":"t","inputSchema":{said}}}"#));
        assert_eq!(item["inputSchema"], shown, "{said}");
        assert_eq!(mended.len(), 1, "{said}");
    }
    let (item, mended) = tool(r#"{"name":"t"}"#);
    assert_eq!(item["inputSchema"], json!({"type": "object"}));
    assert_eq!(mended.len(), 1);
    let deep = format!(
        "{}{}",
        r#"{"not":"#.repeat(200),
        "1".to_owned() + &"}".repeat(200)
    );
    let (item, _) = tool(&format!(r#"{{"name":"t","inputSchema":{deep}}}"#));
    assert_eq!(item["inputSchema"], json!({"type": "object"}));
}

#[test]
fn members_of_the_wrong_type_are_left_out_and_the_rest_stays() {
    let (item, mended) = tool(
        r#"{"name":"x","name":"t","description":null,"title":5,"annotations":{"readOnlyHint":"yes","title":"A"},
            "_meta":[],"execution":{"taskSupport":"sometimes"},"icons":[{"src":1},{"src":"a","sizes":"48x48","theme":"blue"}],
            "inputSchema":{"type":"object"},"more":null,"\ud800":1,"note":"half \udc00 pair"}"#,
    );
    let expected = json!({
        "name": "t", "annotations": {"title": "A"}, "execution": {},
        "icons": [{"src": "a", "sizes": ["48x48"]}],
        "inputSchema": {"type": "object"}, "more": null, "note": "half \u{fffd} pair",
    });
    assert_eq!(item, expected);
    let all = mended.join(" ");
    for fault in [
        "name is there twice",
        "description is null",
        "title has the wrong type",
    ] {
        assert!(all.contains(fault), "{all}");
    }
}

#[test]
fn an_output_schema_that_a_client_might_not_compile_is_left_out() {
    for broken in [
        "null",
        "true",
        r#"{"type":"array"}"#,
        r#"{"type":["object","null"]}"#,
        r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/Nope"}}}"##,
        r#"{"type":"object","properties":{"a":{"$ref":"https://example.com/x.json"}}}"#,
        r#"{"type":"object","properties":{"a":{"type":"str"}}}"#,
        r#"{"type":"object","properties":{"a":{"enum":[]}}}"#,
        r#"{"type":"object","properties":{"a":{"minimum":"5"}}}"#,
        r#"{"$schema":"http://json-schema.org/draft-04/schema#","type":"object","properties":{"a":{"minimum":0,"exclusiveMinimum":true}}}"#,
        r#"{"type":"object","properties":{"a":{"nullable":true}}}"#,
        r#"{"type":"object","properties":{"a":{"pattern":"["}}}"#,
        r#"{"type":"object","properties":{"a":{"pattern":"^[\\w-.]+$"}}}"#,
        r#"{"type":"object","properties":{"a":{"pattern":"(?P<y>a)"}}}"#,
        r#"{"type":"object","properties":{"a":{"pattern":"^https\\:"}}}"#,
        r#"{"type":"object","properties":{"a":{"$id":"x"}}}"#,
        r#"{"type":"object","id":"x"}"#,
        r#"{"type":"object","patternProperties":{"(":{}}}"#,
    ] {
        let text =
            format!(r#"{{"name":"t","inputSchema":{{"type":"object"}},"outputSchema":{broken}}}"#);
        let (item, mended) = tool(&text);
        assert!(item.get("outputSchema").is_none(), "{broken}");
        assert_eq!(mended.len(), 1, "{broken}");
    }
    for (said, shown) in [
        (
            r##"{"$ref":"#/$defs/A","$defs":{"A":{"type":"object"}}}"##,
            json!({"type": "object", "$ref": "#/$defs/A", "$defs": {"A": {"type": "object"}}}),
        ),
        (
            r#"{"$id":"https://x/y","type":"object","required":null}"#,
            json!({"type": "object"}),
        ),
    ] {
        let text =
            format!(r#"{{"name":"t","inputSchema":{{"type":"object"}},"outputSchema":{said}}}"#);
        assert_eq!(tool(&text).0["outputSchema"], shown, "{said}");
    }
}

#[test]
fn prompts_and_resources_are_mended_or_left_out() {
    let (found, listed) = others(
        "prompts",
        r#"[{"name":"p","title":null,"arguments":null},{"description":"x"},5,null,{"name":5},
            {"name":"q","arguments":[{"name":"a","description":null,"required":"yes"},{"x":1},7]},{"name":"p","title":"again"}]"#,
    );
    assert_eq!(
        found,
        [
            json!({"name": "p"}),
            json!({"name": "q", "arguments": [{"name": "a"}]})
        ]
    );
    assert_eq!(
        (listed.mended.first.len(), listed.left_out.first.len()),
        (2, 5)
    );
    let (found, listed) = others(
        "resources",
        r#"[{"uri":"x:1","size":"5 KB","mimeType":null,"annotations":null},{"name":"no uri"},
            {"uri":"x:2","name":"r","size":1.5,"annotations":{"audience":["user","bot"],"priority":7,"lastModified":"yesterday"}}]"#,
    );
    assert_eq!(
        found,
        [
            json!({"name": "x:1", "uri": "x:1"}),
            json!({"uri": "x:2", "name": "r", "annotations": {"audience": ["user"]}})
        ]
    );
    assert_eq!(listed.left_out.first, ["a resource without \"uri\""]);
    let (found, _) = others(
        "templates",
        r#"[{"uriTemplate":"x:{a}","description":{}},{"uri":"x"}]"#,
    );
    assert_eq!(found, [json!({"name": "x:{a}", "uriTemplate": "x:{a}"})]);
}

#[test]
fn completions_are_texts_and_no_more_than_a_client_takes() {
    let many: Vec<String> = (0..150).map(|n| format!("\"{n}\"")).collect();
    for (said, values) in [
        (
            r#"{"completion":{"values":["a",null,5,"b"],"total":"x","hasMore":null}}"#.to_owned(),
            2,
        ),
        (
            format!(r#"{{"completion":{{"values":[{}]}}}}"#, many.join(",")),
            100,
        ),
        (r#"{"completion":null}"#.to_owned(), 0),
        ("{}".to_owned(), 0),
    ] {
        let shown: Value = completion(&raw(&said)).read().unwrap();
        let shown = shown["completion"].as_object().unwrap();
        assert_eq!(shown["values"].as_array().unwrap().len(), values, "{said}");
        assert!(!shown.contains_key("total") && !shown.contains_key("hasMore"));
    }
    let sound = r#"{"completion":{ "values":["a"],"total":1 },"x":1.0}"#;
    assert_eq!(completion(&raw(sound)).as_str(), sound);
}

#[test]
fn warnings_say_what_and_where_and_are_few() {
    let many: Vec<String> = (0..1000).map(|n| format!(r#"{{"x":{n}}}"#)).collect();
    let (_, listed) = others("prompts", &format!("[{}]", many.join(",")));
    let zoo = "zoo".parse().unwrap();
    let warnings = listed.warnings(&zoo);
    let warning = warnings.collect::<Vec<_>>().join("\n");
    assert!(
        warning.contains("'zoo'") && warning.contains("and 995 more"),
        "{warning}"
    );
}
