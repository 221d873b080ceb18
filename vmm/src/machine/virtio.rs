//! Virtio devices: opened on the host, moved to I/O threads of their own, put into their windows,
//! and connected to KVM by eventfds.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use devices::bus::Bus;
use devices::virtio::mmio::registers::QUEUE_NOTIFY;
use devices::virtio::{
    BalloonBlock, BalloonDevice, BalloonHandle, BlockDevice, BlockSpec, DeviceChange,
    DeviceCounters, DeviceProfile, EntropyDevice, Front, IoThread, IoThreadSpec, MmioTransport,
    NetDevice, TapSpec, ThreadBlock, VirtioDevice, VsockBlock, VsockDevice,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use memory::layout::MMIO_DEVICE_BYTES;
use memory::{Discarder, GuestRam};
use observe::BlackBox;

use super::MAX_VIRTIO_DEVICES;
use super::pci::{self, Pci};
use crate::boot::cmdline::{MmioWindow, Placement};
use crate::driver::Message;
use crate::hypervisor::refused;
use crate::spec::{BalloonSpec, Cache, DriveSpec, EntropySpec, NetSpec, VmSpec, VsockSpec};
use crate::vm::LaunchError;
use crate::watcher::kicks::Kick;

/// The balloon's name.
const BALLOON: &str = "balloon";
/// Names of the machine's own devices (build.rs) that an id could be, too.
const OWN: [&str; 8] = [
    "serial",
    "i8042",
    "cmos",
    "post",
    "power",
    "pvpanic",
    BALLOON,
    pci::NAME,
];

/// Where the devices' registers are, in the order in which the guest finds them.
pub fn placement(spec: &VmSpec) -> Placement {
    if spec.pci {
        return Placement::Pci;
    }
    let alone = [
        spec.balloon.is_some(),
        spec.entropy.is_some(),
        spec.vsock.is_some(),
    ];
    let alone: usize = alone.into_iter().map(usize::from).sum();
    let devices = spec.drives.len() + spec.networks.len() + alone;
    let slots = (0..MAX_VIRTIO_DEVICES).take(devices);
    Placement::Mmio(slots.map(MmioWindow::of_slot).collect())
}

/// The devices of a machine.
pub struct Made {
    /// Their threads.
    pub threads: Vec<IoThread>,
    /// Their kicks, for the watcher to look at.
    pub kicks: Vec<Kick>,
    /// What commands the balloon.
    pub balloon: Option<BalloonHandle>,
}

/// Makes all drives, the root first (the guest calls it vda), then all network devices, then the
/// balloon, the entropy device and the socket device.
///
/// # Errors
/// [`LaunchError`], naming the device.
pub fn make(
    spec: &VmSpec,
    vm: &Arc<VmFd>,
    ram: &GuestRam,
    mmio: &mut Bus,
    black_box: &mut BlackBox,
    inbox: &Sender<Message>,
) -> Result<Made, LaunchError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let (roots, others): (Vec<_>, Vec<_>) = spec.drives.iter().partition(|drive| drive.root);
    for drive in roots.into_iter().chain(others) {
        devices.push(open_drive(drive)?);
    }
    for network in &spec.networks {
        let name = network_name(&network.id, &spec.drives);
        devices.push(open_network(network, name)?);
    }
    let mut balloon = None;
    if let Some(wanted) = &spec.balloon {
        let memory = Discarder::new(ram, spec.memory.backing);
        let (device, handle) = make_balloon(wanted, memory, black_box)?;
        devices.push(Box::new(device));
        balloon = Some(handle);
    }
    if let (Some(entropy), Some(name)) = (spec.entropy, entropy_name(spec)) {
        devices.push(make_entropy(entropy, &name)?);
    }
    if let (Some(vsock), Some(name)) = (&spec.vsock, vsock_name(spec)) {
        devices.push(open_vsock(vsock, name, black_box)?);
    }
    // One a device, so that a stalled disk holds up nobody else.
    let (mut threads, mut kicks) = (Vec::new(), Vec::new());
    let mut bus = spec.pci.then(|| Pci::new(vm));
    for (slot, device) in (0u32..).zip(devices) {
        let profile = device.profile();
        let name = profile.name.clone();
        if slot >= MAX_VIRTIO_DEVICES {
            let detail = format!("it is one too many: a VM takes {MAX_VIRTIO_DEVICES} devices");
            return Err(LaunchError::Device {
                device: name,
                detail,
            });
        }
        let failed = |detail: String| LaunchError::Device {
            device: name.clone(),
            detail,
        };
        let mut thread = spawn_thread(&profile, black_box, inbox)?;
        let counters = DeviceCounters::place(black_box, &profile)?;
        let front = thread
            .attach(device, counters, ram)
            .map_err(|error| failed(error.to_string()))?;
        watch_kicks(&name, &front, &mut kicks)?;
        match &mut bus {
            Some(bus) => bus.add(&profile, front, mmio, slot)?,
            None => connect(vm, &name, front, mmio, slot)?,
        }
        threads.push(thread);
    }
    bus.map_or(Ok(()), |bus| bus.finish(mmio))?;
    Ok(Made {
        threads,
        kicks,
        balloon,
    })
}

