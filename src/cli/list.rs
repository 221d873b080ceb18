//! `vitrine list`.

use std::io::ErrorKind;
use std::path::Path;

use api::vmm::observe::reader::Snapshot;
use api::vmm::observe::report::format::{bytes, clean, date};
use api::vmm::observe::report::{State, memory_bytes, resident_bytes, since_realtime_ns, vcpus};

use super::args::ListArgs;
use super::target::{self, Found};
use super::{Failure, black_box, chain, output};

const HEAD: [&str; COLUMNS] = [
    "ID",
    "PID",
    "STATE",
    "SINCE (UTC)",
    "VCPUS",
    "MEMORY",
    "RESIDENT",
    "FILE",
];
const COLUMNS: usize = 8;

/// Says which VMs there are, from their black boxes.
///
/// # Errors
/// The folder cannot be read.
pub fn list(arguments: ListArgs) -> Result<(), Failure> {
    let is_given = arguments.dir.is_some();
    let folder = arguments.dir.unwrap_or_else(black_box::default_folder);
    let found = match target::in_folder(&folder) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound && !is_given => None,
        Err(error) => {
            return Err(Failure::misuse(format!(
                "the folder {} cannot be read: {error}; give the one of --blackbox with --dir",
                folder.display()
            )));
        }
    };
    let found = found.into_iter().flatten();
    output::print(&text(&folder, found, arguments.all)).map(drop)
}

fn text(folder: &Path, found: impl Iterator<Item = Found>, all: bool) -> String {
    let mut rows = vec![HEAD.map(ToOwned::to_owned)];
    let mut unread = Vec::new();
    let (mut hidden, mut dead) = (0, 0);
    for Found { path, read } in found {
        match read {
            Ok((_, snapshot)) => {
                let state = State::of(&snapshot);
                if state == State::Ended && !all {
                    hidden += 1;
                    continue;
                }
                dead += usize::from(state == State::Dead);
                rows.push(row(&path, &snapshot, state));
            }
            Err(error) => unread.push(clean(&chain(&error))),
        }
    }
    let mut out = String::new();
    if rows.len() > 1 {
        out.push_str(&aligned(&rows));
    } else if unread.is_empty() {
        let what = if hidden > 0 { "other VM" } else { "VM" };
        out = format!(
            "There is no {what} with a black box in {}.\n",
            folder.display()
        );
    }
    for reason in unread {
        out.extend(["unreadable: ", &reason, "\n"]);
    }
    if dead > 0 {
        out.push_str("dead: died without a clean end; `vitrine report ID` tells what is known.\n");
    }
    if hidden > 0 {
        out.push_str(&format!("{hidden} that ended cleanly: shown with --all.\n"));
    }
    out
}

fn row(path: &Path, snapshot: &Snapshot, state: State) -> [String; COLUMNS] {
    [
        clean(&snapshot.header.vm_id),
        snapshot.header.pid.to_string(),
        state.word().to_owned(),
        date(since_realtime_ns(snapshot)),
        vcpus(snapshot).to_string(),
        memory_bytes(snapshot).map_or_else(|| "-".to_owned(), bytes),
        resident_bytes(snapshot).map_or_else(|| "-".to_owned(), bytes),
        clean(&path.display().to_string()),
    ]
}

fn aligned(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.extend([cells.join("  ").trim_end(), "\n"]);
    }
    out
}
