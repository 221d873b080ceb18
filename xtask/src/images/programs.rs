//! The guests' own programs, for what busybox cannot do: `guests/peer` speaks over a vsock,
//! `guests/fsx` works on a drive and knows what it holds, `guests/stream` does so with a TCP stream.

use std::fs;
use std::process::Command;

use crate::cache::{self, Scratch};
use crate::error::{Context, Result};
use crate::program::{self, say};
use crate::{apt, repository};

/// Their names; each is compiled from `guests/NAME/NAME.c`.
const NAMES: [&str; 3] = ["peer", "fsx", "stream"];

/// Their sources and how they are compiled, for stamps.
pub const INPUTS: [&str; 5] = [
    include_str!("../../../guests/plain.h"),
    include_str!("../../../guests/peer/peer.c"),
    include_str!("../../../guests/fsx/fsx.c"),
    include_str!("../../../guests/stream/stream.c"),
    include_str!("programs.rs"),
];

/// They need no C library and are a few KiB each.
const FLAGS: [&str; 12] = [
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-no-pie",
    "-s",
    "-o",
];

/// What each is called in the guest, and the program.
pub fn build() -> Result<Vec<(String, Vec<u8>)>> {
    let scratch = Scratch::beside(&cache::folder()?.join("guest-programs"))?;
    let gcc = apt::tool("gcc-12", "gcc-12")?;
    let mut programs = Vec::new();
    for name in NAMES {
        say("images", format!("compiling guests/{name} ..."));
        let target = scratch.path().join(name);
        let mut compiler = Command::new(&gcc);
        compiler.args(FLAGS).arg(&target);
        program::run(compiler.arg(repository()?.join(format!("guests/{name}/{name}.c"))))?;
        let content =
            fs::read(&target).context(|| format!("cannot read the compiled guests/{name}"))?;
        programs.push((format!("vitrine-{name}"), content));
    }
    Ok(programs)
}
