//! Requests as Firecracker counts them: by what they are about, and how many failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::keys::Totals;

/// A route: method, path, group and keys of its counts. GET has no failures.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const PUT: &str = "put_api_requests";
const PATCH: &str = "patch_api_requests";
const GET: &str = "get_api_requests";

const ROWS: [Row; 22] = [
    ("GET", "/", GET, "instance_info_count", ""),
    ("GET", "/machine-config", GET, "machine_cfg_count", ""),
    ("GET", "/version", GET, "vmm_version_count", ""),
    ("GET", "/mmds", GET, "mmds_count", ""),
    ("GET", "/hotplug/memory", GET, "hotplug_memory_count", ""),
    ("PUT", "/actions", PUT, "actions_count", "actions_fails"),
    (
        "PUT",
        "/boot-source",
        PUT,
        "boot_source_count",
        "boot_source_fails",
    ),
    (
        "PUT",
        "/drives/{drive_id}",
        PUT,
        "drive_count",
        "drive_fails",
    ),
    ("PUT", "/logger", PUT, "logger_count", "logger_fails"),
    (
        "PUT",
        "/machine-config",
        PUT,
        "machine_cfg_count",
        "machine_cfg_fails",
    ),
    ("PUT", "/cpu-config", PUT, "cpu_cfg_count", "cpu_cfg_fails"),
    ("PUT", "/metrics", PUT, "metrics_count", "metrics_fails"),
    (
        "PUT",
        "/network-interfaces/{iface_id}",
        PUT,
        "network_count",
        "network_fails",
    ),
    ("PUT", "/mmds", PUT, "mmds_count", "mmds_fails"),
    ("PUT", "/vsock", PUT, "vsock_count", "vsock_fails"),
    ("PUT", "/pmem/{id}", PUT, "pmem_count", "pmem_fails"),
    ("PUT", "/serial", PUT, "serial_count", "serial_fails"),
    (
        "PUT",
        "/hotplug/memory",
        PUT,
        "hotplug_memory_count",
        "hotplug_memory_fails",
    ),
    (
        "PATCH",
        "/drives/{drive_id}",
        PATCH,
        "drive_count",
        "drive_fails",
    ),
    (
        "PATCH",
        "/network-interfaces/{iface_id}",
        PATCH,
        "network_count",
        "network_fails",
    ),
    (
        "PATCH",
        "/machine-config",
        PATCH,
        "machine_cfg_count",
        "machine_cfg_fails",
    ),
    ("PATCH", "/mmds", PATCH, "mmds_count", "mmds_fails"),
];

/// The counts; written by the API's thread, read by the thread that writes lines.
#[derive(Debug, Default)]
pub struct RequestTally {
    counts: [AtomicU64; ROWS.len()],
    fails: [AtomicU64; ROWS.len()],
    pause_us: AtomicU64,
    resume_us: AtomicU64,
}

impl RequestTally {
    /// Counts a request to the row of the route table.
    pub fn count(&self, method: &str, path: &str, failed: bool) {
        let is_row = |row: &Row| row.0 == method && row.1 == path;
        let Some(index) = ROWS.iter().position(is_row) else {
            return;
        };
        for (counts, counted) in [(&self.counts, true), (&self.fails, failed)] {
            if let Some(count) = counts.get(index).filter(|_| counted) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Keeps how long the last pause took.
    pub fn paused(&self, took: Duration) {
        self.pause_us.store(micros(took), Ordering::Relaxed);
    }

    /// Keeps how long the last resume took.
    pub fn resumed(&self, took: Duration) {
        self.resume_us.store(micros(took), Ordering::Relaxed);
    }

    /// Adds all of it.
    pub fn gather(&self, totals: &mut Totals) {
        let rows = ROWS.iter().zip(&self.counts).zip(&self.fails);
        for (((_, _, group, count, fail), counted), failed) in rows {
            totals.count(group, count, counted.load(Ordering::Relaxed));
            if !fail.is_empty() {
                totals.count(group, fail, failed.load(Ordering::Relaxed));
            }
        }
        let latencies = [("pause_vm", &self.pause_us), ("resume_vm", &self.resume_us)];
        for (key, took) in latencies {
            totals.store("latencies_us", key, took.load(Ordering::Relaxed));
        }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
