use proptest::prelude::*;

use super::*;

const BAR: Bar = Bar {
    address: 0xE800_8000,
    bytes: 0x8000,
};

fn function() -> ConfigRegisters {
    let identity = Identity {
        id: (0x1AF4, 0x1042),
        revision: 1,
        class: 0x01_8000,
        subsystem: (0x1AF4, 2),
    };
    let mut registers = ConfigRegisters::new(identity, Some(BAR));
    assert_eq!(registers.add_capability(9, &[6, 1, 2], &[]), Some(0x40));
    let control = [0, 0xC0];
    assert_eq!(
        registers.add_capability(0x11, &[1, 0], &control),
        Some(0x48)
    );
    registers
}

fn write(registers: &mut ConfigRegisters, offset: u16, value: u32) -> Result<(), Misuse> {
    registers.write(offset, &value.to_le_bytes())
}

#[test]
fn a_driver_finds_the_function_and_its_capabilities() {
    let registers = function();
    for (offset, value) in [
        (0, 0x1042_1AF4),
        (4, 0x0010_0002),
        (8, 0x0180_0001),
        (0xC, 0),
        (0x10, 0xE800_8004),
        (0x14, 0),
        (0x2C, 0x0002_1AF4),
        (0x34, 0x40),
        (0x3C, 0),
        (0x40, 0x0106_4809),
        (0x48, 0x0001_0011),
        (0x100, 0),
        (0xFFC, 0),
    ] {
        assert_eq!(registers.double_word(offset), value, "{offset:#x}");
    }
}

#[test]
fn a_bar_tells_its_size_and_comes_back_to_its_place() {
    let mut registers = function();
    write(&mut registers, 0x10, u32::MAX).unwrap();
    write(&mut registers, 0x14, u32::MAX).unwrap();
    assert_eq!(registers.double_word(0x10), 0xFFFF_8004);
    assert_eq!(registers.double_word(0x14), u32::MAX);
    write(&mut registers, 0x10, 0xE800_8004).unwrap();
    write(&mut registers, 0x14, 0).unwrap();
    assert_eq!(registers, function());
}

#[test]
fn a_bar_does_not_move() {
    let mut registers = function();
    for (offset, value) in [(0x10, 0xE801_0000), (0x10, 0), (0x14, 1)] {
        let moved = write(&mut registers, offset, value);
        assert_eq!(moved, Err(Misuse::State), "{offset:#x}");
        assert_eq!(registers, function());
    }
    assert_eq!(registers.write(0x10, &[0xFF; 2]), Err(Misuse::Width));
    // Registers 2 to 5 and the ROM do not exist, which sizing them tells.
    for offset in [0x18, 0x1C, 0x20, 0x24, 0x30] {
        write(&mut registers, offset, u32::MAX).unwrap();
        assert_eq!(registers.double_word(offset), 0);
    }
}

#[test]
fn only_a_drivers_bits_change() {
    let mut registers = function();
    for offset in (0..0x100).step_by(4) {
        if offset != 0x10 && offset != 0x14 {
            write(&mut registers, offset, u32::MAX).unwrap();
        }
    }
    assert_eq!(registers.double_word(4), 0x0010_0406);
    assert_eq!(registers.double_word(0x48), 0xC001_0011);
    assert_eq!(registers.double_word(0), 0x1042_1AF4);
    write(&mut registers, 4, 0).unwrap();
    assert!(!registers.memory_is_enabled());
}

#[test]
fn a_space_that_is_full_takes_no_more() {
    let mut registers = function();
    let count = std::iter::from_fn(|| registers.add_capability(9, &[0; 14], &[])).count();
    assert_eq!(count, (0x100 - 0x4C) / 16);
    let before = registers.clone();
    assert_eq!(registers.add_capability(9, &[0; 14], &[]), None);
    assert_eq!(registers, before);
}

proptest! {
    #[test]
    fn no_access_changes_what_is_not_a_drivers(
        accesses in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..100)
    ) {
        let (mut registers, fresh) = (function(), function());
        for (offset, data) in accesses {
            let offset = offset % 0x110;
            let _ = registers.write(offset, &data);
            let mut back = data.clone();
            let _ = registers.read(offset, &mut back);
        }
        for at in (0..BYTES).filter(|at| !(BAR0..BAR1 + 4).contains(at)) {
            let (now, then) = (registers.bytes[at], fresh.bytes[at]);
            prop_assert_eq!((now ^ then) & !fresh.writable[at], 0);
        }
        let shown = registers.double_word(0x10);
        prop_assert!(shown == 0xE800_8004 || shown == 0xFFFF_8004);
    }
}
