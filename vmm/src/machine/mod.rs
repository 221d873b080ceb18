//! The machine: what the `vm` thread owns, and the order in which it starts, pauses, resumes and
//! stops. The order is written here and nowhere else.

mod build;
pub(crate) mod facts;
mod pci;
mod processors;
mod virtio;
mod watch;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devices::legacy::{Console, DebugExit, I8042};
use devices::virtio::DeviceChange;
use devices::virtio::{BalloonHandle, BalloonOrder, BalloonRefusal, IoThread, ThreadBlock};
use kvm_ioctls::VmFd;
use memory::GuestRam;
use observe::blackbox::{End, Pulse};
use observe::{Activity, BlackBox, Block, Clock};

pub use devices::legacy::{
    CMOS_PORT, I8042_PORT, KEYBOARD_GSI as I8042_GSI, POWER_PORT, PVPANIC_HID, PVPANIC_PORT,
    RESET_REGISTER, RESET_VALUE, S5_SLEEP_TYPE, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_REGISTER,
    SLEEP_STATUS_REGISTER,
};

use crate::driver::JOIN_POLL;
use crate::dump::{Capture, DumpError, Holding};
use crate::inspect::{Answer, InspectError, Request};
use crate::lifecycle::VmCommand;
use crate::vcpu::exit::Buses;
use crate::vcpu::{Command, VcpuHandle};
use crate::vm::CommandError;
use crate::watcher::Watcher;
use facts::MachineBlock;

/// The first virtio device's interrupt; below are the PC's own.
pub const FIRST_VIRTIO_GSI: u32 = 5;
/// The IO-APIC's inputs: virtio devices have those from [`FIRST_VIRTIO_GSI`] on.
pub const IOAPIC_INPUTS: u32 = 24;
/// Virtio devices at most.
pub const MAX_VIRTIO_DEVICES: u32 = IOAPIC_INPUTS - FIRST_VIRTIO_GSI;

