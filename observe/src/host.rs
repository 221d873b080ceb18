//! What the host does to a VM: samplers that read the kernel's files into the black box.
//!
//! Each sampler owns its sections and is driven by one thread, which calls `sample()` at its own
//! pace, about once a second. Nothing here needs the help of what it observes, takes a lock, or
//! fails: what the kernel does not offer (an old one, another cgroup version, a container without
//! the files) reads 0, and a gauge of the section says that it is missing.
//!
//! | section | sampler | source |
//! |---|---|---|
//! | `task` | [`TaskSampler`] | `/proc/self/task/TID/{stat,schedstat,status}` (proc(5)) |
//! | `psi` | [`HostSampler`] | `/proc/pressure/*` (Documentation/accounting/psi.rst) |
//! | `cgroup` | [`HostSampler`] | this process's cgroup, version 2 or 1 (cgroups(7)) |
//! | `host` | [`HostSampler`] | `/proc/{meminfo,vmstat,stat}`, the pools of huge pages in sysfs |
//! | `memory` | [`MemorySampler`] | `/proc/self/smaps` |
//!
//! Counters count from the making of the section, not from the boot of the host; those of `task`
//! from the start of each thread. Every section's `sampled_at` says how fresh it is.
//!
//! Files are opened once and read again from their beginning. What the kernel writes is parsed in
//! one pure file that cannot panic.

mod cgroup;
mod file;
mod machine;
mod memory;
mod parse;
mod pressure;
mod task;

use std::path::PathBuf;

use crate::blackbox::{BlackBox, BlackBoxError};
use crate::cell::Counter;

pub use cgroup::{CgroupBlock, MEMORY_EVENTS};
pub use machine::{HUGEPAGE_SIZES, HostBlock, HugepageRow};
pub use memory::{MEMORY_ROWS, MemoryBlock, MemoryRow, MemorySampler};
pub use pressure::{PressureRow, PsiBlock, RESOURCES};
pub use task::{TASK_ROWS, TaskBlock, TaskRow, TaskSampler};

use cgroup::CgroupSampler;
use machine::MachineSampler;
use pressure::PressureSampler;

/// Nanoseconds of a tick in `/proc`: USER_HZ is 100 on x86-64, whatever the kernel's own HZ.
const USER_TICK_NS: u64 = 10_000_000;

/// Name of the row that adds up what has no row of its own.
pub const OTHER: &str = "other";

/// Bytes that the sections of all samplers take in a black box together, for
/// [`BlackBox::capacity_for`].
pub const fn section_bytes() -> usize {
    BlackBox::section_bytes::<TaskBlock>()
        + BlackBox::section_bytes::<PsiBlock>()
        + BlackBox::section_bytes::<CgroupBlock>()
        + BlackBox::section_bytes::<HostBlock>()
        + BlackBox::section_bytes::<MemoryBlock>()
}

/// Samples pressure, this process's cgroup and the host: sections `psi`, `cgroup` and `host`.
pub struct HostSampler {
    pressure: PressureSampler,
    cgroup: CgroupSampler,
    machine: MachineSampler,
    buffer: Vec<u8>,
}

impl HostSampler {
    /// Places the sections and takes the readings that the counters start from.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for them.
    pub fn new(black_box: &mut BlackBox) -> Result<Self, BlackBoxError> {
        Self::in_roots(black_box, &Roots::default())
    }

    fn in_roots(black_box: &mut BlackBox, roots: &Roots) -> Result<Self, BlackBoxError> {
        let mut sampler = HostSampler {
            pressure: PressureSampler::new(black_box, roots)?,
            cgroup: CgroupSampler::new(black_box, roots)?,
            machine: MachineSampler::new(black_box, roots)?,
            buffer: Vec::new(),
        };
        sampler.sample();
        Ok(sampler)
    }

    /// Reads all files and writes what they say. Some 30 system calls, no more than a
    /// millisecond. Called by one thread alone.
    pub fn sample(&mut self) {
        self.pressure.sample(&mut self.buffer);
        self.cgroup.sample(&mut self.buffer);
        self.machine.sample(&mut self.buffer);
    }
}

/// Where the kernel's files are; elsewhere in tests.
struct Roots {
    proc: PathBuf,
    sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Roots {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

/// Follows a number of the kernel that only rises. One that falls nevertheless (another cgroup,
/// another file) is taken for a new start: our counter stays and goes on from there.
#[derive(Clone, Copy, Debug, Default)]
struct Follower {
    last: Option<u64>,
}

impl Follower {
    /// Adds to `cell` what the number rose by; the first reading adds nothing.
    fn follow(&mut self, cell: &Counter, now: u64) {
        if let Some(last) = self.last {
            cell.add(now.saturating_sub(last));
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests;
