//! The console thread's loop.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use observe::clock::monotonic_ns;
use observe::{Activity, Block, Clock};

use super::block::{BLOCKED_ON_OUTPUT, ConsoleBlock};
use super::{ConsoleKey, ConsoleWatch, OnKey};
use crate::legacy::keys::{Keys, Typed};
use crate::legacy::serial::Serial;
use crate::legacy::stream::{self, Sink};
use crate::virtio::Limiter;

/// Most bytes of one write: what a pipe takes whole.
const CHUNK_BYTES: usize = libc::PIPE_BUF;
/// Input that waits for the guest, besides the receive FIFO.
const INPUT_BYTES: usize = 4096;
/// How long output may wait for its reader. Many start a VM with its output on a pipe that nobody
/// reads: the guest must not crawl along behind its console for good.
const READER_PATIENCE_NS: u64 = 2_000_000_000;
/// The thread looks around at least this often, even if nobody wakes it.
const TICK_MS: i32 = 5000;
const HELP: &[u8] =
    b"\r\nCtrl-A x stops the VM, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h shows this\r\n";

/// Where input is read from.
pub(super) struct Input {
    pub(super) fd: OwnedFd,
    /// `None`: all bytes are the guest's.
    pub(super) keys: Option<Keys>,
}

/// What poll found ready.
struct Ready {
    input: bool,
    output: bool,
}

/// The thread's own state.
pub(super) struct ConsoleWorker {
    serial: Arc<Serial>,
    stop_at_ns: Arc<AtomicU64>,
    block: Block<ConsoleBlock>,
    input: Option<Input>,
    sink: Option<Sink>,
    on_key: Option<OnKey>,
    /// Sees all that is taken from the ring.
    pub(super) watch: Option<ConsoleWatch>,
    /// How much the output is given.
    pub(super) limiter: Limiter,
    clock: Clock,
    /// Input that the receive FIFO had no room for, at most [`INPUT_BYTES`].
    waiting: VecDeque<u8>,
    /// Output taken from the ring, of which `written` bytes are written.
    chunk: Vec<u8>,
    written: usize,
    /// Since when the output has taken nothing, on the monotonic clock; 0 when it does.
    stalled_at: u64,
    /// The output took nothing for too long: until it does, what is written is discarded.
    given_up: bool,
    warned: bool,
}

