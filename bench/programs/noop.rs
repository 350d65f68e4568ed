//! A POST that does nothing: axum gives back the body that it got. No bridge on axum is faster.
//!
//! `noop PORT`

use axum::{
    Router, body::Bytes, http::header::CONTENT_TYPE, routing::post, serve::ListenerExt as _,
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let give_back = post(|body: Bytes| async { ([(CONTENT_TYPE, "application/json")], body) });
    let port = std::env::args().nth(1).unwrap_or_default();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().route("/", give_back)).await
}
