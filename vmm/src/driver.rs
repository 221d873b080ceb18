//! The `vm` thread: the state driver. It owns the [`Machine`], takes events before commands, and
//! is the only one that changes the VM's state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use devices::legacy::{GuestMessage, MessageKind, PanicKind};
use devices::virtio::{BalloonOrder, DeviceChange, DeviceEvent};
use observe::blackbox::End;
use observe::verdict::Change;

use crate::dump::{CaptureReply, DumpError, Holding};
use crate::inspect::Request;
use crate::lifecycle::{Admission, VmCommand, VmState, admit};
use crate::machine::Machine;
use crate::vcpu::{Report, ReportKind};
use crate::vm::{CommandError, Outcome, Reply, Shared, VmEvent};

/// What reaches the `vm` thread.
pub enum Message {
    /// From a vCPU.
    Vcpu(Report),
    /// From a device on its I/O thread.
    Device(DeviceEvent),
    /// An I/O thread panicked.
    ThreadFailed {
        /// Its name.
        thread: String,
        /// The panic's message.
        detail: String,
    },
    /// From the watcher: what it judges has changed, at that `CLOCK_MONOTONIC` time.
    Verdict(Change, u64),
    /// The guest's kernel said that something is wrong.
    Guest(GuestMessage),
    /// The guest's kernel told the pvpanic device so.
    Panic(PanicKind),
    /// A dump asks for what it needs of the paused machine.
    Capture(CaptureReply),
    /// From a handle: the owner gives the VM up, for this reason.
    Fail(String),
    /// The operator pressed the console's stop key.
    StopKey,
    /// From a handle.
    Command(VmCommand, Reply),
    /// From a handle: an order to the balloon.
    Balloon(BalloonOrder, Reply),
    /// From a handle: a change of the drive or interface of this id.
    ChangeDevice(String, DeviceChange, Reply),
    /// From a handle: a look into this vCPU.
    Inspect(u8, Request),
}

/// The state driver.
pub struct Driver {
    machine: Machine,
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
    events: Box<dyn Fn(VmEvent) + Send>,
    waiting_events: VecDeque<Message>,
    waiting_commands: VecDeque<(VmCommand, Reply)>,
    /// Pauses and NMIs so far: the number of the newest.
    asked: u64,
    /// A dump that keeps the VM paused.
    holding: Holding,
    /// The guest's kernel gave up, with these words.
    panic: Option<String>,
    /// It told the pvpanic device so; the first that it told.
    told: Option<PanicKind>,
}

/// Whether the VM goes on.
type Flow = Result<(), Outcome>;

impl Driver {
    /// A driver for a machine that is built and not yet started.
    pub(crate) fn new(
        machine: Machine,
        shared: Arc<Shared>,
        inbox: Receiver<Message>,
        events: Box<dyn Fn(VmEvent) + Send>,
    ) -> Self {
        let (waiting_events, waiting_commands) = (VecDeque::new(), VecDeque::new());
        Driver {
            machine,
            shared,
            inbox,
            events,
            waiting_events,
            waiting_commands,
            asked: 0,
            holding: Holding::default(),
            panic: None,
            told: None,
        }
    }

    /// Runs the VM from start to end. `started` says whether whoever launched it still waits: if
    /// not, nobody has a handle on the VM, and it ends.
    pub(crate) fn main(mut self, started: impl FnOnce() -> bool) {
        self.machine.start();
        self.enter(VmState::Running);
        (self.events)(VmEvent::Started);
        if !started() {
            let text = "the launch took too long and was given up".to_owned();
            return self.end(Outcome::Failed(text));
        }
        let outcome = loop {
            if let Err(outcome) = self.turn() {
                break outcome;
            }
        };
        self.end(outcome);
    }

    fn enter(&self, state: VmState) {
        self.shared.state.store(state as u8, Ordering::Release);
    }

    fn state(&self) -> VmState {
        VmState::of(self.shared.state.load(Ordering::Acquire))
    }

