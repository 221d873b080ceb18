use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::bus::{BusDevice, Misuse};
use crate::pci::PciFunction;
use crate::virtio::blk::{BlockDevice, BlockSpec, IoEngine};
use crate::virtio::device::VirtioDevice;
use crate::virtio::limiter::LimiterSpec;
use crate::virtio::link::Interrupt;
use crate::virtio::mock_driver::Machine;
use crate::virtio::{DeviceCounters, TransportKind};

/// Refuses routes while told to.
#[derive(Clone, Default)]
struct Router(Arc<AtomicBool>);

impl MessageRouter for Router {
    fn route(&self, _: u16, _: u64, _: u32) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            false => Ok(()),
        }
    }
}

const ADDRESS: u64 = 0xE800_8000;

/// A disk as a function; its machine is kept alive by the caller.
fn function(machine: &mut Machine, router: Router) -> (PciTransport, DeviceCounters) {
    let device = BlockDevice::open(BlockSpec {
        id: "disk".into(),
        path: std::env::current_exe().unwrap(),
        read_only: true,
        flush: false,
        queues: 1,
        limiter: LimiterSpec::default(),
        engine: IoEngine::Sync,
    });
    let device = Box::new(device.unwrap());
    let profile = device.profile();
    let counters = DeviceCounters::place(&mut machine.black_box, &profile).unwrap();
    let seen = counters.clone();
    let front = machine.thread.attach(device, counters, &machine.ram);
    let transport = PciTransport::new(front.unwrap(), 2, ADDRESS, Box::new(router)).unwrap();
    (transport, seen)
}

