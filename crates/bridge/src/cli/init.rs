//! `mcpo-bridge init`: a server file to start from.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Failure, output::print};
use crate::cli::text::BOLD;
use crate::config::start_config;

/// What `--help` adds.
pub const HELP: &str = "\
Examples:
  mcpo-bridge init                      # ./mcp-servers.json, or where MCPO_CONFIG_FILE points
  mcpo-bridge init config/mcp-servers.json
  mcpo-bridge init - | less             # look only";

/// What `init` is told.
#[derive(Args)]
pub struct InitArgs {
    /// Where to write it; - is stdout [default: mcp-servers.json]
    #[arg(value_name = "PATH", env = "MCPO_CONFIG_FILE")]
    path: Option<String>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

/// Writes the file and says what comes next.
pub fn run(args: InitArgs) -> Result<(), Failure> {
    let path = args.path.filter(|path| !path.trim().is_empty());
    let path = path.unwrap_or_else(|| "mcp-servers.json".to_owned());
    if path == "-" {
        return print(start_config());
    }
    let path = PathBuf::from(path);
    write(&path, args.force).map_err(|error| refused(&path, &error))?;
    let shown = path.display();
    print(&format!(
        "{BOLD}{shown}{BOLD:#} is written. Next:\n\
         \x20 1. keep the servers that you want, and add your own\n\
         \x20 2. mcpo-bridge check --config {shown}\n\
         \x20 3. mcpo-bridge serve --config {shown}\n"
    ))
}

fn write(path: &Path, force: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(force)
        .create_new(!force)
        .open(path)?;
    file.write_all(start_config().as_bytes())
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::failed(format!(
            "{path} is there already: name another path, or overwrite it with --force"
        )),
        io::ErrorKind::NotFound => Failure::failed(format!(
            "{path} cannot be written: its folder is not there; make it first"
        )),
        _ => Failure::failed(format!("{path} cannot be written: {error}")),
    }
}
