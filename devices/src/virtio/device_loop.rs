//! One device on its I/O thread: the one event subscriber that serves every kind of device.
//!
//! It reads kicks, serves queues in turns, arms and disarms the backend's descriptors, and obeys
//! the messages of the transport and of the thread's owner, which come in order through a mailbox.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use observe::Ticks;
use vmm_sys_util::eventfd::EventFd;

use super::counters::Flight;
use super::device::{DeviceChange, VirtioDevice};
use super::link::{DeviceEventKind, signal};
use super::queue::{QueueLayout, QueueRunner};
use super::witness::Witness;

/// Event data of the mailbox's eventfd.
const WAKE: u32 = 0;
/// Event data of queue 0's kicks; the others follow.
const KICKS: u32 = 1;
/// Event data of the backend with token 0; the others follow.
const BACKENDS: u32 = 0x1_0000;

/// What a device is told. Those with `done` are confirmed by a message on it.
pub(crate) enum Control {
    /// The driver set DRIVER_OK.
    Activate {
        features: u64,
        layouts: Vec<QueueLayout>,
    },
    /// The driver wrote 0 to the status register.
    Reset { done: SyncSender<()> },
    /// Stop serving; finish what is begun.
    Pause { done: SyncSender<()> },
    /// Go on.
    Resume { done: SyncSender<()> },
    /// Be another.
    Change {
        change: DeviceChange,
        done: SyncSender<Result<(), String>>,
    },
}

struct Backend {
    token: u32,
    fd: RawFd,
    armed: EventSet,
}

/// See the module.
pub(crate) struct DeviceLoop {
    device: Box<dyn VirtioDevice>,
    queues: Vec<QueueRunner>,
    kicks: Vec<Arc<EventFd>>,
    wake: Arc<EventFd>,
    mailbox: Receiver<Control>,
    backends: Vec<Backend>,
    witness: Arc<Witness>,
    active: bool,
    paused: bool,
    /// The round of the thread's loop, and when the thread turned to the device in it.
    round: Option<u64>,
    noticed: Ticks,
    /// Queues that want a turn without a kick.
    waiting: Vec<bool>,
    /// A reset is not over: the device has something unfinished.
    resetting: bool,
    /// Who is told when this round is done, and who when nothing is unfinished.
    confirm: Vec<SyncSender<()>>,
    confirm_quiet: Vec<SyncSender<()>>,
}

