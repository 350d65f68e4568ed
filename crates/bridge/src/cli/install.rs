//! `mcpo-bridge install`: installs the servers' packages in advance, and locks their versions.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    sync::Arc,
};

use bridge_model::ServerName;
use bridge_process::launch::Resolved;
use bridge_protocol::Tool;
use clap::Args;
use futures_util::future::join_all;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;
use serde_json::Value;

use super::{
    Failure, Local, SettingsArgs,
    local::{line, load, until_signal, with_temporary_jobs},
    output::{BAD, BOLD, DIM, GOOD, ODD, OutputArgs, counted, indented, note, plain},
};
use crate::{
    catalog::Learnt,
    config::{Loaded, ServerSpec, Settings},
    install::{InstallRequest, LockFile, Pin, Step},
    launches::Launching,
};

/// Text after the options in `--help`.
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

/// The result of one server.
#[derive(Serialize)]
struct Installed {
    server: ServerName,
    #[serde(flatten)]
    outcome: Outcome,
    /// Why it is not in the lock file although it is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlocked: Option<&'static str>,
    #[serde(skip)]
    asked: Option<InstallRequest>,
    /// The pin to lock; if nothing was installed, an existing lock is kept.
    #[serde(skip)]
    pin: Option<Pin>,
}

/// Installs, prints the result, and writes the lock file.
pub fn run(args: InstallArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (mut settings, _log, config) = load(settings, args.server.as_deref())?;
    let lock = LockFile::read(&settings.lock_file).map_err(Failure::usage)?;
    with_temporary_jobs(|jobs| {
        settings.jobs_dir = jobs;
        args.install(settings, config, lock.as_ref())
    })
}

impl InstallArgs {
    async fn install(
        self,
        settings: Settings,
        config: Loaded,
        lock: Option<&LockFile>,
    ) -> Result<(), Failure> {
        let lock_file = settings.lock_file.clone();
        let specs: Vec<_> = config.servers.values().cloned().collect();
        let local = Local::new(settings, config)?;
        local.app.installer.launches().follow(&specs);
        let display = MultiProgress::new();
        let each = specs.iter().map(|spec| {
            let bar = line(&display, spec);
            self.one(&local, spec, lock, bar)
        });
        let done = until_signal(join_all(each)).await;
        let _ = display.clear();
        let written = done.and_then(|installed| {
            let failed = |one: &Installed| matches!(one.outcome, Outcome::Failed { .. });
            let report = Report {
                ok: !installed.iter().any(failed),
                servers: &installed,
            };
            self.output.print(&report, Report::text)?;
            self.write(&local, &installed, lock, &lock_file)?;
            Ok(report.ok)
        });
        local.end().await;
        Failure::unless(written?)
    }

    async fn one(
        &self,
        local: &Local,
        spec: &Arc<ServerSpec>,
        lock: Option<&LockFile>,
        bar: ProgressBar,
    ) -> Installed {
        let as_it_is = |outcome| Installed {
            server: spec.name.clone(),
            outcome,
            unlocked: None,
            asked: None,
            pin: None,
        };
        let asked = match local.app.installer.asked(spec, lock) {
            Ok(asked) if asked.is_installable() => asked,
            Ok(_) | Err(None) => return as_it_is(Outcome::Nothing),
            Err(Some(why)) => return as_it_is(Outcome::AsWritten { why }),
        };
        let shown = |step: Step| {
            bar.set_message(match step {
                Step::Choosing => "resolving versions",
                Step::Installing => "installing",
            });
        };
        let (outcome, pin) = if self.upgrade {
            upgrade_one(local, spec, &asked, &bar, &shown).await
        } else {
            match local.app.installer.install(&asked, false, &shown).await {
                Ok((pin, resolved)) => (Outcome::installed(&resolved, &pin), Some(pin)),
                Err(why) => (Outcome::Failed { why }, None),
            }
        };
        bar.finish_with_message(outcome.word());
        Installed {
            unlocked: (pin.is_some() && !asked.lockable).then_some(UNLOCKED),
            asked: Some(asked),
            pin,
            ..as_it_is(outcome)
        }
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
        let changes = installed
            .iter()
            .any(|one| matches!(one.outcome, Outcome::Upgrade { .. }));
        let same = before.is_some_and(|before| *before == lock) || self.no_lock;
        if self.dry_run {
            return Ok(());
        }
        if changes && !self.yes && !confirmed()? {
            note("Nothing was changed.");
            return Ok(());
        }
        for one in installed {
            if let (Some(asked), Some(pin)) = (&one.asked, &one.pin) {
                local.app.installer.remember(asked, pin);
            }
        }
        if same || (before.is_none() && lock.servers.is_empty()) {
            return Ok(());
        }
        lock.write(path).map_err(Failure::failed)?;
        note(format_args!("Wrote {}.", path.display()));
        Ok(())
    }

