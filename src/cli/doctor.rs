//! `vitrine doctor`.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use api::health;
use api::observation::ended;
use api::vmm::observe::reader::Snapshot;
use api::vmm::observe::report::format::clean;
use api::vmm::observe::report::{State, is_certain, render_diagnosis};
use api::vmm::observe::verdict::{Observation, Severity, Thresholds, Verdict, diagnose, worst};
use serde_json::json;

use super::args::DoctorArgs;
use super::target::Target;
use super::{FINE, Failure, STUCK, SUFFERS, output};

/// How much longer than asked a sample of the watcher is waited for: it comes about once a second.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// Says what is wrong with a VM and what to do; gives the exit status.
///
/// # Errors
/// There is no such VM, its black box cannot be read, or standard output takes nothing.
pub fn doctor(arguments: &DoctorArgs) -> Result<u8, Failure> {
    let target = Target::find(&arguments.target).map_err(Failure::misuse)?;
    let look = Look::at(&target, arguments.wait)?;
    let text = if arguments.json {
        look.document()
    } else {
        look.page(&arguments.target)
    };
    output::print(&text)?;
    Ok(match worst(&look.verdicts) {
        Some(Severity::Error) => STUCK,
        None | Some(Severity::Info) if look.is_certain() => FINE,
        // Nothing found where not all could be looked at is not to pass for healthy.
        None | Some(Severity::Info | Severity::Warning) => SUFFERS,
    })
}

/// What was seen, and what it means.
struct Look {
    now: Snapshot,
    verdicts: Vec<Verdict>,
    /// The watcher has sampled nothing in between.
    is_blind: bool,
}

impl Look {
    /// Two looks at a VM that lives, one at one that does not.
    fn at(target: &Target, wait: Duration) -> Result<Look, Failure> {
        let first = target.snapshot().map_err(Failure::misuse)?;
        if !State::of(&first).is_over() {
            let mut now = second(target, &first, wait)?;
            // Where no lock tells whether it lives, a beat in between does.
            let beat = |snapshot: &Snapshot| snapshot.header.pulse_monotonic_ns;
            if now.writer_alive.is_none() && beat(&now) > beat(&first) {
                now.writer_alive = Some(true);
            }
            if State::of(&now) == State::Running {
                let earlier = Observation::of(&first);
                let limits = Thresholds::of(&now);
                let verdicts = diagnose(Some(&earlier), &Observation::of(&now), &limits);
                return Ok(Look {
                    is_blind: !are_newer(&first, &now),
                    now,
                    verdicts,
                });
            }
            return Ok(Look::last(now));
        }
        Ok(Look::last(first))
    }

    fn last(now: Snapshot) -> Look {
        Look {
            verdicts: diagnose(None, &Observation::of(&now), &Thresholds::of(&now)),
            now,
            is_blind: false,
        }
    }

    /// Whether no fault means a healthy VM.
    fn is_certain(&self) -> bool {
        is_certain(&self.now) && !self.is_blind
    }

    fn page(&self, target: &Path) -> String {
        let mut page = render_diagnosis(&self.now, &self.verdicts, self.is_certain());
        if self.is_blind {
            page.push_str(
                "\nThe watcher took no sample in between: starved and throttled vCPUs, storms of halts \
                 and the host's memory were not judged. Look again with a longer --wait.\n",
            );
        }
        let changed = Thresholds::of(&self.now).changed();
        if !changed.is_empty() {
            let changed: Vec<String> = (changed.iter())
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            let _ = writeln!(
                page,
                "\nJudged by thresholds that were set: {}.",
                changed.join(", ")
            );
        }
        if State::of(&self.now).is_bad() {
            let target = clean(&target.display().to_string());
            let _ = writeln!(page, "\n`vitrine report {target}` tells all that is known.");
        }
        page
    }

    /// The body of `GET /observe/health`, and whose it is. In ASCII alone: no character of it acts
    /// on a terminal.
    fn document(&self) -> String {
        let header = &self.now.header;
        let date_ms = |ns| header.clock.realtime_of_monotonic(ns) / 1_000_000;
        let mut document = health::document(&self.verdicts, date_ms);
        document["id"] = json!(header.vm_id);
        document["alive"] = json!(self.now.writer_alive);
        document["ended"] = ended(&header.end);
        let mut out = String::new();
        for c in format!("{document:#}").chars() {
            if c.is_ascii() && c != '\u{7f}' {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
        out.push('\n');
        out
    }
}

/// A look `wait` after the first one, or somewhat later, when the watcher has looked, too.
fn second(target: &Target, first: &Snapshot, wait: Duration) -> Result<Snapshot, Failure> {
    std::thread::sleep(wait);
    let end = Instant::now() + PATIENCE;
    loop {
        let now = target.snapshot().map_err(Failure::misuse)?;
        let is_over = State::of(&now).is_over();
        if is_over || are_newer(first, &now) || Instant::now() >= end {
            return Ok(now);
        }
        std::thread::sleep(POLL);
    }
}

/// Whether all that the watcher samples each time was sampled since; what it never sampled, such as
/// statistics that this kernel does not have, is not waited for.
fn are_newer(first: &Snapshot, now: &Snapshot) -> bool {
    let kinds = ["task", "cgroup", "psi", "kvm_vcpu"];
    let sampled = kinds.iter().flat_map(|kind| first.of_kind(kind));
    let sampled = sampled.filter_map(|section| {
        let before = section.gauge("sampled_at")?;
        Some((section, before))
    });
    let mut pairs = sampled.map(|(section, before)| {
        let after = now.section(&section.name);
        (before, after.and_then(|after| after.gauge("sampled_at")))
    });
    pairs.all(|(before, after)| after.is_some_and(|after| after > before || after == 0))
}
