//! Python packages, with uv: versions and hashes are chosen once, then exactly these are installed and
//! compiled.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bridge_process::launch::{Kind, PythonSet, Resolved, Run, Sources, Target};

use super::{
    folder::{Failed, Record, Work},
    pin::{Packages, Pin, wanted_python},
};

/// uv's settings for the whole machine. uv reads settings for tools from this file and from the user's
/// folder; a file in the working directory belongs to a project.
const SYSTEM_CONFIG: &str = "/etc/uv/uv.toml";

/// Chooses versions. `anew` asks the index again instead of using the cache.
pub async fn choose(set: &PythonSet, work: &Work<'_>, anew: bool) -> Result<Packages, Failed> {
    let venv = make_venv(set, None, work).await?;
    let asked = work.write("requirements.in", &lines(&set.requirements))?;
    let mut args = words(["pip", "compile", "--quiet", "--no-header", "--no-annotate"]);
    args.push("--generate-hashes".to_owned());
    args.extend(["--python".to_owned(), text(&venv.join("bin/python"))]);
    if anew {
        args.push("--refresh".to_owned());
    }
    args.extend(set.choosing.iter().cloned());
    args.extend(set.fetching.iter().cloned());
    args.extend(settings(work));
    args.push(text(&asked));
    args.extend(set.script.as_deref().map(text));
    let compiled = work.run(&set.uv, args).await?;
    Ok(Packages::Python {
        python: version(&venv)?,
        requirements: requirements(&compiled),
    })
}

/// Installs the versions of `pin`; returns the console scripts of all packages: `name → module:function`.
pub async fn install(
    set: &PythonSet,
    pin: &Pin,
    work: &Work<'_>,
) -> Result<BTreeMap<String, String>, Failed> {
    let Packages::Python {
        python,
        requirements,
    } = &pin.packages
    else {
        return Err("its entry in the lock file contains npm packages".to_owned());
    };
    let venv = make_venv(set, Some(python), work).await?;
    let list = work.write("requirements.txt", &lines(requirements))?;
    let mut args = words(["pip", "sync", "--quiet", "--allow-empty-requirements"]);
    // Local folders have no hash. uv verifies every hash that is given, also without the flag.
    if requirements.iter().all(|line| line.contains("--hash=")) {
        args.push("--require-hashes".to_owned());
    }
    args.push("--compile-bytecode".to_owned());
    args.extend(["--python".to_owned(), text(&venv.join("bin/python"))]);
    args.extend(set.fetching.iter().cloned());
    args.extend(settings(work));
    args.push(text(&list));
    work.run(&set.uv, args).await?;
    Ok(console_scripts(&venv))
}

/// How the environment's program is started; the error is the reason why it cannot be.
pub fn resolve(set: &PythonSet, folder: &Path, record: &Record) -> Result<Resolved, Failed> {
    let venv = folder.join("venv");
    let bin = venv.join("bin");
    let python = bin.join("python");
    let mut program = text(&python);
    let (run, args, target) = match &set.run {
        Run::Module(module) => {
            let target = Target::Module(module.clone());
            (format!("-m {module}"), words(["-m", module]), Some(target))
        }
        Run::File(file) => (
            text(file),
            vec![text(file)],
            Some(Target::File(file.clone())),
        ),
        Run::Script(name) => {
            let script = bin.join(name);
            if !script.exists() {
                let there: Vec<&str> = record.scripts.keys().map(String::as_str).collect();
                let there = if there.is_empty() {
                    "none".to_owned()
                } else {
                    there.join(", ")
                };
                return Err(format!(
                    "its packages contain no program '{name}'; programs: {there}"
                ));
            }
            let target = record.scripts.get(name).and_then(|entry| function(entry));
            if is_python(&script) {
                (name.clone(), vec![text(&script)], target)
            } else {
                program = text(&script);
                (name.clone(), Vec::new(), None)
            }
        }
    };
    Ok(Resolved {
        program,
        args,
        path: Some(bin),
        kind: Kind::Python {
            interpreter: python,
            target,
        },
        // Two programs of one environment are different servers. A folder has no version.
        identity: Some(format!(
            "{} {run} {}",
            record.pin.digest(),
            wanted_python(set)
        )),
        main: main(set, &record.pin),
        sources: Sources::read(set.sources.iter().cloned()),
        ..Resolved::default()
    })
}

/// Name and version of the first requested package.
fn main(set: &PythonSet, pin: &Pin) -> Option<(String, String)> {
    let asked = set.requirements.first()?;
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = asked.find(|c| !of_name(c)).unwrap_or(asked.len());
    let name = normal(&asked[..end]);
    let mut versions = pin.versions().into_iter();
    versions.find(|(known, _)| normal(known) == name)
}

/// Normalizes a package name: `My_Package` and `my-package` are the same.
fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

