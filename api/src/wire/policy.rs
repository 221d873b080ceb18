//! The body of PUT /policy, and the answer of GET /policy.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod thresholds;

use serde_json::{Value, json};

use super::WireError;
use super::fields::Fields;
use crate::policy::Policy;

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
    fields.finish()?;
    Ok(policy)
}

/// All of a policy: what [`of`] takes.
pub fn document(policy: &Policy) -> Value {
    json!({ "thresholds": thresholds::document(&policy.thresholds) })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
