use super::*;
use crate::inspect::kallsyms::Tables;
use crate::inspect::orc::Orc;
use crate::inspect::walk;

/// Memory of these bytes from 0 on, not translated.
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

impl Flat {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(at, &bytes);
    }
}

const IPS: u64 = 0x1_0000;
const ENTRIES: u64 = 0x1_2000;
/// Code: ten functions of 0x100 bytes each, from here on.
const TEXT: u64 = 0x4000;
const STACK: u64 = 0x2_0000;

/// An entry, of types as the new format numbers them.
type Row = (i16, i16, u8, u8, u8);

const SP: u8 = 5;
const BP: u8 = 4;
const CALLER: u8 = 1;
const DI: u8 = 3;
const END: u8 = 1;
const CALL: u8 = 2;
const REGS: u8 = 3;
const INTERRUPT: u8 = 4;

/// A kernel whose functions have these rules, one after the other, in the old or the new format.
fn kernel(rows: &[Row], old: bool) -> (Flat, Kernel) {
    let mut memory = Flat(vec![0; 0x3_0000]);
    // Enough calls that the format can be told.
    let padding = std::iter::repeat_n(&(8, 0, SP, 0, CALL), 40);
    let mut count = 0;
    for (number, row) in (0u64..).zip(rows.iter().chain(padding)) {
        let (sp_offset, bp_offset, sp, bp, kind) = *row;
        let at = IPS + number * 4;
        let far = (TEXT + number * 0x100).wrapping_sub(at) as u32;
        memory.put(at, &far.to_le_bytes());
        let kind = match (old, kind) {
            (false, kind) => kind,
            (true, END) => 4,
            (true, kind) => kind - 2,
        };
        let [s0, s1] = sp_offset.to_le_bytes();
        let [b0, b1] = bp_offset.to_le_bytes();
        memory.put(ENTRIES + number * 6, &[s0, s1, b0, b1, sp | bp << 4, kind]);
        count = number + 1;
    }
    let image = Image::at(&memory, 0);
    let orc = Orc::find(&image, IPS, IPS + count * 4, ENTRIES);
    assert!(orc.is_some());
    let kernel = Kernel {
        delta: 0,
        tables: Tables::default(),
        modules: None,
        orc,
        text: [TEXT..TEXT + 0x2000, 0..0],
    };
    (memory, kernel)
}

fn frames(memory: &Flat, kernel: &Kernel, view: &VcpuView) -> Vec<(u64, Trust)> {
    let image = Image::at(memory, 0);
    let walker = Walker {
        space: Space::new(memory, walk::Tables::Flat),
        image: &image,
        kernel,
        copy: &StackCopy::default(),
    };
    let frames = walker.frames(view).into_iter();
    frames.map(|frame| (frame.address, frame.trust)).collect()
}

/// At 0x20 of function `function`, with the stack at [`STACK`].
fn at(function: u64) -> VcpuView {
    VcpuView {
        rip: TEXT + function * 0x100 + 0x20,
        rsp: STACK,
        rbp: 0x77,
        ..VcpuView::default()
    }
}

fn in_function(function: u64) -> u64 {
    TEXT + function * 0x100 + 0x40
}

#[test]
fn rules_lead_through_calls_and_interrupts_to_the_end() {
    let rows = [
        (24, -16, SP, CALLER, CALL),
        // By the frame pointer that the first has saved.
        (16, -16, BP, CALLER, CALL),
        (8, 0, SP, 0, REGS),
        (0, 0, DI, 0, CALL),
        (0, 0, SP, 0, INTERRUPT),
        (0, 0, 0, 0, END),
    ];
    for old in [false, true] {
        let (mut memory, kernel) = kernel(&rows, old);
        let frame = STACK + 0x100;
        // Function 0: something, RBP, the return address.
        memory.words(STACK, &[1, frame, in_function(1)]);
        // Function 1, to which RBP leads: RBP, the return address; then one word and pt_regs.
        memory.words(frame, &[0, in_function(2), 0]);
        let regs = frame + 24;
        let caller = STACK + 0x800;
        memory.words(regs + pt_regs::DI, &[caller + 8]);
        memory.words(
            regs + pt_regs::IP,
            &[in_function(3), 0x10, 2, STACK + 0x400, 0x18],
        );
        // Function 3 was interrupted, and its caller's stack is where RDI says.
        memory.words(caller, &[in_function(4)]);
        memory.words(caller + 8, &[in_function(5), 0x10, 2, STACK + 0x900, 0x18]);
        let want: Vec<_> = [TEXT + 0x20]
            .into_iter()
            .chain((1..6).map(in_function))
            .collect();
        let found = frames(&memory, &kernel, &at(0));
        assert!(
            found.iter().all(|(_, trust)| *trust == Trust::Known),
            "{found:x?}"
        );
        let found: Vec<u64> = found.into_iter().map(|(address, _)| address).collect();
        assert_eq!(found, want, "{old}");
    }
}

#[test]
fn registers_of_user_space_end_the_stack() {
    let (mut memory, kernel) = kernel(&[(0, 0, SP, 0, REGS)], false);
    memory.words(
        STACK + pt_regs::IP,
        &[0x40_0000, 0x33, 2, 0x7FFF_0000, 0x2B],
    );
    assert_eq!(
        frames(&memory, &kernel, &at(0)),
        [(TEXT + 0x20, Trust::Known)]
    );
}

#[test]
fn frame_pointers_are_followed_where_there_is_no_orc() {
    let (mut memory, mut kernel) = kernel(&[], false);
    kernel.orc = None;
    memory.words(STACK + 0x10, &[STACK + 0x40, in_function(1)]);
    memory.words(STACK + 0x40, &[0, in_function(2)]);
    let view = VcpuView {
        rbp: STACK + 0x10,
        ..at(0)
    };
    let found = frames(&memory, &kernel, &view);
    let by = Trust::FramePointer;
    let want = [(in_function(1), by), (in_function(2), by)];
    assert_eq!(found[1..3], want);
}

#[test]
fn what_only_looks_like_a_return_address_is_marked_as_a_guess() {
    let (mut memory, mut kernel) = kernel(&[], false);
    kernel.orc = None;
    memory.words(STACK, &[7, in_function(3), STACK, 0, in_function(4)]);
    let found = frames(&memory, &kernel, &at(0));
    let guess = Trust::Guess;
    assert_eq!(
        found[1..],
        [(in_function(3), guess), (in_function(4), guess)]
    );
}

#[test]
fn a_stack_without_an_end_is_cut() {
    let (mut memory, kernel) = kernel(&[(8, 0, SP, 0, CALL)], false);
    for up in 0..1000 {
        memory.words(STACK + up * 8, &[in_function(0)]);
    }
    assert_eq!(frames(&memory, &kernel, &at(0)).len(), MOST_FRAMES);
}

proptest::proptest! {
    #[test]
    fn no_rules_and_no_stack_make_it_panic_or_go_on_for_ever(
        rows in proptest::collection::vec(
            (proptest::num::i16::ANY, proptest::num::i16::ANY, 0u8..16, 0u8..16, proptest::num::u8::ANY),
            1..8,
        ),
        words in proptest::collection::vec(0u64..0x3_0000, 0..200),
        rbp in proptest::num::u64::ANY,
        function in 0u64..8,
    ) {
        let (mut memory, kernel) = kernel(&rows, false);
        memory.words(STACK, &words);
        let view = VcpuView { rbp, ..at(function) };
        proptest::prop_assert!(frames(&memory, &kernel, &view).len() <= MOST_FRAMES);
    }
}
