//! What the guest's kernel said: how often, and the last lines of its console.

use super::page::{Page, Table};
use super::scene::{MAX_SHOWN, Scene};
use crate::reader::{SectionView, TextView};

/// Lines of the console that are shown, and of what the watch noticed.
const LAST_LINES: usize = 40;
/// Bytes of a line that are shown.
const LINE_BYTES: usize = 512;

pub(super) fn show(scene: &Scene<'_>, page: &mut Page) {
    for section in scene.of_kind("console_watch").take(MAX_SHOWN) {
        messages(scene, section, page);
        let excerpts = section.text("excerpts").unwrap_or_default();
        lines("What the guest's kernel complained of", &excerpts, page);
        let output = section.text("output").unwrap_or_default();
        lines("The end of the guest's console", &output, page);
    }
}

fn messages(scene: &Scene<'_>, section: &SectionView, page: &mut Page) {
    let mut table = Table::new(&["kernel message", "seen", "last", "without an event"]);
    for row in section.row_names("messages") {
        let of = |field| {
            let value = section.table(field, row);
            value.and_then(|value| value.as_u64()).unwrap_or(0)
        };
        if of("messages") > 0 {
            table.row([
                row.replace('_', " "),
                of("messages").to_string(),
                scene.moment(of("last_at")),
                of("untold").to_string(),
            ]);
        }
    }
    if !table.is_empty() {
        page.heading("Messages of the guest's kernel");
    }
    page.table(table);
}

fn lines(heading: &str, text: &TextView, page: &mut Page) {
    let text = match text.bytes.len() as u64 == text.written {
        true => text.bytes.as_slice(),
        // The first line is a part of one.
        false => {
            let end = text.bytes.iter().position(|byte| *byte == b'\n');
            end.and_then(|end| text.bytes.get(end..))
                .unwrap_or(&text.bytes)
        }
    };
    let shown = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = line.get(..LINE_BYTES).unwrap_or(line);
        (!line.is_empty()).then(|| String::from_utf8_lossy(line).replace('\t', "    "))
    });
    let shown: Vec<String> = shown.collect();
    let skip = shown.len().saturating_sub(LAST_LINES);
    let shown: Vec<String> = shown.into_iter().skip(skip).collect();
    if !shown.is_empty() {
        page.heading(heading);
        page.text_lines(&shown);
    }
}
