//! Raw mode of a terminal, undone on every way out: drop, panic, signal, exit.
//!
//! In raw mode every key reaches the guest, so the terminal raises no signals. The mode belongs
//! to the terminal and not to the process: whoever leaves without undoing it leaves an unusable
//! shell behind. One terminal at a time in a process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Why raw mode was not entered.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The descriptor is no terminal, or the terminal is gone.
    #[error("not a terminal that can be set: {0}")]
    NotATerminal(io::Error),
    /// This process is in the background: changing the mode would stop it.
    #[error("the terminal belongs to another process group: this one runs in the background")]
    Background,
    /// Another [`RawTerminal`] is alive.
    #[error("a terminal is in raw mode already")]
    Busy,
}

/// What is needed to undo raw mode. Never freed, so that a signal handler may look at it at any
/// moment: 64 bytes for each time that raw mode is entered.
struct Saved {
    fd: RawFd,
    mode: libc::termios,
}

/// The mode to restore; null when there is none.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());
static AT_EXIT: Once = Once::new();

/// A terminal in raw mode; dropping it restores the mode that it had.
#[derive(Debug)]
pub struct RawTerminal {
    /// A duplicate, so that the terminal can be restored whatever becomes of the caller's.
    _fd: OwnedFd,
}

impl RawTerminal {
    /// Puts the terminal at `fd` into raw mode, and sees to it that process exit restores it.
    ///
    /// # Errors
    /// [`TerminalError`]; the terminal is then as it was.
    #[allow(unsafe_code)]
    pub fn enter(fd: BorrowedFd) -> Result<Self, TerminalError> {
        let fd = fd
            .try_clone_to_owned()
            .map_err(TerminalError::NotATerminal)?;
        let raw_fd = fd.as_raw_fd();
        // SAFETY: termios is plain integers, for which zero is valid.
        let mut mode: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is ours, and `mode` is writable for the call.
        if unsafe { libc::tcgetattr(raw_fd, &raw mut mode) } != 0 {
            return Err(TerminalError::NotATerminal(io::Error::last_os_error()));
        }
        // SAFETY: plain system calls. A terminal that controls no session (a test's) gives -1.
        let foreground = unsafe { libc::tcgetpgrp(raw_fd) };
        // SAFETY: as above; cannot fail.
        if foreground > 0 && foreground != unsafe { libc::getpgrp() } {
            return Err(TerminalError::Background);
        }
        let saved = Box::into_raw(Box::new(Saved { fd: raw_fd, mode }));
        let free =
            SAVED.compare_exchange(ptr::null_mut(), saved, Ordering::AcqRel, Ordering::Relaxed);
        if free.is_err() {
            // SAFETY: made by Box::into_raw above and published to nobody.
            drop(unsafe { Box::from_raw(saved) });
            return Err(TerminalError::Busy);
        }
        AT_EXIT.call_once(|| {
            // SAFETY: the function is safe to call at any time. Without room for it in libc's
            // table, drop and signals still restore.
            unsafe { libc::atexit(at_exit) };
        });
        // From here on, dropping the guard undoes whatever was done.
        let guard = RawTerminal { _fd: fd };
        // SAFETY: `mode` is valid; cfmakeraw changes it in memory.
        unsafe { libc::cfmakeraw(&raw mut mode) };
        // SAFETY: `mode` is readable for the call.
        if unsafe { libc::tcsetattr(raw_fd, libc::TCSANOW, &raw const mode) } != 0 {
            return Err(TerminalError::NotATerminal(io::Error::last_os_error()));
        }
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_from_signal();
        SAVED.store(ptr::null_mut(), Ordering::Release);
    }
}

extern "C" fn at_exit() {
    restore_from_signal();
}

/// Restores the terminal that is in raw mode, if one is. Async-signal-safe and idempotent: the
/// binary calls it in its handlers of SIGQUIT, SIGABRT and of faults, before it dies; SIGTERM,
/// SIGINT and SIGHUP end it in order. `errno` is left as it was.
#[allow(unsafe_code)]
pub fn restore_from_signal() {
    let saved = SAVED.load(Ordering::Acquire);
    if saved.is_null() {
        return;
    }
    // SAFETY: what is published in SAVED is never changed or freed. Everything called is
    // async-signal-safe (signal-safety(7)) and gets pointers to valid locals. SIGTTOU is blocked
    // for the call because it would stop a process that has gone to the background.
    unsafe {
        let errno = *libc::__errno_location();
        let mut block: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut block);
        libc::sigaddset(&raw mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const block, &raw mut old);
        libc::tcsetattr((*saved).fd, libc::TCSANOW, &raw const (*saved).mode);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, ptr::null_mut());
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
pub(super) mod tests {
    use std::os::fd::{AsFd, FromRawFd};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// One raw terminal at a time in a process: tests that use one take turns.
    pub(in crate::legacy) fn turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pseudo terminal: master, terminal.
    pub(in crate::legacy) fn pty() -> (OwnedFd, OwnedFd) {
        let (mut master, mut terminal) = (-1, -1);
        // SAFETY: two writable ints; name, mode and size are not asked for.
        let result = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut terminal,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        assert_eq!(result, 0);
        // SAFETY: fresh descriptors that nobody else owns.
        unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(terminal)) }
    }

    /// The local flags: echo, signals, lines.
    pub(in crate::legacy) fn local_flags(terminal: &OwnedFd) -> libc::tcflag_t {
        // SAFETY: zeroed termios is valid and writable for the call.
        unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode), 0);
            mode.c_lflag & (libc::ECHO | libc::ISIG | libc::ICANON)
        }
    }

    #[test]
    fn the_mode_is_restored_on_drop() {
        let _turn = turn();
        let (_master, terminal) = pty();
        let before = local_flags(&terminal);
        assert_ne!(before, 0);
        let raw = RawTerminal::enter(terminal.as_fd()).unwrap();
        assert_eq!(local_flags(&terminal), 0);
        assert!(matches!(
            RawTerminal::enter(terminal.as_fd()),
            Err(TerminalError::Busy)
        ));
        drop(raw);
        assert_eq!(local_flags(&terminal), before);
        drop(RawTerminal::enter(terminal.as_fd()).unwrap());
    }

    #[test]
    fn the_mode_is_restored_when_a_panic_unwinds() {
        let _turn = turn();
        let (_master, terminal) = pty();
        let before = local_flags(&terminal);
        let result = std::panic::catch_unwind(|| {
            let _raw = RawTerminal::enter(terminal.as_fd()).unwrap();
            assert_eq!(local_flags(&terminal), 0);
            std::panic::resume_unwind(Box::new("test"));
        });
        assert!(result.is_err());
        assert_eq!(local_flags(&terminal), before);
    }

    #[test]
    fn the_mode_is_restored_from_a_signal_handler() {
        extern "C" fn handler(_: libc::c_int) {
            restore_from_signal();
        }
        let _turn = turn();
        let (_master, terminal) = pty();
        let before = local_flags(&terminal);
        let _raw = RawTerminal::enter(terminal.as_fd()).unwrap();
        // SAFETY: the handler calls async-signal-safe functions alone; SIGUSR2 is nobody else's.
        unsafe {
            libc::signal(libc::SIGUSR2, handler as *const () as libc::sighandler_t);
            libc::raise(libc::SIGUSR2);
        }
        assert_eq!(local_flags(&terminal), before);
    }

    #[test]
    fn a_file_is_no_terminal() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = RawTerminal::enter(file.as_fd()).unwrap_err();
        assert!(matches!(error, TerminalError::NotATerminal(_)), "{error}");
    }
}
