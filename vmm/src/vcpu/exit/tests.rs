use std::sync::Arc;

use devices::bus::{BusDevice, BusKind, Misuse};
use observe::{BlackBox, Block, Meta};

use super::*;

/// Reads give 5Ah; a write of 6 powers off, of 7 resets.
struct Toy;

impl BusDevice for Toy {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), Misuse> {
        data.fill(0x5A);
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<Effect, Misuse> {
        match data[0] {
            6 => Ok(Effect::PowerOff),
            7 => Ok(Effect::Reset),
            8 => Err(Misuse::State),
            _ => Ok(Effect::None),
        }
    }
}

fn setup() -> (Buses, Block<VcpuBlock>) {
    let mut buses = Buses {
        pio: Bus::new(BusKind::Pio),
        mmio: Bus::new(BusKind::Mmio),
    };
    buses.pio.insert(0x80, 4, "toy", Arc::new(Toy)).unwrap();
    buses
        .mmio
        .insert(0xD000_0000, 0x1000, "toy", Arc::new(Toy))
        .unwrap();
    let meta = Meta {
        vm_id: "t".into(),
        version: "0".into(),
    };
    let block = BlackBox::anonymous(1 << 20, &meta)
        .unwrap()
        .section("vcpu/0", &[])
        .unwrap();
    (buses, block)
}

fn run(exit: Exit<'_>, buses: &Buses, block: &VcpuBlock) -> Next {
    let clock = Clock::process();
    let now = clock.ticks();
    dispatch(exit, buses, block, clock, Stay { from: now, to: now }).0
}

#[test]
fn each_exit_is_counted_once_by_reason_and_by_device() {
    let (buses, block) = setup();
    let mut data = [0; 4];
    for _ in 0..7 {
        run(
            Exit::IoIn {
                port: 0x81,
                width: 1,
                data: &mut data[..1],
            },
            &buses,
            &block,
        );
    }
    run(
        Exit::MmioRead {
            address: 0xD000_0004,
            data: &mut data,
        },
        &buses,
        &block,
    );
    run(
        Exit::MmioWrite {
            address: 0xD000_0004,
            data: &[1],
        },
        &buses,
        &block,
    );
    assert_eq!(data, [0x5A; 4]);
    assert_eq!(block.exits[ExitKind::IoIn as usize].count.value(), 7);
    assert_eq!(block.exits[ExitKind::IoIn as usize].handler.count(), 7);
    assert_eq!(
        (
            block.devices[1].reads.value(),
            block.devices[1].writes.value()
        ),
        (7, 0)
    );
    assert_eq!(
        (
            block.devices[17].reads.value(),
            block.devices[17].writes.value()
        ),
        (1, 1)
    );
    assert_eq!(block.flight.written(), 9);
}

#[test]
fn a_string_access_is_one_exit_and_many_accesses() {
    let (buses, block) = setup();
    run(
        Exit::IoOut {
            port: 0x80,
            width: 2,
            data: &[0; 20],
        },
        &buses,
        &block,
    );
    assert_eq!(block.exits[ExitKind::IoOut as usize].count.value(), 1);
    assert_eq!(block.devices[1].writes.value(), 10);
}

#[test]
fn unclaimed_and_refused_accesses_are_misuse_and_the_guest_goes_on() {
    let (buses, block) = setup();
    let mut data = [0; 2];
    let next = run(
        Exit::IoIn {
            port: 0x99,
            width: 2,
            data: &mut data,
        },
        &buses,
        &block,
    );
    assert_eq!((next, data), (Next::Resume, [0xFF; 2]));
    assert_eq!(
        run(
            Exit::IoOut {
                port: 0x80,
                width: 1,
                data: &[8]
            },
            &buses,
            &block
        ),
        Next::Resume
    );
    assert_eq!(
        (
            block.devices[0].misuse.value(),
            block.devices[1].misuse.value()
        ),
        (1, 1)
    );
}

#[test]
fn what_ends_the_guest_is_told() {
    let (buses, block) = setup();
    let write = |byte| Exit::IoOut {
        port: 0x80,
        width: 1,
        data: byte,
    };
    assert_eq!(run(write(&[6]), &buses, &block), Next::PowerOff);
    assert_eq!(
        run(write(&[7]), &buses, &block),
        Next::Reset(ResetCause::Device)
    );
    assert_eq!(
        run(Exit::Shutdown, &buses, &block),
        Next::Reset(ResetCause::TripleFault)
    );
    assert_eq!(run(Exit::Interrupted, &buses, &block), Next::CheckCommands);
    let fatal = Exit::Fatal {
        kind: ExitKind::InternalError,
        words: [1, 0, 0, 0],
    };
    assert!(matches!(
        run(fatal, &buses, &block),
        Next::Fail(failure) if failure.kind == ExitKind::InternalError
    ));
}
