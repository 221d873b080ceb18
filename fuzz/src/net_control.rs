//! The control queue of a network interface: what is accepted can be done, and says it in one way.

use devices::virtio::net::control::{Command, MAX_COMMAND_BYTES, parse};

use super::input::Input;

/// Runs the target: how many queue pairs there are, then a command.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let pairs = u16::from(input.u8());
    let command = input.slice(MAX_COMMAND_BYTES);
    if let Ok(Command::UsePairs(wanted)) = parse(command, pairs) {
        assert!((1..=pairs).contains(&wanted), "{wanted} of {pairs}");
        let [low, high] = wanted.to_le_bytes();
        assert_eq!(command, [4, 0, low, high]);
        // Whoever may use more may use as many.
        assert_eq!(parse(command, pairs + 1), parse(command, pairs));
    }
}
