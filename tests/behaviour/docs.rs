//! Documents and deployment files agree with the code.

use crate::support::at_the_root;
use regex::Regex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// All files below a folder of the repository, and the content of the Rust files among them.
fn below(folder: &Path, files: &mut Vec<String>, code: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.to_str().expect("UTF-8").to_owned();
        if path.is_dir() {
            files.push(format!("{name}/"));
            below(&path, files, code);
        } else {
            if path.extension().is_some_and(|extension| extension == "rs") {
                code.push_str(&fs::read_to_string(&path).expect("a source"));
            }
            files.push(name);
        }
    }
}

#[test]
fn every_name_in_the_architecture_is_one_in_the_code() {
    let (mut files, mut code) = (Vec::new(), String::new());
    for folder in ["crates", "deploy", "scripts", "tests"] {
        below(Path::new(&at_the_root(folder)), &mut files, &mut code);
    }
    let document = fs::read_to_string(at_the_root("docs/architecture.md")).expect("the document");
    let quoted = Regex::new("`([^`\n]+)`").expect("a pattern");
    let path = Regex::new(r"^[\w.-]+(/[\w.-]+)*(\.rs|\.py|/)$").expect("a pattern");
    let item = Regex::new(r"^(?:\w+::)*([A-Za-z]\w+)(?:\(\w*\))?$").expect("a pattern");
    // The folder of a chat, which is not in the repository.
    let elsewhere = ["work/"];
    let mut unknown = Vec::new();
    for name in quoted
        .captures_iter(&document)
        .map(|found| found[1].to_owned())
    {
        let known = if path.is_match(&name) {
            elsewhere.contains(&&*name)
                || files.iter().any(|file| file.ends_with(&format!("/{name}")))
        } else if let Some(found) = item
            .captures(&name)
            .filter(|_| name.contains("::") || name.starts_with(|c: char| c.is_ascii_uppercase()))
        {
            let word = Regex::new(&format!(r"\b{}\b", &found[1])).expect("a pattern");
            word.is_match(&code)
        } else {
            true
        };
        if !known {
            unknown.push(name);
        }
    }
    assert!(
        unknown.is_empty(),
        "docs/architecture.md names what is not there: {unknown:?}"
    );
}

/// The variables that a Compose file reads, or passes to a container.
fn variables(compose: &str) -> BTreeSet<String> {
    let lines = compose.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| line.split(" #").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join("\n");
    let read = Regex::new(r"\$\{([A-Z_]+)|(?m)^ +([A-Z][A-Z_]+):$").expect("a pattern");
    let found = read.captures_iter(&text);
    let found = found.filter_map(|found| found.get(1).or(found.get(2)));
    found.map(|name| name.as_str().to_owned()).collect()
}

#[test]
fn the_dotenv_example_names_every_variable_that_compose_takes_and_no_other() {
    let text =
        |file: &str| fs::read_to_string(at_the_root(file)).expect("a file of the repository");
    let files = ["yml", "prod.yml", "scale.yml", "override.yml.example"];
    let taken = files.map(|file| variables(&text(&format!("docker-compose.{file}"))));
    let taken: BTreeSet<String> = taken.into_iter().flatten().collect();
    let name = Regex::new("(?m)^#?([A-Z][A-Z_]+)=").expect("a pattern");
    let example = text(".env.example");
    let named = name
        .captures_iter(&example)
        .map(|found| found[1].to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), taken);
}

/// A page without its examples: its prose, and its tables of settings, if any.
fn prose_and_settings(page: &str) -> (String, String) {
    let text = fs::read_to_string(at_the_root(&format!("docs/{page}.md"))).expect("a page");
    let example = Regex::new("(?ms)^```.*?^```$").expect("a pattern");
    let text = example.replace_all(&text, "").into_owned();
    let Some((before, rest)) = text.split_once("<!-- settings:start -->") else {
        return (text, String::new());
    };
    let end = "<!-- settings:end -->";
    let (settings, after) = rest.split_once(end).expect("the end of the settings");
    (format!("{before}{after}"), settings.to_owned())
}

/// The matches of a pattern in a text, without line breaks.
fn found(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    let found = pattern.find_iter(text);
    found
        .map(|found| found.as_str().replace('\n', " "))
        .collect()
}

