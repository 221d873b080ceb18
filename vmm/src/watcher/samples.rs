//! The last minutes: what the watcher's other sources have just written, and what the threads of
//! the VM count, kept as a row a second in rings of the black box. So a reader sees how things
//! went before an end, and not only where they stood.
//!
//! Nothing is asked of anybody: every number is read from the cell of another section in this
//! process, one load each. A tick allocates nothing and takes no lock. What a host does not tell
//! is 0, as in the section that it comes from.
//!
//! A ring has [`ROWS`] rows, five minutes: 52 KiB for the machine, 23 KiB for each vCPU, 14 KiB for
//! each queue and 26 KiB for a balloon (`docs/blackbox.md`).

use std::mem::offset_of;

use observe::host::{MEMORY_EVENTS, RESOURCES, TaskSampler};
use observe::{BlackBox, BlackBoxError, Block, Clock, Column, Field, Section, Series, Unit};
use observe::{Probe, Ticks};

use super::kvm_table::{KvmSampler, KvmVcpuBlock};

/// Samples that are kept.
pub const ROWS: usize = 300;

/// Which words of a field a number is made of.
#[derive(Clone, Copy)]
enum Take {
    /// The one.
    Value,
    /// All rows of a column, added up.
    Sum,
    /// A row of a column.
    Row(usize),
    /// The row of the vCPU's thread.
    Thread,
    /// The row of one of KVM's statistics.
    Statistic(&'static str),
    /// How long ago the moment was that the word tells, in nanoseconds; 0 if it tells none.
    Age,
}

/// A column, and where its numbers come from: a section's name, to which the instance is appended
/// if it ends in a slash, and a field of it.
#[derive(Clone, Copy)]
struct Number(Column, &'static str, &'static str, Take);

/// When the sample was taken, and then what the table says.
const fn columns<const NUMBERS: usize, const COLUMNS: usize>(
    table: &[Number; NUMBERS],
) -> [Column; COLUMNS] {
    assert!(COLUMNS == NUMBERS + 1);
    let at = Column::level("at", Unit::Ticks, "When the sample was taken.");
    let mut all = [at; COLUMNS];
    let mut i = 0;
    while i < NUMBERS {
        all[i + 1] = table[i].0;
        i += 1;
    }
    all
}

const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Column {
    Column::counter(name, unit, help)
}

const fn level(name: &'static str, unit: Unit, help: &'static str) -> Column {
    Column::level(name, unit, help)
}

/// The row of a name in the order of a table.
const fn row<const N: usize>(names: [&str; N], name: &str) -> Take {
    let mut i = 0;
    while i < N {
        let (a, b) = (names[i].as_bytes(), name.as_bytes());
        let mut same = a.len() == b.len();
        let mut at = 0;
        while same && at < a.len() {
            same = a[at] == b[at];
            at += 1;
        }
        if same {
            return Take::Row(i);
        }
        i += 1;
    }
    panic!("the table has no row of that name");
}

use Unit::{Bytes, Nanoseconds as Ns, None as Plain};

#[rustfmt::skip]
const MACHINE: [Number; 21] = [
    Number(level("guest_resident", Bytes, "Guest memory in the host's memory, at the last look."), "memory", "resident", Take::Sum),
    Number(level("guest_swapped", Bytes, "Guest memory in the host's swap, at the last look."), "memory", "swapped", Take::Sum),
    Number(level("vmm_resident", Bytes, "Memory of the VMM's process in the host's memory, the guest's included."), "task", "resident", Take::Value),
    Number(counter("vmm_major_faults", Plain, "Page faults of the VMM that needed I/O."), "task", "major_faults", Take::Sum),
    Number(level("cgroup_memory", Bytes, "Memory that the VMM's cgroup uses."), "cgroup", "memory_current", Take::Value),
    Number(level("cgroup_memory_max", Bytes, "Its tightest limit; 0 if there is none."), "cgroup", "memory_max", Take::Value),
    Number(level("cgroup_reclaimable", Bytes, "Page cache in it, which the host can take back without swapping."), "cgroup", "memory_reclaimable", Take::Value),
    Number(level("cgroup_swap", Bytes, "Swap that the cgroup uses."), "cgroup", "memory_swap", Take::Value),
    Number(counter("memory_high", Plain, "Times that the cgroup was slowed down to reclaim memory."), "cgroup", "memory_events", row(MEMORY_EVENTS, "high")),
    Number(counter("memory_max", Plain, "Times that the cgroup ran into its limit."), "cgroup", "memory_events", row(MEMORY_EVENTS, "max")),
    Number(counter("oom", Plain, "Times that the cgroup was out of memory."), "cgroup", "memory_events", row(MEMORY_EVENTS, "oom")),
    Number(counter("oom_kills", Plain, "Processes of the cgroup that the OOM killer ended."), "cgroup", "memory_events", row(MEMORY_EVENTS, "oom_kill")),
    Number(counter("cpu_throttled", Ns, "Time that the cgroup was throttled, summed over CPUs."), "cgroup", "cpu_throttled", Take::Value),
    Number(level("host_available", Bytes, "Memory that the host could give without swapping."), "host", "memory_available", Take::Value),
    Number(level("host_swap_free", Bytes, "Swap space of the host that is free."), "host", "swap_free", Take::Value),
    Number(counter("cpu_some", Ns, "Time in which some task of the host waited for CPU."), "psi", "some", row(RESOURCES, "cpu")),
    Number(counter("cpu_full", Ns, "Time in which all tasks of the host waited for CPU."), "psi", "full", row(RESOURCES, "cpu")),
    Number(counter("memory_some", Ns, "Time in which some task of the host waited for memory."), "psi", "some", row(RESOURCES, "memory")),
    Number(counter("memory_full", Ns, "Time in which all tasks of the host waited for memory."), "psi", "full", row(RESOURCES, "memory")),
    Number(counter("io_some", Ns, "Time in which some task of the host waited for I/O."), "psi", "some", row(RESOURCES, "io")),
    Number(counter("io_full", Ns, "Time in which all tasks of the host waited for I/O."), "psi", "full", row(RESOURCES, "io")),
];

#[rustfmt::skip]
const VCPU: [Number; 9] = [
    Number(counter("run", Ns, "Time inside KVM_RUN."), "vcpu/", "run", Take::Value),
    Number(counter("guest", Ns, "Time in the guest, to 10 ms."), "task", "guest", Take::Thread),
    Number(counter("cpu", Ns, "Time of the thread on a CPU, the guest's included."), "task", "cpu", Take::Thread),
    Number(counter("run_delay", Ns, "Time that the thread could run and had no CPU."), "task", "run_delay", Take::Thread),
    Number(counter("exits", Plain, "User exits."), "vcpu/", "exits", Take::Sum),
    Number(counter("handler", Ns, "Time in the VMM for user exits."), "vcpu/", "exit_handler", Take::Sum),
    Number(counter("kvm_exits", Plain, "Exits from the guest to KVM."), "kvm_vcpu/", "total", Take::Statistic("exits")),
    Number(counter("halts", Plain, "Times that the guest halted."), "kvm_vcpu/", "total", Take::Statistic("halt_exits")),
    Number(counter("halted", Ns, "Time that the vCPU waited halted."), "kvm_vcpu/", "total", Take::Statistic("halt_wait_ns")),
];

#[rustfmt::skip]
const QUEUE: [Number; 5] = [
    Number(counter("requests", Plain, "Requests taken from the ring."), "queue/", "requests", Take::Value),
    Number(counter("completions", Plain, "Requests given back to the guest."), "queue/", "completions", Take::Value),
    Number(counter("interrupts", Plain, "Interrupts sent for completions."), "queue/", "interrupts", Take::Value),
    Number(level("in_flight", Plain, "Requests that the device works on."), "queue/", "in_flight", Take::Value),
    Number(level("oldest", Ns, "How long the oldest request in flight has been there; 0 if none is."), "queue/", "oldest_since", Take::Age),
];

#[rustfmt::skip]
const BALLOON: [Number; 10] = [
    Number(level("statistics_age", Ns, "How old the guest's statistics were; 0 if it had sent none."), "balloon", "statistics_at", Take::Age),
    Number(level("actual", Bytes, "How large the balloon is, as the guest's driver says."), "balloon", "actual", Take::Value),
    Number(level("total_memory", Bytes, "All memory that the guest knows of."), "balloon", "total_memory", Take::Value),
    Number(level("available_memory", Bytes, "What new programs of the guest could have without swapping."), "balloon", "available_memory", Take::Value),
    Number(counter("swap_in", Bytes, "Memory that the guest swapped in."), "balloon", "swap_in", Take::Value),
    Number(counter("swap_out", Bytes, "Memory that the guest swapped out."), "balloon", "swap_out", Take::Value),
    Number(counter("major_faults", Plain, "Page faults of the guest's programs that took a read from disk."), "balloon", "major_faults", Take::Value),
    Number(counter("alloc_stall", Plain, "Times that a program of the guest waited to get memory."), "balloon", "alloc_stall", Take::Value),
    Number(counter("direct_scan", Bytes, "Memory that the guest's programs looked through to get some."), "balloon", "direct_scan", Take::Value),
    Number(counter("oom_kill", Plain, "Processes that the guest killed for want of memory."), "balloon", "oom_kill", Take::Value),
];

/// A section that is one series.
macro_rules! ring {
    ($(#[$help:meta])* $name:ident, $kind:literal, $instance:expr, $table:ident) => {
        $(#[$help])*
        #[repr(C)]
        pub struct $name {
            samples: Series<{ $table.len() + 1 }, ROWS>,
        }

        impl Ring for $name {
            fn push(&self, at: Ticks, words: &[Word], clock: Clock) {
                let mut row = [0; $table.len() + 1];
                for (cell, word) in row.iter_mut().skip(1).zip(words) {
                    *cell = word.value(at, clock);
                }
                row[0] = at;
                self.samples.push(row);
            }
        }

        // SAFETY: repr(C), a series only.
        #[allow(unsafe_code)]
        unsafe impl Section for $name {
            const KIND: &'static str = $kind;
            const INSTANCE: &'static [&'static str] = $instance;
            const FIELDS: &'static [Field] = &[Field::series::<{ $table.len() + 1 }, ROWS>(
                "samples",
                offset_of!($name, samples),
                &columns(&$table),
                "The last samples, one a second.",
            )];
        }
    };
}

