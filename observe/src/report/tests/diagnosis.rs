//! The page of `vitrine doctor`.

use super::toys::Toys;
use crate::blackbox::{BlackBox, End, Meta};
use crate::reader::Snapshot;
use crate::reader::tests::snapshot;
use crate::report::{is_certain, render_diagnosis};
use crate::verdict::{Code, Subject, Verdict};

const S: u64 = 1_000_000_000;

/// A VM that was looked at 100 s after it was made.
fn seen(alive: bool) -> Snapshot {
    let meta = Meta {
        vm_id: "vm1".to_owned(),
        version: String::new(),
    };
    let mut snapshot = snapshot(&BlackBox::anonymous(64 << 10, &meta).unwrap());
    snapshot.writer_alive = Some(alive);
    snapshot.now_monotonic_ns = snapshot.header.created_monotonic_ns + 100 * S;
    snapshot
}

/// A verdict that has held for 3 s.
fn verdict(snapshot: &Snapshot, code: Code, subject: Subject) -> Verdict {
    let since = snapshot.now_monotonic_ns - 3 * S;
    Verdict::new(code, subject, since, format!("of {}", code.name()))
}

#[test]
fn a_healthy_vm_is_two_lines() {
    let text = render_diagnosis(&seen(true), &[], true);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "vm1: healthy");
    assert!(lines[1].starts_with("  Its process lives as of "));
    assert_eq!(lines.len(), 2, "{text}");
}

#[test]
fn a_verdict_has_its_evidence_in_units_and_its_consequences_below() {
    let snapshot = seen(true);
    let starved = verdict(&snapshot, Code::VcpuStarved, Subject::vcpu(0))
        .real("waiting_percent", 49.96)
        .number("waiting_ns", 1_500_000_000)
        .number("max_bytes", 3 << 19)
        .number("address", 0x3f8)
        .real("exits_per_second", 1234.5)
        .number("tid", 7)
        .text("place", "io_out 0x80")
        .number("swap_left_bytes", u64::MAX)
        .real("bytes_per_second", 4_194_304.0)
        .real("seconds_left", 50.04);
    let mut lost = verdict(&snapshot, Code::QueueLostKick, Subject::queue("d", "0"));
    lost.consequence_of = Some(starved.key());
    let paused = verdict(&snapshot, Code::Paused, Subject::whole("vm")).number("paused_ns", 9);
    let text = render_diagnosis(&snapshot, &[starved, paused, lost], true);
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("vm1: 1 error, 1 warning (health 85 of 100)")
    );
    let rest: Vec<&str> = lines.skip(2).collect();
    assert_eq!(rest[0], "warning vcpu-starved, vcpu/0: of vcpu-starved");
    assert!(rest[1].starts_with("  since      20") && rest[1].ends_with(" UTC, 3.000 s ago"));
    let remedy = |code: Code| code.entry().remedy;
    let expected = [
        "  waiting    50.0 %",
        "  waiting    1.500 s",
        "  max        1.5 MiB",
        "  address    0x3f8",
        "  exits      1234 a second",
        "  tid        7",
        "  place      io_out 0x80",
        "  swap left  no limit",
        "  grows by   4.0 MiB a second",
        "  left       50.0 s",
        &format!("  remedy     {}", remedy(Code::VcpuStarved)),
        "  and therefore",
        "    error queue-lost-kick, device/d/queue/0: of queue-lost-kick",
    ];
    assert_eq!(rest[2..15], expected);
    assert!(rest[15].starts_with("      since   20"));
    let last = format!("      remedy  {}", remedy(Code::QueueLostKick));
    assert_eq!(rest[16..], [&last, "", "info paused, vm: of paused"]);
}

