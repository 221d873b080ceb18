use std::sync::{Arc, Mutex};

use observe::reader::{Reader, Snapshot};
use observe::{BlackBox, Meta};
use proptest::prelude::*;

use super::*;

fn facts(line: &str) -> (MessageKind, Facts) {
    let message = message::message(line);
    let kind = message::kind_of(message).unwrap_or_else(|| panic!("nothing in {line:?}"));
    (kind, Facts::of(kind, message))
}

fn task(comm: &str, pid: u32) -> Facts {
    Facts {
        comm: Some(comm.to_owned()),
        pid: Some(pid),
        ..Facts::default()
    }
}

fn device(device: &str, sector: Option<u64>, operation: Option<&str>) -> Facts {
    Facts {
        device: Some(device.to_owned()),
        sector,
        operation: operation.map(ToOwned::to_owned),
        ..Facts::default()
    }
}

/// What kernels from 6.1 to 6.12 print, and what is read of it.
#[test]
fn messages_are_known_and_their_facts_read() {
    use MessageKind as Kind;
    let soft = |cpu, seconds, comm, pid| Facts {
        cpu: Some(cpu),
        seconds: Some(seconds),
        ..task(comm, pid)
    };
    let none = Facts::default;
    let cases = [
        (
            "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
            Kind::Panic,
            none(),
        ),
        (
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            Kind::Oops,
            none(),
        ),
        ("Oops: 0002 [#1] PREEMPT SMP NOPTI", Kind::Oops, none()),
        (
            "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            Kind::Oops,
            none(),
        ),
        (
            "general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
            Kind::Oops,
            none(),
        ),
        ("kernel BUG at mm/slub.c:448!", Kind::Oops, none()),
        (
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:2:77]",
            Kind::SoftLockup,
            soft(1, 26, "kworker/1:2", 77),
        ),
        (
            "BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]",
            Kind::SoftLockup,
            soft(0, 22, "sh", 1),
        ),
        (
            "watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3",
            Kind::HardLockup,
            Facts {
                cpu: Some(3),
                ..none()
            },
        ),
        (
            "NMI watchdog: Watchdog detected hard LOCKUP on cpu 2",
            Kind::HardLockup,
            Facts {
                cpu: Some(2),
                ..none()
            },
        ),
        (
            "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 35s!",
            Kind::WorkqueueLockup,
            Facts {
                cpu: Some(1),
                seconds: Some(35),
                ..none()
            },
        ),
        (
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            Kind::RcuStall,
            none(),
        ),
        (
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            Kind::RcuStall,
            none(),
        ),
        (
            "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... } 22 jiffies",
            Kind::RcuStall,
            none(),
        ),
        (
            "INFO: task kworker/u4:1:33 blocked for more than 120 seconds.",
            Kind::HungTask,
            Facts {
                seconds: Some(120),
                ..task("kworker/u4:1", 33)
            },
        ),
        (
            "Out of memory: Killed process 812 (my) app) total-vm:1kB, anon-rss:2kB",
            Kind::OomKill,
            task("my) app", 812),
        ),
        (
            "Memory cgroup out of memory: Killed process 9 (tail) total-vm:1kB",
            Kind::OomKill,
            task("tail", 9),
        ),
        (
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task_memcg=/,task=tail,pid=9,uid=0",
            Kind::OomKill,
            task("tail", 9),
        ),
        (
            "I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1",
            Kind::IoError,
            device("vda", Some(2048), Some("WRITE")),
        ),
        (
            "blk_update_request: I/O error, dev vdb, sector 18446744073709551615",
            Kind::IoError,
            device("vdb", Some(u64::MAX), None),
        ),
        (
            "critical target error, dev sda, sector 0 op 0x3:(DISCARD) flags 0x0",
            Kind::IoError,
            device("sda", Some(0), Some("DISCARD")),
        ),
        (
            "Buffer I/O error on dev vda, logical block 0, async page read",
            Kind::IoError,
            device("vda", None, None),
        ),
        (
            "EXT4-fs (vda1): Remounting filesystem read-only",
            Kind::ReadOnlyRemount,
            device("vda1", None, None),
        ),
        ("Call Trace:", Kind::CallTrace, none()),
    ];
    for (text, kind, expected) in cases {
        for before in [
            "",
            "[    1.234567] ",
            "<3>",
            "[   61.000001][    T1] ",
            "debian login: [12345.678901] ",
        ] {
            assert_eq!(
                facts(&format!("{before}{text}")),
                (kind, expected.clone()),
                "{before}{text}"
            );
        }
    }
    for (kind, _) in MessageKind::ALL {
        assert!(cases_have(kind), "{kind:?}");
    }
    fn cases_have(kind: MessageKind) -> bool {
        MessageKind::ALL[kind as usize].0 == kind && !kind.name().is_empty()
    }
}

