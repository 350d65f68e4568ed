//! Several servers as one: their lists joined, names and URIs that identify their servers.

use std::{collections::HashMap, sync::Arc};

use bridge_model::{ServerName, hex};
use bridge_protocol::{
    RawJson,
    jsonrpc::{Reply, Said, splice},
    method,
};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use regex::Regex;
use sha2::{Digest as _, Sha256};

use super::lists::page;
use crate::{
    catalog::{Item, Offer, completion},
    config::Loaded,
};

// Names at the endpoint of all servers: `{server}_{name}`, in the form that model APIs accept.
//
// A name depends on its server, on itself and on which servers are configured, never on what other
// servers offer or whether they run: a stored name keeps its meaning when another server is added, fails
// or changes.

/// Model APIs accept names of up to 64 characters of `[A-Za-z0-9_-]`.
const LONGEST: usize = 64;

/// Hexadecimal digits at the end of a name that had to be changed.
const DIGITS: usize = 8;

/// How much of a server's name is in a changed name, if the tool's name is long too.
const SERVER_PART: usize = 27;

/// Makes the names of one server's tools and prompts.
struct Namer<'a> {
    server: &'a ServerName,
    /// Prefixes of other servers' tool names that begin with this server's prefix.
    rivals: Vec<String>,
}

impl<'a> Namer<'a> {
    /// A namer for `server`, given the names of all configured servers.
    pub fn new<'b>(
        server: &'a ServerName,
        configured: impl Iterator<Item = &'b ServerName>,
    ) -> Self {
        let own = format!("{server}_");
        let prefixes = configured.map(|other| format!("{other}_"));
        Self {
            server,
            rivals: prefixes
                .filter(|other| other.starts_with(&own) && *other != own)
                .collect(),
        }
    }

    /// The name, at the endpoint of all servers, of the server's `own` name.
    pub fn name(&self, own: &str) -> String {
        let plain = format!("{}_{own}", self.server);
        if self.stays(&plain) {
            plain
        } else {
            self.changed(own, 0)
        }
    }

    /// Whether a plain name identifies its server, and cannot be confused with a changed name.
    fn stays(&self, plain: &str) -> bool {
        plain.len() <= LONGEST
            && plain.bytes().all(is_usual)
            && !ends_in_digits(plain)
            && !self.rivals.iter().any(|rival| plain.starts_with(rival))
    }

    /// The shortened names of server and tool, and a hash of them. `turn` changes the hash, in case of a
    /// collision.
    pub fn changed(&self, own: &str, turn: u32) -> String {
        let mut hash = Sha256::new();
        for part in [self.server.as_str(), own] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(turn.to_be_bytes());
        let digits = hex(&hash.finalize()[..DIGITS / 2]);
        let server = server_part(self.server);
        let room = LONGEST - DIGITS - server.len() - 2;
        let own = usual(own);
        let own = &own[..own.len().min(room)];
        format!("{server}_{own}_{digits}")
    }
}

/// Whether `name` may be a name of this server.
pub fn may_be_of(server: &ServerName, name: &str) -> bool {
    let part = server_part(server);
    let mut starts = [server.as_str(), &part].into_iter();
    starts.any(|start| {
        name.strip_prefix(start)
            .is_some_and(|rest| rest.starts_with('_'))
    })
}

/// The common prefix of all names of this server.
pub fn beginning(server: &ServerName) -> String {
    let part = server_part(server);
    // Plain names contain the rest of a long server name.
    let long = part.len() == SERVER_PART;
    if long { part } else { format!("{part}_") }
}

fn server_part(server: &ServerName) -> String {
    let mut part = usual(server.as_str());
    part.truncate(SERVER_PART);
    part
}

