//! The licences of all packages that a build takes, checked against the list in `deny.toml`. Asks
//! cargo alone, so that it works without a network.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::arrows::cargo;
use crate::error::{Context, Result, fail};
use crate::program;

/// Guests and hosts are x86-64 Linux: what other platforms would take is not built. As in
/// `deny.toml`.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Fails with all packages whose licence is not one that `deny.toml` allows.
pub fn check() -> Result<()> {
    let file = crate::repository()?.join("deny.toml");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let allowed = allowed(&text);
    if allowed.is_empty() {
        return fail("deny.toml allows no licence: its [licenses] section has no `allow` list");
    }
    let wrong = wrong_licences(&metadata()?, &allowed);
    if wrong.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = wrong.iter().map(|line| format!("  {line}")).collect();
    fail(format!(
        "packages whose licence deny.toml does not allow ({}):\n{}",
        allowed.join(", "),
        lines.join("\n")
    ))
}

/// What cargo knows of all packages that are built for [`PLATFORM`].
fn metadata() -> Result<Value> {
    let mut command = Command::new(cargo());
    let arguments = ["metadata", "--locked", "--format-version", "1"];
    command
        .args(arguments)
        .args(["--filter-platform", PLATFORM]);
    serde_json::from_str(&program::text(&mut command)?)
        .context(|| "cargo metadata gave no JSON".to_owned())
}

/// The strings of `allow` in the section `[licenses]`: as much TOML as that takes.
fn allowed(toml: &str) -> Vec<String> {
    let lines = toml
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    let section: Vec<&str> = lines
        .skip_while(|line| line.trim() != "[licenses]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .collect();
    let section = section.join("\n");
    let list = section
        .split_once("allow = [")
        .and_then(|(_, rest)| rest.split_once(']'));
    let words = list.map_or("", |(list, _)| list).split('"');
    words.skip(1).step_by(2).map(str::to_owned).collect()
}

fn wrong_licences(metadata: &Value, allowed: &[String]) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut wrong: Vec<String> = packages
        .filter_map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or_default();
            let name = format!("{} {}", text("name"), text("version"));
            match (text("license"), permits(text("license"), allowed)) {
                (_, Some(true)) => None,
                ("", _) => Some(format!("{name} names no licence")),
                (licence, Some(false)) => Some(format!("{name}: {licence}")),
                (licence, None) => Some(format!("{name}: {licence:?} is no licence expression")),
            }
        })
        .collect();
    wrong.sort();
    wrong
}

/// Whether `licence`, an SPDX expression, can be met by allowed licences alone; `None` when it is
/// malformed. The slash that old packages write means OR.
fn permits(licence: &str, allowed: &[String]) -> Option<bool> {
    let spaced = licence.replace('/', " OR ");
    let spaced = spaced.replace('(', " ( ").replace(')', " ) ");
    let mut expression = Expression {
        words: spaced.split_whitespace().collect(),
        at: 0,
        allowed,
    };
    let value = expression.any()?;
    (expression.at == expression.words.len()).then_some(value)
}

/// An expression that is read from left to right. WITH binds closer than AND, and AND than OR.
struct Expression<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a [String],
}

impl<'a> Expression<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at).copied();
        self.at += usize::from(word.is_some());
        word
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }

    fn any(&mut self) -> Option<bool> {
        let mut value = self.all()?;
        while self.take("OR") {
            value |= self.all()?;
        }
        Some(value)
    }

    fn all(&mut self) -> Option<bool> {
        let mut value = self.one()?;
        while self.take("AND") {
            value &= self.one()?;
        }
        Some(value)
    }

    fn one(&mut self) -> Option<bool> {
        match self.next()? {
            "(" => {
                let value = self.any()?;
                self.take(")").then_some(value)
            }
            ")" | "AND" | "OR" | "WITH" => None,
            id => {
                let mut id = id.to_owned();
                if self.take("WITH") {
                    id = format!("{id} WITH {}", self.next()?);
                }
                Some(self.allowed.contains(&id))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(licence: &str) -> Option<bool> {
        permits(
            licence,
            &["MIT", "Apache-2.0", "A WITH x"].map(str::to_owned),
        )
    }

    #[test]
    fn expressions_are_judged_by_what_must_be_met() {
        for licence in [
            "MIT",
            "GPL-2.0-only OR MIT",
            "MIT/Apache-2.0",
            "MIT AND Apache-2.0",
            "(GPL-2.0-only OR MIT) AND Apache-2.0",
            "GPL-2.0-only AND BSD-3-Clause OR MIT",
            "A WITH x OR GPL-2.0-only",
        ] {
            assert_eq!(judged(licence), Some(true), "{licence}");
        }
        for licence in [
            "GPL-2.0-only",
            "MIT AND GPL-2.0-only",
            "MIT AND (GPL-2.0-only OR BSD-3-Clause)",
            "A",
            "MIT WITH x",
        ] {
            assert_eq!(judged(licence), Some(false), "{licence}");
        }
    }

    #[test]
    fn what_is_no_expression_is_not_allowed() {
        for licence in [
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "AND MIT",
            "MIT Apache-2.0",
            "A WITH",
        ] {
            assert_eq!(judged(licence), None, "{licence}");
        }
    }

    #[test]
    fn the_list_is_found_in_its_section() {
        let toml = "[bans]\nallow = [\"x\"]\n[licenses]\n# \"no\"\nallow = [\n  \"MIT\", # why\n  \
                    \"A WITH x\",\n]\nconfidence-threshold = 0.9\n[sources]\nallow = [\"y\"]\n";
        assert_eq!(allowed(toml), ["MIT", "A WITH x"]);
        assert!(allowed("[licenses]\n").is_empty());
    }

    #[test]
    fn packages_that_are_not_allowed_are_named() {
        let metadata = json!({ "packages": [
            { "name": "good", "version": "1.0.0", "license": "MIT" },
            { "name": "odd", "version": "2.0.0", "license": "SSPL-1.0" },
            { "name": "mute", "version": "3.0.0", "license": null },
        ] });
        let wrong = wrong_licences(&metadata, &["MIT".to_owned()]);
        assert_eq!(
            wrong,
            ["mute 3.0.0 names no licence", "odd 2.0.0: SSPL-1.0"]
        );
    }

    #[test]
    fn the_projects_own_list_can_be_read() {
        let text = include_str!("../../deny.toml");
        assert!(allowed(text).contains(&"Apache-2.0".to_owned()));
    }
}
