//! Several servers as one: their lists joined, names and URIs that lead back to their servers.

pub mod names;
mod shown;
pub mod uris;
mod view;

pub use shown::Shown;
pub use view::{Marks, View, Views};
