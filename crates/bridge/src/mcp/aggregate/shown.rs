//! URIs in what servers say: one that would not lead back to its server is exchanged for one that
//! names it. Most lines hold none, and pass as they came.

use std::sync::Arc;

use bridge_protocol::{
    RawJson,
    jsonrpc::{Reply, Said, splice},
    method,
};

use super::view::{View, exchanged};
use crate::catalog::completion;

/// How one server's resources are called at the endpoint of all servers.
#[derive(Clone)]
pub struct Shown {
    view: Arc<View>,
    server: usize,
}

impl Shown {
    /// For a server of the view.
    pub fn new(view: Arc<View>, server: usize) -> Self {
        Self { view, server }
    }

    /// An answer of the server's.
    pub fn reply(&self, reply: Reply) -> Reply {
        let Ok(result) = &reply.outcome else {
            return reply;
        };
        let places = in_result(result);
        let line = exchanged(&self.view, self.server, &reply.line, &places);
        line.and_then(|line| Reply::read(&line)).unwrap_or(reply)
    }

    /// An answer of the server's to `completion/complete`.
    pub fn completion(reply: Reply) -> Reply {
        let Ok(result) = &reply.outcome else {
            return reply;
        };
        let mended = completion(result);
        if mended == *result {
            return reply;
        }
        let line = splice(&reply.line, &[(result, mended.as_bytes())]);
        Reply::read(&line).unwrap_or(reply)
    }

    /// A note of the server's, as a line.
    pub fn note(&self, said: &Said) -> bytes::Bytes {
        let place = (&*said.method == method::RESOURCE_UPDATED)
            .then(|| said.params.as_ref()?.member("uri"))
            .flatten();
        let places: Vec<RawJson> = place.into_iter().collect();
        exchanged(&self.view, self.server, &said.line, &places).unwrap_or_else(|| said.line.clone())
    }
}

/// Where a result has URIs that its reader may ask for: links in a tool's result and in a prompt's
/// messages, and what was read.
fn in_result(result: &RawJson) -> Vec<RawJson> {
    let holds = |text: &str| memchr::memmem::find(result.as_bytes(), text.as_bytes()).is_some();
    let mut places = Vec::new();
    if holds("resource_link") {
        places.extend(items(result, "content").iter().filter_map(link));
        let messages = items(result, "messages");
        let contents = messages.iter().filter_map(|it| it.member("content"));
        places.extend(contents.filter_map(|it| link(&it)));
    }
    if holds("\"contents\"") {
        let read = items(result, "contents");
        places.extend(read.iter().filter_map(|it| it.member("uri")));
    }
    places
}

fn link(block: &RawJson) -> Option<RawJson> {
    let kind: String = block.member("type")?.read().ok()?;
    (kind == "resource_link")
        .then(|| block.member("uri"))
        .flatten()
}

/// The items of a member that is an array.
fn items(object: &RawJson, key: &str) -> Vec<RawJson> {
    let list = object.member(key);
    list.and_then(|list| list.elements()).unwrap_or_default()
}
