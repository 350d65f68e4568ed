//! Hashes over several fields, and how they are written.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let text = String::with_capacity(bytes.len() * 2);
    bytes.iter().fold(text, |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 over fields with their lengths, which keep ("ab","c") and ("a","bc") apart.
#[derive(Debug)]
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// `kind` keeps hashes of different things apart.
    pub fn new(kind: &str) -> Self {
        let mut fields = Self(Sha256::new());
        fields.text(kind);
        fields
    }

    /// Adds a field.
    pub fn bytes(&mut self, field: &[u8]) {
        self.0.update((field.len() as u64).to_be_bytes());
        self.0.update(field);
    }

    /// Adds a field.
    pub fn text(&mut self, field: &str) {
        self.bytes(field.as_bytes());
    }

    /// Adds a field for each item, behind their number.
    pub fn list<T: AsRef<str>>(&mut self, items: &[T]) {
        self.text(&items.len().to_string());
        for item in items {
            self.text(item.as_ref());
        }
    }

    /// The hash of all fields.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
