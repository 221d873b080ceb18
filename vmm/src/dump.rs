//! Dumps: what a VM is at one moment, as a file. The black box, the registers of all vCPUs, or an
//! ELF core of the guest that gdb and crash open.
//!
//! Runs on the caller's thread. For registers and core the VM stands still: the caller asks the
//! `vm` thread for a pause and for a [`Capture`], and lets the VM go on when it has what it needs.
//! While a capture is held the `vm` thread refuses to resume, up to the dump's deadline.

mod elf;
mod memory;
mod registers;
mod target;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ::memory::GuestRam;
use observe::reader::ReadError;
pub use registers::Registers;
use target::Target;

use crate::lifecycle::{VmCommand, VmState};
use crate::vm::{CommandError, Vm};

/// What a disk must take in a second, at least.
const LEAST_SPEED: u64 = 16 << 20;
/// For all besides the memory.
const LEAST_TIME: Duration = Duration::from_secs(30);
/// Pausing, and asking the `vm` thread.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpKind {
    /// A copy of the black box.
    BlackBox,
    /// An ELF core of the guest's memory, with the registers of its vCPUs.
    Core,
    /// The registers of all vCPUs, as JSON.
    Registers,
}

/// How far a core is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of guest memory that were looked at.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// Why there is no dump. Nothing is left of it, and a VM that ran goes on.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A path that depends on where the process is.
    #[error("the dump's path {} is relative; give an absolute one", .0.display())]
    Relative(PathBuf),
    /// Something else is at the path.
    #[error("{} is there and is not a regular file; give another path for the dump", .0.display())]
    NoFile(PathBuf),
    /// The path is that of the black box in use.
    #[error("{} is the black box itself; give another path for the dump", .0.display())]
    BlackBoxItself(PathBuf),
    /// The folder takes no file.
    #[error("the dump {} cannot be made: {source}; give a path in a folder that this process may write to", path.display())]
    Make {
        /// The dump.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk takes no more.
    #[error("the dump {} cannot be written: {source}; free space or give a path on another disk", path.display())]
    Write {
        /// The dump.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk is too slow.
    #[error(
        "the dump was given up at {done} of {total} bytes, for the guest has stood still too long; \
         give a path on a faster disk"
    )]
    Late {
        /// Bytes that were looked at.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// The VM does not stand still.
    #[error("the microVM cannot be dumped: {0}")]
    Command(#[from] CommandError),
    /// Somebody resumed it between the pause and the dump.
    #[error("the microVM was resumed before it could be dumped; ask again")]
    Resumed,
    /// KVM gives no registers.
    #[error(
        "KVM does not give the registers of vcpu {vcpu}: {source}; the kernel's log may say why"
    )]
    Registers {
        /// Which.
        vcpu: usize,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Guest memory cannot be read.
    #[error("guest memory cannot be read: {0}; this is a fault of Vitrine, please report it")]
    Memory(String),
    /// The black box cannot be read.
    #[error(transparent)]
    BlackBox(#[from] ReadError),
}

/// What the `vm` thread gives of a paused machine.
pub(crate) struct Capture {
    pub ram: Arc<GuestRam>,
    pub registers: Vec<Registers>,
    /// While it lives, the VM is not resumed.
    pub hold: Arc<Hold>,
}

/// Where the answer to a request for a capture goes.
pub(crate) type CaptureReply = Box<dyn FnOnce(Result<Capture, DumpError>) + Send>;

/// Keeps a VM paused.
#[derive(Debug)]
pub(crate) struct Hold {
    until: Instant,
    /// Somebody else asked for a pause meanwhile: it is not to be ended.
    stays: AtomicBool,
}

/// The `vm` thread's side of a hold.
#[derive(Debug, Default)]
pub(crate) struct Holding(Weak<Hold>);

impl Holding {
    /// Begins a hold, for as long as a dump of `bytes` may take.
    pub fn begin(&mut self, bytes: u64) -> Arc<Hold> {
        let hold = Arc::new(Hold {
            until: Instant::now() + deadline(bytes),
            stays: AtomicBool::new(false),
        });
        self.0 = Arc::downgrade(&hold);
        hold
    }

    /// Whether a resume has to wait. A pause is remembered.
    pub fn refuses(&self, command: VmCommand) -> bool {
        let held = self.0.upgrade().filter(|hold| Instant::now() < hold.until);
        if let (Some(hold), VmCommand::Pause) = (&held, command) {
            hold.stays.store(true, Ordering::Release);
        }
        held.is_some() && command == VmCommand::Resume
    }
}

/// How long a dump of a guest with so many bytes of memory may take.
pub fn deadline(bytes: u64) -> Duration {
    LEAST_TIME.saturating_add(Duration::from_secs(bytes / LEAST_SPEED))
}

/// A VM that stands still for a dump, and goes on after it if it ran.
struct Frozen<'a> {
    vm: &'a Vm,
    capture: Option<Capture>,
    ran: bool,
}