/// The rows of a table of settings by variable: all cells but the last, which is prose.
fn rows(settings: &str) -> BTreeMap<String, String> {
    let row = Regex::new(r"(?m)^\| `(MCPO_[A-Z_]+)` \|(.*)\|[^|]*\|$").expect("a pattern");
    let rows = row.captures_iter(settings);
    rows.map(|row| (row[1].to_owned(), row[2].to_owned()))
        .collect()
}

#[test]
fn japanese_references_name_what_the_english_ones_name() {
    let (name, number) = ("`[^`]+`", r"[0-9]+(,[0-9]{3})*");
    // `docs/texts.md` has no translation: the texts themselves are English.
    for page in ["api", "configuration", "security"] {
        let (english, english_settings) = prose_and_settings(page);
        let (japanese, japanese_settings) = prose_and_settings(&format!("{page}.ja"));
        let (ours, theirs) = (found(name, &japanese), found(name, &english));
        let differing: Vec<_> = ours.symmetric_difference(&theirs).collect();
        assert!(
            differing.is_empty(),
            "only one of docs/{page}.md and docs/{page}.ja.md names {differing:?}"
        );
        let (ours, theirs) = (found(number, &japanese), found(number, &english));
        let missing: Vec<_> = theirs.difference(&ours).collect();
        assert!(
            missing.is_empty(),
            "docs/{page}.ja.md lacks the numbers {missing:?} of docs/{page}.md"
        );
        let (ours, theirs) = (rows(&japanese_settings), rows(&english_settings));
        let variables = |rows: &BTreeMap<String, String>| rows.keys().cloned().collect();
        let (listed, known): (BTreeSet<_>, BTreeSet<_>) = (variables(&ours), variables(&theirs));
        let differing: Vec<_> = listed.symmetric_difference(&known).collect();
        assert!(
            differing.is_empty(),
            "only one of docs/{page}.md and docs/{page}.ja.md has the settings {differing:?}"
        );
        for (variable, cells) in ours {
            for value in found(name, &cells) {
                assert!(
                    theirs[&variable].contains(&value),
                    "docs/{page}.md does not say {value} of {variable}"
                );
            }
        }
    }
}

/// The anchors that GitHub generates for the headings of a page, and those written in the page.
fn anchors(text: &str) -> BTreeSet<String> {
    let heading = Regex::new("(?m)^#+ (.+)$").expect("a pattern");
    let link = Regex::new(r"\[([^\]]*)\]\([^)]*\)").expect("a pattern");
    let written = Regex::new("<a id=\"([^\"]+)\">").expect("a pattern");
    let of_heading = |text: &str| -> String {
        let plain = link.replace_all(text, "$1").trim().to_lowercase();
        let kept = |letter: &char| letter.is_alphanumeric() || "_- ".contains(*letter);
        plain
            .chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    let headings = heading
        .captures_iter(text)
        .map(|found| of_heading(&found[1]));
    let written = written.captures_iter(text).map(|found| found[1].to_owned());
    headings.chain(written).collect()
}

#[test]
fn links_between_pages_lead_to_a_file_and_a_heading() {
    let (mut pages, mut code) = (Vec::new(), String::new());
    below(Path::new(&at_the_root("docs")), &mut pages, &mut code);
    pages.retain(|page| Path::new(page).extension().is_some_and(|kind| kind == "md"));
    pages.extend(
        [
            "README.md",
            "README.ja.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
        ]
        .map(at_the_root),
    );
    let example = Regex::new("(?ms)^ *```.*?^ *```$").expect("a pattern");
    let link = Regex::new(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)").expect("a pattern");
    let text = |page: &Path| {
        let text = fs::read_to_string(page).expect("a page");
        example.replace_all(&text, "").into_owned()
    };
    let (mut followed, mut broken) = (0, Vec::new());
    for page in &pages {
        let page = Path::new(page);
        for found in link.captures_iter(&text(page)) {
            let (file, anchor) = (&found[1], found.get(2).map(|anchor| anchor.as_str()));
            if file.contains(':') {
                continue;
            }
            let target = match file {
                "" => page.to_owned(),
                file => page.parent().expect("a folder").join(file),
            };
            let there = target.exists()
                && anchor.is_none_or(|anchor| anchors(&text(&target)).contains(anchor));
            followed += 1;
            if !there {
                broken.push(format!("{}: {}", page.display(), &found[0]));
            }
        }
    }
    assert!(followed > 100, "only {followed} links were found");
    assert!(broken.is_empty(), "links lead nowhere: {broken:#?}");
}
