mod balloon;
mod console;
mod locks;
mod memory;
mod process;
mod stuck;

use std::mem::offset_of;

use super::*;
use crate::blackbox::{BlackBox, Block, Meta};
use crate::cell::{Counter, Gauge, Histogram};
use crate::clock::Ticks;
use crate::heartbeat::{Activity, Heartbeat};
use crate::host::{CgroupBlock, TaskBlock};
use crate::reader::Snapshot;
use crate::reader::tests::snapshot;
use crate::schema::{Field, FieldKind, Section, Unit};
use crate::sight::SightBlock;

const S: u64 = 1_000_000_000;

/// What the rules read of a vCPU: a small copy of the real section.
#[repr(C)]
struct Vcpu {
    heartbeat: Heartbeat,
    run: Counter,
    pauses: Counter,
    paused: Counter,
    handler: [Histogram; 2],
    exits: [Counter; 4],
    place_exits: [Counter; 2],
    place_ns: [Counter; 2],
}

const EXITS: [&str; 4] = ["io_in", "io_out", "shutdown", "internal_error"];

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Vcpu {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::lone("heartbeat", FieldKind::Heartbeat, Unit::Ticks, offset_of!(Vcpu, heartbeat), "Now."),
        Field::counter("run", Unit::Nanoseconds, offset_of!(Vcpu, run), "R."),
        Field::counter("pauses", Unit::None, offset_of!(Vcpu, pauses), "P."),
        Field::counter("paused", Unit::Nanoseconds, offset_of!(Vcpu, paused), "P."),
        Field::histogram("exit_handler", Unit::Nanoseconds, offset_of!(Vcpu, handler), "H.").column(2, size_of::<Histogram>(), "reason"),
        Field::counter("exits", Unit::None, offset_of!(Vcpu, exits), "E.").column(4, 8, "reason"),
        Field::counter("place_exits", Unit::None, offset_of!(Vcpu, place_exits), "E.").column(2, 8, "at"),
        Field::counter("place_handler", Unit::Nanoseconds, offset_of!(Vcpu, place_ns), "T.").column(2, 8, "at"),
    ];
}

#[repr(C)]
struct Kvm {
    sampled_at: Gauge,
    total: [Counter; 4],
    level: [Gauge; 1],
}

const TOTALS: [&str; 4] = ["exits", "halt_exits", "irq_injections", "halt_wait_ns"];

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Kvm {
    const KIND: &'static str = "kvm_vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(Kvm, sampled_at), "S."),
        Field::counter("total", Unit::None, offset_of!(Kvm, total), "T.").column(4, 8, "stat"),
        Field::gauge("level", Unit::None, offset_of!(Kvm, level), "L.").column(1, 8, "stat_now"),
    ];
}

#[derive(Default)]
#[repr(C)]
struct Queue {
    size: Gauge,
    in_flight: Gauge,
    oldest_since: Gauge,
    starved_since: Gauge,
    unread_completions: Gauge,
    last_interrupt_at: Gauge,
    lost_kicks: Counter,
    kicks: Counter,
    broken: Counter,
    broken_reason: Gauge,
    broken_since: Gauge,
    limited_wait: Counter,
    limited_since: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Queue {
    const KIND: &'static str = "queue";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("size", Unit::None, offset_of!(Queue, size), "S."),
        Field::gauge("in_flight", Unit::None, offset_of!(Queue, in_flight), "S."),
        Field::gauge("oldest_since", Unit::Ticks, offset_of!(Queue, oldest_since), "S."),
        Field::gauge("starved_since", Unit::Ticks, offset_of!(Queue, starved_since), "S."),
        Field::gauge("unread_completions", Unit::None, offset_of!(Queue, unread_completions), "S."),
        Field::gauge("last_interrupt_at", Unit::Ticks, offset_of!(Queue, last_interrupt_at), "S."),
        Field::counter("lost_kicks", Unit::None, offset_of!(Queue, lost_kicks), "S."),
        Field::counter("kicks", Unit::None, offset_of!(Queue, kicks), "S."),
        Field::counter("broken", Unit::None, offset_of!(Queue, broken), "S."),
        Field::gauge("broken_reason", Unit::None, offset_of!(Queue, broken_reason), "S."),
        Field::gauge("broken_since", Unit::Ticks, offset_of!(Queue, broken_since), "S."),
        Field::counter("limited_wait", Unit::Nanoseconds, offset_of!(Queue, limited_wait), "S."),
        Field::gauge("limited_since", Unit::Ticks, offset_of!(Queue, limited_since), "S."),
    ];
}