fn config(function: &PciTransport, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.read_config(offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

fn bar<const N: usize>(function: &PciTransport, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    function.read(offset, &mut data).unwrap();
    data
}

fn write(function: &PciTransport, offset: u64, value: u32) {
    function.write(offset, &value.to_le_bytes()).unwrap();
}

/// Offsets of all capabilities, with their ids.
fn capabilities(function: &PciTransport) -> Vec<(u16, u8)> {
    let mut all = Vec::new();
    let mut at = config(function, 0x34) as u16;
    while at != 0 {
        let word = config(function, at);
        all.push((at, word as u8));
        at = (word >> 8 & 0xFF) as u16;
    }
    all
}

/// Turns MSI-X on and has vector 1 serve queue 0.
fn open(function: &PciTransport) -> u16 {
    for (offset, value) in [(0, 0xFEE0_0000), (4, 0), (8, 0x41), (12, 0)] {
        write(function, TABLE + 16 + offset, value);
    }
    function.write(0x1A, &1u16.to_le_bytes()).unwrap();
    let capabilities = capabilities(function);
    let control = capabilities.iter().find(|(_, id)| *id == 0x11).unwrap().0 + 2;
    function.write_config(control, &[0, 0x80]).unwrap();
    control
}

fn sent(function: &PciTransport) -> Vec<u64> {
    let events = function.message_events();
    events.map(|(_, event)| event.read().unwrap_or(0)).collect()
}

#[test]
fn a_driver_finds_every_structure_and_the_messages() {
    let mut machine = Machine::new();
    let (function, seen) = function(&mut machine, Router::default());
    assert_eq!(config(&function, 0), 0x1042_1AF4);
    assert_eq!(config(&function, 8), 0x0180_0001);
    assert_eq!(config(&function, 0x2C), 0x0002_1AF4);
    // No pin: INTx is not offered.
    assert_eq!(config(&function, 0x3C), 0);
    let found: Vec<_> = capabilities(&function)
        .into_iter()
        .map(|(at, id)| match id {
            9 => (
                config(&function, at) >> 24,
                config(&function, at + 8),
                config(&function, at + 12),
            ),
            _ => (0x11, config(&function, at) >> 16, config(&function, at + 4)),
        })
        .collect();
    let expected = [
        (1, 0, 0x38),
        (3, 0x1000, 1),
        (4, 0x2000, 0x1000),
        (2, 0x3000, 4),
        (5, 0, 0),
        (0x11, 1, 0x4000),
    ];
    assert_eq!(found, expected);
    assert_eq!(seen.transport.kind.value(), TransportKind::Pci as u64);
}

#[test]
fn a_masked_vector_shows_its_pending_bit_and_sends_when_it_opens() {
    let mut machine = Machine::new();
    let (function, _) = function(&mut machine, Router::default());
    let control = open(&function);
    let interrupt = &function.link().interrupt;
    interrupt.trigger(Interrupt::Queue(0));
    assert_eq!(sent(&function), [0, 1]);
    write(&function, TABLE + 16 + 12, 1);
    interrupt.trigger(Interrupt::Queue(0));
    assert_eq!(bar::<8>(&function, PENDING), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sent(&function), [0, 0]);
    // The function's mask keeps it, too.
    function.write_config(control, &[0, 0xC0]).unwrap();
    write(&function, TABLE + 16 + 12, 0);
    assert_eq!(sent(&function), [0, 0]);
    function.write_config(control, &[0, 0x80]).unwrap();
    assert_eq!(sent(&function), [0, 1]);
    assert_eq!(bar::<4>(&function, PENDING), [0; 4]);
    // Reading the ISR status clears it.
    assert_eq!(
        (bar::<1>(&function, ISR), bar::<1>(&function, ISR)),
        ([1], [0])
    );
}

#[test]
fn a_vector_without_a_route_keeps_its_interrupt_until_it_has_one() {
    let mut machine = Machine::new();
    let router = Router::default();
    let (function, _) = function(&mut machine, router.clone());
    router.0.store(true, Ordering::SeqCst);
    open(&function);
    function.link().interrupt.trigger(Interrupt::Queue(0));
    assert_eq!(sent(&function), [0, 0]);
    router.0.store(false, Ordering::SeqCst);
    write(&function, TABLE + 16 + 8, 0x42);
    assert_eq!(sent(&function), [0, 1]);
}

#[test]
fn the_bar_can_be_reached_through_the_configuration_space() {
    let mut machine = Machine::new();
    let (function, seen) = function(&mut machine, Router::default());
    let all = capabilities(&function);
    let window = all[4].0;
    let lead = |offset: u32, width: u32| {
        let word = |at, value: u32| function.write_config(at, &value.to_le_bytes());
        word(window + 8, offset).unwrap();
        word(window + 12, width).unwrap();
    };
    lead(0x12, 2);
    assert_eq!(config(&function, window + 16), 1, "num_queues");
    lead(0x14, 1);
    function.write_config(window + 16, &[1, 0, 0, 0]).unwrap();
    assert_eq!(bar::<1>(&function, 0x14), [1]);
    lead(0x3000, 2);
    function.write_config(window + 16, &[0; 4]).unwrap();
    assert_eq!(seen.transport.trapped_kicks.value(), 1);
    for (offset, width) in [(0, 3), (1, 2), (0x8000, 4), (u32::MAX, 1), (0, 0)] {
        lead(offset, width);
        let read = function.read_config(window + 16, &mut [0; 4]);
        assert_eq!(read, Err(Misuse::State), "{offset:#x} {width}");
        assert!(function.write_config(window + 16, &[0; 4]).is_err());
    }
}

#[test]
fn a_function_whose_memory_is_off_does_not_answer() {
    let mut machine = Machine::new();
    let (function, _) = function(&mut machine, Router::default());
    function.write_config(4, &[0, 0]).unwrap();
    assert_eq!(function.read(0x12, &mut [0; 2]), Err(Misuse::State));
    assert_eq!(function.write(0x14, &[1]), Err(Misuse::State));
    function.write_config(4, &[6, 0]).unwrap();
    assert_eq!(bar::<2>(&function, 0x12), [1, 0]);
}

#[test]
fn what_does_not_exist_has_no_vector_and_no_size() {
    let mut machine = Machine::new();
    let (function, _) = function(&mut machine, Router::default());
    function.write(0x10, &7u16.to_le_bytes()).unwrap();
    assert_eq!(bar::<2>(&function, 0x10), [0xFF; 2]);
    assert_eq!(bar::<2>(&function, 0x18), 256u16.to_le_bytes());
    function.write(0x16, &1u16.to_le_bytes()).unwrap();
    assert_eq!(bar::<4>(&function, 0x18), [0, 0, 0xFF, 0xFF]);
    let refused = function.write(0x1A, &0u16.to_le_bytes());
    assert_eq!(refused, Err(Misuse::State));
    // queue_notify_data and queue_reset are not offered.
    assert_eq!(bar::<4>(&function, 0x38), [0; 4]);
    assert_eq!(function.write(0x3A, &[1, 0]), Err(Misuse::Register));
}

#[test]
fn no_access_brings_a_function_down_or_moves_it() {
    let mut machine = Machine::new();
    let (function, _) = function(&mut machine, Router::default());
    let place = prop_oneof![
        0..0x40u64,
        0x3000..0x3010u64,
        0x4000..0x4030u64,
        0..BAR_BYTES
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let access = (any::<bool>(), place, width, any::<u64>());
    let accesses = prop::collection::vec(access, 1..60);
    proptest!(|(accesses in accesses)| {
        for (in_config, place, width, value) in accesses {
            let (data, mut back) = (&value.to_le_bytes()[..width], vec![0; width]);
            if in_config {
                let offset = (place % 0x100) as u16;
                let _ = function.write_config(offset, data);
                let _ = function.read_config(offset, &mut back);
            } else if place != 0x14 || value & 0xFF != 0 {
                // A device that resets is slow; the conformance suite has that.
                let _ = function.write(place, data);
                let _ = function.read(place, &mut back);
            }
            function.link().interrupt.trigger(Interrupt::Queue(0));
        }
        let shown = config(&function, 0x10);
        prop_assert!(shown == ADDRESS as u32 | 4 || shown == 0xFFFF_8004);
    });
}
