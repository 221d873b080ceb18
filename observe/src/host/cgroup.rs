//! The cgroup of this process: what it may use, what it uses, and how it was held back.

use std::mem::offset_of;
use std::path::{Path, PathBuf};

use super::file::ProcFile;
use super::parse::{self, Limit, cpu_max, limit, lookup, number};
use super::{Follower, Roots};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::Clock;
use crate::schema::{Field, Section, Unit};

/// Rows of the table of events, which are the keys of `memory.events`.
pub const MEMORY_EVENTS: [&str; 5] = ["low", "high", "max", "oom", "oom_kill"];

/// The section `cgroup`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct CgroupBlock {
    /// When it was last sampled.
    pub sampled_at: Gauge,
    /// Version of the memory controller's hierarchy, 1 or 2; 0 if there is none.
    pub memory_version: Gauge,
    /// Version of the CPU controller's hierarchy, 1 or 2; 0 if there is none.
    pub cpu_version: Gauge,
    /// Memory that the cgroup uses.
    pub memory_current: Gauge,
    /// Swap that the cgroup uses.
    pub memory_swap: Gauge,
    /// What of `memory_current` the kernel can take back without swapping: page cache of files.
    pub memory_reclaimable: Gauge,
    /// The tightest limit on its swap and that of those above it; 0 if there is none (version 2).
    pub memory_swap_max: Gauge,
    /// 1 if there is one.
    pub memory_swap_limited: Gauge,
    /// The tightest limit on the cgroup and those above it; 0 if there is none.
    pub memory_max: Gauge,
    /// 1 if there is one.
    pub memory_limited: Gauge,
    /// From where on the kernel slows the cgroup down; 0 if there is no such mark (version 2).
    pub memory_high: Gauge,
    /// 1 if there is one.
    pub memory_high_limited: Gauge,
    /// Events of the memory controller; version 1 has `max` and `oom_kill` alone.
    pub memory_events: [Counter; MEMORY_EVENTS.len()],
    /// CPU time of the cgroup.
    pub cpu_usage_ns: Counter,
    /// Periods of the CPU limit in which the cgroup ran, over all levels.
    pub cpu_periods: Counter,
    /// Those in which it was throttled.
    pub cpu_throttled_periods: Counter,
    /// Time throttled, summed over CPUs and levels.
    pub cpu_throttled_ns: Counter,
    /// CPU time allowed in a period, at the tightest level; 0 if there is no limit.
    pub cpu_quota_ns: Gauge,
    /// Length of that period.
    pub cpu_period_ns: Gauge,
    /// 1 if there is a limit.
    pub cpu_limited: Gauge,
    /// Times that the process was moved to another cgroup.
    pub moves: Counter,
}

