//! What the guest's kernel told the pvpanic device.

use crate::reader::{SectionView, Snapshot};

/// What was told at least once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct PvpanicSeen {
    /// When it was told first that the kernel gave up, with a crash kernel or without.
    pub since_ns: u64,
    /// How often it was told that the kernel gave up.
    pub panicked: u64,
    /// How often that a crash kernel takes over.
    pub crash_loaded: u64,
}

impl PvpanicSeen {
    /// What the section says; `None` where nothing was told.
    pub(super) fn of(snapshot: &Snapshot, section: &SectionView) -> Option<Self> {
        let number = |field, kind| section.table(field, kind).and_then(|value| value.as_u64());
        let told = |kind| number("told", kind).unwrap_or(0);
        let first = ["panicked", "crash_loaded"]
            .into_iter()
            .filter_map(|kind| number("first_at", kind).filter(|ticks| *ticks > 0))
            .min()?;
        Some(PvpanicSeen {
            since_ns: snapshot.header.clock.monotonic_of(first),
            panicked: told("panicked"),
            crash_loaded: told("crash_loaded"),
        })
    }
}
