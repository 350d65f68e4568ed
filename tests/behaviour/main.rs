//! The behaviour of the real binary, over HTTP, with real children and real files.
//!
//! All tests are one crate, which is linked once, with one harness ([`support`]) that asserts after
//! every test that no process, file or port is left behind.

// The product's name, and `as_user`, which reads as a sentence where it is used.
#![allow(clippy::doc_markdown, clippy::wrong_self_convention)]

mod support;

mod allow;
mod arguments;
mod catalog;
mod chats;
mod children;
mod commands;
mod connections;
mod disk_faults;
mod docs;
mod dropin;
mod failures;
mod fairness;
mod files;
mod files_server;
mod fork;
mod harness;
mod health_truth;
mod identity;
mod install;
mod leftovers;
mod limits;
mod mcp;
mod mcp_all;
mod mcp_bytes;
mod mcp_sessions;
mod modern_only;
mod odd_servers;
mod openapi;
mod openwebui_files;
mod openwebui_session;
mod overload;
mod pending_input;
mod pool;
mod real_servers;
mod records;
mod refusals;
mod remote;
mod remote_faults;
mod remote_sessions;
mod replicas;
mod replicas_files;
mod replicas_leash;
mod replicas_mcp;
mod replicas_proof;
mod running;
mod session_lists;
mod sessions;
mod strangers;
mod threats;
mod uploads;
mod waits;
mod written_elsewhere;
