//! Who is calling. Every door asks here first, so that all doors believe the same things.

mod refusal;

pub use refusal::Refusal;