    /// The lock file, in the order of the server file. Servers that were not selected keep their entries.
    fn lock(&self, installed: &[Installed], before: Option<&LockFile>) -> LockFile {
        let mut lock = LockFile::default();
        let known = |name: &str| before.and_then(|before| before.servers.get(name)).cloned();
        if self.server.is_some() {
            lock.servers = before.cloned().unwrap_or_default().servers;
        }
        for one in installed {
            let name = one.server.as_str();
            let lockable = one.asked.as_ref().is_some_and(|asked| asked.lockable);
            let failed = matches!(one.outcome, Outcome::Failed { .. });
            let pin = match &one.pin {
                Some(pin) if lockable => Some(pin.clone()),
                // The server may work again later, and must not run unlocked versions then.
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

// The differences between two versions of a server: packages, and tools as models see them.

/// Maximum number of packages in the text output; `--json` has all.
const SHOWN: usize = 12;

/// All differences.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Changes {
    packages: Vec<ChangedPackage>,
    tools: Tools,
    /// Why the tools of the old version are unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_failed: Option<String>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct ChangedPackage {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Tools {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<Changed>,
}

/// A tool that both versions have.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Changed {
    name: String,
    /// The members of its definition that differ.
    what: Vec<String>,
}

impl Changes {
    /// Compares two versions.
    pub fn between(old: &Pin, new: &Pin, before: Result<&Learnt, &String>, after: &Learnt) -> Self {
        Self {
            packages: packages(&old.versions(), &new.versions()),
            tools: before
                .map(|before| tools(&before.tools, &after.tools))
                .unwrap_or_default(),
            old_failed: before.err().cloned(),
        }
    }

    /// The text output, in lines below the server's name.
    pub fn write(&self, text: &mut String) {
        for package in self.packages.iter().take(SHOWN) {
            let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "–".into());
            let (before, after) = (shown(&package.before), shown(&package.after));
            let _ = writeln!(text, "  {} {before} → {after}", package.name);
        }
        if let Some(more @ 1..) = self.packages.len().checked_sub(SHOWN) {
            let _ = writeln!(text, "  and {more} more packages");
        }
        if let Some(why) = &self.old_failed {
            let _ = writeln!(text, "  the old version fails to start: {}", plain(why));
            return;
        }
        for name in &self.tools.added {
            let _ = writeln!(text, "  {GOOD}+ {}{GOOD:#}", plain(name));
        }
        for name in &self.tools.removed {
            let _ = writeln!(text, "  {BAD}- {}{BAD:#}", plain(name));
        }
        for tool in &self.tools.changed {
            let (name, what) = (plain(&tool.name), tool.what.join(", "));
            let _ = writeln!(text, "  {ODD}~ {name}{ODD:#}: {}", plain(&what));
        }
        if self.tools == Tools::default() {
            let _ = writeln!(text, "  no changes to tools");
        }
    }
}

fn packages(old: &[(String, String)], new: &[(String, String)]) -> Vec<ChangedPackage> {
    let mut versions: BTreeMap<&String, [Option<&String>; 2]> = BTreeMap::new();
    for (list, index) in [(old, 0), (new, 1)] {
        for (name, version) in list {
            versions.entry(name).or_default()[index].get_or_insert(version);
        }
    }
    let changed = versions
        .into_iter()
        .filter(|(_, [before, after])| before != after);
    let changed = changed.map(|(name, [before, after])| ChangedPackage {
        name: name.clone(),
        before: before.cloned(),
        after: after.cloned(),
    });
    changed.collect()
}

fn tools(old: &[Tool], new: &[Tool]) -> Tools {
    let same = |list: &[Tool], tool: &Tool| list.iter().position(|other| other.name == tool.name);
    let only = |these: &[Tool], others: &[Tool]| -> Vec<String> {
        let missing = these.iter().filter(|tool| same(others, tool).is_none());
        missing.map(|tool| tool.name.to_string()).collect()
    };
    let changed = new.iter().filter_map(|after| {
        let before = &old[same(old, after)?];
        let mut what = Vec::new();
        differing("", &before.object, &after.object, &mut what);
        let name = after.name.to_string();
        (!what.is_empty()).then_some(Changed { name, what })
    });
    Tools {
        added: only(new, old),
        removed: only(old, new),
        changed: changed.collect(),
    }
}

type Object = serde_json::Map<String, Value>;

/// Adds the paths that differ: `description`, `inputSchema.properties.path`, `inputSchema.required`, …
fn differing(prefix: &str, old: &Object, new: &Object, found: &mut Vec<String>) {
    let within = |key: &str| match prefix.matches('.').count() {
        0 => true,
        depth => depth == 1 && key == "properties",
    };
    let more = new.keys().filter(|key| !old.contains_key(*key));
    for key in old.keys().chain(more) {
        let path = format!("{prefix}{key}");
        match (old.get(key), new.get(key)) {
            (before, after) if before == after => {}
            (Some(Value::Object(before)), Some(Value::Object(after))) if within(key) => {
                differing(&format!("{path}."), before, after, found);
            }
            _ => found.push(path),
        }
    }
}

// The report of `install`, as text and JSON.

/// An installed package.
#[derive(Debug, Serialize)]
pub struct InstalledPackage {
    name: String,
    version: String,
}

impl From<(String, String)> for InstalledPackage {
    fn from((name, version): (String, String)) -> Self {
        Self { name, version }
    }
}

/// The outcome of one server.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// Its environment exists.
    Installed {
        #[serde(skip_serializing_if = "Option::is_none")]
        package: Option<InstalledPackage>,
        packages: Vec<InstalledPackage>,
    },
    /// Different versions will be used.
    Upgrade {
        #[serde(skip_serializing_if = "Option::is_none")]
        package: Option<InstalledPackage>,
        changes: Changes,
    },
    /// There is nothing to install: an interpreter, a program, a remote server.
    Nothing,
    /// Its launcher starts it as written.
    AsWritten { why: String },
    /// It could not be installed.
    Failed { why: String },
}

