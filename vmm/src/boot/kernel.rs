//! The kernel image: bzImage, or ELF entered at its 64-bit or its PVH entry.

use std::io::{Read, Seek};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use memory::{ByteValued, GuestAddress, GuestRam};

use super::unpack::{self, Identity, Kept, Source, Store, Unpacked, unpack};
use super::{BootError, address, memory_map, open};
use crate::spec::{BootSpec, Entry, Unpack};

/// What the kernel image is, and how it is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bzImage by its 64-bit entry.
    BzImage,
    /// ELF by its 64-bit entry.
    Elf64,
    /// ELF by its PVH entry.
    Pvh,
}

/// A kernel in guest memory.
pub struct Image {
    /// How to enter it.
    pub format: Format,
    /// Its first instruction.
    pub entry: GuestAddress,
    /// End of what it needs before it has its own memory management.
    pub end: u64,
    /// The setup header of a bzImage.
    pub header: Option<setup_header>,
}

const ELF_MAGIC: [u8; 4] = *b"\x7FELF";
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";
const BZIMAGE_MAGIC_OFFSET: usize = 0x202;
/// Where the setup header lies in a bzImage.
const SETUP_HEADER: usize = 0x1F1;
/// A bzImage's 64-bit entry, from where its protected-mode part was loaded.
const BZIMAGE_ENTRY64: u64 = 0x200;
/// The first bytes of a bzImage, in which its header and its version's text lie.
const HEAD_BYTES: u64 = 128 << 10;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;

