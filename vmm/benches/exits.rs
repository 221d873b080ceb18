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
const ROUNDS: usize = 15;
const PATH_EXITS: u64 = 2_000_000;
const GUEST_EXITS: u64 = 20_000;

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

/// The dispatch path alone.
fn path() -> Result<bool, MeasureError> {
    println!("exits: a port write from KVM_RUN's return to the next call, KVM_RUN left out");
    println!("  {PATH_EXITS} a round, in turns; ns an exit\n");
    println!("  round   observed      bare      added");
    let path = Path::new()?;
    let mut added = Vec::new();
    for round in 0..=ROUNDS {
        let observed = per_exit(path.observed(PATH_EXITS), PATH_EXITS);
        let bare = per_exit(path.bare(PATH_EXITS), PATH_EXITS);
        if round > 0 {
            println!(
                "  {round:>5} {observed:>10.2} {bare:>9.2} {:>10.2}",
                observed - bare
            );
            added.push(observed - bare);
        }
    }
    let median = median(added);
    println!("\n  median added to an exit: {median:.1} ns (bound {BOUND_NS} ns)\n");
    Ok(median <= BOUND_NS)
}

/// The loop of a guest.
fn guest() -> Result<bool, MeasureError> {
    println!("exits: a guest on this host's KVM that writes to a port for ever");
    println!("  {GUEST_EXITS} exits a round, in turns; ns an exit\n");
    println!("  round   observed      bare      ratio");
    let mut guest = Guest::new()?;
    guest.bare(GUEST_EXITS)?;
    guest.observed(GUEST_EXITS)?;
    let before = guest.counted();
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        // Another is first in each round.
        let (observed, bare) = if round % 2 == 0 {
            let observed = guest.observed(GUEST_EXITS)?;
            (observed, guest.bare(GUEST_EXITS)?)
        } else {
            let bare = guest.bare(GUEST_EXITS)?;
            (guest.observed(GUEST_EXITS)?, bare)
        };
        let (observed, bare) = (per_exit(observed, GUEST_EXITS), per_exit(bare, GUEST_EXITS));
        println!(
            "  {round:>5} {observed:>10.1} {bare:>9.1} {:>10.4}",
            observed / bare
        );
        ratios.push(observed / bare);
    }
    let counted = guest.counted() - before;
    let made = GUEST_EXITS * ROUNDS as u64;
    println!("\n  accounted: {counted} of {made} observed exits");
    let added = median(ratios) - 1.0;
    println!(
        "  median added to the loop: {:.2} % (bound {:.0} %)",
        added * 100.0,
        BOUND_LOOP * 100.0
    );
    // A signal may have ended a KVM_RUN or two, which are exits of another kind.
    Ok(added <= BOUND_LOOP && counted.abs_diff(made) <= made / 1000)
}

fn per_exit(took: Duration, exits: u64) -> f64 {
    took.as_secs_f64() * 1e9 / exits as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