// SAFETY: repr(C), cells and an array of cells only.
#[allow(unsafe_code)]
unsafe impl Section for CgroupBlock {
    const KIND: &'static str = "cgroup";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(CgroupBlock, sampled_at), "When the VMM's cgroup was last looked at."),
        Field::gauge("memory_version", Unit::None, offset_of!(CgroupBlock, memory_version), "Version of the memory controller, 1 or 2; 0 if there is none, and then the numbers of memory say nothing."),
        Field::gauge("cpu_version", Unit::None, offset_of!(CgroupBlock, cpu_version), "Version of the CPU controller, 1 or 2; 0 if there is none, and then the numbers of the CPU say nothing."),
        Field::gauge("memory_current", Unit::Bytes, offset_of!(CgroupBlock, memory_current), "Memory that the VMM's cgroup uses."),
        Field::gauge("memory_swap", Unit::Bytes, offset_of!(CgroupBlock, memory_swap), "Swap that the VMM's cgroup uses."),
        Field::gauge("memory_reclaimable", Unit::Bytes, offset_of!(CgroupBlock, memory_reclaimable), "Page cache of files in memory_current, which the host can take back without swapping."),
        Field::gauge("memory_swap_max", Unit::Bytes, offset_of!(CgroupBlock, memory_swap_max), "The tightest swap limit of the VMM's cgroup and those above it; 0 if there is none."),
        Field::gauge("memory_swap_limited", Unit::None, offset_of!(CgroupBlock, memory_swap_limited), "1 if there is a swap limit."),
        Field::gauge("memory_max", Unit::Bytes, offset_of!(CgroupBlock, memory_max), "The tightest memory limit of the VMM's cgroup and those above it; 0 if there is none."),
        Field::gauge("memory_limited", Unit::None, offset_of!(CgroupBlock, memory_limited), "1 if there is a memory limit."),
        Field::gauge("memory_high", Unit::Bytes, offset_of!(CgroupBlock, memory_high), "From where on the host slows the VMM down to reclaim memory; 0 if there is no such mark."),
        Field::gauge("memory_high_limited", Unit::None, offset_of!(CgroupBlock, memory_high_limited), "1 if there is such a mark."),
        Field::counter("memory_events", Unit::None, offset_of!(CgroupBlock, memory_events), "Events of the memory controller.").column(MEMORY_EVENTS.len(), 8, "event"),
        Field::counter("cpu_usage", Unit::Nanoseconds, offset_of!(CgroupBlock, cpu_usage_ns), "CPU time of the VMM's cgroup."),
        Field::counter("cpu_periods", Unit::None, offset_of!(CgroupBlock, cpu_periods), "Periods of the CPU limit in which the VMM's cgroup, or one above it, ran."),
        Field::counter("cpu_throttled_periods", Unit::None, offset_of!(CgroupBlock, cpu_throttled_periods), "Periods in which it was throttled."),
        Field::counter("cpu_throttled", Unit::Nanoseconds, offset_of!(CgroupBlock, cpu_throttled_ns), "Time throttled, summed over CPUs and cgroups."),
        Field::gauge("cpu_quota", Unit::Nanoseconds, offset_of!(CgroupBlock, cpu_quota_ns), "CPU time allowed in a period; 0 if there is no limit."),
        Field::gauge("cpu_period", Unit::Nanoseconds, offset_of!(CgroupBlock, cpu_period_ns), "Length of a period of the CPU limit."),
        Field::gauge("cpu_limited", Unit::None, offset_of!(CgroupBlock, cpu_limited), "1 if there is a CPU limit."),
        Field::counter("moves", Unit::None, offset_of!(CgroupBlock, moves), "Times that the VMM was moved to another cgroup."),
    ];
}

/// What is looked up in `memory.stat`; shared memory is on the lists of anonymous memory.
const STATISTICS: [&str; 5] = [
    "inactive_file",
    "active_file",
    "total_inactive_file",
    "total_active_file",
    "total_swap",
];

/// The memory controller's files.
struct MemoryFiles {
    version: u64,
    current: ProcFile,
    /// Version 2: its one number is swap; version 1 has it in memory.stat.
    swap: Option<ProcFile>,
    stat: ProcFile,
    swap_max: Vec<ProcFile>,
    max: Vec<ProcFile>,
    high: Vec<ProcFile>,
    events: ProcFile,
    /// Version 1: memory.oom_control.
    oom: ProcFile,
    followers: [Follower; MEMORY_EVENTS.len()],
}

impl MemoryFiles {
    fn new(place: &parse::Place) -> Option<Self> {
        let own = place.levels.first()?;
        let each = |name: &str| files(&place.levels, name);
        let v1 = place.version == 1;
        let pick = |one: &'static str, two: &'static str| if v1 { one } else { two };
        Some(MemoryFiles {
            version: place.version,
            current: file(own, pick("memory.usage_in_bytes", "memory.current")),
            swap: (!v1).then(|| file(own, "memory.swap.current")),
            stat: file(own, "memory.stat"),
            swap_max: if v1 {
                Vec::new()
            } else {
                each("memory.swap.max")
            },
            max: each(pick("memory.limit_in_bytes", "memory.max")),
            high: if v1 { Vec::new() } else { each("memory.high") },
            events: file(own, pick("memory.failcnt", "memory.events")),
            oom: file(own, "memory.oom_control"),
            followers: Default::default(),
        })
    }

