use std::{fs, time::Duration};

use clap::{Args, Command, FromArgMatches};

use super::*;

/// Parses flags as the program would, variables of the test's environment left out.
fn args(flags: &[&str]) -> SettingsArgs {
    let command =
        SettingsArgs::augment_args(Command::new("t")).mut_args(|arg| arg.env(None::<&str>));
    let matches = command.get_matches_from(["t"].iter().chain(flags));
    SettingsArgs::from_arg_matches(&matches).unwrap()
}

fn resolve(flags: &[&str]) -> Result<Settings, Faults> {
    args(flags).resolve()
}

#[test]
fn the_defaults_are_the_products() {
    let s = resolve(&[]).unwrap();
    assert_eq!(s.listen.host, "127.0.0.1");
    assert_eq!(s.listen.port, 8080);
    assert_eq!(s.listen.base_url.to_string(), "http://localhost:8080");
    assert_eq!(s.listen.allowed_hosts, ["localhost", "127.0.0.1", "::1"]);
    assert_eq!(s.config_file.to_str(), Some("mcp-servers.json"));
    assert_eq!(s.lock_file.to_str(), Some("mcp-servers.lock.json"));
    assert_eq!(s.jobs_dir.to_str(), Some("/tmp/mcpo-jobs"));
    assert_eq!(s.files.expiry, Duration::from_hours(1));
    assert_eq!(s.files.retention, Duration::from_hours(1));
    assert_eq!(s.limits.timeout, Duration::from_mins(5));
    assert_eq!(s.limits.max_concurrent.get(), 4 * s.limits.max_starts.get());
    assert!(s.stateful.enabled);
    assert_eq!(s.stateful.default_idle_timeout, Duration::from_mins(30));
    assert_eq!(
        s.stateful.max_total_processes.get(),
        crate::config::DEFAULT_MAX_TOTAL_PROCESSES
    );
    assert_eq!(s.stateful.cleanup_interval, Duration::from_mins(5));
    assert_eq!(s.default_mode, Mode::Stateful);
    assert_eq!(s.log.level, LogLevel::Info);
    assert!(s.access.keys.is_empty() && s.warnings.is_empty());
}

#[test]
fn args_without_a_command_line_are_the_defaults_too() {
    let made = SettingsArgs::default().resolve().unwrap();
    let parsed = resolve(&[]).unwrap();
    assert_eq!(format!("{made:?}"), format!("{parsed:?}"));
}

#[test]
fn an_empty_value_is_an_unset_one() {
    let s = resolve(&[
        "--port=",
        "--api-key=",
        "--api-key-file=",
        "--file-retention=",
        "--log-file= ",
        "--trusted-proxies=",
        "--strict-auth=",
        "--cors-allow-origins=",
    ])
    .unwrap();
    assert_eq!(s.listen.port, 8080);
    assert!(s.access.keys.is_empty() && s.log.file.is_none());
    assert_eq!(s.access.trusted_proxies.len(), 2);
}

#[test]
fn all_faults_come_at_once_with_name_value_and_fix() {
    let faults = resolve(&[
        "--port=99999",
        "--timeout=soon",
        "--base-url=localhost",
        "--log-level=loud",
        "--max-body-bytes=32M",
        "--strict-auth=perhaps",
        "--header-user-id=a b",
    ])
    .unwrap_err();
    assert_eq!(faults.faults.len(), 7, "{faults}");
    let text = faults.to_string();
    for part in [
        "--port / MCPO_PORT = 99999: ",
        "--timeout / MCPO_TIMEOUT = soon: ",
        "use one of DEBUG, INFO",
        "32MiB",
        "write true or false",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_flag_without_value_is_a_yes() {
    assert!(resolve(&["--strict-auth"]).unwrap().access.strict_auth);
    assert!(!resolve(&["--strict-auth=off"]).unwrap().access.strict_auth);
}

#[test]
fn beyond_loopback_a_key_is_needed_unless_said_otherwise() {
    for host in ["0.0.0.0", "::", "192.168.1.2", "bridge", "[::]"] {
        let faults = resolve(&["--host", host]).unwrap_err();
        assert_eq!(faults.faults.len(), 1);
        assert!(faults.to_string().contains("MCPO_API_KEY"), "{faults}");
        assert!(resolve(&["--host", host, "--api-key=k"]).is_ok());
        let open = resolve(&["--host", host, "--allow-unauthenticated"]).unwrap();
        assert_eq!(open.warnings.len(), 1);
    }
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
        assert!(resolve(&["--host", host]).is_ok(), "{host}");
    }
}

#[test]
fn secrets_come_from_files_without_their_last_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let file = file.to_str().unwrap();
    fs::write(file, "alice:k1\nbob:k2\r\n").unwrap();
    let s = resolve(&["--api-key-file", file, "--jwt-secret-file", file]).unwrap();
    assert_eq!(s.access.keys.find(b"k2"), Some("bob"));
    let jwt = s.access.jwt_secret.unwrap();
    assert_eq!(jwt.expose(), "alice:k1\nbob:k2");
}

