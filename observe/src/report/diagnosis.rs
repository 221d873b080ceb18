//! What is wrong with a VM, in words: the page of `vitrine doctor`.

use std::fmt::Write;

use super::format::{bytes, clean, date, span};
use super::page::Page;
use super::scene::Scene;
use super::{State, console, events, samples, summary};
use crate::reader::Snapshot;
use crate::verdict::{Code, Fact, Severity, Verdict, health, is_fault};

/// Of the last events of a VM that failed or died, so many.
const EVENTS: usize = 20;
/// Most verdicts that are shown.
const MAX_VERDICTS: usize = 256;
/// Consequences of consequences are indented so far.
const MAX_DEPTH: usize = 4;

/// What `verdicts` say of the VM, as plain text: a line that says it all, how the VM lives or ended,
/// each verdict with its consequences below it, of a VM that failed or died what led there, and the
/// end of the console where it may say more.
/// `verdicts` are of the moment of `snapshot`, in [`crate::verdict::diagnose`]'s order. Without
/// `is_certain` a VM of which nothing bad is known is not called healthy.
pub fn render_diagnosis(snapshot: &Snapshot, verdicts: &[Verdict], is_certain: bool) -> String {
    let scene = Scene::new(snapshot);
    let mut text = Diagnosis {
        scene: &scene,
        verdicts,
        shown: vec![false; verdicts.len()],
        room: MAX_VERDICTS,
        left_out: 0,
        out: headline(snapshot, verdicts, is_certain),
    };
    let _ = write!(text.out, "\n  {}\n", summary::ending(&scene));
    if snapshot.truncated {
        let _ = writeln!(text.out, "  {}", summary::TRUNCATED);
    }
    text.all();
    if text.left_out > 0 {
        let _ = writeln!(text.out, "\nand {} more", text.left_out);
    }
    let mut out = text.out;
    let mut page = Page::default();
    let is_bad = State::of(snapshot).is_bad();
    if is_bad {
        samples::show(&scene, &mut page);
        events::show(&scene, EVENTS, &mut page);
    }
    if is_bad || verdicts.iter().any(is_of_the_guest) {
        console::show(&scene, &mut page);
    }
    out.push_str(&page.text());
    out
}

/// Whether the guest's kernel may have said more on its console.
fn is_of_the_guest(verdict: &Verdict) -> bool {
    matches!(
        verdict.code,
        Code::GuestPanic
            | Code::GuestOom
            | Code::VcpuDeadHalt
            | Code::VcpuSpin
            | Code::VcpuSpinIrqsOff
    )
}

/// Whether no fault in it means a healthy VM: all of the file is there, and how the VM lives or
/// ended is known.
pub fn is_certain(snapshot: &Snapshot) -> bool {
    !snapshot.truncated && State::of(snapshot) != State::Unknown
}

/// `vm1: healthy`, or `vm1: 2 errors, 1 warning (health 0 of 100)`.
fn headline(snapshot: &Snapshot, verdicts: &[Verdict], is_certain: bool) -> String {
    let id = clean(&snapshot.header.vm_id);
    let counted = |severity: Severity| {
        let faults = verdicts
            .iter()
            .filter(|verdict| is_fault(verdict, verdicts));
        let count = faults
            .filter(|verdict| verdict.severity == severity)
            .count();
        match count {
            0 => None,
            1 => Some(format!("1 {}", severity.name())),
            _ => Some(format!("{count} {}s", severity.name())),
        }
    };
    let counts = [Severity::Error, Severity::Warning].map(counted);
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    if counts.is_empty() {
        let found = match is_certain {
            true => "healthy",
            false => "no fault is seen, and not all could be judged",
        };
        return format!("{id}: {found}");
    }
    let health = health(verdicts);
    format!("{id}: {} (health {health} of 100)", counts.join(", "))
}

struct Diagnosis<'a> {
    scene: &'a Scene<'a>,
    verdicts: &'a [Verdict],
    shown: Vec<bool>,
    /// So many more may be shown.
    room: usize,
    left_out: usize,
    out: String,
}

