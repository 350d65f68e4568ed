//! What all operations share.

use serde_json::{Value, json};

/// The `components` object.
pub fn all(secured: bool) -> Value {
    let mut components = json!({
        "schemas": {
            "FilesAnswer": files_answer(),
            "File": file(),
            "HTTPValidationError": validation_answer(),
            "ValidationError": validation_error(),
            "Problem": problem(),
        },
        "responses": {"Problem": {
            "description": "What went wrong and what to do about it",
            "content": {"application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
            }},
        }},
    });
    if secured {
        components["securitySchemes"] = json!({"HTTPBearer": {"type": "http", "scheme": "bearer"}});
    }
    components
}

fn files_answer() -> Value {
    json!({
        "title": "FilesAnswer",
        "description": "The answer of a call that made or changed files, or after which there is a notice",
        "type": "object",
        "properties": {
            "result": {"title": "Result", "description": "What the tool itself answered"},
            "files": {"type": "array", "items": {"$ref": "#/components/schemas/File"}},
            "archive": {
                "description": "All of them in one zip file, where there are several",
                "$ref": "#/components/schemas/File",
            },
            "message": {"type": "string", "description": "A sentence with the links, in markdown"},
            "notice": {"type": "string", "description": "What the model should know of its session"},
        },
        "required": ["result"],
    })
}

fn file() -> Value {
    json!({
        "title": "File",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "url": {"type": "string", "format": "uri", "description": "Opens this version of the file without a key"},
            "size": {"type": "integer", "minimum": 0, "description": "Bytes"},
            "mime_type": {"type": "string"},
            "expires_at": {"type": "string", "format": "date-time"},
        },
        "required": ["name", "url", "size", "mime_type", "expires_at"],
    })
}

fn validation_answer() -> Value {
    json!({
        "title": "HTTPValidationError",
        "type": "object",
        "properties": {"detail": {
            "title": "Detail",
            "type": "array",
            "items": {"$ref": "#/components/schemas/ValidationError"},
        }},
    })
}

fn validation_error() -> Value {
    json!({
        "title": "ValidationError",
        "type": "object",
        "properties": {
            "loc": {"title": "Location", "type": "array", "items": {"type": ["string", "integer"]}},
            "msg": {"title": "Message", "type": "string"},
            "type": {"title": "Error Type", "type": "string"},
            "input": {"title": "Input"},
        },
        "required": ["loc", "msg", "type"],
    })
}

fn problem() -> Value {
    json!({
        "title": "Problem",
        "description": "RFC 9457; `detail` as mcpo shaped it",
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {
                "type": ["string", "object"],
                "properties": {"message": {"type": "string"}, "data": {}},
            },
        },
    })
}
