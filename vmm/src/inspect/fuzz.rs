//! What the fuzz targets feed: parsers of this module with memory that is a few bytes.

use super::image::{Image, KERNEL_MAP};
use super::kernel::Kernel;
use super::orc::Orc;
use super::stack::{MOST_FRAMES, Walker};
use super::view::VcpuView;
use super::walk::{Physical, Space, Tables};
use super::{StackCopy, kallsyms, modules};

/// RAM of these bytes from 0 on.
struct Bytes<'a>(&'a [u8]);

impl Physical for Bytes<'_> {
    fn fill(&self, address: u64, to: &mut [u8]) -> bool {
        let from = usize::try_from(address).ok();
        let from = from.and_then(|from| self.0.get(from..)?.get(..to.len()));
        from.is_some_and(|from| {
            to.copy_from_slice(from);
            true
        })
    }
}

/// The first 32 bytes are CR0, CR3, CR4 and EFER, the next 8 an address; the rest is RAM from 0 on.
pub fn walk(bytes: &[u8]) {
    let mut words = bytes.chunks_exact(8);
    let mut word = || {
        let word = words.next().and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_le_bytes(*word))
    };
    let tables = Tables::of(word(), word(), word(), word());
    let address = word();
    let ram = Bytes(bytes.get(40..).unwrap_or_default());
    let space = Space::new(&ram, tables);
    for space in [space, space.kernel_half()] {
        let mut to = [0; 5000];
        if let Ok(mapped) = space.translate(address) {
            assert!((1..=1 << 30).contains(&mapped.left));
        }
        if space.read(address, &mut to).is_ok() {
            let first = space.word(address).unwrap_or_default().to_le_bytes();
            assert!(to.starts_with(&first));
        }
    }
}

/// The first 128 bytes are addresses: of the unwind tables, then registers. The rest is RAM from 0
/// on, not translated, and all of it is code.
pub fn stack(bytes: &[u8]) {
    let (words, ram) = bytes.split_at_checked(128).unwrap_or((bytes, &[]));
    let mut words = words.chunks_exact(8);
    let mut word = || {
        let word = words.next().and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_le_bytes(*word))
    };
    let ram = Bytes(ram);
    let image = Image::at(&ram, word());
    let orc = Orc::find(&image, word(), word(), word());
    let kernel = Kernel {
        delta: image.delta(),
        tables: kallsyms::Tables::default(),
        modules: None,
        orc,
        text: [word()..word(), 0..0],
    };
    let view = VcpuView {
        rip: word(),
        rsp: word(),
        rbp: word(),
        rdi: word(),
        ..VcpuView::default()
    };
    let (list, address) = (word(), word());
    let space = Space::new(&ram, Tables::Flat);
    let walker = Walker {
        space,
        image: &image,
        kernel: &kernel,
        copy: &StackCopy::default(),
    };
    assert!((1..=MOST_FRAMES).contains(&walker.frames(&view).len()));
    if let Some(module) = modules::module(&space, list, address) {
        assert!(module.offset < module.size && module.name.len() < 56);
    }
}

/// The whole is an image from the kernel's first address on: where symbols are found, they have
/// clean names.
pub fn kallsyms(bytes: &[u8]) {
    let ram = Bytes(bytes);
    let image = Image::at(&ram, KERNEL_MAP);
    let Some(symbols) = kallsyms::Kallsyms::find(&image, KERNEL_MAP, |_| true) else {
        return;
    };
    for far in [0, 0x100, 0x1000, 1 << 20] {
        if let Some(symbol) = symbols.symbol(KERNEL_MAP.wrapping_add(far)) {
            assert!(symbol.name.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
