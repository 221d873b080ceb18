//! A VM in the real program, and what is heard of it from outside: its console and its events, each
//! with the moment by the test's own clock.

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::cgroup::Cgroup;
use crate::harness::{Scratch, image};
use crate::scenario::Guest;

/// Long enough for a boot in an emulated machine.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The VM's id.
const ID: &str = "scenario";

/// Something that was heard, and when.
type Heard<T> = Arc<Mutex<Vec<(Instant, T)>>>;

/// A VM in the real program.
pub struct Stage {
    /// The program.
    pub daemon: Daemon,
    /// When it was started.
    pub started: Instant,
    lines: Heard<String>,
    events: Heard<Value>,
    /// Ends the thread that listens to the console.
    _end: Sender<()>,
    /// After `daemon`: it cannot go while a process is in it.
    cgroup: OnceCell<Cgroup>,
    drive: RefCell<PathBuf>,
    /// What else must be there as long as the process.
    kept: RefCell<Vec<Box<dyn Any>>>,
}

impl Stage {
    /// A program that waits for its configuration. Its console is looked at so often: each look
    /// takes time from a guest that has one CPU with us.
    pub fn new(look_every: Duration) -> Stage {
        let started = Instant::now();
        let arguments = [
            "--api-sock",
            "SCRATCH/api.sock",
            "--id",
            ID,
            // What is left of a guest that reset itself is looked at, too.
            "--keep-blackbox",
        ];
        let daemon = Daemon::with(Scratch::new(), &arguments);
        daemon.await_path("api.sock");
        let machine = json!({"vcpu_count": 1, "mem_size_mib": 256});
        daemon.put("/machine-config", &machine);
        let (lines, events) = (Heard::default(), Heard::default());
        let console = daemon.scratch.path("stdout");
        let socket = daemon.scratch.path("api.sock");
        let (end, ended) = channel();
        let said = Arc::clone(&lines);
        std::thread::spawn(move || listen(&console, &said, &ended, look_every));
        let told = Arc::clone(&events);
        std::thread::spawn(move || follow(&socket, &told));
        Stage {
            daemon,
            started,
            lines,
            events,
            _end: end,
            cgroup: OnceCell::new(),
            drive: RefCell::default(),
            kept: RefCell::default(),
        }
    }

    /// Boots `guest`.
    pub fn boot(&self, guest: Guest) {
        let source = match guest {
            Guest::Zoo(words) => json!({
                "kernel_image_path": image("zoo.elf"),
                "boot_args": format!("console=ttyS0 zoo: quiet {words}"),
            }),
            Guest::Linux(version, script) => {
                let script = BASE64_STANDARD.encode(script);
                json!({
                    "kernel_image_path": image(&format!("linux-{version}.bzImage")),
                    "initrd_path": image(&format!("initrd-{version}.img")),
                    "boot_args": format!(
                        "console=ttyS0 reboot=k panic=1 quiet vitrine.script={script}"
                    ),
                })
            }
        };
        self.daemon.put("/boot-source", &source);
        let start = json!({"action_type": "InstanceStart"});
        self.daemon.put("/actions", &start);
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.daemon.child.id()
    }