impl DeviceLoop {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        queues: Vec<QueueRunner>,
        kicks: Vec<Arc<EventFd>>,
        wake: Arc<EventFd>,
        mailbox: Receiver<Control>,
        witness: Arc<Witness>,
    ) -> Self {
        let backends = device.backends();
        DeviceLoop {
            waiting: vec![false; queues.len()],
            resetting: false,
            confirm: Vec::new(),
            confirm_quiet: Vec::new(),
            device,
            queues,
            kicks,
            wake,
            mailbox,
            backends: backends
                .into_iter()
                .map(|(token, fd)| Backend {
                    token,
                    fd,
                    armed: EventSet::empty(),
                })
                .collect(),
            witness,
            active: false,
            paused: false,
            round: None,
            noticed: 0,
        }
    }

    fn serving(&self) -> bool {
        self.active && !self.paused
    }

    /// Whether the device is told that the descriptor with `token` is ready.
    fn hears(&self, token: u32) -> bool {
        self.serving() || self.device.unfinished() == Some(token)
    }

    fn obey(&mut self, control: Control) {
        match control {
            Control::Activate { features, layouts } => self.activate(features, &layouts),
            Control::Reset { done } => {
                self.reset();
                self.confirm_quiet.push(done);
            }
            Control::Pause { done } => {
                if self.active {
                    self.device.pause(&mut self.queues);
                }
                self.paused = true;
                self.witness.life(Flight::Pause, 0);
                self.confirm_quiet.push(done);
            }
            Control::Resume { done } => {
                self.paused = false;
                self.waiting.fill(true);
                for queue in &mut self.queues {
                    queue.resumed();
                }
                self.witness.life(Flight::Resume, 0);
                self.confirm.push(done);
            }
            Control::Change { change, done } => {
                let outcome = self.device.change(change, &mut self.queues);
                self.waiting.fill(true);
                // Who asked may have given up waiting.
                let _ = done.try_send(outcome);
            }
        }
    }

    fn activate(&mut self, features: u64, layouts: &[QueueLayout]) {
        self.witness.life(Flight::Activate, features);
        for (queue, layout) in self.queues.iter_mut().zip(layouts) {
            if let Err(error) = queue.activate(layout, features) {
                queue.fail(error);
            }
        }
        match self.device.activate(features, &mut self.queues) {
            Ok(()) => {
                self.active = true;
                // Kicks may have come before the queues were known.
                self.waiting.fill(true);
            }
            Err(error) => {
                let reason = error.to_string();
                let why = DeviceEventKind::NotStarted { reason };
                self.witness.ask_for_reset(why);
            }
        }
    }

    fn reset(&mut self) {
        self.active = false;
        self.waiting.fill(false);
        self.device.finish(&mut self.queues);
        self.device.reset();
        self.resetting = true;
        self.finish_reset();
    }

    /// The queues go when the host touches the guest's memory no more.
    fn finish_reset(&mut self) {
        if !self.resetting || self.device.unfinished().is_some() {
            return;
        }
        self.resetting = false;
        for (queue, kick) in self.queues.iter_mut().zip(&self.kicks) {
            if let Ok(kicks) = kick.read() {
                queue.kicked(kicks, self.noticed);
            }
            queue.deactivate();
        }
        self.witness.life(Flight::Reset, 0);
    }

    fn serve(&mut self, index: usize) {
        if self.serving() {
            self.device.queue_ready(index, &mut self.queues);
        }
    }

    fn kicked(&mut self, index: usize) {
        let Some((kick, queue)) = self.kicks.get(index).zip(self.queues.get_mut(index)) else {
            return;
        };
        // Nothing to read: a reset drained it first.
        if let Ok(kicks) = kick.read() {
            queue.kicked(kicks, self.noticed);
            self.serve(index);
        }
    }

    /// Looks at queues that may have been idle, and serves those whose kick never came in the next
    /// round. Called about once a second; true asks for another look soon, for a kick that may be on
    /// its way.
    pub fn look_around(&mut self) -> bool {
        if !self.serving() {
            return false;
        }
        let now = self.witness.clock.ticks();
        let mut lost = false;
        for (queue, waiting) in self.queues.iter_mut().zip(&mut self.waiting) {
            if queue.look_around(now) {
                (*waiting, lost) = (true, true);
            }
        }
        if lost {
            signal(&self.wake);
        }
        self.queues.iter().any(QueueRunner::suspects)
    }

    fn serve_waiting(&mut self) {
        for index in 0..self.waiting.len() {
            let waiting = self.waiting.get_mut(index).map(std::mem::take);
            if waiting == Some(true) {
                self.serve(index);
            }
        }
    }

    fn end_turn(&mut self) {
        self.device.turn_ends(&mut self.queues);
        for (queue, waiting) in self.queues.iter_mut().zip(&mut self.waiting) {
            *waiting |= queue.end_turn();
        }
        if self.serving() && self.waiting.contains(&true) {
            signal(&self.wake);
        }
    }

    /// The thread ends: what the device has begun is given back.
    pub fn stop(&mut self) {
        let now = self.witness.enter();
        for queue in &mut self.queues {
            queue.begin_turn(now);
        }
        self.device.finish(&mut self.queues);
        self.end_turn();
    }

    /// Makes epoll wait for what the device waits for. A descriptor of no interest is taken out:
    /// left in, an error on it would wake the thread without end.
    fn arm(&mut self, ops: &mut EventOps) {
        let (serving, unfinished) = (self.serving(), self.device.unfinished());
        for backend in &mut self.backends {
            let wanted = match serving {
                true => self.device.interest(backend.token),
                false if unfinished == Some(backend.token) => EventSet::IN,
                false => EventSet::empty(),
            };
            if wanted == backend.armed {
                continue;
            }
            let data = BACKENDS + backend.token;
            let events = Events::with_data_raw(backend.fd, data, wanted);
            let result = match (backend.armed.is_empty(), wanted.is_empty()) {
                (true, _) => ops.add(events),
                (false, true) => ops.remove(events),
                (false, false) => ops.modify(events),
            };
            backend.armed = wanted;
            if let Err(error) = result {
                let reason = format!("its backend cannot be waited for: {error}");
                self.witness
                    .ask_for_reset(DeviceEventKind::NotStarted { reason });
            }
        }
    }
}

impl MutEventSubscriber for DeviceLoop {
    fn init(&mut self, ops: &mut EventOps) {
        self.device.attached(&mut self.queues);
        let wake = Events::with_data(&*self.wake, WAKE, EventSet::IN);
        let kicks = (KICKS..).zip(&self.kicks);
        let kicks = kicks.map(|(data, kick)| Events::with_data(&**kick, data, EventSet::IN));
        for events in std::iter::once(wake).chain(kicks) {
            if let Err(error) = ops.add(events) {
                let reason = format!("its events cannot be waited for: {error}");
                self.witness
                    .ask_for_reset(DeviceEventKind::NotStarted { reason });
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let now = self.witness.enter();
        let round = Some(self.witness.thread.loops.value());
        if self.round != round {
            (self.round, self.noticed) = (round, now);
        }
        for queue in &mut self.queues {
            queue.begin_turn(now);
        }
        if events.data() == WAKE {
            // Read before the mailbox, so that a message sent meanwhile wakes the thread again; and
            // before serving, so that a turn asked for meanwhile is not lost.
            let _ = self.wake.read();
        }
        // Messages first: a kick may belong to the activation that waits behind it.
        while let Ok(control) = self.mailbox.try_recv() {
            self.obey(control);
        }
        match events.data() {
            data @ BACKENDS.. if self.hears(data - BACKENDS) => {
                let token = data - BACKENDS;
                let ready = events.event_set();
                self.device.backend_ready(token, ready, &mut self.queues);
            }
            data @ KICKS..BACKENDS => self.kicked((data - KICKS) as usize),
            _ => {}
        }
        for (index, waiting) in self.waiting.iter_mut().enumerate() {
            *waiting |= self.device.wants_turn(index);
        }
        self.serve_waiting();
        self.end_turn();
        self.finish_reset();
        self.arm(ops);
        let quiet = self.device.unfinished().is_none();
        let quiet = quiet.then(|| self.confirm_quiet.drain(..));
        for done in self.confirm.drain(..).chain(quiet.into_iter().flatten()) {
            // Who asked may have given up waiting.
            let _ = done.try_send(());
        }
    }
}
