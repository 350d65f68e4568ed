//! `mcpo-bridge install`: installs the servers' packages in advance, and locks their versions.

mod changes;
mod report;
mod upgrade;

use std::{
    io::{IsTerminal as _, Write as _},
    sync::Arc,
};

use bridge_process::launch::Resolved;
use clap::Args;
use futures_util::future::join_all;
use indicatif::{MultiProgress, ProgressBar};

use super::{
    Failure, Local, SettingsArgs,
    local::{block_on, until_signal},
    log,
    output::OutputArgs,
    survey::{Folder, line},
    tools::only,
};
use crate::cli::text::note;
use crate::{
    config::{self, Loaded, ServerSpec, Settings},
    install::{Asked, LockFile, Pin, Step},
    launches::Launching,
};

use report::{Outcome, Report};

/// What `--help` adds.
pub const HELP: &str = "\
uvx, uv run, npx and pipx run resolve versions and download packages at every start. This command does it \
once: it creates environments in MCPO_TOOLS_DIR, from which servers start directly and without network. \
Servers that cannot be installed start with their own command line; `mcpo-bridge check` shows the reason.

The lock file records every version and hash. A bridge that finds it installs exactly these versions. Keep it \
next to the server file.

--upgrade resolves new versions. Before it writes the lock file, it starts the old and the new version of each \
server, shows added, removed and changed tools, and asks for confirmation.

Exit codes: 0 success, 1 a server could not be installed, 2 invalid settings, server file or lock file.

Examples:
  mcpo-bridge install --config mcp-servers.json
  mcpo-bridge install --upgrade --dry-run
  mcpo-bridge install --upgrade excel --yes";

/// The arguments of `install`.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct InstallArgs {
    /// Only this server
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    /// Resolve the newest versions that the command lines allow
    #[arg(long)]
    upgrade: bool,
    /// Show the changes of --upgrade without applying them
    #[arg(long, requires = "upgrade")]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Do not write the lock file
    #[arg(long, conflicts_with = "upgrade")]
    no_lock: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// One server on the way.
struct Job {
    spec: Arc<ServerSpec>,
    asked: Result<Asked, Option<String>>,
    bar: ProgressBar,
}

/// What became of it.
struct Installed {
    spec: Arc<ServerSpec>,
    asked: Option<Asked>,
    outcome: Outcome,
    /// To be locked; where nothing was installed, what is locked already stays.
    pin: Option<Pin>,
}

/// Installs, shows, and writes the lock file.
pub fn run(args: InstallArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let mut config = config::load(&settings.config_file, &settings)?;
    let _log = log::start(&settings.log)?;
    let lock = LockFile::read(&settings.lock_file).map_err(Failure::usage)?;
    if let Some(name) = &args.server {
        only(&mut config, name)?;
    }
    block_on(args.install(settings, config, lock.as_ref()))
}

impl InstallArgs {
    async fn install(
        self,
        mut settings: Settings,
        config: Loaded,
        lock: Option<&LockFile>,
    ) -> Result<(), Failure> {
        let lock_file = settings.lock_file.clone();
        let folder = Folder::new()?;
        settings.jobs_dir = folder.jobs();
        let specs: Vec<_> = config.servers.values().cloned().collect();
        let local = Local::new(settings, config)?;
        local.app.installer.launches().follow(&specs);
        let display = MultiProgress::new();
        let jobs = specs.into_iter().map(|spec| Job {
            asked: local.app.installer.asked(&spec, lock),
            bar: line(&display, &spec),
            spec,
        });
        let jobs: Vec<_> = jobs.collect();
        let each = jobs.iter().map(|job| self.one(&local, job));
        let done = until_signal(join_all(each)).await;
        let _ = display.clear();
        let installed = match done {
            Ok(installed) => installed,
            Err(interrupted) => {
                local.end().await;
                return Err(interrupted);
            }
        };
        let report = Report::new(&installed);
        let written = self
            .output
            .print(&report, Report::text)
            .and_then(|()| self.write(&local, &installed, lock, &lock_file));
        local.end().await;
        written?;
        if report.ok {
            Ok(())
        } else {
            Err(Failure::silent(1))
        }
    }

