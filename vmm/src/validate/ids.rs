//! Names of VMs and devices: of which characters, and that they differ.

use std::collections::HashSet;

use super::SpecError;
use crate::spec::{DriveSpec, NetSpec};

/// Most characters of a VM's id; the command line takes as many.
pub(super) const MAX_VM_ID: usize = 64;

/// Judges a VM's id: threads, files and metrics carry it.
///
/// # Errors
/// Empty, longer than 64, or of other characters than `[A-Za-z0-9_-]`.
pub fn vm_id(id: &str) -> Result<(), SpecError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=MAX_VM_ID).contains(&id.len()) && id.bytes().all(known) {
        Ok(())
    } else {
        Err(SpecError::VmId(id.to_owned()))
    }
}

/// Judges the ids of all drives together, and that at most one is the root.
///
/// # Errors
/// An id that is empty or of other characters than `[A-Za-z0-9_]`; one that comes twice; a second
/// root.
pub fn drives_together(drives: &[DriveSpec]) -> Result<(), SpecError> {
    device_ids("drive_id", drives.iter().map(|drive| drive.id.as_str()))?;
    let mut roots = drives.iter().filter(|drive| drive.root);
    match (roots.next(), roots.next()) {
        (Some(first), Some(second)) => Err(SpecError::SecondRoot {
            first: first.id.clone(),
            second: second.id.clone(),
        }),
        _ => Ok(()),
    }
}

/// Judges the ids of all network devices together. A drive may have the same id as one of them.
///
/// # Errors
/// As [`drives_together`], without roots.
pub fn networks_together(networks: &[NetSpec]) -> Result<(), SpecError> {
    let ids = networks.iter().map(|network| network.id.as_str());
    device_ids("iface_id", ids)
}

fn device_ids<'a>(what: &'static str, ids: impl Iterator<Item = &'a str>) -> Result<(), SpecError> {
    let mut seen = HashSet::new();
    for id in ids {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if id.is_empty() || !id.bytes().all(known) {
            let id = id.to_owned();
            return Err(SpecError::DeviceId { what, id });
        }
        if !seen.insert(id) {
            let id = id.to_owned();
            return Err(SpecError::SameId { what, id });
        }
    }
    Ok(())
}
