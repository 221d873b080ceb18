//! Where log lines go to, without ever waiting for it.
#![allow(unsafe_code)] // poll(2) and a duplicate of standard error, which std does not offer.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A log that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{name} {} cannot be opened: {source}; give a file or FIFO that this process may write", path.display())]
pub struct SinkError {
    name: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A destination.
#[derive(Clone, Debug)]
pub struct Sink {
    /// `None` when standard error is closed: all lines are dropped.
    file: Option<Arc<File>>,
}

impl Sink {
    /// Standard error. A pipe or terminal is opened anew, so that not waiting for it does not
    /// change it for the other processes that hold it.
    pub fn stderr() -> Sink {
        let duplicate = || {
            io::stderr()
                .as_fd()
                .try_clone_to_owned()
                .ok()
                .map(File::from)
        };
        let file = duplicate().and_then(|file| {
            let kind = file.metadata().ok()?.file_type();
            if kind.is_fifo() || kind.is_char_device() {
                let again = OpenOptions::new()
                    .append(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open("/proc/self/fd/2");
                return again.ok().or(Some(file));
            }
            Some(file)
        });
        Sink {
            file: file.map(Arc::new),
        }
    }

    /// A file, made if absent and appended to, or a FIFO, with or without a reader; `name` is that
    /// of the path, for the error.
    pub fn open(name: &'static str, path: &Path) -> Result<Sink, SinkError> {
        let error = |source| SinkError {
            name,
            path: path.to_owned(),
            source,
        };
        let is_fifo = path
            .metadata()
            .is_ok_and(|metadata| metadata.file_type().is_fifo());
        // A FIFO without a reader can only be opened for both.
        let file = OpenOptions::new()
            .read(is_fifo)
            .append(true)
            .create(!is_fifo)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(error)?;
        Ok(Sink {
            file: Some(Arc::new(file)),
        })
    }

    /// Writes one line, or nothing of it; false when it was not taken.
    pub fn write(&self, line: &[u8]) -> bool {
        self.write_some(line) == line.len()
    }

    /// Writes as much as is taken at once, and says how many bytes that was.
    pub fn write_some(&self, bytes: &[u8]) -> usize {
        let Some(file) = &self.file else { return 0 };
        let mut asked = libc::pollfd {
            fd: file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one pollfd that lives across the call, its length given as 1; no waiting.
        let ready = unsafe { libc::poll(&raw mut asked, 1, 0) };
        // For what could not be opened without waiting (a socket), asking first is what is left.
        if ready != 1 || asked.revents & libc::POLLOUT == 0 {
            return 0;
        }
        (&**file).write(bytes).unwrap_or(0)
    }
}
