//! Verdicts: why a guest is frozen or starving.
//!
//! [`diagnose`] is a pure function: from two observations of a VM, made a second or so apart, it
//! says what is wrong, with numbers. The watcher runs it over the black box that it writes,
//! `vitrine doctor` over one that it reads, tests over recorded ones: the same code, the same
//! answers. The [`Engine`] around it keeps verdicts from flapping and says when they came and went.
//!
//! ```text
//! Snapshot -> Observation -> rules (one file a family) -> linked by cause -> Engine -> changes
//! ```
//!
//! What cannot be seen gives no verdict, or a weaker one, never a wrong one: every rule asks for
//! each of its signals and is silent without it.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod code;
mod engine;
pub mod forecast;
mod link;
mod memory_seen;
mod observation;
mod rules;
mod thresholds;

use std::fmt;

pub use code::{Code, Entry, Severity};
pub use engine::{Change, Engine};
#[cfg(any(test, feature = "recording"))]
pub use observation::Cut;
pub use observation::{MessageSeen, Observation, QueueSeen, SightSeen, ThreadSeen, VcpuSeen};
pub use thresholds::{Slot, Thresholds, ThresholdsBlock, ThresholdsWriter};

/// What a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

impl Subject {
    /// A vCPU: `vcpu/0`.
    pub fn vcpu(index: usize) -> Self {
        Subject(format!("vcpu/{index}"))
    }

    /// A queue of a device: `device/rootfs/queue/0`.
    pub fn queue(device: &str, queue: &str) -> Self {
        Subject(format!("device/{device}/queue/{queue}"))
    }

    /// A device: `device/rootfs`.
    pub fn device(device: &str) -> Self {
        Subject(format!("device/{device}"))
    }

    /// A thread of the VMM: `thread/io-rootfs`.
    pub fn thread(thread: &str) -> Self {
        Subject(format!("thread/{thread}"))
    }

    /// The VM as a whole, its memory, or the host: `vm`, `memory`, `host`, `vmm`.
    pub fn whole(name: &'static str) -> Self {
        Subject(name.to_owned())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value of evidence.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A number; its unit is the end of its name (`_ns`, `_bytes`, `_percent`).
    Number(u64),
    /// A share or a rate.
    Real(f64),
    /// Words.
    Text(String),
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::Number(number) => write!(f, "{number}"),
            Fact::Real(real) => write!(f, "{real:.1}"),
            Fact::Text(text) => f.write_str(text),
        }
    }
}

/// What is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What it says.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// Since when, by `CLOCK_MONOTONIC` in nanoseconds, as far as that is known.
    pub since_ns: u64,
    /// One sentence for people.
    pub summary: String,
    /// Named numbers, the most telling first.
    pub evidence: Vec<(&'static str, Fact)>,
    /// Of which other verdict it is a consequence.
    pub consequence_of: Option<(Code, Subject)>,
}

impl Verdict {
    /// A verdict of its code's usual severity.
    pub fn new(code: Code, subject: Subject, since_ns: u64, summary: String) -> Self {
        Verdict {
            code,
            severity: code.entry().severity,
            subject,
            since_ns,
            summary,
            evidence: Vec::new(),
            consequence_of: None,
        }
    }

    /// With a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Self {
        self.evidence.push((name, Fact::Number(value)));
        self
    }

    /// With a share or rate.
    #[must_use]
    pub fn real(mut self, name: &'static str, value: f64) -> Self {
        self.evidence.push((name, Fact::Real(value)));
        self
    }

    /// With words.
    #[must_use]
    pub fn text(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.evidence.push((name, Fact::Text(value.into())));
        self
    }

    /// Of another severity than usual.
    #[must_use]
    pub fn at(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// What it is told apart by: two verdicts with the same key are the same one, later.
    pub fn key(&self) -> (Code, Subject) {
        (self.code, self.subject.clone())
    }
}

/// What is wrong now: root causes first, then their consequences, worst first in each. `earlier`
/// is an observation of the same VM about a second older; without one, rules that need a trend are
/// silent.
pub fn diagnose(
    earlier: Option<&Observation>,
    now: &Observation,
    thresholds: &Thresholds,
) -> Vec<Verdict> {
    let mut verdicts = rules::all(earlier, now, thresholds);
    link::link(&mut verdicts, &[]);
    verdicts
}

/// 100 less what the verdicts take, and at least 0. Consequences of others take nothing: one fault
/// counts once.
pub fn health(verdicts: &[Verdict]) -> u32 {
    let roots = verdicts
        .iter()
        .filter(|verdict| verdict.consequence_of.is_none());
    roots.fold(100, |left: u32, verdict| {
        left.saturating_sub(verdict.severity.points())
    })
}

/// The verdict that stands at the beginning of the chain of causes.
fn root<'a>(verdict: &'a Verdict, all: &'a [Verdict]) -> &'a Verdict {
    let mut root = verdict;
    // No chain is longer than all of them.
    for _ in all {
        let cause = root.consequence_of.as_ref();
        let cause = cause.and_then(|cause| all.iter().find(|other| other.key() == *cause));
        let Some(cause) = cause else {
            break;
        };
        root = cause;
    }
    root
}

/// Whether a verdict says that something is wrong: neither it nor the cause of it all is
/// information alone. Answers that lie unread in a paused guest are as they should be.
pub fn is_fault(verdict: &Verdict, all: &[Verdict]) -> bool {
    verdict.severity > Severity::Info && root(verdict, all).severity > Severity::Info
}

/// The worst severity of all faults; `None` of a healthy VM.
pub fn worst(verdicts: &[Verdict]) -> Option<Severity> {
    let faults = verdicts
        .iter()
        .filter(|verdict| is_fault(verdict, verdicts));
    faults.map(|verdict| verdict.severity).max()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod replay;
