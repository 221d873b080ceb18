//! `--config-file`: a whole VM in one JSON file, in Firecracker's format, and a policy. What
//! GET /vm/config answers can be given back here.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::config::{Config, ConfigError};
use crate::logging::{LogControl, SinkError};
use crate::metrics_file;
use crate::policy::Rulebook;
use crate::wire::{
    self, BalloonWire, BootSourceWire, DriveWire, EntropyWire, LoggerWire, MachineConfigWire,
    NetworkWire,
};
use crate::wire::{MetricsWire, SerialWire, VsockWire, WireError};

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("the configuration file {} cannot be read: {source}; give a readable file with --config-file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what Firecracker takes.
    #[error("the configuration file {} is not valid: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why, and where.
        source: serde_json::Error,
    },
    /// A part of it is refused.
    #[error("{part} in the configuration file: {source}")]
    Part {
        /// Which.
        part: String,
        /// Why.
        source: ConfigError,
    },
    /// Its logger is refused.
    #[error("logger in the configuration file: {0}")]
    Log(#[source] SinkError),
    /// The path of its metrics is refused.
    #[error("metrics in the configuration file: {0}")]
    Metrics(#[source] SinkError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFileWire {
    boot_source: BootSourceWire,
    drives: Option<Vec<DriveWire>>,
    machine_config: Option<MachineConfigWire>,
    network_interfaces: Option<Vec<NetworkWire>>,
    logger: Option<LoggerWire>,
    serial: Option<SerialWire>,
    balloon: Option<BalloonWire>,
    cpu_config: Option<IgnoredAny>,
    entropy: Option<EntropyWire>,
    memory_hotplug: Option<IgnoredAny>,
    metrics: Option<MetricsWire>,
    mmds_config: Option<IgnoredAny>,
    pmem: Option<Vec<IgnoredAny>>,
    vsock: Option<VsockWire>,
    policy: Option<Value>,
}

impl ConfigFileWire {
    fn refuse_unsupported(&self) -> Result<(), WireError> {
        let parts = [
            ("cpu-config", self.cpu_config.is_some()),
            ("memory-hotplug", self.memory_hotplug.is_some()),
            ("mmds-config", self.mmds_config.is_some()),
            (
                "pmem",
                self.pmem.as_ref().is_some_and(|list| !list.is_empty()),
            ),
        ];
        match parts.iter().find(|(_, given)| *given) {
            Some((part, _)) => Err(WireError::field_not_supported(*part)),
            None => Ok(()),
        }
    }
}

/// Reads the file into `config`, `log` and `rulebook`. Metrics begin when what [`Config::metrics`] says is
/// opened.
///
/// # Errors
/// The first thing that is wrong; what was read before it may have been applied.
pub fn load(
    path: &Path,
    config: &mut Config,
    log: &LogControl,
    rulebook: &Rulebook,
) -> Result<(), ConfigFileError> {
    let text = std::fs::read(path).map_err(|source| ConfigFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    let file: ConfigFileWire =
        serde_json::from_slice(&text).map_err(|source| ConfigFileError::Json {
            path: path.to_owned(),
            source,
        })?;
    let part = |part: &str, outcome: Result<(), ConfigError>| {
        let part = part.to_owned();
        outcome.map_err(|source| ConfigFileError::Part { part, source })
    };
    part(
        "a section",
        file.refuse_unsupported().map_err(ConfigError::Wire),
    )?;
    if let Some(policy) = &file.policy {
        let judged = wire::policy::of(policy).map(|policy| rulebook.set(policy));
        part("policy", judged.map_err(ConfigError::Wire))?;
    }
    if let Some(logger) = file.logger {
        log.apply(&logger).map_err(ConfigFileError::Log)?;
        config.note_logger(logger);
    }
    if let Some(metrics) = file.metrics {
        metrics_file::check(&metrics.metrics_path).map_err(ConfigFileError::Metrics)?;
        config.note_metrics(metrics);
    }
    if let Some(machine) = &file.machine_config {
        part("machine-config", config.put_machine(machine))?;
    }
    part("boot-source", config.put_boot_source(file.boot_source))?;
    for drive in file.drives.unwrap_or_default() {
        let name = format!("drive {:?}", drive.drive_id);
        let judged = wire::id::check(&drive.drive_id, "drive_id", &drive.drive_id);
        part(
            &name,
            judged
                .map_err(ConfigError::Wire)
                .and_then(|()| config.put_drive(drive)),
        )?;
    }
    for network in file.network_interfaces.unwrap_or_default() {
        let name = format!("network interface {:?}", network.iface_id);
        let judged = wire::id::check(&network.iface_id, "iface_id", &network.iface_id);
        part(
            &name,
            judged
                .map_err(ConfigError::Wire)
                .and_then(|()| config.put_network(network)),
        )?;
    }
    if let Some(balloon) = file.balloon {
        part("balloon", config.put_balloon(balloon))?;
    }
    if let Some(entropy) = file.entropy {
        config.put_entropy(entropy);
    }
    if let Some(vsock) = file.vsock {
        part("vsock", config.put_vsock(vsock))?;
    }
    if let Some(serial) = file.serial {
        part("serial", config.put_serial(serial))?;
    }
    Ok(())
}
