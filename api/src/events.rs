//! What has happened to a VM, in order: numbered without gaps, and kept for those who ask late.
//!
//! Fed by the VM's own events and by requests that changed something; read by any number of
//! followers, each at its own pace. Only the last [`KEPT`] events are kept: whoever asks for older
//! ones is told how many are lost. Writing never waits for a reader.

pub mod stream;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

/// Events that are kept.
pub const KEPT: usize = 4096;
/// Longest text in an event; what is beyond is cut off.
pub const MAX_TEXT_BYTES: usize = 512;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A request of a client changed something.
    Request {
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// The action, of PUT /actions and PATCH /vm.
        #[serde(skip_serializing_if = "Option::is_none")]
        action: Option<&'static str>,
    },
    /// The guest runs.
    Started,
    /// The guest is paused.
    Paused,
    /// The guest goes on.
    Resumed,
    /// Every vCPU was sent an NMI.
    NmiSent,
    /// A device or a host resource behind it has trouble; the VM goes on.
    Device {
        /// Which.
        device: String,
        /// What happened.
        detail: String,
    },
    /// What is wrong with the VM has changed.
    Verdict {
        /// `raised`, `changed` or `cleared`.
        change: &'static str,
        /// As in GET /observe/health.
        verdict: serde_json::Value,
    },
    /// A dump that a client asked for.
    Dump {
        /// `blackbox`, `core` or `registers`.
        kind: &'static str,
        /// Where to.
        path: String,
        /// How far it is.
        #[serde(flatten)]
        stage: DumpStage,
    },
    /// The guest's kernel said on its console that something is wrong. The words are the guest's:
    /// none can be relied on.
    GuestMessage {
        /// What it is about: `panic`, `oops`, `soft_lockup` ...
        kind: &'static str,
        /// The message, without its time stamp.
        line: String,
        /// What was read of it.
        facts: FactsWire,
        /// The lines before it, oldest first.
        before: Vec<String>,
    },
    /// The guest's kernel told the pvpanic device that it gave up.
    GuestPanic {
        /// `panicked`, or `crash_loaded`: a crash kernel in the guest takes over.
        kind: &'static str,
    },
    /// Something was done about a verdict, as the policy says.
    Action {
        /// The verdict's code.
        code: &'static str,
        /// And subject.
        subject: String,
        /// What: `nmi`, `dump`, `pause`, `wait`, `reset` or `restart`.
        action: &'static str,
        /// Where a dump went.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Why it could not be done.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A run of the VM is over, and another one follows.
    Restarting {
        /// The run that is over.
        run: u64,
        /// `failed`, `guest-panic`, `reboot` or `verdict`.
        cause: &'static str,
        /// How it ended.
        detail: String,
        /// In so many milliseconds.
        wait_ms: u64,
    },
    /// A run begins that is not the first.
    Run {
        /// Its number.
        run: u64,
        /// Where the black box of the run before is kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        kept_black_box: Option<String>,
    },
    /// The VM is gone: the last event.
    Ended {
        /// Not as guest or operator wanted.
        failed: bool,
        /// How.
        detail: String,
        /// Its runs, oldest first, if there were several.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        runs: Vec<RunWire>,
    },
}

/// A run of a VM that was started several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunWire {
    /// Its number, from 1.
    pub run: u64,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// How.
    pub detail: String,
    /// Where its black box lies, if it is still there.
    pub black_box: Option<String>,
}

/// How far a dump is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum DumpStage {
    /// It begins; the VM is paused if need be.
    Begun,
    /// Of guest memory.
    Progress {
        /// Bytes that were looked at.
        done_bytes: u64,
        /// All of them.
        total_bytes: u64,
    },
    /// The file is there.
    Done,
    /// There is no file.
    Failed {
        /// Why.
        detail: String,
    },
}

/// What a message of the guest's kernel says; what it does not is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FactsWire {
    /// The CPU's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// The task's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// The task's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// For how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// The block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Where on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector: Option<u64>,
    /// What was asked of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

impl FactsWire {
    /// As the API tells them.
    pub fn of(facts: &vmm::Facts) -> FactsWire {
        let vmm::Facts {
            cpu,
            comm,
            pid,
            seconds,
            device,
            sector,
            operation,
        } = facts.clone();
        FactsWire {
            cpu,
            comm,
            pid,
            seconds,
            device,
            sector,
            operation,
        }
    }
}

