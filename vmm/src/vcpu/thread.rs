//! The vCPU thread: running, paused, stopped.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use observe::{Activity, Block, Clock, Ticks};

use super::counters::{ExitKind, VcpuBlock};
use super::exit::{Buses, Exit, Failure, Next, ResetCause, Stay, dispatch};
use super::failure;
use super::kick::{self, Kicker};
use super::kvm_run;
use crate::dump::Registers;
use crate::inspect::{Answer, Request, capture};

/// What the `vm` thread tells a vCPU.
#[derive(Clone, Debug)]
pub enum Command {
    /// Leave the guest, its state complete, and wait; the report of it carries this number, so that
    /// the late answer to a pause that was given up is not taken for that to the next.
    Pause(u64),
    /// Run the guest.
    Resume,
    /// Read the vCPU, and go on as before.
    Inspect(Request),
    /// Take an NMI; the report of it carries this number.
    Nmi(u64),
    /// End the thread.
    Stop,
}

/// What a vCPU tells the `vm` thread.
#[derive(Debug)]
pub struct Report {
    /// Which vCPU.
    pub vcpu: u8,
    /// What.
    pub kind: ReportKind,
}

/// Kinds of reports.
#[derive(Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// The pause with this number is complete.
    Paused(u64),
    /// The NMI with this number waits for the guest.
    Nmi(u64),
    /// The guest reset the machine; the vCPU waits to be stopped.
    Reset(ResetCause),
    /// The guest powered the machine off; the vCPU waits to be stopped.
    PowerOff,
    /// KVM or the thread itself cannot go on; it waits to be stopped or has ended.
    Failed(String),
}

/// What a vCPU thread is made of.
pub struct VcpuParts {
    /// Its number, which is its APIC id.
    pub index: u8,
    /// The vCPU, its registers set.
    pub fd: VcpuFd,
    /// Bytes of its kvm_run mapping.
    pub run_bytes: usize,
    /// Its block in the black box.
    pub block: Block<VcpuBlock>,
    /// The machine's buses.
    pub buses: Arc<Buses>,
    /// Where reports go.
    pub reports: Box<dyn Fn(Report) + Send>,
}

/// The `vm` thread's handle on a vCPU thread.
pub struct VcpuHandle {
    commands: Sender<Command>,
    kicker: Kicker,
    tid: Arc<AtomicI32>,
    thread: JoinHandle<()>,
}

impl VcpuHandle {
    /// Starts the thread, paused.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left.
    pub fn spawn(parts: VcpuParts, kicker: Kicker) -> io::Result<VcpuHandle> {
        kick::install_handler();
        let (commands, inbox) = channel();
        let tid = Arc::new(AtomicI32::new(0));
        let tid_cell = Arc::clone(&tid);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{}", parts.index))
            .spawn(move || main(parts, &inbox, &tid_cell))?;
        Ok(VcpuHandle {
            commands,
            kicker,
            tid,
            thread,
        })
    }

    /// Sends a command and gets the thread's attention. A thread that has ended is left alone.
    pub fn send(&mut self, command: Command) {
        if self.commands.send(command).is_err() || self.thread.is_finished() {
            return;
        }
        match self.tid.load(Ordering::Acquire) {
            // Not yet begun: it reads its commands first.
            0 => {}
            tid => self.kicker.kick(tid),
        }
    }