#[test]
fn what_others_say_is_no_message() {
    for line in [
        "",
        "[    0.000000] Linux version 6.12.0",
        "[    1.000000] traps: app[12] general protection fault ip:1 sp:2 error:0",
        "the Kernel panic - not syncing is a famous text",
        "[    1.000000] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---",
        "[    1.000000] rcu: Hierarchical RCU implementation.",
        "[    1.000000] rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.",
        "[    1.000000] watchdog: NMI not fully supported",
        "[1.0] BUG",
        "app: some error, dev vda, sector 1",
        "[[[[[[[[",
    ] {
        assert_eq!(message::kind_of(message::message(line)), None, "{line}");
    }
}

/// A watch, and what it was told.
struct Bench {
    watch: ConsoleWatch,
    told: Arc<Mutex<Vec<GuestMessage>>>,
    black_box: BlackBox,
}

fn bench() -> Bench {
    let meta = Meta {
        vm_id: "test".into(),
        version: "0".into(),
    };
    let mut black_box = BlackBox::anonymous(BlackBox::capacity_for(64 << 10), &meta).unwrap();
    let block = WatchBlock::place(&mut black_box).unwrap();
    let told: Arc<Mutex<Vec<GuestMessage>>> = Arc::default();
    let heard = Arc::clone(&told);
    let on_message = Box::new(move |message| heard.lock().unwrap().push(message));
    Bench {
        watch: ConsoleWatch::new(block, on_message),
        told,
        black_box,
    }
}

impl Bench {
    fn snapshot(&self) -> Snapshot {
        let reader = Reader::from_file(self.black_box.file().unwrap(), "test".into());
        reader.unwrap().snapshot().unwrap()
    }

    fn counted(&self, column: &str, kind: &str) -> u64 {
        let snapshot = self.snapshot();
        let section = snapshot.section("console_watch/serial").unwrap();
        section.table(column, kind).unwrap().as_u64().unwrap()
    }

    fn kept(&self, ring: &str) -> String {
        let snapshot = self.snapshot();
        let section = snapshot.section("console_watch/serial").unwrap();
        String::from_utf8(section.text(ring).unwrap().bytes).unwrap()
    }
}

#[test]
fn a_message_comes_with_the_lines_around_it_in_whatever_pieces_it_comes() {
    let text: String = (0..30)
        .map(|number| match number {
            12 => "\x1b[31m[    1.000000] I/O error, dev vda, sector 8\x1b[0m\r\n".to_owned(),
            _ => format!("line {number}\r\n"),
        })
        .collect();
    for piece in [1, 7, 5000] {
        let mut b = bench();
        for bytes in text.as_bytes().chunks(piece) {
            b.watch.feed(bytes);
        }
        let told = b.told.lock().unwrap().clone();
        let before: Vec<String> = (4..12).map(|number| format!("line {number}")).collect();
        let [message] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(message.line, "I/O error, dev vda, sector 8");
        assert_eq!(message.before, before);
        assert_eq!(b.counted("messages", "io_error"), 1);
        assert!(b.counted("last_at", "io_error") > 0);
        assert_eq!(
            (
                b.counted("messages", "panic"),
                b.counted("last_at", "panic")
            ),
            (0, 0)
        );
        assert_eq!(b.kept("output"), text);
        let excerpt = b.kept("excerpts");
        assert!(
            excerpt.starts_with("line 4\n") && excerpt.ends_with("line 20\n"),
            "{excerpt}"
        );
        assert_eq!(excerpt.lines().count(), 17);
    }
}