ring!(
    /// The machine, its cgroup and the host: the section `samples`.
    MachineRing, "samples", &[], MACHINE
);
ring!(
    /// A vCPU.
    VcpuRing, "vcpu_samples", &["vcpu"], VCPU
);
ring!(
    /// A virtqueue.
    QueueRing, "queue_samples", &["device", "queue"], QUEUE
);

ring!(
    /// The guest's memory, as it tells by its balloon.
    BalloonRing, "balloon_samples", &[], BALLOON
);

trait Ring: Section {
    fn push(&self, at: Ticks, words: &[Word], clock: Clock);
}

/// Where a number is read.
struct Word {
    /// `None` where the host does not tell.
    probe: Option<Probe>,
    take: Take,
}

impl Word {
    fn value(&self, now: Ticks, clock: Clock) -> u64 {
        let Some(probe) = &self.probe else {
            return 0;
        };
        match (self.take, probe) {
            (Take::Sum, probe) => probe.sum(),
            (Take::Row(row), probe) => probe.row(row),
            (Take::Age, probe) => match probe.value() {
                0 => 0,
                since => clock.ns_between(since, now),
            },
            (Take::Value | Take::Thread | Take::Statistic(_), probe) => probe.value(),
        }
    }
}

struct Sampler<T: Section> {
    block: Block<T>,
    words: Vec<Word>,
}

