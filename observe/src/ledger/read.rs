//! What the ledger takes from a snapshot, and what rose between two.

#[cfg(any(test, feature = "recording"))]
mod cut;

use crate::heartbeat::Activity;
use crate::reader::{SectionView, Snapshot, Value};

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

/// All that the ledger needs to know of one vCPU at one moment: a few numbers of a snapshot, which
/// then can be let go.
#[derive(Clone, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
pub struct Moment {
    /// By `CLOCK_MONOTONIC`.
    pub(super) moment_ns: u64,
    is_making: bool,
    vcpu: Option<Vcpu>,
    /// CPU time, run delay and guest time of the thread, and its major faults.
    task: Sample<4>,
    /// Waited and polled in halts.
    kvm: Sample<2>,
    is_blocking: bool,
    throttled: Sample<1>,
}

/// What the vCPU's thread says of itself.
#[derive(Clone, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
struct Vcpu {
    run: u64,
    paused: Option<u64>,
    pauses: u64,
    /// `None` when it was caught between two states.
    beat: Option<Beat>,
    handler: Vec<(String, u64)>,
    devices: Vec<(String, u64)>,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
struct Beat {
    activity: Option<Activity>,
    reason: u8,
    since_ns: u64,
}

/// Numbers that somebody else sampled.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize)
)]
#[cfg_attr(
    any(test, feature = "recording"),
    serde(bound(
        serialize = "[u64; N]: serde::Serialize",
        deserialize = "[u64; N]: serde::Deserialize<'de>"
    ))
)]
struct Sample<const N: usize> {
    /// When, by `CLOCK_MONOTONIC`.
    at_ns: u64,
    numbers: Option<[u64; N]>,
}

const HANDLING: [Activity; 2] = [Activity::InHandler, Activity::InDevice];

impl Moment {
    /// What `snapshot` holds of a vCPU.
    pub fn of(snapshot: &Snapshot, vcpu: usize) -> Self {
        let section = snapshot.section(&format!("vcpu/{vcpu}"));
        let vcpu_view = section.and_then(|section| Vcpu::read(snapshot, section));
        // A dead writer's last sign of life may be older than what its threads did last.
        let beat = vcpu_view.as_ref().and_then(|vcpu| vcpu.beat);
        let moment_ns = snapshot
            .now_monotonic_ns
            .max(beat.map_or(0, |beat| beat.since_ns));
        let source = Source {
            snapshot,
            moment_ns,
        };
        let kvm_name = format!("kvm_vcpu/{vcpu}");
        let kvm = snapshot.section(&kvm_name);
        // Where KVM's section does not say when it was sampled, it was sampled with `task`: one
        // thread does both.
        let is_dated = kvm.is_some_and(|section| section.field("sampled_at").is_some());
        let dated = if is_dated { kvm_name.as_str() } else { "task" };
        let thread = format!("vcpu-{vcpu}");
        let level = |section: &SectionView| section.table("level", "blocking")?.as_u64();
        Moment {
            moment_ns,
            is_making: false,
            vcpu: vcpu_view,
            task: source.sample("task", "task", |section| {
                let number = |field| section.table(field, &thread)?.as_u64();
                // A thread that was never seen has no account.
                number("cpu").filter(|cpu| *cpu > 0)?;
                let faults = number("major_faults").unwrap_or(0);
                Some([
                    number("cpu")?,
                    number("run_delay")?,
                    number("guest")?,
                    faults,
                ])
            }),
            kvm: source.sample(&kvm_name, dated, halts),
            is_blocking: matches!(kvm.and_then(level), Some(1..)),
            throttled: source.sample("cgroup", "cgroup", |section| {
                let version = section.gauge("cpu_version");
                version.filter(|version| *version > 0)?;
                Some([section.counter("cpu_throttled")?])
            }),
        }
    }

    /// The making of the black box, where all was 0.
    pub(super) fn making(snapshot: &Snapshot) -> Self {
        let moment_ns = snapshot.header.created_monotonic_ns;
        Moment {
            moment_ns,
            is_making: true,
            vcpu: None,
            task: Sample::none(moment_ns),
            kvm: Sample::none(moment_ns),
            is_blocking: false,
            throttled: Sample::none(moment_ns),
        }
    }

    fn beat(&self) -> Option<Beat> {
        self.vcpu.as_ref()?.beat
    }

    /// How long one of `activities` goes on at this moment.
    fn going_on(&self, activities: &[Activity]) -> u64 {
        let Some(beat) = self.beat() else {
            return 0;
        };
        match beat.activity {
            Some(activity) if activities.contains(&activity) => {
                self.moment_ns.saturating_sub(beat.since_ns)
            }
            _ => 0,
        }
    }
}

