//! Values: what the bytes of a field mean.

use std::sync::Arc;

use super::directory::{ColumnView, FieldView};
use super::source::{Source, word};
use crate::cell::{BUCKETS, bucket_low};
use crate::clock::Ticks;
use crate::flight::{FLIGHT_EVENTS, FlightEvent, SLOT_BYTES, SLOTS_OFFSET};
use crate::heartbeat::Activity;
use crate::schema::Unit;
use crate::series::ROWS_OFFSET;
use crate::text::{MAX_TEXT_BYTES, TEXT_STEP};

/// How often a heartbeat that changes while it is read is read again.
const HEARTBEAT_TRIES: u32 = 8;

/// The value of one field, or of one row of a table's column.
#[derive(Clone, Debug)]
pub enum Value {
    /// A count that only goes up.
    Counter(u64),
    /// A value that goes up and down.
    Gauge(u64),
    /// A distribution.
    Histogram(Box<HistogramView>),
    /// What a thread does.
    Heartbeat(HeartbeatView),
    /// The last events of a thread.
    Flight(FlightView),
    /// The last samples of a few numbers.
    Series(SeriesView),
    /// The last bytes of what somebody said.
    Text(TextView),
    /// Words.
    Words(String),
}

impl Value {
    /// The number of a counter or gauge.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Counter(n) | Value::Gauge(n) => Some(*n),
            _ => None,
        }
    }

    /// The histogram, if it is one.
    pub fn as_histogram(&self) -> Option<&HistogramView> {
        match self {
            Value::Histogram(histogram) => Some(histogram),
            _ => None,
        }
    }
}

/// A distribution of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramView {
    /// Sum of all values; wraps at 2^64.
    pub sum: u64,
    /// The largest value.
    pub max: u64,
    /// Counts by bucket; bucket `b` holds values from [`bucket_low`]`(b)` on.
    pub buckets: Vec<u64>,
    /// What the values measure.
    pub unit: Unit,
}

impl HistogramView {
    pub(super) fn parse(bytes: &[u8], offset: usize, unit: Unit) -> Option<Self> {
        let at = |index: usize| word(bytes, offset.checked_add(index.checked_mul(8)?)?);
        Some(HistogramView {
            sum: at(0)?,
            max: at(1)?,
            buckets: (2..BUCKETS.saturating_add(2))
                .map(at)
                .collect::<Option<_>>()?,
            unit,
        })
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        let counts = self.buckets.iter();
        counts.fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Values counted that are less than `bound`, which is exact if it is a bucket's low.
    pub fn count_below(&self, bound: u64) -> u64 {
        let below = self.buckets.iter().enumerate();
        below
            .take_while(|(bucket, _)| bucket_low(*bucket) < bound)
            .fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// The value that a share `q` (0 to 1) of all values do not exceed: at most a quarter too
    /// high, never above the maximum. 0 if nothing was counted.
    pub fn quantile(&self, q: f64) -> u64 {
        let count = self.count();
        let rank = (q.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(*n);
            if seen >= rank && seen > 0 {
                let next = bucket.saturating_add(1);
                if next >= BUCKETS {
                    return self.max;
                }
                return bucket_low(next).saturating_sub(1).min(self.max);
            }
        }
        // Nothing counted, or a count so large that a float rounds it up.
        if count == 0 { 0 } else { self.max }
    }

    /// The mean, 0 if nothing was counted.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count()).unwrap_or(0)
    }
}

/// What a thread does, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatView {
    /// What it does; `None` for an activity that this version does not know.
    pub activity: Option<Activity>,
    /// The exit's or operation's number, by the owner's section kind.
    pub reason: u8,
    /// The device's number.
    pub device: u16,
    /// The port or guest physical address that is served, 0 if none.
    pub address: u64,
    /// Since when, in the writer's ticks.
    pub since_ticks: Ticks,
    /// The kernel's thread id, 0 if the thread never started.
    pub tid: u64,
    /// False if the thread was caught between two stores and stayed there (preempted, or killed):
    /// then `address` and `since_ticks` may be those of the state that it was about to enter.
    pub settled: bool,
}

impl HeartbeatView {
    /// The activity for people: `in guest`.
    pub fn activity_name(&self) -> &'static str {
        let named = Activity::ALL
            .iter()
            .find(|(a, _)| Some(*a) == self.activity);
        named.map_or("unknown", |(_, name)| name)
    }

    /// Reads the heartbeat until two readings agree and the tag fits; `None` if it is cut off.
    pub(super) fn read<S: Source>(source: &S, offset: u64) -> std::io::Result<Option<Self>> {
        let mut last = [0u8; 32];
        if source.fill(&mut last, offset)? < last.len() {
            return Ok(None);
        }
        let mut view = Self::parse(&last);
        for _ in 0..HEARTBEAT_TRIES {
            let mut again = [0u8; 32];
            if source.fill(&mut again, offset)? < again.len() {
                return Ok(None);
            }
            view = Self::parse(&again);
            if again == last && view.is_some_and(|view| view.settled) {
                return Ok(view);
            }
            last = again;
        }
        Ok(view.map(|view| HeartbeatView {
            settled: false,
            ..view
        }))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let state = word(bytes, 0)?;
        let since_ticks = word(bytes, 16)?;
        let mut activities = Activity::ALL.iter().map(|(activity, _)| *activity);
        Some(HeartbeatView {
            activity: activities.find(|activity| *activity as u64 == state & 0xff),
            reason: u8::try_from(state >> 8 & 0xff).unwrap_or(0),
            device: u16::try_from(state >> 16 & 0xffff).unwrap_or(0),
            address: word(bytes, 8)?,
            since_ticks,
            tid: word(bytes, 24)?,
            settled: state >> 32 == since_ticks & 0xffff_ffff,
        })
    }
}

