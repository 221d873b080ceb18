//! The kernel command line: the caller's, then what the machine adds.

use memory::layout::{MMIO_DEVICE_BYTES, MMIO_DEVICES_START};

use super::BootError;
use crate::spec::{DEFAULT_CMDLINE, MAX_CMDLINE, VmSpec};

/// A virtio-mmio window that the guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First address.
    pub base: u64,
    /// Global system interrupt.
    pub gsi: u32,
}

impl MmioWindow {
    /// The `slot`-th window, with its interrupt.
    pub fn of_slot(slot: u32) -> MmioWindow {
        let base = MMIO_DEVICES_START + u64::from(slot) * MMIO_DEVICE_BYTES;
        MmioWindow {
            base,
            gsi: crate::machine::FIRST_VIRTIO_GSI + slot,
        }
    }
}

/// Where the guest finds its virtio devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In windows of their own.
    Mmio(Vec<MmioWindow>),
    /// On the PCI bus.
    Pci,
}

impl Placement {
    /// Whether there is a PCI bus.
    pub fn is_pci(&self) -> bool {
        *self == Placement::Pci
    }

    /// The windows of virtio-mmio.
    pub fn windows(&self) -> &[MmioWindow] {
        match self {
            Placement::Mmio(windows) => windows,
            Placement::Pci => &[],
        }
    }
}

/// The whole command line. Words that end a kernel's own (`--`) stay last.
///
/// # Errors
/// [`BootError::CmdlineTooLong`] or [`BootError::CmdlineCharacter`].
pub fn compose(spec: &VmSpec, placement: &Placement) -> Result<String, BootError> {
    let given = spec.boot.cmdline.as_deref().unwrap_or(DEFAULT_CMDLINE);
    if let Some(position) = given.bytes().position(|b| b == 0 || !b.is_ascii()) {
        return Err(BootError::CmdlineCharacter { position });
    }
    let (kernel, init) = match given.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (given, None),
    };
    let mut text = kernel.trim().to_owned();
    if !text.split_whitespace().any(|word| word.starts_with("pci=")) {
        // Without the words a kernel asks some 240 times by ports that nobody answers at, an exit
        // each: for a bus that is not there, or for old faults of devices that this one has not.
        text.push_str(match placement {
            Placement::Mmio(_) => " pci=off",
            Placement::Pci => " pci=noearly",
        });
    }
    if let Some(root) = spec.drives.iter().find(|d| d.root) {
        let device = root
            .partuuid
            .as_ref()
            .map_or("/dev/vda".to_owned(), |uuid| format!("PARTUUID={uuid}"));
        let mode = if root.read_only { "ro" } else { "rw" };
        text.push_str(&format!(" root={device} {mode}"));
    }
    for window in placement.windows() {
        // Kernels without ACPI find the devices by this; the others know them by then.
        let MmioWindow { base, gsi } = window;
        text.push_str(&format!(" virtio_mmio.device=4K@{base:#x}:{gsi}"));
    }
    if let Some(init) = init {
        text.push_str(&format!(" -- {init}"));
    }
    let text = text.trim().to_owned();
    if text.len() > MAX_CMDLINE {
        return Err(BootError::CmdlineTooLong {
            length: text.len(),
            max: MAX_CMDLINE,
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::BootSpec;

    fn composed(given: &str, placement: &Placement) -> Result<String, BootError> {
        let boot = BootSpec {
            cmdline: Some(given.to_owned()),
            ..BootSpec::default()
        };
        compose(&VmSpec::new("test", boot), placement)
    }

    #[test]
    fn what_the_machine_adds_stands_before_the_words_of_init() {
        let window = [MmioWindow::of_slot(0)];
        let text = composed("quiet -- one two", &Placement::Mmio(window.to_vec())).unwrap();
        let MmioWindow { base, gsi } = window[0];
        let device = format!("virtio_mmio.device=4K@{base:#x}:{gsi}");
        assert_eq!(text, format!("quiet pci=off {device} -- one two"));
    }

    #[test]
    fn who_speaks_of_pci_is_not_overruled() {
        let none = Placement::Mmio(Vec::new());
        for placement in [&none, &Placement::Pci] {
            let text = composed("pci=conf1 quiet", placement).unwrap();
            assert_eq!(text, "pci=conf1 quiet");
        }
        assert_eq!(composed("npci=1", &none).unwrap(), "npci=1 pci=off");
    }

    #[test]
    fn a_bus_is_looked_for_where_there_is_one() {
        let text = composed("quiet -- one", &Placement::Pci).unwrap();
        assert_eq!(text, "quiet pci=noearly -- one");
    }

    #[test]
    fn what_is_too_long_with_the_additions_is_refused_with_its_length() {
        let long = "x".repeat(MAX_CMDLINE);
        let error = composed(&long, &Placement::Mmio(Vec::new())).unwrap_err();
        let length = MAX_CMDLINE + " pci=off".len();
        assert!(
            matches!(error, BootError::CmdlineTooLong { length: l, max: MAX_CMDLINE } if l == length)
        );
    }
}
