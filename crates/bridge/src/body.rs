//! Bodies of requests: the memory that all of them share, from their first byte until their calls run, and
//! reading one completely, up to a limit, within it.
//!
//! One budget, in three parts that cannot block each other:
//!
//! - *small* bodies: a slow sender holds only the memory of the bytes that were received;
//! - *large* bodies: their whole length is taken once more than a small body was received. A sender has to
//!   send data to hold memory, and no half-received body waits for others;
//! - *parsing*: the values of a large body, while it is parsed and checked.
//!
//! One tenant gets at most its share of each part, so that other tenants' bodies get memory while its own
//! wait. A single body may take more than the share: the tenant's other bodies wait for it.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    BoxError,
    body::{Body, HttpBody},
    http::{HeaderMap, HeaderValue, header},
};
use bridge_model::{Caller, Tenant};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::error_table::{CallerError, ErrorKind};

/// Bytes of one permit.
const UNIT: u64 = 1024;
/// Maximum size of a small body, in bytes.
const SMALL: u64 = 64 * 1024;
/// A smaller body is parsed without being counted.
const TINY: usize = 16 * 1024;
/// Maximum bytes of one parsed value, including its name, its entries in lists and hash tables, and the
/// allocator's overhead.
const VALUE: u64 = 128;
/// Minimum size of a part; smaller parts would refuse usual bodies.
const LEAST: u64 = 1024 * 1024;
/// Beyond this number of tenants, those that hold no memory are forgotten.
const REMEMBERED: usize = 1000;

/// Why a body gets no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// It has more JSON values than this.
    #[error("the body contains more than {0} JSON values (MCPO_MAX_BODY_VALUES)")]
    TooManyValues(u64),
    /// One body may not use this much memory.
    #[error(
        "the body needs more memory than the {0} bytes allowed for one body: raise \
         MCPO_BODY_MEMORY, or send less data per request"
    )]
    TooLarge(u64),
    /// Other bodies use the memory.
    #[error("the memory for request bodies is in use (MCPO_BODY_MEMORY); try again in a moment")]
    Busy,
}

impl CallerError for MemoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyValues(_) => ErrorKind::TOO_MANY_VALUES,
            Self::TooLarge(_) => ErrorKind::BODY_TOO_LARGE,
            Self::Busy => ErrorKind::NO_MEMORY,
        }
    }
}

/// The whole budget.
pub struct BodyMemory {
    small: Part,
    large: Part,
    parsing: Part,
    most_values: u64,
    /// How long a body waits for memory.
    patience: Duration,
}

struct Part {
    free: Arc<Semaphore>,
    /// Size in units.
    size: u32,
    /// Share of one tenant, in units.
    share: u32,
    of_tenant: Mutex<HashMap<Tenant, Weak<Semaphore>>>,
}

/// Units taken from a part, and from the tenant's share of it.
#[derive(Debug)]
pub struct Taken {
    all: OwnedSemaphorePermit,
    own: OwnedSemaphorePermit,
}

impl Part {
    fn new(bytes: u64, share: u64) -> Self {
        let units = |bytes: u64| u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let size = units(bytes.max(LEAST));
        let permits = usize::try_from(size).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(permits)),
            size,
            share: units(share).clamp(1, size),
            of_tenant: Mutex::default(),
        }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.size) * UNIT
    }

    /// Takes `bytes` for a tenant's body, which already holds `held`.
    async fn take(
        &self,
        tenant: &Tenant,
        bytes: u64,
        held: Option<&Taken>,
        patience: Duration,
    ) -> Result<Taken, MemoryError> {
        if bytes > self.bytes() {
            return Err(MemoryError::TooLarge(self.bytes()));
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let held = held.map_or(0, |held| held.own.num_permits());
        let left = self.share - u32::try_from(held).unwrap_or(u32::MAX).min(self.share);
        let until = Instant::now() + patience;
        // The tenant's share is taken first: a body that waits for the common part then holds no more than
        // that share.
        let own = taken(self.share_of(tenant), units.min(left), until).await?;
        let all = taken(self.free.clone(), units, until).await?;
        Ok(Taken { all, own })
    }

    fn share_of(&self, tenant: &Tenant) -> Arc<Semaphore> {
        let mut shares = self.of_tenant.lock();
        if let Some(share) = shares.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= REMEMBERED {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let permits = usize::try_from(self.share).unwrap_or(Semaphore::MAX_PERMITS);
        let share = Arc::new(Semaphore::new(permits));
        shares.insert(tenant.clone(), Arc::downgrade(&share));
        share
    }
}

async fn taken(
    of: Arc<Semaphore>,
    units: u32,
    until: Instant,
) -> Result<OwnedSemaphorePermit, MemoryError> {
    if let Ok(permit) = of.clone().try_acquire_many_owned(units) {
        return Ok(permit);
    }
    let taken = timeout_at(until, of.acquire_many_owned(units)).await;
    taken.ok().and_then(Result::ok).ok_or(MemoryError::Busy)
}

impl BodyMemory {
    /// A budget of `bytes`, of which one tenant gets `share`; a body waits for `patience` and may have
    /// `most_values` JSON values.
    pub fn new(bytes: u64, share: u64, most_values: u64, patience: Duration) -> Self {
        Self {
            small: Part::new(bytes / 8, share / 8),
            large: Part::new(bytes / 8 * 3, share / 8 * 3),
            parsing: Part::new(bytes / 2, share / 2),
            most_values,
            patience,
        }
    }

    /// The budget as seen by the caller's tenant.
    pub fn for_caller(&self, caller: &Caller) -> TenantMemory<'_> {
        TenantMemory {
            memory: self,
            tenant: Tenant::from_caller(caller),
        }
    }
}

