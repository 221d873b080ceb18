//! What the rules look at: a snapshot of a black box, read once and by name.

mod console;
mod sight;

use super::memory_seen::MemorySeen;
pub use console::MessageSeen;

use crate::heartbeat::Activity;
use crate::ledger::Moment;
use crate::reader::{Ended, HeartbeatView, SectionView, Snapshot, Value};
pub use sight::SightSeen;

/// Sections of a kind that are looked at: more than any VM has, and few enough that a file made up
/// to hold a reader up does not.
const MAX_OF_A_KIND: usize = 256;

/// A VM at one moment, as far as its black box tells.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The moment, by `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// When the black box was made.
    pub created_ns: u64,
    /// The VMM's process, in its own pid namespace.
    pub pid: u64,
    /// Whether the VMM lives; `None` where nothing tells.
    pub writer_alive: Option<bool>,
    /// The last beat of the VMM's pulse, which comes every second; `None` if it was torn.
    pub pulse_ns: Option<u64>,
    /// An end was recorded: as somebody asked, or a failure.
    pub has_ended: bool,
    /// The words of the failure, if it was one.
    pub failure: Option<String>,
    /// All vCPUs, by number.
    pub vcpus: Vec<VcpuSeen>,
    /// vCPUs that the command line lets a Linux guest start, as far as it says so.
    pub vcpus_allowed: Option<u64>,
    /// All queues.
    pub queues: Vec<QueueSeen>,
    /// The VMM's own threads that have a heartbeat, vCPUs not among them.
    pub threads: Vec<ThreadSeen>,
    /// The VMM's cgroup.
    pub cgroup: Option<CgroupSeen>,
    /// The host's pressure on memory: time in which all tasks waited, and when that was read.
    pub memory_pressure: Option<Sampled<u64>>,
    /// Guest memory that the host has swapped out, and when that was read.
    pub swapped_bytes: Option<Sampled<u64>>,
    /// CPU time of the VMM's threads that are no vCPUs, and when that was read.
    pub own_cpu_ns: Option<Sampled<u64>>,
    /// How memory was used in the last minutes.
    pub memory: MemorySeen,
    /// Devices, and the errors that the host gave them.
    pub host_errors: Vec<HostErrors>,
    /// The devices that are drives.
    pub drives: Vec<String>,
    /// What the guest's kernel complained of on its console, by kind.
    pub messages: Vec<MessageSeen>,
}

/// A number that was sampled a while ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled<T> {
    /// When, by `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The number.
    pub value: T,
}

/// What a thread says that it does.
#[derive(Clone, Debug, Default)]
pub struct Doing {
    /// What; `None` if it is not known or was caught between two states.
    pub activity: Option<Activity>,
    /// The exit's or operation's name.
    pub reason: String,
    /// The device's name.
    pub device: String,
    /// The address that is served.
    pub address: u64,
    /// Since when.
    pub since_ns: u64,
    /// The kernel's number of the thread.
    pub tid: u64,
}

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

/// One vCPU.
#[derive(Clone, Debug)]
pub struct VcpuSeen {
    /// Its number.
    pub index: usize,
    /// What its thread does.
    pub doing: Doing,
    /// What the ledger needs of it.
    pub moment: Moment,
    /// Exits by reason.
    pub exits: Vec<(String, u64)>,
    /// Exits by reason and address: count and time in the VMM.
    pub places: Vec<(String, u64, u64)>,
    /// KVM's statistics.
    pub kvm: Option<Sampled<KvmSeen>>,
    /// Time in pauses that have ended, and before the start.
    pub paused_ns: Option<u64>,
    /// What was found by looking into it.
    pub sight: Option<SightSeen>,
    /// The kernel's letter for what its thread does.
    pub state: Option<Sampled<char>>,
}

/// What of KVM's statistics the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmSeen {
    /// All exits.
    pub exits: u64,
    /// Halts.
    pub halts: u64,
    /// Interrupts given to the guest.
    pub interrupts: u64,
    /// It is halted now.
    pub is_blocking: bool,
}

