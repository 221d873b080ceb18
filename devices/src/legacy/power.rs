//! The power registers of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.7 and 4.8.3.6): sleep
//! control, sleep status and the reset register, in one block of ports. It has no state.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::bus::{BusDevice, Effect, Misuse};

/// First port of the block.
pub const POWER_PORT: u16 = 0x600;
/// Ports of the block.
pub const POWER_BYTES: u64 = 8;
/// `SLEEP_CONTROL_REG` of the FADT.
pub const SLEEP_CONTROL_REGISTER: u16 = POWER_PORT;
/// `SLEEP_STATUS_REG` of the FADT.
pub const SLEEP_STATUS_REGISTER: u16 = POWER_PORT + 1;
/// `RESET_REG` of the FADT.
pub const RESET_REGISTER: u16 = POWER_PORT + 2;
/// `RESET_VALUE` of the FADT.
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYP` of S5, for the DSDT's `_S5_` package.
pub const S5_SLEEP_TYPE: u8 = 5;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u32 = 2;
const SLP_TYP_MASK: u8 = 0b111;

/// The device at [`POWER_PORT`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Power;

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        if offset > 2 {
            return Err(Misuse::Register);
        }
        // Nothing ever wakes: WAK_STS stays clear, and control bits read as zero.
        *byte = 0;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[value] = data else {
            return Err(Misuse::Width);
        };
        let sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
        match offset {
            0 if value & SLP_EN == 0 => Ok(Effect::None),
            0 if sleep_type == S5_SLEEP_TYPE => Ok(Effect::PowerOff),
            1 => Ok(Effect::None),
            2 if value == RESET_VALUE => Ok(Effect::Reset),
            0 | 2 => Err(Misuse::State),
            _ => Err(Misuse::Register),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_with_sleep_enable_powers_off() {
        let off = (S5_SLEEP_TYPE << 2) | (1 << 5);
        assert_eq!(Power.write(0, &[off]), Ok(Effect::PowerOff));
        assert_eq!(Power.write(0, &[S5_SLEEP_TYPE << 2]), Ok(Effect::None));
        assert_eq!(Power.write(0, &[(3 << 2) | (1 << 5)]), Err(Misuse::State));
    }

    #[test]
    fn the_reset_register_takes_its_value_alone() {
        assert_eq!(Power.write(2, &[RESET_VALUE]), Ok(Effect::Reset));
        assert_eq!(Power.write(2, &[1]), Err(Misuse::State));
        assert_eq!(Power.write(2, &[6, 0]), Err(Misuse::Width));
        assert_eq!(Power.write(3, &[6]), Err(Misuse::Register));
    }

    #[test]
    fn the_status_reads_zero() {
        let mut data = [0xAA];
        assert_eq!(Power.read(1, &mut data), Ok(()));
        assert_eq!(data, [0]);
        assert_eq!(Power.read(7, &mut data), Err(Misuse::Register));
    }
}
