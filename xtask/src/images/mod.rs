//! What the tests boot: Debian's kernels, an initial RAM file system, a root drive and the
//! bare-metal guest. Each is made once, and again when what it is made from has changed.

mod initrd;
mod module;
mod programs;
mod root;
mod zoo;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::kernel::{self, Kernel};
use crate::program::say;
use crate::{apt, busybox::Busybox, cache};

/// The series of Debian's cloud kernels that guests run.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Which images are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Kernels, initrds and the root drive.
    Linux,
    /// The bare-metal guest.
    Zoo,
}

/// `cargo xtask images`
#[derive(clap::Args)]
pub struct ImagesArgs {
    /// Make all images anew, from the newest packages
    #[arg(long)]
    refresh: bool,
}

/// `cargo xtask images`: makes all, prints where they are.
pub fn main(args: &ImagesArgs) -> Result<()> {
    let folder = ensure(&[Set::Linux], args.refresh)?;
    println!("{}", folder.display());
    ensure(&[Set::Zoo], args.refresh).map(drop)
}

/// Where the images are: `$VITRINE_IMAGES`, else in the cache.
pub fn folder() -> Result<PathBuf> {
    let folder = match std::env::var_os("VITRINE_IMAGES").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => cache::folder()?.join("images"),
    };
    cache::make_folder(&folder.join(".stamps"))?;
    Ok(folder)
}

/// Makes what is missing or stale; returns the folder.
pub fn ensure(sets: &[Set], refresh: bool) -> Result<PathBuf> {
    let folder = folder()?;
    if sets.contains(&Set::Linux) {
        for series in SERIES {
            linux(&folder, series, refresh)?;
        }
        root::ensure(&folder, refresh)?;
    }
    if sets.contains(&Set::Zoo) {
        zoo::ensure(&folder, refresh)?;
    }
    Ok(folder)
}

/// The kernel and the initrd of one series.
fn linux(folder: &Path, series: &str, refresh: bool) -> Result<()> {
    let key = format!("guest-kernel-{series}");
    let package = apt::package_file(&key, refresh, || apt::newest_kernel(series, "cloud-amd64"))?;
    let package_name = package.file_name().unwrap_or_default().as_encoded_bytes();
    let names = ["bzImage", "vmlinux"].map(|kind| format!("linux-{series}.{kind}"));
    let initrd = format!("initrd-{series}.img");
    let kernel_made = Made::new(
        folder,
        &[&names[0], &names[1]],
        &[package_name, include_bytes!("../kernel.rs")],
    );
    let initrd_made = Made::new(
        folder,
        &[&initrd],
        &[
            package_name,
            initrd::INPUTS.concat().as_bytes(),
            module::INPUTS.concat().as_bytes(),
            programs::INPUTS.concat().as_bytes(),
        ],
    );
    if !refresh && kernel_made.is_fresh() && initrd_made.is_fresh() {
        return Ok(());
    }
    let kernel = Kernel::unpack(&package)?;
    say(
        "images",
        format!("making the guests' Linux {} ...", kernel.release),
    );
    let bzimage = fs::read(kernel.bzimage()).context(|| format!("the kernel {series}"))?;
    kernel_made.make(|beside| {
        write(&beside[1], &kernel::vmlinux(&bzimage)?)?;
        write(&beside[0], &bzimage)
    })?;
    initrd_made.make(|beside| write(&beside[0], &initrd::archive(&kernel, &Busybox::ensure()?)?))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).context(|| format!("cannot write {}", path.display()))
}

/// Files that are made together from the same inputs, and the stamp that says from which.
struct Made {
    targets: Vec<PathBuf>,
    stamp_file: PathBuf,
    stamp: String,
}

impl Made {
    fn new(folder: &Path, names: &[&str], inputs: &[&[u8]]) -> Self {
        Self {
            targets: names.iter().map(|name| folder.join(name)).collect(),
            stamp_file: folder.join(".stamps").join(names[0]),
            stamp: cache::stamp(inputs),
        }
    }

    fn is_fresh(&self) -> bool {
        self.targets.iter().all(|target| target.exists())
            && fs::read_to_string(&self.stamp_file).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Builds beside the targets, then moves into place; the stamp comes last.
    fn make(&self, build: impl FnOnce(&[PathBuf]) -> Result<()>) -> Result<()> {
        let _ = fs::remove_file(&self.stamp_file);
        let beside: Vec<PathBuf> = self.targets.iter().map(|t| cache::beside(t)).collect();
        let built = build(&beside).and_then(|()| {
            beside
                .iter()
                .zip(&self.targets)
                .try_for_each(|(built, t)| cache::put(built, t))
        });
        for leftover in &beside {
            let _ = fs::remove_file(leftover);
        }
        built?;
        write(&self.stamp_file, self.stamp.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_stale_when_its_inputs_change() -> Result<()> {
        let scratch = cache::Scratch::beside(&std::env::temp_dir().join("vitrine-made"))?;
        cache::make_folder(&scratch.path().join(".stamps"))?;
        let made = Made::new(scratch.path(), &["a"], &[b"1"]);
        assert!(!made.is_fresh());
        made.make(|beside| write(&beside[0], b"content"))?;
        assert!(made.is_fresh());
        assert!(!Made::new(scratch.path(), &["a"], &[b"2"]).is_fresh());
        assert!(made.make(|_| crate::error::fail("no")).is_err());
        assert!(
            !made.is_fresh(),
            "a failed attempt leaves nothing that looks whole"
        );
        Ok(())
    }
}
