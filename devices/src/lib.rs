//! Devices: the buses, the legacy devices of a PC that stock kernels need, and virtio.
//!
//! Owner threads: bus devices are called by vCPU threads; a virtio device lives on its I/O thread
//! (`io-NAME`), and only its register file is shared with the vCPUs. Depends on `memory` and
//! `observe`, never on KVM: interrupts and kicks are eventfds that the machine connects.

pub mod bus;
pub mod legacy;
pub mod pci;
pub mod virtio;
