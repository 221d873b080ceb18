//! Runs one scenario: boots, does the fault, waits for the verdict, holds it against what is true,
//! ends the fault and waits until the verdict is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmm::observe::reader::Reader;
use vmm::observe::verdict::{Code, Observation, Severity, Thresholds, Verdict, diagnose};

use crate::record::Recorder;
use crate::scenario::{Fault, Found, Guest, Scenario, Seen};
use crate::stage::Stage;

/// A verdict must come so soon after its threshold.
const BOUND: Duration = Duration::from_secs(2);
/// Waited for in all, so that a late verdict is told as late and not as missing.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long after the fault's end a verdict may stand: it is kept 3 s, and a look comes once a
/// second.
const GONE_WITHIN: Duration = Duration::from_secs(8);

/// What became of a scenario.
pub struct Row {
    /// By the scenario's own words: name, code, guest, place.
    pub what: [String; 4],
    /// Of the fault, until the verdict may come.
    pub threshold: Duration,
    /// From the fault to the verdict.
    pub found: Option<Duration>,
    /// What the verdict says, and what another source does.
    pub evidence: [String; 2],
    /// What is wrong.
    pub failure: Option<String>,
}

impl Row {
    /// Of which nothing is known yet.
    pub fn new(what: [String; 4], threshold: Duration) -> Row {
        Row {
            what,
            threshold,
            found: None,
            evidence: [String::new(), String::new()],
            failure: None,
        }
    }

    /// A line of tabs, for programs.
    pub fn line(&self) -> String {
        let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
        let result = self.failure.as_ref().map_or_else(
            || "pass".to_owned(),
            |why| format!("FAIL: {}", why.replace(['\n', '\t'], " ")),
        );
        let found = self.found.map_or("-".to_owned(), seconds);
        let mut columns = self.what.to_vec();
        columns.extend([seconds(self.threshold), found]);
        columns.extend(self.evidence.clone());
        columns.push(result);
        format!("row\t{}", columns.join("\t"))
    }
}

/// Runs it; a failed assertion anywhere in it is its failure. What was observed is written into
/// `recorded`, if that is given and nothing failed.
pub fn run(scenario: &Scenario, recorded: Option<&Path>) -> Row {
    let guest = match scenario.guest {
        Guest::Zoo(_) => "zoo".to_owned(),
        Guest::Linux(version, _) => format!("linux {version}"),
    };
    let code = scenario.code.name().to_owned();
    let place = format!("{:?}", scenario.place).to_lowercase();
    let mut row = Row::new(
        [scenario.name.to_owned(), code, guest, place],
        scenario.threshold,
    );
    row.failure = caught(|| play(scenario, recorded, &mut row));
    row
}

/// What an assertion in it says, if one fails.
pub fn caught(act: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(act)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(text.unwrap_or_else(|| "it panicked".to_owned()))
}

fn play(scenario: &Scenario, recorded: Option<&Path>, row: &mut Row) {
    let stage = Stage::new(Duration::from_millis(2));
    (scenario.setup)(&stage);
    stage.boot(scenario.guest);
    let recorder = recorded.map(|_| Recorder::of(&stage));
    stage.heard("ready");
    let fault = (scenario.fault)(&stage);
    let delay = || Duration::from_nanos(stage.schedstat("vcpu-0")[1]);
    let delay_before = scenario.takes_cpu.then(delay);
    let (at, verdict) = match scenario.seen {
        Seen::Told => told(scenario, &stage, &fault),
        Seen::PostMortem => found_dead(scenario, &stage),
    };
    let took = at.saturating_duration_since(fault.from);
    row.found = Some(took);
    let without_cpu = delay_before.map_or(Duration::ZERO, |before| delay().saturating_sub(before));
    assert_eq!(verdict["subject"], scenario.subject, "{verdict:#}");
    let is_as_bad = verdict["severity"] == scenario.severity.name();
    let is_worse = scenario.or_worse && verdict["severity"] == "error";
    assert!(is_as_bad || is_worse, "{verdict:#}");
    let verdict = with_its_cause(scenario, &stage, at, verdict);
    let cause = &verdict["consequence_of"]["code"];
    assert_eq!(
        cause.as_str(),
        scenario.cause.map(Code::name),
        "{verdict:#}"
    );
    let found = Found {
        stage: &stage,
        fault: &fault,
        at,
        verdict,
    };
    let checked = (scenario.evidence)(&found);
    row.evidence = [checked.told, checked.source];
    if scenario.seen == Seen::Told {
        stands_alone(scenario, &stage);
    }
    assert!(
        took <= scenario.threshold + BOUND + without_cpu,
        "it came {took:.1?} after the fault, {without_cpu:.1?} of it without a host CPU, and its \
         threshold is {:?}",
        scenario.threshold
    );
    if let Some((recorder, folder)) = recorder.zip(recorded) {
        recorder.write(folder, scenario, &stage);
    }
    if let Some(end) = scenario.end {
        drop(fault);
        end(&stage);
        is_gone(scenario, &stage);
    }
}

