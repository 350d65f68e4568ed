//! Asking a server what it offers, in a throw-away child and folder.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bridge_model::{Job, Principal, ServerName, Tenant};
use bridge_process::{Child, ChildError, End, HelloParts, Profile, UserValues, relative_text};
use bridge_protocol::{RawJson, Tool, era::Era, method};
use bridge_state::{ChatStore, Held, NewChat, PrincipalHash, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{LearnError, listed::Faults};
use crate::{
    child::{ChildRequest, Children},
    config::ServerSpec,
};

/// How long a server may take to start and to answer `server/discover`.
const PROBE: Duration = Duration::from_secs(15);

/// What a server said of itself, without the name of the folder in which it said so.
#[derive(Debug)]
pub struct Learnt {
    /// Its answer to `initialize`, or what stands for it.
    pub hello: HelloParts,
    /// The same as it came.
    pub hello_raw: RawJson,
    /// How its children are spoken to, where both sides could do otherwise: what speaks older
    /// revisions too is spoken to in those.
    pub era: Era,
    /// Its answer to `server/discover`, if it speaks 2026-07-28; found out after the rest.
    pub modern: OnceLock<RawJson>,
    /// All its tools, in its order.
    pub tools: Vec<Tool>,
    /// Its prompts, as they came.
    pub prompts: Vec<RawJson>,
    /// Its resources, as they came.
    pub resources: Vec<RawJson>,
    /// Its resource templates, as they came.
    pub templates: Vec<RawJson>,
    /// Proportional set size of the child and all below it, in bytes.
    pub memory: u64,
    /// The call-less files that it wrote at start: a `shared` server should write none.
    pub wrote_files: bool,
    /// What is odd about its greeting and its lists, for its operator.
    pub odd: Option<String>,
}

/// Starts the server, asks, and leaves nothing behind.
pub async fn learn(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<ChatStore>,
    deadline: Instant,
) -> Result<Learnt, LearnError> {
    learn_unless(spec, children, store, deadline, &CancellationToken::new()).await
}

/// As [`learn`], but gives up once `stop` is cancelled; then too nothing is left when it returns.
pub async fn learn_unless(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<ChatStore>,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Learnt, LearnError> {
    let making = (store.clone(), spec.name.clone());
    let Held { job, lease, .. } = blocking(move || throw_away(&making.0, making.1)).await?;
    let ready = children.ready_unless(request(spec, &job, Profile::silent(), deadline), stop);
    let mut learnt = ask(ready.await, &job, spec, deadline, stop).await;
    if is_unheard(&learnt) {
        learnt = in_another_form(spec, children, &job, deadline, stop)
            .await
            .or(learnt);
    }
    let store = store.clone();
    blocking(move || {
        // A folder that cannot be removed now is garbage that the collector gets later.
        let _ = store.discard(&lease);
    })
    .await;
    learnt
}

/// Whether the server said nothing at all to us.
fn is_unheard(learnt: &Result<Learnt, LearnError>) -> bool {
    match learnt {
        Err(LearnError::Child(ChildError::NotStarted { refused, .. })) => !refused,
        _ => false,
    }
}

/// A server that is silent, or dies, at the first words of older revisions may speak 2026-07-28
/// alone. One that answers those words now was only slow the first time.
async fn in_another_form(
    spec: &Arc<ServerSpec>,
    children: &Children,
    job: &Job,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Learnt, LearnError> {
    let soon = || deadline.min(Instant::now() + PROBE);
    let ask_in = async |profile| {
        let deadline = soon();
        let request = request(spec, job, profile, deadline);
        let started = children.try_revision(request, stop).await;
        ask(started, job, spec, deadline, stop).await
    };
    let modern = ask_in(Profile::modern()).await?;
    let legacy = ask_in(Profile::silent()).await;
    if !is_unheard(&legacy) {
        return legacy;
    }
    children.speaks_modern_only(spec);
    Ok(modern)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("looking at files does not panic")
}

/// Leased, so that the collector does not take it from under a child that is slow to answer.
fn throw_away(store: &ChatStore, server: ServerName) -> Result<Held, StoreError> {
    store.create(&NewChat {
        principal: PrincipalHash::from(&Principal::Anonymous),
        servers: vec![server],
    })
}

/// Finds out whether the server speaks 2026-07-28. Servers pin a process to what they hear first,
/// so this needs one of its own; old ones may stay silent.
pub async fn probe(
    spec: &Arc<ServerSpec>,
    children: &Children,
    store: &Arc<ChatStore>,
    stop: &CancellationToken,
) -> Option<RawJson> {
    let (keeper, server) = (store.clone(), spec.name.clone());
    let made = blocking(move || throw_away(&keeper, server)).await;
    let Held { job, lease, .. } = made.ok()?;
    let request = request(spec, &job, Profile::modern(), Instant::now() + PROBE);
    let found = match children.try_revision(request, stop).await {
        Ok(child) => {
            let found = child.hello().raw.clone();
            child.end(End::Kill).await;
            Some(found)
        }
        Err(_) => None,
    };
    let keeper = store.clone();
    blocking(move || {
        // A folder that cannot be removed now is garbage that the collector gets later.
        let _ = keeper.discard(&lease);
    })
    .await;
    found
}

/// A child of the catalogue's own.
fn request(spec: &Arc<ServerSpec>, job: &Job, profile: Profile, deadline: Instant) -> ChildRequest {
    ChildRequest {
        spec: spec.clone(),
        job: job.clone(),
        profile,
        user: UserValues::default(),
        tenant: Tenant::bridge(),
        deadline,
        listener: Arc::new(|_| {}),
    }
}

/// Asks a child, and ends it.
async fn ask(
    started: Result<Child, ChildError>,
    job: &Job,
    spec: &ServerSpec,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Learnt, LearnError> {
    let child = Arc::new(started?);
    let hello = child.hello();
    let modern = OnceLock::new();
    if hello.era == Era::Modern {
        let _ = modern.set(hello.raw.clone());
    }
    let (era, hello_raw) = (hello.era, hello.initialized(spec.name.as_str()));
    let (hello, of_hello) = HelloParts::read(&hello_raw);
    let listing = tokio::time::timeout_at(deadline, lists(&child, job, &hello));
    let lists = stop.run_until_cancelled(listing).await;
    let (measured, work) = (child.clone(), job.work());
    let (memory, wrote_files) = blocking(move || {
        let files = std::fs::read_dir(work);
        let wrote = files.is_ok_and(|mut files| files.next().is_some());
        (measured.memory(), wrote)
    })
    .await;
    child.end(End::Kill).await;
    let lists = lists.and_then(Result::ok);
    let lists = lists.unwrap_or(Err(ChildError::Timeout.into()))?;
    let mut odd = Faults::default();
    of_hello
        .into_iter()
        .chain(lists.odd)
        .for_each(|fault| odd.push(fault));
    Ok(Learnt {
        hello,
        hello_raw,
        era,
        modern,
        tools: lists.tools,
        prompts: lists.prompts,
        resources: lists.resources,
        templates: lists.templates,
        memory,
        wrote_files,
        odd: odd.text(),
    })
}

/// What the server lists.
struct Lists {
    tools: Vec<Tool>,
    prompts: Vec<RawJson>,
    resources: Vec<RawJson>,
    templates: Vec<RawJson>,
    odd: Vec<String>,
}

async fn lists(child: &Child, job: &Job, hello: &HelloParts) -> Result<Lists, LearnError> {
    let listed = all_pages(child, method::TOOLS_LIST, "tools", job).await?;
    let mut odd = listed.odd;
    let mut tools: Vec<Tool> = Vec::new();
    let (mut names, mut nameless, mut again) = (HashSet::new(), 0, 0);
    for item in &listed.items {
        match Tool::read_raw(item) {
            Some(tool) if names.insert(tool.name.clone()) => tools.push(tool),
            Some(_) => again += 1,
            None => nameless += 1,
        }
    }
    for (many, what) in [(nameless, "unnamed"), (again, "duplicate names")] {
        if many > 0 {
            odd.push(format!("tools/list: {many} tools omitted ({what})"));
        }
    }
    // Only tools are needed: a server that fails at what it offers beside them still serves.
    let mut beside = async |capability: &str, method: &str, key: &str| {
        if !hello.capabilities.contains_key(capability) {
            return Vec::new();
        }
        let pages = all_pages(child, method, key, job).await;
        let pages = pages.unwrap_or_default();
        odd.extend(pages.odd);
        pages.items
    };
    let prompts = beside("prompts", method::PROMPTS_LIST, "prompts").await;
    let resources = beside("resources", method::RESOURCES_LIST, "resources").await;
    let templates = beside(
        "resources",
        method::RESOURCES_TEMPLATES_LIST,
        "resourceTemplates",
    )
    .await;
    Ok(Lists {
        tools,
        prompts,
        resources,
        templates,
        odd,
    })
}

// A list of a server's, all pages of it, each item as it came.

/// Pages that are read; a server with more is not honest.
const MAX_PAGES: usize = 1000;

/// What came of a list.
#[derive(Default)]
pub struct Pages {
    /// Each item once.
    pub items: Vec<RawJson>,
    /// What an operator should know of it.
    pub odd: Vec<String>,
}

/// Asks `method` until there are no more pages, and gathers what lies under `key`. The first page must
/// be there; what is odd after it costs nothing but itself.
async fn all_pages(child: &Child, method: &str, key: &str, job: &Job) -> Result<Pages, LearnError> {
    let mut pages = Pages::default();
    let mut seen = HashSet::new();
    let mut cursors = HashSet::new();
    let mut cursor: Option<RawJson> = None;
    for number in 1.. {
        let params = match &cursor {
            Some(next) => RawJson::empty_object().with_member("cursor", next),
            None => RawJson::empty_object(),
        };
        let page = match child.request(method, Some(&params)).await? {
            Ok(page) => page,
            Err(error) => {
                let said = relative_text(error.as_str(), &job.paths());
                if number == 1 {
                    return Err(LearnError::Refused(said));
                }
                let what =
                    format!("{method}: page {number} is an error; the remaining items are omitted");
                pages.odd.push(what);
                break;
            }
        };
        if page.members().is_none() {
            if number == 1 {
                return Err(LearnError::BadList);
            }
            pages
                .odd
                .push(format!("{method}: page {number} is not an object"));
            break;
        }
        match page.member(key).map(|list| list.elements()) {
            Some(Some(list)) => pages
                .items
                .extend(list.into_iter().filter(|item| seen.insert(item.clone()))),
            Some(None) => pages.odd.push(format!("{method}: \"{key}\" is not a list")),
            None => pages.odd.push(format!("{method}: \"{key}\" is missing")),
        }
        let Some(next) = next_cursor(&page) else {
            break;
        };
        if let Some(why) = next.odd {
            pages.odd.push(format!("{method}: nextCursor {why}"));
        }
        let Some(next) = next.cursor else {
            break;
        };
        // One that came before would go on for ever.
        if !cursors.insert(next.clone()) {
            if cursor.as_ref() != Some(&next) {
                pages.odd.push(format!(
                    "{method}: a nextCursor occurs twice; the remaining items are omitted"
                ));
            }
            break;
        }
        if number == MAX_PAGES {
            let what =
                format!("{method}: more than {MAX_PAGES} pages; the remaining items are omitted");
            pages.odd.push(what);
            break;
        }
        cursor = Some(next);
    }
    Ok(pages)
}

struct Next {
    cursor: Option<RawJson>,
    odd: Option<&'static str>,
}

/// What the next page is asked for by. A number goes back as it came: who writes one reads one.
fn next_cursor(page: &RawJson) -> Option<Next> {
    let cursor = page.member("nextCursor")?;
    Some(match cursor.as_bytes().first()? {
        b'"' => Next {
            cursor: Some(cursor),
            odd: None,
        },
        b'0'..=b'9' | b'-' => Next {
            cursor: Some(cursor),
            odd: Some("is a number, not a string"),
        },
        b'n' | b'f' => return None,
        _ => Next {
            cursor: None,
            odd: Some("has the wrong type; the remaining pages are omitted"),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bridge_state::testing::{Folder, later, sweep_at};

    use super::*;

    #[test]
    fn the_collector_leaves_the_folder_of_a_child_that_is_asked() {
        let folder = Folder::new();
        let store = folder.open();
        let held = throw_away(&store, "excel".parse().unwrap()).unwrap();
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
            let next = next_cursor(&RawJson::parse(page.into()).unwrap()).unwrap();
            let found = (next.cursor.is_some(), next.odd.is_some());
            assert_eq!(found, (goes_on, is_odd), "{cursor}");
        }
        for end in ["{}", r#"{"nextCursor":null}"#, r#"{"nextCursor":false}"#] {
            assert!(next_cursor(&RawJson::parse(end.into()).unwrap()).is_none());
        }
    }
}
