//! What the endpoint of all servers offers: the servers' lists joined, and the way back from each
//! name to its server.

use std::{collections::HashMap, sync::Arc};

use bridge_model::ServerName;
use bridge_protocol::{RawJson, jsonrpc::splice, method};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::{
    names::Namer,
    uris::{self, Owner, Uris},
};
use crate::{
    catalog::{Item, Offer},
    config::Loaded,
    mcp::lists::exchange,
};

/// Views that are kept: one for each set of servers that some caller may use.
const KEPT: usize = 16;

/// Several servers as one. Made once for what they offer at a time.
pub struct View {
    config: Arc<Loaded>,
    /// The servers that are known, in the order of the config.
    pub offers: Vec<Arc<Offer>>,
    tools: HashMap<String, Named>,
    prompts: HashMap<String, Named>,
    uris: Uris,
    lists: Lists,
    marks: Marks,
}

/// Something that one server offers, by its name at the endpoint.
struct Named {
    server: usize,
    /// As the server spells it.
    own: Box<str>,
}

#[derive(Default)]
struct Lists {
    tools: Vec<RawJson>,
    prompts: Vec<RawJson>,
    resources: Vec<RawJson>,
    templates: Vec<RawJson>,
}

/// Hashes of the lists, to see which of them changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Of the tools.
    pub tools: [u8; 32],
    /// Of the prompts.
    pub prompts: [u8; 32],
    /// Of resources and templates.
    pub resources: [u8; 32],
}

impl View {
    fn of(config: Arc<Loaded>, offers: Vec<Arc<Offer>>) -> Self {
        let uris = all_uris(&offers);
        let mut view = Self {
            config,
            offers,
            tools: HashMap::new(),
            prompts: HashMap::new(),
            uris,
            lists: Lists::default(),
            marks: Marks {
                tools: [0; 32],
                prompts: [0; 32],
                resources: [0; 32],
            },
        };
        for server in 0..view.offers.len() {
            view.add(server);
        }
        let lists = &view.lists;
        view.marks = Marks {
            tools: mark(&[&lists.tools]),
            prompts: mark(&[&lists.prompts]),
            resources: mark(&[&lists.resources, &lists.templates]),
        };
        view
    }

    fn add(&mut self, server: usize) {
        let (offer, config) = (self.offers[server].clone(), self.config.clone());
        let namer = Namer::new(&offer.spec.name, config.servers.keys());
        let listed = offer.listed();
        for tool in &listed.tools {
            let name = name(&mut self.tools, &namer, server, &tool.own);
            let tool = renamed(&tool.raw, "name", &name);
            self.lists.tools.push(tool_shown(self, server, tool));
        }
        for prompt in &listed.prompts {
            let name = name(&mut self.prompts, &namer, server, &prompt.own);
            self.lists.prompts.push(renamed(&prompt.raw, "name", &name));
        }
        for resource in &listed.resources {
            let listed = self.with_uri(server, resource, "uri");
            self.lists.resources.push(listed);
        }
        for template in &listed.templates {
            let listed = self.with_uri(server, template, "uriTemplate");
            self.lists.templates.push(listed);
        }
    }

    fn with_uri(&self, server: usize, item: &Item, key: &str) -> RawJson {
        let other = self.other_uri(server, &item.own);
        other.map_or_else(|| item.raw.clone(), |uri| renamed(&item.raw, key, &uri))
    }

    /// The URI that stands for a server's `own` here; `None` where it stays as it is, because it
    /// leads back to this server.
    pub fn other_uri(&self, server: usize, own: &str) -> Option<String> {
        // What is no URI by itself (no scheme) is one with its server's name in front.
        let stays = self.uris.owner(own) == Owner::One(server)
            && uris::read_named(own).is_none()
            && uris::has_scheme(own);
        let name = &self.offers.get(server)?.spec.name;
        (!stays).then(|| uris::named(name, own))
    }

    /// Whose tool this is, and how the server spells it.
    pub fn tool(&self, name: &str) -> Option<(usize, String)> {
        find(&self.tools, name).or_else(|| self.unlisted(name))
    }

    /// A tool that only a session's own child knows, where lists depend on the session.
    fn unlisted(&self, name: &str) -> Option<(usize, String)> {
        let mut offers = self.offers.iter().enumerate();
        offers.find_map(|(server, offer)| {
            let spec = &offer.spec;
            let own = name
                .strip_prefix(spec.name.as_str())?
                .strip_prefix('_')
                .filter(|own| spec.session_lists && offer.may_call(own))?;
            let named = Namer::new(&spec.name, self.config.servers.keys()).name(own);
            (named == name).then(|| (server, own.to_owned()))
        })
    }

    /// Whose prompt this is, and how the server spells it.
    pub fn prompt(&self, name: &str) -> Option<(usize, String)> {
        find(&self.prompts, name)
    }

    /// Whose URI this is, which does not name its server.
    pub fn owner(&self, uri: &str) -> Owner {
        self.uris.owner(uri)
    }

    /// The place of a server that is known.
    pub fn place(&self, server: &str) -> Option<usize> {
        let is = |offer: &Arc<Offer>| offer.spec.name.as_str() == server;
        self.offers.iter().position(is)
    }

    /// The names of these servers.
    pub fn names(&self, servers: &[usize]) -> impl Iterator<Item = &ServerName> {
        let offers = servers.iter().filter_map(|server| self.offers.get(*server));
        offers.map(|offer| &offer.spec.name)
    }

