//! The first 256 bytes of a function's configuration space (PCI 3.0, chapter 6): bytes, and a mask
//! of the bits that a driver may change.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::bus::Misuse;

/// Bytes that a function has; beyond them, all reads as zero.
pub const BYTES: usize = 256;
/// Command: memory space enable, bus master, INTx disable are a driver's.
const COMMAND: usize = 0x04;
const COMMAND_BITS: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const MEMORY_ENABLE: u16 = 1 << 1;
const STATUS: usize = 0x06;
/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0C;
const BAR0: usize = 0x10;
const BAR1: usize = 0x14;
const SUBSYSTEM: usize = 0x2C;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
/// The first capability.
const FIRST_CAPABILITY: usize = 0x40;
/// A memory BAR of 64 bits, not prefetchable.
const BAR_KIND: u32 = 0b100;

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Vendor and device of the subsystem.
    pub subsystem: (u16, u16),
}

/// The function's only BAR: registers 0 and 1, 64 bits of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it lies, aligned to its size.
    pub address: u64,
    /// Its size, a power of two of at least 16.
    pub bytes: u64,
}

impl Bar {
    /// What register 0 and 1 show.
    fn shown(self) -> [u32; 2] {
        [(self.address as u32) | BAR_KIND, high(self.address)]
    }

    /// What they show after all ones were written to them.
    fn sizing(self) -> [u32; 2] {
        let mask = self.bytes.wrapping_neg();
        [(mask as u32) | BAR_KIND, high(mask)]
    }
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRegisters {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    bar: Option<Bar>,
    /// Where the next capability goes, and where the one before says so.
    next: usize,
    link: usize,
}

impl ConfigRegisters {
    /// A function without capabilities.
    pub fn new(identity: Identity, bar: Option<Bar>) -> Self {
        let mut new = ConfigRegisters {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bar,
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        let pair = |(low, high): (u16, u16)| (u32::from(high) << 16) | u32::from(low);
        let class = (identity.class << 8) | u32::from(identity.revision);
        put(&mut new.bytes, 0, &pair(identity.id).to_le_bytes());
        put(&mut new.bytes, REVISION, &class.to_le_bytes());
        put(
            &mut new.bytes,
            SUBSYSTEM,
            &pair(identity.subsystem).to_le_bytes(),
        );
        put(&mut new.writable, COMMAND, &COMMAND_BITS.to_le_bytes());
        put(&mut new.writable, CACHE_LINE, &[0xFF]);
        put(&mut new.writable, INTERRUPT_LINE, &[0xFF]);
        if let Some(bar) = bar {
            let [low, high] = bar.shown();
            put(&mut new.bytes, BAR0, &low.to_le_bytes());
            put(&mut new.bytes, BAR1, &high.to_le_bytes());
            // Firmware leaves a device that has been given its place enabled.
            put(&mut new.bytes, COMMAND, &MEMORY_ENABLE.to_le_bytes());
        }
        new
    }

    /// Adds a capability: `body` follows its id and its link, `writable` are the bits of the body
    /// that a driver may change. Gives the offset of the capability; `None` if it does not fit.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let at = self.next;
        let inside = at.checked_add(2)?;
        let end = inside
            .checked_add(body.len())?
            .checked_next_multiple_of(4)?;
        if end > BYTES || writable.len() > body.len() {
            return None;
        }
        put(&mut self.bytes, at, &[id, 0]);
        put(&mut self.bytes, inside, body);
        put(&mut self.writable, inside, writable);
        let link = u8::try_from(at).ok()?;
        put(&mut self.bytes, self.link, &[link]);
        put(&mut self.bytes, STATUS, &HAS_CAPABILITIES.to_le_bytes());
        (self.next, self.link) = (end, at.checked_add(1)?);
        u16::try_from(at).ok()
    }

    /// Reads 1, 2 or 4 bytes, at their natural place.
    ///
    /// # Errors
    /// [`Misuse::Width`] for another width or place.
    pub fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), Misuse> {
        check(offset, data.len())?;
        for (to, at) in data.iter_mut().zip(usize::from(offset)..) {
            *to = self.bytes.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    /// Writes 1, 2 or 4 bytes, at their natural place. Bits that are not a driver's stay.
    ///
    /// # Errors
    /// [`Misuse::Width`] as above, or for a part of a BAR; [`Misuse::State`] for an address that
    /// the BAR does not have: it then shows its own.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), Misuse> {
        check(offset, data.len())?;
        let at = usize::from(offset);
        if let Some(bar) = self.bar
            && (BAR0..SUBSYSTEM).contains(&at)
            && at < BAR1.saturating_add(4)
        {
            let value = <[u8; 4]>::try_from(data).map_err(|_| Misuse::Width)?;
            return self.write_bar(bar, at, u32::from_le_bytes(value));
        }
        let places = self.bytes.iter_mut().zip(&self.writable).skip(at);
        for ((byte, mask), new) in places.zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
        Ok(())
    }

    fn write_bar(&mut self, bar: Bar, at: usize, value: u32) -> Result<(), Misuse> {
        let (shown, sizing) = match (bar.shown(), bar.sizing()) {
            ([low, _], [mask, _]) if at == BAR0 => (low, mask),
            ([_, high], [_, mask]) => (high, mask),
        };
        let seen = if value == u32::MAX { sizing } else { shown };
        put(&mut self.bytes, at, &seen.to_le_bytes());
        // The low bits say what the BAR is and are not compared.
        let address = |value: u32| {
            if at == BAR0 {
                value & sizing & !0xF
            } else {
                value
            }
        };
        if value != u32::MAX && address(value) != address(shown) {
            return Err(Misuse::State);
        }
        Ok(())
    }

    /// A little-endian word, as the driver left it.
    pub fn word(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        // An odd place has no word.
        let _ = self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Four bytes, as the driver left them.
    pub fn double_word(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        let _ = self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Whether the driver lets the function answer at its BAR.
    pub fn memory_is_enabled(&self) -> bool {
        self.word(COMMAND as u16) & MEMORY_ENABLE != 0
    }
}

/// Copies what fits.
fn put(bytes: &mut [u8; BYTES], at: usize, from: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

fn check(offset: u16, width: usize) -> Result<(), Misuse> {
    let fits = matches!(width, 1 | 2 | 4) && usize::from(offset).is_multiple_of(width);
    if fits { Ok(()) } else { Err(Misuse::Width) }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
