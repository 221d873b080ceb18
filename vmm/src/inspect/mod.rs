//! A look into a vCPU: its registers, the guest's function that it is in, and its stack.
//!
//! Nothing here happens unless it is asked for ([`Vm::inspect`](crate::Vm::inspect)). Then the vCPU
//! is kicked out of the guest, its own thread reads what KVM holds of it (`capture`), and goes back
//! at once; all other work is done by the thread that asked. The guest is not changed.
//!
//! - [`view`]: the registers, interrupts and timer of a vCPU, with words for people.
//! - `capture`: the ioctls, on the vCPU's own thread.
//! - [`walk`]: the guest's page tables, and its memory by virtual address.
//! - [`kallsyms`]: the guest kernel's symbols, found in its memory.
//! - `modules`: which module an address lies in.
//! - `orc` and `stack`: who called whom.
//! - `kernel`: where all that is in one guest, remembered from one look to the next.
//! - `look`: a vCPU with the names of where it is ([`VcpuSight`]).
//!
//! What a guest's memory and registers say is not trusted: every read is checked, every loop is
//! bounded.

mod ask;
mod capture;
#[doc(hidden)]
pub mod fuzz;
mod image;
pub mod kallsyms;
mod kernel;
mod look;
mod modules;
mod orc;
mod stack;
pub mod view;
pub mod walk;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use memory::GuestRam;

pub use kallsyms::Symbol;
pub use look::{Frame, Place, Trust, VcpuSight};
pub use modules::Module;
pub use view::{Pending, Timer, TimerMode, VcpuView, Vectors};

pub(crate) use ask::{Unanswered, ask, request};
pub(crate) use capture::capture;
pub(crate) use kernel::Kernel;
pub(crate) use look::look;

/// Why a vCPU was not looked into. The guest is as it was.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no such vCPU.
    #[error("there is no vcpu {vcpu}: this microVM has {have}, numbered from 0")]
    NoVcpu {
        /// The number that was asked for.
        vcpu: u8,
        /// How many there are.
        have: usize,
    },
    /// A thread did not answer in time.
    #[error(
        "{who} did not answer within {ms} ms ({doing}); a thread in state D waits for the host's \
         disk or memory: look at the host, or ask again with a longer deadline"
    )]
    Late {
        /// `vcpu-N`, or the `vm` thread.
        who: String,
        /// What it does, as far as that can be seen from outside.
        doing: String,
        /// The deadline.
        ms: u64,
    },
    /// KVM gave no answer.
    #[error("vcpu {vcpu}: KVM refused {what}: {source}; the host's kernel log may say why")]
    Refused {
        /// Which.
        vcpu: u8,
        /// What was asked of KVM.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// The VM is gone.
    #[error("the microVM has ended; its black box tells of its end")]
    Ended,
}

/// What a vCPU thread reads when it is asked.
#[derive(Debug)]
pub(crate) struct Sight {
    /// Registers, interrupts, timer.
    pub view: VcpuView,
    /// The top of its stack, when that was asked for and could be read.
    pub stack: StackCopy,
}

/// The top of a stack as it was when the registers were read.
#[derive(Clone, Debug, Default)]
pub struct StackCopy {
    /// The guest virtual address of the first byte.
    pub from: u64,
    /// What was there.
    pub bytes: Vec<u8>,
}

/// What becomes of a request, in this order.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The `vm` thread has passed it on to the vCPU.
    Asked,
    /// The answer, from the vCPU thread; or an error from either.
    Done(Result<Box<Sight>, InspectError>),
}

/// What a vCPU thread is asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Where the answer goes; nobody may wait for it any more.
    pub reply: Sender<Answer>,
    /// From when on nobody waits.
    pub until: Instant,
    /// The guest's memory, if the top of the stack is to be copied.
    pub ram: Option<Arc<GuestRam>>,
}

impl Request {
    /// Sends an answer. Who has given up waiting does not get it.
    pub fn answer(&self, answer: Answer) {
        let _ = self.reply.send(answer);
    }

    /// Whether somebody still waits.
    pub fn is_wanted(&self) -> bool {
        Instant::now() < self.until
    }
}
