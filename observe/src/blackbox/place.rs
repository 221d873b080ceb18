//! Where the file lies: made beside its place and moved there whole, so that no reader ever sees
//! a half-made black box and the last VM's one is kept until the new one stands.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::layout::MAGIC;

/// A file that is not yet at its place; removed when it never gets there.
pub(super) struct Newborn {
    path: Option<PathBuf>,
}

impl Newborn {
    /// Makes an empty file, mode 0600, beside `path`, whose missing folders are made.
    pub fn beside(path: &Path) -> Result<(Self, File), Error> {
        if let Some(folder) = path.parent().filter(|p| *p != OsStr::new("")) {
            std::fs::create_dir_all(folder)?;
        }
        refuse_foreign(path)?;
        let name = path
            .file_name()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
        let mut name = name.to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let path = path.with_file_name(name);
        // One that an earlier process of our id left when it was killed right here.
        let _ = std::fs::remove_file(&path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&path)?;
        Ok((Newborn { path: Some(path) }, file))
    }

    /// Moves the file to `place`: what was there keeps its inode for those who have it open.
    pub fn settle(mut self, place: &Path) -> Result<(), Error> {
        if let Some(path) = &self.path {
            std::fs::rename(path, place)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It is an error already that brings us here.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A mistyped `--blackbox disk.img` must not cost the disk: only black boxes, empty files and
/// symbolic links (the link, not what it names) are replaced.
fn refuse_foreign(path: &Path) -> Result<(), Error> {
    let Ok(there) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if there.is_symlink() || (there.is_file() && there.len() == 0) {
        return Ok(());
    }
    if there.is_dir() {
        return Err(Error::from_raw_os_error(libc::EISDIR));
    }
    let mut first = [0u8; MAGIC.len()];
    if there.is_file() && File::open(path)?.read_exact(&mut first).is_ok() && first == MAGIC {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        "something that is not a black box is there and will not be replaced",
    ))
}

/// Whether `path` still leads to `file`.
pub(super) fn leads_to(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => there.dev() == ours.dev() && there.ino() == ours.ino(),
        _ => false,
    }
}

/// A file that no path leads to. Nobody can shrink it under the mapping (a SIGBUS for the VMM).
#[allow(unsafe_code)]
pub(super) fn unnamed() -> Result<File, Error> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a NUL-terminated string; the call returns a new fd or -1.
    let fd = unsafe { libc::memfd_create(c"vitrine-blackbox".as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: fd is a fresh descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Seals the size of an [`unnamed`] file once it has one.
#[allow(unsafe_code)]
pub(super) fn seal(file: &File) -> Result<(), Error> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: plain system call on a descriptor that we own.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Locks the file for as long as this process holds it open or mapped: the kernel's own word on
/// whether the writer lives, true across pid namespaces and after `kill -9`. False where the file
/// system has no such locks.
#[allow(unsafe_code)]
pub(super) fn hold(file: &File) -> bool {
    let lock = whole_file();
    // SAFETY: `lock` is a valid flock for the duration of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

/// Whether somebody with another open file description [holds](hold) the file; takes no lock.
#[allow(unsafe_code)]
pub(crate) fn is_held(file: &File) -> Option<bool> {
    let mut lock = whole_file();
    // SAFETY: `lock` is a valid, writable flock for the duration of the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    (done == 0).then_some(i32::from(lock.l_type) != libc::F_UNLCK)
}
