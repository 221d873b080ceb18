//! The guests' root drive: a small ext4 file system made from Debian's packages, never mounted
//! here.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{Made, programs, write};
use crate::busybox::Busybox;
use crate::error::{Context, Result};
use crate::program::{self, say};
use crate::{apt, cache};

const INIT: &str = include_str!("../../../guests/linux/root-init");

/// The packages whose programs the drive has, beside busybox. dash is its `sh`: busybox's own takes
/// the applets in itself before the better programs on PATH.
const PACKAGES: [&str; 5] = ["dash", "e2fsprogs", "ethtool", "iproute2", "util-linux"];
const SIZE: &str = "96M";

/// Folders of packages that no guest reads.
const LEFT_OUT: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/info",
];

/// Makes the drive when it is missing or stale.
pub fn ensure(folder: &Path, refresh: bool) -> Result<()> {
    let programs = programs::INPUTS.concat();
    let inputs = [INIT, include_str!("root.rs"), &programs].map(str::as_bytes);
    let made = Made::new(folder, &["root.ext4"], &inputs);
    if !refresh && made.is_fresh() {
        return Ok(());
    }
    say("images", "making the guests' root drive ...");
    made.make(|beside| {
        let scratch = cache::Scratch::beside(&folder.join("root"))?;
        let tree = scratch.path().join("tree");
        fill(&tree, refresh)?;
        file_system(&tree, &beside[0])
    })
}

/// The drive's files in a folder.
fn fill(tree: &Path, refresh: bool) -> Result<()> {
    for folder in [
        "usr", "etc", "root", "mnt", "var", "proc", "sys", "dev", "run", "tmp",
    ] {
        cache::make_folder(&tree.join(folder))?;
    }
    let key = format!(
        "root-drive-{}",
        cache::stamp(&[PACKAGES.join(" ").as_bytes()])
    );
    let packages = apt::package_files(&key, refresh, || {
        let mut names = PACKAGES.map(str::to_owned).to_vec();
        names.extend(apt::libraries_of(&PACKAGES)?);
        Ok(names)
    })?;
    for package in packages {
        apt::unpack(&package, tree)?;
    }
    merge_usr(tree)?;
    for folder in LEFT_OUT {
        let _ = fs::remove_dir_all(tree.join(folder));
    }
    let busybox = Busybox::ensure()?;
    program(&tree.join("usr/bin/busybox"), &busybox.content)?;
    for applet in &busybox.applets {
        // What a package brought is better than busybox's.
        if !tree.join("usr/sbin").join(applet).exists() && applet != "init" {
            let _ = symlink("busybox", tree.join("usr/bin").join(applet));
        }
    }
    for (name, content) in programs::build()? {
        program(&tree.join("usr/bin").join(name), &content)?;
    }
    program(&tree.join("usr/sbin/init"), INIT.as_bytes())
}

/// Moves what packages have in `/bin` and its like below `/usr`, as Debian's installer does.
fn merge_usr(tree: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let (old, new) = (tree.join(name), tree.join("usr").join(name));
        cache::make_folder(&old)?;
        cache::make_folder(&new)?;
        let mut copy = Command::new("cp");
        program::run(
            copy.args(["-a", "--remove-destination"])
                .arg(old.join("."))
                .arg(&new),
        )?;
        fs::remove_dir_all(&old).context(|| format!("cannot remove {}", old.display()))?;
        link(&format!("usr/{name}"), &old)?;
    }
    Ok(())
}

fn link(target: &str, at: &Path) -> Result<()> {
    symlink(target, at).context(|| format!("cannot link {}", at.display()))
}

fn program(path: &Path, content: &[u8]) -> Result<()> {
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .context(|| format!("cannot make {} executable", path.display()))
}

fn file_system(tree: &Path, drive: &Path) -> Result<()> {
    let mke2fs = apt::tool("mke2fs", "e2fsprogs")?;
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-F", "-t", "ext4", "-L", "vitrine-root", "-b", "4096"]);
    command.args(["-O", "^resize_inode", "-J", "size=4", "-m", "0"]);
    command.args(["-E", "root_owner=0:0,lazy_itable_init=0"]);
    program::run(command.arg("-d").arg(tree).arg(drive).arg(SIZE))
}
