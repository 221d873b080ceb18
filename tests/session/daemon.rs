//! A `vitrine` process and its API socket.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Scratch, image};

/// Long enough for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub fn program() -> PathBuf {
    let given = std::env::var_os("VITRINE_BIN");
    given.map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_vitrine")),
        PathBuf::from,
    )
}

/// A process, killed when the test ends.
pub struct Daemon {
    pub child: Child,
    pub scratch: Scratch,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// A daemon that waits for its configuration.
    pub fn new() -> Daemon {
        let daemon = Daemon::with(Scratch::new(), &["--api-sock", "SCRATCH/api.sock"]);
        daemon.await_path("api.sock");
        daemon
    }

    /// A process with these arguments, in which SCRATCH stands for the test's folder; its output is
    /// in the files `stdout` and `stderr` there.
    pub fn with(scratch: Scratch, arguments: &[&str]) -> Daemon {
        let folder = scratch
            .path("")
            .to_str()
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let create = |name| File::create(scratch.path(name)).unwrap();
        let child = Command::new(program())
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("SCRATCH", &folder)),
            )
            .env("XDG_RUNTIME_DIR", &folder)
            .stdin(Stdio::piped())
            .stdout(create("stdout"))
            .stderr(create("stderr"))
            .spawn()
            .unwrap();
        Daemon { child, scratch }
    }

    /// Waits for a file in the test's folder.
    pub fn await_path(&self, name: &str) {
        self.until(name, || self.scratch.path(name).exists());
    }

    /// Waits until standard output holds `words`.
    pub fn await_output(&self, words: &str) {
        self.until(words, || self.text("stdout").contains(words));
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(
                Instant::now() < end,
                "{what:?} did not come; the log:\n{}",
                self.text("stderr")
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A file of the test's folder.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.scratch.path(name)).unwrap_or_default()).into_owned()
    }

    /// One request: its status and body.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut stream = UnixStream::connect(self.scratch.path("api.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}");
        stream
            .write_all(format!("{head}\r\n\r\n{body}").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{answer:?}"));
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// A request that must succeed.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) {
        let method = if path == "/vm" { "PATCH" } else { "PUT" };
        let answer = self.ask(method, path, body);
        assert_eq!(
            answer,
            (204, String::new()),
            "{path}; the log:\n{}",
            self.text("stderr")
        );
    }

    /// Changes something of a started VM, which must succeed.
    #[allow(dead_code, reason = "scenarios use it")]
    pub fn patch(&self, path: &str, body: &Value) {
        let answer = self.ask("PATCH", path, body);
        let log = self.text("stderr");
        assert_eq!(answer, (204, String::new()), "{path}; the log:\n{log}");
    }

    /// The VM's state as GET / tells it.
    pub fn state(&self) -> String {
        let (status, body) = self.ask("GET", "/", &Value::Null);
        assert_eq!(status, 200);
        let info: Value = serde_json::from_str(&body).unwrap();
        info["state"].as_str().unwrap().to_owned()
    }

    /// The value of the sample that begins with `sample`, from GET /metrics.
    pub fn metric(&self, sample: &str) -> u64 {
        let (status, text) = self.ask("GET", "/metrics", &Value::Null);
        assert!(status == 200 && text.ends_with("# EOF\n"));
        let line = text.lines().find_map(|line| line.strip_prefix(sample));
        let line = line.unwrap_or_else(|| panic!("no {sample} in:\n{text}"));
        line.trim().parse().unwrap()
    }

    /// Boots a zoo guest that does `words`.
    pub fn boot(&self, words: &str) {
        self.put("/boot-source", &zoo(words));
        self.put("/actions", &json!({"action_type": "InstanceStart"}));
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end of the process.
    pub fn finish(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "vitrine does not end; its log:\n{}",
                self.text("stderr")
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The boot source of a zoo guest that does `words`.
pub fn zoo(words: &str) -> Value {
    json!({
        "kernel_image_path": image("zoo.elf"),
        "boot_args": format!("console=ttyS0 zoo: {words}"),
    })
}
