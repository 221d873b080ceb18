//! What a VM is to be: validated, not serialisable, free to change. Made by the API's conversion
//! or by an embedder; consumed by [`crate::Vm::launch`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::validate;
use crate::watcher::judge::Limits;

pub use crate::watcher::judge::Judging;
pub use devices::virtio::blk::MAX_QUEUES as MAX_DRIVE_QUEUES;
pub use devices::virtio::net::MAX_PAIRS as MAX_QUEUE_PAIRS;
pub use devices::virtio::{
    BucketSpec, DeviceChange, DriveChange, IoEngine, LimiterSpec, NetChange,
};
pub use memory::{Backing, MemorySpec};

/// Most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 32;
/// Most characters of a kernel command line, its NUL not counted.
pub const MAX_CMDLINE: usize = 2047;

/// A whole VM.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Name of the VM: [A-Za-z0-9_-], at most 64 characters. Thread names and the black box carry it.
    pub id: String,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Whether two vCPUs share a core in the topology that the guest sees.
    pub smt: bool,
    /// Guest memory.
    pub memory: MemorySpec,
    /// What to boot.
    pub boot: BootSpec,
    /// Block devices, in the order in which the guest finds them; a root device comes first.
    pub drives: Vec<DriveSpec>,
    /// Network devices, in the order in which the guest finds them.
    pub networks: Vec<NetSpec>,
    /// The balloon, if the guest has one.
    pub balloon: Option<BalloonSpec>,
    /// Whether drives and network devices are on a PCI bus, and not virtio-mmio.
    pub pci: bool,
    /// The entropy device, if there is to be one; the guest finds it after the interfaces.
    pub entropy: Option<EntropySpec>,
    /// The socket device, if there is to be one; the guest finds it last.
    pub vsock: Option<VsockSpec>,
    /// The serial console.
    pub serial: SerialSpec,
    /// The black box.
    pub black_box: BlackBoxSpec,
    /// How long each step of an orderly stop may take before the VM is given up.
    pub stop_deadline: Duration,
    /// How it is judged; can be changed while it runs.
    pub limits: Arc<Limits>,
}

/// What to boot. The format is found out: bzImage, ELF with a PVH note, ELF 64-bit.
#[derive(Clone, Debug, Default)]
pub struct BootSpec {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The command line as the caller gave it; `None` is [`DEFAULT_CMDLINE`]. The machine adds
    /// `root=` for a root drive and what helps the kernel to find devices.
    pub cmdline: Option<String>,
    /// How an ELF kernel is entered; `Auto` takes PVH when the kernel has the note.
    pub entry: Entry,
    /// Who unpacks a bzImage.
    pub unpack: Unpack,
    /// The folder in which kernels that the host unpacked are kept for the next VM, at most 8 of
    /// some 40 MiB; it has to be this user's alone. `None`: each VM unpacks anew.
    pub kernel_cache: Option<PathBuf>,
}

/// Who unpacks a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpack {
    /// The host, which is faster; the guest where the host does not understand the image.
    #[default]
    Host,
    /// The guest: the host then parses nothing but the image's header.
    Guest,
}

/// The command line of a guest whose caller gave none.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=1";

/// How an ELF kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// PVH when there is a PVH note, else 64-bit.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol.
    Linux64,
    /// The PVH entry; refused when the kernel has no note.
    Pvh,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveSpec {
    /// Name of the drive: [A-Za-z0-9_], no other drive's; the guest reads it as the disk's serial.
    pub id: String,
    /// A regular file or block device of the host.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the guest's root is on it.
    pub root: bool,
    /// The root's partition UUID; the whole disk when absent.
    pub partuuid: Option<String>,
    /// Whether a flush reaches the host's disk.
    pub cache: Cache,
    /// How much the guest may ask of it.
    pub limiter: LimiterSpec,
    /// Its queues, 1 to [`MAX_DRIVE_QUEUES`]: with one a vCPU, no vCPU waits for another's lock.
    pub queues: u8,
    /// How its requests are carried out. Where the host has no io_uring, `Async` is as `Sync`, and
    /// [`crate::VmEvent::Device`] tells why.
    pub engine: IoEngine,
}

/// Whether a guest's flush is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The flush feature is not offered.
    #[default]
    Unsafe,
    /// Flush is `fdatasync`.
    Writeback,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Name of the interface: [A-Za-z0-9_], no other interface's.
    pub id: String,
    /// The host's tap device, which must exist.
    pub tap: String,
    /// The MAC address offered to the guest.
    pub mac: Option<[u8; 6]>,
    /// The MTU offered to the guest, at least 68.
    pub mtu: Option<u16>,
    /// How much the guest may receive.
    pub rx_limiter: LimiterSpec,
    /// How much it may send.
    pub tx_limiter: LimiterSpec,
    /// Whether what it sends from another address than `mac` is dropped; needs `mac`.
    pub mac_filter: bool,
    /// Its queue pairs, 1 to [`MAX_QUEUE_PAIRS`]; more than one needs a tap made with `multi_queue`.
    pub queues: u8,
}

