//! The keyboard controller (Intel 8042) at ports 60h and 64h with an AT keyboard and no mouse, and
//! port 61h between them.
//!
//! There is enough of it for the drivers of stock kernels to find the keyboard at once and to find
//! no mouse at once: an operator's Ctrl-Alt-Del reaches the guest through it, and a guest resets
//! the machine through it (`reboot=k`).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{BusDevice, Effect, Misuse};

/// First port: data. Status and command are four above.
pub const I8042_PORT: u16 = 0x60;
/// Ports of the device.
pub const I8042_BYTES: u64 = 5;
/// The keyboard's interrupt.
pub const KEYBOARD_GSI: u32 = 1;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;

const CTR_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const CTR_SYSTEM: u8 = 1 << 2;
const CTR_KEYBOARD_OFF: u8 = 1 << 4;
const CTR_AUX_OFF: u8 = 1 << 5;
const CTR_TRANSLATE: u8 = 1 << 6;

/// Speaker gate of port 61h, and its two lines that are read.
const B_GATE: u8 = 1 << 0;
const B_WRITABLE: u8 = 0x0F;
const B_REFRESH: u8 = 1 << 4;
const B_TIMER_OUT: u8 = 1 << 5;

/// Bytes that a keyboard keeps for a slow reader.
const KEYBOARD_QUEUE: usize = 32;
/// Answers of the controller that nobody reads.
const CONTROLLER_QUEUE: usize = 4;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
/// The one scan code set that the keyboard knows.
const SCAN_SET: u8 = 2;

/// Press and release in scan code set 2: Ctrl, Alt, Delete down, and up in reverse.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xE0, 0x71, 0xE0, 0xF0, 0x71, 0xF0, 0x11, 0xF0, 0x14,
];
/// The same in set 1, which the controller's translation makes of it.
const CTRL_ALT_DEL_TRANSLATED: [u8; 8] = [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D];

/// Why keys cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyboardError {
    /// The guest has told the keyboard not to send keys, or no driver has its interrupt.
    #[error("the guest has no keyboard driver that listens")]
    Off,
    /// The guest does not read what it was sent before.
    #[error("the guest does not read its keyboard")]
    Full,
    /// The interrupt cannot be raised.
    #[error("the keyboard's interrupt cannot be raised")]
    Interrupt,
}

/// What the next byte to the data port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Keyboard,
    KeyboardArgument(u8),
    CommandByte,
    OutputPort,
    KeyboardOutput,
    AuxOutput,
    Nothing,
}

struct State {
    /// The controller's command byte.
    ctr: u8,
    expect: Expect,
    last_was_command: bool,
    controller: VecDeque<u8>,
    keyboard: VecDeque<u8>,
    last_read: u8,
    last_sent: u8,
    scanning: bool,
    port_b: u8,
}

/// The device at [`I8042_PORT`].
pub struct I8042 {
    /// A Mutex, because an access moves bytes between queues and any vCPU and the operator's
    /// Ctrl-Alt-Del may come at once. Held over no system call but the interrupt's eventfd write.
    state: Mutex<State>,
    interrupt: EventFd,
}