#[test]
fn what_is_healthy_is_one_line_and_so_is_what_follows_from_it_no_fault() {
    let snapshot = seen(true);
    let paused = verdict(&snapshot, Code::Paused, Subject::whole("vm")).number("paused_ns", 9);
    let mut unread = verdict(
        &snapshot,
        Code::QueueGuestNotReaping,
        Subject::queue("d", "0"),
    );
    unread.consequence_of = Some(paused.key());
    let text = render_diagnosis(&snapshot, &[paused, unread], true);
    assert!(text.starts_with("vm1: healthy\n"), "{text}");
    assert!(text.contains("\ninfo paused, vm: of paused\n  and therefore\n    warning queue-"));
}

#[test]
fn nothing_is_left_out_or_shown_twice_whatever_names_what() {
    let snapshot = seen(true);
    let mut one = verdict(&snapshot, Code::VcpuSpin, Subject::vcpu(0));
    let mut other = verdict(&snapshot, Code::VcpuStarved, Subject::vcpu(0));
    (one.consequence_of, other.consequence_of) = (Some(other.key()), Some(one.key()));
    let mut lone = verdict(&snapshot, Code::VcpuThrottled, Subject::vcpu(1));
    lone.consequence_of = Some((Code::Paused, Subject::whole("vm")));
    let text = render_diagnosis(&snapshot, &[one, other, lone], true);
    for code in [Code::VcpuSpin, Code::VcpuStarved, Code::VcpuThrottled] {
        let line = format!("of {}\n", code.name());
        assert_eq!(text.matches(&line).count(), 1, "{text}");
    }
}

#[test]
fn a_dead_vm_is_told_as_such_and_no_text_acts_on_the_terminal() {
    let snapshot = seen(false);
    let evil = "x\u{1b}[2J\n\u{202e}";
    let died = verdict(&snapshot, Code::VmmDied, Subject::device(evil)).text("said", evil);
    let died = Verdict {
        summary: evil.to_owned(),
        ..died
    };
    let text = render_diagnosis(&snapshot, &[died], true);
    assert!(text.starts_with("vm1: 1 error (health 50 of 100)\n  It died without"));
    assert!(text.contains(" UTC, 3.000 s before the end\n"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    assert_eq!(
        text.matches("x\\u{1b}[2J\\u{a}\\u{202e}").count(),
        3,
        "{text}"
    );
}

#[test]
fn of_a_vm_that_failed_the_last_events_are_shown_and_of_one_that_ended_none() {
    for (end, has_events) in [(End::Failed, true), (End::Clean, false)] {
        let mut toys = Toys::new();
        toys.live();
        toys.black_box.finish(end, "words");
        let text = render_diagnosis(&snapshot(&toys.black_box), &[], true);
        assert_eq!(text.contains("\nThe last "), has_events, "{text}");
    }
}

#[test]
fn very_many_verdicts_are_not_all_shown() {
    let snapshot = seen(true);
    let one = |vcpu| verdict(&snapshot, Code::VcpuStarved, Subject::vcpu(vcpu));
    let all: Vec<Verdict> = (0..300).map(one).collect();
    let text = render_diagnosis(&snapshot, &all, true);
    assert!(text.starts_with("vm1: 300 warnings (health 0 of 100)\n"));
    assert_eq!(text.matches("\nwarning ").count(), 256);
    assert!(text.ends_with("\n\nand 44 more\n"), "{text}");
}

#[test]
fn nothing_found_in_what_is_not_all_is_not_called_healthy() {
    for is_cut in [true, false] {
        let mut snapshot = seen(true);
        snapshot.truncated = is_cut;
        snapshot.writer_alive = is_cut.then_some(true);
        let text = render_diagnosis(&snapshot, &[], is_certain(&snapshot));
        let first = "vm1: no fault is seen, and not all could be judged\n";
        assert!(text.starts_with(first), "{text}");
        let words = match is_cut {
            true => "\n  The file is cut short or damaged",
            false => "nothing tells whether its process lives",
        };
        assert!(text.contains(words), "{text}");
        assert!(!is_certain(&snapshot));
    }
    assert!(is_certain(&seen(true)) && is_certain(&seen(false)));
}
