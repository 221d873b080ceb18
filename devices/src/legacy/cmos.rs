//! The real-time clock of a PC (Motorola MC146818) at ports 70h and 71h: the host's time in UTC.
//!
//! Kernels without kvm-clock read it at boot. It shows the host's clock and cannot be set: writes
//! to the time are accepted and forgotten, as are writes to the RAM behind it, which reads zero.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::bus::{BusDevice, Effect, Misuse};

/// The index port; the data port follows.
pub const CMOS_PORT: u16 = 0x70;
/// Ports of the device.
pub const CMOS_BYTES: u64 = 2;

/// Bit 7 of the index port disables NMIs; here it does nothing.
const INDEX_MASK: u8 = 0x7F;
/// Divider on, 1024 Hz; update-in-progress (bit 7) is never set.
const REGISTER_A: u8 = 0x26;
const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
/// Valid RAM and time.
const REGISTER_D: u8 = 0x80;
const HOUR_PM: u8 = 0x80;

/// The device at [`CMOS_PORT`].
#[derive(Debug)]
pub struct Cmos {
    index: AtomicU8,
    /// Register B: how the guest wants its numbers.
    format: AtomicU8,
    now_s: fn() -> u64,
}

impl Default for Cmos {
    fn default() -> Self {
        Cmos::with_clock(|| {
            let ns = observe::clock::realtime_ns();
            ns.checked_div(1_000_000_000).unwrap_or(0)
        })
    }
}

/// A moment in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Utc {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    /// In the century.
    year: u8,
    century: u8,
}

impl Cmos {
    /// A clock that shows `now_s`, in seconds since 1970.
    pub fn with_clock(now_s: fn() -> u64) -> Self {
        Cmos {
            index: AtomicU8::new(0),
            format: AtomicU8::new(B_24_HOURS),
            now_s,
        }
    }

    fn register(&self, index: u8) -> u8 {
        let format = self.format.load(Relaxed);
        let number = |n: u8| if format & B_BINARY != 0 { n } else { bcd(n) };
        let now = utc((self.now_s)());
        match index {
            0x00 => number(now.second),
            0x02 => number(now.minute),
            0x04 if format & B_24_HOURS != 0 => number(now.hour),
            0x04 => {
                let pm = if now.hour >= 12 { HOUR_PM } else { 0 };
                match now.hour.checked_rem(12) {
                    Some(0) | None => number(12) | pm,
                    Some(hour) => number(hour) | pm,
                }
            }
            0x06 => number(now.weekday),
            0x07 => number(now.day),
            0x08 => number(now.month),
            0x09 => number(now.year),
            0x0A => REGISTER_A,
            0x0B => format,
            0x0D => REGISTER_D,
            0x32 => number(now.century),
            _ => 0,
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        let index = self.index.load(Relaxed);
        *byte = match offset {
            0 => index,
            1 => self.register(index),
            _ => return Err(Misuse::Register),
        };
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[value] = data else {
            return Err(Misuse::Width);
        };
        match offset {
            0 => self.index.store(value & INDEX_MASK, Relaxed),
            1 if self.index.load(Relaxed) == 0x0B => {
                // No interrupt source is implemented: only the format bits stay.
                self.format.store(value & (B_24_HOURS | B_BINARY), Relaxed);
            }
            1 => {}
            _ => return Err(Misuse::Register),
        }
        Ok(Effect::None)
    }
}

/// Binary-coded decimal of a number below 100.
#[allow(clippy::arithmetic_side_effects)] // Constant divisors; 9 * 16 + 9 fits for n < 100.
fn bcd(n: u8) -> u8 {
    ((n / 10 % 10) << 4) | (n % 10)
}

/// The Gregorian calendar date of `seconds` since 1970 (era arithmetic over 400-year cycles that
/// begin in March, so that the leap day comes last).
#[allow(clippy::arithmetic_side_effects)] // u64 seconds / 86400 leaves room for every constant.
fn utc(seconds: u64) -> Utc {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // 719468 days from 0000-03-01 to 1970-01-01.
    let shifted = days + 719_468;
    let (era, in_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let day_of_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Utc {
        second: (rest % 60) as u8,
        minute: (rest / 60 % 60) as u8,
        hour: (rest / 3600) as u8,
        // 1970-01-01 was a Thursday.
        weekday: ((days + 4) % 7 + 1) as u8,
        day: day as u8,
        month: month as u8,
        year: (year % 100) as u8,
        century: (year / 100 % 100) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: u64 = 1_709_251_198;

    fn read(cmos: &Cmos, index: u8) -> u8 {
        // The NMI bit must not disturb the index.
        cmos.write(0, &[index | 0x80]).unwrap();
        let mut data = [0];
        cmos.read(1, &mut data).unwrap();
        data[0]
    }

    #[test]
    fn the_time_is_bcd_in_24_hours_by_default() {
        let cmos = Cmos::with_clock(|| LEAP);
        let registers = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|i| read(&cmos, i));
        assert_eq!(registers, [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
        assert_eq!(read(&cmos, 0x0A) & 0x80, 0, "no update in progress, ever");
        assert_eq!(read(&cmos, 0x0D), 0x80);
    }

    #[test]
    fn register_b_chooses_binary_and_12_hours() {
        let cmos = Cmos::with_clock(|| LEAP);
        cmos.write(0, &[0x0B]).unwrap();
        cmos.write(1, &[0xFC]).unwrap();
        assert_eq!(read(&cmos, 0x0B), B_BINARY);
        assert_eq!(read(&cmos, 0x04), 11 | HOUR_PM);
        assert_eq!(read(&cmos, 0x00), 58);
    }

    #[test]
    fn dates_agree_with_the_calendar() {
        let date = |s| {
            let t = utc(s);
            (
                u32::from(t.century) * 100 + u32::from(t.year),
                t.month,
                t.day,
                t.weekday,
            )
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(1_735_689_599), (2024, 12, 31, 3));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2));
    }

    #[test]
    fn the_hosts_clock_is_shown() {
        let cmos = Cmos::default();
        assert!(read(&cmos, 0x32) >= 0x20);
        let mut wide = [0; 2];
        assert_eq!(cmos.read(1, &mut wide), Err(Misuse::Width));
    }
}
