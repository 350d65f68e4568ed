use serde_json::json;

use super::*;

const BRIDGE: &str = "http://bridge:8080";

fn wanted(server: &str, grants: &Value) -> Value {
    let mut connection = json!({
        "type": "openapi", "url": format!("{BRIDGE}/mcpo/{server}"), "path": "openapi.json",
        "spec_type": "url", "spec": "", "auth_type": "bearer", "key": "sesame",
        "info": {"id": server, "name": server, "description": ""},
        "config": {"enable": true, "function_name_filter_list": "", "access_grants": grants},
    });
    let marker = Marker {
        owner: "b".into(),
        server: server.into(),
        grants: marker::grants_digest(&connection),
        info: marker::info_digest(&connection),
    };
    connection["headers"] =
        json!({"X-MCPO-Connection": marker.to_string(), "X-Chat": "{{CHAT_ID}}"});
    connection
}

fn everyone() -> Value {
    json!([{"principal_type": "user", "principal_id": "*", "permission": "read"}])
}

fn ours(server: &str) -> Value {
    wanted(server, &everyone())
}

/// As an administrator made it.
fn theirs(id: &str) -> Value {
    json!({"type": "openapi", "url": "http://other/x", "path": "p", "auth_type": "none", "key": "",
           "headers": null, "config": {"enable": false, "odd": [1]}, "info": {"id": id}, "new": 1.0})
}

fn run(current: &[Value], wanted: &[Value], adopt: bool) -> Result<Plan, String> {
    let headers = ["x-mcpo-connection", "x-mcpo-key", "x-chat"].map(str::to_owned);
    let rules = Rules {
        owner: "b",
        bridge: BRIDGE,
        headers: &headers,
        adopt,
    };
    let plan = plan(current, wanted, &rules)?;
    // Whatever it did, doing it again changes nothing.
    let again = super::plan(&plan.connections, wanted, &rules)?;
    assert_eq!(again.connections, plan.connections);
    assert_eq!(again.changes, []);
    Ok(plan)
}

#[test]
fn new_ones_come_last_and_gone_ones_go_and_others_stay() {
    let current = [theirs("a"), ours("gone"), theirs("b")];
    let plan = run(&current, &[ours("new")], false).unwrap();
    assert_eq!(plan.connections, [theirs("a"), theirs("b"), ours("new")]);
    let expected = [Change::Removed("gone".into()), Change::Added("new".into())];
    assert_eq!(plan.changes, expected);
}

#[test]
fn a_new_key_and_address_are_taken_over_without_being_shown() {
    let mut old = ours("a");
    old["key"] = "old-secret".into();
    old["url"] = "http://before:1/mcpo/a".into();
    let plan = run(&[old], &[ours("a")], false).unwrap();
    assert_eq!(plan.connections, [ours("a")]);
    let shown = format!("{:?}", plan.changes);
    assert!(
        shown.contains("key: changed") && shown.contains("http://before:1"),
        "{shown}"
    );
    assert!(
        !shown.contains("secret") && !shown.contains("sesame"),
        "{shown}"
    );
}

#[test]
fn what_an_administrator_changed_stays() {
    let mut edited = ours("a");
    edited["config"] = json!({"enable": false, "function_name_filter_list": "x", "access_grants":
        [{"principal_type": "group", "principal_id": "g", "permission": "read"}]});
    edited["info"]["name"] = "Ours!".into();
    edited["headers"]["X-Own"] = "1".into();
    edited["forward_cookies"] = false.into();
    let admins = wanted("a", &json!([]));
    for wanted in [ours("a"), admins] {
        let plan = run(std::slice::from_ref(&edited), &[wanted], false).unwrap();
        assert_eq!(plan.connections, std::slice::from_ref(&edited));
        assert_eq!(plan.changes, []);
    }
}

#[test]
fn what_nobody_changed_follows_the_config() {
    let plan = run(&[ours("a")], &[wanted("a", &json!([]))], false).unwrap();
    assert_eq!(plan.connections, [wanted("a", &json!([]))]);
    let shown = format!("{:?}", plan.changes);
    assert!(shown.contains("everyone → administrators"), "{shown}");
}

#[test]
fn who_has_the_same_id_is_in_the_way_unless_he_is_adopted() {
    let refused = run(&[theirs("a")], &[ours("a")], false).err().unwrap();
    assert!(refused.contains("--adopt") && refused.contains("http://other/x"));
    let plan = run(&[theirs("a")], &[ours("a")], true).unwrap();
    let adopted = &plan.connections[0];
    assert_eq!(adopted["url"], ours("a")["url"]);
    assert_eq!(adopted["config"], theirs("a")["config"], "the grants stay");
    // The same id of another type is no hindrance.
    let mut mcp = theirs("a");
    mcp["type"] = "mcp".into();
    assert_eq!(
        run(&[mcp], &[ours("a")], false).unwrap().connections.len(),
        2
    );
}

#[test]
fn another_bridges_connections_are_not_removed() {
    let mut elsewhere = ours("x");
    elsewhere["url"] = "http://other-bridge/mcpo/x".into();
    let plan = run(&[elsewhere.clone()], &[], false).unwrap();
    assert_eq!((plan.connections, plan.notes.len()), (vec![elsewhere], 1));
    let mut owner = ours("x");
    owner["headers"]["X-MCPO-Connection"] = "other/x; grants=; info=".into();
    let plan = run(std::slice::from_ref(&owner), &[], false).unwrap();
    assert_eq!((plan.connections, plan.notes.len()), (vec![owner], 0));
}

#[test]
fn odd_connections_harm_nothing() {
    let odd = [
        json!({}),
        json!({"headers": "text", "info": null}),
        json!(null),
        json!({"info": 1}),
    ];
    let plan = run(&odd, &[ours("a")], false).unwrap();
    assert_eq!(plan.connections[..4], odd);
}
