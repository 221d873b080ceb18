//! What one vCPU thread counts: its block in the black box, written by that thread alone.

use std::mem::offset_of;

use super::places::{PLACES, PlaceRow, Places};
use devices::bus::{AccessCounters, DEVICE_ROWS};
use observe::{Counter, Field, FieldKind, FlightRing, Heartbeat, Histogram, Section, Unit};

/// Kinds of user exits: KVM's exit reasons, with port and MMIO accesses split by direction. The
/// number is the row in the counters and the heartbeat's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// IN, REP INS (KVM_EXIT_IO).
    IoIn = 0,
    /// OUT, REP OUTS (KVM_EXIT_IO).
    IoOut = 1,
    /// A load from no RAM (KVM_EXIT_MMIO).
    MmioRead = 2,
    /// A store to no RAM (KVM_EXIT_MMIO).
    MmioWrite = 3,
    /// HLT without the in-kernel irqchip (KVM_EXIT_HLT).
    Halt = 4,
    /// Triple fault (KVM_EXIT_SHUTDOWN).
    Shutdown = 5,
    /// KVM_RUN returned for a signal: a kick (EINTR, EAGAIN, KVM_EXIT_INTR).
    Interrupted = 6,
    /// KVM_EXIT_SYSTEM_EVENT.
    SystemEvent = 7,
    /// KVM_EXIT_FAIL_ENTRY.
    FailEntry = 8,
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError = 9,
    /// KVM_EXIT_HYPERCALL.
    Hypercall = 10,
    /// KVM_EXIT_DEBUG.
    Debug = 11,
    /// KVM_EXIT_MEMORY_FAULT, or EFAULT from KVM_RUN.
    MemoryFault = 12,
    /// Any other reason.
    Other = 13,
}

impl ExitKind {
    /// Whether it is an access to a port or to MMIO.
    pub const fn is_access(self) -> bool {
        self as u8 <= ExitKind::MmioWrite as u8
    }
}

/// Rows of the exit table.
pub const EXIT_KINDS: usize = 14;

/// Names of the rows, as `reason` labels.
pub const EXIT_NAMES: [&str; EXIT_KINDS] = [
    "io_in",
    "io_out",
    "mmio_read",
    "mmio_write",
    "hlt",
    "shutdown",
    "interrupted",
    "system_event",
    "fail_entry",
    "internal_error",
    "hypercall",
    "debug",
    "memory_fault",
    "other",
];

/// One kind of exit.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ExitRow {
    /// How many.
    pub count: Counter,
    /// Time in the VMM, from KVM_RUN's return to the next call.
    pub handler: Histogram,
}

/// The block of one vCPU. An exit writes to three of its pages: what every exit writes is on the
/// first, then come the ring's, then the rows by reason. Each page is a TLB entry that the guest
/// and KVM have pushed out since the last exit.
#[repr(C, align(4096))]
pub struct VcpuBlock {
    /// Port and memory-mapped accesses by device.
    pub devices: [AccessCounters; DEVICE_ROWS],
    /// Time inside KVM_RUN, by stay. Its sum is the field `run`.
    pub stay: Histogram,
    /// Times that the thread was paused.
    pub pauses: Counter,
    /// Time in pauses that have ended, and before the first start.
    pub paused_ns: Counter,
    /// Times that the vCPU was looked into.
    pub inspections: Counter,
    /// NMIs that were sent by command.
    pub nmis: Counter,
    _pad: [u64; 10],
    /// What the thread does now.
    pub heartbeat: Heartbeat,
    _pad2: [u64; 4],
    /// The last exits.
    pub flight: FlightRing,
    /// User exits by kind.
    pub exits: [ExitRow; EXIT_KINDS],
    /// User exits by reason and address.
    pub places: Places,
}

const _: () = {
    assert!(offset_of!(VcpuBlock, heartbeat) % 64 == 0);
    assert!(offset_of!(VcpuBlock, flight) % 64 == 0);
    assert!(offset_of!(VcpuBlock, flight) + 64 <= 4096);
};

