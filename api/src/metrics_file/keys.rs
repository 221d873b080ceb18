//! The keys of a line, as Firecracker 1.17 has them on x86-64.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What Firecracker tells of latencies under one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// The shortest since the start, in microseconds.
    pub min_us: u64,
    /// The longest since the start.
    pub max_us: u64,
    /// All together.
    pub sum_us: u64,
}

/// Numbers by group and key, as they stand since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Counters: a line has what came since the line before.
    pub counts: BTreeMap<(String, &'static str), u64>,
    /// Latencies: a line has the sum of what came since, and the extremes as they are.
    pub latencies: BTreeMap<(String, &'static str), Latency>,
    /// Values: a line has them as they are.
    pub stored: BTreeMap<(String, &'static str), u64>,
}

/// A group: its name, its numbers, and its latencies.
type Group = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

#[rustfmt::skip]
const BLOCK: (&[&str], &[&str]) = (
    &[
        "activate_fails", "cfg_fails", "no_avail_buffer", "event_fails", "execute_fails",
        "invalid_reqs_count", "flush_count", "queue_event_count", "rate_limiter_event_count",
        "update_count", "update_fails", "read_bytes", "write_bytes", "read_count", "write_count",
        "rate_limiter_throttled_events", "io_engine_throttled_events", "remaining_reqs_count",
    ],
    &["read_agg", "write_agg"],
);
#[rustfmt::skip]
const NET: (&[&str], &[&str]) = (
    &[
        "activate_fails", "cfg_fails", "mac_address_updates", "no_rx_avail_buffer",
        "no_tx_avail_buffer", "event_fails", "rx_queue_event_count", "rx_event_rate_limiter_count",
        "rx_rate_limiter_throttled", "rx_tap_event_count", "rx_bytes_count", "rx_packets_count",
        "rx_fails", "rx_count", "tap_read_fails", "tap_write_fails", "tx_bytes_count",
        "tx_malformed_frames", "tx_fails", "tx_count", "tx_packets_count", "tx_queue_event_count",
        "tx_rate_limiter_event_count", "tx_rate_limiter_throttled", "tx_spoofed_mac_count",
        "tx_remaining_reqs_count",
    ],
    &["tap_write_agg"],
);

/// The groups of every line; those of devices come on top, as `block_ID` and `net_ID`.
#[rustfmt::skip]
const GROUPS: &[Group] = &[
    (
        "api_server",
        &["process_startup_time_us", "process_startup_time_cpu_us"],
        &[],
    ),
    (
        "balloon",
        &[
            "activate_fails", "inflate_count", "stats_updates_count", "stats_update_fails",
            "deflate_count", "event_fails", "free_page_report_count", "free_page_report_freed",
            "free_page_report_fails", "free_page_hint_count", "free_page_hint_freed",
            "free_page_hint_fails",
        ],
        &[],
    ),
    ("block", BLOCK.0, BLOCK.1),
    ("deprecated_api", &["deprecated_http_api_calls"], &[]),
    (
        "entropy",
        &[
            "activate_fails", "entropy_event_fails", "entropy_event_count", "entropy_bytes",
            "host_rng_fails", "entropy_rate_limiter_throttled", "rate_limiter_event_count",
        ],
        &[],
    ),
    (
        "get_api_requests",
        &[
            "instance_info_count", "machine_cfg_count", "mmds_count", "vmm_version_count",
            "hotplug_memory_count",
        ],
        &[],
    ),
    (
        "i8042",
        &[
            "error_count", "missed_read_count", "missed_write_count", "read_count", "reset_count",
            "write_count",
        ],
        &[],
    ),
    ("interrupts", &["triggers", "config_updates"], &[]),
    (
        "latencies_us",
        &[
            "full_create_snapshot", "diff_create_snapshot", "load_snapshot", "pause_vm",
            "resume_vm", "vmm_full_create_snapshot", "vmm_diff_create_snapshot",
            "vmm_load_snapshot", "vmm_pause_vm", "vmm_resume_vm",
        ],
        &[],
    ),
    (
        "logger",
        &[
            "missed_metrics_count", "metrics_fails", "missed_log_count", "rate_limited_log_count",
        ],
        &[],
    ),
    (
        "memory_hotplug",
        &[
            "activate_fails", "queue_event_fails", "queue_event_count", "plug_count", "plug_bytes",
            "plug_fails", "unplug_count", "unplug_bytes", "unplug_fails", "unplug_discard_fails",
            "unplug_all_count", "unplug_all_fails", "state_count", "state_fails",
        ],
        &["plug_agg", "unplug_agg", "unplug_all_agg", "state_agg"],
    ),
    (
        "mmds",
        &[
            "rx_accepted", "rx_accepted_err", "rx_accepted_unusual", "rx_bad_eth",
            "rx_invalid_token", "rx_no_token", "rx_count", "tx_bytes", "tx_count", "tx_errors",
            "tx_frames", "connections_created", "connections_destroyed",
        ],
        &[],
    ),
    ("net", NET.0, NET.1),
    (
        "patch_api_requests",
        &[
            "drive_count", "drive_fails", "network_count", "network_fails", "machine_cfg_count",
            "machine_cfg_fails", "mmds_count", "mmds_fails", "hotplug_memory_count",
            "hotplug_memory_fails", "pmem_count", "pmem_fails",
        ],
        &[],
    ),
    (
        "pmem",
        &[
            "activate_fails", "cfg_fails", "event_fails", "queue_event_count",
            "rate_limiter_throttled_events", "rate_limiter_event_count",
        ],
        &[],
    ),
    (
        "put_api_requests",
        &[
            "actions_count", "actions_fails", "boot_source_count", "boot_source_fails",
            "drive_count", "drive_fails", "logger_count", "logger_fails", "machine_cfg_count",
            "machine_cfg_fails", "cpu_cfg_count", "cpu_cfg_fails", "metrics_count", "metrics_fails",
            "network_count", "network_fails", "mmds_count", "mmds_fails", "vsock_count",
            "vsock_fails", "pmem_count", "pmem_fails", "serial_count", "serial_fails",
            "hotplug_memory_count", "hotplug_memory_fails",
        ],
        &[],
    ),
    ("seccomp", &["num_faults"], &[]),
    (
        "signals",
        &[
            "sigbus", "sigsegv", "sigxfsz", "sigxcpu", "sigpipe", "sighup", "sigill",
        ],
        &[],
    ),
    (
        "uart",
        &[
            "error_count", "flush_count", "missed_read_count", "missed_write_count", "read_count",
            "write_count", "rate_limiter_dropped_bytes",
        ],
        &[],
    ),
    (
        "vcpu",
        &[
            "exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write", "failures",
            "kvmclock_ctrl_fails",
        ],
        &[
            "exit_io_in_agg", "exit_io_out_agg", "exit_mmio_read_agg", "exit_mmio_write_agg",
        ],
    ),
    ("vmm", &["panic_count"], &[]),
    (
        "vsock",
        &[
            "activate_fails", "cfg_fails", "rx_queue_event_fails", "tx_queue_event_fails",
            "ev_queue_event_fails", "muxer_event_fails", "conn_event_fails", "rx_queue_event_count",
            "tx_queue_event_count", "rx_bytes_count", "tx_bytes_count", "rx_packets_count",
            "tx_packets_count", "conns_added", "conns_killed", "conns_removed", "killq_resync",
            "tx_flush_fails", "tx_write_fails", "rx_read_fails",
        ],
        &[],
    ),
];

impl Totals {
    /// Adds to a counter.
    pub fn count(&mut self, group: &str, key: &'static str, number: u64) {
        let total = self.counts.entry((group.to_owned(), key)).or_default();
        *total = total.saturating_add(number);
    }

    /// Puts a latency beside others under the same key.
    pub fn latency(&mut self, group: &str, key: &'static str, latency: Latency) {
        let known = self.latencies.entry((group.to_owned(), key)).or_default();
        known.sum_us = known.sum_us.saturating_add(latency.sum_us);
        known.max_us = known.max_us.max(latency.max_us);
        known.min_us = match (known.min_us, latency.min_us) {
            (0, other) | (other, 0) => other,
            (one, other) => one.min(other),
        };
    }

    /// Sets a value.
    pub fn store(&mut self, group: &str, key: &'static str, value: u64) {
        self.stored.insert((group.to_owned(), key), value);
    }

    /// What `of` has was never told: it begins at 0 again.
    pub fn forget(&mut self, of: &Totals) {
        self.counts.retain(|key, _| !of.counts.contains_key(key));
        self.latencies
            .retain(|key, _| !of.latencies.contains_key(key));
    }

    /// One line's object: all keys, with what came since `last`. What was never counted is 0.
    pub fn line(&self, last: &Totals, devices: &[Device]) -> Map<String, Value> {
        let mut all = Map::new();
        let groups = GROUPS.iter().map(|(name, numbers, latencies)| {
            let group = self.group(last, name, numbers, latencies);
            ((*name).to_owned(), group)
        });
        all.extend(groups);
        for device in devices {
            let (numbers, latencies) = match device.kind {
                DeviceKind::Block => BLOCK,
                DeviceKind::Net => NET,
            };
            let group = self.group(last, &device.group, numbers, latencies);
            all.insert(device.group.clone(), group);
        }
        all
    }

    fn group(
        &self,
        last: &Totals,
        name: &str,
        numbers: &[&'static str],
        latencies: &[&'static str],
    ) -> Value {
        let mut group = Map::new();
        for key in numbers {
            let at = (name.to_owned(), *key);
            let count = |totals: &Totals| totals.counts.get(&at).copied().unwrap_or(0);
            let since = count(self).saturating_sub(count(last));
            let value = self.stored.get(&at).copied().unwrap_or(since);
            group.insert((*key).to_owned(), json!(value));
        }
        for key in latencies {
            let at = (name.to_owned(), *key);
            let latency = |totals: &Totals| totals.latencies.get(&at).copied().unwrap_or_default();
            let (now, before) = (latency(self), latency(last));
            let sum_us = now.sum_us.saturating_sub(before.sum_us);
            let value = json!({"min_us": now.min_us, "max_us": now.max_us, "sum_us": sum_us});
            group.insert((*key).to_owned(), value);
        }
        Value::Object(group)
    }
}

/// What a device with a group of its own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A drive.
    Block,
    /// A network interface.
    Net,
}

/// A device with a group of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its name in the black box.
    pub name: String,
    /// Its group: `block_rootfs`.
    pub group: String,
}