/// The format of the image at `path`, from its first bytes.
///
/// # Errors
/// [`BootError`] when it cannot be read or is neither.
pub fn probe(path: &Path) -> Result<Format, BootError> {
    let mut file = open("kernel", path)?;
    let mut head = [0u8; BZIMAGE_MAGIC_OFFSET + 4];
    let mut have = 0;
    while let Some(rest) = head.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(BootError::File {
                    what: "kernel",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    if head.starts_with(&ELF_MAGIC) {
        return Ok(Format::Elf64);
    }
    if head.ends_with(&BZIMAGE_MAGIC) {
        return Ok(Format::BzImage);
    }
    let detail = format!("its first bytes are {:02x?}", &head[..have.min(8)]);
    Err(BootError::Format {
        path: path.to_owned(),
        detail,
    })
}

/// Loads the kernel of `spec`, below `top` where there is a choice.
///
/// # Errors
/// [`BootError`], naming the file, the cause and the remedy.
pub fn load(ram: &GuestRam, spec: &BootSpec, cmdline: &str, top: u64) -> Result<Image, BootError> {
    let path = &spec.kernel;
    let image = match (probe(path)?, spec.unpack) {
        (Format::BzImage, Unpack::Guest) => load_bzimage(ram, path)?,
        (Format::BzImage, Unpack::Host) => match unpack_bzimage(ram, spec, cmdline, top)? {
            Some(image) => image,
            None => load_bzimage(ram, path)?,
        },
        (Format::Elf64 | Format::Pvh, _) => load_elf(ram, path, spec.entry)?,
    };
    let have = memory_map::low_ram_bytes(ram);
    if image.end > have {
        let (need, at) = (image.end - image.entry.0.min(image.end), image.entry.0);
        return Err(BootError::TooLarge {
            what: "kernel",
            need,
            at,
            have,
        });
    }
    Ok(image)
}

fn format_error(path: &Path, detail: &impl std::fmt::Display) -> BootError {
    BootError::Format {
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}

/// Unpacks the kernel here, at random places unless its command line says `nokaslr`, or takes the
/// form of it that an earlier VM left. `None` when unpacking is left to the guest.
fn unpack_bzimage(
    ram: &GuestRam,
    spec: &BootSpec,
    cmdline: &str,
    top: u64,
) -> Result<Option<Image>, BootError> {
    let path = &spec.kernel;
    let fail = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut file = open("kernel", path)?;
    let identity = Identity::of(&file).map_err(fail)?;
    let mut bytes = Vec::new();
    (&mut file)
        .take(HEAD_BYTES)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    let mut header = setup_header::default();
    let from = bytes.get(SETUP_HEADER..).unwrap_or_default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(from) {
        *to = *from;
    }
    if header.version < 0x20C || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Ok(None);
    }
    let random = !cmdline.split(' ').any(|word| word == "nokaslr");
    let image = |header: setup_header, unpacked: Unpacked| Image {
        format: Format::BzImage,
        entry: unpacked.entry,
        end: unpacked.end,
        header: Some(setup_header {
            loadflags: unpacked.loadflags,
            ..header
        }),
    };
    if let Some(kept) = kept(spec, &identity) {
        match unpack(ram, Source::Kept(kept), &bytes, &header, top, random) {
            Ok(unpacked) => return Ok(Some(image(header, unpacked))),
            Err(why) => tracing::info!("kernel {}: unpacked again: {why}", path.display()),
        }
    }
    file.read_to_end(&mut bytes).map_err(fail)?;
    match unpack(ram, Source::Packed(&bytes), &bytes, &header, top, random) {
        Ok(unpacked) => {
            // What was read while it was written to is nobody's kernel.
            if Identity::of(&file).is_ok_and(|after| after == identity) {
                keep_later(spec, bytes, header, identity);
            }
            Ok(Some(image(header, unpacked)))
        }
        Err(why) => {
            tracing::info!(
                "kernel {}: the guest unpacks it itself: {why}",
                path.display()
            );
            Ok(None)
        }
    }
}

/// The unpacked form that an earlier VM left, where such are kept.
fn kept(spec: &BootSpec, identity: &Identity) -> Option<Kept> {
    let folder = spec.kernel_cache.as_deref()?;
    match Store::open(folder) {
        Ok(store) => store.find(identity),
        Err(error) => {
            tracing::info!(
                "unpacked kernels in {}: not used: {error}",
                folder.display()
            );
            None
        }
    }
}

/// Has a thread of low priority keep the unpacked form for the next VM. It ends by itself, and a
/// process that ends before it loses nothing.
fn keep_later(spec: &BootSpec, file: Vec<u8>, header: setup_header, identity: Identity) {
    let Some(folder) = spec.kernel_cache.clone() else {
        return;
    };
    let work = move || {
        yield_to_others();
        if let Err(error) = unpack::keep(&folder, &file, &header, &identity) {
            tracing::info!(
                "unpacked kernels in {}: not kept: {error}",
                folder.display()
            );
        }
    };
    let thread = std::thread::Builder::new().name("kernel-cache".to_owned());
    // Without a thread, the next VM unpacks as this one did.
    let _ = thread.spawn(work);
}

/// The guest that boots meanwhile has precedence.
#[allow(unsafe_code)]
fn yield_to_others() {
    const NICE: libc::c_int = 10;
    // SAFETY: 0 is the calling thread (setpriority(2), C library/kernel differences).
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

fn load_bzimage(ram: &GuestRam, path: &Path) -> Result<Image, BootError> {
    let mut file = open("kernel", path)?;
    let high = Some(GuestAddress(address::HIGH_RAM_START));
    // Where the kernel would like to be: decompressing in place of a copy saves the guest work.
    let preferred = preferred_address(&mut file, path)?;
    check_room(ram, &file, path, preferred.0)?;
    let KernelLoaderResult {
        kernel_load,
        setup_header,
        ..
    } = BzImage::load(ram, Some(preferred), &mut file, high).map_err(|e| format_error(path, &e))?;
    let header = setup_header.ok_or_else(|| format_error(path, &"no setup header"))?;
    if header.version < 0x20C || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(format_error(
            path,
            &"it has no 64-bit entry: a 32-bit or very old kernel",
        ));
    }
    Ok(Image {
        format: Format::BzImage,
        entry: GuestAddress(kernel_load.0 + BZIMAGE_ENTRY64),
        end: kernel_load.0 + u64::from(header.init_size),
        header: Some(header),
    })
}

/// `pref_address` of a relocatable kernel, else the protocol's 1 MiB.
fn preferred_address(file: &mut std::fs::File, path: &Path) -> Result<GuestAddress, BootError> {
    const RELOCATABLE_KERNEL: usize = 0x234;
    const PREF_ADDRESS: usize = 0x258;
    let fail = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut head = [0u8; PREF_ADDRESS + 8];
    file.rewind().map_err(fail)?;
    file.read_exact(&mut head).map_err(fail)?;
    let preferred = head
        .last_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let relocatable = head.get(RELOCATABLE_KERNEL).is_some_and(|flag| *flag != 0);
    let usable = relocatable && preferred >= address::HIGH_RAM_START;
    Ok(GuestAddress(if usable {
        preferred
    } else {
        address::HIGH_RAM_START
    }))
}

/// A clear refusal before the loader's terse one.
fn check_room(ram: &GuestRam, file: &std::fs::File, path: &Path, at: u64) -> Result<(), BootError> {
    let fail = |source| BootError::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let need = file.metadata().map_err(fail)?.len();
    let have = memory_map::low_ram_bytes(ram);
    if at.saturating_add(need) > have {
        return Err(BootError::TooLarge {
            what: "kernel",
            need,
            at,
            have,
        });
    }
    Ok(())
}

fn load_elf(ram: &GuestRam, path: &Path, entry: Entry) -> Result<Image, BootError> {
    let mut file = open("kernel", path)?;
    let high = Some(GuestAddress(address::HIGH_RAM_START));
    let result = Elf::load(ram, None, &mut file, high).map_err(|e| {
        let have = memory_map::low_ram_bytes(ram);
        let need = file.metadata().map_or(0, |m| m.len());
        if address::HIGH_RAM_START + need > have {
            BootError::TooLarge {
                what: "kernel",
                need,
                at: address::HIGH_RAM_START,
                have,
            }
        } else {
            format_error(path, &e)
        }
    })?;
    let pvh = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Some(address),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => None,
    };
    let image = |format, entry| Image {
        format,
        entry,
        end: result.kernel_end,
        header: None,
    };
    match (entry, pvh) {
        (Entry::Auto | Entry::Pvh, Some(address)) => Ok(image(Format::Pvh, address)),
        (Entry::Pvh, None) => Err(BootError::NoPvhEntry {
            path: path.to_owned(),
        }),
        (Entry::Auto | Entry::Linux64, _) => Ok(image(Format::Elf64, result.kernel_load)),
    }
}
