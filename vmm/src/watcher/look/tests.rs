use std::collections::VecDeque;

use observe::reader::{Reader, Snapshot};
use observe::{BlackBox, Meta};

use super::*;
use crate::inspect::Vectors;
use crate::watcher::judge::Judging;

/// A vCPU that is looked into without a VM: what it is found at is written beforehand.
#[derive(Default)]
struct Script {
    answers: VecDeque<Result<VcpuView, Missed>>,
    asked: Vec<bool>,
}

impl Eye for Script {
    fn look(&mut self, _: u8, within: Duration, names: bool) -> Result<Found, Missed> {
        assert!(within <= DEADLINE);
        self.asked.push(names);
        let view = self.answers.pop_front().expect("one look too many")?;
        let names = names.then(|| ("spins+0x4/0x20".to_owned(), "? caller+0x1/0x2".to_owned()));
        Ok(Found { view, names })
    }
}

struct Bench {
    black_box: BlackBox,
    looker: Looker<Script>,
    now: Signals,
}

impl Bench {
    fn new(answers: impl IntoIterator<Item = Result<VcpuView, Missed>>) -> Self {
        let meta = Meta {
            vm_id: "test".to_owned(),
            version: String::new(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let block = black_box.section("sight/0", &[]).unwrap();
        let eye = Script {
            answers: answers.into_iter().collect(),
            asked: Vec::new(),
        };
        let vcpu = Watched::with(0, None, block);
        Bench {
            looker: Looker::new(eye, vec![vcpu], Arc::default()),
            black_box,
            now: Signals {
                at: Clock::process().ticks(),
                exits: 1,
                ..Signals::default()
            },
        }
    }

    /// A round a second later, of which `change` tells what the signals were.
    fn second(&mut self, change: impl Fn(&mut Signals)) -> &mut Self {
        let clock = Clock::process();
        // 1.02 s, in the clock's ticks.
        let (rate, ..) = clock.anchor();
        let ticks = (u128::from(S * 51 / 50) << 32) / u128::from(rate);
        self.now.at += u64::try_from(ticks).unwrap();
        change(&mut self.now);
        let now = self.now;
        for vcpu in &mut self.looker.vcpus {
            vcpu.judge(now, clock);
        }
        if self.looker.is_on() {
            self.looker.look(&|| now.at, clock);
        }
        self
    }

    fn seconds(&mut self, count: usize, change: impl Fn(&mut Signals)) -> &mut Self {
        for _ in 0..count {
            self.second(&change);
        }
        self
    }

    fn looks(&self) -> usize {
        self.looker.eye.asked.len()
    }

    fn seen(&self) -> Snapshot {
        let file = self.black_box.file().unwrap();
        let reader = Reader::from_file(file, "test".into()).unwrap();
        reader.snapshot().unwrap()
    }

    fn gauge(&self, field: &str) -> u64 {
        self.seen()
            .section("sight/0")
            .unwrap()
            .gauge(field)
            .unwrap()
    }

    fn text(&self, field: &str) -> String {
        self.seen()
            .section("sight/0")
            .unwrap()
            .words(field)
            .unwrap()
    }
}

const IF: u64 = 1 << 9;

fn at(rip: u64, rflags: u64, mp_state: u32) -> VcpuView {
    VcpuView {
        rip,
        rflags,
        mp_state,
        cs_long: true,
        ..VcpuView::default()
    }
}

fn halted(signals: &mut Signals) {
    signals.is_blocking = true;
}

fn deaf(signals: &mut Signals) {
    signals.is_blocking = false;
    signals.busy_ns += S * 51 / 50;
}

fn busy(signals: &mut Signals) {
    deaf(signals);
    signals.interrupts += 250;
}

fn working(signals: &mut Signals) {
    deaf(signals);
    signals.halts += 5;
}

#[test]
fn a_guest_that_works_or_wakes_now_and_then_is_not_looked_into() {
    let mut bench = Bench::new([]);
    bench.seconds(20, working);
    bench.seconds(20, |signals| {
        halted(signals);
        signals.halts += 2;
        signals.interrupts += 2;
    });
    assert_eq!((bench.looks(), bench.gauge("suspicion")), (0, 0));
}

#[test]
fn a_halt_that_lasts_is_looked_into_at_once_and_if_it_is_healthy_seldom() {
    let idle = || Ok(at(0x1000, IF, 3));
    let mut bench = Bench::new((0..9).map(|_| idle()));
    // The first second has no second before it, the next begins a suspicion.
    bench.seconds(3, halted);
    assert_eq!((bench.looks(), bench.gauge("suspicion")), (1, 1));
    bench.seconds(9, halted);
    assert_eq!(bench.looks(), 2);
    assert_eq!(
        (bench.gauge("interrupts_on"), bench.gauge("mp_state")),
        (1, 3)
    );
    // It wakes and halts again: looked into when that has lasted for two seconds.
    bench.second(working).seconds(2, halted);
    assert_eq!(bench.looks(), 2);
    bench.second(halted);
    assert_eq!(bench.looks(), 3);
}

#[test]
fn a_halt_with_interrupts_off_is_looked_into_each_second_and_named_once() {
    let mut bench = Bench::new((0..30).map(|_| Ok(at(0x1000, 0, 3))));
    bench.seconds(6, halted);
    assert_eq!(bench.looker.eye.asked, [false, true, false, false, false]);
    assert_eq!(
        (bench.gauge("alike"), bench.gauge("changed_registers")),
        (5, 0)
    );
    assert_eq!(bench.text("place"), "spins+0x4/0x20");
    bench.seconds(30, halted);
    assert!((12..=16).contains(&bench.looks()), "{}", bench.looks());
    // What was seen goes with the suspicion.
    bench.second(working);
    assert_eq!(
        (bench.gauge("alike"), bench.gauge("suspected_since")),
        (0, 0)
    );
}

#[test]
fn a_spin_is_named_at_the_third_look_and_its_window_is_kept() {
    let mut registers = [7; 16];
    let looks = [0x1000, 0x1008, 0x1004, 0x1002].map(|rip| {
        registers[0] += 1;
        Ok(VcpuView {
            general: registers,
            requested: Vectors([0, 0, 0, 0, 0, 0, 0, 1 << 12]),
            ..at(rip, 0, 0)
        })
    });
    let mut bench = Bench::new(looks);
    bench.seconds(5, deaf);
    assert_eq!(bench.looker.eye.asked, [false, false, true, false]);
    assert_eq!(
        (bench.gauge("rip_low"), bench.gauge("rip_high")),
        (0x1000, 0x1008)
    );
    assert_eq!(
        (bench.gauge("alike"), bench.gauge("changed_registers")),
        (4, 1)
    );
    assert_eq!(
        (bench.gauge("pending_vector"), bench.gauge("pending_looks")),
        (0xEC, 4)
    );
    assert_eq!(bench.text("stack"), "? caller+0x1/0x2");
}

#[test]
fn a_look_that_meets_an_interrupt_is_repeated_and_ends_nothing() {
    let spin = |rip| Ok(at(rip, IF, 0));
    let handler = || Ok(at(0x90_0000, 0, 0));
    // The first round takes two looks, the second meets it at the second try, the third not at all, the
    // fourth at once.
    let looks = [
        spin(0x1000),
        spin(0x1004),
        handler(),
        spin(0x1002),
        handler(),
        handler(),
        handler(),
        spin(0x1008),
    ];
    let mut bench = Bench::new(looks);
    bench.seconds(3, busy);
    let sampled_at = bench.gauge("sampled_at");
    assert_eq!((bench.looks(), bench.gauge("alike")), (4, 3));
    assert_eq!(bench.text("place"), "spins+0x4/0x20");
    bench.second(busy);
    assert_eq!((bench.looks(), bench.gauge("alike")), (7, 3));
    assert_eq!(bench.gauge("sampled_at"), sampled_at);
    assert_eq!(
        (bench.gauge("rip"), bench.gauge("interrupts_on")),
        (0x1002, 1)
    );
    bench.second(busy);
    assert_eq!(bench.gauge("alike"), 4);
    assert_eq!(
        (bench.gauge("rip_low"), bench.gauge("rip_high")),
        (0x1000, 0x1008)
    );
}

#[test]
fn a_first_look_that_meets_an_interrupt_costs_no_round() {
    let (spin, handler) = (at(0x1000, IF, 0), at(0x90_0000, 0, 0));
    let mut bench = Bench::new([handler, spin.clone(), spin.clone(), spin].map(Ok));
    bench.seconds(2, busy);
    assert_eq!((bench.looks(), bench.gauge("alike")), (3, 2));
    bench.second(busy);
    assert_eq!((bench.looks(), bench.gauge("alike")), (4, 3));
    assert_eq!(bench.gauge("interrupts_on"), 1);
}

#[test]
fn a_wait_for_a_cpu_that_is_counted_late_ends_no_suspicion() {
    let spin = || Ok(at(0x1000, IF, 0));
    let waits = |percent: u64| {
        move |signals: &mut Signals| {
            signals.busy_ns += S * 51 / 50 / 100 * percent;
            signals.interrupts += 9;
        }
    };
    let mut bench = Bench::new((0..20).map(|_| spin()));
    bench.seconds(6, waits(100));
    let alike = bench.gauge("alike");
    // Of this second a third is counted with the next one.
    bench.second(waits(65));
    assert_eq!(
        (bench.gauge("suspicion"), bench.gauge("alike")),
        (3, alike + 1)
    );
    bench.second(waits(135));
    assert_eq!(bench.gauge("alike"), alike + 2);
    // One that sleeps does not run.
    bench.second(waits(20));
    assert_eq!((bench.gauge("suspicion"), bench.gauge("alike")), (0, 0));
    let mut halts = Bench::new((0..20).map(|_| spin()));
    halts.seconds(6, waits(100)).second(|signals| {
        waits(65)(signals);
        signals.halts += 1;
    });
    assert_eq!(halts.gauge("suspicion"), 0);
}

#[test]
fn interrupts_without_end_are_no_interrupts_of_a_loop() {
    let looks = [at(0x1000, IF, 0), at(0x1004, IF, 0)].into_iter();
    let looks = looks.chain((0..20).map(|_| at(0x90_0000, 0, 0))).map(Ok);
    let mut bench = Bench::new(looks);
    bench.seconds(8, busy);
    assert_eq!(
        (bench.gauge("rip"), bench.gauge("interrupts_on")),
        (0x90_0000, 0)
    );
    assert!(bench.gauge("alike") >= 2);
    // What is found with interrupts off from the beginning is looked into once a round.
    let mut off = Bench::new((0..20).map(|_| Ok(at(0x1000, 0, 0))));
    off.seconds(6, deaf);
    assert_eq!((off.looks(), off.gauge("alike")), (5, 5));
}

#[test]
fn work_in_the_kernel_or_in_user_space_is_looked_into_every_other_second() {
    let rips = (0..20).map(|look| Ok(at(0x1000 + look * 0x10_0000, IF, 0)));
    let mut kernel = Bench::new(rips);
    kernel.seconds(21, busy);
    assert!((9..=12).contains(&kernel.looks()), "{}", kernel.looks());
    assert!(!kernel.looker.eye.asked.contains(&true));
    assert_eq!(kernel.gauge("alike"), 1);
    let user = (0..20).map(|_| {
        Ok(VcpuView {
            ring: 3,
            ..at(0x1000, IF, 0)
        })
    });
    let mut user = Bench::new(user);
    user.seconds(21, busy);
    assert!((9..=11).contains(&user.looks()), "{}", user.looks());
}

#[test]
fn who_does_not_answer_is_counted_and_left_alone_for_longer_and_longer() {
    let mut bench = Bench::new((0..9).map(|_| Err(Missed::Late)));
    bench.seconds(22, halted);
    // After 0, 1, 2, 4 and 8 rounds that were left out.
    assert_eq!(bench.looks(), 5);
    let seen = bench.seen();
    let section = seen.section("sight/0").unwrap();
    assert_eq!(section.counter("late"), Some(5));
    assert_eq!(
        (section.counter("looks"), section.gauge("sampled_at")),
        (Some(0), Some(0))
    );
}

#[test]
fn no_vcpu_is_looked_into_where_that_is_forbidden() {
    let mut bench = Bench::new([]);
    bench.looker.limits.set(Judging {
        look_into_vcpus: false,
        ..Judging::default()
    });
    bench.seconds(20, halted);
    assert_eq!((bench.looks(), bench.gauge("suspicion")), (0, 1));
}
