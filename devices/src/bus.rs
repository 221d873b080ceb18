//! The port and memory-mapped I/O buses: which device answers at which address.
//!
//! A bus is filled while the machine is built and never changes after, so vCPU threads read it
//! without a lock. It counts and logs misuse itself: an access that no device claims, that crosses
//! a device's end, or that the device refuses. Reads that nobody answers give all ones.
//! The counters belong to the vCPU thread that makes the access.

use std::sync::Arc;

use observe::Counter;

/// Rows of the table in which a vCPU counts its accesses to devices: those of ports first, then
/// those of MMIO.
pub const DEVICE_ROWS: usize = 64;
/// Rows of port devices; the rest is for MMIO devices.
const PIO_ROWS: usize = 16;

/// A device's row in the counters. The first row of each bus counts accesses that no device claims.
pub type DeviceRow = u16;

/// What an access asks of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest reset the machine (i8042 command FEh, ACPI reset register).
    Reset,
    /// The guest powered the machine off (ACPI S5).
    PowerOff,
}

/// Why a device refuses an access. It is counted and logged by the bus, never fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The access has a width that the register does not take.
    #[error("width not supported")]
    Width,
    /// There is no such register.
    #[error("no such register")]
    Register,
    /// The register cannot be written (or read) at all, or not in this state.
    #[error("access not allowed in this state")]
    State,
}

/// A device on a bus. Called by vCPU threads, possibly several at once: a device whose registers
/// change keeps them in atomics or behind a lock that is never held across a system call.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` (1, 2, 4 or 8) bytes at `offset` from the device's base.
    ///
    /// # Errors
    /// [`Misuse`]; the bus then gives the guest all ones.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse>;

    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the device's base.
    ///
    /// # Errors
    /// [`Misuse`]; the write has then had no effect.
    fn write(&self, offset: u64, data: &[u8]) -> Result<Effect, Misuse>;
}

/// What one vCPU counts of one bus device.
#[derive(Debug, Default)]
#[repr(C)]
pub struct AccessCounters {
    /// Reads.
    pub reads: Counter,
    /// Writes.
    pub writes: Counter,
    /// Reads and writes that the bus or the device refused.
    pub misuse: Counter,
    /// Time in the device, in nanoseconds.
    pub handler_ns: Counter,
}

/// Which bus; decides the words of a log line and the address width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// Port I/O: 16-bit addresses.
    Pio,
    /// Memory-mapped I/O: guest physical addresses.
    Mmio,
}

impl BusKind {
    /// The rows of this bus: the first is for unclaimed addresses.
    fn rows(self) -> std::ops::Range<usize> {
        match self {
            BusKind::Pio => 0..PIO_ROWS,
            BusKind::Mmio => PIO_ROWS..DEVICE_ROWS,
        }
    }
}

/// Why a device cannot be put on a bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Two devices want the same addresses.
    #[error("{name} at {base:#x}..{end:#x} overlaps {other}")]
    Overlap {
        /// The device that came second.
        name: String,
        /// Its first address.
        base: u64,
        /// Its end, exclusive.
        end: u64,
        /// The device that is there.
        other: String,
    },
    /// No row is left.
    #[error("{name} does not fit: the bus takes {most} devices")]
    Full {
        /// The device.
        name: String,
        /// How many fit.
        most: usize,
    },
}

struct Range {
    base: u64,
    end: u64,
    row: DeviceRow,
    name: String,
    device: Arc<dyn BusDevice>,
}

/// A device table, filled at build time and read-only after.
pub struct Bus {
    kind: BusKind,
    ranges: Vec<Range>,
}

/// What an access came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The row of the device that was addressed, or of unclaimed addresses.
    pub row: DeviceRow,
    /// What it asks of the machine.
    pub effect: Effect,
    /// Why it was refused, if it was.
    pub misuse: Option<Misuse>,
}

impl Bus {
    /// An empty bus.
    pub fn new(kind: BusKind) -> Self {
        Bus {
            kind,
            ranges: Vec::new(),
        }
    }

    /// Puts `device` at `base..base + bytes` and gives its counter row.
    ///
    /// # Errors
    /// [`BusError`] when the addresses are taken or no row is left.
    pub fn insert(
        &mut self,
        base: u64,
        bytes: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<DeviceRow, BusError> {
        let end = base.saturating_add(bytes);
        if let Some(there) = self.ranges.iter().find(|r| base < r.end && r.base < end) {
            let (name, other) = (name.to_owned(), there.name.clone());
            return Err(BusError::Overlap {
                name,
                base,
                end,
                other,
            });
        }
        let rows = self.kind.rows();
        let row = rows.start + self.ranges.len() + 1;
        if row >= rows.end {
            let (name, most) = (name.to_owned(), rows.len() - 1);
            return Err(BusError::Full { name, most });
        }
        let at = self.ranges.partition_point(|r| r.base < base);
        let row = row as DeviceRow;
        self.ranges.insert(
            at,
            Range {
                base,
                end,
                row,
                name: name.to_owned(),
                device,
            },
        );
        Ok(row)
    }

    /// Writes the names of this bus's rows into `names`, which has [`DEVICE_ROWS`] places.
    pub fn name_rows(&self, names: &mut [String]) {
        let unclaimed = match self.kind {
            BusKind::Pio => "unclaimed-port",
            BusKind::Mmio => "unclaimed-mmio",
        };
        let named = self
            .ranges
            .iter()
            .map(|r| (usize::from(r.row), r.name.as_str()));
        for (row, name) in named.chain([(self.kind.rows().start, unclaimed)]) {
            if let Some(place) = names.get_mut(row) {
                name.clone_into(place);
            }
        }
    }

    /// What lies at `address`: looked up once for an access and for the row that counts it.
    #[inline]
    pub fn at(&self, address: u64) -> Target<'_> {
        let after = self.ranges.partition_point(|r| r.base <= address);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        Target {
            bus: self,
            range: range.filter(|range| address < range.end),
            address,
        }
    }

