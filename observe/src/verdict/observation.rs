//! What the rules look at: a snapshot of a black box, read once and by name.

mod balloon;
mod console;
#[cfg(any(test, feature = "recording"))]
mod cut;
mod pvpanic;
mod read;
mod sight;

use super::memory_seen::MemorySeen;
use crate::heartbeat::Activity;
use crate::ledger::Moment;

pub use balloon::{BalloonSeen, GuestMemory};
pub use console::MessageSeen;
#[cfg(any(test, feature = "recording"))]
pub use cut::Cut;
pub use pvpanic::PvpanicSeen;
pub use sight::SightSeen;

/// A VM at one moment, as far as its black box tells.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
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
    /// Guest memory as it was configured.
    pub guest_memory_bytes: Option<u64>,
    /// The guest's balloon, if it has one.
    pub balloon: Option<BalloonSeen>,
    /// What the host's date is ahead of its monotonic clock, and when that was read.
    pub date_offset_ns: Option<Sampled<u64>>,
    /// Devices, and the errors that the host gave them.
    pub host_errors: Vec<HostErrors>,
    /// The devices that are drives.
    pub drives: Vec<String>,
    /// What the guest's kernel complained of on its console, by kind.
    pub messages: Vec<MessageSeen>,
    /// What it told the pvpanic device; `None` if it told nothing.
    pub pvpanic: Option<PvpanicSeen>,
}

/// A number that was sampled a while ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
pub struct Sampled<T> {
    /// When, by `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The number.
    pub value: T,
}

/// What a thread says that it does.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
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

/// One vCPU.
#[derive(Clone, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
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
    #[cfg_attr(any(test, feature = "recording"), serde(default))]
    pub paused_ns: Option<u64>,
    /// What was found by looking into it.
    #[cfg_attr(any(test, feature = "recording"), serde(default))]
    pub sight: Option<SightSeen>,
    /// The kernel's letter for what its thread does.
    pub state: Option<Sampled<char>>,
}

/// What of KVM's statistics the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
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
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct QueueSeen {
    /// The device's name.
    pub device: String,
    /// The queue's number.
    pub queue: String,
    /// What it is called, where it has a name.
    pub name: Option<String>,
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
    /// How long requests have waited by the operator's limit, up to the last wait that is over.
    pub limited_wait_ns: u64,
    /// Since when they wait again.
    pub limited_since_ns: Option<u64>,
}

/// One thread of the VMM.
#[derive(Clone, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
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
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct CgroupSeen {
    /// When it was looked at.
    pub at_ns: u64,
    /// Memory used.
    pub current_bytes: u64,
    /// What of it is page cache, which the kernel takes back when it has to.
    pub reclaimable_bytes: u64,
    /// Swap used.
    pub swap_bytes: u64,
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
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
pub struct HostErrors {
    /// The device.
    pub device: String,
    /// How many.
    pub count: u64,
    /// The last one's number.
    pub last_errno: u64,
    /// When it came.
    pub last_ns: Option<u64>,
    /// What was asked when it came, if that is known.
    #[cfg_attr(any(test, feature = "recording"), serde(default))]
    pub last_operation: Option<String>,
    /// And at which sector of the disk.
    #[cfg_attr(any(test, feature = "recording"), serde(default))]
    pub last_sector: Option<u64>,
}