    async fn one(&self, local: &Local, job: &Job) -> Installed {
        let spec = job.spec.clone();
        let installed = |outcome, pin| Installed {
            spec: job.spec.clone(),
            asked: job.asked.as_ref().ok().cloned(),
            outcome,
            pin,
        };
        let asked = match &job.asked {
            Ok(asked) if asked.is_installable() => asked,
            Ok(_) | Err(None) => return installed(Outcome::Nothing, None),
            Err(Some(why)) => {
                let why = why.clone();
                return installed(Outcome::AsWritten { why }, None);
            }
        };
        let shown = |step: Step| {
            job.bar.set_message(match step {
                Step::Choosing => "resolving versions",
                Step::Installing => "installing",
            });
        };
        let (outcome, pin) = if self.upgrade {
            upgrade::one(local, &spec, asked, &job.bar, &shown).await
        } else {
            match local.app.installer.install(asked, false, &shown).await {
                Ok((pin, resolved)) => (Outcome::installed(&resolved, &pin), Some(pin)),
                Err(why) => (Outcome::failed(why), None),
            }
        };
        job.bar.finish_with_message(outcome.word());
        installed(outcome, pin)
    }

    /// Writes the lock file, if it changed and the user confirms.
    fn write(
        &self,
        local: &Local,
        installed: &[Installed],
        before: Option<&LockFile>,
        path: &std::path::Path,
    ) -> Result<(), Failure> {
        let lock = self.lock(installed, before);
        let pins = installed.iter().filter_map(|one| {
            let pin = one.pin.as_ref()?;
            Some((one.asked.as_ref()?, pin))
        });
        let changes = installed.iter().any(|one| one.outcome.is_upgrade());
        let same = before.is_some_and(|before| *before == lock) || self.no_lock;
        if self.dry_run {
            return Ok(());
        }
        if changes && !self.yes && !confirmed()? {
            note("Nothing was changed.");
            return Ok(());
        }
        for (asked, pin) in pins {
            local.app.installer.remember(asked, pin);
        }
        if same || (before.is_none() && lock.servers.is_empty()) {
            return Ok(());
        }
        lock.write(path).map_err(Failure::failed)?;
        note(format_args!("Wrote {}.", path.display()));
        Ok(())
    }

    /// In the order of the server file. Of servers that were left out, what is there stays.
    fn lock(&self, installed: &[Installed], before: Option<&LockFile>) -> LockFile {
        let mut lock = LockFile::default();
        let known = |name: &str| before.and_then(|before| before.servers.get(name)).cloned();
        if self.server.is_some() {
            lock.servers = before.cloned().unwrap_or_default().servers;
        }
        for one in installed {
            let name = one.spec.name.as_str();
            let lockable = one.asked.as_ref().is_some_and(|asked| asked.lockable);
            let failed = matches!(one.outcome, Outcome::Failed { .. });
            let pin = match &one.pin {
                Some(pin) if lockable => Some(pin.clone()),
                // It may work again later, and must not run unlocked versions then.
                None if failed => known(name),
                _ => None,
            };
            match pin {
                Some(pin) => drop(lock.servers.insert(name.to_owned(), pin)),
                None => drop(lock.servers.shift_remove(name)),
            }
        }
        lock
    }
}

/// Asks for confirmation; without a terminal it is a usage error.
fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "cannot ask for confirmation: stdin is not a terminal; use --yes to write the lock file, or \
             --dry-run to only show the changes",
        ));
    }
    let mut out = anstream::stderr().lock();
    let _ = write!(out, "Use these versions? [y/N] ");
    let _ = out.flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    read.map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Starts a server from this environment from now on.
fn start_from(local: &Local, spec: &ServerSpec, resolved: Resolved) {
    let launches = local.app.installer.launches();
    launches.set(spec, Launching::Installed(Arc::new(resolved)));
}