fn is_usual(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// The text with one `_` for each run of other characters.
fn usual(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut replaced = false;
    for c in text.chars() {
        let fits = c.is_ascii() && is_usual(c as u8);
        if fits {
            out.push(c);
        } else if !replaced {
            out.push('_');
        }
        replaced = !fits;
    }
    out
}

fn ends_in_digits(name: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let end = name.rsplit_once('_');
    end.is_some_and(|(_, end)| end.len() == DIGITS && end.bytes().all(is_digit))
}

// URIs in messages of servers: a URI that would not identify its server is replaced by one that names the
// server. Most lines contain none, and stay unchanged.

/// The URIs of one server's resources at the endpoint of all servers.
#[derive(Clone)]
pub struct UriMapping {
    view: Arc<View>,
    server: usize,
}

impl UriMapping {
    /// For the server at this index of the view.
    pub fn new(view: Arc<View>, server: usize) -> Self {
        Self { view, server }
    }

    /// Replaces URIs in a result of the server.
    pub fn reply(&self, reply: Reply) -> Reply {
        let Ok(result) = &reply.outcome else {
            return reply;
        };
        let places = in_result(result);
        let line = exchanged(&self.view, self.server, &reply.line, &places);
        line.and_then(|line| Reply::read(&line)).unwrap_or(reply)
    }

    /// Replaces URIs in the server's result of `completion/complete`.
    pub fn completion(reply: Reply) -> Reply {
        let Ok(result) = &reply.outcome else {
            return reply;
        };
        let mended = completion(result);
        if mended == *result {
            return reply;
        }
        let line = splice(&reply.line, &[(result, mended.as_bytes())]);
        Reply::read(&line).unwrap_or(reply)
    }

    /// A notification of the server, as a line.
    pub fn note(&self, said: &Said) -> bytes::Bytes {
        let updated = &*said.method == method::RESOURCE_UPDATED;
        let place = said.param(&["uri"]).filter(|_| updated);
        let line = exchanged(&self.view, self.server, &said.line, place.as_slice());
        line.unwrap_or_else(|| said.line.clone())
    }
}

/// The places in a result with URIs that its reader may request: links in a tool's result and in a prompt's
/// messages, and the contents of a read.
fn in_result(result: &RawJson) -> Vec<RawJson> {
    let holds = |text: &str| memchr::memmem::find(result.as_bytes(), text.as_bytes()).is_some();
    let mut places = Vec::new();
    if holds("resource_link") {
        places.extend(items(result, "content").iter().filter_map(link));
        let messages = items(result, "messages");
        let contents = messages.iter().filter_map(|it| it.member("content"));
        places.extend(contents.filter_map(|it| link(&it)));
    }
    if holds("\"contents\"") {
        let read = items(result, "contents");
        places.extend(read.iter().filter_map(|it| it.member("uri")));
    }
    places
}

fn link(block: &RawJson) -> Option<RawJson> {
    let kind: String = block.member("type")?.read().ok()?;
    block.member("uri").filter(|_| kind == "resource_link")
}

/// The items of a member that is an array.
fn items(object: &RawJson, key: &str) -> Vec<RawJson> {
    let list = object.member(key);
    list.and_then(|list| list.elements()).unwrap_or_default()
}

// The server of a resource: URIs stay as their servers spell them if they identify the server, and become
// `mcpo:{server}/{uri}` otherwise.

/// The prefix of URIs that name their server.
const SCHEME: &str = "mcpo:";

/// RFC 3986's unreserved characters stay.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A longer template is not matched; URIs of it must name their server.
const LONGEST_TEMPLATE: usize = 2000;

/// Maximum number of templates of one server that are matched; URIs of the others must name their server.
/// Each costs time for every URI that is resolved.
const MATCHED: usize = 200;

/// Whether the text is an absolute URI, not a path or name.
fn has_scheme(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| {
        let usual = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(usual)
    })
}

/// The URI with its server's name.
pub fn named_uri(server: &ServerName, uri: &str) -> String {
    let server = utf8_percent_encode(server.as_str(), ENCODED);
    format!("{SCHEME}{server}/{uri}")
}

/// The server that a URI names, and the URI at that server.
pub fn read_named_uri(uri: &str) -> Option<(String, &str)> {
    let (server, own) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let server = percent_decode_str(server).decode_utf8().ok()?;
    Some((server.into_owned(), own))
}

/// The resources of several servers, each identified by its index in a list.
#[derive(Default)]
struct Uris {
    listed: HashMap<String, Vec<usize>>,
    /// Templates by their text.
    templates: HashMap<String, Vec<usize>>,
    matched: Vec<Template>,
    servers: Vec<usize>,
}

