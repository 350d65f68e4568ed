//! What mcpo's users write on the command line: one server behind `--`, and variables.

use std::{
    env,
    path::{Path, PathBuf},
};

use bridge_model::ServerName;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::config::{CommandLine, Fault, Faults, RESERVED_NAMES, Secret, SingleServer};

/// The name of a single server whose `--name` is no name for URLs.
const UNNAMED: &str = "server";

/// One server without a file. These are no settings: they have no variables.
#[derive(Args, Default)]
#[command(next_help_heading = "A single server, as mcpo has it")]
pub struct GivenArgs {
    /// Serve this program, or with --type this URL, at the root and without a server file
    #[arg(last = true, value_name = "COMMAND", allow_hyphen_values = true)]
    command: Vec<String>,
    /// How to speak to it: stdio, sse or streamable-http
    #[arg(
        long = "type",
        alias = "server-type",
        value_name = "TYPE",
        default_value = "stdio"
    )]
    server_type: Option<String>,
    /// HTTP headers for a URL, as a JSON object: '{"Authorization": "Bearer …"}'
    #[arg(long, short = 'H', value_name = "JSON")]
    header: Option<String>,
    /// A variable for every server that is started, and for ${NAME} in the server file (repeatable)
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A .env file with such variables
    #[arg(long, value_name = "FILE")]
    env_path: Option<PathBuf>,
}

/// What was read so far, and what is wrong with it.
#[derive(Default)]
struct Reading {
    faults: Vec<Fault>,
}

impl GivenArgs {
    /// Checks everything; `title` is `--name`.
    pub fn resolve(self, title: Option<&str>) -> Result<CommandLine, Faults> {
        let mut reading = Reading::default();
        let mut variables = Vec::new();
        if let Some(path) = &self.env_path {
            variables.extend(reading.env_file(path));
        }
        variables.extend(self.env.iter().filter_map(|text| reading.variable(text)));
        let server = reading.server(&self, title);
        if reading.faults.is_empty() {
            return Ok(CommandLine {
                server,
                env: variables,
            });
        }
        Err(Faults {
            origin: "the command line".into(),
            faults: reading.faults,
        })
    }
}

impl Reading {
    fn fault(&mut self, place: &str, problem: impl Into<String>, fix: &str) {
        self.faults.push(Fault::new(place, problem, fix));
    }

    fn variable(&mut self, text: &str) -> Option<(String, Secret)> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Some((name.to_owned(), Secret::new(value))),
            _ => {
                self.fault("--env", "not a variable with its value", "write NAME=VALUE");
                None
            }
        }
    }

    /// Never names what a line holds: it may be a secret.
    fn env_file(&mut self, path: &Path) -> Vec<(String, Secret)> {
        let place = format!("--env-path {}", path.display());
        let lines = match dotenvy::from_path_iter(path) {
            Ok(lines) => lines,
            Err(error) => {
                self.fault(&place, error.to_string(), "name a file that can be read");
                return Vec::new();
            }
        };
        let mut variables: Vec<(String, Secret)> = Vec::new();
        for line in lines {
            if let Ok((name, value)) = line {
                variables.push((name, Secret::new(value)));
            } else {
                let problem = match variables.last() {
                    Some((name, _)) => format!("the line after {name} cannot be read"),
                    None => "its first line cannot be read".to_owned(),
                };
                self.fault(
                    &place,
                    problem,
                    "write lines like NAME=VALUE or NAME=\"A VALUE\"",
                );
                break;
            }
        }
        variables
    }

    fn server(&mut self, given: &GivenArgs, title: Option<&str>) -> Option<SingleServer> {
        let kind = given.server_type.as_deref().unwrap_or("stdio");
        let Some((first, rest)) = given.command.split_first() else {
            if given.header.is_some() || kind != "stdio" {
                let fix = "write the URL behind --, or put the server into the server file";
                self.fault("--type, --header", "they belong to a URL behind --", fix);
            }
            return None;
        };
        let entry = if kind == "stdio" {
            if given.header.is_some() {
                let fix = "give --type sse or streamable-http and a URL, or leave the headers out";
                self.fault("--header", "a program gets no HTTP headers", fix);
            }
            let args: Vec<String> = rest.iter().map(|text| literal(&in_full(text))).collect();
            json!({"command": literal(&in_full(first)), "args": args})
        } else {
            if !rest.is_empty() {
                self.fault("--", "more than the URL is given", "write the URL alone");
            }
            let headers = self.headers(given.header.as_deref());
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

    fn headers(&mut self, text: Option<&str>) -> Map<String, Value> {
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
                self.fault("--header", "not a JSON object of strings", fix);
                Map::new()
            }
        }
    }
}

/// The shell has replaced what it should: a `${` that is left stands for itself.
fn literal(text: &str) -> String {
    text.replace("${", "$${")
}

/// Children start in folders of their own, so the relative name of a file that lies here, such as
/// `server.py` or `./run`, is written in full. What is no such file stays as it is.
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
mod tests {
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
    fn what_is_wrong_is_told_at_once_and_shows_no_secret() {
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
        for part in [
            "--env: ",
            "the line after D",
            "--header: ",
            "more than the URL",
        ] {
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