/// The cause may be known a moment later: then the verdict is told again.
fn with_its_cause(scenario: &Scenario, stage: &Stage, at: Instant, verdict: Value) -> Value {
    let wanted = scenario.cause.map(Code::name);
    let end = Instant::now() + BOUND;
    let is_it = |event: &Value| {
        let told = &event["verdict"];
        let is_same = told["code"] == verdict["code"] && told["subject"] == verdict["subject"];
        is_same && told["consequence_of"]["code"].as_str() == wanted
    };
    while Instant::now() < end && verdict["consequence_of"]["code"].as_str() != wanted {
        if let Some((_, event)) = stage.event(at, is_it) {
            return event["verdict"].clone();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    verdict
}

/// The verdict's event, once it comes.
fn told(scenario: &Scenario, stage: &Stage, fault: &Fault) -> (Instant, Value) {
    let end = Instant::now() + scenario.threshold + PATIENCE;
    let is_it = |event: &Value| {
        event["verdict"]["code"] == scenario.code.name()
            && event["verdict"]["subject"] == scenario.subject
            && event["change"] != "cleared"
    };
    loop {
        if let Some((at, event)) = stage.event(fault.from, is_it) {
            return (at, event["verdict"].clone());
        }
        assert!(
            Instant::now() < end,
            "no {} of {} came; what came: {:?}; the log:\n{}",
            scenario.code.name(),
            scenario.subject,
            codes(&stage.events()),
            stage.daemon.text("stderr")
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn codes(events: &[(Instant, Value)]) -> Vec<String> {
    let verdicts = events
        .iter()
        .filter(|(_, event)| event["event"] == "verdict");
    let told = verdicts.map(|(_, event)| {
        let verdict = &event["verdict"];
        format!(
            "{} {} {}",
            event["change"], verdict["code"], verdict["subject"]
        )
    });
    told.collect()
}

/// What is said of a VM by what its process left behind.
pub fn post_mortem(black_box: &Path) -> Vec<Verdict> {
    let last = Reader::open(black_box).and_then(|reader| reader.snapshot());
    let last = Observation::of(&last.unwrap());
    diagnose(None, &last, &Thresholds::default())
}

/// What the black box says, as soon as it says it.
fn found_dead(scenario: &Scenario, stage: &Stage) -> (Instant, Value) {
    let end = Instant::now() + scenario.threshold + PATIENCE;
    loop {
        let verdicts = post_mortem(&stage.black_box());
        let at = Instant::now();
        let others = verdicts.iter().filter(|verdict| {
            verdict.consequence_of.is_none()
                && verdict.code != scenario.code
                && verdict.severity > Severity::Info
                && !scenario.also.contains(&verdict.code)
        });
        let others: Vec<_> = others.map(|verdict| verdict.code.name()).collect();
        let mut all = verdicts.iter();
        if let Some(verdict) = all.find(|verdict| verdict.code == scenario.code) {
            assert!(others.is_empty(), "{others:?} stand, too");
            return (at, api::health::one(verdict, |ns| ns / 1_000_000));
        }
        assert!(Instant::now() < end, "it is not found; {others:?} are");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// No other root cause stands, but for those that the scenario allows, and for a vCPU without a
/// host CPU where the host's kernel says so, too: others may use this machine.
fn stands_alone(scenario: &Scenario, stage: &Stage) {
    for verdict in stage.standing() {
        let is_it = verdict["code"] == scenario.code.name();
        let is_root = verdict["consequence_of"] == Value::Null;
        if is_it || !is_root || verdict["severity"] == "info" {
            continue;
        }
        let allowed = |code: &Code| verdict["code"] == code.name();
        let is_allowed = scenario.also.iter().chain(&scenario.cause).any(allowed);
        assert!(
            is_allowed || is_true_starving(stage, &verdict),
            "{} stands, too: {verdict:#}",
            verdict["code"]
        );
    }
}

/// Whether the verdict says that a vCPU waited, and its schedstat does, too.
fn is_true_starving(stage: &Stage, verdict: &Value) -> bool {
    let waited = verdict["evidence"]["waiting_ns"].as_u64();
    let subject = verdict["subject"].as_str().unwrap_or_default();
    let (Some(waited), Some(number)) = (waited, subject.strip_prefix("vcpu/")) else {
        return false;
    };
    verdict["code"] == "vcpu-starved" && stage.schedstat(&format!("vcpu-{number}"))[1] >= waited / 2
}

/// Whether the vCPU waits for a host CPU, by the scheduler's account of a second from now on.
fn waits_for_cpu(stage: &Stage) -> bool {
    let (before, start) = (stage.schedstat("vcpu-0")[1], Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let waited = stage.schedstat("vcpu-0")[1].saturating_sub(before);
    waited as f64 / start.elapsed().as_nanos() as f64 > 0.15
}

/// The verdict is gone within its time; but others may use this machine after the fault's end, too.
fn is_gone(scenario: &Scenario, stage: &Stage) {
    let end = Instant::now() + GONE_WITHIN;
    // What the guest's kernel said of it meanwhile stands for minutes: nothing tells that it is over.
    let is_word_alone = |verdict: &Value| {
        let evidence = &verdict["evidence"];
        evidence["line"].is_string() && evidence["looks_alike"].is_null()
    };
    let is_it = |verdict: &Value| {
        let is_same = verdict["subject"] == scenario.subject && !is_word_alone(verdict);
        is_same && verdict["code"] == scenario.code.name()
    };
    while stage.standing().iter().any(is_it) {
        if Instant::now() > end && scenario.code == Code::VcpuStarved && waits_for_cpu(stage) {
            return;
        }
        assert!(
            Instant::now() < end,
            "it stands {GONE_WITHIN:?} after its end: {:?}",
            stage.standing()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
