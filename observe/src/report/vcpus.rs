//! Each vCPU: what it does, why it left the guest, and where its time went.

use super::format::{percent, span, times};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, doing, instance};
use crate::ledger::{Account, account};
use crate::reader::{HistogramView, SectionView, Value};

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    for section in scene.of_kind("vcpu").take(MAX_SHOWN) {
        vcpu(scene, section, page);
    }
    let left_out = scene.of_kind("vcpu").skip(MAX_SHOWN).count();
    if left_out > 0 {
        page.line(&format!("{left_out} more vCPUs are not shown."));
    }
}

fn vcpu(scene: &Scene<'_>, section: &SectionView, page: &mut Page) {
    let number = instance(section);
    let now = section.heartbeat("heartbeat");
    let state = now.map_or_else(|| "unknown".to_owned(), |beat| doing(section, &beat));
    page.heading(&format!("vCPU {number}: {state}"));
    if let Some(beat) = now.filter(|beat| beat.since_ticks != 0) {
        page.line(&format!(
            "So for {}, since {}; thread {}.",
            scene.lasting(&beat),
            scene.moment(beat.since_ticks),
            beat.tid
        ));
    }
    if let Some(run) = section.counter("run") {
        let stays = section.histogram("stay").map(|stay| {
            let (p50, p99, max) = quantiles(&stay);
            format!(
                " in {} stays (p50 {p50}, p99 {p99}, longest {max})",
                stay.count()
            )
        });
        page.line(&format!(
            "In KVM {}{}.",
            span(run),
            stays.unwrap_or_default()
        ));
    }
    if let (Some(pauses), Some(paused)) = (section.counter("pauses"), section.counter("paused")) {
        page.line(&format!(
            "Paused: {}; in pauses, and before the start, {}.",
            times(pauses),
            span(paused)
        ));
    }
    page.table(exits(section));
    page.table(devices(section));
    if let Ok(index) = number.parse() {
        ledger(&account(None, scene.snapshot, index), page);
    }
}

/// p50, p99 and the largest.
pub(super) fn quantiles(histogram: &HistogramView) -> (String, String, String) {
    if histogram.count() == 0 {
        return Default::default();
    }
    let at = |q| span(histogram.quantile(q));
    (at(0.5), at(0.99), span(histogram.max))
}

/// The number in a table's row, 0 if it is absent.
pub(super) fn number(section: &SectionView, field: &str, row: &str) -> u64 {
    let value = section.table(field, row);
    value.and_then(|value| value.as_u64()).unwrap_or(0)
}

fn exits(section: &SectionView) -> Table {
    let head = ["exit", "exits", "handler time", "p50", "p99", "longest"];
    let mut table = Table::new(&head);
    for row in section.row_names("exits") {
        let count = number(section, "exits", row);
        if count == 0 {
            continue;
        }
        let handler = match section.table("exit_handler", row) {
            Some(Value::Histogram(histogram)) => Some(histogram),
            _ => None,
        };
        let (p50, p99, max) = handler.as_ref().map(|h| quantiles(h)).unwrap_or_default();
        let time = handler.map(|histogram| span(histogram.sum));
        let time = time.unwrap_or_default();
        table.row([row.to_owned(), count.to_string(), time, p50, p99, max]);
    }
    table
}

fn devices(section: &SectionView) -> Table {
    let mut table = Table::new(&["device", "reads", "writes", "refused", "handler time"]);
    for row in section.row_names("device_reads") {
        let of = |field| number(section, field, row);
        let accesses = [of("device_reads"), of("device_writes"), of("device_misuse")];
        if accesses.iter().all(|number| *number == 0) {
            continue;
        }
        let [reads, writes, refused] = accesses.map(|number| number.to_string());
        let time = span(of("device_handler"));
        table.row([row.to_owned(), reads, writes, refused, time]);
    }
    table
}

fn ledger(account: &Account, page: &mut Page) {
    let mut table = Table::new(&["its time went", "", ""]);
    for (part, ns) in account.parts() {
        let (time, share) = match ns {
            // Not told by this version of the ledger, and said in a note.
            Some(0) if part == "fault" => continue,
            Some(ns) => (span(ns), percent(ns, account.wall_ns)),
            None => ("not known".to_owned(), String::new()),
        };
        table.row([part.to_owned(), time, share]);
    }
    let residue = u64::try_from(account.residue_ns.unsigned_abs()).unwrap_or(u64::MAX);
    let sign = if account.residue_ns < 0 { "-" } else { "" };
    table.row([
        "residue".to_owned(),
        format!("{sign}{}", span(residue)),
        format!("{sign}{}", percent(residue, account.wall_ns)),
    ]);
    page.table(table);
    let notes: Vec<&str> = account.notes.iter().map(|note| note.text()).collect();
    page.line(&format!(
        "Of {} since the start; {}.",
        span(account.wall_ns),
        notes.join("; ")
    ));
}
