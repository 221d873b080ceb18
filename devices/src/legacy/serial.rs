//! The serial port: a 16550A at ports 3F8h to 3FFh, on vm-superio's register file.
//!
//! A vCPU that writes a byte puts it into a ring in memory and goes on; the console thread
//! ([`crate::legacy::Console`]) carries the ring to the host. Back-pressure is that of the real
//! part: while the ring is above its high-water mark the line status says that the transmitter is
//! busy, no transmitter interrupt comes, and what is written nevertheless goes into the 16 bytes
//! of the transmit FIFO and is then lost, and counted. When the ring has drained the interrupt
//! comes. A guest that honours the line status loses nothing.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{BusDevice, Effect, Misuse};

/// First port of COM1.
pub const SERIAL_PORT: u16 = 0x3F8;
/// Ports of the device.
pub const SERIAL_BYTES: u64 = 8;
/// The interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;

/// Bytes of the output ring.
pub const RING_BYTES: usize = 64 << 10;
/// From here on the transmitter says that it is busy.
const HIGH_WATER: usize = 48 << 10;
/// Down to here the ring must drain before the transmitter is ready again.
const LOW_WATER: usize = 16 << 10;
/// The transmit FIFO of a 16550A.
const TX_FIFO_BYTES: usize = 16;
/// Input is asked for again when this much of the receive FIFO is free.
const RX_ROOM: usize = 32;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const IER_THRE: u8 = 1 << 1;
const IIR_NONE: u8 = 1;
const IIR_THRE: u8 = 1 << 1;
const IIR_ID: u8 = 0x0F;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const LSR_IDLE: u8 = 0x60;