    /// A guest read: fills `data`, with all ones where nobody answers.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Access {
        self.at(address).read(data)
    }

    /// A guest write.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Access {
        self.at(address).write(data)
    }

    #[cold]
    fn refuse(&self, row: DeviceRow, at: u64, width: usize, what: &str, why: Misuse) -> Access {
        let kind = match self.kind {
            BusKind::Pio => "port",
            BusKind::Mmio => "MMIO",
        };
        tracing::debug!("guest {kind} {what} of {width} bytes at {at:#x} refused: {why}");
        Access {
            row,
            effect: Effect::None,
            misuse: Some(why),
        }
    }
}

/// An address of a bus, and the device that it belongs to.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    bus: &'a Bus,
    range: Option<&'a Range>,
    address: u64,
}

impl Target<'_> {
    /// The row of the device, or that of unclaimed addresses.
    #[inline]
    pub fn row(self) -> DeviceRow {
        let unclaimed = self.bus.kind.rows().start as DeviceRow;
        self.range.map_or(unclaimed, |range| range.row)
    }

    /// As [`Bus::read`].
    #[inline]
    pub fn read(self, data: &mut [u8]) -> Access {
        let answer = match self.range {
            Some(range) if data.len() as u64 <= range.end - self.address => {
                range.device.read(self.address - range.base, data)
            }
            Some(_) => Err(Misuse::Width),
            None => Err(Misuse::Register),
        };
        match answer {
            Ok(()) => self.done(Effect::None),
            Err(misuse) => {
                data.fill(0xFF);
                self.refuse(data.len(), "read", misuse)
            }
        }
    }

    /// As [`Bus::write`].
    #[inline]
    pub fn write(self, data: &[u8]) -> Access {
        let answer = match self.range {
            Some(range) if data.len() as u64 <= range.end - self.address => {
                range.device.write(self.address - range.base, data)
            }
            Some(_) => Err(Misuse::Width),
            None => Err(Misuse::Register),
        };
        match answer {
            Ok(effect) => self.done(effect),
            Err(misuse) => self.refuse(data.len(), "write", misuse),
        }
    }

    #[inline]
    fn done(self, effect: Effect) -> Access {
        Access {
            row: self.row(),
            effect,
            misuse: None,
        }
    }

    fn refuse(self, width: usize, what: &str, why: Misuse) -> Access {
        self.bus.refuse(self.row(), self.address, width, what, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers reads with its offset and refuses writes of other than one byte.
    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Misuse> {
            data.fill(offset as u8);
            Ok(())
        }

        fn write(&self, _: u64, data: &[u8]) -> Result<Effect, Misuse> {
            if data.len() == 1 {
                Ok(Effect::Reset)
            } else {
                Err(Misuse::Width)
            }
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new(BusKind::Pio);
        bus.insert(0x60, 5, "late", Arc::new(Echo)).unwrap();
        bus.insert(0x10, 4, "early", Arc::new(Echo)).unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_its_device_at_its_offset() {
        let mut data = [0];
        let access = bus().read(0x62, &mut data);
        assert_eq!((access.row, access.misuse, data), (1, None, [2]));
        let access = bus().write(0x13, &[1]);
        assert_eq!((access.row, access.effect), (2, Effect::Reset));
    }

    #[test]
    fn misuse_reads_all_ones_and_says_why() {
        let mut data = [0, 0];
        assert_eq!(bus().read(0x14, &mut data).misuse, Some(Misuse::Register));
        assert_eq!(data, [0xFF, 0xFF]);
        data = [0, 0];
        assert_eq!(bus().read(0x13, &mut data).misuse, Some(Misuse::Width));
        assert_eq!(data, [0xFF, 0xFF]);
        assert_eq!(bus().write(0x10, &[1, 2]).misuse, Some(Misuse::Width));
        assert_eq!(bus().at(0x65).row(), 0);
    }

    #[test]
    fn devices_cannot_overlap() {
        let error = bus().insert(0x12, 1, "thief", Arc::new(Echo)).unwrap_err();
        assert_eq!(error.to_string(), "thief at 0x12..0x13 overlaps early");
    }

    #[test]
    fn rows_are_named_in_the_order_of_insertion_and_the_buses_share_none() {
        let mut names = vec![String::new(); DEVICE_ROWS];
        bus().name_rows(&mut names);
        assert_eq!(&names[..4], ["unclaimed-port", "late", "early", ""]);
        let mut mmio = Bus::new(BusKind::Mmio);
        let row = mmio.insert(0, 1, "window", Arc::new(Echo)).unwrap();
        mmio.name_rows(&mut names);
        assert_eq!(names[usize::from(row)], "window");
        assert_eq!(names[usize::from(row) - 1], "unclaimed-mmio");
        assert_eq!(names[0], "unclaimed-port");
    }

    #[test]
    fn a_full_bus_says_how_many_fit() {
        let mut bus = Bus::new(BusKind::Pio);
        let error = (0..100)
            .find_map(|port| bus.insert(port, 1, "one", Arc::new(Echo)).err())
            .expect("a bus is finite");
        assert_eq!(
            error.to_string(),
            "one does not fit: the bus takes 15 devices"
        );
    }
}
