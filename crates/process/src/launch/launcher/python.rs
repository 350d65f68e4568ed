//! `python -m MODULE` and `python FILE`: what runs is there already.

use std::path::PathBuf;

use super::{Target, Wanted, What, Why};
use crate::spec::CommandSpec;

/// `python`, `python3`, `python3.12`.
pub fn is_interpreter(name: &str) -> bool {
    let version = name.strip_prefix("python");
    version.is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// The whole command.
pub fn read(command: &CommandSpec) -> Result<Wanted, Why> {
    let (target, behind) = target(&command.args)?;
    Ok(Wanted {
        rest: behind,
        what: What::Interpreter(target),
    })
}

/// What an interpreter with these arguments runs, and how many of them say so.
pub fn target(args: &[String]) -> Result<(Target, usize), Why> {
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        if let Some(module) = word.strip_prefix("-m") {
            let next = || args.get(at).map(String::as_str);
            let (module, behind) = match module {
                "" => (next(), at + 1),
                joined => (Some(joined), at),
            };
            let module = module.ok_or("-m has no module")?;
            return Ok((Target::Module(module.to_owned()), behind));
        }
        match word.as_str() {
            "-W" | "-X" => at += 1,
            "-" | "-c" => return Err("the interpreter runs neither a module nor a file".to_owned()),
            flag if flag.starts_with("-W") || flag.starts_with("-X") => {}
            flag if flag.starts_with('-') => {
                let known = |c: char| "bBdEhiIOPqsSuvVx".contains(c);
                if flag.starts_with("--") || !flag[1..].chars().all(known) {
                    return Err(format!("the interpreter's option {flag} is not known here"));
                }
            }
            file => return Ok((Target::File(PathBuf::from(file)), at)),
        }
    }
    Err("the interpreter runs neither a module nor a file".to_owned())
}
