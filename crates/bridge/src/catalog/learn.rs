//! Reads the lists of a server, with a temporary child in a temporary folder.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bridge_model::{Job, Principal, ServerName};
use bridge_process::{Child, ChildError, End, HelloParts, Profile, relative_text};
use bridge_protocol::{RawJson, Tool, era::Era, method};
use bridge_state::{ChatStore, Held, Lease, NewChat, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{LearnError, listed::Faults};
use crate::{
    child::{ChildRequest, Children},
    config::ServerSpec,
};

/// Timeout for the start of a server and its answer to `server/discover`.
const PROBE: Duration = Duration::from_secs(15);

/// The answers of a server, without the path of its folder.
#[derive(Debug)]
pub struct Learnt {
    /// Its result of `initialize`, or the equivalent.
    pub hello: HelloParts,
    /// The same, unchanged.
    pub hello_raw: RawJson,
    /// Protocol era that its children use: the older one, if it supports both.
    pub era: Era,
    /// Its answer to `server/discover`, if it supports 2026-07-28; requested after the rest.
    pub modern: OnceLock<RawJson>,
    /// All its tools, in the server's order.
    pub tools: Vec<Tool>,
    /// Its prompts, unchanged.
    pub prompts: Vec<RawJson>,
    /// Its resources, unchanged.
    pub resources: Vec<RawJson>,
    /// Its resource templates, unchanged.
    pub templates: Vec<RawJson>,
    /// Proportional set size of the child and its descendants, in bytes.
    pub memory: u64,
    /// Whether it wrote files at its start, which a `shared` server should not do.
    pub wrote_files: bool,
    /// Errors in its `initialize` result and its lists, for the administrator.
    pub odd: Option<String>,
}

/// Starts the server, reads its lists, and ends it, at the latest when `stop` is cancelled. The child
/// and its folder are removed before this returns.
pub async fn learn(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<ChatStore>,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Learnt, LearnError> {
    let Held { job, lease, .. } = create_folder(store, &spec.name).await?;
    let mut request = ChildRequest::of_bridge(spec, &job, Profile::silent(), deadline);
    request.stop = stop.clone();
    let mut learnt = ask(children, &request).await;
    if is_unheard(&learnt) {
        learnt = in_another_form(children, &request).await.or(learnt);
    }
    discard_folder(store, lease).await;
    learnt
}

/// Whether the server sent no answer.
fn is_unheard(learnt: &Result<Learnt, LearnError>) -> bool {
    let Err(LearnError::Child(error)) = learnt else {
        return false;
    };
    matches!(error, ChildError::NotStarted { refused: false, .. })
}

/// A server that does not answer `initialize`, or exits, may support 2026-07-28 only. If it answers
/// `initialize` on the second attempt, its first start was only slow.
async fn in_another_form(
    children: &Children,
    request: &ChildRequest,
) -> Result<Learnt, LearnError> {
    let ask_in = async |profile| {
        let deadline = request.deadline.min(Instant::now() + PROBE);
        let request = ChildRequest {
            profile,
            deadline,
            is_trial: true,
            ..request.clone()
        };
        ask(children, &request).await
    };
    let modern = ask_in(Profile::modern()).await?;
    let legacy = ask_in(Profile::silent()).await;
    if !is_unheard(&legacy) {
        return legacy;
    }
    children.speaks_modern_only(&request.spec);
    Ok(modern)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("looking at files does not panic")
}

/// A leased folder, so that the clean-up does not remove it while a child is slow to answer.
async fn create_folder(store: &Arc<ChatStore>, server: &ServerName) -> Result<Held, StoreError> {
    let store = store.clone();
    let new = NewChat::new(&Principal::Anonymous, vec![server.clone()]);
    blocking(move || store.create(&new)).await
}

async fn discard_folder(store: &Arc<ChatStore>, lease: Lease) {
    let store = store.clone();
    // If the folder cannot be removed now, the clean-up removes it later.
    let _ = blocking(move || store.discard(&lease)).await;
}

/// Whether the server supports 2026-07-28: its answer to `server/discover`. This starts a new process,
/// because a process may support only the revision of its first request, and older servers may not
/// answer.
pub async fn probe(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<ChatStore>,
    stop: &CancellationToken,
) -> Option<RawJson> {
    let Held { job, lease, .. } = create_folder(store, &spec.name).await.ok()?;
    let (profile, deadline) = (Profile::modern(), Instant::now() + PROBE);
    let request = ChildRequest {
        stop: stop.clone(),
        is_trial: true,
        ..ChildRequest::of_bridge(spec, &job, profile, deadline)
    };
    let mut found = None;
    if let Ok(child) = children.ready(request).await {
        found = Some(child.hello.raw.clone());
        child.end(End::Kill).await;
    }
    discard_folder(store, lease).await;
    found
}

/// Starts a child, reads its lists, and ends it.
async fn ask(children: &Children, request: &ChildRequest) -> Result<Learnt, LearnError> {
    let child = Arc::new(children.ready(request.clone()).await?);
    let hello = &child.hello;
    let modern = OnceLock::new();
    if hello.era == Era::Modern {
        let _ = modern.set(hello.raw.clone());
    }
    let (era, hello_raw) = (hello.era, hello.initialized(request.spec.name.as_str()));
    let (hello, mut odd) = HelloParts::read(&hello_raw);
    let mut learnt = Learnt {
        hello,
        hello_raw,
        era,
        modern,
        tools: Vec::new(),
        prompts: Vec::new(),
        resources: Vec::new(),
        templates: Vec::new(),
        memory: 0,
        wrote_files: false,
        odd: None,
    };
    let listing = read_lists(&child, &request.job, &mut learnt, &mut odd);
    let listing = tokio::time::timeout_at(request.deadline, listing);
    let listed = request.stop.run_until_cancelled(listing).await;
    let (measured, work) = (child.clone(), request.job.work());
    (learnt.memory, learnt.wrote_files) = blocking(move || {
        let files = std::fs::read_dir(work);
        let wrote = files.is_ok_and(|mut files| files.next().is_some());
        (measured.parts.body.memory(), wrote)
    })
    .await;
    child.end(End::Kill).await;
    let listed = listed.and_then(Result::ok);
    listed.unwrap_or(Err(ChildError::Timeout.into()))?;
    let mut faults = Faults::default();
    for fault in odd {
        faults.push(fault);
    }
    learnt.odd = faults.text();
    Ok(learnt)
}

async fn read_lists(
    child: &Child,
    job: &Job,
    learnt: &mut Learnt,
    odd: &mut Vec<String>,
) -> Result<(), LearnError> {
    let listed = all_pages(child, method::TOOLS_LIST, "tools", job, odd).await?;
    let (mut names, mut nameless, mut again) = (HashSet::new(), 0, 0);
    for item in &listed {
        match Tool::read_raw(item) {
            Some(tool) if names.insert(tool.name.clone()) => learnt.tools.push(tool),
            Some(_) => again += 1,
            None => nameless += 1,
        }
    }
    for (many, what) in [(nameless, "unnamed"), (again, "duplicate names")] {
        if many > 0 {
            odd.push(format!("tools/list: {many} tools omitted ({what})"));
        }
    }
    // Only tools are required: a server is offered even if its other lists fail.
    let capabilities = &learnt.hello.capabilities;
    let mut optional = async |capability: &str, method: &str, key: &str| {
        if !capabilities.contains_key(capability) {
            return Vec::new();
        }
        let items = all_pages(child, method, key, job, odd).await;
        items.unwrap_or_default()
    };
    learnt.prompts = optional("prompts", method::PROMPTS_LIST, "prompts").await;
    learnt.resources = optional("resources", method::RESOURCES_LIST, "resources").await;
    let (method, key) = (method::RESOURCES_TEMPLATES_LIST, "resourceTemplates");
    learnt.templates = optional("resources", method, key).await;
    Ok(())
}

/// Maximum number of pages that are read; more indicate a faulty server.
const MAX_PAGES: usize = 1000;

/// Sends `method` until there are no more pages, and collects the elements of `key` without duplicates.
/// An error of the first page is returned; later errors are added to `odd`.
async fn all_pages(
    child: &Child,
    method: &str,
    key: &str,
    job: &Job,
    odd: &mut Vec<String>,
) -> Result<Vec<RawJson>, LearnError> {
    let (mut items, mut seen, mut cursors) = (Vec::new(), HashSet::new(), HashSet::new());
    let mut cursor: Option<RawJson> = None;
    for number in 1.. {
        let params = match &cursor {
            Some(next) => RawJson::empty_object().with_member("cursor", next),
            None => RawJson::empty_object(),
        };
        let page = match child.request(method, Some(&params)).await? {
            Ok(page) => page,
            Err(error) if number == 1 => {
                let said = relative_text(error.as_str(), &job.paths());
                return Err(LearnError::Refused(said));
            }
            Err(_) => {
                odd.push(format!(
                    "{method}: page {number} is an error; the remaining items are omitted"
                ));
                break;
            }
        };
        if page.members().is_none() {
            if number == 1 {
                return Err(LearnError::BadList);
            }
            odd.push(format!("{method}: page {number} is not an object"));
            break;
        }
        match page.member(key).map(|list| list.elements()) {
            Some(Some(list)) => {
                items.extend(list.into_iter().filter(|item| seen.insert(item.clone())));
            }
            Some(None) => odd.push(format!("{method}: \"{key}\" is not a list")),
            None => odd.push(format!("{method}: \"{key}\" is missing")),
        }
        let Some(next) = next_cursor(&page, method, odd) else {
            break;
        };
        // A repeated cursor would cause an endless loop.
        if !cursors.insert(next.clone()) {
            if cursor.as_ref() != Some(&next) {
                odd.push(format!(
                    "{method}: a nextCursor occurs twice; the remaining items are omitted"
                ));
            }
            break;
        }
        if number == MAX_PAGES {
            odd.push(format!(
                "{method}: more than {MAX_PAGES} pages; the remaining items are omitted"
            ));
            break;
        }
        cursor = Some(next);
    }
    Ok(items)
}

/// The cursor of the next page. A number is sent back unchanged, because a server that sends a number
/// expects one.
fn next_cursor(page: &RawJson, method: &str, odd: &mut Vec<String>) -> Option<RawJson> {
    let cursor = page.member("nextCursor")?;
    let (why, usable) = match cursor.as_bytes().first()? {
        b'"' => return Some(cursor),
        b'n' | b'f' => return None,
        b'0'..=b'9' | b'-' => ("is a number, not a string", true),
        _ => ("has the wrong type; the remaining pages are omitted", false),
    };
    odd.push(format!("{method}: nextCursor {why}"));
    usable.then_some(cursor)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bridge_state::testing::{Folder, later, sweep_at};

    use super::*;

    #[tokio::test]
    async fn the_clean_up_leaves_the_folder_of_a_child_that_is_asked() {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let held = create_folder(&store, &"excel".parse().unwrap())
            .await
            .unwrap();
        let sweep = || sweep_at(&store, Duration::ZERO, later(folder.now, 3600)).report;
        assert_eq!(sweep().leased_jobs, 1);
        assert!(held.job.folder().exists());
        store.release(&held.lease).unwrap();
        assert_eq!(sweep().removed_jobs, 1);
    }
}

#[cfg(test)]
mod pages_tests {
    use super::*;

    #[test]
    fn cursors_of_every_type_are_told_apart() {
        for (cursor, goes_on, is_odd) in [
            (r#""a""#, true, false),
            (r#""""#, true, false),
            ("3", true, true),
            ("{}", false, true),
            ("true", false, true),
        ] {
            let page = format!(r#"{{"nextCursor":{cursor}}}"#);
            let mut odd = Vec::new();
            let next = next_cursor(&RawJson::parse(page.into()).unwrap(), "list", &mut odd);
            let found = (next.is_some(), !odd.is_empty());
            assert_eq!(found, (goes_on, is_odd), "{cursor}");
        }
        for end in ["{}", r#"{"nextCursor":null}"#, r#"{"nextCursor":false}"#] {
            let (page, mut odd) = (RawJson::parse(end.into()).unwrap(), Vec::new());
            assert_eq!(next_cursor(&page, "list", &mut odd), None);
            assert!(odd.is_empty());
        }
    }
}
