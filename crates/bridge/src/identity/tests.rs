use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use clap::{Args, Command, FromArgMatches};
use futures_util::FutureExt as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use super::*;
use crate::config::SettingsArgs;

const NEAR: &str = "127.0.0.1";
const FAR: &str = "203.0.113.9";
const SECRET: &str = "an-open-webui-secret-of-32-bytes";

fn identity(flags: &[&str]) -> Identity {
    let command =
        SettingsArgs::augment_args(Command::new("t")).mut_args(|arg| arg.env(None::<&str>));
    let matches = command.get_matches_from(["t"].iter().chain(flags));
    let args = SettingsArgs::from_arg_matches(&matches).unwrap();
    Identity::new(&args.resolve().unwrap(), None)
}

/// `Name: value` lines as headers; repeated names are sent repeatedly.
fn headers(lines: &[&str]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(": ")
            .unwrap_or((line.trim_end_matches(':'), ""));
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

/// The result of a future that does not wait, since no request to Open WebUI is made.
fn now<T>(done: impl Future<Output = T>) -> T {
    done.now_or_never().expect("no wait")
}

fn ask(identity: &Identity, peer: &str, lines: &[&str]) -> Result<Caller, Refusal> {
    now(identity.authenticate(&headers(lines), peer.parse().unwrap()))
}

fn principal(identity: &Identity, peer: &str, lines: &[&str]) -> Principal {
    ask(identity, peer, lines).unwrap().principal
}

fn user(id: &str) -> Principal {
    Principal::User(id.into())
}

fn key(name: &str) -> Principal {
    Principal::Key(name.into())
}

fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    let token = encode(&Header::new(algorithm), claims, &key).unwrap();
    format!("X-OpenWebUI-User-Jwt: {token}")
}

fn token(id: &str) -> String {
    let exp = get_current_timestamp() + 300;
    signed(Algorithm::HS256, SECRET, &json!({"sub": id, "exp": exp}))
}

mod keys {
    use super::*;

    #[test]
    fn every_place_for_a_key_opens() {
        let identity = identity(&["--api-key=alice:k1,bob:pass:word"]);
        // "x:pass:word": the user name of Basic is arbitrary, the password may contain colons.
        for (line, name) in [
            ("Authorization: Bearer k1", "alice"),
            ("Authorization: bearer  k1", "alice"),
            ("X-MCPO-Key: pass:word", "bob"),
            ("Authorization: Basic eDpwYXNzOndvcmQ=", "bob"),
        ] {
            assert_eq!(principal(&identity, FAR, &[line]), key(name), "{line}");
        }
    }

    #[test]
    fn no_key_is_401_and_a_wrong_one_403() {
        let identity = identity(&["--api-key=k1"]);
        for nothing in [
            "Accept: */*",
            "Authorization:",
            "Authorization: Bearer",
            "X-MCPO-Key:",
        ] {
            let refusal = ask(&identity, NEAR, &[nothing]).unwrap_err();
            assert_eq!(refusal, Refusal::MissingKey, "{nothing}");
            assert_eq!(refusal.kind().status, 401);
        }
        for wrong in [
            "Authorization: Bearer k2",
            "Authorization: Bearer k11",
            "X-MCPO-Key: default:k1",
            "Authorization: Basic eDp3cm9uZw==",
        ] {
            let refusal = ask(&identity, NEAR, &[wrong]).unwrap_err();
            assert_eq!(refusal, Refusal::InvalidKey, "{wrong}");
            assert_eq!(refusal.kind().status, 403);
            assert_eq!(refusal.to_string(), "Invalid API key");
        }
    }

    #[test]
    fn a_key_in_its_own_header_leaves_authorization_to_the_user() {
        let identity = identity(&["--api-key=k1"]);
        let lines = ["Authorization: Bearer somebodys-session", "X-MCPO-Key: k1"];
        assert_eq!(principal(&identity, FAR, &lines), key("default"));
        let lines = ["Authorization: Bearer k1", "X-MCPO-Key: wrong"];
        assert_eq!(
            ask(&identity, FAR, &lines).unwrap_err(),
            Refusal::InvalidKey
        );
    }

