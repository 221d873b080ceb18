//! The machine: KVM, boot, vCPUs, interrupts, lifecycle. Embeddable.
//!
//! The only user of the kvm crates. [`Vm::launch`] turns a [`VmSpec`] into a running guest with
//! threads of its own: `vm` (the state driver), `vcpu-N`, `io-NAME`, `console`. All else is asked
//! of the [`Vm`] handle or read from the black box.
//!
//! ```no_run
//! use vmm::{BootSpec, Vm, VmEvent, VmSpec};
//!
//! let boot = BootSpec { kernel: "vmlinux".into(), ..BootSpec::default() };
//! let (events, inbox) = std::sync::mpsc::channel();
//! let vm = Vm::launch(VmSpec::new("demo", boot), move |event| drop(events.send(event)))?;
//! while let Ok(event) = inbox.recv() {
//!     println!("{event:?}");
//! }
//! # Ok::<(), vmm::LaunchError>(())
//! ```

mod arch;
mod boot;
#[cfg(test)]
mod documentation;
mod driver;
pub mod dump;
pub mod host;
mod hypervisor;
pub mod inspect;
pub mod lifecycle;
mod machine;
#[cfg(feature = "measure")]
#[doc(hidden)]
pub mod measure;
mod sections;
pub mod spec;
pub mod trace;
pub mod validate;
mod vcpu;
mod vm;
mod watcher;

pub use boot::BootError;
/// What the guest's kernel told the pvpanic device.
pub use devices::legacy::PanicKind;
/// Undoes the raw mode that a console put its terminal into; async-signal-safe. For handlers of
/// signals that kill the process: all other ways out undo it by themselves.
pub use devices::legacy::restore_from_signal as restore_terminal;
/// What the guest's kernel said on its console.
pub use devices::legacy::{Facts, GuestMessage, MessageKind};
/// What a thread keeps in the black box, for [`Vm::launch_with`].
pub use devices::virtio::ThreadBlock;
/// What a balloon can be told, and why it does not do it.
pub use devices::virtio::{BalloonOrder, BalloonRefusal};
pub use dump::{DumpError, DumpKind};
pub use hypervisor::HostError;
pub use inspect::{InspectError, VcpuView};
pub use lifecycle::{VmCommand, VmState};
pub use memory::MemoryError;
pub use observe;
pub use sections::SECTIONS;
pub use spec::{
    Backing, BalloonSpec, BlackBoxSpec, BootSpec, BucketSpec, Cache, DeviceChange, DriveChange,
    DriveSpec, EntropySpec, Entry, IoEngine, Judging, LimiterSpec, MAX_DRIVE_QUEUES,
    MAX_QUEUE_PAIRS, MemorySpec, NetChange, NetSpec, SerialInput, SerialOutput, SerialSpec, Unpack,
    VmSpec, VsockSpec,
};
pub use validate::SpecError;
pub use vcpu::exit::ResetCause;
pub use vm::{CommandError, LaunchError, Outcome, Reply, Vm, VmEvent};
pub use watcher::judge::{Limits, Standing};
