//! Variables that look like settings and are none.

use super::table::{settings_command, variable_of};

const PREFIX: &str = "MCPO_";

/// A warning for each of these variables that is spelled nearly like a setting's. Others that begin with
/// `MCPO_` may be somebody's own: the server file may read them, and so do the files that start a
/// container.
pub fn misspelt_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let command = settings_command();
    let known: Vec<String> = command.get_arguments().map(variable_of).collect();
    let mut unknown: Vec<String> = names
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .collect();
    unknown.sort();
    let warn = |name: String| {
        let distance = |known: &&String| strsim::damerau_levenshtein(&name, known);
        let nearest = known
            .iter()
            .filter(|known| !known.is_empty())
            .min_by_key(distance)?;
        // Of a short name two letters are half.
        let most = if name.len() < PREFIX.len() + 6 { 1 } else { 2 };
        (distance(&nearest) <= most).then(|| {
            format!(
                "the variable {name} is no setting and does nothing; is {nearest} meant? (--help lists all)"
            )
        })
    };
    unknown.into_iter().filter_map(warn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_with_the_name_that_was_meant() {
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
            warnings[0].contains("MCPO_API_KEYS") && warnings[0].contains("is MCPO_API_KEY meant")
        );
        assert!(warnings[1].contains("MCPO_PROT") && warnings[1].contains("is MCPO_PORT meant"));
    }
}
