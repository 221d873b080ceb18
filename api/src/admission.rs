//! Which request is taken when: one table, phase x operation.

/// Where the VM is in its life, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being configured.
    NotStarted,
    /// Started; its vCPUs run.
    Running,
    /// Started; its vCPUs are stopped.
    Paused,
    /// Its last run is over, and the next one begins in a while.
    Restarting,
    /// It has ended, and this process is about to.
    Ended,
}

impl Phase {
    /// As GET / says it. An ended VM has no name of its own in Firecracker's API.
    pub fn name(self) -> &'static str {
        match self {
            Phase::NotStarted | Phase::Restarting | Phase::Ended => "Not started",
            Phase::Running => "Running",
            Phase::Paused => "Paused",
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Looks.
    Read,
    /// Says what the VM is to be.
    Configure,
    /// Boots the VM.
    Start,
    /// Tells the booted VM something.
    Control,
}

/// Why a request is not taken now. The texts are Firecracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// It is too late.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It is too early.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// The VM is to be started again.
    #[error(
        "the microVM has ended and is started again in a while; ask again when GET / says Running"
    )]
    Restarting,
    /// The VM is no more.
    #[error("the microVM has ended; start another process for another one")]
    Ended,
}

/// The table.
///
/// # Errors
/// Why not.
pub fn admit(phase: Phase, operation: Operation) -> Result<(), Denial> {
    match (phase, operation) {
        (_, Operation::Read)
        | (Phase::NotStarted, Operation::Configure | Operation::Start)
        | (Phase::Running | Phase::Paused, Operation::Control) => Ok(()),
        (Phase::NotStarted, Operation::Control) => Err(Denial::BeforeStart),
        (
            Phase::Running | Phase::Paused | Phase::Restarting | Phase::Ended,
            Operation::Configure | Operation::Start,
        ) => Err(Denial::AfterStart),
        (Phase::Restarting, Operation::Control) => Err(Denial::Restarting),
        (Phase::Ended, Operation::Control) => Err(Denial::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_its_time() {
        use Operation::{Configure, Control, Read, Start};
        use Phase::{Ended, NotStarted, Paused, Restarting, Running};
        let (after, before) = (Err(Denial::AfterStart), Err(Denial::BeforeStart));
        for (phase, expected) in [
            (NotStarted, [Ok(()), Ok(()), Ok(()), before]),
            (Running, [Ok(()), after, after, Ok(())]),
            (Paused, [Ok(()), after, after, Ok(())]),
            (Restarting, [Ok(()), after, after, Err(Denial::Restarting)]),
            (Ended, [Ok(()), after, after, Err(Denial::Ended)]),
        ] {
            let judged = [Read, Configure, Start, Control].map(|operation| admit(phase, operation));
            assert_eq!(judged, expected, "{phase:?}");
        }
    }
}
