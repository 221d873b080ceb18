//! What is typed at a terminal: bytes for the guest, and Ctrl-A sequences for Vitrine.

/// Begins a sequence.
const PREFIX: u8 = 0x01;

/// What a typed byte comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Nothing yet.
    Nothing,
    /// A byte for the guest.
    Byte(u8),
    /// Two bytes for the guest.
    Two(u8, u8),
    /// Ctrl-A x.
    Stop,
    /// Ctrl-A h.
    Help,
}

/// The parser's memory.
#[derive(Debug, Default)]
pub(super) struct Keys {
    prefixed: bool,
}

impl Keys {
    /// Takes the next byte.
    pub(super) fn feed(&mut self, byte: u8) -> Typed {
        if !std::mem::take(&mut self.prefixed) {
            self.prefixed = byte == PREFIX;
            return if self.prefixed {
                Typed::Nothing
            } else {
                Typed::Byte(byte)
            };
        }
        match byte {
            PREFIX => Typed::Byte(PREFIX),
            b'x' => Typed::Stop,
            b'h' => Typed::Help,
            other => Typed::Two(PREFIX, other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_told_from_bytes() {
        let mut keys = Keys::default();
        let typed: Vec<Typed> = b"a\x01\x01\x01x\x01h\x01cx".map(|b| keys.feed(b)).into();
        use Typed::{Byte, Help, Nothing, Stop, Two};
        assert_eq!(
            typed,
            [
                Byte(b'a'),
                Nothing,
                Byte(1),
                Nothing,
                Stop,
                Nothing,
                Help,
                Nothing,
                Two(1, b'c'),
                Byte(b'x')
            ]
        );
    }
}
