use super::*;

fn command() -> CommandSpec {
    CommandSpec {
        program: "uvx".into(),
        args: vec!["--dir={MCPO_WORKDIR}/x".into(), "{MCPO_JOB_ID}".into()],
        env: [("DIR".to_owned(), "{MCPO_WORKDIR}".to_owned())].into(),
        cwd: None,
    }
}

#[test]
fn placeholders_are_filled_in_once() {
    let mut command = command();
    command.args.push("{{MCPO_JOB_ID}{x}".into());
    let job = JobId::random();
    let odd = Path::new("/jobs/{MCPO_JOB_ID}/work");
    let resolved = command.resolve(odd, &job, &UserValues::default());
    let args = [
        "--dir=/jobs/{MCPO_JOB_ID}/work/x".to_owned(),
        job.to_string(),
        format!("{{{job}{{x}}"),
    ];
    assert_eq!(resolved.args, args);
    assert_eq!(resolved.env["DIR"], "/jobs/{MCPO_JOB_ID}/work");
    assert_eq!(resolved.cwd, odd);
}

#[test]
fn a_relative_cwd_lies_in_the_workspace_and_an_absolute_one_does_not() {
    let mut command = command();
    for (written, folder) in [
        ("sub", "/w/sub"),
        ("/srv", "/srv"),
        ("{MCPO_WORKDIR}/a", "/w/a"),
    ] {
        command.cwd = Some(PathBuf::from(written));
        let resolved = command.resolve(Path::new("/w"), &JobId::random(), &UserValues::default());
        assert_eq!(resolved.cwd, Path::new(folder));
    }
}
