//! The terminal as a screen that is drawn again and again, and given back as it was.
#![allow(unsafe_code)] // ioctl(2) for the terminal's size, which std does not offer.

use std::fmt::Write;

use super::{Failure, output};

/// A terminal that gives no size is taken to have this one.
const USUAL: (usize, usize) = (24, 80);

/// The alternate screen, for as long as this lives.
pub struct Screen(());

impl Screen {
    /// Takes the terminal behind standard output.
    pub fn take() -> Screen {
        // One that cannot be written to is found out by the first drawing.
        let _ = output::print("\x1b[?1049h\x1b[?25l\x1b[H\x1b[J");
        Screen(())
    }

    /// Shows `text`, as much of it as there is room for; as [`output::print`].
    ///
    /// # Errors
    /// Standard output takes nothing.
    pub fn draw(&self, text: &str) -> Result<bool, Failure> {
        output::print(&frame(text, size().unwrap_or(USUAL)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = output::print("\x1b[?25h\x1b[?1049l");
    }
}

/// What draws `text` over what was there.
fn frame(text: &str, (rows, columns): (usize, usize)) -> String {
    let mut frame = String::from("\x1b[H");
    for (index, line) in text.lines().take(rows).enumerate() {
        if index > 0 {
            frame.push_str("\r\n");
        }
        let line: String = line.chars().take(columns).collect();
        let _ = write!(frame, "{line}\x1b[K");
    }
    frame.push_str("\x1b[J");
    frame
}

/// Rows and columns of the terminal behind standard output.
fn size() -> Option<(usize, usize)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ fills a winsize, which `size` is and which lives across the call.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    let (rows, columns) = (usize::from(size.ws_row), usize::from(size.ws_col));
    (done == 0 && rows > 0 && columns > 0).then_some((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_scrolls() {
        let frame = frame("one line\ntwo\nthree", (2, 5));
        assert_eq!(frame, "\x1b[Hone l\x1b[K\r\ntwo\x1b[K\x1b[J");
    }
}
