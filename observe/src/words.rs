//! A text in the black box: some words of UTF-8, written by one thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// A text of at most `WORDS * 8` bytes. Its memory layout: `check`, then the bytes, NUL after the
/// last one where there is room. `check` is [`check`] of all words, so a text that is being written,
/// or was when its writer died, is told from a whole one.
#[derive(Debug)]
#[repr(C)]
pub struct Words<const WORDS: usize> {
    check: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// Bytes before the text.
pub(crate) const CHECK_BYTES: usize = 8;

impl<const WORDS: usize> Words<WORDS> {
    /// Replaces the text; what does not fit is cut off between two characters.
    pub fn set(&self, text: &str) {
        let mut end = text.len().min(WORDS.saturating_mul(8));
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let bytes = text.as_bytes().get(..end).unwrap_or_default();
        let mut chunks = bytes.chunks(8);
        let mut sum = check([]);
        for cell in &self.words {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunks.next().unwrap_or_default()) {
                *to = *from;
            }
            let word = u64::from_le_bytes(word);
            sum = next(sum, word);
            cell.store(word, Ordering::Relaxed);
        }
        self.check.store(sum, Ordering::Release);
    }
}

/// What the words of a text add up to: 0 for one that is nothing but NUL, so that a section of zeros
/// holds empty texts.
pub(crate) fn check(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0, next)
}

fn next(sum: u64, word: u64) -> u64 {
    // An odd factor (2^64 divided by the golden ratio): no two words of one place give the same.
    sum.rotate_left(7)
        .wrapping_add(word)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The text in `bytes`, which begin with the check; `None` if it was torn.
pub(crate) fn parse(bytes: &[u8]) -> Option<String> {
    let (sum, text) = bytes.split_first_chunk::<8>()?;
    let words = text.chunks_exact(8).filter_map(|word| word.first_chunk());
    if check(words.map(|word| u64::from_le_bytes(*word))) != u64::from_le_bytes(*sum) {
        return None;
    }
    let text = text.split(|byte| *byte == 0).next()?;
    let text = String::from_utf8_lossy(text);
    // It is shown to people, and whoever wrote it may mean harm.
    Some(text.replace(|c: char| c.is_control() && c != '\n', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &Words<3>) -> Vec<u8> {
        let words = text.words.iter().map(|word| word.load(Ordering::Relaxed));
        let sum = text.check.load(Ordering::Relaxed);
        [sum]
            .into_iter()
            .chain(words)
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    fn empty() -> Words<3> {
        Words {
            check: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; 3],
        }
    }

    #[test]
    fn a_text_is_read_as_it_was_written_and_cut_where_it_does_not_fit() {
        let text = empty();
        assert_eq!(parse(&bytes(&text)).as_deref(), Some(""));
        for (written, read) in [
            ("spins+0x4/0x20", "spins+0x4/0x20"),
            ("", ""),
            ("exactly twenty-four by.", "exactly twenty-four by."),
            ("more than twenty-four bytes", "more than twenty-four by"),
            ("a character at the end \u{e9}", "a character at the end "),
            ("a\tb\nc\u{1b}", "a_b\nc_"),
        ] {
            text.set(written);
            assert_eq!(parse(&bytes(&text)).as_deref(), Some(read));
        }
    }

    #[test]
    fn a_text_of_which_a_word_is_another_one_is_none() {
        let text = empty();
        text.set("the function that it is");
        let whole = bytes(&text);
        for word in 0..4 {
            let mut torn = whole.clone();
            torn[word * 8] ^= 1;
            assert_eq!(parse(&torn), None);
        }
        assert_eq!(parse(&whole[..16]), None);
        assert_eq!(parse(&[]), None);
    }
}
