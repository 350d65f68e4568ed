//! The memory that request bodies take, from their first byte until their calls run.
//!
//! One budget, in three parts that cannot keep each other waiting:
//!
//! - *small* bodies, of which a slow sender holds no more than what has come;
//! - *large* ones, whose whole length is taken once more than a small body has come: a sender has to
//!   send to hold memory, and none waits half-read for the others;
//! - *parsing*: what a large body takes as values, while it is parsed and checked.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are of so many bytes.
const UNIT: u64 = 1024;
/// Bytes of a small body.
pub const SMALL: u64 = 64 * 1024;
/// A body of fewer bytes is parsed without being counted.
const TINY: usize = 16 * 1024;
/// What one value takes at most, its name, its places in lists and hashes, and the allocator's
/// share included.
const VALUE: u64 = 128;
/// Parts of less would refuse what everybody sends.
const LEAST: u64 = 1024 * 1024;

/// Why there is no memory for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It needs more than there is for one, in bytes.
    Never(u64),
    /// Others had it for too long.
    Now,
    /// It has more values than this.
    Values(u64),
}

/// All of it.
pub struct BodyMemory {
    small: Part,
    large: Part,
    parsing: Part,
    most_values: u64,
    /// How long a body waits.
    patience: Duration,
}

struct Part {
    free: Arc<Semaphore>,
    size: u64,
}

impl Part {
    fn new(bytes: u64) -> Self {
        let size = bytes.max(LEAST) / UNIT;
        let size = size.min(u64::from(u32::MAX));
        let permits = usize::try_from(size).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(permits)),
            size: size * UNIT,
        }
    }

    async fn take(&self, bytes: u64, patience: Duration) -> Result<OwnedSemaphorePermit, Refused> {
        if bytes > self.size {
            return Err(Refused::Never(self.size));
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        if let Ok(permit) = self.free.clone().try_acquire_many_owned(units) {
            return Ok(permit);
        }
        let wait = self.free.clone().acquire_many_owned(units);
        let taken = tokio::time::timeout(patience, wait).await;
        let taken = taken.map_err(|_| Refused::Now)?;
        taken.map_err(|_closed| Refused::Now)
    }
}

impl BodyMemory {
    /// `bytes` for all; a body waits for `patience` and may have `most_values` JSON values.
    pub fn new(bytes: u64, most_values: u64, patience: Duration) -> Self {
        Self {
            small: Part::new(bytes / 8),
            large: Part::new(bytes / 8 * 3),
            parsing: Part::new(bytes / 2),
            most_values,
            patience,
        }
    }

    /// Begins a body, of which nothing has come. `length` is what its sender says.
    pub fn begin(&self, length: Option<u64>) -> Share<'_> {
        Share {
            memory: self,
            length,
            taken: 0,
            permit: None,
        }
    }

    /// Takes what the JSON in a body needs while it is parsed and checked; none for a tiny one. It has
    /// to be held until then.
    pub async fn parse(&self, body: &[u8]) -> Result<Option<OwnedSemaphorePermit>, Refused> {
        if body.len() < TINY {
            return Ok(None);
        }
        let values = values(body, self.most_values);
        if values > self.most_values {
            return Err(Refused::Values(self.most_values));
        }
        let needed = (body.len() as u64).saturating_add(values.saturating_mul(VALUE));
        let permit = self.parsing.take(needed, self.patience).await?;
        Ok(Some(permit))
    }
}

/// What a body holds of the memory.
pub struct Share<'m> {
    memory: &'m BodyMemory,
    length: Option<u64>,
    taken: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Share<'_> {
    /// Takes what is needed for `size` bytes in all, before they are kept.
    pub async fn grow(&mut self, size: u64) -> Result<(), Refused> {
        if size <= self.taken {
            return Ok(());
        }
        let memory = self.memory;
        let (was_small, is_small) = (self.taken <= SMALL, size <= SMALL);
        // Half as much again lies beside a buffer that grows without a known length.
        let target = match self.length {
            _ if is_small => size,
            Some(length) => length.max(size),
            None => size.next_power_of_two().saturating_mul(3) / 2,
        };
        let (part, held) = match (was_small, is_small) {
            (true, true) => (&memory.small, self.taken),
            (true, false) => (&memory.large, 0),
            _ => (&memory.large, self.taken),
        };
        let more = target.div_ceil(UNIT) - held.div_ceil(UNIT).min(target.div_ceil(UNIT));
        let more = part.take(more * UNIT, memory.patience).await?;
        match &mut self.permit {
            Some(permit) if was_small == is_small => permit.merge(more),
            // The small part's is given back.
            permit => *permit = Some(more),
        }
        self.taken = target;
        Ok(())
    }

    /// What it holds, for a body that is kept in pieces.
    pub fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        self.permit
    }

    /// The body, which holds its memory as long as any part of it is there.
    pub fn keep(self, bytes: Bytes) -> Bytes {
        match self.permit {
            Some(permit) => Bytes::from_owner(Kept {
                bytes,
                _permit: permit,
            }),
            None => bytes,
        }
    }
}

