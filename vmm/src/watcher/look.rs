//! Looks into vCPUs that seem stuck, by the watcher, and into no others.
//!
//! The cheap [`signals`](super::signals) say which: one that was halted for the whole last second
//! without an interrupt, or that ran all the time and never left the guest. Such a vCPU is asked what
//! it does, through the `vm` thread, within [`DEADLINE`] for all of a round together. Who does not
//! answer is counted and left alone for a while: so the watcher never waits longer than that, not
//! even for a `vm` thread that is stuck.

mod streak;

use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use memory::GuestRam;
use observe::sight::{SightBlock, Suspicion};
use observe::{Block, Clock, Ticks};

use super::judge::Limits;
use super::signals::{SHORTEST_NS, SignalProbes, Signals, suspect};
use crate::driver::Message;
use crate::inspect::{self, Frame, Place, VcpuView};
use streak::Streak;

/// What all looks of a round may take together.
pub const DEADLINE: Duration = Duration::from_millis(100);
/// Looks of one round.
const MOST_LOOKS: usize = 8;
/// Looks that found the same are enough to know; from then on they are seldom.
const ENOUGH: u64 = 12;
/// How long after a look that met an interrupt, or that is the first of its kind, there is another in
/// the same round: the watcher wakes by a timer, as the guest does, and so they may meet round after
/// round.
const AGAIN: [Duration; 2] = [Duration::from_micros(1300), Duration::from_micros(2900)];
const S: u64 = 1_000_000_000;
/// Between two looks, a little less than a round or so many rounds.
const NEXT_ROUND_NS: u64 = SHORTEST_NS;
const RUNS_WELL_NS: u64 = 2 * S - S / 10;
const SELDOM_NS: u64 = 10 * S - S / 10;
/// A vCPU that is not yet started is none to look into so soon.
const STARTING_NS: u64 = 5 * S;

/// What a look finds.
#[derive(Debug, Default)]
pub struct Found {
    /// The registers.
    pub view: VcpuView,
    /// If names were asked for: where it is, and who called that.
    pub names: Option<(String, String)>,
}

/// Why a look found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// No answer in time.
    Late,
    /// KVM refused, or the VM is at its end.
    Refused,
}

/// What looks into vCPUs.
pub trait Eye: Send {
    /// Looks into vCPU `vcpu`; waits at most `within`.
    ///
    /// # Errors
    /// [`Missed`].
    fn look(&mut self, vcpu: u8, within: Duration, names: bool) -> Result<Found, Missed>;
}

/// The real one: asks the vCPU by way of the `vm` thread.
pub struct Inspection {
    inbox: Sender<Message>,
    ram: Weak<GuestRam>,
    kernel: OnceLock<inspect::Kernel>,
}

impl Inspection {
    /// Asks through `inbox`; names are read from `ram`.
    pub fn new(inbox: Sender<Message>, ram: Weak<GuestRam>) -> Self {
        Inspection {
            inbox,
            ram,
            kernel: OnceLock::new(),
        }
    }
}

impl Eye for Inspection {
    fn look(&mut self, vcpu: u8, within: Duration, names: bool) -> Result<Found, Missed> {
        let ram = self.ram.upgrade().filter(|_| names);
        let post = |message| self.inbox.send(message).is_ok();
        let asked = inspect::request(post, vcpu, within, ram.clone());
        let sight = asked.map_err(|unanswered| match unanswered {
            inspect::Unanswered::Late { .. } => Missed::Late,
            inspect::Unanswered::Error(_) => Missed::Refused,
        })?;
        let names = ram.map(|ram| {
            let named = inspect::look(&ram, &sight, &self.kernel);
            let has_name = |frame: &&Frame| {
                let place = &frame.place;
                matches!(
                    place,
                    Place::Kernel(_) | Place::Module(_) | Place::Modules(_)
                )
            };
            let place = named.frames.first().filter(has_name);
            let callers = named.frames.iter().skip(1).map(ToString::to_string);
            let stack: Vec<String> = callers.collect();
            (
                place.map_or_else(String::new, ToString::to_string),
                stack.join("\n"),
            )
        });
        Ok(Found {
            view: sight.view,
            names,
        })
    }
}

