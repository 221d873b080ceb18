//! What the main thread does while a VM lives: it waits for its end and for signals.

use std::fs::{self, DirEntry};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use api::events::EventLog;
use api::keeper::{Keeper, Next};
use api::kvm::KvmLauncher;
use api::machine::{Command, Ending, Launcher, Machine, MachineError, MachineState, News};
use api::policy::Rulebook;
use api::record::Place;
use api::vmm::VmSpec;
use api::vmm::observe::verdict::Change;

use super::signals::Signals;
use super::{Failure, slim};

/// How long an orderly stop may take, all its steps together.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// How often a stop looks whether the VM has been started.
const LAUNCH_POLL: Duration = Duration::from_millis(10);

/// When code that was not used for a while is given back once more: while the guest boots, whether it
/// takes one second or five, and when what came up on the way is over.
const SETTLING: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(50),
];

/// What the main thread is told.
enum Happening {
    Signal(i32),
    Ended(Ending),
    /// What is wrong with the VM has changed.
    Verdict(Change),
    /// A run has begun, or the next one cannot.
    Begun(Result<(), MachineError>),
}

/// Launches on KVM, and remembers what it launched.
pub struct Watched {
    keeper: Keeper,
    /// Launches that are under way.
    launching: AtomicUsize,
    machine: OnceLock<Arc<dyn Machine>>,
    tell: Sender<Happening>,
}

impl Watched {
    fn during<T>(&self, launch: impl FnOnce() -> T) -> T {
        self.launching.fetch_add(1, Ordering::AcqRel);
        let launched = launch();
        self.launching.fetch_sub(1, Ordering::AcqRel);
        launched
    }

    fn is_launching(&self) -> bool {
        self.launching.load(Ordering::Acquire) > 0
    }
}

impl Launcher for Watched {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        self.during(|| {
            let launched = self.keeper.launch(spec);
            if let Ok(machine) = &launched {
                let _ = self.machine.set(Arc::clone(machine));
                slim::drop_unused();
                let _ = self.tell.send(Happening::Begun(Ok(())));
            }
            launched
        })
    }
}

/// The main thread's view of all.
pub struct Supervisor {
    happenings: Receiver<Happening>,
    /// For the threads that begin further runs.
    tell: Sender<Happening>,
    launcher: Arc<Watched>,
}

impl Supervisor {
    /// Begins to listen for signals; `events` gets what happens to the VM, `rulebook` says what
    /// follows when it dies, and `record` places the section of the API's thread, if there is one,
    /// in its black box.
    ///
    /// # Errors
    /// Their thread cannot be made.
    pub fn new(
        signals: Signals,
        events: Arc<EventLog>,
        rulebook: Arc<Rulebook>,
        record: Option<Place>,
    ) -> Result<Supervisor, Failure> {
        let (tell, happenings) = mpsc::channel();
        let (sender, ends) = (tell.clone(), tell.clone());
        let listening = signals.listen(move |signal| drop(sender.send(Happening::Signal(signal))));
        let explain = |error| {
            format!("the thread for signals cannot be made: {error}; raise the limit on threads")
        };
        listening.map_err(|error| Failure::failed(explain(error)))?;
        let hear = move |news| {
            let happening = match news {
                News::Ended(ending) => Happening::Ended(ending),
                News::Verdict(change) => Happening::Verdict(change),
            };
            // The main thread may have ended.
            let _ = ends.send(happening);
        };
        let launcher = KvmLauncher::new(Arc::clone(&events), hear);
        let launcher = match record {
            Some(place) => launcher.recording(place),
            None => launcher,
        };
        Ok(Supervisor {
            happenings,
            tell: tell.clone(),
            launcher: Arc::new(Watched {
                keeper: Keeper::new(launcher, events, rulebook),
                launching: AtomicUsize::new(0),
                machine: OnceLock::new(),
                tell,
            }),
        })
    }

    /// What makes this process's VM.
    pub fn launcher(&self) -> Arc<Watched> {
        Arc::clone(&self.launcher)
    }

    /// Waits until the VM has ended for good or a signal asks for the end, and sees to it then.
    /// Between two runs it waits as the policy says.
    ///
    /// # Errors
    /// The VM failed, or did not stop in order.
    pub fn wait(&self) -> Result<(), Failure> {
        let mut settling: &[Duration] = &[];
        loop {
            let happening = match settling {
                [] => self.happenings.recv().map_err(|_| Disconnected),
                [pause, ..] => self.happenings.recv_timeout(*pause),
            };
            let ending = match happening {
                Ok(Happening::Begun(Ok(()))) => {
                    settling = &SETTLING;
                    continue;
                }
                Err(Timeout) => {
                    slim::drop_unused();
                    settling = settling.get(1..).unwrap_or_default();
                    continue;
                }
                Ok(Happening::Verdict(change)) => {
                    self.launcher.keeper.heard(&change);
                    continue;
                }
                Ok(Happening::Begun(Err(error))) => {
                    Ending::Failed(format!("it cannot be started again: {error}"))
                }
                Ok(Happening::Ended(ending)) => ending,
                Ok(Happening::Signal(signal)) => {
                    tracing::info!("signal {signal}: stopping");
                    return self.stop(STOP_DEADLINE);
                }
                // A sender lives as long as this.
                Err(Disconnected) => return Ok(()),
            };
            match self.launcher.keeper.ended(ending) {
                Next::Over(ending) => return self.judge(ending),
                Next::Wait(wait) => {
                    if let Some(signal) = self.rest(wait) {
                        tracing::info!("signal {signal}: the VM is not started again");
                        self.launcher.keeper.give_up();
                        return Ok(());
                    }
                    self.begin_again();
                }
            }
        }
    }

