//! A server as offered to callers: its lists, filtered by the config.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::{Arc, LazyLock, OnceLock},
};

use bridge_openapi::{
    ArgumentRules, ArgumentsError, BRIEF_BYTES, DocumentInput, Documents, Effort, Patience,
    Stopped, document, name_of_dots,
};
use bridge_protocol::{RawJson, Tool};
use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{Learnt, listed::Listed};
use crate::config::{Mode, ServerSpec};

/// What a server offers under one version of its config.
pub struct Offer {
    /// The config whose filters apply.
    pub spec: Arc<ServerSpec>,
    /// The answers of the server.
    pub learnt: Arc<Learnt>,
    tools: IndexMap<Box<str>, OfferedTool>,
    listed: OnceLock<Listed>,
    documents: Mutex<HashMap<String, Bytes>>,
}

/// Permits for checks that may take long, for all servers.
static CHECKS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism();
    Semaphore::new(processors.map_or(1, NonZeroUsize::get))
});

/// A tool that callers may use.
pub struct OfferedTool {
    /// As the server described it.
    pub tool: Tool,
    rules: OnceLock<ArgumentRules>,
}

impl OfferedTool {
    /// The rules for its arguments, compiled on first use.
    pub fn rules(&self) -> &ArgumentRules {
        self.rules.get_or_init(|| {
            let rules = ArgumentRules::compile(self.tool.input_schema());
            if let Some(warning) = rules.warning() {
                tracing::warn!(tool = %self.tool.name, "{warning}");
            }
            rules
        })
    }
}

impl Offer {
    /// Filters by `enabledTools` and `disabledTools`.
    pub fn new(spec: Arc<ServerSpec>, learnt: Arc<Learnt>) -> Self {
        let offered = learnt.tools.iter().filter(|tool| spec.offers(&tool.name));
        let tools = offered.map(|tool| {
            let (tool, rules) = (tool.clone(), OnceLock::new());
            (tool.name.clone(), OfferedTool { tool, rules })
        });
        Self {
            tools: tools.collect(),
            spec,
            learnt,
            listed: OnceLock::new(),
            documents: Mutex::default(),
        }
    }

    /// A tool that callers may use, by the server's name for it.
    pub fn tool(&self, name: &str) -> Option<&OfferedTool> {
        self.tools.get(name)
    }

