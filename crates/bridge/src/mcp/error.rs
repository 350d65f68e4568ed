//! Errors of MCP endpoints: JSON-RPC errors, each with its HTTP status.

use axum::response::{IntoResponse, Response};
use bridge_protocol::{Malformed, RawJson, code};
use serde_json::{Value, json};

use crate::{
    call::CallError,
    error_table::{CallerError, ErrorKind},
};

/// Why a message got no result.
#[derive(Debug)]
pub struct RpcError {
    /// The kind, for programs, metrics and logs.
    pub kind: ErrorKind,
    /// The HTTP status.
    pub status: u16,
    /// The message for users.
    pub message: String,
    /// The data for programs.
    pub data: Option<Value>,
    /// The id of the message that failed; `None` if it could not be read.
    pub id: Option<RawJson>,
}

impl RpcError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.mcp_status,
            message: message.into(),
            data: None,
            id: None,
        }
    }

    /// 400 / −32600.
    pub fn invalid(message: &str) -> Self {
        Self::new(ErrorKind::BAD_REQUEST, message)
    }

    /// 400 / −32602.
    pub fn params(message: &str) -> Self {
        Self::new(ErrorKind::BAD_PARAMS, message)
    }

    /// 400 / −32020: headers and body differ.
    pub fn headers(message: &str) -> Self {
        Self::new(ErrorKind::HEADER_MISMATCH, message)
    }

    /// 404 / −32601.
    pub fn method(method: &str) -> Self {
        let message = format!("Method not found: {method}");
        Self::new(ErrorKind::UNKNOWN_METHOD, message)
    }

    /// With status 200, which clients with sessions expect.
    pub fn answered(mut self) -> Self {
        self.status = 200;
        self
    }

    /// As the response to the message with this id.
    pub fn to(mut self, id: Option<RawJson>) -> Self {
        self.id = id;
        self
    }

    /// With data for programs.
    pub fn with(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }

    /// The error as a JSON-RPC message.
    pub fn body(&self) -> String {
        let id = self.id.clone().unwrap_or_else(RawJson::null);
        let mut error = json!({"code": self.kind.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = data.clone();
        }
        format!(
            r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#,
            id.as_str()
        )
    }

    /// The error for a failed call.
    pub fn of_call(error: &CallError) -> Self {
        let kind = error.kind();
        Self::new(kind, error.to_string()).with(json!({"kind": kind.name}))
    }
}

impl From<Malformed> for RpcError {
    fn from(malformed: Malformed) -> Self {
        let kind = match malformed.code {
            code::PARSE_ERROR => ErrorKind::BAD_JSON,
            code::INVALID_PARAMS => ErrorKind::BAD_PARAMS,
            _ => ErrorKind::BAD_REQUEST,
        };
        Self::new(kind, malformed.message).to(malformed.id)
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        Self::of_call(&error)
    }
}

impl<E: CallerError> From<E> for RpcError {
    fn from(error: E) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl IntoResponse for RpcError {
    fn into_response(self) -> Response {
        let body = self.body();
        self.kind.respond(self.status, "application/json", body)
    }
}
