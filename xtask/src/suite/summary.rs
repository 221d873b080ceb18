//! What the suites came to.

use std::io::Write;
use std::time::Duration;

use super::tally::Tally;

/// The suite that has no tests, only checks.
pub const CHECKS: &str = "checks";

/// One suite's line in the closing table.
pub struct Row {
    /// The suite.
    pub suite: &'static str,
    /// Where it ran.
    pub place: &'static str,
    /// How long it took, builds and machines included.
    pub took: Duration,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed; a suite that could not run is one.
    pub failed: u32,
    /// Tests that were skipped.
    pub ignored: u32,
    /// What failed, by name or in words.
    pub problems: Vec<String>,
    /// What one should know though nothing failed.
    pub notes: Vec<String>,
}

impl Row {
    /// A suite that has not run yet.
    pub fn new(suite: &'static str, place: &'static str) -> Self {
        let took = Duration::ZERO;
        Self {
            suite,
            place,
            took,
            passed: 0,
            failed: 0,
            ignored: 0,
            problems: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Counts what a test program said.
    pub fn add<W: Write>(&mut self, tally: Tally<W>) {
        self.passed += tally.passed;
        self.failed += tally.failed;
        self.ignored += tally.ignored;
        self.problems.extend(tally.failures);
    }

    /// Counts one check.
    pub fn check(&mut self, name: &str, result: Result<(), crate::error::Error>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(format!("{name}: {error}")),
        }
    }

    /// Counts one failure.
    pub fn fail(&mut self, problem: String) {
        self.failed += 1;
        self.problems.push(problem);
    }
}

/// Whether the suites that have tests ran none, and not because they could not run.
pub fn ran_no_test(rows: &[Row]) -> bool {
    let suites = || rows.iter().filter(|row| row.suite != CHECKS);
    suites().count() > 0 && suites().all(|row| row.passed + row.failed + row.ignored == 0)
}

/// The closing table, the failures, and a line with the sums alone.
pub fn text(rows: &[Row]) -> String {
    let mut text =
        String::from("\nsuite     where                passed  failed  skipped  seconds  result\n");
    for row in rows {
        text.push_str(&format!(
            "{:<9} {:<19} {:>7} {:>7} {:>8} {:>8.1}  {}\n",
            row.suite,
            row.place,
            row.passed,
            row.failed,
            row.ignored,
            row.took.as_secs_f64(),
            if row.failed == 0 { "pass" } else { "FAIL" },
        ));
    }
    for row in rows {
        for note in &row.notes {
            text.push_str(&format!("note: {}: {note}\n", row.suite));
        }
        for problem in &row.problems {
            text.push_str(&format!("failed: {}: {problem}\n", row.suite));
        }
    }
    let sum = |count: fn(&Row) -> u32| rows.iter().map(count).sum::<u32>();
    text.push_str(&format!(
        "\n{} passed, {} failed\n",
        sum(|r| r.passed),
        sum(|r| r.failed)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_matches_nothing_is_told_from_suites_that_fail() {
        let mut checks = Row::new(CHECKS, "host");
        checks.passed = 4;
        assert!(!ran_no_test(&[checks]));
        let mut checks = Row::new(CHECKS, "host");
        checks.passed = 4;
        assert!(ran_no_test(&[checks, Row::new("unit", "host")]));
        for count in [
            |row: &mut Row| row.passed = 1,
            |row: &mut Row| row.ignored = 1,
        ] {
            let mut row = Row::new("zoo", "lab");
            count(&mut row);
            assert!(!ran_no_test(&[Row::new("unit", "host"), row]));
        }
        let mut broken = Row::new("zoo", "lab");
        broken.fail("no target".to_owned());
        assert!(!ran_no_test(&[Row::new("unit", "host"), broken]));
    }

    #[test]
    fn the_sums_stand_alone_on_a_line() {
        let mut row = Row::new("unit", "host");
        row.passed = 3;
        let mut other = Row::new("zoo", "lab");
        other.fail("no target".to_owned());
        other.notes.push("started twice".to_owned());
        let text = text(&[row, other]);
        assert!(
            text.lines().any(|line| line == "3 passed, 1 failed"),
            "{text}"
        );
        assert!(text.contains("failed: zoo: no target"));
        assert!(text.contains("note: zoo: started twice"));
    }
}
