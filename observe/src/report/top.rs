//! One screen of `top`: what happened between two snapshots.

use super::format::{bytes, percent, rate, relative, span};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, doing, instance, queue_called};
use super::threads::{is_row, threads};
use super::vcpus::number;
use super::{State, format, host, summary};
use crate::cell::bucket_low;
use crate::ledger::account;
use crate::reader::{HistogramView, SectionView, Snapshot};

/// Kinds of exits that have a place in a vCPU's row.
const TOP_EXITS: usize = 3;

/// What happened from `earlier` to `later`, two snapshots of one black box, as plain text. Never
/// fails: what one of them does not hold is left out, and what went down did not happen.
pub fn render_top(earlier: &Snapshot, later: &Snapshot) -> String {
    let pair = Pair {
        before: Scene::new(earlier),
        now: Scene::new(later),
    };
    let mut page = Page::default();
    let header = &later.header;
    page.title(&format!(
        "VM {}: {}, {} UTC, over {}",
        format::clean(&header.vm_id),
        State::of(later).word(),
        format::date(header.clock.realtime_of_monotonic(pair.now.end_ns)),
        span(pair.wall_ns())
    ));
    if State::of(later).is_over() {
        page.line(&summary::ending(&pair.now));
    }
    pair.vcpus(&mut page);
    pair.queues(&mut page);
    pair.threads(&mut page);
    pair.memory(&mut page);
    page.text()
}

struct Pair<'a> {
    before: Scene<'a>,
    now: Scene<'a>,
}

