//! Debian's static busybox: the only program that the small Linux systems made here need.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Context, Result, fail};
use crate::{apt, cache, program};

/// The program and the names of what it can do.
pub struct Busybox {
    /// Its content.
    pub content: Vec<u8>,
    /// Its applets.
    pub applets: Vec<String>,
}

impl Busybox {
    /// The installed one when it is static, else the package's, which need not be installed.
    pub fn ensure() -> Result<Self> {
        if let Some(path) = program::find("busybox")
            && fs::read(&path).is_ok_and(|content| is_static(&content))
        {
            return Self::read(&path);
        }
        let package = apt::package_file("busybox", false, || Ok("busybox-static".to_owned()))?;
        let scratch = cache::Scratch::beside(&package)?;
        apt::unpack(&package, scratch.path())?;
        let paths = ["bin/busybox", "usr/bin/busybox"].map(|path| scratch.path().join(path));
        match paths.iter().find(|path| path.exists()) {
            Some(path) => Self::read(path),
            None => fail("the package busybox-static holds no busybox"),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let content = fs::read(path).context(|| format!("cannot read {}", path.display()))?;
        let list = program::text(Command::new(path).arg("--list"))?;
        let applets = list
            .lines()
            .map(str::to_owned)
            .filter(|name| name != "busybox")
            .collect();
        Ok(Self { content, applets })
    }
}

/// A static program names no dynamic loader.
fn is_static(elf: &[u8]) -> bool {
    let head = &elf[..elf.len().min(8192)];
    !head.windows(8).any(|bytes| bytes == b"ld-linux")
}
