//! What the benchmark of the exit path runs: the path itself, as vCPU threads take it, and the same
//! without anything that observes. Behind the feature `measure`, for `benches/exits.rs` alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::bus::{Bus, BusKind, Effect};
use devices::legacy::{POST_PORT, PostCodes};
use kvm_ioctls::{VcpuFd, VmFd};
use memory::{Bytes, GuestAddress, GuestRam, MemorySpec};
use observe::{BlackBox, Block, Clock, Meta};

use crate::hypervisor::{self, HostError, Hypervisor, refused};
use crate::vcpu::counters::VcpuBlock;
use crate::vcpu::exit::{Buses, Exit, Next, Stay, dispatch};
use crate::vcpu::kvm_run;
use crate::vcpu::thread::step;

/// `again: out %al, $0x80; jmp again` in real mode.
const LOOP: [u8; 4] = [0xE6, 0x80, 0xEB, 0xFC];
const LOOP_AT: u64 = 0x1000;

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Memory, the black box or a device.
    #[error("the benchmark's machine cannot be made: {0}")]
    Machine(String),
    /// The guest did something else than to write to its port.
    #[error("the guest left its loop: {0}")]
    Guest(String),
}

fn machine(error: impl std::fmt::Display) -> MeasureError {
    MeasureError::Machine(error.to_string())
}

/// A bus with one device, and a vCPU's block in a black box.
pub struct Path {
    buses: Buses,
    block: Block<VcpuBlock>,
    _black_box: BlackBox,
    clock: Clock,
}

impl Path {
    /// The path of one vCPU.
    ///
    /// # Errors
    /// [`MeasureError::Machine`].
    pub fn new() -> Result<Path, MeasureError> {
        let meta = Meta {
            vm_id: "bench".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).map_err(machine)?;
        let mut pio = Bus::new(BusKind::Pio);
        pio.insert(
            u64::from(POST_PORT),
            1,
            "post",
            Arc::new(PostCodes::default()),
        )
        .map_err(machine)?;
        Ok(Path {
            buses: Buses {
                pio,
                mmio: Bus::new(BusKind::Mmio),
            },
            block: black_box.section("vcpu/0", &[]).map_err(machine)?,
            _black_box: black_box,
            clock: Clock::process(),
        })
    }

    /// `exits` port writes as a vCPU thread serves and accounts them, KVM_RUN left out.
    pub fn observed(&self, exits: u64) -> Duration {
        let (block, clock) = (&self.block, self.clock);
        let started = Instant::now();
        let mut resumed = clock.ticks();
        for number in 0..exits {
            block.heartbeat.enter(observe::Activity::InGuest, resumed);
            let stay = Stay {
                from: resumed,
                to: clock.ticks(),
            };
            let data = std::hint::black_box([number as u8]);
            let exit = Exit::IoOut {
                port: POST_PORT,
                width: 1,
                data: &data,
            };
            let (next, left) = dispatch(exit, &self.buses, block, clock, stay);
            std::hint::black_box(next);
            resumed = left;
        }
        started.elapsed()
    }

    /// The same port writes, served and not accounted.
    pub fn bare(&self, exits: u64) -> Duration {
        let started = Instant::now();
        for number in 0..exits {
            let data = std::hint::black_box([number as u8]);
            let exit = Exit::IoOut {
                port: POST_PORT,
                width: 1,
                data: &data,
            };
            std::hint::black_box(serve(&std::hint::black_box(exit), &self.buses));
        }
        started.elapsed()
    }
}

/// What a VMM that observes nothing does with an exit.
#[inline]
fn serve(exit: &Exit<'_>, buses: &Buses) -> Option<Effect> {
    match exit {
        Exit::IoOut { port, width, data } => {
            let mut effect = Effect::None;
            for access in data.chunks_exact((*width).max(1)) {
                effect = buses.pio.write(u64::from(*port), access).effect;
            }
            Some(effect)
        }
        _ => None,
    }
}

/// A guest on this host's KVM that writes to a port for ever.
pub struct Guest {
    path: Path,
    fd: VcpuFd,
    run_bytes: usize,
    _vm: VmFd,
    _ram: GuestRam,
}

impl Guest {
    /// The guest, before its first instruction.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn new() -> Result<Guest, MeasureError> {
        let path = Path::new()?;
        let vm = Hypervisor::open()?.create_vm()?;
        let spec = MemorySpec {
            size_mib: 1,
            ..MemorySpec::default()
        };
        let ram = memory::build(&spec).map_err(machine)?;
        ram.write_slice(&LOOP, GuestAddress(LOOP_AT))
            .map_err(machine)?;
        hypervisor::give_memory(&vm, &ram)?;
        let fd = vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU"))?;
        let mut special = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        special.cs.base = 0;
        special.cs.selector = 0;
        fd.set_sregs(&special).map_err(refused("KVM_SET_SREGS"))?;
        let mut general = fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        (general.rip, general.rflags) = (LOOP_AT, 2);
        fd.set_regs(&general).map_err(refused("KVM_SET_REGS"))?;
        Ok(Guest {
            path,
            fd,
            run_bytes: vm.run_size(),
            _vm: vm,
            _ram: ram,
        })
    }

    /// `exits` exits as a vCPU thread takes them.
    ///
    /// # Errors
    /// [`MeasureError::Guest`].
    pub fn observed(&mut self, exits: u64) -> Result<Duration, MeasureError> {
        let Path {
            buses,
            block,
            clock,
            ..
        } = &self.path;
        let started = Instant::now();
        let mut resumed = clock.ticks();
        for _ in 0..exits {
            let (next, left) = step(&mut self.fd, self.run_bytes, buses, block, *clock, resumed);
            resumed = left;
            match next {
                Next::Resume | Next::CheckCommands => {}
                other => return Err(MeasureError::Guest(format!("{other:?}"))),
            }
        }
        Ok(started.elapsed())
    }

    /// `exits` exits, served and not accounted.
    ///
    /// # Errors
    /// [`MeasureError::Guest`].
    pub fn bare(&mut self, exits: u64) -> Result<Duration, MeasureError> {
        let started = Instant::now();
        for _ in 0..exits {
            match self.fd.run().err().map(kvm_ioctls::Error::errno) {
                None => {}
                Some(libc::EINTR | libc::EAGAIN) => continue,
                Some(errno) => return Err(MeasureError::Guest(format!("KVM_RUN gave {errno}"))),
            }
            let exit = kvm_run::exit(self.fd.get_kvm_run(), self.run_bytes);
            if serve(&exit, &self.path.buses) != Some(Effect::None) {
                return Err(MeasureError::Guest("another exit".to_owned()));
            }
        }
        Ok(started.elapsed())
    }

    /// Port writes that were accounted so far.
    pub fn counted(&self) -> u64 {
        let row = crate::vcpu::counters::ExitKind::IoOut as usize;
        self.path
            .block
            .exits
            .get(row)
            .map_or(0, |row| row.count.value())
    }
}
