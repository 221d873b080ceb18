//! What the main thread does while a VM lives: it waits for its end and for signals.

use std::fs::{self, DirEntry};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use api::events::EventLog;
use api::kvm::KvmLauncher;
use api::machine::{Command, Ending, Launcher, Machine, MachineError};
use api::record::Place;
use api::vmm::VmSpec;

use super::signals::Signals;
use super::{Failure, slim};

/// How long an orderly stop may take, all its steps together.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// How often a stop looks whether the VM has been started.
const LAUNCH_POLL: Duration = Duration::from_millis(10);

/// What the main thread is told.
enum Happening {
    Signal(i32),
    Ended(Ending),
}

/// Launches on KVM, and remembers what it launched.
pub struct Watched {
    inner: KvmLauncher,
    launching: AtomicBool,
    machine: OnceLock<Arc<dyn Machine>>,
}

impl Launcher for Watched {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        self.launching.store(true, Ordering::Release);
        let launched = self.inner.launch(spec);
        if let Ok(machine) = &launched {
            let _ = self.machine.set(Arc::clone(machine));
            slim::after_the_start();
        }
        self.launching.store(false, Ordering::Release);
        launched
    }
}

/// The main thread's view of all.
pub struct Supervisor {
    happenings: Receiver<Happening>,
    launcher: Arc<Watched>,
}

impl Supervisor {
    /// Begins to listen for signals; `events` gets what happens to the VM, and `record` places the
    /// section of the API's thread, if there is one, in its black box.
    ///
    /// # Errors
    /// Their thread cannot be made.
    pub fn new(
        signals: Signals,
        events: Arc<EventLog>,
        record: Option<Place>,
    ) -> Result<Supervisor, Failure> {
        let (sender, happenings) = mpsc::channel();
        let ends: Sender<Happening> = sender.clone();
        let listening = signals.listen(move |signal| drop(sender.send(Happening::Signal(signal))));
        let explain = |error| {
            format!("the thread for signals cannot be made: {error}; raise the limit on threads")
        };
        listening.map_err(|error| Failure::failed(explain(error)))?;
        let on_end = move |ending| drop(ends.send(Happening::Ended(ending)));
        let launcher = KvmLauncher::new(events, on_end);
        let launcher = Arc::new(Watched {
            inner: match record {
                Some(place) => launcher.recording(place),
                None => launcher,
            },
            launching: AtomicBool::new(false),
            machine: OnceLock::new(),
        });
        Ok(Supervisor {
            happenings,
            launcher,
        })
    }

    /// What makes this process's VM.
    pub fn launcher(&self) -> Arc<Watched> {
        Arc::clone(&self.launcher)
    }

    /// Waits until the VM has ended or a signal asks for the end, and sees to it then.
    ///
    /// # Errors
    /// The VM failed, or did not stop in order.
    pub fn wait(&self) -> Result<(), Failure> {
        match self.happenings.recv() {
            Ok(Happening::Ended(ending)) => judge(ending),
            Ok(Happening::Signal(signal)) => {
                tracing::info!("signal {signal}: stopping");
                self.stop(STOP_DEADLINE)
            }
            // Both senders live as long as the process.
            Err(mpsc::RecvError) => Ok(()),
        }
    }

    /// Stops the VM in order. A second signal, or a stop that takes too long, ends the process.
    fn stop(&self, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        while self.launcher.launching.load(Ordering::Acquire) {
            match self.happenings.recv_timeout(LAUNCH_POLL) {
                Ok(Happening::Ended(ending)) => return judge(ending),
                Ok(Happening::Signal(_)) => {
                    return Err(forced("a second signal while the VM was being started"));
                }
                Err(_) if Instant::now() >= deadline => {
                    let why = format!("the VM was still being started after {patience:?}");
                    return Err(forced(&why));
                }
                Err(_) => {}
            }
        }
        let Some(machine) = self.launcher.machine.get() else {
            return Ok(());
        };
        let refused = |done: Result<(), MachineError>| {
            if let Err(error) = done {
                tracing::warn!("the VM does not stop: {error}");
            }
        };
        machine.command(Command::Stop, Box::new(refused));
        let left = deadline.saturating_duration_since(Instant::now());
        match self.happenings.recv_timeout(left) {
            Ok(Happening::Ended(ending)) => judge(ending),
            Ok(Happening::Signal(_)) => Err(forced("a second signal before the VM had stopped")),
            Err(_) => Err(forced(&format!("the VM did not stop within {patience:?}"))),
        }
    }
}

