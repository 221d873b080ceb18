//! An emulated machine that stands still. Once in some ten runs QEMU 10.0 loses an interrupt: the
//! timer's lies in the local APIC's IRR and is not delivered, so that no other one is ever set, while
//! a nested guest runs on or the CPU is halted. Another interrupt from outside makes the emulator look
//! again; where that does not help either, what can be seen is told, and the machine is given up soon,
//! so that the job can be started again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Result, fail};
use crate::program::say;

/// A machine that runs says so every five seconds; on a busy host, in time.
pub const SILENCE: Duration = Duration::from_secs(60);
/// What is looked at of a machine that stands still.
const QUESTIONS: [&str; 4] = ["info status", "info registers", "info lapic", "info pic"];
/// Lines of an answer that are told.
const LINES: usize = 40;

/// The emulator's monitor: QMP over a socket.
pub struct Monitor {
    /// Where the socket is.
    pub socket: PathBuf,
}

impl Monitor {
    /// Runs a command of QMP and returns what it returned.
    fn run(&self, command: &str, arguments: &Value) -> Result<Value> {
        let what = || format!("the emulator's monitor {}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).context(what)?;
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(Duration::from_secs(5))).context(what)?;
        }
        let mut lines = BufReader::new(stream.try_clone().context(what)?).lines();
        let mut ask = |request: &Value| {
            let mut writer = &stream;
            writeln!(writer, "{request}").context(what)?;
            answer(&mut lines)
        };
        ask(&json!({"execute": "qmp_capabilities"}))?;
        ask(&json!({"execute": command, "arguments": arguments}))
    }

    /// A command of the human monitor.
    fn text(&self, command: &str) -> Result<String> {
        let returned = self.run("human-monitor-command", &json!({"command-line": command}))?;
        Ok(returned.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// Tells what the machine's CPUs are at, and whether the emulator works or waits.
    pub fn examine(&self, emulator: u32) {
        let before = cpu_ticks(emulator);
        std::thread::sleep(Duration::from_secs(2));
        if let (Some(before), Some(after)) = (before, cpu_ticks(emulator)) {
            say(
                "lab",
                format!(
                    "the emulator used {} ticks of CPU time in 2 s",
                    after.saturating_sub(before)
                ),
            );
        }
        for question in QUESTIONS {
            match self.text(question) {
                Ok(text) => text
                    .lines()
                    .filter(|line| !is_noise(line))
                    .take(LINES)
                    .for_each(|line| say("lab", format!("{question}: {line}"))),
                Err(error) => say("lab", format!("{question}: {error}")),
            }
        }
    }

    /// Presses a key that means nothing, and releases it: two interrupts.
    pub fn press_key(&self) {
        let key = json!({"keys": [{"type": "qcode", "data": "shift"}]});
        if let Err(error) = self.run("send-key", &key) {
            say(
                "lab",
                format!("a silent machine could not be nudged: {error}"),
            );
        }
    }
}

/// Registers of floating point, and interrupt pins that are not in use.
fn is_noise(line: &str) -> bool {
    let line = line.trim_start();
    let starts = ["XMM", "YMM", "FPR", "FCW", "Opmask", "ZMM"];
    let is_unused = line.starts_with("pin ") && line.contains("masked");
    line.is_empty() || is_unused || starts.iter().any(|start| line.starts_with(start))
}

/// The next answer; events in between are left out.
fn answer(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Value> {
    for line in lines {
        let line = line.context(|| "the emulator's monitor does not answer".to_owned())?;
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if let Some(returned) = message.get("return") {
            return Ok(returned.clone());
        }
        if let Some(error) = message.get("error") {
            return fail(format!("the emulator's monitor: {error}"));
        }
    }
    fail("the emulator's monitor was closed")
}

/// User and system time of a process, in the kernel's ticks of 10 ms.
fn cpu_ticks(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || words.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_among_events() {
        let said = [
            r#"{"QMP": {"version": {}}}"#,
            r#"{"event": "POWERDOWN"}"#,
            r#"{"return": "VM status: running"}"#,
            r#"{"error": {"desc": "no such command"}}"#,
        ];
        let mut lines = said.iter().map(|line| Ok((*line).to_owned()));
        let first = answer(&mut lines).ok();
        assert_eq!(first, Some(Value::from("VM status: running")));
        let second = answer(&mut lines).map_err(|error| error.to_string());
        assert!(second.is_err_and(|text| text.contains("no such command")));
        assert!(answer(&mut lines).is_err());
    }

    #[test]
    fn the_time_of_a_process_is_read() {
        assert!(cpu_ticks(std::process::id()).is_some());
        assert_eq!(cpu_ticks(u32::MAX), None);
    }
}
