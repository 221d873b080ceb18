//! The balloon's section of the black box.

use std::mem::offset_of;

use observe::{BlackBox, BlackBoxError, Block, Counter, Field, Gauge, Section, Ticks, Unit};

use super::request::{STATISTICS, Statistics};

/// The section `balloon`. Written by the balloon's I/O thread, but for the first four, which
/// whoever commands the balloon writes.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BalloonBlock {
    /// How large the balloon is to be.
    pub target: Gauge,
    /// When that was last set.
    pub target_set_at: Gauge,
    /// How often the guest is asked for statistics, in nanoseconds; 0 if never.
    pub interval: Gauge,
    /// The command of the last hinting run.
    pub host_command: Gauge,
    /// How large it is, by the driver's own word.
    pub actual: Gauge,
    /// When that last changed; 0 if it never did.
    pub actual_changed_at: Gauge,
    /// The features that the driver accepted; 0 while there is no driver.
    pub features: Gauge,
    /// Bytes that the guest put into the balloon.
    pub inflated: Counter,
    /// Bytes that it took back.
    pub deflated: Counter,
    /// Free memory that the guest reported by itself.
    pub reported: Counter,
    /// Free memory that it named in hinting runs.
    pub hinted: Counter,
    /// Bytes given back to the host.
    pub discarded: Counter,
    /// Bytes that stayed, for they are parts of larger pages of the host.
    pub kept: Counter,
    /// Pages refused: not RAM.
    pub refused_outside: Counter,
    /// Pages passed over: named twice in one request.
    pub refused_repeated: Counter,
    /// Pages passed over: too many in one request.
    pub refused_excess: Counter,
    /// Times the guest sent statistics.
    pub statistics: Counter,
    /// Statistics of unknown kinds.
    pub statistics_unknown: Counter,
    /// When the last statistics came; 0 if none did.
    pub statistics_at: Gauge,
    /// A bit for each statistic that the guest sends, by tag.
    pub statistics_present: Gauge,
    /// The statistics, by tag.
    pub values: [Gauge; STATISTICS],
    /// The command that the guest's hinting last answered to, and 1; 0 if it never did.
    pub guest_command: Gauge,
    /// Hinting runs that the guest ended.
    pub hinting_runs: Counter,
}

// Evaluated when this is compiled.
#[allow(clippy::arithmetic_side_effects)]
const fn value(name: &'static str, unit: Unit, tag: usize, help: &'static str) -> Field {
    let at = offset_of!(BalloonBlock, values) + tag * size_of::<Gauge>();
    Field::gauge(name, unit, at, help)
}