/// One queue of a device.
#[derive(Clone, Debug, Default)]
pub struct QueueSeen {
    /// The device's name.
    pub device: String,
    /// The queue's number.
    pub queue: String,
    /// Descriptors; 0 while it is not set up.
    pub size: u64,
    /// Requests that the device works on.
    pub in_flight: u64,
    /// Since when the oldest of them is.
    pub oldest_since_ns: Option<u64>,
    /// Since when the backend waits for buffers.
    pub starved_since_ns: Option<u64>,
    /// Completions that the guest is known not to have read.
    pub unread: u64,
    /// When the guest was last interrupted for it.
    pub last_interrupt_ns: Option<u64>,
    /// Requests taken.
    pub requests: u64,
    /// Kicks taken.
    pub kicks: u64,
    /// A kick was there that the device's thread had not taken.
    pub kick_pending: Option<Sampled<bool>>,
    /// Kicks that were lost.
    pub lost_kicks: u64,
    /// Times that the ring was broken, and why, the last time.
    pub broken: (u64, String),
    /// Since when it is broken.
    pub broken_since_ns: Option<u64>,
}

/// One thread of the VMM.
#[derive(Clone, Debug)]
pub struct ThreadSeen {
    /// Its name.
    pub name: String,
    /// What it does.
    pub doing: Doing,
    /// Rounds of its loop.
    pub loops: u64,
    /// The kernel's letter for what it does.
    pub state: Option<Sampled<char>>,
}

/// The VMM's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSeen {
    /// When it was looked at.
    pub at_ns: u64,
    /// Memory used.
    pub current_bytes: u64,
    /// What of it is page cache, which the kernel takes back when it has to.
    pub reclaimable_bytes: u64,
    /// The tightest limit, if there is one.
    pub max_bytes: Option<u64>,
    /// Times that the limit was met.
    pub max_events: u64,
    /// Times that the mark `high` was met.
    pub high_events: u64,
    /// Times that the kernel found nothing to take back.
    pub oom_events: u64,
    /// Processes killed in it for want of memory.
    pub oom_kills: u64,
}

/// Errors that the host's kernel gave to a device.
#[derive(Clone, Debug)]
pub struct HostErrors {
    /// The device.
    pub device: String,
    /// How many.
    pub count: u64,
    /// The last one's number.
    pub last_errno: u64,
    /// When it came.
    pub last_ns: Option<u64>,
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
            swapped_bytes: snapshot.section("memory").and_then(|section| {
                let rows = section.row_names("swapped");
                let bytes = rows.filter_map(|row| section.table("swapped", row)?.as_u64());
                source.sampled(section, bytes.fold(0, u64::saturating_add))
            }),
            own_cpu_ns: snapshot.section("task").and_then(|section| {
                let rows = section
                    .row_names("cpu")
                    .filter(|row| !row.starts_with("vcpu-"));
                let times = rows.filter_map(|row| section.table("cpu", row)?.as_u64());
                source.sampled(section, times.fold(0, u64::saturating_add))
            }),
            memory: MemorySeen::of(snapshot),
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
            max_bytes: section.gauge("memory_max").filter(|_| limited),
            max_events: event("max").unwrap_or(0),
            high_events: event("high").unwrap_or(0),
            oom_events: event("oom").unwrap_or(0),
            oom_kills: event("oom_kill").unwrap_or(0),
        })
    }

    fn errors(&self, section: &SectionView) -> HostErrors {
        HostErrors {
            device: part(section, 0).to_owned(),
            count: section.counter("host_errors").unwrap_or(0),
            last_errno: section.gauge("last_errno").unwrap_or(0),
            last_ns: self.moment(section, "last_error_at"),
        }
    }
}

/// A part of a section's name after its kind.
fn part(section: &SectionView, number: usize) -> &str {
    let part = section.instance.get(number);
    part.map_or("", |(_, value)| value.as_str())
}
