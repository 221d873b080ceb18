//! `/balloon` and what lies under it.

use serde::{Deserialize, Serialize};
use vmm::BalloonSpec;
use vmm::observe::reader::{SectionView, Snapshot};
use vmm::observe::report::BALLOON_STATISTICS;

/// Bytes of a page of the balloon.
const PAGE_BYTES: u64 = 4096;

/// PUT /balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonWire {
    /// How large it is to be.
    pub amount_mib: u32,
    /// Whether the guest takes memory out of it before it kills a process.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics; 0 or absent is never.
    pub stats_polling_interval_s: Option<u16>,
    /// Whether the guest can be asked to name its free memory.
    pub free_page_hinting: Option<bool>,
    /// Whether the guest reports free memory by itself.
    pub free_page_reporting: Option<bool>,
}

impl BalloonWire {
    /// The balloon as GET /balloon shows it, and as a spec.
    pub fn convert(self) -> (BalloonWire, BalloonSpec) {
        let spec = BalloonSpec {
            target_mib: self.amount_mib,
            deflate_on_oom: self.deflate_on_oom,
            statistics_s: self.stats_polling_interval_s.unwrap_or(0),
            hinting: self.free_page_hinting.unwrap_or(false),
            reporting: self.free_page_reporting.unwrap_or(false),
        };
        let filled = BalloonWire {
            stats_polling_interval_s: Some(spec.statistics_s),
            free_page_hinting: Some(spec.hinting),
            free_page_reporting: Some(spec.reporting),
            ..self
        };
        (filled, spec)
    }
}

/// PATCH /balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSizeWire {
    /// How large it is to be.
    pub amount_mib: u32,
}

/// PATCH /balloon/statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonPollingWire {
    /// How often the guest is asked.
    pub stats_polling_interval_s: u16,
}

/// PATCH /balloon/hinting/start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintingStartWire {
    /// Whether the guest may use what it named as soon as it has named all; true if absent.
    pub acknowledge_on_stop: Option<bool>,
}

/// Answer of GET /balloon/hinting/status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HintingStatusWire {
    /// What the host asks for.
    pub host_cmd: u64,
    /// What the guest last answered to.
    pub guest_cmd: Option<u64>,
}

/// Answer of GET /balloon/statistics. What the guest does not tell is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BalloonStatisticsWire {
    target_pages: u64,
    actual_pages: u64,
    target_mib: u64,
    actual_mib: u64,
    #[serde(flatten)]
    statistics: serde_json::Map<String, serde_json::Value>,
}

fn section(snapshot: &Snapshot) -> Option<&SectionView> {
    snapshot.section("balloon")
}

impl BalloonStatisticsWire {
    /// From what the black box holds; `None` without a balloon.
    pub fn of(snapshot: &Snapshot) -> Option<BalloonStatisticsWire> {
        let balloon = section(snapshot)?;
        let (target, actual) = (balloon.gauge("target")?, balloon.gauge("actual")?);
        let present = balloon.gauge("statistics_present")?;
        let told = BALLOON_STATISTICS
            .iter()
            .enumerate()
            .filter_map(|(tag, name)| {
                let is_there = present >> tag & 1 == 1;
                let value = is_there.then(|| balloon.gauge(name)).flatten()?;
                Some(((*name).to_owned(), value.into()))
            });
        Some(BalloonStatisticsWire {
            target_pages: target / PAGE_BYTES,
            actual_pages: actual / PAGE_BYTES,
            target_mib: target >> 20,
            actual_mib: actual >> 20,
            statistics: told.collect(),
        })
    }
}

impl HintingStatusWire {
    /// From what the black box holds; `None` without a balloon.
    pub fn of(snapshot: &Snapshot) -> Option<HintingStatusWire> {
        let balloon = section(snapshot)?;
        Some(HintingStatusWire {
            host_cmd: balloon.gauge("host_command")?,
            guest_cmd: balloon.gauge("guest_command")?.checked_sub(1),
        })
    }
}
