//! pvpanic: one port by which a guest's kernel says that it has given up (QEMU,
//! docs/specs/pvpanic.rst). Stock Linux finds it in ACPI as `QEMU0001`, and its driver writes the
//! port from the kernel's panic notifiers, whatever the console shows.
//!
//! Any vCPU may write it, so what it counts is behind a lock. The owner is told of each kind once:
//! a guest that writes without end costs itself exits and nobody else memory.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};

use observe::{BlackBox, BlackBoxError, Block, Clock, Counter, Field, Gauge, Section, Unit};

use crate::bus::{BusDevice, Effect, Misuse};

/// The port, as QEMU has it.
pub const PVPANIC_PORT: u16 = 0x505;
/// Its ACPI name.
pub const PVPANIC_HID: &str = "QEMU0001";

/// What a guest can tell, a bit each: `PVPANIC_PANICKED` and `PVPANIC_CRASH_LOADED`.
const SUPPORTED: u8 = 0b11;

/// What a guest told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicKind {
    /// Its kernel gave up.
    Panicked,
    /// Its kernel gave up, and a crash kernel in the guest takes over.
    CrashLoaded,
}

impl PanicKind {
    /// All of them; the place is the bit.
    const ALL: [PanicKind; 2] = [PanicKind::Panicked, PanicKind::CrashLoaded];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PanicKind::Panicked => "panicked",
            PanicKind::CrashLoaded => "crash_loaded",
        }
    }
}

/// Is told of the first panic of each kind, on the vCPU's thread: it must not wait.
pub type OnPanic = Box<dyn Fn(PanicKind) + Send + Sync>;

/// What of one kind was told.
#[derive(Debug, Default)]
#[repr(C)]
struct Told {
    count: Counter,
    first_at: Gauge,
}

/// The section `pvpanic`. Written by vCPU threads under the device's lock.
#[derive(Debug, Default)]
#[repr(C)]
pub struct PvpanicBlock {
    told: [Told; PanicKind::ALL.len()],
}

const COUNT: usize = offset_of!(PvpanicBlock, told) + offset_of!(Told, count);
const FIRST: usize = offset_of!(PvpanicBlock, told) + offset_of!(Told, first_at);

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for PvpanicBlock {
    const KIND: &'static str = "pvpanic";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("told", Unit::None, COUNT, "Times that the guest's kernel told the pvpanic device of its end.").column(2, size_of::<Told>(), "panic"),
        Field::gauge("first_at", Unit::Ticks, FIRST, "When it told so first; 0 if it never did.").column(2, size_of::<Told>(), "panic"),
    ];
}

impl PvpanicBlock {
    /// Places the section `pvpanic`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(black_box: &mut BlackBox) -> Result<Block<Self>, BlackBoxError> {
        let names = PanicKind::ALL.map(|kind| kind.name().to_owned());
        black_box.section(Self::KIND, &[("panic", &names)])
    }
}

/// The device at [`PVPANIC_PORT`].
pub struct Pvpanic {
    block: Mutex<Block<PvpanicBlock>>,
    clock: Clock,
    on_panic: OnPanic,
}

impl Pvpanic {
    /// A device that counts in `block` and tells `on_panic`.
    pub fn new(block: Block<PvpanicBlock>, on_panic: OnPanic) -> Self {
        Pvpanic {
            block: Mutex::new(block),
            clock: Clock::process(),
            on_panic,
        }
    }

    /// Counts it; true if it is the first of its kind.
    fn count(&self, kind: PanicKind) -> bool {
        let block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = block.told.get(kind as usize) else {
            return false;
        };
        let is_first = told.count.value() == 0;
        if is_first {
            told.first_at.set(self.clock.ticks());
        }
        told.count.inc();
        is_first
    }
}

impl BusDevice for Pvpanic {
    /// What the guest may tell.
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), Misuse> {
        let [byte] = data else {
            return Err(Misuse::Width);
        };
        *byte = SUPPORTED;
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<Effect, Misuse> {
        let &[value] = data else {
            return Err(Misuse::Width);
        };
        if value & SUPPORTED == 0 {
            return Err(Misuse::State);
        }
        for kind in PanicKind::ALL {
            if value & (1 << kind as u8) != 0 && self.count(kind) {
                (self.on_panic)(kind);
            }
        }
        Ok(Effect::None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    use observe::Meta;
    use observe::reader::{Reader, Snapshot};

    use super::*;

    fn device() -> (Arc<Pvpanic>, BlackBox, Receiver<PanicKind>) {
        let meta = Meta {
            vm_id: "test".into(),
            version: "0".into(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let block = PvpanicBlock::place(&mut black_box).unwrap();
        let (send, told) = channel();
        let device = Pvpanic::new(block, Box::new(move |kind| send.send(kind).unwrap()));
        (Arc::new(device), black_box, told)
    }

    fn snapshot(black_box: &BlackBox) -> Snapshot {
        let file = black_box.file().unwrap();
        let reader = Reader::from_file(file, "anonymous".into()).unwrap();
        reader.snapshot().unwrap()
    }

    fn counted(black_box: &BlackBox, row: &str) -> (u64, bool) {
        let seen = snapshot(black_box);
        let section = seen.section("pvpanic").unwrap();
        let number = |field| section.table(field, row).unwrap().as_u64().unwrap();
        (number("told"), number("first_at") > 0)
    }

    #[test]
    fn a_driver_reads_what_it_may_tell() {
        let (device, ..) = device();
        let mut data = [0xFF];
        assert_eq!(device.read(0, &mut data), Ok(()));
        assert_eq!(data, [3]);
        assert_eq!(device.read(0, &mut [0; 2]), Err(Misuse::Width));
    }

    #[test]
    fn each_write_is_counted_and_each_kind_is_told_once() {
        let (device, black_box, told) = device();
        for value in [1, 1, 0xFF, 2] {
            assert_eq!(device.write(0, &[value]), Ok(Effect::None));
        }
        let told: Vec<PanicKind> = told.try_iter().collect();
        assert_eq!(told, PanicKind::ALL);
        assert_eq!(counted(&black_box, "panicked"), (3, true));
        assert_eq!(counted(&black_box, "crash_loaded"), (2, true));
    }

    #[test]
    fn what_says_nothing_is_misuse() {
        let (device, black_box, told) = device();
        assert_eq!(device.write(0, &[0]), Err(Misuse::State));
        assert_eq!(device.write(0, &[4]), Err(Misuse::State));
        assert_eq!(device.write(0, &[1, 0]), Err(Misuse::Width));
        assert_eq!(told.try_iter().count(), 0);
        assert_eq!(counted(&black_box, "panicked"), (0, false));
    }

    #[test]
    fn no_write_of_several_vcpus_is_lost() {
        let (device, black_box, told) = device();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let device = Arc::clone(&device);
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        device.write(0, &[1]).unwrap();
                    }
                });
            }
        });
        assert_eq!(told.try_iter().count(), 1);
        assert_eq!(counted(&black_box, "panicked"), (40_000, true));
    }
}
