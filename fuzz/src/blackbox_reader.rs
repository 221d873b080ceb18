//! The black box's reader, and the OpenMetrics text and the report of what it reads.
//!
//! Bytes that begin with the magic are read as they are. Others become the directory, up to a NUL,
//! and the sections, after it, of a black box whose header is well-formed.

use std::collections::HashSet;

use observe::blackbox::{HEADER_BYTES, MAGIC};
use observe::reader::{Snapshot, fuzz_entry};
use observe::report::{Options, render, render_diagnosis, render_html, render_top};
use observe::verdict::{Observation, Thresholds, diagnose};
use observe::{openmetrics, report};

/// Above what the reader's limits on rows and names allow.
const TEXT_LIMIT: usize = 512 << 20;
/// Above what a report's page may hold.
const PAGE_LIMIT: usize = 64 << 20;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    if bytes.starts_with(&MAGIC) {
        read(bytes);
    } else {
        fuzz_entry(bytes);
        read(&around(bytes));
    }
}

fn read(bytes: &[u8]) {
    fuzz_entry(bytes);
    let Ok(snapshot) = Snapshot::from_bytes(bytes) else {
        return;
    };
    for section in &snapshot.sections {
        let _ = snapshot.section(&section.name);
        let _ = snapshot.of_kind(section.kind()).count();
    }
    let _ = (snapshot.age_ns(0), snapshot.age_ns(u64::MAX));
    let mut text = String::new();
    openmetrics::render(&snapshot, &mut text);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.len() <= TEXT_LIMIT, "{} bytes of text", text.len());
    let mut families = HashSet::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family), "twice: {line}");
        }
    }
    for all in [false, true] {
        let options = Options { events: 40, all };
        for page in [
            render(&snapshot, options),
            render_html(&snapshot, options),
            render_top(&snapshot, &snapshot),
            diagnosis(&snapshot),
        ] {
            assert!(page.len() <= PAGE_LIMIT, "{} bytes of page", page.len());
            let harm = page.chars().find(|c| c.is_control() && *c != '\n');
            assert_eq!(harm, None, "a control character reaches the terminal");
        }
    }
    let _ = (
        report::since_realtime_ns(&snapshot),
        report::resident_bytes(&snapshot),
    );
}

/// As `vitrine doctor` tells it.
fn diagnosis(snapshot: &Snapshot) -> String {
    let seen = Observation::of(snapshot);
    let verdicts = diagnose(Some(&seen), &seen, &Thresholds::default());
    render_diagnosis(snapshot, &verdicts, true)
}

/// A black box with this directory and these sections, which begin at byte 4096.
fn around(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let (directory, sections) = bytes.split_at(end.unwrap_or(bytes.len()));
    let sections = sections.get(1..).unwrap_or_default();
    let place = HEADER_BYTES + sections.len();
    let length = directory.len() as u64;
    let mut black_box = vec![0; HEADER_BYTES];
    black_box[..8].copy_from_slice(&MAGIC);
    let words = [
        1,
        HEADER_BYTES as u64,
        place as u64 + length,
        place as u64,
        length,
        length,
    ];
    for (word, to) in words.iter().zip(black_box[8..].chunks_exact_mut(8)) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    black_box.extend_from_slice(sections);
    black_box.extend_from_slice(directory);
    black_box
}