struct Kept {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `bytes` where `body` is kept as long: what was made of a body counts as it does.
pub fn keep_with(bytes: Bytes, body: &Bytes) -> Bytes {
    struct Made(
        Bytes,
        #[expect(dead_code, reason = "its drop gives the memory back")] Bytes,
    );
    impl AsRef<[u8]> for Made {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let within = body.as_ptr_range().contains(&bytes.as_ptr());
    if within || (body.len() as u64) <= SMALL {
        bytes
    } else {
        Bytes::from_owner(Made(bytes, body.clone()))
    }
}

/// At least as many as there are values and names in a JSON text; exactly where it may be more than
/// `most`.
fn values(json: &[u8], most: u64) -> u64 {
    let opens = |byte: &u8| matches!(byte, b',' | b':' | b'[' | b'{');
    let least = 1 + json.iter().filter(|byte| opens(byte)).count() as u64;
    if least <= most {
        return least;
    }
    // Commas in texts are no values.
    let (mut values, mut rest) = (1, json);
    while let Some(quote) = memchr::memchr(b'"', rest) {
        values += rest[..quote].iter().filter(|byte| opens(byte)).count() as u64;
        rest = &rest[quote + 1..];
        loop {
            match memchr::memchr2(b'"', b'\\', rest) {
                Some(at) if rest[at] == b'"' => {
                    rest = &rest[at + 1..];
                    break;
                }
                Some(escape) => rest = rest.get(escape + 2..).unwrap_or_default(),
                None => return values,
            }
        }
    }
    values + rest.iter().filter(|byte| opens(byte)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn memory(bytes: u64) -> BodyMemory {
        BodyMemory::new(bytes, 1000, Duration::from_millis(10))
    }

    #[tokio::test]
    async fn a_slow_sender_of_a_large_body_holds_what_he_sent() {
        let memory = memory(64 * MIB);
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut share = memory.begin(Some(20 * MIB));
            share.grow(10).await.unwrap();
            slow.push(share);
        }
        let mut honest = memory.begin(Some(20 * MIB));
        honest.grow(SMALL + 1).await.unwrap();
        honest.grow(20 * MIB).await.unwrap();
        // One more has no room, until the first is gone. Small ones do not wait for it.
        let mut second = memory.begin(Some(20 * MIB));
        assert_eq!(second.grow(SMALL + 1).await, Err(Refused::Now));
        let bytes = honest.keep(vec![0; 20 * 1024 * 1024].into());
        let part = bytes.slice(5..6);
        drop(bytes);
        assert_eq!(second.grow(SMALL + 1).await, Err(Refused::Now));
        memory.begin(None).grow(SMALL).await.unwrap();
        drop(part);
        second.grow(SMALL + 1).await.unwrap();
    }

    #[tokio::test]
    async fn all_of_it_comes_back() {
        let memory = memory(64 * MIB);
        for length in [None, Some(10 * MIB)] {
            let mut share = memory.begin(length);
            for size in (0..10 * MIB).step_by(10_000) {
                share.grow(size).await.unwrap();
            }
            drop(share);
            for part in [&memory.small, &memory.large] {
                assert_eq!(part.free.available_permits() as u64 * UNIT, part.size);
            }
        }
    }

    #[tokio::test]
    async fn what_can_never_fit_is_told_at_once() {
        let memory = memory(8 * MIB);
        let mut share = memory.begin(Some(20 * MIB));
        assert_eq!(share.grow(SMALL + 1).await, Err(Refused::Never(3 * MIB)));
        let many = format!("[{}1]", "1,".repeat(TINY));
        let refused = memory.parse(many.as_bytes()).await;
        assert_eq!(refused.unwrap_err(), Refused::Values(1000));
        let text = format!("[{:?}]", ",".repeat(TINY));
        assert!(memory.parse(text.as_bytes()).await.unwrap().is_some());
    }

    #[test]
    fn values_are_counted_and_what_stands_in_texts_is_not() {
        for (json, count) in [
            (r#"{"a":1,"b":[1,2]}"#, 7),
            (r#"["a,b","\",\\",{}]"#, 5),
            (r#"",,,,""#, 1),
            (r#"["open, "#, 2),
            (r#"["\"#, 2),
        ] {
            assert_eq!(values(json.as_bytes(), 0), count, "{json}");
        }
    }
}