    /// The vCPU's registers; it must be paused, for KVM lets nobody else wait for them.
    ///
    /// # Errors
    /// What KVM says.
    pub fn registers(&self) -> Result<Registers, kvm_ioctls::Error> {
        Registers::read(self.kicker.fd())
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end of the thread, which must have been stopped.
    pub fn join(self) {
        // A panic was reported by the thread itself.
        let _ = self.thread.join();
    }
}

fn main(parts: VcpuParts, inbox: &Receiver<Command>, tid: &AtomicI32) {
    kick::block_other_signals();
    parts.block.heartbeat.claim();
    #[allow(unsafe_code)]
    // SAFETY: gettid has no arguments and cannot fail.
    tid.store(unsafe { libc::gettid() }, Ordering::Release);
    let mut vcpu = Vcpu {
        parts,
        inbox,
        clock: Clock::process(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| vcpu.main()));
    vcpu.enter(Activity::Ended);
    if let Err(panic) = outcome {
        let text = panic_text(panic.as_ref());
        vcpu.report(ReportKind::Failed(format!(
            "thread vcpu-{} panicked: {text}",
            vcpu.index()
        )));
    }
}

/// The message of a caught panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Paused,
    Running,
    Stopped,
}

struct Vcpu<'a> {
    parts: VcpuParts,
    inbox: &'a Receiver<Command>,
    clock: Clock,
}

