use super::*;
use crate::blackbox::{BlackBox, Meta};
use crate::heartbeat::Activity;
use crate::reader::Reader;
use crate::reader::tests::{Zoo, snapshot, zoo};
use proptest::prelude::*;
use std::collections::HashSet;

/// A sample line apart: name, labels, value.
type Sample = (String, Vec<(String, String)>, f64);

/// Takes `name{label="value",...} number` apart; fails on anything that is not exactly that.
fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_once('{').expect("labels");
    let mut labels = Vec::new();
    let mut rest = rest;
    loop {
        let (label, after) = rest.split_once("=\"").expect("a label's value");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (i, '"') => break i,
                (_, '\\') => match chars.next().expect("an escape").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("bad escape {c}"),
                },
                (_, c) => value.push(c),
            }
        };
        is_name(label);
        labels.push((label.to_owned(), value));
        match after[end + 1..].split_at(1) {
            (",", more) => rest = more,
            ("}", number) => {
                let number = number.strip_prefix(' ').expect("one space");
                assert!(
                    number.chars().all(|c| c.is_ascii_digit() || c == '.'),
                    "{line}"
                );
                is_name(name);
                return (name.to_owned(), labels, number.parse().expect("a number"));
            }
            _ => panic!("after a label: {line}"),
        }
    }
}

fn is_name(name: &str) {
    assert!(!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()));
    assert!(
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
        "{name}"
    );
}

/// Checks one histogram's lines, which come in order: buckets, count, sum.
fn check_histogram(lines: &[(&str, &Sample)]) {
    let (mut bound, mut count) = (f64::NEG_INFINITY, 0.0);
    let (buckets, rest) = lines.split_at(lines.len() - 2);
    for (suffix, (_, labels, value)) in buckets {
        assert_eq!(*suffix, "_bucket");
        let le = &labels.last().expect("le").1;
        assert!(le.contains('.') || le == "+Inf", "{le}");
        let le = if le == "+Inf" {
            f64::INFINITY
        } else {
            le.parse().unwrap()
        };
        assert!(le > bound && *value >= count, "buckets out of order");
        (bound, count) = (le, *value);
    }
    assert_eq!(bound, f64::INFINITY);
    assert_eq!((rest[0].0, rest[0].1.2), ("_count", count));
    assert_eq!(rest[1].0, "_sum");
}

/// A strict reading of what OpenMetrics 1.0 demands of a text like ours. Gives back all samples.
fn check(text: &str) -> Vec<Sample> {
    let body = text.strip_suffix("# EOF\n").expect("EOF");
    let (mut families, mut seen) = (HashSet::new(), HashSet::new());
    let mut all = Vec::new();
    for block in body.split("# TYPE ").skip(1) {
        let mut lines = block.lines().peekable();
        let (name, kind) = lines.next().unwrap().split_once(' ').unwrap();
        is_name(name);
        assert!(name.starts_with("vitrine_"));
        assert!(families.insert(name.to_owned()), "{name} comes twice");
        if let Some(unit) = lines.peek().and_then(|l| l.strip_prefix("# UNIT ")) {
            let (named, unit) = unit.split_once(' ').unwrap();
            assert!(named == name && name.ends_with(&format!("_{unit}")));
            lines.next();
        }
        let help = lines.next().unwrap().strip_prefix("# HELP ").expect("HELP");
        assert!(help.strip_prefix(name).unwrap().starts_with(' '));
        let samples: Vec<Sample> = lines.map(sample).collect();
        assert!(!samples.is_empty(), "{name} is empty");
        let mut histograms: Vec<(String, Vec<(&str, &Sample)>)> = Vec::new();
        for one in &samples {
            let suffix = one.0.strip_prefix(name).expect("a sample of its family");
            let mut labels = one.1.clone();
            assert!(
                seen.insert((one.0.clone(), labels.clone())),
                "{one:?} twice"
            );
            let names: HashSet<_> = labels.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), labels.len(), "a label twice");
            match kind {
                "counter" => assert_eq!(suffix, "_total"),
                "gauge" => assert_eq!(suffix, ""),
                "info" => assert_eq!(suffix, "_info"),
                "histogram" => {
                    labels.retain(|(name, _)| name != "le");
                    let key = format!("{labels:?}");
                    match histograms.last_mut().filter(|(last, _)| *last == key) {
                        Some((_, lines)) => lines.push((suffix, one)),
                        None => histograms.push((key, vec![(suffix, one)])),
                    }
                }
                kind => panic!("type {kind}"),
            }
        }
        let different: HashSet<_> = histograms.iter().map(|(key, _)| key).collect();
        assert_eq!(
            different.len(),
            histograms.len(),
            "a histogram is torn apart"
        );
        histograms
            .iter()
            .for_each(|(_, lines)| check_histogram(lines));
        all.extend(samples);
    }
    assert!(body.is_empty() || body.starts_with("# TYPE "));
    all
}

