//! Variables that look like settings but are not.

use super::reader::{Setting, table};

const PREFIX: &str = "MCPO_";

/// A warning for each of these variables that is spelled nearly like a setting's. Others that begin with
/// `MCPO_` may have another purpose: the server file may read them, and so do the files that start a
/// container.
pub fn misspelt_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = table().iter().map(Setting::variable).collect();
    let mut unknown: Vec<String> = names
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect();
    unknown.sort();
    let warn = |name: String| {
        let distance = |known: &&String| strsim::damerau_levenshtein(&name, known);
        let nearest = known.iter().min_by_key(distance)?;
        // Of a short name two letters are half.
        let most = if name.len() < PREFIX.len() + 6 { 1 } else { 2 };
        (distance(&nearest) <= most).then(|| {
            format!(
                "the variable {name} has no effect: there is no such setting; did you mean {nearest}? (see `mcpo-bridge \
                 serve --help`)"
            )
        })
    };
    unknown.into_iter().filter_map(warn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_reported_with_the_nearest_setting() {
        let names = [
            "MCPO_API_KEYS",
            "MCPO_PROT",
            "MCPO_TIMEOUT",
            "MCPO_API_KEY_FILE",
            "MCPO_UID",
            "MCPO_ASSETS_DIR",
            "MCPO_CPUS",
            "MCPO_BINARY",
            "MCPO_IMAGE_TAG",
            "MY_API_KEYS",
        ];
        let warnings = misspelt_variables(names.map(str::to_owned).into_iter());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].contains("MCPO_API_KEYS")
                && warnings[0].contains("did you mean MCPO_API_KEY?")
        );
        assert!(
            warnings[1].contains("MCPO_PROT") && warnings[1].contains("did you mean MCPO_PORT?")
        );
    }
}
