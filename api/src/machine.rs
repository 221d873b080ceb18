//! What the API needs of a VM, so that every answer can be tested without one.
//!
//! The binary implements these traits over `vmm::Vm`; tests implement them with a fake.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmm::observe::reader::Snapshot;
use vmm::observe::verdict::Change;
use vmm::{BalloonOrder, DeviceChange, DumpKind, Standing, VmSpec};

/// What a VM can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop all vCPUs; no effect when they are.
    Pause,
    /// Let all vCPUs run; no effect when they do.
    Resume,
    /// Press Ctrl-Alt-Del on the guest's keyboard.
    CtrlAltDel,
    /// Send an NMI to every vCPU.
    Nmi,
    /// Tell the balloon something.
    Balloon(BalloonOrder),
    /// End the VM in order.
    Stop,
}

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// Its vCPUs run.
    Running,
    /// They are stopped and can go on.
    Paused,
    /// It has ended and is started again in a while.
    Waiting,
    /// The VM has ended or failed.
    Stopped,
}

/// Why a VM did not do as it was told: the whole chain of causes in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(String);

impl MachineError {
    /// Takes an error and all that it came from.
    pub fn new(error: &dyn Error) -> MachineError {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            let cause = source.to_string();
            // Many errors say their source's text already.
            if !text.contains(&cause) {
                text.push_str(": ");
                text.push_str(&cause);
            }
            next = source.source();
        }
        MachineError(text)
    }
}

impl From<&str> for MachineError {
    fn from(text: &str) -> Self {
        MachineError(text.to_owned())
    }
}

/// Called once with a command's outcome, on any thread.
pub type Reply = Box<dyn FnOnce(Result<(), MachineError>) + Send>;

/// A VM that was launched.
pub trait Machine: Send + Sync {
    /// Tells the VM something. Returns at once; `reply` is called when it is done, or dropped.
    fn command(&self, command: Command, reply: Reply);

    /// Changes the drive or interface `id`: another file or limit. Returns at once; `reply` as for
    /// [`Machine::command`].
    fn change_device(&self, id: &str, change: DeviceChange, reply: Reply);

    /// Ends the VM in order, as one that has failed for this reason. Returns at once.
    fn fail(&self, reason: String);

    /// What the VM is doing; never waits.
    fn state(&self) -> MachineState;

    /// All that is counted of the VM, as OpenMetrics text with or without its `# EOF`. Read from
    /// the black box: never waits on a thread of the VM.
    ///
    /// # Errors
    /// The black box cannot be read.
    fn openmetrics(&self) -> Result<String, MachineError>;

    /// What the black box holds now, read as [`Machine::openmetrics`] does.
    ///
    /// # Errors
    /// The black box cannot be read.
    fn snapshot(&self) -> Result<Snapshot, MachineError>;

    /// What is wrong with the VM, as it was last judged; never waits.
    fn standing(&self) -> Arc<Standing>;

    /// Writes a dump to `path`; `progress` is told bytes that are done and all bytes. Takes
    /// [`Machine::dump_deadline`] at most, and waits on the VM's threads and the disk.
    ///
    /// # Errors
    /// Why there is none; nothing is left of it.
    fn dump(
        &self,
        kind: DumpKind,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), MachineError>;

    /// How long a dump of a VM of this size may take.
    fn dump_deadline(&self) -> Duration;

    /// Where the black box lies, for people.
    fn black_box(&self) -> String;

    /// How often it was started; a VM that is not started again has one run.
    fn runs(&self) -> Runs {
        Runs {
            number: 1,
            ..Runs::default()
        }
    }
}

/// Why a VM is started again; names are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartCause {
    /// The VM failed.
    Failed,
    /// The guest's kernel gave up.
    GuestPanic,
    /// The guest reset the machine.
    Reboot,
    /// A verdict, and the policy's action.
    Verdict,
}

impl RestartCause {
    /// All of them, in the order of [`Runs::restarts`].
    pub const ALL: [RestartCause; 4] = [
        RestartCause::Failed,
        RestartCause::GuestPanic,
        RestartCause::Reboot,
        RestartCause::Verdict,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            RestartCause::Failed => "failed",
            RestartCause::GuestPanic => "guest-panic",
            RestartCause::Reboot => "reboot",
            RestartCause::Verdict => "verdict",
        }
    }
}

/// The runs of one VM in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// The number of the newest, from 1; 0 before the start.
    pub number: u64,
    /// When it was begun, in milliseconds since 1970; 0 if that is not known.
    pub began_ms: u64,
    /// Restarts by [`RestartCause::ALL`].
    pub restarts: [u64; RestartCause::ALL.len()],
}

/// How a VM ended, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As the guest or the operator wanted.
    Fine(String),
    /// The guest reset the machine.
    Rebooted(String),
    /// The guest's kernel gave up, and then the guest reset the machine or powered off.
    Panicked(String),
    /// It failed.
    Failed(String),
}

/// What a VM's owner is told of it, in order; the end is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// What is wrong with it has changed.
    Verdict(Change),
    /// It has ended.
    Ended(Ending),
}

/// Makes VMs.
pub trait Launcher: Send + Sync {
    /// Builds and starts a VM; returns when its guest runs. May take hundreds of milliseconds.
    ///
    /// # Errors
    /// What could not be had, and the remedy; nothing is left behind.
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the tap")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_is_told_once() {
        let inner = std::io::Error::other("device busy");
        assert_eq!(
            MachineError::new(&Outer(inner)).to_string(),
            "cannot open the tap: device busy"
        );
    }
}
