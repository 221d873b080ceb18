use std::mem::offset_of;

use super::*;
use crate::blackbox::{BlackBox, Block, Meta};
use crate::cell::{Counter, Gauge, Histogram};
use crate::clock::{Clock, Ticks};
use crate::heartbeat::{Activity, Heartbeat};
use crate::host::{CgroupBlock, TaskBlock};
use crate::reader::tests::snapshot;
use crate::schema::{Field, FieldKind, Section, Unit};
use proptest::prelude::*;

/// What the ledger reads of a vCPU.
#[repr(C)]
struct Vcpu {
    heartbeat: Heartbeat,
    run: Counter,
    pauses: Counter,
    paused: Counter,
    handler: [Histogram; 2],
    device: [Counter; 2],
}

const VCPU: [Field; 5] = [
    Field::lone(
        "heartbeat",
        FieldKind::Heartbeat,
        Unit::Ticks,
        offset_of!(Vcpu, heartbeat),
        "Now.",
    ),
    Field::counter("run", Unit::Nanoseconds, offset_of!(Vcpu, run), "Run."),
    Field::counter("pauses", Unit::None, offset_of!(Vcpu, pauses), "Pauses."),
    Field::histogram(
        "exit_handler",
        Unit::Nanoseconds,
        offset_of!(Vcpu, handler),
        "Handler.",
    )
    .column(2, size_of::<Histogram>(), "reason"),
    Field::counter(
        "device_handler",
        Unit::Nanoseconds,
        offset_of!(Vcpu, device),
        "Device.",
    )
    .column(2, 8, "device"),
];

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Vcpu {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = &[
        VCPU[0],
        VCPU[1],
        VCPU[2],
        VCPU[3],
        VCPU[4],
        Field::counter("paused", Unit::Nanoseconds, offset_of!(Vcpu, paused), "P."),
    ];
}

/// The same of a version that does not time pauses.
#[repr(C)]
struct OldVcpu(Vcpu);

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Section for OldVcpu {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = &VCPU;
}

