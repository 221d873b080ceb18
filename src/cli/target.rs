//! Which black box is meant: by a file, a VM's id, or an API socket whose VMM may be stuck.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::vmm::observe::clock::monotonic_ns;
use api::vmm::observe::reader::{ReadError, Reader, Snapshot};
use api::vmm::observe::report::format::clean;

use super::args::is_id;
use super::{black_box, peer};

/// How long a VMM has to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 16 << 20;
/// How the kernel calls a black box that has no file.
const MEMFD: &str = "/memfd:vitrine-blackbox";

/// Why no black box is found.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(
        "{what} is neither a black box nor an API socket, and no VM has that id: there is no such \
         file, and no black box of that name in {folder}; `vitrine list` shows what is there"
    )]
    Unknown { what: String, folder: PathBuf },
    #[error(
        "{0} does not exist; give a black box file, an API socket, or the id of a VM, \
         which `vitrine list` shows"
    )]
    Missing(PathBuf),
    #[error(
        "{0} is neither a file nor a socket; give a black box file, an API socket, or a VM's id"
    )]
    Kind(PathBuf),
    #[error("{path} cannot be looked at; are you its user?")]
    Closed { path: PathBuf, source: io::Error },
    #[error("{what} may mean {files}; give one of these files")]
    Unclear { what: String, files: String },
    #[error(
        "nobody listens at {path}, so its VMM has ended; give the VM's id or its black box file, \
         which `vitrine list --all` shows"
    )]
    Deserted { path: PathBuf },
    #[error(
        "the VMM at {path} takes no more connections: it is stuck and others wait already; \
         give the VM's id or its black box file, which `vitrine list` shows"
    )]
    Crowded { path: PathBuf },
    #[error("the socket {path} cannot be used; are you its VMM's user?")]
    Socket { path: PathBuf, source: io::Error },
    #[error(
        "{who} at {path} has no black box that can be found: none in {folder} is its own, \
         none is among its open files, and {asked}; if its VM is not started yet, start it, \
         else give its black box file"
    )]
    Boxless {
        who: String,
        path: PathBuf,
        folder: PathBuf,
        asked: String,
    },
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A black box, and its writer where that is known.
#[derive(Debug)]
pub struct Target {
    reader: Reader,
    process: Option<u32>,
}

impl Target {
    /// Finds what `what` means.
    ///
    /// # Errors
    /// [`TargetError`]: nothing, or several things.
    pub fn find(what: &Path) -> Result<Target, TargetError> {
        Target::find_in(what, &black_box::default_folder())
    }

    fn find_in(what: &Path, folder: &Path) -> Result<Target, TargetError> {
        match fs::metadata(what) {
            Ok(there) if there.is_file() => Target::open(what),
            Ok(there) if there.file_type().is_socket() => of_socket(what, folder),
            // A folder or so may have a VM's name.
            there => match what.to_str().filter(|id| is_id(id)) {
                Some(id) => of_id(id, folder),
                None => Err(match there {
                    Ok(_) => TargetError::Kind(what.to_owned()),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        TargetError::Missing(what.to_owned())
                    }
                    Err(source) => TargetError::Closed {
                        path: what.to_owned(),
                        source,
                    },
                }),
            },
        }
    }

    fn open(path: &Path) -> Result<Target, TargetError> {
        Ok(Target {
            reader: Reader::open(path)?,
            process: None,
        })
    }

    /// Where the black box lies.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    /// Reads the black box, as [`Reader::snapshot`]. One without a lock lives while its process
    /// does, where that is known.
    ///
    /// # Errors
    /// The file can no longer be read.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let mut snapshot = self.reader.snapshot()?;
        if let (None, Some(process)) = (snapshot.writer_alive, self.process) {
            let lives = Path::new(&format!("/proc/{process}")).exists();
            snapshot.writer_alive = Some(lives);
            if lives {
                snapshot.now_monotonic_ns = monotonic_ns();
            }
        }
        Ok(snapshot)
    }
}

/// A file of a folder of black boxes.
pub struct Found {
    pub path: PathBuf,
    /// What it holds, or why it cannot be read.
    pub read: Result<(Reader, Snapshot), ReadError>,
}

/// The black boxes in a folder, by name, each read when its turn comes.
///
/// # Errors
/// The folder cannot be read.
pub fn in_folder(folder: &Path) -> io::Result<impl Iterator<Item = Found>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "blackbox") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &Path| {
        let reader = Reader::open(path)?;
        let snapshot = reader.snapshot()?;
        Ok((reader, snapshot))
    };
    Ok(paths.into_iter().map(move |path| Found {
        read: read(&path),
        path,
    }))
}

/// Those in a folder whose snapshot is as asked; a folder that cannot be read has none.
fn matching(folder: &Path, is_meant: impl Fn(&Snapshot) -> bool) -> Vec<Reader> {
    let all = in_folder(folder).ok();
    let readable = all
        .into_iter()
        .flatten()
        .filter_map(|found| found.read.ok());
    let meant = readable.filter(|(_, snapshot)| is_meant(snapshot));
    meant.map(|(reader, _)| reader).collect()
}

