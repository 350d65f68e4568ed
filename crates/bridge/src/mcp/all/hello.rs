//! What the bridge says of itself where it speaks for all servers.

use bridge_model::link_text;
use bridge_protocol::{RawJson, meta, revision::MODERN};
use serde_json::{Map, Value, json};

use crate::{
    catalog::Offer,
    mcp::{
        aggregate::{View, names},
        lists::TTL,
    },
};

/// The answer to `initialize`, for the agreed revision.
pub fn initialize(view: &View, version: &str) -> RawJson {
    let mut result = json!({
        "protocolVersion": version,
        "capabilities": capabilities(view),
        "serverInfo": server_info(),
    });
    add_instructions(&mut result, view);
    RawJson::of(&result)
}

/// The answer to `server/discover`.
pub fn discover(view: &View) -> RawJson {
    let mut result = json!({
        "resultType": "complete",
        "supportedVersions": [MODERN],
        "capabilities": capabilities(view),
        "ttlMs": TTL,
        "cacheScope": "private",
        "_meta": {meta::SERVER_INFO: server_info()},
    });
    add_instructions(&mut result, view);
    RawJson::of(&result)
}

fn server_info() -> Value {
    json!({
        "name": "mcpo-bridge",
        "title": "MCPO On-Demand Bridge",
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Lists there always are, since servers come and go. What only some servers can is there if one
/// of them can; what could not be given to the right server, as tasks, is not.
fn capabilities(view: &View) -> Value {
    let able = |name: &str| view.offers.iter().any(|offer| has(offer, name));
    let mut capabilities = json!({
        "tools": {"listChanged": true},
        "prompts": {"listChanged": true},
        "resources": {"listChanged": true, "subscribe": subscribes(view)},
    });
    for name in ["completions", "logging"] {
        if able(name) {
            capabilities[name] = json!({});
        }
    }
    // Its parts are tools and resources, which are routed.
    let ui = "io.modelcontextprotocol/ui";
    let extensions = view.offers.iter().filter_map(|offer| {
        let extensions = offer.learnt.hello.capabilities.get("extensions")?;
        extensions.get(ui).filter(|ui| ui.is_object()).cloned()
    });
    if let Some(first) = extensions.into_iter().next() {
        capabilities["extensions"] = Value::Object(Map::from_iter([(ui.to_owned(), first)]));
    }
    capabilities
}

fn has(offer: &Offer, capability: &str) -> bool {
    offer.learnt.hello.capabilities.contains_key(capability)
}

fn subscribes(view: &View) -> bool {
    view.offers.iter().any(|offer| {
        let resources = offer.learnt.hello.capabilities.get("resources");
        resources.is_some_and(|resources| resources["subscribe"] == true)
    })
}

/// The texts of all servers that have one, each below its server's name.
fn add_instructions(result: &mut Value, view: &View) {
    let texts = view.offers.iter().filter_map(|offer| {
        let text = offer.learnt.hello.instructions.as_deref()?.trim();
        let name = link_text(offer.spec.name.as_str());
        let begin = names::beginning(&offer.spec.name);
        (!text.is_empty()).then(|| format!("# {name} (its tools begin with {begin})\n\n{text}"))
    });
    let texts: Vec<String> = texts.collect();
    if !texts.is_empty() {
        result["instructions"] = texts.join("\n\n").into();
    }
}
