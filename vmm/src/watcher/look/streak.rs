//! What the last looks into a vCPU have in common, written to its section.

use observe::sight::{SightBlock, Suspicion};
use observe::{Block, Clock, Ticks};

use crate::inspect::VcpuView;

/// Looks whose next instructions are further apart than this are not alike.
const WINDOW_BYTES: u64 = 4096;

/// So many looks in a row may meet an interrupt without an end to what is alike: two rounds' looks.
const MOST_INTERRUPTED: u64 = 6;

/// What looks are alike in.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mode {
    ring: u8,
    interrupts_on: bool,
    mp_state: u32,
}

impl Mode {
    fn of(view: &VcpuView) -> Self {
        Mode {
            ring: view.ring,
            interrupts_on: view.interrupts_on(),
            mp_state: view.mp_state,
        }
    }

    /// Whether `other` may be the handler of an interrupt of the kernel, which is in this one.
    fn is_interrupted_by(self, other: Mode) -> bool {
        let handler = Mode {
            interrupts_on: false,
            ..self
        };
        self.ring == 0 && self.interrupts_on && other == handler
    }
}

/// Looks that were alike.
struct Alike {
    mode: Mode,
    looks: u64,
    since: Ticks,
    low: u64,
    high: u64,
    first: [u64; 16],
    /// A bit for each register that was not the same once.
    changed: u16,
    /// Looks since the last that was alike: they met an interrupt's handler.
    interrupted: u64,
}

impl Alike {
    /// Whether `mode` may be an interrupt of the code that is alike.
    fn may_be_interrupted(&self, mode: Mode) -> bool {
        self.mode.is_interrupted_by(mode) && self.interrupted < MOST_INTERRUPTED
    }
}

/// Looks that all found the same interrupt waiting, in the kernel with interrupts off.
struct Held {
    vector: u8,
    looks: u64,
    since: Ticks,
}

/// The last looks into one vCPU.
pub struct Streak {
    block: Block<SightBlock>,
    alike: Option<Alike>,
    held: Option<Held>,
    has_names: bool,
    follows_interrupt: bool,
}

impl Streak {
    /// Nothing was seen yet.
    pub fn new(block: Block<SightBlock>) -> Self {
        Streak {
            block,
            alike: None,
            held: None,
            has_names: false,
            follows_interrupt: false,
        }
    }

    /// Another suspicion: what was seen before does not count.
    pub fn begin(&mut self, suspicion: Suspicion, since: Ticks) {
        (self.alike, self.held) = (None, None);
        self.write_streaks();
        self.block.suspicion.set(suspicion as u64);
        self.block.suspected_since.set(since);
    }

    /// A look that was not answered.
    pub fn missed(&self, in_time: bool) {
        if in_time {
            self.block.refused.inc();
        } else {
            self.block.late.inc();
        }
    }

    /// How many of the last looks found the same, one way or the other.
    pub fn looks(&self) -> u64 {
        let alike = self.alike.as_ref().map_or(0, |alike| alike.looks);
        alike.max(self.held.as_ref().map_or(0, |held| held.looks))
    }

    /// Whether the last look began anew because the one before may have met an interrupt's handler:
    /// that says nothing against what is watched.
    pub fn follows_interrupt(&self) -> bool {
        self.follows_interrupt
    }

    /// Whether the next look is to bring names: the vCPU was found at the same twice, and nothing
    /// says yet where that is.
    pub fn wants_names(&self) -> bool {
        self.looks() >= 2 && !self.has_names
    }

