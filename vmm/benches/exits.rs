//! What observing costs a user exit: the path of a port write with and without it, and the exit
//! loop of a guest on this host's KVM with and without it. Prints every round and fails above the
//! bounds. Run by `cargo xtask bench exits`.

use std::process::ExitCode;
use std::time::Duration;

use vmm::measure::{Guest, MeasureError, Path};

/// Nanoseconds that observing may add to a user exit.
const BOUND_NS: f64 = 40.0;
/// What it may add to the guest's exit loop.
const BOUND_LOOP: f64 = 0.02;
/// Rounds are many and short: some of them fall between two disturbances.
const ROUNDS: usize = 301;
const PATH_EXITS: u64 = 50_000;
const GUEST_EXITS: u64 = 2_000;
/// Of this many equal groups of rounds, one line is printed for each.
const LINES: usize = 7;

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("exits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<bool, MeasureError> {
    let path = path()?;
    let guest = guest()?;
    Ok(path && guest)
}

/// The dispatch path alone. Whatever else runs on the core, its other hardware thread included, adds
/// to it and nothing takes away: so the quietest tenth of the rounds is judged.
fn path() -> Result<bool, MeasureError> {
    println!("exits: a port write from KVM_RUN's return to the next call, KVM_RUN left out");
    println!("  {ROUNDS} rounds of {PATH_EXITS}, in turns; ns an exit, medians of each seventh\n");
    println!("  rounds   observed      bare      added");
    let path = Path::new()?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let observed = per_exit(path.observed(PATH_EXITS), PATH_EXITS);
        rounds.push((observed, per_exit(path.bare(PATH_EXITS), PATH_EXITS)));
    }
    print(&rounds, |observed, bare| observed - bare);
    let added = || rounds.iter().map(|(observed, bare)| observed - bare);
    let (quiet, median) = (share(added(), 10), share(added(), 2));
    println!("\n  median added to an exit: {median:.1} ns");
    println!("  in the quietest tenth of the rounds: {quiet:.1} ns (bound {BOUND_NS} ns)\n");
    Ok(quiet <= BOUND_NS)
}

/// The loop of a guest.
fn guest() -> Result<bool, MeasureError> {
    println!("exits: a guest on this host's KVM that writes to a port for ever");
    println!("  {ROUNDS} rounds of {GUEST_EXITS}, in turns; ns an exit, medians of each seventh\n");
    println!("  rounds   observed      bare      ratio");
    let mut guest = Guest::new()?;
    guest.bare(GUEST_EXITS)?;
    guest.observed(GUEST_EXITS)?;
    let before = guest.counted();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        // Another is first in each round.
        let (observed, bare) = if round % 2 == 0 {
            let observed = guest.observed(GUEST_EXITS)?;
            (observed, guest.bare(GUEST_EXITS)?)
        } else {
            let bare = guest.bare(GUEST_EXITS)?;
            (guest.observed(GUEST_EXITS)?, bare)
        };
        rounds.push((per_exit(observed, GUEST_EXITS), per_exit(bare, GUEST_EXITS)));
    }
    print(&rounds, |observed, bare| observed / bare);
    let counted = guest.counted() - before;
    let made = GUEST_EXITS * ROUNDS as u64;
    println!("\n  accounted: {counted} of {made} observed exits");
    let added = share(rounds.iter().map(|(observed, bare)| observed / bare), 2) - 1.0;
    println!(
        "  median added to the loop: {:.2} % (bound {:.0} %)",
        added * 100.0,
        BOUND_LOOP * 100.0
    );
    // A signal may have ended a KVM_RUN or two, which are exits of another kind.
    Ok(added <= BOUND_LOOP && counted.abs_diff(made) <= made / 1000)
}

/// The medians of each group of rounds.
fn print(rounds: &[(f64, f64)], compare: impl Fn(f64, f64) -> f64) {
    for (number, group) in rounds.chunks(ROUNDS / LINES).enumerate() {
        let observed = share(group.iter().map(|round| round.0), 2);
        let bare = share(group.iter().map(|round| round.1), 2);
        let compared = share(group.iter().map(|round| compare(round.0, round.1)), 2);
        let first = number * (ROUNDS / LINES) + 1;
        println!("  {first:>6} {observed:>10.1} {bare:>9.1} {compared:>10.4}");
    }
}

fn per_exit(took: Duration, exits: u64) -> f64 {
    took.as_secs_f64() * 1e9 / exits as f64
}

/// The value that one of `parts` of all lies below: 2 gives the median.
fn share(values: impl Iterator<Item = f64>, parts: usize) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() / parts)
        .copied()
        .unwrap_or(f64::NAN)
}
