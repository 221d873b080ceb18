//! The file of a dump: written beside its place, and there when it is whole.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::DumpError;

/// A dump that is being written; dropped before it is settled, nothing is left of it.
pub struct Target {
    file: File,
    path: PathBuf,
    beside: PathBuf,
    is_settled: bool,
}

impl Target {
    /// Makes the file with mode 0600, for `path`.
    ///
    /// # Errors
    /// Something that is no regular file is at the path, or `taken`, or the folder takes no file.
    pub fn create(path: &Path, taken: Option<&File>) -> Result<Self, DumpError> {
        let make = |source| DumpError::Make {
            path: path.to_owned(),
            source,
        };
        if !path.is_absolute() {
            return Err(DumpError::Relative(path.to_owned()));
        }
        match path.symlink_metadata() {
            Ok(there) if !there.is_file() => return Err(DumpError::NoFile(path.to_owned())),
            Ok(there) => {
                let taken = taken.and_then(|file| file.metadata().ok());
                let id = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
                if taken.is_some_and(|taken| id(&taken) == id(&there)) {
                    return Err(DumpError::BlackBoxItself(path.to_owned()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(make(error)),
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.part", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&beside)
            .map_err(make)?;
        Ok(Target {
            file,
            path: path.to_owned(),
            beside,
            is_settled: false,
        })
    }

    /// Makes the file `bytes` long; what is not written is zero and takes no room.
    ///
    /// # Errors
    /// [`DumpError::Write`].
    pub fn set_length(&self, bytes: u64) -> Result<(), DumpError> {
        self.file.set_len(bytes).map_err(|error| self.error(error))
    }

    /// Writes at a place.
    ///
    /// # Errors
    /// [`DumpError::Write`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DumpError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|error| self.error(error))
    }

    /// Gives the file its name, once the disk has it.
    ///
    /// # Errors
    /// [`DumpError::Write`]; nothing is left then.
    pub fn settle(mut self) -> Result<(), DumpError> {
        let settled = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.beside, &self.path));
        settled.map_err(|error| self.error(error))?;
        self.is_settled = true;
        Ok(())
    }

    fn error(&self, source: io::Error) -> DumpError {
        DumpError::Write {
            path: self.path.clone(),
            source,
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_settled {
            // Gone already is as good as removed.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}
