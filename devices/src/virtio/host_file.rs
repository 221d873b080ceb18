//! What the standard library does not offer of files: locks that are the open file's own, who holds
//! them, and parts that are given back or become zeros.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// With others who read.
    Shared,
    /// Alone.
    Alone,
}

/// What came of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The lock is held until the file is closed.
    Yes,
    /// Somebody else holds one that excludes it.
    Taken,
    /// The file system has no locks.
    Unknown,
}

/// Locks a whole file for as long as it is open. The lock belongs to the open file: another one in
/// this process is excluded like any other.
///
/// # Errors
/// What the kernel said, beside that the lock is taken.
pub fn lock(file: &File, how: Lock) -> io::Result<Locked> {
    let kind = match how {
        Lock::Shared => libc::F_RDLCK,
        Lock::Alone => libc::F_WRLCK,
    };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: fcntl with a live descriptor and a flock that is only read.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } == 0 {
        return Ok(Locked::Yes);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(Locked::Taken),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(Locked::Unknown),
        _ => Err(error),
    }
}

/// Processes that are looked at, and descriptors of each.
const MOST: usize = 65_536;

/// Who holds a lock on `file`, in words. Looks through the processes that this one may look into.
pub fn holder(file: &File) -> String {
    let unknown = || "a process that cannot be seen from here".to_owned();
    let Ok(wanted) = file.metadata().map(|data| (data.dev(), data.ino())) else {
        return unknown();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return unknown();
    };
    let own = std::process::id();
    for process in processes.flatten().take(MOST) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !holds(&process.path(), wanted) {
            continue;
        }
        if pid == own {
            return format!("this process ({pid}), for another drive");
        }
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        return format!("process {pid} ({})", comm.trim_end());
    }
    unknown()
}

/// Whether a process has a descriptor of the file, and by that one a lock on it.
fn holds(process: &Path, wanted: (u64, u64)) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    let mut of_file = descriptors.flatten().take(MOST).filter(|descriptor| {
        let target = fs::metadata(descriptor.path());
        target.is_ok_and(|data| (data.dev(), data.ino()) == wanted)
    });
    of_file.any(|descriptor| {
        let told = process.join("fdinfo").join(descriptor.file_name());
        let told = fs::read_to_string(told).unwrap_or_default();
        told.lines().any(|line| line.starts_with("lock:"))
    })
}

/// What is to become of a part of a file; the size of the file stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// Its space is given back to the host; it reads as zeros then.
    Punch,
    /// It reads as zeros and keeps its space.
    Zero,
}

impl Erase {
    /// As fallocate takes it.
    pub fn mode(self) -> libc::c_int {
        let mode = match self {
            Erase::Punch => libc::FALLOC_FL_PUNCH_HOLE,
            Erase::Zero => libc::FALLOC_FL_ZERO_RANGE,
        };
        mode | libc::FALLOC_FL_KEEP_SIZE
    }
}

/// Erases a part of a file or block device.
///
/// # Errors
/// What the kernel said; [`is_unsupported`] tells whether this file system cannot do it at all.
pub fn erase(file: &File, how: Erase, offset: u64, bytes: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    loop {
        // SAFETY: a system call on a live descriptor, without pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), how.mode(), offset, bytes) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether the kernel said that it cannot do this with such a file.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> File {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn readers_share_a_file_and_a_writer_has_it_alone() {
        let name = format!("vitrine-lock-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, [0; 512]).unwrap();
        let (first, second) = (open(&path), open(&path));
        assert_eq!(lock(&first, Lock::Shared).unwrap(), Locked::Yes);
        assert_eq!(lock(&second, Lock::Shared).unwrap(), Locked::Yes);
        assert_eq!(lock(&second, Lock::Alone).unwrap(), Locked::Taken);
        let who = holder(&second);
        assert!(who.starts_with("this process ("), "{who}");
        drop(first);
        assert_eq!(lock(&second, Lock::Alone).unwrap(), Locked::Yes);
        let third = open(&path);
        assert_eq!(lock(&third, Lock::Shared).unwrap(), Locked::Taken);
        fs::remove_file(&path).unwrap();
    }
}
