//! MCP messages without I/O: JSON that keeps its bytes, JSON-RPC messages, server-sent events,
//! tools. Parts of a message that the bridge does not need are neither parsed nor changed.
//!
//! This crate must not know sockets, pipes, processes, files, HTTP or callers.
//!
//! ```
//! use bridge_protocol::jsonrpc::{Message, message, splice};
//! use bytes::Bytes;
//!
//! // A child's response is forwarded under the client's own id; all other bytes stay unchanged.
//! let line = Bytes::from_static(br#"{"jsonrpc":"2.0", "id":7, "result":{"n": 1.50}}"#);
//! let Some(Message::Response { number: 7, reply }) = message(&line) else {
//!     panic!("an answer to request 7")
//! };
//! let sent = splice(&reply.line, &[(&reply.id, br#""client-1""#)]);
//! assert_eq!(sent, br#"{"jsonrpc":"2.0", "id":"client-1", "result":{"n": 1.50}}"#.as_slice());
//! ```

mod client_message;
pub mod jsonrpc;
mod raw_json;
mod spec;
pub mod sse;

pub use client_message::{ClientMessage, Kind, Malformed, Meta, Params};
pub use raw_json::{Member, RawJson, last_members, members, text, utf8, without_mark};
pub use spec::{Tool, code, era, header_name, meta, method, revision};