impl Event {
    fn cut(self) -> Event {
        match self {
            Event::Request {
                method,
                path,
                action,
            } => Event::Request {
                method: short(method),
                path: short(path),
                action,
            },
            Event::Device { device, detail } => Event::Device {
                device: short(device),
                detail: short(detail),
            },
            Event::GuestMessage {
                kind,
                line,
                facts,
                before,
            } => Event::GuestMessage {
                kind,
                line: short(line),
                facts,
                before: before.into_iter().map(short).collect(),
            },
            Event::Dump { kind, path, stage } => Event::Dump {
                kind,
                path: short(path),
                stage: match stage {
                    DumpStage::Failed { detail } => DumpStage::Failed {
                        detail: short(detail),
                    },
                    stage => stage,
                },
            },
            Event::Ended {
                failed,
                detail,
                runs,
            } => Event::Ended {
                failed,
                detail: short(detail),
                runs,
            },
            Event::Action {
                code,
                subject,
                action,
                path,
                error,
            } => Event::Action {
                code,
                subject: short(subject),
                action,
                path: path.map(short),
                error: error.map(short),
            },
            Event::Restarting {
                run,
                cause,
                detail,
                wait_ms,
            } => Event::Restarting {
                run,
                cause,
                detail: short(detail),
                wait_ms,
            },
            // Their texts are ours, and bounded.
            Event::Started
            | Event::Paused
            | Event::Resumed
            | Event::NmiSent
            | Event::GuestPanic { .. }
            | Event::Run { .. }
            | Event::Verdict { .. } => self,
        }
    }
}

/// A text that is not too long for an event.
pub(crate) fn short(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev();
        text.truncate(
            end.into_iter()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0),
        );
    }
    text.shrink_to_fit();
    text
}

/// An event as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Numbered {
    /// Its number: 1 for the first, then one more each.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What [`EventLog::after`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Events that were asked for and are kept no longer.
    pub lost: u64,
    /// The oldest of those that are kept.
    pub events: Vec<Numbered>,
    /// No event comes after these.
    pub is_last: bool,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Numbered>,
    /// The number of the newest event.
    newest: u64,
    closed: bool,
}

/// The events of this process's VM.
#[derive(Debug)]
pub struct EventLog {
    /// A lock, for the VM's thread and the API's both write, and numbers must have no gaps. Held to
    /// add one event or to copy a few, never across a wait.
    ring: Mutex<Ring>,
    /// Changes with every event.
    bell: watch::Sender<u64>,
}

impl Default for EventLog {
    fn default() -> Self {
        EventLog {
            ring: Mutex::default(),
            bell: watch::Sender::new(0),
        }
    }
}

impl EventLog {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. After [`Event::Ended`], or [`EventLog::close`], there are no more.
    pub fn push(&self, event: Event) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let event = event.cut();
        let mut ring = self.ring();
        if ring.closed {
            return;
        }
        ring.newest += 1;
        ring.closed = matches!(event, Event::Ended { .. });
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        let number = ring.newest;
        ring.kept.push_back(Numbered {
            number,
            at_ms,
            event,
        });
        drop(ring);
        self.bell.send_replace(number);
    }

    /// No event comes any more: followers get what is there and are done.
    pub fn close(&self) {
        self.ring().closed = true;
        self.bell.send_modify(|_| ());
    }

    /// The oldest events whose number is above `since`, at most `most` of them.
    pub fn after(&self, since: u64, most: usize) -> Batch {
        let ring = self.ring();
        let oldest = ring.newest + 1 - ring.kept.len() as u64;
        // A number that was never given: all that comes after it is still to come.
        let first = since.saturating_add(1).max(oldest);
        let skip = usize::try_from(first - oldest).unwrap_or(usize::MAX);
        let events: Vec<Numbered> = ring.kept.iter().skip(skip).take(most).cloned().collect();
        let told = events.last().map_or(since, |last| last.number);
        Batch {
            lost: first - since.saturating_add(1).min(first),
            is_last: ring.closed && told >= ring.newest,
            events,
        }
    }

    /// Tells of every change from now on.
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}

#[cfg(test)]
mod tests;
