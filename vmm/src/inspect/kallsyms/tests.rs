use super::*;

/// Memory of these bytes from physical address 0 on.
struct Flat(Vec<u8>);

impl Physical for Flat {
    fn fill(&self, address: u64, to: &mut [u8]) -> bool {
        let from = self.0.get(address as usize..);
        let Some(from) = from.and_then(|from| from.get(..to.len())) else {
            return false;
        };
        to.copy_from_slice(from);
        true
    }
}

/// Where the test's image lies, and its first code.
const DELTA: u64 = 0xFFFF_FFFF_8100_0000;
const CODE: u64 = DELTA + 0x100;
/// Symbols beside those of each CPU, 16 bytes each from [`CODE`] on.
const FUNCTIONS: u64 = 700;
const PER_CPU: u64 = 30;

/// How a version of Linux lays the tables out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Up to 6.1, and 6.1 with `seqs_of_names`.
    Old,
    OldWithSeqs,
    /// From 6.4 on; from 6.15 on no offset is absolute.
    New,
    NewUnsigned,
}

const LAYOUTS: [Layout; 4] = [
    Layout::Old,
    Layout::OldWithSeqs,
    Layout::New,
    Layout::NewUnsigned,
];

fn token(number: u8) -> String {
    match number {
        1 => "do_something_".to_owned(),
        2 => "x".repeat(9),
        b'!'..=b'~' => char::from(number).to_string(),
        _ => String::new(),
    }
}

/// Tokens of symbol `number` with its kind, packed.
fn packed(number: u64) -> Vec<u8> {
    let mut tokens = vec![b'T', 1];
    tokens.extend(number.to_string().bytes());
    if number == 300 {
        // A name whose length takes two bytes.
        tokens.extend([b'y'; 200]);
    }
    let mut bytes = match tokens.len() {
        short @ 0..0x80 => vec![short as u8],
        long => vec![long as u8 & 0x7F | 0x80, (long >> 7) as u8],
    };
    bytes.extend(tokens);
    bytes
}

/// An image with kallsyms in it, at an odd distance from its beginning.
fn image(layout: Layout) -> Flat {
    let signed = layout != Layout::NewUnsigned;
    let per_cpu = if signed { PER_CPU } else { 0 };
    let count = per_cpu + FUNCTIONS;
    let (mut names, mut markers, mut tokens, mut index) = (vec![], vec![], vec![], vec![]);
    for number in 0..count {
        if number % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        names.extend(packed(number));
    }
    for number in 0..=255 {
        index.extend((tokens.len() as u16).to_le_bytes());
        tokens.extend(token(number).bytes());
        tokens.push(0);
    }
    let functions = (0..FUNCTIONS).map(|number| 0x100 + number as i32 * 16);
    let offsets: Vec<u8> = if signed {
        let absolute = (0..per_cpu).map(|number| number as i32 * 64);
        let below = functions.map(|offset| -1 - offset);
        absolute.chain(below).flat_map(i32::to_le_bytes).collect()
    } else {
        functions.flat_map(i32::to_le_bytes).collect()
    };
    let base = DELTA.to_le_bytes().to_vec();
    let numbers = (count as u32).to_le_bytes().to_vec();
    let seqs = vec![0x5A; 3 * count as usize];
    let parts = match layout {
        Layout::Old => vec![offsets, base, numbers, names, markers, tokens, index],
        Layout::OldWithSeqs => vec![offsets, base, numbers, names, markers, seqs, tokens, index],
        Layout::New | Layout::NewUnsigned => {
            vec![numbers, names, markers, tokens, index, offsets, base, seqs]
        }
    };
    let mut bytes = vec![0xCC; 0x1_2348];
    // Digits that are no table.
    bytes[0x800..0x814].copy_from_slice(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0");
    for part in parts {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(part);
    }
    bytes.resize(bytes.len() + (300 << 10), 0x90);
    Flat(bytes)
}

#[test]
fn each_layout_is_found_and_names_every_address() {
    for layout in LAYOUTS {
        let memory = image(layout);
        let image = Image::at(&memory, DELTA);
        let symbols =
            Kallsyms::find(&image, CODE, |_| true).unwrap_or_else(|| panic!("{layout:?}"));
        let first = u64::from(symbols.count()) - FUNCTIONS;
        for number in [0, 1, 255, 256, 299, FUNCTIONS - 2] {
            let address = CODE + number * 16;
            let symbol = symbols.symbol(address + 5).unwrap();
            let long = if first + number == 300 {
                "y".repeat(200)
            } else {
                String::new()
            };
            let name = format!("do_something_{}{long}+0x5/0x10", first + number);
            assert_eq!(symbol.to_string(), name, "{layout:?}");
        }
        assert_eq!(symbols.symbol(CODE + FUNCTIONS * 16), None);
        assert_eq!(symbols.symbol(0xFFFF_FFFF_C000_0000), None);
        let wanted = [
            format!("do_something_{first}"),
            format!("do_something_{}", first + 511),
        ];
        let [one, two, none] = symbols.addresses([&wanted[0], &wanted[1], "do_something_"]);
        assert_eq!(
            (one, two),
            (Some(CODE), Some(CODE + 511 * 16)),
            "{layout:?}"
        );
        assert_eq!(none, None);
        let again = Kallsyms::open(&image, symbols.tables()).unwrap();
        assert_eq!(again.symbol(CODE), symbols.symbol(CODE));
    }
}

#[test]
fn an_image_without_the_tables_has_no_symbols() {
    let memory = Flat(vec![0x30; 1 << 20]);
    let image = Image::at(&memory, DELTA);
    assert!(Kallsyms::find(&image, CODE, |_| true).is_none());
}

#[test]
fn what_the_guest_has_not_mapped_is_not_read() {
    let memory = image(Layout::New);
    let image = Image::at(&memory, DELTA);
    assert!(Kallsyms::find(&image, CODE, |_| false).is_none());
    assert!(Kallsyms::find(&image, CODE, |at| at < CODE + 0x1000).is_some());
}

#[test]
fn a_name_has_no_character_that_a_terminal_would_obey() {
    let mut memory = image(Layout::New);
    let at = memory
        .0
        .windows(13)
        .position(|window| window == b"do_something_");
    memory.0[at.unwrap() + 2] = 0x1B;
    let image = Image::at(&memory, DELTA);
    let symbols = Kallsyms::find(&image, CODE, |_| true).unwrap();
    assert!(symbols.symbol(CODE).unwrap().name.starts_with("do?some"));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn no_image_makes_it_panic(
        layout in 0usize..4,
        changes in proptest::collection::vec((0x1_2300usize..0x1_7000, proptest::num::u8::ANY), 1..20),
        address in proptest::num::u64::ANY,
    ) {
        let mut memory = image(LAYOUTS[layout]);
        for (at, byte) in changes {
            if let Some(place) = memory.0.get_mut(at) {
                *place = byte;
            }
        }
        let image = Image::at(&memory, DELTA);
        if let Some(symbols) = Kallsyms::find(&image, CODE, |_| true) {
            for address in [address, CODE, CODE + 9000, 64] {
                let _ = symbols.symbol(address);
            }
            let _ = symbols.addresses(["do_something_7"]);
        }
    }
}
