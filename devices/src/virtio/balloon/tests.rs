use memory::{Backing, Bytes, GuestAddress};

use super::*;
use crate::bus::Misuse;
use crate::virtio::mock_driver::{DATA, Driver, Machine, RAM_BYTES, wait_for};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const HINT: usize = 3;
const REPORT: usize = 4;
/// The balloon's pages lie here, beyond the rings and lists of the tests.
const PAGES: u64 = 2 << 20;

struct Balloon {
    machine: Machine,
    driver: Driver,
    handle: BalloonHandle,
}

fn balloon() -> Balloon {
    let mut machine = Machine::new();
    let spec = BalloonSpec {
        id: "balloon".into(),
        pages: 5,
        deflate_on_oom: true,
        statistics_s: 1,
        hinting: true,
        reporting: true,
    };
    let block = BalloonBlock::place(&mut machine.black_box).unwrap();
    let memory = Discarder::new(&machine.ram, Backing::Anonymous);
    let (device, handle) = BalloonDevice::new(spec, memory, block).unwrap();
    let mut driver = machine.attach(device, 0x1_0000);
    let offered = driver.offered();
    assert!(driver.start(offered & !crate::virtio::device::F_EVENT_IDX));
    machine
        .ram
        .write_slice(&vec![1; 1 << 20], GuestAddress(PAGES))
        .unwrap();
    Balloon {
        machine,
        driver,
        handle,
    }
}

impl Balloon {
    fn seen(&self) -> &BalloonBlock {
        &self.handle.shared.block
    }

    fn list(&mut self, queue: usize, pages: &[u32]) {
        for (place, page) in (0u64..).zip(pages) {
            let at = GuestAddress(DATA + place * 4);
            self.machine.ram.write_obj(page.to_le(), at).unwrap();
        }
        self.send(queue, (DATA, pages.len() as u32 * 4, false));
    }

    fn send(&mut self, queue: usize, buffer: (u64, u32, bool)) {
        self.driver.add(queue, &[buffer]);
        self.driver.kick(queue);
        self.driver.wait_used(queue, 1);
    }

    fn command(&mut self, command: u32) {
        let at = GuestAddress(DATA);
        self.machine.ram.write_obj(command.to_le(), at).unwrap();
        self.send(HINT, (DATA, 4, false));
    }

    /// Whether a page still has its bytes.
    fn is_there(&self, page: u64) -> bool {
        let at = GuestAddress(PAGES + page * PAGE_BYTES);
        self.machine.ram.read_obj::<u8>(at).unwrap() == 1
    }
}

const FIRST: u32 = (PAGES / PAGE_BYTES) as u32;

#[test]
fn inflated_pages_go_back_to_the_host_and_deflated_ones_are_counted() {
    let mut balloon = balloon();
    balloon.list(INFLATE, &[FIRST + 2, FIRST, FIRST + 1]);
    let there: Vec<bool> = (0..4).map(|page| balloon.is_there(page)).collect();
    assert_eq!(there, [false, false, false, true]);
    balloon.list(DEFLATE, &[FIRST + 1]);
    let seen = balloon.seen();
    assert_eq!(seen.inflated.value(), 3 * PAGE_BYTES);
    assert_eq!(seen.discarded.value(), 3 * PAGE_BYTES);
    assert_eq!(seen.deflated.value(), PAGE_BYTES);
    assert_eq!(seen.kept.value(), 0);
    let rows = &balloon.driver.seen.device.operations;
    assert_eq!(rows[0].bytes.value(), 3 * PAGE_BYTES);
    assert_eq!((rows[0].errors.value(), rows[1].count.value()), (0, 1));
}

#[test]
fn pages_that_are_not_the_guests_are_refused_and_the_rest_is_taken() {
    let mut balloon = balloon();
    let outside = (RAM_BYTES as u64 / PAGE_BYTES) as u32;
    balloon.list(INFLATE, &[FIRST, outside, u32::MAX, FIRST]);
    let seen = balloon.seen();
    assert_eq!(seen.refused_outside.value(), 2);
    assert_eq!(seen.refused_repeated.value(), 1);
    assert_eq!(seen.inflated.value(), PAGE_BYTES);
    assert!(!balloon.is_there(0) && balloon.is_there(1));
    let operations = &balloon.driver.seen.device.operations;
    assert_eq!(operations[0].errors.value(), 1);
}

#[test]
fn a_list_without_end_is_cut_and_the_rest_counted() {
    let mut balloon = balloon();
    // Page 0 again and again: zeros.
    let bytes = (MAX_PFNS as u32 + 1000) * 4;
    balloon.send(INFLATE, (DATA + 0x1000, bytes, false));
    let seen = balloon.seen();
    assert_eq!(seen.refused_excess.value(), 1000);
    assert_eq!(seen.refused_repeated.value(), MAX_PFNS as u64 - 1);
    assert_eq!(seen.inflated.value(), PAGE_BYTES);
}

#[test]
fn reported_memory_goes_back_at_once() {
    let mut balloon = balloon();
    let buffers = [
        (PAGES, 8 * PAGE_BYTES as u32, true),
        (PAGES + 16 * PAGE_BYTES, PAGE_BYTES as u32, true),
    ];
    balloon.driver.add(REPORT, &buffers);
    balloon.driver.kick(REPORT);
    balloon.driver.wait_used(REPORT, 1);
    let seen = balloon.seen();
    assert_eq!(seen.reported.value(), 9 * PAGE_BYTES);
    assert_eq!(seen.discarded.value(), 9 * PAGE_BYTES);
    assert!(!balloon.is_there(7) && balloon.is_there(8) && !balloon.is_there(16));
}

