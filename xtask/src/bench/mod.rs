//! Benchmarks with a bound: each says how it measured, prints every run, and fails above the bound.

mod boot;
mod exits;
mod pss;
mod start;
mod watcher;

use std::path::PathBuf;

use clap::Subcommand;

use crate::error::Result;
use crate::suite;

pub use boot::BootInside;
pub use pss::PssInside;

const WATCHER_RUNS: u32 = 3;
const WATCHER_SECONDS: u32 = 30;

/// `cargo xtask bench …`
#[derive(Subcommand)]
pub enum Bench {
    /// Time from process start to the guest's first process, beside QEMU, in one run of the lab
    Boot {
        /// How often each program is measured
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// Fails when Vitrine's median is more than this part of QEMU's
        #[arg(long, default_value_t = boot::BOUND)]
        bound: f64,
    },
    /// What observing costs: a user exit, the watcher, and memory
    Exits,
    /// CPU time until the API answers, and memory beside the guest's
    Start {
        /// How often the start is measured
        #[arg(long, default_value_t = 20)]
        runs: u32,
    },
    /// CPU time of the thread that looks at a halted guest, on this machine's KVM
    Watcher {
        /// How often it is measured
        #[arg(long, default_value_t = WATCHER_RUNS)]
        runs: u32,
        /// Seconds of each run
        #[arg(long, default_value_t = WATCHER_SECONDS)]
        seconds: u32,
    },
}

/// Runs a benchmark.
pub fn main(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Boot { runs, bound } => boot::main(*runs, *bound),
        Bench::Exits => observation(),
        Bench::Start { runs } => start::main(*runs),
        Bench::Watcher { runs, seconds } => watcher::main(*runs, *seconds),
    }
}

/// All that observing costs; each is measured whatever the others came to.
fn observation() -> Result<()> {
    let all = [
        exits::main(),
        watcher::main(WATCHER_RUNS, WATCHER_SECONDS),
        vitrine().and_then(|vitrine| pss::main(&vitrine)),
    ];
    all.into_iter().collect()
}

/// `cargo xtask bench-boot-inside …`
pub fn boot_inside(args: &BootInside) -> Result<()> {
    boot::inside(args)
}

/// `cargo xtask bench-pss-inside …`
pub fn pss_inside(args: &PssInside) -> Result<()> {
    pss::inside(args)
}

/// The `vitrine` to measure: `$VITRINE_BIN`, else a release build.
pub fn vitrine() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VITRINE_BIN").filter(|value| !value.is_empty()) {
        return Ok(path.into());
    }
    crate::program::say("bench", "building vitrine (release) ...");
    let root = crate::repository()?.join("Cargo.toml");
    let manifest = root.to_string_lossy();
    let arguments = ["build", "--release", "--manifest-path", &*manifest];
    let what = ["--package", "vitrine", "--bin", "vitrine"];
    suite::artifact(&[&arguments[..], &what[..]].concat(), "vitrine")
}

/// The middle value; of an even number, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(vec![]).is_nan());
    }
}
