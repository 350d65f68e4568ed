//! `pipx run`. The work is done by `uv`, which must be there too.

use super::{
    PythonSet, Run, Wanted, What, Why,
    options::{
        self, Known,
        Use::{Fetch, From, Python, Skip, With},
        flag, valued,
    },
    requirement,
};
use crate::spec::CommandSpec;

const GLOBAL: &[Known] = &[
    flag("quiet", Some('q'), Skip),
    flag("verbose", Some('v'), Skip),
];

const RUN: &[Known] = &[
    flag("no-cache", None, Skip),
    valued("spec", None, From),
    valued("with", None, With),
    valued("python", None, Python),
    flag("fetch-missing-python", None, Skip),
    valued("index-url", Some('i'), Fetch),
];

/// `pipx run [OPTIONS] APP …`
pub fn read(command: &CommandSpec) -> Result<Wanted, Why> {
    let args = &command.args;
    let (_, at) = options::read(args, 0, &[GLOBAL])?;
    if args.get(at).map(String::as_str) != Some("run") {
        return Err("it is not `pipx run`".to_owned());
    }
    let (given, at) = options::read(args, at + 1, &[GLOBAL, RUN])?;
    let app = args.get(at).ok_or("no package is named")?;
    let cwd = command.cwd.as_deref();
    let mut set = PythonSet {
        uv: "uv".to_owned(),
        ..PythonSet::default()
    };
    let spec = given.iter().rev().find(|(given, _)| given.meaning == From);
    let main = requirement::read(spec.map_or(app.as_str(), |(spec, _)| &spec.value), cwd)?;
    let name = if spec.is_some() {
        app.clone()
    } else {
        let name = main.name.clone();
        name.ok_or("a path or URL does not name its program")?
    };
    set.run = Run::Script(name);
    let mut packages = vec![main];
    for (given, valued) in given {
        match given.meaning {
            Python => set.python = Some(given.value),
            With => packages.push(requirement::read(&given.value, cwd)?),
            Fetch => {
                let address = url::Url::parse(&given.value);
                let address = address.map_err(|_| "its index is no URL".to_owned())?;
                requirement::without_password(&address)?;
                set.fetching.extend(given.words(valued));
            }
            _ => {}
        }
    }
    for package in packages {
        set.requirements.push(package.text);
        set.sources.extend(package.source);
    }
    // pipx takes the first of these for itself.
    let rest = at + 1;
    let dashes = args.get(rest).is_some_and(|word| word == "--");
    Ok(Wanted {
        rest: rest + usize::from(dashes),
        what: What::Python(set),
    })
}
