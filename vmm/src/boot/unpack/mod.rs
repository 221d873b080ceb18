//! Unpacks a bzImage's kernel on the host, so that the guest need not.
//!
//! A bzImage is a compressed ELF image behind a small program that unpacks it, chooses its place
//! and moves it there. In the guest that program is a third of the time to init, most of it spent
//! in memory that the host has yet to back. Here the same is done before the first instruction:
//! unpack straight into guest memory, choose physical and virtual place at random as the kernel's
//! own stub does (arch/x86/boot/compressed/{misc,kaslr}.c, unless `nokaslr`), relocate, and enter
//! at `startup_64`, as for an ELF kernel. What is not understood (another compression, an image
//! that does not add up) is left to the stub in the guest, which is always right.

mod elf;
mod kept;
mod relocate;

use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use memory::{GuestAddress, GuestMemoryBackend, GuestRam};

pub use kept::{Identity, Kept, Store};

/// `loadflags`: the kernel was placed at random (KASLR_FLAG), which also has it randomise its
/// memory map.
const KASLR_FLAG: u8 = 1 << 1;
/// The kernel's text mapping begins here (`__START_KERNEL_map`), and is this large with KASLR.
const TEXT_MAP: u64 = 0xFFFF_FFFF_8000_0000;
const TEXT_MAP_BYTES: u64 = 1 << 30;
/// The boot page tables map this much.
const MAPPED: u64 = 1 << 30;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4C, 0x18];
/// The largest kernel that is unpacked here.
const MOST_BYTES: usize = 512 << 20;

/// Why a kernel is left to its own stub.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnpackError {
    /// The header's numbers do not fit the file.
    #[error("its header does not fit the file")]
    Header,
    /// Neither zstd nor lz4.
    #[error("its payload begins with {0:02x?}: neither zstd nor lz4")]
    Compression([u8; 4]),
    /// The payload is broken.
    #[error("its payload cannot be unpacked: {0}")]
    Payload(String),
    /// There is no room in the memory that the boot page tables map.
    #[error("there is no room for it")]
    Room,
    /// What came out is no kernel that this code understands.
    #[error("what is in it is not understood: {0}")]
    Image(&'static str),
    /// The kept form of it cannot be read.
    #[error("its unpacked form cannot be read: {0}")]
    Kept(String),
    /// The host gave no random numbers.
    #[error("no random numbers to place it by")]
    Random,
}

/// A kernel in place.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// `startup_64`.
    pub entry: GuestAddress,
    /// End of what it needs before it has its own memory management.
    pub end: u64,
    /// `loadflags` for the boot parameters.
    pub loadflags: u8,
}

/// Where the kernel comes from.
pub enum Source<'a> {
    /// The whole bzImage.
    Packed(&'a [u8]),
    /// What was kept of it.
    Kept(Kept),
}

impl Source<'_> {
    /// Bytes of the image with its relocations.
    fn bytes(&self, header: &setup_header) -> Result<usize, UnpackError> {
        match self {
            Source::Packed(file) => Ok(payload(file, header)?.1),
            Source::Kept(kept) => Ok(kept.bytes),
        }
    }

    /// Puts the segments to their places in `image`.
    fn put(self, header: &setup_header, image: &mut [u8]) -> Result<elf::Kernel, UnpackError> {
        match self {
            Source::Packed(file) => {
                decompress(payload(file, header)?.0, image)?;
                elf::settle(image, header.pref_address)
            }
            Source::Kept(kept) => kept.put(image),
        }
    }
}

/// Unpacks the kernel of a bzImage, which begins with `head` and whose setup header is `header`,
/// into `ram` below `top`. `random` is false for a kernel that asked for its default place.
///
/// # Errors
/// [`UnpackError`]; guest memory from the preferred address on may then hold anything, which the
/// ordinary loader overwrites as far as it matters.
pub fn unpack(
    ram: &GuestRam,
    source: Source<'_>,
    head: &[u8],
    header: &setup_header,
    top: u64,
    random: bool,
) -> Result<Unpacked, UnpackError> {
    let bytes = source.bytes(header)?;
    let needs_relocation = random.then(|| relocate::sets(head, header)).transpose()?;
    let place = Place::choose(header, bytes, top, random)?;
    let start = place
        .physical
        .checked_sub(elf::TEXT_OFFSET)
        .ok_or(UnpackError::Room)?;
    let entry = in_guest_memory(ram, start, bytes, |image| {
        let kernel = source.put(header, image)?;
        let (text, table) = image
            .split_at_mut_checked(kernel.file_bytes)
            .ok_or(UnpackError::Header)?;
        if let Some(sets) = needs_relocation {
            let map = relocate::Map {
                linked: TEXT_MAP + header.pref_address,
                delta: place.virtual_delta,
            };
            let text = text
                .get_mut(elf::TEXT_OFFSET as usize..)
                .ok_or(UnpackError::Header)?;
            relocate::apply(text, table, sets, map)?;
        }
        // The relocations lie where the kernel's bss will be.
        table.fill(0);
        kernel
            .entry
            .checked_sub(header.pref_address)
            .filter(|offset| *offset < bytes as u64)
            .ok_or(UnpackError::Image("an entry outside"))
    })?;
    let flag = if random { KASLR_FLAG } else { 0 };
    Ok(Unpacked {
        entry: GuestAddress(place.physical + entry),
        end: place.physical + u64::from(header.init_size),
        loadflags: header.loadflags & !KASLR_FLAG | flag,
    })
}

