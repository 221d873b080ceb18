//! The devices of an old PC that stock kernels still look for: a serial port with its console,
//! a keyboard controller, the ACPI power registers, a real-time clock, the port through which a
//! kernel tells of its panic and those that bare-metal guests report through.
//!
//! Owner threads: registers are called by vCPU threads; the thread `console` carries the serial
//! port's bytes to and from the host, so that no vCPU ever waits for a terminal or a file.

pub mod cmos;
pub mod console;
pub mod debug_port;
pub mod i8042;
mod keys;
pub mod power;
pub mod pvpanic;
pub mod serial;
mod stream;
pub mod terminal;

pub use cmos::{CMOS_BYTES, CMOS_PORT, Cmos};
pub use console::{
    Console, ConsoleBlock, ConsoleError, ConsoleKey, ConsoleWatch, Facts, GuestMessage,
    MessageKind, OnKey, OnMessage, WatchBlock,
};
pub use debug_port::{DEBUG_EXIT_BYTES, DEBUG_EXIT_PORT, DebugExit, POST_PORT, PostCodes};
pub use i8042::{I8042, I8042_BYTES, I8042_PORT, KEYBOARD_GSI, KeyboardError};
pub use power::{
    POWER_BYTES, POWER_PORT, Power, RESET_REGISTER, RESET_VALUE, S5_SLEEP_TYPE,
    SLEEP_CONTROL_REGISTER, SLEEP_STATUS_REGISTER,
};
pub use pvpanic::{OnPanic, PVPANIC_HID, PVPANIC_PORT, PanicKind, Pvpanic, PvpanicBlock};
pub use serial::{SERIAL_BYTES, SERIAL_GSI, SERIAL_PORT, Serial};
pub use stream::{ConsoleInput, ConsoleOutput};
pub use terminal::{RawTerminal, TerminalError, restore_from_signal};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::{Bus, BusKind};

    /// Whatever a guest does to the ports, nobody panics and nothing grows.
    #[test]
    fn a_guest_that_hammers_every_port_breaks_nothing() {
        let serial = Arc::new(Serial::new().unwrap());
        let i8042 = Arc::new(I8042::new().unwrap());
        let mut bus = Bus::new(BusKind::Pio);
        let ports: [(u16, u64, &str, Arc<dyn crate::bus::BusDevice>); 7] = [
            (SERIAL_PORT, SERIAL_BYTES, "serial", serial.clone()),
            (I8042_PORT, I8042_BYTES, "i8042", i8042.clone()),
            (POWER_PORT, POWER_BYTES, "power", Arc::new(Power)),
            (CMOS_PORT, CMOS_BYTES, "cmos", Arc::new(Cmos::default())),
            (POST_PORT, 1, "post", Arc::new(PostCodes::default())),
            (
                DEBUG_EXIT_PORT,
                DEBUG_EXIT_BYTES,
                "exit",
                Arc::new(DebugExit::default()),
            ),
            (
                0x3E8,
                SERIAL_BYTES,
                "second",
                Arc::new(Serial::new().unwrap()),
            ),
        ];
        let mut addresses = Vec::new();
        for (base, bytes, name, device) in ports {
            bus.insert(u64::from(base), bytes, name, device).unwrap();
            addresses.extend(u64::from(base)..u64::from(base) + bytes);
        }
        // A linear congruential generator: the same accesses each time.
        let mut state = 1u64;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for round in 0..500_000 {
            let address = addresses[next() as usize % addresses.len()];
            let width = [1, 1, 1, 1, 1, 2, 4, 8][next() as usize % 8];
            let mut data = next().wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
            if next() % 2 == 0 {
                bus.read(address, &mut data[..width]);
            } else {
                bus.write(address, &data[..width]);
            }
            if round % 1000 == 0 {
                // Refused or not, the guest sees to that.
                let _ = i8042.ctrl_alt_del();
                serial.enqueue(b"input from outside");
                serial.take_output(&mut [0; 512]);
            }
        }
    }
}
