//! The OpenAPI 3.1 document of one server: one POST per tool.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
};

use bridge_model::link_text;
use bridge_protocol::Tool;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::IndexEntry;
use crate::schema::{request_schema, response_schema};

/// The content of a document.
#[derive(Debug, Clone, Copy)]
pub struct DocumentInput<'a> {
    /// The server's own title, or its name in the config.
    pub title: &'a str,
    /// The server's version; may be empty.
    pub version: &'a str,
    /// The server's instructions, for users: models do not read this description.
    pub description: Option<&'a str>,
    /// The path of the operations, without a trailing slash: `/mcpo/excel`.
    pub server_url: &'a str,
    /// The tools of the document, in order. Of two with the same name, the first is used.
    pub tools: &'a [Tool],
    /// Text to append to each operation's description.
    pub usage_guide: Option<&'a str>,
    /// Whether calls need a key.
    pub secured: bool,
    /// The naming scheme of operation ids.
    pub operation_ids: OperationIds,
}

/// The document. Size and time are linear in the tools; build it once per catalogue.
pub fn document(input: &DocumentInput<'_>) -> Value {
    let mut names: HashSet<&str> = HashSet::new();
    let mut tools: Vec<&Tool> = input.tools.iter().collect();
    tools.retain(|tool| !tool.name.is_empty() && names.insert(&tool.name));
    let names = tools.iter().map(|tool| match input.operation_ids {
        OperationIds::Tool => tool.name.to_string(),
        // FastAPI's names in mcpo: clients may filter by them.
        OperationIds::Mcpo => format!("tool_{}_post", tool.name),
    });
    let names: Vec<String> = names.collect();
    let ids = operation_ids(names.iter().map(String::as_str));
    let mut paths = Map::new();
    for (tool, id) in tools.into_iter().zip(ids) {
        let operation = post_operation(tool, &id, input);
        paths.insert(
            format!("/{}", path_segment(&tool.name)),
            json!({ "post": operation }),
        );
    }
    let mut info = json!({"title": input.title, "version": input.version});
    if let Some(text) = input.description.filter(|text| !text.trim().is_empty()) {
        info["description"] = text.into();
    }
    json!({
        "openapi": "3.1.0",
        "info": info,
        "servers": [{"url": input.server_url}],
        "paths": paths,
        "components": components(input.secured),
    })
}

// The parts that all operations share.

/// The `components` object: schemas and responses that all operations refer to.
fn components(secured: bool) -> Value {
    let components = include_str!("components.json");
    let mut components: Value = serde_json::from_str(components).expect("a constant document");
    if secured {
        components["securitySchemes"] = json!({"HTTPBearer": {"type": "http", "scheme": "bearer"}});
    }
    components
}

// Names of tools in URLs and as operation ids.

/// All characters except RFC 3986's unreserved ones: also `/`, spaces and the `{` of OpenAPI's templates.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Maximum length of a function's name in model APIs.
const LONGEST: usize = 64;

/// The prefix of names that URLs treat as relative path segments, encoded or not.
const DOTS: &str = "tool_";

/// A name as one path segment of a URL, percent-encoded.
pub fn path_segment(name: &str) -> String {
    let front = if is_dots(name) { DOTS } else { "" };
    format!("{front}{}", utf8_percent_encode(name, SEGMENT))
}

/// The name that a segment with the prefix represents: clients cannot request `/..`.
pub fn name_of_dots(segment: &str) -> Option<&str> {
    segment.strip_prefix(DOTS).filter(|name| is_dots(name))
}

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

/// One id per name, in order: `[A-Za-z0-9_-]{1,64}`, all different. A name that is a valid id
/// keeps it, regardless of the other names.
pub fn operation_ids<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let mapped: Vec<String> = names.iter().map(|name| map(name)).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let pairs = names.iter().zip(&mapped);
    let exact = pairs.map(|(name, id)| name == id && taken.insert(id.clone()));
    let exact: Vec<bool> = exact.collect();
    // The last number tried for an id, because thousands of names may map to the same.
    let mut tried: HashMap<String, u64> = HashMap::new();
    let finish = |(id, exact): (String, bool)| {
        if exact || taken.insert(id.clone()) {
            return id;
        }
        let number = tried.entry(id.clone()).or_insert(1);
        loop {
            *number += 1;
            let suffix = format!("_{number}");
            let kept = id.len().min(LONGEST - suffix.len());
            let numbered = format!("{}{suffix}", &id[..kept]);
            if taken.insert(numbered.clone()) {
                return numbered;
            }
        }
    };
    mapped.into_iter().zip(exact).map(finish).collect()
}

