//! Integration test targets: built with cargo, then run on this machine or in the lab.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::arrows::{cargo, metadata};
use crate::error::{Context, Result, fail};
use crate::lab::{self, End, Job};
use crate::program::{self, find, quoted};

/// The profile of what runs in the lab: optimised, with all checks.
const PROFILE: &str = "lab";

/// A test program and the `vitrine` that it starts.
pub struct Built {
    test: PathBuf,
    vitrine: PathBuf,
    /// Prometheus' checker, for tests that need it.
    pub promtool: Option<PathBuf>,
}

/// Builds the test target `name` of the root package.
pub fn build(name: &str) -> Result<Built> {
    if !exists(&metadata()?, name) {
        return fail(format!("there is no test target `{name}` in Cargo.toml"));
    }
    let arguments = [
        "test",
        "--package",
        "vitrine",
        "--profile",
        PROFILE,
        "--no-run",
        "--test",
    ];
    let test = artifact(&[&arguments[..], &[name]].concat(), name)?;
    let arguments = [
        "build",
        "--package",
        "vitrine",
        "--profile",
        PROFILE,
        "--bin",
        "vitrine",
    ];
    let vitrine = artifact(&arguments, "vitrine")?;
    Ok(Built {
        test,
        vitrine,
        promtool: None,
    })
}

fn exists(metadata: &Value, name: &str) -> bool {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .filter(|package| package["name"] == "vitrine")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .any(|target| target["name"] == name && target["kind"][0] == "test")
}

/// Runs cargo and returns the executable of the target `name`.
pub fn artifact(arguments: &[&str], name: &str) -> Result<PathBuf> {
    let output = Command::new(cargo())
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(|| "cargo could not be started".to_owned())?;
    if !output.status.success() {
        return fail(format!("`cargo {}` failed", arguments.join(" ")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    executable(&text, name)
        .map_or_else(|| fail(format!("cargo built no executable for {name}")), Ok)
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let parsed = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

/// Runs a test program on this machine.
pub fn run_here(
    built: &Built,
    images: &Path,
    arguments: &[String],
    limit: Duration,
    out: &mut dyn Write,
) -> Result<End> {
    let mut command = vec![built.test.clone().into_os_string()];
    command.extend(arguments.iter().map(OsString::from));
    let mut env = vec![
        ("VITRINE_BIN", built.vitrine.as_path()),
        ("VITRINE_IMAGES", images),
    ];
    if let Some(promtool) = &built.promtool {
        env.push(("VITRINE_PROMTOOL", promtool));
    }
    run_limited(&command, &env, limit, out)
}

/// The names of the tests that these arguments choose.
pub fn list(built: &Built, arguments: &[String]) -> Result<Vec<String>> {
    let said = program::text(Command::new(&built.test).args(arguments).arg("--list"))?;
    let names = said.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Runs a program to its end or to the time limit; its stdout goes to `out` as it comes.
pub fn run_limited(
    program: &[OsString],
    env: &[(&str, &Path)],
    limit: Duration,
    out: &mut dyn Write,
) -> Result<End> {
    // `timeout` ends the program with all that it started, also when we die.
    let mut words: Vec<OsString> = Vec::new();
    if find("setpriv").is_some() {
        words.extend(["setpriv", "--pdeathsig", "TERM", "--"].map(OsString::from));
    }
    words.extend(["timeout", "--kill-after=10"].map(OsString::from));
    words.push(limit.as_secs().to_string().into());
    words.extend_from_slice(program);
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| format!("{} could not be started", program[0].display()))?;
    let mut buffer = [0; 8192];
    if let Some(mut pipe) = child.stdout.take() {
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
        }
    }
    let status = child.wait().context(|| "a test program".to_owned())?;
    Ok(match status.code() {
        Some(124) => End::TimeUp,
        Some(code) => End::Exit(u8::try_from(code).unwrap_or(u8::MAX)),
        None => End::Exit(u8::MAX),
    })
}

/// Runs a test program in the lab, with all that it reads copied to memory there first.
pub fn run_in_lab(
    built: &Built,
    images: &Path,
    arguments: &[String],
    size: impl FnOnce(&mut Job),
    out: &mut (dyn Write + Send),
) -> Result<End> {
    let script = lab_script(built, images, arguments);
    let mut job = Job::new(&["bash", "-c", &script]);
    size(&mut job);
    lab::run(job, out, &mut std::io::stderr())
}

fn lab_script(built: &Built, images: &Path, arguments: &[String]) -> String {
    let q = |path: &Path| quoted(path.as_os_str());
    let words: Vec<String> = arguments.iter().map(|word| quoted(word.as_ref())).collect();
    // Read where it is: it is large, and the lab sees this machine's files.
    let promtool = built.promtool.as_deref().map_or_else(String::new, |path| {
        format!("export VITRINE_PROMTOOL={}\n", q(path))
    });
    format!(
        "set -eu\n\
         folder=/run/vitrine-test\n\
         mkdir -p $folder/images $folder/tmp\n\
         cp --sparse=always {}/* $folder/images/\n\
         cp {} $folder/vitrine\n\
         cp {} $folder/test\n\
         export VITRINE_BIN=$folder/vitrine VITRINE_IMAGES=$folder/images TMPDIR=$folder/tmp\n\
         {promtool}\
         exec $folder/test {}\n",
        q(images),
        q(&built.vitrine),
        q(&built.test),
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_in_cargos_messages() {
        let messages = "{\"reason\":\"x\",\"target\":{\"name\":\"zoo\"},\"executable\":null}\n\
                        noise\n{\"target\":{\"name\":\"zoo\"},\"executable\":\"/t/zoo-1\"}\n\
                        {\"target\":{\"name\":\"other\"},\"executable\":\"/t/other\"}\n";
        assert_eq!(executable(messages, "zoo"), Some(PathBuf::from("/t/zoo-1")));
        assert_eq!(executable(messages, "none"), None);
    }

    #[test]
    fn a_program_over_its_time_is_ended() {
        let program = ["sleep", "30"].map(OsString::from);
        let end = run_limited(&program, &[], Duration::from_secs(1), &mut std::io::sink());
        assert_eq!(end.ok(), Some(End::TimeUp));
    }

    #[test]
    fn output_and_status_come_back() {
        let program = ["sh", "-c", "echo said; exit 7"].map(OsString::from);
        let mut out = Vec::new();
        let end = run_limited(&program, &[], Duration::from_secs(30), &mut out);
        assert_eq!((end.ok(), out), (Some(End::Exit(7)), b"said\n".to_vec()));
    }
}
