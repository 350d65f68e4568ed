//! A finished call as the OpenAPI answer.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bridge_openapi::{ToolFailure, result_body};
use bridge_protocol::RawJson;
use serde::Serialize;
use serde_json::json;

use super::Problem;
use crate::{
    call::{Answer, Link},
    config::{ServerSpec, Settings},
};

/// The answer of a call that made files, or after which the model should know something.
#[derive(Serialize)]
struct Wrapped {
    result: RawJson,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

/// Without files and notices the tool's own result, byte by byte; else an object around it.
pub fn response(
    answer: &Answer,
    spec: &ServerSpec,
    settings: &Settings,
) -> Result<Response, Problem> {
    let files: Vec<Link> = answer
        .files
        .files
        .iter()
        .map(|file| Link::of(file, settings))
        .collect();
    let archive = answer
        .files
        .archive
        .as_ref()
        .map(|file| Link::of(file, settings));
    let notice = answer.notice(settings.lang);
    let result = match result_body(&answer.outcome) {
        Ok(result) => result,
        Err(ToolFailure { message }) => {
            let mut problem = Problem::tool_failed(&message);
            // A tool that failed half-way may have left something that its user wants.
            if !files.is_empty() {
                problem = problem.with("files", json!(files));
            }
            if let Some(notice) = notice {
                problem = problem.with("notice", notice.into());
            }
            return Err(problem);
        }
    };
    let body = if files.is_empty() && notice.is_none() {
        result
    } else {
        let message = (!files.is_empty()).then(|| message(answer, spec, settings));
        RawJson::from_value(&Wrapped {
            result,
            files,
            archive,
            message,
            notice,
        })
        .map_err(|error| Problem::tool_failed(&error.to_string()))?
    };
    let mut response = body.into_bytes().into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

fn message(answer: &Answer, spec: &ServerSpec, settings: &Settings) -> String {
    let mut message = answer.files.message(settings);
    if let Some(instruction) = &spec.post_instruction {
        message.push('\n');
        message.push_str(instruction);
    }
    message
}
