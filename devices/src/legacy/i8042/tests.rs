use super::*;

const DATA: u64 = 0;
const STATUS: u64 = 4;

fn status(device: &I8042) -> u8 {
    let mut byte = [0];
    device.read(STATUS, &mut byte).unwrap();
    byte[0]
}

fn write(device: &I8042, offset: u64, value: u8) -> Effect {
    device.write(offset, &[value]).unwrap()
}

/// Reads as the driver does: a byte only when the status shows one.
fn read(device: &I8042) -> Option<u8> {
    if status(device) & STATUS_OUTPUT_FULL == 0 {
        return None;
    }
    let mut byte = [0];
    device.read(DATA, &mut byte).unwrap();
    Some(byte[0])
}

fn read_all(device: &I8042) -> Vec<u8> {
    std::iter::from_fn(|| read(device)).collect()
}

/// `i8042_command` with one byte of answer.
fn ask(device: &I8042, command: u8) -> Option<u8> {
    write(device, STATUS, command);
    read(device)
}

fn keyboard(device: &I8042, bytes: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    for &byte in bytes {
        write(device, DATA, byte);
        answers.extend(read_all(device));
    }
    answers
}

fn interrupts(device: &I8042) -> u64 {
    device.interrupt_event().read().unwrap_or(0)
}

/// The steps of Linux's `i8042_probe`: flush, command byte, self test, look for a mouse, enable.
fn probe(device: &I8042) {
    assert_eq!(read_all(device), []);
    let ctr = ask(device, 0x20).unwrap();
    assert_eq!(ask(device, 0xAA), Some(0x55));
    let quiet = (ctr | CTR_KEYBOARD_OFF) & !CTR_KEYBOARD_INTERRUPT;
    write(device, STATUS, 0x60);
    write(device, DATA, quiet);
    assert_eq!(ask(device, 0x20), Some(quiet));
    // i8042_check_aux: loop-back comes unmarked, the interface test fails: no mouse, no waiting.
    write(device, STATUS, 0xD3);
    write(device, DATA, 0x5A);
    assert_eq!(status(device) & 0x20, 0);
    assert_eq!(read(device), Some(0x5A));
    let aux = ask(device, 0xA9).unwrap();
    assert!(aux != 0 && aux != 0xFA && aux != 0xFF);
    assert_eq!(ask(device, 0xAB), Some(0));
    interrupts(device);
    write(device, STATUS, 0x60);
    write(device, DATA, ctr);
    assert_eq!(interrupts(device), 0);
}

#[test]
fn linux_finds_the_controller_and_no_mouse() {
    let device = I8042::new().unwrap();
    probe(&device);
}

#[test]
fn linux_finds_the_keyboard() {
    let device = I8042::new().unwrap();
    probe(&device);
    // atkbd_probe: id (translated), LEDs, rate, defaults, enable; and a reset when asked for.
    assert_eq!(keyboard(&device, &[0xF2]), [0xFA, 0xAB, 0x41]);
    assert!(interrupts(&device) >= 3, "each byte interrupts");
    assert_eq!(keyboard(&device, &[0xED, 0x00]), [0xFA, 0xFA]);
    assert_eq!(keyboard(&device, &[0xF3, 0x00]), [0xFA, 0xFA]);
    assert_eq!(keyboard(&device, &[0xF0, 0x00]), [0xFA, 0xFA, 2]);
    assert_eq!(keyboard(&device, &[0xF6, 0xF4]), [0xFA, 0xFA]);
    assert_eq!(keyboard(&device, &[0xFF]), [0xFA, 0xAA]);
    assert_eq!(keyboard(&device, &[0xEE]), [0xEE]);
    assert_eq!(keyboard(&device, &[0xEA]), [0xFE]);
}

