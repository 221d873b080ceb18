//! What is done when a verdict is raised. Pure: who calls carries it out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::observe::verdict::{Change, Code, Subject, Verdict};

use super::Policy;
use crate::wire::dump::DumpKindWire;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an NMI to every vCPU.
    Nmi,
    /// Write a dump.
    Dump {
        /// Of what.
        kind: DumpKindWire,
        /// To this file, or into this folder; absolute.
        path: PathBuf,
    },
    /// Ask the guest to take all memory out of its balloon.
    Deflate,
    /// Pause the VM.
    Pause,
    /// Wait before the next action.
    Wait(Duration),
    /// End the run and begin the next one at once.
    Reset,
    /// End the run and begin the next one after the policy's wait.
    Restart,
}

impl Action {
    /// Its name, in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Nmi => "nmi",
            Action::Dump { .. } => "dump",
            Action::Deflate => "deflate",
            Action::Pause => "pause",
            Action::Wait(_) => "wait",
            Action::Reset => "reset",
            Action::Restart => "restart",
        }
    }

    /// Whether it ends the run.
    pub fn is_end(&self) -> bool {
        matches!(self, Action::Reset | Action::Restart)
    }
}

/// The file of a dump: in a folder it is `ID-CODE.KIND`, so that the next one of the same verdict
/// takes its place.
pub fn dump_path(path: &Path, id: &str, code: Code, kind: DumpKindWire) -> PathBuf {
    if path.is_dir() {
        path.join(format!("{id}-{}.{}", code.name(), kind.name()))
    } else {
        path.to_owned()
    }
}

/// Which verdicts were acted on in this run.
#[derive(Debug, Default)]
pub struct Acting(BTreeSet<(Code, Subject)>);

impl Acting {
    /// What is to be done about a change, in order. A verdict is acted on once from when it is raised
    /// until it is cleared, and only when it is as bad as its code usually is: a warning of a panic
    /// that did not come yet is none.
    pub fn on_change(&mut self, change: &Change, policy: &Policy) -> Vec<Action> {
        let verdict: &Verdict = match change {
            Change::Cleared(verdict, _) => {
                self.0.remove(&verdict.key());
                return Vec::new();
            }
            Change::Raised(verdict) | Change::Changed(verdict) => verdict,
        };
        let is_meant = verdict.severity >= verdict.code.entry().severity;
        if !is_meant || !self.0.insert(verdict.key()) {
            return Vec::new();
        }
        let actions = policy.actions.get(&verdict.code);
        actions.cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::observe::verdict::Severity;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        policy.actions.insert(Code::GuestPanic, vec![Action::Pause]);
        policy
    }

    fn panic() -> Verdict {
        Verdict::new(Code::GuestPanic, Subject::whole("vm"), 0, String::new())
    }

    #[test]
    fn a_verdict_is_acted_on_once_until_it_is_cleared() {
        let (mut acting, policy) = (Acting::default(), policy());
        let mut on = |change| acting.on_change(&change, &policy);
        assert_eq!(on(Change::Raised(panic())), [Action::Pause]);
        assert!(on(Change::Changed(panic())).is_empty());
        assert!(on(Change::Cleared(panic(), 0)).is_empty());
        assert_eq!(on(Change::Raised(panic())), [Action::Pause]);
    }

    #[test]
    fn only_what_is_as_bad_as_usual_is_acted_on() {
        let (mut acting, policy) = (Acting::default(), policy());
        let mut on = |change| acting.on_change(&change, &policy);
        assert!(on(Change::Raised(panic().at(Severity::Warning))).is_empty());
        assert_eq!(on(Change::Changed(panic())), [Action::Pause]);
    }

    #[test]
    fn what_the_policy_does_not_name_is_only_told_also_as_a_cause() {
        let (mut acting, policy) = (Acting::default(), policy());
        let mut stuck = Verdict::new(Code::VcpuSpin, Subject::vcpu(0), 0, String::new());
        stuck.consequence_of = Some(panic().key());
        assert!(acting.on_change(&Change::Raised(stuck), &policy).is_empty());
    }

    #[test]
    fn a_dump_into_a_folder_is_named_after_the_verdict() {
        let kind = DumpKindWire::Core;
        let path = |path: &str| dump_path(path.as_ref(), "vm1", Code::GuestPanic, kind);
        assert_eq!(path("/"), PathBuf::from("/vm1-guest-panic.core"));
        assert_eq!(path("/no/such"), PathBuf::from("/no/such"));
    }
}
