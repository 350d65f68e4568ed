//! `mcpo-bridge call`: runs one call with the engine of the service, in this process.

use std::{fmt::Write as _, io::Read as _, net::Ipv4Addr, path::PathBuf, sync::Arc};

use bridge_model::{Caller, Principal};
use bridge_openapi::{ArgumentsError, read_body, result_body};
use bridge_protocol::RawJson;
use bridge_state::Artifact;
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    Failure, SettingsArgs,
    local::{Local, block_on, load, until_signal},
    output::{BOLD, DIM, Format, ODD, indented, plain, print, print_json},
};
use crate::{
    app::App,
    call::{Answer, Call, CallError, Link, rpc_words},
    catalog::Offer,
    config::ServerSpec,
    session::WorkspaceAddress,
    telemetry::RequestId,
};

/// Text after the options in `--help`.
pub const HELP: &str = "\
The call runs in this process, with the same limits, journal, links and audit line as in the service: no bridge \
needs to be running, and the server is ended afterwards. Links work while a bridge serves the same jobs \
directory.

With --user and --chat the call uses the workspace of that chat. If a running bridge has a session in that chat, \
the workspace is locked: call the bridge over HTTP, or wait until the session has ended.

Exit codes: 0 success, 1 the tool or the server failed, 2 unknown server or tool, or invalid arguments.

Examples:
  mcpo-bridge call time get_current_time --arg timezone=Asia/Tokyo
  mcpo-bridge call excel write_range --json '{\"file\": \"a.xlsx\", \"rows\": [[1, 2]]}'
  jq -n '{text: \"hello\"}' | mcpo-bridge call echo echo --json - --format json
  mcpo-bridge call excel describe_workbook --user alice --chat c1 --arg file=a.xlsx";

/// The arguments of `call`.
#[derive(Args)]
pub struct CallArgs {
    /// Name of the server in the server file
    #[arg(value_name = "SERVER")]
    server: String,
    /// Name of the tool, as listed by `mcpo-bridge tools SERVER`
    #[arg(value_name = "TOOL")]
    tool: String,
    /// An argument (repeatable); the tool's schema decides whether it is a string, number or boolean
    #[arg(long = "arg", short, value_name = "NAME=VALUE")]
    arg: Vec<String>,
    /// All arguments as a JSON object; - reads from stdin
    #[arg(long, value_name = "JSON", conflicts_with = "arg")]
    json: Option<String>,
    /// User who calls
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Chat of that user whose workspace is used
    #[arg(long, value_name = "ID", requires = "user")]
    chat: Option<String>,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Calls the tool, prints the result, and fails if the tool failed.
pub fn run(args: CallArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let given = given_arguments(args.arg, args.json.as_deref())?;
    let caller = caller(args.user, args.chat)?;
    let (settings, _log, config) = load(settings, Some(&args.server))?;
    block_on(async {
        let local = Local::new(settings, config)?;
        let done = until_signal(call(&local, caller, &args.tool, given)).await;
        let printed = done.and_then(|answer| {
            let (answer, offer) = answer?;
            print_answer(&answer, &offer.spec, &local.app, args.format)
        });
        local.end().await;
        printed
    })
}

fn caller(user: Option<String>, chat: Option<String>) -> Result<Caller, Failure> {
    let some = |id: Option<String>, flag: &str| match id {
        Some(id) if id.trim().is_empty() => {
            Err(Failure::usage(format!("{flag}: the value is empty")))
        }
        other => Ok(other.map(String::into_boxed_str)),
    };
    let user = some(user, "--user")?;
    Ok(Caller {
        principal: user.map_or(Principal::Anonymous, Principal::User),
        // The caller can read the server file and need not be in its `allow` lists.
        trusted: true,
        chat: some(chat, "--chat")?,
        ..Caller::nobody(Ipv4Addr::LOCALHOST.into())
    })
}

/// Calls the tool of the only server.
async fn call(
    local: &Local,
    caller: Caller,
    tool: &str,
    given: RawJson,
) -> Result<(Answer, Arc<Offer>), Failure> {
    let app = &local.app;
    let offer = offer(local).await?;
    let server = &offer.spec.name;
    if !offer.may_call(tool) {
        let names = offer.tools().map(|tool| &*tool.name);
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!(
            "server '{server}' has no tool '{tool}'; it has: {names}"
        )));
    }
    let deadline = Instant::now() + offer.spec.timeout;
    let checked = offer.check_until(tool, given, deadline).await;
    let arguments = checked.map_err(|error| refused_arguments(server.as_str(), tool, error))?;
    let address = WorkspaceAddress::for_caller(&caller, &offer.spec);
    let address = address.ok_or_else(|| Failure::failed(CallError::UnknownSession))?;
    let (spec, request_id) = (offer.spec.clone(), RequestId::random());
    let call = Call::of_tool(caller, spec, address, tool, arguments, &request_id);
    let answer = app.core.engine.run(call).await;
    Ok((answer.map_err(|error| failure(&error))?, offer))
}

