//! Block devices of the host that can be slow, stand still or be full; and swap on them. For the lab
//! alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::Scratch;

/// Runs a program that must succeed; gives what it said.
#[track_caller]
pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A device-mapper device over a file in memory.
pub struct Mapped {
    name: String,
    loop_device: String,
    sectors: u64,
    _scratch: Scratch,
}

impl Mapped {
    /// Of so many MiB; each read takes `delay_ms` longer.
    pub fn new(name: &str, mib: usize, delay_ms: u32) -> Mapped {
        for module in ["loop", "dm_mod", "dm_delay"] {
            run(&["modprobe", module]);
        }
        let scratch = Scratch::new();
        let file = scratch.disk("backing", mib << 20, 3);
        let loop_device = run(&["losetup", "--find", "--show", file.to_str().unwrap()]);
        let sectors = mib * 2048;
        let table = match delay_ms {
            0 => format!("0 {sectors} linear {loop_device} 0"),
            _ => format!("0 {sectors} delay {loop_device} 0 {delay_ms} {loop_device} 0 0"),
        };
        run(&["dmsetup", "create", name, "--table", &table]);
        Mapped {
            name: name.to_owned(),
            loop_device,
            sectors: sectors as u64,
            _scratch: scratch,
        }
    }

    /// From now on these sectors can neither be read nor written.
    #[allow(dead_code, reason = "the tests with Linux guests use it")]
    pub fn break_sectors(&self, first: u64, count: u64) {
        let (after, device) = (first + count, &self.loop_device);
        let left = self.sectors - after;
        self.map(&format!(
            "0 {first} linear {device} 0\n{first} {count} error\n{after} {left} linear {device} {after}"
        ));
    }

    /// All sectors can be read and written again.
    #[allow(dead_code, reason = "the tests with Linux guests use it")]
    pub fn heal(&self) {
        self.map(&format!("0 {} linear {} 0", self.sectors, self.loop_device));
    }

    fn map(&self, table: &str) {
        run(&["dmsetup", "suspend", &self.name]);
        run(&["dmsetup", "reload", &self.name, "--table", table]);
        run(&["dmsetup", "resume", &self.name]);
    }

    /// The device.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = Command::new("dmsetup")
            .args(["remove", "--retry", &self.name])
            .output();
        let _ = Command::new("losetup")
            .args(["-d", &self.loop_device])
            .output();
    }
}

/// A device-mapper device that answers nobody while this lives.
pub struct Suspended(&'static str);

impl Suspended {
    /// By its name.
    pub fn device(name: &'static str) -> Suspended {
        run(&["dmsetup", "suspend", "--noflush", "--nolockfs", name]);
        Suspended(name)
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        run(&["dmsetup", "resume", self.0]);
    }
}

/// Swap of the host, while this lives.
pub struct Swap {
    device: Mapped,
}

impl Swap {
    /// So large; each page that is read back takes so long.
    pub fn new(mib: usize, delay_ms: u32) -> Swap {
        let device = Mapped::new("vitrine-swap", mib, delay_ms);
        let path = device.path();
        run(&["mkswap", path.to_str().unwrap()]);
        run(&["swapon", path.to_str().unwrap()]);
        Swap { device }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let path = self.device.path();
        let _ = Command::new("swapoff").arg(path).output();
    }
}

/// A folder in memory that holds no more than so many KiB.
pub struct Small(pub PathBuf, Scratch);

impl Small {
    /// Makes it.
    pub fn new(kib: usize) -> Small {
        let scratch = Scratch::new();
        let path = scratch.path("small");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={kib}k");
        let folder = path.to_str().unwrap();
        run(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs", folder]);
        Small(path, scratch)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = &self.1;
    }
}
