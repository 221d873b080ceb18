//! What a vsock device counts beside what all devices do.

use std::mem::offset_of;

use observe::{BlackBox, BlackBoxError, Block, Counter, Field, Gauge, Section, Unit};

/// The section `vsock/NAME`. Written by the device's I/O thread alone.
#[derive(Debug, Default)]
#[repr(C)]
pub struct VsockBlock {
    /// Connections that are there, half-open ones too.
    pub connections: Gauge,
    /// Asked for by the guest and granted.
    pub by_guest: Counter,
    /// Asked for by the host and granted.
    pub by_host: Counter,
    /// Asked for by either and not granted.
    pub refused: Counter,
    /// Resets sent to the guest.
    pub resets: Counter,
    /// Times that a connection had to wait for room in the guest.
    pub credit_stalls: Counter,
    /// Guest data that wait for the host's programs.
    pub waiting: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for VsockBlock {
    const KIND: &'static str = "vsock";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("connections", Unit::None, offset_of!(VsockBlock, connections), "Connections that are there, half-open ones too."),
        Field::counter("opened_by_guest", Unit::None, offset_of!(VsockBlock, by_guest), "Connections that the guest asked for and got."),
        Field::counter("opened_by_host", Unit::None, offset_of!(VsockBlock, by_host), "Connections that the host asked for and the guest granted."),
        Field::counter("refused", Unit::None, offset_of!(VsockBlock, refused), "Connections that either side asked for and did not get."),
        Field::counter("resets", Unit::None, offset_of!(VsockBlock, resets), "Resets of connections sent to the guest."),
        Field::counter("credit_stalls", Unit::None, offset_of!(VsockBlock, credit_stalls), "Times that a connection had to wait for room in the guest."),
        Field::gauge("waiting", Unit::Bytes, offset_of!(VsockBlock, waiting), "Data of the guest that wait for the host's programs."),
    ];
}

impl VsockBlock {
    /// Places the section of the device `name`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox, name: &str) -> Result<Block<Self>, BlackBoxError> {
        black_box.section(&format!("{}/{name}", Self::KIND), &[])
    }
}