    /// Whether the process runs: one that has ended, and whose end nobody asked for yet, does not.
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let state = stat.ok().and_then(|text| {
            let (_, rest) = text.rsplit_once(") ")?;
            rest.chars().next()
        });
        state.is_some_and(|state| state != 'Z' && state != 'X')
    }

    /// Where the black box is.
    pub fn black_box(&self) -> PathBuf {
        self.daemon.scratch.path(&format!("vitrine/{ID}.blackbox"))
    }

    /// A cgroup for the process, made when it is first asked for.
    pub fn cgroup(&self) -> &Cgroup {
        self.cgroup.get_or_init(|| {
            let cgroup = Cgroup::new();
            cgroup.enter(self.pid());
            cgroup
        })
    }

    /// When the console had a line with `words`; waits for it.
    pub fn heard(&self, words: &str) -> (Instant, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            let lines = self.lines.lock().unwrap();
            if let Some((at, line)) = lines.iter().find(|(_, line)| line.contains(words)) {
                return (*at, line.clone());
            }
            drop(lines);
            assert!(
                Instant::now() < end,
                "the guest did not say {words:?}; it said:\n{}\nthe log:\n{}",
                self.daemon.text("stdout"),
                self.daemon.text("stderr"),
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The first event from `from` on that `is_it`, if there is one yet.
    pub fn event(&self, from: Instant, is_it: impl Fn(&Value) -> bool) -> Option<(Instant, Value)> {
        let events = self.events.lock().unwrap();
        let mut new = events.iter().filter(|(at, _)| *at >= from);
        new.find(|(_, event)| is_it(event)).cloned()
    }

    /// All events.
    pub fn events(&self) -> Vec<(Instant, Value)> {
        self.events.lock().unwrap().clone()
    }

    /// When the process had ended; waits for that.
    pub fn ended(&self) -> Instant {
        let end = Instant::now() + PATIENCE;
        while self.is_alive() {
            assert!(Instant::now() < end, "the VMM goes on");
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    }

    /// All lines of the console.
    pub fn said(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// The number of the console's line with `words`, behind them, in hexadecimal digits.
    pub fn address(&self, words: &str) -> u64 {
        let (_, line) = self.heard(words);
        let (_, rest) = line.split_once(words).unwrap();
        let digits = rest.split_whitespace().next().unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("no address in {line:?}"))
    }

    /// What stands now; `None` when nobody answers within 10 s.
    pub fn asked(&self) -> Option<Vec<Value>> {
        let mut stream = UnixStream::connect(self.daemon.scratch.path("api.sock")).ok()?;
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).ok()?;
        let request = "GET /observe/health HTTP/1.1\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let health: Value = serde_json::from_str(body).ok()?;
        health["verdicts"].as_array().cloned()
    }

    /// What stands now.
    pub fn standing(&self) -> Vec<Value> {
        let (status, text) = self.daemon.ask("GET", "/observe/health", &Value::Null);
        assert_eq!(status, 200, "{text}");
        let health: Value = serde_json::from_str(&text).unwrap();
        health["verdicts"].as_array().unwrap().clone()
    }

    /// A number of GET /metrics, by its whole name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.daemon.ask("GET", "/metrics", &Value::Null);
        assert_eq!(status, 200, "{text}");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("there is no {name}:\n{text}"))
    }

    /// Keeps something of the host's for as long as the process lives.
    pub fn keep(&self, thing: impl Any) {
        self.kept.borrow_mut().push(Box::new(thing));
    }

    /// Gives the guest so many MiB of memory, before its boot.
    pub fn memory(&self, mib: u32) {
        let machine = json!({"vcpu_count": 1, "mem_size_mib": mib});
        self.daemon.put("/machine-config", &machine);
    }

    /// Gives the guest so many vCPUs, before its boot.
    pub fn vcpus(&self, count: u32) {
        let machine = json!({"vcpu_count": count, "mem_size_mib": 256});
        self.daemon.put("/machine-config", &machine);
    }

    /// Gives the guest, before its boot, a drive of 1 MiB.
    pub fn drive(&self, id: &str) {
        let path = self.daemon.scratch.disk(id, 1 << 20, 3);
        self.drive_at(id, &path);
    }

    /// Gives the guest, before its boot, a drive.
    pub fn drive_at(&self, id: &str, path: &Path) {
        self.drive.replace(path.to_owned());
        let drive = json!({"drive_id": id, "is_root_device": false, "path_on_host": path});
        self.daemon.put(&format!("/drives/{id}"), &drive);
    }

    /// The file of the drive that it got last.
    pub fn drive_path(&self) -> PathBuf {
        self.drive.borrow().clone()
    }

    /// Gives the guest, before its boot, an interface.
    pub fn network(&self, id: &str, tap: &str) {
        let interface = json!({
            "iface_id": id,
            "host_dev_name": tap,
            "guest_mac": "06:00:ac:10:00:02",
        });
        self.daemon
            .put(&format!("/network-interfaces/{id}"), &interface);
    }

    /// The kernel's letter for what a thread does.
    pub fn kernel_state(&self, tid: u32) -> String {
        let path = format!("/proc/{}/task/{tid}/stat", self.pid());
        let text = fs::read_to_string(path).unwrap();
        let (_, rest) = text.rsplit_once(") ").unwrap();
        rest[..1].to_owned()
    }

    /// Pauses or resumes.
    pub fn set_state(&self, state: &str) {
        self.daemon.put("/vm", &json!({ "state": state }));
    }

    /// The kernel's number of the thread called `name`.
    pub fn thread(&self, name: &str) -> u32 {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut tasks = fs::read_dir(tasks).unwrap().flatten();
        let is_it = |folder: &Path| {
            let comm = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            comm.trim_end() == name
        };
        let found = tasks.find(|task| is_it(&task.path()));
        let found = found.unwrap_or_else(|| panic!("there is no thread {name}"));
        found.file_name().to_str().unwrap().parse().unwrap()
    }

    /// Time on a CPU and time waiting for one, of the thread called `name`: its schedstat.
    pub fn schedstat(&self, name: &str) -> [u64; 2] {
        let path = format!("/proc/{}/task/{}/schedstat", self.pid(), self.thread(name));
        let text = fs::read_to_string(path).unwrap();
        let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap());
        [numbers.next().unwrap(), numbers.next().unwrap()]
    }
}

/// Writes down the lines of a file that grows.
fn listen(path: &Path, lines: &Heard<String>, ended: &Receiver<()>, pause: Duration) {
    let mut known = 0;
    while ended.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        let bytes = fs::read(path).unwrap_or_default();
        let at = Instant::now();
        let Some(new) = bytes.get(known..) else {
            continue;
        };
        let Some(end) = new.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        known += end + 1;
        let text = String::from_utf8_lossy(&new[..end]).into_owned();
        let mut lines = lines.lock().unwrap();
        lines.extend(text.lines().map(|line| (at, line.to_owned())));
    }
}

/// Writes down events as they come, until the VM or the program ends.
fn follow(socket: &Path, events: &Heard<Value>) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return;
    };
    let request = "GET /observe/events?since=0&follow=1 HTTP/1.1\r\nConnection: close\r\n\r\n";
    if stream.write_all(request.as_bytes()).is_err() {
        return;
    }
    // Heads and the sizes of pieces stand on lines of their own: they are no JSON objects.
    for line in BufReader::new(stream).lines() {
        let at = Instant::now();
        let Ok(line) = line else {
            return;
        };
        let event: Result<Value, _> = serde_json::from_str(&line);
        if let Ok(event @ Value::Object(_)) = event {
            events.lock().unwrap().push((at, event));
        }
    }
}
