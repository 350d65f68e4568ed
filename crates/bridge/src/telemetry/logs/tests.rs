use std::os::unix::fs::PermissionsExt as _;

use super::{testing::*, *};

fn log(file: Option<PathBuf>) -> Log {
    Log {
        level: LogLevel::Info,
        file,
        format: LogFormat::Auto,
    }
}

fn levels(level: LogLevel) -> Vec<String> {
    let lines = lines_of(level, || {
        tracing::trace!("t");
        tracing::debug!("d");
        tracing::info!("i");
        tracing::warn!("w");
        tracing::error!("e");
        tracing::error!(target: CRITICAL, "c");
        tracing::info!(target: AUDIT, "a");
        tracing::info!(target: "a_library", "li");
        tracing::warn!(target: "a_library", "lw");
        tracing::error!(target: "a_library", "le");
    });
    let of = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    let lines = lines.iter();
    lines
        .map(|line| of(line, "message") + " " + &of(line, "level"))
        .collect()
}

#[test]
fn lines_of_each_of_our_crates_are_ours() {
    let lines = lines_of(LogLevel::Info, || {
        tracing::info!(target: "mcpo_bridge::serve", "one");
        tracing::info!(target: "bridge_state::lease", "two");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    for crate_name in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap() {
        let crate_name = crate_name.unwrap().file_name().into_string().unwrap();
        let target = match crate_name.as_str() {
            "bridge" => "mcpo_bridge".to_owned(),
            name => format!("bridge_{name}"),
        };
        assert!(OWN.iter().any(|own| target.starts_with(own)), "{target}");
    }
}

#[test]
fn each_level_shows_what_it_should_and_audit_lines_always() {
    let own = ["d DEBUG", "i INFO", "w WARNING", "e ERROR"];
    let always = ["c CRITICAL", "a INFO"];
    let others = ["li INFO", "lw WARNING", "le ERROR"];
    for (level, from, others_from) in [
        (LogLevel::Debug, 0, 0),
        (LogLevel::Info, 1, 1),
        (LogLevel::Warning, 2, 1),
        (LogLevel::Error, 3, 2),
        (LogLevel::Critical, 4, 3),
    ] {
        let expected = [&own[from..], &always, &others[others_from..]].concat();
        assert_eq!(levels(level), expected, "{level:?}");
    }
}

#[test]
fn a_line_has_the_four_names_first_then_its_fields_then_its_spans() {
    let log = Captured::json(LogLevel::Info);
    tracing::dispatcher::with_default(&log.dispatch, || {
        let _outer =
            tracing::info_span!("request", request_id = "r1", late = tracing::field::Empty)
                .entered();
        tracing::Span::current().record("late", 7);
        let _inner = tracing::info_span!("call", tool = "of the span").entered();
        tracing::warn!(
            tool = "of the event",
            count = 3,
            level = "fake",
            ok = true,
            "done"
        );
    });
    let text = log.into_text();
    let (start, rest) = text.split_once("Z\",").unwrap();
    let time: jiff::Timestamp = (start[r#"{"timestamp":""#.len()..].to_owned() + "Z")
        .parse()
        .unwrap();
    assert!(time.duration_until(jiff::Timestamp::now()).as_secs().abs() < 60);
    assert_eq!(start.rsplit_once('.').unwrap().1.len(), 3, "{start}");
    assert_eq!(
        rest,
        r#""level":"WARNING","message":"done","target":"mcpo_bridge::telemetry::logs::tests","#
            .to_owned()
            + r#""tool":"of the event","count":3,"ok":true,"request_id":"r1","late":7}"#
            + "\n"
    );
}

#[test]
fn nothing_that_others_chose_can_forge_a_line_or_steer_a_terminal() {
    let evil = "a\nINFO b\r\x1b[31m\u{9b}2J\u{202e}\"\u{2028}é日本";
    for text in [
        text_of(LogLevel::Info, || tracing::info!(name = evil, "{evil}")),
        {
            let log = Captured::json(LogLevel::Info);
            tracing::dispatcher::with_default(&log.dispatch, || {
                tracing::info!(name = evil, "{evil}");
            });
            log.into_text()
        },
    ] {
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        let bad = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c));
        assert!(!text.contains(bad), "{text:?}");
        assert!(text.contains("é日本"));
    }
    let lines = lines_of(LogLevel::Info, || tracing::info!(name = evil, "{evil}"));
    assert_eq!(lines[0]["name"], evil);
    assert_eq!(lines[0]["message"], evil);
}

#[test]
fn text_is_for_people() {
    let text = text_of(LogLevel::Info, || {
        tracing::info!(server = "excel", why = "no such file", n = 2, "not ready");
    });
    let (_, rest) = text.split_once("Z ").unwrap();
    assert_eq!(
        rest,
        "INFO     mcpo_bridge::telemetry::logs::tests not ready server=excel why=\"no such file\" n=2\n"
    );
}

#[test]
fn a_flood_in_one_field_is_cut() {
    let lines = lines_of(LogLevel::Info, || {
        tracing::info!(said = "é".repeat(100_000), "child");
    });
    let said = lines[0]["said"].as_str().unwrap();
    assert!(said.len() < 10_000 && said.ends_with("é…"));
}

#[test]
fn an_error_is_written_with_its_causes() {
    let inner = io::Error::other("inner");
    let outer = LogError::Open {
        path: "/x".into(),
        error: inner,
    };
    let lines = lines_of(LogLevel::Info, || {
        tracing::info!(error = &outer as &dyn std::error::Error, "failed");
    });
    assert!(lines[0]["error"].as_str().unwrap().contains("inner"));
}

#[test]
fn the_format_follows_the_terminal_only_when_it_may() {
    assert_eq!(format(LogFormat::Auto, false), Format::Json);
    assert_eq!(format(LogFormat::Json, true), Format::Json);
    assert_eq!(
        format(LogFormat::Text, false),
        Format::Text { colour: false }
    );
    assert!(matches!(format(LogFormat::Auto, true), Format::Text { .. }));
}

#[test]
fn a_new_log_file_is_private_and_an_old_one_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bridge.log");
    for _ in 0..2 {
        writeln!(open(&path).unwrap(), "{{}}").unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n{}\n");
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_log_file_that_cannot_be_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none/bridge.log");
    let error = init(&log(Some(path))).unwrap_err();
    assert!(matches!(error, LogError::NoFolder(_)));
    assert!(error.to_string().contains("none/bridge.log"), "{error}");
    let error = init(&log(Some(folder.path().to_owned()))).unwrap_err();
    assert!(matches!(error, LogError::Open { .. }), "{error}");
    assert!(open(Path::new("")).is_err());
}
