//! vCPUs: one thread each, `vcpu-N`, which owns its VcpuFd and its counter block.
//!
//! The thread is a state machine: paused (as it begins), running, stopped. Commands come by a
//! channel and a [`kick::Kicker`]; what the guest does that concerns the whole machine goes out as
//! a [`Report`]. [`exit::dispatch`] is a free function, so tests feed it exits without KVM.

pub mod counters;
pub mod exit;
pub mod failure;
pub mod kick;
pub mod kvm_run;
pub mod places;
pub mod thread;

pub use thread::{Command, Report, ReportKind, VcpuHandle, VcpuParts};
