//! The thresholds that hold, in the black box: who reads it judges by the same ones as the watcher.

use std::mem::offset_of;

use super::{Slot, THRESHOLDS, Thresholds};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::Gauge;
use crate::clock::Clock;
use crate::reader::Snapshot;
use crate::schema::{Field, Section, Unit};

/// A value is written in millionths of what its name says: a time is nanoseconds then.
const MILLION: u64 = 1_000_000;

/// The section `thresholds`. Written by the watcher.
#[derive(Debug)]
#[repr(C)]
pub struct ThresholdsBlock {
    /// When they were last written, in ticks; 0 before.
    set_at: Gauge,
    millionths: [Gauge; THRESHOLDS],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for ThresholdsBlock {
    const KIND: &'static str = "thresholds";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("set_at", Unit::Ticks, offset_of!(ThresholdsBlock, set_at), "When the VM began to be judged by these thresholds; 0 before."),
        Field::gauge("millionths", Unit::None, offset_of!(ThresholdsBlock, millionths), "The threshold, in millionths of what its name says.").column(THRESHOLDS, size_of::<Gauge>(), "threshold"),
    ];
}

/// Writes the section. Its owner is the watcher.
pub struct ThresholdsWriter(Block<ThresholdsBlock>);

impl ThresholdsWriter {
    /// With a section of its own.
    ///
    /// # Errors
    /// The black box is full.
    pub fn new(black_box: &mut BlackBox) -> Result<Self, BlackBoxError> {
        let names = Thresholds::ROWS.map(|(name, _)| name.to_owned());
        let block = black_box.section(ThresholdsBlock::KIND, &[("threshold", &names)])?;
        Ok(ThresholdsWriter(block))
    }

    /// The VM is judged by these from now on.
    pub fn write(&self, thresholds: &Thresholds) {
        let mut thresholds = thresholds.clone();
        // Who reads meanwhile takes the defaults, and no mixture.
        self.0.set_at.set(0);
        for ((_, slot), gauge) in Thresholds::ROWS.iter().zip(&self.0.millionths) {
            gauge.set(match slot(&mut thresholds) {
                Slot::Time(ns, _) => *ns,
                // None is 0: that would be found everywhere.
                Slot::Share(real) | Slot::Rate(real) => ((*real * 1e6).round() as u64).max(1),
                Slot::Bytes(bytes) => bytes.saturating_mul(MILLION),
            });
        }
        self.0.set_at.set(Clock::process().ticks());
    }
}

impl Thresholds {
    /// Those by which the VM of a black box is judged, or was: the defaults for what it does not tell,
    /// as older ones do not.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut thresholds = Thresholds::default();
        let section = snapshot.section(ThresholdsBlock::KIND);
        let Some(section) = section.filter(|section| section.gauge("set_at") > Some(0)) else {
            return thresholds;
        };
        for (name, slot) in Thresholds::ROWS {
            let value = section.table("millionths", name);
            let Some(value) = value.and_then(|value| value.as_u64()) else {
                continue;
            };
            match slot(&mut thresholds) {
                Slot::Time(ns, _) => *ns = value,
                Slot::Share(real) | Slot::Rate(real) => *real = value.max(1) as f64 / 1e6,
                Slot::Bytes(bytes) => *bytes = value / MILLION,
            }
        }
        thresholds
    }

    /// The names of those that are not the defaults, with what they are.
    pub fn changed(&self) -> Vec<(&'static str, String)> {
        let (mut these, mut usual) = (self.clone(), Thresholds::default());
        let told = |slot: Slot<'_>| match slot {
            Slot::Time(ns, _) => (*ns as f64 / 1e6).to_string(),
            Slot::Share(real) | Slot::Rate(real) => real.to_string(),
            Slot::Bytes(bytes) => bytes.to_string(),
        };
        let rows = Thresholds::ROWS.into_iter().map(|(name, slot)| {
            let (this, usual) = (told(slot(&mut these)), told(slot(&mut usual)));
            (name, this, usual)
        });
        rows.filter(|(_, this, usual)| this != usual)
            .map(|(name, this, _)| (name, this))
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::blackbox::Meta;
    use crate::reader::tests::snapshot;

    fn empty() -> BlackBox {
        let meta = Meta {
            vm_id: "t".to_owned(),
            version: String::new(),
        };
        BlackBox::anonymous(1 << 16, &meta).unwrap()
    }

    #[test]
    fn what_was_set_is_read_from_the_black_box() {
        let mut black_box = empty();
        assert_eq!(Thresholds::of(&snapshot(&black_box)), Thresholds::default());
        let writer = ThresholdsWriter::new(&mut black_box).unwrap();
        // It is there, and nothing was set.
        assert_eq!(Thresholds::of(&snapshot(&black_box)), Thresholds::default());
        let mut set = Thresholds::default();
        for (number, (_, slot)) in (1_u32..).zip(Thresholds::ROWS) {
            match slot(&mut set) {
                Slot::Time(value, _) | Slot::Bytes(value) => *value = number.into(),
                Slot::Share(real) | Slot::Rate(real) => *real = f64::from(number) / 1000.0,
            }
        }
        writer.write(&set);
        assert_eq!(Thresholds::of(&snapshot(&black_box)), set);
        assert_eq!(set.changed().len(), THRESHOLDS);
        writer.write(&Thresholds::default());
        assert_eq!(Thresholds::of(&snapshot(&black_box)), Thresholds::default());
    }

    #[test]
    fn what_differs_is_told_by_the_names_of_the_api() {
        let mut set = Thresholds::default();
        assert_eq!(set.changed(), []);
        (set.spin_ns, set.storm_exits) = (10_000_000_000, 7.0);
        let expected = [
            ("spin_ms", "10000".to_owned()),
            ("storm_exits", "7".to_owned()),
        ];
        assert_eq!(set.changed(), expected);
    }

    #[test]
    fn a_share_is_never_none_whatever_stands_there() {
        let mut black_box = empty();
        let writer = ThresholdsWriter::new(&mut black_box).unwrap();
        let tiny = Thresholds {
            starved_share: 1e-12,
            ..Thresholds::default()
        };
        writer.write(&tiny);
        let share = || Thresholds::of(&snapshot(&black_box)).starved_share;
        assert!(share() > 0.0);
        for gauge in &writer.0.millionths {
            gauge.set(0);
        }
        assert!(share() > 0.0);
    }
}
