//! What the fuzz targets feed: parsers of this module with memory that is a few bytes.

use super::walk::{Physical, Space, Tables};

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
