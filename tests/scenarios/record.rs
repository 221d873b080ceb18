//! Writes down, once a second, what another process can see of the VM: its black box, as the rules
//! look at it. Tests of the rules judge it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use vmm::observe::reader::Reader;
use vmm::observe::verdict::Observation;

use crate::scenario::{Scenario, Seen};
use crate::stage::Stage;

/// Observations that are kept, the last ones: the boot is no part of a scenario.
const KEPT: usize = 12;

/// Looks once a second until it is asked for what it saw.
pub struct Recorder {
    seen: Arc<Mutex<Vec<Observation>>>,
    black_box: PathBuf,
    goes_on: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins.
    pub fn of(stage: &Stage) -> Recorder {
        let (seen, goes_on) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        let black_box = stage.black_box();
        let (path, own, on) = (black_box.clone(), Arc::clone(&seen), Arc::clone(&goes_on));
        let thread = std::thread::spawn(move || {
            while on.load(Ordering::Relaxed) {
                look(&path, &own);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Recorder {
            seen,
            black_box,
            goes_on,
            thread: Some(thread),
        }
    }

    /// Writes what it saw into `folder`, with what the VMM told.
    pub fn write(mut self, folder: &Path, scenario: &Scenario, stage: &Stage) {
        if scenario.seen == Seen::Told {
            // Whoever judges it again may need another look, for it looks at other moments.
            std::thread::sleep(Duration::from_secs(3));
        }
        self.end();
        if scenario.seen == Seen::PostMortem {
            // The dead, once more.
            look(&self.black_box, &self.seen);
        }
        let name = |code: &str, subject: &str| json!({ "code": code, "subject": subject });
        let wanted = name(scenario.code.name(), scenario.subject);
        let mut lines = vec![json!({ "wanted": wanted })];
        // At other moments another look may show these, too, and they are true.
        for code in scenario.also.iter().chain(&scenario.cause) {
            lines.push(json!({ "allowed": code.name() }));
        }
        let seen = self.seen.lock().unwrap();
        for observation in seen.iter().skip(seen.len().saturating_sub(KEPT)) {
            lines.push(json!({ "seen": observation }));
        }
        let told = |verdict: &Value| {
            let text = |name: &str| verdict[name].as_str().unwrap_or_default().to_owned();
            json!({ "told": name(&text("code"), &text("subject")) })
        };
        match scenario.seen {
            Seen::Told => {
                let events = stage.events();
                let verdicts = events.iter().map(|(_, event)| &event["verdict"]);
                lines.extend(verdicts.filter(|verdict| verdict.is_object()).map(told));
            }
            Seen::PostMortem => {
                let dead = crate::runner::post_mortem(&self.black_box);
                lines.extend(dead.iter().map(|verdict| {
                    json!({ "told": name(verdict.code.name(), verdict.subject.as_str()) })
                }));
            }
        }
        lines.dedup();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(format!("{}.jsonl", scenario.name)), text).unwrap();
    }

    fn end(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// One look. The black box is not there before the machine is made.
fn look(path: &Path, seen: &Mutex<Vec<Observation>>) {
    let snapshot = Reader::open(path).and_then(|reader| reader.snapshot());
    if let Ok(snapshot) = snapshot {
        seen.lock().unwrap().push(Observation::of(&snapshot));
    }
}
