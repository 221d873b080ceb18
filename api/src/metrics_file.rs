//! PUT /metrics: Firecracker's metrics, a JSON object a line, to a file or FIFO.
//!
//! A line comes when the VM has started, then every 60 s, on FlushMetrics and at the end. As in
//! Firecracker, its counters are what came since the line before; the black box never resets, so
//! the totals of the last line are kept here. Lines are written by a thread of their own, made when
//! a path is given: neither a slow disk nor a FIFO that nobody reads holds up the API. What a line
//! that cannot be written would have told is in the next one.

pub mod keys;
pub mod requests;
pub mod values;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vmm::observe::clock::monotonic_ns;

use crate::logging::{LogControl, Sink, SinkError};
use crate::machine::{Machine, MachineError};
use crate::wire::MetricsWire;
use keys::Totals;
use requests::RequestTally;

/// How often a line comes by itself.
const PERIOD: Duration = Duration::from_secs(60);
/// How soon the rest of a line is tried again that a FIFO took in part.
const RETRY: Duration = Duration::from_millis(250);
/// How long [`MetricsFile::finish`] waits for the last line.
const FINISH_DEADLINE: Duration = Duration::from_secs(1);

/// Why there are no metrics, or no line of them.
#[derive(Debug, thiserror::Error)]
pub enum MetricsFileError {
    /// The path cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// There is a path already; the words are Firecracker's.
    #[error("Reinitialization of metrics not allowed.")]
    Again,
    /// No thread.
    #[error("the thread that writes metrics cannot be made: {0}; raise the limit on threads")]
    Thread(io::Error),
    /// The black box cannot be read.
    #[error("the metrics cannot be read: {0}")]
    BlackBox(MachineError),
    /// Nobody takes the line.
    #[error(
        "metrics_path {} takes no more: read the FIFO, or make room on its disk; \
         the next line tells what this one would have", .0.display()
    )]
    Full(PathBuf),
}

/// Told how a flush went.
type Reply = Box<dyn FnOnce(Result<(), MetricsFileError>) + Send>;

enum Message {
    Started,
    Flush(Reply),
    Finish(Sender<()>),
}

/// The metrics file of this process; nothing is written before a path is given.
pub struct MetricsFile {
    id: String,
    log: Arc<LogControl>,
    /// What clients ask.
    pub requests: RequestTally,
    machine: OnceLock<Arc<dyn Machine>>,
    writer: OnceLock<Sender<Message>>,
    /// Lines that were not taken.
    missed: AtomicU64,
    /// Times that the black box could not be read.
    failed: AtomicU64,
}

