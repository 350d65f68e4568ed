use super::*;

fn command(line: &str) -> CommandSpec {
    // Spaces within a word are written as `_` there.
    let mut words = line.split(' ').map(|word| word.replace('␣', " "));
    CommandSpec {
        program: words.next().unwrap(),
        args: words.collect(),
        env: indexmap::IndexMap::new(),
        cwd: None,
    }
}

fn read_line(line: &str) -> Result<Wanted, Why> {
    read(&command(line), &|name| name == "installed-globally")
}

/// What matters of a Python set, in one line.
fn python(line: &str) -> String {
    let wanted = read_line(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    let What::Python(set) = wanted.what else {
        panic!("{line}: not Python")
    };
    let run = match set.run {
        Run::Script(name) => name,
        Run::Module(name) => format!("-m {name}"),
        Run::File(path) => path.display().to_string(),
    };
    let mut parts = vec![set.requirements.join(" "), run, wanted.rest.to_string()];
    parts.extend(set.python.map(|python| format!("py {python}")));
    let options = [set.choosing, set.fetching].concat();
    parts.extend((!options.is_empty()).then(|| options.join(" ")));
    parts.join(" | ")
}

fn node(line: &str) -> String {
    let wanted = read_line(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    let What::Node(set) = wanted.what else {
        panic!("{line}: not Node")
    };
    let (packages, rest) = (set.packages.join(" "), wanted.rest);
    let bin = set.bin.unwrap_or_else(|| "-".to_owned());
    format!("{packages} | {} | {bin} | {rest}", set.main)
}

#[test]
fn uvx_is_read_as_uvx_reads_it() {
    for (line, expected) in [
        (
            "uvx mcp-server-time",
            "mcp-server-time | mcp-server-time | 1",
        ),
        (
            "uvx mcp-server-time --local-timezone UTC",
            "mcp-server-time | mcp-server-time | 1",
        ),
        (
            "uvx -q mcp-server-time -q",
            "mcp-server-time | mcp-server-time | 2",
        ),
        (
            "uvx -- mcp-server-time -- x",
            "mcp-server-time | mcp-server-time | 2",
        ),
        (
            "uvx mcp_server_time@latest",
            "mcp_server_time | mcp_server_time | 1",
        ),
        ("uvx excel@2.2.2 stdio", "excel==2.2.2 | excel | 1"),
        ("uvx excel==2.2.2 stdio", "excel==2.2.2 | excel | 1"),
        ("uvx excel[all]@2.2 x", "excel[all]==2.2 | excel | 1"),
        ("uvx excel[a,b]>=1,<2", "excel[a,b]>=1,<2 | excel | 1"),
        ("uvx --python >=3.11 excel", "excel | excel | 3 | py >=3.11"),
        ("uvx -p3.12 excel", "excel | excel | 2 | py 3.12"),
        ("uvx -p=3.12 excel", "excel | excel | 2 | py 3.12"),
        ("uvx --python=3.12 excel", "excel | excel | 2 | py 3.12"),
        ("uvx --with mcp<2 excel", "excel mcp<2 | excel | 3"),
        (
            "uvx -w mcp>=1,<2,pillow[x,y] excel",
            "excel mcp>=1,<2 pillow[x,y] | excel | 3",
        ),
        (
            "uvx --from office==2.0.7 ppt_mcp_server",
            "office==2.0.7 | ppt_mcp_server | 3",
        ),
        ("uvx --from=office[x]@2 ppt", "office[x]==2 | ppt | 2"),
        ("/opt/bin/uvx excel", "excel | excel | 1"),
        ("uv tool run --from a b c", "a | b | 5"),
        ("uv --quiet tool run a", "a | a | 4"),
        (
            "uvx --index https://pypi.example/simple --prerelease allow a",
            "a | a | 5 | --prerelease allow --index https://pypi.example/simple",
        ),
        ("uvx -U --refresh --isolated -vv a", "a | a | 5"),
        ("pipx run cowsay==6 --help", "cowsay==6 | cowsay | 2"),
        ("pipx run --spec cowsay==6 moo -- -x", "cowsay==6 | moo | 5"),
        (
            "pipx run --python 3.11 cowsay",
            "cowsay | cowsay | 4 | py 3.11",
        ),
        (
            "uv run --with mcp python -m server --x",
            "mcp | -m server | 6",
        ),
        ("uv run --with mcp -m server --x", "mcp | -m server | 5"),
        ("uv run --with mcp /srv/none -v", "mcp | /srv/none | 4"),
    ] {
        assert_eq!(python(line), expected, "{line}");
    }
}

#[test]
fn the_uv_beside_a_uvx_does_its_work() {
    let What::Python(set) = read_line("/opt/bin/uvx a").unwrap().what else {
        panic!()
    };
    assert_eq!(set.uv, "/opt/bin/uv");
}

#[test]
fn what_is_not_understood_runs_as_written() {
    for (line, why) in [
        ("uvx", "no package"),
        ("uvx git+https://example.com/x.git", "git+https"),
        ("uvx --from git+https://example.com/x.git x", "git+https"),
        ("uvx --with x␣@␣git+ssh://example.com/x.git x", "git+ssh"),
        ("uvx --from https://u:p@example.com/x.whl x", "password"),
        ("uvx --index https://u:p@example.com/ x", "password"),
        ("uvx --index name=https://u:p@example.com/ x", "password"),
        ("uvx --env-file .env x", "--env-file"),
        ("uvx --brand-new-option x", "--brand-new-option"),
        ("uvx -Z x", "-Z"),
        ("uvx --directory /x y", "--directory"),
        ("uvx python", "interpreter"),
        ("uvx python@3.12", "interpreter"),
        ("uvx ./pkg", "workspace"),
        ("uvx --from ./pkg x", "workspace"),
        ("uvx --find-links wheels x", "workspace"),
        ("uvx https://example.com/x.whl", "without --from"),
        ("uvx x@feature", "no version"),
        ("uvx --with {MCPO_WORKDIR}/x.whl x", "path"),
        ("uvx x{MCPO_JOB_ID}", "workspace"),
        ("uv sync", "neither"),
        ("uv run --script server.py", "workspace"),
        ("uv run -", "elsewhere"),
        ("uv run", "nothing"),
        ("uv --directory /x run y", "--directory"),
        ("uv run --project /x y", "--project"),
        ("pipx install x", "pipx run"),
        ("pipx run --pip-args x y", "--pip-args"),
        ("npx", "no package"),
        ("npx -c echo", "--c"),
        ("npx --no-install x", "--no-install"),
        ("npx --yes=false x", "--yes"),
        ("npx github:user/repo", "registry"),
        ("npx user/repo", "registry"),
        ("npx ./folder", "registry"),
        ("npx pkg.tgz", "registry"),
        ("npx name@npm:other", "registry"),
        ("npx name@https://example.com/x", "registry"),
        ("npx installed-globally", "already"),
        ("npx --registry https://u:p@example.com x", "password"),
        ("npm install x", "npm exec"),
        ("npm exec pkg --flag", "--"),
        ("python3 -c pass", "neither"),
        ("python3", "neither"),
        ("node server.js", "no launcher"),
        ("docker run x", "no launcher"),
    ] {
        let told = read_line(line).expect_err(line);
        assert!(told.contains(why), "{line}: {told}");
    }
}

#[test]
fn npx_is_read_as_npx_reads_it() {
    for (line, expected) in [
        ("npx -y server", "server | server | - | 2"),
        ("npx -y server@1.2 -y --flag", "server@1.2 | server | - | 2"),
        (
            "npx --yes @scope/server@^1 x",
            "@scope/server@^1 | @scope/server | - | 2",
        ),
        (
            "npx -- @scope/server",
            "@scope/server | @scope/server | - | 2",
        ),
        ("npx -y server -- x", "server | server | - | 2"),
        (
            "npx -p server -p other@2 run",
            "server other@2 | server | run | 5",
        ),
        ("npx --package=server run -p x", "server | server | run | 2"),
        (
            "npx --registry=https://r.example server",
            "server | server | - | 2",
        ),
        ("npm exec -y -- server --flag", "server | server | - | 4"),
        ("npm x server", "server | server | - | 2"),
    ] {
        assert_eq!(node(line), expected, "{line}");
    }
}

#[test]
fn npx_in_a_folder_of_its_own_is_left_alone() {
    let mut command = command("npx server");
    command.cwd = Some("/srv".into());
    assert!(read(&command, &|_| false).unwrap_err().contains("cwd"));
}

#[test]
fn an_interpreter_needs_nothing_installed() {
    for (line, target, rest) in [
        (
            "python3 -m pkg.server --x",
            Target::Module("pkg.server".into()),
            2,
        ),
        ("python3.12 -u -mserver", Target::Module("server".into()), 2),
        (
            "python -X dev -W ignore -IB s.py -m x",
            Target::File("s.py".into()),
            6,
        ),
    ] {
        let wanted = read_line(line).unwrap();
        assert_eq!(wanted.what, What::Interpreter(target), "{line}");
        assert_eq!(wanted.rest, rest, "{line}");
    }
}

#[test]
fn paths_start_from_the_servers_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pkg")).unwrap();
    let mut command = command("uvx --from ./pkg --find-links wheels run");
    command.cwd = Some(folder.path().to_owned());
    let What::Python(set) = read(&command, &|_| false).unwrap().what else {
        panic!()
    };
    let pkg = folder.path().canonicalize().unwrap().join("pkg");
    assert_eq!(set.requirements, [pkg.to_str().unwrap()]);
    assert_eq!(set.sources, [pkg]);
    let wheels = folder.path().join("wheels");
    assert_eq!(set.fetching, ["--find-links", wheels.to_str().unwrap()]);
}

#[test]
fn a_script_brings_its_own_needs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server.py");
    let write = |more: &str| {
        let head = "#!/usr/bin/env python3\n# /// script\n# requires-python = \">=3.11\" # new\n";
        std::fs::write(&file, format!("{head}{more}# ///\nprint()\n")).unwrap();
    };
    write("# dependencies = [\"mcp\"]\n");
    let line = format!("uv run --quiet --script {} --x", file.display());
    let wanted = read_line(&line).unwrap();
    assert_eq!(wanted.rest, 4);
    let What::Python(set) = wanted.what else {
        panic!()
    };
    assert_eq!(
        (set.script, set.python.as_deref()),
        (Some(file.clone()), Some(">=3.11"))
    );
    assert_eq!(
        (set.run, set.sources),
        (Run::File(file.clone()), vec![file.clone()])
    );
    write("# [tool.uv]\n# index-url = \"x\"\n");
    assert!(read_line(&line).unwrap_err().contains("[tool.uv]"));
}