#[test]
fn secret_files_that_cannot_serve_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let empty = empty.to_str().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    for file in [empty, missing] {
        let faults = resolve(&["--host=0.0.0.0", "--api-key-file", file]).unwrap_err();
        assert_eq!(faults.faults.len(), 1, "{faults}");
        assert!(faults.to_string().contains("MCPO_API_KEY_FILE"), "{faults}");
    }
    let both = resolve(&["--jwt-secret=x", "--jwt-secret-file", missing]).unwrap_err();
    assert!(
        both.to_string().contains("set only one of the two"),
        "{both}"
    );
}

#[test]
fn no_output_shows_a_secret() {
    let s = resolve(&["--api-key=alice:hunter2", "--jwt-secret=swordfish"]).unwrap();
    let shown = format!("{s:?}");
    assert!(shown.contains("alice"), "{shown}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("swordfish"),
        "{shown}"
    );
    let faults = resolve(&["--api-key=hunter2,hunter3", "--base-url=http://u:hunter2@x"]);
    let text = faults.unwrap_err().to_string();
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn allowed_hosts_are_ours_and_the_named_ones() {
    let s = resolve(&[
        "--host=10.0.0.5",
        "--api-key=k",
        "--base-url=https://Chat.Example/mcpo",
        "--allowed-hosts=mcpo-bridge:8080",
        "--allowed-hosts=other",
    ])
    .unwrap();
    let hosts = s.listen.allowed_hosts;
    assert_eq!(
        hosts,
        [
            "localhost",
            "127.0.0.1",
            "::1",
            "10.0.0.5",
            "chat.example",
            "mcpo-bridge",
            "other"
        ]
    );
}

#[test]
fn what_weakens_the_bridge_or_its_links_is_a_warning() {
    let s = resolve(&[
        "--trusted-proxies=0.0.0.0/0",
        "--jwt-secret=short",
        "--allowed-hosts=*",
        "--base-url=http://mcpo-bridge:8080",
    ]);
    assert_eq!(s.unwrap().warnings.len(), 4);
}

#[test]
fn flattening_leaves_the_commands_own_words() {
    /// Serves.
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        settings: SettingsArgs,
    }
    let about = <Cli as clap::CommandFactory>::command()
        .get_about()
        .map(ToString::to_string);
    assert_eq!(about.as_deref(), Some("Serves"));
    let cli = <Cli as clap::Parser>::parse_from(["t", "--port=1"]);
    assert!(cli.settings.given("port") == Some("1"));
}

#[test]
fn the_links_front_follows_the_port_and_the_certificate() {
    let url = |flags: &[&str]| resolve(flags).unwrap().listen.base_url.to_string();
    assert_eq!(url(&["--port", "8000"]), "http://localhost:8000");
    let tls = ["-p", "8443", "-t", "c.pem", "-K", "k.pem"];
    assert_eq!(url(&tls), "https://localhost:8443");
    assert_eq!(url(&["-p", "1", "--base-url", "/"]), "/");
}

#[test]
fn a_certificate_needs_its_key() {
    let faults = resolve(&["--ssl-certfile", "c.pem"])
        .unwrap_err()
        .to_string();
    assert!(
        faults.contains("--ssl-keyfile / MCPO_SSL_KEYFILE is not given"),
        "{faults}"
    );
}

#[test]
fn a_root_path_must_not_be_a_route() {
    for (root, prefix) in [("/mcpo", ""), ("/docs/x", ""), ("/p/files", "/p")] {
        let faults = resolve(&["--root-path", root, "--path-prefix", prefix]).unwrap_err();
        assert!(faults.to_string().contains("MCPO_ROOT_PATH"), "{faults}");
    }
    for (root, prefix) in [
        ("/tools", ""),
        ("/mcpo", "/p"),
        ("/p", "/p"),
        ("/mcpox", ""),
    ] {
        assert!(resolve(&["--root-path", root, "--path-prefix", prefix]).is_ok());
    }
}