impl Outcome {
    /// Its environment exists.
    pub fn installed(resolved: &Resolved, pin: &Pin) -> Self {
        Self::Installed {
            package: resolved.main.clone().map(InstalledPackage::from),
            packages: pin.versions().into_iter().map(Into::into).collect(),
        }
    }

    /// The word for the display.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Installed { .. } => "installed",
            Self::Upgrade { .. } => "compared",
            Self::Nothing | Self::AsWritten { .. } => "not installed",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The report.
#[derive(Serialize)]
struct Report<'a> {
    /// True if nothing failed.
    ok: bool,
    servers: &'a [Installed],
}

const UNLOCKED: &str = "not locked: one of its packages is a directory, which has no version";

impl Report<'_> {
    /// The text output.
    fn text(&self) -> String {
        let mut text = String::new();
        for server in self.servers {
            server.write(&mut text);
        }
        text
    }
}

impl Installed {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "{BOLD}{}{BOLD:#}: ", self.server);
        let version = |package: &Option<InstalledPackage>| match package {
            Some(InstalledPackage { name, version }) => format!("{name} {version}"),
            None => "packages".to_owned(),
        };
        let _ = match &self.outcome {
            Outcome::Installed { package, packages } => writeln!(
                text,
                "{GOOD}installed{GOOD:#}, {} {DIM}({}){DIM:#}",
                version(package),
                counted(packages.len(), "package"),
            ),
            Outcome::Upgrade { package, changes } => {
                let _ = writeln!(text, "upgrade to {}", version(package));
                changes.write(text);
                Ok(())
            }
            Outcome::Nothing => writeln!(text, "nothing to install"),
            Outcome::AsWritten { why } => writeln!(
                text,
                "not installed, starts with its own command line: {}",
                indented(why, 2)
            ),
            Outcome::Failed { why } => writeln!(text, "{BAD}failed{BAD:#}: {}", indented(why, 2)),
        };
        if let Some(why) = self.unlocked {
            let _ = writeln!(text, "  {DIM}{why}{DIM:#}");
        }
    }
}