    #[test]
    fn documents_are_open_unless_strict() {
        let ask = |identity: &Identity, method: Method, lines: &[&str]| {
            now(identity.authenticate_document(&method, &headers(lines), FAR.parse().unwrap()))
        };
        let open = identity(&["--api-key=k1"]);
        assert!(ask(&open, Method::GET, &[]).is_ok());
        assert!(ask(&open, Method::GET, &["Authorization: Bearer wrong"]).is_ok());
        let strict = identity(&["--api-key=k1", "--strict-auth"]);
        assert_eq!(
            ask(&strict, Method::GET, &[]).unwrap_err(),
            Refusal::MissingKey
        );
        assert!(ask(&strict, Method::GET, &["X-MCPO-Key: k1"]).is_ok());
        assert!(ask(&strict, Method::OPTIONS, &[]).is_ok());
    }
}

mod plain_headers {
    use super::*;

    const ALICE: &str = "X-OpenWebUI-User-Id: alice";
    const CHAT: &str = "X-OpenWebUI-Chat-Id: c1";

    #[test]
    fn a_caller_with_the_key_is_believed_from_anywhere() {
        let identity = identity(&["--api-key=k1"]);
        let lines = ["X-MCPO-Key: k1", ALICE, CHAT, "X-Forwarded-For: 1.2.3.4"];
        let caller = ask(&identity, FAR, &lines).unwrap();
        assert_eq!(caller.principal, user("alice"));
        assert_eq!(caller.chat.as_deref(), Some("c1"));
    }

    #[test]
    fn a_near_caller_is_believed_only_without_a_proxy_in_between() {
        let identity = identity(&[]);
        for near in [NEAR, "::1", "::ffff:127.0.0.1"] {
            assert_eq!(
                principal(&identity, near, &[ALICE]),
                user("alice"),
                "{near}"
            );
        }
        for proxied in [
            "Forwarded: for=1.2.3.4",
            "X-Forwarded-For: 127.0.0.1",
            "X-Forwarded-Host: x",
            "X-Forwarded-Proto:",
            "X-Real-IP: 127.0.0.1",
            "Via: 1.1 proxy",
            "CF-Connecting-IP: 1.2.3.4",
            "Origin: http://evil.example",
            "Origin: null",
            "Sec-Fetch-Site: cross-site",
        ] {
            let caller = ask(&identity, NEAR, &[ALICE, CHAT, proxied]).unwrap();
            assert_eq!(caller.principal, Principal::Anonymous, "{proxied}");
            assert_eq!(caller.chat, None, "{proxied}");
        }
    }

    #[test]
    fn a_browser_is_believed_only_with_a_page_that_was_named() {
        let flag = "--cors-allow-origins=*,https://chat.example";
        for (flags, origin, principal_is) in [
            (vec![], "http://localhost:8080", user("alice")),
            (vec![flag], "https://chat.example", user("alice")),
            (vec![flag], "http://evil.example", Principal::Anonymous),
            (vec![flag], "http://localhost:3000", Principal::Anonymous),
        ] {
            let origin = format!("Origin: {origin}");
            let identity = identity(&flags);
            assert_eq!(
                principal(&identity, NEAR, &[ALICE, &origin]),
                principal_is,
                "{origin}"
            );
        }
        let keyed = identity(&["--api-key=k1", flag]);
        let lines = ["X-MCPO-Key: k1", ALICE, "Origin: http://evil.example"];
        assert_eq!(
            principal(&keyed, FAR, &lines),
            user("alice"),
            "the key counts"
        );
    }

    #[test]
    fn the_first_user_who_is_known_by_address_is_a_warning() {
        let alone = identity(&[]);
        principal(&alone, NEAR, &["Accept: */*"]);
        principal(&alone, FAR, &[ALICE]);
        assert_eq!(alone.warning(), None);
        principal(&alone, NEAR, &[ALICE]);
        assert!(alone.warning().unwrap().contains("MCPO_API_KEY"));
        for flags in [&["--api-key=k1"][..], &["--jwt-secret", SECRET]] {
            let keyed = identity(flags);
            principal(&keyed, NEAR, &[ALICE, "X-MCPO-Key: k1"]);
            assert_eq!(keyed.warning(), None);
        }
    }

