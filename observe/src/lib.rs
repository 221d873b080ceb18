//! Observation: what Vitrine sees of a guest, and how it is kept.
//!
//! This crate knows no device and no KVM. It gives the rest of the workspace
//!
//! * [`Clock`]: two time-stamp counter reads bound an exit;
//! * [`Counter`], [`Gauge`], [`Histogram`]: single-writer cells, a relaxed load and a relaxed
//!   store each, never a locked instruction;
//! * [`Heartbeat`]: one word that says what a thread does now, and since when;
//! * [`FlightRing`]: the last events of a thread;
//! * [`Series`]: the last samples of a few numbers;
//! * [`TextRing`]: the last bytes of what somebody says;
//! * [`Words`]: some words;
//! * [`BlackBox`]: the memory-mapped file in which all of these live, so that any other process
//!   can read them while the VMM runs, when it is stuck, and after it was killed;
//! * [`reader`]: opens such a file, live or dead, and trusts nothing in it;
//! * [`host`]: samplers of what the host does to the VM: threads, pressure, cgroup, memory;
//! * [`ledger`]: where the time of a vCPU went, from two snapshots;
//! * [`openmetrics`]: renders what a reader sees as OpenMetrics text;
//! * [`trace`]: flight rings and tracepoints as a trace that viewers open.
//!
//! Owner threads: each [`Block`] has exactly one writing thread. Readers are any number of
//! threads and processes. Depends on `libc` and `thiserror`.

pub mod blackbox;
pub mod cell;
pub mod clock;
pub mod flight;
pub mod heartbeat;
pub mod host;
pub mod ledger;
pub mod openmetrics;
pub mod place;
pub mod reader;
pub mod report;
pub mod schema;
pub mod series;
pub mod sight;
pub mod text;
pub mod trace;
pub mod verdict;
pub mod words;

pub use blackbox::{BlackBox, BlackBoxError, Block, End, Meta, Probe, Pulse};
pub use cell::{Counter, Gauge, Histogram};
pub use clock::{Clock, Ticks};
pub use flight::{FlightEvent, FlightRing};
pub use heartbeat::{Activity, Heartbeat};
pub use place::PlaceWord;
pub use schema::{Field, FieldKind, Section, SectionKind, Unit};
pub use series::{Column, Series};
pub use text::TextRing;
pub use words::Words;
