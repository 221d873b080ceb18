//! Stock Debian kernels on this machine's KVM, or in the lab's. Run by `cargo xtask test`.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../exact/mod.rs"]
mod exact;

#[allow(dead_code, reason = "sessions use more of it")]
#[path = "../session/daemon.rs"]
mod daemon;

#[allow(dead_code, reason = "scenarios use more of it")]
#[path = "../scenarios/block.rs"]
mod block;

mod agreement;
mod balloon;
mod blk;
mod boots;
mod counters;
mod deaths;
mod disk;
mod dump;
mod ends;
mod fsx;
mod host;
mod inspect;
mod ledger;
mod limits;
mod net;
mod nmi;
mod panic;
mod pause;
mod pci;
mod policy;
mod rng;
mod stream;
mod stuck;
mod taps;
mod trace;
mod vsock;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use harness::{Scratch, drive, image, spec};
use vmm::VmSpec;

/// Long enough for a boot in an emulated machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(240);

/// The two kernels.
const VERSIONS: [&str; 2] = ["6.1", "6.12"];

/// A kernel image: `bzImage` or `vmlinux`.
fn kernel(version: &str, form: &str) -> PathBuf {
    image(&format!("linux-{version}.{form}"))
}

/// A guest with a stock kernel whose init runs `script` and then powers off. `words` go onto the
/// command line.
fn linux(version: &str, words: &str, script: &str) -> VmSpec {
    let script = BASE64_STANDARD.encode(script);
    let cmdline = format!("console=ttyS0 reboot=k panic=1 quiet {words} vitrine.script={script}");
    let mut spec = spec(kernel(version, "bzImage"), &cmdline);
    spec.boot.initrd = Some(image(&format!("initrd-{version}.img")));
    spec.memory.size_mib = 256;
    spec
}

/// Each kernel over another transport, and whether that is PCI: for what neither of the two decides.
const TRANSPORTS: [(&str, bool); 2] = [("6.1", false), ("6.12", true)];

/// As [`linux`], over this transport.
fn on(version: &str, pci: bool, words: &str, script: &str) -> VmSpec {
    let mut spec = linux(version, words, script);
    spec.boot.kernel = kernel(version, "vmlinux");
    spec.pci = pci;
    spec
}

/// As [`on`], with the root drive as vda: it has programs that busybox has not.
fn on_root_drive(scratch: &Scratch, version: &str, pci: bool, script: &str) -> VmSpec {
    let root = scratch.path("root.ext4");
    fs::copy(image("root.ext4"), &root).unwrap();
    let mut spec = on(version, pci, "vitrine.root=/dev/vda", script);
    let mut first = drive("rootfs", &root);
    first.root = true;
    spec.drives.push(first);
    spec
}

/// What follows `key=` on a line of the console.
fn told<'a>(console: &'a str, key: &str) -> &'a str {
    let key = format!("{key}=");
    console
        .lines()
        .find_map(|line| line.trim().strip_prefix(key.as_str()))
        .unwrap_or_else(|| panic!("the guest did not tell {key}; it said:\n{console}"))
        .trim()
}
