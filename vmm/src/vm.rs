//! The handle on a VM and the `vm` thread behind it, the state driver.

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use devices::legacy::{GuestMessage, PanicKind, WatchBlock};
use devices::virtio::{BalloonBlock, BalloonOrder, BalloonRefusal, DeviceChange, ThreadBlock};
use memory::GuestRam;
use observe::reader::{ReadError, Reader, Snapshot};
use observe::verdict::Change;
use observe::{BlackBox, BlackBoxError, Meta};

use crate::boot::BootError;
use crate::driver::{Driver, Message};
use crate::dump::CaptureReply;
use crate::hypervisor::HostError;
use crate::inspect::{self, InspectError, VcpuSight, VcpuView};
use crate::lifecycle::{VmCommand, VmState};
use crate::machine::Machine;
use crate::spec::{NetSpec, VmSpec};
use crate::validate::SpecError;
use crate::vcpu::exit::ResetCause;
use crate::watcher::judge::{Board, Owner, Standing};
use crate::watcher::samples::Samples;

/// Longest time that building a machine may take.
const BUILD_DEADLINE: Duration = Duration::from_secs(120);

/// Why a VM could not be launched. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec is not one that can be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The host cannot run guests.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The black box.
    #[error(transparent)]
    BlackBox(#[from] BlackBoxError),
    /// A device.
    #[error("{device}: {detail}")]
    Device {
        /// Which.
        device: String,
        /// What is wrong and what to do.
        detail: String,
    },
    /// The host is out of threads or descriptors.
    #[error("the host refused {what}: {source}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// The `vm` thread ended or did not answer.
    #[error("the vm thread did not build the machine: {0}")]
    Thread(String),
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not in this state.
    #[error("{command} is refused: {reason}")]
    Denied {
        /// What was asked.
        command: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A thread did not do its part in time; the VM is as it was before.
    #[error("{command} was given up: {late} did not answer within {ms} ms")]
    Deadline {
        /// What was asked.
        command: &'static str,
        /// Who was late.
        late: String,
        /// The deadline.
        ms: u64,
    },
    /// The balloon cannot do it.
    #[error(transparent)]
    Balloon(#[from] BalloonRefusal),
    /// A device does not take it; it is as it was before.
    #[error("{0}")]
    Refused(String),
    /// The VM ended meanwhile.
    #[error("the microVM has ended")]
    Ended,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest wrote this code to the debug-exit port.
    Exit(u32),
    /// The guest reset the machine.
    Reset(ResetCause),
    /// The guest's kernel gave up, and then the guest reset the machine or powered off: what its
    /// console said, and what it did. The words are the guest's.
    Panicked {
        /// The panic's line.
        line: String,
        /// What followed.
        then: String,
    },
    /// It was stopped by command.
    Stopped,
    /// It failed: what happened.
    Failed(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("the guest powered off"),
            Outcome::Exit(code) => write!(f, "the guest ended with code {code}"),
            Outcome::Reset(ResetCause::Device) => f.write_str("the guest reset the machine"),
            Outcome::Reset(ResetCause::TripleFault) => f.write_str("the guest triple-faulted"),
            Outcome::Panicked { line, then } => {
                write!(f, "the guest's kernel gave up ({line}), and then {then}")
            }
            Outcome::Stopped => f.write_str("stopped by command"),
            Outcome::Failed(detail) => f.write_str(detail),
        }
    }
}

/// What happens to a VM, in order; [`VmEvent::Ended`] is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum VmEvent {
    /// The guest runs.
    Started,
    /// The guest is paused.
    Paused,
    /// The guest goes on.
    Resumed,
    /// Every vCPU was sent an NMI.
    NmiSent,
    /// A device or a host resource behind it has trouble; the VM goes on.
    Device {
        /// Which.
        device: String,
        /// What happened.
        detail: String,
    },
    /// What is wrong with the VM has changed; judged at that `CLOCK_MONOTONIC` time.
    Verdict(Change, u64),
    /// The guest's kernel said on its console that something is wrong; the VM goes on.
    Guest(GuestMessage),
    /// The guest's kernel told the pvpanic device that it gave up: of each kind the first time.
    GuestPanic(PanicKind),
    /// The VM is gone; all its threads have ended but `vm`, which says so and then ends.
    Ended(Outcome),
}

/// Answers a command, from the `vm` thread.
pub type Reply = Box<dyn FnOnce(Result<(), CommandError>) + Send>;

/// What the handle and the `vm` thread share.
pub(crate) struct Shared {
    pub state: AtomicU8,
    black_box: Reader,
    board: Arc<Board>,
    ram: OnceLock<Weak<GuestRam>>,
    kernel: OnceLock<inspect::Kernel>,
}