    #[test]
    fn an_operator_has_a_key_or_sits_at_this_machine() {
        let (open, keyed) = (
            identity(&["--trusted-proxies=203.0.113.0/24"]),
            identity(&["--api-key=k1"]),
        );
        let is = |identity: &Identity, peer: &str, lines: &[&str]| {
            identity.is_operator(&headers(lines), peer.parse().unwrap())
        };
        assert!(is(&open, NEAR, &[]) && is(&keyed, "::1", &[]));
        assert!(is(
            &keyed,
            FAR,
            &["Authorization: Bearer k1", "X-Forwarded-For: 1.2.3.4"]
        ));
        assert!(!is(&open, FAR, &[]), "who is believed is no operator yet");
        assert!(!is(&keyed, FAR, &["Authorization: Bearer wrong"]));
        for sign in [
            "Via: 1.1 x",
            "Origin: http://evil.example",
            "Sec-Fetch-Site: same-site",
        ] {
            assert!(
                !is(&open, NEAR, &[sign]) && !is(&keyed, NEAR, &[sign]),
                "{sign}"
            );
        }
    }

    #[test]
    fn a_stranger_is_nobody_whatever_he_says() {
        let identity = identity(&[]);
        for far in [FAR, "::ffff:203.0.113.9", "10.0.0.1"] {
            let lines = [
                ALICE,
                CHAT,
                "X-OpenWebUI-User-Role: admin",
                "X-MCPO-Session: s",
            ];
            let caller = ask(&identity, far, &lines).unwrap();
            assert_eq!(caller.principal, Principal::Anonymous);
            assert_eq!((caller.chat, caller.user), (None, UserInfo::default()));
            assert_eq!(caller.session.as_deref(), Some("s"));
            assert!(!identity.is_trusted(&headers(&lines), far.parse().unwrap()));
        }
    }

    #[test]
    fn the_trusted_list_replaces_loopback() {
        let identity = identity(&["--trusted-proxies=10.0.0.0/8"]);
        assert_eq!(principal(&identity, "10.1.2.3", &[ALICE]), user("alice"));
        assert_eq!(
            principal(&identity, "::ffff:10.1.2.3", &[ALICE]),
            user("alice")
        );
        assert_eq!(principal(&identity, NEAR, &[ALICE]), Principal::Anonymous);
    }

    #[test]
    fn a_chat_without_a_user_is_the_keys() {
        let identity = identity(&["--api-key=web:k1"]);
        let caller = ask(&identity, FAR, &["X-MCPO-Key: k1", CHAT]).unwrap();
        assert_eq!(caller.principal, key("web"));
        assert_eq!(caller.chat.as_deref(), Some("c1"));
    }

    #[test]
    fn empty_headers_are_absent() {
        let lines = [
            "X-OpenWebUI-User-Id:",
            "X-OpenWebUI-Chat-Id:   ",
            "X-MCPO-Session:",
        ];
        let caller = ask(&identity(&[]), NEAR, &lines).unwrap();
        assert_eq!(caller.principal, Principal::Anonymous);
        assert_eq!((caller.chat, caller.session), (None, None));
    }

    #[test]
    fn names_are_percent_decoded_and_ids_are_not() {
        let lines = [
            "X-OpenWebUI-User-Id: a%20b",
            "X-OpenWebUI-User-Name: %E5%B1%B1%E7%94%B0%20%E5%A4%AA%E9%83%8E",
            "X-OpenWebUI-User-Email: a@example.com",
            "X-OpenWebUI-User-Role: user",
        ];
        let caller = ask(&identity(&[]), NEAR, &lines).unwrap();
        assert_eq!(caller.principal, user("a%20b"));
        assert_eq!(caller.user.name.as_deref(), Some("山田 太郎"));
        assert_eq!(caller.user.email.as_deref(), Some("a@example.com"));
        assert_eq!(caller.user.role.as_deref(), Some("user"));
    }

    #[test]
    fn ids_keep_every_byte() {
        let identity = identity(&[]);
        let chat = |bytes: &[u8]| {
            let mut map = HeaderMap::new();
            map.insert(
                "x-openwebui-chat-id",
                HeaderValue::from_bytes(bytes).unwrap(),
            );
            let caller = now(identity.authenticate(&map, NEAR.parse().unwrap())).unwrap();
            caller.chat.unwrap()
        };
        let evil = "temporary:../../../../tmp/evil é";
        assert_eq!(&*chat(evil.as_bytes()), evil);
        // Bytes that are not UTF-8 differ from each other and from every text.
        let (one, two) = (chat(b"a\xff"), chat(b"a\xfe"));
        assert_ne!(one, two);
        assert_ne!(one, chat(&one.as_bytes()[1..]));
        assert_ne!(one, chat("aÿ".as_bytes()));
    }

