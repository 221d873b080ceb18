//! The ledger of stock guests that idle, work, starve and are throttled: it adds up to the wall
//! time, and where the kernel has a file of its own that says the same, it says the same.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use vmm::VmSpec;
use vmm::observe::ledger::{Account, PARTS, account};
use vmm::observe::verdict::Severity;

use crate::harness::tap::Tap;
use crate::harness::{Guest, Scratch, Seen, drive};
use crate::net::{UP, with_tap};
use crate::{PATIENCE, linux};

/// Over so long each guest is accounted for.
const PERIOD: Duration = Duration::from_secs(10);
/// What of the wall time may have no owner.
const RESIDUE: f64 = 0.01;
/// How far our shares and the kernel's may differ.
const SHARE: f64 = 0.02;

/// What was accounted for, by the snapshots and by what the watcher kept.
struct Told {
    name: &'static str,
    account: Account,
    tid: u64,
    /// What the watcher said at the end, warnings and errors alone.
    codes: Vec<&'static str>,
}

impl Told {
    /// Launches, waits until the guest is at work, and accounts for the time from then on.
    fn of(name: &'static str, spec: VmSpec) -> Told {
        Told::beside(name, spec, |_| ()).0
    }

    /// As `of`; `beside` is called before and after, with the vCPU's thread.
    fn beside<T>(
        name: &'static str,
        spec: VmSpec,
        mut beside: impl FnMut(u64) -> T,
    ) -> (Told, T, T) {
        let guest = Guest::launch(spec);
        guest.await_words("READY", PATIENCE);
        // What the watcher knows is then of the work and not of the boot.
        thread::sleep(Duration::from_millis(2500));
        let tid = guest.seen().number("task", "tid", "vcpu-0");
        let before = beside(tid);
        let earlier = guest.seen();
        thread::sleep(PERIOD);
        let later = guest.seen();
        let after = beside(tid);
        let standing = guest.vm.standing();
        guest.stop();
        let account = account(Some(&earlier.0), &later.0, 0);
        let suffers = standing.verdicts.iter();
        let suffers = suffers.filter(|verdict| verdict.severity > Severity::Info);
        let codes = suffers.map(|verdict| verdict.code.name()).collect();
        let told = Told {
            name,
            account,
            tid,
            codes,
        };
        told.print();
        assert_eq!(told.account.notes, [], "{name}");
        told.check(&earlier, &later);
        (told, before, after)
    }

    fn share(&self, part: &str) -> f64 {
        let parts = self.account.parts();
        let (_, ns) = parts.iter().find(|(name, _)| *name == part).unwrap();
        ns.unwrap() as f64 / self.account.wall_ns as f64
    }

    fn print(&self) {
        let wall = self.account.wall_ns as f64;
        print!("{:<10} {:>6.2} s", self.name, wall / 1e9);
        for part in PARTS {
            print!(" {part} {:.1}", self.share(part) * 100.0);
        }
        let residue = self.account.residue_ns as f64 / wall * 100.0;
        println!(" residue {residue:.2} % (thread {})", self.tid);
        println!("{:<10} verdicts: {:?}", "", self.codes);
    }

    /// Both ways of keeping the ledger leave a small residue.
    fn check(&self, earlier: &Seen, later: &Seen) {
        let wall = self.account.wall_ns as f64;
        assert!(wall >= PERIOD.as_nanos() as f64, "{}", self.name);
        let residue = self.account.residue_ns.unsigned_abs() as f64 / wall;
        assert!(residue <= RESIDUE, "{}: {:#?}", self.name, self.account);
        let rose = |field: &str| {
            let number = |seen: &Seen| seen.number("ledger/0", field, "");
            (number(later) - number(earlier)) as f64
        };
        let (unaccounted, overclaimed) = (rose("unaccounted"), rose("overclaimed"));
        let wall = rose("wall");
        println!(
            "{:<10} kept: {:.2} s, unaccounted {:.2} %, overclaimed {:.2} %",
            "",
            wall / 1e9,
            unaccounted / wall * 100.0,
            overclaimed / wall * 100.0
        );
        assert!(wall >= 0.8 * PERIOD.as_nanos() as f64, "{}", self.name);
        let residue = (unaccounted + overclaimed) / wall;
        assert!(residue <= RESIDUE, "{}: {residue} is kept", self.name);
    }

    fn at_least(&self, part: &str, share: f64) {
        let is = self.share(part);
        assert!(is >= share, "{}: {part} {is}, not {share}", self.name);
    }
}

/// A guest of 6.12 that says so and then does `work` without end.
fn at_work(work: &str) -> VmSpec {
    linux("6.12", "", &format!("echo READY; {work}"))
}

#[test]
fn an_idle_guest_is_halted() {
    let told = Told::of("idle", at_work("sleep 1000"));
    told.at_least("halted", 0.9);
    assert!(told.codes.is_empty(), "{:?}", told.codes);
}

