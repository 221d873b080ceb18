//! The thread `policy`: it carries out what is to be done about a verdict, one after the other. It is
//! made for the first verdict with actions, and ends with the keeper.

use std::io;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel,
};
use std::sync::{OnceLock, Weak};
use std::time::Duration;

use vmm::BalloonOrder;
use vmm::observe::verdict::Verdict;

use super::{Inner, Keeper, Wanted};
use crate::dump;
use crate::events::Event;
use crate::machine::{Command, MachineError};
use crate::policy::action::{Action, dump_path};

/// How long a command may take; the VM gives up earlier by itself.
const COMMAND_DEADLINE: Duration = Duration::from_secs(15);
/// Verdicts that may wait for their turn.
const MOST_WAITING: usize = 64;

/// What is to be done about one verdict.
pub(super) struct Task {
    /// In this run alone.
    pub run: u64,
    pub verdict: Verdict,
    pub actions: Vec<Action>,
}

/// The way to the thread.
#[derive(Default)]
pub(super) struct Actor(OnceLock<SyncSender<Task>>);

impl Actor {
    /// Hands a task over. When there is no thread for it, or too much waits, its actions are told as
    /// failed.
    pub fn give(&self, keeper: &Keeper, task: Task) {
        let sender = match self.0.get() {
            Some(sender) => sender,
            None => match begin(keeper) {
                Ok(sender) => self.0.get_or_init(|| sender),
                Err(error) => {
                    let why = format!("no thread for it: {error}; raise the limit on threads");
                    return refuse(keeper, &task, &why);
                }
            },
        };
        if let Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) =
            sender.try_send(task)
        {
            let why = format!("{MOST_WAITING} verdicts wait for their actions already");
            refuse(keeper, &task, &why);
        }
    }
}

fn refuse(keeper: &Keeper, task: &Task, why: &str) {
    for action in &task.actions {
        tell(keeper, &task.verdict, action, None, Err(why.into()));
    }
}

fn begin(keeper: &Keeper) -> io::Result<SyncSender<Task>> {
    let (sender, inbox) = sync_channel(MOST_WAITING);
    let keeper = std::sync::Arc::downgrade(&keeper.0);
    let thread = std::thread::Builder::new().name("policy".to_owned());
    thread.spawn(move || main(&keeper, &inbox))?;
    Ok(sender)
}

fn main(keeper: &Weak<Inner>, inbox: &Receiver<Task>) {
    while let Ok(task) = inbox.recv() {
        let Some(inner) = keeper.upgrade() else {
            return;
        };
        act(&Keeper(inner), &task);
    }
}

/// One that fails does not keep the next from its turn.
fn act(keeper: &Keeper, task: &Task) {
    for action in &task.actions {
        let path = match action {
            Action::Dump { kind, path } => {
                Some(dump_path(path, &keeper.id(), task.verdict.code, *kind))
            }
            _ => None,
        };
        let done = match keeper.is_in(task.run) {
            false => Err("the run that it was for is over".into()),
            true => match (action, &path) {
                (Action::Nmi, _) => command(keeper, Command::Nmi),
                (Action::Deflate, _) => {
                    let none = BalloonOrder::Resize { mib: 0 };
                    command(keeper, Command::Balloon(none))
                }
                (Action::Pause, _) => command(keeper, Command::Pause),
                (Action::Dump { kind, .. }, Some(path)) => {
                    dump::write_here(keeper, &keeper.0.events, *kind, path)
                }
                (Action::Wait(wait), _) => {
                    std::thread::sleep(*wait);
                    Ok(())
                }
                // Told first: what follows ends the run.
                _ => Ok(()),
            },
        };
        let is_done = done.is_ok();
        tell(
            keeper,
            &task.verdict,
            action,
            path.map(|path| path.display().to_string()),
            done,
        );
        if is_done && action.is_end() {
            end(keeper, task, action);
        }
    }
}

fn command(keeper: &Keeper, command: Command) -> Result<(), MachineError> {
    let (sender, outcome) = channel();
    let reply = move |done| drop(sender.send(done));
    // What the policy does to this run says nothing of the next one.
    keeper.pass(command, Box::new(reply));
    outcome
        .recv_timeout(COMMAND_DEADLINE)
        .unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => "the VM did not answer in time; the log may tell why",
                RecvTimeoutError::Disconnected => "the VM ended before it answered",
            }
            .into())
        })
}

fn end(keeper: &Keeper, task: &Task, action: &Action) {
    let Verdict {
        code,
        subject,
        summary,
        ..
    } = &task.verdict;
    let (code, name) = (code.name(), action.name());
    let reason = format!("{code} {subject}: {summary}; the policy says {name}");
    let is_at_once = *action == Action::Reset;
    keeper.lock().wanted = Some(Wanted {
        run: task.run,
        is_at_once,
    });
    if let Ok(machine) = keeper.machine() {
        machine.fail(reason);
    }
}

/// An action, and what came of it, to the log and the events.
fn tell(
    keeper: &Keeper,
    verdict: &Verdict,
    action: &Action,
    path: Option<String>,
    done: Result<(), MachineError>,
) {
    let (code, subject, name) = (verdict.code.name(), &verdict.subject, action.name());
    match &done {
        Ok(()) => tracing::warn!("{code} {subject}: the policy's {name} is done"),
        Err(error) => tracing::error!("{code} {subject}: the policy's {name} failed: {error}"),
    }
    keeper.0.events.push(Event::Action {
        code,
        subject: subject.to_string(),
        action: name,
        path,
        error: done.err().map(|error| error.to_string()),
    });
}
