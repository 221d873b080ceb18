//! Signals that kill the process, from within or without: the terminal is put back before they do.
#![allow(unsafe_code)] // sigaction(2), which std does not offer.

use std::ptr;
use std::sync::OnceLock;

use api::vmm::restore_terminal;
use libc::{c_int, c_void, sigaction, siginfo_t};

/// The signals; all of them dump core by default, and still do.
const SIGNALS: [c_int; 6] = [
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

/// What these signals did before; std tells of an overflowed stack by SIGSEGV and SIGBUS.
static BEFORE: OnceLock<[sigaction; SIGNALS.len()]> = OnceLock::new();

/// Installs the handlers. A second call has no effect.
pub fn install() {
    let before = SIGNALS.map(|signal| {
        // SAFETY: a zeroed action is the default one; asking changes nothing.
        unsafe {
            let mut action: sigaction = std::mem::zeroed();
            libc::sigaction(signal, ptr::null(), &raw mut action);
            action
        }
    });
    // The handlers look there: it is filled before the first is installed.
    if BEFORE.set(before).is_err() {
        return;
    }
    for signal in SIGNALS {
        // SAFETY: a zeroed action is valid, and `die` has the form that SA_SIGINFO asks for and
        // calls async-signal-safe functions alone. SA_ONSTACK: the stack may be what overflowed.
        unsafe {
            let mut action: sigaction = std::mem::zeroed();
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = die;
            action.sa_sigaction = handler as usize;
            action.sa_flags =
                libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

/// Restores the terminal, and lets the signal do what it would have done. The default action is
/// in place already, for the handler was installed with SA_RESETHAND.
extern "C" fn die(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    restore_terminal();
    // SAFETY: with SA_SIGINFO the kernel gives a valid `info`; what follows is async-signal-safe,
    // and a filled OnceLock is read by one atomic load.
    unsafe {
        let is_fault = ![libc::SIGQUIT, libc::SIGABRT].contains(&signal) && (*info).si_code > 0;
        if !is_fault {
            libc::raise(signal);
            return;
        }
        // The instruction is tried again on return, and faults again.
        let before = BEFORE.get().into_iter().flatten();
        if let Some((_, action)) = SIGNALS.iter().zip(before).find(|(s, _)| **s == signal) {
            libc::sigaction(signal, ptr::from_ref(action), ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};

    use devices::legacy::RawTerminal;

    use super::*;

    const CHILD: &str = "VITRINE_TEST_CRASH";

    fn pty() -> (OwnedFd, OwnedFd) {
        let (mut master, mut terminal) = (-1, -1);
        // SAFETY: two writable ints; name, mode and size are not asked for. Then fresh
        // descriptors that nobody else owns.
        unsafe {
            let done = libc::openpty(
                &raw mut master,
                &raw mut terminal,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            );
            assert_eq!(done, 0);
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(terminal))
        }
    }

    fn local_flags(terminal: &OwnedFd) -> libc::tcflag_t {
        // SAFETY: a zeroed termios is valid and writable for the call.
        unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode), 0);
            mode.c_lflag & (libc::ECHO | libc::ISIG | libc::ICANON)
        }
    }

    /// Runs [`child`] as a process of its own; gives its end, its words, and whether the terminal
    /// is as it was.
    fn crash(how: &str) -> (ExitStatus, String, bool) {
        let (_master, terminal) = pty();
        let before = local_flags(&terminal);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cli::crash::tests::child", "--nocapture"])
            .env(CHILD, how)
            .stdin(File::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = process.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        let status = process.wait().unwrap();
        (status, said, local_flags(&terminal) == before)
    }

    /// Not a test but what [`crash`] runs; without its variable it does nothing.
    #[test]
    fn child() {
        let Ok(how) = std::env::var(CHILD) else {
            return;
        };
        // SAFETY: plain integers; a test's crash needs no core file.
        unsafe {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        }
        install();
        let stdin = std::io::stdin();
        let _raw = RawTerminal::enter(stdin.as_fd()).unwrap();
        let terminal = stdin.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(local_flags(&terminal), 0);
        eprintln!("raw");
        match how.as_str() {
            "abort" => std::process::abort(),
            "overflow" => println!("{}", overflow(1)),
            // SAFETY: a write to nowhere, as a test of exactly that.
            "fault" => unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
            // SAFETY: takes a number and a signal.
            signal => unsafe {
                libc::raise(signal.parse().unwrap());
            },
        }
        unreachable!("it should be dead");
    }

    #[allow(unconditional_recursion)]
    fn overflow(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 512]);
        overflow(depth + 1) + room[3]
    }

    #[test]
    fn the_terminal_is_restored_whatever_signal_kills_the_process() {
        let numbers = SIGNALS.map(|signal| (signal.to_string(), signal));
        let named = [("abort", libc::SIGABRT), ("fault", libc::SIGSEGV)];
        let named = named.map(|(how, signal)| (how.to_owned(), signal));
        for (how, signal) in numbers.into_iter().chain(named) {
            let (status, said, restored) = crash(&how);
            assert!(said.contains("raw"), "{how}: {said}");
            assert_eq!(status.signal(), Some(signal), "{how}: {said}");
            assert!(restored, "{how}: the terminal is still raw");
        }
    }

    #[test]
    fn an_overflowed_stack_is_still_told_by_name() {
        let (status, said, restored) = crash("overflow");
        assert!(said.contains("has overflowed its stack"), "{said}");
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        assert!(restored);
    }
}
