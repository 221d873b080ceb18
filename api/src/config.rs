//! What the VM is to be, as said so far: each part judged when it is given, and all of it turned
//! into a [`VmSpec`] when the VM starts. A part that is refused leaves the rest as it was.

mod changes;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use vmm::{
    BalloonSpec, BlackBoxSpec, BootSpec, DriveSpec, EntropySpec, Entry, Limits, NetSpec,
    SerialInput, SerialOutput, SerialSpec,
};
use vmm::{SpecError, VmSpec, validate};

use crate::policy::Policy;
use crate::wire::machine_config::MachineConfig;
use crate::wire::{self, MetricsWire, SerialWire, VsockWire, WireError};
use crate::wire::{
    BalloonWire, BootSourceWire, DriveWire, EntropyWire, LoggerWire, MachineConfigWire, NetworkWire,
};

/// How long each step of an orderly stop may take.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a part is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// What is asked cannot be said so.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What is asked does not fit this host.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The memory cannot be had.
    #[error("{0}")]
    Memory(String),
    /// Another drive is the root.
    #[error(
        "drive {given} cannot be the root: drive {root} is; set is_root_device to false on one of them"
    )]
    SecondRoot {
        /// The drive that is to be.
        given: String,
        /// The drive that is.
        root: String,
    },
    /// No drive of that id.
    #[error("the microVM has no drive {0}; give the drive_id of one that GET /vm/config shows")]
    NoDrive(String),
    /// No interface of that id.
    #[error(
        "the microVM has no network interface {0}; give the iface_id of one that GET /vm/config shows"
    )]
    NoNetwork(String),
    /// Two interfaces on one tap.
    #[error(
        "host_dev_name {tap} is already in use by interface {other}; give each interface a tap of its own"
    )]
    TapInUse {
        /// The tap.
        tap: String,
        /// The other interface.
        other: String,
    },
    /// Two interfaces with one address.
    #[error(
        "guest_mac {mac} is already in use by interface {other}; give each interface an address of its own"
    )]
    MacInUse {
        /// The address.
        mac: String,
        /// The other interface.
        other: String,
    },
    /// Nothing to boot.
    #[error("the VM cannot start without a kernel; give one with PUT /boot-source")]
    NoKernel,
}

/// What is fixed when the process starts.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The VM's id.
    pub id: String,
    /// Where serial input comes from.
    pub serial_input: SerialInput,
    /// The black box.
    pub black_box: BlackBoxSpec,
    /// Where unpacked kernels are kept, if anywhere.
    pub kernel_cache: Option<std::path::PathBuf>,
    /// Whether devices are on a PCI bus.
    pub pci: bool,
    /// What the VM is judged by.
    pub limits: Arc<Limits>,
}

/// A drive as it is shown, and as a VM takes it.
pub type Drive = (DriveWire, DriveSpec);

/// The same of an interface.
pub type Network = (NetworkWire, NetSpec);

/// The configuration.
#[derive(Debug)]
pub struct Config {
    fixed: Fixed,
    machine: MachineConfig,
    boot: Option<BootSourceWire>,
    drives: Vec<Drive>,
    networks: Vec<Network>,
    balloon: Option<(BalloonWire, BalloonSpec)>,
    entropy: Option<(EntropyWire, EntropySpec)>,
    vsock: Option<VsockWire>,
    serial: Option<SerialWire>,
    logger: Option<LoggerWire>,
    metrics: Option<MetricsWire>,
}

/// Answer of GET /vm/config: what `--config-file` takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FullConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_source: Option<&'a BootSourceWire>,
    drives: Vec<&'a DriveWire>,
    machine_config: &'a MachineConfig,
    network_interfaces: Vec<&'a NetworkWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balloon: Option<BalloonWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<&'a EntropyWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock: Option<&'a VsockWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<&'a SerialWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logger: Option<&'a LoggerWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<&'a MetricsWire>,
    /// Vitrine's own. Where nothing was set it is left out, as the other parts are, for clients that
    /// know Firecracker's keys alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Value>,
}

impl Config {
    /// The defaults: one vCPU, 128 MiB, nothing to boot.
    pub fn new(fixed: Fixed) -> Config {
        Config {
            fixed,
            machine: MachineConfig::default(),
            boot: None,
            drives: Vec::new(),
            networks: Vec::new(),
            balloon: None,
            entropy: None,
            vsock: None,
            serial: None,
            logger: None,
            metrics: None,
        }
    }

