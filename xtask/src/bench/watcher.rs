//! `cargo xtask bench watcher`: what it costs the host to look at a guest that does nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::median;
use crate::console::Console;
use crate::error::{Context, Result, fail};
use crate::images::{self, Set};
use crate::{cache, suite};

/// Percent of a core.
const BOUND_PERCENT: f64 = 0.2;
/// The thread.
const THREAD: &str = "watcher";
/// What the guest says before it halts for ever.
const READY: &str = "watched";

/// Measures; fails when the median is above the bound.
pub fn main(runs: u32, seconds: u32) -> Result<()> {
    if !suite::kvm_opens() {
        return fail(
            "watcher: /dev/kvm cannot be opened; run it as a user who may, or in the lab: \
             `cargo xtask lab -- cargo xtask bench watcher`",
        );
    }
    let images = images::ensure(&[Set::Zoo], false)?;
    let vitrine = super::vitrine()?;
    let scratch = cache::Scratch::beside(&std::env::temp_dir().join("vitrine-watcher"))?;
    println!("watcher: CPU time of the thread `{THREAD}` of a vitrine whose guest is halted");
    println!(
        "  1 vCPU, 128 MiB, 2 drives; {seconds} s a run, from a second after the guest's halt"
    );
    println!("  the difference of two readings of /proc/PID/task/TID/schedstat\n");
    let config = config(&images, scratch.path())?;
    let mut measured = Vec::new();
    for run in 1..=runs {
        let percent = one(&vitrine, &config, scratch.path(), seconds)?;
        println!("  {run:>3} {percent:>8.4} % of a core");
        measured.push(percent);
    }
    let percent = median(measured);
    println!("\n  median: {percent:.4} % of a core (bound {BOUND_PERCENT} %)");
    // A median of no runs is no number, and not below the bound.
    if percent <= BOUND_PERCENT {
        return Ok(());
    }
    fail(format!(
        "watcher: {percent:.4} % of a core is above the bound of {BOUND_PERCENT} %"
    ))
}

/// The guest, in a file.
fn config(images: &Path, folder: &Path) -> Result<PathBuf> {
    let drive = |id: &str| -> Result<Value> {
        let path = folder.join(id);
        fs::write(&path, [0; 1 << 20]).context(|| format!("cannot write {}", path.display()))?;
        Ok(json!({"drive_id": id, "is_root_device": false, "path_on_host": path}))
    };
    let config = json!({
        "boot-source": {
            "kernel_image_path": images.join("zoo.elf"),
            "boot_args": format!("console=ttyS0 zoo: quiet print={READY} cli_hlt"),
        },
        "drives": [drive("first")?, drive("second")?],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
    });
    let path = folder.join("config.json");
    fs::write(&path, config.to_string()).context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Percent of a core in one VM's life.
fn one(vitrine: &Path, config: &Path, folder: &Path, seconds: u32) -> Result<f64> {
    let mut command = Command::new(vitrine);
    command
        .args(["--no-api", "--id", "bench-watcher", "--config-file"])
        .arg(config)
        .arg("--blackbox")
        .arg(folder.join("blackbox"));
    let mut console = Console::start(&mut command, &folder.join("log"))?;
    console.wait_for(READY, Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(1));
    let thread = thread(console.pid(), THREAD)?;
    let (started, before) = (Instant::now(), cpu_ns(&thread)?);
    std::thread::sleep(Duration::from_secs(u64::from(seconds)));
    let (after, wall) = (cpu_ns(&thread)?, started.elapsed());
    console.end();
    if after == before {
        return fail(format!(
            "the thread {THREAD} did nothing in {seconds} s: measure for 2 s at least (--seconds)"
        ));
    }
    Ok(Duration::from_nanos(after - before).as_secs_f64() / wall.as_secs_f64() * 100.0)
}

/// The folder in /proc of a process' thread of that name.
fn thread(pid: u32, name: &str) -> Result<PathBuf> {
    let folder = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&folder).context(|| format!("cannot read {folder}"))?;
    let mut threads = threads.flatten().map(|thread| thread.path());
    let named = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    threads
        .find(named)
        .map_or_else(|| fail(format!("{folder} has no thread called {name}")), Ok)
}

/// Nanoseconds that a thread was on a CPU.
fn cpu_ns(thread: &Path) -> Result<u64> {
    let path = thread.join("schedstat");
    let text = fs::read_to_string(&path).context(|| format!("cannot read {}", path.display()))?;
    match text.split(' ').next().and_then(|ns| ns.parse().ok()) {
        Some(ns) => Ok(ns),
        None => fail(format!(
            "{} says nothing: the kernel lacks CONFIG_SCHED_INFO",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name_and_has_used_some_cpu() {
        let sought = || {
            // The kernel writes it down when the thread gives its CPU away.
            std::thread::sleep(Duration::from_millis(1));
            cpu_ns(&thread(std::process::id(), "sought-for")?)
        };
        let builder = std::thread::Builder::new().name("sought-for".to_owned());
        let found = builder
            .spawn(sought)
            .context(|| "a thread".to_owned())
            .and_then(|thread| thread.join().unwrap_or_else(|_| fail("it panicked")));
        assert!(found.is_ok_and(|ns| ns > 0));
        assert!(thread(std::process::id(), "no such thread").is_err());
    }
}