#[test]
fn the_id_is_not_translated_when_translation_is_off() {
    let device = I8042::new().unwrap();
    write(&device, STATUS, 0x60);
    write(&device, DATA, CTR_KEYBOARD_INTERRUPT);
    assert_eq!(keyboard(&device, &[0xF2]), [0xFA, 0xAB, 0x83]);
    device.ctrl_alt_del().unwrap();
    assert_eq!(read_all(&device), CTRL_ALT_DEL);
}

#[test]
fn ctrl_alt_del_is_pressed_and_released() {
    let device = I8042::new().unwrap();
    probe(&device);
    device.ctrl_alt_del().unwrap();
    assert_eq!(interrupts(&device), 1);
    assert_eq!(read(&device), Some(0x1D));
    assert_eq!(interrupts(&device), 1, "the next byte interrupts anew");
    assert_eq!(read_all(&device), CTRL_ALT_DEL_TRANSLATED[1..]);
    interrupts(&device);
    assert_eq!(read(&device), None);
    assert_eq!(interrupts(&device), 0);
}

#[test]
fn keys_that_the_guest_cannot_see_are_refused() {
    let device = I8042::new().unwrap();
    assert_eq!(keyboard(&device, &[0xF5]), [0xFA]);
    assert_eq!(device.ctrl_alt_del(), Err(KeyboardError::Off));
    keyboard(&device, &[0xF4]);
    for _ in 0..KEYBOARD_QUEUE / CTRL_ALT_DEL_TRANSLATED.len() {
        device.ctrl_alt_del().unwrap();
    }
    assert_eq!(device.ctrl_alt_del(), Err(KeyboardError::Full));
    write(&device, STATUS, 0xAD);
    assert_eq!(device.ctrl_alt_del(), Err(KeyboardError::Off));
    assert_eq!(read(&device), None, "a disabled interface shows nothing");
}

#[test]
fn reset_comes_by_pulse_and_by_the_output_port() {
    let device = I8042::new().unwrap();
    assert_eq!(write(&device, STATUS, 0xFE), Effect::Reset);
    assert_eq!(write(&device, STATUS, 0xFF), Effect::None);
    write(&device, STATUS, 0xD1);
    assert_eq!(write(&device, DATA, 0x02), Effect::Reset);
    write(&device, STATUS, 0xD1);
    assert_eq!(write(&device, DATA, 0x03), Effect::None);
}

#[test]
fn interrupts_wait_until_the_command_byte_enables_them() {
    let device = I8042::new().unwrap();
    write(&device, STATUS, 0x60);
    write(&device, DATA, CTR_TRANSLATE);
    write(&device, DATA, 0xEE);
    assert_eq!(interrupts(&device), 0);
    write(&device, STATUS, 0x60);
    write(&device, DATA, CTR_TRANSLATE | CTR_KEYBOARD_INTERRUPT);
    assert_eq!(interrupts(&device), 1);
}

#[test]
fn queues_do_not_grow_and_odd_accesses_are_misuse() {
    let device = I8042::new().unwrap();
    for _ in 0..1000 {
        write(&device, DATA, 0xF2);
        write(&device, STATUS, 0xAA);
    }
    assert!(read_all(&device).len() <= KEYBOARD_QUEUE + CONTROLLER_QUEUE);
    assert_eq!(device.read(2, &mut [0]), Err(Misuse::Register));
    assert_eq!(device.write(3, &[0]), Err(Misuse::Register));
    assert_eq!(device.write(0, &[0, 0]), Err(Misuse::Width));
}

#[test]
fn port_b_toggles_refresh_and_ends_timer_waits() {
    let device = I8042::new().unwrap();
    let port_b = || {
        let mut byte = [0];
        device.read(1, &mut byte).unwrap();
        byte[0]
    };
    assert_ne!(port_b() & B_REFRESH, port_b() & B_REFRESH);
    assert_eq!(port_b() & B_TIMER_OUT, 0);
    write(&device, 1, 0xFD);
    assert_eq!(port_b() & (B_TIMER_OUT | B_WRITABLE), B_TIMER_OUT | 0x0D);
}
