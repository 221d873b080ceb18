//! The QEMU that emulates the lab: found, or installed from the distribution.

use std::path::PathBuf;
use std::process::Command;

use crate::error::{Result, fail};
use crate::program::{self, say};
use crate::{apt, backports};

/// The first version that emulates two AMD CPUs reliably.
const RELIABLE: u32 = 8;

/// A QEMU program.
pub struct Qemu {
    /// Where it is.
    pub path: PathBuf,
    /// What it says its version is.
    pub version: String,
    major: u32,
}

impl Qemu {
    /// The QEMU of this machine; installed from backports where the suite's own is too old.
    pub fn ensure() -> Result<Self> {
        if let Some(qemu) = Self::find()?
            && qemu.is_reliable()
        {
            return Ok(qemu);
        }
        if let Err(error) = install() {
            say(
                "lab",
                format!("QEMU {RELIABLE} or newer could not be installed: {error}"),
            );
        }
        match Self::find()? {
            Some(qemu) => Ok(qemu),
            None => fail("qemu-system-x86_64 is missing: install the package qemu-system-x86"),
        }
    }

    /// The QEMU that is there now.
    pub fn find() -> Result<Option<Self>> {
        let Some(path) = program::find("qemu-system-x86_64") else {
            return Ok(None);
        };
        let said = program::text(Command::new(&path).arg("--version"))?;
        let line = said.lines().next().unwrap_or_default();
        let version = line.split("version ").nth(1).unwrap_or_default().to_owned();
        let major = version
            .split('.')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        Ok(Some(Self {
            path,
            version,
            major,
        }))
    }

    /// Whether it may emulate more than one CPU.
    pub fn is_reliable(&self) -> bool {
        self.major >= RELIABLE
    }
}

fn install() -> Result<()> {
    // Only bookworm's own version is too old.
    if apt::codename()? != "bookworm" {
        return apt::install(&["qemu-system-x86"], None);
    }
    let backports = if apt::is_root() {
        backports::ensure()
    } else {
        fail("not root")
    };
    match backports {
        Ok(suite) => apt::install(&["qemu-system-x86"], Some(&suite)),
        Err(error) => {
            say(
                "lab",
                format!("no backports ({error}): taking the QEMU of the suite itself"),
            );
            apt::install(&["qemu-system-x86"], None)
        }
    }
}
