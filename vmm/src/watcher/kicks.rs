//! Kicks that no device has taken: looked at from outside, without taking them.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::os::fd::AsRawFd;

use observe::{BlackBox, BlackBoxError, Block, Clock, Field, Gauge, Section, Unit};
use vmm_sys_util::eventfd::EventFd;

/// The section `kick/DEVICE/QUEUE`. Written by the watcher.
#[derive(Debug, Default)]
#[repr(C)]
pub struct KickBlock {
    /// When it was last looked at.
    pub sampled_at: Gauge,
    /// 1 while the guest has kicked and the device's thread has not read that.
    pub pending: Gauge,
}

// SAFETY: repr(C), cells only.
unsafe impl Section for KickBlock {
    const KIND: &'static str = "kick";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(KickBlock, sampled_at), "When the queue's kicks were last looked at."),
        Field::gauge("pending", Unit::None, offset_of!(KickBlock, pending), "1 while the guest has kicked the queue and the device's thread has not read that."),
    ];
}

/// The kicks of one queue.
pub struct Kick {
    /// The device.
    pub device: String,
    /// The queue's number.
    pub queue: u32,
    /// A descriptor of our own for the eventfd that KVM signals. Never read here.
    pub event: EventFd,
}

/// Looks at all queues with one system call.
pub struct KickSampler {
    blocks: Vec<Block<KickBlock>>,
    polls: Vec<libc::pollfd>,
    /// Keeps the descriptors open.
    _kicks: Vec<Kick>,
}

impl KickSampler {
    /// Places a section for each queue.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for them.
    pub fn new(black_box: &mut BlackBox, kicks: Vec<Kick>) -> Result<Self, BlackBoxError> {
        let mut blocks = Vec::new();
        for Kick { device, queue, .. } in &kicks {
            blocks.push(black_box.section(&format!("kick/{device}/{queue}"), &[])?);
        }
        let polls = kicks.iter().map(|kick| libc::pollfd {
            fd: kick.event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        Ok(KickSampler {
            blocks,
            polls: polls.collect(),
            _kicks: kicks,
        })
    }

    /// Looks and does not wait. When the kernel does not answer, what was known stays, with its
    /// moment.
    pub fn sample(&mut self) {
        let count = self.polls.len() as libc::nfds_t;
        // SAFETY: as many elements as `count` says, ours alone during the call.
        let answered = unsafe { libc::poll(self.polls.as_mut_ptr(), count, 0) };
        if answered < 0 {
            return;
        }
        let now = Clock::process().ticks();
        for (block, poll) in self.blocks.iter().zip(&self.polls) {
            let pending = poll.revents & libc::POLLIN != 0;
            block.pending.set(u64::from(pending));
            block.sampled_at.set(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observe::Meta;

    #[test]
    fn a_kick_is_seen_until_somebody_reads_it_and_not_by_looking() {
        let meta = Meta {
            vm_id: "test".to_owned(),
            version: String::new(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let own = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let kick = Kick {
            device: "disk".to_owned(),
            queue: 0,
            event: own.try_clone().unwrap(),
        };
        let mut sampler = KickSampler::new(&mut black_box, vec![kick]).unwrap();
        let pending = |sampler: &mut KickSampler| {
            sampler.sample();
            sampler.blocks[0].pending.value()
        };
        assert_eq!(pending(&mut sampler), 0);
        own.write(1).unwrap();
        assert_eq!(pending(&mut sampler), 1);
        assert_eq!(pending(&mut sampler), 1, "looking takes nothing");
        assert_eq!(own.read().unwrap(), 1);
        assert_eq!(pending(&mut sampler), 0);
        assert_ne!(sampler.blocks[0].sampled_at.value(), 0);
    }
}
