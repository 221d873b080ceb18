//! Changes of a started VM's drives and interfaces.

use tokio::sync::oneshot;
use tokio::time::timeout;
use vmm::DeviceChange;

use super::{Session, SessionError};
use crate::admission::{Denial, Operation};
use crate::config::{Config, ConfigError};
use crate::wire::{self, DrivePatchWire, NetworkPatchWire};

impl Session {
    /// PATCH /drives/ID.
    pub(super) async fn patch_drive(&self, id: &str, body: &[u8]) -> Result<(), SessionError> {
        let patch: DrivePatchWire = wire::parse(body)?;
        wire::id::check(id, "drive_id", &patch.drive_id)?;
        let judge = |config: &Config| {
            let (change, drive) = config.patch_drive(patch)?;
            Ok((DeviceChange::Drive(change), drive))
        };
        let what = "changing the drive";
        self.change_device(id, what, judge, Config::note_drive)
            .await
    }

    /// PATCH /network-interfaces/ID.
    pub(super) async fn patch_network(&self, id: &str, body: &[u8]) -> Result<(), SessionError> {
        let patch: NetworkPatchWire = wire::parse(body)?;
        wire::id::check(id, "iface_id", &patch.iface_id)?;
        let judge = |config: &Config| {
            let (change, network) = config.patch_network(patch)?;
            Ok((DeviceChange::Network(change), network))
        };
        let what = "changing the network interface";
        self.change_device(id, what, judge, Config::note_network)
            .await
    }

    /// Judges a change; the VM does it; and then it is noted for GET /vm/config.
    async fn change_device<T>(
        &self,
        id: &str,
        what: &'static str,
        judge: impl FnOnce(&Config) -> Result<(DeviceChange, T), ConfigError>,
        note: impl FnOnce(&mut Config, T),
    ) -> Result<(), SessionError> {
        let _turn = self.turn(Operation::Control).await?;
        let Some(machine) = self.slot.machine.get() else {
            return Err(Denial::BeforeStart.into());
        };
        let (change, changed) = judge(&self.config.borrow())?;
        let (sender, outcome) = oneshot::channel();
        let reply = move |done| drop(sender.send(done));
        machine.change_device(id, change, Box::new(reply));
        let after = self.deadlines.command;
        match timeout(after, outcome).await {
            Err(_) => Err(SessionError::Deadline { what, after }),
            Ok(Err(_)) => {
                let error = "the microVM ended before it answered".into();
                Err(SessionError::Command { what, error })
            }
            Ok(Ok(Err(error))) => Err(SessionError::Command { what, error }),
            Ok(Ok(Ok(()))) => {
                note(&mut self.config.borrow_mut(), changed);
                Ok(())
            }
        }
    }
}
