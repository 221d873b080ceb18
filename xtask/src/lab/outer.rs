//! The lab's own kernel and initial RAM file system, made once from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::program::say;
use crate::{apt, busybox::Busybox, cache, cpio::Archive, kernel, kernel::Kernel};

const INIT: &str = include_str!("init.sh");

/// The series of the lab's kernel, and the key of its package in the cache.
const SERIES: &str = "6.12";
const PACKAGE: &str = "lab-kernel-6.12";

/// Loaded at boot, in this order.
const LOADED: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "kvm-amd",
];

/// There for the kernel to load by itself, or for `modprobe`: loading all takes four seconds.
const AT_HAND: [&str; 23] = [
    "tun",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "loop",
    "fuse",
    "dm-mod",
    "dm-delay",
    "dm-flakey",
    "zram",
    "nbd",
    "scsi_debug",
    "sd_mod",
    "null_blk",
    "veth",
    "bridge",
    "dummy",
    "sch_netem",
    "sch_tbf",
    "ext4",
    "overlay",
    "virtio_blk",
    "virtio_balloon",
];

/// Where the parts of the emulated machine are.
pub struct Outer {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM file system.
    pub initrd: PathBuf,
}

/// Finds the lab's kernel and initrd in the cache, or makes them.
pub fn ensure(refresh: bool) -> Result<Outer> {
    let stamp = cache::stamp(&[INIT, include_str!("outer.rs")].map(str::as_bytes));
    let folder = cache::folder()?.join(format!("lab-{stamp}"));
    if refresh {
        let _ = fs::remove_dir_all(&folder);
    }
    if !folder.join("initrd").exists() {
        make(&folder, refresh)?;
    }
    Ok(Outer {
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd"),
    })
}

fn make(folder: &Path, refresh: bool) -> Result<()> {
    if refresh || !apt::has_package_file(PACKAGE) {
        say(
            "lab",
            format!("downloading Debian's {SERIES} kernel (100 MB) ..."),
        );
    }
    let package = apt::package_file(PACKAGE, refresh, || apt::newest_kernel(SERIES, "amd64"))?;
    say("lab", "making the emulated machine's kernel and initrd ...");
    let kernel = Kernel::unpack(&package)?;
    let scratch = cache::Scratch::beside(folder)?;
    let built = scratch.path().join("lab");
    cache::make_folder(&built)?;
    fs::copy(kernel.bzimage(), built.join("vmlinuz"))
        .context(|| "cannot copy the lab's kernel".to_owned())?;
    fs::write(built.join("initrd"), initrd(&kernel)?)
        .context(|| "cannot write the lab's initrd".to_owned())?;
    remove_older(folder);
    cache::put(&built, folder)
}

fn initrd(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::with_folders(&["bin", "sbin", "proc", "sys", "dev", "host", "lib"]);
    archive.folder("lib/modules");
    archive.folder(&format!("lib/modules/{}", kernel.release));
    let busybox = Busybox::ensure()?;
    archive.file("bin/busybox", 0o755, &busybox.content);
    for applet in &busybox.applets {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.link("sbin/modprobe", "/bin/busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    let modules = [&LOADED[..], &AT_HAND[..]].concat();
    let indices = [&kernel::PLAIN_INDICES[..], &kernel::KMOD_INDICES[..]].concat();
    for (path, content) in kernel.module_tree(&modules, &indices)? {
        archive.file(&path, 0o644, &content);
    }
    let load: String = kernel
        .load_order(&LOADED)?
        .iter()
        .map(|file| load_line(file))
        .collect();
    archive.file(
        &format!("lib/modules/{}/load", kernel.release),
        0o644,
        load.as_bytes(),
    );
    Ok(archive.finish())
}

/// A line of the list that init.sh loads: the module's file as `module_tree` names it.
fn load_line(file: &str) -> String {
    format!("{}.ko\n", kernel::module_name(file))
}

fn remove_older(folder: &Path) {
    let Some(parent) = folder.parent() else {
        return;
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let old = entry.file_name().to_string_lossy().starts_with("lab-");
        if old && entry.path() != folder {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
