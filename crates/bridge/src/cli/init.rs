//! `mcpo-bridge init`: creates a server file.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;

use super::output::BOLD;
use super::{Failure, SettingsArgs, output::print};
use crate::config;

/// Text after the options in `--help`.
pub const HELP: &str = "\
Examples:
  mcpo-bridge init                      # ./mcp-servers.json, or the path in MCPO_CONFIG_FILE
  mcpo-bridge init config/mcp-servers.json
  mcpo-bridge init - | less             # print it only";

/// The arguments of `init`.
#[derive(Args)]
pub struct InitArgs {
    /// File to create; - prints to stdout [default: the path of --config, else mcp-servers.json]
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

/// Writes the file and prints the next steps.
pub fn run(args: InitArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let path = args.path.filter(|path| !path.trim().is_empty());
    let path = path.map(PathBuf::from).or_else(|| settings.config_file());
    let path = path.unwrap_or_else(|| PathBuf::from("mcp-servers.json"));
    if path == Path::new("-") {
        return print(config::start_config());
    }
    write(&path, args.force).map_err(|error| refused(&path, &error))?;
    let shown = path.display();
    print(&format!(
        "Wrote {BOLD}{shown}{BOLD:#}. Next steps:\n\
         \x20 1. Edit it: keep the servers that you need, add your own\n\
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
    file.write_all(config::start_config().as_bytes())
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::failed(match error.kind() {
        io::ErrorKind::AlreadyExists => {
            format!("{path} already exists; choose another path or use --force")
        }
        io::ErrorKind::NotFound => {
            format!("cannot write {path}: its directory does not exist; create it first")
        }
        io::ErrorKind::PermissionDenied => format!(
            "cannot write {path}: permission denied; choose another path, or run the command as a user \
             who may write there"
        ),
        _ => format!("cannot write {path}: {error}"),
    })
}
