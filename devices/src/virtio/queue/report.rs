//! What a device reports through its queue besides requests.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::QueueRunner;
use crate::virtio::blk::IoEngine;
use crate::virtio::link::{DeviceEventKind, Interrupt};
use crate::virtio::vectors::GuestVectors;

impl QueueRunner {
    /// Counts work that was lost, by its cause in [`crate::virtio::DeviceProfile::drop_causes`].
    pub fn dropped(&self, cause: usize) {
        self.witness.dropped(cause);
    }

    /// Reports an error of the host's kernel in `operation`, at a sector of the disk if it has one.
    pub fn host_error(&self, operation: u8, sector: Option<u64>, error: &std::io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.witness.host_error(operation, sector, errno);
    }

    /// Reports that the backend is gone for good.
    pub fn backend_gone(&self, error: &std::io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.witness.tell(DeviceEventKind::BackendGone { errno });
    }

    /// Says by which engine a drive works, and why it is not the one that was asked for.
    pub fn io_engine(&self, engine: IoEngine, fall_back: Option<String>) {
        self.witness.device.io_engine.set(engine.number());
        if let Some(reason) = fall_back {
            self.witness
                .tell(DeviceEventKind::EngineFallBack { reason });
        }
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.witness.link.interrupt.trigger(Interrupt::Config);
    }

    /// An empty list of buffers in the RAM that the queue's chains lie in.
    pub fn vectors(&self) -> GuestVectors {
        GuestVectors::new(Arc::clone(&self.ram))
    }

    /// Leaves what is in the ring there for now, and asks for no kicks: who says so serves the queue later.
    pub fn hold(&mut self) {
        self.suppress_kicks(true);
    }

    /// Says whether requests wait by the operator's limit: [`QueueRunner::request_if`] does so for
    /// what the guest asked; a device says it for what the host has for the guest.
    pub fn limit(&self, limited: bool) {
        let since = &self.block.limited_since;
        match (limited, since.value()) {
            (true, 0) => {
                self.block.limited.inc();
                since.set(self.now);
            }
            (false, at @ 1..) => {
                let ns = self.witness.clock.ns_between(at, self.now);
                self.block.limited_ns.add(ns);
                since.set(0);
            }
            _ => {}
        }
    }

    /// Says whether the backend has data that the guest gave no buffer for.
    pub fn starve(&self, starved: bool) {
        let since = &self.block.starved_since;
        match (starved, since.value()) {
            (true, 0) => {
                self.block.starved.inc();
                since.set(self.now);
            }
            (false, 1..) => since.set(0),
            _ => {}
        }
    }
}
