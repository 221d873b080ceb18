//! Names of rows that are found out while they are counted: a reason and an address in one word.

/// A word that names a row of a table, written by the table's owner: a gauge column with the name
/// of its own label. `reason | flags | address << 8`, where `reason` is a row of the section's
/// label `reason`; 0 for a row that is not in use. Part of the black box's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceWord(pub u64);

/// The row is in use.
const USED: u64 = 0x80;
/// There is no address.
const NOWHERE: u64 = 0x40;
/// The reason of the row for all that found no place.
const OTHERS: u64 = 0x3F;

impl PlaceWord {
    /// The row for all that found no place.
    pub const ELSEWHERE: PlaceWord = PlaceWord(OTHERS | NOWHERE | USED);

    /// A reason below 63, at an address below 2^56.
    #[inline]
    pub const fn at(reason: u8, address: u64) -> PlaceWord {
        PlaceWord(reason as u64 | USED | address << 8)
    }

    /// A reason below 63 that has no address.
    #[inline]
    pub const fn nowhere(reason: u8) -> PlaceWord {
        PlaceWord(reason as u64 | NOWHERE | USED)
    }

    /// The row's name: `io_out 0x80`, `shutdown` or `elsewhere`; `None` for one that is not in
    /// use. `reasons` are the names of the reasons; one without a name is shown by its number.
    pub fn name(self, reasons: &[String]) -> Option<String> {
        let PlaceWord(word) = self;
        if word & USED == 0 {
            return None;
        }
        let number = word & OTHERS;
        let known = usize::try_from(number).ok().and_then(|at| reasons.get(at));
        let reason = match known {
            _ if number == OTHERS => "elsewhere".to_owned(),
            Some(name) if !name.is_empty() => name.clone(),
            _ => number.to_string(),
        };
        if word & NOWHERE != 0 {
            return Some(reason);
        }
        Some(format!("{reason} {:#x}", word >> 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_called_by_its_reason_and_address() {
        let reasons = ["io_in".to_owned(), "io_out".to_owned(), String::new()];
        let name = |word: PlaceWord| word.name(&reasons);
        assert_eq!(name(PlaceWord::at(0, 0)).as_deref(), Some("io_in 0x0"));
        assert_eq!(name(PlaceWord::at(1, 0x80)).as_deref(), Some("io_out 0x80"));
        let highest = PlaceWord::at(1, (1 << 56) - 1);
        assert_eq!(name(highest).as_deref(), Some("io_out 0xffffffffffffff"));
        assert_eq!(name(PlaceWord::nowhere(1)).as_deref(), Some("io_out"));
        assert_eq!(name(PlaceWord::nowhere(2)).as_deref(), Some("2"));
        assert_eq!(name(PlaceWord::at(9, 1)).as_deref(), Some("9 0x1"));
        assert_eq!(name(PlaceWord::ELSEWHERE).as_deref(), Some("elsewhere"));
        assert_eq!(name(PlaceWord(0)), None);
    }
}
