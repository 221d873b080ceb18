//! GET /observe/trace: a trace of the VM as its events come, written by a thread of its own.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use vmm::trace;

use crate::http::Response;
use crate::machine::Machine;

/// The trace's content type.
const CONTENT_TYPE: &str = "application/json";
/// Bytes of a piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait for the client.
const PIECES: usize = 4;
/// How long the client may take beyond the time that it asked for.
const GRACE: Duration = Duration::from_secs(30);
/// How often it is looked whether the client took something.
const RETRY: Duration = Duration::from_millis(1);

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceRefusal {
    /// There is one already.
    #[error("another client takes a trace of this VM; ask again when that one is done")]
    Busy,
    /// There is no thread for it.
    #[error("the thread `trace` cannot be made: {0}; free memory or raise the limit on threads")]
    Thread(io::Error),
}

/// Whether somebody takes a trace now.
#[derive(Clone, Debug, Default)]
pub struct Tracing(Arc<AtomicBool>);

/// The one who does.
struct Place(Arc<AtomicBool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Tracing {
    fn place(&self) -> Result<Place, TraceRefusal> {
        let taken = self.0.swap(true, Ordering::AcqRel);
        (!taken)
            .then(|| Place(Arc::clone(&self.0)))
            .ok_or(TraceRefusal::Busy)
    }

    /// Begins a trace of `machine` for `period`. The answer's body comes piece by piece; it ends
    /// early when the VM does. A client that goes away ends it, too.
    ///
    /// # Errors
    /// [`TraceRefusal`].
    pub fn begin(
        &self,
        machine: Arc<dyn Machine>,
        period: Duration,
    ) -> Result<Response, TraceRefusal> {
        let place = self.place()?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let thread = std::thread::Builder::new().name("trace".to_owned());
        let thread = thread.spawn(move || {
            let _place = place;
            write(&*machine, period, sender);
        });
        thread.map_err(TraceRefusal::Thread)?;
        Ok(Response::stream(CONTENT_TYPE, pieces))
    }
}

fn write(machine: &dyn Machine, period: Duration, sender: mpsc::Sender<Vec<u8>>) {
    let watch = sender.clone();
    let pieces = Pieces {
        piece: Vec::new(),
        sender,
        until: Instant::now() + period + GRACE,
    };
    let mut source = || machine.snapshot().map_err(Into::into);
    let wanted = || !watch.is_closed();
    if let Err(error) = trace::record(&mut source, period, &wanted, pieces) {
        tracing::warn!("a client's trace ended early: {error}");
    }
}

/// Where the trace is written: pieces for the client, as many as it takes.
struct Pieces {
    piece: Vec<u8>,
    sender: mpsc::Sender<Vec<u8>>,
    until: Instant,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let mut piece = std::mem::take(&mut self.piece);
        loop {
            piece = match self.sender.try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(TrySendError::Full(piece)) => piece,
            };
            if Instant::now() > self.until {
                let text = "the client takes it too slowly; ask for a shorter time";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(RETRY);
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.send()
    }
}