impl Vcpu {
    fn read(snapshot: &Snapshot, section: &SectionView) -> Option<Self> {
        let beat = section.heartbeat("heartbeat");
        let beat = beat.filter(|beat| beat.settled).map(|beat| Beat {
            activity: beat.activity,
            reason: beat.reason,
            since_ns: snapshot.header.clock.monotonic_of(beat.since_ticks),
        });
        Some(Vcpu {
            run: section.counter("run")?,
            paused: section.counter("paused"),
            pauses: section.counter("pauses").unwrap_or(0),
            beat,
            handler: rows(section, "exit_handler"),
            devices: rows(section, "device_handler"),
        })
    }
}

/// A column of times, row by row.
fn rows(section: &SectionView, field: &str) -> Vec<(String, u64)> {
    let rows = section.row_names(field).map(|name| {
        let ns = match section.table(field, name) {
            Some(Value::Histogram(histogram)) => histogram.sum,
            Some(value) => value.as_u64().unwrap_or(0),
            None => 0,
        };
        (name.to_owned(), ns)
    });
    rows.collect()
}

/// KVM's account of halts.
fn halts(section: &SectionView) -> Option<[u64; 2]> {
    let number = |stat| section.table("total", stat)?.as_u64();
    let polled = |stat| number(stat).unwrap_or(0);
    let success = polled("halt_poll_success_ns");
    let polled = success.saturating_add(polled("halt_poll_fail_ns"));
    Some([number("halt_wait_ns")?, polled])
}

struct Source<'a> {
    snapshot: &'a Snapshot,
    moment_ns: u64,
}

impl Source<'_> {
    /// Numbers of a section; `dated` is the section that says when they were sampled.
    fn sample<const N: usize>(
        &self,
        section: &str,
        dated: &str,
        numbers: impl Fn(&SectionView) -> Option<[u64; N]>,
    ) -> Sample<N> {
        Sample {
            at_ns: self.sampled_ns(dated),
            numbers: self.snapshot.section(section).and_then(numbers),
        }
    }

    /// When a section was sampled, by `CLOCK_MONOTONIC`: before the first time, all of it was 0 at
    /// the making of the black box. One that does not say is taken to be as new as the snapshot.
    fn sampled_ns(&self, name: &str) -> u64 {
        let header = &self.snapshot.header;
        match self.snapshot.section(name) {
            Some(section) if section.field("sampled_at").is_none() => self.moment_ns,
            section => match section.and_then(|section| section.gauge("sampled_at")) {
                None | Some(0) => header.created_monotonic_ns,
                Some(at) => header.clock.monotonic_of(at),
            },
        }
    }
}

impl<const N: usize> Sample<N> {
    fn none(at_ns: u64) -> Self {
        Sample {
            at_ns,
            numbers: None,
        }
    }
}

/// Two moments of a vCPU.
pub(super) struct Pair<'a> {
    earlier: &'a Moment,
    later: &'a Moment,
    pub wall_ns: u64,
}

impl<'a> Pair<'a> {
    pub(super) fn new(earlier: &'a Moment, later: &'a Moment) -> Self {
        Pair {
            wall_ns: later.moment_ns.saturating_sub(earlier.moment_ns),
            earlier,
            later,
        }
    }

    /// Both heartbeats are whole, or there is none.
    pub(super) fn is_settled(&self) -> bool {
        let both = [&self.earlier.vcpu, &self.later.vcpu];
        both.into_iter().flatten().all(|vcpu| vcpu.beat.is_some())
    }

    /// What a number of the vCPU rose by, with what goes on of `activities`.
    fn clocked(
        &self,
        number: impl Fn(&Vcpu) -> Option<u64>,
        activities: &[Activity],
    ) -> Option<u64> {
        let total = |moment: &Moment| {
            let counted = moment.vcpu.as_ref().and_then(&number);
            counted.map(|ns| ns.saturating_add(moment.going_on(activities)))
        };
        let before = total(self.earlier).unwrap_or(0);
        Some(total(self.later)?.saturating_sub(before))
    }

    /// Time in KVM_RUN; `None` without the vCPU.
    pub(super) fn run(&self) -> Option<u64> {
        self.clocked(|vcpu| Some(vcpu.run), &[Activity::InGuest])
    }

