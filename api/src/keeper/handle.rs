//! The VM as all see it: its newest run.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vmm::observe::reader::Snapshot;
use vmm::{DeviceChange, DumpKind, Standing};

use super::Keeper;
use crate::machine::{Command, Machine, MachineError, MachineState, Reply, Runs};

impl Keeper {
    /// Has the newest run carry out a command. Nothing of it is kept for the runs to come.
    pub(super) fn pass(&self, command: Command, reply: Reply) {
        match self.machine() {
            Ok(_) if self.lock().is_waiting => {
                reply(Err("the microVM is started again in a while".into()));
            }
            Ok(machine) => machine.command(command, reply),
            Err(error) => reply(Err(error)),
        }
    }
}

impl Machine for Keeper {
    fn command(&self, command: Command, reply: Reply) {
        let Command::Balloon(order) = command else {
            return self.pass(command, reply);
        };
        // The next run has what a client asked for last.
        let keeper = self.clone();
        let remember = move |done: Result<(), MachineError>| {
            if done.is_ok() {
                keeper.note_balloon(order);
            }
            reply(done);
        };
        self.pass(command, Box::new(remember));
    }

    fn change_device(&self, id: &str, change: DeviceChange, reply: Reply) {
        let machine = match self.machine() {
            Ok(_) if self.lock().is_waiting => {
                return reply(Err("the microVM is started again in a while".into()));
            }
            Ok(machine) => machine,
            Err(error) => return reply(Err(error)),
        };
        // The next run has what this one had at its end.
        let (keeper, device, changed) = (self.clone(), id.to_owned(), change.clone());
        let remember = move |done: Result<(), MachineError>| {
            if done.is_ok() {
                keeper.note_change(&device, &changed);
            }
            reply(done);
        };
        machine.change_device(id, change, Box::new(remember));
    }

    fn fail(&self, reason: String) {
        if let Ok(machine) = self.machine() {
            machine.fail(reason);
        }
    }

    fn state(&self) -> MachineState {
        let state = self.lock();
        let (is_waiting, machine) = (state.is_waiting, state.machine.clone());
        drop(state);
        match machine {
            _ if is_waiting => MachineState::Waiting,
            Some(machine) => machine.state(),
            None => MachineState::Stopped,
        }
    }

    fn openmetrics(&self) -> Result<String, MachineError> {
        self.machine()?.openmetrics()
    }

    fn snapshot(&self) -> Result<Snapshot, MachineError> {
        self.machine()?.snapshot()
    }

    fn standing(&self) -> Arc<Standing> {
        let machine = self.machine();
        machine.map_or_else(|_| Arc::default(), |machine| machine.standing())
    }

    fn dump(
        &self,
        kind: DumpKind,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), MachineError> {
        let machine = self.machine()?;
        self.alone(|| machine.dump(kind, path, progress))
    }

    fn dump_deadline(&self) -> Duration {
        let machine = self.machine();
        machine.map_or(Duration::ZERO, |machine| machine.dump_deadline())
    }

    fn black_box(&self) -> String {
        let machine = self.machine();
        machine.map_or_else(|_| String::new(), |machine| machine.black_box())
    }

    fn runs(&self) -> Runs {
        self.lock().chronicle.runs()
    }
}
