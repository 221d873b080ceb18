//! A program whose standard output is watched for words, each with the time at which it came.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::error::{Context, Result, fail};
use crate::program::tail;

/// How the end of what a program said begins in an error.
pub const LAST_WORDS: &str = "--- the end of its";

/// A running program; killed when the value is dropped.
pub struct Console {
    child: Child,
    /// Held open: a guest's console that has ended is another thing to a VMM.
    _stdin: Option<ChildStdin>,
    chunks: Receiver<(Instant, Vec<u8>)>,
    seen: Vec<u8>,
    log: std::path::PathBuf,
    started: Instant,
}

impl Console {
    /// Starts the program; its stderr goes to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let stderr = File::create(log).context(|| format!("cannot make {}", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let name = command.get_program().to_string_lossy().into_owned();
        let (sender, chunks) = channel();
        let started = Instant::now();
        let mut child = command
            .spawn()
            .context(|| format!("{name} could not be started"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            let Some(mut stdout) = stdout else { return };
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender
                    .send((Instant::now(), buffer[..count].to_vec()))
                    .is_err()
                {
                    return;
                }
            }
        });
        let log = log.to_path_buf();
        Ok(Self {
            child,
            _stdin: stdin,
            chunks,
            seen: Vec::new(),
            log,
            started,
        })
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `word` in the output; returns how long after the start it came.
    pub fn wait_for(&mut self, word: &str, limit: Duration) -> Result<Duration> {
        let until = Instant::now() + limit;
        loop {
            match self
                .chunks
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok((at, chunk)) => {
                    // The word may lie across two chunks, so what came before is looked at too.
                    let from = self.seen.len().saturating_sub(word.len());
                    self.seen.extend_from_slice(&chunk);
                    if self.seen[from..]
                        .windows(word.len())
                        .any(|w| w == word.as_bytes())
                    {
                        return Ok(at - self.started);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = limit.as_secs();
                    return fail(format!("no {word} within {seconds} s{}", self.last_words()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return fail(format!("it ended before {word}{}", self.last_words()));
                }
            }
        }
    }

    /// Waits for the program to end by itself.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context(|| "a program".to_owned())? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let seconds = limit.as_secs();
        fail(format!(
            "it did not end within {seconds} s{}",
            self.last_words()
        ))
    }

    /// Asks the program to end (SIGTERM), and kills it when it does not.
    pub fn end(mut self) {
        let pid = self.pid().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        if asked.is_ok_and(|status| status.success()) {
            let _ = self.wait_end(Duration::from_secs(5));
        }
    }

    /// The end of what it said, for an error.
    pub fn last_words(&mut self) -> String {
        while let Ok((_, chunk)) = self.chunks.try_recv() {
            self.seen.extend_from_slice(&chunk);
        }
        let out = String::from_utf8_lossy(&self.seen).into_owned();
        let err = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut words = String::new();
        for (name, text) in [("output", out), ("messages", err)] {
            if !text.trim().is_empty() {
                // A kernel's guesses at its stack hide what it said before.
                let sure: Vec<&str> = text
                    .lines()
                    .filter(|line| !line.contains("]  ? "))
                    .collect();
                words.push_str(&format!(
                    "\n{LAST_WORDS} {name}\n{}",
                    tail(&sure.join("\n"), 30)
                ));
            }
        }
        words
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(script: &str, name: &str) -> Console {
        let log = std::env::temp_dir().join(format!("vitrine-{name}-{}", std::process::id()));
        match Console::start(Command::new("sh").args(["-c", script]), &log) {
            Ok(console) => console,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_word_in_two_pieces_is_seen() {
        let mut console = console("printf 'xWO'; sleep 0.2; echo RD; sleep 60", "pieces");
        let came = console.wait_for("WORD", Duration::from_secs(30));
        assert!(came.is_ok_and(|after| after >= Duration::from_millis(200)));
        console.end();
    }

    #[test]
    fn an_early_end_shows_the_last_words() {
        let mut console = console("echo hello; echo bad >&2", "early");
        let error = console
            .wait_for("WORD", Duration::from_secs(30))
            .map_err(|e| e.to_string());
        let _ = console.wait_end(Duration::from_secs(30));
        assert!(error.is_err_and(|text| text.contains("hello")));
    }
}
