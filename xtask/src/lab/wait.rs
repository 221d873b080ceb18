//! Waiting for a job's end, or for what comes in its place: words of the emulated machine, and its
//! silence.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{End, Job};
use crate::error::{Result, fail};
use crate::program::say;

/// The machine is up in seconds; on a host that does much else, in tens of seconds.
const BOOT: Duration = Duration::from_secs(180);
/// A machine tells what runs in it within this time.
const TELL: Duration = Duration::from_secs(10);

/// Word from the machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// It is up.
    Booted,
    /// It lives.
    Pulse,
    /// It has told what runs in it.
    Told,
    /// The command has ended.
    Exit(u8),
    /// It gave up.
    Error(String),
    /// It is gone.
    Closed,
}

/// A line of the machine's, if it is one.
pub fn parse(line: &str) -> Option<Word> {
    match line.split_once(' ') {
        None if line == "booted" => Some(Word::Booted),
        None if line == "pulse" => Some(Word::Pulse),
        None if line == "told" => Some(Word::Told),
        Some(("exit", status)) => status.trim().parse().ok().map(Word::Exit),
        Some(("error", text)) => Some(Word::Error(text.to_owned())),
        _ => None,
    }
}

/// What may be done for a machine from outside.
pub trait Help {
    /// How long a machine that is well may give no sign of life.
    fn silence(&self) -> Duration;
    /// Has the machine tell what runs in it, on its console.
    fn tell(&mut self);
    /// It has told.
    fn told(&mut self);
    /// It gives no sign of life: tells what can be seen of it, and wakes it.
    fn wake(&mut self);
}

/// Waits for the job's end, or for what comes in its place.
///
/// # Errors
/// The machine gave up or died.
pub fn wait(
    words: &Receiver<Word>,
    job: &Job,
    started: Instant,
    help: &mut impl Help,
) -> Result<End> {
    let mut booted = false;
    let mut sign = started;
    let mut was_woken = false;
    loop {
        let limit = if booted {
            job.timeout
        } else {
            BOOT.min(job.timeout)
        };
        let left = limit.saturating_sub(started.elapsed());
        let silence = if booted { help.silence() } else { limit };
        match words.recv_timeout(left.min(silence.saturating_sub(sign.elapsed()))) {
            Ok(word @ (Word::Booted | Word::Pulse | Word::Told)) => {
                booted |= word == Word::Booted;
                sign = Instant::now();
                if std::mem::take(&mut was_woken) {
                    say("lab", "the emulated machine goes on");
                }
            }
            Ok(Word::Exit(status)) => return Ok(End::Exit(status)),
            Ok(Word::Error(text)) => return fail(format!("the emulated machine gave up: {text}")),
            Ok(Word::Closed) | Err(RecvTimeoutError::Disconnected) => {
                let when = if booted {
                    "before the command had ended"
                } else {
                    "while it booted"
                };
                return fail(format!("the emulated machine died {when}"));
            }
            Err(RecvTimeoutError::Timeout) if started.elapsed() < limit => {
                if was_woken {
                    return Ok(End::StoodStill);
                }
                help.wake();
                (sign, was_woken) = (Instant::now(), true);
            }
            Err(RecvTimeoutError::Timeout) if booted || job.timeout <= BOOT => {
                time_is_up(words, help);
                return Ok(End::TimeUp);
            }
            Err(RecvTimeoutError::Timeout) => {
                return fail(format!(
                    "the emulated machine was not up within {} s",
                    BOOT.as_secs()
                ));
            }
        }
    }
}

/// Has the machine tell what its job is at.
fn time_is_up(words: &Receiver<Word>, help: &mut impl Help) {
    help.tell();
    let end = Instant::now() + TELL;
    loop {
        match words.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Word::Told) | Err(RecvTimeoutError::Timeout) => return help.told(),
            Ok(Word::Booted | Word::Pulse) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn words_of_the_machine() {
        assert_eq!(parse("booted"), Some(Word::Booted));
        assert_eq!(parse("exit 3"), Some(Word::Exit(3)));
        assert_eq!(
            parse("error no root"),
            Some(Word::Error("no root".to_owned()))
        );
        assert_eq!(parse("exit many"), None);
    }

    /// Counts what is done.
    #[derive(Default)]
    struct Count(Vec<&'static str>);

    impl Help for Count {
        fn silence(&self) -> Duration {
            Duration::from_millis(30)
        }

        fn tell(&mut self) {
            self.0.push("tell");
        }

        fn told(&mut self) {
            self.0.push("told");
        }

        fn wake(&mut self) {
            self.0.push("wake");
        }
    }

    #[test]
    fn a_job_that_takes_too_long_is_given_up_and_its_machine_tells() {
        let (sender, words) = channel();
        let mut job = Job::new(&["true"]);
        job.timeout = Duration::from_millis(20);
        let mut help = Count::default();
        let _ = sender.send(Word::Booted);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                let _ = sender.send(Word::Told);
            });
            let end = wait(&words, &job, Instant::now(), &mut help).ok();
            assert_eq!(end, Some(End::TimeUp));
        });
        assert_eq!(help.0, ["tell", "told"]);
        let _ = sender.send(Word::Closed);
        assert!(wait(&words, &job, Instant::now(), &mut help).is_err());
    }

    #[test]
    fn a_machine_that_stands_still_is_woken_once_and_then_given_up() {
        let (sender, words) = channel();
        let job = Job::new(&["true"]);
        let _ = sender.send(Word::Booted);
        let mut help = Count::default();
        let end = wait(&words, &job, Instant::now(), &mut help).ok();
        assert_eq!((end, help.0), (Some(End::StoodStill), vec!["wake"]));
    }
}
