//! What must hold of every trace.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// Where a trace is written, readable meanwhile.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A trace that was checked.
pub struct Trace(pub Value);

impl Trace {
    /// Parses a trace and checks that each event has what its phase needs, in the types that
    /// viewers expect, and that the events are as many as it says.
    #[track_caller]
    pub fn check(text: &str) -> Trace {
        let trace: Value = serde_json::from_str(text).unwrap();
        assert_eq!(trace["displayTimeUnit"], "ns");
        let events = trace["traceEvents"].as_array().unwrap();
        for event in events {
            check_event(event);
        }
        let counts = trace["otherData"]["events"].as_object().unwrap();
        let told: u64 = counts.values().map(|count| count.as_u64().unwrap()).sum();
        let shown = events.iter().filter(|event| event["ph"] != "M").count();
        assert_eq!(told, shown as u64);
        let track = |event: &Value| (event["pid"].as_u64(), event["tid"].as_u64());
        let mut named = HashSet::new();
        for event in events.iter().filter(|event| event["name"] == "thread_name") {
            assert!(named.insert(track(event)), "twice: {event}");
        }
        for event in events.iter().filter(|event| event["ph"] != "M") {
            assert!(named.contains(&track(event)), "no name: {event}");
        }
        for missing in trace["otherData"]["missing"].as_array().unwrap() {
            assert!(missing["what"].is_string() && missing["reason"].is_string());
        }
        Trace(trace)
    }

    /// The events of a category.
    pub fn of<'a>(&'a self, category: &'a str) -> impl Iterator<Item = &'a Value> {
        let events = self.0["traceEvents"].as_array().unwrap().iter();
        events.filter(move |event| event["cat"] == category)
    }

    /// What is missing, in one text.
    pub fn missing(&self) -> String {
        self.0["otherData"]["missing"].to_string()
    }
}

#[track_caller]
fn check_event(event: &Value) {
    let object = event.as_object().unwrap();
    let number = |key: &str| event[key].as_f64().is_some_and(|number| number >= 0.0);
    assert!(event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
    assert!(number("ts") && event["args"].is_object(), "{event}");
    assert!(!event["name"].as_str().unwrap().is_empty(), "{event}");
    let keys = match event["ph"].as_str().unwrap() {
        "X" => {
            assert!(number("dur") && event["cat"].is_string(), "{event}");
            8
        }
        "i" => {
            assert!(event["s"] == "t" && event["cat"].is_string(), "{event}");
            8
        }
        "M" => 6,
        other => panic!("phase {other}: {event}"),
    };
    assert_eq!(object.len(), keys, "{event}");
}