/// A built machine. Fields are dropped in order: vCPUs before what they use.
pub struct Machine {
    vcpus: Vec<VcpuHandle>,
    io_threads: Vec<IoThread>,
    balloon: Option<BalloonHandle>,
    console: Option<Console>,
    watcher: Option<Watcher>,
    keyboard: Arc<I8042>,
    debug_exit: Arc<DebugExit>,
    pulse: Pulse,
    deadline: Duration,
    black_box: BlackBox,
    keep_black_box: bool,
    block: Block<ThreadBlock>,
    facts: Block<MachineBlock>,
    clock: Clock,
    _buses: Arc<Buses>,
    _vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Machine {
    /// Runs the guest for the first time.
    pub fn start(&mut self) {
        self.block.heartbeat.claim();
        self.facts.started_at.set(self.clock.ticks());
        self.resume_vcpus();
    }

    /// Says that the `vm` thread waits for work, and that the process lives.
    pub fn idle(&self) {
        self.pulse.beat();
        self.block.loops.inc();
        self.block
            .heartbeat
            .enter(Activity::Idle, self.clock.ticks());
    }

    /// Says that the `vm` thread carries out a command.
    pub fn busy(&self, command: VmCommand) {
        let now = self.clock.ticks();
        let heartbeat = &self.block.heartbeat;
        heartbeat.set(Activity::Blocked, command as u8, 0, 0, now);
    }

    /// The code that the guest wrote to the debug-exit port, if it did.
    pub fn exit_code(&self) -> Option<u32> {
        self.debug_exit.code()
    }

    /// The spec's deadline for a step.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A bit for each vCPU.
    pub fn vcpu_mask(&self) -> u64 {
        (0..self.vcpus.len()).fold(0, |mask, index| mask | 1 << index)
    }

    /// Asks all vCPUs to leave the guest; they report when they have, with `number`.
    pub fn pause_vcpus(&mut self, number: u64) {
        self.tell(&Command::Pause(number));
    }

    /// Lets all vCPUs run.
    pub fn resume_vcpus(&mut self) {
        self.tell(&Command::Resume);
    }

    /// Has every vCPU take an NMI; they report when they have, with `number`.
    pub fn nmi(&mut self, number: u64) {
        self.tell(&Command::Nmi(number));
    }

    /// What a dump needs, of a machine that is paused; `holding` keeps it so.
    ///
    /// # Errors
    /// KVM does not give the registers.
    pub fn capture(&self, holding: &mut Holding) -> Result<Capture, DumpError> {
        let vcpus = self.vcpus.iter().enumerate();
        let registers = vcpus
            .map(|(vcpu, handle)| {
                let registers = handle.registers();
                registers.map_err(|source| DumpError::Registers { vcpu, source })
            })
            .collect::<Result<_, _>>()?;
        let bytes = memory::backing::host_ranges(&self.ram);
        let bytes = bytes.iter().map(|(_, bytes, _)| bytes).sum();
        Ok(Capture {
            ram: Arc::clone(&self.ram),
            registers,
            hold: holding.begin(bytes),
        })
    }

    /// Tells the balloon something.
    ///
    /// # Errors
    /// There is none, or it cannot do that.
    pub fn balloon(&self, order: BalloonOrder) -> Result<(), BalloonRefusal> {
        let balloon = self.balloon.as_ref();
        balloon.ok_or(BalloonRefusal::NoBalloon)?.obey(order)
    }

    fn tell(&mut self, command: &Command) {
        for vcpu in &mut self.vcpus {
            vcpu.send(command.clone());
        }
    }

    /// Asks a vCPU for a look into it. Waits for nothing: the vCPU answers.
    pub fn inspect(&mut self, vcpu: u8, request: Request) {
        let have = self.vcpus.len();
        let Some(handle) = self.vcpus.get_mut(usize::from(vcpu)) else {
            let error = InspectError::NoVcpu { vcpu, have };
            return request.answer(Answer::Done(Err(error)));
        };
        // Before the vCPU can answer.
        request.answer(Answer::Asked);
        handle.send(Command::Inspect(request));
    }

    /// The guest's memory, for who looks into the guest as long as it lives.
    pub fn memory(&self) -> Weak<GuestRam> {
        Arc::downgrade(&self.ram)
    }

    /// Changes a drive or an interface, by its id.
    ///
    /// # Errors
    /// There is no such device; it refuses; its thread misses the deadline.
    pub fn change_device(&self, id: &str, change: DeviceChange) -> Result<(), String> {
        let (what, names) = virtio::names(id, &change);
        let mut threads = names.iter().filter_map(|name| {
            let thread = format!("io-{name}");
            self.io_threads.iter().find(|there| there.name() == thread)
        });
        let found = threads.next();
        let found = found.ok_or_else(|| format!("the microVM has no {what} {id}"))?;
        let done = found.change(0, change, self.deadline);
        done.map_err(|error| error.to_string())
    }

    /// Lets every device finish what is in flight and take nothing more.
    ///
    /// # Errors
    /// The name of the thread that missed the deadline.
    pub fn pause_devices(&self, end: Instant) -> Result<(), String> {
        for thread in &self.io_threads {
            thread
                .pause(until(end))
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Lets the devices go on.
    ///
    /// # Errors
    /// The name of a thread that missed the deadline; the others go on.
    pub fn resume_devices(&self) -> Result<(), String> {
        let end = Instant::now() + self.deadline;
        let mut late = Vec::new();
        for thread in &self.io_threads {
            if let Err(error) = thread.resume(until(end)) {
                late.push(error.to_string());
            }
        }
        if late.is_empty() {
            Ok(())
        } else {
            Err(late.join(", "))
        }
    }

    /// Presses Ctrl-Alt-Del.
    ///
    /// # Errors
    /// [`CommandError::Denied`] when the guest has not read its keyboard for long.
    pub fn ctrl_alt_del(&self) -> Result<(), CommandError> {
        self.keyboard.ctrl_alt_del().map_err(|error| {
            tracing::warn!("Ctrl-Alt-Del does not reach the guest: {error}");
            CommandError::Denied {
                command: "Ctrl-Alt-Del",
                reason: "the guest has not read the keys before it; it has no keyboard driver yet, \
                         or hangs",
            }
        })
    }

    /// Stops everything: vCPUs, so that nobody asks devices for more; devices; the console, which
    /// then has all output; the watcher, after its last samples.
    ///
    /// # Errors
    /// The names of the threads that missed the deadline. They are left behind, detached.
    pub fn stop(&mut self) -> Result<(), String> {
        let mut late = Vec::new();
        self.tell(&Command::Stop);
        let end = Instant::now() + self.deadline;
        for (index, vcpu) in self.vcpus.drain(..).enumerate() {
            while !vcpu.is_finished() && Instant::now() < end {
                std::thread::sleep(JOIN_POLL);
            }
            if vcpu.is_finished() {
                vcpu.join();
            } else {
                late.push(format!("vcpu-{index}"));
            }
        }
        for mut thread in self.io_threads.drain(..) {
            if let Err(error) = thread.stop(until(end)) {
                late.push(error.to_string());
            }
        }
        if let Some(Err(error)) = self.console.take().map(|console| console.stop(until(end))) {
            late.push(error.to_string());
        }
        // Last, so that its last samples tell of all that was.
        if let Some(Err(error)) = self.watcher.take().map(|watcher| watcher.stop(until(end))) {
            late.push(error);
        }
        self.block
            .heartbeat
            .enter(Activity::Ended, self.clock.ticks());
        if late.is_empty() {
            Ok(())
        } else {
            Err(late.join(", "))
        }
    }

    /// Writes how the VM ended; removes the file after a clean end unless it is to be kept.
    pub fn close_black_box(&self, end: End, detail: &str) {
        self.black_box.finish(end, detail);
        if end == End::Clean && !self.keep_black_box {
            self.black_box.remove();
        }
    }
}

/// What is left until `end`; a little at least, so that a step that is late lets the next one try.
fn until(end: Instant) -> Duration {
    const LEAST: Duration = Duration::from_millis(100);
    end.saturating_duration_since(Instant::now()).max(LEAST)
}
