//! Verdicts as JSON: the body of `GET /observe/health`, and what `vitrine doctor --json` prints.

use observe::clock::{monotonic_ns, realtime_ns};
use observe::verdict::{Fact, Verdict, health};
use serde_json::{Map, Value, json};
use vmm::observe;

/// `{"health": 0..100, "verdicts": [...]}`; `date_ms` gives the date of a `CLOCK_MONOTONIC` time in
/// nanoseconds, as milliseconds since 1970.
pub fn document(verdicts: &[Verdict], date_ms: impl Fn(u64) -> u64) -> Value {
    let all = verdicts.iter().map(|verdict| one(verdict, &date_ms));
    let all: Vec<Value> = all.collect();
    json!({ "health": health(verdicts), "verdicts": all })
}

/// One verdict, as it is in the document and in events.
pub fn one(verdict: &Verdict, date_ms: impl Fn(u64) -> u64) -> Value {
    let evidence = verdict.evidence.iter().map(|(name, fact)| {
        let value = match fact {
            Fact::Number(number) => json!(number),
            Fact::Real(real) => json!(real),
            Fact::Text(text) => json!(text),
        };
        ((*name).to_owned(), value)
    });
    let cause = verdict
        .consequence_of
        .as_ref()
        .map(|(code, subject)| json!({ "code": code.name(), "subject": subject.as_str() }));
    json!({
        "code": verdict.code.name(),
        "severity": verdict.severity.name(),
        "subject": verdict.subject.as_str(),
        "since_ms": date_ms(verdict.since_ns),
        "summary": verdict.summary,
        "evidence": evidence.collect::<Map<_, _>>(),
        "consequence_of": cause,
        "remedy": verdict.code.entry().remedy,
    })
}

/// Dates of this process's own `CLOCK_MONOTONIC` times, by both clocks as they are now.
pub fn dates() -> impl Fn(u64) -> u64 {
    let (monotonic, date) = (monotonic_ns(), realtime_ns());
    move |ns| date.saturating_sub(monotonic.saturating_sub(ns)) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use observe::verdict::{Code, Subject};

    #[test]
    fn a_verdict_is_told_with_its_evidence_and_its_cause() {
        let words = "vCPU 0 waits".to_owned();
        let starved = Verdict::new(Code::VcpuStarved, Subject::vcpu(0), 5_000_000, words)
            .real("waiting_percent", 40.5)
            .number("tid", 7)
            .text("cgroup", "/a");
        let mut idle = Verdict::new(Code::GuestIdle, Subject::vcpu(1), 0, "idle".to_owned());
        idle.consequence_of = Some(starved.key());
        let told = document(&[starved, idle], |ns| 1_000 + ns / 1_000_000);
        assert_eq!(told["health"], 85);
        let first = &told["verdicts"][0];
        assert_eq!(first["code"], "vcpu-starved");
        assert_eq!(first["severity"], "warning");
        assert_eq!(first["since_ms"], 1_005);
        assert_eq!(first["evidence"]["tid"], 7);
        assert_eq!(first["consequence_of"], Value::Null);
        assert!(
            first["remedy"]
                .as_str()
                .is_some_and(|words| !words.is_empty())
        );
        let cause = &told["verdicts"][1]["consequence_of"];
        assert_eq!(
            *cause,
            json!({ "code": "vcpu-starved", "subject": "vcpu/0" })
        );
    }
}
