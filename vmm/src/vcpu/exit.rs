//! What a user exit asks for, and its dispatch to the buses: the hot path of a VMM.
//!
//! [`dispatch`] is free of KVM: tests feed it exits. It takes no lock, allocates nothing and makes
//! no system call of its own.

use devices::bus::{Access, AccessCounters, Bus, DeviceRow, Effect};
use observe::{Activity, Clock, FlightEvent, Ticks};

use super::counters::{ExitKind, VcpuBlock};
use super::places::PlaceRow;

/// A user exit, with the data that KVM shares with us.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Port reads: `data` holds one or (REP INS) several accesses of `width` bytes.
    IoIn {
        /// The port.
        port: u16,
        /// Bytes an access: 1, 2 or 4.
        width: usize,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// Port writes, as `IoIn`.
    IoOut {
        /// The port.
        port: u16,
        /// Bytes an access.
        width: usize,
        /// What is written.
        data: &'a [u8],
    },
    /// A load.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// To be filled, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// A store.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// What is stored, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// Triple fault.
    Shutdown,
    /// A signal ended KVM_RUN.
    Interrupted,
    /// KVM cannot go on: the words that describe it.
    Fatal {
        /// Which kind.
        kind: ExitKind,
        /// KVM's words: hardware entry failure reason, suberror, errno, ...
        words: [u64; 4],
    },
    /// An exit that asks nothing of us.
    Nothing(ExitKind),
}

impl Exit<'_> {
    /// Its row in the counters.
    pub fn kind(&self) -> ExitKind {
        match self {
            Exit::IoIn { .. } => ExitKind::IoIn,
            Exit::IoOut { .. } => ExitKind::IoOut,
            Exit::MmioRead { .. } => ExitKind::MmioRead,
            Exit::MmioWrite { .. } => ExitKind::MmioWrite,
            Exit::Shutdown => ExitKind::Shutdown,
            Exit::Interrupted => ExitKind::Interrupted,
            Exit::Fatal { kind, .. } | Exit::Nothing(kind) => *kind,
        }
    }
}

/// What the vCPU does after an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    Resume,
    /// Looks for commands: KVM_RUN was interrupted.
    CheckCommands,
    /// Leaves the guest: the machine is to be reset.
    Reset(ResetCause),
    /// Leaves the guest: the machine is to be powered off.
    PowerOff,
    /// Leaves the guest: KVM cannot go on. In a box, since the guest ends with it and all others
    /// stay small.
    Fail(Box<Failure>),
}

/// Why KVM cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which exit.
    pub kind: ExitKind,
    /// KVM's words.
    pub words: [u64; 4],
}

/// How a guest reset the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// By a device: the i8042's reset line or the ACPI reset register.
    Device,
    /// By a triple fault.
    TripleFault,
}

/// The buses of the machine, shared read-only by all vCPUs.
pub struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
}

/// A stay in KVM_RUN: from the end of the last handler to the return.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    /// When the last handler ended.
    pub from: Ticks,
    /// When KVM_RUN returned.
    pub to: Ticks,
}

/// Serves the exit that ended a stay in the guest and accounts both. Gives what to do next and when
/// the handler ended, which is when the guest goes on: one clock read an exit here, one in the
/// caller.
///
/// A clock read waits for what stands before it (RDTSC does so on today's CPUs), so the work is
/// laid out by that: until the second read there are only stores that nothing waits for, and all
/// that has to be computed from the readings comes after it, side by side.
#[allow(clippy::inline_always)] // a part of the vCPU's loop: the exit stays in registers
#[inline(always)]
pub fn dispatch(
    exit: Exit<'_>,
    buses: &Buses,
    block: &VcpuBlock,
    clock: Clock,
    stay: Stay,
) -> (Next, Ticks) {
    let served = |kind, row, address| Served::begin(block, clock, stay, kind, row, address);
    match exit {
        Exit::IoIn { port, width, data } => {
            let target = buses.pio.at(port.into());
            let served = served(ExitKind::IoIn, target.row(), port.into());
            let bytes = data.len();
            each_mut(data, width, |access| served.read(target.read(access)));
            served.end(bytes, Next::Resume)
        }
        Exit::IoOut { port, width, data } => {
            let target = buses.pio.at(port.into());
            let served = served(ExitKind::IoOut, target.row(), port.into());
            let next = each(data, width, |access| served.write(target.write(access)));
            served.end(data.len(), next)
        }
        Exit::MmioRead { address, data } => {
            let target = buses.mmio.at(address);
            let served = served(ExitKind::MmioRead, target.row(), address);
            served.read(target.read(data));
            served.end(data.len(), Next::Resume)
        }
        Exit::MmioWrite { address, data } => {
            let target = buses.mmio.at(address);
            let served = served(ExitKind::MmioWrite, target.row(), address);
            let next = served.write(target.write(data));
            served.end(data.len(), next)
        }
        other => off_bus(&other, block, clock, stay),
    }
}