impl Diagnosis<'_> {
    fn all(&mut self) {
        let verdicts = self.verdicts;
        let is_there = |verdict: &Verdict| {
            let cause = verdict.consequence_of.as_ref();
            cause.is_some_and(|cause| verdicts.iter().any(|other| other.key() == *cause))
        };
        for (index, verdict) in verdicts.iter().enumerate() {
            if !is_there(verdict) {
                self.one(index, 0);
            }
        }
        // None is left out, whatever names what.
        for index in 0..verdicts.len() {
            self.one(index, 0);
        }
    }

    /// One that was not shown yet, and its consequences.
    fn one(&mut self, index: usize, depth: usize) {
        let Some(verdict) = self.verdicts.get(index) else {
            return;
        };
        match self.shown.get_mut(index) {
            Some(shown) if !*shown => *shown = true,
            _ => return,
        }
        let Some(room) = self.room.checked_sub(1) else {
            self.left_out = self.left_out.saturating_add(1);
            return;
        };
        self.room = room;
        let indent = "  ".repeat(depth.min(MAX_DEPTH));
        let before = if depth == 0 { "\n" } else { "" };
        let _ = writeln!(
            self.out,
            "{before}{indent}{} {}, {}: {}",
            verdict.severity.name(),
            verdict.code.name(),
            clean(verdict.subject.as_str()),
            clean(&verdict.summary)
        );
        if verdict.severity > Severity::Info {
            self.details(verdict, &indent);
        }
        let key = verdict.key();
        let mut is_first = true;
        for (effect, other) in self.verdicts.iter().enumerate() {
            if other.consequence_of.as_ref() == Some(&key) && self.shown.get(effect) == Some(&false)
            {
                if std::mem::take(&mut is_first) {
                    let _ = writeln!(self.out, "{indent}  and therefore");
                }
                self.one(effect, depth.saturating_add(2));
            }
        }
    }

    fn details(&mut self, verdict: &Verdict, indent: &str) {
        let evidence = verdict.evidence.iter().map(|(name, fact)| told(name, fact));
        let mut rows = vec![("since".to_owned(), self.since(verdict))];
        rows.extend(evidence);
        rows.push(("remedy".to_owned(), verdict.code.entry().remedy.to_owned()));
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in rows {
            let _ = writeln!(self.out, "{indent}  {name:<width$}  {value}");
        }
    }

    fn since(&self, verdict: &Verdict) -> String {
        let snapshot = self.scene.snapshot;
        let clock = &snapshot.header.clock;
        let ago = snapshot.now_monotonic_ns.saturating_sub(verdict.since_ns);
        let from = match State::of(snapshot) {
            State::Running => "ago",
            _ => "before the end",
        };
        let at = date(clock.realtime_of_monotonic(verdict.since_ns));
        format!("{at} UTC, {} {from}", span(ago))
    }
}

/// A piece of evidence for people: the unit goes from its name to its value.
fn told(name: &str, fact: &Fact) -> (String, String) {
    let (name, value) = match fact {
        Fact::Text(text) => (name, clean(text)),
        Fact::Number(number) => number_told(name, *number),
        Fact::Real(real) => real_told(name, *real),
    };
    (name.replace('_', " "), value)
}

fn number_told(name: &str, number: u64) -> (&str, String) {
    let unit = |suffix| name.strip_suffix(suffix);
    if let Some(name) = unit("_ns") {
        (name, span(number))
    } else if let Some(name) = unit("_bytes") {
        let value = match number {
            u64::MAX => "no limit".to_owned(),
            _ => bytes(number),
        };
        (name, value)
    } else if name == "address" {
        (name, format!("{number:#x}"))
    } else {
        (name, number.to_string())
    }
}

fn real_told(name: &str, real: f64) -> (&str, String) {
    let unit = |suffix| name.strip_suffix(suffix);
    if name == "bytes_per_second" {
        (
            "grows by",
            format!("{} a second", bytes(real.max(0.0) as u64)),
        )
    } else if let Some(name) = unit("_per_second") {
        (name, format!("{real:.0} a second"))
    } else if let Some(name) = unit("_percent") {
        (name, format!("{real:.1} %"))
    } else if let Some(name) = name.strip_prefix("seconds_") {
        (name, format!("{real:.1} s"))
    } else {
        (name, format!("{real:.1}"))
    }
}
