//! Each verdict, brought about on purpose and found: what `cargo xtask scenarios` runs.
//!
//! A program of its own, for there is one table in the end. Its lines that begin with `row` and a
//! tab are that table; what it does meanwhile goes to standard error.

#[path = "../harness/mod.rs"]
mod harness;

#[allow(dead_code, reason = "sessions use more of it")]
#[path = "../session/daemon.rs"]
mod daemon;

mod balloon;
mod block;
mod coverage;
mod guest;
mod healthy;
mod hold;
mod memory;
mod queue;
mod record;
mod runner;
mod scenario;
mod stage;
mod stuck;
mod vcpu;
mod vmm_itself;

use std::path::Path;
use std::process::ExitCode;

use scenario::{Place, Scenario};

/// What is asked.
#[derive(Default)]
struct Asked {
    names: Vec<String>,
    place: Option<Place>,
    lists: bool,
    records: bool,
    is_healthy: bool,
}

impl Asked {
    fn parse(words: impl Iterator<Item = String>) -> Result<Asked, String> {
        let mut asked = Asked::default();
        for word in words {
            match word.as_str() {
                "--here" => asked.place = Some(Place::Here),
                "--lab" => asked.place = Some(Place::Lab),
                "--healthy" => asked.is_healthy = true,
                "--record" => asked.records = true,
                "--list" => asked.lists = true,
                word if word.starts_with('-') => return Err(format!("{word} is not an option")),
                name => asked.names.push(name.to_owned()),
            }
        }
        Ok(asked)
    }

    fn wants(&self, scenario: &Scenario) -> bool {
        let named = self.names.iter().any(|name| name == scenario.name);
        (named || self.names.is_empty()) && self.place.is_none_or(|place| place == scenario.place)
    }
}

fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        vcpu::ALL,
        stuck::ALL,
        guest::ALL,
        queue::ALL,
        memory::ALL,
        balloon::ALL,
        vmm_itself::ALL,
    ]
    .into_iter()
    .flatten()
}

fn main() -> ExitCode {
    let asked = match Asked::parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("scenarios: {error}; see `cargo xtask scenarios --help`");
            return ExitCode::from(2);
        }
    };
    if asked.lists {
        for scenario in all().filter(|scenario| asked.wants(scenario)) {
            println!("{}\t{:?}", scenario.name, scenario.place);
        }
        for name in healthy::names() {
            println!("{name}\tHealthy");
        }
        return ExitCode::SUCCESS;
    }
    let mut has_failed = false;
    if asked.is_healthy {
        healthy::watch(&asked.names, |watched| {
            has_failed |= !watched.is_well();
            println!("{}", watched.line());
        });
        return ExitCode::from(u8::from(has_failed));
    }
    if let Err(problem) = coverage::check(all()) {
        eprintln!("scenarios: {problem}");
        return ExitCode::FAILURE;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/recorded");
    let recorded = asked.records.then_some(folder);
    for scenario in all().filter(|scenario| asked.wants(scenario)) {
        eprintln!("scenarios: {} ...", scenario.name);
        let row = runner::run(scenario, recorded.as_deref());
        has_failed |= row.failure.is_some();
        println!("{}", row.line());
    }
    if asked.names.is_empty() {
        coverage::print();
    }
    ExitCode::from(u8::from(has_failed))
}