/// What knows the rows of tables whose names are made at the start.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Threads.
    pub tasks: &'a TaskSampler,
    /// KVM's statistics of a vCPU; the same for each.
    pub kvm: Option<&'a KvmSampler<KvmVcpuBlock>>,
}

impl<T: Ring> Sampler<T> {
    fn place(
        black_box: &mut BlackBox,
        instance: &str,
        table: &[Number],
        rows: Rows<'_>,
    ) -> Result<Self, BlackBoxError> {
        let name = match instance {
            "" => T::KIND.to_owned(),
            instance => format!("{}/{instance}", T::KIND),
        };
        let block = black_box.section(&name, &[])?;
        let words = table.iter().map(|Number(_, section, field, take)| {
            let section = match section.ends_with('/') {
                true => format!("{section}{instance}"),
                false => (*section).to_owned(),
            };
            let take = match *take {
                Take::Thread => Some(Take::Row(rows.tasks.row(&format!("vcpu-{instance}")))),
                Take::Statistic(name) => rows.kvm.and_then(|kvm| kvm.row(name)).map(Take::Row),
                take => Some(take),
            };
            Word {
                probe: take.and_then(|_| black_box.probe(&section, field)),
                take: take.unwrap_or(Take::Value),
            }
        });
        let words = words.collect();
        Ok(Sampler { block, words })
    }

