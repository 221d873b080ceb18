//! What the guest's kernel says on its console.

use super::*;
use crate::text::TextRing;

const KINDS: [&str; 9] = [
    "panic",
    "oops",
    "soft_lockup",
    "rcu_stall",
    "hung_task",
    "oom_kill",
    "io_error",
    "hard_lockup",
    "workqueue_lockup",
];

#[repr(C)]
struct Watch {
    messages: [Counter; 9],
    last_at: [Gauge; 9],
    excerpts: TextRing<1024>,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Watch {
    const KIND: &'static str = "console_watch";
    const INSTANCE: &'static [&'static str] = &["console"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("messages", Unit::None, offset_of!(Watch, messages), "M.").column(9, 8, "message"),
        Field::gauge("last_at", Unit::Ticks, offset_of!(Watch, last_at), "L.").column(9, 8, "message"),
        Field::text::<1024>("excerpts", offset_of!(Watch, excerpts), "E."),
    ];
}

#[repr(C)]
struct Drive {
    operations: [Counter; 2],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Drive {
    const KIND: &'static str = "device";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("operations", Unit::None, offset_of!(Drive, operations), "O.").column(2, 8, "operation"),
    ];
}

#[repr(C)]
struct Pvpanic {
    told: [Counter; 2],
    first_at: [Gauge; 2],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Pvpanic {
    const KIND: &'static str = "pvpanic";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("told", Unit::None, offset_of!(Pvpanic, told), "T.").column(2, 8, "panic"),
        Field::gauge("first_at", Unit::Ticks, offset_of!(Pvpanic, first_at), "F.").column(2, 8, "panic"),
    ];
}

/// Puts the device into a world, which was told of a row's kind at `ns`.
fn told(world: &mut World, row: usize, ns: u64) {
    let kinds = names(&["panicked", "crash_loaded"]);
    let placed = world.black_box.section("pvpanic", &[("panic", &kinds)]);
    let pvpanic: Block<Pvpanic> = placed.unwrap();
    pvpanic.told[row].inc();
    pvpanic.first_at[row].set(world.ticks(ns));
}

/// A made-up VM with these drives, and the watch on its console.
fn world(drives: &[&str]) -> (World, Block<Watch>) {
    let mut world = World::new();
    let kinds = names(&KINDS);
    let place = world
        .black_box
        .section("console_watch/serial", &[("message", &kinds)]);
    let operations = names(&["read", "flush"]);
    for drive in drives {
        let name = format!("device/{drive}");
        let placed = world
            .black_box
            .section(&name, &[("operation", &operations)]);
        let _: Block<Drive> = placed.unwrap();
    }
    (world, place.unwrap())
}

/// The guest says `lines` at `ns`, of which a message of `kind` is the last or the one before.
fn says(world: &World, watch: &Watch, kind: &str, ns: u64, lines: &str) {
    let row = KINDS.iter().position(|there| *there == kind).unwrap();
    watch.messages[row].inc();
    watch.last_at[row].set(world.ticks(ns));
    watch.excerpts.push(lines.as_bytes());
}

/// What is said at 200 s of a guest that said this at 100 s.
fn judged(kind: &str, lines: &str) -> Vec<Verdict> {
    let (world, watch) = world(&["root"]);
    says(&world, &watch, kind, 100 * S, lines);
    diagnose(None, &world.seen(200 * S), &Thresholds::default())
}

fn subjects(verdicts: &[Verdict]) -> Vec<(&str, &str)> {
    let of = |verdict: &'_ Verdict| verdict.code.name();
    let all = verdicts.iter();
    all.map(|verdict| (of(verdict), verdict.subject.as_str()))
        .collect()
}

#[test]
fn a_panic_is_told_with_its_words_for_as_long_as_the_black_box_is_there() {
    let words = "[    2.345678] Kernel panic - not syncing: Attempted to kill init!";
    let (world, watch) = world(&[]);
    let lines = format!("before\n{words}\x1b\nafter\n");
    says(&world, &watch, "panic", 100 * S, &lines);
    says(&world, &watch, "oops", 100 * S, "BUG: unable to handle\n");
    world
        .black_box
        .finish(crate::blackbox::End::Clean, "reset by the guest");
    let verdicts = diagnose(None, &world.seen(9000 * S), &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("guest-panic", "vm")]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    // A control character does not get through.
    assert_eq!(*fact(&verdicts[0], "line"), Fact::Text(format!("{words} ")));
    assert_eq!(*fact(&verdicts[0], "panics"), Fact::Number(1));
    assert_eq!(*fact(&verdicts[0], "oopses"), Fact::Number(1));
}

