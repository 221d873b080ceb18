//! The bare-metal guest: all C and assembly files of `guests/zoo`, linked by its script.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Made;
use crate::error::{Context, Result, fail};
use crate::program::{self, say};
use crate::{apt, repository};

/// No library, no red zone (interrupts use the stack), no vector registers (nobody enables them),
/// addresses below 2 GiB.
const FLAGS: [&str; 18] = [
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-m64",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-mcmodel=small",
    "-fcf-protection=none",
];

/// Makes `zoo.elf` when it is missing or stale.
pub fn ensure(folder: &Path, refresh: bool) -> Result<()> {
    let source = repository()?.join("guests/zoo");
    let files = files(&source)?;
    let mut inputs = vec![FLAGS.join(" ").into_bytes()];
    for file in &files {
        inputs.push(
            file.file_name()
                .unwrap_or_default()
                .as_encoded_bytes()
                .to_vec(),
        );
        inputs.push(fs::read(file).context(|| format!("cannot read {}", file.display()))?);
    }
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let made = Made::new(folder, &["zoo.elf"], &inputs);
    if !refresh && made.is_fresh() {
        return Ok(());
    }
    say("images", "compiling the bare-metal guest (guests/zoo) ...");
    let gcc = apt::tool("gcc", "gcc")?;
    apt::tool("ld", "binutils")?;
    made.make(|beside| {
        let mut command = Command::new(gcc);
        command.args(FLAGS).arg("-T").arg(source.join("zoo.ld"));
        command.args(["-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"]);
        command.args(["-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments"]);
        let units = files
            .iter()
            .filter(|f| f.extension().is_some_and(|x| x == "c" || x == "S"));
        program::run(command.arg("-o").arg(&beside[0]).args(units))
    })
}

/// The guest's sources, headers and linker script, in a steady order.
fn files(source: &Path) -> Result<Vec<PathBuf>> {
    let known = |path: &PathBuf| {
        path.extension()
            .is_some_and(|x| x == "c" || x == "S" || x == "h" || x == "ld")
    };
    let entries = fs::read_dir(source).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(known).collect();
    files.sort();
    if files.contains(&source.join("zoo.ld")) {
        Ok(files)
    } else {
        fail(format!(
            "the bare-metal guest zoo.elf was not made: {} has no zoo.ld",
            source.display()
        ))
    }
}
