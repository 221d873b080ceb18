//! The boot information itself: boot_params for the Linux protocol, hvm_start_info for PVH.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRam};

use super::kernel::{Format, Image};
use super::memory_map::{MapEntry, map};
use super::{BootError, address};
use crate::arch::registers::Start;
use crate::spec::MAX_CMDLINE;

/// What the kernel is told beside the memory map.
pub struct BootInfo {
    /// Where the ACPI root pointer lies.
    pub rsdp: GuestAddress,
    /// Address and bytes of the initrd.
    pub initrd: Option<(u64, u32)>,
    /// Length of the command line.
    pub cmdline_bytes: u32,
    /// Whether there is a PCI bus.
    pub pci: bool,
}

/// "HdrS" and "boot flag" of the setup header, and a loader without an assigned number.
const SETUP_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xAA55;
const LOADER_UNDEFINED: u8 = 0xFF;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// `loadflags`: protected-mode code is loaded high.
const LOADED_HIGH: u8 = 1;
const PVH_MAGIC: u32 = 0x336E_C578;
/// PVH start info version with a memory map.
const PVH_VERSION: u32 = 1;

/// Writes the information that the image's protocol wants, and says how the vCPU starts.
///
/// # Errors
/// [`BootError::Memory`] when guest memory is too small.
pub fn write(ram: &GuestRam, image: &Image, info: &BootInfo) -> Result<Start, BootError> {
    let bytes: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
    let map = map(bytes, info.pci);
    let at = GuestAddress(address::BOOT_INFO);
    if image.format == Format::Pvh {
        write_pvh(ram, info, &map)?;
        return Ok(Start::Pvh {
            entry: image.entry,
            info: at,
        });
    }
    ram.write_obj(linux_params(image, info, &map), at)?;
    Ok(Start::Long {
        entry: image.entry,
        info: at,
    })
}

fn linux_params(image: &Image, info: &BootInfo, map: &[MapEntry]) -> boot_params {
    let mut params = boot_params::default();
    if let Some(header) = image.header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = SETUP_MAGIC;
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
        params.hdr.loadflags = LOADED_HIGH;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = address::CMDLINE as u32;
    params.hdr.cmdline_size = info.cmdline_bytes.max(MAX_CMDLINE as u32);
    if let Some((at, size)) = info.initrd {
        params.hdr.ramdisk_image = at as u32;
        params.hdr.ramdisk_size = size;
    }
    params.acpi_rsdp_addr = info.rsdp.0;
    for (to, from) in params.e820_table.iter_mut().zip(map) {
        *to = boot_e820_entry {
            addr: from.start,
            size: from.bytes,
            r#type: from.kind,
        };
    }
    params.e820_entries = map.len() as u8;
    params
}

fn write_pvh(ram: &GuestRam, info: &BootInfo, map: &[MapEntry]) -> Result<(), BootError> {
    let modules_at = address::BOOT_INFO + size_of::<hvm_start_info>() as u64;
    let mut start = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: address::CMDLINE,
        rsdp_paddr: info.rsdp.0,
        memmap_paddr: address::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((paddr, size)) = info.initrd {
        let module = hvm_modlist_entry {
            paddr,
            size: u64::from(size),
            ..Default::default()
        };
        ram.write_obj(module, GuestAddress(modules_at))?;
        start.nr_modules = 1;
        start.modlist_paddr = modules_at;
    }
    let entry_bytes = size_of::<hvm_memmap_table_entry>() as u64;
    for (index, from) in (0u64..).zip(map) {
        let entry = hvm_memmap_table_entry {
            addr: from.start,
            size: from.bytes,
            type_: from.kind,
            ..Default::default()
        };
        ram.write_obj(
            entry,
            GuestAddress(address::PVH_MEMORY_MAP + index * entry_bytes),
        )?;
    }
    ram.write_obj(start, GuestAddress(address::BOOT_INFO))?;
    Ok(())
}