impl NetSpec {
    /// Its queues: two a pair, and one for commands where there is something to say on it.
    pub fn queue_count(&self) -> usize {
        2 * usize::from(self.queues) + usize::from(self.queues > 1)
    }
}

/// A balloon: memory that the guest lends to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonSpec {
    /// How large it is to be at first, at most the guest's memory.
    pub target_mib: u32,
    /// Whether the guest takes memory out of it before it kills a process for want of memory.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; with 0 there are none.
    pub statistics_s: u16,
    /// Whether the guest can be asked to name its free memory.
    pub hinting: bool,
    /// Whether the guest reports free memory by itself.
    pub reporting: bool,
}

impl BalloonSpec {
    /// Its queues: two, and one for each of what it can have.
    pub fn queues(&self) -> usize {
        let optional = [self.statistics_s > 0, self.hinting, self.reporting];
        2 + optional.iter().filter(|there| **there).count()
    }
}
/// An entropy device: random bytes of the host's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntropySpec {
    /// How much the guest may ask of it.
    pub limiter: LimiterSpec,
}

/// A socket device: streams between the guest and Unix sockets of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's address, at least 3.
    pub guest_cid: u32,
    /// Where programs of the host reach the guest; programs that the guest reaches listen there with
    /// `_PORT` behind the name. A socket that nobody listens at is replaced.
    pub path: PathBuf,
}

/// Where the serial console's bytes come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialSpec {
    /// Input.
    pub input: SerialInput,
    /// Output.
    pub output: SerialOutput,
    /// How many bytes the output is given; what is beyond is dropped.
    pub limit: Option<BucketSpec>,
}

impl Default for SerialSpec {
    fn default() -> Self {
        SerialSpec {
            input: SerialInput::Nothing,
            output: SerialOutput::Nothing,
            limit: None,
        }
    }
}

/// Where serial input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialInput {
    /// Nowhere.
    Nothing,
    /// This process's standard input; a terminal is put into raw mode while the VM runs and
    /// restored on every way out.
    Stdin,
    /// As `Stdin`, and Ctrl-A x stops the VM, Ctrl-A h helps, Ctrl-A Ctrl-A is a Ctrl-A.
    Terminal,
}

/// Where serial output goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialOutput {
    /// Nowhere (it is still counted).
    Nothing,
    /// This process's standard output.
    Stdout,
    /// Appended to a file or FIFO, made if absent.
    File(PathBuf),
}

/// The black box of a VM.
#[derive(Clone, Debug, Default)]
pub struct BlackBoxSpec {
    /// Its file; `None` keeps it in memory that no path leads to.
    pub path: Option<PathBuf>,
    /// Whether the file stays after a clean end.
    pub keep: bool,
}

impl VmSpec {
    /// A VM with one vCPU, 128 MiB, no devices and no console.
    pub fn new(id: &str, boot: BootSpec) -> VmSpec {
        VmSpec {
            id: id.to_owned(),
            vcpus: 1,
            smt: false,
            memory: MemorySpec::default(),
            boot,
            drives: Vec::new(),
            networks: Vec::new(),
            balloon: None,
            pci: false,
            entropy: None,
            vsock: None,
            serial: SerialSpec::default(),
            black_box: BlackBoxSpec::default(),
            stop_deadline: Duration::from_secs(5),
            limits: Arc::default(),
        }
    }

    /// Judges all parts against this host, as [`crate::Vm::launch`] does.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn validate(&self) -> Result<(), crate::LaunchError> {
        validate::vm_id(&self.id)?;
        validate::vcpus(u64::from(self.vcpus), self.smt)?;
        self.memory.validate()?;
        validate::kernel(&self.boot.kernel)?;
        if let Some(initrd) = &self.boot.initrd {
            validate::initrd(initrd)?;
        }
        if let Some(cmdline) = &self.boot.cmdline {
            validate::cmdline(cmdline)?;
        }
        validate::drives_together(&self.drives)?;
        validate::networks_together(&self.networks)?;
        if let Some(balloon) = &self.balloon {
            validate::balloon(balloon, &self.memory)?;
        }
        self.drives.iter().try_for_each(validate::drive)?;
        self.networks.iter().try_for_each(validate::net)?;
        self.vsock.iter().try_for_each(validate::vsock)?;
        Ok(())
    }
}
