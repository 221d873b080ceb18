//! POST /observe/dump: a dump of the VM into a file, written by a thread of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vmm::DumpKind;

use crate::events::{DumpStage, Event, EventLog};
use crate::machine::{Machine, MachineError};
use crate::wire::DumpWire;
use crate::wire::dump::DumpKindWire;

/// How often the events tell of progress, at most.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpRefusal {
    /// There is one already.
    #[error("a dump of this VM is being written; ask again when that one is done")]
    Busy,
    /// There is no thread for it.
    #[error("the thread `dump` cannot be made: {0}; free memory or raise the limit on threads")]
    Thread(std::io::Error),
}

/// Whether a dump is being written now.
#[derive(Clone, Debug, Default)]
pub struct Dumping(Arc<AtomicBool>);

/// Of the one that is.
struct Place(Arc<AtomicBool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Dumping {
    fn place(&self) -> Result<Place, DumpRefusal> {
        let taken = self.0.swap(true, Ordering::AcqRel);
        (!taken)
            .then(|| Place(Arc::clone(&self.0)))
            .ok_or(DumpRefusal::Busy)
    }

    /// Begins a dump; what is given back tells how it ended. It ends also when nobody waits for it.
    ///
    /// # Errors
    /// [`DumpRefusal`].
    pub fn begin(
        &self,
        machine: Arc<dyn Machine>,
        events: Arc<EventLog>,
        wire: &DumpWire,
    ) -> Result<oneshot::Receiver<Result<(), MachineError>>, DumpRefusal> {
        let place = self.place()?;
        let (sender, outcome) = oneshot::channel();
        let teller = Teller {
            events,
            kind: wire.kind.name(),
            path: wire.path.display().to_string(),
        };
        let (kind, path) = (wire.kind.kind(), wire.path.clone());
        let thread = std::thread::Builder::new().name("dump".to_owned());
        let thread = thread.spawn(move || {
            let done = write(&*machine, &teller, kind, &path);
            drop(place);
            // The client may be gone.
            let _ = sender.send(done);
        });
        thread.map_err(DumpRefusal::Thread)?;
        Ok(outcome)
    }
}

/// Tells the events of one dump.
struct Teller {
    events: Arc<EventLog>,
    kind: &'static str,
    path: String,
}

impl Teller {
    fn tell(&self, stage: DumpStage) {
        self.events.push(Event::Dump {
            kind: self.kind,
            path: self.path.clone(),
            stage,
        });
    }
}

/// Writes a dump on this thread, and tells the events of it.
///
/// # Errors
/// There is none.
pub(crate) fn write_here(
    machine: &dyn Machine,
    events: &Arc<EventLog>,
    kind: DumpKindWire,
    path: &Path,
) -> Result<(), MachineError> {
    let teller = Teller {
        events: Arc::clone(events),
        kind: kind.name(),
        path: path.display().to_string(),
    };
    write(machine, &teller, kind.kind(), path)
}

fn write(
    machine: &dyn Machine,
    teller: &Teller,
    kind: DumpKind,
    path: &Path,
) -> Result<(), MachineError> {
    teller.tell(DumpStage::Begun);
    let mut told = Instant::now();
    let mut progress = |done_bytes, total_bytes| {
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            teller.tell(DumpStage::Progress {
                done_bytes,
                total_bytes,
            });
        }
    };
    let done = machine.dump(kind, path, &mut progress);
    match &done {
        Ok(()) => teller.tell(DumpStage::Done),
        Err(error) => teller.tell(DumpStage::Failed {
            detail: error.to_string(),
        }),
    }
    done
}