/// An end that is not the VM's: it names the threads that are still at work.
fn forced(why: &str) -> Failure {
    let mut threads = threads_of_the_vm();
    threads.sort();
    let left = match threads.join(", ") {
        none if none.is_empty() => "none of its threads".to_owned(),
        some => some,
    };
    Failure::failed(format!("{why}: ended at once; still running: {left}"))
}

/// The names of the VM's threads, as far as /proc tells.
fn threads_of_the_vm() -> Vec<String> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let name = |task: DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let names = tasks.flatten().filter_map(name);
    names
        .map(|name| name.trim_end().to_owned())
        .filter(|name| {
            ["vm", "console", "launch"].contains(&name.as_str())
                || ["vcpu-", "io-"].iter().any(|of| name.starts_with(of))
        })
        .collect()
}

fn judge(ending: Ending) -> Result<(), Failure> {
    match ending {
        Ending::Fine(how) => {
            tracing::info!("the VM has ended: {how}");
            Ok(())
        }
        Ending::Failed(why) => Err(Failure::failed(format!("the VM failed: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use api::machine::{MachineState, Reply};
    use api::vmm::DumpKind;
    use api::vmm::observe::reader::Snapshot;

    /// A VM that hears nothing.
    struct Deaf;

    impl Machine for Deaf {
        fn command(&self, _: Command, _: Reply) {}
        fn state(&self) -> MachineState {
            MachineState::Running
        }
        fn openmetrics(&self) -> Result<String, MachineError> {
            Err(MachineError::from("deaf"))
        }
        fn snapshot(&self) -> Result<Snapshot, MachineError> {
            Err(MachineError::from("deaf"))
        }
        fn standing(&self) -> Arc<api::vmm::Standing> {
            Arc::default()
        }
        fn dump(
            &self,
            _: DumpKind,
            _: &Path,
            _: &mut dyn FnMut(u64, u64),
        ) -> Result<(), MachineError> {
            Err(MachineError::from("deaf"))
        }
        fn dump_deadline(&self) -> Duration {
            Duration::ZERO
        }
        fn black_box(&self) -> String {
            String::new()
        }
    }

    /// What a stop comes to when all this happens meanwhile.
    fn stopping(launching: bool, happenings: Vec<Happening>) -> Result<(), Failure> {
        let (sender, receiver) = mpsc::channel();
        for happening in happenings {
            sender.send(happening).unwrap();
        }
        let machine: Arc<dyn Machine> = Arc::new(Deaf);
        let supervisor = Supervisor {
            happenings: receiver,
            launcher: Arc::new(Watched {
                inner: KvmLauncher::new(Arc::default(), |_| ()),
                launching: AtomicBool::new(launching),
                machine: OnceLock::from(machine),
            }),
        };
        supervisor.stop(Duration::from_millis(50))
    }

    fn refusal(launching: bool, happenings: Vec<Happening>) -> String {
        let failure = stopping(launching, happenings).unwrap_err();
        assert_eq!(failure.status, super::super::FAILED);
        failure.error.to_string()
    }

    #[test]
    fn a_vm_that_stops_in_time_is_fine_even_while_it_is_started() {
        for launching in [false, true] {
            let ended = Happening::Ended(Ending::Fine("stopped".to_owned()));
            assert!(stopping(launching, vec![ended]).is_ok());
        }
    }

    #[test]
    fn an_end_that_was_forced_is_a_failure_that_names_what_still_runs() {
        let (ready, is_ready) = mpsc::channel();
        let (end, at_end) = mpsc::channel::<()>();
        let body = move || {
            ready.send(()).unwrap();
            let _ = at_end.recv();
        };
        let hangs = std::thread::Builder::new().name("vcpu-7".to_owned());
        let hangs = hangs.spawn(body).unwrap();
        is_ready.recv().unwrap();
        let late = refusal(false, Vec::new());
        assert!(late.contains("the VM did not stop within 50ms"), "{late}");
        assert!(late.contains("still running: vcpu-7"), "{late}");
        let twice = refusal(false, vec![Happening::Signal(15)]);
        assert!(twice.contains("a second signal before"), "{twice}");
        assert!(twice.contains("vcpu-7"), "{twice}");
        let early = refusal(true, vec![Happening::Signal(15)]);
        assert!(early.contains("a second signal while"), "{early}");
        let slow = refusal(true, Vec::new());
        assert!(slow.contains("still being started after 50ms"), "{slow}");
        drop(end);
        hangs.join().unwrap();
    }
}
