//! I/O threads: each runs an event loop with the devices that were attached to it.
//!
//! A panic in a device is caught at the thread's root: its devices ask their drivers for a reset,
//! and the owner is told. Every wait for the thread has a deadline.

mod rounds;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::EventManager;
use memory::GuestRam;
use observe::{Block, Clock, Gauge};
use vmm_sys_util::eventfd::EventFd;

use self::rounds::{Message, Rounds};
use super::counters::{DeviceCounters, ThreadBlock};
use super::device::{DeviceChange, VirtioDevice};
use super::device_loop::{Control, DeviceLoop};
use super::front::Front;
use super::link::{DeviceLink, OnEvent, event, signal};
use super::queue::QueueRunner;
use super::witness::Witness;

/// How long dropping an [`IoThread`] waits for its thread.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why an I/O thread does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// The host gave no thread, eventfd or epoll.
    #[error("the I/O thread {name} cannot be made: {source}")]
    Start {
        /// The thread.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// The event loop cannot be made.
    #[error("the event loop of {name} cannot be made: {source}")]
    EventLoop {
        /// The thread.
        name: String,
        /// Why.
        source: event_manager::Error,
    },
    /// The thread did not confirm in time.
    #[error("{name} did not {what} within {ms} ms")]
    Deadline {
        /// The thread.
        name: String,
        /// What it was asked.
        what: &'static str,
        /// The deadline.
        ms: u128,
    },
    /// The device cannot be changed so.
    #[error("{0}")]
    Refused(String),
    /// The thread has ended.
    #[error("{name} has ended")]
    Ended {
        /// The thread.
        name: String,
    },
}

/// What an I/O thread needs to start.
pub struct IoThreadSpec {
    /// Its name without the `io-`; the kernel shows 15 characters of `io-NAME`.
    pub name: String,
    /// Its section of the black box.
    pub block: Block<ThreadBlock>,
    /// Told of its devices' events, in the thread: it must not wait.
    pub events: Option<OnEvent>,
    /// Called in the thread when it panicked, with what it said.
    pub on_failure: Box<dyn FnOnce(String) + Send>,
}

/// The owner's side of an I/O thread. Dropping it stops the thread.
pub struct IoThread {
    name: String,
    messages: Sender<Message>,
    wake: Arc<EventFd>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    block: Arc<Block<ThreadBlock>>,
    events: Option<OnEvent>,
    devices: Vec<(Sender<Control>, Arc<EventFd>)>,
}

