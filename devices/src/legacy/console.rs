//! The thread `console`: carries the serial port's output to the host and the host's input to the
//! serial port.
//!
//! It alone waits for terminals, files and pipes. When the output does not move, the serial port's
//! ring fills and the guest sees a busy transmitter; when the guest does not read, we stop reading
//! our input (a terminal is still read for Ctrl-A x, and what is typed too much is dropped and
//! counted). When the output fails, it is discarded and counted, and the guest goes on.

mod block;
pub mod watch;
mod worker;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use observe::Block;
use observe::clock::monotonic_ns;

use super::keys::Keys;
pub use block::{BLOCKED_ON_OUTPUT, ConsoleBlock};
pub use watch::{ConsoleWatch, Facts, GuestMessage, MessageKind, OnMessage, WatchBlock};
use worker::{ConsoleWorker, Input};

use super::serial::Serial;
use super::stream::{self, ConsoleInput, ConsoleOutput, Sink};
use super::terminal::{RawTerminal, TerminalError};
use crate::virtio::{BucketSpec, Limiter, LimiterSpec};

/// What [`Console::stop`] allows beyond its deadline for the thread to end.
const GRACE: Duration = Duration::from_millis(200);
/// What dropping a console allows for flushing.
const DROP_DEADLINE: Duration = Duration::from_millis(100);
/// A command typed at the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKey {
    /// Ctrl-A x: stop the VM.
    Stop,
}

/// Is told of commands, on the console thread: it must not wait.
pub type OnKey = Box<dyn FnMut(ConsoleKey) + Send>;

/// Why the console could not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The output cannot be used.
    #[error("the console's output cannot be used: {0}")]
    Output(io::Error),
    /// The terminal cannot be put into raw mode.
    #[error("the console's terminal cannot be used: {0}")]
    Terminal(TerminalError),
    /// No thread could be had.
    #[error("the console's thread cannot be started: {0}")]
    Thread(io::Error),
    /// The thread is stuck in a call on its input or output, and was left behind.
    #[error("the console's thread did not end in time: its input or output is stuck")]
    Stuck,
    /// The thread panicked earlier; the output since then is lost.
    #[error("the console's thread panicked")]
    Panicked,
}

/// A running console.
pub struct Console {
    serial: Arc<Serial>,
    /// When to be done, as monotonic nanoseconds; 0 while it is to go on.
    stop_at_ns: Arc<AtomicU64>,
    /// Whether the thread panicked, once it has ended.
    ended: mpsc::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
    /// Here and not in the thread: a stuck thread must not keep the terminal raw.
    raw: Option<RawTerminal>,
}

impl Console {
    /// Starts the thread. A terminal as input is put into raw mode until the console ends; in a
    /// background process group it is left alone and gives no input. `watch` sees all output, also
    /// what is beyond `limit` (a token is a byte) and dropped.
    ///
    /// # Errors
    /// [`ConsoleError`]; nothing is left running then.
    pub fn spawn(
        serial: Arc<Serial>,
        input: ConsoleInput,
        output: ConsoleOutput,
        block: Block<ConsoleBlock>,
        on_key: Option<OnKey>,
        watch: Option<ConsoleWatch>,
        limit: Option<BucketSpec>,
    ) -> Result<Self, ConsoleError> {
        let sink = match output {
            ConsoleOutput::Nothing => None,
            ConsoleOutput::Stream(fd) => Some(Sink::new(fd).map_err(ConsoleError::Output)?),
        };
        let (fd, wants_keys) = match input {
            ConsoleInput::Nothing => (None, false),
            ConsoleInput::Stream(fd) => (Some(fd), false),
            ConsoleInput::Terminal(fd) => (Some(fd), true),
        };
        let (input, raw) = open_input(fd, wants_keys)?;
        let stop_at_ns = Arc::new(AtomicU64::new(0));
        let (done, ended) = mpsc::channel();
        let (shared, stop) = (Arc::clone(&serial), Arc::clone(&stop_at_ns));
        let mut worker = ConsoleWorker::new(shared, stop, block, input, sink, on_key);
        worker.watch = watch;
        let limit = LimiterSpec {
            bandwidth: limit,
            ops: None,
        };
        worker.limiter = Limiter::new(limit, monotonic_ns());
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                let panicked = catch_unwind(AssertUnwindSafe(|| worker.run())).is_err();
                if panicked {
                    tracing::error!("the console thread panicked; serial output is discarded");
                }
                worker.end();
                // Nobody listens any more when the console was given up.
                let _ = done.send(panicked);
            })
            .map_err(ConsoleError::Thread)?;
        Ok(Console {
            serial,
            stop_at_ns,
            ended,
            thread: Some(thread),
            raw,
        })
    }

    /// Writes what the guest has put out, for `deadline` at most, ends the thread and restores the
    /// terminal. To be called when no vCPU runs any more; a vCPU that still does is not held up.
    ///
    /// # Errors
    /// [`ConsoleError::Stuck`] or [`ConsoleError::Panicked`].
    pub fn stop(mut self, deadline: Duration) -> Result<(), ConsoleError> {
        self.finish(deadline)
    }

    fn finish(&mut self, deadline: Duration) -> Result<(), ConsoleError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        let stop_at = monotonic_ns().saturating_add(deadline_ns).max(1);
        self.stop_at_ns.store(stop_at, Ordering::Release);
        // Fails only when the eventfd's counter is full, and then it is readable already.
        let _ = self.serial.wake_event().write(1);
        let ended = self.ended.recv_timeout(deadline.saturating_add(GRACE));
        self.raw = None;
        match ended {
            Ok(panicked) => {
                let joined = thread.join();
                if panicked || joined.is_err() {
                    return Err(ConsoleError::Panicked);
                }
                Ok(())
            }
            Err(RecvTimeoutError::Disconnected) => Err(ConsoleError::Panicked),
            Err(RecvTimeoutError::Timeout) => {
                self.serial.abandon_output();
                Err(ConsoleError::Stuck)
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = self.finish(DROP_DEADLINE) {
            tracing::warn!("{error}");
        }
    }
}

fn open_input(
    fd: Option<OwnedFd>,
    wants_keys: bool,
) -> Result<(Option<Input>, Option<RawTerminal>), ConsoleError> {
    let Some(fd) = fd else {
        return Ok((None, None));
    };
    let terminal = stream::is_terminal(fd.as_raw_fd());
    let raw = if terminal {
        match RawTerminal::enter(fd.as_fd()) {
            Ok(raw) => Some(raw),
            Err(error @ TerminalError::Background) => {
                tracing::warn!("no console input: {error}");
                return Ok((None, None));
            }
            Err(error) => return Err(ConsoleError::Terminal(error)),
        }
    } else {
        None
    };
    let keys = (terminal && wants_keys).then(Keys::default);
    Ok((Some(Input { fd, keys }), raw))
}

#[cfg(test)]
mod tests;
