//! Recorded scenarios, judged again: the same codes about the same subjects, and with a signal cut
//! away the same, less, or nothing. `cargo xtask scenarios --record` writes the recordings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::observation::Cut;
use super::{Engine, Observation, Thresholds, Verdict, diagnose};

/// A line of a recording.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// What the scenario brings about.
    Wanted { code: String, subject: String },
    /// What may be said, too.
    Allowed(String),
    /// What could be seen at a moment.
    Seen(Box<Observation>),
    /// What the VMM told.
    Told { code: String, subject: String },
}

/// A code, and about what.
type Key = (String, String);

struct Recording {
    name: String,
    wanted: Key,
    seen: Vec<Observation>,
    told: BTreeSet<Key>,
    allowed: BTreeSet<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/recorded")
}

fn recordings() -> Vec<Recording> {
    let files = std::fs::read_dir(folder()).unwrap().flatten();
    let files = files.map(|file| file.path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.map(|path| read(&path)).collect()
}

fn read(path: &Path) -> Recording {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut wanted, mut seen, mut told) = (None, Vec::new(), BTreeSet::new());
    let mut allowed = BTreeSet::new();
    for line in text.lines() {
        match serde_json::from_str(line).unwrap() {
            Line::Wanted { code, subject } => wanted = Some((code, subject)),
            Line::Allowed(code) => drop(allowed.insert(code)),
            Line::Seen(observation) => seen.push(*observation),
            Line::Told { code, subject } => drop(told.insert((code, subject))),
        }
    }
    Recording {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        wanted: wanted.unwrap(),
        seen,
        told,
        allowed,
    }
}

fn key(verdict: &Verdict) -> Key {
    (
        verdict.code.name().to_owned(),
        verdict.subject.as_str().to_owned(),
    )
}

/// What is said of a recording; of the dead, what its last state says.
fn judged(seen: &[Observation], limits: &Thresholds) -> BTreeSet<Key> {
    let last = seen.last().unwrap();
    if last.writer_alive == Some(false) {
        let verdicts = diagnose(None, last, limits);
        return verdicts.iter().map(key).collect();
    }
    let mut engine = Engine::default();
    let mut all = BTreeSet::new();
    for observation in seen {
        engine.step(observation.clone(), limits);
        all.extend(engine.standing().iter().map(key));
    }
    all
}

/// What may be said instead when a signal is missing: less, and still true.
const WEAKER: [(&str, &str); 4] = [
    // Without the cgroup nothing tells who took the CPU.
    ("vcpu-throttled", "vcpu-starved"),
    // Without the cgroup nothing tells of what it died.
    ("vmm-oom-killed", "vmm-died"),
    // Without the devices nothing tells which drive the guest's kernel means: of the VM as a whole.
    ("drive-error", "drive-error"),
    // Without the scheduler a guest that leaks, and sleeps in between, looks idle: no fault.
    ("vmm-oom-risk", "guest-idle"),
];

#[test]
fn recorded_scenarios_are_judged_as_they_were() {
    let all = recordings();
    assert!(all.len() >= 5, "{} recordings in {:?}", all.len(), folder());
    for recording in &all {
        let found = judged(&recording.seen, &Thresholds::default());
        let name = &recording.name;
        assert!(found.contains(&recording.wanted), "{name}: {found:?}");
        let other = found.difference(&recording.told);
        let other = other.filter(|(code, _)| !recording.allowed.contains(code));
        let other: Vec<&Key> = other.collect();
        assert!(other.is_empty(), "{name}: {other:?} were not told then");
    }
}

#[test]
fn with_a_signal_cut_away_less_is_said_and_nothing_else() {
    let limits = Thresholds::default();
    for recording in recordings() {
        let whole = judged(&recording.seen, &limits);
        for cut in Cut::ALL {
            let mut seen = recording.seen.clone();
            seen.iter_mut().for_each(|seen| cut.from(seen));
            for (code, subject) in judged(&seen, &limits).difference(&whole) {
                let is_weaker = WEAKER.iter().any(|(strong, weak)| {
                    let is_less = strong != weak || subject == "vm";
                    weak == code && is_less && whole.iter().any(|(c, _)| c == strong)
                });
                let name = &recording.name;
                assert!(is_weaker, "{name} without {cut:?}: {code} of {subject}");
            }
        }
    }
}