fn text_of(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    render(snapshot, &mut text);
    text
}

#[test]
fn a_black_box_renders_as_valid_openmetrics() {
    let (mut black_box, block) = zoo("zoo/rootfs/0", "vm \"1\" \\");
    let other = black_box.section::<Zoo>("zoo/data/1", &[]).unwrap();
    other.made.inc();
    block.made.add(42);
    block.depth.set(4096);
    block.took.record(300);
    block.took.record(2_000_000_000);
    block.rows[0].count.add(5);
    block.rows[0].time.record(70);
    block.rows[1].count.add(1);
    block.beat.set(Activity::InHandler, 1, 2, 3, 4);
    let text = text_of(&snapshot(&black_box));
    let samples = check(&text);
    let vm = "vm=\"vm \\\"1\\\" \\\\\"";
    let one = format!("{vm},device=\"rootfs\",queue=\"0\"");
    for line in [
        "# TYPE vitrine_zoo_made counter\n# HELP vitrine_zoo_made Made \\\"so\\\" far.\n"
            .to_owned(),
        format!("vitrine_zoo_made_total{{{one}}} 42\n"),
        format!("vitrine_zoo_made_total{{{vm},device=\"data\",queue=\"1\"}} 1\n"),
        "# UNIT vitrine_zoo_depth_bytes bytes\n# HELP vitrine_zoo_depth_bytes Depth.\n".to_owned(),
        format!("vitrine_zoo_depth_bytes{{{one}}} 4096\n"),
        format!("vitrine_zoo_took_seconds_bucket{{{one},le=\"0.000000256\"}} 0\n"),
        format!("vitrine_zoo_took_seconds_bucket{{{one},le=\"0.000001024\"}} 1\n"),
        format!("vitrine_zoo_took_seconds_bucket{{{one},le=\"68.719476736\"}} 2\n"),
        format!("vitrine_zoo_took_seconds_bucket{{{one},le=\"+Inf\"}} 2\n"),
        format!("vitrine_zoo_took_seconds_sum{{{one}}} 2.0000003\n"),
        format!("vitrine_zoo_exits_total{{{one},reason=\"io\"}} 5\n"),
        format!("vitrine_zoo_exit_time_seconds_sum{{{one},reason=\"io\"}} 0.00000007\n"),
        format!("vitrine_zoo_beat_state{{{one},state=\"in handler\"}} 1\n"),
        format!("vitrine_zoo_events_written_total{{{one}}} 0\n"),
        format!("vitrine_build_info{{{vm},version=\"1.2.3\"}} 1\n"),
        format!("vitrine_up{{{vm}}} 1\n"),
    ] {
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
    assert!(
        samples
            .iter()
            .any(|s| s.0 == "vitrine_zoo_beat_state_since_seconds")
    );
    assert!(!text.contains("halt"), "a row that was never touched shows");
    assert!(!text.contains("reason=\"\""), "a row without a name shows");
}

#[test]
fn of_two_sections_with_one_name_only_the_newer_shows() {
    let (mut black_box, first) = zoo("zoo/hot/0", "vm");
    first.made.add(100);
    let second = black_box.section::<Zoo>("zoo/hot/0", &[]).unwrap();
    second.made.add(3);
    let samples = check(&text_of(&snapshot(&black_box)));
    let made: Vec<_> = samples
        .iter()
        .filter(|s| s.0 == "vitrine_zoo_made_total")
        .collect();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].2, 3.0);
}

