//! The watcher's judgement: what it has just sampled is read back from the black box, as any other
//! reader would see it, and judged.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use observe::reader::Snapshot;
use observe::verdict::{Change, Engine, Observation, Thresholds, ThresholdsWriter, Verdict};

use crate::driver::Message;

/// What is wrong with a VM, as it was last judged.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// When, by `CLOCK_MONOTONIC` in nanoseconds; 0 before the first time.
    pub at_ns: u64,
    /// Causes before consequences, worst first.
    pub verdicts: Vec<Verdict>,
}

/// Where the watcher leaves what it judged, for whoever asks. The lock is held for as long as it
/// takes to swap or to clone a pointer, and nothing else is done under it: the watcher never waits
/// for a reader.
#[derive(Debug, Default)]
pub struct Board(Mutex<Arc<Standing>>);

impl Board {
    /// What was last judged.
    pub fn read(&self) -> Arc<Standing> {
        // A panic cannot leave a pointer half swapped.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, standing: Standing) {
        let standing = Arc::new(standing);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

/// How a VM is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judging {
    /// From where on a number is a verdict.
    pub thresholds: Thresholds,
    /// Whether the watcher may look into a vCPU that seems stuck, which takes it out of the guest
    /// for some microseconds. Without, nothing tells whether a halted or busy vCPU is.
    pub look_into_vcpus: bool,
}

impl Default for Judging {
    fn default() -> Self {
        Judging {
            thresholds: Thresholds::default(),
            look_into_vcpus: true,
        }
    }
}

/// How a VM is judged. It can be changed while it runs, by whoever made its
/// [`VmSpec`](crate::VmSpec). The lock is held for as long as it takes to swap or to clone a pointer.
#[derive(Debug, Default)]
pub struct Limits(Mutex<Arc<Judging>>);

impl Limits {
    /// What holds now.
    pub fn read(&self) -> Arc<Judging> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the next judgement go by this.
    pub fn set(&self, judging: Judging) {
        let judging = Arc::new(judging);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = judging;
    }
}

/// Whom a machine's parts tell what happens.
#[derive(Clone)]
pub struct Owner {
    /// The `vm` thread's inbox.
    pub inbox: Sender<Message>,
    /// Where the watcher's judgement goes.
    pub board: Arc<Board>,
}

/// Judges once a second.
pub struct Judge {
    engine: Engine,
    limits: Arc<Limits>,
    owner: Owner,
    writer: ThresholdsWriter,
    /// What was last written.
    written: Option<Arc<Judging>>,
}

/// Whether the rules read that section.
pub fn is_wanted(section: &str) -> bool {
    const KINDS: [&str; 16] = [
        "vcpu",
        "kvm_vcpu",
        "sight",
        "task",
        "cgroup",
        "psi",
        "memory",
        "queue",
        "kick",
        "thread",
        "device",
        "machine",
        "balloon",
        "host",
        "console_watch",
        "pvpanic",
    ];
    let (kind, _) = section.split_once('/').unwrap_or((section, ""));
    KINDS.contains(&kind)
}

impl Judge {
    /// By these limits, as they are at each judgement; `writer` has them in the black box.
    pub fn new(owner: Owner, limits: Arc<Limits>, writer: ThresholdsWriter) -> Self {
        Judge {
            engine: Engine::default(),
            limits,
            owner,
            writer,
            written: None,
        }
    }

    /// What holds now; in the black box, too, from then on.
    fn limits(&mut self) -> Arc<Judging> {
        let now = self.limits.read();
        let is_written = |written: &Arc<Judging>| Arc::ptr_eq(written, &now);
        if !self.written.as_ref().is_some_and(is_written) {
            self.writer.write(&now.thresholds);
            self.written = Some(Arc::clone(&now));
        }
        now
    }

    /// Judges what was just sampled, leaves the answer on the board, and tells what has changed.
    pub fn judge(&mut self, snapshot: &Snapshot) {
        let observation = Observation::of(snapshot);
        let at_ns = observation.at_ns;
        let limits = self.limits();
        let changes = self.engine.step(observation, &limits.thresholds);
        self.owner.board.write(Standing {
            at_ns,
            verdicts: self.engine.standing(),
        });
        for change in changes {
            log(&change);
            // The VM may have ended.
            let _ = self.owner.inbox.send(Message::Verdict(change, at_ns));
        }
    }
}

/// The log hears of what matters, even when the `vm` thread does not.
fn log(change: &Change) {
    use observe::verdict::Severity;
    match change {
        Change::Raised(verdict) | Change::Changed(verdict) => {
            let (code, subject) = (verdict.code.name(), &verdict.subject);
            match verdict.severity {
                Severity::Error => tracing::error!("{code} {subject}: {}", verdict.summary),
                Severity::Warning => tracing::warn!("{code} {subject}: {}", verdict.summary),
                Severity::Info => tracing::info!("{code} {subject}: {}", verdict.summary),
            }
        }
        Change::Cleared(verdict, _) => {
            tracing::info!("{} {}: no longer", verdict.code.name(), verdict.subject);
        }
    }
}
