//! What the scenarios came to: rows are taken out of their output as it passes by.

use std::io::Write;

/// The columns of scenarios.
pub const HEAD: &[&str] = &[
    "scenario",
    "code",
    "guest",
    "where",
    "threshold",
    "found after",
    "evidence",
    "another source",
    "result",
];

/// The columns of healthy guests.
pub const HEALTHY_HEAD: &[&str] = &[
    "guest",
    "kernel",
    "seconds",
    "looks",
    "worst verdict",
    "result",
];

/// Characters of a cell at most.
const CELL: usize = 200;

/// A writer that keeps rows and hands everything else on.
pub struct Table<W: Write> {
    through: W,
    head: &'static [&'static str],
    line: Vec<u8>,
    rows: Vec<Vec<String>>,
    /// Codes without a scenario, with the reason.
    open: Vec<(String, String)>,
}

impl<W: Write> Table<W> {
    /// A table of these columns; hands the rest on to `through`.
    pub fn new(head: &'static [&'static str], through: W) -> Self {
        Table {
            through,
            head,
            line: Vec::new(),
            rows: Vec::new(),
            open: Vec::new(),
        }
    }

    /// No scenario was played.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// To be called when the output has ended.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.see(&line);
        }
    }

    fn see(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line).into_owned();
        // The lab's lines end as a terminal's do.
        let mut columns = text.trim_end_matches('\r').split('\t');
        match columns.next() {
            Some("row") => {
                let row: Vec<String> = columns.map(short).collect();
                let _ = writeln!(
                    self.through,
                    "scenarios: {}: {}",
                    row.first().map_or("", String::as_str),
                    row.last().map_or("", String::as_str)
                );
                self.rows.push(row);
            }
            Some("open") => {
                let code = columns.next().unwrap_or_default().to_owned();
                let reason = columns.next().unwrap_or_default().to_owned();
                // Both places say it.
                if !self.open.iter().any(|(there, _)| *there == code) {
                    self.open.push((code, reason));
                }
            }
            _ => drop(writeln!(self.through, "{text}")),
        }
    }

    /// The table, and below it the codes that no scenario covers.
    pub fn text(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|&name| name.to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut text = String::from("\n");
        for line in &lines {
            let cells = line.iter().zip(&widths);
            let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
            let joined = cells.collect::<Vec<_>>().join("  ");
            text.push_str(joined.trim_end());
            text.push('\n');
        }
        if !self.open.is_empty() {
            text.push_str("\nNo scenario covers these codes:\n");
        }
        for (code, reason) in &self.open {
            text.push_str(&format!("{code}: {reason}\n"));
        }
        text
    }
}

/// A cell of the table. What failed may come with a whole log, which has passed by before.
fn short(cell: &str) -> String {
    let mut chars = cell.chars();
    let mut short: String = chars.by_ref().take(CELL).collect();
    if chars.next().is_some() {
        short.push_str(" ...");
    }
    short
}

impl<W: Write> Write for Table<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.see(&line);
            } else {
                self.line.push(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.through.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_and_the_rest_passes() {
        let mut table = Table::new(HEAD, Vec::new());
        let output = "noise\nrow\ta\tcode\tzoo\there\t1.0\t1.2\tx=1\t1 (clock)\tpass\r\n\
                      open\tb\tlater\nopen\tb\tlater\n";
        for piece in output.as_bytes().chunks(5) {
            assert!(table.write_all(piece).is_ok());
        }
        table.finish();
        let text = table.text();
        assert!(text.contains("\na         code  zoo    here "), "{text}");
        assert!(text.contains("  pass\n"), "{text}");
        assert_eq!(text.matches("b: later\n").count(), 1);
        assert!(!table.is_empty());
        let passed = String::from_utf8(table.through).unwrap_or_default();
        assert_eq!(passed, "noise\nscenarios: a: pass\n");
    }

    #[test]
    fn a_cell_with_a_whole_log_is_cut() {
        let mut table = Table::new(HEALTHY_HEAD, Vec::new());
        let log = "x".repeat(100_000);
        let row = format!("row\tidle\t6.12\t60\t59\tnone\tFAIL: {log}\n");
        assert!(table.write_all(row.as_bytes()).is_ok());
        let text = table.text();
        assert!(text.contains("FAIL: xxx") && text.trim_end().ends_with("x ..."));
        assert!(text.len() < 1000, "{}", text.len());
    }

    #[test]
    fn healthy_guests_have_columns_of_their_own() {
        let mut table = Table::new(HEALTHY_HEAD, Vec::new());
        let row = b"row\tidle\t6.12\t60\t59\tnone\tpass, 1 boots\r\n";
        assert!(table.write_all(row).is_ok());
        let text = table.text();
        let head = "\nguest  kernel  seconds  looks  worst verdict  result\n";
        assert!(text.contains(head), "{text}");
        assert!(
            text.contains("\nidle   6.12    60       59     none "),
            "{text}"
        );
    }
}
