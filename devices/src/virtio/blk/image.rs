//! The drive's file on the host: judged, opened and locked.

#![forbid(unsafe_code)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::BlockSpec;
use super::request::SECTOR_BYTES;
use crate::virtio::host_file::{Lock, Locked, holder, lock};

/// Why a drive cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// There is no such file.
    #[error(
        "drive {id}: {path} does not exist; make it (truncate -s 1G {path}) or correct the path"
    )]
    Missing {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
    },
    /// The path leads to something that is no disk.
    #[error("drive {id}: {path} is {what}; give a regular file or a block device")]
    NoDisk {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// This process may not open it.
    #[error(
        "drive {id}: {path} may not be opened for {mode}: give this process the right, or set is_read_only: {source}"
    )]
    Denied {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        mode: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It holds not even a sector.
    #[error(
        "drive {id}: {path} has {bytes} bytes, less than a sector; give it a size (truncate -s 1G {path})"
    )]
    Empty {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Somebody else has it.
    #[error("drive {id}: {path} is in use by {who}; {remedy}")]
    InUse {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// Who has it, as far as that is known.
        who: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The host gives no timer.
    #[error("drive {id}: the host gives no timer: {source}; raise the limit on open files")]
    Timer {
        /// The drive.
        id: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else failed.
    #[error("drive {id}: {path} cannot be opened: {source}")]
    Open {
        /// The drive.
        id: String,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Opens and locks the file; with its size.
///
/// # Errors
/// [`BlockError`]: what is wrong with the path, and what to do.
pub(super) fn open(spec: &BlockSpec) -> Result<(File, u64), BlockError> {
    let (id, path) = (spec.id.clone(), spec.path.clone());
    let judge = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => BlockError::Missing {
            id: id.clone(),
            path: path.clone(),
        },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => BlockError::Denied {
            id: id.clone(),
            path: path.clone(),
            mode: if spec.read_only {
                "reading"
            } else {
                "reading and writing"
            },
            source,
        },
        _ => BlockError::Open {
            id: id.clone(),
            path: path.clone(),
            source,
        },
    };
    // Judged before it is opened: opening a FIFO would wait for its other end.
    if let Some(what) = no_disk(&spec.path).map_err(judge)? {
        let (id, path) = (id.clone(), path.clone());
        return Err(BlockError::NoDisk { id, path, what });
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(!spec.read_only)
        .open(&spec.path)
        .map_err(judge)?;
    claim(spec, &file).map_err(judge)??;
    // The end of a block device is where seeking to it leads; its metadata says zero.
    let bytes = file.seek(SeekFrom::End(0)).map_err(judge)?;
    Ok((file, bytes))
}

/// As [`open`], for a drive that has `old`. If that is the same file it stays open, with its lock,
/// and only its size is taken.
///
/// # Errors
/// As [`open`].
pub(super) fn open_instead(
    spec: &BlockSpec,
    old: &File,
) -> Result<(Option<File>, u64), BlockError> {
    let place = |data: Metadata| (data.dev(), data.ino());
    let is_same = std::fs::metadata(&spec.path)
        .and_then(|new| Ok(place(new) == place(old.metadata()?)))
        .unwrap_or(false);
    if !is_same {
        return open(spec).map(|(file, bytes)| (Some(file), bytes));
    }
    let mut file = old;
    let bytes = file.seek(SeekFrom::End(0));
    let bytes = bytes.map_err(|source| BlockError::Open {
        id: spec.id.clone(),
        path: spec.path.clone(),
        source,
    })?;
    Ok((None, bytes))
}

/// The whole sectors of a file of so many bytes.
///
/// # Errors
/// There are none.
pub(super) fn sectors(spec: &BlockSpec, bytes: u64) -> Result<u64, BlockError> {
    let sectors = bytes.checked_div(SECTOR_BYTES).unwrap_or(0);
    if sectors == 0 {
        let BlockSpec { id, path, .. } = spec.clone();
        return Err(BlockError::Empty { id, path, bytes });
    }
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        let (id, path) = (&spec.id, spec.path.display());
        tracing::warn!(
            "drive {id}: {path} has {bytes} bytes; the guest sees {sectors} whole sectors of 512"
        );
    }
    Ok(sectors)
}

/// One who writes has the file alone; those who read share it. The lock goes with the descriptor.
fn claim(spec: &BlockSpec, file: &File) -> io::Result<Result<(), BlockError>> {
    let (how, remedy) = match spec.read_only {
        true => (
            Lock::Shared,
            "have the other one read it only, end it, or give this drive a copy of its own",
        ),
        false => (
            Lock::Alone,
            "set is_read_only on both drives, end the other one, or give this drive a copy of its own",
        ),
    };
    match lock(file, how)? {
        Locked::Yes => {}
        Locked::Taken => {
            return Ok(Err(BlockError::InUse {
                id: spec.id.clone(),
                path: spec.path.clone(),
                who: holder(file),
                remedy,
            }));
        }
        Locked::Unknown => {
            let (id, path) = (&spec.id, spec.path.display());
            tracing::warn!(
                "drive {id}: the file system of {path} has no locks; nothing keeps another VM from writing it"
            );
        }
    }
    Ok(Ok(()))
}

fn no_disk(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = std::fs::metadata(path)?.file_type();
    Ok(match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a FIFO"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a character device"),
    })
}