// Newer versions and their changes.

/// Installs the newest versions in addition to those in use, starts both, and compares.
async fn upgrade_one(
    local: &Local,
    spec: &Arc<ServerSpec>,
    asked: &InstallRequest,
    bar: &ProgressBar,
    step: &(dyn Fn(Step) + Sync),
) -> (Outcome, Option<Pin>) {
    let installer = &local.app.installer;
    // Resolve the versions anew, regardless of the lock file.
    let (pin, new) = match installer.install(&asked.unlocked(), true, step).await {
        Ok(found) => found,
        Err(why) => return (Outcome::Failed { why }, None),
    };
    let old_pin = asked.pin.as_ref();
    let Some(old_pin) = old_pin.filter(|old| old.digest() != pin.digest()) else {
        return (Outcome::installed(&new, &pin), Some(pin));
    };
    let old = installer.install(asked, false, step).await;
    let main = new.main.clone();
    bar.set_message("starting the old version");
    let before = match old {
        Ok((_, old)) => offered(local, spec, old).await,
        Err(why) => Err(why),
    };
    bar.set_message("starting the new version");
    match offered(local, spec, new).await {
        Ok(after) => {
            let changes = Changes::between(old_pin, &pin, before.as_ref(), &after);
            let package = main.map(InstalledPackage::from);
            (Outcome::Upgrade { package, changes }, Some(pin))
        }
        Err(why) => {
            let why = format!("the new version fails to start, so the old one is kept: {why}");
            (Outcome::Failed { why }, None)
        }
    }
}

/// The server's offer when it is started from this environment. Also sets it as the server's launch from now
/// on.
async fn offered(
    local: &Local,
    spec: &Arc<ServerSpec>,
    resolved: Resolved,
) -> Result<Learnt, String> {
    let launches = local.app.installer.launches();
    launches.set(spec, Launching::Installed(Arc::new(resolved)));
    local.learn(spec).await
}

#[cfg(test)]
mod changes_tests {
    use serde_json::json;

    use super::*;

    fn tool(value: Value) -> Tool {
        Tool::read(value).unwrap()
    }

    #[test]
    fn tools_that_come_go_and_change_are_told() {
        let schema = |path: Value| json!({"type": "object", "properties": {"path": path, "n": {}}});
        let old = [
            tool(json!({"name": "same", "description": "d"})),
            tool(json!({"name": "gone"})),
            tool(json!({"name": "other", "description": "d", "inputSchema": schema(json!({}))})),
        ];
        let new = [
            tool(json!({"description": "d", "name": "same"})),
            tool(json!({"name": "new"})),
            tool(json!({"name": "other", "description": "D", "title": "t",
                "inputSchema": schema(json!({"type": "string"}))})),
        ];
        let found = tools(&old, &new);
        assert_eq!(
            (found.added, found.removed),
            (vec!["new".into()], vec!["gone".into()])
        );
        let [changed] = &found.changed[..] else {
            panic!("{:?}", found.changed)
        };
        assert_eq!(changed.name, "other");
        assert_eq!(
            changed.what,
            ["description", "inputSchema.properties.path", "title"]
        );
    }

    #[test]
    fn packages_are_told_with_both_versions() {
        let list = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(a, b)| ((*a).into(), (*b).into()))
                .collect()
        };
        let found = packages(
            &list(&[("a", "1"), ("b", "1"), ("c", "1")]),
            &list(&[("a", "1"), ("b", "2"), ("d", "1")]),
        );
        let told: Vec<_> = found
            .iter()
            .map(|p| (p.name.as_str(), p.before.as_deref(), p.after.as_deref()))
            .collect();
        let expected = [
            ("b", Some("1"), Some("2")),
            ("c", Some("1"), None),
            ("d", None, Some("1")),
        ];
        assert_eq!(told, expected);
    }
}
