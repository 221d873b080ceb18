//! What the console counts.

use std::mem::offset_of;

use observe::{
    BlackBox, BlackBoxError, Block, Counter, Field, FieldKind, Heartbeat, Section, Unit,
};

/// The operation number of [`observe::Activity::Blocked`]: the output takes nothing.
pub const BLOCKED_ON_OUTPUT: u8 = 1;

/// What the console counts. Written by the thread `console` alone.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ConsoleBlock {
    /// What the thread does.
    pub heartbeat: Heartbeat,
    /// Bytes written to the host.
    pub output: Counter,
    /// Bytes given to the guest.
    pub input: Counter,
    /// Writes to the host.
    pub writes: Counter,
    /// Writes that failed.
    pub write_errors: Counter,
    /// Times that the host's side took nothing and the output had to wait.
    pub stalls: Counter,
    /// Bytes of output that went nowhere.
    pub discarded: Counter,
    /// Bytes of input that the guest did not take.
    pub input_dropped: Counter,
    /// Bytes that the guest wrote to a busy transmitter; a copy of [`crate::legacy::Serial::overruns`].
    pub overrun: Counter,
    /// Bytes of output that were beyond the operator's limit.
    pub limit_dropped: Counter,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for ConsoleBlock {
    const KIND: &'static str = "console";
    const INSTANCE: &'static [&'static str] = &["console"];
    const FIELDS: &'static [Field] = &[
        Field::lone(
            "heartbeat",
            FieldKind::Heartbeat,
            Unit::None,
            offset_of!(ConsoleBlock, heartbeat),
            "What the console thread does.",
        ),
        Field::counter(
            "output",
            Unit::Bytes,
            offset_of!(ConsoleBlock, output),
            "Serial output written to the host.",
        ),
        Field::counter(
            "input",
            Unit::Bytes,
            offset_of!(ConsoleBlock, input),
            "Serial input given to the guest.",
        ),
        Field::counter(
            "writes",
            Unit::None,
            offset_of!(ConsoleBlock, writes),
            "Writes of serial output to the host.",
        ),
        Field::counter(
            "write_errors",
            Unit::None,
            offset_of!(ConsoleBlock, write_errors),
            "Writes of serial output that the host refused.",
        ),
        Field::counter(
            "stalls",
            Unit::None,
            offset_of!(ConsoleBlock, stalls),
            "Times that serial output waited for a slow reader.",
        ),
        Field::counter(
            "discarded",
            Unit::Bytes,
            offset_of!(ConsoleBlock, discarded),
            "Serial output that went nowhere: no output was asked for, or it failed.",
        ),
        Field::counter(
            "input_dropped",
            Unit::Bytes,
            offset_of!(ConsoleBlock, input_dropped),
            "Serial input that the guest did not take.",
        ),
        Field::counter(
            "overrun",
            Unit::Bytes,
            offset_of!(ConsoleBlock, overrun),
            "Serial output lost because the guest ignored a busy transmitter.",
        ),
        Field::counter(
            "limit_dropped",
            Unit::Bytes,
            offset_of!(ConsoleBlock, limit_dropped),
            "Serial output dropped because the operator limits its rate.",
        ),
    ];
}

impl ConsoleBlock {
    /// Places the section `console/serial`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox) -> Result<Block<Self>, BlackBoxError> {
        let mut reasons = vec![String::new(); usize::from(BLOCKED_ON_OUTPUT) + 1];
        if let Some(name) = reasons.last_mut() {
            "output".clone_into(name);
        }
        black_box.section("console/serial", &[("reason", &reasons)])
    }
}
