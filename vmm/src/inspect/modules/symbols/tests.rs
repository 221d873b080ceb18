use proptest::prelude::*;

use super::super::super::walk::Tables;
use super::*;

/// Memory from here on.
const BASE: u64 = 0xFFFF_FFFF_C012_3000;
const SYMBOLS: u64 = BASE + 0x1000;
const NAMES: u64 = BASE + 0x1800;

struct Module(Vec<u8>);

impl Physical for Module {
    fn fill(&self, address: u64, to: &mut [u8]) -> bool {
        let from = address.checked_sub(BASE).map(|at| at as usize);
        let from = from.and_then(|at| self.0.get(at..)?.get(..to.len()));
        from.is_some_and(|from| {
            to.copy_from_slice(from);
            true
        })
    }
}

/// Two functions and a symbol of another module, and what `struct module` says of them.
fn module() -> (Module, Vec<u8>) {
    let mut memory = Module(vec![0; 0x2000]);
    let mut put = |at: u64, bytes: &[u8]| {
        let at = (at - BASE) as usize;
        memory.0[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(NAMES, b"\0spins\0waits\0elsewhere\0");
    // Name, section, value, size.
    for (index, (name, section, value, size)) in (1..).zip([
        (7u32, 2u16, BASE + 0x200, 0u64),
        (1, 2, BASE + 0x100, 0x20),
        (13, 0, BASE + 0x110, 0x20),
    ]) {
        let at = SYMBOLS + index * SYMBOL as u64;
        put(at, &name.to_le_bytes());
        put(at + 6, &section.to_le_bytes());
        put(at + 8, &value.to_le_bytes());
        put(at + 16, &size.to_le_bytes());
    }
    // Something of the same shape that begins with no empty symbol, and then the right one.
    let mut bytes = vec![0; 0x100];
    for (at, symbols) in [(0x20, SYMBOLS + 24), (0x88, SYMBOLS)] {
        for (word, value) in [symbols, 4 | 0xDEAD << 32, NAMES].into_iter().enumerate() {
            let at = at + word * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    (memory, bytes)
}

fn find((memory, bytes): &(Module, Vec<u8>), address: u64) -> Option<String> {
    let space = Space::new(memory, Tables::Flat);
    symbol(&space, bytes, address).map(|symbol| symbol.to_string())
}

#[test]
fn a_function_of_a_module_is_found_by_its_symbols() {
    let module = module();
    assert_eq!(find(&module, BASE + 0x10C).unwrap(), "spins+0xc/0x20");
    // Behind its end there is none, and one without a size ends nowhere here.
    assert_eq!(find(&module, BASE + 0x120), None);
    assert_eq!(find(&module, BASE + 0xFF), None);
    let end = find(&module, BASE + 0x210).unwrap();
    assert!(end.starts_with("waits+0x10/"), "{end}");
}

#[test]
fn a_module_without_symbols_that_make_sense_has_none() {
    let nothing = (module().0, vec![0; 0x100]);
    assert_eq!(find(&nothing, BASE + 0x10C), None);
    let mut many = module();
    many.1[0x90..0x94].fill(0xFF);
    assert_eq!(find(&many, BASE + 0x10C), None);
    let mut nameless = module();
    nameless.0.0[0x1801] = 0x1B;
    assert_eq!(find(&nameless, BASE + 0x10C), None);
    let mut cut = module();
    cut.0.0.truncate(0x1020);
    assert_eq!(find(&cut, BASE + 0x10C), None);
}

proptest! {
    #[test]
    fn no_memory_makes_it_panic(
        at in 0usize..0x2000,
        with in proptest::collection::vec(any::<u8>(), 0..64),
        told in proptest::collection::vec(any::<u8>(), 0..64),
        address in any::<u64>(),
    ) {
        let mut module = module();
        for (to, from) in module.0.0.iter_mut().skip(at).zip(with) {
            *to = from;
        }
        for (to, from) in module.1.iter_mut().skip(0x88).zip(told) {
            *to = from;
        }
        let _ = (find(&module, address), find(&module, BASE + address % 0x400));
    }
}
