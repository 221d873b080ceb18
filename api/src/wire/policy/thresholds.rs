//! `thresholds`: the names of [`Thresholds`], with times in milliseconds.

use serde_json::{Map, Value, json};
use vmm::observe::verdict::{Slot, Thresholds};

use crate::wire::WireError;
use crate::wire::fields::Fields;

const NS_PER_MS: u64 = 1_000_000;
/// A day: longer than any threshold makes sense.
const MAX_MS: u64 = 86_400_000;
/// More than any host has.
const MAX_BYTES: u64 = 1 << 50;

/// Thresholds from JSON; what is left out has its default.
pub(super) fn of(place: &str, value: &Value) -> Result<Thresholds, WireError> {
    let mut fields = Fields::of(place, value)?;
    let mut thresholds = Thresholds::default();
    for (name, slot) in Thresholds::ROWS {
        match slot(&mut thresholds) {
            Slot::Time(ns, least) => {
                if let Some(ms) = fields.number(name, least..=MAX_MS)? {
                    *ns = ms.saturating_mul(NS_PER_MS);
                }
            }
            Slot::Share(share) => *share = fields.real(name, 1.0)?.unwrap_or(*share),
            Slot::Rate(rate) => *rate = fields.real(name, 1e12)?.unwrap_or(*rate),
            Slot::Bytes(bytes) => *bytes = fields.number(name, 0..=MAX_BYTES)?.unwrap_or(*bytes),
        }
    }
    fields.finish()?;
    Ok(thresholds)
}

/// What [`of`] takes.
pub(super) fn document(thresholds: &Thresholds) -> Value {
    let mut thresholds = thresholds.clone();
    let rows = Thresholds::ROWS.map(|(name, slot)| {
        let value = match slot(&mut thresholds) {
            Slot::Time(ns, _) => json!(*ns / NS_PER_MS),
            Slot::Share(real) | Slot::Rate(real) => json!(*real),
            Slot::Bytes(bytes) => json!(*bytes),
        };
        (name.to_owned(), value)
    });
    Value::Object(Map::from_iter(rows))
}

#[cfg(test)]
pub(super) fn names() -> Vec<&'static str> {
    Thresholds::ROWS.map(|(name, _)| name).to_vec()
}
