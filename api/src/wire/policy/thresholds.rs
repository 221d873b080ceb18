//! `thresholds`: the names of [`Thresholds`], with times in milliseconds.

use serde_json::{Map, Value, json};
use vmm::observe::verdict::Thresholds;

use crate::wire::WireError;
use crate::wire::fields::Fields;

const NS_PER_MS: u64 = 1_000_000;
/// A day: longer than any threshold makes sense.
const MAX_MS: u64 = 86_400_000;
/// More than any host has.
const MAX_BYTES: u64 = 1 << 50;

/// One threshold: its place, by its unit.
enum Slot<'a> {
    /// A time; at least so many milliseconds.
    Time(&'a mut u64, u64),
    /// Of a time, or of a limit.
    Share(&'a mut f64),
    /// A second.
    Rate(&'a mut f64),
    Bytes(&'a mut u64),
}

/// A threshold's name here, and its place.
type Row = (&'static str, fn(&mut Thresholds) -> Slot<'_>);

const ROWS: &[Row] = &[
    ("starved_share", |t| Slot::Share(&mut t.starved_share)),
    ("throttled_share", |t| Slot::Share(&mut t.throttled_share)),
    ("handler_ms", |t| Slot::Time(&mut t.handler_ns, 1)),
    ("fault_share", |t| Slot::Share(&mut t.fault_share)),
    ("dead_halt_ms", |t| Slot::Time(&mut t.dead_halt_ns, 1)),
    ("spin_ms", |t| Slot::Time(&mut t.spin_ns, 1)),
    ("storm_exits", |t| Slot::Rate(&mut t.storm_exits)),
    ("storm_share", |t| Slot::Share(&mut t.storm_share)),
    ("wake_halts", |t| Slot::Rate(&mut t.wake_halts)),
    ("wake_kernel_share", |t| {
        Slot::Share(&mut t.wake_kernel_share)
    }),
    ("not_started_ms", |t| Slot::Time(&mut t.not_started_ns, 1)),
    ("idle_share", |t| Slot::Share(&mut t.idle_share)),
    ("idle_ms", |t| Slot::Time(&mut t.idle_ns, 1)),
    ("backend_stall_ms", |t| {
        Slot::Time(&mut t.backend_stall_ns, 1)
    }),
    ("device_stall_ms", |t| Slot::Time(&mut t.device_stall_ns, 1)),
    ("not_reaping_ms", |t| Slot::Time(&mut t.not_reaping_ns, 1)),
    ("rx_starved_ms", |t| Slot::Time(&mut t.rx_starved_ns, 1)),
    ("thread_ms", |t| Slot::Time(&mut t.thread_ns, 1)),
    ("memory_pressure_share", |t| {
        Slot::Share(&mut t.memory_pressure_share)
    }),
    ("swapped_bytes", |t| Slot::Bytes(&mut t.swapped_bytes)),
    ("oom_share", |t| Slot::Share(&mut t.oom_share)),
    ("oom_soon_ms", |t| Slot::Time(&mut t.oom_soon_ns, 1)),
    ("clock_jump_ms", |t| Slot::Time(&mut t.clock_jump_ns, 1)),
    ("message_ms", |t| Slot::Time(&mut t.message_ns, 1)),
    ("raise_ms", |t| Slot::Time(&mut t.raise_ns, 0)),
    ("clear_ms", |t| Slot::Time(&mut t.clear_ns, 0)),
];

/// Thresholds from JSON; what is left out has its default.
pub(super) fn of(place: &str, value: &Value) -> Result<Thresholds, WireError> {
    let mut fields = Fields::of(place, value)?;
    let mut thresholds = Thresholds::default();
    for (name, slot) in ROWS {
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
    let rows = ROWS.iter().map(|(name, slot)| {
        let value = match slot(&mut thresholds) {
            Slot::Time(ns, _) => json!(*ns / NS_PER_MS),
            Slot::Share(real) | Slot::Rate(real) => json!(*real),
            Slot::Bytes(bytes) => json!(*bytes),
        };
        ((*name).to_owned(), value)
    });
    Value::Object(rows.collect::<Map<_, _>>())
}

#[cfg(test)]
pub(super) fn names() -> Vec<&'static str> {
    ROWS.iter().map(|(name, _)| *name).collect()
}
