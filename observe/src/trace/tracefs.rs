//! Finds tracepoints in tracefs, where the kernel tells their numbers and formats.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::format::{EventFormat, FormatError, MAX_FORMAT_BYTES};

/// Where tracefs is looked for, in this order. It is never mounted from here.
pub const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why a tracepoint cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TracefsError {
    /// tracefs is at none of the places.
    #[error(
        "tracefs is not mounted; mount it: mount -t tracefs tracefs /sys/kernel/tracing \
         (a kernel without CONFIG_TRACING, and many a container, has none)"
    )]
    NotMounted,
    /// This user may not read it.
    #[error("{} cannot be read: {source}; be root, or remount it with gid= and mode=", path.display())]
    Denied {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no such tracepoint.
    #[error(
        "the kernel has no tracepoint {event} ({} is not there); load the module that has it",
        path.display()
    )]
    NoEvent {
        /// The tracepoint.
        event: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Its format is not one.
    #[error("{} is not understood: {source}; tell the authors which kernel this is", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
}

/// A tracefs that is mounted.
#[derive(Clone, Debug)]
pub struct Tracefs {
    root: PathBuf,
}

impl Tracefs {
    /// Looks at [`PLACES`].
    ///
    /// # Errors
    /// [`TracefsError::NotMounted`], or [`TracefsError::Denied`] when it is there.
    pub fn find() -> Result<Tracefs, TracefsError> {
        Tracefs::among(&PLACES.map(Path::new))
    }

    fn among(places: &[&Path]) -> Result<Tracefs, TracefsError> {
        let mut denied = None;
        for place in places {
            let path = place.join("events");
            match path.read_dir() {
                Ok(_) => {
                    return Ok(Tracefs {
                        root: place.to_path_buf(),
                    });
                }
                Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                    denied = denied.or(Some(TracefsError::Denied { path, source }));
                }
                Err(_) => {}
            }
        }
        Err(denied.unwrap_or(TracefsError::NotMounted))
    }

    /// The format of a tracepoint such as `kvm:kvm_exit`.
    ///
    /// # Errors
    /// [`TracefsError`].
    pub fn event(&self, event: &str) -> Result<EventFormat, TracefsError> {
        let folder = self.root.join("events").join(event.replace(':', "/"));
        let path = folder.join("format");
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| {
            let mut file = file.take(MAX_FORMAT_BYTES as u64);
            file.read_to_string(&mut text)
        });
        match read {
            Ok(_) => {
                EventFormat::parse(&text).map_err(|source| TracefsError::Format { path, source })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(TracefsError::NoEvent {
                event: event.to_owned(),
                path: folder,
            }),
            Err(source) => Err(TracefsError::Denied { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(name: &str) -> PathBuf {
        let name = format!("vitrine-tracefs-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_tracepoint_is_found_at_the_second_place() {
        let (empty, mounted) = (folder("empty"), folder("mounted"));
        let event = mounted.join("events/kvm/kvm_exit");
        fs::create_dir_all(&event).unwrap();
        let text = "ID: 4\nfield:int x;offset:0;size:4;signed:1;";
        fs::write(event.join("format"), text).unwrap();
        let tracefs = Tracefs::among(&[&empty, &mounted]).unwrap();
        assert_eq!(tracefs.event("kvm:kvm_exit").unwrap().id, 4);
        let error = tracefs.event("kvm:kvm_entry").unwrap_err();
        assert!(matches!(&error, TracefsError::NoEvent { event, .. } if event == "kvm:kvm_entry"));
        fs::write(event.join("format"), "").unwrap();
        let error = tracefs.event("kvm:kvm_exit").unwrap_err();
        assert!(matches!(error, TracefsError::Format { .. }), "{error}");
        let error = Tracefs::among(&[&empty]).unwrap_err();
        assert!(matches!(error, TracefsError::NotMounted));
        let _ = (fs::remove_dir_all(empty), fs::remove_dir_all(mounted));
    }
}