    /// Waits between two runs; ends early with a signal.
    fn rest(&self, wait: Duration) -> Option<i32> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.happenings.recv_timeout(left) {
                Ok(Happening::Signal(signal)) => return Some(signal),
                // The launch of the run that is over, or its second word.
                Ok(Happening::Begun(_) | Happening::Ended(_) | Happening::Verdict(_)) => {}
                // The first launch may not have returned yet, though its guest has ended.
                Err(_) if self.launcher.is_launching() => std::thread::sleep(LAUNCH_POLL),
                Err(_) => return None,
            }
        }
    }

    /// Begins the next run on a thread of its own, so that signals are heard meanwhile.
    fn begin_again(&self) {
        let (launcher, tell) = (Arc::clone(&self.launcher), self.tell.clone());
        // Counted from now on: a signal that comes next waits for it.
        self.launcher.launching.fetch_add(1, Ordering::AcqRel);
        let launch = move || {
            let begun = launcher.keeper.again();
            slim::drop_unused();
            launcher.launching.fetch_sub(1, Ordering::AcqRel);
            let _ = tell.send(Happening::Begun(begun));
        };
        let thread = std::thread::Builder::new().name("launch".to_owned());
        if let Err(error) = thread.spawn(launch) {
            self.launcher.launching.fetch_sub(1, Ordering::AcqRel);
            let text = format!("no thread for it: {error}; raise the limit on threads");
            let refused = Err(MachineError::from(text.as_str()));
            let _ = self.tell.send(Happening::Begun(refused));
        }
    }

    /// Stops the VM in order. A second signal, or a stop that takes too long, ends the process.
    fn stop(&self, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        while self.launcher.is_launching() {
            match self.happenings.recv_timeout(LAUNCH_POLL) {
                Ok(Happening::Ended(ending)) => return self.last(ending),
                Ok(Happening::Signal(_)) => {
                    return Err(forced("a second signal while the VM was being started"));
                }
                Err(_) if Instant::now() >= deadline => {
                    let why = format!("the VM was still being started after {patience:?}");
                    return Err(forced(&why));
                }
                Ok(Happening::Begun(_) | Happening::Verdict(_)) | Err(_) => {}
            }
        }
        let Some(machine) = self.launcher.machine.get() else {
            return Ok(());
        };
        if machine.state() == MachineState::Waiting {
            // The launch of the next run has failed.
            self.launcher.keeper.give_up();
            return Ok(());
        }
        let refused = |done: Result<(), MachineError>| {
            if let Err(error) = done {
                tracing::warn!("the VM does not stop: {error}");
            }
        };
        machine.command(Command::Stop, Box::new(refused));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            return match self.happenings.recv_timeout(left) {
                Ok(Happening::Begun(_) | Happening::Verdict(_)) => continue,
                Ok(Happening::Ended(ending)) => self.last(ending),
                Ok(Happening::Signal(_)) => {
                    Err(forced("a second signal before the VM had stopped"))
                }
                Err(_) => Err(forced(&format!("the VM did not stop within {patience:?}"))),
            };
        }
    }

    /// The end of a VM that was told to stop: no run follows.
    fn last(&self, ending: Ending) -> Result<(), Failure> {
        self.launcher.keeper.over(&ending);
        self.judge(ending)
    }

    fn judge(&self, ending: Ending) -> Result<(), Failure> {
        match ending {
            Ending::Fine(how) | Ending::Rebooted(how) | Ending::Panicked(how) => {
                tracing::info!("the VM has ended: {how}");
                Ok(())
            }
            Ending::Failed(why) => {
                let mut text = format!("the VM failed: {why}");
                for line in self.launcher.keeper.account() {
                    tracing::error!("{line}");
                    text.push_str("\n  ");
                    text.push_str(&line);
                }
                Err(Failure::failed(text))
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use api::machine::Reply;
    use api::vmm::DumpKind;
    use api::vmm::observe::reader::Snapshot;

    /// A VM that hears nothing.
    struct Deaf;

    impl Machine for Deaf {
        fn change_device(&self, _: &str, _: api::vmm::DeviceChange, _: Reply) {}
        fn command(&self, _: Command, _: Reply) {}
        fn fail(&self, _: String) {}
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
        let none = KvmLauncher::new(Arc::default(), |_| ());
        let supervisor = Supervisor {
            happenings: receiver,
            tell: sender.clone(),
            launcher: Arc::new(Watched {
                keeper: Keeper::new(none, Arc::default(), Arc::default()),
                launching: AtomicUsize::new(usize::from(launching)),
                machine: OnceLock::from(machine),
                tell: sender,
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
