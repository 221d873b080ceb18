//! VMs of the `vmm` crate, behind the traits of [`crate::machine`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use vmm::dump::{self, DumpKind, Progress};
use vmm::observe::BlackBox;
use vmm::observe::openmetrics;
use vmm::observe::reader::Snapshot;
use vmm::observe::verdict::Change;
use vmm::{DeviceChange, Outcome, Standing, Vm, VmCommand, VmEvent, VmSpec, VmState};

use crate::events::{Event, EventLog, FactsWire};
use crate::health;
use crate::machine::{Command, Ending, Launcher, Machine, MachineError, MachineState, News, Reply};
use crate::record::Place;

/// Launches VMs on this host's KVM.
pub struct KvmLauncher {
    events: Arc<EventLog>,
    tell: Arc<dyn Fn(News) + Send + Sync>,
    record: Option<Place>,
}

impl KvmLauncher {
    /// `events` gets what happens to the VM; `tell` is called on any thread, and told
    /// once how a VM that was launched has ended.
    pub fn new(events: Arc<EventLog>, tell: impl Fn(News) + Send + Sync + 'static) -> KvmLauncher {
        KvmLauncher {
            events,
            tell: Arc::new(tell),
            record: None,
        }
    }

    /// Gives each VM's black box the section of the API's thread.
    pub fn recording(self, place: Place) -> KvmLauncher {
        KvmLauncher {
            record: Some(place),
            ..self
        }
    }
}

impl Launcher for KvmLauncher {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        let life = Arc::new(Life {
            marks: AtomicU8::new(0),
            events: Arc::clone(&self.events),
            tell: Arc::clone(&self.tell),
        });
        let listener = Listener(Arc::clone(&life));
        let place = |black_box: &mut BlackBox| match &self.record {
            Some(record) => record.place(black_box),
            None => Ok(()),
        };
        let memory_bytes = spec.memory.size_mib << 20;
        let launched = Vm::launch_with(spec, place, move |event| listener.hear(event));
        let vm = launched.map_err(|error| MachineError::new(&error))?;
        life.mark(LAUNCHED);
        Ok(Arc::new(KvmMachine { vm, memory_bytes }))
    }
}

/// `launch` has returned a VM: that it vanishes is worth telling.
const LAUNCHED: u8 = 1;
/// The VM said how it ended.
const TOLD: u8 = 2;
/// Its thread is gone.
const GONE: u8 = 4;

/// What has happened to a VM; its marks only grow.
struct Life {
    marks: AtomicU8,
    events: Arc<EventLog>,
    tell: Arc<dyn Fn(News) + Send + Sync>,
}

impl Life {
    fn mark(&self, mark: u8) {
        let before = self.marks.fetch_or(mark, Ordering::AcqRel);
        if before & mark == 0 && before | mark == LAUNCHED | GONE {
            let text = "the VM's thread ended without a word; the log may have its panic";
            (self.tell)(News::Ended(Ending::Failed(text.to_owned())));
        }
    }
}

/// A VM's event as the API tells it.
fn event_of(event: &VmEvent) -> Option<Event> {
    Some(match event {
        VmEvent::Started => Event::Started,
        VmEvent::Paused => Event::Paused,
        VmEvent::Resumed => Event::Resumed,
        VmEvent::NmiSent => Event::NmiSent,
        VmEvent::Device { device, detail } => Event::Device {
            device: device.clone(),
            detail: detail.clone(),
        },
        VmEvent::Verdict(change, _) => {
            let (change, verdict) = match change {
                Change::Raised(verdict) => ("raised", verdict),
                Change::Changed(verdict) => ("changed", verdict),
                Change::Cleared(verdict, _) => ("cleared", verdict),
            };
            let verdict = health::one(verdict, health::dates());
            Event::Verdict { change, verdict }
        }
        VmEvent::Guest(message) => Event::GuestMessage {
            kind: message.kind.name(),
            line: message.line.clone(),
            facts: FactsWire::of(&message.facts),
            before: message.before.clone(),
        },
        VmEvent::GuestPanic(kind) => Event::GuestPanic { kind: kind.name() },
        // Told by who decides whether another run follows.
        VmEvent::Ended(_) => return None,
    })
}

/// Hears a VM's events on its thread; dropped with it, panic or not.
struct Listener(Arc<Life>);

