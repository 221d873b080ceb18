//! Bytes of a terminal as lines: bounded, without escape codes and control characters.

use std::collections::VecDeque;

/// Bytes of a line that are kept; what is beyond is dropped.
pub const LINE_BYTES: usize = 1024;
/// Lines that are remembered.
pub const REMEMBERED: usize = 8;

/// Where an escape code ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// ESC [ and parameters, up to a byte from @ to ~.
    Control,
    /// ESC ] and a text, up to BEL or ESC \.
    Text,
}

/// Cuts what a guest says into lines. Holds one line, whatever comes.
#[derive(Debug)]
pub struct LineSplitter {
    line: Vec<u8>,
    escape: Escape,
}

impl Default for LineSplitter {
    fn default() -> Self {
        LineSplitter {
            line: Vec::with_capacity(LINE_BYTES),
            escape: Escape::None,
        }
    }
}

impl LineSplitter {
    /// Takes a byte; whether it ended a line, which [`LineSplitter::clear`] makes room for the next
    /// of. The end of a line ends an escape code, too: nobody hides what follows behind a broken one.
    pub fn push(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.escape = Escape::None;
            return true;
        }
        self.escape = match (self.escape, byte) {
            // Intermediate bytes, too, as in ESC ( B.
            (_, 0x1b) | (Escape::Begun, b' '..=b'/') => Escape::Begun,
            (Escape::None, _) => {
                let shown = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
                if shown && self.line.len() < LINE_BYTES {
                    self.line.push(byte);
                }
                Escape::None
            }
            (Escape::Begun, b'[') => Escape::Control,
            (Escape::Begun, b']' | b'P' | b'^' | b'_' | b'X') => Escape::Text,
            (Escape::Control, b'@'..=b'~') | (Escape::Text, 0x07) | (Escape::Begun, _) => {
                Escape::None
            }
            (unended, _) => unended,
        };
        false
    }

    /// The line so far.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Begins the next line.
    pub fn clear(&mut self) {
        self.line.clear();
    }
}

/// The last lines. Their room is used again: after the first [`REMEMBERED`] nothing is allocated.
#[derive(Debug, Default)]
pub struct LastLines(VecDeque<Vec<u8>>);

impl LastLines {
    /// Remembers a line.
    pub fn push(&mut self, line: &[u8]) {
        let mut room = match self.0.len() < REMEMBERED {
            true => Vec::with_capacity(LINE_BYTES),
            false => self.0.pop_front().unwrap_or_default(),
        };
        room.clear();
        room.extend_from_slice(line);
        self.0.push_back(room);
    }

    /// The last `most` of them, oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = &[u8]> {
        let skip = self.0.len().saturating_sub(most);
        self.0.iter().skip(skip).map(Vec::as_slice)
    }
}
