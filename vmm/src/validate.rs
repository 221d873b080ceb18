//! Judges the parts of a [`VmSpec`](crate::VmSpec) against this host, each alone, so that a caller
//! learns what is wrong when it says it and not when the VM starts.
//!
//! Nothing here is opened for longer than the check, and nothing is changed. A check that passes
//! is no promise: the host may change before the VM starts, and launching reports that too.

mod balloon;
mod ids;

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::spec::{
    DriveSpec, MAX_CMDLINE, MAX_DRIVE_QUEUES, MAX_QUEUE_PAIRS, MAX_VCPUS, NetSpec, VsockSpec,
};
pub use balloon::balloon;
use ids::MAX_VM_ID;
pub use ids::{drives_together, networks_together, vm_id};

/// Least MTU that an IPv4 host may have (RFC 791).
const MIN_MTU: u16 = 68;
/// `IFF_TAP` of linux/if_tun.h, as /sys/class/net/NAME/tun_flags shows it.
const IFF_TAP: u32 = 0x0002;
/// `IFF_MULTI_QUEUE`, as there.
const IFF_MULTI_QUEUE: u32 = 0x0100;
/// Longest path of a socket device.
const MAX_VSOCK_PATH: usize = devices::virtio::vsock::MAX_PATH;
/// `IFNAMSIZ` of linux/if.h, its NUL not counted.
const MAX_IFNAME: usize = 15;

/// What is wrong with a part of a spec, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A balloon that is larger than the guest.
    #[error(
        "amount_mib {asked} is more than the guest's memory of {memory} MiB; give at most {memory}, or a larger mem_size_mib"
    )]
    BalloonTooLarge {
        /// MiB asked.
        asked: u32,
        /// MiB of the guest's memory.
        memory: u64,
    },
    /// An id that no VM can have.
    #[error(
        "the VM's id {0:?} cannot be used; give 1 to {MAX_VM_ID} of the characters A-Z, a-z, 0-9, '_' and '-'"
    )]
    VmId(String),
    /// An id that no device can have.
    #[error(
        "{what} {id:?} cannot be used; give one or more of the characters A-Z, a-z, 0-9 and '_'"
    )]
    DeviceId {
        /// `drive_id` or `iface_id`.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// Two devices of one kind with one id.
    #[error("{what} {id} is given twice; give each device an id of its own")]
    SameId {
        /// `drive_id` or `iface_id`.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// As many queues as no drive can have.
    #[error(
        "drive {drive} cannot have {queues} queues; give num_queues from 1 to {MAX_DRIVE_QUEUES}"
    )]
    DriveQueues {
        /// The drive.
        drive: String,
        /// What was asked.
        queues: u8,
    },
    /// As many queue pairs as no interface can have.
    #[error(
        "interface {interface} cannot have {queues} queue pairs; give queues from 1 to {MAX_QUEUE_PAIRS}"
    )]
    QueuePairs {
        /// The interface.
        interface: String,
        /// What was asked.
        queues: u8,
    },
    /// More than one root.
    #[error(
        "drives {first} and {second} are both to be the root; set root to false on all drives but one"
    )]
    SecondRoot {
        /// The first drive that is to be the root.
        first: String,
        /// The next.
        second: String,
    },
    /// A file cannot be found or reached.
    #[error("{what} {}: {source}; {remedy}", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it cannot be had.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A path leads to something of the wrong kind.
    #[error("{what} {} is {found}, not {wanted}; {remedy}", path.display())]
    Kind {
        /// What the file is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be there.
        wanted: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A file is empty.
    #[error("{what} {} is empty; {remedy}", path.display())]
    Empty {
        /// What the file is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A number of vCPUs that no VM can have.
    #[error("vcpu_count {0} is out of range; give 1 to {MAX_VCPUS}")]
    Vcpus(u64),
    /// An odd number of vCPUs with two to a core.
    #[error(
        "vcpu_count {0} is odd, but with smt two vCPUs share a core; give 1 or an even number, or set smt to false"
    )]
    OddVcpus(u64),
    /// A command line that the guest could not be given.
    #[error("boot_args is {0} bytes long; shorten it to at most {MAX_CMDLINE}")]
    CmdlineTooLong(usize),
    /// A character that a command line cannot hold.
    #[error("boot_args has the byte {byte:#04x} at offset {at}; use printable ASCII only")]
    CmdlineByte {
        /// The byte.
        byte: u8,
        /// Where it is.
        at: usize,
    },
    /// A partition UUID that is none.
    #[error(
        "partuuid {0:?} is not a partition UUID; use hex digits and dashes, as `blkid -s PARTUUID` prints it"
    )]
    PartUuid(String),
    /// A name that no network interface can have.
    #[error(
        "host_dev_name {0:?} is not a name of a network interface; use 1 to {MAX_IFNAME} characters without '/', ':' and blanks"
    )]
    TapName(String),
    /// No such interface.
    #[error(
        "host_dev_name {0}: there is no such network interface; make it with `ip tuntap add dev {0} mode tap`, with multi_queue behind it if queues is more than 1"
    )]
    TapAbsent(String),
    /// An interface of another kind.
    #[error(
        "host_dev_name {0} is a network interface but not a tap device; make one with `ip tuntap add dev NAME mode tap`"
    )]
    NotTap(String),
    /// A tap of one queue, for an interface of several.
    #[error(
        "host_dev_name {tap} is a tap that takes one queue, and queues is {queues}; make it anew with `ip tuntap del dev {tap} mode tap` and `ip tuntap add dev {tap} mode tap multi_queue`, or leave queues out"
    )]
    OneQueueTap {
        /// The tap.
        tap: String,
        /// What was asked.
        queues: u8,
    },
    /// An MTU that no guest can use.
    #[error("mtu {0} is too small; give at least {MIN_MTU}")]
    Mtu(u16),
    /// An address that no guest can have.
    #[error("guest_cid {0} is reserved; give 3 to 4294967294")]
    GuestCid(u32),
    /// A path that no Unix socket can have.
    #[error(
        "uds_path is {0} bytes long; give 1 to {MAX_VSOCK_PATH}, for a socket's name with a port behind it has to fit"
    )]
    SocketPath(usize),
    /// A group address as a station's own.
    #[error(
        "guest_mac {0} is a group address; make the lowest bit of its first byte 0, as in 06:00:ac:10:00:02"
    )]
    GroupMac(String),
    /// A filter of addresses, and none that is the guest's.
    #[error(
        "mac_filter of interface {0} needs guest_mac: else the guest makes its address up; give guest_mac or leave mac_filter out"
    )]
    FilterWithoutMac(String),
}

