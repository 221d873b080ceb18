//! Ports through which firmware, boot loaders and test guests report: POST codes at 80h, and a
//! debug-exit port by which a bare-metal guest ends its machine with a number.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::bus::{BusDevice, Effect, Misuse};

/// Where POST codes go.
pub const POST_PORT: u16 = 0x80;
/// Where a test guest writes its exit code.
pub const DEBUG_EXIT_PORT: u16 = 0xF4;
/// Ports of [`DebugExit`]: a 32-bit write fits.
pub const DEBUG_EXIT_BYTES: u64 = 4;

/// Port 80h. Keeps the last code, gives it back on reads; the bus counts the writes.
#[derive(Debug, Default)]
pub struct PostCodes {
    last: AtomicU8,
}

impl PostCodes {
    /// The last code that was written, 0 if none.
    pub fn last(&self) -> u8 {
        self.last.load(Relaxed)
    }
}

impl BusDevice for PostCodes {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        *byte = self.last();
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[code] = data else {
            return Err(Misuse::Width);
        };
        self.last.store(code, Relaxed);
        Ok(Effect::None)
    }
}

/// Marks [`DebugExit::code`] as set, above the 32 bits of the code.
const EXITED: u64 = 1 << 32;

/// The debug-exit port: a write of 1, 2 or 4 bytes powers the machine off, and the embedder reads
/// the value afterwards.
#[derive(Debug, Default)]
pub struct DebugExit {
    code: AtomicU64,
}

impl DebugExit {
    /// The code that the guest wrote, `None` if it wrote none.
    pub fn code(&self) -> Option<u32> {
        let code = self.code.load(Relaxed);
        (code & EXITED != 0).then_some(code as u32)
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Misuse> {
        Err(Misuse::State)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        if offset != 0 {
            return Err(Misuse::Register);
        }
        let code = match *data {
            [a] => u32::from(a),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return Err(Misuse::Width),
        };
        self.code.store(u64::from(code) | EXITED, Relaxed);
        Ok(Effect::PowerOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_post_code_is_kept() {
        let post = PostCodes::default();
        assert_eq!(post.write(0, &[0x42]), Ok(Effect::None));
        assert_eq!(post.write(0, &[1, 2]), Err(Misuse::Width));
        let mut data = [0];
        assert_eq!(post.read(0, &mut data), Ok(()));
        assert_eq!((data, post.last()), ([0x42], 0x42));
    }

    #[test]
    fn an_exit_code_of_zero_is_told_from_none() {
        let exit = DebugExit::default();
        assert_eq!(exit.code(), None);
        assert_eq!(exit.write(1, &[1]), Err(Misuse::Register));
        assert_eq!(exit.code(), None);
        assert_eq!(exit.write(0, &[0]), Ok(Effect::PowerOff));
        assert_eq!(exit.code(), Some(0));
        assert_eq!(exit.write(0, &[1, 0, 0, 0x80]), Ok(Effect::PowerOff));
        assert_eq!(exit.code(), Some(0x8000_0001));
    }
}