    /// A look. Whether it says something of the code that is watched: false if it met an interrupt
    /// of that, and then what was seen before stands.
    pub fn note(&mut self, view: &VcpuView, at: Ticks, clock: Clock) -> bool {
        self.block.looks.inc();
        if self.is_interrupted(view) {
            return false;
        }
        self.note_alike(view, at);
        self.note_held(view, at);
        let block = &self.block;
        block.rip.set(view.code_address());
        block.interrupts_on.set(u64::from(view.interrupts_on()));
        block.ring.set(u64::from(view.ring));
        block.mp_state.set(u64::from(view.mp_state));
        block.timer_armed.set(u64::from(view.timer.armed()));
        block.timer_due.set(due(view, at, clock));
        block
            .pending_vector
            .set(view.requested.iter().last().map_or(0, u64::from));
        block.pending_nmi.set(u64::from(view.pending.nmi));
        self.write_streaks();
        block.sampled_at.set(at);
        true
    }

    fn is_interrupted(&mut self, view: &VcpuView) -> bool {
        let mode = Mode::of(view);
        let alike = self.alike.as_mut();
        let alike = alike.filter(|alike| alike.may_be_interrupted(mode));
        alike.map(|alike| alike.interrupted += 1).is_some()
    }

    /// Where it is and who called that, as the look found that was last noted.
    pub fn name(&mut self, place: &str, stack: &str) {
        self.has_names = true;
        self.block.place.set(place);
        self.block.stack.set(stack);
    }

    fn note_alike(&mut self, view: &VcpuView, at: Ticks) {
        let rip = view.code_address();
        let mode = Mode::of(view);
        let before = self.alike.as_ref().filter(|alike| alike.looks == 1);
        self.follows_interrupt = before.is_some_and(|before| mode.is_interrupted_by(before.mode));
        if let Some(alike) = self.alike.as_mut().filter(|alike| alike.mode == mode) {
            let (low, high) = (alike.low.min(rip), alike.high.max(rip));
            if high - low <= WINDOW_BYTES {
                alike.looks += 1;
                alike.interrupted = 0;
                (alike.low, alike.high) = (low, high);
                for (bit, (first, now)) in alike.first.iter().zip(view.general).enumerate() {
                    alike.changed |= u16::from(*first != now) << bit;
                }
                return;
            }
        }
        self.forget_names();
        self.alike = Some(Alike {
            mode,
            looks: 1,
            since: at,
            low: rip,
            high: rip,
            first: view.general,
            changed: 0,
            interrupted: 0,
        });
    }

    fn note_held(&mut self, view: &VcpuView, at: Ticks) {
        let waits = view.ring == 0 && !view.interrupts_on() && !view.halted();
        let vector = view.requested.iter().last().filter(|_| waits);
        self.held = match (vector, self.held.take()) {
            (None, _) => None,
            (Some(vector), Some(held)) if held.vector == vector => Some(Held {
                looks: held.looks + 1,
                ..held
            }),
            (Some(vector), _) => Some(Held {
                vector,
                looks: 1,
                since: at,
            }),
        };
    }

    fn forget_names(&mut self) {
        if self.has_names {
            self.name("", "");
            self.has_names = false;
        }
    }

    fn write_streaks(&self) {
        let block = &self.block;
        let alike = self.alike.as_ref();
        let of = |number: fn(&Alike) -> u64| alike.map_or(0, number);
        block.rip_low.set(of(|alike| alike.low));
        block.rip_high.set(of(|alike| alike.high));
        block.alike.set(of(|alike| alike.looks));
        block.alike_since.set(of(|alike| alike.since));
        block
            .changed_registers
            .set(of(|alike| u64::from(alike.changed.count_ones())));
        let held = self.held.as_ref();
        block.pending_looks.set(held.map_or(0, |held| held.looks));
        block.pending_since.set(held.map_or(0, |held| held.since));
    }
}

/// When the timer will come, where the guest's counter goes as the host's does.
fn due(view: &VcpuView, at: Ticks, clock: Clock) -> Ticks {
    match (view.timer.deadline, view.tsc) {
        (Some(deadline), Some(now)) if clock.is_tsc() && view.timer.armed() => {
            at.saturating_add(deadline.saturating_sub(now))
        }
        _ => 0,
    }
}
