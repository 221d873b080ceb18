//! Reading a snapshot by name.

use super::{
    BalloonSeen, CgroupSeen, Doing, HostErrors, KvmSeen, MemorySeen, Observation, PvpanicSeen,
    QueueSeen, Sampled, SightSeen, ThreadSeen, VcpuSeen, console,
};
use crate::ledger::Moment;
use crate::reader::{Ended, HeartbeatView, SectionView, Snapshot, Value};

/// Sections of a kind that are looked at: more than any VM has, and few enough that a file made up
/// to hold a reader up does not.
const MAX_OF_A_KIND: usize = 256;

/// Operations that have a place on a disk.
const PLACED: [&str; 4] = ["read", "write", "discard", "write_zeroes"];

impl Doing {
    fn of(snapshot: &Snapshot, section: &SectionView) -> Self {
        let Some(beat) = section.heartbeat("heartbeat") else {
            return Doing::default();
        };
        let HeartbeatView {
            activity,
            reason,
            device,
            address,
            since_ticks,
            tid,
            settled,
        } = beat;
        let name = |label: &str, number: usize| {
            let name = section.row_name(label, number);
            name.map_or_else(|| number.to_string(), ToOwned::to_owned)
        };
        Doing {
            activity: activity.filter(|_| settled),
            reason: name("reason", usize::from(reason)),
            device: name("device", usize::from(device)),
            address,
            since_ns: snapshot.header.clock.monotonic_of(since_ticks),
            tid,
        }
    }
}

impl Observation {
    /// Reads a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        let source = Source { snapshot };
        let of_kind = |kind: &'static str| {
            let sections = snapshot.sections.iter();
            let of_kind = sections.filter(move |section| section.kind() == kind);
            of_kind.take(MAX_OF_A_KIND)
        };
        let mut vcpus: Vec<VcpuSeen> = of_kind("vcpu")
            .filter_map(|section| source.vcpu(section))
            .collect();
        vcpus.sort_by_key(|vcpu| vcpu.index);
        Observation {
            at_ns: snapshot.now_monotonic_ns,
            created_ns: snapshot.header.created_monotonic_ns,
            pid: snapshot.header.pid,
            writer_alive: snapshot.writer_alive,
            pulse_ns: snapshot.header.pulse_monotonic_ns,
            has_ended: snapshot.header.end != Ended::Running,
            failure: match &snapshot.header.end {
                Ended::Failed { detail, .. } => Some(detail.clone()),
                _ => None,
            },
            vcpus,
            vcpus_allowed: snapshot
                .section("machine")
                .and_then(|section| section.gauge("vcpus_allowed")),
            queues: of_kind("queue")
                .map(|section| source.queue(section))
                .collect(),
            threads: of_kind("thread")
                .map(|section| source.thread(section))
                .collect(),
            cgroup: snapshot
                .section("cgroup")
                .and_then(|section| source.cgroup(section)),
            memory_pressure: snapshot.section("psi").and_then(|section| {
                source.sampled(section, section.table("full", "memory")?.as_u64()?)
            }),
            swapped_bytes: source.swapped(),
            date_offset_ns: snapshot.section("host").and_then(|section| {
                let offset = section.gauge("date_offset").filter(|offset| *offset > 0)?;
                source.sampled(section, offset)
            }),
            own_cpu_ns: snapshot.section("task").and_then(|section| {
                let rows = section
                    .row_names("cpu")
                    .filter(|row| !row.starts_with("vcpu-"));
                let times = rows.filter_map(|row| section.table("cpu", row)?.as_u64());
                source.sampled(section, times.fold(0, u64::saturating_add))
            }),
            memory: MemorySeen::of(snapshot),
            guest_memory_bytes: snapshot
                .section("machine")
                .and_then(|section| section.gauge("memory")),
            balloon: BalloonSeen::of(snapshot),
            host_errors: of_kind("device")
                .map(|section| source.errors(section))
                .collect(),
            drives: of_kind("device")
                .filter(|section| section.row_names("operations").any(|row| row == "flush"))
                .map(|section| part(section, 0).to_owned())
                .collect(),
            messages: of_kind("console_watch")
                .flat_map(|section| console::messages(snapshot, section))
                .collect(),
            pvpanic: snapshot
                .section("pvpanic")
                .and_then(|section| PvpanicSeen::of(snapshot, section)),
        }
    }
}

struct Source<'a> {
    snapshot: &'a Snapshot,
}