    /// Time paused, and whether that is all of it.
    pub(super) fn paused(&self) -> (u64, bool) {
        if let Some(paused) = self.clocked(|vcpu| vcpu.paused, &[Activity::Paused]) {
            return (paused, true);
        }
        let going_on = self.later.going_on(&[Activity::Paused]).min(self.wall_ns);
        let pauses = |moment: &Moment| moment.vcpu.as_ref().map_or(0, |vcpu| vcpu.pauses);
        let is_paused = |moment: &Moment| {
            let activity = moment.beat().and_then(|beat| beat.activity);
            activity == Some(Activity::Paused)
        };
        // vCPU threads begin paused, which `pauses` does not count.
        let at_first = self.earlier.is_making || is_paused(self.earlier);
        let begun = pauses(self.later).saturating_sub(pauses(self.earlier));
        let begun = begun.saturating_add(u64::from(at_first));
        (going_on, begun <= u64::from(is_paused(self.later)))
    }

    /// Handler time by reason, with what goes on.
    pub(super) fn handler_by_reason(&self) -> Vec<(String, u64)> {
        let going_on = |moment: &Moment, row: usize| {
            let here = moment
                .beat()
                .is_some_and(|beat| usize::from(beat.reason) == row);
            if here { moment.going_on(&HANDLING) } else { 0 }
        };
        self.rose(|vcpu| &vcpu.handler, going_on)
    }

    /// Time in devices.
    pub(super) fn handler_by_device(&self) -> Vec<(String, u64)> {
        self.rose(|vcpu| &vcpu.devices, |_, _| 0)
    }

    /// What each row of a table rose by, without those that did not.
    fn rose(
        &self,
        table: impl Fn(&Vcpu) -> &Vec<(String, u64)>,
        going_on: impl Fn(&Moment, usize) -> u64,
    ) -> Vec<(String, u64)> {
        let Some(later) = self.later.vcpu.as_ref().map(&table) else {
            return Vec::new();
        };
        let earlier = self.earlier.vcpu.as_ref().map(&table);
        let rows = later.iter().enumerate().map(|(row, (name, after))| {
            let before = earlier.and_then(|rows| rows.get(row));
            let before = before.filter(|(known, _)| known == name);
            let before = before.map_or(0, |(_, ns)| *ns);
            let after = after.saturating_add(going_on(self.later, row));
            let before = before.saturating_add(going_on(self.earlier, row));
            (name.clone(), after.saturating_sub(before))
        });
        rows.filter(|(_, ns)| *ns > 0).collect()
    }

    /// What sampled numbers rose by, scaled to the wall time; `None` where there are none, or none
    /// were sampled in between.
    fn sampled<const N: usize>(&self, of: impl Fn(&Moment) -> &Sample<N>) -> Option<Sampled<N>> {
        let (earlier, later) = (of(self.earlier), of(self.later));
        let after = later.numbers?;
        let before = earlier.numbers.unwrap_or([0; N]);
        let span = later.at_ns.saturating_sub(earlier.at_ns);
        if span == 0 {
            return None;
        }
        let mut rose = [0; N];
        for (rose, (after, before)) in rose.iter_mut().zip(after.into_iter().zip(before)) {
            *rose = scaled(after.saturating_sub(before), self.wall_ns, span);
        }
        Some(Sampled {
            numbers: rose,
            lag_ns: self.later.moment_ns.saturating_sub(later.at_ns),
        })
    }

    /// The scheduler's CPU time, run delay and guest time of the thread.
    pub(super) fn task(&self) -> Option<Sampled<3>> {
        let all = self.sampled(|moment| &moment.task)?;
        let [cpu, delay, guest, _] = all.numbers;
        Some(Sampled {
            numbers: [cpu, delay, guest],
            lag_ns: all.lag_ns,
        })
    }

    /// Whether the thread had page faults that needed I/O, or another's answer.
    pub(super) fn faulted(&self) -> bool {
        let faults = |moment: &Moment| moment.task.numbers.map_or(0, |[.., faults]| faults);
        faults(self.later) > faults(self.earlier)
    }

    /// KVM's account of halts.
    pub(super) fn kvm(&self) -> Option<Halts> {
        let [waited, polled] = self.sampled(|moment| &moment.kvm)?.numbers;
        let going_on = match self.later.is_blocking {
            true => self.later.going_on(&[Activity::InGuest]).min(self.wall_ns),
            false => 0,
        };
        Some(Halts {
            waited,
            polled,
            going_on,
        })
    }

    /// Throttled time of the cgroup, over all CPUs.
    pub(super) fn throttled(&self) -> Option<u64> {
        let [throttled] = self.sampled(|moment| &moment.throttled)?.numbers;
        Some(throttled)
    }
}

/// `ns` of `span` as it would be of `wall`.
fn scaled(ns: u64, wall: u64, span: u64) -> u64 {
    let product = u128::from(ns).saturating_mul(u128::from(wall));
    let scaled = product.checked_div(u128::from(span)).unwrap_or(0);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
