//! `cargo xtask test`: the whole suite, on whatever this machine can do, and what it came to.

mod again;
mod spread;
mod summary;
mod tally;
mod target;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::apt;
use crate::arrows::{self, cargo};
use crate::error::{Context, Result, fail};
use crate::images::{self, Set};
use crate::lab::{End, Job};
use crate::licences;
use crate::program::say;
use crate::promtool;
use summary::Row;
use tally::Tally;

pub use target::{Built, artifact, build, run_here, run_in_lab};

/// `cargo xtask test`
#[derive(clap::Args)]
pub struct TestArgs {
    /// Run only these suites
    #[arg(long, value_enum)]
    only: Vec<Suite>,
    /// Run only tests whose name contains this (then without the checks, unless asked for)
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Format, lints, the direction of dependencies, and their licences
    Checks,
    /// Unit tests, documentation tests, and that the examples build
    Unit,
    /// Bare-metal guests, on /dev/kvm or in the lab
    Zoo,
    /// API sessions with small guests, on /dev/kvm or in the lab
    Session,
    /// Linux guests, on hardware virtualisation or in the lab
    Linux,
}

const HERE: &str = "host";
const KVM: &str = "this host's KVM";
const LAB: &str = "the lab";
const LABS: &str = "two labs at once";

/// Runs the suites, prints the table; fails when anything failed.
pub fn main(args: &TestArgs) -> Result<()> {
    let root = crate::repository()?;
    std::env::set_current_dir(&root).context(|| format!("cannot enter {}", root.display()))?;
    let mut suites = args.only.clone();
    if suites.is_empty() {
        suites = vec![
            Suite::Checks,
            Suite::Unit,
            Suite::Zoo,
            Suite::Session,
            Suite::Linux,
        ];
        suites.retain(|suite| args.filter.is_none() || *suite != Suite::Checks);
    }
    let filter = args.filter.as_deref();
    let rows: Vec<Row> = suites.iter().map(|suite| timed(*suite, filter)).collect();
    println!("{}", summary::text(&rows));
    if let Some(filter) = filter
        && summary::ran_no_test(&rows)
    {
        return fail(format!("no test's name contains {filter:?}"));
    }
    if rows.iter().all(|row| row.failed == 0) {
        Ok(())
    } else {
        fail("the test suite failed")
    }
}

fn timed(suite: Suite, filter: Option<&str>) -> Row {
    let started = Instant::now();
    let mut row = match suite {
        Suite::Checks => checks(),
        Suite::Unit => unit(filter),
        Suite::Zoo => guests("zoo", &[Set::Zoo], kvm_opens(), filter),
        Suite::Session => guests("session", &[Set::Zoo], kvm_opens(), filter),
        // Bare-metal guests too: there KVM counts what it does not count without hardware.
        Suite::Linux => guests("linux", &[Set::Linux, Set::Zoo], runs_linux(), filter),
    };
    row.took = started.elapsed();
    row
}

/// Whether this machine's KVM can be used at all.
pub fn kvm_opens() -> bool {
    fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// Whether this machine boots unmodified Linux guests: a KVM without hardware virtualisation
/// (PVM) opens, yet does not.
pub fn runs_linux() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    kvm_opens()
        && flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
}

fn checks() -> Row {
    let mut row = Row::new(summary::CHECKS, HERE);
    row.check("fmt", step(&["fmt", "--all", "--check"]));
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ];
    row.check("clippy", step(&clippy));
    // Those that need KVM are no part of all targets.
    let suites = ["zoo", "session", "linux", "scenarios"].map(|suite| ["--test", suite]);
    let of_suites = [
        &["clippy", "--package", "vitrine"],
        suites.as_flattened(),
        &["--", "-D", "warnings"],
    ];
    row.check("clippy of the guests' tests", step(&of_suites.concat()));
    say("test", "the direction of dependencies ...");
    row.check("arrows", arrows::check());
    say("test", "the licences of all packages ...");
    row.check("licences", licences::check());
    row
}

/// One cargo command that shows its own output.
fn step(arguments: &[&str]) -> Result<()> {
    say("test", format!("cargo {} ...", arguments.join(" ")));
    let status = Command::new(cargo())
        .args(arguments)
        .status()
        .context(|| "cargo could not be started".to_owned())?;
    if status.success() {
        Ok(())
    } else {
        fail(format!("`cargo {}` failed", arguments.join(" ")))
    }
}

