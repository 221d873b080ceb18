//! The balloon of a started VM.

use vmm::{BalloonOrder, BalloonRefusal};

use super::{Session, SessionError};
use crate::admission::{Denial, Operation, admit};
use crate::http::Response;
use crate::machine::Command;
use crate::routes::Endpoint;
use crate::wire::balloon::{
    BalloonPollingWire, BalloonSizeWire, BalloonStatisticsWire, HintingStartWire, HintingStatusWire,
};
use crate::wire::{self, BalloonWire};

impl Session {
    pub(super) fn balloon(&self) -> Result<Response, SessionError> {
        Ok(Response::json(&self.configured_balloon()?))
    }

    fn configured_balloon(&self) -> Result<BalloonWire, SessionError> {
        let balloon = self.config.borrow().balloon();
        Ok(balloon.ok_or(BalloonRefusal::NoBalloon)?)
    }

    pub(super) fn balloon_statistics(&self) -> Result<Response, SessionError> {
        admit(self.phase(), Operation::Control)?;
        if self.configured_balloon()?.stats_polling_interval_s == Some(0) {
            return Err(SessionError::StatisticsDisabled);
        }
        let told = BalloonStatisticsWire::of(&self.machine_snapshot()?);
        Ok(Response::json(&told.ok_or(BalloonRefusal::NoBalloon)?))
    }

    pub(super) fn hinting_status(&self) -> Result<Response, SessionError> {
        admit(self.phase(), Operation::Control)?;
        if self.configured_balloon()?.free_page_hinting == Some(false) {
            return Err(BalloonRefusal::NoHinting.into());
        }
        let told = HintingStatusWire::of(&self.machine_snapshot()?);
        Ok(Response::json(&told.ok_or(BalloonRefusal::NoBalloon)?))
    }

    fn machine_snapshot(&self) -> Result<vmm::observe::reader::Snapshot, SessionError> {
        let machine = self.slot.machine.get().ok_or(Denial::BeforeStart)?;
        machine.snapshot().map_err(SessionError::BlackBox)
    }

    /// What changes a balloon.
    pub(super) async fn change_balloon(
        &self,
        endpoint: Endpoint,
        body: &[u8],
    ) -> Result<(), SessionError> {
        match endpoint {
            Endpoint::PatchBalloon => {
                let mib = wire::parse::<BalloonSizeWire>(body)?.amount_mib;
                self.order(BalloonOrder::Resize { mib }).await?;
                self.config.borrow_mut().note_balloon(Some(mib), None);
            }
            Endpoint::PatchBalloonStatistics => {
                let wire = wire::parse::<BalloonPollingWire>(body)?;
                let seconds = wire.stats_polling_interval_s;
                self.order(BalloonOrder::Poll { seconds }).await?;
                self.config.borrow_mut().note_balloon(None, Some(seconds));
            }
            Endpoint::StartHinting => {
                let wire = match body {
                    [] => HintingStartWire::default(),
                    _ => wire::parse(body)?,
                };
                let acknowledge = wire.acknowledge_on_stop.unwrap_or(true);
                self.order(BalloonOrder::StartHinting { acknowledge })
                    .await?;
            }
            _ => {
                wire::parse_empty(body)?;
                self.order(BalloonOrder::StopHinting).await?;
            }
        }
        Ok(())
    }

    async fn order(&self, order: BalloonOrder) -> Result<(), SessionError> {
        let what = "changing the balloon";
        self.command(Command::Balloon(order), what).await
    }
}