#[test]
fn a_guest_that_computes_is_in_the_guest() {
    let told = Told::of("cpu", at_work("while :; do :; done"));
    let busy = told.share("guest") + told.share("kernel");
    assert!(busy > 0.85, "{busy}");
    assert!(told.codes.is_empty(), "{:?}", told.codes);
}

#[test]
fn a_guest_that_reads_its_disk_is_accounted_for() {
    let scratch = Scratch::new();
    let mut spec = at_work(
        "while :; do echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=16k; done",
    );
    let disk = scratch.disk("disk", 64 << 20, 1);
    spec.drives.push(drive("disk", &disk));
    let told = Told::of("disk", spec);
    assert!(told.codes.is_empty(), "{:?}", told.codes);
}

#[test]
fn a_guest_that_sends_is_accounted_for() {
    let tap = Tap::new("vtledger", "10.111.0.1");
    let listener = TcpListener::bind("10.111.0.1:7777").unwrap();
    // Ends with the guest: the tap goes, and the stream with it.
    thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let spec = at_work(&format!("{UP}nc 10.111.0.1 7777 < /dev/zero"));
    let told = Told::of("net", with_tap(spec, &tap, None));
    assert!(told.codes.is_empty(), "{:?}", told.codes);
}

#[test]
fn a_guest_that_touches_memory_is_accounted_for() {
    let work = "while :; do dd if=/dev/zero of=/dev/shm/x bs=1M count=100; rm /dev/shm/x; done";
    let told = Told::of(
        "memory",
        at_work(&format!(
            "mkdir -p /dev/shm; mount -t tmpfs t /dev/shm; {work}"
        )),
    );
    assert!(told.codes.is_empty(), "{:?}", told.codes);
}

/// Ends with the test.
struct Busy(Vec<Child>);

impl Busy {
    fn loops(count: usize) -> Busy {
        let looping = || {
            let mut command = Command::new("taskset");
            command.args(["-c", "0", "sh", "-c", "while :; do :; done"]);
            command.stdout(Stdio::null()).spawn().unwrap()
        };
        Busy((0..count).map(|_| looping()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The second number of schedstat (Documentation/scheduler/sched-stats.rst): nanoseconds that the
/// thread could run and did not.
fn run_delay(tid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_whose_cpu_others_use_is_waiting_as_the_scheduler_says() {
    let busy = Busy::loops(2);
    let spec = at_work("while :; do :; done");
    let (told, before, after) = Told::beside("starved", spec, |tid| {
        // The vCPU is with them, wherever there are more CPUs.
        let words = ["-p", "-c", "0", &tid.to_string()];
        let pinned = Command::new("taskset").args(words).output().unwrap();
        assert!(pinned.status.success());
        run_delay(tid)
    });
    drop(busy);
    let kernels = (after - before) as f64 / told.account.wall_ns as f64;
    let ours = told.share("waiting") + told.share("throttled");
    println!(
        "starved    the kernel's {:.2} %, ours {:.2} %",
        kernels * 100.0,
        ours * 100.0
    );
    assert!((ours - kernels).abs() <= SHARE, "{ours} and {kernels}");
    told.at_least("waiting", 0.4);
    assert_eq!(told.codes, ["vcpu-starved"]);
}

/// A cgroup with a CPU limit that holds this process; left and removed at the end.
struct Limited {
    folder: PathBuf,
    home: PathBuf,
}

impl Limited {
    fn to(max: &str) -> Limited {
        let root = Path::new("/sys/fs/cgroup");
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap();
        let folder = root.join("vitrine-ledger");
        fs::write(root.join("cgroup.subtree_control"), "+cpu").unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cpu.max"), max).unwrap();
        let limited = Limited {
            folder,
            home: root.join(own),
        };
        limited.enter(&limited.folder);
        limited
    }

    fn enter(&self, group: &Path) {
        let id = std::process::id().to_string();
        fs::write(group.join("cgroup.procs"), id).unwrap();
    }

    fn throttled_ns(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join("cpu.stat")).unwrap();
        let usec = text
            .lines()
            .find_map(|line| line.strip_prefix("throttled_usec "));
        usec.unwrap().parse::<u64>().unwrap() * 1000
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.enter(&self.home);
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn a_guest_whose_cgroup_is_limited_is_throttled_as_the_cgroup_says() {
    let spec = at_work("while :; do :; done");
    // The guest boots without the limit.
    let mut limited = None;
    let (told, before, after) = Told::beside("throttled", spec, |_| {
        let limited = limited.get_or_insert_with(|| {
            let limited = Limited::to("30000 100000");
            // The watcher looks into the new cgroup.
            thread::sleep(Duration::from_millis(2500));
            limited
        });
        limited.throttled_ns()
    });
    drop(limited);
    let kernels = (after - before) as f64 / told.account.wall_ns as f64;
    let ours = told.share("throttled");
    println!(
        "throttled  the kernel's {:.2} %, ours {:.2} %",
        kernels * 100.0,
        ours * 100.0
    );
    assert!((ours - kernels).abs() <= SHARE, "{ours} and {kernels}");
    told.at_least("throttled", 0.5);
    assert_eq!(told.codes, ["vcpu-throttled"]);
}