/// The interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where vm-superio writes to: the output ring.
#[derive(Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Nobody drains the ring any more.
    abandoned: bool,
}

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.abandoned && self.bytes.len().saturating_add(bytes.len()) <= RING_BYTES {
            self.bytes.extend(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Registers {
    uart: vm_superio::Serial<Line, NoEvents, Ring>,
    /// The interrupt enable register as the guest wrote it; the UART's lacks the transmitter's
    /// bit while that is busy.
    ier: u8,
    /// The transmitter is busy: the ring is to drain first.
    busy: bool,
    tx_fifo: VecDeque<u8>,
    /// The console thread found the ring empty and wants to be woken.
    output_awaited: bool,
    /// The console thread has input that did not fit.
    input_awaited: bool,
}

/// The device at [`SERIAL_PORT`]. Shared by the vCPUs and the console thread.
pub struct Serial {
    /// A Mutex, because one port access reads and changes several registers and any vCPU may make
    /// it. It is held for the length of that, or of a copy of at most one chunk by the console
    /// thread, and over no system call but the interrupt's eventfd write.
    registers: Mutex<Registers>,
    interrupt: EventFd,
    wake: EventFd,
    /// Bytes lost to overruns. A plain atomic instead of a single-writer cell, because every vCPU
    /// may write the port; only lost bytes pay for it.
    overruns: AtomicU64,
}

impl Serial {
    /// A port that nobody drains yet.
    ///
    /// # Errors
    /// What the kernel says when no eventfd can be had.
    pub fn new() -> io::Result<Self> {
        let flags = EFD_NONBLOCK | libc::EFD_CLOEXEC;
        let interrupt = EventFd::new(flags)?;
        let line = Line(interrupt.try_clone()?);
        let ring = Ring {
            bytes: VecDeque::with_capacity(RING_BYTES),
            abandoned: false,
        };
        Ok(Serial {
            registers: Mutex::new(Registers {
                uart: vm_superio::Serial::new(line, ring),
                ier: 0,
                busy: false,
                tx_fifo: VecDeque::with_capacity(TX_FIFO_BYTES),
                output_awaited: false,
                input_awaited: false,
            }),
            interrupt,
            wake: EventFd::new(flags)?,
            overruns: AtomicU64::new(0),
        })
    }

    /// Written to when the guest is to be interrupted: the irqfd of [`SERIAL_GSI`], edge.
    pub fn interrupt_event(&self) -> &EventFd {
        &self.interrupt
    }

    /// Bytes that the guest wrote while the transmitter was busy and its FIFO full.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Relaxed)
    }

    /// Becomes readable when the console thread has something to do.
    pub(crate) fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Moves output into `chunk`, gives the number of bytes. After a 0, [`Self::wake_event`] is
    /// written when there is more. Called by the console thread.
    pub(crate) fn take_output(&self, chunk: &mut [u8]) -> usize {
        let mut registers = self.lock();
        let taken = registers.take_output(chunk);
        registers.output_awaited = taken == 0;
        taken
    }

    /// Puts what fits of `input` into the receive FIFO, gives the number of bytes. If that is not
    /// all, [`Self::wake_event`] is written when there is room. Called by the console thread.
    pub(crate) fn enqueue(&self, input: &[u8]) -> usize {
        let mut registers = self.lock();
        let room = registers.uart.fifo_capacity();
        // Errors: a full FIFO takes nothing, and a failed interrupt leaves the bytes in it.
        let _ = registers.uart.enqueue_raw_bytes(input);
        let taken = room.saturating_sub(registers.uart.fifo_capacity());
        registers.input_awaited = taken < input.len();
        taken
    }

    /// Nobody will drain the ring: what is in it is lost (the number of bytes is given back), as
    /// is, and counted as overrun, what the guest writes from now on. The guest is not held up.
    pub(crate) fn abandon_output(&self) -> usize {
        let mut registers = self.lock();
        let ring = registers.uart.writer_mut();
        ring.abandoned = true;
        let lost = ring.bytes.len().saturating_add(registers.tx_fifo.len());
        registers.uart.writer_mut().bytes.clear();
        registers.tx_fifo.clear();
        registers.transmitter_ready();
        lost
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        // Nothing in here panics; were it to, the registers would still be valid.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the eventfd's counter is full, and then it is readable already.
        let _ = self.wake.write(1);
    }
}

/// The console thread's side, for fuzz targets.
#[cfg(feature = "fuzzing")]
impl Serial {
    /// What the console thread does when the port wakes it.
    pub fn fuzz_output(&self, chunk: &mut [u8]) -> usize {
        self.take_output(chunk)
    }

    /// What the console thread does with a byte that is typed.
    pub fn fuzz_input(&self, input: &[u8]) -> usize {
        self.enqueue(input)
    }

    /// What the console thread does when its output is gone.
    pub fn fuzz_abandon(&self) -> usize {
        self.abandon_output()
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        let offset = register(offset)?;
        let mut registers = self.lock();
        *byte = registers.read(offset);
        let wake = registers.input_awaited && registers.uart.fifo_capacity() >= RX_ROOM;
        if wake {
            registers.input_awaited = false;
        }
        drop(registers);
        if wake {
            self.wake();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[value] = data else {
            return Err(Misuse::Width);
        };
        let offset = register(offset)?;
        let mut registers = self.lock();
        if !registers.write(offset, value) {
            self.overruns.fetch_add(1, Relaxed);
        }
        let output = registers.output_awaited && !registers.uart.writer().bytes.is_empty();
        // In loop-back mode the receiver takes nothing from outside: try again when it ends.
        let input = registers.input_awaited && offset == MCR;
        registers.output_awaited &= !output;
        registers.input_awaited &= !input;
        drop(registers);
        if output || input {
            self.wake();
        }
        Ok(Effect::None)
    }
}

fn register(offset: u64) -> Result<u8, Misuse> {
    match u8::try_from(offset) {
        Ok(offset @ 0..=7) => Ok(offset),
        _ => Err(Misuse::Register),
    }
}

impl Registers {
    fn read(&mut self, offset: u8) -> u8 {
        match offset {
            IER if !self.divisor_latch() => self.ier,
            IIR if self.busy => match self.uart.read(IIR) & !IIR_THRE {
                iir if iir & IIR_ID == 0 => iir | IIR_NONE,
                iir => iir,
            },
            LSR if self.busy => self.uart.read(LSR) & !LSR_IDLE,
            _ => self.uart.read(offset),
        }
    }

    /// Gives false when a byte was lost.
    fn write(&mut self, offset: u8, value: u8) -> bool {
        match offset {
            DATA if !self.divisor_latch() && self.uart.read(MCR) & MCR_LOOP == 0 => {
                return self.transmit(value);
            }
            IER if !self.divisor_latch() => {
                self.ier = value & 0x0F;
                self.enable_interrupts();
            }
            // The ring takes everything; what remains is a full interrupt counter, and then the
            // interrupt is pending already.
            _ => drop(self.uart.write(offset, value)),
        }
        true
    }

    fn transmit(&mut self, value: u8) -> bool {
        if self.uart.writer().abandoned {
            // Raises the interrupt; the ring forgets the byte.
            let _ = self.uart.write(DATA, value);
            return false;
        }
        if self.busy {
            let room = self.tx_fifo.len() < TX_FIFO_BYTES;
            if room {
                self.tx_fifo.push_back(value);
            }
            return room;
        }
        if self.uart.writer().bytes.len() >= HIGH_WATER {
            // This byte is the first that waits.
            self.busy = true;
            self.enable_interrupts();
            self.tx_fifo.push_back(value);
        } else {
            let _ = self.uart.write(DATA, value);
        }
        true
    }

    fn take_output(&mut self, chunk: &mut [u8]) -> usize {
        let ring = &mut self.uart.writer_mut().bytes;
        let mut taken = 0usize;
        // Twice at most: a ring is two slices.
        while let Some(rest) = chunk.get_mut(taken..).filter(|rest| !rest.is_empty()) {
            match ring.read(rest) {
                Ok(0) | Err(_) => break,
                Ok(n) => taken = taken.saturating_add(n),
            }
        }
        if self.busy && ring.len() <= LOW_WATER {
            ring.append(&mut self.tx_fifo);
            self.transmitter_ready();
        }
        taken
    }

    fn transmitter_ready(&mut self) {
        self.busy = false;
        self.enable_interrupts();
    }

    /// Gives the UART the interrupt enable register that holds now; it raises what is pending.
    fn enable_interrupts(&mut self) {
        let masked = if self.busy { IER_THRE } else { 0 };
        let lcr = self.uart.read(LCR);
        // The register hides behind the divisor latch.
        let _ = self.uart.write(LCR, lcr & !LCR_DLAB);
        let _ = self.uart.write(IER, self.ier & !masked);
        let _ = self.uart.write(LCR, lcr);
    }

    fn divisor_latch(&mut self) -> bool {
        self.uart.read(LCR) & LCR_DLAB != 0
    }
}

#[cfg(test)]
mod tests;
