use std::collections::BTreeMap;

use super::*;

/// Memory of words, zero where nothing was put; RAM ends at 1 TiB.
#[derive(Default)]
struct Sparse(BTreeMap<u64, u64>);

impl Physical for Sparse {
    fn fill(&self, address: u64, to: &mut [u8]) -> bool {
        for (at, byte) in (address..).zip(to.iter_mut()) {
            if at >= 1 << 40 {
                return false;
            }
            let word = self.0.get(&(at & !7)).copied().unwrap_or(0);
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
        true
    }
}

const ROOT: u64 = 0x1000;

/// Tables at 0x1000, 0x2000, ... that lead to `last` at the level `depth` levels below the top.
fn tables(address: u64, levels: u8, depth: u8, last: u64) -> Sparse {
    let mut memory = Sparse::default();
    for step in 0..=depth {
        let level = levels - step;
        let table = ROOT + u64::from(step) * PAGE;
        let index = address >> shift(level) & 0x1FF;
        let entry = if step == depth {
            last
        } else {
            (table + PAGE) | 0x63
        };
        memory.0.insert(table + index * 8, entry);
    }
    memory
}

fn space(memory: &Sparse, levels: u8) -> Space<'_, Sparse> {
    Space::new(memory, Tables::Long { root: ROOT, levels })
}

#[test]
fn pages_of_each_size_are_found_with_four_and_five_levels() {
    const ADDRESS: u64 = 0xFFFF_FFFF_8123_4567;
    const NX: u64 = 1 << 63;
    for levels in [4, 5] {
        for (depth, entry, physical, left) in [
            (levels - 1, NX | 0x7000 | 0x63, 0x7567, 0xA99),
            (levels - 2, NX | 0x40_0000 | 0xE3, 0x43_4567, 0x1C_BA99),
            (
                levels - 3,
                NX | 0x8000_0000 | 0xE3,
                0x8123_4567,
                0x3EDC_BA99,
            ),
        ] {
            let memory = tables(ADDRESS, levels, depth, entry);
            let mapped = space(&memory, levels).translate(ADDRESS);
            assert_eq!(mapped, Ok(Mapped { physical, left }), "{levels} {depth}");
        }
    }
}

#[test]
fn what_is_not_mapped_not_ram_or_no_address_is_told_apart() {
    let address = 0x7FFF_1234_5000;
    let memory = tables(address, 4, 3, 0x7000);
    let translate = |address| space(&memory, 4).translate(address);
    assert_eq!(translate(address), Err(WalkError::NotMapped(address)));
    assert_eq!(translate(0x1000), Err(WalkError::NotMapped(0x1000)));
    let odd = 0x0000_8000_0000_0000;
    assert_eq!(translate(odd), Err(WalkError::NotCanonical(odd)));
    // With five levels it is one.
    let wide = space(&memory, 5).translate(odd);
    assert_eq!(wide, Err(WalkError::NotMapped(odd)));
    let far = tables(address, 4, 1, 1 << 41 | 1);
    let read = space(&far, 4).translate(address);
    assert!(matches!(read, Err(WalkError::NotRam(_))), "{read:?}");
    // A page at the top that says that it is large is a table: there are none of 512 GiB.
    let top = tables(address, 4, 0, 0x2000 | 0x81);
    let read = space(&top, 4).translate(address);
    assert_eq!(read, Err(WalkError::NotMapped(address)));
}

#[test]
fn a_read_goes_over_the_end_of_a_page_to_wherever_the_next_is() {
    let address = 0xFFFF_8880_0000_0FFC;
    let mut memory = tables(address, 4, 3, 0x9000 | 1);
    memory.0.insert(ROOT + 3 * PAGE + 8, 0x5000 | 1);
    memory.0.insert(0x9FF8, 0x1122_3344_5566_7788);
    memory.0.insert(0x5000, 0x99AA_BBCC_DDEE_FF00);
    let word = space(&memory, 4).word(address);
    assert_eq!(word, Ok(0xDDEE_FF00_1122_3344));
    let mut long = [0; 0x2000];
    let error = space(&memory, 4).read(address, &mut long);
    assert_eq!(error, Err(WalkError::NotMapped(0xFFFF_8880_0000_2000)));
}

#[test]
fn registers_say_which_tables_there_are() {
    let long = Tables::of(CR0_PAGING, 0x5_0018, 0, EFER_LMA);
    let (root, levels) = (0x5_0000, 4);
    assert_eq!(long, Tables::Long { root, levels });
    let five = Tables::of(CR0_PAGING, 0x5_0018, CR4_LA57, EFER_LMA);
    assert_eq!(five, Tables::Long { root, levels: 5 });
    assert_eq!(Tables::of(0, 0x5000, 0, EFER_LMA), Tables::Flat);
    assert_eq!(Tables::of(CR0_PAGING, 0x5000, 0, 0), Tables::Unknown);
    let flat = Sparse(BTreeMap::from([(0x8, 0x77)]));
    assert_eq!(Space::new(&flat, Tables::Flat).word(8), Ok(0x77));
    let unknown = Space::new(&flat, Tables::Unknown);
    assert_eq!(unknown.word(8), Err(WalkError::Mode));
}

proptest::proptest! {
    #[test]
    fn no_tables_make_it_panic_or_go_on_for_ever(
        words in proptest::collection::vec((0u64..0x4000, proptest::num::u64::ANY), 0..64),
        address in proptest::num::u64::ANY,
        cr3 in proptest::num::u64::ANY,
        five in proptest::bool::ANY,
    ) {
        let words = words.into_iter().map(|(at, word)| (at & !7, word & 0x8000_0000_0000_3FFF));
        let memory = Sparse(words.collect());
        let cr4 = if five { CR4_LA57 } else { 0 };
        let tables = Tables::of(CR0_PAGING, cr3 & 0x3000, cr4, EFER_LMA);
        let space = Space::new(&memory, tables);
        if let Ok(mapped) = space.translate(address) {
            proptest::prop_assert!((1..=1 << 30).contains(&mapped.left));
            proptest::prop_assert_eq!(mapped.physical & 0xFFF, address & 0xFFF);
        }
        let mut bytes = [0; 9000];
        let _ = space.read(address, &mut bytes);
        let _ = space.kernel_half().word(address);
    }
}
