//! JSON-RPC errors with the HTTP status that goes with them.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bridge_protocol::{Malformed, RawJson, code};
use serde_json::{Value, json};

use crate::{call::CallError, identity::Refusal, telemetry::ProblemKind};

/// Why a message got no result.
#[derive(Debug)]
pub struct RpcError {
    /// Of HTTP.
    pub status: StatusCode,
    /// Of JSON-RPC.
    pub code: i64,
    /// For people.
    pub message: String,
    /// For programs.
    pub data: Option<Value>,
    /// The message that it answers; none where that could not be read.
    pub id: Option<RawJson>,
    /// For metrics and logs.
    pub kind: &'static str,
    retry_after: Option<u64>,
    challenge: Option<&'static str>,
}

impl RpcError {
    /// With a status, a code and a word for metrics.
    pub fn new(status: StatusCode, code: i64, kind: &'static str, message: &str) -> Self {
        Self {
            status,
            code,
            message: message.to_owned(),
            data: None,
            id: None,
            kind,
            retry_after: None,
            challenge: None,
        }
    }

    /// 400 / −32600.
    pub fn invalid(message: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            code::INVALID_REQUEST,
            "bad_request",
            message,
        )
    }

    /// 400 / −32602.
    pub fn params(message: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            code::INVALID_PARAMS,
            "bad_arguments",
            message,
        )
    }

    /// 400 / −32020: the headers say something else than the body.
    pub fn headers(message: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            code::HEADER_MISMATCH,
            "header_mismatch",
            message,
        )
    }

    /// 404 / −32601.
    pub fn method(method: &str) -> Self {
        let message = format!("Method not found: {method}");
        Self::new(
            StatusCode::NOT_FOUND,
            code::METHOD_NOT_FOUND,
            "unknown_method",
            &message,
        )
    }

    /// As an answer like any other: under 200, as clients with sessions expect it.
    pub fn answered(mut self) -> Self {
        self.status = StatusCode::OK;
        self
    }

    /// After how many seconds the client may come back, if that is said.
    #[cfg(test)]
    pub fn wait(&self) -> Option<u64> {
        self.retry_after
    }

    /// For the message with this id.
    pub fn to(mut self, id: Option<RawJson>) -> Self {
        self.id = id;
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
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
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = data.clone();
        }
        format!(
            r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#,
            id.as_str()
        )
    }

    /// A call's failure. What is wrong with the call itself travels under 200, as JSON-RPC has it;
    /// only what says "not now" is seen by proxies, and nothing that may have been carried out.
    pub fn of_call(error: &CallError) -> Self {
        let (status, code, retry) = match error {
            CallError::Busy(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                code::INTERNAL_ERROR,
                Some(10),
            ),
            CallError::Elsewhere(_) | CallError::TakenOver | CallError::ShuttingDown => (
                StatusCode::SERVICE_UNAVAILABLE,
                code::INTERNAL_ERROR,
                Some(5),
            ),
            CallError::UnknownSession => (StatusCode::NOT_FOUND, code::INVALID_REQUEST, None),
            CallError::BadPath { .. } => (StatusCode::OK, code::INVALID_PARAMS, None),
            CallError::DiskFull(_) | CallError::OverQuota(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, code::INTERNAL_ERROR, None)
            }
            _ => (StatusCode::OK, code::INTERNAL_ERROR, None),
        };
        let mut failure = Self::new(status, code, error.kind(), &error.to_string());
        failure.retry_after = retry;
        failure.with(json!({"kind": error.kind()}))
    }
}

impl From<Malformed> for RpcError {
    fn from(malformed: Malformed) -> Self {
        let kind = match malformed.code {
            code::PARSE_ERROR => "bad_json",
            code::INVALID_PARAMS => "bad_arguments",
            _ => "bad_request",
        };
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, malformed.code, kind, &malformed.message).to(malformed.id)
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> Self {
        Self::of_call(&error)
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::FORBIDDEN);
        let mut error = Self::new(
            status,
            code::INVALID_REQUEST,
            refusal.kind(),
            &refusal.to_string(),
        );
        error.challenge = refusal.challenge();
        error.retry_after = refusal.retry_after();
        error
    }
}

impl IntoResponse for RpcError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, wait.into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        response.extensions_mut().insert(ProblemKind(self.kind));
        response
    }
}