/// What a drive is called in sections, threads and messages: its id, unless the machine has a
/// device of its own of that name. Ids have no '-', so that no prefixed name is another's id.
pub fn drive_name(id: &str) -> String {
    if OWN.contains(&id) {
        format!("drive-{id}")
    } else {
        id.to_owned()
    }
}

/// As [`drive_name`]; a drive may have the same id, and then it has the name.
fn network_name(id: &str, drives: &[DriveSpec]) -> String {
    if OWN.contains(&id) || drives.iter().any(|drive| drive.id == id) {
        network_name_beside(id)
    } else {
        id.to_owned()
    }
}

/// What an interface is called whose id is the name of another device.
fn network_name_beside(id: &str) -> String {
    format!("net-{id}")
}

/// What kind of device a change is for, and what the one with this id may be called: the first that
/// there is.
pub fn names(id: &str, change: &DeviceChange) -> (&'static str, Vec<String>) {
    match change {
        DeviceChange::Drive(_) => ("drive", vec![drive_name(id)]),
        // Under its own id there may be another device, and then it has the first name.
        DeviceChange::Network(_) => {
            let names = vec![network_name_beside(id), id.to_owned()];
            ("network interface", names)
        }
    }
}

/// What the entropy device is called, if there is one.
pub fn entropy_name(spec: &VmSpec) -> Option<String> {
    spec.entropy.map(|_| own_name("entropy", spec))
}

/// What the socket device is called, if there is one.
pub fn vsock_name(spec: &VmSpec) -> Option<String> {
    spec.vsock.as_ref().map(|_| own_name("vsock", spec))
}

/// The name of a device that has no id: `name`, unless a drive or an interface has it.
fn own_name(name: &str, spec: &VmSpec) -> String {
    let mut drives = spec.drives.iter().map(|drive| &drive.id);
    let mut networks = spec.networks.iter().map(|network| &network.id);
    if drives.any(|id| id == name) || networks.any(|id| id == name) {
        format!("virtio-{name}")
    } else {
        name.to_owned()
    }
}

fn open_drive(spec: &DriveSpec) -> Result<Box<dyn VirtioDevice>, LaunchError> {
    let device = BlockDevice::open(BlockSpec {
        id: spec.id.clone(),
        path: spec.path.clone(),
        read_only: spec.read_only,
        flush: spec.cache == Cache::Writeback,
        limiter: spec.limiter,
        queues: spec.queues,
        engine: spec.engine,
    });
    match device {
        Ok(device) => Ok(Box::new(device.named(drive_name(&spec.id)))),
        Err(error) => {
            let device = format!("drive {}", spec.id);
            Err(LaunchError::Device {
                device,
                detail: error.to_string(),
            })
        }
    }
}

fn open_network(spec: &NetSpec, name: String) -> Result<Box<dyn VirtioDevice>, LaunchError> {
    let device = NetDevice::open(TapSpec {
        id: name,
        tap: spec.tap.clone(),
        mac: spec.mac,
        mtu: spec.mtu,
        rx_limiter: spec.rx_limiter,
        tx_limiter: spec.tx_limiter,
        mac_filter: spec.mac_filter,
        queues: spec.queues,
    });
    match device {
        Ok(device) => Ok(Box::new(device)),
        Err(error) => {
            let device = format!("network interface {}", spec.id);
            Err(LaunchError::Device {
                device,
                detail: error.to_string(),
            })
        }
    }
}

fn make_balloon(
    spec: &BalloonSpec,
    memory: Discarder,
    black_box: &mut BlackBox,
) -> Result<(BalloonDevice, BalloonHandle), LaunchError> {
    let spec = devices::virtio::BalloonSpec {
        id: BALLOON.to_owned(),
        pages: spec.target_mib.saturating_mul(256),
        deflate_on_oom: spec.deflate_on_oom,
        statistics_s: spec.statistics_s,
        hinting: spec.hinting,
        reporting: spec.reporting,
    };
    let block = BalloonBlock::place(black_box)?;
    BalloonDevice::new(spec, memory, block).map_err(|source| LaunchError::Refused {
        what: "an eventfd or a timer for the balloon (raise RLIMIT_NOFILE)",
        source,
    })
}

fn make_entropy(spec: EntropySpec, name: &str) -> Result<Box<dyn VirtioDevice>, LaunchError> {
    match EntropyDevice::new(name, spec.limiter) {
        Ok(device) => Ok(Box::new(device)),
        Err(source) => Err(LaunchError::Refused {
            what: "a timer for the entropy device (raise RLIMIT_NOFILE)",
            source,
        }),
    }
}