impl ConsoleWorker {
    pub(super) fn new(
        serial: Arc<Serial>,
        stop_at_ns: Arc<AtomicU64>,
        block: Block<ConsoleBlock>,
        input: Option<Input>,
        sink: Option<Sink>,
        on_key: Option<OnKey>,
    ) -> Self {
        ConsoleWorker {
            serial,
            stop_at_ns,
            block,
            input,
            sink,
            on_key,
            watch: None,
            limiter: Limiter::default(),
            clock: Clock::process(),
            waiting: VecDeque::with_capacity(INPUT_BYTES),
            chunk: Vec::with_capacity(CHUNK_BYTES),
            written: 0,
            stalled_at: 0,
            given_up: false,
            warned: false,
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(&mut self) {
        stream::block_stream_signals();
        self.block.heartbeat.claim();
        loop {
            let stop_at = self.stop_at_ns.load(Ordering::Acquire);
            self.give_input();
            self.take_output();
            let missing = self.serial.overruns() - self.block.overrun.value();
            self.block.overrun.add(missing);
            let stopping = stop_at != 0;
            if stopping && (self.chunk.is_empty() || monotonic_ns() >= stop_at) {
                return;
            }
            let ready = self.wait(stop_at);
            if ready.output {
                self.write();
            }
            if ready.input && !stopping {
                self.read();
            }
        }
    }

    /// Accounts for what is left.
    pub(super) fn end(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.end();
        }
        let lost = self.serial.abandon_output() + (self.chunk.len() - self.written);
        self.block.discarded.add(lost as u64);
        self.block.input_dropped.add(self.waiting.len() as u64);
        self.block
            .heartbeat
            .enter(Activity::Ended, self.clock.ticks());
    }

    fn give_input(&mut self) {
        if !self.waiting.is_empty() {
            let given = self.serial.enqueue(self.waiting.make_contiguous());
            self.waiting.drain(..given);
            self.block.input.add(given as u64);
        }
    }

    /// Fills an empty chunk from the ring; without an output, empties the ring.
    fn take_output(&mut self) {
        while self.chunk.is_empty() {
            self.chunk.resize(CHUNK_BYTES, 0);
            let taken = self.serial.take_output(&mut self.chunk);
            self.chunk.truncate(taken);
            self.written = 0;
            if let Some(watch) = &mut self.watch {
                watch.feed(&self.chunk);
            }
            if taken == 0 {
                return;
            }
            if self.sink.is_some() && !self.given_up {
                self.limit();
            } else {
                self.discard();
            }
        }
    }

    /// Drops what of a fresh chunk is beyond the operator's limit. It does not wait: the guest would
    /// wait with it.
    fn limit(&mut self) {
        if self.limiter.limits() {
            let all = self.chunk.len();
            let part = self.limiter.take_part(all as u64, monotonic_ns());
            self.chunk.truncate(usize::try_from(part).unwrap_or(all));
            let dropped = all - self.chunk.len();
            self.block.limit_dropped.add(dropped as u64);
        }
    }

    fn discard(&mut self) {
        let lost = self.chunk.len() - self.written;
        self.block.discarded.add(lost as u64);
        self.chunk.clear();
        self.written = 0;
    }

    /// Waits for something to do.
    fn wait(&mut self, stop_at: u64) -> Ready {
        if self.chunk.is_empty() && !self.given_up {
            self.enter(Activity::Idle);
        } else {
            let ready = self.look(0);
            if ready.output {
                self.take_heart();
                return ready;
            }
            let waited = !self.given_up;
            self.stall();
            if ready.input || (waited && self.given_up) {
                return ready;
            }
        }
        let now = monotonic_ns();
        let patience = match self.stalled_at {
            0 => None,
            _ if self.given_up => None,
            since => Some(since + READER_PATIENCE_NS),
        };
        let until = [(stop_at != 0).then_some(stop_at), patience];
        let timeout = until.into_iter().flatten().min().map_or(TICK_MS, |end| {
            i32::try_from(end.saturating_sub(now) / 1_000_000 + 1).unwrap_or(TICK_MS)
        });
        let ready = self.look(timeout);
        if ready.output {
            self.take_heart();
        }
        if self.stalled_at == 0 {
            self.enter(Activity::InDevice);
        }
        ready
    }

    fn enter(&self, activity: Activity) {
        self.block.heartbeat.enter(activity, self.clock.ticks());
    }

    /// The output takes something again.
    fn take_heart(&mut self) {
        self.stalled_at = 0;
        self.given_up = false;
    }

    /// The output takes nothing: begins to wait for it, or gives it up.
    fn stall(&mut self) {
        let now = monotonic_ns();
        if self.stalled_at == 0 {
            self.stalled_at = now.max(1);
            self.block.stalls.inc();
            let ticks = self.clock.ticks();
            let heartbeat = &self.block.heartbeat;
            heartbeat.set(Activity::Blocked, BLOCKED_ON_OUTPUT, 0, 0, ticks);
        } else if !self.given_up && now.saturating_sub(self.stalled_at) >= READER_PATIENCE_NS {
            self.given_up = true;
            tracing::warn!(
                "nobody reads the serial output: it is discarded until somebody does; read it, or \
                 send it to a file with PUT /serial"
            );
            self.discard();
        }
    }

    fn look(&self, timeout_ms: i32) -> Ready {
        // A terminal is read even when nobody takes its input, for the keys that are commands.
        let reads = |input: &&Input| self.waiting.is_empty() || input.keys.is_some();
        let input = self.input.as_ref().filter(reads);
        let waits = !self.chunk.is_empty() || self.given_up;
        let output = self.sink.as_ref().filter(|_| waits);
        let wake = self.serial.wake_event();
        let [wake_ready, input, output] = stream::poll(
            [
                Some((wake.as_raw_fd(), libc::POLLIN)),
                input.map(|input| (input.fd.as_raw_fd(), libc::POLLIN)),
                output.map(|sink| (sink.raw_fd(), libc::POLLOUT)),
            ],
            timeout_ms,
        );
        if wake_ready {
            // The counter is of no interest, it only needs to be zero again.
            let _ = wake.read();
        }
        Ready { input, output }
    }

    fn write(&mut self) {
        let (Some(sink), Some(rest @ [_, ..])) = (&self.sink, self.chunk.get(self.written..))
        else {
            return;
        };
        self.block.writes.inc();
        match sink.write(rest) {
            Ok(n) => {
                self.block.output.add(n as u64);
                self.written += n;
                if self.written >= self.chunk.len() {
                    self.chunk.clear();
                    self.written = 0;
                }
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(error) => {
                self.block.write_errors.inc();
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!("serial output fails and is discarded: {error}");
                }
                self.discard();
            }
        }
    }

    fn read(&mut self) {
        let Some(input) = &mut self.input else {
            return;
        };
        let mut bytes = [0; 256];
        let bytes = match stream::read(input.fd.as_raw_fd(), &mut bytes) {
            Ok(n) if n > 0 => &bytes[..n],
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return,
            Ok(_) | Err(_) => {
                tracing::debug!("the console's input has ended");
                self.input = None;
                return;
            }
        };
        let Some(keys) = &mut input.keys else {
            self.waiting.extend(bytes);
            return;
        };
        let (mut help, mut stop) = (false, false);
        for &byte in bytes {
            let typed = keys.feed(byte);
            let guest: &[u8] = match &typed {
                Typed::Byte(byte) => std::slice::from_ref(byte),
                Typed::Two(first, second) => &[*first, *second],
                Typed::Nothing | Typed::Stop | Typed::Help => &[],
            };
            help |= typed == Typed::Help;
            stop |= typed == Typed::Stop;
            if self.waiting.len() + guest.len() <= INPUT_BYTES {
                self.waiting.extend(guest);
            } else {
                self.block.input_dropped.add(guest.len() as u64);
            }
        }
        if help {
            show_help(&input.fd);
        }
        if let Some(on_key) = self.on_key.as_mut().filter(|_| stop) {
            on_key(ConsoleKey::Stop);
        }
    }
}

/// Shows the help at the terminal, unless that takes nothing now.
fn show_help(terminal: &OwnedFd) {
    let [ready] = stream::poll([Some((terminal.as_raw_fd(), libc::POLLOUT))], 0);
    let shown = ready
        .then(|| terminal.try_clone().and_then(Sink::new).ok())
        .flatten()
        .map(|sink| sink.write(HELP));
    if !matches!(shown, Some(Ok(_))) {
        tracing::debug!("the console's help could not be shown");
    }
}
