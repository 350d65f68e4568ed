//! One tool as an operation.

use bridge_protocol::Tool;
use serde_json::{Value, json};

use super::DocumentInput;
use crate::schema::{request_schema, response_schema};

/// The POST that calls a tool.
pub fn post(tool: &Tool, id: &str, input: &DocumentInput<'_>) -> Value {
    let body = request_schema(tool).schema;
    let summary = summary(tool);
    let mut operation = json!({ "operationId": id, "summary": summary });
    // A key with an empty text would hide the summary from Open WebUI.
    if let Some(description) = description(tool, &summary, input.usage_guide) {
        operation["description"] = description.into();
    }
    let mut request = json!({"content": {"application/json": {"schema": body}}});
    if body["required"]
        .as_array()
        .is_some_and(|names| !names.is_empty())
    {
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
        None => json!({"title": "Result", "description": "What the tool answered"}),
    };
    json!({
        "200": {
            "description": "The tool's result; with `files` where the call made or changed some",
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
    let own = tool
        .description()
        .map(str::trim)
        .filter(|text| !text.is_empty());
    let guide = guide.map(str::trim).filter(|text| !text.is_empty());
    match (own, guide) {
        (Some(own), Some(guide)) => Some(format!("{own}\n\n{guide}")),
        (None, Some(guide)) => Some(format!("{summary}\n\n{guide}")),
        (own, None) => own.map(str::to_owned),
    }
}

/// The tool's title, else its name as mcpo wrote it: spaces and title case.
fn summary(tool: &Tool) -> String {
    let text = |value: Option<&Value>| {
        let text = value?.as_str()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let annotated = || text(tool.object.get("annotations")?.get("title"));
    let title = text(tool.object.get("title")).or_else(annotated);
    title.unwrap_or_else(|| title_case(&tool.name.replace('_', " ")))
}

/// As Python's `str.title`: a letter after anything but a letter is upper case, others lower.
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
