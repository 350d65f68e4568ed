//! Whose a resource is: URIs stay as their servers spell them wherever they say that themselves,
//! and are `mcpo:{server}/{uri}` elsewhere.

use std::{cmp::Reverse, collections::HashMap};

use bridge_model::ServerName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use regex::Regex;

/// What URIs begin with that name their server.
const SCHEME: &str = "mcpo:";
/// RFC 3986's unreserved characters stay.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// A template longer than this is not matched: URIs of it must name their server.
const LONGEST_TEMPLATE: usize = 2000;

/// Templates of one server that are matched; URIs of the others must name their server. Each costs
/// time for every URI that is looked up.
const MATCHED: usize = 200;

/// Whether it is a URI by itself, and no path or name.
pub fn has_scheme(uri: &str) -> bool {
    uri.split_once(':').is_some_and(|(scheme, _)| {
        let usual = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(usual)
    })
}

/// The URI that names its server.
pub fn named(server: &ServerName, uri: &str) -> String {
    let server = utf8_percent_encode(server.as_str(), ENCODED);
    format!("{SCHEME}{server}/{uri}")
}

/// The server that a URI names, and its own URI there.
pub fn read_named(uri: &str) -> Option<(String, &str)> {
    let (server, own) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let server = percent_decode_str(server).decode_utf8().ok()?;
    Some((server.into_owned(), own))
}

/// Which of several servers a URI is of.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// This one.
    One(usize),
    /// It could be any of these; empty where there is none.
    Unclear(Vec<usize>),
}

/// The resources of several servers, which are known by their place in a list.
#[derive(Default)]
pub struct Uris {
    listed: HashMap<String, Vec<usize>>,
    /// Templates by their text.
    templates: HashMap<String, Vec<usize>>,
    matched: Vec<Template>,
    servers: Vec<usize>,
}

struct Template {
    server: usize,
    matches: Regex,
    /// Characters outside of its expressions: the more, the more it says.
    literal: usize,
}

impl Uris {
    /// A server that has resources.
    pub fn server(&mut self, server: usize) {
        self.servers.push(server);
    }

    /// A resource that it lists.
    pub fn resource(&mut self, server: usize, uri: &str) {
        note(&mut self.listed, server, uri);
    }

    /// A resource template that it lists. All of one server come after each other.
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

    /// Whose the URI is: of who lists it; else of who has it for a template; else of who has the
    /// template that says the most of it; else of the one server that has resources.
    pub fn owner(&self, uri: &str) -> Owner {
        let known = self.listed.get(uri).or_else(|| self.templates.get(uri));
        if let Some(servers) = known {
            return one_of(servers.clone());
        }
        let fits = |known: &&Template| known.matches.is_match(uri);
        let mut fitting: Vec<&Template> = self.matched.iter().filter(fits).collect();
        fitting.sort_by_key(|known| Reverse(known.literal));
        let most = fitting.first().map(|known| known.literal);
        let best = fitting
            .iter()
            .take_while(|known| Some(known.literal) == most)
            .map(|known| known.server)
            .collect::<Vec<_>>();
        if best.is_empty() {
            one_of(self.servers.clone())
        } else {
            one_of(best)
        }
    }
}

/// Servers come in their order.
fn note(known: &mut HashMap<String, Vec<usize>>, server: usize, text: &str) {
    let servers = known.entry(text.to_owned()).or_default();
    if servers.last() != Some(&server) {
        servers.push(server);
    }
}

fn one_of(mut servers: Vec<usize>) -> Owner {
    servers.sort_unstable();
    servers.dedup();
    match servers[..] {
        [one] => Owner::One(one),
        _ => Owner::Unclear(servers),
    }
}

/// What a template of RFC 6570 can become, and how much of it is literal. `{name}` becomes
/// something within one segment; expressions with an operator become anything.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_can_name_its_server() {
        let server: ServerName = "表 計".parse().unwrap();
        let uri = named(&server, "test://a/{id}?b#c");
        assert_eq!(uri, "mcpo:%E8%A1%A8%20%E8%A8%88/test://a/{id}?b#c");
        assert!(url::Url::parse(&uri).is_ok());
        assert_eq!(
            read_named(&uri).unwrap(),
            ("表 計".to_owned(), "test://a/{id}?b#c")
        );
        assert_eq!(read_named("test://a"), None);
        assert_eq!(read_named("mcpo:excel"), None);
    }

    #[test]
    fn a_uri_is_of_who_says_the_most_of_it() {
        let mut uris = Uris::default();
        for server in 0..3 {
            uris.server(server);
            uris.resource(server, "test://all");
        }
        uris.resource(1, "file:///logs/today");
        uris.template(0, "file:///{+path}");
        uris.template(2, "file:///logs/{day}");
        uris.template(0, "same://{x}");
        uris.template(1, "same://{y}");
        for (uri, owner) in [
            ("test://all", Owner::Unclear(vec![0, 1, 2])),
            ("file:///logs/today", Owner::One(1)),
            ("file:///logs/monday", Owner::One(2)),
            ("file:///logs/monday/noon", Owner::One(0)),
            ("file:///{+path}", Owner::One(0)),
            ("same://z", Owner::Unclear(vec![0, 1])),
            ("never://heard", Owner::Unclear(vec![0, 1, 2])),
        ] {
            assert_eq!(uris.owner(uri), owner, "{uri}");
        }
        let mut alone = Uris::default();
        assert_eq!(alone.owner("never://heard"), Owner::Unclear(vec![]));
        alone.server(4);
        assert_eq!(alone.owner("never://heard"), Owner::One(4));
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