    fn sample(&mut self, block: &CgroupBlock, buffer: &mut Vec<u8>) {
        let current = self.current.text(buffer).and_then(|text| number(&text));
        block.memory_current.set(current.unwrap_or(0));
        let version = if current.is_some() { self.version } else { 0 };
        block.memory_version.set(version);
        let v1 = self.version == 1;
        let stat = self.stat.text(buffer);
        let stat = stat.map_or([None; 5], |text| lookup(&text, STATISTICS));
        let [own_inactive, own_active, inactive, active, in_stat] = stat;
        // Version 1 has those below the cgroup in numbers of their own.
        let (inactive, active) = (inactive.or(own_inactive), active.or(own_active));
        let files = inactive.unwrap_or(0).saturating_add(active.unwrap_or(0));
        block.memory_reclaimable.set(files);
        let swap = self.swap.as_mut();
        let swap = swap.and_then(|swap| swap.text(buffer).and_then(|text| number(&text)));
        block.memory_swap.set(swap.or(in_stat).unwrap_or(0));
        let swap_max = tightest(&mut self.swap_max, buffer);
        write_limit(swap_max, &block.memory_swap_max, &block.memory_swap_limited);
        let max = tightest(&mut self.max, buffer);
        write_limit(max, &block.memory_max, &block.memory_limited);
        let high = tightest(&mut self.high, buffer);
        write_limit(high, &block.memory_high, &block.memory_high_limited);
        let events = if v1 {
            let failures = self.events.text(buffer).and_then(|text| number(&text));
            let kills = self.oom.text(buffer);
            let kills = kills.and_then(|text| lookup(&text, ["oom_kill"])[0]);
            [None, None, failures, None, kills]
        } else {
            let text = self.events.text(buffer);
            text.map_or([None; 5], |text| lookup(&text, MEMORY_EVENTS))
        };
        let cells = self.followers.iter_mut().zip(&block.memory_events);
        for ((follower, cell), event) in cells.zip(events) {
            if let Some(event) = event {
                follower.follow(cell, event);
            }
        }
    }
}

/// The CPU controller's files at one level.
struct CpuLevel {
    stat: ProcFile,
    /// `cpu.max`, or version 1's quota.
    max: ProcFile,
    /// Version 1's period.
    period: ProcFile,
    followers: [Follower; 3],
}

/// The CPU controller's files.
struct CpuFiles {
    version: u64,
    levels: Vec<CpuLevel>,
    /// Version 1: cpuacct.usage.
    usage: Option<ProcFile>,
    used: Follower,
}

impl CpuFiles {
    fn new(place: &parse::Place, accounting: Option<&parse::Place>) -> Self {
        let v1 = place.version == 1;
        let level = |folder: &PathBuf| CpuLevel {
            stat: file(folder, "cpu.stat"),
            max: file(folder, if v1 { "cpu.cfs_quota_us" } else { "cpu.max" }),
            period: file(folder, "cpu.cfs_period_us"),
            followers: Default::default(),
        };
        let usage = accounting.filter(|place| v1 && place.version == 1);
        let usage = usage.and_then(|place| place.levels.first());
        CpuFiles {
            version: place.version,
            levels: place.levels.iter().map(level).collect(),
            usage: usage.map(|folder| file(folder, "cpuacct.usage")),
            used: Follower::default(),
        }
    }

    fn sample(&mut self, block: &CgroupBlock, buffer: &mut Vec<u8>) {
        let ns = |us: u64| us.saturating_mul(1000);
        let mut tightest: Option<(u64, u64)> = None;
        let mut there = false;
        for (depth, level) in self.levels.iter_mut().enumerate() {
            let Some(text) = level.stat.text(buffer) else {
                continue;
            };
            there |= depth == 0;
            let keys = [
                "usage_usec",
                "nr_periods",
                "nr_throttled",
                "throttled_usec",
                "throttled_time",
            ];
            let [usage, periods, throttled, throttled_us, throttled_ns] = lookup(&text, keys);
            if let Some(usage) = usage.filter(|_| depth == 0) {
                self.used.follow(&block.cpu_usage_ns, ns(usage));
            }
            let cells = [
                &block.cpu_periods,
                &block.cpu_throttled_periods,
                &block.cpu_throttled_ns,
            ];
            let values = [periods, throttled, throttled_ns.or(throttled_us.map(ns))];
            for ((follower, cell), value) in level.followers.iter_mut().zip(cells).zip(values) {
                if let Some(value) = value {
                    follower.follow(cell, value);
                }
            }
            if let Some(own) = level.limit(self.version, buffer) {
                tightest = Some(tightest.map_or(own, |other| stricter(own, other)));
            }
        }
        if let Some(file) = &mut self.usage
            && let Some(usage) = file.text(buffer).and_then(|text| number(&text))
        {
            self.used.follow(&block.cpu_usage_ns, usage);
        }
        let (quota, period) = tightest.unwrap_or((0, 0));
        block.cpu_version.set(if there { self.version } else { 0 });
        block.cpu_quota_ns.set(ns(quota));
        block.cpu_period_ns.set(ns(period));
        block.cpu_limited.set(u64::from(tightest.is_some()));
    }
}