/// One vCPU that is watched.
pub struct Watched {
    /// Its number.
    pub vcpu: u8,
    /// None in tests, which tell the signals themselves.
    probes: Option<SignalProbes>,
    before: Option<Signals>,
    suspicion: Suspicion,
    since: Ticks,
    /// The signals as they were then.
    began: Option<Signals>,
    streak: Streak,
    last: Option<Last>,
}

/// The last look.
#[derive(Clone, Copy)]
struct Last {
    at: Ticks,
    of: Suspicion,
    since: Ticks,
    was_well: bool,
}

impl Watched {
    /// Nothing is known of it yet.
    pub fn new(vcpu: u8, probes: SignalProbes, block: Block<SightBlock>) -> Self {
        Watched::with(vcpu, Some(probes), block)
    }

    fn with(vcpu: u8, probes: Option<SignalProbes>, block: Block<SightBlock>) -> Self {
        Watched {
            vcpu,
            probes,
            before: None,
            suspicion: Suspicion::None,
            since: 0,
            began: None,
            streak: Streak::new(block),
            last: None,
        }
    }

    /// Reads the cheap signals.
    fn update(&mut self, clock: Clock) {
        if let Some(probes) = &self.probes {
            self.judge(probes.read(clock), clock);
        }
    }

    fn judge(&mut self, now: Signals, clock: Clock) {
        let Some(before) = self.before else {
            self.before = Some(now);
            return;
        };
        let span_ns = clock.ns_between(before.at, now.at);
        if span_ns < SHORTEST_NS {
            return;
        }
        self.before = Some(now);
        let suspicion = match suspect(&before, &now, span_ns) {
            Suspicion::None if self.goes_on(&before, &now, clock) => self.suspicion,
            suspicion => suspicion,
        };
        if suspicion != self.suspicion {
            let is_none = suspicion == Suspicion::None;
            self.suspicion = suspicion;
            self.since = if is_none { 0 } else { before.at };
            self.began = (!is_none).then_some(before);
            self.streak.begin(suspicion, self.since);
        }
    }

    /// Whether one that ran all the time still does, by all of the time since then. The kernel counts
    /// a wait for a CPU when it is over: of a second that ends in one, a part comes with the next.
    fn goes_on(&self, before: &Signals, now: &Signals, clock: Clock) -> bool {
        let ran_ns = now.busy_ns.saturating_sub(before.busy_ns);
        if ran_ns < clock.ns_between(before.at, now.at) / 4 {
            return false;
        }
        let began = self.began.as_ref().filter(|_| {
            let runs = [Suspicion::Deaf, Suspicion::Busy];
            runs.contains(&self.suspicion)
        });
        began.is_some_and(|began| {
            let span_ns = clock.ns_between(began.at, now.at);
            suspect(began, now, span_ns) == self.suspicion
        })
    }

    /// Whether it is time to look into it.
    fn is_due(&self, now: Ticks, clock: Clock) -> bool {
        let age_ns = clock.ns_between(self.since, now);
        let waited = |last: &Last| clock.ns_between(last.at, now);
        match (self.suspicion, &self.last) {
            (Suspicion::None, _) => false,
            (Suspicion::NotStarted, last) => {
                age_ns >= STARTING_NS && last.as_ref().is_none_or(|last| waited(last) >= SELDOM_NS)
            }
            (_, None) => true,
            // An idle guest halts for seconds, again and again.
            (Suspicion::Halted, Some(last)) if last.was_well && last.of == Suspicion::Halted => {
                let least = if last.since == self.since {
                    SELDOM_NS
                } else {
                    NEXT_ROUND_NS
                };
                age_ns >= RUNS_WELL_NS && waited(last) >= least
            }
            (of, Some(last)) if last.was_well && last.of == of => waited(last) >= RUNS_WELL_NS,
            (_, Some(last)) if self.streak.looks() >= ENOUGH => waited(last) >= SELDOM_NS,
            (_, Some(last)) => waited(last) >= NEXT_ROUND_NS,
        }
    }