#[test]
fn an_oops_is_one_message_and_two_kills_are_two() {
    let mut b = bench();
    b.watch
        .feed(b"BUG: kernel NULL pointer dereference, address: 0\n#PF: x\nOops: 0002 [#1] SMP\n");
    assert_eq!(b.counted("messages", "oops"), 1);
    for pid in [7, 8] {
        let text = format!(
            "oom-kill:constraint=NONE,task=a,pid={pid},uid=0\nOut of memory: Killed process {pid} (a) total\n"
        );
        b.watch.feed(text.as_bytes());
    }
    assert_eq!(b.counted("messages", "oom_kill"), 2);
    b.watch.feed(&b"nothing\n".repeat(20));
    b.watch.feed(b"Oops: 0002 [#2] SMP\n");
    assert_eq!(b.counted("messages", "oops"), 2);
}

#[test]
fn a_flood_is_counted_and_not_told_and_hides_no_other_kind() {
    let mut b = bench();
    b.watch
        .feed(&b"I/O error, dev vda, sector 1\n".repeat(10_000));
    b.watch.feed(b"Kernel panic - not syncing: end");
    assert_eq!(b.counted("messages", "panic"), 0, "the line has no end yet");
    b.watch.end();
    let told = b.told.lock().unwrap().len();
    assert_eq!(told, TOLD as usize + 1);
    assert_eq!(b.counted("messages", "io_error"), 10_000);
    assert_eq!(b.counted("untold", "io_error"), 10_000 - u64::from(TOLD));
    assert_eq!(b.counted("messages", "panic"), 1);
    assert!(
        b.kept("excerpts")
            .ends_with("Kernel panic - not syncing: end\n")
    );
    let mut window = Window::default();
    let admitted = (0..20).filter(|_| window.admits(1)).count();
    assert_eq!(admitted, TOLD as usize);
    assert!(window.admits(1 + WINDOW_NS));
}

#[test]
fn neither_long_lines_nor_broken_escape_codes_hide_a_message() {
    let mut b = bench();
    b.watch.feed(&[b'x'; 100_000]);
    b.watch.feed(b"\nBUG: first\n");
    b.watch
        .feed(b"\x1b]0;a title without an end\nKernel panic - not syncing: second\n");
    b.watch.feed(b"\x1b[1;31\nCall Trace:\n\x1b(B\x00\xff\xfe\nwatchdog: BUG: soft lockup - CPU#99999999999 stuck\n");
    let told = b.told.lock().unwrap().clone();
    let kinds: Vec<&str> = told.iter().map(|message| message.kind.name()).collect();
    assert_eq!(kinds, ["oops", "panic", "call_trace", "soft_lockup"]);
    assert_eq!(told[0].before, ["x".repeat(lines::LINE_BYTES)]);
    assert_eq!(told[3].facts, Facts::default());
}

proptest! {
    #[test]
    fn whatever_a_guest_says_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        fuzz_entry(&bytes);
        let mut b = bench();
        b.watch.feed(&bytes);
        b.watch.end();
        let snapshot = b.snapshot();
        let output = snapshot.section("console_watch/serial").unwrap().text("output").unwrap();
        prop_assert_eq!(output.bytes, bytes);
    }

    #[test]
    fn whatever_surrounds_the_words_never_panics(
        words in "(\\[ {0,3}[0-9]{0,3}\\.[0-9]{5,7}\\]|<[0-9]{1,4}>|\x1b\\[|\n|BUG: soft lockup - CPU#|stuck for |I/O error, dev |, sector | op |[():,!]|[0-9]{1,21}|task |INFO: | for more than |oom-kill:|,task=|,pid=|rocess |é){0,30}"
    ) {
        fuzz_entry(words.as_bytes());
    }
}
