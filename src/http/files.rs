//! `/files/{token}/{name}`: downloads. The token alone decides what is served.

use std::sync::Arc;

use axum::Router;

use crate::store::Store;

/// The language of pages for browsers that do not ask for one of ours (`MCPO_LANG`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PageLanguage {
    /// Japanese.
    Japanese,
    /// English.
    #[default]
    English,
}

/// The routes `GET|HEAD /files/{token}/{name}`; every other path below `/files` is 404. Needs no
/// key: the token is the capability.
pub fn router(store: Arc<Store>, language: PageLanguage) -> Router {
    let _ = (store, language);
    todo!()
}
