//! Counts tests in libtest's output while it passes by.

use std::io::Write;

/// A writer that hands everything on and counts on the way.
pub struct Tally<W: Write> {
    through: W,
    line: Vec<u8>,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, or that ended the test program.
    pub failed: u32,
    /// Tests that were skipped.
    pub ignored: u32,
    /// The names of failed tests.
    pub failures: Vec<String>,
    /// In the program that runs now: whether it has begun, what passed, what failed.
    running: bool,
    running_passed: u32,
    running_failed: u32,
}

impl<W: Write> Tally<W> {
    /// Counts what is written, and writes it to `through`.
    pub fn new(through: W) -> Self {
        Self {
            through,
            line: Vec::new(),
            passed: 0,
            failed: 0,
            ignored: 0,
            failures: Vec::new(),
            running: false,
            running_passed: 0,
            running_failed: 0,
        }
    }

    /// To be called when the output has ended: a test program without a result line died.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line).into_owned();
        self.see(&line);
        if self.running {
            let test = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split(" ...").next());
            let during = test.map_or_else(String::new, |name| format!(" during {name}"));
            self.failures
                .push(format!("(the test program died{during})"));
            self.passed += self.running_passed;
            self.failed += self.running_failed + 1;
            self.running = false;
        }
    }

    fn see(&mut self, line: &str) {
        if line.starts_with("running ") && line.trim_end().ends_with(['t', 's']) {
            (self.running, self.running_passed, self.running_failed) = (true, 0, 0);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
            self.ignored += number_before(result, " ignored");
            self.running = false;
        } else if let Some((name, end)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            if end.ends_with("FAILED") {
                self.running_failed += 1;
                self.failures.push(name.to_owned());
            } else if end.ends_with("ok") {
                self.running_passed += 1;
            }
        }
    }
}

fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split(word).next().unwrap_or_default();
    before
        .rsplit(' ')
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.through.write(bytes)?;
        for byte in &bytes[..written] {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.see(&String::from_utf8_lossy(&line));
            } else {
                self.line.push(*byte);
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.through.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally<std::io::Sink> {
        let mut tally = Tally::new(std::io::sink());
        for piece in output.as_bytes().chunks(7) {
            assert!(tally.write_all(piece).is_ok());
        }
        tally.finish();
        tally
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let tally = tally(
            "running 2 tests\ntest a ... ok\ntest b::c ... FAILED\n\nfailures:\n    b::c\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
             running 1 test\ntest d ... ok\n\
             test result: ok. 1 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((tally.passed, tally.failed, tally.ignored), (2, 1, 3));
        assert_eq!(tally.failures, ["b::c"]);
    }

    #[test]
    fn a_program_that_dies_is_a_failure_that_names_its_test() {
        let tally = tally("running 3 tests\ntest a ... ok\ntest dies ... ");
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert_eq!(tally.failures, ["(the test program died during dies)"]);
    }

    #[test]
    fn no_output_is_no_test() {
        assert_eq!(tally("").failed, 0);
    }
}
