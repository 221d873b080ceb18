//! Boot: the kernel, its command line, its RAM disk, the memory map and the ACPI tables, placed in
//! guest memory as the Linux boot protocol (Documentation/arch/x86/boot.rst) and PVH want them.

pub mod acpi;
pub mod aml;
pub mod cmdline;
pub mod kernel;
pub mod memory_map;
pub mod params;
mod unpack;

use std::fs::File;
use std::path::{Path, PathBuf};

use memory::{Bytes, GuestAddress, GuestMemoryError, GuestRam};

use crate::arch::registers::Start;
use crate::spec::BootSpec;
use cmdline::Placement;

/// Where boot data lies in guest memory. All of it is below 640 KiB, which the memory map gives to
/// the guest as RAM: a kernel copies what it needs before it uses these pages otherwise.
pub mod address {
    /// boot_params ("zero page") of the Linux protocol, or hvm_start_info of PVH.
    pub const BOOT_INFO: u64 = 0x7000;
    /// The PVH memory map, behind hvm_start_info and its module list.
    pub const PVH_MEMORY_MAP: u64 = 0x7100;
    /// The command line, NUL-terminated.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Top of conventional RAM: the EBDA of a PC begins here.
    pub const LOW_RAM_END: u64 = 0x9_FC00;
    /// ACPI tables, in the BIOS area where kernels search for the RSDP.
    pub const ACPI: u64 = 0xE_0000;
    /// End of the BIOS area.
    pub const HIGH_RAM_START: u64 = 0x10_0000;
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("the {what} {path} cannot be read: {source}; check kernel_image_path and initrd_path")]
    File {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder or device where a file is needed.
    #[error("the {what} {path} is not a regular file; give a file")]
    NotAFile {
        /// Kernel or initrd.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Neither bzImage nor ELF.
    #[error("the kernel {path} is neither a bzImage nor an x86-64 ELF image ({detail})")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        detail: String,
    },
    /// PVH was asked of a kernel that has no PVH note.
    #[error("the kernel {path} has no PVH entry note; boot it by its 64-bit entry")]
    NoPvhEntry {
        /// The file.
        path: PathBuf,
    },
    /// Kernel and initrd do not fit.
    #[error(
        "the {what} needs {need} bytes at {at:#x}, beyond the guest's {have} bytes of low memory; \
         raise mem_size_mib"
    )]
    TooLarge {
        /// Kernel or initrd.
        what: &'static str,
        /// Bytes needed.
        need: u64,
        /// From this guest address.
        at: u64,
        /// Bytes of RAM below the hole.
        have: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {length} characters; at most {max} are taken")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// The command line has characters that a kernel cannot take.
    #[error("the kernel command line has a NUL or non-ASCII character at {position}; remove it")]
    CmdlineCharacter {
        /// Where.
        position: usize,
    },
    /// The ACPI tables do not fit.
    #[error("the ACPI tables need {need} bytes, {have} are there")]
    Acpi {
        /// Bytes needed.
        need: u64,
        /// Bytes of the BIOS area.
        have: u64,
    },
    /// Guest memory refused a write.
    #[error("guest memory is too small to boot: {0}; raise mem_size_mib")]
    Memory(#[from] GuestMemoryError),
}

/// What was loaded, and how the first vCPU starts.
#[derive(Debug)]
pub struct Loaded {
    /// Where it starts.
    pub start: Start,
    /// Kernel format, for the log.
    pub format: kernel::Format,
}

/// Loads kernel and initrd and writes the boot information of the protocol that the kernel takes.
/// `rsdp` is where the ACPI tables were written, for devices in `placement`.
///
/// # Errors
/// [`BootError`], naming the file, the cause and the remedy.
pub fn load(
    ram: &GuestRam,
    spec: &BootSpec,
    cmdline: &str,
    (rsdp, placement): (GuestAddress, &Placement),
) -> Result<Loaded, BootError> {
    let top = memory_map::low_ram_bytes(ram).saturating_sub(initrd_bytes(spec)?);
    let image = kernel::load(ram, spec, cmdline, top)?;
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    ram.write_slice(&text, GuestAddress(address::CMDLINE))?;
    let initrd = match &spec.initrd {
        Some(path) => Some(load_initrd(ram, path, image.end)?),
        None => None,
    };
    let info = params::BootInfo {
        rsdp,
        initrd,
        cmdline_bytes: cmdline.len() as u32,
        pci: placement.is_pci(),
    };
    let start = params::write(ram, &image, &info)?;
    Ok(Loaded {
        start,
        format: image.format,
    })
}

/// Opens a regular file for reading.
///
/// # Errors
/// [`BootError::File`] or [`BootError::NotAFile`].
pub fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let fail = |source| BootError::File {
        what,
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(fail)?;
    if !metadata.is_file() {
        return Err(BootError::NotAFile {
            what,
            path: path.to_owned(),
        });
    }
    File::open(path).map_err(fail)
}

/// Bytes that the initrd will take at the top of low RAM, in whole pages.
fn initrd_bytes(spec: &BootSpec) -> Result<u64, BootError> {
    let Some(path) = &spec.initrd else {
        return Ok(0);
    };
    let fail = |source| BootError::File {
        what: "initrd",
        path: path.to_owned(),
        source,
    };
    let bytes = open("initrd", path)?.metadata().map_err(fail)?.len();
    Ok(bytes.next_multiple_of(4096))
}

/// Puts the initrd as high as it fits below the hole (and below 2 GiB, which every kernel of the
/// 64-bit protocol takes), page-aligned.
fn load_initrd(ram: &GuestRam, path: &Path, kernel_end: u64) -> Result<(u64, u32), BootError> {
    const HIGHEST: u64 = 0x7FFF_FFFF;
    let mut file = open("initrd", path)?;
    let fail = |source| BootError::File {
        what: "initrd",
        path: path.to_owned(),
        source,
    };
    let bytes = file.metadata().map_err(fail)?.len();
    let low = memory_map::low_ram_bytes(ram);
    let too_large = || BootError::TooLarge {
        what: "initrd",
        need: bytes,
        at: kernel_end,
        have: low,
    };
    let top = low.min(HIGHEST + 1);
    let at = top.checked_sub(bytes).ok_or_else(too_large)? & !0xFFF;
    let size = u32::try_from(bytes).map_err(|_| too_large())?;
    if at < kernel_end {
        return Err(too_large());
    }

    ram.read_exact_volatile_from(GuestAddress(at), &mut file, size as usize)?;

    Ok((at, size))
}
