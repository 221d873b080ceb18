//! Which codes no scenario covers yet, and why. Together with the scenarios this is all codes, and
//! no code is in both: a new code, or a new scenario, has to be told here.

use vmm::observe::verdict::Code;

use crate::scenario::Scenario;

/// Codes without a scenario, with the reason.
const OPEN: &[(Code, &str)] = &[];

/// Verdicts that are to come, which have no code yet, with what they come with.
const TO_COME: &[(&str, &str)] = &[(
    "hugepages-exhausted",
    "comes with guest memory on huge pages",
)];

/// That each code has a scenario or a reason, and not both; and that names are unique.
///
/// # Errors
/// What is missing or too much.
pub fn check(scenarios: impl Iterator<Item = &'static Scenario>) -> Result<(), String> {
    let scenarios: Vec<&Scenario> = scenarios.collect();
    for code in Code::ALL {
        let covered = scenarios.iter().any(|scenario| scenario.code == *code);
        let open = OPEN.iter().filter(|(there, _)| there == code).count();
        let name = code.name();
        match (covered, open) {
            (true, 0) | (false, 1) => {}
            (true, _) => return Err(format!("{name} has a scenario: take it off the open list")),
            (false, 0) => return Err(format!("{name} has neither scenario nor reason: give one")),
            (false, _) => return Err(format!("{name} stands on the open list twice")),
        }
    }
    for (name, _) in TO_COME {
        if Code::ALL.iter().any(|code| code.name() == *name) {
            return Err(format!(
                "{name} has come: take it off the list of those to come"
            ));
        }
    }
    for (at, scenario) in scenarios.iter().enumerate() {
        let name = scenario.name;
        if scenarios
            .iter()
            .skip(at + 1)
            .any(|other| other.name == name)
        {
            return Err(format!("two scenarios are called {name}: rename one"));
        }
    }
    Ok(())
}

/// The codes without a scenario and those to come, for programs.
pub fn print() {
    let open = OPEN.iter().map(|(code, reason)| (code.name(), reason));
    let to_come = TO_COME.iter().map(|(name, reason)| (*name, reason));
    for (name, reason) in open.chain(to_come) {
        println!("open\t{name}\t{reason}");
    }
}
