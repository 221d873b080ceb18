mod balloon;
mod diagnosis;
mod samples;
mod toys;

use std::mem::offset_of;

use proptest::prelude::*;

use super::*;
use crate::blackbox::{Block, End, HEADER_BYTES};
use crate::clock::Clock;
use crate::flight::FlightEvent;
use crate::heartbeat::Activity;
use crate::host::MemoryBlock;
use crate::reader::tests::{bytes_of, genuine, snapshot, with_directory};
use crate::verdict::{Observation, Thresholds, diagnose};
use toys::{Queue, Toys};

/// `text` with its runs of spaces as one.
fn squeezed(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_report_tells_all_that_there_is() {
    let mut toys = Toys::new();
    toys.live();
    let text = render(&snapshot(&toys.black_box), Options::default());
    let text = squeezed(&text);
    for words in [
        "VM web-1: running\nIts process lives as of 20",
        "by Vitrine 9.8.7, process ",
        "1 vCPU.",
        "vCPU 0: in handler, mmio_write at rootfs 0xd000",
        "In KVM 5.00 ms in 0 stays",
        "mmio_write 1 70.0 us 70.0 us 70.0 us 70.0 us",
        "rootfs 3 0 0",
        "handler ",
        "the scheduler's numbers of the vCPU's thread are missing",
        "rootfs/0 not set up 1 ",
        "rootfs/0: broken by the guest once, the last time because a chain never ends",
        "vcpu-0 in handler, mmio_write at rootfs 0xd000",
        "io-rootfs idle",
        "Host memory: ",
        "unheard_of lost 8.0 KiB",
        "vcpu/0 novelty 2.0 KiB",
        "The last 1 events of 1",
        "vcpu-0 mmio_write of 4 bytes at rootfs 0xd000, 70.0 us",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(!text.contains("unheard_of since"), "it never was:\n{text}");
    let all = Options {
        all: true,
        ..Options::default()
    };
    let all = squeezed(&render(&snapshot(&toys.black_box), all));
    assert!(all.contains("unheard_of since never"), "{all}");
}

#[test]
fn the_end_is_told_in_words() {
    let mut toys = Toys::new();
    toys.live();
    let mut dead = snapshot(&toys.black_box);
    dead.writer_alive = Some(false);
    assert_eq!(State::of(&dead), State::Dead);
    let text = render(&dead, Options::default());
    assert!(text.starts_with("VM web-1: dead\n  It died without a clean end: "));
    let unknown = Snapshot::from_bytes(&bytes_of(&toys.black_box)).unwrap();
    assert_eq!(State::of(&unknown), State::Unknown);
    assert!(ending(&unknown).starts_with("No end is recorded, and nothing tells"));
    for (end, state, words) in [
        (End::Clean, State::Ended, "It ended cleanly on 20"),
        (End::Failed, State::Failed, "It failed on 20"),
    ] {
        toys.black_box.finish(end, "so it was said.");
        let snapshot = snapshot(&toys.black_box);
        assert_eq!(State::of(&snapshot), state);
        let text = ending(&snapshot);
        assert!(
            text.starts_with(words) && text.ends_with("UTC: so it was said."),
            "{text}"
        );
        assert_eq!(state.is_bad(), end == End::Failed);
    }
}

#[test]
fn the_last_sign_of_life_is_that_of_any_thread_but_not_a_torn_one() {
    let toys = Toys::new();
    toys.black_box.pulse().beat();
    std::thread::sleep(std::time::Duration::from_millis(20));
    toys.io_event(1, 0, 1);
    // Long after the pulse: damage.
    toys.vcpu.heartbeat.enter(Activity::Idle, u64::MAX);
    let dead = Snapshot::from_bytes(&bytes_of(&toys.black_box)).unwrap();
    let after = Scene::new(&dead).end_ns - dead.now_monotonic_ns;
    assert!((19_000_000..10_000_000_000).contains(&after), "{after}");
}

#[test]
fn guest_memory_is_counted_once_and_told_with_its_moment_when_that_is_long_ago() {
    let mut toys = Toys::new();
    let regions = ["0x0", "0x100000000"].map(ToOwned::to_owned);
    let labels: [(&str, &[String]); 1] = [("region", &regions)];
    let memory = toys.black_box.section::<MemoryBlock>("memory", &labels);
    let memory = memory.unwrap();
    memory.sampled_at.set(Clock::process().ticks());
    for row in &memory.rows[..2] {
        // The sampler counts huge pages of the host's pools as resident, too.
        row.resident.set(6 << 20);
        row.hugetlb.set(2 << 20);
    }
    let mut snapshot = snapshot(&toys.black_box);
    assert_eq!(resident_bytes(&snapshot), Some(12 << 20));
    let text = render(&snapshot, Options::default());
    let told = "12.0 MiB of guest memory in the host's memory";
    assert!(text.contains(&format!("{told}.\n")), "{text}");
    snapshot.now_monotonic_ns += 5_000_000_000;
    let text = render(&snapshot, Options::default());
    assert!(text.contains(&format!("{told} as of 20")), "{text}");
    assert!(text.contains("(-5."), "{text}");
}

#[test]
fn events_become_lines_by_their_templates() {
    let toys = Toys::new();
    toys.io_event(1 | 1 << 16, 0, 4);
    toys.io_event(2, 4096, 1_500);
    toys.io_event(3 | 1 << 16 | 255 << 32, 0, 28);
    toys.io_event(4, 0, 9);
    toys.io_event(77 | 2 << 8 | 1 << 16 | 5 << 32, 16, 6);
    let text = squeezed(&render(&snapshot(&toys.black_box), Options::default()));
    for words in [
        "io-rootfs rootfs was kicked 4 times",
        "io-rootfs read took 1.5 us for 4.0 KiB",
        "io-rootfs rootfs: No space left on device (os error 28) 0xff",
        "io-rootfs {nothing} {value:ns",
        "io-rootfs event 77, detail 2, device rootfs, length 5, address 0x10, value 6",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

#[test]
fn a_busy_thread_does_not_hide_what_a_silent_one_did_last() {
    let toys = Toys::new();
    toys.io_event(1 | 1 << 16, 0, 1);
    toys.io_event(1 | 1 << 16, 0, 2);
    for value in 0..100 {
        let at = Clock::process().ticks();
        toys.vcpu.flight.push(FlightEvent {
            at,
            what: 1,
            address: 0,
            value,
        });
    }
    let options = |events| Options { events, all: false };
    let text = render(&snapshot(&toys.black_box), options(5));
    let events = squeezed(text.split("The last 5 events of 102").nth(1).unwrap());
    let lines: Vec<&str> = events.lines().filter(|line| line.contains(" s ")).collect();
    assert_eq!(lines.len(), 6, "{events}");
    assert!(lines[0].ends_with("io-rootfs rootfs was kicked 2 times"));
    assert!(lines[5].ends_with("vcpu-0 hlt, 99 ns"), "{events}");
    let none = render(&snapshot(&toys.black_box), options(0));
    assert!(!none.contains("events of"));
}

#[test]
fn texts_of_the_file_act_on_no_terminal_and_no_browser() {
    let text = "kind\tvcpu\tvcpu\nfield\tvcpu\texits\t1\t0\t0\t2\t8\treason\t\u{9b}2J\n\
        section\tvcpu/\u{1b}[31m\tvcpu\t36864\t64\n\
        labels\tvcpu/\u{1b}[31m\treason\t\u{1b}]0;x\u{7},<script>\u{202e}\n\
        kind\t<b>&\t\nfield\t<b>&\t\u{7f}x\t1\t0\t0\t1\t0\t\t\nsection\t<b>&\t<b>&\t36864\t64\n";
    let mut bytes = with_directory(text);
    let id = offset_of!(crate::blackbox::Header, vm_id);
    bytes[id..id + 14].copy_from_slice(b"\x1b[2J<i>'\"&</i>");
    bytes[36864..36864 + 16].fill(1);
    let snapshot = Snapshot::from_bytes(&bytes).unwrap();
    let text = render(&snapshot, Options::default());
    assert!(text.contains("vCPU \\u{1b}[31m") && text.contains("<script>"));
    is_harmless(&text);
    let html = render_html(&snapshot, Options::default());
    is_harmless(&html);
    assert!(html.contains("&lt;script&gt;\\u{202e}") && html.contains("&lt;b&gt;&amp;"));
    assert!(html.contains("<title>VM _[2J&lt;i&gt;&#39;&quot;&amp;&lt;/i&gt;: failed</title>"));
    for tag in ["<script", "<i>", "<b>"] {
        assert!(!html.contains(tag), "{tag} in:\n{html}");
    }
    is_harmless(&render_top(&snapshot, &snapshot));
}

#[track_caller]
fn is_harmless(text: &str) {
    let harm = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(harm, None, "{text:?}");
    let direction = text.chars().find(|c| ('\u{202a}'..='\u{202e}').contains(c));
    assert_eq!(direction, None, "{text:?}");
    assert!(text.len() < 64 << 20, "{} bytes", text.len());
}

#[test]
fn a_page_ends_when_it_is_full() {
    let rows: Vec<String> = (0..4000)
        .map(|n| format!("{n}{}", "x".repeat(100)))
        .collect();
    let mut text = format!(
        "kind\tk\t\nfield\tk\tf\t1\t0\t0\t4000\t8\tl\t\nsection\tk\tk\t0\t{}\nlabels\tk\tl\t{}\n",
        4 << 20,
        rows.join(",")
    );
    for number in 0..20 {
        text.push_str(&format!("section\tk/{number}\tk\t0\t{}\n", 64 << 10));
        text.push_str(&format!("labels\tk/{number}\tl\t{}\n", rows.join(",")));
    }
    let mut bytes = vec![7; 64 << 10];
    bytes[..HEADER_BYTES].copy_from_slice(&genuine()[..HEADER_BYTES]);
    let place = offset_of!(crate::blackbox::Header, directory_offset);
    let words = [bytes.len(), text.len(), text.len()];
    for (word, to) in words.iter().zip(bytes[place..].chunks_exact_mut(8)) {
        to.copy_from_slice(&(*word as u64).to_le_bytes());
    }
    bytes.extend(text.as_bytes());
    let snapshot = Snapshot::from_bytes(&bytes).unwrap();
    assert_eq!(snapshot.sections.len(), 21);
    let text = render(&snapshot, Options::default());
    assert!(text.ends_with("\nThe report is full: what follows was left out.\n"));
    assert!((1 << 20..16 << 20).contains(&text.len()), "{}", text.len());
    let html = render_html(&snapshot, Options::default());
    assert!(html.contains("<p>The report is full: what follows was left out.</p>"));
}

#[test]
fn top_tells_what_happened_in_between() {
    let mut toys = Toys::new();
    toys.queue.service.record(900_000_000);
    let before = snapshot(&toys.black_box);
    std::thread::sleep(std::time::Duration::from_millis(50));
    toys.live();
    let later = snapshot(&toys.black_box);
    let text = squeezed(&render_top(&before, &later));
    let rate = |words: &str| -> f64 {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
        let rest = text.rsplit(words).next().unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let exits = rate("mmio_write ");
    assert!(exits > 0.5 && exits <= 20.0, "one in 50 ms or more: {text}");
    let requests = rate("\nrootfs/0 ");
    assert!(requests > exits * 2.0 && requests < exits * 4.0, "{text}");
    // The slow request was before.
    assert!(
        text.contains(" 32.8 us ") || text.contains(" 30.0 us "),
        "{text}"
    );
    assert!(text.contains("vCPU guest kernel handler halted waiting throttled blocked paused"));
    assert!(
        text.contains("Host's pressure, some / all, last 10 s: "),
        "{text}"
    );
    toys.black_box.finish(End::Failed, "it broke");
    let text = render_top(&later, &snapshot(&toys.black_box));
    assert!(text.starts_with("VM web-1: failed, "));
    assert!(text.contains("UTC: it broke."), "{text}");
    // In the wrong order, nothing happened.
    assert!(render_top(&later, &before).contains("over 0 ns"));
}

#[test]
fn of_sections_with_one_name_the_later_is_shown() {
    let mut toys = Toys::new();
    toys.queue.requests.add(1111);
    let newer: Block<Queue> = toys.black_box.section("queue/rootfs/0", &[]).unwrap();
    newer.requests.add(2222);
    let text = render(&snapshot(&toys.black_box), Options::default());
    assert!(text.contains("2222") && !text.contains("1111"), "{text}");
}

#[test]
fn queues_with_names_are_called_by_them() {
    let mut toys = Toys::new();
    let name = ["rx1".to_owned()];
    let labels: [(&str, &[String]); 1] = [("name", &name)];
    let queue: Block<Queue> = toys.black_box.section("queue/eth0/2", &labels).unwrap();
    queue.broken.inc();
    let now = snapshot(&toys.black_box);
    let text = render(&now, Options::default());
    assert!(text.contains("eth0/2 (rx1): broken by the guest"), "{text}");
    assert_eq!(text.matches("eth0/2 (rx1)").count(), 2, "{text}");
    assert!(!text.contains("rootfs/0 ("), "{text}");
    assert!(render_top(&now, &now).contains("eth0/2 (rx1)"));
}

fn all_forms(bytes: &[u8]) {
    let Ok(snapshot) = Snapshot::from_bytes(bytes) else {
        return;
    };
    let whole = Snapshot::from_bytes(&genuine()).unwrap();
    let options = Options {
        events: 100,
        all: true,
    };
    is_harmless(&render(&snapshot, options));
    is_harmless(&render_html(&snapshot, Options::default()));
    is_harmless(&render_top(&snapshot, &whole));
    is_harmless(&render_top(&whole, &snapshot));
    for (earlier, now) in [(&snapshot, &whole), (&whole, &snapshot)] {
        let seen = (Observation::of(earlier), Observation::of(now));
        let verdicts = diagnose(Some(&seen.0), &seen.1, &Thresholds::default());
        is_harmless(&render_diagnosis(now, &verdicts, false));
    }
    let _ = (since_realtime_ns(&snapshot), resident_bytes(&snapshot));
}

fn busy() -> Vec<u8> {
    let mut toys = Toys::new();
    toys.live();
    toys.io_event(1, 2, 3);
    bytes_of(&toys.black_box)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_black_box_is_rendered(
        spots in proptest::collection::vec((0usize..20_000, any::<u8>()), 0..40),
        keep in 0usize..2_000_000,
    ) {
        let mut bytes = busy();
        for (at, value) in spots {
            bytes[at] = value;
        }
        all_forms(&bytes);
        bytes.truncate(keep);
        all_forms(&bytes);
    }

    #[test]
    fn any_numbers_are_rendered(words in proptest::collection::vec(any::<u64>(), 1..64)) {
        let mut bytes = busy();
        let directory = HEADER_BYTES + (128 << 10);
        let numbers = bytes[directory..].chunks_exact_mut(8);
        for (to, word) in numbers.zip(words.iter().cycle()) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        all_forms(&bytes);
    }

    #[test]
    fn any_directory_is_rendered(
        lines in proptest::collection::vec(
            "(kind|field|section|labels)(\t(vcpu|queue|flight|[0-9]{1,20}|[a-c,/{}\u{1b}]{0,4}|[1-5])){0,10}\n",
            0..60)
    ) {
        all_forms(&with_directory(&lines.concat()));
    }
}