/// The last events of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlightView {
    /// Events written ever.
    pub written: u64,
    /// The last of them that are whole, oldest first.
    pub events: Vec<FlightEvent>,
}

impl FlightView {
    /// The whole events of the ring at `offset` of a copy that was made between two readings of
    /// `written`.
    pub(super) fn parse(bytes: &[u8], offset: usize, written: (u64, u64)) -> Self {
        let (before, after) = written;
        // The writer may be in the middle of event `after`, in the slot of `after - FLIGHT_EVENTS`.
        let first = after.saturating_add(1).saturating_sub(FLIGHT_EVENTS as u64);
        let events = (first..before.max(first))
            .take(FLIGHT_EVENTS)
            .filter_map(|index| slot(bytes, offset, index));
        FlightView {
            written: after,
            events: events.collect(),
        }
    }
}

/// The last bytes of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextView {
    /// Bytes written ever.
    pub written: u64,
    /// The last of them that are whole. They come from somewhere else and may be anything.
    pub bytes: Vec<u8>,
}

impl TextView {
    /// The whole bytes of the ring of `stride` bytes at `offset` of a copy that was made between
    /// two readings of `written`; `None` if it is cut off, or larger than any that is written.
    pub(super) fn parse(
        bytes: &[u8],
        offset: usize,
        stride: usize,
        written: (u64, u64),
    ) -> Option<Self> {
        let (before, after) = written;
        let size = stride.checked_sub(8).filter(|n| *n <= MAX_TEXT_BYTES)?;
        let start = offset.checked_add(8)?;
        let ring = bytes.get(start..start.checked_add(size)?)?;
        // The writer may be at work on the bytes that follow `after`.
        let first = after
            .saturating_add(TEXT_STEP as u64)
            .saturating_sub(size as u64);
        let whole = (first..before.max(first)).take(size).filter_map(|index| {
            let at = index.checked_rem(size as u64)?;
            ring.get(usize::try_from(at).ok()?).copied()
        });
        Some(TextView {
            written: after,
            bytes: whole.collect(),
        })
    }
}

fn slot(bytes: &[u8], ring: usize, index: u64) -> Option<FlightEvent> {
    let slot = usize::try_from(index.checked_rem(FLIGHT_EVENTS as u64)?).ok()?;
    let at = ring
        .checked_add(SLOTS_OFFSET)?
        .checked_add(slot.checked_mul(SLOT_BYTES)?)?;
    Some(FlightEvent {
        at: word(bytes, at)?,
        what: word(bytes, at.checked_add(8)?)?,
        address: word(bytes, at.checked_add(16)?)?,
        value: word(bytes, at.checked_add(24)?)?,
    })
}

/// The last samples of a few numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesView {
    /// What the numbers of a row are: at most 64.
    pub columns: Arc<Vec<ColumnView>>,
    /// The last rows that are whole, oldest first, each with a number for each column: at most
    /// 4096.
    pub rows: Vec<Vec<u64>>,
    /// Rows written ever.
    pub written: u64,
}

impl SeriesView {
    /// The whole rows of the series in a copy that was made between two readings of `written`.
    /// `None` if its rows are too short for its columns.
    pub(super) fn parse(bytes: &[u8], field: &FieldView, written: (u64, u64)) -> Option<Self> {
        let width = field.columns.len();
        if width == 0 || field.stride < width.checked_mul(8)? {
            return None;
        }
        let kept = u64::try_from(field.count).ok()?;
        let start = field.offset.checked_add(ROWS_OFFSET)?;
        let row = |number: u64| -> Option<Vec<u64>> {
            let slot = usize::try_from(number.checked_rem(kept)?).ok()?;
            let at = start.checked_add(slot.checked_mul(field.stride)?)?;
            let word_at = |column: usize| word(bytes, at.checked_add(column.checked_mul(8)?)?);
            (0..width).map(word_at).collect()
        };
        let (before, after) = written;
        // The writer may be in the middle of row `after`, in the slot of `after - kept`.
        let first = after.saturating_add(1).saturating_sub(kept);
        let rows = (first..before.max(first)).take(field.count);
        Some(SeriesView {
            columns: Arc::clone(&field.columns),
            rows: rows.filter_map(row).collect(),
            written: after,
        })
    }

    /// The place in a row of the number of that name.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// One number of all rows, oldest first.
    pub fn column(&self, place: usize) -> impl Iterator<Item = u64> {
        self.rows
            .iter()
            .map(move |row| row.get(place).copied().unwrap_or(0))
    }

    /// The number of that name in the newest row.
    pub fn last(&self, name: &str) -> Option<u64> {
        self.rows.last()?.get(self.place(name)?).copied()
    }
}
