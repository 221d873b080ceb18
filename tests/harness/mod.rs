//! What the integration tests share: guests in this process, and what was seen of them.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod cgroup;
pub mod chrome;
pub mod remains;
pub mod tap;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vmm::observe::reader::{Snapshot, Value};
use vmm::observe::report;
use vmm::{
    BootSpec, CommandError, DeviceChange, DriveSpec, Outcome, SerialOutput, Vm, VmCommand, VmEvent,
    VmSpec,
};

/// Where `cargo xtask images` put the guests.
pub fn image(name: &str) -> PathBuf {
    let folder = std::env::var_os("VITRINE_IMAGES").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            cache.join("vitrine/images")
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo xtask images`",
        path.display()
    );
    path
}

/// A folder of its own for one test, removed with it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // /run is a tmpfs in the lab, where the root is slow.
        let base = if Path::new("/run").is_dir() {
            "/run"
        } else {
            "/tmp"
        };
        let path = PathBuf::from(format!(
            "{base}/vitrine-test-{}-{number}",
            std::process::id()
        ));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of `bytes` whose 64-bit word `i` is `seed + i`.
    pub fn disk(&self, name: &str, bytes: usize, seed: u64) -> PathBuf {
        let content: Vec<u8> = (0..bytes as u64 / 8)
            .flat_map(|i| (seed + i).to_le_bytes())
            .collect();
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A drive with defaults.
pub fn drive(id: &str, path: &Path) -> DriveSpec {
    DriveSpec {
        id: id.to_owned(),
        path: path.to_owned(),
        read_only: false,
        root: false,
        partuuid: None,
        cache: vmm::Cache::Writeback,
        engine: vmm::IoEngine::Sync,
        limiter: vmm::LimiterSpec::default(),
        queues: 1,
    }
}

/// Both ways in which a drive works. On a host without io_uring the second is as the first.
pub const ENGINES: [vmm::IoEngine; 2] = [vmm::IoEngine::Sync, vmm::IoEngine::Async];

/// A guest in this process, its console in a file.
pub struct Guest {
    pub vm: Vm,
    pub events: Receiver<VmEvent>,
    pub console: PathBuf,
    scratch: Scratch,
}

/// The guest of a test that fails ends with it: it would take its CPU from all tests that follow.
impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stop = VmCommand::Stop;
            if let Err(error) = self.vm.command_within(stop, Duration::from_secs(10)) {
                eprintln!("the guest of the test that fails was told to stop: {error}");
            }
        }
    }
}

/// A guest that has ended.
pub struct Finished {
    pub outcome: Outcome,
    pub console: String,
    pub seen: Seen,
}

impl Guest {
    /// Launches `spec` with its console in a file.
    pub fn launch(mut spec: VmSpec) -> Guest {
        let scratch = Scratch::new();
        let console = scratch.path("console");
        if spec.serial.output == SerialOutput::Nothing {
            spec.serial.output = SerialOutput::File(console.clone());
        }
        let (sender, events) = channel();
        let vm = Vm::launch(spec, move |event| drop(sender.send(event)))
            .unwrap_or_else(|error| panic!("launch failed: {error}"));
        assert_eq!(events.recv().unwrap(), VmEvent::Started);
        Guest {
            vm,
            events,
            console,
            scratch,
        }
    }

    /// What the console has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// What is known of a guest that does not do what is expected of it: its own words, and what
    /// Vitrine makes of it.
    pub fn account(&self) -> String {
        let (said, standing) = (self.said(), self.vm.standing());
        let report = self.vm.snapshot().map_or_else(
            |error| error.to_string(),
            |snapshot| report::render(&snapshot, report::Options::default()),
        );
        format!("it said:\n{said}\nverdicts: {standing:#?}\n{report}")
    }

    /// Waits until the console has said `words`.
    pub fn await_words(&self, words: &str, patience: Duration) {
        let end = Instant::now() + patience;
        while !self.said().contains(words) {
            assert!(
                Instant::now() < end,
                "the guest did not say {words:?} within {patience:?}; {}",
                self.account()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the guest.
    pub fn finish(self, patience: Duration) -> Finished {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(VmEvent::Ended(outcome)) => {
                    let (console, seen) = (self.said(), self.seen());
                    return Finished {
                        outcome,
                        console,
                        seen,
                    };
                }
                Ok(_) => {}
                Err(_) => panic!(
                    "the guest did not end within {patience:?}; {}",
                    self.account()
                ),
            }
        }
    }

    /// Stops the guest and waits for its end.
    pub fn stop(self) -> Finished {
        self.command(VmCommand::Stop);
        self.finish(Duration::from_secs(30))
    }

    /// Carries out a command, which must succeed.
    pub fn command(&self, command: VmCommand) {
        self.vm
            .command_within(command, Duration::from_secs(30))
            .unwrap();
    }

    /// Changes a device while the guest has it.
    pub fn change(&self, id: &str, change: DeviceChange) -> Result<(), CommandError> {
        let (sender, answer) = channel();
        let reply = Box::new(move |done| drop(sender.send(done)));
        self.vm.change_device(id, change, reply);
        answer.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Waits until something holds of the guest.
    pub fn until(&self, what: &str, patience: Duration, holds: impl Fn(&Guest) -> bool) {
        let end = Instant::now() + patience;
        while !holds(self) {
            assert!(
                Instant::now() < end,
                "{what} did not come; {}",
                self.account()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What Vitrine has seen so far.
    pub fn seen(&self) -> Seen {
        Seen(self.vm.snapshot().unwrap())
    }

    /// What Vitrine has seen once the watcher has looked at all that is so now.
    pub fn sampled(&self, patience: Duration) -> Seen {
        let rounds = |seen: &Seen| seen.number("thread/watcher", "loops", "");
        // A round counts when it begins, and one may be under way: the next is whole when the one
        // after it begins.
        let (first, end) = (rounds(&self.seen()), Instant::now() + patience);
        loop {
            let seen = self.seen();
            if rounds(&seen) >= first + 2 {
                return seen;
            }
            assert!(Instant::now() < end, "the watcher takes no sample");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What Vitrine has seen.
pub struct Seen(pub Snapshot);

impl Seen {
    /// The number of `field` in the section called `section`; in its row called `row` if not "".
    pub fn number(&self, section: &str, field: &str, row: &str) -> u64 {
        let view = self
            .0
            .sections
            .iter()
            .find(|view| view.name == section)
            .unwrap_or_else(|| panic!("no section {section}"));
        let value = if row.is_empty() {
            view.value(field)
        } else {
            view.table(field, row)
        };
        match value.unwrap_or_else(|| panic!("no {field} {row} in {section}")) {
            Value::Counter(n) | Value::Gauge(n) => n,
            Value::Histogram(histogram) => histogram.count(),
            other => panic!("{field} is no number: {other:?}"),
        }
    }

    /// All rows of a column together.
    pub fn total(&self, section: &str, field: &str) -> u64 {
        let view = self.0.section(section).unwrap();
        let rows = view
            .row_names(field)
            .map(|row| self.number(section, field, row));
        rows.sum()
    }

    /// Events that were written to the flight ring of `section`.
    pub fn written(&self, section: &str) -> u64 {
        let ring = self
            .0
            .section(section)
            .and_then(|view| view.flight("flight"));
        ring.unwrap_or_else(|| panic!("no ring in {section}"))
            .written
    }

    /// All that may never go down: counters, and each bucket and the sum of each histogram.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for section in &self.0.sections {
            for (field, row, value) in section.values() {
                let name = format!("{} {} {row}", section.name, field.name);
                match value {
                    Value::Counter(count) => drop(counts.insert(name, count)),
                    Value::Histogram(histogram) => {
                        for (bucket, count) in histogram.buckets.iter().enumerate() {
                            counts.insert(format!("{name} bucket {bucket}"), *count);
                        }
                        counts.insert(format!("{name} sum"), histogram.sum);
                    }
                    Value::Gauge(_)
                    | Value::Heartbeat(_)
                    | Value::Flight(_)
                    | Value::Series(_)
                    | Value::Text(_)
                    | Value::Words(_) => {}
                }
            }
        }
        counts
    }

    /// User exits of vCPU 0 of this kind.
    pub fn exits(&self, reason: &str) -> u64 {
        self.number("vcpu/0", "exits", reason)
    }

    /// Reads and writes of vCPU 0 at this device.
    pub fn accesses(&self, device: &str) -> (u64, u64) {
        let number = |field| self.number("vcpu/0", field, device);
        (number("device_reads"), number("device_writes"))
    }
}

/// Fails if a count of `before` is less in `now`, or not there.
pub fn assert_none_went_down(
    when: &str,
    before: &BTreeMap<String, u64>,
    now: &BTreeMap<String, u64>,
) {
    for (name, count) in before {
        let is = now.get(name);
        assert!(is >= Some(count), "{when}: {name}: {count} -> {is:?}");
    }
}

/// Whether the test `name` has a process of its own, so that it may count what this process has. If
/// not, it is run in one, and must succeed there.
pub fn alone(name: &str) -> bool {
    const MARK: &str = "VITRINE_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{errors}");
    assert!(
        said.contains("1 passed"),
        "{name} is not the name of a test: {said}"
    );
    false
}

fn threads() -> Vec<String> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .collect()
}

/// Threads and open files of this process, once the thread that told of a VM's end has ended too.
pub fn leftovers() -> (Vec<String>, Vec<String>) {
    let end = Instant::now() + Duration::from_secs(10);
    while threads().iter().any(|name| name == "vm\n") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut threads = threads();
    threads.sort();
    let own = fs::File::open("/proc/self/fd").unwrap();
    let own_fd = own.as_raw_fd().to_string();
    let mut files: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| {
            let fd = fd.ok()?;
            let target = fs::read_link(fd.path()).ok()?;
            (fd.file_name().to_str()? != own_fd).then(|| target.display().to_string())
        })
        .filter(|target| !target.starts_with("/proc/"))
        .collect();
    files.sort();
    (threads, files)
}

/// The spec of a guest with this kernel and command line.
pub fn spec(kernel: PathBuf, cmdline: &str) -> VmSpec {
    let boot = BootSpec {
        kernel,
        cmdline: Some(cmdline.to_owned()),
        ..BootSpec::default()
    };
    VmSpec::new("test", boot)
}