/// Judges a number of vCPUs, as wide as a caller may say it.
///
/// # Errors
/// Out of 1 to [`MAX_VCPUS`]; odd and above 1 with `smt`.
pub fn vcpus(count: u64, smt: bool) -> Result<u8, SpecError> {
    let narrow = u8::try_from(count)
        .ok()
        .filter(|count| (1..=MAX_VCPUS).contains(count))
        .ok_or(SpecError::Vcpus(count))?;
    if smt && narrow > 1 && !narrow.is_multiple_of(2) {
        return Err(SpecError::OddVcpus(count));
    }
    Ok(narrow)
}

/// Judges a kernel's file: a regular file, readable, not empty. Its format is judged at launch.
///
/// # Errors
/// The path, what is wrong with it, and the remedy.
pub fn kernel(path: &Path) -> Result<(), SpecError> {
    let remedy =
        "give the path of a kernel image (bzImage or ELF vmlinux) that this process may read";
    readable_file("kernel_image_path", path, remedy)
}

/// Judges an initial RAM disk's file: a regular file, readable, not empty.
///
/// # Errors
/// The path, what is wrong with it, and the remedy.
pub fn initrd(path: &Path) -> Result<(), SpecError> {
    let remedy = "give the path of an initrd that this process may read, or none";
    readable_file("initrd_path", path, remedy)
}

/// Judges a kernel command line as the caller gave it.
///
/// # Errors
/// Too long for the guest, or not printable ASCII.
pub fn cmdline(text: &str) -> Result<(), SpecError> {
    if text.len() > MAX_CMDLINE {
        return Err(SpecError::CmdlineTooLong(text.len()));
    }
    match text
        .bytes()
        .enumerate()
        .find(|(_, byte)| !(b' '..=b'~').contains(byte))
    {
        Some((at, byte)) => Err(SpecError::CmdlineByte { byte, at }),
        None => Ok(()),
    }
}

/// Judges a drive: a regular file or block device, readable, and writable unless read-only; a
/// partition UUID that is one.
///
/// # Errors
/// The path, what is wrong with it, and the remedy.
pub fn drive(spec: &DriveSpec) -> Result<(), SpecError> {
    let what = "path_on_host";
    let remedy = "give a disk image or block device that this process may open";
    let file_error = |source, remedy| SpecError::File {
        what,
        path: spec.path.clone(),
        source,
        remedy,
    };
    let kind = fs::metadata(&spec.path)
        .map_err(|e| file_error(e, remedy))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(SpecError::Kind {
            what,
            path: spec.path.clone(),
            found: kind_name(kind),
            wanted: "a regular file or block device",
            remedy,
        });
    }
    let remedy = if spec.read_only {
        "let this process read it"
    } else {
        "let this process write it, or set is_read_only to true"
    };
    OpenOptions::new()
        .read(true)
        .write(!spec.read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(&spec.path)
        .map_err(|e| file_error(e, remedy))?;
    if !(1..=MAX_DRIVE_QUEUES).contains(&spec.queues) {
        return Err(SpecError::DriveQueues {
            drive: spec.id.clone(),
            queues: spec.queues,
        });
    }
    match &spec.partuuid {
        Some(uuid) if !is_part_uuid(uuid) => Err(SpecError::PartUuid(uuid.clone())),
        _ => Ok(()),
    }
}

