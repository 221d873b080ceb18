//! The guest's own memory: its balloon, and what it tells by it.

use super::format::{amount, bytes, span};
use super::page::{Page, Table};
use super::scene::Scene;
use crate::reader::{SectionView, Value};
use crate::schema::Unit;

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// What the guest's statistics are called, by their tags (virtio 1.2, 5.5.6.4): fields of the section
/// `balloon`.
pub const STATISTICS: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    let Some(balloon) = scene.section("balloon") else {
        return;
    };
    page.heading("The balloon");
    page.line(&size(scene, balloon));
    page.line(&flows(balloon));
    if let Some(refused) = refused(balloon) {
        page.line(&refused);
    }
    statistics(scene, balloon, page);
}

fn gauge(section: &SectionView, field: &str) -> u64 {
    section.gauge(field).unwrap_or(0)
}

fn counter(section: &SectionView, field: &str) -> u64 {
    section.counter(field).unwrap_or(0)
}

fn size(scene: &Scene<'_>, balloon: &SectionView) -> String {
    let of = |field| gauge(balloon, field);
    let target = format!(
        "It is to have {}, since {}",
        bytes(of("target")),
        scene.moment(of("target_set_at"))
    );
    let features = of("features");
    if features == 0 {
        return format!("{target}; the guest has no driver for it.");
    }
    let changed = match of("actual_changed_at") {
        0 => "it never changed".to_owned(),
        at => format!("it last changed {}", scene.moment(at)),
    };
    let may = match features & DEFLATE_ON_OOM {
        0 => "the guest kills processes before it takes memory out of it",
        _ => "the guest takes memory out of it before it kills a process",
    };
    let actual = bytes(of("actual"));
    format!("{target}; it has {actual}, {changed}; {may}.")
}

fn flows(balloon: &SectionView) -> String {
    let of = |field| bytes(counter(balloon, field));
    let kept = match counter(balloon, "kept") {
        0 => String::new(),
        kept => format!(", {} kept as part of larger pages", bytes(kept)),
    };
    format!(
        "In all: {} put into it, {} taken out; of free memory {} reported and {} hinted in {} runs; \
         {} given back to the host{kept}.",
        of("inflated"),
        of("deflated"),
        of("reported"),
        of("hinted"),
        counter(balloon, "hinting_runs"),
        of("discarded")
    )
}

fn refused(balloon: &SectionView) -> Option<String> {
    let of = |field| counter(balloon, field);
    let (outside, repeated) = (of("refused_outside"), of("refused_repeated"));
    let excess = of("refused_excess");
    (outside | repeated | excess != 0).then(|| {
        format!(
            "Refused of what the guest named: {outside} pages that are not its memory, {repeated} \
             named twice, {excess} beyond the most of a request."
        )
    })
}

fn statistics(scene: &Scene<'_>, balloon: &SectionView, page: &mut Page) {
    let interval = gauge(balloon, "interval");
    let at = gauge(balloon, "statistics_at");
    if interval == 0 || at == 0 {
        page.line(match interval {
            0 => "The guest is not asked for statistics.",
            _ => "The guest was asked for statistics and has sent none.",
        });
        return;
    }
    let times = counter(balloon, "statistics");
    let unknown = match counter(balloon, "statistics_unknown") {
        0 => String::new(),
        count => format!(", with {count} numbers of an unknown kind"),
    };
    page.line(&format!(
        "The guest is asked for statistics every {}, and sent them {times} times{unknown}; last {}:",
        span(interval),
        scene.moment(at)
    ));
    let present = gauge(balloon, "statistics_present");
    let mut table = Table::new(&["the guest's", ""]);
    for (tag, name) in STATISTICS.into_iter().enumerate() {
        if present >> tag & 1 == 0 {
            continue;
        }
        let field = balloon.values().find(|(field, _, _)| field.name == name);
        if let Some((field, _, Value::Gauge(number))) = field {
            let number = match field.unit {
                Unit::Bytes => bytes(number),
                unit => amount(number, unit),
            };
            table.row([name.replace('_', " "), number]);
        }
    }
    page.table(table);
}
