//! The HTTP doors.

pub mod files;
