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
/// A machine that is silent is nudged so often before it is given up.
const NUDGES: u32 = 5;
/// One that may not be nudged is given up after this part of that time.
const UNWAKEABLE: u32 = 3;

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
    /// After how long without a sign of life it is given up.
    fn silence(&self) -> Duration;
    /// Has the machine tell what runs in it, on its console.
    fn tell(&mut self);
    /// It has told.
    fn told(&mut self);
    /// It has given no sign of life for a while: gives it an interrupt.
    fn nudge(&mut self);
    /// It is given up: tells what can be seen of it.
    fn examine(&mut self);
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
    // Its last sign of life, and that or the last nudge.
    let (mut sign, mut nudge) = (started, started);
    loop {
        let limit = if booted {
            job.timeout
        } else {
            BOOT.min(job.timeout)
        };
        let left = limit.saturating_sub(started.elapsed());
        let patience = match booted {
            true if job.wake => help.silence() / NUDGES,
            true => help.silence() / UNWAKEABLE,
            false => limit,
        };
        match words.recv_timeout(left.min(patience.saturating_sub(nudge.elapsed()))) {
            Ok(word @ (Word::Booted | Word::Pulse | Word::Told)) => {
                booted |= word == Word::Booted;
                if nudge > sign {
                    let silence = sign.elapsed().as_secs();
                    let told =
                        format!("the emulated machine stood still for {silence} s and goes on");
                    say("lab", told);
                }
                sign = Instant::now();
                nudge = sign;
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
                if !job.wake || sign.elapsed() >= help.silence() {
                    help.examine();
                    return Ok(End::StoodStill);
                }
                help.nudge();
                nudge = Instant::now();
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

        fn nudge(&mut self) {
            self.0.push("nudge");
        }

        fn examine(&mut self) {
            self.0.push("examine");
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
        help.0.retain(|what| *what != "nudge");
        assert_eq!(help.0, ["tell", "told"]);
        let _ = sender.send(Word::Closed);
        assert!(wait(&words, &job, Instant::now(), &mut help).is_err());
    }

    #[test]
    fn a_machine_that_stands_still_is_nudged_and_then_given_up() {
        let (sender, words) = channel();
        let job = Job::new(&["true"]);
        let _ = sender.send(Word::Booted);
        let mut help = Count::default();
        let end = wait(&words, &job, Instant::now(), &mut help).ok();
        assert_eq!(end, Some(End::StoodStill));
        let nudges = help.0.iter().filter(|what| **what == "nudge").count();
        assert!((1..=5).contains(&nudges), "{:?}", help.0);
        assert_eq!(help.0.len(), nudges + 1);
        assert_eq!(help.0.last(), Some(&"examine"));
    }

    #[test]
    fn a_machine_that_may_not_be_woken_is_given_up_at_once() {
        let (sender, words) = channel();
        let mut job = Job::new(&["true"]);
        job.wake = false;
        let _ = sender.send(Word::Booted);
        let mut help = Count::default();
        let end = wait(&words, &job, Instant::now(), &mut help).ok();
        assert_eq!((end, help.0), (Some(End::StoodStill), vec!["examine"]));
    }

    #[test]
    fn a_machine_that_was_nudged_and_goes_on_ends_as_it_ends() {
        /// Gives a sign of life when it is nudged.
        struct Asleep(std::sync::mpsc::Sender<Word>, u32);

        impl Help for Asleep {
            fn silence(&self) -> Duration {
                Duration::from_secs(5)
            }

            fn tell(&mut self) {}

            fn told(&mut self) {}

            fn nudge(&mut self) {
                self.1 += 1;
                for word in [Word::Pulse, Word::Exit(3)] {
                    let _ = self.0.send(word);
                }
            }

            fn examine(&mut self) {}
        }

        let (sender, words) = channel();
        let job = Job::new(&["true"]);
        let _ = sender.send(Word::Booted);
        let mut help = Asleep(sender, 0);
        let end = wait(&words, &job, Instant::now(), &mut help).ok();
        assert_eq!((end, help.1), (Some(End::Exit(3)), 1));
    }
}
