//! `/drives/{drive_id}`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::{Cache, DriveChange, DriveSpec, IoEngine};

use super::{RateLimiterWire, WireError};

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveWire {
    /// Its id, as in the path.
    pub drive_id: String,
    /// The partition that is the root, when it is not the whole drive.
    pub partuuid: Option<String>,
    /// Whether the guest's root is on it.
    pub is_root_device: bool,
    /// Whether flushes reach the host's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheTypeWire>,
    /// Whether writes are refused.
    pub is_read_only: Option<bool>,
    /// A file or block device of the host.
    pub path_on_host: Option<PathBuf>,
    /// How much the guest may ask.
    pub rate_limiter: Option<RateLimiterWire>,
    /// How the file is read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngineWire>,
    /// Queues; Vitrine's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u8>,
    /// The socket of a vhost-user backend: not supported by this build.
    pub socket: Option<PathBuf>,
}

/// `cache_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheTypeWire {
    /// Flushes are not offered.
    #[default]
    Unsafe,
    /// Flushes reach the disk.
    Writeback,
}

/// `io_engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngineWire {
    /// One request after another, by ordinary reads and writes.
    #[default]
    Sync,
    /// Many requests at a time, by io_uring; as `Sync` where the host has none.
    Async,
}

impl DriveWire {
    /// The drive with its defaults filled in, as GET /vm/config shows it, and as a spec.
    ///
    /// # Errors
    /// A field that this build does not support; no path.
    pub fn convert(self) -> Result<(DriveWire, DriveSpec), WireError> {
        let not_supported = |what| Err(WireError::field_not_supported(what));
        if self.socket.is_some() {
            return not_supported("socket (a vhost-user drive)");
        }
        let Some(path) = self.path_on_host.clone() else {
            return Err(WireError::Missing {
                field: "path_on_host",
                remedy: "give the path of a disk image or block device",
            });
        };
        let cache_type = self.cache_type.unwrap_or_default();
        let io_engine = self.io_engine.unwrap_or_default();
        let read_only = self.is_read_only.unwrap_or(false);
        let rate_limiter = self.rate_limiter.and_then(RateLimiterWire::tidy);
        let limiter = rate_limiter.as_ref().map(RateLimiterWire::spec);
        let spec = DriveSpec {
            limiter: limiter.unwrap_or_default(),
            queues: self.num_queues.unwrap_or(1),
            id: self.drive_id.clone(),
            path,
            read_only,
            root: self.is_root_device,
            partuuid: self.partuuid.clone(),
            cache: match cache_type {
                CacheTypeWire::Unsafe => Cache::Unsafe,
                CacheTypeWire::Writeback => Cache::Writeback,
            },
            engine: match io_engine {
                IoEngineWire::Sync => IoEngine::Sync,
                IoEngineWire::Async => IoEngine::Async,
            },
        };
        let filled = DriveWire {
            cache_type: Some(cache_type),
            is_read_only: Some(read_only),
            rate_limiter,
            io_engine: Some(io_engine),
            ..self
        };
        Ok((filled, spec))
    }
}

/// PATCH `/drives/{drive_id}`: what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrivePatchWire {
    /// Its id, as in the path.
    pub drive_id: String,
    /// Another file, or the same one if its size has changed.
    pub path_on_host: Option<PathBuf>,
    /// A bucket without size and refill time takes that limit away.
    pub rate_limiter: Option<RateLimiterWire>,
}

impl DrivePatchWire {
    /// What the VM is told.
    pub fn change(&self) -> DriveChange {
        let limiter = self.rate_limiter.as_ref().map(RateLimiterWire::spec);
        DriveChange {
            path: self.path_on_host.clone(),
            limiter: limiter.unwrap_or_default(),
        }
    }

    /// The drive as it is then.
    #[must_use]
    pub fn applied(self, drive: DriveWire) -> DriveWire {
        let limiter = drive.rate_limiter.unwrap_or_default();
        DriveWire {
            path_on_host: self.path_on_host.or(drive.path_on_host),
            rate_limiter: Some(limiter.changed(self.rate_limiter.unwrap_or_default())),
            ..drive
        }
    }
}
