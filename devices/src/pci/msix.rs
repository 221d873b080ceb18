//! The table of MSI-X (PCI 3.0, 6.8.2), as a state machine: what a driver writes comes in, and
//! each vector says whether, where to and with what it may be sent.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use crate::bus::Misuse;

/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of an entry.
pub const ENTRY_BYTES: u64 = 16;
/// Most vectors of a table (the field has 11 bits).
pub const MAX_VECTORS: u16 = 2048;
/// Message control: the bits that a driver may change.
pub const CONTROL_BITS: u16 = ENABLE | FUNCTION_MASK;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASK: u32 = 1;

/// What a vector does with an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorState {
    /// MSI-X is off: nothing.
    Off,
    /// It keeps it, as its pending bit.
    Masked,
    /// It sends `data` to `address`.
    Open {
        /// Where to.
        address: u64,
        /// What.
        data: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: [u32; 2],
    data: u32,
    control: u32,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsixTable {
    entries: Vec<Entry>,
    control: u16,
}

impl MsixTable {
    /// The table of a function after reset: off, and every vector masked.
    pub fn new(vectors: u16) -> Self {
        let entry = Entry {
            address: [0; 2],
            data: 0,
            control: VECTOR_MASK,
        };
        MsixTable {
            entries: vec![entry; usize::from(vectors.min(MAX_VECTORS))],
            control: 0,
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }

    /// Takes the message control word of the capability. True if it changed anything.
    pub fn set_control(&mut self, word: u16) -> bool {
        let word = word & CONTROL_BITS;
        std::mem::replace(&mut self.control, word) != word
    }

    /// Reads whole double words, one or two of them; those past the end are zero.
    ///
    /// # Errors
    /// [`Misuse::Width`] for another width or place.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        check(offset, data.len())?;
        for (place, to) in (0..2u64).zip(data.chunks_exact_mut(4)) {
            let at = offset.saturating_add(place.wrapping_mul(4));
            to.copy_from_slice(&self.double_word(at).to_le_bytes());
        }
        Ok(())
    }

    fn double_word(&self, offset: u64) -> u32 {
        let index = usize::try_from(offset / ENTRY_BYTES).unwrap_or(usize::MAX);
        let Some(entry) = self.entries.get(index) else {
            return 0;
        };
        let [low, high] = entry.address;
        match offset % ENTRY_BYTES {
            0 => low,
            4 => high,
            8 => entry.data,
            _ => entry.control,
        }
    }

    /// Writes whole double words, one or two of them, and gives the vector that they belong to.
    ///
    /// # Errors
    /// [`Misuse::Width`] for another width or place, [`Misuse::Register`] past the end.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<u16, Misuse> {
        check(offset, data.len())?;
        let index = usize::try_from(offset / ENTRY_BYTES).unwrap_or(usize::MAX);
        let entry = self.entries.get_mut(index).ok_or(Misuse::Register)?;
        for (place, from) in (0..2u64).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes(from.try_into().unwrap_or_default());
            let [low, high] = &mut entry.address;
            match (offset % ENTRY_BYTES).saturating_add(place.wrapping_mul(4)) {
                // The lowest two bits of an address are zero.
                0 => *low = value & !3,
                4 => *high = value,
                8 => entry.data = value,
                _ => entry.control = value & VECTOR_MASK,
            }
        }
        u16::try_from(index).map_err(|_| Misuse::Register)
    }

    /// What `vector` does; one that does not exist does nothing.
    pub fn state(&self, vector: u16) -> VectorState {
        let Some(entry) = self.entries.get(usize::from(vector)) else {
            return VectorState::Off;
        };
        let [low, high] = entry.address;
        if self.control & ENABLE == 0 {
            VectorState::Off
        } else if self.control & FUNCTION_MASK != 0 || entry.control & VECTOR_MASK != 0 {
            VectorState::Masked
        } else {
            VectorState::Open {
                address: (u64::from(high) << 32) | u64::from(low),
                data: entry.data,
            }
        }
    }
}

fn check(offset: u64, width: usize) -> Result<(), Misuse> {
    let fits = matches!(width, 4 | 8) && offset.is_multiple_of(width as u64);
    if fits { Ok(()) } else { Err(Misuse::Width) }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::*;

    fn write(table: &mut MsixTable, offset: u64, value: u32) {
        table.write(offset, &value.to_le_bytes()).unwrap();
    }

    #[test]
    fn a_vector_is_open_when_all_three_masks_are_off() {
        let mut table = MsixTable::new(2);
        assert_eq!(table.state(1), VectorState::Off);
        for (offset, value) in [(16, 0xFEE0_1003), (20, 1), (24, 0x41), (28, 0xFFFF_FFFE)] {
            write(&mut table, offset, value);
        }
        assert_eq!(table.state(1), VectorState::Off);
        assert!(table.set_control(ENABLE | FUNCTION_MASK));
        assert_eq!(table.state(1), VectorState::Masked);
        assert!(table.set_control(ENABLE));
        let open = VectorState::Open {
            address: 0x1_FEE0_1000,
            data: 0x41,
        };
        assert_eq!(table.state(1), open);
        assert_eq!(table.state(0), VectorState::Masked);
        assert_eq!(table.state(2), VectorState::Off);
        assert!(!table.set_control(ENABLE | 0x3FFF));
        write(&mut table, 28, 1);
        assert_eq!(table.state(1), VectorState::Masked);
    }

    #[test]
    fn double_words_come_one_or_two_at_a_time() {
        let mut table = MsixTable::new(1);
        let both = 0x0000_0002_FEE0_0000u64;
        assert_eq!(table.write(0, &both.to_le_bytes()), Ok(0));
        assert_eq!(table.write(8, &0x31u64.to_le_bytes()), Ok(0));
        let mut data = [0; 8];
        table.read(0, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), both);
        table.read(8, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), 0x31);
    }

    #[test]
    fn odd_accesses_and_those_past_the_end_change_nothing() {
        let mut table = MsixTable::new(1);
        let fresh = table.clone();
        for (offset, width) in [(1, 4), (4, 8), (0, 2), (0, 1), (0, 0)] {
            let refused = table.write(offset, &vec![0xFF; width]);
            assert_eq!(refused, Err(Misuse::Width), "{offset} {width}");
            let refused = table.read(offset, &mut vec![0; width]);
            assert_eq!(refused, Err(Misuse::Width), "{offset} {width}");
        }
        for offset in [16, u64::MAX - 3] {
            assert_eq!(table.write(offset, &[0xFF; 4]), Err(Misuse::Register));
            let mut data = [0xFF; 4];
            table.read(offset, &mut data).unwrap();
            assert_eq!(data, [0; 4]);
        }
        assert_eq!(table, fresh);
    }
}