/// The memory for the bodies of one tenant.
pub struct TenantMemory<'m> {
    memory: &'m BodyMemory,
    tenant: Tenant,
}

impl<'m> TenantMemory<'m> {
    /// Starts a body of which nothing was received yet. `length` is the length that its sender declared.
    pub fn begin(self, length: Option<u64>) -> Share<'m> {
        Share {
            of: self,
            length,
            size: 0,
            taken: None,
        }
    }

    /// Takes the memory that the JSON in a body needs while it is parsed and checked; none for a tiny body.
    /// Hold the result until then.
    pub async fn parse(self, body: &[u8]) -> Result<Option<Taken>, MemoryError> {
        if body.len() < TINY {
            return Ok(None);
        }
        let memory = self.memory;
        let values = values(body, memory.most_values);
        if values > memory.most_values {
            return Err(MemoryError::TooManyValues(memory.most_values));
        }
        let needed = (body.len() as u64).saturating_add(values.saturating_mul(VALUE));
        let taken = memory
            .parsing
            .take(&self.tenant, needed, None, memory.patience)
            .await?;
        Ok(Some(taken))
    }
}

/// The memory that a body holds.
pub struct Share<'m> {
    of: TenantMemory<'m>,
    length: Option<u64>,
    /// Size of the body in bytes.
    size: u64,
    taken: Option<Taken>,
}

impl Share<'_> {
    /// Takes memory for `size` bytes in total. Call it before storing them.
    pub async fn grow(&mut self, size: u64) -> Result<(), MemoryError> {
        if size <= self.size {
            return Ok(());
        }
        let memory = self.of.memory;
        let (was_small, is_small) = (self.size <= SMALL, size <= SMALL);
        // A buffer that grows without a known length needs half as much again.
        let target = match self.length {
            _ if is_small => size,
            Some(length) => length.max(size),
            None => size.next_power_of_two().saturating_mul(3) / 2,
        };
        let part = if is_small {
            &memory.small
        } else {
            &memory.large
        };
        // The memory of the small part is released once that of the large part is taken.
        let held = self.taken.as_ref().filter(|_| was_small == is_small);
        let before = held.map_or(0, |_| self.size);
        let more = target.div_ceil(UNIT) - before.div_ceil(UNIT).min(target.div_ceil(UNIT));
        let more = part
            .take(&self.of.tenant, more * UNIT, held, memory.patience)
            .await?;
        match &mut self.taken {
            Some(taken) if was_small == is_small => {
                taken.all.merge(more.all);
                taken.own.merge(more.own);
            }
            taken => *taken = Some(more),
        }
        self.size = target;
        Ok(())
    }

    /// The memory that is held, for a body that is stored in pieces.
    pub fn into_taken(self) -> Option<Taken> {
        self.taken
    }

    /// The body, which holds its memory as long as any slice of it exists.
    pub fn keep(self, bytes: Bytes) -> Bytes {
        match self.taken {
            Some(taken) => Bytes::from_owner(Kept {
                bytes,
                _taken: taken,
            }),
            None => bytes,
        }
    }
}

