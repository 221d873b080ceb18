//! Virtio devices on a PCI bus: their BARs, their kicks and the routes of their messages.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::Bus;
use devices::pci::{ECAM_BYTES, PciRoot};
use devices::virtio::pci::BAR_BYTES;
use devices::virtio::{DeviceProfile, Front, MessageRouter, PciTransport};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use memory::layout::{PCI_ECAM_START, PCI_WINDOW_START};

use super::IOAPIC_INPUTS;
use crate::hypervisor::refused;
use crate::vm::LaunchError;

/// The name of the bus in sections and messages.
pub const NAME: &str = "pci";

/// The bus while it is filled.
pub struct Pci {
    root: PciRoot,
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    next_gsi: u32,
}

impl Pci {
    /// A bus with a host bridge alone.
    pub fn new(vm: &Arc<VmFd>) -> Self {
        Pci {
            root: PciRoot::default(),
            vm: Arc::clone(vm),
            routes: Arc::new(Routes::new(Arc::clone(vm))),
            next_gsi: IOAPIC_INPUTS,
        }
    }

    /// Puts a device into the next place, with its kicks by ioeventfd and each of its messages by
    /// an irqfd of its own.
    ///
    /// # Errors
    /// [`LaunchError`], naming the device.
    pub fn add(
        &mut self,
        profile: &DeviceProfile,
        front: Front,
        mmio: &mut Bus,
        slot: u32,
    ) -> Result<(), LaunchError> {
        let failed = |detail: String| LaunchError::Device {
            device: profile.name.clone(),
            detail,
        };
        let address = PCI_WINDOW_START + u64::from(slot) * BAR_BYTES;
        let router = DeviceRoutes {
            first: self.next_gsi,
            routes: Arc::clone(&self.routes),
        };
        let transport = PciTransport::new(front, profile.device_type, address, Box::new(router))
            .map_err(|error| failed(format!("it cannot be put on PCI: {error}")))?;
        for (queue, event) in transport.kick_events() {
            let at = IoEventAddress::Mmio(address + PciTransport::notify_offset(queue));
            // Of any width and value, which KVM need not read the guest's instruction for.
            self.vm
                .register_ioevent(event, &at, NoDatamatch)
                .map_err(refused("KVM_IOEVENTFD"))?;
        }
        for (_, event) in transport.message_events() {
            self.vm
                .register_irqfd(event, self.next_gsi)
                .map_err(refused("KVM_IRQFD"))?;
            self.next_gsi += 1;
        }
        let transport = Arc::new(transport);
        let full = || failed("it is one too many for a PCI bus".to_owned());
        self.root
            .add(Arc::clone(&transport) as _)
            .ok_or_else(full)?;
        mmio.insert(address, BAR_BYTES, &profile.name, transport)
            .map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    /// Puts the bus, complete now, where the guest looks for it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn finish(self, mmio: &mut Bus) -> Result<(), LaunchError> {
        let root = Arc::new(self.root);
        let placed = mmio.insert(PCI_ECAM_START, ECAM_BYTES, NAME, root);
        placed.map(drop).map_err(|error| LaunchError::Device {
            device: NAME.to_owned(),
            detail: error.to_string(),
        })
    }
}

/// What KVM does with each GSI. KVM takes the whole table at once, so one lock orders the vCPUs that
/// change it; it is held across KVM's answer.
struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Vec<kvm_irq_routing_entry>>,
}

impl Routes {
    /// As KVM itself begins: lines to the IO-APIC and to the two PICs.
    fn new(vm: Arc<VmFd>) -> Self {
        let ioapic = (0..IOAPIC_INPUTS).map(|gsi| line(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        let master = (0..8).map(|gsi| line(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        let slave = (8..16).map(|gsi| line(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8));
        Routes {
            vm,
            table: Mutex::new(ioapic.chain(master).chain(slave).collect()),
        }
    }

    /// Has `gsi` send `data` to `address`.
    fn set(&self, gsi: u32, address: u64, data: u32) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = message(gsi, address, data);
        let at = table.iter().position(|entry| entry.gsi == gsi);
        let before = match at.and_then(|at| table.get_mut(at)) {
            Some(there) => Some(std::mem::replace(there, entry)),
            None => {
                table.push(entry);
                None
            }
        };
        let set = KvmIrqRouting::from_entries(&table)
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))
            .and_then(|routing| {
                let set = self.vm.set_gsi_routing(&routing);
                set.map_err(|error| io::Error::from_raw_os_error(error.errno()))
            });
        if set.is_err() {
            // As KVM still has it.
            match (at.and_then(|at| table.get_mut(at)), before) {
                (Some(there), Some(before)) => *there = before,
                _ => drop(table.pop()),
            }
        }
        set
    }
}

fn line(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: chip, pin },
        },
        ..Default::default()
    }
}

fn message(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

/// The routes of one device: its vectors have GSIs in a row.
struct DeviceRoutes {
    first: u32,
    routes: Arc<Routes>,
}

impl MessageRouter for DeviceRoutes {
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()> {
        self.routes
            .set(self.first + u32::from(vector), address, data)
    }
}