struct Template {
    server: usize,
    matches: Regex,
    /// Characters outside of its expressions: the template with the most of them is the most specific one.
    literal: usize,
}

impl Uris {
    /// Adds a resource template. All templates of one server must be added one after the other.
    pub fn template(&mut self, server: usize, text: &str) {
        note(&mut self.templates, server, text);
        let own = self.matched.iter().rev();
        let own = own.take_while(|known| known.server == server).count();
        if text.len() > LONGEST_TEMPLATE || own >= MATCHED {
            return;
        }
        let (pattern, literal) = pattern(text);
        if let Ok(matches) = Regex::new(&pattern) {
            self.matched.push(Template {
                server,
                matches,
                literal,
            });
        }
    }

    /// The servers that may own a URI, one if it is clear: those that list it; else those that have it as a
    /// template; else those with the most specific template that matches; else all that have resources.
    pub fn owners(&self, uri: &str) -> Vec<usize> {
        let known = self.listed.get(uri).or_else(|| self.templates.get(uri));
        if let Some(servers) = known {
            return servers.clone();
        }
        let fits = |known: &&Template| known.matches.is_match(uri);
        let fitting: Vec<&Template> = self.matched.iter().filter(fits).collect();
        let Some(most) = fitting.iter().map(|known| known.literal).max() else {
            return self.servers.clone();
        };
        let best = fitting.iter().filter(|known| known.literal == most);
        let mut best: Vec<usize> = best.map(|known| known.server).collect();
        // One server's templates are adjacent.
        best.dedup();
        best
    }
}

/// Must be called in the order of the servers.
fn note(known: &mut HashMap<String, Vec<usize>>, server: usize, text: &str) {
    let servers = known.entry(text.to_owned()).or_default();
    if servers.last() != Some(&server) {
        servers.push(server);
    }
}