/// The offer of the only server.
async fn offer(local: &Local) -> Result<Arc<Offer>, Failure> {
    let app = &local.app;
    let config = app.core.directory.config();
    let spec = config.servers.values().next().expect("one was chosen");
    app.installer.follow(vec![spec.clone()]).await;
    let learnt = local.learn(spec).await;
    let learnt = learnt.map_err(|error| Failure::failed(format!("{}: {error}", spec.name)))?;
    Ok(Arc::new(Offer::new(spec.clone(), Arc::new(learnt))))
}

fn failure(error: &CallError) -> Failure {
    match error {
        CallError::Elsewhere(why) => Failure::failed(format!(
            "the workspace of this chat is in use by a running bridge ({why}); call the bridge over HTTP, wait \
             until its session ends (idle_timeout), or use another --chat"
        )),
        CallError::Rpc { error: object, .. } => {
            let object = object.with_whole_letters().approximate();
            let message = rpc_words(&object);
            let code = object["code"].as_i64();
            let code = code
                .map(|code| format!(" (code {code})"))
                .unwrap_or_default();
            Failure::failed(format!("{error}: {message}{code}"))
        }
        other => Failure::failed(other),
    }
}

// The result of a call, as text and JSON.

#[derive(Serialize)]
struct Printed {
    /// The result as an HTTP caller gets it; `None` if the tool failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<RawJson>,
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_instruction: Option<String>,
}

#[derive(Serialize)]
struct File {
    #[serde(flatten)]
    link: Link,
    /// The path in the workspace, while that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

/// Prints the result; if the tool failed, returns a failure with the tool's message.
fn print_answer(
    answer: &Answer,
    spec: &ServerSpec,
    app: &App,
    format: Format,
) -> Result<(), Failure> {
    let (result, failure) = match result_body(&answer.outcome) {
        Ok(result) => (Some(result), None),
        Err(failure) => (None, Some(failure)),
    };
    let files = answer.files.files.iter().map(|file| File {
        link: Link::to_artifact(file, &app.core.settings),
        path: path_of(file, app),
    });
    let files: Vec<File> = files.collect();
    let archive = answer.files.archive.as_ref();
    let instruction = spec.post_instruction.clone();
    let printed = Printed {
        result,
        archive: archive.map(|file| Link::to_artifact(file, &app.core.settings)),
        notice: answer.notice(app.core.settings.lang),
        post_instruction: instruction.filter(|_| !files.is_empty()),
        files,
    };
    match format {
        Format::Json => print_json(&printed)?,
        Format::Text => print(&printed.text())?,
    }
    failure.map_or(Ok(()), |failure| Err(Failure::failed(failure)))
}

fn path_of(file: &Artifact, app: &App) -> Option<PathBuf> {
    let chat = app.store.chat(file.job).ok().flatten()?;
    let path = chat.job.work().join(&file.path);
    path.exists().then_some(path)
}

impl Printed {
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(result) = &self.result {
            let _ = writeln!(text, "{}", readable(result));
        }
        for file in &self.files {
            let size = HumanBytes(file.link.size);
            let name = plain(&file.link.name);
            let _ = writeln!(text, "{BOLD}{name}{BOLD:#} {DIM}({size}){DIM:#}");
            let _ = writeln!(text, "  link: {}", file.link.url);
            if let Some(path) = &file.path {
                let path = path.to_string_lossy();
                let _ = writeln!(text, "  file: {}", plain(&path));
            }
        }
        if let Some(archive) = &self.archive {
            let _ = writeln!(text, "{BOLD}all files{BOLD:#}\n  link: {}", archive.url);
        }
        if let Some(notice) = &self.notice {
            let _ = writeln!(text, "{ODD}note:{ODD:#} {}", indented(notice, 2));
        }
        text
    }
}

