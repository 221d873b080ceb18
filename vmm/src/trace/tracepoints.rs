//! KVM's tracepoints: which there are, what is told of them, and why they may be out of reach.

use std::io::Write;

use observe::trace::{EventFormat, PerfError, Tracefs, TracefsError};

use super::sheet::Sheet;

/// The exit, without which there is nothing to tell.
pub const EXIT: &str = "kvm:kvm_exit";
/// The entry, likewise.
pub const ENTRY: &str = "kvm:kvm_entry";
/// More, where the kernel has it: a page fault.
pub const FAULT: &str = "kvm:kvm_page_fault";
/// An interrupt is put into the guest.
pub const INTERRUPT: &str = "kvm:kvm_inj_virq";

/// Why the kernel's side cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The tracepoints are not to be had.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// They cannot be opened on a thread.
    #[error("{source}; {}", remedy(.source))]
    Perf {
        /// Which step.
        source: PerfError,
    },
    /// The threads of the black box are not those that this process sees.
    #[error(
        "process {pid} has no thread {tid} named {name} here: the VM runs in another pid namespace \
         or its process is gone; trace from inside that namespace, or ask its API socket"
    )]
    OtherThreads {
        /// The writer's process.
        pid: u64,
        /// The thread.
        tid: u64,
        /// Its name.
        name: String,
    },
    /// No vCPU has started.
    #[error("no vCPU thread runs yet; trace again when the guest has started")]
    NoVcpus,
}

/// What to do about it.
fn remedy(error: &PerfError) -> String {
    match (error, error.errno()) {
        (PerfError::Ring { .. }, Some(libc::EPERM)) => {
            "raise kernel.perf_event_mlock_kb or RLIMIT_MEMLOCK, or be root".to_owned()
        }
        (_, Some(libc::EACCES | libc::EPERM)) => {
            let path = "/proc/sys/kernel/perf_event_paranoid";
            let paranoid = std::fs::read_to_string(path);
            let paranoid = paranoid.as_deref().map_or("unknown", str::trim).to_owned();
            format!(
                "run vitrine trace as root or with CAP_PERFMON on the VM's black box \
                 (kernel.perf_event_paranoid is {paranoid} here, and a container may forbid it)"
            )
        }
        (_, Some(libc::ESRCH)) => "the thread has ended; trace again".to_owned(),
        (_, Some(libc::EMFILE | libc::ENFILE)) => {
            "raise the limit on open files: ulimit -n".to_owned()
        }
        (_, Some(libc::ENOSYS | libc::ENOENT | libc::EOPNOTSUPP)) => {
            "this kernel has no perf events (CONFIG_PERF_EVENTS), or something hides them"
                .to_owned()
        }
        _ => "tell the authors which kernel this is".to_owned(),
    }
}

/// The layouts of the tracepoints' records.
pub struct Formats {
    exit: EventFormat,
    entry: EventFormat,
    fault: Option<EventFormat>,
    interrupt: Option<EventFormat>,
}

impl Formats {
    /// Reads them; what is missing of the extra ones is noted.
    ///
    /// # Errors
    /// [`KernelError::Tracefs`].
    pub fn read<W: Write>(sheet: &mut Sheet<W>) -> Result<Formats, KernelError> {
        let tracefs = Tracefs::find()?;
        let mut extra = |event: &str, what: &str| match tracefs.event(event) {
            Ok(format) => Some(format),
            Err(error) => {
                sheet.lacks(what, error.to_string());
                None
            }
        };
        Ok(Formats {
            exit: tracefs.event(EXIT)?,
            entry: tracefs.event(ENTRY)?,
            fault: extra(FAULT, "page faults"),
            interrupt: extra(INTERRUPT, "injected interrupts"),
        })
    }

    /// All of them that there are, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &EventFormat)> {
        let extra = [(FAULT, &self.fault), (INTERRUPT, &self.interrupt)];
        let extra = extra.into_iter();
        let extra = extra.filter_map(|(name, format)| Some((name, format.as_ref()?)));
        [(EXIT, &self.exit), (ENTRY, &self.entry)]
            .into_iter()
            .chain(extra)
    }
}

/// Whether the process has a thread of that number and name.
pub fn has_thread(pid: u64, tid: u64, name: &str) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
    comm.is_ok_and(|comm| comm.trim_end() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_known_by_its_number_and_name() {
        let (sender, told) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("vcpu-7".to_owned());
        let thread = thread.spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").unwrap();
            sender.send(own).unwrap();
            let _ = held.recv();
        });
        let path = told.recv().unwrap();
        let tid = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let pid = std::process::id().into();
        assert!(has_thread(pid, tid, "vcpu-7"));
        assert!(!has_thread(pid, tid, "vcpu-8"));
        assert!(!has_thread(pid, u64::MAX, "vcpu-7"));
        drop(release);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn each_refusal_has_a_remedy() {
        let open = |errno| PerfError::Open {
            tracepoint: 1,
            tid: 2,
            source: std::io::Error::from_raw_os_error(errno),
        };
        let ring = PerfError::Ring {
            source: std::io::Error::from_raw_os_error(libc::EPERM),
        };
        let cases = [
            (open(libc::EACCES), "CAP_PERFMON"),
            (open(libc::ESRCH), "has ended"),
            (open(libc::EMFILE), "ulimit -n"),
            (open(libc::ENOSYS), "CONFIG_PERF_EVENTS"),
            (open(libc::EIO), "tell the authors"),
            (ring, "perf_event_mlock_kb"),
        ];
        for (source, word) in cases {
            let text = KernelError::Perf { source }.to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
