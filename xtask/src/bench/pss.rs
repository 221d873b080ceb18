//! How much memory a VMM with a running guest holds beside the guest's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::console::Console;
use crate::error::{Context, Result, fail};
use crate::images::{self, Set};
use crate::program::say;
use crate::{apt, lab, suite};

const GUEST_MIB: u64 = 128;
/// KiB of proportional set size beside guest memory.
const BOUND_KIB: u64 = 4096;

/// What the measuring needs to know.
#[derive(clap::Args)]
pub struct PssInside {
    #[arg(long)]
    vitrine: PathBuf,
    #[arg(long)]
    images: PathBuf,
}

/// Measures where Linux guests boot.
pub fn main(vitrine: &Path) -> Result<()> {
    let images = images::ensure(&[Set::Linux], false)?;
    if suite::runs_linux() && apt::is_root() {
        return inside(&PssInside {
            vitrine: vitrine.to_path_buf(),
            images,
        });
    }
    let (vitrine, images) = (vitrine.to_string_lossy(), images.to_string_lossy());
    say("bench", "starting the lab ...");
    let arguments = [
        "bench-pss-inside",
        "--vitrine",
        &vitrine,
        "--images",
        &images,
    ];
    lab::run_self(&arguments, |job| job.timeout = Duration::from_secs(300))
}

/// Boots a guest and reads the VMM's mappings.
pub fn inside(args: &PssInside) -> Result<()> {
    let scratch = crate::cache::Scratch::at(Path::new("/run/vitrine-pss"))?;
    let folder = scratch.path();
    for (from, name) in [
        (args.images.join("linux-6.12.bzImage"), "kernel"),
        (args.images.join("initrd-6.12.img"), "initrd"),
        (args.vitrine.clone(), "vitrine"),
    ] {
        fs::copy(&from, folder.join(name)).context(|| format!("cannot copy {}", from.display()))?;
    }
    let config = json!({
        "boot-source": {
            "kernel_image_path": folder.join("kernel"),
            "initrd_path": folder.join("initrd"),
            "boot_args": "console=ttyS0 reboot=k panic=1 quiet",
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
    });
    fs::write(folder.join("config.json"), config.to_string())
        .context(|| "cannot write vitrine's configuration".to_owned())?;
    let mut command = Command::new(folder.join("vitrine"));
    command
        .arg("--api-sock")
        .arg(folder.join("api.sock"))
        .args(["--id", "bench-pss"]);
    command.arg("--config-file").arg(folder.join("config.json"));
    command.arg("--kernel-cache").arg(folder.join("kernels"));
    let mut console = Console::start(&mut command, &folder.join("log"))?;
    console.wait_for("VITRINE-GUEST-READY", Duration::from_secs(120))?;
    std::thread::sleep(Duration::from_secs(1));
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", console.pid()))
        .context(|| "cannot read the VMM's mappings".to_owned())?;
    console.end();
    report(&mappings(&smaps))
}

fn report(mappings: &[Mapping]) -> Result<()> {
    let (guest, own): (Vec<_>, Vec<_>) = mappings.iter().partition(|m| m.is_guest());
    let sum = |list: &[&Mapping]| list.iter().map(|m| m.pss_kib).sum::<u64>();
    println!("memory: PSS of a vitrine with a running guest (1 vCPU, {GUEST_MIB} MiB, Linux 6.12)");
    println!("  the sum of Pss in /proc/PID/smaps without the guest's memory, which is:");
    for mapping in &guest {
        let (kib, pss) = (mapping.size_kib, mapping.pss_kib);
        println!("    {kib} KiB mapped, {pss} KiB in use  {}", mapping.name());
    }
    let mapped: u64 = guest.iter().map(|mapping| mapping.size_kib).sum();
    if mapped < GUEST_MIB * 1024 {
        return fail("memory: the guest's memory was not found among the mappings");
    }
    let mut largest = own.clone();
    largest.sort_by_key(|mapping| std::cmp::Reverse(mapping.pss_kib));
    println!("  the rest, largest first:");
    for mapping in largest.iter().take(8) {
        println!("    {:>6} KiB  {}", mapping.pss_kib, mapping.name());
    }
    let beside = sum(&own);
    println!("\n  beside guest memory: {beside} KiB (bound {BOUND_KIB} KiB)");
    if beside > BOUND_KIB {
        return fail(format!(
            "memory: {beside} KiB is above the bound of {BOUND_KIB} KiB"
        ));
    }
    Ok(())
}

/// One mapping of a process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping {
    path: String,
    size_kib: u64,
    pss_kib: u64,
}

impl Mapping {
    /// Guest memory is the only thing as large as the guest, and is no file of the file system.
    fn is_guest(&self) -> bool {
        let anonymous = !self.path.starts_with('/') || self.path.starts_with("/memfd:");
        anonymous && self.size_kib >= GUEST_MIB * 1024
    }

    fn name(&self) -> &str {
        if self.path.is_empty() {
            "(anonymous)"
        } else {
            &self.path
        }
    }
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_head = words
            .first()
            .is_some_and(|word| word.contains('-') && !word.ends_with(':'));
        if is_head {
            let path = words.get(5..).unwrap_or_default().join(" ");
            found.push(Mapping {
                path,
                ..Mapping::default()
            });
        } else if let (Some(last), [name, kib, ..]) = (found.last_mut(), &words[..]) {
            match *name {
                "Size:" => last.size_kib = kib.parse().unwrap_or(0),
                "Pss:" => last.pss_kib = kib.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "55e0-55f0 r-xp 00000000 00:19 33 /run/vitrine\n\
        Size:               1234 kB\nPss:                1000 kB\nPss_Dirty: 3 kB\n\
        7f00-7f10 rw-p 00000000 00:00 0 \nSize:             131072 kB\nPss:               50000 kB\n\
        7ffd-7ffe rw-p 00000000 00:00 0                          [stack]\nSize: 132 kB\nPss: 12 kB\n";

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let all = mappings(SMAPS);
        assert_eq!(all.len(), 3);
        assert_eq!(
            all[0],
            Mapping {
                path: "/run/vitrine".into(),
                size_kib: 1234,
                pss_kib: 1000
            }
        );
        assert!(all[1].is_guest() && !all[0].is_guest() && !all[2].is_guest());
        assert!(report(&all).is_ok());
        assert!(
            report(&all[..1]).is_err(),
            "no guest memory found is no result"
        );
    }
}
