//! Changes of a started VM's drives.

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Session, SessionError};
use crate::admission::{Denial, Operation};
use crate::wire::{self, DrivePatchWire};

impl Session {
    /// PATCH /drives/ID: the VM does it, and then it is noted for GET /vm/config.
    pub(super) async fn patch_drive(&self, id: &str, body: &[u8]) -> Result<(), SessionError> {
        let patch: DrivePatchWire = wire::parse(body)?;
        wire::id::check(id, "drive_id", &patch.drive_id)?;
        let _turn = self.turn(Operation::Control).await?;
        let Some(machine) = self.slot.machine.get() else {
            return Err(Denial::BeforeStart.into());
        };
        let (change, drive) = self.config.borrow().patch_drive(patch)?;
        let (sender, outcome) = oneshot::channel();
        let reply = move |done| drop(sender.send(done));
        machine.change_drive(id, change, Box::new(reply));
        let (after, what) = (self.deadlines.command, "changing the drive");
        match timeout(after, outcome).await {
            Err(_) => Err(SessionError::Deadline { what, after }),
            Ok(Err(_)) => {
                let error = "the microVM ended before it answered".into();
                Err(SessionError::Command { what, error })
            }
            Ok(Ok(Err(error))) => Err(SessionError::Command { what, error }),
            Ok(Ok(Ok(()))) => {
                self.config.borrow_mut().note_drive(drive);
                Ok(())
            }
        }
    }
}