/// The regular expression for the expansions of an RFC 6570 template, and the number of its literal
/// characters. `{name}` matches within one segment; expressions with an operator match any text.
fn pattern(template: &str) -> (String, usize) {
    let (mut pattern, mut literal) = ("^".to_owned(), 0);
    let mut rest = template;
    while let Some((before, expression)) = rest.split_once('{') {
        let Some((expression, after)) = expression.split_once('}') else {
            break;
        };
        literal += before.len();
        pattern.push_str(&regex::escape(before));
        let operator = expression.starts_with(['+', '#', '.', '/', ';', '?', '&']);
        pattern.push_str(if operator { ".*" } else { "[^/?#]*" });
        rest = after;
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push('$');
    (pattern, literal + rest.len())
}

// The offer of the endpoint of all servers: the servers' lists joined, and the mapping from each name to
// its server.

/// Maximum number of cached views: one for each set of servers that some caller may use.
const KEPT: usize = 16;

/// Several servers as one: a snapshot of their offers.
pub struct View {
    config: Arc<Loaded>,
    /// The servers that are known, in the order of the config.
    pub offers: Vec<Arc<Offer>>,
    tools: Names,
    prompts: Names,
    uris: Uris,
    lists: Lists,
    /// To determine which lists have changed since.
    pub hashes: ListHashes,
}

/// Tools or prompts by their name at the endpoint: the server, and the name there.
type Names = HashMap<String, (usize, String)>;

#[derive(Default)]
struct Lists {
    tools: Vec<RawJson>,
    prompts: Vec<RawJson>,
    resources: Vec<RawJson>,
    templates: Vec<RawJson>,
}

/// The notifications of the lists, in the order of [`ListHashes`].
pub const LISTS: [&str; 3] = [
    method::TOOLS_CHANGED,
    method::PROMPTS_CHANGED,
    method::RESOURCES_CHANGED,
];

/// Hashes of the lists, to determine which of them changed.
pub type ListHashes = [[u8; 32]; LISTS.len()];

impl View {
    fn build(config: Arc<Loaded>, offers: Vec<Arc<Offer>>) -> Self {
        let uris = all_uris(&offers);
        let mut view = Self {
            config,
            offers,
            tools: HashMap::new(),
            prompts: HashMap::new(),
            uris,
            lists: Lists::default(),
            hashes: ListHashes::default(),
        };
        for server in 0..view.offers.len() {
            view.add(server);
        }
        let lists = &view.lists;
        view.hashes = [
            list_hash(&[&lists.tools]),
            list_hash(&[&lists.prompts]),
            list_hash(&[&lists.resources, &lists.templates]),
        ];
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

    /// The URI to use here for a server's `own` URI; `None` if it stays unchanged, because it identifies
    /// this server.
    pub fn other_uri(&self, server: usize, own: &str) -> Option<String> {
        // A URI without a scheme gets its server's name as a prefix.
        let stays =
            self.uris.owners(own) == [server] && read_named_uri(own).is_none() && has_scheme(own);
        let name = &self.offers.get(server)?.spec.name;
        (!stays).then(|| named_uri(name, own))
    }

    /// The server of a tool, and the tool's name there.
    pub fn tool(&self, name: &str) -> Option<(usize, String)> {
        let listed = self.tools.get(name).cloned();
        listed.or_else(|| self.unlisted(name))
    }

    /// A tool that only a session's own child lists, if lists depend on the session.
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

    /// The server of a prompt, and the prompt's name there.
    pub fn prompt(&self, name: &str) -> Option<(usize, String)> {
        self.prompts.get(name).cloned()
    }

    /// The servers that may own a URI that does not name its server.
    pub fn owners(&self, uri: &str) -> Vec<usize> {
        self.uris.owners(uri)
    }

    /// The index of a server that is known.
    pub fn position(&self, server: &str) -> Option<usize> {
        let is = |offer: &Arc<Offer>| offer.spec.name.as_str() == server;
        self.offers.iter().position(is)
    }

    /// The names of these servers.
    pub fn names(&self, servers: &[usize]) -> impl Iterator<Item = &ServerName> {
        let offers = servers.iter().filter_map(|server| self.offers.get(*server));
        offers.map(|offer| &offer.spec.name)
    }

    /// The result of a list method, as a single page; `None` for other methods.
    pub fn list(&self, method: &str) -> Option<RawJson> {
        let (key, items) = match method {
            method::TOOLS_LIST => ("tools", &self.lists.tools),
            method::PROMPTS_LIST => ("prompts", &self.lists.prompts),
            method::RESOURCES_LIST => ("resources", &self.lists.resources),
            method::RESOURCES_TEMPLATES_LIST => ("resourceTemplates", &self.lists.templates),
            _ => return None,
        };
        Some(page(key, items.iter()))
    }

    fn is_of(&self, config: &Arc<Loaded>, offers: &[Arc<Offer>]) -> bool {
        let same = |(one, other)| Arc::ptr_eq(one, other);
        Arc::ptr_eq(&self.config, config)
            && self.offers.len() == offers.len()
            && self.offers.iter().zip(offers).all(same)
    }

    /// Whether both have the same config, and the same offer of each server that is in both.
    fn may_be_used_with(&self, newer: &Self) -> bool {
        let same = |offer: &Arc<Offer>| {
            let place = newer.position(offer.spec.name.as_str());
            place.is_none_or(|place| Arc::ptr_eq(&newer.offers[place], offer))
        };
        Arc::ptr_eq(&self.config, &newer.config) && self.offers.iter().all(same)
    }
}

/// A tool for the joined list: its metadata may name a resource that shows its results.
fn tool_shown(view: &View, server: usize, tool: RawJson) -> RawJson {
    let Some(meta) = tool.member("_meta") else {
        return tool;
    };
    let nested = meta.at(&["ui", "resourceUri"]).into_iter();
    let places: Vec<RawJson> = nested.chain(meta.member("ui/resourceUri")).collect();
    let line = exchanged(view, server, &tool.clone().into_bytes(), &places);
    let changed = line.and_then(|line| RawJson::parse(line).ok());
    changed.unwrap_or(tool)
}

/// The line with the URIs at these places replaced; `None` if all of them stay.
pub fn exchanged(
    view: &View,
    server: usize,
    line: &bytes::Bytes,
    places: &[RawJson],
) -> Option<bytes::Bytes> {
    let others = places.iter().filter_map(|place| {
        let own: String = place.read().ok()?;
        // Clients fetch these directly from the web.
        let from_web = own.starts_with("https://") || own.starts_with("http://");
        let other = view.other_uri(server, &own).filter(|_| !from_web)?;
        Some((place, RawJson::from_json(&other.into())))
    });
    let others: Vec<_> = others.collect();
    let edits = others.iter().map(|(place, uri)| (*place, uri.as_bytes()));
    (!others.is_empty()).then(|| splice(line, &edits.collect::<Vec<_>>()))
}

fn all_uris(offers: &[Arc<Offer>]) -> Uris {
    let mut uris = Uris::default();
    for (server, offer) in offers.iter().enumerate() {
        if offer.learnt.hello.capabilities.contains_key("resources") {
            uris.servers.push(server);
        }
        let listed = offer.listed();
        for resource in &listed.resources {
            note(&mut uris.listed, server, &resource.own);
        }
        for template in &listed.templates {
            uris.template(server, &template.own);
        }
    }
    uris
}

/// A name that is not taken by another tool or prompt.
fn name(taken: &mut Names, namer: &Namer<'_>, server: usize, own: &str) -> String {
    let mut name = namer.name(own);
    let mut turn = 0;
    while taken.contains_key(&name) {
        turn += 1;
        name = namer.changed(own, turn);
    }
    taken.insert(name.clone(), (server, own.to_owned()));
    name
}

fn renamed(item: &RawJson, key: &str, value: &str) -> RawJson {
    match item.member(key) {
        Some(place) => item.exchange(&place, &RawJson::from_json(&value.into())),
        None => item.clone(),
    }
}

fn list_hash(lists: &[&Vec<RawJson>]) -> [u8; 32] {
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
    /// The view of these servers, from the cache or built now.
    pub fn view(&self, config: &Arc<Loaded>, offers: &[Arc<Offer>]) -> Arc<View> {
        let same = |view: &&Arc<View>| view.is_of(config, offers);
        if let Some(view) = self.0.lock().iter().find(same) {
            return view.clone();
        }
        let made = Arc::new(View::build(config.clone(), offers.to_vec()));
        let mut views = self.0.lock();
        // Another request may have built it meanwhile.
        if let Some(view) = views.iter().find(same) {
            return view.clone();
        }
        views.retain(|view| view.may_be_used_with(&made));
        if views.len() >= KEPT {
            views.remove(0);
        }
        views.push(made.clone());
        made
    }
}

#[cfg(test)]
mod names_tests {
    use proptest::prelude::*;

    use super::*;

    fn name(server: &str, own: &str, configured: &[&str]) -> String {
        let server: ServerName = server.parse().unwrap();
        let all: Vec<ServerName> = configured
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        Namer::new(&server, all.iter()).name(own)
    }

    #[test]
    fn usual_names_stay() {
        assert_eq!(
            name("excel", "write_range", &["excel", "word"]),
            "excel_write_range"
        );
        let longest = "x".repeat(64 - "excel_".len());
        assert_eq!(
            name("excel", &longest, &["excel"]),
            format!("excel_{longest}")
        );
    }

    #[test]
    fn others_are_shortened_with_a_hash_that_does_not_change() {
        for (server, own, expected) in [
            (
                "excel",
                "admin.tools/list",
                "excel_admin_tools_list_f0a28069",
            ),
            ("表計算", "書く", "____f196e5d3"),
            ("a b", "c", "a_b_c_0ba54489"),
            // Looks like a changed name.
            ("git", "show_0badcafe", "git_show_0badcafe_80ac0297"),
        ] {
            assert_eq!(name(server, own, &[server, "other"]), expected);
        }
        let long = name("excel", &"x".repeat(100), &["excel"]);
        assert_eq!(long.len(), 64);
        assert_ne!(long, name("excel", &"x".repeat(101), &["excel"]));
    }

    #[test]
    fn two_servers_that_could_mean_the_same_name_never_do() {
        let both = ["a", "a_b"];
        assert_eq!(name("a_b", "c", &both), "a_b_c");
        let other = name("a", "b_c", &both);
        assert!(
            other.starts_with("a_b_c_") && other.len() == "a_b_c_".len() + 8,
            "{other}"
        );
        assert_eq!(name("a", "c", &both), "a_c");
    }

    proptest! {
        #[test]
        fn names_can_be_used_and_say_whose_they_are(
            servers in proptest::collection::btree_set("[ab_]{1,4}|[ab_ 表]{1,6}|[a-z]{60,64}", 1..8),
            tools in proptest::collection::btree_set("[ab_]{0,3}|[ab_./表]{0,6}|[a-f0-9_]{8,80}", 1..8),
            unrelated in "[x-z]{1,9}",
        ) {
            let all: Vec<ServerName> = servers.iter().filter_map(|name| name.parse().ok()).collect();
            let more: Vec<ServerName> = all.iter().cloned().chain(unrelated.parse().ok()).collect();
            let mut seen = std::collections::HashMap::new();
            for server in &all {
                for tool in &tools {
                    let name = Namer::new(server, all.iter()).name(tool);
                    prop_assert!(!name.is_empty() && name.len() <= 64, "{name}");
                    prop_assert!(name.bytes().all(is_usual), "{name}");
                    prop_assert!(may_be_of(server, &name), "{name} of {server}");
                    prop_assert_eq!(&Namer::new(server, more.iter()).name(tool), &name);
                    let before = seen.insert(name.clone(), (server, tool));
                    prop_assert!(before.is_none(), "{name}: {before:?} and {server} {tool}");
                }
            }
        }
    }
}

#[cfg(test)]
mod uris_tests {
    use super::*;

    #[test]
    fn a_uri_can_name_its_server() {
        let server: ServerName = "表 計".parse().unwrap();
        let uri = named_uri(&server, "test://a/{id}?b#c");
        assert_eq!(uri, "mcpo:%E8%A1%A8%20%E8%A8%88/test://a/{id}?b#c");
        assert!(url::Url::parse(&uri).is_ok());
        assert_eq!(
            read_named_uri(&uri).unwrap(),
            ("表 計".to_owned(), "test://a/{id}?b#c")
        );
        assert_eq!(read_named_uri("test://a"), None);
        assert_eq!(read_named_uri("mcpo:excel"), None);
    }

    #[test]
    fn a_uri_is_of_who_says_the_most_of_it() {
        let mut uris = Uris::default();
        for server in 0..3 {
            uris.servers.push(server);
            note(&mut uris.listed, server, "test://all");
        }
        note(&mut uris.listed, 1, "file:///logs/today");
        uris.template(0, "file:///{+path}");
        uris.template(2, "file:///logs/{day}");
        uris.template(0, "same://{x}");
        uris.template(1, "same://{y}");
        for (uri, owners) in [
            ("test://all", vec![0, 1, 2]),
            ("file:///logs/today", vec![1]),
            ("file:///logs/monday", vec![2]),
            ("file:///logs/monday/noon", vec![0]),
            ("file:///{+path}", vec![0]),
            ("same://z", vec![0, 1]),
            ("never://heard", vec![0, 1, 2]),
        ] {
            assert_eq!(uris.owners(uri), owners, "{uri}");
        }
        let mut alone = Uris::default();
        assert_eq!(alone.owners("never://heard"), [] as [usize; 0]);
        alone.servers.push(4);
        assert_eq!(alone.owners("never://heard"), vec![4]);
    }

    #[test]
    fn templates_match_what_they_can_become() {
        for (template, uri, is) in [
            ("test://t/{id}/data", "test://t/a%20b/data", true),
            ("test://t/{id}/data", "test://t/a/b/data", false),
            ("test://t{/path*}{?q}", "test://t/a/b?q=1", true),
            ("test://t.x/{id}", "test://t_x/1", false),
            ("test://open/{id", "test://open/{id", true),
        ] {
            let found = Regex::new(&pattern(template).0).unwrap().is_match(uri);
            assert_eq!(found, is, "{template} {uri}");
        }
    }
}
