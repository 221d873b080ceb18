//! `cargo xtask bench exits`: what observing costs a user exit, on this machine.

use std::process::Command;

use crate::arrows::cargo;
use crate::error::{Context, Result, fail};
use crate::program::say;

/// Builds and runs the benchmark of the exit path, which judges itself.
pub fn main() -> Result<()> {
    say(
        "bench",
        "building the exit path, with and without observation ...",
    );
    let root = crate::repository()?.join("Cargo.toml");
    let status = Command::new(cargo())
        .args([
            "bench",
            "--quiet",
            "--package",
            "vmm",
            "--features",
            "measure",
        ])
        .args(["--bench", "exits", "--manifest-path"])
        .arg(root)
        .status()
        .context(|| "cargo could not be started".to_owned())?;
    if status.success() {
        Ok(())
    } else {
        fail("exits: a bound is not met, or there was nothing to measure; see above")
    }
}
