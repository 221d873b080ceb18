//! KVM's binary statistics: what the host's kernel offers, found out from its own description
//! (Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD).
//!
//! The description is parsed here, in a pure function that trusts none of its numbers.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;
/// Bytes of a descriptor before its name.
const DESCRIPTOR_BYTES: usize = 16;
/// No kernel has as many, nor as much.
const MOST_DESCRIPTORS: usize = 1024;
const MOST_NAME_BYTES: usize = 256;
const MOST_VALUES: usize = 1024;

/// How a statistic behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Cumulative,
    /// A value of now, or the highest so far.
    Level,
    /// A histogram; each value is a bucket that only goes up.
    Histogram,
}

/// One statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// KVM's name of it, which ends in its unit if it has one.
    pub name: String,
    /// How it behaves.
    pub kind: Kind,
    /// Where its values begin, in bytes from the start of the data.
    pub offset: usize,
    /// Values of 8 bytes.
    pub values: usize,
}

/// Where the parts of a statistics file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    name_bytes: usize,
    descriptors: usize,
    /// Where the descriptors begin in the file.
    pub descriptors_at: u64,
    /// Where the data begins in the file.
    pub data_at: u64,
}

impl Header {
    /// Reads the header (struct kvm_stats_header). `None` if it makes no sense.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let name_bytes = usize::try_from(u32_at(bytes, 4)?).ok()?;
        let descriptors = usize::try_from(u32_at(bytes, 8)?).ok()?;
        let sane = name_bytes <= MOST_NAME_BYTES && descriptors <= MOST_DESCRIPTORS;
        let (descriptors_at, data_at) = (u32_at(bytes, 16)?, u32_at(bytes, 20)?);
        sane.then_some(Header {
            name_bytes,
            descriptors,
            descriptors_at: u64::from(descriptors_at),
            data_at: u64::from(data_at),
        })
    }

    /// Bytes of all descriptors.
    pub fn descriptor_bytes(&self) -> usize {
        self.each_bytes().saturating_mul(self.descriptors)
    }

    fn each_bytes(&self) -> usize {
        self.name_bytes.saturating_add(DESCRIPTOR_BYTES)
    }

    /// Reads the descriptors (struct kvm_stats_desc). What is of a kind that is not known, or has
    /// no name or no end, is left out.
    pub fn statistics(&self, bytes: &[u8]) -> Vec<Statistic> {
        bytes
            .chunks_exact(self.each_bytes())
            .take(self.descriptors)
            .filter_map(statistic)
            .collect()
    }
}

fn statistic(bytes: &[u8]) -> Option<Statistic> {
    let kind = match u32_at(bytes, 0)? & 0xF {
        0 => Kind::Cumulative,
        1 | 2 => Kind::Level,
        3 | 4 => Kind::Histogram,
        _ => return None,
    };
    let values = usize::from(u16::from_le_bytes(*bytes.get(6..)?.first_chunk()?));
    let offset = usize::try_from(u32_at(bytes, 8)?).ok()?;
    let name = bytes
        .get(DESCRIPTOR_BYTES..)?
        .split(|byte| *byte == 0)
        .next()?;
    let name = std::str::from_utf8(name).ok()?;
    let sane = !name.is_empty()
        && (1..=MOST_VALUES).contains(&values)
        && offset <= MOST_VALUES.saturating_mul(8 * MOST_DESCRIPTORS)
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then(|| Statistic {
        name: name.to_owned(),
        kind,
        offset,
        values,
    })
}

/// The `index`-th value of a statistic in the data, if the data is long enough.
pub fn value(data: &[u8], statistic: &Statistic, index: usize) -> Option<u64> {
    let at = statistic.offset.checked_add(index.checked_mul(8)?)?;
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor(flags: u32, values: u16, offset: u32, name: &str) -> Vec<u8> {
        let mut bytes = flags.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(values.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name.as_bytes());
        bytes.resize(DESCRIPTOR_BYTES + 48, 0);
        bytes
    }

    fn header(descriptors: u32) -> Vec<u8> {
        [0, 48, descriptors, 24, 72, 4096]
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect()
    }

    #[test]
    fn statistics_are_found_by_their_descriptions() {
        let header = Header::parse(&header(4)).unwrap();
        assert_eq!((header.descriptors_at, header.data_at), (72, 4096));
        let descriptors = [
            descriptor(0, 1, 0, "exits"),
            descriptor(0x41, 1, 8, "blocking"),
            descriptor(4, 3, 16, "halt_wait_hist"),
            descriptor(9, 1, 40, "of_a_kind_to_come"),
        ]
        .concat();
        assert_eq!(header.descriptor_bytes(), descriptors.len());
        let found = header.statistics(&descriptors);
        let names: Vec<_> = found.iter().map(|one| (&one.name[..], one.kind)).collect();
        let expected = [
            ("exits", Kind::Cumulative),
            ("blocking", Kind::Level),
            ("halt_wait_hist", Kind::Histogram),
        ];
        assert_eq!(names, expected);
        let data: Vec<u8> = (10u64..15).flat_map(u64::to_le_bytes).collect();
        assert_eq!(value(&data, &found[0], 0), Some(10));
        assert_eq!(value(&data, &found[2], 2), Some(14));
        assert_eq!(value(&data, &found[2], 3), None);
    }

    proptest! {
        #[test]
        fn no_description_makes_it_panic(
            head in proptest::collection::vec(any::<u8>(), 0..40),
            rest in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            if let Some(header) = Header::parse(&head) {
                for statistic in header.statistics(&rest) {
                    for index in [0, 1, usize::MAX] {
                        let _ = value(&rest, &statistic, index);
                    }
                }
            }
            let known = Header::parse(&self::header(8)).unwrap();
            let _ = known.statistics(&rest);
        }
    }
}