impl IoThread {
    /// Starts the thread `io-NAME` without devices.
    ///
    /// # Errors
    /// What the host refused.
    pub fn spawn(spec: IoThreadSpec) -> Result<Self, IoThreadError> {
        let name = format!("io-{}", spec.name);
        let start = |source| IoThreadError::Start {
            name: name.clone(),
            source,
        };
        let manager = EventManager::new().map_err(|source| IoThreadError::EventLoop {
            name: name.clone(),
            source,
        })?;
        let wake = Arc::new(event().map_err(start)?);
        let (messages, inbox) = channel();
        let (ending, ended) = sync_channel(1);
        let block = Arc::new(spec.block);
        let mut rounds = Rounds::new(manager, inbox, Arc::clone(&wake), Arc::clone(&block));
        let on_failure = spec.on_failure;
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| rounds.run()));
                rounds.end(outcome, on_failure);
                drop(rounds);
                // The owner may be gone.
                let _ = ending.send(());
            })
            .map_err(start)?;
        Ok(IoThread {
            name,
            messages,
            wake,
            ended,
            thread: Some(thread),
            block,
            events: spec.events,
            devices: Vec::new(),
        })
    }

    /// Moves `device` to the thread and gives its register file, which a transport puts before the
    /// guest. Buffers are looked up in `ram`. The device is dropped with the thread.
    ///
    /// # Errors
    /// What the host refused, or that the thread has ended.
    pub fn attach(
        &mut self,
        device: Box<dyn VirtioDevice>,
        counters: DeviceCounters,
        ram: &GuestRam,
    ) -> Result<Front, IoThreadError> {
        let profile = device.profile();
        let start = |source| IoThreadError::Start {
            name: profile.name.clone(),
            source,
        };
        let link = DeviceLink::new(profile.name.clone(), Arc::clone(&profile.config));
        let link = Arc::new(link.map_err(start)?);
        let wake = Arc::new(event().map_err(start)?);
        let kicks: Vec<_> = (0..profile.queue_max_sizes.len())
            .map(|_| event().map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(start)?;
        let number = u16::try_from(self.devices.len() + 1).unwrap_or(u16::MAX);
        let witness = Arc::new(Witness {
            device: counters.device,
            thread: Arc::clone(&self.block),
            link: Arc::clone(&link),
            clock: Clock::process(),
            number,
            operations: profile.operations,
            events: self.events.clone(),
            told_at: Gauge::default(),
        });
        let ram = Arc::new(ram.clone());
        let queues = (0..)
            .zip(&profile.queue_max_sizes)
            .zip(counters.queues)
            .map(|((index, max_size), block)| {
                let (ram, witness) = (Arc::clone(&ram), Arc::clone(&witness));
                QueueRunner::new(index, *max_size, ram, block, witness)
            })
            .collect();
        let (mail, mailbox) = channel();
        let (own_kicks, own_wake) = (kicks.clone(), Arc::clone(&wake));
        let attached = DeviceLoop::new(device, queues, own_kicks, own_wake, mailbox, witness);
        self.devices.push((mail.clone(), Arc::clone(&wake)));
        self.send(Message::Attach(Box::new(attached), Arc::clone(&link)))?;
        let transport = counters.transport;
        Ok(Front::new(&profile, link, kicks, mail, wake, transport))
    }

    fn send(&self, message: Message) -> Result<(), IoThreadError> {
        let sent = self.messages.send(message);
        signal(&self.wake);
        sent.map_err(|_| self.gone())
    }

    fn gone(&self) -> IoThreadError {
        IoThreadError::Ended {
            name: self.name.clone(),
        }
    }

    /// Stops serving: when this returns, all devices have finished what they had begun and begin
    /// nothing more until [`IoThread::resume`]. Pause the vCPUs first.
    ///
    /// # Errors
    /// When a device does not confirm before the deadline (all have been asked), or the thread has
    /// ended.
    pub fn pause(&self, deadline: Duration) -> Result<(), IoThreadError> {
        self.ask_all("pause", deadline, |done| Control::Pause { done })
    }

    /// Goes on serving: when this returns, all queues have been looked into.
    ///
    /// # Errors
    /// As [`IoThread::pause`].
    pub fn resume(&self, deadline: Duration) -> Result<(), IoThreadError> {
        self.ask_all("resume", deadline, |done| Control::Resume { done })
    }

    /// The name of the thread.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes a device, by its place in the order of attachment, running or paused.
    ///
    /// # Errors
    /// When the device refuses it, and then stays as it was; as [`IoThread::pause`].
    pub fn change(
        &self,
        device: usize,
        change: DeviceChange,
        deadline: Duration,
    ) -> Result<(), IoThreadError> {
        let (mail, wake) = self.devices.get(device).ok_or_else(|| self.gone())?;
        let (done, answer) = sync_channel(1);
        let control = Control::Change { change, done };
        mail.send(control).map_err(|_| self.gone())?;
        signal(wake);
        match answer.recv_timeout(deadline) {
            Ok(outcome) => outcome.map_err(IoThreadError::Refused),
            Err(RecvTimeoutError::Timeout) => Err(self.missed("change its device", deadline)),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
        }
    }

    fn ask_all(
        &self,
        what: &'static str,
        deadline: Duration,
        control: impl Fn(SyncSender<()>) -> Control,
    ) -> Result<(), IoThreadError> {
        let until = Instant::now() + deadline;
        let mut answers = Vec::new();
        for (mail, wake) in &self.devices {
            let (done, answer) = sync_channel(1);
            mail.send(control(done)).map_err(|_| self.gone())?;
            signal(wake);
            answers.push(answer);
        }
        for answer in answers {
            let left = until.saturating_duration_since(Instant::now());
            answer.recv_timeout(left).map_err(|why| match why {
                RecvTimeoutError::Timeout => self.missed(what, deadline),
                RecvTimeoutError::Disconnected => self.gone(),
            })?;
        }
        Ok(())
    }

    /// Ends the thread and drops its devices. Calling it again does nothing.
    ///
    /// # Errors
    /// When the thread does not end before the deadline; it is then left to itself.
    pub fn stop(&mut self, deadline: Duration) -> Result<(), IoThreadError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        // A thread that has ended hears nothing, and needs not.
        let _ = self.send(Message::Stop);
        if self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(self.missed("stop", deadline));
        }
        // Panics were caught and reported inside.
        let _ = thread.join();
        Ok(())
    }

    fn missed(&self, what: &'static str, deadline: Duration) -> IoThreadError {
        IoThreadError::Deadline {
            name: self.name.clone(),
            what,
            ms: deadline.as_millis(),
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if let Err(error) = self.stop(STOP_DEADLINE) {
            tracing::error!("{error}; it is left to itself");
        }
    }
}

#[cfg(test)]
mod tests;
