//! One VM over several runs: when one is over, the policy says whether the VM is started again.
//!
//! Clients, signals and metrics see one [`Machine`], which is whichever run is the newest. Who
//! launched it (the main thread) is told of the end of each run, asks [`Keeper::ended`] what
//! follows, waits, and calls [`Keeper::again`].

mod actor;
mod boxes;
mod changes;
mod chronicle;
mod handle;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm::VmSpec;
use vmm::observe::clock::monotonic_ns;
use vmm::observe::verdict::Change;

use crate::events::{Event, EventLog};
use crate::machine::{Ending, Launcher, Machine, MachineError, RestartCause};
use crate::policy::action::Acting;
use crate::policy::restarts::{Next as Decision, Restarts};
use crate::policy::{OnReboot, Policy, Rulebook};
use actor::{Actor, Task};
use chronicle::Chronicle;

/// Black boxes of earlier runs that are kept with `--keep-blackbox`, at least.
const LEAST_ASKED: usize = 3;

/// What follows the end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another run, after this wait.
    Wait(Duration),
    /// Nothing: the VM has ended so.
    Over(Ending),
}

/// What the keeper knows of its VM.
#[derive(Default)]
struct State {
    spec: Option<VmSpec>,
    /// The newest run that came about.
    machine: Option<Arc<dyn Machine>>,
    /// The newest run is over, and another one follows.
    is_waiting: bool,
    /// The newest run that is over.
    over: u64,
    chronicle: Chronicle,
    restarts: Restarts,
    acting: Acting,
    wanted: Option<Wanted>,
}

/// An action of the policy ends a run.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    run: u64,
    /// The next one does not wait.
    is_at_once: bool,
}

struct Inner {
    launcher: Box<dyn Launcher>,
    events: Arc<EventLog>,
    rulebook: Arc<Rulebook>,
    /// A lock, for the main thread begins and ends runs of which the API's thread asks. Held to copy
    /// or to change these few fields, never across a launch, a file or a wait.
    state: Mutex<State>,
    actor: Actor,
    /// A dump is being written.
    is_dumping: AtomicBool,
}

/// The handle on a VM and its runs; cheap to clone.
#[derive(Clone)]
pub struct Keeper(Arc<Inner>);