/// The only one, or `None` without any.
fn only(
    what: &str,
    mut found: Vec<Reader>,
    process: Option<u32>,
) -> Result<Option<Target>, TargetError> {
    if found.len() > 1 {
        let files = found.iter().map(|reader| reader.path().display());
        let files: Vec<String> = files.map(|path| clean(&path.to_string())).collect();
        return Err(TargetError::Unclear {
            what: what.to_owned(),
            files: files.join(" or "),
        });
    }
    Ok(found.pop().map(|reader| Target { reader, process }))
}

fn of_id(id: &str, folder: &Path) -> Result<Target, TargetError> {
    let path = folder.join(format!("{id}.blackbox"));
    if path.exists() {
        return Target::open(&path);
    }
    let found = matching(folder, |snapshot| snapshot.header.vm_id == id);
    only(id, found, None)?.ok_or_else(|| TargetError::Unknown {
        what: id.to_owned(),
        folder: folder.to_owned(),
    })
}

fn of_socket(path: &Path, folder: &Path) -> Result<Target, TargetError> {
    let fail = |source: io::Error| {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::ConnectionRefused => TargetError::Deserted { path },
            ErrorKind::WouldBlock => TargetError::Crowded { path },
            _ => TargetError::Socket { path, source },
        }
    };
    let stream = peer::connect(path).map_err(fail)?;
    let process = peer::listener(&stream).map_err(fail)?;
    let what = path.display().to_string();
    if let Some(process) = process {
        let numbers = numbers(process);
        let is_its = |snapshot: &Snapshot| {
            numbers.contains(&snapshot.header.pid) && snapshot.writer_alive == Some(true)
        };
        if let Some(target) = only(&what, matching(folder, is_its), Some(process))? {
            return Ok(target);
        }
        if let Some(target) = only(&what, opened(process, &numbers), Some(process))? {
            return Ok(target);
        }
    }
    let asked = match ask(stream) {
        Ok(Some(place)) => {
            // A relative path is one of the VMM's.
            let cwd = process.map(|process| PathBuf::from(format!("/proc/{process}/cwd")));
            let place = cwd.map_or_else(|| place.clone(), |cwd| cwd.join(&place));
            let mut target = Target::open(&place)?;
            target.process = process;
            return Ok(target);
        }
        Ok(None) => "GET /observe names none".to_owned(),
        Err(error) => format!("GET /observe was not answered: {error}"),
    };
    Err(TargetError::Boxless {
        who: process.map_or_else(
            || "the VMM".to_owned(),
            |process| format!("process {process}"),
        ),
        path: path.to_owned(),
        folder: folder.to_owned(),
        asked,
    })
}

/// A process's numbers, in our pid namespace and in its own.
fn numbers(process: u32) -> Vec<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inner = inner.unwrap_or_default().split_whitespace();
    let inner = inner.filter_map(|number| number.parse().ok());
    inner.chain([u64::from(process)]).collect()
}

/// The black boxes that a process holds open. A guest decides what a disk image begins with, but
/// not that the VMM holds a black box's lock on it.
fn opened(process: u32, numbers: &[u64]) -> Vec<Reader> {
    let folder = format!("/proc/{process}/fd");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| {
        let path = entry.path();
        let to = fs::read_link(&path).ok()?;
        // Devices and sockets are not to be touched.
        let is_file = fs::metadata(&path).is_ok_and(|there| there.is_file());
        is_file.then_some((path, to))
    });
    let mut found: Vec<(PathBuf, Reader)> = Vec::new();
    for (path, to) in links {
        let Ok(reader) = Reader::open(&path) else {
            continue;
        };
        let Ok(snapshot) = reader.snapshot() else {
            continue;
        };
        let is_held = snapshot.writer_alive == Some(true) || is_memfd(&to);
        let is_its = numbers.contains(&snapshot.header.pid);
        // A file may be open twice.
        if is_held && is_its && !found.iter().any(|(known, _)| *known == to) {
            found.push((to, reader));
        }
    }
    found.into_iter().map(|(_, reader)| reader).collect()
}

fn is_memfd(link: &Path) -> bool {
    link.to_str().is_some_and(|link| link.starts_with(MEMFD))
}

/// Asks the VMM where its black box lies.
fn ask(mut stream: UnixStream) -> io::Result<Option<PathBuf>> {
    let end = Instant::now() + DEADLINE;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /observe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 64 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend(buffer.iter().take(n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let observation: serde_json::Value = serde_json::from_str(body.unwrap_or_default())?;
    let place = observation
        .get("black_box")
        .and_then(|place| place.as_str());
    Ok(place.map(PathBuf::from))
}

#[cfg(test)]
mod tests;