impl Vcpu<'_> {
    fn index(&self) -> u8 {
        self.parts.index
    }

    fn report(&self, kind: ReportKind) {
        (self.parts.reports)(Report {
            vcpu: self.parts.index,
            kind,
        });
    }

    fn enter(&self, activity: Activity) {
        self.parts
            .block
            .heartbeat
            .enter(activity, self.clock.ticks());
    }

    fn main(&mut self) {
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Paused => self.paused(),
                State::Running => self.running(),
                State::Stopped => return,
            };
        }
    }

    /// Waits for a command. The `vm` thread owns this wait: it ends when its channel does.
    fn paused(&mut self) -> State {
        let since = self.clock.ticks();
        let block = &self.parts.block;
        block.heartbeat.enter(Activity::Paused, since);
        let command = loop {
            match self.inbox.recv() {
                Ok(Command::Inspect(request)) => self.inspect(&request),
                other => break other,
            }
        };
        let now = self.clock.ticks();
        block.paused_ns.add(self.clock.ns_between(since, now));
        match command {
            Ok(Command::Resume) => State::Running,
            Ok(Command::Pause(number)) => {
                self.report(ReportKind::Paused(number));
                State::Paused
            }
            // The loop above takes inspections.
            Ok(Command::Inspect(_)) => State::Paused,
            Ok(Command::Nmi(number)) => {
                self.nmi(number);
                State::Paused
            }
            Ok(Command::Stop) | Err(_) => State::Stopped,
        }
    }

    /// Reads the vCPU for somebody who still waits for it.
    fn inspect(&self, request: &Request) {
        if !request.is_wanted() {
            return;
        }
        let since = self.clock.ticks();
        let mut sight = capture(&self.parts.fd, self.index(), request.ram.as_deref());
        self.parts.block.inspections.inc();
        if let Ok(sight) = &mut sight {
            sight.view.took_ns = self.clock.ns_between(since, self.clock.ticks());
        }
        request.answer(Answer::Done(sight));
    }

    /// Runs the guest until a command or the guest itself ends that.
    fn running(&mut self) -> State {
        match self.command() {
            State::Running => {}
            other => return other,
        }
        let mut resumed = self.clock.ticks();
        loop {
            let (next, left) = self.step(resumed);
            resumed = left;
            match next {
                Next::Resume => {}
                Next::CheckCommands => match self.command() {
                    State::Running => {}
                    other => return other,
                },
                Next::Reset(cause) => return self.leave(ReportKind::Reset(cause)),
                Next::PowerOff => return self.leave(ReportKind::PowerOff),
                Next::Fail(failure) => {
                    let text = self.describe(&failure);
                    return self.leave(ReportKind::Failed(text));
                }
            }
        }
    }

    fn step(&mut self, resumed: Ticks) -> (Next, Ticks) {
        let VcpuParts {
            fd,
            block,
            buses,
            run_bytes,
            ..
        } = &mut self.parts;
        step(fd, *run_bytes, buses, block, self.clock, resumed)
    }

    /// Reads the commands that came while the guest ran, or before it was entered: a kick that was
    /// cleared has its command read here, one that comes later interrupts the next KVM_RUN.
    fn command(&mut self) -> State {
        self.parts.fd.set_kvm_immediate_exit(0);
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Resume) => {}
                Ok(Command::Inspect(request)) => self.inspect(&request),
                Err(TryRecvError::Empty) => return State::Running,
                Ok(Command::Nmi(number)) => self.nmi(number),
                Ok(Command::Pause(number)) => return self.pause(number),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return State::Stopped,
            }
        }
    }

    /// KVM delivers it at the next entry. On this thread, for KVM_NMI waits while the vCPU runs.
    fn nmi(&mut self, number: u64) {
        match self.parts.fd.nmi() {
            Ok(()) => self.parts.block.nmis.inc(),
            Err(error) => tracing::error!("vcpu {}: KVM_NMI failed: {error}", self.index()),
        }
        self.report(ReportKind::Nmi(number));
    }

    fn pause(&mut self, number: u64) -> State {
        if let Err(state) = self.drain() {
            return state;
        }
        // Tells the guest's watchdogs that it was stopped; a guest without kvm-clock refuses.
        let _ = self.parts.fd.kvmclock_ctrl();
        self.parts.block.pauses.inc();
        // Before the report: who is told that the VM is paused shall see that its vCPUs are.
        self.enter(Activity::Paused);
        self.report(ReportKind::Paused(number));
        State::Paused
    }

    /// Completes a half-done port or MMIO access: KVM takes its result at the next KVM_RUN, which
    /// is told to return at once (api.rst, KVM_EXIT_IO note). An access in several parts asks for
    /// more handlers before it is complete.
    fn drain(&mut self) -> Result<(), State> {
        loop {
            self.parts.fd.set_kvm_immediate_exit(1);
            let (next, _) = self.step(self.clock.ticks());
            self.parts.fd.set_kvm_immediate_exit(0);
            match next {
                Next::CheckCommands => return Ok(()),
                Next::Resume => {}
                Next::Reset(cause) => return Err(self.leave(ReportKind::Reset(cause))),
                Next::PowerOff => return Err(self.leave(ReportKind::PowerOff)),
                Next::Fail(failure) => {
                    let text = self.describe(&failure);
                    return Err(self.leave(ReportKind::Failed(text)));
                }
            }
        }
    }

    fn describe(&self, failure: &Failure) -> String {
        let registers = self.parts.fd.get_regs().ok();
        failure::describe(self.index(), failure, registers.as_ref())
    }

    /// The guest has left for good: waits to be stopped.
    fn leave(&mut self, kind: ReportKind) -> State {
        self.report(kind);
        State::Paused
    }
}

/// One KVM_RUN and what it asks for. `resumed` is when the last handler ended; gives when this one
/// did.
#[inline]
pub fn step(
    fd: &mut VcpuFd,
    run_bytes: usize,
    buses: &Buses,
    block: &VcpuBlock,
    clock: Clock,
    resumed: Ticks,
) -> (Next, Ticks) {
    block.heartbeat.enter(Activity::InGuest, resumed);
    let failure = fd.run().err().map(kvm_ioctls::Error::errno);
    let stay = Stay {
        from: resumed,
        to: clock.ticks(),
    };
    let exit = match failure {
        None => kvm_run::exit(fd.get_kvm_run(), run_bytes),
        Some(errno) => refused(errno),
    };
    dispatch(exit, buses, block, clock, stay)
}

/// What an error of KVM_RUN is.
#[cold]
fn refused(errno: i32) -> Exit<'static> {
    let (kind, errno) = match errno {
        libc::EINTR | libc::EAGAIN => return Exit::Interrupted,
        libc::EFAULT => (ExitKind::MemoryFault, libc::EFAULT),
        errno => (ExitKind::Other, errno),
    };
    Exit::Fatal {
        kind,
        words: [0, 0, 0, errno.unsigned_abs().into()],
    }
}
