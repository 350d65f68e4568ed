//! All routes, and the layers around them, on one screen.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::Method,
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};

use super::{
    Problem, call, documents,
    door::{self, Door},
    files::{self, PageLanguage},
    health, mcp, metrics, upload,
};
use crate::{
    app::App,
    config::{Lang, Listen},
};

/// All of them; calls in their usual spelling do not come here ([`super::straight`]).
pub fn router(app: &Arc<App>) -> Router {
    let language = match app.settings.lang {
        Lang::Ja => PageLanguage::Japanese,
        Lang::En => PageLanguage::English,
    };
    let server = get(documents::below_mcpo).post(call::below_mcpo);
    let mcp = get(mcp::get).post(mcp::post).delete(mcp::delete);
    let server_at_root = get(documents::at_root).post(call::at_root);
    let routes = Router::new()
        .route("/health", get(health::report))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::render))
        .route("/openapi.json", get(documents::root))
        .route("/docs", get(documents::index))
        .route("/docs/assets/{file}", get(documents::asset))
        // A tool may have slashes in its name.
        .route("/mcpo/{server}/{*leaf}", server)
        .route("/mcp", mcp.clone())
        .route("/mcp/", mcp.clone())
        // A server may have slashes in its name, too.
        .route("/mcp/{*server}", mcp)
        .route("/{server}/{*leaf}", server_at_root)
        .route("/files", post(upload::post))
        // Each door has limits of its own.
        .layer(DefaultBodyLimit::disable())
        .fallback(not_found);
    // A single server's tools may be called as routes of ours, which take no POST.
    let routes = match &app.settings.command_line.server {
        Some(_) => routes
            .route("/{leaf}", get(documents::of_single).post(call::of_single))
            .method_not_allowed_fallback(call_or_wrong_method),
        None => routes.method_not_allowed_fallback(wrong_method),
    };
    let routes =
        routes
            .with_state(app.clone())
            .merge(files::router(app.store.clone(), language).layer(
                middleware::from_fn_with_state(app.clone(), super::metrics::audit_download),
            ));
    let routes = placed(routes, &app.settings.listen);
    let door = Arc::new(Door::new(app));
    routes.layer(middleware::from_fn_with_state(door, door::pass))
}

/// Where the settings want them.
pub fn placed(routes: Router, listen: &Listen) -> Router {
    let routes = match listen.path_prefix.as_str() {
        "" => routes,
        prefix => Router::new().nest(prefix, routes),
    };
    match listen.root_path.as_str() {
        "" => routes,
        root => Router::new().nest(root, routes.clone()).merge(routes),
    }
}

async fn not_found() -> Problem {
    Problem::not_found()
}

async fn wrong_method() -> Problem {
    Problem::method_not_allowed()
}

async fn call_or_wrong_method(
    state: State<Arc<App>>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let tool = match request.uri().path().trim_start_matches('/') {
        tool if request.method() == Method::POST && !tool.contains('/') => tool.to_owned(),
        _ => return Problem::method_not_allowed().into_response(),
    };
    call::of_single(state, Path(tool), peer, request).await
}
