//! A request that its client calls off.

use std::sync::{Arc, OnceLock};

use bridge_protocol::{RawJson, jsonrpc};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// Set once, perhaps in the client's own words. Clones are of the same request.
#[derive(Clone, Default)]
pub struct Cancellation {
    token: CancellationToken,
    words: Arc<OnceLock<(Bytes, RawJson)>>,
}

impl Cancellation {
    /// By a `notifications/cancelled` of the client's, within which `id` names the request.
    pub fn cancel(&self, line: &Bytes, id: &RawJson) {
        let _ = self.words.set((line.clone(), id.clone()));
        self.token.cancel();
    }

    /// Waits for it.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// What the child is told of its request with this number of ours: the client's message where
    /// there is one, all of it but the id.
    pub fn line_for(&self, number: u64) -> Bytes {
        let Some((line, id)) = self.words.get() else {
            return jsonrpc::cancelled(number);
        };
        let mut line = jsonrpc::splice(line, &[(id, number.to_string().as_bytes())]).to_vec();
        jsonrpc::end_line(&mut line);
        line.into()
    }
}
