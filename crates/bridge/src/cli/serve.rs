//! `mcpo-bridge serve`: runs the service.

use std::{
    env, io,
    io::IsTerminal as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bridge_model::ServerName;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    Failure, SettingsArgs,
    output::{BOLD, counted, note, print},
};
use crate::{
    allocator,
    config::{CommandLine, Fault, Faults, RESERVED_NAMES, Secret, Settings, SingleServer},
    limits, serve,
    serve::{Ended, ServeError},
    telemetry,
};

/// Text after the options in `--help`.
pub const HELP: &str = "\
Every setting is available as a flag and as an environment variable; the flag wins. An empty variable counts as \
unset. Prefer variables or files for secrets.

SIGHUP or a change of the server file reloads it. On SIGTERM the bridge accepts no more calls, lets running calls \
finish within MCPO_SHUTDOWN_GRACE and ends all server processes; a second signal exits immediately.

Command lines of mcpo work unchanged; docs/mcpo.md lists the differences.

Examples:
  mcpo-bridge --port 8000 --api-key top-secret -- uvx mcp-server-time
  mcpo-bridge serve --config mcp-servers.json
  MCPO_API_KEY_FILE=/run/secrets/key mcpo-bridge serve --host 0.0.0.0 --base-url https://files.example";

/// The arguments of `serve`.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    given: GivenArgs,
    /// Version in the OpenAPI document at the root; without a value, print the program's version and exit
    #[arg(
        long = "version", short = 'v', short_alias = 'V', id = "document_version", value_name = "TEXT",
        num_args = 0..=1, default_missing_value = "", help_heading = "Documents"
    )]
    version: Option<String>,
    /// Write the bound address to this file once the bridge accepts calls (for port 0)
    #[arg(long, value_name = "PATH", hide = true)]
    port_file: Option<PathBuf>,
}

impl ServeArgs {
    /// Replaces the settings by the merged ones: flags may also be given before the command.
    pub fn with(self, settings: SettingsArgs) -> Self {
        Self { settings, ..self }
    }
}