impl Source<'_> {
    fn ns(&self, ticks: u64) -> u64 {
        self.snapshot.header.clock.monotonic_of(ticks)
    }

    /// The moment that a gauge holds; `None` for one that never was.
    fn moment(&self, section: &SectionView, field: &str) -> Option<u64> {
        let ticks = section.gauge(field).filter(|ticks| *ticks != 0)?;
        Some(self.ns(ticks))
    }

    /// With the moment at which the section was sampled; `None` before the first time.
    fn sampled<T>(&self, section: &SectionView, value: T) -> Option<Sampled<T>> {
        let at_ns = self.moment(section, "sampled_at")?;
        Some(Sampled { at_ns, value })
    }

    /// The process's memory in swap, nearly all of it the guest's, which is read every second; in
    /// older black boxes that of the guest's regions, which are looked through more seldom.
    fn swapped(&self) -> Option<Sampled<u64>> {
        let task = self.snapshot.section("task");
        let of_process = task.and_then(|section| Some((section, section.gauge("swapped")?)));
        if let Some((section, bytes)) = of_process {
            return self.sampled(section, bytes);
        }
        let section = self.snapshot.section("memory")?;
        let rows = section.row_names("swapped");
        let bytes = rows.filter_map(|row| section.table("swapped", row)?.as_u64());
        self.sampled(section, bytes.fold(0, u64::saturating_add))
    }

    fn vcpu(&self, section: &SectionView) -> Option<VcpuSeen> {
        let index: usize = part(section, 0).parse().ok()?;
        let count = |field: &str, row: &str| section.table(field, row).and_then(|v| v.as_u64());
        let rows = |field: &'static str| section.row_names(field);
        Some(VcpuSeen {
            index,
            doing: Doing::of(self.snapshot, section),
            moment: Moment::of(self.snapshot, index),
            exits: rows("exits")
                .filter_map(|row| Some((row.to_owned(), count("exits", row)?)))
                .collect(),
            places: rows("place_exits")
                .filter_map(|row| {
                    let time = count("place_handler", row)?;
                    Some((row.to_owned(), count("place_exits", row)?, time))
                })
                .collect(),
            kvm: self.kvm(index),
            paused_ns: section.counter("paused"),
            sight: self
                .snapshot
                .section(&format!("sight/{index}"))
                .and_then(|section| SightSeen::of(self.snapshot, section)),
            state: self.state(&format!("vcpu-{index}")),
        })
    }

    /// The kernel's letter for what the thread of that name does, of which it keeps 15 bytes.
    fn state(&self, thread: &str) -> Option<Sampled<char>> {
        let section = self.snapshot.section("task")?;
        let state = section.table("state", thread)?.as_u64()?;
        let letter = u8::try_from(state).ok().filter(|letter| *letter != 0)?;
        self.sampled(section, char::from(letter))
    }

    fn kvm(&self, index: usize) -> Option<Sampled<KvmSeen>> {
        let section = self.snapshot.section(&format!("kvm_vcpu/{index}"))?;
        let total = |stat| section.table("total", stat)?.as_u64();
        let seen = KvmSeen {
            exits: total("exits")?,
            halts: total("halt_exits")?,
            interrupts: total("irq_injections")?,
            is_blocking: section.table("level", "blocking")?.as_u64()? > 0,
        };
        self.sampled(section, seen)
    }

    fn queue(&self, section: &SectionView) -> QueueSeen {
        let number = |field: &str| match section.value(field) {
            Some(Value::Counter(number) | Value::Gauge(number)) => number,
            _ => 0,
        };
        let reason = usize::try_from(number("broken_reason")).unwrap_or(usize::MAX);
        let named = section.row_name("broken", reason);
        QueueSeen {
            device: part(section, 0).to_owned(),
            queue: part(section, 1).to_owned(),
            name: section.row_name("name", 0).map(ToOwned::to_owned),
            size: number("size"),
            in_flight: number("in_flight"),
            oldest_since_ns: self.moment(section, "oldest_since"),
            starved_since_ns: self.moment(section, "starved_since"),
            unread: number("unread_completions"),
            last_interrupt_ns: self.moment(section, "last_interrupt_at"),
            requests: number("requests"),
            kicks: number("kicks"),
            kick_pending: self.kick_pending(section),
            lost_kicks: number("lost_kicks"),
            broken_since_ns: self.moment(section, "broken_since"),
            limited_wait_ns: number("limited_wait"),
            limited_since_ns: self.moment(section, "limited_since"),
            broken: (
                number("broken"),
                named.map_or_else(|| reason.to_string(), ToOwned::to_owned),
            ),
        }
    }

    fn kick_pending(&self, queue: &SectionView) -> Option<Sampled<bool>> {
        let name = format!("kick/{}/{}", part(queue, 0), part(queue, 1));
        let section = self.snapshot.section(&name)?;
        self.sampled(section, section.gauge("pending")? > 0)
    }

    fn thread(&self, section: &SectionView) -> ThreadSeen {
        ThreadSeen {
            name: part(section, 0).to_owned(),
            doing: Doing::of(self.snapshot, section),
            loops: section.counter("loops").unwrap_or(0),
            state: self.state(part(section, 0)),
        }
    }

    fn cgroup(&self, section: &SectionView) -> Option<CgroupSeen> {
        section
            .gauge("memory_version")
            .filter(|version| *version > 0)?;
        let event = |name| {
            section
                .table("memory_events", name)
                .and_then(|v| v.as_u64())
        };
        let limited = section.gauge("memory_limited")? > 0;
        Some(CgroupSeen {
            at_ns: self.moment(section, "sampled_at")?,
            current_bytes: section.gauge("memory_current")?,
            reclaimable_bytes: section.gauge("memory_reclaimable").unwrap_or(0),
            swap_bytes: section.gauge("memory_swap").unwrap_or(0),
            max_bytes: section.gauge("memory_max").filter(|_| limited),
            max_events: event("max").unwrap_or(0),
            high_events: event("high").unwrap_or(0),
            oom_events: event("oom").unwrap_or(0),
            oom_kills: event("oom_kill").unwrap_or(0),
        })
    }

    fn errors(&self, section: &SectionView) -> HostErrors {
        let operation = section.gauge("last_error_operation").and_then(|number| {
            let number = usize::try_from(number).ok()?;
            section.row_name("operation", number)
        });
        let has_place = operation.is_some_and(|name| PLACED.contains(&name));
        let sector = section.gauge("last_error_sector").filter(|_| has_place);
        HostErrors {
            device: part(section, 0).to_owned(),
            count: section.counter("host_errors").unwrap_or(0),
            last_errno: section.gauge("last_errno").unwrap_or(0),
            last_ns: self.moment(section, "last_error_at"),
            last_operation: operation.map(ToOwned::to_owned),
            last_sector: sector,
        }
    }
}

/// A part of a section's name after its kind.
fn part(section: &SectionView, number: usize) -> &str {
    let part = section.instance.get(number);
    part.map_or("", |(_, value)| value.as_str())
}