#[test]
fn statistics_are_asked_for_by_the_clock_and_kept_with_their_age() {
    let mut balloon = balloon();
    let tell = |balloon: &mut Balloon, free: u64| {
        let bytes: Vec<u8> = [(4u16, free), (15, 9)]
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        let at = GuestAddress(DATA);
        balloon.machine.ram.write_slice(&bytes, at).unwrap();
        balloon.driver.add(STATS, &[(DATA, 20, false)]);
        balloon.driver.kick(STATS);
    };
    tell(&mut balloon, 77);
    wait_for("statistics", || balloon.seen().statistics.value() == 1);
    let seen = balloon.seen();
    assert_eq!(seen.values[4].value(), 77);
    assert_eq!(seen.values[15].value(), 9);
    assert_eq!(seen.statistics_present.value(), 1 << 4 | 1 << 15);
    assert_ne!(seen.statistics_at.value(), 0);
    // The device keeps the buffer, and that is no request that waits.
    assert_eq!(balloon.driver.seen.queues[STATS].in_flight.value(), 0);
    balloon.driver.wait_used(STATS, 1);
    tell(&mut balloon, 78);
    wait_for("newer ones", || balloon.seen().values[4].value() == 78);
    // A pause gives the buffer back to the ring, and the end of it takes it again.
    balloon.driver.settle(&balloon.machine.thread);
    wait_for("them again", || balloon.seen().statistics.value() >= 3);
}

#[test]
fn the_driver_hears_of_a_target_and_tells_its_size() {
    let balloon = balloon();
    assert_eq!(balloon.driver.read(0x100), 5);
    balloon.driver.write(0x64, u32::MAX);
    balloon.handle.resize(1000);
    wait_for("an interrupt", || balloon.driver.read(0x60) & 2 != 0);
    assert_eq!(balloon.driver.read(0x100), 1000);
    assert_eq!(balloon.seen().target.value(), 1000 * PAGE_BYTES);
    balloon.driver.write(0x104, 600);
    wait_for("the size", || {
        balloon.seen().actual.value() == 600 * PAGE_BYTES
    });
    assert_ne!(balloon.seen().actual_changed_at.value(), 0);
    assert_eq!(balloon.handle.actual_pages(), 600);
    // The target is not the driver's to write.
    let refused = balloon.driver.transport.write_config(0, &[0; 4]);
    assert_eq!(refused, Err(Misuse::State));
    balloon.driver.write(0x70, 0);
    wait_for("a reset", || balloon.seen().features.value() == 0);
    assert_eq!(balloon.seen().actual.value(), 0);
    assert_eq!(balloon.handle.target_pages(), 1000);
}

#[test]
fn hinting_takes_what_is_named_in_the_run_that_is_asked_for() {
    let mut balloon = balloon();
    let page = |page| (PAGES + page * PAGE_BYTES, PAGE_BYTES as u32, true);
    balloon.send(HINT, page(0));
    assert!(balloon.is_there(0), "no run is on");
    balloon.handle.start_hinting(true);
    let run = balloon.handle.hinting().host;
    assert!(run >= 2 && balloon.driver.read(0x108) == run);
    balloon.command(run + 1);
    balloon.send(HINT, page(1));
    assert!(balloon.is_there(1), "another run");
    balloon.command(run);
    assert_eq!(balloon.handle.hinting().guest, Some(run));
    balloon.send(HINT, page(2));
    assert!(!balloon.is_there(2));
    balloon.command(COMMAND_STOP);
    assert_eq!(balloon.handle.hinting().host, COMMAND_DONE);
    assert_eq!(balloon.handle.hinting().guest, Some(COMMAND_STOP));
    balloon.send(HINT, page(3));
    assert!(balloon.is_there(3), "the run is over");
    assert_eq!(balloon.seen().hinted.value(), PAGE_BYTES);
    assert_eq!(balloon.seen().hinting_runs.value(), 1);

    balloon.handle.start_hinting(false);
    let next = balloon.handle.hinting().host;
    assert_eq!(next, run + 1, "no number comes twice");
    balloon.command(next);
    balloon.command(COMMAND_STOP);
    assert_eq!(balloon.handle.hinting().host, next, "nobody acknowledges");
    balloon.handle.stop_hinting();
    assert_eq!(balloon.driver.read(0x108), COMMAND_DONE);
}

#[test]
fn queues_of_missing_features_take_no_number() {
    assert_eq!(roles(F_REPORTING).get(2), Some(&Role::Reporting));
    assert_eq!(roles(F_STATISTICS | F_HINTING).get(3), Some(&Role::Hinting));
    assert_eq!(roles(0).len(), 2);
}

#[test]
fn orders_that_cannot_be_carried_out_are_refused() {
    let balloon = balloon();
    let obey = |order| balloon.handle.obey(order);
    wait_for("the driver", || balloon.seen().features.value() != 0);
    assert_eq!(obey(BalloonOrder::Resize { mib: 2 }), Ok(()));
    assert_eq!(balloon.driver.read(0x100), 512);
    let large = BalloonOrder::Resize { mib: 5 };
    let refusal = BalloonRefusal::TooLarge { mib: 5, most: 4 };
    assert_eq!(obey(large), Err(refusal));
    let never = BalloonOrder::Poll { seconds: 0 };
    assert_eq!(obey(never), Err(BalloonRefusal::StatisticsChange));
    assert_eq!(obey(BalloonOrder::Poll { seconds: 7 }), Ok(()));
    assert_eq!(balloon.seen().interval.value(), 7_000_000_000);
    assert_eq!(obey(BalloonOrder::StopHinting), Ok(()));
    balloon.driver.write(0x70, 0);
    wait_for("a reset", || balloon.seen().features.value() == 0);
    let order = BalloonOrder::Resize { mib: 3 };
    assert_eq!(obey(order), Err(BalloonRefusal::NotActive));
}