/// The result for reading: a string as is, other JSON indented; JSON that cannot be parsed without loss
/// unchanged.
fn readable(result: &RawJson) -> String {
    let text = match result.read::<Value>() {
        Ok(Value::String(text)) => text,
        Ok(value) => format!("{value:#}"),
        Err(_) => result.as_str().to_owned(),
    };
    plain(text.trim_end()).into_owned()
}

// `--arg name=value` and `--json` as the tool's arguments.

/// The arguments before the tool's schema is applied: values of `--arg` are strings.
fn given_arguments(pairs: Vec<String>, json: Option<&str>) -> Result<RawJson, Failure> {
    match json {
        Some("-") => {
            let mut text = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut text);
            read.map_err(|error| Failure::failed(format!("--json -: cannot read stdin: {error}")))?;
            parse(text)
        }
        Some(text) => parse(text.as_bytes().to_vec()),
        None => named(pairs),
    }
}

fn parse(text: Vec<u8>) -> Result<RawJson, Failure> {
    read_body(text.into()).map_err(|error| {
        Failure::usage(format!(
            "--json: invalid JSON: {error}; write an object, such as '{{\"name\": \"value\"}}'"
        ))
    })
}

fn named(pairs: Vec<String>) -> Result<RawJson, Failure> {
    let mut members = Map::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Failure::usage(format!("--arg {pair}: expected NAME=VALUE")));
        };
        if members.insert(name.to_owned(), value.into()).is_some() {
            return Err(Failure::usage(format!(
                "--arg {name}: given more than once; use --json for lists and objects"
            )));
        }
    }
    Ok(RawJson::from_json(&Value::Object(members)))
}

/// An error that lists each invalid field.
fn refused_arguments(server: &str, tool: &str, error: ArgumentsError) -> Failure {
    let ArgumentsError::Faults(faults) = error else {
        let why = "validating the arguments took longer than the timeout of the call";
        return Failure::failed(why);
    };
    let lines = faults.iter().map(|fault| {
        let location = fault.loc.iter().skip(1).map(|step| match step {
            Value::String(name) => name.clone(),
            other => other.to_string(),
        });
        let location = location.collect::<Vec<_>>().join(".");
        let colon = if location.is_empty() { "" } else { ": " };
        format!("\n{location}{colon}{}", fault.msg)
    });
    let lines: String = lines.collect();
    Failure::usage(format!(
        "invalid arguments for {tool} (schema: `mcpo-bridge tools {server} --json`; lists and objects need \
         --json):{lines}"
    ))
}

#[cfg(test)]
mod answer_tests {
    use super::*;

    fn shown(json: &str) -> String {
        readable(&RawJson::parse(json.to_owned().into()).unwrap())
    }

    #[test]
    fn texts_are_shown_bare_and_json_indented() {
        assert_eq!(shown(r#""two\nlines\n""#), "two\nlines");
        assert_eq!(
            shown(r#"{"b":[1],"a":2}"#),
            "{\n  \"b\": [\n    1\n  ],\n  \"a\": 2\n}"
        );
        assert_eq!(shown("1e400"), "1e400");
        assert_eq!(shown(r#""\u001b[31mred""#), "\u{fffd}[31mred");
    }
}

#[cfg(test)]
mod arguments_tests {
    use super::*;

    fn read(pairs: &[&str]) -> Result<String, Failure> {
        let pairs = pairs.iter().map(ToString::to_string).collect();
        given_arguments(pairs, None).map(|raw| raw.as_str().to_owned())
    }

    #[test]
    fn pairs_become_an_object_of_texts() {
        assert_eq!(read(&[]).unwrap(), "{}");
        let members = read(&["a=1", "b=x=y", "c="]).unwrap();
        assert_eq!(members, r#"{"a":"1","b":"x=y","c":""}"#);
    }

    #[test]
    fn what_is_no_pair_or_given_twice_is_refused() {
        for bad in [&["a"][..], &["=1"], &["a=1", "a=2"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn json_keeps_its_bytes() {
        let given = given_arguments(Vec::new(), Some(r#"{"n":1.0,"m":1e400}"#));
        assert_eq!(given.unwrap().as_str(), r#"{"n":1.0,"m":1e400}"#);
        assert!(super::given_arguments(Vec::new(), Some("{")).is_err());
    }
}