    /// Waits for something, sorts all that is there, and serves events first.
    fn turn(&mut self) -> Flow {
        self.machine.idle();
        match self.inbox.recv_timeout(PULSE) {
            Ok(message) => self.sort(message),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            // No handle and no vCPU is left that could say anything.
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Outcome::Failed("all threads of the VM are gone".to_owned()));
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.sort(message);
        }
        while let Some(event) = self.waiting_events.pop_front() {
            self.event(event)?;
        }
        while let Some((command, reply)) = self.waiting_commands.pop_front() {
            self.command(command, reply)?;
            while let Some(event) = self.waiting_events.pop_front() {
                self.event(event)?;
            }
        }
        Ok(())
    }

    fn sort(&mut self, message: Message) {
        match message {
            Message::Command(command, reply) => self.waiting_commands.push_back((command, reply)),
            // At once, also while a pause waits for a vCPU: it may be that one which is asked for.
            Message::Inspect(vcpu, request) => self.machine.inspect(vcpu, request),
            event => self.waiting_events.push_back(event),
        }
    }

    fn event(&mut self, message: Message) -> Flow {
        match message {
            Message::Vcpu(Report { vcpu, kind }) => match kind {
                // Late answer to a command that was given up.
                ReportKind::Paused(_) | ReportKind::Nmi(_) => {
                    tracing::debug!("vcpu {vcpu} answered late");
                    Ok(())
                }
                ReportKind::Reset(cause) => Err(Outcome::Reset(cause)),
                ReportKind::PowerOff => Err(match self.machine.exit_code() {
                    Some(code) => Outcome::Exit(code),
                    None => Outcome::PowerOff,
                }),
                ReportKind::Failed(detail) => Err(Outcome::Failed(detail)),
            },
            Message::Device(event) => {
                let (device, detail) = (event.device, event.kind.to_string());
                tracing::warn!("device {device}: {detail}");
                (self.events)(VmEvent::Device { device, detail });
                Ok(())
            }
            Message::Verdict(change, at_ns) => {
                (self.events)(VmEvent::Verdict(change, at_ns));
                Ok(())
            }
            Message::Guest(message) => {
                self.note(&message);
                (self.events)(VmEvent::Guest(message));
                Ok(())
            }
            Message::Panic(kind) => {
                self.told(kind);
                (self.events)(VmEvent::GuestPanic(kind));
                Ok(())
            }
            Message::ThreadFailed { thread, detail } => Err(Outcome::Failed(format!(
                "thread {thread} panicked: {detail}"
            ))),
            Message::Capture(reply) => {
                reply(match self.state() {
                    VmState::Paused => self.machine.capture(&mut self.holding),
                    _ => Err(DumpError::Resumed),
                });
                Ok(())
            }
            Message::Fail(reason) => Err(Outcome::Failed(reason)),
            Message::StopKey => Err(Outcome::Stopped),
            Message::Command(command, reply) => self.command(command, reply),
            Message::Balloon(order, reply) => {
                reply(self.balloon(order));
                Ok(())
            }
            Message::ChangeDevice(id, change, reply) => {
                let done = self.machine.change_device(&id, change);
                reply(done.map_err(CommandError::Refused));
                Ok(())
            }
            Message::Inspect(vcpu, request) => {
                self.machine.inspect(vcpu, request);
                Ok(())
            }
        }
    }

    fn command(&mut self, command: VmCommand, reply: Reply) -> Flow {
        self.machine.busy(command);
        let admission = match self.holding.refuses(command) {
            true => Admission::Deny("a dump of the microVM is being written; wait for its end"),
            false => admit(self.state(), command),
        };
        let answer = match admission {
            Admission::Already => Ok(()),
            Admission::Deny(reason) => Err(CommandError::Denied {
                command: command.word(),
                reason,
            }),
            Admission::Accept => match command {
                VmCommand::Pause => self.pause(),
                VmCommand::Resume => self.resume(),
                VmCommand::CtrlAltDel => self.machine.ctrl_alt_del(),
                VmCommand::Nmi => self.nmi(),
                // Comes with its order, as a message of its own.
                VmCommand::Balloon => Ok(()),
                VmCommand::Stop => {
                    reply(Ok(()));
                    return Err(Outcome::Stopped);
                }
            },
        };
        reply(answer);
        Ok(())
    }

    fn balloon(&self, order: BalloonOrder) -> Result<(), CommandError> {
        let command = VmCommand::Balloon;
        match admit(self.state(), command) {
            Admission::Deny(reason) => Err(CommandError::Denied {
                command: command.word(),
                reason,
            }),
            _ => Ok(self.machine.balloon(order)?),
        }
    }

    /// vCPUs first, so that the guest makes no new work, then devices.
    fn pause(&mut self) -> Result<(), CommandError> {
        self.asked += 1;
        let end = Instant::now() + self.machine.deadline();
        self.machine.pause_vcpus(self.asked);
        if let Err(late) = self.await_answers(end) {
            self.machine.resume_vcpus();
            return Err(self.too_late(VmCommand::Pause, late));
        }
        if let Err(late) = self.machine.pause_devices(end) {
            if let Err(stuck) = self.machine.resume_devices() {
                tracing::error!("after a pause that was given up: {stuck}");
            }
            self.machine.resume_vcpus();
            return Err(self.too_late(VmCommand::Pause, late));
        }
        self.enter(VmState::Paused);
        (self.events)(VmEvent::Paused);
        Ok(())
    }

    /// Done when every vCPU has the NMI waiting for it: the guest takes it when it runs next.
    fn nmi(&mut self) -> Result<(), CommandError> {
        self.asked += 1;
        let end = Instant::now() + self.machine.deadline();
        self.machine.nmi(self.asked);
        if let Err(late) = self.await_answers(end) {
            return Err(self.too_late(VmCommand::Nmi, late));
        }
        (self.events)(VmEvent::NmiSent);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), CommandError> {
        if let Err(late) = self.machine.resume_devices() {
            return Err(self.too_late(VmCommand::Resume, late));
        }
        self.machine.resume_vcpus();
        self.enter(VmState::Running);
        (self.events)(VmEvent::Resumed);
        Ok(())
    }

    fn too_late(&self, command: VmCommand, late: String) -> CommandError {
        let ms = self.machine.deadline().as_millis() as u64;
        CommandError::Deadline {
            command: command.word(),
            late,
            ms,
        }
    }

    /// Waits until every vCPU has done what was asked last, within the deadline. Whatever else comes
    /// meanwhile is kept; a vCPU whose guest ends meanwhile counts as done.
    fn await_answers(&mut self, end: Instant) -> Result<(), String> {
        let mut missing = self.machine.vcpu_mask();
        while missing != 0 {
            let left = end.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Message::Vcpu(report)) => match report.kind {
                    // The late answer to what was given up says nothing of this one.
                    ReportKind::Paused(number) | ReportKind::Nmi(number)
                        if number != self.asked => {}
                    ReportKind::Paused(_) | ReportKind::Nmi(_) => {
                        missing &= !(1u64 << (report.vcpu & 63));
                    }
                    _ => {
                        missing &= !(1u64 << (report.vcpu & 63));
                        self.waiting_events.push_back(Message::Vcpu(report));
                    }
                },
                Ok(other) => self.sort(other),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(format!("vcpu-{}", missing.trailing_zeros()));
                }
            }
        }
        Ok(())
    }

    /// Remembers a panic: what the guest does then is no reboot that anybody asked for.
    fn note(&mut self, message: &GuestMessage) {
        if message.kind == MessageKind::Panic && self.panic.is_none() {
            let line = message.line.chars().take(PANIC_CHARS);
            let shown = line.map(|c| if c.is_control() { ' ' } else { c });
            self.panic = Some(shown.collect());
        }
    }

    /// As [`Driver::note`], of what the pvpanic device was told.
    fn told(&mut self, kind: PanicKind) {
        self.told = self.told.or(Some(kind));
    }

    /// How the VM ended, in the light of what the guest's kernel said before.
    fn judged(&mut self, outcome: Outcome) -> Outcome {
        let is_the_guests = matches!(outcome, Outcome::Reset(_) | Outcome::PowerOff);
        let told = self.told.map(|kind| match kind {
            PanicKind::Panicked => "it told pvpanic",
            PanicKind::CrashLoaded => "it told pvpanic, and had a crash kernel",
        });
        // Its own words say more.
        let line = self.panic.take().or_else(|| told.map(str::to_owned));
        match line.filter(|_| is_the_guests) {
            Some(line) => Outcome::Panicked {
                line,
                then: outcome.to_string(),
            },
            None => outcome,
        }
    }

    /// Stops everything, closes the black box, and says how it ended: the last event.
    fn end(mut self, outcome: Outcome) {
        self.enter(VmState::Stopping);
        self.machine.busy(VmCommand::Stop);
        let mut outcome = outcome;
        if let Err(late) = self.machine.stop() {
            let text = format!("{late} did not stop within {:?}", self.machine.deadline());
            tracing::error!("{text}");
            outcome = match outcome {
                Outcome::Failed(first) => Outcome::Failed(format!("{first}; then {text}")),
                _ => Outcome::Failed(text),
            };
        }
        // The guest's last words come when the console is emptied.
        let rest: Vec<Message> = self.inbox.try_iter().collect();
        self.waiting_events.extend(rest);
        for message in std::mem::take(&mut self.waiting_events) {
            match &message {
                Message::Guest(words) => self.note(words),
                Message::Panic(kind) => self.told(*kind),
                _ => {}
            }
            self.waiting_events.push_back(message);
        }
        let outcome = self.judged(outcome);
        match &outcome {
            Outcome::Failed(detail) => self.machine.close_black_box(End::Failed, detail),
            Outcome::Panicked { .. } => {
                self.machine
                    .close_black_box(End::Failed, &outcome.to_string());
            }
            other => self.machine.close_black_box(End::Clean, &other.to_string()),
        }
        self.enter(VmState::Ended);
        let Driver {
            machine,
            events,
            inbox,
            mut waiting_commands,
            waiting_events,
            ..
        } = self;
        drop(machine);
        // Commands that came too late are answered, not lost.
        for message in waiting_events.into_iter().chain(inbox.try_iter()) {
            match message {
                Message::Command(command, reply) => waiting_commands.push_back((command, reply)),
                Message::Balloon(_, reply) | Message::ChangeDevice(_, _, reply) => {
                    reply(Err(CommandError::Ended));
                }
                Message::Guest(message) => events(VmEvent::Guest(message)),
                Message::Panic(kind) => events(VmEvent::GuestPanic(kind)),
                _ => {}
            }
        }
        for (_, reply) in waiting_commands {
            reply(Err(CommandError::Ended));
        }
        drop(inbox);
        events(VmEvent::Ended(outcome));
    }
}

/// How often the thread wakes without a cause: it dates the black box, so that the time of a sudden
/// death is known.
const PULSE: Duration = Duration::from_secs(1);
/// Characters of a panic's line that are kept.
const PANIC_CHARS: usize = 160;
/// How often a wait for a thread's end looks.
pub(crate) const JOIN_POLL: Duration = Duration::from_millis(1);