/// A running VM. Cheap to clone; the VM ends by its guest, by [`VmCommand::Stop`], or by a failure,
/// not by dropping handles.
#[derive(Clone)]
pub struct Vm {
    shared: Arc<Shared>,
    inbox: Sender<Message>,
}

impl Vm {
    /// Builds the machine and runs the guest. Returns when the guest runs; `events` tells all that
    /// follows.
    ///
    /// # Errors
    /// [`LaunchError`], naming the thing, the cause and the remedy; nothing is left behind.
    pub fn launch(
        spec: VmSpec,
        events: impl Fn(VmEvent) + Send + 'static,
    ) -> Result<Vm, LaunchError> {
        Vm::launch_with(spec, |_| Ok(()), events)
    }

    /// As [`Vm::launch`]; `extend` is called at once and may place a section of a thread of its
    /// own, a [`crate::ThreadBlock`], in the new black box.
    ///
    /// # Errors
    /// As [`Vm::launch`], and those of `extend`.
    pub fn launch_with(
        spec: VmSpec,
        extend: impl FnOnce(&mut BlackBox) -> Result<(), BlackBoxError>,
        events: impl Fn(VmEvent) + Send + 'static,
    ) -> Result<Vm, LaunchError> {
        spec.validate()?;
        let mut black_box = create_black_box(&spec)?;
        if let Err(error) = extend(&mut black_box) {
            black_box.remove();
            return Err(error.into());
        }
        let host = |what| move |source| LaunchError::Refused { what, source };
        let shared = Arc::new(Shared {
            state: AtomicU8::new(VmState::Starting as u8),
            black_box: open_reader(&black_box)?,
            board: Arc::default(),
            ram: OnceLock::new(),
            kernel: OnceLock::new(),
        });
        let (inbox, messages) = channel();
        let (built, outcome) = channel();
        let owner = Owner {
            inbox: inbox.clone(),
            board: Arc::clone(&shared.board),
        };
        let thread_shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("vm".to_owned())
            .spawn(move || {
                match Machine::build(&spec, black_box, &owner) {
                    Ok(machine) => {
                        let _ = thread_shared.ram.set(machine.memory());
                        let events = Box::new(events);
                        let driver = Driver::new(machine, thread_shared, messages, events);
                        driver.main(move || built.send(Ok(())).is_ok());
                    }
                    Err(error) => drop(built.send(Err(error))),
                };
            })
            .map_err(host("the vm thread"))?;
        match outcome.recv_timeout(BUILD_DEADLINE) {
            Ok(Ok(())) => Ok(Vm { shared, inbox }),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(LaunchError::Thread(format!(
                "no answer within {BUILD_DEADLINE:?}"
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(LaunchError::Thread(
                "it ended unexpectedly; the log has the panic".to_owned(),
            )),
        }
    }

    /// Asks for `command`; `reply` is called by the `vm` thread when it is done or refused, within
    /// the deadline of the spec. It is called at once when the VM has ended.
    pub fn command(&self, command: VmCommand, reply: Reply) {
        if let Err(returned) = self.inbox.send(Message::Command(command, reply))
            && let Message::Command(_, reply) = returned.0
        {
            reply(Err(CommandError::Ended));
        }
    }

    /// Tells the balloon something; `reply` is called as [`Vm::command`] does. It does not wait for
    /// the guest, which makes the balloon larger or smaller in its own time.
    pub fn balloon(&self, order: BalloonOrder, reply: Reply) {
        if let Err(returned) = self.inbox.send(Message::Balloon(order, reply))
            && let Message::Balloon(_, reply) = returned.0
        {
            reply(Err(CommandError::Ended));
        }
    }

    /// As [`Vm::command`], waiting at most `deadline`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn command_within(
        &self,
        command: VmCommand,
        deadline: Duration,
    ) -> Result<(), CommandError> {
        let (sender, receiver) = channel();
        self.command(command, Box::new(move |answer| drop(sender.send(answer))));
        receiver.recv_timeout(deadline).unwrap_or_else(|_| {
            Err(CommandError::Deadline {
                command: command.word(),
                late: "the vm thread".to_owned(),
                ms: deadline.as_millis() as u64,
            })
        })
    }

    /// Changes the drive or the interface `id` while the guest has it: another file for a drive, of
    /// which the guest is told the size, or another limit. `reply` is called as by [`Vm::command`].
    pub fn change_device(&self, id: &str, change: DeviceChange, reply: Reply) {
        let message = Message::ChangeDevice(id.to_owned(), change, reply);
        if let Err(returned) = self.inbox.send(message)
            && let Message::ChangeDevice(_, _, reply) = returned.0
        {
            reply(Err(CommandError::Ended));
        }
    }

    /// Looks into vCPU `vcpu`: what its registers, its interrupts and its timer are. It is kicked out
    /// of the guest for some microseconds and goes on as before, running or paused; the guest is not
    /// changed. Waits at most `within`.
    ///
    /// # Errors
    /// [`InspectError`], naming who was late and what it does.
    pub fn inspect(&self, vcpu: u8, within: Duration) -> Result<VcpuView, InspectError> {
        inspect::ask(self, vcpu, within, None).map(|sight| sight.view)
    }

    /// As [`Vm::inspect`], with the names of where the guest's kernel is and of who called it. These
    /// are read from the guest's memory by the calling thread, after the vCPU has gone on; the top of
    /// the stack is copied with the registers. A guest whose kernel has no symbols gives addresses.
    ///
    /// # Errors
    /// [`InspectError`].
    pub fn look(&self, vcpu: u8, within: Duration) -> Result<VcpuSight, InspectError> {
        let ram = self.shared.ram.get().and_then(Weak::upgrade);
        let ram = ram.ok_or(InspectError::Ended)?;
        let sight = inspect::ask(self, vcpu, within, Some(Arc::clone(&ram)))?;
        Ok(inspect::look(&ram, &sight, &self.shared.kernel))
    }

    /// Ends the VM in order, as one that has failed for this reason: its black box stays, and the
    /// last event is [`Outcome::Failed`]. Nothing happens to one that has ended.
    pub fn fail(&self, reason: String) {
        let _ = self.inbox.send(Message::Fail(reason));
    }

    /// Hands a message to the `vm` thread; false when the VM has ended.
    pub(crate) fn post(&self, message: Message) -> bool {
        self.inbox.send(message).is_ok()
    }

    /// Asks the `vm` thread for what a dump of the paused machine needs.
    pub(crate) fn capture(&self, reply: CaptureReply) -> Result<(), CommandError> {
        let sent = self.inbox.send(Message::Capture(reply));
        sent.map_err(|_| CommandError::Ended)
    }

    /// The reader of the black box.
    pub(crate) fn black_box(&self) -> &Reader {
        &self.shared.black_box
    }

    /// What the VM does now. Never waits.
    pub fn state(&self) -> VmState {
        VmState::of(self.shared.state.load(Ordering::Acquire))
    }

    /// What the black box says now. Reads the file: needs no help from any thread of the VM.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.shared.black_box.snapshot()
    }

    /// What is wrong with the VM, as the watcher judged it last. Never waits.
    pub fn standing(&self) -> Arc<Standing> {
        self.shared.board.read()
    }

    /// Where the black box lies; a name in parentheses if no path leads to it.
    pub fn black_box_path(&self) -> &Path {
        self.shared.black_box.path()
    }
}

/// A reader of a black box that this process writes.
pub(crate) fn open_reader(black_box: &BlackBox) -> Result<Reader, LaunchError> {
    let refused = |source| LaunchError::Refused {
        what: "a descriptor for reading the black box",
        source,
    };
    let file = black_box.file().map_err(refused)?;
    let path = black_box.path().unwrap_or(Path::new("(in memory)"));
    Reader::from_file(file, path.to_owned()).map_err(|error| refused(std::io::Error::other(error)))
}

/// Room for the fixed parts, each vCPU and each queue (see docs/blackbox.md).
fn create_black_box(spec: &VmSpec) -> Result<BlackBox, BlackBoxError> {
    /// With the directory that goes with them.
    const fn room(bytes: usize) -> usize {
        BlackBox::capacity_for(bytes) - BlackBox::capacity_for(0)
    }
    // All of it counts as the VMM's memory from the start (`Mapping::new`).
    const FIXED: usize = (128 << 10)
        + observe::host::section_bytes()
        + room(BlackBox::section_bytes::<ThreadBlock>())
        + room(BlackBox::section_bytes::<BalloonBlock>())
        + room(BlackBox::section_bytes::<WatchBlock>());
    const EACH_VCPU: usize = 68 << 10;
    const EACH_QUEUE: usize = 48 << 10;
    let of_drives = spec.drives.iter().map(|drive| usize::from(drive.queues));
    let balloon = spec.balloon.map_or(0, |balloon| balloon.queues());
    let sockets = 3 * usize::from(spec.vsock.is_some());
    let alone = balloon + usize::from(spec.entropy.is_some()) + sockets;
    let of_networks = spec.networks.iter().map(NetSpec::queue_count);
    let queues = of_drives.sum::<usize>() + of_networks.sum::<usize>() + alone;
    let vcpus = usize::from(spec.vcpus);
    let samples = room(Samples::section_bytes(
        vcpus,
        queues,
        usize::from(spec.balloon.is_some()),
    ));
    let bytes = FIXED + vcpus * EACH_VCPU + queues * EACH_QUEUE + samples;
    let meta = Meta {
        vm_id: spec.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match &spec.black_box.path {
        Some(path) => BlackBox::create(path, bytes, &meta),
        None => BlackBox::anonymous(bytes, &meta),
    }
}