    #[test]
    fn an_endless_id_is_refused() {
        let long = format!("X-OpenWebUI-Chat-Id: {}", "x".repeat(1025));
        let refusal = ask(&identity(&[]), NEAR, &[&long]).unwrap_err();
        assert_eq!(refusal.kind().status, 400);
    }

    #[test]
    fn a_repeated_identity_header_is_refused() {
        let identity = identity(&[]);
        for name in [
            "Authorization",
            "X-MCPO-Key",
            "X-MCPO-Session",
            "X-OpenWebUI-User-Id",
            "X-OpenWebUI-User-Name",
            "X-OpenWebUI-User-Email",
            "X-OpenWebUI-User-Role",
            "X-OpenWebUI-User-Jwt",
            "X-OpenWebUI-Chat-Id",
            "X-OpenWebUI-Message-Id",
        ] {
            for peer in [NEAR, FAR] {
                let line = format!("{name}: a");
                let empty = format!("{name}:");
                for second in [&line, &empty] {
                    let refusal = ask(&identity, peer, &[&line, second]).unwrap_err();
                    assert_eq!(refusal.kind().status, 400, "{name}: {refusal}");
                }
            }
        }
    }

    #[test]
    fn renamed_headers_are_the_ones_that_count() {
        let identity = identity(&["--header-user-id=X-Uid", "--header-chat-id=X-Chat"]);
        let caller = ask(&identity, NEAR, &["X-Uid: bob", "X-Chat: c9", ALICE, CHAT]).unwrap();
        assert_eq!(caller.principal, user("bob"));
        assert_eq!(caller.chat.as_deref(), Some("c9"));
        assert_eq!(
            ask(&identity, NEAR, &["X-Uid: a", "X-Uid: b"])
                .unwrap_err()
                .kind()
                .status,
            400
        );
    }
}

mod tokens {
    use super::*;

    fn with_secret() -> Identity {
        identity(&["--jwt-secret", SECRET])
    }

    #[test]
    fn a_signed_user_is_believed_from_anywhere_and_may_name_his_chat() {
        let exp = get_current_timestamp() + 60;
        let claims = json!({
            "sub": "alice", "name": "山田", "email": "a@x", "role": "admin",
            "iss": "open-webui", "iat": exp - 360, "exp": exp,
        });
        let line = signed(Algorithm::HS256, SECRET, &claims);
        let lines = [
            line.as_str(),
            "X-OpenWebUI-Chat-Id: c1",
            "X-Forwarded-For: 1.2.3.4",
        ];
        let caller = ask(&with_secret(), FAR, &lines).unwrap();
        assert_eq!(caller.principal, user("alice"));
        assert_eq!(caller.chat.as_deref(), Some("c1"));
        assert_eq!(caller.user.name.as_deref(), Some("山田"));
        assert_eq!(caller.user.role.as_deref(), Some("admin"));
    }

    #[test]
    fn what_a_token_may_leave_out_or_say_of_itself() {
        let now = get_current_timestamp();
        for claims in [
            json!({"sub": "alice", "exp": now + 300}),
            json!({"sub": "alice", "exp": now + 86_400, "iat": now}),
            json!({"sub": "alice", "exp": f64::from(u32::try_from(now).unwrap()) + 0.5}),
            json!({"sub": "alice", "exp": now + 300, "aud": ["x", "mcpo-bridge"]}),
            json!({"sub": "alice", "exp": now + 300, "iss": "open-webui", "jti": "1"}),
        ] {
            let line = signed(Algorithm::HS256, SECRET, &claims);
            assert_eq!(
                principal(&with_secret(), FAR, &[&line]),
                user("alice"),
                "{claims}"
            );
        }
    }

    #[test]
    fn plain_user_headers_count_for_nothing() {
        let lines = [
            "X-OpenWebUI-User-Id: mallory",
            "X-OpenWebUI-User-Role: admin",
        ];
        let caller = ask(&with_secret(), NEAR, &lines).unwrap();
        assert_eq!(caller.principal, Principal::Anonymous);
        assert_eq!(caller.user, UserInfo::default());
        let both = identity(&["--jwt-secret", SECRET, "--api-key=web:k1"]);
        let caller = ask(&both, NEAR, &[lines[0], lines[1], "X-MCPO-Key: k1"]).unwrap();
        assert_eq!(caller.principal, key("web"));
        let signed = token("alice");
        let caller = ask(
            &both,
            NEAR,
            &[lines[0], lines[1], "X-MCPO-Key: k1", &signed],
        )
        .unwrap();
        assert_eq!(caller.principal, user("alice"));
        assert_eq!(caller.user, UserInfo::default());
    }