/// Judges a network device: its tap exists, is one and takes as many queues, its MTU and MAC can be
/// used.
///
/// # Errors
/// The tap, what is wrong with it, and the remedy.
pub fn net(spec: &NetSpec) -> Result<(), SpecError> {
    if let Some(mtu) = spec.mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(SpecError::Mtu(mtu));
    }
    if let Some(mac) = spec.mac.filter(|mac| mac[0] & 1 != 0) {
        let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        return Err(SpecError::GroupMac(text.join(":")));
    }
    if spec.mac_filter && spec.mac.is_none() {
        return Err(SpecError::FilterWithoutMac(spec.id.clone()));
    }
    if !(1..=MAX_QUEUE_PAIRS).contains(&spec.queues) {
        return Err(SpecError::QueuePairs {
            interface: spec.id.clone(),
            queues: spec.queues,
        });
    }
    let name = &spec.tap;
    let named = (1..=MAX_IFNAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    if !named {
        return Err(SpecError::TapName(name.clone()));
    }
    let directory = Path::new("/sys/class/net").join(name);
    if !directory.exists() {
        return Err(SpecError::TapAbsent(name.clone()));
    }
    let flags = fs::read_to_string(directory.join("tun_flags")).ok();
    let flags = flags
        .and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok())
        .unwrap_or(0);
    match (flags & IFF_TAP != 0, flags & IFF_MULTI_QUEUE != 0) {
        (false, _) => Err(SpecError::NotTap(name.clone())),
        (true, false) if spec.queues > 1 => Err(SpecError::OneQueueTap {
            tap: name.clone(),
            queues: spec.queues,
        }),
        (true, _) => Ok(()),
    }
}

/// Judges a socket device: an address that a guest may have, a path short enough for a socket, in a
/// folder that is there.
///
/// # Errors
/// What is wrong with it, and the remedy.
pub fn vsock(spec: &VsockSpec) -> Result<(), SpecError> {
    if !(3..u32::MAX).contains(&spec.guest_cid) {
        return Err(SpecError::GuestCid(spec.guest_cid));
    }
    let bytes = spec.path.as_os_str().len();
    if !(1..=MAX_VSOCK_PATH).contains(&bytes) {
        return Err(SpecError::SocketPath(bytes));
    }
    let folder = spec
        .path
        .parent()
        .filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match fs::metadata(folder) {
        Ok(_) => Ok(()),
        Err(source) => Err(SpecError::File {
            what: "uds_path",
            path: spec.path.clone(),
            source,
            remedy: "give a name in a folder that is there",
        }),
    }
}

/// Judges a place for output, named `what`: a file or FIFO that can be written, or a name in a
/// directory that exists, where the file will be made.
///
/// # Errors
/// The path, what is wrong with it, and the remedy.
pub fn output(what: &'static str, path: &Path) -> Result<(), SpecError> {
    let remedy = "give a file or FIFO that this process may write";
    let error = |source| SpecError::File {
        what,
        path: path.to_owned(),
        source,
        remedy,
    };
    let metadata = match fs::metadata(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let parent = fs::metadata(parent.unwrap_or(Path::new("."))).map_err(error)?;
            return if parent.is_dir() {
                Ok(())
            } else {
                Err(error(absent))
            };
        }
        found => found.map_err(error)?,
    };
    if metadata.is_dir() || metadata.file_type().is_socket() {
        return Err(SpecError::Kind {
            what,
            path: path.to_owned(),
            found: kind_name(metadata.file_type()),
            wanted: "a file or FIFO",
            remedy,
        });
    }
    // Reading too, for a FIFO without a reader cannot be opened for writing alone.
    let opened = OpenOptions::new()
        .read(metadata.file_type().is_fifo())
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path);
    opened.map(drop).map_err(error)
}

fn readable_file(what: &'static str, path: &Path, remedy: &'static str) -> Result<(), SpecError> {
    let error = |source| SpecError::File {
        what,
        path: path.to_owned(),
        source,
        remedy,
    };
    // The kind first: opening a FIFO would wait for its other end.
    let metadata = fs::metadata(path).map_err(error)?;
    if !metadata.is_file() {
        return Err(SpecError::Kind {
            what,
            path: path.to_owned(),
            found: kind_name(metadata.file_type()),
            wanted: "a regular file",
            remedy,
        });
    }
    if metadata.len() == 0 {
        return Err(SpecError::Empty {
            what,
            path: path.to_owned(),
            remedy,
        });
    }
    File::open(path).map(drop).map_err(error)
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a regular file"
    }
}

fn is_part_uuid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests;