impl MetricsFile {
    /// None yet, of the VM of that id.
    pub fn new(id: &str, log: Arc<LogControl>) -> Arc<MetricsFile> {
        Arc::new(MetricsFile {
            id: id.to_owned(),
            log,
            requests: RequestTally::default(),
            machine: OnceLock::new(),
            writer: OnceLock::new(),
            missed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Begins to write, once in a process's life.
    ///
    /// # Errors
    /// The path cannot be opened; there is one already.
    pub fn open(self: &Arc<Self>, wire: &MetricsWire) -> Result<(), MetricsFileError> {
        if self.writer.get().is_some() {
            return Err(MetricsFileError::Again);
        }
        let mut facts = Vec::new();
        if wire.emit_id == Some(true) {
            facts.push(("id", json!(self.id)));
        }
        if let Some(properties) = &wire.properties {
            facts.push(("properties", json!(properties)));
        }
        let writer = Writer {
            shared: Arc::clone(self),
            sink: Sink::open("metrics_path", &wire.metrics_path)?,
            path: wire.metrics_path.clone(),
            facts,
            last: Totals::default(),
            run: 0,
            rest: Vec::new(),
        };
        let (sender, inbox) = mpsc::channel();
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(MetricsFileError::Thread)?;
        if self.machine.get().is_some() {
            let _ = sender.send(Message::Started);
        }
        let _ = self.writer.set(sender);
        Ok(())
    }

    /// The VM runs: the first line comes.
    pub fn started(&self, machine: Arc<dyn Machine>) {
        let _ = self.machine.set(machine);
        self.send(Message::Started);
    }

    /// Writes a line and then tells `reply`. Without a path there is nothing to do, and that is
    /// fine, as it is for Firecracker.
    pub fn flush(&self, reply: impl FnOnce(Result<(), MetricsFileError>) + Send + 'static) {
        match self.writer.get() {
            Some(writer) => drop(writer.send(Message::Flush(Box::new(reply)))),
            None => reply(Ok(())),
        }
    }

    /// Writes the last line, or gives up after a second.
    pub fn finish(&self) {
        let (sender, done) = mpsc::channel();
        self.send(Message::Finish(sender));
        if let Err(RecvTimeoutError::Timeout) = done.recv_timeout(FINISH_DEADLINE) {
            tracing::warn!("the thread metrics did not write the last line in time");
        }
    }

    fn send(&self, message: Message) {
        if let Some(writer) = self.writer.get() {
            let _ = writer.send(message);
        }
    }

    /// All numbers as they stand now, and the devices that have some.
    fn totals(&self) -> Result<Standing, MetricsFileError> {
        let mut totals = Totals::default();
        let (mut devices, mut run) = (Vec::new(), 0);
        if let Some(machine) = self.machine.get() {
            // Before the numbers: those of a run that begins right now are told by the next line.
            run = machine.runs().number;
            let snapshot = machine.snapshot().map_err(|error| {
                self.failed.fetch_add(1, Ordering::Relaxed);
                MetricsFileError::BlackBox(error)
            })?;
            devices = values::devices(&snapshot);
            values::gather(&snapshot, &devices, &mut totals);
        }
        let machine = totals.clone();
        self.requests.gather(&mut totals);
        for (key, number) in [
            ("missed_metrics_count", self.missed.load(Ordering::Relaxed)),
            ("metrics_fails", self.failed.load(Ordering::Relaxed)),
            ("missed_log_count", self.log.dropped()),
        ] {
            totals.count("logger", key, number);
        }
        Ok(Standing {
            totals,
            devices,
            machine,
            run,
        })
    }
}

/// How all numbers stand.
struct Standing {
    totals: Totals,
    /// Devices with groups of their own.
    devices: Vec<keys::Device>,
    /// Those that are the machine's, which begin at 0 with each run.
    machine: Totals,
    /// The VM's run.
    run: u64,
}

/// The thread `metrics`.
struct Writer {
    shared: Arc<MetricsFile>,
    sink: Sink,
    path: PathBuf,
    /// Told in each line.
    facts: Vec<(&'static str, Value)>,
    /// What the lines so far have told.
    last: Totals,
    /// Of this run.
    run: u64,
    /// What a FIFO did not take of the last line.
    rest: Vec<u8>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Message>) {
        let mut due_ns: Option<u64> = None;
        loop {
            let now_ns = monotonic_ns();
            let left = due_ns.map_or(PERIOD, |due| {
                Duration::from_nanos(due.saturating_sub(now_ns))
            });
            if left.is_zero() {
                due_ns = Some(now_ns.saturating_add(PERIOD.as_nanos() as u64));
                self.periodic();
                continue;
            }
            let wait = if self.rest.is_empty() {
                left
            } else {
                left.min(RETRY)
            };
            match inbox.recv_timeout(wait) {
                Ok(Message::Started) => due_ns = Some(now_ns),
                Ok(Message::Flush(reply)) => reply(self.write()),
                Ok(Message::Finish(_done)) => return self.periodic(),
                Err(RecvTimeoutError::Timeout) => self.push_rest(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn periodic(&mut self) {
        if let Err(error) = self.write() {
            tracing::warn!("a line of metrics is lost: {error}");
        }
    }

    fn push_rest(&mut self) {
        let taken = self.sink.write_some(&self.rest);
        self.rest.drain(..taken.min(self.rest.len()));
    }

    /// Writes a line, or nothing of it; what is left of one that was begun comes first.
    fn write(&mut self) -> Result<(), MetricsFileError> {
        self.push_rest();
        let standing = self.shared.totals()?;
        let Standing {
            totals, devices, ..
        } = standing;
        if standing.run != self.run {
            self.last.forget(&standing.machine);
            self.run = standing.run;
        }
        let mut all = totals.line(&self.last, &devices);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        all.insert("utc_timestamp_ms".to_owned(), json!(now_ms));
        let facts = self.facts.iter();
        all.extend(facts.map(|(key, value)| ((*key).to_owned(), value.clone())));
        let mut line = Value::Object(all).to_string().into_bytes();
        line.push(b'\n');
        let taken = if self.rest.is_empty() {
            self.sink.write_some(&line)
        } else {
            0
        };
        if taken == 0 {
            self.shared.missed.fetch_add(1, Ordering::Relaxed);
            return Err(MetricsFileError::Full(self.path.clone()));
        }
        self.rest = line.split_off(taken.min(line.len()));
        self.last = totals;
        Ok(())
    }
}

/// Judges a path without using it.
///
/// # Errors
/// It cannot be opened.
pub fn check(path: &Path) -> Result<(), SinkError> {
    Sink::open("metrics_path", path).map(drop)
}

#[cfg(test)]
mod tests;
