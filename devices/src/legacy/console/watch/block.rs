//! What the watch counts and keeps.

use std::mem::offset_of;

use observe::{BlackBox, BlackBoxError, Block, Counter, Field, Gauge, Section, TextRing, Unit};

use super::message::{MESSAGE_KINDS, MessageKind};

/// Bytes of console output that are kept.
pub const OUTPUT_BYTES: usize = 16 << 10;
/// Bytes of messages, with the lines around them, that are kept.
pub const EXCERPT_BYTES: usize = 8 << 10;

/// Messages of one kind.
#[derive(Debug, Default)]
#[repr(C)]
pub struct MessageRow {
    /// How many.
    pub messages: Counter,
    /// How many of them were told nobody, for there were too many.
    pub untold: Counter,
    /// When the last one came.
    pub last_at: Gauge,
}

/// What the watch counts and keeps. Written by the thread `console` alone.
#[derive(Debug, Default)]
#[repr(C)]
pub struct WatchBlock {
    /// By kind.
    pub rows: [MessageRow; MESSAGE_KINDS],
    /// The console's output as it came.
    pub output: TextRing<OUTPUT_BYTES>,
    /// Messages with the lines around them, cleaned.
    pub excerpts: TextRing<EXCERPT_BYTES>,
}

const ROWS: usize = offset_of!(WatchBlock, rows);

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for WatchBlock {
    const KIND: &'static str = "console_watch";
    const INSTANCE: &'static [&'static str] = &["console"];
    const FIELDS: &'static [Field] = &[
        Field::counter(
            "messages",
            Unit::None,
            ROWS + offset_of!(MessageRow, messages),
            "Messages of the guest's kernel that were seen in its output.",
        )
        .column(MESSAGE_KINDS, size_of::<MessageRow>(), "message"),
        Field::counter(
            "untold",
            Unit::None,
            ROWS + offset_of!(MessageRow, untold),
            "Messages of which no event was made, because there were too many.",
        )
        .column(MESSAGE_KINDS, size_of::<MessageRow>(), "message"),
        Field::gauge(
            "last_at",
            Unit::Ticks,
            ROWS + offset_of!(MessageRow, last_at),
            "When the last such message was seen; 0 if there was none.",
        )
        .column(MESSAGE_KINDS, size_of::<MessageRow>(), "message"),
        Field::text::<OUTPUT_BYTES>(
            "output",
            offset_of!(WatchBlock, output),
            "The guest's console output that was watched; the last 16 KiB are in the black box.",
        ),
        Field::text::<EXCERPT_BYTES>(
            "excerpts",
            offset_of!(WatchBlock, excerpts),
            "Messages and the lines around them; the last 8 KiB are in the black box.",
        ),
    ];
}

impl WatchBlock {
    /// Places the section `console_watch/serial`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox) -> Result<Block<Self>, BlackBoxError> {
        let names = MessageKind::ALL.map(|(_, name)| name.to_owned());
        black_box.section("console_watch/serial", &[("message", &names)])
    }
}