struct Kept {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Upper bound of the number of values and names in a JSON text; exact if the bound exceeds `most`.
fn values(json: &[u8], most: u64) -> u64 {
    let opens = |byte: &u8| matches!(byte, b',' | b':' | b'[' | b'{');
    let least = 1 + json.iter().filter(|byte| opens(byte)).count() as u64;
    if least <= most {
        return least;
    }
    // Commas within strings separate no values.
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

// One body: its type, and reading it completely.

/// Whether a body is multipart.
pub fn is_multipart(headers: &HeaderMap) -> bool {
    let start = b"multipart/form-data";
    let kind = content_type(headers).get(..start.len());
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(start))
}

/// The bytes of `Content-Type`; none without one.
pub fn content_type(headers: &HeaderMap) -> &[u8] {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.map_or(b"", HeaderValue::as_bytes)
}

/// The body with a guard, which is dropped together with it.
pub fn guarded<G>(body: Body, guard: G) -> impl HttpBody<Data = Bytes, Error = axum::Error> {
    // Of the adapters that keep frames, size and end, this one takes a closure, which owns the guard.
    body.map_err(move |error| {
        let _held = &guard;
        error
    })
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has more bytes than this.
    #[error("the body is larger than {0} bytes (MCPO_MAX_BODY_BYTES)")]
    TooLarge(u64),
    /// It gets no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its sender was silent for too long, or too slow.
    #[error("the body was not received in time (MCPO_BODY_TIMEOUT)")]
    TooSlow,
    /// The error of the connection or of the framing.
    #[error("cannot read the body: {0}")]
    Broken(BoxError),
}

impl BodyError {
    /// From the error of reading it.
    pub fn from_error(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
        while let Some(this) = cause {
            let io = this.downcast_ref::<io::Error>();
            if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
                return Self::TooSlow;
            }
            cause = this.source();
        }
        Self::Broken(error)
    }
}

impl CallerError for BodyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge(_) => ErrorKind::BODY_TOO_LARGE,
            Self::Memory(error) => error.kind(),
            Self::TooSlow => ErrorKind::SLOW_BODY,
            Self::Broken(_) => ErrorKind::BROKEN_BODY,
        }
    }
}

