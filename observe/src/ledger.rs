//! The ledger: where the time of a vCPU went between two moments.
//!
//! [`account`] is a pure function over two [`Snapshot`]s of a black box, live or dead. It joins
//! sources that know nothing of each other: the vCPU thread's own clock readings (section
//! `vcpu/N`), KVM's statistics (`kvm_vcpu/N`), the scheduler's account of the thread (`task`, row
//! `vcpu-N`) and the cgroup's (`cgroup`).
//!
//! # Formulas
//! Δx is what a number rose by between the snapshots. `vcpu/N` is written all the time, so what
//! its heartbeat says to go on (in guest, in handler, paused) is added up to the moment of the
//! snapshot. The other sections are sampled, about once a second: their Δ is taken over the time
//! between their own `sampled_at` and scaled to the wall time; what was not sampled in between is
//! unknown.
//!
//! ```text
//! wall      = later moment - earlier moment (or the making of the black box)
//! run       = Δ vcpu run               + what goes on
//! handler   = Δ vcpu exit_handler sums + what goes on
//! paused    = Δ vcpu paused            + what goes on
//! cpu       = Δ task cpu
//! delay     = Δ task run_delay
//! gap       = max(0, wall - run - handler - paused)
//! asleep    = max(0, wall - cpu - delay - paused - gap)
//! polled    = Δ kvm halt_poll_success_ns + Δ kvm halt_poll_fail_ns
//! slept     = min(asleep, Δ kvm halt_wait_ns + the halt that goes on, at most the stay in KVM_RUN)
//!
//! halted    = slept + polled
//! throttled = min(delay, Δ cgroup cpu_throttled)
//! waiting   = delay - throttled
//! fault     = asleep - slept, if the thread had major faults; else 0
//! blocked   = asleep - slept - fault
//! guest     = min(Δ task guest, in)           in = max(0, run - delay - asleep - polled)
//! kernel    = in - guest
//! residue   = wall - (guest + kernel + handler + halted + waiting + throttled + fault + blocked
//!                     + paused)
//! ```
//!
//! # What the numbers can tell and what not
//! * `delay` holds throttled time: a throttled thread stays runnable. The cgroup's throttled time is
//!   a sum over CPUs, so `throttled` is the most that throttling can explain.
//! * KVM's `halt_wait_ns` ends when the thread runs again, so it holds the delay after each wake-up,
//!   which is `delay` already; and it comes at the end of a halt, so that of one that began before
//!   the earlier sample is too long. The scheduler's sleep bounds it; what is cut off is
//!   [`Account::halt_overlap_ns`].
//! * `fault` is sleep that neither a halt nor a pause explains, when the thread had major faults in
//!   the same time: pages that the host read back, or that a userfaultfd answered for. A fault
//!   counts when it is over: the sleep of one that goes on is in `blocked` until then.
//! * `handler` is wall time: a thread that loses its CPU or sleeps in a handler has that time in
//!   `waiting` or `blocked`, too, and `in` is less by as much.
//! * The kernel brings `cpu` up to date at each tick, and without virtual CPU accounting `guest`
//!   moves in ticks: accounts of less than a second are rough.
//! * The residue holds `gap` (the thread before its start and after its end, and what lies between
//!   two clock readings), the parts that are unknown, and any disagreement: it is negative when the
//!   sources claim more time than there was.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod read;
mod sampler;

use crate::reader::Snapshot;
pub use read::Moment;
use read::{Pair, Sampled};
pub use sampler::{LedgerBlock, LedgerSampler, PARTS};

