"""Schemas that servers send, each with arguments that satisfy it, by name of the server they are on."""

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
NODE = {"type": "object", "properties": {"value": INTEGER, "next": {"$ref": "#/$defs/Node"}}}


# Too large or too deep for any model: these are cut, but called all the same.
CUT = {"large", "large_enum", "too_deep"}


def tool(name, schema, arguments, **more):
    """A tool as a server lists it, and a call of it."""
    listed = {"name": name, "inputSchema": schema}
    if more.pop("described", True):
        listed["description"] = f"The tool {name}"
    return listed | more, arguments


def of(properties, required=(), **more):
    return {"type": "object", "properties": properties, "required": list(required), **more}


def chain(length):
    """References behind references."""
    defs = {f"T{n}": of({"down": {"$ref": f"#/$defs/T{n + 1}"}}) for n in range(length)}
    defs[f"T{length}"] = STRING
    return of({"top": {"$ref": "#/$defs/T0"}}, **{"$defs": defs})


def mutual(count):
    """Every type refers to every other: written out it would have no end."""
    names = [f"T{n}" for n in range(count)]
    defs = {name: of({other: {"$ref": f"#/$defs/{other}"} for other in names}) for name in names}
    return of({"root": {"$ref": "#/$defs/T0"}, "note": STRING}, ["note"], **{"$defs": defs})


def nested(depth):
    schema = STRING
    for _ in range(depth):
        schema = of({"in": schema})
    return schema


DRAFTS = [
    tool("draft_07", of({"p": {"$ref": "#/definitions/P"}}, ["p"], definitions={"P": of({"x": INTEGER}, ["x"])},
                        **{"$schema": "http://json-schema.org/draft-07/schema#"}), {"p": {"x": 1}}),
    tool("draft_04", of({"n": {"type": "integer", "minimum": 0, "exclusiveMinimum": True}}, id="http://x/y"), {"n": 1}),
    tool("tuple_07", of({"pair": {"type": "array", "items": [STRING, INTEGER], "additionalItems": False}}),
         {"pair": ["a", 1]}),
    tool("tuple_2020", of({"pair": {"type": "array", "prefixItems": [STRING, INTEGER], "items": False}}),
         {"pair": ["a", 1]}),
    tool("dependencies", of({"a": STRING, "b": STRING}, dependencies={"a": ["b"]}), {"a": "x", "b": "y"}),
    tool("anchor", of({"p": {"$ref": "#here"}}, **{"$defs": {"P": {"$anchor": "here", "type": "integer"}}}), {"p": 1}),
    tool("nullable", of({"p": {"type": "string", "nullable": True}}), {"p": "x"}),
    tool("id_inside", of({"p": {"$ref": "other.json"}},
                         **{"$defs": {"O": {"$id": "other.json", "type": "integer"}}}), {"p": 1}),
]  # fmt: skip

