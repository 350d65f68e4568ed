//! Hashes over several fields, and their text form.

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

/// SHA-256 over fields with their lengths, so that ("ab","c") and ("a","bc") have different hashes.
#[derive(Debug)]
pub struct FieldHasher(Sha256);

impl FieldHasher {
    /// `kind` separates hashes of different purposes.
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

    /// Adds the number of items and then a field for each.
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