async fn make_venv(
    set: &PythonSet,
    python: Option<&str>,
    work: &Work<'_>,
) -> Result<PathBuf, Failed> {
    let venv = work.stage.join("venv");
    if venv.exists() {
        return Ok(venv);
    }
    // Relocatable: the environment is renamed once it is complete.
    let mut args = words(["venv", "--quiet", "--relocatable", "--no-project"]);
    let asked = set.python.as_deref();
    // A version range such as `>=3.11` was resolved when the versions were chosen; a name or a path is used
    // as is.
    let named = asked.filter(|asked| asked.contains(char::is_alphabetic));
    if let Some(python) = named.or(python.map(minor)).or(asked) {
        args.extend(words(["--python", python]));
    }
    args.extend(settings(work));
    args.push(text(&venv));
    work.run(&set.uv, args).await?;
    Ok(venv)
}

/// A tool uses the machine's settings, not those of a project in a parent folder.
fn settings(work: &Work<'_>) -> Vec<String> {
    if work.says("UV_CONFIG_FILE") || work.says("UV_NO_CONFIG") {
        Vec::new()
    } else if Path::new(SYSTEM_CONFIG).exists() {
        words(["--config-file", SYSTEM_CONFIG])
    } else {
        words(["--no-config"])
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn lines(list: &[String]) -> String {
    list.join("\n") + "\n"
}

/// The minor version: `3.11` for `3.11.2`.
fn minor(version: &str) -> &str {
    let second = version.match_indices('.').nth(1);
    second.map_or(version, |(at, _)| &version[..at])
}

fn version(venv: &Path) -> Result<String, Failed> {
    let text = fs::read_to_string(venv.join("pyvenv.cfg")).unwrap_or_default();
    let named = text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "version_info").then(|| minor(value.trim()).to_owned())
    });
    named.ok_or_else(|| "uv created an environment without a version".to_owned())
}

/// One line per package: uv writes hashes on continuation lines.
fn requirements(compiled: &str) -> Vec<String> {
    let joined = compiled.replace("\\\n", " ");
    let lines = joined.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.join(" ")
    });
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("--"))
        .collect()
}

/// `name → module:function` of all installed packages.
fn console_scripts(venv: &Path) -> BTreeMap<String, String> {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let sites = entries(venv.join("lib")).map(|python| python.path().join("site-packages"));
    let mut scripts = BTreeMap::new();
    for package in sites.flat_map(entries) {
        let text = fs::read_to_string(package.path().join("entry_points.txt"));
        scripts.extend(scripts_of(&text.unwrap_or_default()));
    }
    scripts
}

fn scripts_of(entry_points: &str) -> Vec<(String, String)> {
    let mut section = "";
    let mut scripts = Vec::new();
    for line in entry_points.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name;
        } else if let Some((name, entry)) = line.split_once('=')
            && section == "console_scripts"
            && !line.starts_with(['#', ';'])
        {
            // `module:function [extra]`
            let entry = entry.split('[').next().unwrap_or_default();
            scripts.push((name.trim().to_owned(), entry.trim().to_owned()));
        }
    }
    scripts
}

fn function(entry: &str) -> Option<Target> {
    let (module, function) = entry.split_once(':')?;
    Some(Target::Function {
        module: module.trim().to_owned(),
        function: function.trim().to_owned(),
    })
}

/// Whether Python runs the script: by its first line, or by that of a relocatable script.
fn is_python(script: &Path) -> bool {
    let content = fs::read(script).unwrap_or_default();
    let head = String::from_utf8_lossy(&content[..content.len().min(512)]).into_owned();
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let second = lines.next().unwrap_or_default();
    first.starts_with("#!")
        && (first.contains("python") || second.starts_with("'''exec'") && second.contains("python"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_joined_to_their_package() {
        let compiled = "# made\n--index-url x\na[b]==1.0 ; sys_platform == 'linux' \\\n    \
                        --hash=sha256:1 \\\n    --hash=sha256:2\nc==2\n";
        assert_eq!(
            requirements(compiled),
            [
                "a[b]==1.0 ; sys_platform == 'linux' --hash=sha256:1 --hash=sha256:2",
                "c==2"
            ]
        );
    }

    #[test]
    fn console_scripts_are_found_among_other_entry_points() {
        let text = "[gui_scripts]\nx = y:z\n\n[console_scripts]\n# no\na = b.c:main\n\
                    d=e:f.g [extra]\n[other]\nh = i:j\n";
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(scripts_of(text), [own("a", "b.c:main"), own("d", "e:f.g")]);
        let target = Target::Function {
            module: "e".into(),
            function: "f.g".into(),
        };
        assert_eq!(function("e:f.g"), Some(target));
        assert_eq!(function("e"), None);
    }

    #[test]
    fn scripts_of_python_are_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        for (text, python) in [
            ("#!/x/venv/bin/python\nimport x\n", true),
            (
                "#!/bin/sh\n'''exec' \"$(dirname -- \"$0\")\"/'python3' \"$0\" \"$@\"\n' '''\n",
                true,
            ),
            ("#!/bin/sh\nexec node \"$0\"\n", false),
            ("\u{7f}ELF python", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(is_python(&file), python, "{text}");
        }
    }

    #[test]
    fn an_interpreter_is_named_by_two_numbers() {
        assert_eq!(["3.11.2", "3.11", "3"].map(minor), ["3.11", "3.11", "3"]);
    }
}
