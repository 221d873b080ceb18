//! From where on a number is a verdict. Every one can be set.

mod section;

use super::Code;

pub use section::{ThresholdsBlock, ThresholdsWriter};

/// Thresholds, with the defaults of the documentation. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// A vCPU that waits for a host CPU for this share of the time is starved.
    pub starved_share: f64,
    /// One that its cgroup throttles for this share is throttled.
    pub throttled_share: f64,
    /// A handler of an exit that takes so long is stuck.
    pub handler_ns: u64,
    /// A vCPU that sleeps in KVM for a page of its memory for this share of the time waits for the host.
    pub fault_share: f64,
    /// As long without a halt that nothing can end is dead.
    pub dead_halt_ns: u64,
    /// A vCPU that has run for so long without leaving the guest's kernel spins.
    pub spin_ns: u64,
    /// Exits a second of one kind at one address.
    pub storm_exits: f64,
    /// Or the share of a vCPU's time that they take.
    pub storm_share: f64,
    /// Halts a second.
    pub wake_halts: f64,
    /// And the share of a host CPU that they use in the kernel.
    pub wake_kernel_share: f64,
    /// A vCPU that was not started so long after the first one.
    pub not_started_ns: u64,
    /// A guest whose vCPUs are all halted for this share of the time is idle.
    pub idle_share: f64,
    /// And is told to be after so long.
    pub idle_ns: u64,
    /// The oldest request in flight.
    pub backend_stall_ns: u64,
    /// Requests in the ring that the device's thread does not take.
    pub device_stall_ns: u64,
    /// Completions that the guest does not read.
    pub not_reaping_ns: u64,
    /// A receive queue without buffers while packets wait.
    pub rx_starved_ns: u64,
    /// A queue whose requests wait for this share of the time by the operator's limit is told.
    pub limited_share: f64,
    /// How long a thread of the VMM may stay in one step.
    pub thread_ns: u64,
    /// Share of the time in which tasks of the host or cgroup waited for memory.
    pub memory_pressure_share: f64,
    /// Guest memory in the host's swap.
    pub swapped_bytes: u64,
    /// Share of the cgroup's memory limit from which on a kill is near.
    pub oom_share: f64,
    /// A trend that reaches the limit within this time is told.
    pub oom_soon_ns: u64,
    /// A balloon that is not as large as it is to be, and does not move.
    pub balloon_ns: u64,
    /// Share of its memory below which a guest whose programs wait for memory is under pressure.
    pub guest_available_share: f64,
    /// How far the host's clocks may move against each other between two looks.
    pub clock_jump_ns: u64,
    /// How long a message of the guest's kernel counts: longer than its watchdogs take to say it again.
    pub message_ns: u64,
    /// How long what a verdict says must hold before it is raised.
    pub raise_ns: u64,
    /// How long it must be gone before it is cleared.
    pub clear_ns: u64,
}

impl Thresholds {
    /// How long a verdict must hold before it is raised.
    pub fn raise_ns_of(&self, code: Code) -> u64 {
        match code {
            Code::GuestIdle => self.idle_ns,
            // A look says it of the second before, which a burst can fill: it takes two in a row.
            Code::VcpuStarved => self.raise_ns.saturating_mul(3) / 2,
            _ => self.raise_ns,
        }
    }
}

const S: u64 = 1_000_000_000;

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            starved_share: 0.2,
            throttled_share: 0.1,
            handler_ns: S,
            fault_share: 0.2,
            dead_halt_ns: 2 * S,
            spin_ns: 5 * S,
            storm_exits: 50_000.0,
            storm_share: 0.5,
            wake_halts: 5_000.0,
            wake_kernel_share: 0.3,
            not_started_ns: 10 * S,
            idle_share: 0.95,
            idle_ns: 10 * S,
            backend_stall_ns: 5 * S,
            device_stall_ns: S,
            not_reaping_ns: 2 * S,
            rx_starved_ns: 2 * S,
            limited_share: 0.2,
            thread_ns: 5 * S,
            memory_pressure_share: 0.1,
            swapped_bytes: 16 << 20,
            oom_share: 0.97,
            oom_soon_ns: 120 * S,
            balloon_ns: 10 * S,
            guest_available_share: 0.1,
            clock_jump_ns: S,
            message_ns: 150 * S,
            raise_ns: S,
            clear_ns: 3 * S,
        }
    }
}

