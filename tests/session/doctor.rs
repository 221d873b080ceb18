//! `vitrine doctor` of real guests: idle, busy, starved, throttled, paused, stopped, killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::daemon::{Daemon, PATIENCE};
use crate::harness::Scratch;
use crate::harness::remains::{has, said};
use crate::reports::{freeze, vitrine};

/// Percent of the time by which we and the kernel may differ.
const NEAR: f64 = 5.0;
/// From where on exits a second at one address are a storm, by their number alone.
const STORM: f64 = 50_000.0;
/// Or the share of the time, for a tenth of that number.
const SHARE: f64 = 0.5;

fn guest(words: &str) -> Daemon {
    let arguments = ["--api-sock", "SCRATCH/api.sock", "--id", "boxed"];
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    daemon.boot(&format!("quiet print=ready {words}"));
    daemon.await_output("ready");
    daemon
}

/// What `doctor --json` says, and its status.
fn judged(daemon: &Daemon, wait: &str) -> (Value, Option<i32>) {
    let output = vitrine(daemon, &["doctor", "boxed", "--json", "--wait", wait]);
    let text = String::from_utf8(output.stdout).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(document["id"], "boxed");
    (document, output.status.code())
}

fn verdict<'a>(document: &'a Value, code: &str) -> Option<&'a Value> {
    let mut all = document["verdicts"].as_array().unwrap().iter();
    all.find(|verdict| verdict["code"] == code)
}

/// Looks again and again until it is as expected: another guest may be busy beside this one.
fn until<T>(what: &str, look: impl Fn() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(other) => assert!(Instant::now() < end, "no {what}: {other}"),
        }
    }
}

/// The kernel's id of a thread of the VMM.
fn thread(daemon: &Daemon, name: &str) -> PathBuf {
    let tasks = format!("/proc/{}/task", daemon.child.id());
    let mut tasks = fs::read_dir(tasks)
        .unwrap()
        .map(|task| task.unwrap().path());
    let is_it = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    tasks
        .find(is_it)
        .unwrap_or_else(|| panic!("no thread {name}"))
}

#[test]
fn a_guest_that_halts_is_healthy() {
    let daemon = guest("hlt");
    let file = "SCRATCH/vitrine/boxed.blackbox";
    for target in ["SCRATCH/api.sock", "boxed", file] {
        let text = said(&vitrine(&daemon, &["doctor", target]), 0);
        assert!(
            text.starts_with("boxed: healthy\nIts process lives as of 20"),
            "{text}"
        );
        assert!(!text.contains("no sample"), "{text}");
    }
    let (document, status) = judged(&daemon, "0.2");
    assert_eq!(
        (&document["health"], status),
        (&json!(100), Some(0)),
        "{document}"
    );
    assert_eq!(
        (&document["alive"], &document["ended"]),
        (&json!(true), &Value::Null)
    );
}

#[test]
fn a_paused_guest_is_healthy_and_said_to_be_paused() {
    let daemon = guest("loop_pio=0x81");
    let before = SystemTime::now();
    daemon.put("/vm", &json!({"state": "Paused"}));
    let after = SystemTime::now();
    std::thread::sleep(Duration::from_millis(1500));
    let (document, status) = judged(&daemon, "1");
    let paused = verdict(&document, "paused").unwrap();
    assert_eq!(
        (&paused["severity"], &paused["subject"]),
        (&json!("info"), &json!("vm"))
    );
    let since = UNIX_EPOCH + Duration::from_millis(paused["since_ms"].as_u64().unwrap());
    // Milliseconds are cut off, and the host's clock may be slewed.
    let slack = Duration::from_millis(50);
    assert!(
        (before - slack..after + slack).contains(&since),
        "{before:?} {after:?} {document}"
    );
    assert_eq!(
        (&document["health"], status),
        (&json!(100), Some(0)),
        "{document}"
    );
    let text = said(&vitrine(&daemon, &["doctor", "boxed"]), 0);
    has(
        &text,
        &[
            "boxed: healthy\n",
            "\ninfo paused, vm: the VM has been paused for ",
        ],
    );
}

