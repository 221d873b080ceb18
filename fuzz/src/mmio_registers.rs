//! The register file of virtio-mmio: a sequence of reads and writes by a hostile driver.

use devices::virtio::device::{F_VERSION_1, TRANSPORT_FEATURES};
use devices::virtio::mmio::registers::{Action, Live, Registers};

use super::input::Input;

const QUEUE_SIZES: [u16; 3] = [256, 128, 64];

/// Runs the target: 6 bytes an access, of which one says what, one where, four the value.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let offered = TRANSPORT_FEATURES | u64::from(input.u8());
    let mut registers = Registers::new(2, offered, &QUEUE_SIZES);
    let mut waiting = false;
    while !input.is_empty() {
        let (what, place, value) = (input.u8(), input.u8(), input.u32());
        // Whole registers mostly, odd places and those far away sometimes.
        let offset = match what >> 5 {
            0 => u64::from(place),
            1 => u64::from(value) << (place & 31),
            _ => u64::from(place & !3),
        };
        match what & 3 {
            0 => read(&registers, offset, value),
            1 if waiting => {
                waiting = false;
                registers.finish_reset(value & 1 == 0);
            }
            _ => waiting |= write(&mut registers, offset, value, offered),
        }
    }
}

fn read(registers: &Registers, offset: u64, value: u32) {
    let live = Live {
        interrupts: value & 3,
        needs_reset: value & 4 != 0,
        generation: value,
    };
    let first = registers.read(offset, live);
    assert_eq!(first, registers.read(offset, live), "reads change nothing");
}

/// One write; true when the device is to be reset.
fn write(registers: &mut Registers, offset: u64, value: u32, offered: u64) -> bool {
    let before = registers.clone();
    let action = registers.write(offset, value);
    match action {
        Err(_) => assert_eq!(*registers, before, "a refused write changes nothing"),
        Ok(Action::Activate(features, layouts)) => {
            assert_eq!(features & !offered, 0, "features that were not offered");
            assert_ne!(features & F_VERSION_1, 0);
            assert_eq!(layouts.len(), QUEUE_SIZES.len());
            assert_eq!(registers.status() & 0x8F, 0x0F, "running");
        }
        Ok(Action::Cleared) => {
            let fresh = Registers::new(2, offered, &QUEUE_SIZES);
            assert_eq!(*registers, fresh);
        }
        Ok(Action::Reset) => return true,
        Ok(Action::None | Action::Notify(_) | Action::Acknowledge(_)) => {}
    }
    false
}
