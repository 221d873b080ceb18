//! States, commands, and which goes with which; the order in which a machine starts and stops is
//! written in [`crate::machine::Machine`]'s `start`, `pause`, `resume` and `stop`, and nowhere else.

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmState {
    /// Being built.
    Starting = 0,
    /// The guest runs.
    Running = 1,
    /// The guest is paused.
    Paused = 2,
    /// Being stopped.
    Stopping = 3,
    /// Gone.
    Ended = 4,
}

impl VmState {
    /// The state with this number; unknown numbers are [`VmState::Ended`].
    pub fn of(number: u8) -> VmState {
        match number {
            0 => VmState::Starting,
            1 => VmState::Running,
            2 => VmState::Paused,
            3 => VmState::Stopping,
            _ => VmState::Ended,
        }
    }

    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Stopping => "stopping",
            VmState::Ended => "ended",
        }
    }
}

/// What can be asked of a VM at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmCommand {
    /// Stop the guest's clock of work: vCPUs leave the guest, devices finish what is in flight.
    Pause = 1,
    /// Go on.
    Resume = 2,
    /// Press Ctrl-Alt-Del on the keyboard.
    CtrlAltDel = 3,
    /// End the VM in order.
    Stop = 4,
    /// Send an NMI to every vCPU.
    Nmi = 5,
    /// Tell the balloon something.
    Balloon = 6,
}

impl VmCommand {
    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            VmCommand::Pause => "pause",
            VmCommand::Resume => "resume",
            VmCommand::CtrlAltDel => "Ctrl-Alt-Del",
            VmCommand::Stop => "stop",
            VmCommand::Nmi => "NMI",
            VmCommand::Balloon => "the balloon's change",
        }
    }

    /// The words by number, for the heartbeat of the thread that carries them out.
    pub fn names() -> Vec<String> {
        let all = [
            VmCommand::Pause,
            VmCommand::Resume,
            VmCommand::CtrlAltDel,
            VmCommand::Stop,
            VmCommand::Nmi,
            VmCommand::Balloon,
        ];
        let mut names = vec![String::new(); all.len() + 1];
        for command in all {
            if let Some(name) = names.get_mut(command as usize) {
                command.word().clone_into(name);
            }
        }
        names
    }
}

/// What becomes of a command in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Carry it out.
    Accept,
    /// Nothing is left to do: the VM is so already.
    Already,
    /// Refuse, for this reason.
    Deny(&'static str),
}

/// The one table of states and commands.
pub fn admit(state: VmState, command: VmCommand) -> Admission {
    use Admission::{Accept, Already, Deny};
    match (state, command) {
        (VmState::Running, VmCommand::Resume) | (VmState::Paused, VmCommand::Pause) => Already,
        (VmState::Running | VmState::Paused, VmCommand::Stop | VmCommand::Balloon)
        | (VmState::Running, VmCommand::Pause | VmCommand::CtrlAltDel | VmCommand::Nmi)
        | (VmState::Paused, VmCommand::Resume) => Accept,
        (VmState::Paused, VmCommand::CtrlAltDel) => {
            Deny("the microVM is paused; resume it before a key can reach it")
        }
        (VmState::Paused, VmCommand::Nmi) => {
            Deny("the microVM is paused; resume it before an NMI can reach it")
        }
        (VmState::Starting, _) => Deny("the microVM is still starting"),
        (VmState::Stopping, _) => Deny("the microVM is being stopped"),
        (VmState::Ended, _) => Deny("the microVM has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_paused_and_resumed_once_and_stopped_from_either() {
        assert_eq!(admit(VmState::Running, VmCommand::Pause), Admission::Accept);
        assert_eq!(admit(VmState::Paused, VmCommand::Pause), Admission::Already);
        assert_eq!(admit(VmState::Paused, VmCommand::Resume), Admission::Accept);
        assert_eq!(
            admit(VmState::Running, VmCommand::Resume),
            Admission::Already
        );
        for state in [VmState::Running, VmState::Paused] {
            assert_eq!(admit(state, VmCommand::Stop), Admission::Accept);
        }
    }

    #[test]
    fn nothing_is_asked_of_a_vm_that_is_going_or_gone() {
        for state in [VmState::Starting, VmState::Stopping, VmState::Ended] {
            for command in [
                VmCommand::Pause,
                VmCommand::Resume,
                VmCommand::CtrlAltDel,
                VmCommand::Stop,
                VmCommand::Nmi,
            ] {
                assert!(matches!(admit(state, command), Admission::Deny(_)));
            }
        }
    }

    #[test]
    fn only_a_guest_that_runs_can_be_reached() {
        for command in [VmCommand::CtrlAltDel, VmCommand::Nmi] {
            assert_eq!(admit(VmState::Running, command), Admission::Accept);
            let Admission::Deny(reason) = admit(VmState::Paused, command) else {
                panic!("{command:?} is taken");
            };
            assert!(reason.contains("resume it"), "{reason}");
            assert_eq!(VmCommand::names()[command as usize], command.word());
        }
    }

    #[test]
    fn states_survive_their_number() {
        for state in [
            VmState::Starting,
            VmState::Running,
            VmState::Paused,
            VmState::Ended,
        ] {
            assert_eq!(VmState::of(state as u8), state);
        }
    }
}
