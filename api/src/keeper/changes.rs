//! What clients change of a VM while it runs, kept for the runs to come: the next one begins with what
//! this one had at its end.

use vmm::{BalloonOrder, DeviceChange};

use super::Keeper;

impl Keeper {
    /// Keeps a change of a device.
    pub(super) fn note_change(&self, id: &str, change: &DeviceChange) {
        let mut state = self.lock();
        let Some(spec) = &mut state.spec else {
            return;
        };
        match change {
            DeviceChange::Drive(change) => {
                for drive in spec.drives.iter_mut().filter(|drive| drive.id == id) {
                    drive.limiter = drive.limiter.changed(change.limiter);
                    if let Some(path) = &change.path {
                        drive.path.clone_from(path);
                    }
                }
            }
            DeviceChange::Network(change) => {
                for network in spec.networks.iter_mut().filter(|network| network.id == id) {
                    network.rx_limiter = network.rx_limiter.changed(change.rx_limiter);
                    network.tx_limiter = network.tx_limiter.changed(change.tx_limiter);
                }
            }
        }
    }

    /// Keeps what a client set of the balloon.
    pub(super) fn note_balloon(&self, order: BalloonOrder) {
        let mut state = self.lock();
        let spec = state.spec.as_mut();
        let Some(balloon) = spec.and_then(|spec| spec.balloon.as_mut()) else {
            return;
        };
        match order {
            BalloonOrder::Resize { mib } => balloon.target_mib = mib,
            BalloonOrder::Poll { seconds } => balloon.statistics_s = seconds,
            // Hinting ends with the guest that was asked for it.
            BalloonOrder::StartHinting { .. } | BalloonOrder::StopHinting => {}
        }
    }
}

#[cfg(test)]
mod tests;