    #[test]
    fn a_token_is_no_key() {
        let both = identity(&["--jwt-secret", SECRET, "--api-key=k1"]);
        let refusal = ask(&both, NEAR, &[&token("alice")]).unwrap_err();
        assert_eq!(refusal, Refusal::MissingKey);
    }

    #[test]
    fn without_the_secret_a_token_says_nothing() {
        let caller = ask(&identity(&[]), NEAR, &[&token("alice")]).unwrap();
        assert_eq!(caller.principal, Principal::Anonymous);
    }

    #[test]
    fn forged_expired_and_unsigned_tokens_are_401() {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
        let now = get_current_timestamp();
        let good = json!({"sub": "alice", "exp": now + 300});
        let unsigned = |algorithm: &str| {
            let header = BASE64.encode(json!({"alg": algorithm, "typ": "JWT"}).to_string());
            let body = BASE64.encode(good.to_string());
            format!("X-OpenWebUI-User-Jwt: {header}.{body}.")
        };
        let hs256 = |claims: Value| signed(Algorithm::HS256, SECRET, &claims);
        let typed = |typ: &str, crit: Option<Vec<String>>| {
            let typ = Some(typ.to_owned());
            let header = Header {
                typ,
                crit,
                ..Header::new(Algorithm::HS256)
            };
            let token = encode(&header, &good, &EncodingKey::from_secret(SECRET.as_bytes()));
            format!("X-OpenWebUI-User-Jwt: {}", token.unwrap())
        };
        let tampered = {
            let line = hs256(good.clone());
            let (head, signature) = line.rsplit_once('.').unwrap();
            let (head, _) = head.rsplit_once('.').unwrap();
            let body = BASE64.encode(json!({"sub": "admin", "exp": now + 300}).to_string());
            format!("{head}.{body}.{signature}")
        };
        let attacks = [
            (
                "another secret",
                signed(Algorithm::HS256, "not-the-secret", &good),
            ),
            ("another algorithm", signed(Algorithm::HS512, SECRET, &good)),
            ("alg none", unsigned("none")),
            ("alg None", unsigned("None")),
            ("no signature", unsigned("HS256")),
            ("tampered", tampered),
            ("expired", hs256(json!({"sub": "alice", "exp": now - 120}))),
            (
                "not yet",
                hs256(json!({"sub": "alice", "exp": now + 300, "nbf": now + 120})),
            ),
            (
                "odd expiry",
                hs256(json!({"sub": "alice", "exp": "tomorrow"})),
            ),
            ("no user", hs256(json!({"exp": now + 300}))),
            ("empty user", hs256(json!({"sub": "", "exp": now + 300}))),
            (
                "control character",
                hs256(json!({"sub": "a\u{7f}b", "exp": now + 300})),
            ),
            (
                "long user",
                hs256(json!({"sub": "a".repeat(1025), "exp": now + 300})),
            ),
            (
                "user is no text",
                hs256(json!({"sub": 7, "exp": now + 300})),
            ),
            ("no expiry", hs256(json!({"sub": "alice"}))),
            ("no number", hs256(json!({"sub": "alice", "exp": null}))),
            (
                "years to live",
                hs256(json!({"sub": "alice", "exp": now + 400 * 86_400})),
            ),
            (
                "made days ago",
                hs256(json!({"sub": "alice", "exp": now + 300, "iat": now - 3 * 86_400})),
            ),
            (
                "made tomorrow",
                hs256(json!({"sub": "alice", "exp": now + 300, "iat": now + 3600})),
            ),
            (
                "of another issuer",
                hs256(json!({"sub": "alice", "exp": now + 300, "iss": "payroll"})),
            ),
            (
                "for another audience",
                hs256(json!({"sub": "alice", "exp": now + 300, "aud": ["payroll"]})),
            ),
            ("of another type", typed("logout+jwt", None)),
            (
                "with an extension",
                typed("JWT", Some(vec!["b64".to_owned()])),
            ),
            ("garbage", "X-OpenWebUI-User-Jwt: a.b.c".into()),
        ];
        for (attack, line) in attacks {
            let refusal = ask(&with_secret(), NEAR, &[&line]).unwrap_err();
            assert_eq!(refusal.kind().status, 401, "{attack}");
            assert!(!refusal.to_string().contains("alice"), "{attack}");
        }
    }
}