/// Where the time of one vCPU went. A part that is `None` could not be told; [`Account::notes`]
/// say why, and its time is in the residue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Which vCPU.
    pub vcpu: usize,
    /// The time that is accounted for, in nanoseconds, as all others.
    pub wall_ns: u64,
    /// In the guest.
    pub guest_ns: Option<u64>,
    /// In KVM, on a CPU: exits that it handles itself.
    pub kernel_ns: Option<u64>,
    /// In the VMM, for user exits.
    pub handler_ns: Option<u64>,
    /// The guest had nothing to do: asleep, or polling for its next interrupt.
    pub halted_ns: Option<u64>,
    /// Could run, and another had the CPU.
    pub waiting_ns: Option<u64>,
    /// Could run, and the cgroup's CPU limit forbade it.
    pub throttled_ns: Option<u64>,
    /// Waited for the host to bring in a page.
    pub fault_ns: Option<u64>,
    /// Asleep for no known reason.
    pub blocked_ns: Option<u64>,
    /// Paused by command.
    pub paused_ns: Option<u64>,
    /// `wall_ns` less all parts; negative if the sources claim more time than there was.
    pub residue_ns: i128,
    /// `handler_ns` by reason of the exit; reasons without time are left out.
    pub handler_by_reason: Vec<(String, u64)>,
    /// Of `handler_ns`, time in devices; accesses that go on are not in it yet.
    pub handler_by_device: Vec<(String, u64)>,
    /// What KVM called halted and the scheduler did not call asleep: delays after wake-ups.
    pub halt_overlap_ns: u64,
    /// How old the scheduler's numbers were at the later moment.
    pub lag_ns: u64,
    /// What could not be told, and why.
    pub notes: Vec<Note>,
}

/// Why a part of an [`Account`] is unknown or rough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// There is no such vCPU in the later snapshot.
    NoVcpu,
    /// The vCPU's heartbeat was caught between two stores: what goes on is not counted.
    Unsettled,
    /// The scheduler's account of the thread is missing or was not sampled in between.
    NoTask,
    /// KVM's statistics are missing or were not sampled in between.
    NoKvm,
    /// The cgroup's CPU controller is missing or was not sampled in between.
    NoCgroup,
    /// Pauses that ended in between are not told: their time is in `blocked` or the residue.
    NoPaused,
}

impl Note {
    /// All of them, in the order of the exported rows.
    pub const ALL: [Note; 6] = [
        Note::NoVcpu,
        Note::Unsettled,
        Note::NoTask,
        Note::NoKvm,
        Note::NoCgroup,
        Note::NoPaused,
    ];

    /// Its name, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Note::NoVcpu => "no_vcpu",
            Note::Unsettled => "unsettled",
            Note::NoTask => "no_task",
            Note::NoKvm => "no_kvm",
            Note::NoCgroup => "no_cgroup",
            Note::NoPaused => "no_paused",
        }
    }

    /// A sentence for people.
    pub fn text(self) -> &'static str {
        match self {
            Note::NoVcpu => "the black box has no such vCPU",
            Note::Unsettled => {
                "the vCPU was caught between two states: its current one is not counted"
            }
            Note::NoTask => "the scheduler's numbers of the vCPU's thread are missing",
            Note::NoKvm => "KVM's statistics are missing: halted time is not told",
            Note::NoCgroup => {
                "the cgroup's CPU controller is missing: throttled time counts as waiting"
            }
            Note::NoPaused => "pauses that ended are not told",
        }
    }
}

