//! Who reads documents, pages and figures.

use std::net::SocketAddr;

use axum::http::request::Parts;
use bridge_model::Caller;

use super::{Problem, hosts};
use crate::{
    app::App,
    config::{ServerAccess, ServerSpec},
};

/// Who asks for a document.
pub struct Reader<'r> {
    parts: &'r Parts,
    peer: SocketAddr,
}

impl<'r> Reader<'r> {
    /// By the request.
    pub fn new(parts: &'r Parts, peer: SocketAddr) -> Self {
        Self { parts, peer }
    }

    /// Refuses a reader who may not see documents.
    pub async fn admit(&self, app: &App) -> Result<(), Problem> {
        let ip = self.peer.ip();
        app.identity
            .authenticate_document(&self.parts.method, &self.parts.headers, ip)
            .await?;
        Ok(())
    }

    /// Who reads, for what is not for everybody: as far as the request says so.
    pub fn caller(&self, app: &App) -> Caller {
        app.identity.reader(&self.parts.headers, self.peer.ip())
    }

    /// Whether the bridge's own state may be told to the reader.
    pub fn is_operator(&self, app: &App) -> bool {
        hosts::names_us(app, &self.parts.uri, &self.parts.headers)
            && app
                .identity
                .is_operator(&self.parts.headers, self.peer.ip())
    }

    /// Whether a server is there for the reader.
    pub fn sees(&self, app: &App, spec: &ServerSpec) -> bool {
        // Where it is for everybody, it does not matter what a request says.
        spec.allow.is_none() || spec.access(&self.caller(app)) != ServerAccess::None
    }
}
