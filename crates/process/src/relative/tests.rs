use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

const ID: &str = "01234567-89ab-4def-8123-456789abcdef";

fn folder() -> JobFolderPaths {
    JobFolderPaths {
        canonical: format!("/data/jobs/{ID}").into(),
        configured: format!("/srv/mcpo jobs/{ID}").into(),
        short_tmp: Some("/tmp/mb-k3x9qa/7".into()),
    }
}

fn rewritten(json: &str) -> String {
    let raw = RawJson::parse(Bytes::from(json.replace("ID", ID))).unwrap();
    relative(raw, &folder()).as_str().replace(ID, "ID")
}

#[test]
fn paths_become_relative_names() {
    for (before, after) in [
        (r#""/data/jobs/ID/work/a/b.xlsx""#, r#""a/b.xlsx""#),
        (r#""/data/jobs/ID/work""#, r#"".""#),
        (r#""/data/jobs/ID/work/""#, r#""./""#),
        (r#""/data/jobs/ID""#, r#""..""#),
        (r#""/data/jobs/ID/""#, r#""../""#),
        (r#""/data/jobs/ID/tmp/x""#, r#""../tmp/x""#),
        (r#""file:///data/jobs/ID/work/x""#, r#""x""#),
        (r#""file:/data/jobs/ID/work/x""#, r#""x""#),
        (r#""file:///srv/mcpo%20jobs/ID/work/x""#, r#""x""#),
        (r#""/srv/mcpo jobs/ID/work/x""#, r#""x""#),
        (r#""/data//jobs/ID//work//x""#, r#""x""#),
        (r#"{"/data/jobs/ID/work/k":[1.0]}"#, r#"{"k":[1.0]}"#),
        (
            r#""Saved to:\n/data/jobs/ID/work/x\nDone""#,
            r#""Saved to:\nx\nDone""#,
        ),
        (
            r#""保存先は/data/jobs/ID/work/売上.xlsxです""#,
            r#""保存先は売上.xlsxです""#,
        ),
        (
            r#""\u306f/data/jobs/ID/work/\u58f2.xlsx""#,
            r#""\u306f\u58f2.xlsx""#,
        ),
        (r#""in /data/jobs/ID/work.""#, r#""in ./.""#),
        (r#""in /data/jobs/ID/work, ok""#, r#""in ., ok""#),
        (
            r#""PWD=/data/jobs/ID/work/a:/data/jobs/ID/work/b""#,
            r#""PWD=a:b""#,
        ),
        (r#""(/data/jobs/ID/work)""#, r#""(.)""#),
        (
            r#""in /tmp/mb-k3x9qa/7/c.png, ok""#,
            r#""in ../tmp/c.png, ok""#,
        ),
        (r#""file:///tmp/mb-k3x9qa/7/c.png""#, r#""../tmp/c.png""#),
        (r#""\/tmp\/mb-k3x9qa\/7\/c.png""#, r#""../tmp\/c.png""#),
        (r#""/tmp/mb-k3x9qa/7""#, r#""../tmp""#),
        (
            r#""/tmp/mb-k3x9qa/7/a:/data/jobs/ID/work/b""#,
            r#""../tmp/a:b""#,
        ),
    ] {
        assert_eq!(rewritten(before), after, "{before}");
    }
}

#[test]
fn escaped_slashes_and_json_within_json_are_seen() {
    for (before, after) in [
        (r#""\/data\/jobs\/ID\/work\/a\/b.xlsx""#, r#""a\/b.xlsx""#),
        (
            r#""{\"p\":\"/data/jobs/ID/work/x\"}""#,
            r#""{\"p\":\"x\"}""#,
        ),
        (
            r#""{\"p\":\"\\/data\\/jobs\\/ID\\/work\\/x\"}""#,
            r#""{\"p\":\"x\"}""#,
        ),
        (r#""{\"p\":\"/data/jobs/ID/work\"}""#, r#""{\"p\":\".\"}""#),
        (r#""file:\/\/\/data\/jobs\/ID\/work\/x""#, r#""x""#),
        (
            r#""{\"p\":\"/data/jobs/ID/work/\\u58f2.xlsx\"}""#,
            r#""{\"p\":\"\\u58f2.xlsx\"}""#,
        ),
        (r#""a\\n/data/jobs/ID/work/x""#, r#""a\\nx""#),
    ] {
        assert_eq!(rewritten(before), after, "{before}");
    }
}

#[test]
fn odd_jobs_folders_are_seen_as_servers_escape_them() {
    let folder = JobFolderPaths {
        canonical: format!("/data/ジョブ\"q/{ID}").into(),
        configured: format!("/{ID}").into(),
        short_tmp: None,
    };
    for before in [
        r#""/data/ジョブ\"q/ID/work/x""#,
        r#""/data/\u30b8\u30e7\u30d6\"q/ID/work/x""#,
        r#""\"/data/\\u30b8\\u30E7\\u30d6\\\"q/ID/work/x\"""#,
        r#""/ID/work/x""#,
    ] {
        let raw = RawJson::parse(before.replace("ID", ID).into()).unwrap();
        let after = relative(raw, &folder);
        assert!(
            matches!(after.as_str(), r#""x""# | r#""\"x\"""#),
            "{before}: {}",
            after.as_str()
        );
    }
}

#[test]
fn what_only_looks_like_it_stays() {
    for same in [
        r#""/data/jobs/IDx/work""#,
        r#""/data/jobs/ID-1/work""#,
        r#""/host/data/jobs/ID/work""#,
        r#""/tmp/mb-k3x9qa/71/c.png""#,
        r#""/var/tmp/mb-k3x9qa/7/c.png""#,
        r#""/tmp/mb-k3x9qa""#,
        r#""http://h/data/jobs/ID/work""#,
        r#""data/jobs/ID/work""#,
        r#""/data/jobs/other/work/x""#,
        r#""job ID is done""#,
        r#"{ "n": 1e400, "s": "\ud83d\ude00" }"#,
    ] {
        assert_eq!(rewritten(same), same);
    }
    assert_eq!(
        rewritten(r#""/data/jobs/ID/workbook/x""#),
        r#""../workbook/x""#
    );
    assert_eq!(
        rewritten(r#""/data/jobs/ID/work.xlsx""#),
        r#""../work.xlsx""#
    );
}

#[test]
fn nothing_is_copied_where_nothing_matches() {
    let bytes = Bytes::from_static(br#"{"text":"nothing of ours","n":1.0}"#);
    let raw = RawJson::parse(bytes.clone()).unwrap();
    let same = relative(raw, &folder()).into_bytes();
    assert_eq!(same.as_ptr(), bytes.as_ptr());
}

/// Any text, with pieces that make or break paths in between.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(format!("/data/jobs/{ID}")),
        Just(format!("/srv/mcpo jobs/{ID}/work")),
        Just(format!("file:///data/jobs/{ID}/work/")),
        Just(ID.to_owned()),
        Just("/data/jobs/".to_owned()),
        Just("/work/".to_owned()),
        Just("/".to_owned()),
        Just("\\".to_owned()),
        Just("\"".to_owned()),
        Just("\n".to_owned()),
        "[a-z. 売]{0,4}",
        any::<String>(),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn encode(text: &str, depth: usize, escape_slashes: bool) -> String {
    let mut json = Value::from(text).to_string();
    for _ in 0..depth {
        if escape_slashes {
            json = json.replace('/', "\\/");
        }
        json = Value::from(json).to_string();
    }
    json
}

proptest! {
    #[test]
    fn any_answer_stays_json_and_is_done_in_one_go(
        text in texts(), depth in 0_usize..3, slashes: bool,
    ) {
        let raw = RawJson::parse(encode(&text, depth, slashes).into()).unwrap();
        let once = relative(raw, &folder());
        prop_assert!(RawJson::parse(once.clone().into_bytes()).is_ok());
        let twice = relative(once.clone(), &folder());
        prop_assert_eq!(once.as_str(), twice.as_str());
    }

    #[test]
    fn a_path_between_words_never_shows_the_job(
        before in "[ -~売\n\t]{0,20}[ :=(売\n\t\"]", file in "[a-z0-9売. ()/]{0,20}",
        depth in 0_usize..3, slashes: bool,
        part in prop_oneof![Just(""), Just("/"), Just("/work"), Just("/work/"), Just("/tmp/")],
    ) {
        let file = if part.ends_with('/') { file.as_str() } else { "" };
        let text = format!("{before}/data/jobs/{ID}{part}{file} and more");
        let raw = RawJson::parse(encode(&text, depth, slashes).into()).unwrap();
        let after = relative(raw, &folder());
        prop_assert!(!after.as_str().contains(ID), "{}", after.as_str());
    }

    #[test]
    fn without_the_job_every_byte_stays(text: String, depth in 0_usize..3) {
        let json = encode(&text, depth, true);
        let raw = RawJson::parse(json.clone().into()).unwrap();
        let after = relative(raw, &folder());
        prop_assert_eq!(after.as_str(), json);
    }
}

#[test]
fn plain_text_keeps_neither_the_folder_nor_the_id() {
    let text = format!("File \"/data/jobs/{ID}/work/a.py\" in /data/jobs/{ID}: job {ID}\nend");
    let said = relative_text(&text, &folder());
    assert!(said.starts_with("File \"a.py\" in ..: job #"), "{said}");
    assert!(said.ends_with("\nend") && !said.contains(ID), "{said}");
}