/// Unpacks the bzImage `file` once more and keeps the result in `folder`, for the next VM.
///
/// # Errors
/// In words; nothing is kept then.
pub fn keep(
    folder: &Path,
    file: &[u8],
    header: &setup_header,
    identity: &Identity,
) -> Result<(), String> {
    let unpacked = || {
        let (packed, bytes) = payload(file, header)?;
        if bytes > MOST_BYTES {
            return Err(UnpackError::Room);
        }
        let mut image = vec![0; bytes];
        decompress(packed, &mut image)?;
        let kernel = elf::settle(&mut image, header.pref_address)?;
        Ok((image, kernel))
    };
    let (image, kernel) = unpacked().map_err(|error: UnpackError| error.to_string())?;
    Store::open(folder)
        .and_then(|store| store.keep(identity, &image, &kernel))
        .map_err(|error| error.to_string())
}

/// The compressed image, and its size unpacked, which stands behind it (boot.rst, payload_offset
/// and payload_length).
fn payload<'a>(file: &'a [u8], header: &setup_header) -> Result<(&'a [u8], usize), UnpackError> {
    let setup = (usize::from(header.setup_sects).max(1) + 1) * 512;
    let start = setup + header.payload_offset as usize;
    let end = start + header.payload_length as usize;
    let whole = file.get(start..end).filter(|p| p.len() > 8);
    let (packed, bytes) = whole
        .and_then(<[u8]>::split_last_chunk)
        .ok_or(UnpackError::Header)?;
    Ok((packed, u32::from_le_bytes(*bytes) as usize))
}

/// Where the kernel goes.
struct Place {
    physical: u64,
    virtual_delta: u64,
}

impl Place {
    fn choose(
        header: &setup_header,
        bytes: usize,
        top: u64,
        random: bool,
    ) -> Result<Place, UnpackError> {
        let align = u64::from(header.kernel_alignment);
        let first = header.pref_address;
        let fits = align.is_power_of_two() && align >= 2 << 20 && first.is_multiple_of(align);
        if !fits || first < elf::TEXT_OFFSET + super::address::HIGH_RAM_START {
            return Err(UnpackError::Image("an alignment of its own"));
        }
        let needs = u64::from(header.init_size).max(bytes as u64);
        let last = top
            .min(MAPPED)
            .checked_sub(needs)
            .ok_or(UnpackError::Room)?;
        if last < first || bytes > MOST_BYTES {
            return Err(UnpackError::Room);
        }
        if !random {
            return Ok(Place {
                physical: first,
                virtual_delta: 0,
            });
        }
        let virtual_last = TEXT_MAP_BYTES.checked_sub(needs).ok_or(UnpackError::Room)?;
        let physical = first + below((last - first) / align + 1)? * align;
        let virtual_delta = below(virtual_last.saturating_sub(first) / align + 1)? * align;
        Ok(Place {
            physical,
            virtual_delta,
        })
    }
}

/// A random number below `bound`, from the host's kernel.
fn below(bound: u64) -> Result<u64, UnpackError> {
    use std::io::Read;
    let mut bytes = [0u8; 8];
    let mut source = std::fs::File::open("/dev/urandom").map_err(|_| UnpackError::Random)?;
    source
        .read_exact(&mut bytes)
        .map_err(|_| UnpackError::Random)?;
    // 64 random bits for at most some hundred places: the bias is beyond notice.
    Ok(u64::from_le_bytes(bytes) % bound.max(1))
}

/// Calls `work` with the bytes of guest memory at `start`, before the guest runs.
#[allow(unsafe_code)]
fn in_guest_memory<T>(
    ram: &GuestRam,
    start: u64,
    bytes: usize,
    work: impl FnOnce(&mut [u8]) -> Result<T, UnpackError>,
) -> Result<T, UnpackError> {
    let slice = ram
        .get_slice(GuestAddress(start), bytes)
        .map_err(|_| UnpackError::Room)?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice lies in one live mapping of guest memory, borrowed for as long as `ram`
    // is. No vCPU and no device runs before boot data is in place, and the machine's builder, which
    // calls this, holds the only other reference, so nobody else reads or writes these bytes.
    work(unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), bytes) })
}

fn decompress(packed: &[u8], to: &mut [u8]) -> Result<(), UnpackError> {
    let magic = *packed.first_chunk().ok_or(UnpackError::Header)?;
    let made = match magic {
        ZSTD_MAGIC => zstd::bulk::decompress_to_buffer(packed, to)
            .map_err(|error| UnpackError::Payload(error.to_string()))?,
        LZ4_LEGACY_MAGIC => lz4_legacy(packed.get(4..).unwrap_or_default(), to)?,
        other => return Err(UnpackError::Compression(other)),
    };
    if made == to.len() {
        Ok(())
    } else {
        Err(UnpackError::Payload(format!(
            "{made} bytes came out, {} were promised",
            to.len()
        )))
    }
}

/// lz4's legacy frame, which `lz4 -l` makes and the kernel uses: blocks of at most 8 MiB, each
/// behind its compressed size.
fn lz4_legacy(mut packed: &[u8], to: &mut [u8]) -> Result<usize, UnpackError> {
    let mut made = 0;
    while let Some((size, rest)) = packed.split_first_chunk() {
        let size = u32::from_le_bytes(*size) as usize;
        let block = rest.get(..size).ok_or(UnpackError::Header)?;
        let place = to.get_mut(made..).unwrap_or_default();
        made += lz4_flex::block::decompress_into(block, place)
            .map_err(|error| UnpackError::Payload(error.to_string()))?;
        packed = rest.get(size..).unwrap_or_default();
    }
    Ok(made)
}

#[cfg(test)]
mod tests;