impl Pair<'_> {
    fn wall_ns(&self) -> u64 {
        self.now.end_ns.saturating_sub(self.before.end_ns)
    }

    /// By how much a lone number rose.
    fn rose(&self, section: &SectionView, field: &str) -> u64 {
        let of = |section: Option<&SectionView>| {
            let value = section.and_then(|section| section.value(field));
            value.and_then(|value| value.as_u64()).unwrap_or(0)
        };
        of(Some(section)).saturating_sub(of(self.before.section(&section.name)))
    }

    /// By how much a number in a table rose.
    fn row_rose(&self, section: &SectionView, field: &str, row: &str) -> u64 {
        let before = self.before.section(&section.name);
        let before = before.map_or(0, |section| number(section, field, row));
        number(section, field, row).saturating_sub(before)
    }

    /// The time between the samples of a section that is sampled.
    fn sampled_ns(&self, section: &SectionView) -> u64 {
        let at = |scene: &Scene<'_>, section: Option<&SectionView>| {
            let at = section.and_then(|section| section.gauge("sampled_at"));
            let at = at.filter(|at| *at > 0);
            at.map_or(scene.end_ns, |at| scene.monotonic(at))
        };
        let before = at(&self.before, self.before.section(&section.name));
        at(&self.now, Some(section)).saturating_sub(before)
    }

    fn vcpus(&self, page: &mut Page) {
        let mut head = vec!["vCPU"];
        let mut table: Option<Table> = None;
        let mut exits = Table::new(&["vCPU", "does", "for", "exits/s", "most of them"]);
        for section in self.now.of_kind("vcpu").take(MAX_SHOWN) {
            let name = instance(section);
            if let Ok(index) = name.parse() {
                let account = account(Some(self.before.snapshot), self.now.snapshot, index);
                let parts = account.parts();
                // What the ledger does not tell takes no column.
                let parts = parts.iter().filter(|(part, _)| *part != "fault");
                let parts: Vec<_> = parts.collect();
                let table = table.get_or_insert_with(|| {
                    head.extend(parts.iter().map(|(part, _)| *part));
                    head.push("residue");
                    Table::new(&head)
                });
                let mut cells = vec![name.clone()];
                cells.extend(parts.iter().map(|(_, ns)| {
                    let share = ns.map(|ns| percent(ns, account.wall_ns));
                    share.unwrap_or_else(|| "-".to_owned())
                }));
                let residue = u64::try_from(account.residue_ns).unwrap_or(0);
                cells.push(percent(residue, account.wall_ns));
                table.row(cells);
            }
            exits.row(self.exits(section, name));
        }
        if let Some(table) = table {
            page.table(table);
        }
        page.table(exits);
    }

    fn exits(&self, section: &SectionView, name: String) -> Vec<String> {
        let beat = section.heartbeat("heartbeat");
        let does = beat.map(|beat| doing(section, &beat)).unwrap_or_default();
        let lasting = beat.map(|beat| self.now.lasting(&beat)).unwrap_or_default();
        let rows = section.row_names("exits");
        let rows = rows.map(|row| (self.row_rose(section, "exits", row), row));
        let mut rows: Vec<_> = rows.filter(|(count, _)| *count > 0).collect();
        rows.sort_by(|a, b| b.cmp(a));
        let all = rows
            .iter()
            .fold(0u64, |sum, (count, _)| sum.saturating_add(*count));
        let wall = self.wall_ns();
        let most = rows.iter().take(TOP_EXITS);
        let most: Vec<String> = most
            .map(|(count, row)| format!("{row} {}", rate(*count, wall)))
            .collect();
        vec![name, does, lasting, rate(all, wall), most.join(", ")]
    }

    fn queues(&self, page: &mut Page) {
        let head = [
            "queue",
            "requests/s",
            "in flight",
            "for",
            "p99",
            "read/s",
            "written/s",
        ];
        let mut table = Table::new(&head);
        let wall = self.wall_ns();
        for section in self.now.of_kind("queue").take(MAX_SHOWN) {
            let gauge = |field| section.gauge(field).unwrap_or(0);
            let lasting = match gauge("in_flight_since") {
                0 => String::new(),
                since => span(self.now.age_ns(since)),
            };
            let per_second = |field| {
                let rose = u128::from(self.rose(section, field));
                let a_second = rose.saturating_mul(1_000_000_000);
                let a_second = a_second.checked_div(u128::from(wall)).unwrap_or(0);
                bytes(u64::try_from(a_second).unwrap_or(u64::MAX))
            };
            table.row([
                queue_called(section),
                rate(self.rose(section, "requests"), wall),
                gauge("in_flight").to_string(),
                lasting,
                self.p99(section),
                per_second("read"),
                per_second("written"),
            ]);
        }
        page.table(table);
    }

    /// Of the requests that were given back in between.
    fn p99(&self, section: &SectionView) -> String {
        let before = self.before.section(&section.name);
        let before = before.and_then(|section| section.histogram("service"));
        let Some(now) = section.histogram("service") else {
            return String::new();
        };
        let between = match before {
            Some(before) => between(&before, now),
            None => now,
        };
        match between.count() {
            0 => String::new(),
            _ => span(between.quantile(0.99)),
        }
    }

    fn threads(&self, page: &mut Page) {
        let Some(task) = self.now.section("task") else {
            return;
        };
        let span_ns = self.sampled_ns(task);
        let known = threads(&self.now);
        let mut table = Table::new(&["thread", "CPU", "run delay", "major faults", "does"]);
        for row in task.row_names("cpu") {
            if number(task, "threads", row) == 0 && number(task, "cpu", row) == 0 {
                continue;
            }
            let share = |field| percent(self.row_rose(task, field, row), span_ns);
            let thread = known.iter().find(|thread| is_row(row, &thread.name));
            let does = thread.and_then(|thread| {
                let beat = thread.section.heartbeat("heartbeat")?;
                Some(doing(thread.section, &beat))
            });
            table.row([
                row.to_owned(),
                share("cpu"),
                share("run_delay"),
                self.row_rose(task, "major_faults", row).to_string(),
                does.unwrap_or_default(),
            ]);
        }
        page.table(table);
        if span_ns == 0 {
            page.line("The host's numbers were not sampled in between.");
        }
    }

    fn memory(&self, page: &mut Page) {
        if let Some((at, resident)) = host::resident(&self.now) {
            let when = relative(self.now.monotonic(at), self.now.end_ns);
            page.line(&format!(
                "Guest memory: {} in the host's memory ({when}).",
                bytes(resident)
            ));
        }
        if let Some(psi) = self.now.section("psi") {
            let shares = psi.row_names("some").map(|row| {
                let of = |field| host::hundredths(number(psi, field, row));
                format!("{row} {} / {}", of("some_avg10"), of("full_avg10"))
            });
            let shares: Vec<String> = shares.collect();
            page.line(&format!(
                "Host's pressure, some / all, last 10 s: {}.",
                shares.join(", ")
            ));
        }
    }
}

/// What a histogram counted between two readings. The largest value is not told: it is the end of
/// the last bucket with anything in it.
fn between(before: &HistogramView, mut now: HistogramView) -> HistogramView {
    for (count, before) in now.buckets.iter_mut().zip(&before.buckets) {
        *count = count.saturating_sub(*before);
    }
    now.sum = now.sum.wrapping_sub(before.sum);
    let last = now.buckets.iter().rposition(|count| *count > 0);
    let next = last.map_or(0, |bucket| bucket.saturating_add(1));
    if next < now.buckets.len() {
        now.max = now.max.min(bucket_low(next).saturating_sub(1));
    }
    now
}
