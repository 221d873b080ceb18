//! The guests' initial RAM file system: busybox, the drivers of virtio devices, and an init.

use super::{module, programs};
use crate::busybox::Busybox;
use crate::cpio::Archive;
use crate::error::Result;
use crate::kernel::{Kernel, PLAIN_INDICES};

const INIT: &str = include_str!("../../../guests/linux/init");

/// What the stock kernels have as modules and a guest of Vitrine may need.
const MODULES: [&str; 10] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_rng",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "ext4",
    "pvpanic_mmio",
];

/// What decides about the archive's content, beside the kernel: this file too.
pub const INPUTS: [&str; 2] = [INIT, include_str!("initrd.rs")];

/// The archive, not compressed: unpacking costs the guest more than the bytes do.
pub fn archive(kernel: &Kernel, busybox: &Busybox) -> Result<Vec<u8>> {
    let mut archive = Archive::with_folders(&[
        "bin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "newroot",
        "etc",
        "lib",
        "lib/modules",
    ]);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &busybox.content);
    archive.link("bin/sh", "busybox");
    for (name, content) in programs::build()? {
        archive.file(&format!("bin/{name}"), 0o755, &content);
    }
    // The other applets' names are the init's to make, once it has said that it runs.
    // The kernel would run /sbin/modprobe: the init tells it of bin/modprobe once it has booted.
    archive.folder(&format!("lib/modules/{}", kernel.release));
    for (path, content) in kernel.module_tree(&MODULES, &PLAIN_INDICES)? {
        archive.file(&path, 0o644, &content);
    }
    archive.file("vitrine_stuck.ko", 0o644, &module::build(kernel)?);
    Ok(archive.finish())
}
