//! The body of PUT /policy, and the answer of GET /policy.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod thresholds;
mod verdicts;

use std::time::Duration;

use serde_json::{Value, json};

use super::WireError;
use super::fields::{Fields, bad};
use crate::policy::{OnReboot, Policy, RestartLimit};

/// Most restarts within the time.
const MAX_RESTARTS: u64 = 1000;
/// Thirty days.
const MAX_MS: u64 = 30 * 86_400_000;

/// A policy from a body. What is left out has its default.
///
/// # Errors
/// Malformed JSON; an unknown field; a value that is not allowed, with what is.
pub fn parse(body: &[u8]) -> Result<Policy, WireError> {
    of(&super::parse::<Value>(body)?)
}

/// A policy from JSON.
///
/// # Errors
/// As [`parse`].
pub fn of(value: &Value) -> Result<Policy, WireError> {
    let mut fields = Fields::of("", value)?;
    let mut policy = Policy::default();
    if let Some(value) = fields.take("thresholds") {
        policy.thresholds = thresholds::of("thresholds", value)?;
    }
    if let Some(value) = fields.take("look_into_vcpus") {
        let flag = value.as_bool();
        policy.look_into_vcpus =
            flag.ok_or_else(|| bad("look_into_vcpus", value, "true or false"))?;
    }
    if let Some(value) = fields.take("restart") {
        policy.restart = restart(value)?;
    }
    if let Some(value) = fields.take("on_reboot") {
        policy.on_reboot = on_reboot(value)?;
    }
    if let Some(value) = fields.take("verdicts") {
        policy.actions = verdicts::of(value)?;
    }
    fields.finish()?;
    restarts_are_allowed(&policy)?;
    Ok(policy)
}

/// All of a policy: what [`of`] takes.
pub fn document(policy: &Policy) -> Value {
    let limit = &policy.restart;
    json!({
        "thresholds": thresholds::document(&policy.thresholds),
        "look_into_vcpus": policy.look_into_vcpus,
        "restart": {
            "at_most": limit.at_most,
            "within_ms": ms(limit.within),
            "first_wait_ms": ms(limit.first_wait),
            "longest_wait_ms": ms(limit.longest_wait),
        },
        "verdicts": verdicts::document(&policy.actions),
        "on_reboot": match policy.on_reboot {
            OnReboot::Exit => "exit",
            OnReboot::Restart => "restart",
        },
    })
}

/// An action that could never do what it says is refused.
fn restarts_are_allowed(policy: &Policy) -> Result<(), WireError> {
    for (code, actions) in &policy.actions {
        let ends = actions.iter().find(|action| action.is_end());
        if let Some(action) = ends.filter(|_| policy.restart.at_most == 0) {
            return Err(WireError::BadField {
                field: format!("verdicts.{}", code.name()),
                value: format!("{:?}", action.name()),
                allowed: "restart.at_most of 1 or more with it".to_owned(),
            });
        }
    }
    Ok(())
}

fn restart(value: &Value) -> Result<RestartLimit, WireError> {
    let mut fields = Fields::of("restart", value)?;
    let default = RestartLimit::default();
    let at_most = fields.number("at_most", 0..=MAX_RESTARTS)?;
    let mut time = |name, range, default| {
        let given = fields.number(name, range)?;
        Ok::<_, WireError>(given.map_or(default, Duration::from_millis))
    };
    let limit = RestartLimit {
        at_most: at_most.map_or(default.at_most, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        within: time("within_ms", 1..=MAX_MS, default.within)?,
        first_wait: time("first_wait_ms", 0..=MAX_MS, default.first_wait)?,
        longest_wait: time("longest_wait_ms", 0..=MAX_MS, default.longest_wait)?,
    };
    fields.finish()?;
    if limit.longest_wait < limit.first_wait {
        return Err(WireError::BadField {
            field: "restart.longest_wait_ms".to_owned(),
            value: ms(limit.longest_wait).to_string(),
            allowed: format!("at least first_wait_ms, {}", ms(limit.first_wait)),
        });
    }
    Ok(limit)
}

fn on_reboot(value: &Value) -> Result<OnReboot, WireError> {
    match value.as_str() {
        Some("exit") => Ok(OnReboot::Exit),
        Some("restart") => Ok(OnReboot::Restart),
        _ => Err(bad("on_reboot", value, "exit or restart")),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