fn unit(filter: Option<&str>) -> Row {
    let mut row = Row::new("unit", HERE);
    // Guests' own test programs are left out by `test = false`.
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    let name = format!("cargo {}", arguments.join(" "));
    say("test", format!("{name} ..."));
    let mut command = vec![cargo()];
    command.extend(arguments.map(OsString::from));
    if let Some(filter) = filter {
        command.extend(["--", filter].map(OsString::from));
    }
    let mut tally = Tally::new(std::io::stdout());
    let end = target::run_limited(&command, &[], Duration::from_secs(1800), &mut tally);
    judge(&mut row, tally, end, &name);
    if filter.is_none() {
        row.check("examples", step(&["build", "--workspace", "--examples"]));
    }
    row
}

/// What the tests call on this machine, beside what making the images already needs.
const TOOLS: [(&str, &str); 7] = [
    ("curl", "curl"),
    ("debugfs", "e2fsprogs"),
    ("dmsetup", "dmsetup"),
    ("e2fsck", "e2fsprogs"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
];

/// Installs what the tests call.
pub fn prepare_tools() -> Result<()> {
    for (tool, package) in TOOLS {
        apt::tool(tool, package)?;
    }
    Ok(())
}

/// Installs what the suite needs, builds its program and makes its images.
fn prepare(name: &str, sets: &[Set]) -> Result<(target::Built, PathBuf)> {
    prepare_tools()?;
    let mut built = target::build(name)?;
    if name == "session" {
        built.promtool = Some(promtool::ensure()?);
    }
    Ok((built, images::ensure(sets, false)?))
}

/// Runs the integration test target `name` where it can run.
fn guests(name: &'static str, sets: &[Set], here: bool, filter: Option<&str>) -> Row {
    let mut row = Row::new(name, if here { KVM } else { LAB });
    let (built, images) = match prepare(name, sets) {
        Ok(prepared) => prepared,
        Err(error) => {
            row.fail(error.to_string());
            return row;
        }
    };
    let linux = sets.contains(&Set::Linux);
    let mut arguments = vec!["--test-threads=1".to_owned()];
    arguments.extend(filter.map(str::to_owned));
    let limit = Duration::from_secs(if linux { 3300 } else { 900 });
    say("test", format!("{name}: running, on {} ...", row.place));
    if here {
        let mut tally = Tally::new(std::io::stdout());
        let end = target::run_here(&built, &images, &arguments, limit, &mut tally);
        judge(&mut row, tally, end, name);
        return row;
    }
    let size = |job: &mut Job| {
        job.timeout = limit;
        job.wake = false;
        if linux {
            // Guests of 5 GiB; and several vCPUs on two emulated CPUs with memory far above
            // 4 GiB is what QEMU 10.0 crashes at, so one.
            job.memory_mib = LINUX_MIB;
            job.cpus = 1;
        }
    };
    // The others take minutes, and count on two CPUs.
    let machines = if linux {
        spread::machines(LINUX_MIB)
    } else {
        1
    };
    if machines > 1 {
        row.place = LABS;
    }
    for part in spread::in_labs(&built, &images, &arguments, size, machines) {
        row.notes.extend(part.notes);
        judge(&mut row, part.tally, part.end, name);
    }
    let failed = again::candidates(&row);
    if !failed.is_empty() {
        say(
            "test",
            format!(
                "{name}: again, in another machine: {} ...",
                failed.join(", ")
            ),
        );
        let mut second = spread::in_lab(&built, &images, spread::exactly(failed), &size);
        second.tally.finish();
        row.notes.extend(second.notes);
        again::settle(&mut row, &second.tally);
    }
    row
}

/// Memory of an emulated machine for Linux guests.
const LINUX_MIB: u32 = 9216;

/// Counts what a test program said, and its end when that is bad without a test having failed.
fn judge<W: Write>(row: &mut Row, mut tally: Tally<W>, end: Result<End>, what: &str) {
    tally.finish();
    let told = tally.failed > 0;
    row.add(tally);
    match end {
        Ok(End::Exit(0)) => {}
        Ok(End::Exit(_)) if told => {}
        Ok(End::Exit(status)) => row.fail(format!("{what}: ended with status {status}")),
        Ok(End::TimeUp) => row.fail(format!("{what}: time was up; it was ended")),
        Ok(End::StoodStill) => row.fail(format!("{what}: the emulated machine stood still")),
        Err(error) => row.fail(format!("{what}: {error}")),
    }
}
