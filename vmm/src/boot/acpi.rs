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
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use memory::layout::{IOAPIC_BASE, LAPIC_BASE};
use memory::{Bytes, GuestAddress, GuestRam};

use super::cmdline::MmioWindow;
use super::{BootError, address, aml};
use crate::machine::{RESET_REGISTER, RESET_VALUE, SLEEP_CONTROL_REGISTER, SLEEP_STATUS_REGISTER};

const OEM: [u8; 6] = *b"VITRIN";
const TABLE: [u8; 8] = *b"VITRINE ";
const REVISION: u32 = 1;
/// `iapc_boot_arch`: user-visible devices on the LPC bus, an 8042, no VGA, no MSI (there is no
/// PCI). The real-time clock is there, so its absence flag is clear.
const BOOT_ARCH: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
/// The IO-APIC's id: above every vCPU's APIC id.
const IOAPIC_ID: u8 = 0xFE;

/// Writes all tables and gives the address of the RSDP.
///
/// # Errors
/// [`BootError::Acpi`] when the BIOS area is too small, [`BootError::Memory`] when the guest is.
pub fn write(ram: &GuestRam, vcpus: u8, windows: &[MmioWindow]) -> Result<GuestAddress, BootError> {
    let rsdp_at = GuestAddress(address::ACPI);
    let mut writer = Writer {
        ram,
        next: address::ACPI + 64,
    };
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml::dsdt(vcpus, windows));
    let dsdt_at = writer.put(&dsdt)?;
    let fadt_at = writer.put(&fadt(dsdt_at))?;
    let madt_at = writer.put(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
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

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
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

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let spec = memory::MemorySpec {
            size_mib: 2,
            ..Default::default()
        };
        let ram = memory::build(&spec).unwrap();
        let windows: Vec<_> = (0..19).map(MmioWindow::of_slot).collect();
        let rsdp = write(&ram, 32, &windows).unwrap();
        let xsdt_at: u64 = ram.read_obj(GuestAddress(rsdp.0 + 24)).unwrap();
        let xsdt = table(&ram, xsdt_at);
        let entries: Vec<u64> = xsdt[36..]
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
            .collect();
        let fadt = table(&ram, entries[0]);
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&ram, entries[1]);
        assert_eq!(&madt[..4], b"APIC");
        // 32 LAPICs of 8 bytes and an IO-APIC of 12, behind the 44-byte header.
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt_at = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        let dsdt = table(&ram, dsdt_at);
        let count = dsdt.windows(8).filter(|w| w == b"LNRO0005").count();
        assert_eq!(count, 19);
        assert_eq!(dsdt.windows(8).filter(|w| w == b"QEMU0001").count(), 1);
    }
}
