//! Logs: one line for each event, to standard error, a file or a FIFO.
//!
//! Logging never holds up the thread that logs, above all no vCPU: a line that the destination
//! does not take at once is dropped and counted ([`LogControl::dropped`]), and the next line that
//! gets through is preceded by how many are missing. Spans are not used and not kept.
//!
//! A line is `2026-01-31T12:00:00.123456789 [ID:THREAD] text key=value`; with `show_level` and
//! `show_log_origin` the bracket is `[ID:THREAD:LEVEL:FILE:LINE]`, as Firecracker's.

mod line;
mod sink;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::wire::{LevelWire, LoggerWire};
pub(crate) use sink::Sink;
pub use sink::SinkError;

/// The logger's settings, changed by the command line and, until the VM starts, by PUT /logger;
/// read by each event.
#[derive(Debug)]
pub struct LogControl {
    id: String,
    level: AtomicU8,
    show_level: AtomicBool,
    show_origin: AtomicBool,
    dropped: AtomicU64,
    untold: AtomicU64,
    /// A lock, for the destination and the module filter are replaced together while other
    /// threads log: at most once or twice in a process's life, and never held across a write.
    target: RwLock<Arc<Target>>,
}

#[derive(Debug)]
struct Target {
    sink: Sink,
    module: Option<String>,
}

impl LogControl {
    /// Logs to standard error, at `Info`, without levels and origins.
    pub fn new(id: &str) -> Arc<LogControl> {
        let target = Target {
            sink: Sink::stderr(),
            module: None,
        };
        Arc::new(LogControl {
            id: id.to_owned(),
            level: AtomicU8::new(LevelWire::Info as u8),
            show_level: AtomicBool::new(false),
            show_origin: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            target: RwLock::new(Arc::new(target)),
        })
    }

    /// Makes this the logger of the process. A second call has no effect.
    pub fn install(self: &Arc<Self>) {
        let _ = tracing::subscriber::set_global_default(Logger(Arc::clone(self)));
    }

    /// Changes what `wire` gives; what is absent stays.
    ///
    /// # Errors
    /// The log's file cannot be opened; nothing is changed then.
    pub fn apply(&self, wire: &LoggerWire) -> Result<(), SinkError> {
        let sink = wire.log_path.as_deref();
        let sink = sink.map(|path| Sink::open("log_path", path)).transpose()?;
        if sink.is_some() || wire.module.is_some() {
            let old = self.target();
            let target = Target {
                sink: sink.unwrap_or_else(|| old.sink.clone()),
                module: wire.module.clone().or_else(|| old.module.clone()),
            };
            *self.target.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(target);
        }
        if let Some(level) = wire.level {
            self.level.store(level as u8, Ordering::Relaxed);
        }
        if let Some(show) = wire.show_level {
            self.show_level.store(show, Ordering::Relaxed);
        }
        if let Some(show) = wire.show_log_origin {
            self.show_origin.store(show, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Judges a log path without using it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn check(path: &Path) -> Result<(), SinkError> {
        Sink::open("log_path", path).map(drop)
    }

    /// Lines that the destination did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn admits(&self, level: Level) -> bool {
        let least = match level {
            Level::ERROR => LevelWire::Error,
            Level::WARN => LevelWire::Warning,
            Level::INFO => LevelWire::Info,
            Level::DEBUG => LevelWire::Debug,
            Level::TRACE => LevelWire::Trace,
        };
        least as u8 <= self.level.load(Ordering::Relaxed)
    }

    fn log(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let target = self.target();
        let module = metadata.module_path().unwrap_or_else(|| metadata.target());
        if target
            .module
            .as_deref()
            .is_some_and(|prefix| !module.starts_with(prefix))
        {
            return;
        }
        let shows = line::Shows {
            level: self.show_level.load(Ordering::Relaxed),
            origin: self.show_origin.load(Ordering::Relaxed),
        };
        let missing = self.untold.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let note = line::note(&self.id, &format!("{missing} log lines were dropped here"));
            if !target.sink.write(&note) {
                self.untold.fetch_add(missing, Ordering::Relaxed);
            }
        }
        if !target.sink.write(&line::format(&self.id, event, shows)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The subscriber; a type of its own, for its methods are no business of others.
struct Logger(Arc<LogControl>);

impl Subscriber for Logger {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The level changes at run time: ask each time.
        if metadata.is_event() {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.0.admits(*metadata.level())
    }

    fn event(&self, event: &Event<'_>) {
        self.0.log(event);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests;
