use proptest::prelude::*;

use super::*;

#[test]
fn sizes_have_units_of_both_families() {
    for (text, size) in [
        ("1", 1),
        ("1024", 1024),
        ("32MiB", 32 << 20),
        ("32 mib", 32 << 20),
        ("1.5GiB", 3 << 29),
        ("2KB", 2000),
        ("0.5kb", 500),
        ("10B", 10),
    ] {
        assert_eq!(bytes(text).unwrap(), size, "{text}");
    }
    for wrong in [
        "",
        "0",
        "-1",
        "x",
        "MiB",
        "1.2.3",
        "1e3",
        "32M",
        "9EiB",
        "0.1B",
        "99999999999GiB",
        "+5",
    ] {
        assert!(bytes(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_floor_may_be_none() {
    assert_eq!(bytes_or_none("0").unwrap(), 0);
    assert_eq!(bytes_or_none("1KiB").unwrap(), 1024);
    assert!(bytes_or_none("x").is_err());
}

#[test]
fn durations_are_seconds_within_bounds() {
    assert_eq!(timeout("300").unwrap(), Duration::from_mins(5));
    assert_eq!(timeout("0.25").unwrap(), Duration::from_millis(250));
    assert_eq!(grace("0").unwrap(), Duration::ZERO);
    for wrong in ["0", "-1", "86401", "1e-12", "inf", "NaN", "5m", "", "300s"] {
        assert!(timeout(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn booleans_have_the_usual_spellings() {
    for yes in ["true", "TRUE", "1", "yes", "on"] {
        assert_eq!(boolean(yes), Ok(true));
    }
    for no in ["false", "0", "No", "off"] {
        assert_eq!(boolean(no), Ok(false));
    }
    assert!(boolean("maybe").is_err());
}

#[test]
fn hosts_lose_port_case_and_brackets() {
    let list = hosts("Mcpo-Bridge:8080, chat.example\n[::1]:80,::1,*,10.0.0.1").unwrap();
    assert_eq!(
        list,
        ["mcpo-bridge", "chat.example", "::1", "::1", "*", "10.0.0.1"]
    );
    for wrong in ["http://x", "x/y", "a:b", "[x]"] {
        assert!(hosts(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn origins_are_what_browsers_send() {
    let list = origins("https://Chat.Example/,http://x:3000 *").unwrap();
    assert_eq!(list, ["https://chat.example", "http://x:3000", "*"]);
    for wrong in ["chat.example", "https://x/y", "ftp://x", "null"] {
        assert!(origins(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn networks_may_be_single_addresses_or_none() {
    let list = networks("10.0.0.0/8, 192.168.1.7,::1").unwrap();
    let text: Vec<_> = list.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["10.0.0.0/8", "192.168.1.7/32", "::1/128"]);
    assert_eq!(networks("none").unwrap(), []);
    assert!(networks("10.0.0.0/33").is_err());
}

#[test]
fn a_path_prefix_is_plain() {
    assert_eq!(path_prefix("/").unwrap(), "");
    assert_eq!(path_prefix("/mcpo/").unwrap(), "/mcpo");
    assert_eq!(path_prefix("/a/b").unwrap(), "/a/b");
    assert_eq!(path_prefix("a/b/").unwrap(), "/a/b", "mcpo takes it so");
    for wrong in ["/a//b", "/..", "/a b", "/{x}", "//a"] {
        assert!(path_prefix(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in ".{0,40}") {
        let _ = (timeout(&text), retention(&text), bytes(&text), count(&text), port(&text));
        let _ = (hosts(&text), networks(&text), origins(&text), path_prefix(&text));
        let _ = (base_url(&text), header_name(&text), boolean(&text));
    }

    #[test]
    fn whole_bytes_survive(size in 1_u64..=1 << 62) {
        prop_assert_eq!(bytes(&size.to_string()).unwrap(), size);
    }
}