impl Account {
    /// The parts by name, in the order in which they are shown. Together with the residue they are
    /// the wall time.
    pub fn parts(&self) -> [(&'static str, Option<u64>); 9] {
        let [
            guest,
            kernel,
            handler,
            halted,
            waiting,
            throttled,
            fault,
            blocked,
            paused,
        ] = PARTS;
        [
            (guest, self.guest_ns),
            (kernel, self.kernel_ns),
            (handler, self.handler_ns),
            (halted, self.halted_ns),
            (waiting, self.waiting_ns),
            (throttled, self.throttled_ns),
            (fault, self.fault_ns),
            (blocked, self.blocked_ns),
            (paused, self.paused_ns),
        ]
    }

    /// The parts that are known, together.
    pub fn known_ns(&self) -> u128 {
        let parts = self.parts().into_iter();
        parts.fold(0, |sum: u128, (_, part)| {
            sum.saturating_add(u128::from(part.unwrap_or(0)))
        })
    }

    fn note(&mut self, note: Note) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Closes the account: the residue is what no part has.
    fn close(mut self) -> Self {
        let known = i128::try_from(self.known_ns()).unwrap_or(i128::MAX);
        self.residue_ns = i128::from(self.wall_ns).saturating_sub(known);
        self
    }
}

/// The account of vCPU `vcpu` from `earlier` to `later`, two snapshots of the same black box; from
/// its making if there is no earlier one. Never fails: what is missing is `None`. Snapshots in the
/// wrong order give a wall time of 0.
pub fn account(earlier: Option<&Snapshot>, later: &Snapshot, vcpu: usize) -> Account {
    let earlier = match earlier {
        Some(snapshot) => Moment::of(snapshot, vcpu),
        None => Moment::making(later),
    };
    between(&earlier, &Moment::of(later, vcpu), vcpu)
}

/// As [`account`], from two moments of the same vCPU.
pub fn between(earlier: &Moment, later: &Moment, vcpu: usize) -> Account {
    let pair = Pair::new(earlier, later);
    let mut account = Account {
        vcpu,
        wall_ns: pair.wall_ns,
        ..Account::default()
    };
    let Some(run) = pair.run() else {
        account.note(Note::NoVcpu);
        return account.close();
    };
    if !pair.is_settled() {
        account.note(Note::Unsettled);
    }
    account.handler_by_reason = pair.handler_by_reason();
    account.handler_by_device = pair.handler_by_device();
    let handler = sum(&account.handler_by_reason);
    let (paused, is_whole) = pair.paused();
    if !is_whole {
        account.note(Note::NoPaused);
    }
    account.handler_ns = Some(handler);
    account.paused_ns = Some(paused);
    let ours = run.saturating_add(handler).saturating_add(paused);
    let task = pair.task();
    if let Some(task) = &task {
        account.lag_ns = task.lag_ns;
    }
    let seen = Seen {
        run,
        aside: paused.saturating_add(pair.wall_ns.saturating_sub(ours)),
    };
    split(&mut account, &pair, &seen, task.as_ref());
    account.close()
}

/// What the vCPU thread's own clock readings say.
struct Seen {
    /// Time in KVM_RUN.
    run: u64,
    /// Time outside of KVM_RUN and handlers: paused, and gaps.
    aside: u64,
}

/// Splits the time in KVM_RUN, as the module's formulas say.
fn split(account: &mut Account, pair: &Pair<'_>, seen: &Seen, task: Option<&Sampled<3>>) {
    let kvm = pair.kvm();
    if kvm.is_none() {
        account.note(Note::NoKvm);
    }
    let polled = kvm.as_ref().map_or(0, |kvm| kvm.polled);
    let halt_wait = kvm
        .as_ref()
        .map(|kvm| kvm.waited.saturating_add(kvm.going_on));
    let Some(&Sampled { numbers, .. }) = task else {
        account.note(Note::NoTask);
        account.halted_ns = halt_wait.map(|wait| wait.saturating_add(polled));
        return;
    };
    let [cpu, delay, guest] = numbers;
    let asleep = pair.wall_ns.saturating_sub(cpu).saturating_sub(delay);
    let asleep = asleep.saturating_sub(seen.aside);
    if let (Some(halt_wait), Some(kvm)) = (halt_wait, &kvm) {
        let slept = asleep.min(halt_wait);
        account.halted_ns = Some(slept.saturating_add(polled));
        let other = asleep.saturating_sub(slept);
        let fault = if pair.faulted() { other } else { 0 };
        account.fault_ns = Some(fault);
        account.blocked_ns = Some(other.saturating_sub(fault));
        account.halt_overlap_ns = kvm.waited.saturating_sub(slept);
    }
    let throttled = pair.throttled().map(|throttled| throttled.min(delay));
    if throttled.is_none() {
        account.note(Note::NoCgroup);
    }
    account.throttled_ns = throttled;
    account.waiting_ns = Some(delay.saturating_sub(throttled.unwrap_or(0)));
    let inside = seen.run.saturating_sub(delay);
    let inside = inside.saturating_sub(asleep).saturating_sub(polled);
    let guest = guest.min(inside);
    account.guest_ns = Some(guest);
    account.kernel_ns = Some(inside.saturating_sub(guest));
}

fn sum(rows: &[(String, u64)]) -> u64 {
    let rows = rows.iter();
    rows.fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
