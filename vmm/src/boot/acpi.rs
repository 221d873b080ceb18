//! The ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, MADT, DSDT, for a hardware-reduced machine.
//!
//! Stock kernels find CPUs and virtio-mmio devices nowhere else. Hardware-reduced (5.2.9, flag 20)
//! spares the guest PM timers, SCI, PIC and PIT, none of which are here to be seen by it; power
//! off and reset are the sleep control and reset registers.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use memory::layout::{IOAPIC_BASE, LAPIC_BASE, PCI_ECAM_START};
use memory::{Bytes, GuestAddress, GuestRam};

use super::cmdline::Placement;
use super::{BootError, address, aml};
use crate::machine::{RESET_REGISTER, RESET_VALUE, SLEEP_CONTROL_REGISTER, SLEEP_STATUS_REGISTER};

const OEM: [u8; 6] = *b"VITRIN";
const TABLE: [u8; 8] = *b"VITRINE ";
const REVISION: u32 = 1;
/// `iapc_boot_arch`: user-visible devices on the LPC bus, an 8042, no VGA. The real-time clock is
/// there, so its absence flag is clear.
const BOOT_ARCH: u16 = 1 | 1 << 1 | 1 << 2;
/// The same: no MSI, where there is no PCI.
const NO_MSI: u16 = 1 << 3;
/// The same: no ASPM, where there is.
const NO_ASPM: u16 = 1 << 4;
/// The IO-APIC's id: above every vCPU's APIC id.
const IOAPIC_ID: u8 = 0xFE;

/// Writes all tables and gives the address of the RSDP.
///
/// # Errors
/// [`BootError::Acpi`] when the BIOS area is too small, [`BootError::Memory`] when the guest is.
pub fn write(ram: &GuestRam, vcpus: u8, placement: &Placement) -> Result<GuestAddress, BootError> {
    let rsdp_at = GuestAddress(address::ACPI);
    let mut writer = Writer {
        ram,
        next: address::ACPI + 64,
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml::dsdt(vcpus, placement));
    let dsdt_at = writer.put(&dsdt)?;
    let fadt_at = writer.put(&fadt(dsdt_at, placement.is_pci()))?;
    let madt_at = writer.put(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    if placement.is_pci() {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(PCI_ECAM_START, 0, 0, 0);
        xsdt.add_entry(writer.put(&mcfg)?);
    }
    let xsdt_at = writer.put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt_at).to_aml_bytes(&mut rsdp);
    ram.write_slice(&rsdp, rsdp_at)?;
    Ok(rsdp_at)
}

struct Writer<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next.next_multiple_of(16);
        self.next = at + bytes.len() as u64;
        if self.next > address::HIGH_RAM_START {
            let need = self.next - address::ACPI;
            return Err(BootError::Acpi {
                need,
                have: address::HIGH_RAM_START - address::ACPI,
            });
        }
        self.ram.write_slice(&bytes, GuestAddress(at))?;
        Ok(at)
    }
}

fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

fn fadt(dsdt: u64, pci: bool) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = (BOOT_ARCH | if pci { NO_ASPM } else { NO_MSI }).into();
    fadt.sleep_control_reg = port(SLEEP_CONTROL_REGISTER);
    fadt.sleep_status_reg = port(SLEEP_STATUS_REGISTER);
    fadt.reset_reg = port(RESET_REGISTER);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let controller = LocalInterruptController::Address(LAPIC_BASE as u32);
    let mut madt = MADT::new(OEM, TABLE, REVISION, controller);
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, IOAPIC_BASE as u32, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::cmdline::MmioWindow;

    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(
            bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)),
            0,
            "checksum at {at:#x}"
        );
        bytes
    }

    /// The tables that the XSDT leads to.
    fn tables(placement: &Placement) -> (GuestRam, Vec<Vec<u8>>) {
        let spec = memory::MemorySpec {
            size_mib: 2,
            ..Default::default()
        };
        let ram = memory::build(&spec).unwrap();
        let rsdp = write(&ram, 32, placement).unwrap();
        let xsdt_at: u64 = ram.read_obj(GuestAddress(rsdp.0 + 24)).unwrap();
        let xsdt = table(&ram, xsdt_at);
        let entries = xsdt[36..]
            .chunks_exact(8)
            .map(|c| table(&ram, u64::from_le_bytes(c.try_into().unwrap())))
            .collect();
        (ram, entries)
    }

    fn dsdt(ram: &GuestRam, fadt: &[u8]) -> Vec<u8> {
        let at = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        table(ram, at)
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let windows = (0..19).map(MmioWindow::of_slot).collect();
        let (ram, tables) = tables(&Placement::Mmio(windows));
        let [fadt, madt] = &tables[..] else {
            panic!("{} tables", tables.len());
        };
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&madt[..4], b"APIC");
        // 32 LAPICs of 8 bytes and an IO-APIC of 12, behind the 44-byte header.
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt = dsdt(&ram, fadt);
        let count = dsdt.windows(8).filter(|w| w == b"LNRO0005").count();
        assert_eq!(count, 19);
        assert_eq!(dsdt.windows(8).filter(|w| w == b"QEMU0001").count(), 1);
        assert!(!dsdt.windows(4).any(|w| w == b"PCI0"));
        // No MSI.
        assert_eq!(fadt[109] & 0b11000, 0b01000);
    }

    #[test]
    fn a_pci_bus_has_its_configuration_space_and_its_bridge() {
        let (ram, tables) = tables(&Placement::Pci);
        let mcfg = &tables[2];
        assert_eq!(&mcfg[..4], b"MCFG");
        assert_eq!(mcfg[44..52], PCI_ECAM_START.to_le_bytes());
        assert_eq!(mcfg[52..56], [0; 4], "segment 0, bus 0 to bus 0");
        let dsdt = dsdt(&ram, &tables[0]);
        for name in [b"PCI0", b"_OSC", b"ECAM"] {
            assert_eq!(
                dsdt.windows(4).filter(|w| w == name).count(),
                1 + usize::from(name == b"ECAM")
            );
        }
        assert_eq!(tables[0][109] & 0b11000, 0b10000);
    }
}
