//! Commanding a balloon: what its owner and its I/O thread share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use observe::{Block, Clock};
use vmm_sys_util::eventfd::EventFd;

use super::counters::BalloonBlock;
use super::request::PAGE_BYTES;
use super::{ACTUAL_OFFSET, COMMAND_OFFSET, CONFIG_BYTES, TARGET_OFFSET};
use crate::virtio::device::ConfigSpace;
use crate::virtio::link::{event, signal};

/// The hinting register's value for a run that is to end.
pub const COMMAND_STOP: u32 = 0;
/// Its value for a run whose memory the guest may use again.
pub const COMMAND_DONE: u32 = 1;
/// Pages of a MiB.
const PAGES_OF_MIB: u32 = 256;
/// The first run's number.
const FIRST_RUN: u32 = 2;

/// What the owner, the vCPUs and the I/O thread of a balloon share.
pub(super) struct Shared {
    pub config: Arc<ConfigSpace>,
    /// Rung when the owner commands or the driver writes its register.
    pub bell: Arc<EventFd>,
    pub block: Arc<Block<BalloonBlock>>,
    pub interval_s: AtomicU16,
    /// The host has something to tell the driver.
    pub changed: AtomicBool,
    pub acknowledge: AtomicBool,
    /// The last run's number.
    run: AtomicU32,
}

impl Shared {
    pub fn new(block: Block<BalloonBlock>) -> io::Result<Self> {
        let bell = Arc::new(event()?);
        let actual = ACTUAL_OFFSET..ACTUAL_OFFSET.saturating_add(4);
        let config = ConfigSpace::new(&[0; CONFIG_BYTES]).writable(actual, Arc::clone(&bell));
        Ok(Shared {
            config: Arc::new(config),
            bell,
            block: Arc::new(block),
            interval_s: AtomicU16::new(0),
            changed: AtomicBool::new(false),
            acknowledge: AtomicBool::new(false),
            run: AtomicU32::new(FIRST_RUN.wrapping_sub(1)),
        })
    }

    pub fn number(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.config.read(offset as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register that the driver reads. It is told when there is one.
    pub fn tell(&self, offset: usize, value: u32) {
        self.config.write(offset, &value.to_le_bytes());
        self.changed.store(true, Ordering::Release);
        signal(&self.bell);
    }

    pub fn resize(&self, pages: u32) {
        let bytes = u64::from(pages).saturating_mul(PAGE_BYTES);
        self.block.target.set(bytes);
        self.block.target_set_at.set(Clock::process().ticks());
        self.tell(TARGET_OFFSET, pages);
    }

    pub fn poll(&self, seconds: u16) {
        let ns = u64::from(seconds).saturating_mul(1_000_000_000);
        self.block.interval.set(ns);
        self.interval_s.store(seconds, Ordering::Release);
        signal(&self.bell);
    }

    pub fn command(&self, command: u32) {
        self.block.host_command.set(u64::from(command));
        self.tell(COMMAND_OFFSET, command);
    }
}

/// Commands a balloon; from one thread at a time. Nothing here waits for the guest.
#[derive(Clone)]
pub struct BalloonHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) has_hinting: bool,
    pub(super) memory_mib: u32,
}

/// What a balloon can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonOrder {
    /// Be so large.
    Resize {
        /// In MiB.
        mib: u32,
    },
    /// Ask the guest for statistics this often.
    Poll {
        /// In seconds.
        seconds: u16,
    },
    /// Ask the guest to name its free memory.
    StartHinting {
        /// Whether it may use that again as soon as it has named all.
        acknowledge: bool,
    },
    /// End that.
    StopHinting,
}

/// Why a balloon does not do as it is told. The texts are Firecracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonRefusal {
    /// The guest has no driver for it, or has not started it yet.
    #[error("Device not activated yet.")]
    NotActive,
    /// Statistics are on or off from the start.
    #[error("Cannot enable/disable the statistics after activation.")]
    StatisticsChange,
    /// The VM has none.
    #[error("No balloon device found: give one with PUT /balloon before the start.")]
    NoBalloon,
    /// It cannot be larger than the guest's memory.
    #[error("amount_mib {mib} is more than the guest's memory of {most} MiB; give at most {most}")]
    TooLarge {
        /// MiB asked.
        mib: u32,
        /// MiB of the guest's memory.
        most: u32,
    },
    /// It was made without hinting.
    #[error("Free page hinting is not enabled.")]
    NoHinting,
}

/// Where hinting stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hinting {
    /// What the host asks for: 0 stop, 1 done, else the number of a run.
    pub host: u32,
    /// What the guest last answered to.
    pub guest: Option<u32>,
}

impl BalloonHandle {
    /// Carries an order out.
    ///
    /// # Errors
    /// [`BalloonRefusal`]; nothing has changed then.
    pub fn obey(&self, order: BalloonOrder) -> Result<(), BalloonRefusal> {
        match order {
            BalloonOrder::Resize { .. } if self.shared.block.features.value() == 0 => {
                return Err(BalloonRefusal::NotActive);
            }
            BalloonOrder::Resize { mib } if mib > self.memory_mib => {
                let most = self.memory_mib;
                return Err(BalloonRefusal::TooLarge { mib, most });
            }
            BalloonOrder::Resize { mib } => self.resize(mib.saturating_mul(PAGES_OF_MIB)),
            BalloonOrder::Poll { seconds } => {
                let now = self.shared.interval_s.load(Ordering::Acquire);
                if (now == 0) != (seconds == 0) {
                    return Err(BalloonRefusal::StatisticsChange);
                }
                self.poll_statistics(seconds);
            }
            _ if !self.has_hinting => return Err(BalloonRefusal::NoHinting),
            BalloonOrder::StartHinting { acknowledge } => self.start_hinting(acknowledge),
            BalloonOrder::StopHinting => self.stop_hinting(),
        }
        Ok(())
    }

    /// Asks the guest to make the balloon so large.
    pub fn resize(&self, pages: u32) {
        self.shared.resize(pages);
    }

    /// How large it is to be.
    pub fn target_pages(&self) -> u32 {
        self.shared.number(TARGET_OFFSET)
    }

    /// How large it is, by the driver's word.
    pub fn actual_pages(&self) -> u32 {
        self.shared.number(ACTUAL_OFFSET)
    }

    /// Asks for statistics this often from now on; 0 asks no more.
    pub fn poll_statistics(&self, seconds: u16) {
        self.shared.poll(seconds);
    }

    /// Asks the guest to name its free memory. `acknowledge` lets it use that again as soon as it
    /// has named all; else it waits for [`BalloonHandle::stop_hinting`].
    pub fn start_hinting(&self, acknowledge: bool) {
        self.shared
            .acknowledge
            .store(acknowledge, Ordering::Release);
        // Never a number twice in a row: the driver would take it for the run that is over.
        let last = self.shared.run.load(Ordering::Acquire);
        let run = last.wrapping_add(1).max(FIRST_RUN);
        self.shared.run.store(run, Ordering::Release);
        self.shared.command(run);
    }

    /// Ends hinting, and lets the guest use what it named.
    pub fn stop_hinting(&self) {
        self.shared.command(COMMAND_DONE);
    }

    /// Where hinting stands.
    pub fn hinting(&self) -> Hinting {
        let guest = self.shared.block.guest_command.value();
        Hinting {
            host: self.shared.number(COMMAND_OFFSET),
            guest: guest
                .checked_sub(1)
                .and_then(|command| u32::try_from(command).ok()),
        }
    }
}