REFERENCES = [
    tool("recursive", of({"tree": {"$ref": "#/$defs/Node"}}, ["tree"], **{"$defs": {"Node": NODE}}),
         {"tree": {"value": 1, "next": {"value": 2}}}),
    tool("itself", {"type": "object", "properties": {"child": {"$ref": "#"}, "name": STRING}}, {"child": {"name": "a"}}),
    tool("same_name_one", of({"p": {"$ref": "#/$defs/Same"}}, **{"$defs": {"Same": INTEGER}}), {"p": 1}),
    tool("same_name_two", of({"p": {"$ref": "#/$defs/Same"}}, **{"$defs": {"Same": STRING}}), {"p": "x"}),
    tool("remote", of({"p": {"$ref": "https://example.com/schema.json"}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("file", of({"p": {"$ref": "file:///etc/passwd"}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("dangling", of({"p": {"$ref": "#/$defs/Nothing"}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("components", of({"p": {"$ref": "#/components/schemas/File"}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("escaped", of({"p": {"$ref": "#/$defs/a~1b%20c"}}, **{"$defs": {"a/b c": INTEGER}}), {"p": 1}),
    tool("beside", of({"p": {"$ref": "#/$defs/P", "description": "why"}}, **{"$defs": {"P": INTEGER}}), {"p": 1}),
    tool("in_additional", of({"p": {"type": "object", "additionalProperties": {"$ref": "#/$defs/P"}}},
                             **{"$defs": {"P": INTEGER}}), {"p": {"a": 1}}),
    tool("no_text", of({"p": {"$ref": 7}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("circle", of({"p": {"$ref": "#/$defs/A"}, "q": STRING}, ["q"],
                      **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}), {"q": "x"}),
    tool("chain", chain(60), {"top": {}}),
    tool("mutual", mutual(12), {"note": "x"}),
    tool("root_reference", {"$ref": "#/$defs/Args", "$defs": {"Args": of({"a": INTEGER}, ["a"])}}, {"a": 1}),
]  # fmt: skip

BOOLEANS = [
    tool("property_true", of({"p": True, "q": STRING}, ["q"]), {"p": {"any": 1}, "q": "x"}),
    tool("property_false", of({"p": False, "q": STRING}, ["q"]), {"q": "x"}),
    tool("items_true", of({"p": {"type": "array", "items": True}}), {"p": [1, "a"]}),
    tool("items_false", of({"p": {"type": "array", "items": False}}), {"p": []}),
    tool("variant_true", of({"p": {"anyOf": [True, STRING]}}), {"p": 1}),
    tool("variant_false", of({"p": {"oneOf": [False, STRING]}}), {"p": "x"}),
    tool("all_true", of({"p": {"allOf": [True, STRING]}}), {"p": "x"}),
    tool("additional", of({"p": STRING}, additionalProperties=True), {"p": "x", "q": 1}),
    tool("root_true", True, {"a": 1}),
    tool("only_null", of({"p": {"anyOf": [{"type": "null"}]}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("only_null_type", of({"p": {"type": "null"}, "q": STRING}, ["q"]), {"q": "x"}),
]

ROOTS = [
    tool("one_of", {"type": "object", "oneOf": [of({"a": INTEGER}, ["a"]), of({"b": STRING}, ["b"])]}, {"a": 1}),
    tool("any_of", {"anyOf": [of({"a": INTEGER}, ["a"]), of({"a": STRING, "b": STRING}, ["a"])]}, {"a": "x"}),
    tool("all_of", {"allOf": [of({"a": INTEGER}, ["a"]), of({"b": STRING})]}, {"a": 1, "b": "x"}),
    tool("if_then", of({"k": STRING}, ["k"], **{"if": of({"k": {"const": "n"}}), "then": of({"n": INTEGER})}),
         {"k": "n", "n": 1}),
    tool("dependent", of({"a": STRING}, dependentSchemas={"a": of({"b": INTEGER})}), {"a": "x", "b": 1}),
    tool("empty", {}, {"a": 1}),
    tool("no_properties", {"type": "object"}, {}),
    tool("type_list", {"type": ["object", "null"], "properties": {"a": INTEGER}}, {"a": 1}),
    tool("pattern_properties", {"type": "object", "patternProperties": {"^x": INTEGER}}, {"xy": 1}),
    tool("required_only", {"type": "object", "required": ["a"]}, {"a": 1}),
    tool("no_description", of({"a": INTEGER}), {"a": 1}, described=False),
    tool("titled", of({"a": INTEGER}), {"a": 1}, title="A title", annotations={"title": "Another"}),
    tool("with_output", of({"a": INTEGER}), {"a": 1},
         outputSchema={"type": "object", "properties": {"p": True, "n": {"$ref": "#/$defs/N"}}, "$defs": {"N": True}}),
]  # fmt: skip

PROPERTIES = [
    tool("odd_names", of({name: STRING for name in [
        "model_config", "schema", "class", "_private", "__init__", "a b", "a.b", "a/b", "a-b", "日本語", "🎉", "$ref", "$id",
        "type", "properties", "items", "required", "anyOf", "allOf", "default", "self", "request", "form_data", '"', "\\",
        "{x}", "%41", "", "0", "constructor", "__proto__",
    ]}, ["$ref", "properties"]), {"$ref": "x", "properties": "y", "a/b": "z", "日本語": "w"}),
    tool("untyped", of({"p": {}, "q": {"description": "what"}}), {"p": [1], "q": {"a": 1}}),
    tool("const", of({"p": {"const": "x"}, "q": {"const": 3}}), {"p": "x", "q": 3}),
    tool("enum", of({"p": {"enum": ["a", 1, None]}, "q": {"type": "string", "enum": ["b"]}}), {"p": 1, "q": "b"}),
    tool("all_of_property", of({"p": {"allOf": [{"type": "integer"}, {"minimum": 3}]}}), {"p": 4}),
    tool("unions", of({"p": {"anyOf": [INTEGER, {"type": "null"}]}, "q": {"oneOf": [INTEGER, STRING]},
                       "r": {"type": ["integer", "string"]}}), {"p": 1, "q": "x", "r": 2}),
    tool("defaults", of({"p": {"type": "string", "default": None}, "q": {"type": "integer", "default": 3}}), {"p": "x"}),
    tool("array_without_items", of({"p": {"type": "array"}}), {"p": [1]}),
    tool("array_of_arrays", of({"p": {"type": "array", "items": {"type": "array", "items": INTEGER}}}), {"p": [[1]]}),
    tool("unknown_type", of({"p": {"type": "date"}, "q": {"type": 7}, "r": STRING}, ["r"]), {"r": "x"}),
    tool("wrong_shapes", of({"p": {"enum": "a", "required": "b", "properties": [], "items": 3, "anyOf": {}}, "r": STRING},
                            ["r"]), {"r": "x"}),
    tool("property_no_schema", of({"p": "text", "q": None, "s": 5, "t": [STRING], "r": STRING}, ["r"]), {"r": "x"}),
    tool("required_odd", of({"r": STRING}, ["r", "r", 5, None]), {"r": "x"}),
    tool("required_unknown", of({"r": STRING}, ["r", "missing"]), {"r": "x", "missing": 1}),
    tool("deep", of({"p": nested(40)}), {"p": {}}),
    tool("too_deep", of({"p": nested(100), "q": STRING}, ["q"]), {"q": "x"}),
    tool("bad_pattern", of({"p": {"type": "string", "pattern": "(?<=a)[b"}, "q": STRING}, ["q"]), {"q": "x"}),
    tool("long_text", of({"p": {"type": "string", "description": "x" * 50_000}}), {"p": "x"}),
    tool("large_numbers", of({"p": {"type": "number", "maximum": 1e308, "minimum": -1e308}}), {"p": 1e300}),
]  # fmt: skip

NAMES = [
    tool(name, of({"a": INTEGER}), {"a": 1})
    for name in ["a/b", "a b", "a_b", "日本語", "日本誌", "../../etc/passwd", "{id}", "a%2Fb", "x" * 80, "x" * 81, "a?b#c",
                 "openapi.json", "docs", "0", ".", "..", "a:b", "get-time_2.0~x", "A_B", 'q"q', "back\\slash"]
]  # fmt: skip

MANY = [tool(f"tool_{number:03}", of({f"p{number}": INTEGER}, [f"p{number}"]), {f"p{number}": 1}) for number in range(300)]

# One megabyte in one tool: no model takes that, but it must be called and must hurt nobody.
LARGE = [
    tool("large", of({f"property_{n}": {"type": "string", "description": "d" * 480} for n in range(2000)} | {"q": STRING},
                     ["q"]), {"q": "x"}),
    tool("large_enum", of({"p": {"type": "string", "enum": [f"value {n}" for n in range(60_000)]}, "q": STRING}, ["q"]),
         {"q": "x"}),
]  # fmt: skip

ZOO = {
    "drafts": DRAFTS,
    "references": REFERENCES,
    "booleans": BOOLEANS,
    "roots": ROOTS,
    "properties": PROPERTIES,
    "names": NAMES,
    "many": MANY,
    "large": LARGE,
}