fn map(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let letters = name.chars().map(|c| if allowed(c) { c } else { '_' });
    let id: String = letters.take(LONGEST).collect();
    if id.is_empty() { "tool".into() } else { id }
}

// The document at the root: it has no operations, only links to the servers.

/// As in mcpo: the servers with links to their docs, in the description.
pub fn index_document(said: &Documents, servers: &[IndexEntry<'_>]) -> Value {
    let text = said.description.as_deref();
    let mut description = text.unwrap_or("MCP servers as OpenAPI.").to_owned();
    description.push_str("\n\n- **available tools**:");
    for server in servers {
        let name = link_text(server.name);
        let _ = write!(description, "\n    - [{name}]({}/docs)", server.url);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": said.name.as_deref().unwrap_or("mcpo-bridge"),
            "description": description,
            "version": said.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")),
        },
        "paths": {},
    })
}

// One tool as an operation.

/// The POST that calls a tool.
fn post_operation(tool: &Tool, id: &str, input: &DocumentInput<'_>) -> Value {
    let body = request_schema(tool).schema;
    let summary = summary(tool);
    let mut operation = json!({ "operationId": id, "summary": summary });
    // An empty description would hide the summary in Open WebUI.
    if let Some(description) = description(tool, &summary, input.usage_guide) {
        operation["description"] = description.into();
    }
    let mut request = json!({"content": {"application/json": {"schema": body}}});
    let required = body["required"].as_array();
    if required.is_some_and(|names| !names.is_empty()) {
        request["required"] = true.into();
    }
    operation["requestBody"] = request;
    operation["responses"] = responses(tool);
    if input.secured {
        operation["security"] = json!([{"HTTPBearer": []}]);
    }
    operation
}

fn responses(tool: &Tool) -> Value {
    let result = match tool.output_schema() {
        Some(schema) => response_schema(schema).schema,
        None => json!({"title": "Result", "description": "Result returned by the tool"}),
    };
    json!({
        "200": {
            "description": "Result of the tool; with `files` if the call created or changed files",
            "content": {"application/json": {"schema": {
                "anyOf": [result, {"$ref": "#/components/schemas/FilesAnswer"}],
            }}},
        },
        "422": {
            "description": "Validation Error",
            "content": {"application/json": {"schema": {
                "$ref": "#/components/schemas/HTTPValidationError",
            }}},
        },
        "default": {"$ref": "#/components/responses/Problem"},
    })
}

fn description(tool: &Tool, summary: &str, guide: Option<&str>) -> Option<String> {
    let own = tool.description().map(str::trim);
    let own = own.filter(|text| !text.is_empty());
    let Some(guide) = guide.map(str::trim).filter(|text| !text.is_empty()) else {
        return own.map(str::to_owned);
    };
    Some(format!("{}\n\n{guide}", own.unwrap_or(summary)))
}

/// The tool's title, else its name in mcpo's form: spaces and title case.
fn summary(tool: &Tool) -> String {
    let text = |value: Option<&Value>| {
        let text = value?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let annotated = || text(tool.object.get("annotations")?.get("title"));
    let title = text(tool.object.get("title")).or_else(annotated);
    title.unwrap_or_else(|| title_case(&tool.name.replace('_', " ")))
}

/// As Python's `str.title`: a letter after a non-letter becomes upper case, others lower case.
fn title_case(text: &str) -> String {
    let mut within_word = false;
    let mut titled = String::with_capacity(text.len());
    for letter in text.chars() {
        if within_word {
            titled.extend(letter.to_lowercase());
        } else {
            titled.extend(letter.to_uppercase());
        }
        within_word = letter.is_alphabetic();
    }
    titled
}

// The configuration of documents.

/// The texts of documents.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The title at the root.
    pub name: Option<String>,
    /// The description at the root.
    pub description: Option<String>,
    /// The version at the root, if given on the command line.
    pub version: Option<String>,
    /// The naming scheme of operation ids.
    pub operation_ids: OperationIds,
}