#[test]
fn a_panic_that_only_pvpanic_was_told_of_is_told_for_good() {
    let (mut world, _watch) = world(&[]);
    told(&mut world, 0, 100 * S);
    let now = world.seen(9000 * S);
    let verdicts = diagnose(None, &now, &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("guest-panic", "vm")]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    assert_eq!(*fact(&verdicts[0], "pvpanic"), Fact::Number(1));
    let age = now.at_ns - verdicts[0].since_ns;
    assert!((8899 * S..8901 * S).contains(&age), "{age}");
}

#[test]
fn a_panic_in_words_and_by_pvpanic_is_one_and_pvpanic_comes_first() {
    let (mut world, watch) = world(&[]);
    told(&mut world, 0, 100 * S);
    let words = "Kernel panic - not syncing: sysrq triggered crash";
    says(&world, &watch, "panic", 105 * S, &format!("{words}\n"));
    let verdicts = diagnose(None, &world.seen(200 * S), &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("guest-panic", "vm")]);
    let named: Vec<_> = verdicts[0].evidence.iter().map(|(name, _)| *name).collect();
    let all = [
        "pvpanic",
        "pvpanic_crash_loaded",
        "line",
        "panics",
        "oopses",
    ];
    assert_eq!(named, all);
    assert_eq!(*fact(&verdicts[0], "line"), Fact::Text(words.to_owned()));
    assert!(verdicts[0].summary.contains("pvpanic"));
}

#[test]
fn a_guest_with_a_crash_kernel_goes_on_and_is_a_warning() {
    let (mut world, _watch) = world(&[]);
    told(&mut world, 1, 100 * S);
    let verdicts = diagnose(None, &world.seen(200 * S), &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("guest-panic", "vm")]);
    assert_eq!(verdicts[0].severity, Severity::Warning);
    assert!(verdicts[0].summary.contains("crash kernel"));
}

#[test]
fn an_oops_is_a_warning_for_a_while() {
    let (world, watch) = world(&[]);
    let lines = "[    1.0] BUG: soft lockup - CPU#0\n[    2.0] Oops: 0002 [#1] SMP\n";
    says(&world, &watch, "oops", 100 * S, lines);
    let at = |ns| diagnose(None, &world.seen(ns), &Thresholds::default());
    assert_eq!(subjects(&at(200 * S)), [("guest-panic", "vm")]);
    assert_eq!(at(200 * S)[0].severity, Severity::Warning);
    let line = Fact::Text("[    2.0] Oops: 0002 [#1] SMP".to_owned());
    assert_eq!(*fact(&at(200 * S)[0], "line"), line);
    assert_eq!(at(300 * S), []);
}

#[test]
fn what_does_not_go_on_is_a_vcpu_where_the_message_names_a_known_one() {
    let lockup = "[   1.2] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:2:77]\n";
    let verdicts = judged("soft_lockup", lockup);
    assert_eq!(subjects(&verdicts), [("vcpu-spin", "vcpu/0")]);
    assert_eq!(*fact(&verdicts[0], "cpu"), Fact::Number(0));
    assert_eq!(*fact(&verdicts[0], "soft_lockups"), Fact::Number(1));
    let line = Fact::Text(lockup.trim().to_owned());
    assert_eq!(*fact(&verdicts[0], "line"), line);

    for (kind, lines, subject) in [
        ("soft_lockup", "BUG: soft lockup - CPU#7 stuck\n", "vm"),
        // The line is no longer there.
        ("soft_lockup", "", "vm"),
        (
            "hung_task",
            "INFO: task sh:12 blocked for more than 120 seconds.\n",
            "vm",
        ),
        (
            "rcu_stall",
            "rcu: INFO: rcu_sched self-detected stall on CPU\n[ 21.0] rcu: \t0-....: (20999 ticks)\n",
            "vcpu/0",
        ),
        (
            "rcu_stall",
            "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 6 jiffies\n",
            "vcpu/0",
        ),
        (
            "rcu_stall",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\nrcu: 0 jiffies - a number\n",
            "vm",
        ),
    ] {
        let verdicts = judged(kind, lines);
        assert_eq!(subjects(&verdicts), [("vcpu-spin", subject)], "{lines}");
        assert_eq!(verdicts[0].severity, Severity::Warning);
    }
}