    /// Whether the look is enough for this round: it met what is watched, not an interrupt of that,
    /// and another one has met it, too, or it is nothing to watch.
    fn note(&mut self, found: &Found, at: Ticks, clock: Clock) -> bool {
        let is_first = self.last.is_none_or(|last| last.since != self.since);
        let view = &found.view;
        let is_met = self.streak.note(view, at, clock);
        if let Some((place, stack)) = found.names.as_ref().filter(|_| is_met) {
            self.streak.name(place, stack);
        }
        let follows_interrupt = self.streak.follows_interrupt();
        let was_well = match self.suspicion {
            Suspicion::None | Suspicion::NotStarted => true,
            Suspicion::Halted => !view.dead_halt() || view.pending.nmi,
            // In the kernel it may be stuck until the next look finds it elsewhere.
            Suspicion::Deaf | Suspicion::Busy => {
                let is_elsewhere = !is_first && !follows_interrupt && self.streak.looks() < 2;
                view.ring != 0 || view.halted() || is_elsewhere
            }
        };
        self.looked(at, was_well);
        let is_new = self.suspicion == Suspicion::Busy && self.streak.looks() < 2;
        is_met && (was_well || !is_new)
    }

    fn looked(&mut self, at: Ticks, was_well: bool) {
        self.last = Some(Last {
            at,
            of: self.suspicion,
            since: self.since,
            was_well,
        });
    }

    /// A halted one is named at the second look, when it is sure that it stays so.
    fn wants_names(&self) -> bool {
        let was_dead = self
            .last
            .is_some_and(|last| last.of == Suspicion::Halted && !last.was_well);
        self.streak.wants_names() || was_dead && self.streak.looks() == 1
    }
}

/// Looks into the vCPUs of a VM. Its owner is the watcher.
pub struct Looker<E> {
    eye: E,
    vcpus: Vec<Watched>,
    limits: Arc<Limits>,
    /// Who is asked first, so that in a large VM each has its turn.
    first: usize,
    /// Rounds that are left out because the last answers were late, and how many it were last.
    pause: u32,
    pauses: u32,
}

impl<E: Eye> Looker<E> {
    /// Looks with `eye` while the `limits` allow it.
    pub fn new(eye: E, vcpus: Vec<Watched>, limits: Arc<Limits>) -> Self {
        Looker {
            eye,
            vcpus,
            limits,
            first: 0,
            pause: 0,
            pauses: 0,
        }
    }

    /// Reads the signals of all vCPUs, and looks into those that seem stuck.
    pub fn round(&mut self) {
        let clock = Clock::process();
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.update(clock));
        if self.is_on() {
            self.look(&|| clock.ticks(), clock);
        }
    }

    /// Whether this is a round with looks.
    fn is_on(&mut self) -> bool {
        let is_paused = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        !is_paused && self.limits.read().look_into_vcpus
    }

    fn look(&mut self, now: &dyn Fn() -> Ticks, clock: Clock) {
        let end = Instant::now() + DEADLINE;
        let count = self.vcpus.len();
        let mut looks = 0;
        for index in self.first..self.first + count {
            let Some(vcpu) = self.vcpus.get_mut(index % count) else {
                return;
            };
            let left = end.saturating_duration_since(Instant::now());
            if !vcpu.is_due(now(), clock) {
                continue;
            }
            if looks == MOST_LOOKS || left.is_zero() {
                self.first = index % count;
                return;
            }
            looks += 1;
            match look_until_met(&mut self.eye, vcpu, end, now, clock) {
                Ok(()) => self.pauses = 0,
                Err(missed) => {
                    vcpu.streak.missed(missed == Missed::Refused);
                    if missed == Missed::Late {
                        self.pauses = (self.pauses * 2).clamp(1, 8);
                        self.pause = self.pauses;
                        return;
                    }
                }
            }
        }
    }
}

/// Looks into `vcpu`; again, a little later, if that was not enough.
fn look_until_met(
    eye: &mut impl Eye,
    vcpu: &mut Watched,
    end: Instant,
    now: &dyn Fn() -> Ticks,
    clock: Clock,
) -> Result<(), Missed> {
    let mut again = AGAIN.iter();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let found = eye.look(vcpu.vcpu, left, vcpu.wants_names())?;
        if vcpu.note(&found, now(), clock) {
            return Ok(());
        }
        let Some(pause) = again.next() else {
            return Ok(());
        };
        std::thread::sleep(*pause);
    }
}

#[cfg(test)]
mod tests;