    fn sample(&self, at: Ticks, clock: Clock) {
        self.block.push(at, &self.words, clock);
    }
}

/// All rings of a VM; sampled by the watcher after its other sources.
pub struct Samples {
    machine: Sampler<MachineRing>,
    vcpus: Vec<Sampler<VcpuRing>>,
    queues: Vec<Sampler<QueueRing>>,
    balloon: Option<Sampler<BalloonRing>>,
}

impl Samples {
    /// Places a ring for the machine, and one for each vCPU, each queue and a balloon with statistics
    /// that has a section by now, as those have that the numbers come from.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`].
    pub fn new(black_box: &mut BlackBox, rows: Rows<'_>) -> Result<Self, BlackBoxError> {
        let machine = Sampler::place(black_box, "", &MACHINE, rows)?;
        let instances = |kind| -> Vec<String> {
            let names = black_box.names_of(kind);
            let parts = names.filter_map(|name| name.split_once('/'));
            parts.map(|(_, instance)| instance.to_owned()).collect()
        };
        let (vcpus, queues) = (instances("vcpu"), instances("queue"));
        let vcpus = vcpus
            .iter()
            .map(|vcpu| Sampler::place(black_box, vcpu, &VCPU, rows));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let queues = queues
            .iter()
            .map(|queue| Sampler::place(black_box, queue, &QUEUE, rows));
        let queues = queues.collect::<Result<_, _>>()?;
        // Statistics are there from the start or never.
        let interval = black_box.probe("balloon", "interval");
        let tells = interval.is_some_and(|interval| interval.value() > 0);
        let balloon = tells.then(|| Sampler::place(black_box, "", &BALLOON, rows));
        Ok(Samples {
            machine,
            vcpus,
            queues,
            balloon: balloon.transpose()?,
        })
    }

    /// Appends a row to each ring.
    pub fn sample(&self) {
        let clock = Clock::process();
        let at = clock.ticks();
        self.machine.sample(at, clock);
        self.vcpus.iter().for_each(|vcpu| vcpu.sample(at, clock));
        self.queues.iter().for_each(|queue| queue.sample(at, clock));
        self.balloon.iter().for_each(|one| one.sample(at, clock));
    }

    /// What the rings of a VM take in its black box, for [`BlackBox::capacity_for`].
    pub const fn section_bytes(vcpus: usize, queues: usize, balloons: usize) -> usize {
        BlackBox::section_bytes::<MachineRing>()
            + vcpus * BlackBox::section_bytes::<VcpuRing>()
            + queues * BlackBox::section_bytes::<QueueRing>()
            + balloons * BlackBox::section_bytes::<BalloonRing>()
    }
}
