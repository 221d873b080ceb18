//! What a scenario is: a guest, a fault, and the verdict that must come of it.

use std::any::Any;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmm::observe::verdict::{Code, Severity};

use crate::stage::Stage;

/// Where a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// With bare-metal guests on this machine's KVM, whatever KVM that is.
    Here,
    /// As root of an emulated machine: it changes cgroups, clocks or swap, or boots Linux.
    Lab,
}

/// Who is watched.
#[derive(Clone, Copy, Debug)]
pub enum Guest {
    /// The bare-metal guest, with these words. It must say `ready`.
    Zoo(&'static str),
    /// A stock kernel, by version, with this script. It must say `ready`.
    Linux(&'static str, &'static str),
}

/// How the verdict is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The VMM tells it: an event.
    Told,
    /// The VMM is gone: whoever reads its black box finds it.
    PostMortem,
}

/// What was done to the guest or to the host, while it lasts. Dropped, it is undone.
pub struct Fault {
    /// From when on the threshold counts.
    pub from: Instant,
    /// What holds the fault up.
    pub _held: Box<dyn Any>,
}

impl Fault {
    /// A fault that began now and that nothing has to hold up.
    pub fn now() -> Fault {
        Fault::held(())
    }

    /// One that began now and that `held` holds up.
    pub fn held(held: impl Any) -> Fault {
        Fault {
            from: Instant::now(),
            _held: Box::new(held),
        }
    }

    /// One that began at `from`, in the guest.
    pub fn since(from: Instant) -> Fault {
        Fault {
            from,
            _held: Box::new(()),
        }
    }
}

/// A verdict as it came.
pub struct Found<'a> {
    /// The VM.
    pub stage: &'a Stage,
    /// What was done.
    pub fault: &'a Fault,
    /// When it came, by the test's clock.
    pub at: Instant,
    /// As it is told.
    pub verdict: Value,
}

impl Found<'_> {
    /// A number of the evidence.
    #[track_caller]
    pub fn number(&self, name: &str) -> f64 {
        let value = &self.verdict["evidence"][name];
        let number = value.as_f64();
        number.unwrap_or_else(|| panic!("the evidence has no number {name}: {:#}", self.verdict))
    }

    /// Words of the evidence.
    #[track_caller]
    pub fn words(&self, name: &str) -> &str {
        let words = self.verdict["evidence"][name].as_str();
        words.unwrap_or_else(|| panic!("the evidence has no {name}: {:#}", self.verdict))
    }
}

/// A number of the evidence, beside what somebody else says.
pub struct Checked {
    /// What the verdict says.
    pub told: String,
    /// What the independent source says, and which it is.
    pub source: String,
}

/// That `told` lies from `low` to `high`, which `source` says.
#[track_caller]
pub fn between(name: &str, told: f64, low: f64, high: f64, source: &str) -> Checked {
    assert!(
        (low..=high).contains(&told),
        "{name} is {told:.1}, and {source} says {low:.1} to {high:.1}"
    );
    Checked {
        told: format!("{name}={told:.0}"),
        source: format!("{low:.0}..{high:.0} ({source})"),
    }
}

/// One verdict, brought about on purpose.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The verdict that must come.
    pub code: Code,
    /// About what.
    pub subject: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Or, where that is a matter of degree, worse.
    pub or_worse: bool,
    /// Where it runs.
    pub place: Place,
    /// Who is watched.
    pub guest: Guest,
    /// What is configured before the boot, beside the guest.
    pub setup: fn(&Stage),
    /// Brings it about. The guest has said `ready`.
    pub fault: fn(&Stage) -> Fault,
    /// From `Fault::from` on.
    pub threshold: Duration,
    /// Whether the guest itself brings it about, and needs a host CPU for that: then the time in which
    /// it waited for one does not count.
    pub takes_cpu: bool,
    /// Holds the evidence against another source.
    pub evidence: fn(&Found<'_>) -> Checked,
    /// What ends the fault, beside dropping it; `None` where it does not end while the VM lives.
    pub end: Option<fn(&Stage)>,
    /// Of which other verdict it is a consequence, for the fault is one nearer to the root.
    pub cause: Option<Code>,
    /// Other root causes that may stand, for they are true.
    pub also: &'static [Code],
    /// How it is seen.
    pub seen: Seen,
}

/// To be changed where it differs.
pub const USUAL: Scenario = Scenario {
    name: "",
    code: Code::Paused,
    subject: "vcpu/0",
    severity: Severity::Warning,
    or_worse: false,
    place: Place::Here,
    guest: Guest::Zoo(""),
    setup: |_| {},
    fault: |_| Fault::now(),
    threshold: Duration::from_secs(1),
    takes_cpu: false,
    evidence: |_| Checked {
        told: String::new(),
        source: String::new(),
    },
    end: Some(|_| {}),
    cause: None,
    also: &[],
    seen: Seen::Told,
};