    /// The result of a list method, all of it in one page; `None` for other methods.
    pub fn list(&self, method: &str) -> Option<RawJson> {
        let (key, items) = match method {
            method::TOOLS_LIST => ("tools", &self.lists.tools),
            method::PROMPTS_LIST => ("prompts", &self.lists.prompts),
            method::RESOURCES_LIST => ("resources", &self.lists.resources),
            method::RESOURCES_TEMPLATES_LIST => ("resourceTemplates", &self.lists.templates),
            _ => return None,
        };
        let items: Vec<&str> = items.iter().map(RawJson::as_str).collect();
        let text = format!(r#"{{"{key}":[{}]}}"#, items.join(","));
        RawJson::parse(text.into()).ok()
    }

    /// To see which lists changed since.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    fn is_of(&self, config: &Arc<Loaded>, offers: &[Arc<Offer>]) -> bool {
        let same = |(one, other)| Arc::ptr_eq(one, other);
        Arc::ptr_eq(&self.config, config)
            && self.offers.len() == offers.len()
            && self.offers.iter().zip(offers).all(same)
    }
}

impl View {
    /// Both are of one time: of one config, and of one state of each server that both have.
    fn may_be_asked_for_beside(&self, newer: &Self) -> bool {
        let same = |offer: &Arc<Offer>| {
            let place = newer.place(offer.spec.name.as_str());
            place.is_none_or(|place| Arc::ptr_eq(&newer.offers[place], offer))
        };
        Arc::ptr_eq(&self.config, &newer.config) && self.offers.iter().all(same)
    }
}

/// A tool as it is listed: it may name a resource that shows its results.
fn tool_shown(view: &View, server: usize, tool: RawJson) -> RawJson {
    let Some(meta) = tool.member("_meta") else {
        return tool;
    };
    let nested = meta.member("ui").and_then(|ui| ui.member("resourceUri"));
    let places: Vec<RawJson> = nested
        .into_iter()
        .chain(meta.member("ui/resourceUri"))
        .collect();
    let line = tool.clone().into_bytes();
    exchanged(view, server, &line, &places)
        .and_then(|line| RawJson::parse(line).ok())
        .unwrap_or(tool)
}

/// The line with other URIs at these places; `None` where all of them stay.
pub fn exchanged(
    view: &View,
    server: usize,
    line: &bytes::Bytes,
    places: &[RawJson],
) -> Option<bytes::Bytes> {
    let mut edits = Vec::new();
    for place in places {
        let Ok(own) = place.read::<String>() else {
            continue;
        };
        // Clients fetch these from the web by themselves.
        let from_web = own.starts_with("https://") || own.starts_with("http://");
        if let Some(other) = (!from_web).then(|| view.other_uri(server, &own)).flatten() {
            edits.push((place, RawJson::of(&other.into())));
        }
    }
    let edits: Vec<_> = edits
        .iter()
        .map(|(place, uri)| (*place, uri.as_bytes()))
        .collect();
    (!edits.is_empty()).then(|| splice(line, &edits))
}

fn all_uris(offers: &[Arc<Offer>]) -> Uris {
    let mut uris = Uris::default();
    for (server, offer) in offers.iter().enumerate() {
        if offer.learnt.hello.capabilities.contains_key("resources") {
            uris.server(server);
        }
        let listed = offer.listed();
        for resource in &listed.resources {
            uris.resource(server, &resource.own);
        }
        for template in &listed.templates {
            uris.template(server, &template.own);
        }
    }
    uris
}

/// A name that is nobody else's.
fn name(taken: &mut HashMap<String, Named>, namer: &Namer<'_>, server: usize, own: &str) -> String {
    let mut name = namer.name(own);
    let mut turn = 0;
    while taken.contains_key(&name) {
        turn += 1;
        name = namer.changed(own, turn);
    }
    let own = own.into();
    taken.insert(name.clone(), Named { server, own });
    name
}

fn find(names: &HashMap<String, Named>, name: &str) -> Option<(usize, String)> {
    let found = names.get(name)?;
    Some((found.server, (*found.own).to_owned()))
}

fn renamed(item: &RawJson, key: &str, value: &str) -> RawJson {
    let place = item.member(key);
    let value = RawJson::of(&value.into());
    place.map_or_else(|| item.clone(), |place| exchange(item, &place, &value))
}

fn mark(lists: &[&Vec<RawJson>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for item in lists.iter().copied().flatten() {
        hash.update((item.as_bytes().len() as u64).to_be_bytes());
        hash.update(item.as_bytes());
    }
    hash.finalize().into()
}

/// The views of this bridge.
#[derive(Default)]
pub struct Views(Mutex<Vec<Arc<View>>>);

impl Views {
    /// The view of these servers, made if it is new.
    pub fn view(&self, config: &Arc<Loaded>, offers: &[Arc<Offer>]) -> Arc<View> {
        let known = |views: &[Arc<View>]| {
            let found = views.iter().find(|view| view.is_of(config, offers));
            found.cloned()
        };
        if let Some(view) = known(&self.lock()) {
            return view;
        }
        let made = Arc::new(View::of(config.clone(), offers.to_vec()));
        let mut views = self.lock();
        // Somebody else may have made it meanwhile.
        if let Some(view) = known(&views) {
            return view;
        }
        views.retain(|view| view.may_be_asked_for_beside(&made));
        if views.len() >= KEPT {
            views.remove(0);
        }
        views.push(made.clone());
        made
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Vec<Arc<View>>> {
        self.0.lock()
    }
}