#[test]
fn a_guest_that_polls_a_port_is_an_exit_storm_where_it_is_fast_enough() {
    let daemon = guest("loop_pio=0x81");
    let place = r#"vitrine_vcpu_place_exits_total{vm="boxed",vcpu="0",place="io_in 0x81"}"#;
    let time =
        r#"vitrine_vcpu_place_handler_seconds_total{vm="boxed",vcpu="0",place="io_in 0x81"}"#;
    daemon.until("the loop", || {
        daemon
            .ask("GET", "/metrics", &Value::Null)
            .1
            .contains(place)
    });
    let counted = || {
        let (_, text) = daemon.ask("GET", "/metrics", &Value::Null);
        [place, time].map(|sample| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(sample));
            line.unwrap_or_else(|| panic!("no {sample}"))
                .trim()
                .parse()
                .unwrap()
        })
    };
    let (start, before) = (Instant::now(), counted());
    let (document, status) = judged(&daemon, "1");
    let (after, wall) = (counted(), start.elapsed().as_secs_f64());
    let [rate, share] = [0, 1].map(|which| (after[which] - before[which]) / wall);
    let percent = share * 100.0;
    println!("{rate:.0} exits a second, {percent:.1} % in their handlers");
    // The two measure not quite the same time: close to a threshold it may be on either side.
    let is_over = |factor: f64| {
        rate >= factor * STORM || rate >= factor * STORM / 10.0 && share >= factor * SHARE
    };
    let Some(storm) = verdict(&document, "exit-storm") else {
        assert!(!is_over(2.0), "{document}");
        return;
    };
    assert!(is_over(0.5), "{document}");
    assert_eq!((&storm["subject"], status), (&json!("vcpu/0"), Some(3)));
    assert_eq!(storm["evidence"]["place"], "io_in 0x81");
    let told = storm["evidence"]["exits_per_second"].as_f64().unwrap();
    assert!(
        (0.5 * rate..2.0 * rate).contains(&told),
        "{told} and {rate}"
    );
    if is_over(2.0) {
        let text = until("storm", || {
            let output = vitrine(&daemon, &["doctor", "boxed"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match text.contains("exit-storm") {
                true => Ok(said(&output, 3)),
                false => Err(text),
            }
        });
        let first = "\nwarning exit-storm, vcpu/0: vCPU 0 leaves the guest ";
        has(&text, &["boxed: ", " (health ", first]);
        let remedy = "\nremedy The guest's driver ";
        has(&text, &["\nplace io_in 0x81\n", " a second\n", remedy]);
    }
}

/// Programs that do nothing but use one CPU.
struct Busy(Vec<Child>);

impl Busy {
    fn on(cpu: &str, count: usize) -> Busy {
        let one = |_| {
            let words = ["-c", cpu, "sh", "-c", "while :; do :; done"];
            Command::new("taskset").args(words).spawn().unwrap()
        };
        Busy((0..count).map(one).collect())
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

/// A CPU that this process may run on.
fn a_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.unwrap().trim().split([',', '-']).next();
    first.unwrap().to_owned()
}

#[test]
fn a_guest_beside_two_busy_programs_is_starved_as_the_kernel_says() {
    let daemon = guest("busy");
    let task = thread(&daemon, "vcpu-0");
    let (cpu, tid) = (a_cpu(), task.file_name().unwrap().to_str().unwrap());
    let mut pin = Command::new("taskset");
    pin.args(["-pc", &cpu, tid]).stdout(Stdio::null());
    assert!(pin.status().unwrap().success());
    let busy = Busy::on(&cpu, 2);
    let run_delay = || -> f64 {
        let text = fs::read_to_string(task.join("schedstat")).unwrap();
        text.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    until("verdict that agrees", || {
        let (start, before) = (Instant::now(), run_delay());
        let (document, status) = judged(&daemon, "5");
        let wall = start.elapsed().as_nanos() as f64;
        let kernels = (run_delay() - before) * 100.0 / wall;
        let starved = verdict(&document, "vcpu-starved").ok_or(document.to_string())?;
        assert_eq!((&starved["subject"], status), (&json!("vcpu/0"), Some(3)));
        assert_eq!(starved["evidence"]["tid"].to_string(), tid);
        let ours = starved["evidence"]["waiting_percent"].as_f64().unwrap();
        println!("starved    the kernel's {kernels:.2} %, ours {ours:.2} %");
        if (ours - kernels).abs() > NEAR {
            return Err(format!("{ours} and {kernels}"));
        }
        assert!(kernels > 40.0, "two others had the CPU: {kernels}");
        Ok(())
    });
    drop(busy);
}

/// A cgroup with a CPU limit of 10 %, of the version that is there; removed at the end.
struct Limited(PathBuf);

impl Limited {
    /// `None` where this user makes no cgroups with a CPU limit.
    fn new() -> Option<Limited> {
        let name = format!("vitrine-doctor-{}", std::process::id());
        for (root, settings) in [
            ("/sys/fs/cgroup/cpu", &[("cpu.cfs_quota_us", "10000")][..]),
            ("/sys/fs/cgroup", &[("cpu.max", "10000 100000")]),
        ] {
            let root = Path::new(root);
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
            let folder = root.join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let limited = Limited(folder);
            let write = |(file, text): &(&str, &str)| fs::write(limited.0.join(file), text);
            if settings.iter().all(|setting| write(setting).is_ok()) {
                return Some(limited);
            }
        }
        None
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_guest_whose_cgroup_is_limited_is_throttled() {
    let Some(limited) = Limited::new() else {
        println!("not run: this user makes no cgroups with a CPU limit");
        return;
    };
    let mut daemon = guest("busy");
    fs::write(
        limited.0.join("cgroup.procs"),
        daemon.child.id().to_string(),
    )
    .unwrap();
    until("throttled vCPU", || {
        let (document, status) = judged(&daemon, "3");
        let throttled = verdict(&document, "vcpu-throttled").ok_or(document.to_string())?;
        let share = throttled["evidence"]["throttled_percent"].as_f64().unwrap();
        // It has 10 % of a CPU; on a busy host it waits for others, too, and is the less throttled.
        assert!((10.0..=95.0).contains(&share), "{document}");
        println!("throttled  {share:.1} %");
        assert_eq!((&throttled["subject"], status), (&json!("vcpu/0"), Some(3)));
        Ok(())
    });
    daemon.signal("KILL");
    daemon.finish();
    drop(limited);
}

#[test]
fn a_stopped_vmm_is_stuck_and_a_killed_one_is_dead() {
    let mut daemon = guest("loop_pio=0x81");
    // For samples of the last minutes.
    std::thread::sleep(Duration::from_secs(3));
    freeze(&daemon);
    std::thread::sleep(Duration::from_secs(5));
    for target in ["boxed", "SCRATCH/api.sock"] {
        let text = said(&vitrine(&daemon, &["doctor", target, "--wait", "0.2"]), 4);
        // A vCPU that was in a handler when it was stopped is another error.
        let pid = format!("\npid {}\n", daemon.child.id());
        let stuck = "\nerror vmm-thread-stuck, thread/vm: the VMM has given no beat";
        has(&text, &[" error", " (health 50 of 100)\n", stuck, &pid]);
        has(&text, &["\nThe watcher took no sample in between: "]);
    }
    daemon.signal("KILL");
    daemon.finish();
    let text = said(&vitrine(&daemon, &["doctor", "boxed"]), 4);
    assert!(
        text.starts_with("boxed: 1 error (health 50 of 100)\nIt died without"),
        "{text}"
    );
    has(
        &text,
        &[
            "\nerror vmm-died, vmm: the VMM died without an orderly end, after ",
            "\nremedy It was killed or crashed: ",
            "\nThe last minutes\n",
            "\nThe last 20 events of ",
            " vcpu-0 io_in of 1 byte at unclaimed-port 0x81, ",
            "\n`vitrine report boxed` tells all that is known.",
        ],
    );
    let (document, status) = judged(&daemon, "1");
    assert_eq!((&document["alive"], status), (&json!(false), Some(4)));
    assert_eq!(
        document["verdicts"].as_array().unwrap().len(),
        1,
        "{document}"
    );
    assert!(verdict(&document, "vmm-died").is_some());
}
