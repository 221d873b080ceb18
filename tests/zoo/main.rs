//! Bare-metal guests on /dev/kvm: what they do is exactly what is counted, and whatever they do,
//! the VM ends or goes on as its owner expects. Run by `cargo xtask test`.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../exact/mod.rs"]
mod exact;

#[allow(dead_code, reason = "this program uses its own part")]
#[path = "../session/daemon.rs"]
mod daemon;

mod devices;
mod exactness;
mod exit_path;
mod hostile;
mod inspect;
mod lifecycle;
mod panic;
mod samples;
mod stuck;
mod trace;
mod watched;

use harness::{Finished, Guest, image, spec};
use std::time::Duration;
use vmm::VmSpec;

/// Long enough for any zoo guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A zoo guest that does `words`.
fn zoo(words: &str) -> VmSpec {
    spec(image("zoo.elf"), &format!("console=ttyS0 zoo: {words}"))
}

/// Runs a zoo guest to its end.
fn run(spec: VmSpec) -> Finished {
    Guest::launch(spec).finish(PATIENCE)
}