impl I8042 {
    /// A controller as firmware leaves it: keyboard on, translation on, no mouse.
    ///
    /// # Errors
    /// What the kernel says when no eventfd can be had.
    pub fn new() -> io::Result<Self> {
        Ok(I8042 {
            state: Mutex::new(State {
                ctr: CTR_KEYBOARD_INTERRUPT | CTR_SYSTEM | CTR_AUX_OFF | CTR_TRANSLATE,
                expect: Expect::Keyboard,
                last_was_command: false,
                controller: VecDeque::with_capacity(CONTROLLER_QUEUE),
                keyboard: VecDeque::with_capacity(KEYBOARD_QUEUE),
                last_read: 0,
                last_sent: 0,
                scanning: true,
                port_b: 0,
            }),
            interrupt: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Written to when the guest is to be interrupted: the irqfd of [`KEYBOARD_GSI`], edge.
    pub fn interrupt_event(&self) -> &EventFd {
        &self.interrupt
    }

    /// Presses and releases Ctrl-Alt-Del.
    ///
    /// # Errors
    /// [`KeyboardError`] when the guest cannot see it; nothing is sent then.
    pub fn ctrl_alt_del(&self) -> Result<(), KeyboardError> {
        let mut state = self.lock();
        let listens = state.ctr & (CTR_KEYBOARD_INTERRUPT | CTR_KEYBOARD_OFF);
        if !state.scanning || listens != CTR_KEYBOARD_INTERRUPT {
            return Err(KeyboardError::Off);
        }
        let codes: &[u8] = if state.ctr & CTR_TRANSLATE != 0 {
            &CTRL_ALT_DEL_TRANSLATED
        } else {
            &CTRL_ALT_DEL
        };
        if state.keyboard.len().saturating_add(codes.len()) > KEYBOARD_QUEUE {
            return Err(KeyboardError::Full);
        }
        state.keyboard.extend(codes);
        self.interrupt
            .write(1)
            .map_err(|_| KeyboardError::Interrupt)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics; were it to, the registers would still be valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interrupt is an edge: it is raised when there is a byte to read that was not there, or
    /// could not interrupt, `before`.
    fn interrupt(&self, state: &State, before: bool) {
        if state.interrupts() && !before {
            // Fails only when the eventfd's counter is full: the interrupt is pending then.
            let _ = self.interrupt.write(1);
        }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        let mut state = self.lock();
        *byte = match offset {
            0 => {
                let read = state.read_data();
                // Each further byte interrupts anew.
                self.interrupt(&state, false);
                read
            }
            1 => state.read_port_b(),
            4 => state.status(),
            _ => return Err(Misuse::Register),
        };
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[value] = data else {
            return Err(Misuse::Width);
        };
        let mut state = self.lock();
        let before = state.interrupts();
        let effect = match offset {
            0 => state.write_data(value),
            1 => {
                state.port_b = value & B_WRITABLE;
                Effect::None
            }
            4 => state.command(value),
            _ => return Err(Misuse::Register),
        };
        self.interrupt(&state, before);
        Ok(effect)
    }
}

impl State {
    fn output_full(&self) -> bool {
        let keyboard = self.ctr & CTR_KEYBOARD_OFF == 0 && !self.keyboard.is_empty();
        keyboard || !self.controller.is_empty()
    }

    fn interrupts(&self) -> bool {
        self.ctr & CTR_KEYBOARD_INTERRUPT != 0 && self.output_full()
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | (self.ctr & STATUS_SYSTEM);
        if self.output_full() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn read_data(&mut self) -> u8 {
        let mut byte = self.controller.pop_front();
        if byte.is_none() && self.ctr & CTR_KEYBOARD_OFF == 0 {
            byte = self.keyboard.pop_front();
        }
        self.last_read = byte.unwrap_or(self.last_read);
        self.last_read
    }

    /// Old delay loops wait for the refresh bit to toggle; timer 2 is always done.
    fn read_port_b(&mut self) -> u8 {
        self.port_b ^= B_REFRESH;
        if self.port_b & B_GATE != 0 {
            self.port_b | B_TIMER_OUT
        } else {
            self.port_b
        }
    }

    fn answer(&mut self, byte: u8) {
        if self.controller.len() < CONTROLLER_QUEUE {
            self.controller.push_back(byte);
        }
    }

    /// A byte from the keyboard. Of the answers, the controller's translation changes the id alone.
    fn send(&mut self, byte: u8) {
        self.last_sent = byte;
        let byte = match byte {
            0x83 if self.ctr & CTR_TRANSLATE != 0 => 0x41,
            byte => byte,
        };
        if self.keyboard.len() < KEYBOARD_QUEUE {
            self.keyboard.push_back(byte);
        }
    }

    /// A byte to port 64h.
    fn command(&mut self, command: u8) -> Effect {
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        match command {
            0x20 => self.answer(self.ctr),
            0x60 => self.expect = Expect::CommandByte,
            0xA7 => self.ctr |= CTR_AUX_OFF,
            0xA8 => self.ctr &= !CTR_AUX_OFF,
            // Aux interface test: "clock line stuck low", so that drivers know there is no mouse.
            0xA9 => self.answer(0x01),
            0xAA => {
                self.ctr |= CTR_SYSTEM;
                self.answer(0x55);
            }
            // Keyboard interface test: fine. Test inputs: all low.
            0xAB | 0xE0 => self.answer(0x00),
            0xAD => self.ctr |= CTR_KEYBOARD_OFF,
            0xAE => self.ctr &= !CTR_KEYBOARD_OFF,
            // Input port: keyboard not inhibited.
            0xC0 => self.answer(0x80),
            // Output port: no reset, address line 20 on.
            0xD0 => self.answer(0x03),
            0xD1 => self.expect = Expect::OutputPort,
            0xD2 => self.expect = Expect::KeyboardOutput,
            0xD3 => self.expect = Expect::AuxOutput,
            0xD4 => self.expect = Expect::Nothing,
            // Pulses output lines: line 0 is the CPU's reset, low active.
            0xF0..=0xFF if command & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    /// A byte to port 60h.
    fn write_data(&mut self, value: u8) -> Effect {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::CommandByte => self.ctr = value,
            Expect::OutputPort if value & 1 == 0 => return Effect::Reset,
            Expect::OutputPort | Expect::Nothing => {}
            // A controller with an aux port would mark this byte as coming from there: a driver
            // that sees it unmarked knows at once that there is none.
            Expect::KeyboardOutput | Expect::AuxOutput => self.answer(value),
            Expect::Keyboard => self.keyboard_command(value),
            Expect::KeyboardArgument(command) => self.keyboard_argument(command, value),
        }
        Effect::None
    }

    fn keyboard_command(&mut self, command: u8) {
        // Talking to the keyboard switches its interface on.
        self.ctr &= !CTR_KEYBOARD_OFF;
        match command {
            0xED | 0xF0 | 0xF3 => {
                self.expect = Expect::KeyboardArgument(command);
                self.send(ACK);
            }
            0xEE => self.send(0xEE),
            0xF2 => {
                for byte in [ACK, 0xAB, 0x83] {
                    self.send(byte);
                }
            }
            0xF4 => {
                self.scanning = true;
                self.send(ACK);
            }
            0xF5 | 0xF6 => {
                self.scanning = command == 0xF6 && self.scanning;
                self.send(ACK);
            }
            0xF7..=0xFA => self.send(ACK),
            0xFE => self.send(self.last_sent),
            0xFF => {
                self.keyboard.clear();
                self.scanning = true;
                self.send(ACK);
                self.send(0xAA);
            }
            _ => self.send(RESEND),
        }
    }

    fn keyboard_argument(&mut self, command: u8, value: u8) {
        match (command, value) {
            // 0 asks for the scan code set.
            (0xF0, 0) => {
                self.send(ACK);
                self.send(SCAN_SET);
            }
            (0xF0, SCAN_SET) | (0xED | 0xF3, 0..=0x7F) => self.send(ACK),
            // A command where its argument should be; sets 1 and 3 are not had.
            (0xED | 0xF3, _) => self.keyboard_command(value),
            _ => self.send(RESEND),
        }
    }
}

#[cfg(test)]
mod tests;