impl<'a> Frozen<'a> {
    fn new(vm: &'a Vm) -> Result<Self, DumpError> {
        let mut frozen = Frozen {
            vm,
            capture: None,
            ran: vm.state() == VmState::Running,
        };
        if frozen.ran
            && let Err(error) = vm.command_within(VmCommand::Pause, PATIENCE)
        {
            // One that was refused or given up left the VM as it was.
            frozen.ran = false;
            return Err(error.into());
        }
        let (sender, receiver) = channel();
        vm.capture(Box::new(move |capture| drop(sender.send(capture))))?;
        let late = || CommandError::Deadline {
            command: "a dump",
            late: "the vm thread".to_owned(),
            ms: PATIENCE.as_millis() as u64,
        };
        let answer = receiver.recv_timeout(PATIENCE).map_err(|_| late())?;
        frozen.capture = Some(answer?);
        Ok(frozen)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let stays = self.capture.take().is_some_and(|capture| {
            // The hold ends here, before the resume that it would refuse.
            capture.hold.stays.load(Ordering::Acquire)
        });
        if self.ran && !stays {
            match self.vm.command_within(VmCommand::Resume, PATIENCE) {
                Ok(()) | Err(CommandError::Ended) => {}
                Err(error) => tracing::error!("after a dump: {error}"),
            }
        }
    }
}

impl Vm {
    /// Writes a dump to `path`, mode 0600: it is there when it is whole, in place of a regular file
    /// of that name. A VM that runs is paused for registers and core, and goes on when they are
    /// written. Takes up to [`deadline`] of the guest's memory; for a thread that may wait.
    ///
    /// # Errors
    /// [`DumpError`]; nothing is left of the dump then.
    pub fn dump(
        &self,
        kind: DumpKind,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DumpError> {
        let reader = self.black_box();
        let target = Target::create(path, Some(reader.file()))?;
        match kind {
            DumpKind::BlackBox => target.write_at(&reader.copy()?, 0)?,
            DumpKind::Registers => {
                let frozen = Frozen::new(self)?;
                let registers = frozen.capture.as_ref().map(|capture| &capture.registers);
                let text = registers
                    .map(|all| registers::json(all))
                    .unwrap_or_default();
                drop(frozen);
                target.write_at(text.as_bytes(), 0)?;
            }
            DumpKind::Core => {
                let frozen = Frozen::new(self)?;
                if let Some(capture) = &frozen.capture {
                    write_core(capture, &target, progress)?;
                }
            }
        }
        target.settle()
    }
}

fn write_core(
    capture: &Capture,
    target: &Target,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), DumpError> {
    let regions: Vec<(u64, u64)> = ::memory::backing::host_ranges(&capture.ram)
        .into_iter()
        .map(|(guest, bytes, _)| (guest, bytes))
        .collect();
    let head = elf::head(&regions, &capture.registers);
    target.set_length(head.file_bytes)?;
    target.write_at(&head.bytes, 0)?;
    let end = capture.hold.until;
    memory::copy(&capture.ram, &head.pieces, target, end, progress)
}

#[cfg(test)]
mod tests;
