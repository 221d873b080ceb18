//! The AML of the PCI bus (PCI Firmware Specification 3.3, chapter 4).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, CreateDWordField, EISAName, Equal, If, Memory32Fixed,
    Method, Name, Or, Path, ResourceTemplate, Return, Store, Uuid,
};
use devices::pci::ECAM_BYTES;
use memory::layout::{PCI_ECAM_START, PCI_WINDOW_BYTES, PCI_WINDOW_START};

use super::device;

/// What `_OSC` of a PCI host bridge is about (4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// `_OSC` answer: the UUID is not known.
const UNKNOWN_UUID: u8 = 1 << 2;
/// `_OSC` answer: less is granted than was asked for.
const MASKED: u8 = 1 << 4;

/// The host bridge, and the memory that its ECAM takes.
pub fn bus(bytes: &mut Vec<u8>) {
    ecam(bytes);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0u8);
    let segment = Name::new("_SEG".into(), &0u8);
    let first = Name::new("_BBN".into(), &0u8);
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    // Every BAR has a place below 4 GiB and keeps it, so there is no window above.
    let last = PCI_WINDOW_START + (PCI_WINDOW_BYTES - 1);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW_START as u32,
        last as u32,
        None,
    );
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &window]));
    let members: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &first, &resources];
    with_control(|control| {
        let members = members.into_iter().chain([control]).collect();
        device(bytes, "PCI0", members);
    });
}

/// Kernels use the ECAM only where firmware says that the memory is taken.
fn ecam(bytes: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let uid = Name::new("_UID".into(), &"ECAM");
    let registers = Memory32Fixed::new(true, PCI_ECAM_START as u32, ECAM_BYTES as u32);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers]));
    device(bytes, "ECAM", vec![&hid, &uid, &resources]);
}

/// `_OSC`: the guest is given control of nothing. There is no hot-plug, no AER, no ASPM.
fn with_control(use_it: impl FnOnce(&dyn Aml)) {
    let (asked, granted) = (Path::new("CDW1"), Path::new("CDW3"));
    let uuid = Uuid::new(OSC_UUID);
    let first = CreateDWordField::new(&asked, &Arg(3), &0u8);
    let third = CreateDWordField::new(&granted, &Arg(3), &8u8);
    let nothing = Store::new(&granted, &0u8);
    let masked = Or::new(&asked, &asked, &MASKED);
    let answer = Return::new(&Arg(3));
    let known = Equal::new(&Arg(0), &uuid);
    let for_pci = If::new(&known, vec![&third, &nothing, &masked, &answer]);
    let unknown = Or::new(&asked, &asked, &UNKNOWN_UUID);
    let steps: Vec<&dyn Aml> = vec![&first, &for_pci, &unknown, &answer];
    use_it(&Method::new("_OSC".into(), 4, true, steps));
}
