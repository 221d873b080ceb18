//! The black boxes of earlier runs: `ID.N.blackbox` beside `ID.blackbox`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vmm::observe::reader::{ReadError, Reader};

/// Why a black box is not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: ReadError },
    #[error("{} is not this process's any more: another VM has taken its place", .0.display())]
    Foreign(PathBuf),
    #[error(
        "{} is in the way and is no black box; move it away, or choose another --blackbox",
        .0.display()
    )]
    InTheWay(PathBuf),
    #[error("it cannot be renamed to {to}: {source}; look at the folder", to = to.display())]
    Rename { to: PathBuf, source: io::Error },
}

/// Where the black box of run `run` is kept: the number before the last dot of the name.
fn place(path: &Path, run: u64) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{run}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(OsString::from(extension));
    }
    path.with_file_name(name)
}

/// Moves the black box at `path`, which this process has written, to its place as that of run
/// `run`. One of an earlier VM that is there is replaced, and the log says so.
pub(super) fn keep(path: &Path, run: u64) -> Result<PathBuf, KeepError> {
    let reader = Reader::open(path).and_then(|reader| reader.snapshot());
    let snapshot = reader.map_err(|source| KeepError::Read {
        path: path.to_owned(),
        source,
    })?;
    if snapshot.header.pid != u64::from(std::process::id()) {
        return Err(KeepError::Foreign(path.to_owned()));
    }
    let to = place(path, run);
    if fs::symlink_metadata(&to).is_ok() {
        if Reader::open(&to).is_err() {
            return Err(KeepError::InTheWay(to));
        }
        tracing::warn!("{}, of an earlier VM, is replaced", to.display());
    }
    fs::rename(path, &to).map_err(|source| KeepError::Rename {
        to: to.clone(),
        source,
    })?;
    Ok(to)
}

/// Removes the oldest of too many.
pub(super) fn remove(path: &Path, most: usize) {
    let done = fs::remove_file(path);
    let path = path.display();
    match done {
        Ok(()) => tracing::warn!(
            "{path} is removed: {most} black boxes of earlier runs are kept, by restart.at_most"
        ),
        Err(error) => tracing::warn!("{path} cannot be removed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::observe::{BlackBox, Meta};

    #[test]
    fn the_number_comes_before_the_last_dot() {
        for (path, kept) in [
            ("/run/vitrine/vm1.blackbox", "/run/vitrine/vm1.2.blackbox"),
            ("a.b.c", "a.b.2.c"),
            ("box", "box.2"),
        ] {
            assert_eq!(place(path.as_ref(), 2), PathBuf::from(kept));
        }
    }

    #[test]
    fn only_black_boxes_are_moved_and_replaced() {
        let folder = std::env::temp_dir().join(format!("vitrine-boxes-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("vm.blackbox");
        let meta = |id: &str| Meta {
            vm_id: id.to_owned(),
            version: String::new(),
        };
        let id_at = |path: &Path| {
            let reader = Reader::open(path).unwrap();
            reader.snapshot().unwrap().header.vm_id
        };
        let _first = BlackBox::create(&path, 0, &meta("first")).unwrap();
        let kept = keep(&path, 1).unwrap();
        assert_eq!(kept, folder.join("vm.1.blackbox"));
        assert_eq!((id_at(&kept).as_str(), path.exists()), ("first", false));
        let _second = BlackBox::create(&path, 0, &meta("second")).unwrap();
        assert_eq!(keep(&path, 1).unwrap(), kept);
        assert_eq!(id_at(&kept), "second");
        let _third = BlackBox::create(&path, 0, &meta("third")).unwrap();
        fs::write(folder.join("vm.2.blackbox"), "a letter").unwrap();
        assert!(matches!(keep(&path, 2), Err(KeepError::InTheWay(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(keep(&path, 3), Err(KeepError::Read { .. })));
        fs::write(&path, "a letter").unwrap();
        assert!(matches!(keep(&path, 3), Err(KeepError::Read { .. })));
        fs::remove_dir_all(&folder).unwrap();
    }
}
