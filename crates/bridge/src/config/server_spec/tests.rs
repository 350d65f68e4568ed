use bridge_process::RemoteKind;

use super::*;

fn spec() -> ServerSpec {
    ServerSpec {
        name: "excel".parse().unwrap(),
        transport: Transport::Stdio(CommandSpec {
            program: "uvx".into(),
            args: vec!["--dir={MCPO_WORKDIR}/x".into(), "{MCPO_JOB_ID}".into()],
            env: [
                ("TOKEN".to_owned(), "hunter2".to_owned()),
                ("DIR".to_owned(), "{MCPO_WORKDIR}".to_owned()),
            ]
            .into(),
            cwd: None,
        }),
        mode: Mode::Stateful,
        workspace: WorkspaceScope::Chat,
        idle_timeout: Duration::from_mins(30),
        timeout: Duration::from_mins(5),
        max_processes_per_chat: 1,
        concurrency: None,
        enabled_tools: None,
        disabled_tools: Vec::new(),
        usage_guide: None,
        post_instruction: None,
        file_path_fields: Vec::new(),
        resolve_path_fields: Vec::new(),
        resolve_uri_fields: Vec::new(),
        before_end: None,
        embed: Vec::new(),
        install: true,
        launch: Launch::Auto,
        pool: None,
        forwarding: None,
        allow: None,
        remembered: Remembered::default(),
        session_lists: false,
    }
}

fn command(spec: &mut ServerSpec) -> &mut CommandSpec {
    match &mut spec.transport {
        Transport::Stdio(command) => command,
        Transport::Remote(_) => panic!("a stdio server"),
    }
}

type Change = fn(&mut ServerSpec);

#[test]
fn the_version_follows_what_shapes_a_child_and_nothing_else() {
    let base = spec().version();
    let shaping: [Change; 8] = [
        |s| s.mode = Mode::Shared,
        |s| s.workspace = WorkspaceScope::Own,
        |s| command(s).program.push('x'),
        |s| command(s).args = vec!["--dir={MCPO_WORKDIR}/x{MCPO_JOB_ID}".into()],
        |s| {
            command(s).env.insert("TOKEN".into(), "other".into());
        },
        |s| command(s).cwd = Some("/srv".into()),
        |s| s.name = "word".parse().unwrap(),
        |s| s.install = false,
    ];
    for (number, change) in shaping.iter().enumerate() {
        let mut spec = spec();
        change(&mut spec);
        assert_ne!(spec.version(), base, "change {number}");
    }
    let outside: [Change; 3] = [
        |s| s.idle_timeout = Duration::from_secs(1),
        |s| s.usage_guide = Some("x".into()),
        |s| command(s).env.reverse(),
    ];
    for (number, change) in outside.iter().enumerate() {
        let mut spec = spec();
        change(&mut spec);
        assert_eq!(spec.version(), base, "change {number}");
    }
}

#[test]
fn disabled_tools_win_over_enabled_ones() {
    let mut spec = spec();
    assert!(spec.offers("any"));
    spec.enabled_tools = Some(vec!["read".into(), "write".into()]);
    spec.disabled_tools = vec!["write".into()];
    assert!(spec.offers("read"));
    assert!(!spec.offers("write"));
    assert!(!spec.offers("any"));
}

#[test]
fn debug_shows_no_value() {
    let shown = format!("{:?}", spec());
    assert!(shown.contains("TOKEN"), "{shown}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("--dir"),
        "{shown}"
    );
    let remote = Transport::Remote(RemoteSpec {
        url: "https://mcp.example/key-in-path?token=hunter2"
            .parse()
            .unwrap(),
        kind: RemoteKind::Sse,
        headers: [("Authorization".to_owned(), "Bearer hunter2".to_owned())].into(),
    });
    let shown = format!("{remote:?}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("key-in-path"),
        "{shown}"
    );
}
