//! The module that gets a guest's CPU stuck (`guests/module`), built against a stock kernel's headers.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cache::{self, Scratch};
use crate::error::{Context, Result, fail};
use crate::kernel::Kernel;
use crate::program::{self, say};
use crate::{apt, repository};

/// Its source and its part of the kernel's build, for stamps.
pub const INPUTS: [&str; 3] = [SOURCE, KBUILD, include_str!("module.rs")];
const SOURCE: &str = include_str!("../../../guests/module/vitrine_stuck.c");
const KBUILD: &str = include_str!("../../../guests/module/Kbuild");
const NAME: &str = "vitrine_stuck.ko";

/// The module for `kernel`, without debugging information.
pub fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let release = &kernel.release;
    let key = format!("guest-headers-{release}");
    let packages = apt::package_files(&key, false, || apt::headers_of(release))?;
    let scratch = Scratch::beside(&cache::folder()?.join("guest-module"))?;
    let root = scratch.path().join("root");
    cache::make_folder(&root)?;
    for package in &packages {
        apt::unpack(package, &root)?;
    }
    let headers = root.join(format!("usr/src/linux-headers-{release}"));
    moved(&headers, &root)?;
    let folder = scratch.path().join("module");
    cache::make_folder(&folder)?;
    let source = repository()?.join("guests/module");
    for name in ["vitrine_stuck.c", "Kbuild"] {
        fs::copy(source.join(name), folder.join(name))
            .context(|| format!("cannot copy guests/module/{name}"))?;
    }
    say(
        "images",
        format!("compiling guests/module for Linux {release} ..."),
    );
    // The compiler that Debian's headers name.
    apt::tool("gcc-12", "gcc-12")?;
    let mut make = Command::new(apt::tool("make", "make")?);
    let module = format!("M={}", folder.display());
    // BTF would need the kernel's own, and pahole.
    make.arg("-s").arg("-C").arg(&headers);
    program::run(make.args([module.as_str(), "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]))?;
    let strip = apt::tool("strip", "binutils")?;
    program::run(Command::new(strip).arg("-g").arg(folder.join(NAME)))?;
    fs::read(folder.join(NAME)).context(|| format!("cannot read {NAME}"))
}

/// The headers' makefile includes another one by its installed path: names the unpacked one.
fn moved(headers: &Path, root: &Path) -> Result<()> {
    let file = headers.join("Makefile");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let Some((before, after)) = text.split_once("include /usr/src/") else {
        return fail(format!(
            "{} includes nothing of /usr/src: Debian builds its headers in another way now",
            file.display()
        ));
    };
    let text = format!("{before}include {}/usr/src/{after}", root.display());
    fs::write(&file, text).context(|| format!("cannot write {}", file.display()))
}
