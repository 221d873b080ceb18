//! What is remembered of the runs of a VM.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::observe::clock::{monotonic_ns, realtime_ns};
use vmm::observe::report::format::date;

use crate::events::{RunWire, short};
use crate::machine::{Ending, RestartCause, Runs};

/// Runs that are remembered one by one.
const REMEMBERED: usize = 32;

/// The runs so far.
#[derive(Debug, Default)]
pub(super) struct Chronicle {
    runs: Runs,
    began_ns: u64,
    /// Those that are over, oldest first.
    over: VecDeque<RunWire>,
    /// The last of them was one that the guest ended by a reset.
    was_a_reboot: bool,
    /// Black boxes of earlier runs, oldest first.
    kept: VecDeque<PathBuf>,
}

impl Chronicle {
    /// A run begins; gives its number.
    pub fn begin(&mut self) -> u64 {
        self.runs.number += 1;
        self.runs.began_ms = realtime_ns() / 1_000_000;
        self.began_ns = monotonic_ns();
        self.runs.number
    }

    /// It is over; gives how long it was.
    pub fn end(&mut self, ending: &Ending, black_box: Option<PathBuf>) -> Duration {
        let (Ending::Fine(detail)
        | Ending::Rebooted(detail)
        | Ending::Panicked(detail)
        | Ending::Failed(detail)) = ending;
        self.was_a_reboot = matches!(ending, Ending::Rebooted(_));
        let black_box = black_box.filter(|path| path.exists());
        if self.over.len() == REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back(RunWire {
            run: self.runs.number,
            began_ms: self.runs.began_ms,
            ended_ms: realtime_ns() / 1_000_000,
            detail: short(detail.clone()),
            black_box: black_box.map(|path| path.display().to_string()),
        });
        Duration::from_nanos(monotonic_ns().saturating_sub(self.began_ns))
    }

    /// Another run follows, for this reason.
    pub fn count(&mut self, cause: RestartCause) {
        let counts = RestartCause::ALL.iter().zip(&mut self.runs.restarts);
        for (_, count) in counts.filter(|(known, _)| **known == cause) {
            *count += 1;
        }
    }

    /// Whether the guest ended the last run by a reset that nothing was wrong with.
    pub fn was_a_reboot(&self) -> bool {
        self.was_a_reboot
    }

    /// The black box of a run was moved to `path`; gives those that are now more than
    /// `most`.
    pub fn kept(&mut self, run: u64, path: &Path, most: usize) -> Vec<PathBuf> {
        if let Some(over) = self.over.iter_mut().find(|over| over.run == run) {
            over.black_box = Some(path.display().to_string());
        }
        self.kept.push_back(path.to_owned());
        let too_many = self.kept.len().saturating_sub(most);
        let old: Vec<PathBuf> = self.kept.drain(..too_many).collect();
        let names: Vec<String> = old.iter().map(|path| path.display().to_string()).collect();
        for over in &mut self.over {
            let is_gone = |path: &String| names.contains(path);
            if over.black_box.as_ref().is_some_and(is_gone) {
                over.black_box = None;
            }
        }
        old
    }

    /// Numbers of all runs.
    pub fn runs(&self) -> Runs {
        self.runs
    }

    /// The runs that are over, for an event: none if there was one alone.
    pub fn told(&self) -> Vec<RunWire> {
        match self.runs.number {
            0 | 1 => Vec::new(),
            _ => self.over.iter().cloned().collect(),
        }
    }

    /// The same in words, a line each.
    pub fn account(&self) -> Vec<String> {
        let lines = self.told().into_iter().map(|over| {
            let (began, ended) = (over.began_ms * 1_000_000, over.ended_ms * 1_000_000);
            let place = over.black_box.map_or_else(
                || "no black box".to_owned(),
                |path| format!("black box {path}"),
            );
            format!(
                "run {}: began {}, ended {}: {}; {place}",
                over.run,
                date(began),
                date(ended),
                over.detail
            )
        });
        lines.collect()
    }
}
