//! Where the trace goes: a file of this user's alone, or standard output.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the end of a trace that are remembered: what is known of it is there.
const KEPT_BYTES: usize = 256 << 10;

/// Why a trace cannot be written to a path.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// It cannot be made.
    #[error("the trace cannot be written to {path}: {source}; give another path with -o")]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is something else than a file.
    #[error(
        "{0} is there and is not a regular file; give another path with -o, or - for standard output"
    )]
    NotAFile(PathBuf),
    /// It is what is to be traced.
    #[error("{0} is the black box itself; give another path with -o")]
    BlackBox(PathBuf),
}

/// Where the trace goes.
pub enum Output {
    /// Standard output.
    Standard(io::Stdout),
    /// A file.
    File(File),
}

impl Output {
    /// Opens `path`, or standard output for `-`. A file is made empty and readable by its owner
    /// alone; anything that is not a file, and the black box, is left as it is.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn open(path: &Path, black_box: Option<&Path>) -> Result<Output, OutputError> {
        if path == Path::new("-") {
            return Ok(Output::Standard(io::stdout()));
        }
        let failed = |source: io::Error| OutputError::Open {
            path: path.to_owned(),
            source,
        };
        // A FIFO must not hang us, and a link leads nobody astray.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .mode(0o600)
            .custom_flags(flags);
        let file = options
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ELOOP | libc::ENXIO | libc::EISDIR) => {
                    OutputError::NotAFile(path.into())
                }
                _ => failed(source),
            })?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(OutputError::NotAFile(path.to_owned()));
        }
        let same =
            |other: fs::Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
        if black_box.is_some_and(|path| path.metadata().is_ok_and(same)) {
            return Err(OutputError::BlackBox(path.to_owned()));
        }
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        Ok(Output::File(file))
    }
}

/// Removes a trace that did not become whole.
pub fn remove(path: &Path) {
    if path != Path::new("-") {
        // What cannot be removed is at least no trace.
        let _ = fs::remove_file(path);
    }
}

/// Writes, and remembers the end of what was written.
pub struct Tail {
    output: Output,
    kept: Vec<u8>,
}

impl Tail {
    /// Writes to `output`.
    pub fn new(output: Output) -> Tail {
        Tail {
            output,
            kept: Vec::new(),
        }
    }

    /// The end of what was written.
    pub fn kept(&self) -> &[u8] {
        &self.kept
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.output {
            Output::Standard(output) => output.write(bytes)?,
            Output::File(file) => file.write(bytes)?,
        };
        self.kept
            .extend_from_slice(bytes.get(..written).unwrap_or_default());
        if self.kept.len() > 2 * KEPT_BYTES {
            self.kept.drain(..self.kept.len() - KEPT_BYTES);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.output {
            Output::Standard(output) => output.flush(),
            Output::File(file) => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_remembered_and_not_more() {
        let file = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let mut tail = Tail::new(Output::File(file));
        for number in 0..100_000u32 {
            writeln!(tail, "line {number}").unwrap();
        }
        assert!(tail.kept().len() <= 2 * KEPT_BYTES);
        assert!(tail.kept().ends_with(b"line 99998\nline 99999\n"));
    }
}