/// A complete body of at most `limit` bytes. It keeps its share of the memory for bodies as long as any part of
/// it exists.
pub async fn whole<B>(memory: TenantMemory<'_>, body: B, limit: u64) -> Result<Bytes, BodyError>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    let length = body.size_hint().exact();
    if body.size_hint().lower() > limit {
        return Err(BodyError::TooLarge(limit));
    }
    let (mut share, mut first, mut all) = (memory.begin(length), Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(BodyError::from_error)?.into_data() else {
            continue;
        };
        let before = first.len().max(all.len());
        let size = (before + chunk.len()) as u64;
        if size > limit {
            return Err(BodyError::TooLarge(limit));
        }
        share.grow(size).await?;
        if before == 0 {
            // Most bodies arrive in one chunk, and are not copied.
            first = chunk;
            continue;
        }
        if size > SMALL
            && let Some(length) = length
        {
            let length = usize::try_from(length).unwrap_or(0);
            all.reserve_exact(length.saturating_sub(all.len()));
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&chunk);
    }
    let bytes = if all.is_empty() { first } else { all.into() };
    Ok(share.keep(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bridge_model::Principal;

    const MIB: u64 = 1024 * 1024;

    fn memory(bytes: u64) -> BodyMemory {
        BodyMemory::new(bytes, bytes / 4 * 3, 1000, Duration::from_millis(10))
    }

    fn user(name: &str) -> Caller {
        Caller {
            principal: Principal::User(name.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        }
    }

    #[tokio::test]
    async fn a_slow_sender_of_a_large_body_holds_what_he_sent() {
        let memory = memory(64 * MIB);
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut share = memory.for_caller(&user("alice")).begin(Some(20 * MIB));
            share.grow(10).await.unwrap();
            slow.push(share);
        }
        let mut honest = memory.for_caller(&user("alice")).begin(Some(20 * MIB));
        honest.grow(SMALL + 1).await.unwrap();
        honest.grow(20 * MIB).await.unwrap();
        // There is no room for a second one until the first is dropped. Small bodies do not wait for it.
        let mut second = memory.for_caller(&user("alice")).begin(Some(20 * MIB));
        assert_eq!(second.grow(SMALL + 1).await, Err(MemoryError::Busy));
        let bytes = honest.keep(vec![0; 20 * 1024 * 1024].into());
        let part = bytes.slice(5..6);
        drop(bytes);
        assert_eq!(second.grow(SMALL + 1).await, Err(MemoryError::Busy));
        memory
            .for_caller(&user("alice"))
            .begin(None)
            .grow(SMALL)
            .await
            .unwrap();
        drop(part);
        second.grow(SMALL + 1).await.unwrap();
    }

    #[tokio::test]
    async fn all_of_it_comes_back() {
        let memory = memory(64 * MIB);
        for length in [None, Some(10 * MIB)] {
            let mut share = memory.for_caller(&user("alice")).begin(length);
            for size in (0..10 * MIB).step_by(10_000) {
                share.grow(size).await.unwrap();
            }
            drop(share);
            for part in [&memory.small, &memory.large] {
                assert_eq!(part.free.available_permits() as u64, u64::from(part.size));
            }
        }
    }

    #[tokio::test]
    async fn one_tenant_leaves_memory_for_others() {
        let memory = memory(64 * MIB);
        let (mut held, refused) = (Vec::new(), Err(MemoryError::Busy));
        // 24 MiB of large bodies, of which one tenant may take 18.
        for number in 0..6 {
            let mut share = memory.for_caller(&user("mallory")).begin(Some(3 * MIB));
            assert_eq!(share.grow(3 * MIB).await, Ok(()), "{number}");
            held.push(share);
        }
        let mut more = memory.for_caller(&user("mallory")).begin(Some(3 * MIB));
        assert_eq!(more.grow(3 * MIB).await, refused);
        let mut others = memory.for_caller(&user("alice")).begin(Some(5 * MIB));
        others.grow(5 * MIB).await.unwrap();
        drop(held);
        more.grow(3 * MIB).await.unwrap();
        // Only one body that is larger than the share is admitted at a time.
        drop((more, others));
        let mut whole = memory.for_caller(&user("mallory")).begin(Some(20 * MIB));
        whole.grow(20 * MIB).await.unwrap();
        let mut beside = memory.for_caller(&user("mallory")).begin(Some(3 * MIB));
        assert_eq!(beside.grow(3 * MIB).await, refused);
        let mut others = memory.for_caller(&user("alice")).begin(Some(4 * MIB));
        others.grow(4 * MIB).await.unwrap();
    }

    #[tokio::test]
    async fn small_and_parsed_ones_have_shares_too() {
        let memory = memory(64 * MIB);
        let mut held = Vec::new();
        loop {
            let mut share = memory.for_caller(&user("mallory")).begin(None);
            if share.grow(SMALL).await.is_err() {
                break;
            }
            held.push(share);
        }
        assert_eq!(held.len() as u64 * SMALL, 6 * MIB);
        let mut others = memory.for_caller(&user("alice")).begin(None);
        others.grow(SMALL).await.unwrap();
        let text = vec![b' '; 8 * 1024 * 1024];
        let mut parsed = Vec::new();
        while let Ok(taken) = memory.for_caller(&user("mallory")).parse(&text).await {
            parsed.push(taken);
        }
        assert_eq!(parsed.len(), 2);
        let taken = memory
            .for_caller(&user("alice"))
            .parse(&text[..7 << 20])
            .await;
        assert!(taken.unwrap().is_some());
    }

    #[tokio::test]
    async fn tenants_are_not_remembered_for_ever() {
        let memory = memory(64 * MIB);
        for number in 0..3 * REMEMBERED {
            let mut share = memory.for_caller(&user(&number.to_string())).begin(None);
            share.grow(1).await.unwrap();
        }
        assert!(memory.small.of_tenant.lock().len() <= REMEMBERED);
    }

    #[tokio::test]
    async fn what_can_never_fit_is_told_at_once() {
        let memory = memory(8 * MIB);
        let mut share = memory.for_caller(&user("alice")).begin(Some(20 * MIB));
        assert_eq!(
            share.grow(SMALL + 1).await,
            Err(MemoryError::TooLarge(3 * MIB))
        );
        let many = format!("[{}1]", "1,".repeat(TINY));
        let refused = memory
            .for_caller(&user("alice"))
            .parse(many.as_bytes())
            .await;
        assert_eq!(refused.unwrap_err(), MemoryError::TooManyValues(1000));
        let text = format!("[{:?}]", ",".repeat(TINY));
        assert!(
            memory
                .for_caller(&user("alice"))
                .parse(text.as_bytes())
                .await
                .unwrap()
                .is_some()
        );
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
