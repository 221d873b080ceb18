//! A test program in the lab: in one emulated machine after another where one stands still, and in
//! two at once where this machine has the CPUs and the memory for it.

use std::io::{Stdout, Write};
use std::path::Path;
use std::time::Instant;

use super::tally::Tally;
use super::target::{self, Built};
use crate::error::{Result, fail};
use crate::lab::{End, Job};
use crate::program::{find, say};

/// Machines that stood still before the program is given up.
const MOST_STANDSTILLS: usize = 5;
/// What this machine keeps for itself beside the labs.
const OWN_MIB: u64 = 2048;

/// What came of a part of the tests.
pub struct Part<W: Write> {
    /// What the program said.
    pub tally: Tally<W>,
    /// How it ended.
    pub end: Result<End>,
    /// What one should know though nothing failed.
    pub notes: Vec<String>,
}

/// How many machines with so much memory and a CPU each run here at once without waiting for one
/// another: one or two.
pub fn machines(memory_mib: u32) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let fits = available_mib(&meminfo) >= 2 * u64::from(memory_mib) + OWN_MIB;
    // Without a CPU of its own each would take the other's.
    let bound = find("taskset").is_some();
    if cpus >= 2 && fits && bound { 2 } else { 1 }
}

fn available_mib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Hands whole lines on and no parts of any, whoever asks for it, so that two programs may say
/// something at once. What is left goes out at the end.
pub struct WholeLines<W: Write> {
    to: W,
    part: Vec<u8>,
}

/// To where people look.
pub type Lines = WholeLines<Stdout>;

impl<W: Write> WholeLines<W> {
    fn new(to: W) -> Self {
        let part = Vec::new();
        Self { to, part }
    }
}

impl<W: Write> Write for WholeLines<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if let Some(end) = self.part.iter().rposition(|byte| *byte == b'\n') {
            let lines: Vec<u8> = self.part.drain(..=end).collect();
            self.to.write_all(&lines)?;
            self.to.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Drop for WholeLines<W> {
    fn drop(&mut self) {
        let _ = self.to.write_all(&self.part);
        let _ = self.to.flush();
    }
}

/// Runs the tests that `arguments` choose in so many machines at once.
pub fn in_labs(
    built: &Built,
    images: &Path,
    arguments: &[String],
    size: impl Fn(&mut Job) + Sync,
    machines: usize,
) -> Vec<Part<Lines>> {
    let all = match target::list(built, arguments) {
        Ok(all) => all,
        Err(error) => return vec![nothing(error)],
    };
    let hands = dealt(&all, machines);
    if hands.len() < 2 {
        return vec![in_lab(built, images, arguments.to_vec(), &size)];
    }
    if let Err(error) = crate::lab::prepare() {
        return vec![nothing(error)];
    }
    let size = &size;
    std::thread::scope(|scope| {
        let hands: Vec<_> = hands
            .into_iter()
            .map(|hand| scope.spawn(move || in_lab(built, images, exactly(hand), size)))
            .collect();
        let parts = hands.into_iter().map(|hand| {
            let ended = hand.join();
            ended.unwrap_or_else(|_| nothing(crate::error::Error::new("xtask itself panicked")))
        });
        parts.collect()
    })
}

fn nothing(error: crate::error::Error) -> Part<Lines> {
    Part {
        tally: Tally::new(Lines::new(std::io::stdout())),
        end: Err(error),
        notes: Vec::new(),
    }
}

/// Deals the tests out one by one: those that take long stand side by side.
fn dealt(all: &[String], hands: usize) -> Vec<Vec<String>> {
    let hands = hands.clamp(1, all.len().max(1));
    let hand = |first| all.iter().skip(first).step_by(hands).cloned().collect();
    (0..hands).map(hand).collect()
}

/// What has a test program run these tests.
pub fn exactly(tests: Vec<String>) -> Vec<String> {
    let mut arguments = vec!["--test-threads=1".to_owned(), "--exact".to_owned()];
    arguments.extend(tests);
    arguments
}

/// Runs a test program in the lab; what is left in another machine if one stands still.
pub fn in_lab(
    built: &Built,
    images: &Path,
    mut arguments: Vec<String>,
    size: &impl Fn(&mut Job),
) -> Part<Lines> {
    let started = Instant::now();
    let mut stood = Vec::new();
    let mut part = nothing(crate::error::Error::new("nothing ran"));
    loop {
        let size = |job: &mut Job| {
            size(job);
            job.timeout = job.timeout.saturating_sub(started.elapsed());
        };
        part.end = target::run_in_lab(built, images, &arguments, size, &mut part.tally);
        if !matches!(part.end, Ok(End::StoodStill)) {
            return part;
        }
        let during = part.tally.interrupt();
        let name = during.as_deref().unwrap_or("no test");
        let note = format!("the emulated machine stood still during {name}");
        if stood.contains(&during) || stood.len() == MOST_STANDSTILLS {
            part.end = fail(format!("{note}, and not for the first time"));
            return part;
        }
        let left: Vec<String> = match target::list(built, &arguments) {
            Ok(all) => all
                .into_iter()
                .filter(|test| !part.tally.ended.contains(test))
                .collect(),
            Err(error) => {
                part.end = Err(error);
                return part;
            }
        };
        if left.is_empty() {
            part.end = Ok(End::Exit(0));
            return part;
        }
        let note = format!("{note}; the {} tests left ran in another one", left.len());
        say("test", &note);
        part.notes.push(note);
        stood.push(during);
        arguments = exactly(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_dealt_to_one() {
        let all: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let hands = dealt(&all, 2);
        assert_eq!(hands, [vec!["a", "c", "e"], vec!["b", "d"]]);
        assert_eq!(dealt(&all, 1), std::slice::from_ref(&all));
        assert_eq!(dealt(&all[..1], 2), [all[..1].to_vec()]);
        assert_eq!(dealt(&[], 2).len(), 1);
    }

    #[test]
    fn lines_of_two_programs_stay_whole() {
        let mut seen = Vec::new();
        {
            let mut lines = WholeLines::new(&mut seen);
            lines.write_all(b"test a ... ").unwrap();
            lines.flush().unwrap();
            assert_eq!(lines.to.len(), 0);
            lines.write_all(b"ok\ntest b").unwrap();
            assert_eq!(*lines.to, b"test a ... ok\n");
        }
        assert_eq!(seen, b"test a ... ok\ntest b");
    }

    #[test]
    fn memory_that_is_there() {
        let meminfo = "MemTotal: 24689144 kB\nMemAvailable:   23085312 kB\n";
        assert_eq!(available_mib(meminfo), 22544);
        assert_eq!(available_mib(""), 0);
    }
}