#[test]
fn numbers_of_the_process_join_the_others() {
    let (black_box, _block) = zoo("zoo/a/0", "vm");
    let extra = |name, kind, unit, labels, value| Extra {
        name,
        kind,
        unit,
        help: "Help.",
        labels,
        value,
    };
    let mut text = String::new();
    let extras = [
        extra(
            "api_requests",
            FieldKind::Counter,
            Unit::None,
            &[("path", "/")][..],
            4,
        ),
        extra(
            "api_requests",
            FieldKind::Counter,
            Unit::None,
            &[("path", "/x")][..],
            5,
        ),
        extra("rss", FieldKind::Gauge, Unit::Bytes, &[][..], 6),
        extra("zoo_made", FieldKind::Gauge, Unit::None, &[][..], 7),
    ];
    render_with(&snapshot(&black_box), &extras, &mut text);
    check(&text);
    assert!(text.contains("vitrine_api_requests_total{vm=\"vm\",path=\"/\"} 4\n"));
    assert!(text.contains("vitrine_rss_bytes{vm=\"vm\"} 6\n"));
}

#[test]
fn a_moment_that_never_was_is_0_and_no_date() {
    let (black_box, _block) = zoo("zoo/a/0", "vm");
    let moment = |name, value| Extra {
        name,
        kind: FieldKind::Gauge,
        unit: Unit::Ticks,
        help: "Help.",
        labels: &[],
        value,
    };
    let now = crate::clock::Clock::process().ticks();
    let mut text = String::new();
    let moments = [moment("never_at", 0), moment("once_at", now)];
    render_with(&snapshot(&black_box), &moments, &mut text);
    let samples = check(&text);
    assert!(text.contains("vitrine_never_at_seconds{vm=\"vm\"} 0\n"));
    let once = samples
        .iter()
        .find(|s| s.0 == "vitrine_once_at_seconds")
        .unwrap();
    // 2020-09-13 as the format counts, and later.
    assert!(once.2 > 1.6e9, "{once:?}");
}

#[test]
fn an_empty_black_box_renders_too() {
    let meta = Meta {
        vm_id: String::new(),
        version: String::new(),
    };
    let black_box = BlackBox::anonymous(0, &meta).unwrap();
    let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
    assert_eq!(check(&text_of(&reader.snapshot().unwrap())).len(), 2);
}

#[test]
fn the_documented_families_are_those_that_are_rendered() {
    let (black_box, block) = zoo("zoo/a/0", "vm");
    block.rows[0].count.inc();
    block.rows[0].time.record(1);
    block.beat.enter(Activity::Idle, 1);
    let text = text_of(&snapshot(&black_box));
    let documented = families_of::<Zoo>();
    for family in &documented {
        let line = format!("# TYPE {} {}\n", family.name, family.metric_type.word());
        assert!(text.contains(&line), "{line}");
    }
    assert_eq!(
        text.matches("# TYPE vitrine_zoo_").count(),
        documented.len()
    );
    let exits = documented
        .iter()
        .find(|f| f.name == "vitrine_zoo_exits")
        .unwrap();
    assert_eq!(exits.labels, ["device", "queue", "reason"]);
}

#[test]
fn seconds_have_no_float_noise() {
    for (ns, text) in [
        (0, "0"),
        (1, "0.000000001"),
        (1_500_000_000, "1.5"),
        (3_000_000_000, "3"),
        (u64::MAX, "18446744073.709551615"),
    ] {
        assert_eq!(seconds(ns), text);
    }
}

proptest! {
    #[test]
    fn any_names_give_a_valid_text(vm in "\\PC{0,20}", section in "zoo/\\PC{0,10}/\\PC{0,5}",
                                   row in "\\PC{0,10}", count in 1u64..9) {
        let meta = Meta { vm_id: vm, version: row.clone() };
        let mut black_box = BlackBox::anonymous(128 << 10, &meta).unwrap();
        let rows = [row.clone(), row, String::from("\\\"\n")];
        let zoo = black_box.section::<Zoo>(&section, &[("reason", &rows)]).unwrap();
        zoo.rows.iter().for_each(|row| {
            row.count.add(count);
            row.time.record(count);
        });
        check(&text_of(&snapshot(&black_box)));
    }
}
