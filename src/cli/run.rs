//! `vitrine run`: a guest on this terminal.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use api::config::{Config, ConfigError, Fixed};
use api::logging::LogControl;
use api::policy::Rulebook;
use api::vmm::SerialInput;
use api::wire::{BootSourceWire, DriveWire, LoggerWire, MachineConfigWire, NetworkWire};

use super::args::RunArgs;
use super::signals::Signals;
use super::supervise::Supervisor;
use super::{Failure, black_box, daemon};

/// Boots the guest and waits for its end.
///
/// # Errors
/// Bad usage; the VM failed.
pub fn run(arguments: RunArgs) -> Result<(), Failure> {
    let rulebook = Arc::<Rulebook>::default();
    let supervisor = Supervisor::new(
        Signals::block(),
        Arc::default(),
        Arc::clone(&rulebook),
        None,
    )?;
    let (id, black_box_name) = black_box::names(arguments.id.clone());
    let log = LogControl::new(&id);
    log.install();
    let level = LoggerWire {
        level: Some(arguments.level),
        ..LoggerWire::default()
    };
    log.apply(&level).map_err(Failure::misuse)?;
    arguments.policy.apply(&rulebook).map_err(Failure::misuse)?;
    let fixed = Fixed {
        id,
        serial_input: SerialInput::Terminal,
        black_box: black_box::spec(&black_box_name, arguments.black_box),
        kernel_cache: arguments.kernel_cache.folder(),
        pci: arguments.enable_pci,
        limits: rulebook.limits(),
    };
    let mut config = Config::new(fixed);
    let request = Request {
        kernel: arguments.kernel,
        initrd: arguments.initrd,
        cmdline: arguments.cmdline,
        drives: arguments
            .drive
            .iter()
            .map(|text| parse_drive(text))
            .collect(),
        taps: arguments.net,
    };
    let machine = MachineConfigWire {
        vcpu_count: Some(arguments.cpus),
        mem_size_mib: Some(arguments.memory),
        ..MachineConfigWire::default()
    };
    config
        .put_machine(&machine)
        .and_then(|()| request.apply(&mut config))
        .map_err(Failure::misuse)?;
    daemon::start(&config, &supervisor)?;
    supervisor.wait()
}

/// What is to be booted, and with what.
struct Request {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    drives: Vec<(PathBuf, bool)>,
    taps: Vec<String>,
}

impl Request {
    fn apply(self, config: &mut Config) -> Result<(), ConfigError> {
        let root_on_drive = self.initrd.is_none();
        config.put_boot_source(BootSourceWire {
            kernel_image_path: self.kernel,
            initrd_path: self.initrd,
            boot_args: self.cmdline,
        })?;
        for (index, (path, read_only)) in self.drives.into_iter().enumerate() {
            config.put_drive(DriveWire {
                drive_id: format!("drive{index}"),
                partuuid: None,
                is_root_device: root_on_drive && index == 0,
                cache_type: None,
                is_read_only: Some(read_only),
                path_on_host: Some(path),
                rate_limiter: None,
                num_queues: None,
                io_engine: None,
                socket: None,
            })?;
        }
        for (index, tap) in self.taps.into_iter().enumerate() {
            config.put_network(NetworkWire {
                iface_id: format!("net{index}"),
                host_dev_name: tap,
                guest_mac: None,
                mtu: None,
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                mac_filter: None,
                queue_pairs: None,
            })?;
        }
        Ok(())
    }
}

/// `PATH` or `PATH,ro`.
fn parse_drive(text: &OsStr) -> (PathBuf, bool) {
    match text.as_bytes().strip_suffix(b",ro") {
        Some(path) => (PathBuf::from(OsStr::from_bytes(path)), true),
        None => (PathBuf::from(text), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_may_be_read_only() {
        assert_eq!(
            parse_drive(OsStr::new("a.img")),
            (PathBuf::from("a.img"), false)
        );
        assert_eq!(
            parse_drive(OsStr::new("a,b.img,ro")),
            (PathBuf::from("a,b.img"), true)
        );
    }
}