impl Keeper {
    /// Runs are made by `launcher` and told to `events`; `rulebook` says what follows them.
    pub fn new(
        launcher: impl Launcher + 'static,
        events: Arc<EventLog>,
        rulebook: Arc<Rulebook>,
    ) -> Keeper {
        Keeper(Arc::new(Inner {
            launcher: Box::new(launcher),
            events,
            rulebook,
            state: Mutex::default(),
            actor: Actor::default(),
            is_dumping: AtomicBool::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Result<Arc<dyn Machine>, MachineError> {
        let machine = self.lock().machine.clone();
        machine.ok_or_else(|| "the microVM was never started".into())
    }

    /// Has done what the policy says of a verdict: on a thread of its own, one action after the other.
    pub fn heard(&self, change: &Change) {
        let policy = self.0.rulebook.read();
        let mut state = self.lock();
        let actions = state.acting.on_change(change, &policy);
        let run = state.chronicle.runs().number;
        drop(state);
        let (Change::Raised(verdict) | Change::Changed(verdict) | Change::Cleared(verdict, _)) =
            change;
        if actions.is_empty() {
            return;
        }
        let verdict = verdict.clone();
        let task = Task {
            run,
            verdict,
            actions,
        };
        self.0.actor.give(self, task);
    }

    fn id(&self) -> String {
        let state = self.lock();
        state
            .spec
            .as_ref()
            .map_or_else(String::new, |spec| spec.id.clone())
    }

    /// Whether this run is the newest, and goes on.
    fn is_in(&self, run: u64) -> bool {
        let state = self.lock();
        state.chronicle.runs().number == run && !state.is_waiting
    }

    /// One dump at a time: the guest stands still for it.
    fn alone<T>(&self, dump: impl FnOnce() -> Result<T, MachineError>) -> Result<T, MachineError> {
        if self.0.is_dumping.swap(true, Ordering::AcqRel) {
            return Err("another dump of this VM is being written; ask when it is done".into());
        }
        let done = dump();
        self.0.is_dumping.store(false, Ordering::Release);
        done
    }

    /// Says what follows a run that has ended so, or that could not begin: also to the log and the
    /// events.
    pub fn ended(&self, ending: Ending) -> Next {
        let policy = self.0.rulebook.read();
        let mut state = self.lock();
        let black_box = state.black_box();
        let ran = state.chronicle.end(&ending, black_box);
        let next = state.follow(ending, ran, &policy);
        let run = state.chronicle.runs().number;
        let following = match next {
            Follow::Over(ending) => {
                let runs = state.chronicle.told();
                drop(state);
                self.tell_end(&ending, runs);
                return Next::Over(ending);
            }
            Follow::Again(following) => following,
        };
        state.is_waiting = true;
        state.over = run;
        state.chronicle.count(following.cause);
        drop(state);
        let Following {
            cause,
            detail,
            wait,
            which,
        } = following;
        let cause = cause.name();
        let when = if wait.is_zero() {
            "now".to_owned()
        } else {
            format!("in {wait:?}")
        };
        tracing::warn!("run {run} is over ({cause}): {detail}; {which} {when}");
        self.0.events.push(Event::Restarting {
            run,
            cause,
            detail,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        });
        Next::Wait(wait)
    }

    /// Begins the next run, and keeps the black box of the one before if it died. Takes as long as
    /// a launch.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub fn again(&self) -> Result<(), MachineError> {
        let state = self.lock();
        let spec = state.spec.clone();
        let (run, is_kept) = (state.chronicle.runs().number, state.keeps());
        drop(state);
        let Some(spec) = spec else {
            return Err("the microVM was never started".into());
        };
        let path = spec.black_box.path.clone().filter(|_| is_kept);
        let kept = path.and_then(|path| self.keep(&path, run));
        self.0.events.push(Event::Run {
            run: run + 1,
            kept_black_box: kept.map(|path| path.display().to_string()),
        });
        self.run(spec)
    }

    /// Says that no run follows after all: somebody stops the VM while it waits.
    pub fn give_up(&self) {
        let mut state = self.lock();
        state.is_waiting = false;
        let runs = state.chronicle.told();
        drop(state);
        let ending = Ending::Fine("stopped before it was started again".to_owned());
        self.tell_end(&ending, runs);
    }

    /// The last event: the VM has ended so, and nothing follows whatever the policy says.
    pub fn over(&self, ending: &Ending) {
        let mut state = self.lock();
        let black_box = state.black_box();
        state.chronicle.end(ending, black_box);
        let runs = state.chronicle.told();
        drop(state);
        self.tell_end(ending, runs);
    }

    /// One line for each run, if there were several.
    pub fn account(&self) -> Vec<String> {
        self.lock().chronicle.account()
    }

    fn tell_end(&self, ending: &Ending, runs: Vec<crate::events::RunWire>) {
        let (failed, detail) = match ending {
            Ending::Failed(detail) => (true, detail),
            Ending::Fine(detail) | Ending::Rebooted(detail) | Ending::Panicked(detail) => {
                (false, detail)
            }
        };
        self.0.events.push(Event::Ended {
            failed,
            detail: detail.clone(),
            runs,
        });
    }

    /// Moves the black box of a run away, so that the next one has its place.
    fn keep(&self, path: &Path, run: u64) -> Option<PathBuf> {
        let at_most = self.0.rulebook.read().restart.at_most;
        match boxes::keep(path, run) {
            Ok(kept) => {
                let mut state = self.lock();
                let most = state.most_kept(at_most);
                let old = state.chronicle.kept(run, &kept, most);
                drop(state);
                old.iter().for_each(|old| boxes::remove(old, most));
                Some(kept)
            }
            Err(error) => {
                tracing::error!("the black box of run {run} is lost: {error}");
                None
            }
        }
    }

    fn run(&self, spec: VmSpec) -> Result<(), MachineError> {
        let mut state = self.lock();
        state.spec = Some(spec.clone());
        let run = state.chronicle.begin();
        state.acting = Acting::default();
        drop(state);
        let launched = self.0.launcher.launch(spec);
        let mut state = self.lock();
        match launched {
            Ok(machine) => {
                // A guest may have ended before its launch has returned.
                if state.over < run {
                    state.is_waiting = false;
                }
                // Dropped without the lock.
                let old = state.machine.replace(machine);
                drop(state);
                drop(old);
                if run > 1 {
                    tracing::info!("run {run} has begun");
                }
                Ok(())
            }
            Err(error) => {
                if state.machine.is_none() {
                    // Nothing was begun: the next attempt is the first.
                    state.spec = None;
                    state.chronicle = Chronicle::default();
                }
                Err(error)
            }
        }
    }
}

/// A run that follows.
struct Following {
    cause: RestartCause,
    detail: String,
    wait: Duration,
    which: String,
}

enum Follow {
    Over(Ending),
    Again(Following),
}

impl State {
    /// Where the black box of the newest run lies, if it is a file that is there.
    fn black_box(&self) -> Option<PathBuf> {
        let path = self.spec.as_ref()?.black_box.path.clone()?;
        self.machine.is_some().then_some(path)
    }

    /// Whether the black box of the run that is over is kept when the next one begins.
    fn keeps(&self) -> bool {
        let asked = self.spec.as_ref().is_some_and(|spec| spec.black_box.keep);
        asked || !self.chronicle.was_a_reboot()
    }

    /// How many black boxes of earlier runs are kept.
    fn most_kept(&self, at_most: u32) -> usize {
        let asked = self.spec.as_ref().is_some_and(|spec| spec.black_box.keep);
        let least = if asked { LEAST_ASKED } else { 1 };
        usize::try_from(at_most).unwrap_or(usize::MAX).max(least)
    }

    /// What follows such an end, after a run of this time.
    fn follow(&mut self, ending: Ending, ran: Duration, policy: &Policy) -> Follow {
        let limit = &policy.restart;
        let run = self.chronicle.runs().number;
        let wanted = self.wanted.take().filter(|wanted| wanted.run == run);
        let (cause, detail) = match ending {
            Ending::Fine(_) => return Follow::Over(ending),
            Ending::Rebooted(detail) if policy.on_reboot == OnReboot::Exit => {
                return Follow::Over(Ending::Fine(detail));
            }
            Ending::Rebooted(detail) => {
                return Follow::Again(Following {
                    cause: RestartCause::Reboot,
                    detail,
                    wait: limit.before_reboot(ran),
                    which: "it boots again".to_owned(),
                });
            }
            // Firecracker's way: a guest that resets itself has ended, whatever it said before.
            Ending::Panicked(detail)
                if limit.at_most == 0 && policy.on_reboot == OnReboot::Exit =>
            {
                return Follow::Over(Ending::Fine(detail));
            }
            Ending::Panicked(detail) => (RestartCause::GuestPanic, detail),
            Ending::Failed(detail) if wanted.is_some() => (RestartCause::Verdict, detail),
            Ending::Failed(detail) => (RestartCause::Failed, detail),
        };
        // A VM that never was cannot be started again.
        if self.spec.is_none() {
            return Follow::Over(Ending::Failed(detail));
        }
        let now = Duration::from_nanos(monotonic_ns());
        match self.restarts.after_death(now, limit) {
            Decision::Restart { number, wait } => {
                let (most, within) = (limit.at_most, limit.within);
                let is_at_once = wanted.is_some_and(|wanted| wanted.is_at_once);
                let wait = if is_at_once { Duration::ZERO } else { wait };
                Follow::Again(Following {
                    cause,
                    detail,
                    wait,
                    which: format!("restart {number} of {most} within {within:?}"),
                })
            }
            Decision::GiveUp if limit.at_most == 0 => Follow::Over(Ending::Failed(detail)),
            Decision::GiveUp => Follow::Over(Ending::Failed(format!(
                "{detail}; it is not started again, for the policy allows {} restarts within {:?}",
                limit.at_most, limit.within
            ))),
        }
    }
}

impl Launcher for Keeper {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        self.run(spec)?;
        Ok(Arc::new(self.clone()))
    }
}

#[cfg(test)]
mod tests;
