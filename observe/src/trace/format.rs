//! Parses tracefs' `format` files, which say where the fields of a tracepoint's record lie.
//!
//! A line of it, Documentation/trace/events.rst of the Linux kernel:
//! `field:unsigned int exit_reason; offset:8; size:4; signed:0;`

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

/// Bytes of a format file that are read.
pub const MAX_FORMAT_BYTES: usize = 64 << 10;
/// Fields that are read; others are not known then.
pub const MAX_FIELDS: usize = 128;

/// One field of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventField {
    /// Its name: `exit_reason`.
    pub name: String,
    /// Where it begins.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
    /// Its numbers are signed.
    pub signed: bool,
}

/// The layout of a tracepoint's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFormat {
    /// The tracepoint's number.
    pub id: u64,
    fields: Vec<EventField>,
}

/// Why a text is no format file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There is no line `ID: N`.
    #[error("it has no line that begins with ID")]
    NoId,
    /// There is no line that describes a field.
    #[error("it describes no field")]
    NoField,
}

impl EventFormat {
    /// Reads a format file. Lines that are not understood are passed over.
    ///
    /// # Errors
    /// [`FormatError`]: it is something else.
    pub fn parse(text: &str) -> Result<EventFormat, FormatError> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID:"));
        let id = id.and_then(|id| id.trim().parse().ok());
        let id = id.ok_or(FormatError::NoId)?;
        let fields: Vec<_> = text.lines().filter_map(field).take(MAX_FIELDS).collect();
        if fields.is_empty() {
            return Err(FormatError::NoField);
        }
        Ok(EventFormat { id, fields })
    }

    /// All fields, the common ones first.
    pub fn fields(&self) -> &[EventField] {
        &self.fields
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&EventField> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The number in the field of that name of the record `raw`, a signed one as two's complement;
    /// `None` where the kernel has no such field, the record is too short, or it is no number.
    pub fn value(&self, raw: &[u8], name: &str) -> Option<u64> {
        let field = self.field(name)?;
        let end = field.offset.checked_add(field.size)?;
        let bytes = raw.get(field.offset..end)?;
        Some(match (bytes, field.signed) {
            ([byte], false) => u64::from(*byte),
            ([byte], true) => i64::from(byte.cast_signed()).cast_unsigned(),
            ([a, b], false) => u64::from(u16::from_le_bytes([*a, *b])),
            ([a, b], true) => i64::from(i16::from_le_bytes([*a, *b])).cast_unsigned(),
            ([a, b, c, d], false) => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
            ([a, b, c, d], true) => i64::from(i32::from_le_bytes([*a, *b, *c, *d])).cast_unsigned(),
            _ => u64::from_le_bytes(bytes.try_into().ok()?),
        })
    }
}

/// The number of the tracepoint that a record is of: the first field of every format.
pub fn tracepoint_of(raw: &[u8]) -> Option<u64> {
    match raw {
        [low, high, ..] => Some(u64::from(u16::from_le_bytes([*low, *high]))),
        _ => None,
    }
}

fn field(line: &str) -> Option<EventField> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let (mut offset, mut size, mut signed) = (None, None, false);
    for part in parts {
        match part.split_once(':') {
            Some(("offset", number)) => offset = number.parse().ok(),
            Some(("size", number)) => size = number.parse().ok(),
            Some(("signed", number)) => signed = number == "1",
            _ => {}
        }
    }
    let name = declaration.split_whitespace().next_back()?;
    let name = name.split('[').next()?.trim_start_matches('*');
    Some(EventField {
        name: name.to_owned(),
        offset: offset?,
        size: size?,
        signed,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// kvm_exit of Linux 6.12.
    const EXIT: &str = "name: kvm_exit
ID: 1923
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;
\tfield:char name[16];\toffset:28;\tsize:16;\tsigned:0;

print fmt: \"vcpu %u reason %s\", REC->vcpu_id
";

    #[test]
    fn fields_are_found_by_name() {
        let format = EventFormat::parse(EXIT).unwrap();
        assert_eq!((format.id, format.fields().len()), (1923, 7));
        let mut raw = vec![0u8; 44];
        raw[0..2].copy_from_slice(&1923u16.to_le_bytes());
        raw[4..8].copy_from_slice(&(-5i32).to_le_bytes());
        raw[8..12].copy_from_slice(&78u32.to_le_bytes());
        raw[16..24].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
        assert_eq!(tracepoint_of(&raw), Some(1923));
        let value = |name| format.value(&raw, name);
        assert_eq!(value("exit_reason"), Some(78));
        assert_eq!(value("guest_rip"), Some(0xffff_ffff_8100_0000));
        assert_eq!(value("common_pid"), Some((-5i64).cast_unsigned()));
        assert_eq!(value("name"), None, "no number");
        assert_eq!(value("info1"), None, "not there");
        assert_eq!(format.value(&raw[..20], "guest_rip"), None, "cut short");
    }

    #[test]
    fn what_is_no_format_is_refused() {
        assert_eq!(EventFormat::parse("").unwrap_err(), FormatError::NoId);
        let error = EventFormat::parse("ID: 5\nfield:int x;").unwrap_err();
        assert_eq!(error, FormatError::NoField);
    }

    proptest! {
        #[test]
        fn any_text_and_any_record_are_taken(text in "\\PC*", raw in any::<Vec<u8>>()) {
            super::super::fuzz_format(&text, &raw);
        }

        #[test]
        fn any_field_is_taken(
            fields in prop::collection::vec(("[a-z_*\\[\\]0-9 ]{0,12}", any::<u64>(), 0u64..20), 0..200),
            raw in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut text = "ID: 7\n".to_owned();
            for (name, offset, size) in fields {
                let offset = if offset % 3 == 0 { offset } else { offset % 70 };
                text += &format!("field:int {name};offset:{offset};size:{size};signed:1;\n");
            }
            super::super::fuzz_format(&text, &raw);
        }
    }
}