#[repr(C)]
struct Kick {
    sampled_at: Gauge,
    pending: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Kick {
    const KIND: &'static str = "kick";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(Kick, sampled_at), "S."),
        Field::gauge("pending", Unit::None, offset_of!(Kick, pending), "P."),
    ];
}

#[repr(C)]
struct Thread {
    heartbeat: Heartbeat,
    loops: Counter,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Thread {
    const KIND: &'static str = "thread";
    const INSTANCE: &'static [&'static str] = &["thread"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::lone("heartbeat", FieldKind::Heartbeat, Unit::Ticks, offset_of!(Thread, heartbeat), "Now."),
        Field::counter("loops", Unit::None, offset_of!(Thread, loops), "L."),
    ];
}

/// A made-up VM with one vCPU and one disk. Times are nanoseconds from the making of its black box.
struct World {
    black_box: BlackBox,
    vcpu: Block<Vcpu>,
    kvm: Block<Kvm>,
    task: Block<TaskBlock>,
    cgroup: Block<CgroupBlock>,
    queue: Block<Queue>,
    kick: Block<Kick>,
    io: Block<Thread>,
    sight: Block<SightBlock>,
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

impl World {
    fn new() -> Self {
        let meta = Meta {
            vm_id: "t".to_owned(),
            version: String::new(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let (exits, places) = (names(&EXITS), names(&["io_out 0x80", "io_in 0x71"]));
        let labels: [(&str, &[String]); 2] = [("reason", &exits), ("at", &places)];
        let vcpu = black_box.section("vcpu/0", &labels).unwrap();
        let (totals, level) = (names(&TOTALS), names(&["blocking"]));
        let labels: [(&str, &[String]); 2] = [("stat", &totals), ("stat_now", &level)];
        let kvm = black_box.section("kvm_vcpu/0", &labels).unwrap();
        let threads = names(&["vcpu-0", "io-disk"]);
        let task = black_box.section("task", &[("thread", &threads)]).unwrap();
        let events = crate::host::MEMORY_EVENTS.map(ToOwned::to_owned);
        let cgroup: Block<CgroupBlock> =
            black_box.section("cgroup", &[("event", &events)]).unwrap();
        cgroup.cpu_version.set(2);
        cgroup.memory_version.set(2);
        let faults = names(&["", "a ring of straw"]);
        let labels: [(&str, &[String]); 1] = [("broken", &faults)];
        let queue: Block<Queue> = black_box.section("queue/disk/0", &labels).unwrap();
        queue.size.set(256);
        let kick = black_box.section("kick/disk/0", &[]).unwrap();
        let io = black_box.section("thread/io-disk", &[]).unwrap();
        let sight = black_box.section("sight/0", &[]).unwrap();
        World {
            sight,
            vcpu,
            kvm,
            task,
            cgroup,
            queue,
            kick,
            io,
            black_box,
        }
    }

    /// The reading that the black box takes for `ns`, not a nanosecond beside it: rules compare with
    /// limits of whole seconds.
    fn ticks(&self, ns: u64) -> Ticks {
        let header = snapshot(&self.black_box).header;
        let wanted = header.created_monotonic_ns + ns;
        let (mut low, mut high) = (0, u64::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            if header.clock.monotonic_of(middle) < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The vCPU's thread does this from `ns` on.
    fn enter(&self, activity: Activity, ns: u64) {
        let now = self.ticks(ns);
        self.vcpu.heartbeat.set(activity, 1, 0, 0x80, now);
    }

    /// All that is sampled was sampled at `ns`.
    fn sampled(&self, ns: u64) {
        let now = self.ticks(ns);
        self.task.sampled_at.set(now);
        self.cgroup.sampled_at.set(now);
        self.kvm.sampled_at.set(now);
        self.kick.sampled_at.set(now);
    }

    fn snapshot(&self, ns: u64) -> Snapshot {
        let mut snapshot = snapshot(&self.black_box);
        snapshot.now_monotonic_ns = snapshot.header.created_monotonic_ns + ns;
        snapshot.writer_alive = Some(true);
        snapshot.header.pulse_monotonic_ns = Some(snapshot.now_monotonic_ns);
        snapshot
    }

    fn seen(&self, ns: u64) -> Observation {
        Observation::of(&self.snapshot(ns))
    }

    /// A second of a guest that runs: 0.9 s on a CPU.
    fn a_second_in_the_guest(&self, until: u64) {
        self.vcpu.run.add(S);
        self.task.rows[0].cpu_ns.add(9 * S / 10);
        self.task.rows[0].guest_ns.add(8 * S / 10);
        self.enter(Activity::InGuest, until);
        self.sampled(until);
    }

    /// What is said of the second from 10 s to 11 s, in which `happens`.
    fn said(&self, happens: impl Fn(&World)) -> Vec<Verdict> {
        self.vcpu.run.add(10 * S);
        self.task.rows[0].cpu_ns.add(9 * S);
        self.enter(Activity::InGuest, 10 * S);
        self.sampled(10 * S);
        let earlier = self.seen(10 * S);
        self.a_second_in_the_guest(11 * S);
        happens(self);
        diagnose(Some(&earlier), &self.seen(11 * S), &Thresholds::default())
    }
}

fn codes(verdicts: &[Verdict]) -> Vec<&'static str> {
    verdicts.iter().map(|verdict| verdict.code.name()).collect()
}

fn fact<'a>(verdict: &'a Verdict, name: &str) -> &'a Fact {
    let found = verdict.evidence.iter().find(|(there, _)| *there == name);
    &found.unwrap_or_else(|| panic!("no {name}: {verdict:#?}")).1
}

#[test]
fn a_busy_guest_gets_no_verdict() {
    assert_eq!(World::new().said(|_| ()), []);
}

#[test]
fn a_vcpu_that_waits_for_a_cpu_is_starved_or_throttled() {
    let starved = World::new().said(|world| world.task.rows[0].run_delay_ns.add(S / 2));
    assert_eq!(codes(&starved), ["vcpu-starved"]);
    assert_eq!(starved[0].subject.as_str(), "vcpu/0");
    let Fact::Real(share) = fact(&starved[0], "waiting_percent") else {
        panic!()
    };
    assert!((45.0..55.0).contains(share), "{share}");

    let throttled = World::new().said(|world| {
        world.task.rows[0].run_delay_ns.add(S / 2);
        world.cgroup.cpu_throttled_ns.add(S / 2);
    });
    assert_eq!(codes(&throttled), ["vcpu-throttled"]);
    // The CPU was with the disk's own thread: nobody takes it from the VM.
    let working = World::new().said(|world| {
        world.task.rows[0].run_delay_ns.add(S / 2);
        world.task.rows[1].cpu_ns.add(S / 2);
    });
    assert_eq!(working, []);
    // With a part of it only: what is told is all that the kernel says.
    let shared = World::new().said(|world| {
        world.task.rows[0].run_delay_ns.add(S / 2);
        world.task.rows[1].cpu_ns.add(S / 4);
    });
    assert_eq!(codes(&shared), ["vcpu-starved"]);
    let Fact::Real(share) = fact(&shared[0], "waiting_percent") else {
        panic!()
    };
    assert!((45.0..55.0).contains(share), "{share}");
    let little = World::new().said(|world| world.task.rows[0].run_delay_ns.add(S / 20));
    assert_eq!(little, []);
}

#[test]
fn a_handler_that_does_not_come_back_is_named_with_its_address() {
    let fine = World::new().said(|world| world.enter(Activity::InHandler, 10 * S + S / 2));
    assert_eq!(fine, []);
    let stuck = World::new().said(|world| world.enter(Activity::InHandler, 9 * S));
    assert_eq!(codes(&stuck), ["vcpu-in-handler"]);
    assert_eq!(*fact(&stuck[0], "address"), Fact::Number(0x80));
    assert_eq!(*fact(&stuck[0], "reason"), Fact::Text("io_out".to_owned()));
    assert_eq!(stuck[0].severity, Severity::Error);
}

#[test]
fn exits_at_one_address_that_flood_are_a_storm() {
    let storm = World::new().said(|world| world.vcpu.place_exits[0].add(80_000));
    assert_eq!(codes(&storm), ["exit-storm"]);
    let place = Fact::Text("io_out 0x80".to_owned());
    assert_eq!(*fact(&storm[0], "place"), place);
    // Slow exits are no storm, and many addresses are none either.
    let slow = World::new().said(|world| {
        world.vcpu.place_exits[0].add(100);
        world.vcpu.place_ns[0].add(9 * S / 10);
    });
    assert_eq!(slow, []);
    let spread = World::new().said(|world| {
        world.vcpu.place_exits[0].add(30_000);
        world.vcpu.place_exits[1].add(30_000);
    });
    assert_eq!(spread, []);
}

#[test]
fn halting_and_waking_all_the_time_is_a_storm_and_idling_is_none() {
    // The second has a tenth in which the thread sleeps.
    let halting = |halts: u64| {
        move |world: &World| {
            world.kvm.total[1].add(halts);
            world.kvm.total[2].add(halts);
            world.kvm.total[3].add(S / 10);
        }
    };
    let storm = World::new().said(halting(20_000));
    assert_eq!(codes(&storm), ["wake-storm"]);
    let rate = fact(&storm[0], "halts_per_second");
    assert!(matches!(rate, Fact::Real(rate) if (19_000.0..21_000.0).contains(rate)));
    assert_eq!(World::new().said(halting(300)), []);
}

#[test]
fn a_request_that_the_host_does_not_answer_stalls_the_queue() {
    let stalled = |since: u64| {
        move |world: &World| {
            world.queue.in_flight.set(3);
            world.queue.oldest_since.set(world.ticks(since));
            let now = world.ticks(since);
            world.io.heartbeat.set(Activity::InDevice, 0, 1, 0, now);
        }
    };
    assert_eq!(World::new().said(stalled(10 * S)), []);
    let verdicts = World::new().said(stalled(4 * S));
    assert_eq!(
        codes(&verdicts),
        ["queue-backend-stall", "vmm-thread-stuck"]
    );
    assert_eq!(verdicts[0].subject.as_str(), "device/disk/queue/0");
    assert_eq!(*fact(&verdicts[0], "in_flight"), Fact::Number(3));
    assert_eq!(verdicts[1].consequence_of, Some(verdicts[0].key()));
    assert_eq!(health(&verdicts), 50);
}

/// The row of `io-disk` in the section `task`.
const IO_ROW: usize = 1;

#[test]
fn a_thread_that_the_kernel_stopped_is_told_whatever_it_did() {
    for letter in [b't', b'T'] {
        let stopped = World::new();
        stopped.task.rows[IO_ROW].state.set(u64::from(letter));
        assert_eq!(codes(&stopped.said(|_| {})), ["vmm-thread-stuck"]);
        let vcpu = World::new();
        vcpu.task.rows[0].state.set(u64::from(letter));
        let verdicts = vcpu.said(|_| {});
        assert_eq!(verdicts[0].subject, Subject::thread("vcpu-0"));
    }
    let asleep = World::new();
    asleep.task.rows[IO_ROW].state.set(u64::from(b'S'));
    assert_eq!(asleep.said(|_| {}), []);
    let only_now = |world: &World| world.task.rows[IO_ROW].state.set(u64::from(b't'));
    assert_eq!(World::new().said(only_now), [], "one look is no proof");
}

#[test]
fn a_thread_that_waits_and_no_longer_looks_around_is_told() {
    let since = |second: u64| {
        let world = World::new();
        let at = world.ticks(second * S);
        world.io.heartbeat.set(Activity::Idle, 0, 0, 0, at);
        world
    };
    assert_eq!(codes(&since(5).said(|_| {})), ["vmm-thread-stuck"]);
    assert_eq!(since(7).said(|_| {}), [], "not for long enough");
    let moved = since(5).said(|world| world.io.loops.inc());
    assert_eq!(moved, [], "it looked around meanwhile");
}

#[test]
fn a_kick_that_nobody_takes_is_the_devices_fault_unless_it_is_at_work() {
    let kicked = |activity: Activity, letter: u8| {
        let world = World::new();
        world.kick.pending.set(1);
        let at = world.ticks(9 * S);
        world.io.heartbeat.set(activity, 0, 0, 0, at);
        world.task.rows[IO_ROW].state.set(u64::from(letter));
        world
    };
    let idle = kicked(Activity::Idle, b'S');
    assert_eq!(codes(&idle.said(|_| {})), ["queue-device-stall"]);
    let at_work = kicked(Activity::InDevice, b'D');
    assert_eq!(at_work.said(|_| {}), [], "the host's disk is slow");
    let stopped = kicked(Activity::InDevice, b't').said(|_| {});
    assert_eq!(codes(&stopped), ["vmm-thread-stuck", "queue-device-stall"]);
    let cause = (Code::VmmThreadStuck, Subject::thread("io-disk"));
    assert_eq!(stopped[1].consequence_of, Some(cause));
    let taken = kicked(Activity::Idle, b'S').said(|world| world.queue.kicks.inc());
    assert_eq!(taken, [], "another kick has come since");
    let read = kicked(Activity::Idle, b'S').said(|world| world.kick.pending.set(0));
    assert_eq!(read, []);
}

#[test]
fn kicks_and_rings_that_went_wrong_are_told() {
    let lost = World::new().said(|world| world.queue.lost_kicks.add(2));
    assert_eq!(codes(&lost), ["queue-lost-kick"]);
    assert_eq!(*fact(&lost[0], "lost_kicks"), Fact::Number(2));
    let world = World::new();
    world.queue.broken.inc();
    world.queue.broken_reason.set(1);
    world.queue.broken_since.set(world.ticks(7 * S));
    let broken = world.said(|_| {});
    assert_eq!(codes(&broken), ["queue-broken"], "and stays so");
    let reason = Fact::Text("a ring of straw".to_owned());
    assert_eq!(*fact(&broken[0], "reason"), reason);
    let world = World::new();
    world.queue.broken.inc();
    let reset = world.said(|world| world.queue.broken_since.set(0));
    assert_eq!(reset, [], "the driver has reset it");
    let unread = |looked: u64| {
        World::new().said(|world| {
            world.queue.unread_completions.set(5);
            world.queue.last_interrupt_at.set(world.ticks(8 * S));
            let at = world.ticks(looked);
            world.io.heartbeat.set(Activity::Idle, 0, 0, 0, at);
        })
    };
    assert_eq!(codes(&unread(10 * S)), ["queue-guest-not-reaping"]);
    assert_eq!(unread(8 * S), [], "nobody has looked since");
    let starved = World::new().said(|world| world.queue.starved_since.set(world.ticks(8 * S)));
    assert_eq!(codes(&starved), ["queue-rx-starved"]);
}

#[test]
fn a_queue_with_a_name_is_called_by_it() {
    let mut world = World::new();
    let called = names(&["rx1"]);
    let labels: [(&str, &[String]); 1] = [("name", &called)];
    let rx1: Block<Queue> = world.black_box.section("queue/eth0/2", &labels).unwrap();
    rx1.size.set(256);
    let starved = |world: &World| {
        for queue in [&rx1, &world.queue] {
            queue.starved_since.set(world.ticks(8 * S));
        }
    };
    let said = world.said(starved);
    let summary = |subject: &str| {
        let mut about = said.iter().filter(|one| one.subject.as_str() == subject);
        about.next().unwrap().summary.as_str()
    };
    assert!(summary("device/eth0/queue/2").starts_with("data for eth0 queue 2 (rx1) has"));
    assert!(summary("device/disk/queue/0").starts_with("data for disk queue 0 has"));
}

#[test]
fn waits_by_the_operators_limit_are_told_by_their_share() {
    let few = World::new().said(|world| world.queue.limited_wait.add(S / 10));
    assert_eq!(few, []);
    let many = World::new().said(|world| world.queue.limited_wait.add(S / 2));
    assert_eq!(codes(&many), ["queue-rate-limited"]);
    assert_eq!(many[0].severity, Severity::Info);
    assert_eq!(many[0].subject.as_str(), "device/disk/queue/0");
    assert_eq!(*fact(&many[0], "limited_percent"), Fact::Real(50.0));
    assert_eq!(*fact(&many[0], "waited_ns"), Fact::Number(S / 2));
    // A wait that goes on counts, and one from long ago does not count again.
    let goes_on = World::new().said(|world| world.queue.limited_since.set(world.ticks(10 * S)));
    assert_eq!(*fact(&goes_on[0], "limited_percent"), Fact::Real(100.0));
    let world = World::new();
    world.queue.limited_wait.add(100 * S);
    world.queue.limited_since.set(world.ticks(7 * S));
    let ended = world.said(|world| {
        world.queue.limited_wait.add(3 * S);
        world.queue.limited_since.set(0);
    });
    assert_eq!(ended, [], "it ended with the look before");
}

#[test]
fn a_storm_of_slow_exits_is_not_hidden_by_more_quick_ones() {
    let verdicts = World::new().said(|world| {
        world.vcpu.place_exits[0].add(20_000);
        world.vcpu.place_exits[1].add(6_000);
        world.vcpu.place_ns[1].add(7 * S / 10);
    });
    assert_eq!(codes(&verdicts), ["exit-storm"]);
    let place = Fact::Text("io_in 0x71".to_owned());
    assert_eq!(*fact(&verdicts[0], "place"), place);
}

#[test]
fn without_its_signals_a_rule_is_silent() {
    // An older black box: no KVM statistics, no scheduler, no cgroup.
    let meta = Meta {
        vm_id: "t".to_owned(),
        version: String::new(),
    };
    let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
    let exits = names(&EXITS);
    let vcpu: Block<Vcpu> = black_box.section("vcpu/0", &[("reason", &exits)]).unwrap();
    let earlier = Observation::of(&snapshot(&black_box));
    vcpu.run.add(S);
    let mut now = Observation::of(&snapshot(&black_box));
    now.at_ns = earlier.at_ns + S;
    assert_eq!(diagnose(Some(&earlier), &now, &Thresholds::default()), []);
}

#[test]
fn a_verdict_is_raised_once_stays_through_a_gap_and_is_cleared_once() {
    let world = World::new();
    let limits = Thresholds::default();
    let mut engine = Engine::default();
    let mut log = Vec::new();
    let mut step = |engine: &mut Engine, second: u64, starved: bool| {
        world.a_second_in_the_guest(second * S);
        if starved {
            world.task.rows[0].run_delay_ns.add(S / 2);
        }
        for change in engine.step(world.seen(second * S), &limits) {
            log.push(match change {
                Change::Raised(verdict) => format!("{second} + {}", verdict.code.name()),
                Change::Changed(verdict) => format!("{second} ~ {}", verdict.code.name()),
                Change::Cleared(verdict, _) => format!("{second} - {}", verdict.code.name()),
            });
        }
    };
    // Two looks start it; a gap of a second does not end it.
    for (second, starved) in [
        (1, false),
        (2, false),
        (3, true),
        (4, true),
        (5, false),
        (6, true),
    ] {
        step(&mut engine, second, starved);
    }
    assert_eq!(engine.worst(), Some(Severity::Warning));
    for second in 7..12 {
        step(&mut engine, second, false);
    }
    assert_eq!(log, ["4 + vcpu-starved", "9 - vcpu-starved"]);
    assert_eq!(engine.standing(), []);
}

/// As a guest at work was seen on a machine of one CPU, with its own disk's thread and with others.
#[test]
fn one_second_without_a_host_cpu_is_a_burst_and_two_are_starving() {
    let raised = |seconds: std::ops::Range<u64>| {
        let world = World::new();
        let mut engine = Engine::default();
        for second in 1..8 {
            world.a_second_in_the_guest(second * S);
            if seconds.contains(&second) {
                world.task.rows[0].run_delay_ns.add(421_323_043);
                world.task.rows[IO_ROW].cpu_ns.add(216_729_146);
            }
            engine.step(world.seen(second * S), &Thresholds::default());
        }
        codes(&engine.standing())
    };
    assert!(raised(6..7).is_empty());
    assert_eq!(raised(6..8), ["vcpu-starved"]);
}

#[test]
fn a_cause_that_one_look_does_not_show_explains_while_it_stands() {
    let world = World::new();
    let limits = Thresholds::default();
    let mut engine = Engine::default();
    world.kick.pending.set(1);
    let mut step = |second: u64, letter: u8| {
        world.task.rows[IO_ROW].state.set(u64::from(letter));
        world.a_second_in_the_guest(second * S);
        engine.step(world.seen(second * S), &limits);
        codes(&engine.standing())
    };
    for second in 1..4 {
        step(second, b't');
    }
    let both = ["vmm-thread-stuck", "queue-device-stall"];
    assert_eq!(step(4, b'S'), both);
    assert_eq!(health(&engine.standing()), 50, "one fault counts once");
}

#[test]
fn an_error_of_the_host_is_told_with_what_was_asked_and_where() {
    let seen = |count, at_ns| Observation {
        at_ns,
        host_errors: vec![observation::HostErrors {
            device: "disk".to_owned(),
            count,
            last_errno: 28,
            last_ns: Some(10 * S),
            last_operation: Some("write".to_owned()),
            last_sector: Some(2048),
        }],
        ..Observation::default()
    };
    let said = |before, after| {
        let (before, after) = (seen(before, 10 * S), seen(after, 11 * S));
        let mut all = diagnose(Some(&before), &after, &Thresholds::default());
        all.retain(|verdict| verdict.code == Code::DriveError);
        all
    };
    assert_eq!(said(3, 3), [], "no new one");
    let verdicts = said(1, 3);
    assert_eq!(verdicts.len(), 1);
    let told = &verdicts[0];
    assert_eq!(told.subject.as_str(), "device/disk");
    assert!(
        told.summary
            .contains("for a write at sector 2048: No space left"),
        "{}",
        told.summary
    );
    assert_eq!(*fact(told, "errors"), Fact::Number(2));
    assert_eq!(*fact(told, "operation"), Fact::Text("write".to_owned()));
    assert_eq!(*fact(told, "sector"), Fact::Number(2048));
}
