//! What becomes of the configuration of a VM that was started.

use vmm::{DriveChange, NetChange, validate};

use super::{Config, ConfigError, Drive, Network};
use crate::wire::{DrivePatchWire, NetworkPatchWire};

impl Config {
    /// What becomes of a drive of the started VM: what that is told, and what is to be noted by
    /// [`Config::note_drive`] when it has done so.
    ///
    /// # Errors
    /// No such drive; a file that cannot be used.
    pub fn patch_drive(&self, patch: DrivePatchWire) -> Result<(DriveChange, Drive), ConfigError> {
        let mut drives = self.drives.iter();
        let found = drives.find(|(_, spec)| spec.id == patch.drive_id);
        let Some((drive, _)) = found else {
            return Err(ConfigError::NoDrive(patch.drive_id));
        };
        let change = patch.change();
        let (wire, spec) = patch.applied(drive.clone()).convert()?;
        if change.path.is_some() {
            validate::drive(&spec)?;
        }
        Ok((change, (wire, spec)))
    }

    /// Keeps what has become of a drive.
    pub fn note_drive(&mut self, drive: Drive) {
        let mut drives = self.drives.iter_mut();
        if let Some(place) = drives.find(|(_, spec)| spec.id == drive.1.id) {
            *place = drive;
        }
    }

    /// What becomes of an interface: as [`Config::patch_drive`].
    ///
    /// # Errors
    /// No such interface.
    pub fn patch_network(
        &self,
        patch: NetworkPatchWire,
    ) -> Result<(NetChange, Network), ConfigError> {
        let mut networks = self.networks.iter();
        let found = networks.find(|(_, spec)| spec.id == patch.iface_id);
        let Some((network, _)) = found else {
            return Err(ConfigError::NoNetwork(patch.iface_id));
        };
        let change = patch.change();
        let changed = patch.applied(network.clone()).convert();
        Ok((change, changed))
    }

    /// Keeps what has become of an interface.
    pub fn note_network(&mut self, network: Network) {
        let mut networks = self.networks.iter_mut();
        if let Some(place) = networks.find(|(_, spec)| spec.id == network.1.id) {
            *place = network;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm::{BlackBoxSpec, BucketSpec, LimiterSpec, SerialInput};

    use super::super::Fixed;
    use super::*;
    use crate::policy::Policy;
    use crate::wire::{self, NetworkWire};

    fn patch(body: &str) -> NetworkPatchWire {
        wire::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn an_interface_keeps_what_a_change_leaves_out() {
        let text = r#"{"iface_id":"e","host_dev_name":"tap0","rx_rate_limiter":{
            "bandwidth":{"size":9,"refill_time":100},"ops":{"size":5,"refill_time":10}}}"#;
        let network: NetworkWire = wire::parse(text.as_bytes()).unwrap();
        // As put_network does, but for the tap, which is not there.
        let mut config = Config::new(Fixed {
            id: "vm1".to_owned(),
            serial_input: SerialInput::Nothing,
            black_box: BlackBoxSpec::default(),
            kernel_cache: None,
            pci: false,
            limits: Arc::default(),
        });
        config.networks.push(network.convert());
        let body = r#"{"iface_id":"e","rx_rate_limiter":{"ops":{"size":0,"refill_time":0}},
            "tx_rate_limiter":{"ops":{"size":7,"refill_time":1}}}"#;
        let (change, changed) = config.patch_network(patch(body)).unwrap();
        let ops = |size, refill_ms| LimiterSpec {
            bandwidth: None,
            ops: Some(BucketSpec {
                size,
                one_time_burst: 0,
                refill_ms,
            }),
        };
        assert_eq!(
            (change.rx_limiter, change.tx_limiter),
            (ops(0, 0), ops(7, 1))
        );
        config.note_network(changed);
        let shown = serde_json::to_value(config.full(&Policy::default())).unwrap();
        let limiter = serde_json::json!({
            "bandwidth": {"size": 9, "one_time_burst": null, "refill_time": 100}, "ops": null});
        let interface = &shown["network-interfaces"][0];
        assert_eq!(interface["rx_rate_limiter"], limiter);
        assert_eq!(interface["tx_rate_limiter"]["ops"]["size"], 7);
        let spec = &config.networks[0].1;
        assert_eq!(spec.rx_limiter.bandwidth.map(|bucket| bucket.size), Some(9));
        assert_eq!(spec.rx_limiter.ops, None);
        let none = config
            .patch_network(patch(r#"{"iface_id":"f"}"#))
            .unwrap_err();
        assert!(none.to_string().contains("no network interface f"));
    }
}
