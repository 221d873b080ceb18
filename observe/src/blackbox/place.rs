//! Where the file lies: made without a name, or beside its place, and brought there whole, so that
//! no reader ever sees a half-made black box and the last VM's one is kept until the new one stands.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::layout::MAGIC;

/// A file that is not yet at its place. It has no name, so that nothing is left of it when its
/// maker is killed before it gets there. Where the file system has no such files, it has a name
/// beside its place, and is removed when it never gets there.
pub(super) struct Newborn {
    /// The name beside its place.
    beside: PathBuf,
    /// It has that name.
    named: bool,
}

impl Newborn {
    /// Makes an empty file, mode 0600, for `path`, whose missing folders are made.
    pub fn of(path: &Path) -> Result<(Self, File), Error> {
        let folder = path.parent().filter(|p| *p != OsStr::new(""));
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
        }
        refuse_foreign(path)?;
        let name = path
            .file_name()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
        let mut name = name.to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let beside = path.with_file_name(name);
        // One that an earlier process of our id left when it was killed right here.
        let _ = std::fs::remove_file(&beside);
        match nameless(folder.unwrap_or(Path::new("."))) {
            Some(file) => {
                let named = false;
                Ok((Newborn { beside, named }, file))
            }
            None => Self::named(beside),
        }
    }

    /// Makes it with a name from the beginning.
    fn named(beside: PathBuf) -> Result<(Self, File), Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(&beside)?;
        let named = true;
        Ok((Newborn { beside, named }, file))
    }

    /// Brings `file`, made with it, to `place`: what was there keeps its inode for those who have
    /// it open.
    pub fn settle(mut self, file: &File, place: &Path) -> Result<(), Error> {
        if !self.named {
            match link(file, place) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => return other,
            }
            // Only a rename replaces.
            link(file, &self.beside)?;
            self.named = true;
        }
        std::fs::rename(&self.beside, place)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if self.named {
            // It is an error already that brings us here.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

/// A file without a name in `folder`, if there can be one that may get a name later.
fn nameless(folder: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_TMPFILE)
        .open(folder)
        .ok()?;
    // Without /proc it would stay without one.
    std::fs::metadata(by_descriptor(&file)).ok()?;
    Some(file)
}

fn by_descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Gives a file the name `path`, where nothing may be.
#[allow(unsafe_code)]
fn link(file: &File, path: &Path) -> Result<(), Error> {
    let from = CString::new(by_descriptor(file))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    let here = libc::AT_FDCWD;
    // SAFETY: both are NUL-terminated strings that live longer than the call.
    let done = unsafe {
        libc::linkat(
            here,
            from.as_ptr(),
            here,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
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

#[cfg(test)]
mod tests;