/// A threshold's place, by its unit.
pub enum Slot<'a> {
    /// Nanoseconds; at least so many milliseconds make sense.
    Time(&'a mut u64, u64),
    /// Of a time, or of a limit.
    Share(&'a mut f64),
    /// A second.
    Rate(&'a mut f64),
    /// Bytes.
    Bytes(&'a mut u64),
}

/// A threshold's name, in the API and in the black box, and its place. The name of a time ends in
/// `_ms`.
pub type Row = (&'static str, fn(&mut Thresholds) -> Slot<'_>);

/// How many there are.
pub const THRESHOLDS: usize = 29;

impl Thresholds {
    /// All of them.
    pub const ROWS: [Row; THRESHOLDS] = [
        ("starved_share", |t| Slot::Share(&mut t.starved_share)),
        ("throttled_share", |t| Slot::Share(&mut t.throttled_share)),
        ("handler_ms", |t| Slot::Time(&mut t.handler_ns, 1)),
        ("fault_share", |t| Slot::Share(&mut t.fault_share)),
        ("dead_halt_ms", |t| Slot::Time(&mut t.dead_halt_ns, 1)),
        ("spin_ms", |t| Slot::Time(&mut t.spin_ns, 1)),
        ("storm_exits", |t| Slot::Rate(&mut t.storm_exits)),
        ("storm_share", |t| Slot::Share(&mut t.storm_share)),
        ("wake_halts", |t| Slot::Rate(&mut t.wake_halts)),
        ("wake_kernel_share", |t| {
            Slot::Share(&mut t.wake_kernel_share)
        }),
        ("not_started_ms", |t| Slot::Time(&mut t.not_started_ns, 1)),
        ("idle_share", |t| Slot::Share(&mut t.idle_share)),
        ("idle_ms", |t| Slot::Time(&mut t.idle_ns, 1)),
        ("backend_stall_ms", |t| {
            Slot::Time(&mut t.backend_stall_ns, 1)
        }),
        ("device_stall_ms", |t| Slot::Time(&mut t.device_stall_ns, 1)),
        ("not_reaping_ms", |t| Slot::Time(&mut t.not_reaping_ns, 1)),
        ("rx_starved_ms", |t| Slot::Time(&mut t.rx_starved_ns, 1)),
        ("limited_share", |t| Slot::Share(&mut t.limited_share)),
        ("thread_ms", |t| Slot::Time(&mut t.thread_ns, 1)),
        ("memory_pressure_share", |t| {
            Slot::Share(&mut t.memory_pressure_share)
        }),
        ("swapped_bytes", |t| Slot::Bytes(&mut t.swapped_bytes)),
        ("oom_share", |t| Slot::Share(&mut t.oom_share)),
        ("oom_soon_ms", |t| Slot::Time(&mut t.oom_soon_ns, 1)),
        ("balloon_ms", |t| Slot::Time(&mut t.balloon_ns, 1)),
        ("guest_available_share", |t| {
            Slot::Share(&mut t.guest_available_share)
        }),
        ("clock_jump_ms", |t| Slot::Time(&mut t.clock_jump_ns, 1)),
        ("message_ms", |t| Slot::Time(&mut t.message_ns, 1)),
        ("raise_ms", |t| Slot::Time(&mut t.raise_ns, 0)),
        ("clear_ms", |t| Slot::Time(&mut t.clear_ns, 0)),
    ];
}