impl CpuLevel {
    /// Quota and period in microseconds, if the level has a limit.
    fn limit(&mut self, version: u64, buffer: &mut Vec<u8>) -> Option<(u64, u64)> {
        let (quota, period) = if version == 1 {
            let quota = limit(&self.max.text(buffer)?)?;
            (quota, number(&self.period.text(buffer)?)?)
        } else {
            cpu_max(&self.max.text(buffer)?)?
        };
        match quota {
            Limit::At(quota) => Some((quota, period)),
            Limit::None => None,
        }
    }
}

pub(super) struct CgroupSampler {
    block: Block<CgroupBlock>,
    membership: ProcFile,
    mountinfo: ProcFile,
    /// `/proc/self/cgroup` as it was when the files were opened.
    known: Option<String>,
    memory: Option<MemoryFiles>,
    cpu: Option<CpuFiles>,
}

impl CgroupSampler {
    pub(super) fn new(black_box: &mut BlackBox, roots: &Roots) -> Result<Self, BlackBoxError> {
        let events = MEMORY_EVENTS.map(String::from);
        Ok(CgroupSampler {
            block: black_box.section(CgroupBlock::KIND, &[("event", &events)])?,
            membership: ProcFile::new(roots.proc.join("self/cgroup")),
            mountinfo: ProcFile::new(roots.proc.join("self/mountinfo")),
            known: None,
            memory: None,
            cpu: None,
        })
    }

    pub(super) fn sample(&mut self, buffer: &mut Vec<u8>) {
        self.find(buffer);
        match &mut self.memory {
            Some(memory) => memory.sample(&self.block, buffer),
            None => self.block.memory_version.set(0),
        }
        match &mut self.cpu {
            Some(cpu) => cpu.sample(&self.block, buffer),
            None => self.block.cpu_version.set(0),
        }
        self.block.sampled_at.set(Clock::process().ticks());
    }

    /// Opens the files anew when the process was moved: launchers do so after the start.
    fn find(&mut self, buffer: &mut Vec<u8>) {
        let Some(membership) = self.membership.text(buffer) else {
            return;
        };
        if self.known.as_deref() == Some(&*membership) {
            return;
        }
        let membership = membership.into_owned();
        let mountinfo = self.mountinfo.text(buffer).unwrap_or_default();
        let place = |controller| parse::place(&membership, &mountinfo, controller);
        self.memory = place("memory").and_then(|place| MemoryFiles::new(&place));
        let accounting = place("cpuacct");
        self.cpu = place("cpu").map(|place| CpuFiles::new(&place, accounting.as_ref()));
        if self.known.replace(membership).is_some() {
            self.block.moves.inc();
        }
    }
}

fn file(folder: &Path, name: &str) -> ProcFile {
    ProcFile::new(folder.join(name))
}

fn files(levels: &[PathBuf], name: &str) -> Vec<ProcFile> {
    levels.iter().map(|folder| file(folder, name)).collect()
}

/// The lowest of the limits in `files`.
fn tightest(files: &mut [ProcFile], buffer: &mut Vec<u8>) -> Limit {
    let limits = files
        .iter_mut()
        .filter_map(|file| limit(&file.text(buffer)?));
    limits.fold(Limit::None, Limit::tighter)
}

fn write_limit(limit: Limit, cell: &Gauge, limited: &Gauge) {
    let at = match limit {
        Limit::At(at) => Some(at),
        Limit::None => None,
    };
    cell.set(at.unwrap_or(0));
    limited.set(u64::from(at.is_some()));
}

/// Of two quotas and periods the one that allows less.
fn stricter(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    let cross = |x: (u64, u64), y: (u64, u64)| u128::from(x.0) * u128::from(y.1);
    if cross(a, b) <= cross(b, a) { a } else { b }
}
