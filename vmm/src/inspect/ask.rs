//! Asking a vCPU, from a thread that has a handle on the VM or on the `vm` thread's inbox.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use memory::GuestRam;

use super::{Answer, InspectError, Request, Sight};
use crate::Vm;
use crate::driver::Message;

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The time is over.
    Late {
        /// The `vm` thread has passed the question on: it is the vCPU that is late.
        was_asked: bool,
    },
    /// It is known why.
    Error(InspectError),
}

/// Asks vCPU `vcpu` by way of the `vm` thread, whose inbox is `post`, and waits for its answer at
/// most `within`. With `ram`, it also copies the top of its stack.
///
/// # Errors
/// [`Unanswered`].
pub fn request(
    post: impl FnOnce(Message) -> bool,
    vcpu: u8,
    within: Duration,
    ram: Option<Arc<GuestRam>>,
) -> Result<Box<Sight>, Unanswered> {
    let until = Instant::now() + within;
    let (reply, answers) = channel();
    let request = Request { reply, until, ram };
    if !post(Message::Inspect(vcpu, request)) {
        return Err(Unanswered::Error(InspectError::Ended));
    }
    let mut was_asked = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok(Answer::Asked) => was_asked = true,
            Ok(Answer::Done(answer)) => return answer.map_err(Unanswered::Error),
            // The request was dropped: by the vm thread that ended, or by a vCPU that did.
            Err(RecvTimeoutError::Disconnected) if Instant::now() < until => {
                return Err(Unanswered::Error(InspectError::Ended));
            }
            Err(_) => return Err(Unanswered::Late { was_asked }),
        }
    }
}

/// As [`request`], of a VM; who is late is described.
///
/// # Errors
/// [`InspectError`].
pub fn ask(
    vm: &Vm,
    vcpu: u8,
    within: Duration,
    ram: Option<Arc<GuestRam>>,
) -> Result<Box<Sight>, InspectError> {
    let asked = request(|message| vm.post(message), vcpu, within, ram);
    asked.map_err(|unanswered| match unanswered {
        Unanswered::Error(error) => error,
        Unanswered::Late { was_asked } => {
            let (section, who) = if was_asked {
                (format!("vcpu/{vcpu}"), format!("vcpu-{vcpu}"))
            } else {
                ("thread/vm".to_owned(), "the vm thread".to_owned())
            };
            InspectError::Late {
                who,
                doing: doing(vm, &section),
                ms: within.as_millis() as u64,
            }
        }
    })
}

/// What a thread does, by its heartbeat and by what the kernel says of it.
fn doing(vm: &Vm, section: &str) -> String {
    let snapshot = vm.snapshot().ok();
    let view = snapshot.as_ref().and_then(|seen| seen.section(section));
    let Some(beat) = view.and_then(|view| view.heartbeat("heartbeat")) else {
        return "its heartbeat cannot be read".to_owned();
    };
    let state = std::fs::read_to_string(format!("/proc/self/task/{}/stat", beat.tid))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next())
        .map_or_else(|| "gone".to_owned(), |letter| format!("in state {letter}"));
    format!("it is {}, and the thread {state}", beat.activity_name())
}
