//! The machine: KVM, boot, vCPUs, interrupts, lifecycle. Embeddable