    /// The VM's id.
    pub fn id(&self) -> &str {
        &self.fixed.id
    }

    /// The machine.
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// All of it, with the policy that holds now.
    pub fn full(&self, policy: &Policy) -> FullConfig<'_> {
        FullConfig {
            boot_source: self.boot.as_ref(),
            drives: self.drives.iter().map(|(wire, _)| wire).collect(),
            machine_config: &self.machine,
            network_interfaces: self.networks.iter().map(|(wire, _)| wire).collect(),
            balloon: self.balloon(),
            entropy: self.entropy.as_ref().map(|(wire, _)| wire),
            vsock: self.vsock.as_ref(),
            serial: self.serial.as_ref(),
            logger: self.logger.as_ref(),
            metrics: self.metrics.as_ref(),
            policy: (*policy != Policy::default()).then(|| wire::policy::document(policy)),
        }
    }

    /// Replaces what is booted.
    ///
    /// # Errors
    /// A file that is not there or cannot be read; a command line that no guest can have.
    pub fn put_boot_source(&mut self, wire: BootSourceWire) -> Result<(), ConfigError> {
        validate::kernel(&wire.kernel_image_path)?;
        if let Some(initrd) = &wire.initrd_path {
            validate::initrd(initrd)?;
        }
        if let Some(args) = &wire.boot_args {
            validate::cmdline(args)?;
        }
        self.boot = Some(wire);
        Ok(())
    }

    /// Replaces the machine.
    ///
    /// # Errors
    /// A field that is missing, out of range, beyond the host or not supported.
    pub fn put_machine(&mut self, wire: &MachineConfigWire) -> Result<(), ConfigError> {
        self.set_machine(wire.put()?)
    }

    /// Changes what is given of the machine.
    ///
    /// # Errors
    /// As [`Config::put_machine`]; nothing is given.
    pub fn patch_machine(&mut self, wire: &MachineConfigWire) -> Result<(), ConfigError> {
        self.set_machine(wire.patch(&self.machine)?)
    }

    fn set_machine(&mut self, machine: MachineConfig) -> Result<(), ConfigError> {
        validate::vcpus(machine.vcpu_count, machine.smt)?;
        let judged = machine.memory().validate();
        judged.map_err(|error| ConfigError::Memory(error.to_string()))?;
        if let Some((_, balloon)) = &self.balloon {
            validate::balloon(balloon, &machine.memory())?;
        }
        self.machine = machine;
        Ok(())
    }

    /// Adds a drive or replaces the one with its id. The root comes first.
    ///
    /// # Errors
    /// A file that cannot be used; a second root; a field that is not supported.
    pub fn put_drive(&mut self, wire: DriveWire) -> Result<(), ConfigError> {
        let (wire, spec) = wire.convert()?;
        let root = self
            .drives
            .iter()
            .find(|(_, other)| other.root && other.id != spec.id);
        if let Some((_, root)) = root.filter(|_| spec.root) {
            return Err(ConfigError::SecondRoot {
                given: spec.id,
                root: root.id.clone(),
            });
        }
        validate::drive(&spec)?;
        match self
            .drives
            .iter_mut()
            .find(|(_, other)| other.id == spec.id)
        {
            Some(place) => *place = (wire, spec),
            None => self.drives.push((wire, spec)),
        }
        // Stable: the others stay in the order in which they were first given.
        self.drives.sort_by_key(|(_, spec)| !spec.root);
        Ok(())
    }

    /// Adds an interface or replaces the one with its id.
    ///
    /// # Errors
    /// A tap that is not there; a tap or address in use; a filter without an address.
    pub fn put_network(&mut self, wire: NetworkWire) -> Result<(), ConfigError> {
        let (wire, spec) = wire.convert();
        for (other, _) in self
            .networks
            .iter()
            .filter(|(other, _)| other.iface_id != spec.id)
        {
            if other.host_dev_name == spec.tap {
                return Err(ConfigError::TapInUse {
                    tap: spec.tap,
                    other: other.iface_id.clone(),
                });
            }
            if let Some(mac) = wire.guest_mac.filter(|mac| other.guest_mac == Some(*mac)) {
                return Err(ConfigError::MacInUse {
                    mac: mac.to_string(),
                    other: other.iface_id.clone(),
                });
            }
        }
        validate::net(&spec)?;
        match self
            .networks
            .iter_mut()
            .find(|(_, other)| other.id == spec.id)
        {
            Some(place) => *place = (wire, spec),
            None => self.networks.push((wire, spec)),
        }
        Ok(())
    }

    /// Replaces the balloon.
    ///
    /// # Errors
    /// It is larger than the guest's memory.
    pub fn put_balloon(&mut self, wire: BalloonWire) -> Result<(), ConfigError> {
        let (wire, spec) = wire.convert();
        validate::balloon(&spec, &self.machine.memory())?;
        self.balloon = Some((wire, spec));
        Ok(())
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<BalloonWire> {
        self.balloon.map(|(wire, _)| wire)
    }

    /// Keeps what the balloon of a started VM was told.
    pub fn note_balloon(&mut self, amount_mib: Option<u32>, interval_s: Option<u16>) {
        if let Some((wire, _)) = &mut self.balloon {
            wire.amount_mib = amount_mib.unwrap_or(wire.amount_mib);
            wire.stats_polling_interval_s = interval_s.or(wire.stats_polling_interval_s);
        }
    }

    /// Gives the VM an entropy device, or replaces it.
    pub fn put_entropy(&mut self, wire: EntropyWire) {
        self.entropy = Some(wire.convert());
    }

    /// Gives the VM a socket device, or replaces it.
    ///
    /// # Errors
    /// An address that no guest can have; a path that no socket can have.
    pub fn put_vsock(&mut self, wire: VsockWire) -> Result<(), ConfigError> {
        validate::vsock(&wire.spec())?;
        self.vsock = Some(wire);
        Ok(())
    }

    /// Replaces the serial console.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub fn put_serial(&mut self, wire: SerialWire) -> Result<(), ConfigError> {
        let wire = wire.tidy();
        if let Some(path) = &wire.serial_out_path {
            validate::output("serial_out_path", path)?;
        }
        self.serial = Some(wire);
        Ok(())
    }

    /// Keeps what the logger was told, for GET /vm/config.
    pub fn note_logger(&mut self, wire: LoggerWire) {
        self.logger = Some(wire);
    }

    /// Keeps where metrics go, for GET /vm/config.
    pub fn note_metrics(&mut self, wire: MetricsWire) {
        self.metrics = Some(wire);
    }

    /// Where metrics go, if that was said.
    pub fn metrics(&self) -> Option<&MetricsWire> {
        self.metrics.as_ref()
    }

    /// The whole VM, as it stands.
    ///
    /// # Errors
    /// Nothing to boot; what has become wrong since it was given.
    pub fn spec(&self) -> Result<VmSpec, ConfigError> {
        let boot = self.boot.as_ref().ok_or(ConfigError::NoKernel)?;
        validate::kernel(&boot.kernel_image_path)?;
        for (_, drive) in &self.drives {
            validate::drive(drive)?;
        }
        for (_, network) in &self.networks {
            validate::net(network)?;
        }
        let out = self
            .serial
            .as_ref()
            .and_then(|serial| serial.serial_out_path.clone());
        Ok(VmSpec {
            id: self.fixed.id.clone(),
            vcpus: validate::vcpus(self.machine.vcpu_count, self.machine.smt)?,
            smt: self.machine.smt,
            memory: self.machine.memory(),
            boot: BootSpec {
                kernel: boot.kernel_image_path.clone(),
                initrd: boot.initrd_path.clone(),
                cmdline: boot.boot_args.clone(),
                entry: Entry::Auto,
                unpack: vmm::Unpack::default(),
                kernel_cache: self.fixed.kernel_cache.clone(),
            },
            drives: self.drives.iter().map(|(_, spec)| spec.clone()).collect(),
            networks: self.networks.iter().map(|(_, spec)| spec.clone()).collect(),
            balloon: self.balloon.map(|(_, spec)| spec),
            pci: self.fixed.pci,
            entropy: self.entropy.as_ref().map(|(_, spec)| *spec),
            vsock: self.vsock.as_ref().map(VsockWire::spec),
            serial: SerialSpec {
                input: self.fixed.serial_input,
                output: out.map_or(SerialOutput::Stdout, SerialOutput::File),
                limit: self.serial.as_ref().and_then(SerialWire::limit),
            },
            black_box: self.fixed.black_box.clone(),
            stop_deadline: STOP_DEADLINE,
            limits: self.fixed.limits.clone(),
        })
    }
}
