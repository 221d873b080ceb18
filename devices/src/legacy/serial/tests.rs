use super::*;

const THR: u64 = 0;
const LINE_STATUS: u64 = 5;

fn read(serial: &Serial, offset: u64) -> u8 {
    let mut byte = [0];
    serial.read(offset, &mut byte).unwrap();
    byte[0]
}

fn write(serial: &Serial, offset: u64, value: u8) {
    assert_eq!(serial.write(offset, &[value]), Ok(Effect::None));
}

fn interrupts(serial: &Serial) -> u64 {
    serial.interrupt_event().read().unwrap_or(0)
}

fn woken(serial: &Serial) -> bool {
    serial.wake_event().read().is_ok()
}

fn drain(serial: &Serial) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 1000]);
    loop {
        match serial.take_output(&mut chunk) {
            0 => return all,
            n => all.extend(&chunk[..n]),
        }
    }
}

/// Fills the ring as a guest does that honours the line status; gives what it wrote.
fn fill(serial: &Serial) -> Vec<u8> {
    let mut written = Vec::new();
    while read(serial, LINE_STATUS) & 0x20 != 0 {
        let byte = written.len() as u8;
        write(serial, THR, byte);
        written.push(byte);
        assert!(written.len() < RING_BYTES);
    }
    written
}

#[test]
fn output_wakes_the_console_once_until_it_has_looked() {
    let serial = Serial::new().unwrap();
    assert_eq!(drain(&serial), []);
    write(&serial, THR, b'a');
    assert!(woken(&serial));
    write(&serial, THR, b'b');
    assert!(!woken(&serial), "awake already");
    assert_eq!(drain(&serial), b"ab");
    write(&serial, THR, b'c');
    assert!(woken(&serial));
}

#[test]
fn a_guest_that_honours_the_line_status_loses_nothing() {
    let serial = Serial::new().unwrap();
    let mut written = fill(&serial);
    assert_eq!(read(&serial, LINE_STATUS) & 0x60, 0, "busy");
    // A driver may fill the rest of the FIFO without looking again.
    for byte in 1..TX_FIFO_BYTES as u8 {
        write(&serial, THR, byte);
        written.push(byte);
    }
    assert_eq!(serial.overruns(), 0);
    assert_eq!(drain(&serial), written);
    assert_eq!(read(&serial, LINE_STATUS) & 0x60, 0x60, "ready");
}

#[test]
fn a_guest_that_ignores_the_line_status_overruns_and_is_counted() {
    let serial = Serial::new().unwrap();
    let written = fill(&serial).len();
    for _ in 0..100 {
        write(&serial, THR, b'x');
    }
    // One of the sixteen places was taken by the byte that made it busy.
    assert_eq!(serial.overruns(), 100 - 15);
    assert_eq!(drain(&serial).len(), written + 15);
}

#[test]
fn the_transmitter_interrupt_comes_when_the_ring_has_drained() {
    let serial = Serial::new().unwrap();
    fill(&serial);
    interrupts(&serial);
    write(&serial, 1, 0x02);
    assert_eq!(
        read(&serial, 1),
        0x02,
        "the guest's view of the enable register"
    );
    assert_eq!(interrupts(&serial), 0, "the transmitter is busy");
    assert_eq!(read(&serial, 2) & 0x0F, 0x01, "nothing pending");
    // The guest is in the middle of setting the speed when the ring drains.
    write(&serial, 3, 0x83);
    let mut chunk = vec![0; HIGH_WATER - LOW_WATER - 1];
    serial.take_output(&mut chunk);
    assert_eq!(interrupts(&serial), 0, "above the low-water mark");
    serial.take_output(&mut chunk[..1]);
    assert_eq!(interrupts(&serial), 1);
    assert_eq!(read(&serial, 3), 0x83, "the divisor latch is as it was");
    assert_eq!(read(&serial, 0), 0x0C, "and so is the divisor");
    write(&serial, 3, 0x03);
    assert_eq!(read(&serial, 2) & 0x0F, 0x02, "transmitter empty");
}

#[test]
fn input_waits_for_room_and_the_console_is_woken() {
    let serial = Serial::new().unwrap();
    write(&serial, 1, 0x01);
    let input: Vec<u8> = (0..100).collect();
    let taken = serial.enqueue(&input);
    assert_eq!(taken, 64);
    assert_eq!(interrupts(&serial), 1);
    assert_eq!(serial.enqueue(&input[taken..]), 0);
    let mut seen = Vec::new();
    while !woken(&serial) {
        seen.push(read(&serial, 0));
    }
    assert_eq!(seen, input[..RX_ROOM]);
    assert_eq!(serial.enqueue(&input[taken..]), RX_ROOM);
    while read(&serial, LINE_STATUS) & 1 != 0 {
        seen.push(read(&serial, 0));
    }
    assert_eq!(seen, input[..96]);
}

#[test]
fn loop_back_takes_no_input_and_gives_no_output() {
    let serial = Serial::new().unwrap();
    write(&serial, 4, 0x10);
    assert_eq!(serial.enqueue(b"x"), 0);
    write(&serial, THR, b'l');
    assert_eq!(read(&serial, 0), b'l');
    assert_eq!(drain(&serial), []);
    assert!(woken(&serial), "there is room");
    assert_eq!(serial.enqueue(b"x"), 0, "but it is not for us");
    write(&serial, 4, 0x08);
    assert!(woken(&serial), "the console tries again");
    assert_eq!(serial.enqueue(b"x"), 1);
}

#[test]
fn an_abandoned_port_holds_nobody_up() {
    let serial = Serial::new().unwrap();
    let written = fill(&serial).len();
    write(&serial, 1, 0x02);
    assert_eq!(serial.abandon_output(), written);
    assert_eq!(interrupts(&serial), 1);
    read(&serial, 2);
    write(&serial, THR, b'x');
    assert_eq!(interrupts(&serial), 1);
    assert_eq!(read(&serial, LINE_STATUS) & 0x60, 0x60);
    assert_eq!((serial.overruns(), drain(&serial)), (1, vec![]));
}

#[test]
fn wide_and_foreign_accesses_are_misuse() {
    let serial = Serial::new().unwrap();
    assert_eq!(serial.read(0, &mut [0; 2]), Err(Misuse::Width));
    assert_eq!(serial.write(0, &[0; 4]), Err(Misuse::Width));
    assert_eq!(serial.read(8, &mut [0]), Err(Misuse::Register));
}
