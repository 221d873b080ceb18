//! Other programs: finding them, running them, and saying what they said when they fail.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{Context, Result, fail};

/// How much of a failed program's output an error repeats.
const TAIL_LINES: usize = 15;

/// A progress line, on stderr: stdout belongs to results.
pub fn say(area: &str, text: impl AsRef<str>) {
    eprintln!("xtask: {area}: {}", text.as_ref());
}

/// The full path of a program on PATH or in the system folders that root's PATH has.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// Whether `file` is a file that somebody may execute.
pub fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs a program to its end without showing its output, and fails with the end of it.
pub fn run(command: &mut Command) -> Result<()> {
    captured(command).map(drop)
}

/// Runs a program to its end and returns its standard output as text.
pub fn text(command: &mut Command) -> Result<String> {
    let output = captured(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn captured(command: &mut Command) -> Result<Output> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("`{shown}` could not be started"))?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    fail(format!(
        "`{shown}` failed ({}):\n{}",
        output.status,
        tail(&said, TAIL_LINES)
    ))
}

/// The last `count` lines of `text`.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

/// `word` as the shell reads it back unchanged.
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_the_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME;`x`", "a\nb"] {
            let script = format!("printf %s {}", quoted(OsStr::new(word)));
            let said = text(Command::new("sh").args(["-c", &script]));
            assert_eq!(said.ok().as_deref(), Some(word));
        }
    }

    #[test]
    fn a_failure_repeats_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo the cause >&2; exit 3"]));
        let error = error.map_err(|e| e.to_string()).unwrap_err();
        assert!(
            error.contains("the cause") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
