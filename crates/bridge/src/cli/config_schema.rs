//! `mcpo-bridge config-schema`

use super::{Failure, output::print_json};
use crate::config::json_schema;

/// What `--help` adds.
pub const HELP: &str = "\
Editors use the schema to complete and validate the server file: save it next to the file, and name it there \
in \"$schema\".

Example:
  mcpo-bridge config-schema > mcp-servers.schema.json";

/// Prints it.
pub fn run() -> Result<(), Failure> {
    print_json(&json_schema())
}