fn open_vsock(
    spec: &VsockSpec,
    name: String,
    black_box: &mut BlackBox,
) -> Result<Box<dyn VirtioDevice>, LaunchError> {
    let block = VsockBlock::place(black_box, &name)?;
    let wanted = devices::virtio::VsockSpec {
        name,
        guest_cid: spec.guest_cid,
        path: spec.path.clone(),
    };
    match VsockDevice::open(wanted, block) {
        Ok(device) => Ok(Box::new(device)),
        Err(error) => Err(LaunchError::Device {
            device: "vsock".to_owned(),
            detail: error.to_string(),
        }),
    }
}

fn spawn_thread(
    profile: &DeviceProfile,
    black_box: &mut BlackBox,
    inbox: &Sender<Message>,
) -> Result<IoThread, LaunchError> {
    let (events, failures) = (inbox.clone(), inbox.clone());
    let name = &profile.name;
    let thread = format!("io-{name}");
    let spec = IoThreadSpec {
        name: name.clone(),
        block: ThreadBlock::place(black_box, &thread, profile)?,
        // The vm thread is gone only when the VM is.
        events: Some(Arc::new(move |event| {
            drop(events.send(Message::Device(event)));
        })),
        on_failure: Box::new(move |detail| {
            drop(failures.send(Message::ThreadFailed { thread, detail }));
        }),
    };
    IoThread::spawn(spec).map_err(|error| LaunchError::Device {
        device: name.clone(),
        detail: error.to_string(),
    })
}

/// Puts a device into its window. Kicks by ioeventfd, interrupts by irqfd: neither costs a user
/// exit.
fn connect(
    vm: &VmFd,
    name: &str,
    front: Front,
    mmio: &mut Bus,
    slot: u32,
) -> Result<(), LaunchError> {
    let transport = MmioTransport::new(front);
    let window = MmioWindow::of_slot(slot);
    let notify = IoEventAddress::Mmio(window.base + QUEUE_NOTIFY);
    for (queue, event) in transport.kick_events() {
        vm.register_ioevent(event, &notify, queue)
            .map_err(refused("KVM_IOEVENTFD"))?;
    }
    vm.register_irqfd(transport.interrupt_event(), window.gsi)
        .map_err(refused("KVM_IRQFD"))?;
    let placed = mmio.insert(window.base, MMIO_DEVICE_BYTES, name, Arc::new(transport));
    placed.map(drop).map_err(|error| LaunchError::Device {
        device: name.to_owned(),
        detail: error.to_string(),
    })
}

/// Descriptors of the watcher's own for the kicks of a device.
fn watch_kicks(device: &str, front: &Front, kicks: &mut Vec<Kick>) -> Result<(), LaunchError> {
    for (queue, event) in front.kick_events() {
        kicks.push(Kick {
            device: device.to_owned(),
            queue,
            event: event.try_clone().map_err(|source| LaunchError::Refused {
                what: "a second descriptor for a queue's kicks",
                source,
            })?,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::spec::{DriveChange, IoEngine, LimiterSpec, NetChange};

    fn drive(id: &str) -> DriveSpec {
        DriveSpec {
            id: id.to_owned(),
            path: std::env::current_exe().unwrap(),
            read_only: true,
            root: false,
            partuuid: None,
            cache: Cache::Unsafe,
            engine: IoEngine::Sync,
            limiter: LimiterSpec::default(),
            queues: 1,
        }
    }

    #[test]
    fn every_device_has_a_name_of_its_own_whatever_the_ids() {
        let drives = ["data", "serial", "vda"].map(drive);
        let opened = drives.iter().map(|drive| open_drive(drive).unwrap());
        let mut names: Vec<String> = opened.map(|device| device.profile().name).collect();
        assert_eq!(names, ["data", "drive-serial", "vda"]);
        let networks = ["data", "eth0", "serial", "cmos"];
        names.extend(networks.map(|id| network_name(id, &drives)));
        assert_eq!(names[3..], ["net-data", "eth0", "net-serial", "net-cmos"]);
        // A change finds each under its own name.
        let first = |id: &str, change: DeviceChange| {
            let mut candidates = super::names(id, &change).1.into_iter();
            candidates.find(|name| names.contains(name)).unwrap()
        };
        let drive_change = || DeviceChange::Drive(DriveChange::default());
        let found = ["data", "serial", "vda"].map(|id| first(id, drive_change()));
        assert_eq!(found, names[..3]);
        let network_change = || DeviceChange::Network(NetChange::default());
        let found = networks.map(|id| first(id, network_change()));
        assert_eq!(found, names[3..]);
        names.extend(OWN.map(str::to_owned));
        let mut spec = VmSpec::new("x", crate::spec::BootSpec::default());
        spec.entropy = Some(EntropySpec::default());
        assert_eq!(entropy_name(&spec).as_deref(), Some("entropy"));
        spec.drives = vec![drive("entropy")];
        names.push("entropy".to_owned());
        names.extend(entropy_name(&spec));
        assert_eq!(names.last().unwrap(), "virtio-entropy");
        let different: HashSet<&String> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
