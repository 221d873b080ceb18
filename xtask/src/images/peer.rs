//! The program that speaks over a vsock in a guest (`guests/peer`): busybox has none.

use std::fs;
use std::process::Command;

use crate::cache::{self, Scratch};
use crate::error::{Context, Result};
use crate::program::{self, say};
use crate::{apt, repository};

/// Its source and how it is compiled, for stamps.
pub const INPUTS: [&str; 2] = [
    include_str!("../../../guests/peer/peer.c"),
    include_str!("peer.rs"),
];

/// It needs no C library and is a few KiB.
const FLAGS: [&str; 9] = [
    "-O2",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-no-pie",
    "-s",
    "-o",
];

/// The program.
pub fn build() -> Result<Vec<u8>> {
    let scratch = Scratch::beside(&cache::folder()?.join("guest-peer"))?;
    let target = scratch.path().join("vitrine-peer");
    say("images", "compiling guests/peer ...");
    let mut compiler = Command::new(apt::tool("gcc-12", "gcc-12")?);
    compiler.args(FLAGS).arg(&target);
    program::run(compiler.arg(repository()?.join("guests/peer/peer.c")))?;
    fs::read(&target).context(|| "cannot read the compiled guests/peer".to_owned())
}
