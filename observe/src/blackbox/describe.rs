//! The directory's text, and what is checked of a section type before it is described.

use std::fmt::Write;

use super::layout::MOST_ALIGN;
use crate::schema::{Field, FieldKind, Section};
use crate::series::Column;

/// Checks a section type when it is compiled: a field outside its struct, or a name that would
/// break the directory, does not build.
pub(super) const fn check<T: Section>() {
    assert!(
        align_of::<T>() <= MOST_ALIGN,
        "a section is aligned beyond a page"
    );
    assert!(
        is_name(T::KIND),
        "a section kind is lower-case letters, digits and underscores"
    );
    let mut i = 0;
    while i < T::INSTANCE.len() {
        assert!(
            is_name(T::INSTANCE[i]),
            "an instance label is a lower-case name"
        );
        i += 1;
    }
    let mut i = 0;
    while i < T::FIELDS.len() {
        let field = &T::FIELDS[i];
        assert!(
            is_name(field.name),
            "a field is named by lower-case letters, digits, underscores"
        );
        assert!(
            field.label.is_empty() || is_name(field.label),
            "a label is a lower-case name"
        );
        assert!(is_line(field.help), "a help text is one line without tabs");
        assert!(field.count >= 1 && field.offset % 8 == 0 && field.stride % 8 == 0);
        let others = match field.kind {
            FieldKind::Series => {
                check_columns(field);
                0
            }
            _ => {
                assert!(
                    field.count == 1
                        || (field.stride >= field.element_bytes() && !field.label.is_empty()),
                    "the rows of a table have a label and do not overlap"
                );
                (field.count - 1) * field.stride
            }
        };
        assert!(
            field.offset + others + field.element_bytes() <= size_of::<T>(),
            "a field lies outside its section"
        );
        i += 1;
    }
}

const fn check_columns(series: &Field) {
    assert!(
        series.label.is_empty() && series.stride == series.columns.len() * 8,
        "a series has no label, and a column for each word of its rows"
    );
    let mut i = 0;
    while i < series.columns.len() {
        let column = &series.columns[i];
        assert!(
            is_name(column.name) && is_line(column.help),
            "a column has a lower-case name and a help text of one line"
        );
        i += 1;
    }
}

const fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_lowercase() || bytes[i].is_ascii_digit() || bytes[i] == b'_') {
            return false;
        }
        i += 1;
    }
    !bytes.is_empty() && !bytes[0].is_ascii_digit()
}

const fn is_line(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] < b' ' {
            return false;
        }
        i += 1;
    }
    true
}

/// The lines that describe the kind `T`.
pub(super) fn kind<T: Section>(text: &mut String) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "kind\t{}\t{}", T::KIND, T::INSTANCE.join(","));
    for field in T::FIELDS {
        let Field {
            name,
            kind,
            unit,
            help,
            offset,
            count,
            stride,
            label,
            columns,
        } = field;
        let (kind, unit) = (*kind as u8, *unit as u8);
        let _ = writeln!(
            text,
            "field\t{}\t{name}\t{kind}\t{unit}\t{offset}\t{count}\t{stride}\t{label}\t{help}",
            T::KIND
        );
        let series = name;
        for column in *columns {
            let Column {
                name,
                kind,
                unit,
                help,
            } = column;
            let (kind, unit) = (*kind as u8, *unit as u8);
            let _ = writeln!(
                text,
                "column\t{}\t{series}\t{name}\t{kind}\t{unit}\t{help}",
                T::KIND
            );
        }
    }
}

/// The lines that describe one section of kind `T`.
pub(super) fn section<T: Section>(
    text: &mut String,
    name: &str,
    offset: usize,
    labels: &[(&str, &[String])],
) {
    let name = clean(name, "");
    let bytes = size_of::<T>();
    let _ = writeln!(text, "section\t{name}\t{}\t{offset}\t{bytes}", T::KIND);
    for (label, values) in labels {
        let values: Vec<String> = values.iter().map(|v| clean(v, ",")).collect();
        let label = clean(label, "");
        let _ = writeln!(text, "labels\t{name}\t{label}\t{}", values.join(","));
    }
}

/// `text` with `_` for control characters and those in `also`.
fn clean(text: &str, also: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || also.contains(c) {
                '_'
            } else {
                c
            }
        })
        .collect()
}

/// `text` as `N` bytes padded with NUL, cut between characters.
pub(super) fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut used = 0;
    for c in text.chars() {
        let next = used + c.len_utf8();
        let Some(room) = bytes.get_mut(used..next) else {
            break;
        };
        c.encode_utf8(room);
        used = next;
    }
    bytes
}