impl Documents {
    /// For the document of one server among several, which has its own title, description and version.
    #[must_use]
    pub fn of_server(&self) -> Self {
        Self {
            name: None,
            description: None,
            version: None,
            operation_ids: self.operation_ids,
        }
    }
}

/// The naming scheme of operation ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationIds {
    /// The names of the tools.
    Tool,
    /// `tool_NAME_post`, as generated by `FastAPI` for mcpo.
    Mcpo,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bridge_protocol::Tool;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{
        DocumentInput, Documents, OperationIds, document, index_document, operation_ids,
        path_segment,
    };
    use crate::{IndexEntry, IndexStatus};

    fn tools(list: Value) -> Vec<Tool> {
        let Value::Array(list) = list else {
            panic!("a list")
        };
        list.into_iter()
            .map(|tool| Tool::read(tool).unwrap())
            .collect()
    }

    fn input(tools: &[Tool]) -> DocumentInput<'_> {
        DocumentInput {
            title: "Excel",
            version: "1.2.3",
            description: Some("Makes workbooks."),
            server_url: "/mcpo/excel",
            tools,
            usage_guide: None,
            secured: false,
            operation_ids: OperationIds::Tool,
        }
    }

    fn documents() -> Documents {
        Documents {
            name: None,
            description: None,
            version: None,
            operation_ids: OperationIds::Tool,
        }
    }

    /// Tools as defined by excel-mcp-server, a time server and a slide server.
    fn realistic() -> Vec<Tool> {
        tools(json!([
            {
                "name": "write_data_to_excel",
                "description": "Write data to Excel worksheet.",
                "inputSchema": {
                    "type": "object",
                    "title": "write_data_to_excelArguments",
                    "properties": {
                        "filepath": {"title": "Filepath", "type": "string"},
                        "sheet_name": {"title": "Sheet Name", "type": "string"},
                        "data": {"title": "Data", "type": "array", "items": {"type": "array", "items": {}}},
                        "start_cell": {"default": "A1", "title": "Start Cell", "type": "string"},
                    },
                    "required": ["filepath", "sheet_name", "data"],
                },
                "outputSchema": {
                    "type": "object",
                    "properties": {"result": {"title": "Result", "type": "string"}},
                    "required": ["result"],
                    "title": "write_data_to_excelOutput",
                },
            },
            {
                "name": "get_current_time",
                "title": "What time is it?",
                "description": "Current time in a time zone",
                "inputSchema": {
                    "$schema": "http://json-schema.org/draft-07/schema#",
                    "type": "object",
                    "properties": {"timezone": {"type": "string", "description": "IANA name"}},
                    "additionalProperties": false,
                },
            },
            {
                "name": "slides/add chart",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "chart": {"$ref": "#/$defs/Chart"},
                        "position": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}], "default": null},
                        "options": true,
                    },
                    "required": ["chart"],
                    "$defs": {
                        "Chart": {
                            "type": "object",
                            "properties": {
                                "kind": {"enum": ["bar", "line"]},
                                "series": {"type": "array", "items": {"$ref": "#/$defs/Series"}},
                            },
                            "required": ["kind"],
                        },
                        "Series": {"type": "object", "properties": {"inner": {"$ref": "#/$defs/Series"}, "values": {"type": "array", "items": {"type": "number"}}}},
                        "Point": {"type": "array", "items": [{"type": "number"}, {"type": "number"}], "additionalItems": false},
                    },
                },
            },
            {"name": "save", "inputSchema": {"type": "object", "properties": {}}},
        ]))
    }

    #[test]
    fn realistic_tools_become_operations() {
        insta::assert_json_snapshot!(document(&input(&realistic())));
    }

    #[test]
    fn a_key_and_a_guide_show_in_the_operations() {
        let tools = realistic();
        let secured = DocumentInput {
            usage_guide: Some("Save at the end."),
            secured: true,
            ..input(&tools)
        };
        let document = document(&secured);
        let time = &document["paths"]["/get_current_time"]["post"];
        assert_eq!(
            time["description"],
            "Current time in a time zone\n\nSave at the end."
        );
        assert_eq!(time["security"], json!([{"HTTPBearer": []}]));
        assert_eq!(
            document["paths"]["/save"]["post"]["description"],
            "Save\n\nSave at the end."
        );
        assert_eq!(
            document["components"]["securitySchemes"]["HTTPBearer"]["scheme"],
            "bearer"
        );
    }

    #[test]
    fn names_are_one_path_segment_each() {
        for (name, path) in [
            ("a/b", "a%2Fb"),
            ("../../etc", "..%2F..%2Fetc"),
            ("with space", "with%20space"),
            ("{id}", "%7Bid%7D"),
            ("..", "tool_.."),
            ("表", "%E8%A1%A8"),
            ("get-time_2.0~x", "get-time_2.0~x"),
            ("a\r\nb?c#d%", "a%0D%0Ab%3Fc%23d%25"),
        ] {
            assert_eq!(path_segment(name), path);
        }
    }

    #[test]
    fn a_name_that_is_an_id_keeps_it() {
        let ids = operation_ids(["a b", "a_b", "a/b", "a_b", "", "a_b_2"]);
        assert_eq!(ids, ["a_b_3", "a_b", "a_b_4", "a_b_5", "tool", "a_b_2"]);
        let long = "x".repeat(70);
        let ids = operation_ids([&*long, &*format!("{long}y")]);
        assert_eq!(ids[1], format!("{}_2", "x".repeat(62)));
    }

    /// If the search checked every earlier id, the test would exceed its timeout.
    #[test]
    fn of_very_many_names_without_a_latin_letter_each_has_an_id() {
        let names: Vec<String> = (0..100_000)
            .map(|_| "\u{540d}\u{524d}".to_owned())
            .collect();
        let ids = operation_ids(names.iter().map(String::as_str));
        let different: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(different.len(), names.len());
    }

    #[test]
    fn mcpos_operation_ids_are_there_for_who_filters_on_them() {
        let tools = tools(json!([{"name": "get_time"}, {"name": "a/b c"}]));
        let document = document(&DocumentInput {
            operation_ids: OperationIds::Mcpo,
            ..input(&tools)
        });
        let id = |path: &str| document["paths"][path]["post"]["operationId"].clone();
        assert_eq!(id("/get_time"), "tool_get_time_post");
        assert_eq!(id("/a%2Fb%20c"), "tool_a_b_c_post");
    }

    #[test]
    fn of_two_tools_with_one_name_the_first_counts() {
        let tools = tools(json!([
            {"name": "t", "description": "one"}, {"name": "t", "description": "two"}, {"name": ""},
        ]));
        let document = document(&input(&tools));
        assert_eq!(document["paths"].as_object().unwrap().len(), 1);
        assert_eq!(document["paths"]["/t"]["post"]["description"], "one");
    }

    #[test]
    fn one_bad_tool_leaves_the_others_as_they_are() {
        let mut all = realistic();
        let alone = document(&input(&all));
        all.extend(tools(json!([{"name": "bad", "inputSchema": {"$ref": "#", "anyOf": [5, {"$ref": "file:///etc/passwd"}]}}])));
        let mut together = document(&input(&all));
        assert_eq!(
            together["paths"]["/bad"]["post"]["requestBody"]["content"]["application/json"]["schema"]
                ["type"],
            "object"
        );
        together["paths"]
            .as_object_mut()
            .unwrap()
            .shift_remove("/bad");
        assert_eq!(alone, together);
    }

    #[test]
    fn the_root_document_links_to_each_servers_docs() {
        let entry = |name, url| IndexEntry {
            name,
            title: None,
            status: IndexStatus::Starting,
            url,
        };
        let document = index_document(
            &documents(),
            &[
                entry("excel", "mcpo/excel"),
                entry("a](x)", "mcpo/a%5D%28x%29"),
                entry("<img src=x>", "mcpo/x"),
            ],
        );
        let text = document["info"]["description"].as_str().unwrap();
        assert!(text.contains("[excel](mcpo/excel/docs)"), "{text}");
        assert!(text.contains(r"[a\](x)](mcpo/a%5D%28x%29/docs)"), "{text}");
        assert!(text.contains("[&lt;img src=x&gt;](mcpo/x/docs)"), "{text}");
        assert_eq!(document["paths"], json!({}));
    }

    proptest! {
        #[test]
        fn ids_are_distinct_and_fit_model_apis(names in prop::collection::vec("[a-b_/é]{0,3}|.{60,70}", 0..12)) {
            let ids = operation_ids(names.iter().map(String::as_str));
            let distinct: HashSet<_> = ids.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
            for id in &ids {
                prop_assert!((1..=64).contains(&id.len()));
                prop_assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{}", id);
            }
        }
    }
}
