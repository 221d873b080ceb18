//! `cargo xtask bench start`: what it costs until the API answers, and what a running VMM holds
//! beside its guest's memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{median, pss};
use crate::console::Console;
use crate::error::{Context, Result, fail};
use crate::{cache, http};

/// CPU milliseconds until the first answer.
const BOUND_MS: f64 = 10.0;

/// Measures both; fails when either is above its bound.
pub fn main(runs: u32) -> Result<()> {
    let vitrine = super::vitrine()?;
    let scratch = cache::Scratch::beside(&std::env::temp_dir().join("vitrine-start"))?;
    println!("start: CPU time of a new vitrine process until GET / answers");
    println!("  vitrine --api-sock S --id x; asked every 0.2 ms until the answer is 200");
    println!("  then the sum of /proc/PID/task/*/schedstat (ns on a CPU, user and system)\n");
    let mut measured = Vec::new();
    for run in 1..=runs {
        let (cpu_ms, wall_ms) = start(&vitrine, scratch.path(), run)?;
        println!("  {run:>3} {cpu_ms:>7.2} ms CPU   {wall_ms:>7.2} ms wall");
        measured.push(cpu_ms);
    }
    let cpu = median(measured);
    println!("\n  median: {cpu:.2} ms CPU (bound {BOUND_MS} ms)\n");
    let memory = pss::main(&vitrine);
    if cpu > BOUND_MS {
        return fail(format!(
            "start: {cpu:.2} ms CPU is above the bound of {BOUND_MS} ms"
        ));
    }
    memory
}

fn start(vitrine: &Path, scratch: &Path, run: u32) -> Result<(f64, f64)> {
    let socket = scratch.join(format!("{run}.sock"));
    let mut command = Command::new(vitrine);
    command
        .arg("--api-sock")
        .arg(&socket)
        .arg("--id")
        .arg(format!("bench-start-{run}"));
    let started = Instant::now();
    let mut console = Console::start(&mut command, &scratch.join("log"))?;
    wait_for_api(&socket, &mut console)?;
    let wall = started.elapsed();
    let cpu_ns = cpu_ns(console.pid())?;
    console.end();
    Ok((
        Duration::from_nanos(cpu_ns).as_secs_f64() * 1e3,
        wall.as_secs_f64() * 1e3,
    ))
}

/// Waits until `GET /` answers 200.
pub fn wait_for_api(socket: &Path, console: &mut Console) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = if socket.exists() {
            http::get(socket, "/")
        } else {
            fail("no socket")
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => {
                let words = console.last_words();
                return fail(format!(
                    "vitrine's API did not answer in 10 s: {error}{words}"
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Nanoseconds that all threads of a process were on a CPU.
fn cpu_ns(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&folder)
        .context(|| format!("cannot read {folder}"))?
        .flatten()
    {
        // A thread that has just ended has no file any more.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        sum += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    if sum == 0 {
        return fail(format!(
            "{folder}/*/schedstat say nothing: the kernel lacks CONFIG_SCHED_INFO"
        ));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_used_some_cpu() {
        assert!(super::cpu_ns(std::process::id()).is_ok_and(|ns| ns > 0));
    }
}
