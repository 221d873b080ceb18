//! The direction of dependencies between the project's crates, checked against `cargo metadata`.

use std::process::Command;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::program;

/// Who may depend on whom: each on those after it.
const ORDER: [&str; 6] = ["vitrine", "api", "vmm", "devices", "memory", "observe"];

/// Crates from outside that belong to one crate of the project, by the beginning of their name.
const OWNED: [(&str, &str); 4] = [
    ("kvm-", "vmm"),
    ("vm-memory", "memory"),
    ("tokio", "api"),
    ("httparse", "api"),
];

/// Fails with all arrows that point the wrong way.
pub fn check() -> Result<()> {
    let metadata = metadata()?;
    let wrong = wrong_arrows(&dependencies(&metadata));
    if wrong.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = wrong.iter().map(|line| format!("  {line}")).collect();
    Err(Error::new(format!(
        "dependencies that are not allowed (the order is {}):\n{}",
        ORDER.join(" -> "),
        lines.join("\n")
    )))
}

/// What cargo knows of the workspace.
pub fn metadata() -> Result<Value> {
    let mut command = Command::new(cargo());
    let text = program::text(command.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context(|| "cargo metadata gave no JSON".to_owned())
}

/// The cargo that started us.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// All dependencies of the workspace's packages, of whatever kind, as (who, on whom).
fn dependencies(metadata: &Value) -> Vec<(String, String)> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    list(metadata, "packages")
        .iter()
        .flat_map(|package| {
            let who = name(package);
            let whom = list(package, "dependencies");
            whom.iter()
                .map(|on| (who.clone(), name(on)))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn wrong_arrows(dependencies: &[(String, String)]) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|crate_name| *crate_name == name);
    let mut wrong = Vec::new();
    for (who, whom) in dependencies {
        let owner = OWNED.iter().find(|(prefix, _)| whom.starts_with(prefix));
        match (place(who), place(whom)) {
            (Some(from), Some(to)) if from >= to => {
                wrong.push(format!("{who} -> {whom} points backwards"));
            }
            (None, Some(_)) => wrong.push(format!("{who} -> {whom}: {who} is not in the order")),
            _ if whom == "xtask" => wrong.push(format!("{who} -> xtask: nothing needs xtask")),
            _ => {}
        }
        if let Some((_, owner)) = owner
            && who != owner
        {
            wrong.push(format!("{who} -> {whom}: only {owner} uses {whom}"));
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(arrows: &[(&str, &str)]) -> usize {
        let arrows: Vec<_> = arrows
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        wrong_arrows(&arrows).len()
    }

    #[test]
    fn arrows_point_one_way() {
        assert_eq!(
            judged(&[
                ("vitrine", "api"),
                ("api", "observe"),
                ("vmm", "kvm-ioctls")
            ]),
            0
        );
        assert_eq!(judged(&[("observe", "memory")]), 1);
        assert_eq!(
            judged(&[("devices", "vmm"), ("devices", "kvm-bindings")]),
            2
        );
    }

    #[test]
    fn crates_from_outside_have_one_owner() {
        assert_eq!(judged(&[("memory", "vm-memory"), ("api", "tokio")]), 0);
        assert_eq!(judged(&[("vmm", "vm-memory"), ("vitrine", "httparse")]), 2);
    }

    #[test]
    fn xtask_stands_apart() {
        assert_eq!(judged(&[("xtask", "clap")]), 0);
        assert_eq!(judged(&[("xtask", "observe"), ("vitrine", "xtask")]), 2);
    }
}
