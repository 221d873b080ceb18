use super::*;
use proptest::prelude::*;

const OFFERED: u64 = F_VERSION_1 | 0b1010;

fn fresh() -> Registers {
    Registers::new(2, OFFERED, &[256, 64])
}

fn read(registers: &Registers, offset: u64) -> u32 {
    registers.read(offset, Live::default()).unwrap()
}

/// Up to and with FEATURES_OK.
fn negotiated() -> Registers {
    let mut registers = fresh();
    for (offset, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        assert_eq!(registers.write(offset, value), Ok(Action::None));
    }
    assert_eq!(read(&registers, 0x70), 11);
    registers
}

#[test]
fn a_driver_finds_the_device() {
    let registers = fresh();
    for (offset, value) in [
        (0, 0x7472_6976),
        (4, 2),
        (8, 2),
        (0x34, 256),
        (0xfc, 0),
        (0xb0, u32::MAX),
    ] {
        assert_eq!(read(&registers, offset), value, "{offset:#x}");
    }
    assert_eq!(read(&registers, 0xc).to_le_bytes(), *b"VTRN");
    for offset in [0x20, 0x30, 0x38, 0x50, 0x64, 0x80, 0xc0, 0xf8, 1, u64::MAX] {
        assert_eq!(
            registers.read(offset, Live::default()),
            Err(Misuse::Register)
        );
    }
}

#[test]
fn features_come_in_pages_and_beyond_them_there_are_none() {
    let mut registers = fresh();
    for (page, bits) in [(0, 0b1010), (1, 1), (2, 0), (u32::MAX, 0)] {
        registers.write(0x14, page).unwrap();
        assert_eq!(read(&registers, 0x10), bits);
    }
}

#[test]
fn unfit_features_are_not_acknowledged() {
    for (low, high) in [(0b1010, 0), (0b100, 1), (0, 0), (0b1010, 3)] {
        let mut registers = fresh();
        let steps = [
            (0x70, 3),
            (0x24, 0),
            (0x20, low),
            (0x24, 1),
            (0x20, high),
            (0x70, 11),
        ];
        for (offset, value) in steps {
            registers.write(offset, value).unwrap();
        }
        assert_eq!(read(&registers, 0x70), 3, "{low:b} {high:b}");
    }
}

#[test]
fn the_status_goes_forward_only() {
    for (value, from) in [
        (2, fresh()),
        (9, fresh()),
        (15, fresh()),
        (3, negotiated()),
        (9, negotiated()),
    ] {
        let mut registers = from.clone();
        assert_eq!(registers.write(0x70, value), Err(Misuse::State), "{value}");
        assert_eq!(registers, from);
    }
    let mut registers = negotiated();
    registers.write(0x70, 11 | 128).unwrap();
    assert_eq!(registers.write(0x70, 15 | 128), Err(Misuse::State));
}

#[test]
fn features_are_frozen_once_acknowledged() {
    let mut registers = negotiated();
    assert_eq!(registers.write(0x20, 0), Err(Misuse::State));
    assert_eq!(fresh().write(0x20, 0), Err(Misuse::State));
}

#[test]
fn driver_ok_hands_over_features_and_queues() {
    let mut registers = negotiated();
    let writes = [
        (0x30, 1),
        (0x38, 64),
        (0x80, 0x1000),
        (0x84, 1),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0xa4, 2),
        (0x44, 1),
    ];
    for (offset, value) in writes {
        registers.write(offset, value).unwrap();
    }
    assert_eq!(read(&registers, 0x44), 1);
    // A queue in use does not move.
    assert_eq!(registers.write(0x80, 0), Err(Misuse::State));
    let queue = QueueLayout {
        size: 64,
        ready: true,
        descriptors: 0x1_0000_1000,
        driver: 0x2000,
        device: 0x2_0000_3000,
    };
    let action = Action::Activate(F_VERSION_1, vec![QueueLayout::default(), queue]);
    assert_eq!(registers.write(0x70, 15), Ok(action));
    assert_eq!(registers.write(0x38, 32), Err(Misuse::State));
    assert_eq!(registers.write(0x44, 0), Err(Misuse::State));
}

#[test]
fn queues_that_do_not_exist_have_no_size_and_take_nothing() {
    let mut registers = negotiated();
    registers.write(0x30, 2).unwrap();
    assert_eq!((read(&registers, 0x34), read(&registers, 0x44)), (0, 0));
    assert_eq!(registers.write(0x38, 8), Err(Misuse::State));
}

#[test]
fn an_idle_device_is_fresh_at_once_and_a_running_one_when_it_confirms() {
    let mut registers = negotiated();
    assert_eq!(registers.write(0x70, 0), Ok(Action::Cleared));
    assert_eq!(registers, fresh());
    // Drivers release their queues once more after the reset.
    assert_eq!(registers.write(0x44, 0), Ok(Action::None));

    let mut registers = negotiated();
    registers.write(0x70, 15).unwrap();
    assert_eq!(registers.write(0x70, 0), Ok(Action::Reset));
    assert_eq!(read(&registers, 0x70), 15);
    assert_eq!(registers.write(0x70, 0), Err(Misuse::State));
    assert_eq!(registers.write(0x14, 1), Err(Misuse::State));
    registers.finish_reset(false);
    assert_eq!(read(&registers, 0x70), 15);
    assert_eq!(registers.write(0x70, 1), Err(Misuse::State));
    assert_eq!(registers.write(0x70, 0), Ok(Action::Reset));
    registers.finish_reset(true);
    assert_eq!(registers, fresh());
}

#[test]
fn the_device_adds_its_own_bits() {
    let live = Live {
        interrupts: 3,
        needs_reset: true,
        generation: 7,
    };
    let registers = negotiated();
    for (offset, value) in [(0x70, 11 | 64), (0x60, 3), (0xfc, 7)] {
        assert_eq!(registers.read(offset, live), Ok(value));
    }
}

proptest! {
    #[test]
    fn no_sequence_of_writes_gets_past_negotiation(
        writes in prop::collection::vec((prop_oneof![Just(0x70u64), Just(0x20), Just(0x24), 0u64..0x110], any::<u32>()), 0..200)
    ) {
        let mut registers = fresh();
        for (offset, value) in writes {
            // Mostly small values, so that the status register moves.
            let value = if value % 3 == 0 { value } else { value % 16 };
            if let Ok(Action::Activate(features, queues)) = registers.write(offset, value) {
                prop_assert_eq!(features & !OFFERED, 0);
                prop_assert!(features & F_VERSION_1 != 0);
                prop_assert_eq!(queues.len(), 2);
            }
            let _ = registers.read(offset, Live::default());
            if registers.status() & DRIVER_OK != 0 {
                prop_assert!(registers.status() & FEATURES_OK != 0);
            }
        }
    }
}
