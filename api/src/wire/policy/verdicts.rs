//! `verdicts`: a list of actions for each code.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use vmm::observe::verdict::Code;

use super::ms;
use crate::policy::action::Action;
use crate::wire::dump::DumpKindWire;
use crate::wire::fields::{Fields, bad};
use crate::wire::{WireError, dump};

/// Most actions about one verdict.
const MAX_ACTIONS: usize = 8;
/// Longest wait between two actions.
const MAX_WAIT_MS: u64 = 60_000;
/// What an action can be.
const ALLOWED: &str = "\"nmi\", \"deflate\", \"pause\", \"reset\", \"restart\", {\"dump\": KIND, \"path\": PATH} \
    or {\"wait_ms\": N}";

/// The actions from JSON.
pub(super) fn of(value: &Value) -> Result<BTreeMap<Code, Vec<Action>>, WireError> {
    let mut fields = Fields::of("verdicts", value)?;
    let mut all = BTreeMap::new();
    for code in Code::ALL {
        let Some(value) = fields.take(code.name()) else {
            continue;
        };
        let place = fields.place(code.name());
        let actions = list(&place, value)?;
        if !actions.is_empty() {
            all.insert(*code, actions);
        }
    }
    fields.finish()?;
    Ok(all)
}

fn list(place: &str, value: &Value) -> Result<Vec<Action>, WireError> {
    let values = value.as_array().filter(|list| list.len() <= MAX_ACTIONS);
    let allowed = || format!("a list of up to {MAX_ACTIONS} actions: {ALLOWED}");
    let values = values.ok_or_else(|| bad(place, value, allowed()))?;
    let mut actions: Vec<Action> = Vec::new();
    for value in values {
        if actions.last().is_some_and(Action::is_end) {
            return Err(bad(place, value, "nothing after reset or restart"));
        }
        actions.push(action(place, value)?);
    }
    Ok(actions)
}

fn action(place: &str, value: &Value) -> Result<Action, WireError> {
    match value.as_str() {
        Some("nmi") => return Ok(Action::Nmi),
        Some("pause") => return Ok(Action::Pause),
        Some("reset") => return Ok(Action::Reset),
        Some("restart") => return Ok(Action::Restart),
        Some("deflate") => return Ok(Action::Deflate),
        _ => {}
    }
    let object = value
        .as_object()
        .ok_or_else(|| bad(place, value, ALLOWED))?;
    let mut fields = Fields::of(place, value)?;
    let action = if object.contains_key("wait_ms") {
        let wait = fields.number("wait_ms", 0..=MAX_WAIT_MS)?;
        Action::Wait(Duration::from_millis(wait.unwrap_or(0)))
    } else if let Some(kind) = fields.take("dump") {
        let known = serde_json::from_value::<dump::DumpKindWire>(kind.clone());
        let kind_place = fields.place("dump");
        let kind = known.map_err(|_| bad(&kind_place, kind, "blackbox, core or registers"))?;
        let path = fields.take("path").unwrap_or(&Value::Null);
        let allowed = "the absolute path of a file or folder";
        let given = path.as_str().map(PathBuf::from);
        let given = given.filter(|path| path.is_absolute());
        let path = given.ok_or_else(|| bad(&fields.place("path"), path, allowed))?;
        Action::Dump { kind, path }
    } else {
        return Err(bad(place, value, ALLOWED));
    };
    fields.finish()?;
    Ok(action)
}

/// What [`of`] takes.
pub(super) fn document(actions: &BTreeMap<Code, Vec<Action>>) -> Value {
    let all = actions.iter().map(|(code, actions)| {
        let actions: Vec<Value> = actions.iter().map(one).collect();
        (code.name().to_owned(), Value::Array(actions))
    });
    Value::Object(all.collect::<Map<_, _>>())
}

fn one(action: &Action) -> Value {
    match action {
        Action::Dump { kind, path } => json!({ "dump": DumpKindWire::name(*kind), "path": path }),
        Action::Wait(wait) => json!({ "wait_ms": ms(*wait) }),
        other => json!(other.name()),
    }
}
