//! `mcpo-bridge call`: one call through the engine of the service, in this process.

mod answer;
mod arguments;

use std::{net::Ipv4Addr, sync::Arc};

use bridge_model::{Caller, Principal};
use bridge_protocol::RawJson;
use clap::Args;
use tokio::time::Instant;

use super::{
    Failure, SettingsArgs,
    local::{Local, block_on, until_signal},
    log,
    output::Format,
    survey::LIST_TIME,
    tools::only,
};
use crate::{
    call::{Answer, Call, CallError, rpc_words},
    catalog::{Offer, learn},
    config::{self, Loaded, Settings},
    session::Place,
    telemetry::RequestId,
};

/// What `--help` adds.
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

/// Calls, prints, and fails if the tool did.
pub fn run(args: CallArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let given = arguments::given(args.arg, args.json.as_deref())?;
    let caller = caller(args.user, args.chat)?;
    let settings = settings.resolve()?;
    let mut config = config::load(&settings.config_file, &settings)?;
    let _log = log::start(&settings.log)?;
    only(&mut config, &args.server)?;
    let call = ToolCall {
        caller,
        tool: args.tool,
        given,
        format: args.format,
    };
    block_on(call.run(settings, config))
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
        // A user of this machine who can read the server file need not be in its lists.
        trusted: true,
        chat: some(chat, "--chat")?,
        ..Caller::nobody(Ipv4Addr::LOCALHOST.into())
    })
}

struct ToolCall {
    caller: Caller,
    tool: String,
    given: RawJson,
    format: Format,
}

impl ToolCall {
    /// `config` holds the one server.
    async fn run(self, settings: Settings, config: Loaded) -> Result<(), Failure> {
        let local = Local::new(settings, config)?;
        let done = until_signal(self.call(&local)).await;
        let printed = done.and_then(|answer| {
            let (answer, offer) = answer?;
            answer::print_answer(&answer, &offer.spec, &local.app, self.format)
        });
        local.end().await;
        printed
    }

    async fn call(&self, local: &Local) -> Result<(Answer, Arc<Offer>), Failure> {
        let app = &local.app;
        let offer = offer(local).await?;
        let server = &offer.spec.name;
        if !offer.may_call(&self.tool) {
            let names = offer.tools().map(|tool| &*tool.name);
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!(
                "server '{server}' has no tool '{}'; it has: {names}",
                self.tool
            )));
        }
        let deadline = Instant::now() + offer.spec.timeout;
        let checked = offer.check_until(&self.tool, self.given.clone(), deadline);
        let unfit = |unfit| arguments::refused(server.as_str(), &self.tool, unfit);
        let arguments = checked.await.map_err(unfit)?;
        let place = Place::of(&self.caller, &offer.spec);
        let place = place.ok_or_else(|| Failure::failed(CallError::UnknownSession))?;
        let call = Call::of_tool(
            self.caller.clone(),
            offer.spec.clone(),
            place,
            &self.tool,
            arguments,
            &RequestId::random(),
        );
        match app.engine.run(call).await {
            Ok(answer) => Ok((answer, offer)),
            Err(error) => Err(failure(&error)),
        }
    }
}

/// What the one server offers.
async fn offer(local: &Local) -> Result<Arc<Offer>, Failure> {
    let app = &local.app;
    let config = app.directory.config();
    let spec = config.servers.values().next().expect("one was chosen");
    app.installer.follow(vec![spec.clone()]).await;
    let deadline = Instant::now() + app.settings.limits.start_timeout + LIST_TIME;
    let learnt = learn(spec, &app.engine.children, &app.store, deadline).await;
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
            let code = object["code"]
                .as_i64()
                .map(|code| format!(" (code {code})"));
            Failure::failed(format!("{error}: {message}{}", code.unwrap_or_default()))
        }
        other => Failure::failed(other),
    }
}
