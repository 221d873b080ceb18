//! What the ledger takes from a pair of snapshots.

use crate::heartbeat::Activity;
use crate::reader::{HeartbeatView, SectionView, Snapshot, Value};

/// Numbers of a sampled section, as they rose over the wall time.
pub(super) struct Sampled<const N: usize> {
    pub numbers: [u64; N],
    /// Age of the later sample.
    pub lag_ns: u64,
}

/// What KVM says of halts.
pub(super) struct Halts {
    pub waited: u64,
    pub polled: u64,
    /// At most this much of a halt that has not ended.
    pub going_on: u64,
}

/// One of two snapshots; without one it is the making of the black box, where all was 0.
struct Side<'a> {
    snapshot: Option<&'a Snapshot>,
    vcpu: Option<&'a SectionView>,
    heartbeat: Option<HeartbeatView>,
    /// By `CLOCK_MONOTONIC`.
    moment_ns: u64,
}

impl<'a> Side<'a> {
    fn new(snapshot: &'a Snapshot, vcpu: usize) -> Self {
        let section = snapshot.section(&format!("vcpu/{vcpu}"));
        let heartbeat = section.and_then(|section| section.heartbeat("heartbeat"));
        let heartbeat = heartbeat.filter(|heartbeat| heartbeat.settled);
        // A dead writer's last sign of life may be older than what its threads did last.
        let beat = heartbeat.map_or(0, |beat| {
            snapshot.header.clock.monotonic_of(beat.since_ticks)
        });
        Side {
            snapshot: Some(snapshot),
            vcpu: section,
            heartbeat,
            moment_ns: snapshot.now_monotonic_ns.max(beat),
        }
    }

    fn making(later: &Snapshot) -> Self {
        Side {
            snapshot: None,
            vcpu: None,
            heartbeat: None,
            moment_ns: later.header.created_monotonic_ns,
        }
    }

    /// How long one of `activities` goes on at this moment.
    fn going_on(&self, activities: &[Activity]) -> u64 {
        let (Some(snapshot), Some(beat)) = (self.snapshot, self.heartbeat) else {
            return 0;
        };
        match beat.activity {
            Some(activity) if activities.contains(&activity) => {
                let since = snapshot.header.clock.monotonic_of(beat.since_ticks);
                self.moment_ns.saturating_sub(since)
            }
            _ => 0,
        }
    }

    fn section(&self, name: &str) -> Option<&'a SectionView> {
        self.snapshot?.section(name)
    }

    /// When a section was sampled, by `CLOCK_MONOTONIC`: before the first time, all of it was 0 at
    /// the making of the black box. One that does not say is taken to be as new as the snapshot.
    fn sampled_ns(&self, name: &str) -> u64 {
        let Some(snapshot) = self.snapshot else {
            return self.moment_ns;
        };
        let header = &snapshot.header;
        match self.section(name) {
            Some(section) if section.field("sampled_at").is_none() => self.moment_ns,
            section => match section.and_then(|section| section.gauge("sampled_at")) {
                None | Some(0) => header.created_monotonic_ns,
                Some(at) => header.clock.monotonic_of(at),
            },
        }
    }
}

/// Two snapshots and a vCPU.
pub(super) struct Pair<'a> {
    earlier: Side<'a>,
    later: Side<'a>,
    index: usize,
    pub wall_ns: u64,
}

const HANDLING: [Activity; 2] = [Activity::InHandler, Activity::InDevice];

impl<'a> Pair<'a> {
    pub(super) fn new(earlier: Option<&'a Snapshot>, later: &'a Snapshot, index: usize) -> Self {
        let earlier = match earlier {
            Some(snapshot) => Side::new(snapshot, index),
            None => Side::making(later),
        };
        let later = Side::new(later, index);
        Pair {
            wall_ns: later.moment_ns.saturating_sub(earlier.moment_ns),
            earlier,
            later,
            index,
        }
    }

    /// Both heartbeats are whole, or there is none.
    pub(super) fn is_settled(&self) -> bool {
        let both = [&self.earlier, &self.later];
        both.iter()
            .all(|side| side.vcpu.is_none() || side.heartbeat.is_some())
    }