/// Runs the service until a signal ends it.
pub fn run(args: ServeArgs) -> ExitCode {
    if args.version.as_deref() == Some("") {
        let printed = print(concat!("mcpo-bridge ", env!("CARGO_PKG_VERSION"), "\n"));
        return printed.map_or_else(Failure::report, |()| ExitCode::SUCCESS);
    }
    allocator::give_back_large_blocks();
    let port_file = args.port_file.clone();
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(faults) => return Failure::from(faults).report(),
    };
    let _log = match telemetry::init(&settings.log) {
        Ok(guard) => guard,
        Err(error) => return Failure::usage(error).report(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = limits::worker_threads() {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build();
    let ended = runtime.map_err(ServeError::from).and_then(|runtime| {
        let ended = runtime.block_on(serve::serve(settings, port_file, banner));
        // Blocked tasks must not delay the exit.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(Ended::Cleanly) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::FAILURE,
        Err(error) => {
            // Reported only once: on a terminal to the user who started it, otherwise in the log.
            if io::stderr().is_terminal() || !tracing::enabled!(tracing::Level::ERROR) {
                eprintln!("mcpo-bridge: {error}");
            } else {
                tracing::error!("{error}");
            }
            match error {
                ServeError::Config(_) | ServeError::Tls(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The start banner, on a terminal only: the address of the bridge, and how to stop it.
fn banner(settings: &Settings, address: SocketAddr, servers: usize) {
    if !io::stderr().is_terminal() {
        return;
    }
    let listen = &settings.listen;
    let scheme = if listen.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let local = if address.ip().is_unspecified() || address.ip().is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let names: Vec<&str> = settings.access.keys.names().collect();
    let keys = if names.is_empty() {
        "none: no key is required".to_owned()
    } else {
        names.join(", ")
    };
    let config = match &settings.command_line.server {
        Some(_) => "the command line".to_owned(),
        None => settings.config_file.display().to_string(),
    };
    let (prefix, servers) = (&listen.path_prefix, counted(servers, "server"));
    note(format_args!(
        "{BOLD}mcpo-bridge {}{BOLD:#}\n\
         \x20 Listening on  {scheme}://{address}{prefix}\n\
         \x20 Docs          {scheme}://{local}{prefix}/docs\n\
         \x20 Config        {config} ({servers})\n\
         \x20 API keys      {keys}\n\
         Press Ctrl+C to stop.",
        env!("CARGO_PKG_VERSION"),
    ));
}

fn settings(args: ServeArgs) -> Result<Settings, Faults> {
    let file = args.settings.config_file();
    let mut settings = args.settings.resolve()?;
    settings.documents.version = args.version;
    settings.command_line = args.given.resolve(settings.documents.name.as_deref())?;
    if let (Some(file), Some(_)) = (file, &settings.command_line.server)
        && file.is_file()
    {
        let file = file.display();
        settings.warnings.push(format!(
            "{file} is ignored because a server is given on the command line"
        ));
    }
    Ok(settings)
}

// mcpo's command line: a single server after `--`, and variables.

/// The name of a single server if its `--name` is not valid in URLs.
const UNNAMED: &str = "server";

/// A single server without a file. These are not settings: they have no variables.
#[derive(Args, Default)]
#[command(next_help_heading = "Single server (as in mcpo)")]
struct GivenArgs {
    /// Serve this program, or with --type this URL, at the root instead of the servers in the server file
    #[arg(last = true, value_name = "COMMAND", allow_hyphen_values = true)]
    command: Vec<String>,
    /// Transport: stdio, sse or streamable-http
    #[arg(
        long = "type",
        alias = "server-type",
        value_name = "TYPE",
        default_value = "stdio"
    )]
    server_type: Option<String>,
    /// HTTP headers for the URL, as a JSON object: '{"Authorization": "Bearer …"}'
    #[arg(long, short = 'H', value_name = "JSON")]
    header: Option<String>,
    /// Environment variable for all server processes, and for ${NAME} in the server file (repeatable)
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// .env file with such variables
    #[arg(long, value_name = "FILE")]
    env_path: Option<PathBuf>,
}

impl GivenArgs {
    /// Checks all values; `title` is `--name`.
    pub fn resolve(self, title: Option<&str>) -> Result<CommandLine, Faults> {
        let mut faults = Vec::new();
        let mut variables = Vec::new();
        if let Some(path) = &self.env_path {
            variables.extend(env_file(path, &mut faults));
        }
        for text in &self.env {
            match text.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    variables.push((name.to_owned(), Secret::new(value)));
                }
                _ => {
                    let problem = "not a variable with a value";
                    faults.push(Fault::new("--env", problem, "write NAME=VALUE"));
                }
            }
        }
        let server = self.server(title, &mut faults);
        if faults.is_empty() {
            return Ok(CommandLine {
                server,
                env: variables,
            });
        }
        Err(Faults {
            origin: "the command line".into(),
            faults,
        })
    }

    fn server(&self, title: Option<&str>, faults: &mut Vec<Fault>) -> Option<SingleServer> {
        let kind = self.server_type.as_deref().unwrap_or("stdio");
        let Some((first, rest)) = self.command.split_first() else {
            if self.header.is_some() || kind != "stdio" {
                let fix = "write the URL after --, or add the server to the server file";
                faults.push(Fault::new(
                    "--type, --header",
                    "require a URL after --",
                    fix,
                ));
            }
            return None;
        };
        let entry = if kind == "stdio" {
            if self.header.is_some() {
                let fix = "use --type sse or streamable-http with a URL, or omit the headers";
                faults.push(Fault::new("--header", "not supported for a program", fix));
            }
            let args: Vec<String> = rest.iter().map(|text| literal(&in_full(text))).collect();
            json!({"command": literal(&in_full(first)), "args": args})
        } else {
            if !rest.is_empty() {
                let problem = "unexpected arguments after the URL";
                faults.push(Fault::new("--", problem, "write the URL only"));
            }
            let headers = headers(self.header.as_deref(), faults);
            json!({"type": kind, "url": literal(first), "headers": headers})
        };
        let name = title.filter(|title| !RESERVED_NAMES.contains(title));
        let name = name.and_then(|title| title.parse().ok());
        let name: ServerName = name.unwrap_or_else(|| UNNAMED.parse().expect("it is a name"));
        let mut servers = Map::new();
        servers.insert(name.to_string(), entry);
        let document = Secret::new(json!({"mcpServers": servers}).to_string());
        Some(SingleServer { name, document })
    }
}

/// Errors never contain the content of a line: it may be a secret.
fn env_file(path: &Path, faults: &mut Vec<Fault>) -> Vec<(String, Secret)> {
    let place = format!("--env-path {}", path.display());
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(error) => {
            faults.push(Fault::new(place, error.to_string(), "give a readable file"));
            return Vec::new();
        }
    };
    let mut variables: Vec<(String, Secret)> = Vec::new();
    for line in lines {
        if let Ok((name, value)) = line {
            variables.push((name, Secret::new(value)));
        } else {
            let problem = match variables.last() {
                Some((name, _)) => format!("the line after {name} is invalid"),
                None => "the first line is invalid".to_owned(),
            };
            let fix = "write lines like NAME=VALUE or NAME=\"A VALUE\"";
            faults.push(Fault::new(place, problem, fix));
            break;
        }
    }
    variables
}

fn headers(text: Option<&str>, faults: &mut Vec<Fault>) -> Map<String, Value> {
    match text.map(serde_json::from_str::<Map<String, Value>>) {
        Some(Ok(headers)) if headers.values().all(Value::is_string) => {
            let literally = |value: Value| literal(value.as_str().unwrap_or_default()).into();
            let headers = headers.into_iter();
            headers
                .map(|(name, value)| (name, literally(value)))
                .collect()
        }
        None => Map::new(),
        Some(_) => {
            let fix = r#"write '{"Name": "value"}'"#;
            faults.push(Fault::new("--header", "not a JSON object of strings", fix));
            Map::new()
        }
    }
}

/// Escapes `${`: the shell has expanded its variables, so a remaining one is literal.
fn literal(text: &str) -> String {
    text.replace("${", "$${")
}

/// Children start in other folders, so the relative path of a file in the current folder, such as `server.py`
/// or `./run`, is made absolute. Everything else is unchanged.
fn in_full(text: &str) -> String {
    let path = Path::new(text);
    let named = path.components().count() > 1 || path.extension().is_some() || text.contains('/');
    if path.is_absolute() || !named || !path.is_file() {
        return text.to_owned();
    }
    let here = env::current_dir().unwrap_or_default();
    here.join(path)
        .to_str()
        .map_or_else(|| text.to_owned(), str::to_owned)
}

#[cfg(test)]
mod given_tests {
    use super::*;

    fn given(args: GivenArgs) -> Value {
        let line = args.resolve(None).unwrap();
        serde_json::from_str(line.server.unwrap().document.expose()).unwrap()
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_program_is_what_stands_behind_the_dashes() {
        let command = words("uvx mcp-server-time --local-timezone=${TZ} Cargo.toml serde");
        let document = given(GivenArgs {
            command,
            ..GivenArgs::default()
        });
        let server = &document["mcpServers"]["server"];
        assert_eq!(server["command"], "uvx");
        let manifest = env::current_dir().unwrap().join("Cargo.toml");
        assert_eq!(
            server["args"],
            json!([
                "mcp-server-time",
                "--local-timezone=$${TZ}",
                manifest,
                "serde"
            ])
        );
    }

    #[test]
    fn a_url_takes_a_type_and_headers() {
        let args = GivenArgs {
            command: words("http://127.0.0.1:8001/sse"),
            server_type: Some("sse".into()),
            header: Some(r#"{"Authorization": "Bearer x"}"#.into()),
            ..GivenArgs::default()
        };
        let document = given(args);
        assert_eq!(
            document["mcpServers"]["server"],
            json!({"type": "sse", "url": "http://127.0.0.1:8001/sse",
                   "headers": {"Authorization": "Bearer x"}})
        );
    }

    #[test]
    fn its_name_is_the_title_where_that_can_stand_in_a_url() {
        let named = |title: &str| {
            let args = GivenArgs {
                command: words("x"),
                ..GivenArgs::default()
            };
            args.resolve(Some(title))
                .unwrap()
                .server
                .unwrap()
                .name
                .to_string()
        };
        assert_eq!(named("My Clock"), "My Clock");
        assert_eq!(named("@scope/clock"), "@scope/clock");
        assert_eq!(named("a//b"), "server");
        assert_eq!(named("docs"), "server");
    }

    #[test]
    fn all_errors_are_reported_at_once_and_show_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vars.env");
        std::fs::write(&file, "A='b c'\nexport D=e # f\nhunter2 hunter2\n").unwrap();
        let args = GivenArgs {
            command: words("x y"),
            header: Some("{hunter2".into()),
            env: words("hunter2 A=b"),
            env_path: Some(file),
            server_type: Some("sse".into()),
        };
        let text = args.resolve(None).unwrap_err().to_string();
        for part in ["--env: ", "the line after D", "--header: ", "after the URL"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn variables_of_the_line_count_over_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vars.env");
        std::fs::write(&file, "# c\nA='b c'\nexport D=e\n").unwrap();
        let (env, env_path) = (words("D=x=y"), Some(file));
        let args = GivenArgs {
            env,
            env_path,
            ..GivenArgs::default()
        };
        let line = args.resolve(None).unwrap();
        let all: Vec<_> = line
            .env
            .iter()
            .map(|(k, v)| format!("{k}={}", v.expose()))
            .collect();
        assert_eq!(all, ["A=b c", "D=e", "D=x=y"]);
        assert!(line.server.is_none());
    }
}