    /// The name of the tool for the last segment of a URL, decoded.
    pub fn name_at<'a>(&self, segment: &'a str) -> &'a str {
        let known = |name: &&str| self.tools.contains_key(*name);
        let dots = || name_of_dots(segment).filter(known);
        // A trailing slash is ignored, as in every address.
        let bare = || Some(segment.trim_end_matches('/')).filter(known);
        let named = Some(segment).filter(known).or_else(dots);
        named.or_else(bare).unwrap_or(segment)
    }

    /// Whether callers may call a tool: a known tool or, if tools depend on the session, any that the config
    /// does not hide.
    pub fn may_call(&self, name: &str) -> bool {
        self.tools.contains_key(name) || (self.spec.session_lists && self.spec.offers(name))
    }

    /// Validates and corrects the arguments of a call. If the session may have another schema, arguments that
    /// do not fit this one are passed to the server. May take seconds, so call it on a blocking thread.
    pub fn check(
        &self,
        tool: &str,
        arguments: RawJson,
        effort: &Effort,
    ) -> Result<RawJson, ArgumentsError> {
        let Some(known) = self.tools.get(tool) else {
            return Ok(match arguments.as_bytes() {
                b"null" => RawJson::empty_object(),
                _ => arguments,
            });
        };
        let checked = known.rules().check(&arguments, effort);
        checked.or_else(|error| match error {
            ArgumentsError::Faults(_) if self.spec.session_lists => Ok(arguments),
            error => Err(error),
        })
    }

    /// The same for a runtime thread, until `deadline`. Small arguments, by far the most frequent, are
    /// checked at once; others on a blocking thread, with at most as many concurrent checks as there are
    /// processors. The check stops when the returned future is dropped.
    pub async fn check_until(
        self: &Arc<Self>,
        tool: &str,
        arguments: RawJson,
        deadline: Instant,
    ) -> Result<RawJson, ArgumentsError> {
        let known = self.tools.get(tool);
        let compiled = known.is_none_or(|known| known.rules.get().is_some());
        if compiled && arguments.as_bytes().len() <= BRIEF_BYTES {
            let brief = self.check(tool, arguments.clone(), &Effort::brief());
            if brief != Err(ArgumentsError::Stopped(Stopped::Work)) {
                return brief;
            }
        }
        let late = ArgumentsError::Stopped(Stopped::Time);
        let Ok(place) = timeout_at(deadline, CHECKS.acquire()).await else {
            return Err(late);
        };
        let waiting = Arc::new(());
        let effort = Effort::whole(Patience {
            until: Some(deadline.into_std()),
            caller: Some(Arc::downgrade(&waiting)),
        });
        let (offer, tool) = (self.clone(), tool.to_owned());
        let checked = spawn_blocking(move || {
            // Released when the check stops, even if the caller no longer waits.
            let _place = place;
            offer.check(&tool, arguments, &effort)
        });
        match checked.await {
            Ok(checked) => checked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => Err(ArgumentsError::Stopped(Stopped::Left)),
            },
        }
    }

    /// All of these tools, in the server's order.
    pub fn tools(&self) -> impl ExactSizeIterator<Item = &Tool> {
        self.tools.values().map(|offered| &offered.tool)
    }

    /// The server's part of the lists of all servers.
    pub fn listed(&self) -> &Listed {
        self.listed.get_or_init(|| {
            let learnt = &self.learnt;
            let (prompts, resources) = (&learnt.prompts, &learnt.resources);
            Listed::inspect(self.tools(), prompts, resources, &learnt.templates)
        })
    }

    /// Names in `enabledTools` that the server does not have: misspelled, or of another version.
    pub fn missing_tools(&self) -> Vec<&str> {
        let enabled = self.spec.enabled_tools.iter().flatten();
        // Another session may have these tools.
        let wanted = enabled
            .map(String::as_str)
            .filter(|_| !self.spec.session_lists);
        let tools = self.learnt.tools.iter();
        let has: HashSet<&str> = tools.map(|tool| &*tool.name).collect();
        wanted.filter(|name| !has.contains(name)).collect()
    }

    /// Warnings for the administrator.
    pub fn warnings(&self) -> Vec<String> {
        let name = &self.spec.name;
        let mut warnings = Vec::new();
        let missing = self.missing_tools();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            warnings.push(format!(
                "server '{name}': enabledTools contains unknown tools: {missing}"
            ));
        }
        let tasks = self.tools().filter(|tool| tool.needs_task());
        let tasks: Vec<&str> = tasks.map(|tool| &*tool.name).collect();
        if !tasks.is_empty() {
            let tasks = tasks.join(", ");
            warnings.push(format!(
                "server '{name}': tools that require MCP tasks are not available over OpenAPI: \
                 {tasks}"
            ));
        }
        if self.spec.mode == Mode::Shared && self.learnt.wrote_files {
            warnings.push(format!(
                "server '{name}': it is shared but writes files, and files of shared servers get \
                 no links: use \"mode\": \"stateful\" or \"stateless\""
            ));
        }
        if let Some(odd) = &self.learnt.odd {
            warnings.push(format!(
                "server '{name}': its responses violate the MCP schema: {odd}"
            ));
        }
        warnings.extend(self.listed().warnings(name));
        warnings
    }

    /// Display name of the server.
    pub fn title(&self) -> &str {
        let info = &self.learnt.hello.server_info;
        let said = info.title.as_deref().unwrap_or(&info.name);
        if said.is_empty() {
            self.spec.name.as_str()
        } else {
            said
        }
    }

    /// The OpenAPI document for operations below `server_url`; generated once, then served from memory.
    /// Title, description and version in `said` override the server's own.
    pub fn document(&self, server_url: &str, said: &Documents, secured: bool) -> Bytes {
        let mut documents = self.documents.lock();
        if let Some(known) = documents.get(server_url) {
            return known.clone();
        }
        let callable = self.tools().filter(|tool| !tool.needs_task());
        let tools: Vec<Tool> = callable.cloned().collect();
        let instructions = self.learnt.hello.instructions.as_deref();
        let made = document(&DocumentInput {
            title: said.name.as_deref().unwrap_or(self.title()),
            version: (said.version.as_deref()).unwrap_or(&self.learnt.hello.server_info.version),
            description: said.description.as_deref().or(instructions),
            server_url,
            tools: &tools,
            usage_guide: self.spec.usage_guide.as_deref(),
            secured,
            operation_ids: said.operation_ids,
        });
        let made = Bytes::from(made.to_string());
        documents.insert(server_url.to_owned(), made.clone());
        made
    }
}
