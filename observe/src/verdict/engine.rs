//! Keeps verdicts over time: one that comes and goes with each look is not told each time.

use std::collections::BTreeMap;

use super::{Code, Observation, Severity, Subject, Thresholds, Verdict, diagnose};

/// What happened to a verdict.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It holds from now on.
    Raised(Verdict),
    /// It became better or worse.
    Changed(Verdict),
    /// It no longer holds; with when it began to be so.
    Cleared(Verdict, u64),
}

/// A verdict that is watched.
struct Kept {
    verdict: Verdict,
    /// Since when it was seen without a pause of more than `clear_ns`.
    first_ns: u64,
    /// When it was last seen.
    last_ns: u64,
    is_raised: bool,
}

/// The verdicts of one VM. Not for several threads: its owner is the watcher.
#[derive(Default)]
pub struct Engine {
    kept: BTreeMap<(Code, Subject), Kept>,
    earlier: Option<Observation>,
}

impl Engine {
    /// Judges one observation; gives what changed. Observations come in order of time.
    pub fn step(&mut self, mut now: Observation, thresholds: &Thresholds) -> Vec<Change> {
        let before = self.earlier.as_ref().map(|earlier| &earlier.memory);
        now.memory.goes_on(before, now.cgroup.as_ref());
        if let Some(balloon) = &mut now.balloon {
            let before = self.earlier.as_ref();
            balloon.goes_on(before.and_then(|earlier| earlier.balloon.as_ref()));
        }
        let mut found = diagnose(self.earlier.as_ref(), &now, thresholds);
        // A cause that this look does not show stands on for a while, and explains as long.
        super::link::link(&mut found, &self.standing());
        let at = now.at_ns;
        self.earlier = Some(now);
        let mut changes = Vec::new();
        for verdict in found {
            self.saw(verdict, at, thresholds, &mut changes);
        }
        self.kept.retain(|_, kept| {
            let gone = at.saturating_sub(kept.last_ns);
            let stays = kept.last_ns == at || gone < thresholds.clear_ns && kept.is_raised;
            if !stays && kept.is_raised {
                changes.push(Change::Cleared(kept.verdict.clone(), kept.last_ns));
            }
            stays
        });
        changes
    }

    fn saw(&mut self, verdict: Verdict, at: u64, limits: &Thresholds, changes: &mut Vec<Change>) {
        let kept = self.kept.entry(verdict.key()).or_insert_with(|| Kept {
            first_ns: verdict.since_ns.min(at),
            last_ns: at,
            is_raised: false,
            verdict: verdict.clone(),
        });
        let is_other = kept.verdict.severity != verdict.severity
            || kept.verdict.consequence_of != verdict.consequence_of;
        kept.last_ns = at;
        let code = verdict.code;
        let first_ns = kept.first_ns.min(verdict.since_ns);
        kept.verdict = Verdict {
            since_ns: first_ns,
            ..verdict
        };
        if !kept.is_raised && at.saturating_sub(first_ns) >= limits.raise_ns_of(code) {
            kept.is_raised = true;
            changes.push(Change::Raised(kept.verdict.clone()));
        } else if kept.is_raised && is_other {
            changes.push(Change::Changed(kept.verdict.clone()));
        }
    }

    /// The verdicts that hold, causes before consequences, worst first.
    pub fn standing(&self) -> Vec<Verdict> {
        let raised = self.kept.values().filter(|kept| kept.is_raised);
        let mut all: Vec<Verdict> = raised.map(|kept| kept.verdict.clone()).collect();
        super::link::sort(&mut all);
        all
    }

    /// The worst severity that holds.
    pub fn worst(&self) -> Option<Severity> {
        let raised = self.kept.values().filter(|kept| kept.is_raised);
        raised.map(|kept| kept.verdict.severity).max()
    }
}
