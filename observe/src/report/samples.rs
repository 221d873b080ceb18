//! The last minutes: every series as a table of rates and levels, so that a reader sees what
//! changed before the end. What stood still all the time is named below its table.

use super::format::{amount, bytes, percent, rate, relative};
use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene, instance};
use crate::reader::{ColumnView, SectionView, SeriesView, Value};
use crate::schema::Unit;

/// How many rows before the newest: two minutes by tens, then one by one. The first of all is what
/// the rates of the next one start from.
const FIRST: usize = 130;
const COARSE: usize = 10;

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    let mut is_first = true;
    for section in scene.sections.iter().take(MAX_SHOWN.saturating_mul(4)) {
        for (_, _, value) in section.values() {
            let Value::Series(series) = value else {
                continue;
            };
            let Some(lately) = Lately::of(scene, &series) else {
                continue;
            };
            if std::mem::take(&mut is_first) {
                page.heading("The last minutes");
                page.line("Shares and rates are those of the time since the row before.");
            }
            lately.show(&subject(section), page);
        }
    }
}

/// What a ring is about.
fn subject(section: &SectionView) -> String {
    match section.kind() {
        "samples" => "machine".to_owned(),
        "vcpu_samples" => format!("vCPU {}", instance(section)),
        "queue_samples" => format!("queue {}", instance(section)),
        "balloon_samples" => "guest's memory".to_owned(),
        _ => section.name.clone(),
    }
}

/// The rows of a series that are shown, oldest first.
struct Lately<'a> {
    scene: &'a Scene<'a>,
    series: &'a SeriesView,
    /// Where in a row its moment is.
    at: usize,
    /// Each with the one that its rates start from.
    pairs: Vec<(&'a [u64], &'a [u64])>,
}

impl<'a> Lately<'a> {
    /// `None` for a series without two rows that have a moment.
    fn of(scene: &'a Scene<'a>, series: &'a SeriesView) -> Option<Self> {
        let moment = |column: &ColumnView| column.unit == Unit::Ticks && !column.is_counter;
        let at = series.columns.iter().position(moment)?;
        let newest = series.rows.len().checked_sub(1)?;
        let mut picked = vec![newest.saturating_sub(FIRST)];
        // 120, 110 ... 10, then 9, 8 ... 0.
        let coarse = (COARSE..FIRST).step_by(COARSE).rev();
        for before in coarse.chain((0..COARSE).rev()) {
            let Some(row) = newest.checked_sub(before) else {
                continue;
            };
            if picked.last().is_some_and(|last| row > *last) {
                picked.push(row);
            }
        }
        let picked = picked.iter().filter_map(|row| series.rows.get(*row));
        let rows: Vec<&[u64]> = picked.map(Vec::as_slice).collect();
        let pairs = rows.iter().copied().zip(rows.iter().copied().skip(1));
        let pairs: Vec<_> = pairs.collect();
        (!pairs.is_empty()).then_some(Lately {
            scene,
            series,
            at,
            pairs,
        })
    }

    /// A number in the older and in the newer row of each pair.
    fn changes(&self, column: usize) -> impl Iterator<Item = (u64, u64)> {
        let word = move |row: &[u64]| row.get(column).copied().unwrap_or(0);
        self.pairs
            .iter()
            .map(move |(older, newer)| (word(older), word(newer)))
    }

    fn moment(&self, row: &[u64]) -> u64 {
        let ticks = row.get(self.at).copied().unwrap_or(0);
        self.scene.monotonic(ticks)
    }

    fn show(&self, subject: &str, page: &mut Page) {
        let columns = self.series.columns.iter().enumerate();
        let columns = columns.filter(|(place, _)| *place != self.at);
        let (moving, still): (Vec<_>, Vec<_>) =
            columns.partition(|(place, _)| self.changes(*place).any(|(old, new)| old != new));
        let head = moving.iter().map(|(_, column)| title(column));
        let head: Vec<String> = std::iter::once(subject.to_owned()).chain(head).collect();
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let mut table = Table::new(&head);
        for (row, (older, newer)) in self.pairs.iter().enumerate() {
            let ns = self.moment(newer).saturating_sub(self.moment(older));
            let cells = moving.iter().map(|(place, column)| {
                let change = self.changes(*place).nth(row).unwrap_or_default();
                cell(column, change, ns)
            });
            let when = tenths(relative(self.moment(newer), self.scene.end_ns));
            table.row(std::iter::once(when).chain(cells));
        }
        if !moving.is_empty() {
            page.table(table);
        }
        if !still.is_empty() {
            page.line(&self.at_rest(subject, &still));
        }
    }

    fn at_rest(&self, subject: &str, still: &[(usize, &ColumnView)]) -> String {
        let names = still.iter().map(|(place, column)| {
            let level = self.changes(*place).last().map_or(0, |(_, newer)| newer);
            let name = spaced(&column.name);
            match column.is_counter {
                true => name,
                false => format!("{name} {}", amount(level, column.unit)),
            }
        });
        let names: Vec<String> = names.collect();
        format!("{subject}, all the time the same: {}.", names.join(", "))
    }
}

fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

fn title(column: &ColumnView) -> String {
    let per_second = match (column.is_counter, column.unit) {
        (true, Unit::None | Unit::Bytes | Unit::Pages) => "/s",
        // A share of the time.
        (true, Unit::Nanoseconds | Unit::Ticks) | (false, _) => "",
    };
    format!("{}{per_second}", spaced(&column.name))
}

/// A level, or what a counter rose by in `ns`.
fn cell(column: &ColumnView, (older, newer): (u64, u64), ns: u64) -> String {
    if !column.is_counter {
        return amount(newer, column.unit);
    }
    let rise = newer.saturating_sub(older);
    match column.unit {
        Unit::Nanoseconds => percent(rise, ns),
        Unit::Bytes if ns > 0 => bytes((rise as f64 * 1e9 / ns as f64) as u64),
        _ => rate(rise, ns),
    }
}

/// A distance with one digit behind its point.
fn tenths(relative: String) -> String {
    match relative.split_once('.') {
        Some((whole, part)) => {
            let part: String = part.chars().take(1).collect();
            format!("{whole}.{part} s")
        }
        None => relative,
    }
}
