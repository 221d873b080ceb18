//! The port devices of an old PC, on their bus, under a guest that reads and writes at will.

use std::sync::{Arc, OnceLock};

use devices::bus::{Bus, BusDevice, BusKind};
use devices::legacy::{
    CMOS_BYTES, CMOS_PORT, Cmos, DEBUG_EXIT_BYTES, DEBUG_EXIT_PORT, DebugExit, I8042, I8042_BYTES,
    I8042_PORT, POST_PORT, POWER_BYTES, POWER_PORT, PVPANIC_PORT, PostCodes, Power, Pvpanic,
    PvpanicBlock, SERIAL_BYTES, SERIAL_PORT, Serial,
};
use observe::{BlackBox, Meta};

use super::input::Input;

/// Where the devices lie, and a little beyond.
const PORTS: [(u16, u64); 7] = [
    (SERIAL_PORT, SERIAL_BYTES),
    (I8042_PORT, I8042_BYTES),
    (CMOS_PORT, CMOS_BYTES),
    (POWER_PORT, POWER_BYTES),
    (DEBUG_EXIT_PORT, DEBUG_EXIT_BYTES),
    (POST_PORT, 1),
    (PVPANIC_PORT, 1),
];
/// Most that the serial port holds for a host that does not look: its ring and its FIFO.
const MOST_OUTPUT: usize = (64 << 10) + 16;

/// Repeated writes of one input: enough for the serial port to say that it is busy, and to lose.
const MOST_REPEATED: usize = 50_000;

/// A time whose every field is odd in one way or another.
fn clock() -> u64 {
    1_709_251_199
}

/// Runs the target: 3 bytes an access, of which one says what, one where, one the value.
pub fn run(bytes: &[u8]) {
    let serial = Arc::new(Serial::new().expect("an eventfd"));
    let i8042 = Arc::new(I8042::new().expect("an eventfd"));
    let bus = bus(&serial, &i8042);
    let mut input = Input(bytes);
    let mut often = MOST_REPEATED;
    while !input.is_empty() {
        let (what, place, value) = (input.u8(), input.u8(), input.u8());
        let (base, bytes) = PORTS[usize::from(place >> 4) % PORTS.len()];
        let address = u64::from(base) + u64::from(place & 15) % (bytes + 1);
        let width = [1, 1, 1, 1, 1, 2, 4, 8][usize::from(what >> 5)];
        let mut data = [value; 8];
        match what & 7 {
            0..=2 => {
                let access = bus.read(address, &mut data[..width]);
                let ones = data[..width].iter().all(|byte| *byte == 0xFF);
                assert!(access.misuse.is_none() || ones, "refused, and yet answered");
            }
            3..=5 => {
                bus.write(address, &data[..width]);
            }
            // Rare, for it takes long.
            6 if what == 6 => {
                let count = often.min(usize::from(value) * 64);
                often -= count;
                write_often(&bus, u64::from(base), value, count);
            }
            _ => outside(&serial, &i8042, place, value),
        }
    }
    assert!(drain(&serial) <= MOST_OUTPUT, "output grows");
}

fn bus(serial: &Arc<Serial>, i8042: &Arc<I8042>) -> Bus {
    let devices: [Arc<dyn BusDevice>; 7] = [
        Arc::clone(serial) as Arc<dyn BusDevice>,
        Arc::clone(i8042) as Arc<dyn BusDevice>,
        Arc::new(Cmos::with_clock(clock)),
        Arc::new(Power),
        Arc::new(DebugExit::default()),
        Arc::new(PostCodes::default()),
        pvpanic(),
    ];
    let mut bus = Bus::new(BusKind::Pio);
    for ((base, bytes), device) in PORTS.into_iter().zip(devices) {
        let name = format!("{base:x}");
        let placed = bus.insert(u64::from(base), bytes, &name, device);
        placed.expect("room on the bus");
    }
    bus
}

/// One for all runs: what it counts needs a black box, which stays until the end.
fn pvpanic() -> Arc<Pvpanic> {
    static DEVICE: OnceLock<(Arc<Pvpanic>, BlackBox)> = OnceLock::new();
    let (device, _) = DEVICE.get_or_init(|| {
        let meta = Meta {
            vm_id: "fuzz".to_owned(),
            version: "0".to_owned(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).expect("a black box");
        let block = PvpanicBlock::place(&mut black_box).expect("room in the black box");
        let device = Pvpanic::new(block, Box::new(|kind| assert!(!kind.name().is_empty())));
        (Arc::new(device), black_box)
    });
    Arc::clone(device)
}

/// What fills the serial port's ring after a few of these.
fn write_often(bus: &Bus, address: u64, value: u8, count: usize) {
    for _ in 0..count {
        bus.write(address, &[value]);
    }
}

/// What comes from the host.
fn outside(serial: &Serial, i8042: &I8042, place: u8, value: u8) {
    match place & 7 {
        0..=2 => {
            let input = vec![value; usize::from(place)];
            assert!(serial.fuzz_input(&input) <= input.len());
        }
        3 | 4 => {
            let mut chunk = vec![0; usize::from(value) * 256];
            assert!(serial.fuzz_output(&mut chunk) <= chunk.len());
        }
        5 if value == 0xFF => {
            serial.fuzz_abandon();
        }
        // The guest may have switched the keyboard off or not read it.
        _ => drop(i8042.ctrl_alt_del()),
    }
}

fn drain(serial: &Serial) -> usize {
    let (mut all, mut chunk) = (0, [0; 4096]);
    loop {
        match serial.fuzz_output(&mut chunk) {
            0 => return all,
            taken => all += taken,
        }
    }
}
