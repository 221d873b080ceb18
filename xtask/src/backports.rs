//! Adds the distribution's backports suite to apt, as a copy of the source it already uses.

use std::fs;
use std::path::Path;

use crate::apt;
use crate::error::{Context, Result, fail};
use crate::program::say;

const SOURCES: &str = "/etc/apt/sources.list.d";

/// Makes `CODENAME-backports` known to apt and returns its name. Packages come from it only when
/// asked for by name: backports have a low priority of themselves.
pub fn ensure() -> Result<String> {
    let codename = apt::codename()?;
    let suite = format!("{codename}-backports");
    let mut files: Vec<_> = fs::read_dir(SOURCES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|x| x == "sources" || x == "list")
        })
        .collect();
    files.sort();
    files.push(Path::new("/etc/apt/sources.list").to_path_buf());
    let mut copy = None;
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let deb822 = file.extension().is_some_and(|x| x == "sources");
        if names_suite(&text, &suite, deb822) {
            return Ok(suite);
        }
        let copied = if deb822 {
            from_stanzas(&text, &codename).map(|text| (text, "sources"))
        } else {
            from_lines(&text, &codename).map(|text| (text, "list"))
        };
        copy = copy.or(copied);
    }
    let Some((text, extension)) = copy else {
        return fail(format!(
            "no apt source for {codename} was found to copy for {suite}: add the suite by hand"
        ));
    };
    let file = format!("{SOURCES}/vitrine-backports.{extension}");
    say("apt", format!("adding the suite {suite} in {file}"));
    fs::write(&file, text).context(|| format!("cannot write {file}"))?;
    apt::update()?;
    Ok(suite)
}

fn names_suite(text: &str, suite: &str, deb822: bool) -> bool {
    text.lines()
        .filter(|line| {
            if deb822 {
                line.starts_with("Suites:")
            } else {
                line.starts_with("deb ")
            }
        })
        .any(|line| line.split_whitespace().any(|word| word == suite))
}

/// The first binary stanza with the suite `codename`, for backports (deb822 format).
fn from_stanzas(text: &str, codename: &str) -> Option<String> {
    let is_field = |line: &str, name: &str| line.to_ascii_lowercase().starts_with(name);
    let has_word = |line: &str, word: &str| line.split_whitespace().any(|w| w == word);
    let disabled = |l: &str| is_field(l, "enabled:") && has_word(l, "no");
    text.split("\n\n").find_map(|stanza| {
        let lines = || stanza.lines().filter(|line| !line.starts_with('#'));
        let fits = lines().any(|l| is_field(l, "types:") && has_word(l, "deb"))
            && lines().any(|l| is_field(l, "suites:") && has_word(l, codename))
            && !lines().any(disabled);
        fits.then(|| {
            let copied = lines().map(|line| {
                if is_field(line, "suites:") {
                    format!("Suites: {codename}-backports\n")
                } else if is_field(line, "types:") {
                    "Types: deb\n".to_owned()
                } else {
                    format!("{line}\n")
                }
            });
            copied.collect()
        })
    })
}

/// The first binary line with the suite `codename`, for backports (one-line format).
fn from_lines(text: &str, codename: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("deb "))
        .find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == codename)?;
            let backports = format!("{codename}-backports");
            let copied: Vec<&str> = words
                .iter()
                .enumerate()
                .map(|(i, word)| if i == at { backports.as_str() } else { word })
                .collect();
            Some(format!("{}\n", copied.join(" ")))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_is_copied_with_its_key() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm \
                    bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\nTypes: deb\n\
                    URIs: http://mirror/s\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            from_stanzas(text, "bookworm").as_deref(),
            Some(
                "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm-backports\n\
                 Components: main\nSigned-By: /k.gpg\n"
            )
        );
        assert_eq!(from_stanzas(text, "trixie"), None);
    }

    #[test]
    fn a_line_is_copied_with_its_options() {
        let text = "# deb http://no bookworm main\ndeb-src http://m bookworm main\n\
                    deb [signed-by=/k] http://m bookworm main contrib\n";
        assert_eq!(
            from_lines(text, "bookworm").as_deref(),
            Some("deb [signed-by=/k] http://m bookworm-backports main contrib\n")
        );
    }

    #[test]
    fn a_suite_that_is_there_is_seen() {
        assert!(names_suite(
            "Suites: a bookworm-backports\n",
            "bookworm-backports",
            true
        ));
        assert!(!names_suite(
            "Suites: bookworm\n",
            "bookworm-backports",
            true
        ));
        assert!(names_suite(
            "deb http://m b-backports main\n",
            "b-backports",
            false
        ));
    }
}