#[repr(C)]
struct Kvm {
    total: [Counter; 4],
    level: [Gauge; 4],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Kvm {
    const KIND: &'static str = "kvm_vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    const FIELDS: &'static [Field] = &[
        Field::counter("total", Unit::None, offset_of!(Kvm, total), "T.").column(4, 8, "stat"),
        Field::gauge("level", Unit::None, offset_of!(Kvm, level), "L.").column(4, 8, "stat"),
    ];
}

const KVM_STATS: [&str; 4] = [
    "halt_wait_ns",
    "halt_poll_success_ns",
    "halt_poll_fail_ns",
    "blocking",
];

fn black_box() -> BlackBox {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    BlackBox::anonymous(256 << 10, &meta).unwrap()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn vcpu_labels() -> (Vec<String>, Vec<String>) {
    (owned(&["io_out", "mmio_write"]), owned(&["serial", "post"]))
}

fn kvm(black_box: &mut BlackBox, vcpu: usize) -> Block<Kvm> {
    let stats = owned(&KVM_STATS);
    black_box
        .section(&format!("kvm_vcpu/{vcpu}"), &[("stat", &stats)])
        .unwrap()
}

fn task(black_box: &mut BlackBox) -> Block<TaskBlock> {
    let threads = owned(&["vcpu-0", "other"]);
    black_box.section("task", &[("thread", &threads)]).unwrap()
}

/// A made-up black box with one vCPU. Times are in nanoseconds from its making.
struct World {
    black_box: BlackBox,
    vcpu: Block<Vcpu>,
    kvm: Block<Kvm>,
    task: Block<TaskBlock>,
    cgroup: Block<CgroupBlock>,
}

const S: u64 = 1_000_000_000;

impl World {
    fn new() -> Self {
        let mut black_box = black_box();
        let (reasons, devices) = vcpu_labels();
        let labels: [(&str, &[String]); 2] = [("reason", &reasons), ("device", &devices)];
        let vcpu = black_box.section("vcpu/0", &labels).unwrap();
        let kvm = kvm(&mut black_box, 0);
        let task = task(&mut black_box);
        let cgroup: Block<CgroupBlock> = black_box.section("cgroup", &[]).unwrap();
        cgroup.cpu_version.set(2);
        World {
            black_box,
            vcpu,
            kvm,
            task,
            cgroup,
        }
    }

    fn sampled(&self, ns: u64) {
        self.task.sampled_at.set(ticks(&self.black_box, ns));
        self.cgroup.sampled_at.set(ticks(&self.black_box, ns));
    }

    fn at(&self, ns: u64) -> Snapshot {
        at(&self.black_box, ns)
    }

    fn enter(&self, activity: Activity, reason: u8, ns: u64) {
        let now = ticks(&self.black_box, ns);
        self.vcpu.heartbeat.set(activity, reason, 0, 0, now);
    }
}

fn ticks(black_box: &BlackBox, ns: u64) -> Ticks {
    let (rate, base, base_ns) = Clock::process().anchor();
    let since_base = snapshot(black_box).header.created_monotonic_ns + ns - base_ns;
    base + u64::try_from((u128::from(since_base) << 32) / u128::from(rate)).unwrap()
}

fn at(black_box: &BlackBox, ns: u64) -> Snapshot {
    let mut snapshot = snapshot(black_box);
    snapshot.now_monotonic_ns = snapshot.header.created_monotonic_ns + ns;
    snapshot
}

/// Equal but for the rounding of ticks.
fn near(part: Option<u64>, ns: u64) -> bool {
    part.is_some_and(|part| part.abs_diff(ns) <= 100_000)
}

fn check_sum(account: &Account) {
    let known = i128::try_from(account.known_ns()).unwrap();
    assert_eq!(known + account.residue_ns, i128::from(account.wall_ns));
}

#[test]
fn a_whole_account_leaves_no_residue() {
    let world = World::new();
    world.vcpu.run.add(5 * S);
    world.task.rows[0].cpu_ns.add(3 * S);
    world.enter(Activity::InGuest, 0, 10 * S);
    world.sampled(10 * S);
    let earlier = world.at(10 * S);

    // Ten seconds: 8 s in KVM_RUN, of which 1 s goes on; 0.5 s in handlers; 1.5 s paused.
    world.vcpu.run.add(7 * S);
    world.vcpu.handler[0].record(S / 8);
    world.vcpu.handler[1].record(S / 8);
    world.vcpu.handler[1].record(S / 4);
    world.vcpu.device[0].add(S / 16);
    world.vcpu.pauses.inc();
    world.vcpu.paused.add(3 * S / 2);
    world.enter(Activity::InGuest, 0, 19 * S);
    // On a CPU 3.6 s: 0.5 s in handlers, 0.1 s polling, 2.5 s guest, so 0.5 s in the kernel.
    world.task.rows[0].cpu_ns.add(36 * S / 10);
    world.task.rows[0].guest_ns.add(25 * S / 10);
    world.task.rows[0].run_delay_ns.add(S);
    world.cgroup.cpu_throttled_ns.add(S / 4);
    // Asleep 5.4 s: 1.5 s paused, 3.6 s halted, so 0.3 s blocked.
    world.kvm.total[0].add(36 * S / 10);
    world.kvm.total[1].add(S / 20);
    world.kvm.total[2].add(S / 20);
    world.sampled(20 * S);
    let account = account(Some(&earlier), &world.at(20 * S), 0);

    check_sum(&account);
    assert!(near(Some(account.wall_ns), 10 * S));
    assert!(account.residue_ns.abs() < 100_000, "{account:#?}");
    let expected = [
        ("guest", 25 * S / 10),
        ("kernel", S / 2),
        ("handler", S / 2),
        ("halted", 37 * S / 10),
        ("waiting", 3 * S / 4),
        ("throttled", S / 4),
        ("fault", 0),
        ("blocked", 3 * S / 10),
        ("paused", 3 * S / 2),
    ];
    for ((name, part), (expected_name, ns)) in account.parts().into_iter().zip(expected) {
        assert_eq!(name, expected_name);
        assert!(near(part, ns), "{name}: {part:?}, not {ns}");
    }
    let by_reason = [
        ("io_out".to_owned(), S / 8),
        ("mmio_write".to_owned(), 3 * S / 8),
    ];
    assert_eq!(account.handler_by_reason, by_reason);
    assert_eq!(account.handler_by_device, [("serial".to_owned(), S / 16)]);
    assert_eq!((account.notes, account.halt_overlap_ns), (Vec::new(), 0));

    // With a major fault, what was blocked was the fault.
    world.task.rows[0].major_faults.inc();
    world.sampled(20 * S);
    let account = super::account(Some(&earlier), &world.at(20 * S), 0);
    check_sum(&account);
    assert!(near(account.fault_ns, 3 * S / 10), "{account:#?}");
    assert_eq!(account.blocked_ns, Some(0));
}

#[test]
fn samples_that_are_older_than_the_snapshot_are_scaled() {
    let world = World::new();
    world.enter(Activity::InGuest, 0, S);
    world.task.rows[0].cpu_ns.add(S / 10);
    world.sampled(S);
    let earlier = world.at(S + S / 2);
    // Always on a CPU: 8 s of 8 s sampled, seen over 10 s.
    world.task.rows[0].cpu_ns.add(8 * S);
    world.task.rows[0].guest_ns.add(8 * S);
    world.sampled(9 * S);
    let account = account(Some(&earlier), &world.at(11 * S + S / 2), 0);
    check_sum(&account);
    assert!(near(account.guest_ns, 10 * S), "{account:#?}");
    assert!(near(account.blocked_ns, 0));
    assert!(near(Some(account.lag_ns), 5 * S / 2));
}

#[test]
fn delays_after_wake_ups_are_not_counted_twice() {
    let world = World::new();
    world.enter(Activity::InGuest, 0, 0);
    world.task.rows[0].cpu_ns.add(2 * S);
    world.task.rows[0].run_delay_ns.add(3 * S);
    // Asleep 5 s, and KVM says 6 s: one of the 3 s of delay was after wake-ups.
    world.kvm.total[0].add(6 * S);
    world.sampled(10 * S);
    let account = account(None, &world.at(10 * S), 0);
    check_sum(&account);
    assert!(near(account.halted_ns, 5 * S), "{account:#?}");
    assert!(near(account.waiting_ns, 3 * S));
    assert!(near(account.kernel_ns, 2 * S));
    assert!(near(Some(account.halt_overlap_ns), S));
    assert!(account.residue_ns.abs() < 100_000);
}

#[test]
fn a_halt_that_goes_on_is_halted_and_not_blocked() {
    let world = World::new();
    world.enter(Activity::InGuest, 0, 0);
    world.task.rows[0].cpu_ns.add(S);
    world.sampled(10 * S);
    let blocked = account(None, &world.at(10 * S), 0);
    assert!(near(blocked.halted_ns, 0) && near(blocked.blocked_ns, 9 * S));
    world.kvm.level[3].set(1);
    let halted = account(None, &world.at(10 * S), 0);
    check_sum(&halted);
    assert!(near(halted.halted_ns, 9 * S) && near(halted.blocked_ns, 0));
}

#[test]
fn without_the_scheduler_the_residue_has_what_cannot_be_told() {
    let world = World::new();
    world.vcpu.run.add(9 * S);
    world.vcpu.handler[0].record(S);
    world.kvm.total[0].add(4 * S);
    let account = account(None, &world.at(10 * S), 0);
    check_sum(&account);
    assert_eq!(account.handler_ns, Some(S));
    assert_eq!(account.guest_ns.or(account.kernel_ns), None);
    assert_eq!(account.waiting_ns.or(account.throttled_ns), None);
    assert_eq!(account.blocked_ns, None);
    assert!(account.notes.contains(&Note::NoTask));
    let halted = account.halted_ns.unwrap_or(0);
    assert_eq!(account.residue_ns, i128::from(9 * S - halted));
}

#[test]
fn without_kvms_statistics_sleep_is_residue() {
    let mut black_box = black_box();
    let (reasons, devices) = vcpu_labels();
    let labels: [(&str, &[String]); 2] = [("reason", &reasons), ("device", &devices)];
    let vcpu: Block<OldVcpu> = black_box.section("vcpu/0", &labels).unwrap();
    let task = task(&mut black_box);
    vcpu.0.run.add(6 * S);
    vcpu.0
        .heartbeat
        .enter(Activity::Paused, ticks(&black_box, 6 * S));
    task.rows[0].cpu_ns.add(S);
    task.rows[0].run_delay_ns.add(S);
    task.sampled_at.set(ticks(&black_box, 10 * S));
    let account = account(None, &at(&black_box, 10 * S), 0);
    check_sum(&account);
    assert!(near(account.paused_ns, 4 * S), "{account:#?}");
    assert!(near(account.kernel_ns, S));
    assert!(near(account.waiting_ns, S));
    assert_eq!((account.halted_ns, account.blocked_ns), (None, None));
    assert_eq!(account.throttled_ns, None);
    assert!((account.residue_ns - i128::from(4 * S)).abs() < 100_000);
    assert_eq!(account.notes, [Note::NoKvm, Note::NoCgroup]);
}

#[test]
fn an_untimed_pause_that_ended_is_noted() {
    let mut black_box = black_box();
    let vcpu: Block<OldVcpu> = black_box.section("vcpu/0", &[]).unwrap();
    vcpu.0
        .heartbeat
        .enter(Activity::Paused, ticks(&black_box, 0));
    let paused = at(&black_box, S);
    let still = account(Some(&paused), &at(&black_box, 2 * S), 0);
    assert!(near(still.paused_ns, S) && !still.notes.contains(&Note::NoPaused));
    vcpu.0
        .heartbeat
        .enter(Activity::InGuest, ticks(&black_box, 2 * S));
    let ended = account(Some(&paused), &at(&black_box, 3 * S), 0);
    check_sum(&ended);
    assert_eq!(ended.paused_ns, Some(0));
    assert!(ended.notes.contains(&Note::NoPaused));
}

#[test]
fn a_stay_that_goes_on_is_counted_where_it_is() {
    let world = World::new();
    world.enter(Activity::InHandler, 1, 4 * S);
    let stuck = account(None, &world.at(10 * S), 0);
    check_sum(&stuck);
    let (name, ns) = stuck.handler_by_reason.first().unwrap();
    assert_eq!(name, "mmio_write");
    assert!(near(Some(*ns), 6 * S) && near(stuck.handler_ns, 6 * S));
    // The stay was there before: only the new part of it counts.
    let earlier = world.at(10 * S);
    let later = account(Some(&earlier), &world.at(12 * S), 0);
    assert!(near(later.handler_ns, 2 * S), "{later:#?}");
    assert!(later.residue_ns.abs() < 100_000);
}

#[test]
fn no_such_vcpu_is_all_residue() {
    let world = World::new();
    let account = account(None, &world.at(S), 7);
    assert_eq!(account.known_ns(), 0);
    assert_eq!(account.residue_ns, i128::from(S));
    assert!(account.notes.contains(&Note::NoVcpu));
    assert!(account.parts().iter().all(|(_, part)| part.is_none()));
    assert!(account.notes.iter().all(|note| !note.text().is_empty()));
}

#[test]
fn snapshots_in_the_wrong_order_account_for_nothing() {
    let world = World::new();
    world.vcpu.run.add(S);
    let (early, late) = (world.at(S), world.at(2 * S));
    let account = account(Some(&late), &early, 0);
    check_sum(&account);
    assert_eq!((account.wall_ns, account.residue_ns), (0, 0));
}

/// Numbers of a black box: run, paused, handlers, cpu, delay, guest, throttled, KVM's three.
fn apply(world: &World, n: &[u64; 10], state: usize, now: u64) {
    world.vcpu.run.add(n[0]);
    world.vcpu.paused.add(n[1]);
    world.vcpu.handler[0].record(n[2]);
    world.task.rows[0].cpu_ns.add(n[3]);
    world.task.rows[0].run_delay_ns.add(n[4]);
    world.task.rows[0].guest_ns.add(n[5]);
    world.cgroup.cpu_throttled_ns.add(n[6]);
    let kvm = world.kvm.total.iter().zip(&n[7..]);
    kvm.for_each(|(cell, ns)| cell.add(*ns));
    let (activity, _) = Activity::ALL[state];
    world.enter(activity, 0, now / 2);
    world.sampled(now);
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..20 * S, any::<u64>(), Just(0)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_parts_and_the_residue_are_the_wall_time(
        first in proptest::array::uniform10(number()),
        second in proptest::array::uniform10(number()),
        states in (0usize..8, 0usize..8),
        moments in (1..20 * S, 0..20 * S),
    ) {
        let world = World::new();
        apply(&world, &first, states.0, moments.0);
        let earlier = world.at(moments.0);
        let end = moments.0 + moments.1;
        apply(&world, &second, states.1, end);
        let later = world.at(end);
        check_sum(&account(Some(&earlier), &later, 0));
        check_sum(&account(None, &later, 0));
        check_sum(&account(None, &later, 1));
    }
}

/// What a vCPU thread does, with the scheduler's own numbers: 200 ms on a CPU, then 200 ms halted,
/// 100 ms asleep for no reason that anybody tells, and 100 ms paused. Other tests have threads of
/// other names.
#[test]
fn a_real_threads_time_is_told_as_it_spent_it() {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    let mut black_box = black_box();
    let (reasons, devices) = vcpu_labels();
    let labels: [(&str, &[String]); 2] = [("reason", &reasons), ("device", &devices)];
    let vcpu: Block<Vcpu> = black_box.section("vcpu/5", &labels).unwrap();
    let kvm = kvm(&mut black_box, 5);
    let mut sampler = crate::host::TaskSampler::new(&mut black_box, &["vcpu-5".into()]).unwrap();
    let (done, is_done) = channel();
    let (end, may_end) = channel::<()>();
    let clock = Clock::process();
    let earlier = at(&black_box, 0);
    let earlier = Snapshot {
        now_monotonic_ns: crate::clock::monotonic_ns(),
        ..earlier
    };
    let thread = std::thread::Builder::new().name("vcpu-5".into());
    let thread = thread.spawn(move || {
        let start = clock.ticks();
        vcpu.heartbeat.enter(Activity::InGuest, start);
        let burning = Instant::now();
        while burning.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        let halted = clock.ticks();
        std::thread::sleep(Duration::from_millis(200));
        kvm.total[0].add(clock.ns_between(halted, clock.ticks()));
        std::thread::sleep(Duration::from_millis(100));
        let paused = clock.ticks();
        vcpu.run.add(clock.ns_between(start, paused));
        vcpu.heartbeat.enter(Activity::Paused, paused);
        std::thread::sleep(Duration::from_millis(100));
        done.send(()).unwrap();
        let _ = may_end.recv();
    });
    is_done.recv().unwrap();
    sampler.sample();
    let account = account(Some(&earlier), &snapshot(&black_box), 5);
    drop(end);
    thread.unwrap().join().unwrap();

    check_sum(&account);
    let waiting = account.waiting_ns.unwrap();
    // Others may have had the CPU for a while, also after each sleep and before the start.
    let slack = 30_000_000 + waiting;
    let about =
        |part: Option<u64>, ms: u64| part.is_some_and(|part| part.abs_diff(ms * 1_000_000) < slack);
    let on_cpu = account.kernel_ns.unwrap() + account.guest_ns.unwrap();
    assert!(on_cpu + waiting >= 170_000_000, "{account:#?}");
    assert!(about(account.halted_ns, 200), "{account:#?}");
    assert!(about(account.blocked_ns, 100), "{account:#?}");
    assert!(about(account.paused_ns, 100), "{account:#?}");
    assert!(
        account.residue_ns.unsigned_abs() < u128::from(slack),
        "{account:#?}"
    );
}