// SAFETY: repr(C), cells and an array of cells only.
#[allow(unsafe_code)]
unsafe impl Section for BalloonBlock {
    const KIND: &'static str = "balloon";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("target", Unit::Bytes, offset_of!(BalloonBlock, target), "How large the balloon is to be."),
        Field::gauge("target_set_at", Unit::Ticks, offset_of!(BalloonBlock, target_set_at), "When the balloon's target was last set."),
        Field::gauge("interval", Unit::Nanoseconds, offset_of!(BalloonBlock, interval), "How often the guest is asked for statistics; 0 if never."),
        Field::gauge("host_command", Unit::None, offset_of!(BalloonBlock, host_command), "The command that stands in the balloon's hinting register: 0 stop, 1 done, else the number of a run."),
        Field::gauge("actual", Unit::Bytes, offset_of!(BalloonBlock, actual), "How large the balloon is, as the guest's driver says."),
        Field::gauge("actual_changed_at", Unit::Ticks, offset_of!(BalloonBlock, actual_changed_at), "When the balloon's size last changed; 0 if it never did."),
        Field::gauge("features", Unit::None, offset_of!(BalloonBlock, features), "The features that the balloon's driver accepted; 0 while there is no driver."),
        Field::counter("inflated", Unit::Bytes, offset_of!(BalloonBlock, inflated), "Memory that the guest put into the balloon."),
        Field::counter("deflated", Unit::Bytes, offset_of!(BalloonBlock, deflated), "Memory that the guest took out of the balloon."),
        Field::counter("reported", Unit::Bytes, offset_of!(BalloonBlock, reported), "Free memory that the guest reported by itself."),
        Field::counter("hinted", Unit::Bytes, offset_of!(BalloonBlock, hinted), "Free memory that the guest named in hinting runs."),
        Field::counter("discarded", Unit::Bytes, offset_of!(BalloonBlock, discarded), "Guest memory given back to the host."),
        Field::counter("kept", Unit::Bytes, offset_of!(BalloonBlock, kept), "Memory of the balloon that the host keeps, for it is part of larger pages."),
        Field::counter("refused_outside", Unit::None, offset_of!(BalloonBlock, refused_outside), "Pages that the guest named and that are not its memory."),
        Field::counter("refused_repeated", Unit::None, offset_of!(BalloonBlock, refused_repeated), "Pages that the guest named twice in one request."),
        Field::counter("refused_excess", Unit::None, offset_of!(BalloonBlock, refused_excess), "Pages beyond the most that one request may name."),
        Field::counter("statistics", Unit::None, offset_of!(BalloonBlock, statistics), "Times the guest sent statistics."),
        Field::counter("statistics_unknown", Unit::None, offset_of!(BalloonBlock, statistics_unknown), "Statistics of a kind that is not known."),
        Field::gauge("statistics_at", Unit::Ticks, offset_of!(BalloonBlock, statistics_at), "When the guest last sent statistics; 0 if it never did."),
        Field::gauge("statistics_present", Unit::None, offset_of!(BalloonBlock, statistics_present), "A bit for each statistic that the guest sends, by its tag."),
        value("swap_in", Unit::Bytes, 0, "Memory that the guest swapped in."),
        value("swap_out", Unit::Bytes, 1, "Memory that the guest swapped out."),
        value("major_faults", Unit::None, 2, "Page faults of the guest that took a read from its disk."),
        value("minor_faults", Unit::None, 3, "Page faults of the guest that did not."),
        value("free_memory", Unit::Bytes, 4, "Memory that the guest uses for nothing."),
        value("total_memory", Unit::Bytes, 5, "Memory that the guest has."),
        value("available_memory", Unit::Bytes, 6, "Memory that the guest can use for new programs without swapping."),
        value("disk_caches", Unit::Bytes, 7, "Memory that the guest can take back from its page cache without a write."),
        value("hugetlb_allocations", Unit::None, 8, "Huge pages that the guest allocated."),
        value("hugetlb_failures", Unit::None, 9, "Huge pages that the guest could not allocate."),
        value("oom_kill", Unit::None, 10, "Processes that the guest killed for want of memory."),
        value("alloc_stall", Unit::None, 11, "Times that the guest waited to get memory."),
        value("async_scan", Unit::Bytes, 12, "Memory that the guest looked through in the background to free some."),
        value("direct_scan", Unit::Bytes, 13, "Memory that programs of the guest looked through, waiting to get some."),
        value("async_reclaim", Unit::Bytes, 14, "Memory that the guest freed in the background."),
        value("direct_reclaim", Unit::Bytes, 15, "Memory that programs of the guest freed, waiting to get some."),
        Field::gauge("guest_command", Unit::None, offset_of!(BalloonBlock, guest_command), "The hinting command that the guest last answered to, and 1; 0 if it never did."),
        Field::counter("hinting_runs", Unit::None, offset_of!(BalloonBlock, hinting_runs), "Hinting runs that the guest brought to their end."),
    ];
}

impl BalloonBlock {
    /// Places the section.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox) -> Result<Block<Self>, BlackBoxError> {
        black_box.section("balloon", &[])
    }

    /// The guest sent these. What it does not send has no value.
    pub fn take(&self, read: &Statistics, now: Ticks) {
        let mut present = 0u64;
        for (tag, (place, value)) in self.values.iter().zip(read.values).enumerate() {
            present |= u64::from(value.is_some()) << tag;
            place.set(value.unwrap_or(0));
        }
        self.statistics_present.set(present);
        self.statistics_unknown.add(read.unknown);
        self.statistics.inc();
        self.statistics_at.set(now);
    }

    /// The driver is gone, and with it all that it said.
    pub fn forget(&self, now: Ticks) {
        self.features.set(0);
        self.resized(0, now);
        self.statistics_present.set(0);
        self.statistics_at.set(0);
        self.guest_command.set(0);
    }

    /// The driver says how large the balloon is.
    pub fn resized(&self, bytes: u64, now: Ticks) {
        if self.actual.value() != bytes {
            self.actual.set(bytes);
            self.actual_changed_at.set(now);
        }
    }
}
