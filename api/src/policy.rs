//! What is done about verdicts, as an operator wants it.

pub mod action;
pub mod restarts;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vmm::observe::verdict::{Code, Thresholds};
use vmm::{Judging, Limits};

use crate::wire::{self, WireError};
pub use action::Action;
pub use restarts::RestartLimit;

/// What an operator can say. The default is to tell, and to do nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// From where on a number is a verdict.
    pub thresholds: Thresholds,
    /// Whether the watcher may look into a vCPU that seems stuck, which takes it out of the guest for
    /// some microseconds.
    pub look_into_vcpus: bool,
    /// How often a VM that died is started again.
    pub restart: RestartLimit,
    /// What is done when a verdict is raised, in order; what is not here is only told.
    pub actions: BTreeMap<Code, Vec<Action>>,
    /// What follows when the guest resets the machine.
    pub on_reboot: OnReboot,
}

impl Default for Policy {
    fn default() -> Self {
        let judging = Judging::default();
        Policy {
            thresholds: judging.thresholds,
            look_into_vcpus: judging.look_into_vcpus,
            restart: RestartLimit::default(),
            actions: BTreeMap::new(),
            on_reboot: OnReboot::default(),
        }
    }
}

/// What follows when the guest resets the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// The process ends, as Firecracker's does.
    #[default]
    Exit,
    /// The guest boots again.
    Restart,
}

/// The policy that holds now. It can be changed at any time, before the VM starts and after.
///
/// The lock is held for as long as it takes to swap or to clone a pointer.
#[derive(Debug, Default)]
pub struct Rulebook {
    policy: Mutex<Arc<Policy>>,
    limits: Arc<Limits>,
}

impl Rulebook {
    /// The policy.
    pub fn read(&self) -> Arc<Policy> {
        // A panic cannot leave a pointer half swapped.
        Arc::clone(&self.policy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it. The thresholds hold from the next judgement on, which is a second away at most.
    pub fn set(&self, policy: Policy) {
        self.limits.set(Judging {
            thresholds: policy.thresholds.clone(),
            look_into_vcpus: policy.look_into_vcpus,
        });
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// What VMs are judged by.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits)
    }
}

/// Why a policy file is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error("the policy file {} cannot be read: {source}; give a readable file with --policy", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no policy.
    #[error("the policy file {} is refused: {source}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WireError,
    },
}

/// Reads `--policy FILE`: the body of PUT /policy.
///
/// # Errors
/// It cannot be read, or PUT /policy would refuse it.
pub fn load(path: &Path) -> Result<Policy, PolicyFileError> {
    let text = std::fs::read(path).map_err(|source| PolicyFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    wire::policy::parse(&text).map_err(|source| PolicyFileError::Refused {
        path: path.to_owned(),
        source,
    })
}
