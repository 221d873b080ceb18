//! Counts tests in libtest's output while it passes by.

use std::io::Write;

/// Lines of a panic that are told again at the end, after its first.
const PANIC_LINES: usize = 6;

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
    /// The names of all tests that came to their end.
    pub ended: Vec<String>,
    /// The test that runs now, if tests run one by one.
    during: Option<String>,
    /// The failed test whose output passes by, and lines of its panic that are still to be kept.
    panic: Option<(String, Option<usize>)>,
    /// What the panics of failed tests said.
    reasons: Vec<(String, String)>,
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
            ended: Vec::new(),
            during: None,
            panic: None,
            reasons: Vec::new(),
            running: false,
            running_passed: 0,
            running_failed: 0,
        }
    }

    /// To be called when the output has ended: a test program without a result line died.
    pub fn finish(&mut self) {
        let during = self.cut();
        if self.running {
            let during = during.map_or_else(String::new, |name| format!(" during {name}"));
            self.failures
                .push(format!("(the test program died{during})"));
            self.failed += 1;
            self.stop();
        }
        for (name, reason) in std::mem::take(&mut self.reasons) {
            if let Some(failure) = self.failures.iter_mut().find(|there| **there == name) {
                failure.push_str(&reason);
            }
        }
    }

    /// To be called when the test program was ended through no fault of its own: what it had done
    /// counts. Returns the test that was at work.
    pub fn interrupt(&mut self) -> Option<String> {
        let during = self.cut();
        self.stop();
        during
    }

    /// Takes the rest of the output, and the test that was at work then.
    fn cut(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        self.see(&String::from_utf8_lossy(&line));
        self.during.take()
    }

    fn stop(&mut self) {
        if self.running {
            self.passed += self.running_passed;
            self.failed += self.running_failed;
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
            (self.running, self.during, self.panic) = (false, None, None);
        } else if let Some((name, end)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            self.during = Some(name.to_owned());
            self.see_end(end);
        } else if line == "ok" || line == "FAILED" {
            // After what the test has printed itself.
            self.see_end(line);
        } else {
            self.see_panic(line);
        }
    }

    fn see_end(&mut self, end: &str) {
        let failed = end.ends_with("FAILED");
        if !failed && !end.ends_with("ok") && !end.contains("ignored") {
            return;
        }
        let Some(name) = self.during.take() else {
            return;
        };
        self.running_failed += u32::from(failed);
        self.running_passed += u32::from(end.ends_with("ok"));
        if failed {
            self.failures.push(name.clone());
        }
        self.ended.push(name);
    }

    /// Keeps the first lines of what a failed test's panic says.
    fn see_panic(&mut self, line: &str) {
        let name = line.strip_prefix("---- ");
        if let Some(name) = name.and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.panic = Some((name.to_owned(), None));
        } else if let Some((name, left)) = &mut self.panic {
            let is_first = left.is_none() && line.contains("panicked at ");
            let is_last = line.is_empty() || line == "stack backtrace:";
            match left {
                None if is_first => *left = Some(PANIC_LINES),
                Some(left) if *left > 0 && !is_last => *left -= 1,
                Some(left) => return *left = 0,
                None => return,
            }
            let reason = format!("\n    {line}");
            match self.reasons.iter_mut().find(|(there, _)| there == name) {
                Some((_, text)) => text.push_str(&reason),
                None => self.reasons.push((name.clone(), reason)),
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
    fn a_failure_is_told_with_what_its_panic_said() {
        let tally = tally(
            "running 1 test\ntest a ... FAILED\n\nfailures:\n\n---- a stdout ----\nbefore\n\
             thread 'a' (7) panicked at x.rs:1:2:\nassertion failed\n  left: 1\n\
             stack backtrace:\n   0: deep\n\nfailures:\n    a\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        let told =
            "a\n    thread 'a' (7) panicked at x.rs:1:2:\n    assertion failed\n      left: 1";
        assert_eq!(tally.failures, [told]);
    }

    #[test]
    fn what_was_done_before_an_interruption_counts() {
        let mut tally = Tally::new(std::io::sink());
        let output = "running 4 tests\ntest a ... ok\ntest b ... \na table\nok\n\
                      test c ... FAILED\ntest d ... \nhalf a table";
        assert!(tally.write_all(output.as_bytes()).is_ok());
        assert_eq!(tally.interrupt().as_deref(), Some("d"));
        assert_eq!((tally.passed, tally.failed), (2, 1));
        assert_eq!(tally.ended, ["a", "b", "c"]);
        tally.finish();
        assert_eq!(tally.failures, ["c"]);
    }

    #[test]
    fn no_output_is_no_test() {
        assert_eq!(tally("").failed, 0);
    }
}