impl Listener {
    fn hear(&self, event: VmEvent) {
        if let Some(event) = event_of(&event) {
            self.0.events.push(event);
        }
        match event {
            VmEvent::Started => tracing::info!("the guest runs"),
            VmEvent::Paused => tracing::info!("the guest is paused"),
            VmEvent::Resumed => tracing::info!("the guest goes on"),
            VmEvent::NmiSent => tracing::info!("every vCPU was sent an NMI"),
            // The VM's own thread has logged it.
            VmEvent::Device { .. } => {}
            // The watcher has logged it.
            VmEvent::Verdict(change, _) => (self.0.tell)(News::Verdict(change)),
            VmEvent::Guest(message) => {
                let (kind, line) = (message.kind.name(), message.line);
                tracing::warn!("the guest's kernel says ({kind}): {line:?}");
            }
            VmEvent::GuestPanic(kind) => {
                tracing::warn!(
                    "the guest's kernel told pvpanic that it gave up: {}",
                    kind.name()
                );
            }
            VmEvent::Ended(outcome) => {
                self.0.mark(TOLD);
                let text = outcome.to_string();
                (self.0.tell)(News::Ended(match outcome {
                    Outcome::Failed(_) => Ending::Failed(text),
                    Outcome::Panicked { .. } => Ending::Panicked(text),
                    Outcome::Reset(_) => Ending::Rebooted(text),
                    Outcome::PowerOff | Outcome::Exit(_) | Outcome::Stopped => Ending::Fine(text),
                }));
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.mark(GONE);
    }
}

struct KvmMachine {
    vm: Vm,
    memory_bytes: u64,
}

impl Machine for KvmMachine {
    fn command(&self, command: Command, reply: Reply) {
        let reply = |done: Result<(), _>| reply(done.map_err(|error| MachineError::new(&error)));
        let command = match command {
            Command::Pause => VmCommand::Pause,
            Command::Resume => VmCommand::Resume,
            Command::CtrlAltDel => VmCommand::CtrlAltDel,
            Command::Nmi => VmCommand::Nmi,
            Command::Stop => VmCommand::Stop,
            Command::Balloon(order) => return self.vm.balloon(order, Box::new(reply)),
        };
        self.vm.command(command, Box::new(reply));
    }

    fn change_device(&self, id: &str, change: DeviceChange, reply: Reply) {
        let reply = |done: Result<(), _>| reply(done.map_err(|error| MachineError::new(&error)));
        self.vm.change_device(id, change, Box::new(reply));
    }

    fn fail(&self, reason: String) {
        self.vm.fail(reason);
    }

    fn state(&self) -> MachineState {
        match self.vm.state() {
            VmState::Starting | VmState::Running => MachineState::Running,
            VmState::Paused => MachineState::Paused,
            VmState::Stopping | VmState::Ended => MachineState::Stopped,
        }
    }

    fn openmetrics(&self) -> Result<String, MachineError> {
        let mut text = String::new();
        openmetrics::render(&self.snapshot()?, &mut text);
        Ok(text)
    }

    fn snapshot(&self) -> Result<Snapshot, MachineError> {
        self.vm
            .snapshot()
            .map_err(|error| MachineError::new(&error))
    }

    fn dump(
        &self,
        kind: DumpKind,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), MachineError> {
        let mut told = |Progress { done, total }| progress(done, total);
        let done = self.vm.dump(kind, path, &mut told);
        done.map_err(|error| MachineError::new(&error))
    }

    fn dump_deadline(&self) -> Duration {
        dump::deadline(self.memory_bytes)
    }

    fn standing(&self) -> Arc<Standing> {
        self.vm.standing()
    }

    fn black_box(&self) -> String {
        self.vm.black_box_path().display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn life() -> (Arc<Life>, Arc<Mutex<Vec<Ending>>>) {
        let endings: Arc<Mutex<Vec<Ending>>> = Arc::default();
        let heard = Arc::clone(&endings);
        let tell = move |news| match news {
            News::Ended(ending) => heard.lock().unwrap().push(ending),
            News::Verdict(_) => {}
        };
        let life = Life {
            marks: AtomicU8::new(0),
            events: Arc::default(),
            tell: Arc::new(tell),
        };
        (Arc::new(life), endings)
    }

    #[test]
    fn an_end_is_told_once() {
        let (life, endings) = life();
        let listener = Listener(Arc::clone(&life));
        life.mark(LAUNCHED);
        listener.hear(VmEvent::Started);
        listener.hear(VmEvent::Ended(Outcome::PowerOff));
        drop(listener);
        let told = life.events.after(0, 9);
        assert!(!told.is_last, "another run may follow");
        let events: Vec<_> = told.events.into_iter().map(|told| told.event).collect();
        assert_eq!(events, [Event::Started]);
        assert_eq!(
            *endings.lock().unwrap(),
            [Ending::Fine("the guest powered off".to_owned())]
        );
    }

    #[test]
    fn a_thread_that_vanishes_is_a_failure_whoever_is_first() {
        for launched_first in [true, false] {
            let (life, endings) = life();
            let listener = Listener(Arc::clone(&life));
            if launched_first {
                life.mark(LAUNCHED);
            }
            drop(listener);
            life.mark(LAUNCHED);
            assert!(matches!(endings.lock().unwrap()[..], [Ending::Failed(_)]));
        }
    }

    #[test]
    fn a_launch_that_failed_is_told_by_its_error_alone() {
        let (life, endings) = life();
        drop(Listener(life));
        assert!(endings.lock().unwrap().is_empty());
    }
}
