//! What a user exit asks for, and its dispatch to the buses: the hot path of a VMM.
//!
//! [`dispatch`] is free of KVM: tests feed it exits. It takes no lock, allocates nothing and makes
//! no system call of its own.

use devices::bus::{Access, AccessCounters, Bus, Effect};
use observe::{Activity, Clock, FlightEvent, Ticks};

use super::counters::{ExitKind, VcpuBlock};

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

    fn address(&self) -> u64 {
        match self {
            Exit::IoIn { port, .. } | Exit::IoOut { port, .. } => u64::from(*port),
            Exit::MmioRead { address, .. } | Exit::MmioWrite { address, .. } => *address,
            _ => 0,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Exit::IoIn { data, .. } | Exit::MmioRead { data, .. } => data.len() as u64,
            Exit::IoOut { data, .. } | Exit::MmioWrite { data, .. } => data.len() as u64,
            _ => 0,
        }
    }
}

/// What the vCPU does after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    Resume,
    /// Looks for commands: KVM_RUN was interrupted.
    CheckCommands,
    /// Leaves the guest: the machine is to be reset.
    Reset(ResetCause),
    /// Leaves the guest: the machine is to be powered off.
    PowerOff,
    /// Leaves the guest: KVM cannot go on.
    Fail {
        /// Which exit.
        kind: ExitKind,
        /// KVM's words.
        words: [u64; 4],
    },
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

/// Serves one exit and accounts it. `entered` is when KVM_RUN returned; gives what to do next and
/// when the handler ended, which is when the guest goes on: one clock read an exit here, one in
/// the caller.
#[inline]
pub fn dispatch(
    mut exit: Exit<'_>,
    buses: &Buses,
    block: &VcpuBlock,
    clock: Clock,
    entered: Ticks,
) -> (Next, Ticks) {
    let (kind, address, bytes) = (exit.kind(), exit.address(), exit.bytes());
    let row = match kind {
        ExitKind::IoIn | ExitKind::IoOut => buses.pio.row_at(address),
        _ => buses.mmio.row_at(address),
    };
    let on_bus = kind as u8 <= ExitKind::MmioWrite as u8;
    block
        .heartbeat
        .set(Activity::InHandler, kind as u8, row, address, entered);
    let counters = block
        .devices
        .get(usize::from(row))
        .unwrap_or(&block.devices[0]);
    let next = serve(&mut exit, buses, counters);
    let left = clock.ticks();
    let handler_ns = clock.ns_between(entered, left);
    if let Some(exit_row) = block.exits.get(kind as usize) {
        exit_row.count.inc();
        exit_row.handler.record(handler_ns);
    }
    if on_bus {
        counters.handler_ns.add(handler_ns);
    }
    block.flight.push(FlightEvent {
        at: entered,
        what: kind as u64 | u64::from(row) << 16 | bytes << 32,
        address,
        value: handler_ns,
    });
    (next, left)
}

fn serve(exit: &mut Exit<'_>, buses: &Buses, counters: &AccessCounters) -> Next {
    match exit {
        Exit::IoIn { port, width, data } => {
            for access in data.chunks_exact_mut((*width).max(1)) {
                count(
                    counters,
                    &counters.reads,
                    buses.pio.read(u64::from(*port), access),
                );
            }
            Next::Resume
        }
        Exit::IoOut { port, width, data } => {
            let mut next = Next::Resume;
            for access in data.chunks_exact((*width).max(1)) {
                let done = buses.pio.write(u64::from(*port), access);
                next = count(counters, &counters.writes, done);
            }
            next
        }
        Exit::MmioRead { address, data } => {
            count(counters, &counters.reads, buses.mmio.read(*address, data))
        }
        Exit::MmioWrite { address, data } => {
            count(counters, &counters.writes, buses.mmio.write(*address, data))
        }
        Exit::Shutdown => Next::Reset(ResetCause::TripleFault),
        Exit::Interrupted => Next::CheckCommands,
        Exit::Fatal { kind, words } => Next::Fail {
            kind: *kind,
            words: *words,
        },
        Exit::Nothing(_) => Next::Resume,
    }
}

#[inline]
fn count(row: &AccessCounters, direction: &observe::Counter, access: Access) -> Next {
    direction.inc();
    if access.misuse.is_some() {
        row.misuse.inc();
    }
    match access.effect {
        Effect::None => Next::Resume,
        Effect::Reset => Next::Reset(ResetCause::Device),
        Effect::PowerOff => Next::PowerOff,
    }
}

#[cfg(test)]
mod tests;
