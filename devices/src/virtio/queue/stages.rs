//! What is remembered of a queue between the stages of its requests: up to where kicks announced
//! them, which interrupt the guest has yet to react to, and how far it has.
//!
//! Ring positions and indices are the guest's or move with its deeds: all arithmetic wraps, and a
//! nonsensical index is passed over.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use observe::Ticks;

/// What the guest's side of a ring shows at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// The available index.
    pub avail: u16,
    /// The used index after which the driver wants an interrupt; `None` without EVENT_IDX.
    pub used_event: Option<u16>,
}

/// How a chain came to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Came {
    /// For a reason of the device's own: activation, resume, a lost kick, data of the backend.
    #[default]
    Otherwise,
    /// It was in the ring when a kick was read, and taken this many nanoseconds after the thread
    /// had noticed the kick.
    Kicked(u64),
    /// It came while the device was at work, before a kick for it was read.
    Unasked,
}

/// An interrupt that the guest has not reacted to.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Ticks,
    /// The used index that it announced.
    used: u16,
    /// The available index at that moment.
    avail: u16,
    /// Whether a look-around saw it since.
    looked: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stages {
    /// The ring position before which all is announced, or needs to be no more.
    announced: u16,
    /// When the kick was noticed that began these turns.
    kicked: Option<Ticks>,
    /// The used index up to which the guest is known to have taken completions back.
    reclaimed: u16,
    mark: Option<Mark>,
}

impl Stages {
    /// A kick, noticed at `at`, announced what is before `avail`. Kicks that pile up count from
    /// the first.
    pub fn kicked(&mut self, avail: u16, at: Ticks) {
        self.announced = avail;
        self.kicked.get_or_insert(at);
    }

    /// What is before `avail` is to be taken for another reason than a kick.
    pub fn known(&mut self, avail: u16) {
        (self.announced, self.kicked) = (avail, None);
    }

    /// The turns that a kick began are over.
    pub fn turns_are_over(&mut self) {
        self.kicked = None;
    }

    /// Time stood still for the guest: what it owes is not measured.
    pub fn resumed(&mut self, avail: u16) {
        self.known(avail);
        self.mark = None;
    }

    /// How the chain came that is taken at `position` of a ring of `size`; `ns_since` tells how
    /// long ago a moment is.
    pub fn came(&mut self, position: u16, size: u16, ns_since: impl FnOnce(Ticks) -> u64) -> Came {
        let before = self.announced.wrapping_sub(position);
        if (1..=size).contains(&before) {
            let ns = self.kicked.map(ns_since);
            return ns.map_or(Came::Otherwise, Came::Kicked);
        }
        self.announced = position.wrapping_add(1);
        Came::Unasked
    }

    /// An interrupt was sent at `at` for what is before `used`.
    pub fn interrupted(&mut self, at: Ticks, used: u16, avail: u16) {
        self.mark.get_or_insert(Mark {
            at,
            used,
            avail,
            looked: false,
        });
    }

    /// Takes note of how far the guest has taken back what is before `used`, in a ring of `size`.
    pub fn reached(&mut self, reach: Reach, used: u16, size: u16) {
        self.given(used, size);
        // It has no more than `size` buffers in all, so it got these from the used ring.
        self.advance(reach.avail.wrapping_sub(size), used);
        if let Some(event) = reach.used_event {
            self.advance(event, used);
            // A mark ahead: the driver leaves the rest in the ring of its own will.
            if event.wrapping_sub(used) <= size {
                self.reclaimed = used;
            }
        }
    }

    /// The device gave back what is before `used`: more than `size` ago the guest took it.
    pub fn given(&mut self, used: u16, size: u16) {
        if self.unread(used) > size {
            self.reclaimed = used.wrapping_sub(size);
        }
    }

    fn advance(&mut self, to: u16, used: u16) {
        if to.wrapping_sub(self.reclaimed) <= self.unread(used) {
            self.reclaimed = to;
        }
    }

    /// Completions before `used` that the guest is not known to have taken back.
    pub fn unread(&self, used: u16) -> u16 {
        used.wrapping_sub(self.reclaimed)
    }

    /// When the interrupt was sent that the guest is seen now to have reacted to. `reach` is
    /// `None` where nobody looked at the guest's side.
    pub fn reacted(&mut self, reach: Option<Reach>) -> Option<Ticks> {
        let mark = self.mark?;
        let posted =
            reach.is_some_and(|reach| reach.used_event.is_none() && reach.avail != mark.avail);
        let reclaimed = self.reclaimed.wrapping_sub(mark.used) < 1 << 15;
        (posted || reclaimed).then(|| {
            self.mark = None;
            mark.at
        })
    }

    /// As [`Stages::reacted`], in the look-around. An idle queue is looked at so seldom that what
    /// the first look finds done says nothing of when it was done.
    pub fn reacted_at_look(&mut self, reach: Reach) -> Option<Ticks> {
        let seen = self.mark.is_some_and(|mark| mark.looked);
        let at = self.reacted(Some(reach)).filter(|_| seen);
        if let Some(mark) = &mut self.mark {
            mark.looked = true;
        }
        at
    }
}

#[cfg(test)]
mod tests;
