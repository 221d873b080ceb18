//! HTTP over a Unix socket: wire types, conversion to specs, routes.
//!
//! Speaks Firecracker's API and Vitrine's own on one socket. A request goes one way:
//! [`http`] -> [`routes`] -> [`wire`] -> [`session`] -> [`config`] or a [`machine::Machine`].
//!
//! Owner threads: `api` runs all of it on one tokio current-thread runtime; `launch` builds a VM
//! and ends; `policy` does what is to be done about
//! verdicts; `metrics` writes Firecracker's metrics file when one is asked for; `trace` writes a
//! trace for a client and ends; `dump` a dump. Nothing waits on a thread of the VM without a deadline, and reads
//! never do. May depend on `vmm` and, for its black
//! box, on what `vmm` hands through.

pub mod admission;
pub mod config;
pub mod config_file;
pub mod dump;
pub mod events;
pub mod health;
pub mod http;
pub mod keeper;
pub mod kvm;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod metrics_file;
pub mod observation;
pub mod policy;
pub mod query;
pub mod record;
pub mod routes;
pub mod server;
pub mod session;
pub mod trace;
pub mod wire;

pub use vmm;

/// The version of Firecracker whose API this is.
pub const FIRECRACKER_VERSION: &str = "1.17.0";
/// Vitrine's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
