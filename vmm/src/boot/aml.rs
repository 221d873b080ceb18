//! The DSDT: what the machine is made of, in AML (ACPI 6.5, chapter 20).

mod pci;

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, PackageBuilder, Path, ResourceTemplate,
    Scope,
};
use memory::layout::MMIO_DEVICE_BYTES;

use super::cmdline::{MmioWindow, Placement};
use crate::machine::{
    CMOS_PORT, I8042_GSI, I8042_PORT, PVPANIC_HID, PVPANIC_PORT, S5_SLEEP_TYPE, SERIAL_GSI,
    SERIAL_PORT,
};

/// The AML of the DSDT's body.
pub fn dsdt(vcpus: u8, placement: &Placement) -> Vec<u8> {
    let mut bytes = Vec::new();
    processors(&mut bytes, vcpus);
    serial(&mut bytes);
    keyboard(&mut bytes);
    clock(&mut bytes);
    panic_port(&mut bytes);
    if placement.is_pci() {
        pci::bus(&mut bytes);
    }
    for (slot, window) in (0u32..).zip(placement.windows()) {
        virtio(&mut bytes, slot, *window);
    }
    let mut soft_off = PackageBuilder::new();
    soft_off.add_element(&S5_SLEEP_TYPE);
    soft_off.add_element(&0u8);
    Name::new("_S5_".into(), &soft_off).to_aml_bytes(&mut bytes);
    bytes
}

/// Declares one device below `\_SB_`.
fn device(bytes: &mut Vec<u8>, name: &str, members: Vec<&dyn Aml>) {
    let device = Device::new(Path::new(name), members);
    Scope::new("\\_SB_".into(), vec![&device]).to_aml_bytes(bytes);
}

/// An edge-triggered, active-high interrupt of its own: what an irqfd without resampling is.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn processors(bytes: &mut Vec<u8>, vcpus: u8) {
    for index in 0..vcpus {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &index);
        device(bytes, &format!("C{index:03}"), vec![&hid, &uid]);
    }
}

fn serial(bytes: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0u8);
    let (port, interrupt) = (IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8), edge(SERIAL_GSI));
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&port, &interrupt]),
    );
    device(bytes, "COM1", vec![&hid, &uid, &resources]);
}

fn keyboard(bytes: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0303"));
    let data = IO::new(I8042_PORT, I8042_PORT, 1, 1);
    let command = IO::new(I8042_PORT + 4, I8042_PORT + 4, 1, 1);
    let interrupt = edge(I8042_GSI);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&data, &command, &interrupt]),
    );
    device(bytes, "PS2_", vec![&hid, &resources]);
}

fn clock(bytes: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0B00"));
    let port = IO::new(CMOS_PORT, CMOS_PORT, 1, 2);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port]));
    device(bytes, "RTC_", vec![&hid, &resources]);
}

/// As QEMU declares it, but without the methods that no kernel calls.
fn panic_port(bytes: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &PVPANIC_HID);
    let port = IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port]));
    device(bytes, "PEVT", vec![&hid, &resources]);
}

fn virtio(bytes: &mut Vec<u8>, slot: u32, window: MmioWindow) {
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &slot);
    let coherent = Name::new("_CCA".into(), &1u8);
    // Windows lie below 4 GiB by construction (memory::layout).
    let registers = Memory32Fixed::new(true, window.base as u32, MMIO_DEVICE_BYTES as u32);
    let interrupt = edge(window.gsi);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&registers, &interrupt]),
    );
    device(
        bytes,
        &format!("V{slot:03}"),
        vec![&hid, &uid, &coherent, &resources],
    );
}
