//! Tests that failed in an emulated machine, once more in another.
//!
//! The emulator is not a computer. QEMU 10.0's nested SVM now and then takes a guest's kernel into an
//! interrupt in the middle of its system call entry (a double fault with the user's stack), or leaves
//! a process of the guest where it was: about one guest in several hundred. A test that fails here
//! may have met that, so that few failures are looked at again. What fails twice has failed. What
//! passes then is told with what it said at first, for the fault may be ours and rare.

use std::io::Write;

use super::summary::Row;
use super::tally::Tally;

/// More failures than these are no accident.
const MOST: usize = 2;

/// The failed tests of `row` that are to be run again: all, if they are few and nothing else failed.
pub fn candidates(row: &Row) -> Vec<String> {
    let names: Vec<String> = row.problems.iter().map(|told| name(told)).collect();
    let whole = usize::try_from(row.failed) == Ok(names.len());
    // Other problems are told in sentences.
    let tests = names.iter().all(|name| !name.contains(' '));
    match whole && tests && names.len() <= MOST {
        true => names,
        false => Vec::new(),
    }
}

/// Counts as passed what has passed in `second`, and notes that it had failed.
pub fn settle<W: Write>(row: &mut Row, second: &Tally<W>) {
    let has_failed = |test: &String| second.failures.iter().any(|told| name(told) == *test);
    let has_passed = |told: &String| {
        let test = name(told);
        second.ended.contains(&test) && !has_failed(&test)
    };
    let problems = std::mem::take(&mut row.problems);
    let (passed, failed): (Vec<_>, Vec<_>) = problems.into_iter().partition(has_passed);
    row.problems = failed;
    for told in passed {
        row.failed -= 1;
        row.passed += 1;
        let note = format!("failed in one emulated machine and passed in another: {told}");
        row.notes.push(note);
    }
}

/// The test of a failure that is told with its reason.
fn name(told: &str) -> String {
    told.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(problems: &[&str]) -> Row {
        let mut row = Row::new("linux", "lab");
        for problem in problems {
            row.fail((*problem).to_owned());
        }
        row
    }

    fn second(output: &str) -> Tally<std::io::Sink> {
        let mut tally = Tally::new(std::io::sink());
        assert!(tally.write_all(output.as_bytes()).is_ok());
        tally.finish();
        tally
    }

    #[test]
    fn few_tests_are_run_again_and_nothing_else_is() {
        assert_eq!(
            candidates(&row(&["a::b\n    it panicked", "c"])),
            ["a::b", "c"]
        );
        assert_eq!(candidates(&row(&["a", "b", "c"])).len(), 0);
        assert_eq!(candidates(&row(&["a", "linux: time was up"])).len(), 0);
        assert_eq!(candidates(&row(&[])).len(), 0);
    }

    #[test]
    fn what_passes_then_is_told_and_what_fails_again_has_failed() {
        let mut row = row(&["a\n    it panicked", "b", "c"]);
        row.passed = 10;
        // The program died before it came to the third.
        settle(
            &mut row,
            &second("running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... "),
        );
        assert_eq!((row.passed, row.failed), (11, 2));
        assert_eq!(row.problems, ["b", "c"]);
        let note = "failed in one emulated machine and passed in another: a\n    it panicked";
        assert_eq!(row.notes, [note]);
    }
}
