//! The host's ends of the console: descriptors that may be slow, full, shared or gone.
//!
//! A descriptor that other processes share is never set non-blocking: the flag belongs to the open
//! file and would surprise them. Instead we look with poll before each call, move little at a
//! time, and where the kernel lets us, open the pipe or terminal a second time for ourselves.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Where the guest's input comes from.
#[derive(Debug)]
pub enum ConsoleInput {
    /// Nowhere.
    Nothing,
    /// A pipe, file, socket or terminal. A terminal is put into raw mode while the console lives.
    Stream(OwnedFd),
    /// As `Stream`; on a terminal, Ctrl-A sequences are commands.
    Terminal(OwnedFd),
}

impl ConsoleInput {
    /// This process's standard input.
    ///
    /// # Errors
    /// What the kernel says when it is closed or no descriptor is left.
    pub fn stdin() -> io::Result<Self> {
        Ok(ConsoleInput::Stream(duplicate(&io::stdin())?))
    }

    /// This process's standard input, with Ctrl-A sequences if it is a terminal.
    ///
    /// # Errors
    /// As [`Self::stdin`].
    pub fn terminal() -> io::Result<Self> {
        Ok(ConsoleInput::Terminal(duplicate(&io::stdin())?))
    }
}

/// Where the guest's output goes to.
#[derive(Debug)]
pub enum ConsoleOutput {
    /// Nowhere; it is counted.
    Nothing,
    /// A pipe, file, socket or terminal.
    Stream(OwnedFd),
}

impl ConsoleOutput {
    /// This process's standard output.
    ///
    /// # Errors
    /// What the kernel says when it is closed or no descriptor is left.
    pub fn stdout() -> io::Result<Self> {
        Ok(ConsoleOutput::Stream(duplicate(&io::stdout())?))
    }

    /// Appends to the file or FIFO at `path`; a file is made (mode 0644 less the umask) if there is
    /// none. A FIFO may have no reader yet: what is written waits in it, and in us.
    ///
    /// # Errors
    /// What the kernel says when it cannot be opened.
    pub fn path(path: &Path) -> io::Result<Self> {
        let fifo = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
        let mut options = OpenOptions::new();
        if fifo {
            // Being a reader ourselves, we neither wait for one now nor lose it later.
            options
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK);
        } else {
            options.append(true).create(true).mode(0o644);
            // A terminal given by path must not become ours.
            options.custom_flags(libc::O_NOCTTY);
        }
        Ok(ConsoleOutput::Stream(options.open(path)?.into()))
    }
}

fn duplicate(stream: &impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// An output that can be written to without waiting.
pub(super) struct Sink {
    fd: OwnedFd,
    socket: bool,
}

impl Sink {
    /// The terminal that opens a new one each time: never opened twice.
    const PTMX: u64 = libc::makedev(5, 2);

    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let file = File::from(fd);
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let socket = kind.is_socket();
        let terminal = is_terminal(file.as_raw_fd()) && metadata.rdev() != Self::PTMX;
        let waits = (kind.is_fifo() || terminal) && !is_nonblocking(file.as_raw_fd());
        let fd = if waits {
            // Not possible without /proc or on somebody else's terminal: poll must do then.
            reopen(file.as_raw_fd()).unwrap_or_else(|_| file.into())
        } else {
            file.into()
        };
        Ok(Sink { fd, socket })
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Writes at most what the other side takes now. To be called when poll says that it is ready.
    #[allow(unsafe_code)]
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (fd, start, length) = (self.raw_fd(), bytes.as_ptr().cast(), bytes.len());
        let written = if self.socket {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: `bytes` is readable for its length during the call; the descriptor is ours.
            unsafe { libc::send(fd, start, length, flags) }
        } else {
            // SAFETY: as above.
            unsafe { libc::write(fd, start, length) }
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

fn reopen(fd: RawFd) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{fd}"))?;
    Ok(file.into())
}

#[allow(unsafe_code)]
fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: plain system call without pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// Whether `fd` is a terminal.
#[allow(unsafe_code)]
pub(super) fn is_terminal(fd: RawFd) -> bool {
    // SAFETY: plain system call without pointers.
    unsafe { libc::isatty(fd) == 1 }
}

/// Reads what is there, once. To be called when poll says that something is.
#[allow(unsafe_code)]
pub(super) fn read(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is writable for its length during the call.
    let read = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Waits until one of `fds` is ready (an absent one never is); what is wrong with a descriptor
/// counts as ready, so that the call that follows says what. A signal ends the wait early.
#[allow(unsafe_code)]
pub(super) fn poll<const N: usize>(
    fds: [Option<(RawFd, libc::c_short)>; N],
    timeout_ms: i32,
) -> [bool; N] {
    let mut polled = fds.map(|fd| {
        let (fd, events) = fd.unwrap_or((-1, 0));
        libc::pollfd {
            fd,
            events,
            revents: 0,
        }
    });
    // SAFETY: `polled` holds N writable pollfds for the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    polled.map(|p| ready > 0 && p.revents != 0)
}

/// Keeps signals that a terminal or pipe raises from ending or stopping the process on account of
/// the calling thread: its calls fail with EIO or EPIPE instead.
#[allow(unsafe_code)]
pub(super) fn block_stream_signals() {
    // SAFETY: the set is a plain local, initialised by sigemptyset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}
