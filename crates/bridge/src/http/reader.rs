//! Who reads documents, pages and figures.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::ConnectInfo,
    http::{HeaderMap, Method, Uri},
};
use bridge_model::Caller;

use super::{Problem, hosts};
use crate::{
    app::App,
    config::{ServerAccess, ServerSpec},
};

/// Who asks for a document.
pub struct Reader {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    peer: SocketAddr,
}

impl axum::extract::FromRequestParts<Arc<App>> for Reader {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &Arc<App>,
    ) -> Result<Self, Self::Rejection> {
        let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        // Without an address nobody is trusted.
        let peer = peer.map_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)), |peer| peer.0);
        Ok(Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            peer,
        })
    }
}

impl Reader {
    /// Refuses a reader who may not see documents.
    pub async fn admit(&self, app: &App) -> Result<(), Problem> {
        let ip = self.peer.ip();
        app.identity
            .authenticate_document(&self.method, &self.headers, ip)
            .await?;
        Ok(())
    }

    /// Who reads, for what is not for everybody: as far as the request says so.
    pub fn caller(&self, app: &App) -> Caller {
        app.identity.reader(&self.headers, self.peer.ip())
    }

    /// Whether the bridge's own state may be told to the reader.
    pub fn is_operator(&self, app: &App) -> bool {
        hosts::names_us(app, &self.uri, &self.headers)
            && app.identity.is_operator(&self.headers, self.peer.ip())
    }

    /// Whether a server is there for the reader.
    pub fn sees(&self, app: &App, spec: &ServerSpec) -> bool {
        // Where it is for everybody, it does not matter what a request says.
        spec.allow.is_none() || spec.access(&self.caller(app)) != ServerAccess::None
    }
}