    /// A lone counter of the vCPU, and what goes on of `activities`.
    fn clocked(&self, field: &str, activities: &[Activity]) -> Option<u64> {
        let total = |side: &Side<'_>| {
            let counted = side.vcpu.and_then(|section| section.counter(field));
            counted.map(|ns| ns.saturating_add(side.going_on(activities)))
        };
        let before = total(&self.earlier).unwrap_or(0);
        Some(total(&self.later)?.saturating_sub(before))
    }

    /// Time in KVM_RUN; `None` without the vCPU.
    pub(super) fn run(&self) -> Option<u64> {
        self.clocked("run", &[Activity::InGuest])
    }

    /// Time paused, and whether that is all of it.
    pub(super) fn paused(&self) -> (u64, bool) {
        if let Some(paused) = self.clocked("paused", &[Activity::Paused]) {
            return (paused, true);
        }
        let going_on = self.later.going_on(&[Activity::Paused]).min(self.wall_ns);
        let pauses = |side: &Side<'_>| {
            let pauses = side.vcpu.and_then(|section| section.counter("pauses"));
            pauses.unwrap_or(0)
        };
        let is_paused = |side: &Side<'_>| {
            let activity = side.heartbeat.and_then(|beat| beat.activity);
            activity == Some(Activity::Paused)
        };
        // vCPU threads begin paused, which `pauses` does not count.
        let at_first = self.earlier.snapshot.is_none() || is_paused(&self.earlier);
        let begun = pauses(&self.later).saturating_sub(pauses(&self.earlier));
        let begun = begun.saturating_add(u64::from(at_first));
        (going_on, begun <= u64::from(is_paused(&self.later)))
    }

    /// Handler time by reason, with what goes on.
    pub(super) fn handler_by_reason(&self) -> Vec<(String, u64)> {
        let total = |side: &Side<'_>, row: usize, name: &str| {
            let value = side
                .vcpu
                .and_then(|section| section.table("exit_handler", name));
            let counted = match value {
                Some(Value::Histogram(histogram)) => histogram.sum,
                _ => 0,
            };
            let here = side
                .heartbeat
                .is_some_and(|beat| usize::from(beat.reason) == row);
            let going_on = if here { side.going_on(&HANDLING) } else { 0 };
            counted.saturating_add(going_on)
        };
        self.rows("exit_handler", total)
    }

    /// Time in devices.
    pub(super) fn handler_by_device(&self) -> Vec<(String, u64)> {
        let total = |side: &Side<'_>, _: usize, name: &str| {
            let value = side
                .vcpu
                .and_then(|section| section.table("device_handler", name));
            value.and_then(|value| value.as_u64()).unwrap_or(0)
        };
        self.rows("device_handler", total)
    }

    /// What each row of a table rose by, without those that did not.
    fn rows(
        &self,
        field: &str,
        total: impl Fn(&Side<'_>, usize, &str) -> u64,
    ) -> Vec<(String, u64)> {
        let section = self.later.vcpu.into_iter();
        let rows = section.flat_map(|section| section.row_names(field).enumerate());
        let rows = rows.map(|(row, name)| {
            let before = total(&self.earlier, row, name);
            let rose = total(&self.later, row, name).saturating_sub(before);
            (name.to_owned(), rose)
        });
        rows.filter(|(_, ns)| *ns > 0).collect()
    }

    /// What numbers of a sampled section rose by, scaled to the wall time; `None` where the
    /// section is missing, or was not sampled in between. `dated` is the section that says when.
    fn sampled<const N: usize>(
        &self,
        section: &str,
        dated: &str,
        numbers: impl Fn(&SectionView) -> Option<[u64; N]>,
    ) -> Option<Sampled<N>> {
        let after = numbers(self.later.section(section)?)?;
        let before = self.earlier.section(section).and_then(&numbers);
        let before = before.unwrap_or([0; N]);
        let to = self.later.sampled_ns(dated);
        let span = to.saturating_sub(self.earlier.sampled_ns(dated));
        if span == 0 {
            return None;
        }
        let mut rose = [0; N];
        for (rose, (after, before)) in rose.iter_mut().zip(after.into_iter().zip(before)) {
            *rose = scaled(after.saturating_sub(before), self.wall_ns, span);
        }
        Some(Sampled {
            numbers: rose,
            lag_ns: self.later.moment_ns.saturating_sub(to),
        })
    }

    /// The scheduler's CPU time, run delay and guest time of the thread.
    pub(super) fn task(&self) -> Option<Sampled<3>> {
        let thread = format!("vcpu-{}", self.index);
        self.sampled("task", "task", |section| {
            let number = |field| section.table(field, &thread)?.as_u64();
            // A thread that was never seen has no account.
            number("cpu").filter(|cpu| *cpu > 0)?;
            Some([number("cpu")?, number("run_delay")?, number("guest")?])
        })
    }

    /// KVM's account of halts. Where the section does not say when it was sampled, it was sampled
    /// with `task`: one thread does both.
    pub(super) fn kvm(&self) -> Option<Halts> {
        let name = format!("kvm_vcpu/{}", self.index);
        let section = self.later.section(&name)?;
        let own = section.field("sampled_at").is_some();
        let dated = if own { name.as_str() } else { "task" };
        let sampled = self.sampled(&name, dated, |section| {
            let number = |stat| section.table("total", stat)?.as_u64();
            let polled = |stat| number(stat).unwrap_or(0);
            let success = polled("halt_poll_success_ns");
            let polled = success.saturating_add(polled("halt_poll_fail_ns"));
            Some([number("halt_wait_ns")?, polled])
        })?;
        let blocking = section.table("level", "blocking").and_then(|v| v.as_u64());
        let going_on = match blocking {
            Some(1..) => self.later.going_on(&[Activity::InGuest]).min(self.wall_ns),
            _ => 0,
        };
        let [waited, polled] = sampled.numbers;
        Some(Halts {
            waited,
            polled,
            going_on,
        })
    }

    /// Throttled time of the cgroup, over all CPUs.
    pub(super) fn throttled(&self) -> Option<u64> {
        let sampled = self.sampled("cgroup", "cgroup", |section| {
            section
                .gauge("cpu_version")
                .filter(|version| *version > 0)?;
            Some([section.counter("cpu_throttled")?])
        })?;
        let [throttled] = sampled.numbers;
        Some(throttled)
    }
}

/// `ns` of `span` as it would be of `wall`.
fn scaled(ns: u64, wall: u64, span: u64) -> u64 {
    let product = u128::from(ns).saturating_mul(u128::from(wall));
    let scaled = product.checked_div(u128::from(span)).unwrap_or(0);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
