//! A page: titles, lines and tables, as plain text or as HTML. Bounded, and clean.

use std::fmt::Write;

use super::format::clean;

/// Bytes that the parts of a page may have together, a cell counted as 16 at least.
pub(super) const MAX_BYTES: usize = 2 << 20;
/// Characters to which a column is padded; longer cells stick out.
const MAX_WIDTH: usize = 60;
const LEAST_CELL: usize = 16;

const STYLE: &str = "body{font-family:sans-serif;margin:2em;color:#222;background:#fff}\
table{border-collapse:collapse;margin:.5em 0}\
th,td{padding:.15em .8em .15em 0;text-align:left;vertical-align:top;white-space:nowrap}\
th{border-bottom:1px solid #999}td.n{text-align:right;font-variant-numeric:tabular-nums}\
h2{margin-top:1.5em}";

enum Item {
    Title(String),
    Heading(String),
    Line(String),
    Table(Table),
    Text(Vec<String>),
}

/// Rows under a head. A column whose cells are all numbers is set to the right.
#[derive(Default)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Table {
            head: head.iter().map(|cell| clean(cell)).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, whose texts may come from anywhere.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| clean(&cell));
        self.rows.push(cells.collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn columns(&self) -> usize {
        let rows = self.rows.iter().map(Vec::len);
        rows.max().unwrap_or(0).max(self.head.len())
    }

    fn column(&self, index: usize) -> impl Iterator<Item = &str> {
        self.rows
            .iter()
            .filter_map(move |row| row.get(index).map(String::as_str))
    }

    fn is_number(&self, index: usize) -> bool {
        self.column(index).all(|cell| {
            let first = cell.chars().next();
            first.is_none_or(|c| c.is_ascii_digit() || c == '-' || c == '+')
        })
    }

    fn width(&self, index: usize) -> usize {
        let head = self.head.get(index).map(String::as_str);
        let cells = self.column(index).chain(head);
        let widest = cells.map(|cell| cell.chars().count()).max();
        widest.unwrap_or(0).min(MAX_WIDTH)
    }

    fn text(&self, out: &mut String) {
        let columns = 0..self.columns();
        let shape: Vec<(usize, bool)> = columns
            .map(|index| (self.width(index), self.is_number(index)))
            .collect();
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let mut line = String::from("  ");
            for (cell, (width, right)) in row.iter().zip(&shape) {
                let _ = match right {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }

    fn html(&self, out: &mut String) {
        let classes: Vec<&str> = (0..self.columns())
            .map(|index| {
                if self.is_number(index) {
                    " class=n"
                } else {
                    ""
                }
            })
            .collect();
        out.push_str("<table>\n<tr>");
        for cell in &self.head {
            let _ = write!(out, "<th>{}</th>", escape(cell));
        }
        out.push_str("</tr>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (cell, class) in row.iter().zip(&classes) {
                let _ = write!(out, "<td{class}>{}</td>", escape(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table>\n");
    }
}

/// What is shown, from the top.
#[derive(Default)]
pub(super) struct Page {
    items: Vec<Item>,
    bytes: usize,
    is_full: bool,
}

impl Page {
    pub fn title(&mut self, text: &str) {
        self.push(text.len(), Item::Title(clean(text)));
    }

    pub fn heading(&mut self, text: &str) {
        self.push(text.len(), Item::Heading(clean(text)));
    }

    pub fn line(&mut self, text: &str) {
        // Sentences of ours are longer than any one text of the black box.
        let text = text.chars().take(2000).collect::<String>();
        let parts: Vec<String> = text.split(' ').map(clean).collect();
        self.push(text.len(), Item::Line(parts.join(" ")));
    }

    /// Lines of a foreign text, with their spaces.
    pub fn text_lines(&mut self, lines: &[String]) {
        let lines: Vec<String> = lines.iter().map(|line| clean(line)).collect();
        let bytes = lines.iter().map(|line| line.len().max(LEAST_CELL));
        self.push(bytes.fold(0, usize::saturating_add), Item::Text(lines));
    }

    /// Adds a table, unless it is empty; of one that does not fit, the first rows.
    pub fn table(&mut self, mut table: Table) {
        let mut bytes = self.bytes;
        let fitting = table.rows.iter().take_while(|row| {
            let cells = row.iter().map(|cell| cell.len().max(LEAST_CELL));
            bytes = cells.fold(bytes, usize::saturating_add);
            bytes <= MAX_BYTES
        });
        let fitting = fitting.count();
        let is_cut = fitting < table.rows.len();
        table.rows.truncate(fitting);
        if !table.is_empty() {
            self.push(bytes.saturating_sub(self.bytes), Item::Table(table));
        }
        self.is_full |= is_cut;
    }

    fn push(&mut self, bytes: usize, item: Item) {
        self.bytes = self.bytes.saturating_add(bytes.max(LEAST_CELL));
        if self.is_full || self.bytes > MAX_BYTES.saturating_mul(2) {
            self.is_full = true;
            return;
        }
        self.items.push(item);
    }

    fn note(&self) -> &'static str {
        if self.is_full {
            "The report is full: what follows was left out."
        } else {
            ""
        }
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        for item in &self.items {
            match item {
                Item::Title(text) => out.extend([text, "\n"]),
                Item::Heading(text) => out.extend(["\n", text, "\n"]),
                Item::Line(text) => out.extend(["  ", text, "\n"]),
                Item::Table(table) => table.text(&mut out),
                Item::Text(lines) => lines.iter().for_each(|line| {
                    out.extend(["  | ", line, "\n"]);
                }),
            }
        }
        if self.is_full {
            out.extend(["\n", self.note(), "\n"]);
        }
        out
    }

    pub fn html(&self) -> String {
        let title = self.items.iter().find_map(|item| match item {
            Item::Title(text) => Some(escape(text)),
            _ => None,
        });
        let title = title.unwrap_or_default();
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        );
        for item in &self.items {
            let _ = match item {
                Item::Title(text) => writeln!(out, "<h1>{}</h1>", escape(text)),
                Item::Heading(text) => writeln!(out, "<h2>{}</h2>", escape(text)),
                Item::Line(text) => writeln!(out, "<p>{}</p>", escape(text)),
                Item::Table(table) => {
                    table.html(&mut out);
                    Ok(())
                }
                Item::Text(lines) => writeln!(out, "<pre>{}</pre>", escape(&lines.join("\n"))),
            };
        }
        if self.is_full {
            let _ = writeln!(out, "<p>{}</p>", self.note());
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