/// Exits that are no access: rare.
#[cold]
fn off_bus(exit: &Exit<'_>, block: &VcpuBlock, clock: Clock, stay: Stay) -> (Next, Ticks) {
    let next = match exit {
        Exit::Shutdown => Next::Reset(ResetCause::TripleFault),
        Exit::Interrupted => Next::CheckCommands,
        Exit::Fatal { kind, words } => Next::Fail(Box::new(Failure {
            kind: *kind,
            words: *words,
        })),
        _ => Next::Resume,
    };
    Served::begin(block, clock, stay, exit.kind(), NO_DEVICE, 0).end(0, next)
}

/// The row of exits that concern no device.
const NO_DEVICE: DeviceRow = 0;

/// An exit that is being served: the heartbeat says so, and its numbers come at the end.
#[derive(Clone, Copy)]
struct Served<'a> {
    block: &'a VcpuBlock,
    device: &'a AccessCounters,
    place: &'a PlaceRow,
    clock: Clock,
    entered: Ticks,
    stay_ns: u64,
    kind: ExitKind,
    row: DeviceRow,
    address: u64,
}

#[allow(clippy::inline_always)] // as for dispatch
impl<'a> Served<'a> {
    #[inline(always)]
    fn begin(
        block: &'a VcpuBlock,
        clock: Clock,
        stay: Stay,
        kind: ExitKind,
        row: DeviceRow,
        address: u64,
    ) -> Self {
        let stay_ns = clock.ns_between(stay.from, stay.to);
        // At once, not at the end: a handler may hang, and the time before it is the guest's.
        block.stay.record_sum(stay_ns);
        block
            .heartbeat
            .set(Activity::InHandler, kind as u8, row, address, stay.to);
        block.flight.prefetch();
        let device = block.devices.get(usize::from(row));
        Served {
            block,
            device: device.unwrap_or(&block.devices[0]),
            place: block.places.row(kind, address),
            clock,
            entered: stay.to,
            stay_ns,
            kind,
            row,
            address,
        }
    }

    #[inline(always)]
    fn read(&self, access: Access) {
        self.device.reads.inc();
        if access.misuse.is_some() {
            self.device.misuse.inc();
        }
    }

    #[inline(always)]
    fn write(&self, access: Access) -> Next {
        self.device.writes.inc();
        if access.misuse.is_some() {
            self.device.misuse.inc();
        }
        match access.effect {
            Effect::None => Next::Resume,
            Effect::Reset => Next::Reset(ResetCause::Device),
            Effect::PowerOff => Next::PowerOff,
        }
    }

    /// Reads the clock and writes down what the exit took.
    #[inline(always)]
    fn end(self, bytes: usize, next: Next) -> (Next, Ticks) {
        let left = self.clock.ticks();
        let took_ns = self.clock.ns_between(self.entered, left);
        self.block.stay.record_bucket(self.stay_ns);
        let exits = &self.block.exits[self.kind as usize];
        exits.count.inc();
        exits.handler.record(took_ns);
        if self.kind.is_access() {
            self.device.handler_ns.add(took_ns);
        }
        self.place.exits.inc();
        self.place.handler_ns.add(took_ns);
        self.block.flight.push(FlightEvent {
            at: self.entered,
            what: self.kind as u64 | u64::from(self.row) << 16 | (bytes as u64) << 32,
            address: self.address,
            value: took_ns,
        });
        (next, left)
    }
}

/// The accesses of `width` bytes that a write holds: one, or more for a string instruction. Gives
/// what the first of them asks for that asks for anything.
#[inline]
fn each(data: &[u8], width: usize, mut access: impl FnMut(&[u8]) -> Next) -> Next {
    if data.len() == width {
        return access(data);
    }
    let accesses = data.chunks_exact(width.max(1));
    accesses.fold(Next::Resume, |first, one| {
        let asked = access(one);
        if first == Next::Resume { asked } else { first }
    })
}

/// The accesses of `width` bytes that a read fills.
#[inline]
fn each_mut(data: &mut [u8], width: usize, mut access: impl FnMut(&mut [u8])) {
    if data.len() == width {
        return access(data);
    }
    data.chunks_exact_mut(width.max(1)).for_each(access);
}

#[cfg(test)]
mod tests;