#[test]
fn a_hard_lockup_is_a_vcpu_without_interrupts_and_a_workqueue_lockup_a_stuck_one() {
    let hard = "[  30.1] watchdog: Watchdog detected hard LOCKUP on cpu 0\n";
    let pool =
        "[  40.2] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!\n";
    for (kind, lines, code, count) in [
        ("hard_lockup", hard, "vcpu-spin-irqs-off", "hard_lockups"),
        ("workqueue_lockup", pool, "vcpu-spin", "workqueue_lockups"),
    ] {
        let verdicts = judged(kind, lines);
        assert_eq!(subjects(&verdicts), [(code, "vcpu/0")]);
        // What it says may be over.
        assert_eq!(verdicts[0].severity, Severity::Warning);
        assert_eq!(*fact(&verdicts[0], count), Fact::Number(1));
        let line = Fact::Text(lines.trim().to_owned());
        assert_eq!(*fact(&verdicts[0], "line"), line);
    }
    for (kind, lines) in [
        ("hard_lockup", "Watchdog detected hard LOCKUP on cpu 7\n"),
        (
            "workqueue_lockup",
            "BUG: workqueue lockup - pool cpus=0-3 flags=0x4 nice=0 stuck for 33s!\n",
        ),
        ("workqueue_lockup", "BUG: workqueue lockup - pool cpus=0"),
    ] {
        assert_eq!(judged(kind, lines)[0].subject.as_str(), "vm", "{lines}");
    }
}

#[test]
fn two_messages_about_the_same_are_one_verdict() {
    let (world, watch) = world(&[]);
    let words = "BUG: soft lockup - CPU#0 stuck for 26s!\n";
    says(&world, &watch, "soft_lockup", 120 * S, words);
    let words = "INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-.... }\n";
    says(&world, &watch, "rcu_stall", 110 * S, words);
    let now = world.seen(200 * S);
    let verdicts = diagnose(None, &now, &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("vcpu-spin", "vcpu/0")]);
    assert_eq!(*fact(&verdicts[0], "rcu_stalls"), Fact::Number(1));
    let named: Vec<_> = verdicts[0].evidence.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, ["line", "cpu", "soft_lockups", "rcu_stalls"]);
    let age = now.at_ns - verdicts[0].since_ns;
    assert!((89 * S..91 * S).contains(&age), "{age}");
}

#[test]
fn a_kill_for_want_of_memory_is_told_with_the_process() {
    let killed = "[  9.9] Out of memory: Killed process 9 (eater) total-vm:1kB";
    let verdicts = judged("oom_kill", &format!("oom-kill:x\n{killed}\nnext\n"));
    assert_eq!(subjects(&verdicts), [("guest-oom", "vm")]);
    assert_eq!(*fact(&verdicts[0], "line"), Fact::Text(killed.to_owned()));
    assert_eq!(*fact(&verdicts[0], "kills"), Fact::Number(1));
}

#[test]
fn a_failed_device_is_the_drive_where_there_is_but_one() {
    let failed = "[ 61.0] I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x800\n";
    let verdicts = judged("io_error", failed);
    assert_eq!(subjects(&verdicts), [("drive-error", "device/root")]);
    assert_eq!(verdicts[0].severity, Severity::Error);
    let name = Fact::Text("vda".to_owned());
    assert_eq!(*fact(&verdicts[0], "guest_device"), name);
    let part = "Buffer I/O error on dev vda1, logical block 0, lost async page write\n";
    assert_eq!(judged("io_error", part)[0].subject.as_str(), "device/root");
    let other = "blk_update_request: I/O error, dev loop0, sector 0\n";
    assert_eq!(judged("io_error", other)[0].subject.as_str(), "vm");
    assert_eq!(judged("io_error", "")[0].subject.as_str(), "vm");

    let (world, watch) = world(&["root", "data"]);
    says(&world, &watch, "io_error", 100 * S, failed);
    let verdicts = diagnose(None, &world.seen(200 * S), &Thresholds::default());
    assert_eq!(subjects(&verdicts), [("drive-error", "vm")]);
}

#[test]
fn a_guest_that_says_nothing_of_the_kind_gets_no_verdict() {
    let (world, watch) = world(&["root"]);
    watch.excerpts.push(b"Kernel panic - not syncing: Oops\n");
    let verdicts = diagnose(None, &world.seen(S), &Thresholds::default());
    assert_eq!(verdicts, []);
}

#[test]
fn what_the_guest_said_is_shown_below_a_verdict_about_its_kernel() {
    for (kind, words, is_shown) in [
        ("panic", "Kernel panic - not syncing: Oops\n", true),
        ("oom_kill", "Out of memory: Killed process 7 (a)\n", true),
        ("io_error", "I/O error, dev vda, sector 8\n", false),
    ] {
        let (world, watch) = world(&["root"]);
        says(&world, &watch, kind, 100 * S, words);
        let snapshot = world.snapshot(200 * S);
        let verdicts = diagnose(None, &Observation::of(&snapshot), &Thresholds::default());
        let text = crate::report::render_diagnosis(&snapshot, &verdicts, true);
        let mut lines = text.lines();
        assert!(
            lines.any(|line| line.starts_with("  line ") && line.ends_with(words.trim())),
            "{text}"
        );
        let heading = "\nWhat the guest's kernel complained of\n";
        assert_eq!(text.contains(heading), is_shown, "{text}");
    }
}
