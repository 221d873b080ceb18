//! The signals that end the process, received by a thread of their own.
#![allow(unsafe_code)] // Signal masks and sigwait(3), which std does not offer.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::{Duration, Instant};

/// Signals that are held back and waited for.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Holds back SIGTERM, SIGINT and SIGHUP in this thread and all that it makes, and has writes
    /// to a closed pipe fail rather than kill. Call it before any thread is made.
    pub fn block() -> Signals {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, the others change and use it; the old mask is
        // not asked for; SIG_IGN is no handler that could run.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            Signals(set.assume_init())
        }
    }

    /// Waits for a signal, for so long at most; gives its number.
    pub fn wait(&self, within: Duration) -> Option<i32> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let time = libc::timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            // SAFETY: a set that was initialised; what is known of the signal is not asked for.
            let signal =
                unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), &raw const time) };
            // Interrupted: the process was stopped and goes on.
            let is_interrupted =
                signal < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
            if !is_interrupted {
                return (signal > 0).then_some(signal);
            }
        }
    }

    /// Tells each signal, from a thread named `signals`.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn listen(self, tell: impl Fn(i32) + Send + 'static) -> io::Result<()> {
        let wait = move || loop {
            let mut signal = 0;
            // SAFETY: a set that was initialised, and a place for the number.
            if unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } == 0 {
                tell(signal);
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .map(drop)
    }
}