/// A column of the device table.
const fn access(name: &'static str, unit: Unit, column: usize, help: &'static str) -> Field {
    Field::counter(name, unit, offset_of!(VcpuBlock, devices) + column, help).column(
        DEVICE_ROWS,
        size_of::<AccessCounters>(),
        "device",
    )
}

/// A column of the table of addresses.
const fn place(
    name: &'static str,
    kind: FieldKind,
    unit: Unit,
    column: usize,
    help: &'static str,
) -> Field {
    Field::lone(
        name,
        kind,
        unit,
        offset_of!(VcpuBlock, places) + column,
        help,
    )
    .column(PLACES, size_of::<PlaceRow>(), "place")
}

const EXITS: usize = offset_of!(VcpuBlock, exits);
const READS: usize = offset_of!(AccessCounters, reads);
const WRITES: usize = offset_of!(AccessCounters, writes);
const MISUSE: usize = offset_of!(AccessCounters, misuse);
const HANDLER: usize = offset_of!(AccessCounters, handler_ns);

// SAFETY: repr(C), made of cells, arrays of cells and explicit padding alone.
#[allow(unsafe_code)]
unsafe impl Section for VcpuBlock {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = &[
        Field::lone(
            "heartbeat",
            FieldKind::Heartbeat,
            Unit::Ticks,
            offset_of!(VcpuBlock, heartbeat),
            "What the vCPU thread does now.",
        ),
        Field::counter(
            "run",
            Unit::Nanoseconds,
            offset_of!(VcpuBlock, stay) + Histogram::SUM_OFFSET,
            "Time inside KVM_RUN: guest, exits that KVM handles itself, and halted.",
        ),
        Field::counter(
            "pauses",
            Unit::None,
            offset_of!(VcpuBlock, pauses),
            "Times that the vCPU was paused.",
        ),
        Field::counter(
            "paused",
            Unit::Nanoseconds,
            offset_of!(VcpuBlock, paused_ns),
            "Time in pauses that have ended, and before the start.",
        ),
        Field::counter(
            "inspections",
            Unit::None,
            offset_of!(VcpuBlock, inspections),
            "Times that the vCPU was looked into.",
        ),
        Field::counter(
            "nmis",
            Unit::None,
            offset_of!(VcpuBlock, nmis),
            "NMIs that were sent to the vCPU by command.",
        ),
        Field::histogram(
            "stay",
            Unit::Nanoseconds,
            offset_of!(VcpuBlock, stay),
            "Time inside KVM_RUN, from its call to the user exit.",
        ),
        Field::counter(
            "exits",
            Unit::None,
            EXITS + offset_of!(ExitRow, count),
            "User exits by reason.",
        )
        .column(EXIT_KINDS, size_of::<ExitRow>(), "reason"),
        Field::histogram(
            "exit_handler",
            Unit::Nanoseconds,
            EXITS + offset_of!(ExitRow, handler),
            "Time in the VMM for each user exit, by reason.",
        )
        .column(EXIT_KINDS, size_of::<ExitRow>(), "reason"),
        access(
            "device_reads",
            Unit::None,
            READS,
            "Port and MMIO reads by device.",
        ),
        access(
            "device_writes",
            Unit::None,
            WRITES,
            "Port and MMIO writes by device.",
        ),
        access(
            "device_misuse",
            Unit::None,
            MISUSE,
            "Accesses that bus or device refused.",
        ),
        access(
            "device_handler",
            Unit::Nanoseconds,
            HANDLER,
            "Time in the device's handler.",
        ),
        place(
            "place",
            FieldKind::Gauge,
            Unit::None,
            offset_of!(PlaceRow, place),
            "Which reason and address a row counts.",
        ),
        place(
            "place_exits",
            FieldKind::Counter,
            Unit::None,
            offset_of!(PlaceRow, exits),
            "User exits by reason and address.",
        ),
        place(
            "place_handler",
            FieldKind::Counter,
            Unit::Nanoseconds,
            offset_of!(PlaceRow, handler_ns),
            "Time in the VMM by reason and address.",
        ),
        Field::lone(
            "flight",
            FieldKind::FlightRing,
            Unit::None,
            offset_of!(VcpuBlock, flight),
            "The last user exits: reason, device, width, address, handler time.",
        ),
    ];
}
