//! What Firecracker counts, out of what the black box holds. What Vitrine does not have, or does
//! not count so, stays 0.

use vmm::observe::cell::bucket_low;
use vmm::observe::reader::{HistogramView, SectionView, Snapshot};

use super::keys::{Device, DeviceKind, Latency, Totals};

/// What only drives have, and what only interfaces have: a column and one of its rows.
const TELLING: [(&str, &str, DeviceKind); 2] = [
    ("operations", "flush", DeviceKind::Block),
    ("drops", "tx_no_tap", DeviceKind::Net),
];

/// The devices with groups of their own, in the order in which they were made.
pub fn devices(snapshot: &Snapshot) -> Vec<Device> {
    let sections = snapshot.of_kind("device");
    let devices = sections.filter_map(|section| {
        let (_, name) = section.instance.first()?;
        let has = |field, row: &str| section.row_names(field).any(|name| name == row);
        let mut known = TELLING.into_iter();
        let (_, _, kind) = known.find(|(field, row, _)| has(*field, row))?;
        // A name that was taken already has the kind before it.
        let group = match kind {
            DeviceKind::Block => format!("block_{}", name.strip_prefix("drive-").unwrap_or(name)),
            DeviceKind::Net => format!("net_{}", name.strip_prefix("net-").unwrap_or(name)),
        };
        let name = name.clone();
        Some(Device { kind, name, group })
    });
    devices.collect()
}

/// Adds what the VM has done.
pub fn gather(snapshot: &Snapshot, devices: &[Device], totals: &mut Totals) {
    for vcpu in snapshot.of_kind("vcpu") {
        add_vcpu(vcpu, totals);
    }
    for console in snapshot.of_kind("console") {
        let count = |field: &str| console.counter(field).unwrap_or(0);
        let written = count("output") + count("discarded") + count("limit_dropped");
        totals.count("uart", "read_count", count("input"));
        totals.count("uart", "write_count", written);
        totals.count("uart", "flush_count", count("writes"));
        totals.count("uart", "error_count", count("write_errors"));
        totals.count("uart", "missed_write_count", count("overrun"));
        totals.count("uart", "missed_read_count", count("input_dropped"));
        let key = "rate_limiter_dropped_bytes";
        totals.count("uart", key, count("limit_dropped"));
    }
    for queue in snapshot.of_kind("queue") {
        let sent = queue.counter("interrupts").unwrap_or(0);
        totals.count("interrupts", "triggers", sent);
    }
    for entropy in snapshot.of_kind("device") {
        let count = |field| row(Some(entropy), field, "entropy");
        totals.count("entropy", "entropy_event_count", count("operations"));
        totals.count("entropy", "entropy_bytes", count("operation"));
        totals.count("entropy", "host_rng_fails", count("operation_errors"));
        let name = entropy.instance.first().map_or("", |(_, name)| name);
        let is_entropy = entropy.table("operations", "entropy").is_some();
        let queue = snapshot.section(&format!("queue/{name}/0"));
        let throttled = queue
            .filter(|_| is_entropy)
            .and_then(|queue| queue.counter("limited"));
        let key = "entropy_rate_limiter_throttled";
        totals.count("entropy", key, throttled.unwrap_or(0));
    }
    if let Some(balloon) = snapshot.section("balloon") {
        add_balloon(snapshot, balloon, totals);
    }
    for sockets in snapshot.of_kind("vsock") {
        add_vsock(snapshot, sockets, totals);
    }
    for device in devices {
        let groups = match device.kind {
            DeviceKind::Block => [device.group.as_str(), "block"],
            DeviceKind::Net => [device.group.as_str(), "net"],
        };
        for group in groups {
            match device.kind {
                DeviceKind::Block => add_block(snapshot, &device.name, group, totals),
                DeviceKind::Net => add_net(snapshot, &device.name, group, totals),
            }
        }
    }
}

fn row(section: Option<&SectionView>, field: &str, row: &str) -> u64 {
    let value = section.and_then(|section| section.table(field, row)?.as_u64());
    value.unwrap_or(0)
}

fn add_vcpu(vcpu: &SectionView, totals: &mut Totals) {
    for (reason, key, latency) in [
        ("io_in", "exit_io_in", "exit_io_in_agg"),
        ("io_out", "exit_io_out", "exit_io_out_agg"),
        ("mmio_read", "exit_mmio_read", "exit_mmio_read_agg"),
        ("mmio_write", "exit_mmio_write", "exit_mmio_write_agg"),
    ] {
        totals.count("vcpu", key, row(Some(vcpu), "exits", reason));
        let handled = vcpu.table("exit_handler", reason);
        if let Some(handled) = handled.as_ref().and_then(|value| value.as_histogram()) {
            totals.latency("vcpu", latency, latency_of(handled));
        }
    }
    for reason in ["fail_entry", "internal_error", "memory_fault", "other"] {
        totals.count("vcpu", "failures", row(Some(vcpu), "exits", reason));
    }
    let i8042 = |field| row(Some(vcpu), field, "i8042");
    totals.count("i8042", "read_count", i8042("device_reads"));
    totals.count("i8042", "write_count", i8042("device_writes"));
    totals.count("i8042", "error_count", i8042("device_misuse"));
}

fn latency_of(histogram: &HistogramView) -> Latency {
    let first = histogram.buckets.iter().position(|count| *count > 0);
    Latency {
        min_us: first.map_or(0, |bucket| bucket_low(bucket) / 1000),
        max_us: histogram.max / 1000,
        sum_us: histogram.sum / 1000,
    }
}

fn add_block(snapshot: &Snapshot, name: &str, group: &str, totals: &mut Totals) {
    let device = snapshot.section(&format!("device/{name}"));
    let queues: Vec<_> = (0..vmm::MAX_DRIVE_QUEUES)
        .map_while(|index| snapshot.section(&format!("queue/{name}/{index}")))
        .collect();
    let queued = |field: &str| -> u64 {
        let counts = queues.iter().filter_map(|queue| queue.counter(field));
        counts.sum()
    };
    totals.count(group, "queue_event_count", queued("kicks"));
    totals.count(group, "no_avail_buffer", queued("spurious_kicks"));
    totals.count(group, "event_fails", queued("broken"));
    let done = |operation| row(device, "operations", operation);
    totals.count(group, "flush_count", done("flush"));
    totals.count(group, "invalid_reqs_count", done("unsupported"));
    for operation in [
        "read",
        "write",
        "flush",
        "get_id",
        "discard",
        "write_zeroes",
    ] {
        let failed = row(device, "operation_errors", operation);
        totals.count(group, "execute_fails", failed);
    }
    for (operation, count, bytes, latency) in [
        ("read", "read_count", "read_bytes", "read_agg"),
        ("write", "write_count", "write_bytes", "write_agg"),
    ] {
        totals.count(group, count, done(operation));
        totals.count(group, bytes, row(device, "operation", operation));
        let sum_us = row(device, "operation_service", operation) / 1000;
        let only_sum = Latency {
            sum_us,
            ..Latency::default()
        };
        totals.latency(group, latency, only_sum);
    }
}

fn add_net(snapshot: &Snapshot, name: &str, group: &str, totals: &mut Totals) {
    let device = snapshot.section(&format!("device/{name}"));
    // Receive and transmit queues by turns; behind several pairs, the control queue.
    let queues: Vec<_> = (0..=2 * u16::from(vmm::MAX_QUEUE_PAIRS))
        .map_while(|index| snapshot.section(&format!("queue/{name}/{index}")))
        .collect();
    let pairs = queues.chunks_exact(2);
    for queue in pairs.remainder() {
        totals.count(group, "event_fails", queue.counter("broken").unwrap_or(0));
    }
    for (place, events, none, empty, throttled) in [
        (
            0,
            "rx_queue_event_count",
            "no_rx_avail_buffer",
            "starved",
            "rx_rate_limiter_throttled",
        ),
        (
            1,
            "tx_queue_event_count",
            "no_tx_avail_buffer",
            "spurious_kicks",
            "tx_rate_limiter_throttled",
        ),
    ] {
        let queued = |field: &str| -> u64 {
            let queues = pairs.clone().filter_map(|pair| pair.get(place));
            queues.filter_map(|queue| queue.counter(field)).sum()
        };
        totals.count(group, events, queued("kicks"));
        totals.count(group, none, queued(empty));
        totals.count(group, throttled, queued("limited"));
        totals.count(group, "event_fails", queued("broken"));
    }
    for (operation, count, packets, bytes, fails) in [
        (
            "rx",
            "rx_count",
            "rx_packets_count",
            "rx_bytes_count",
            "rx_fails",
        ),
        (
            "tx",
            "tx_count",
            "tx_packets_count",
            "tx_bytes_count",
            "tx_fails",
        ),
    ] {
        let done = row(device, "operations", operation);
        totals.count(group, count, done);
        totals.count(group, packets, done);
        totals.count(group, bytes, row(device, "operation", operation));
        totals.count(group, fails, row(device, "operation_errors", operation));
    }
    let dropped = |cause| row(device, "drops", cause);
    totals.count(group, "rx_fails", dropped("rx_too_long"));
    let malformed = dropped("tx_malformed") + dropped("tx_oversize");
    totals.count(group, "tx_malformed_frames", malformed);
    totals.count(group, "tx_spoofed_mac_count", dropped("tx_spoofed_mac"));
    let refused = dropped("tx_refused") + dropped("tx_no_tap");
    totals.count(group, "tap_write_fails", refused);
}

/// Firecracker counts times that a queue had something; here they are the requests themselves.
fn add_balloon(snapshot: &Snapshot, balloon: &SectionView, totals: &mut Totals) {
    let is_balloon = |device: &&SectionView| {
        let mut operations = device.row_names("operations");
        operations.any(|operation| operation == "inflate")
    };
    let device = snapshot.of_kind("device").find(is_balloon);
    for (operation, key) in [
        ("inflate", "inflate_count"),
        ("deflate", "deflate_count"),
        ("statistics", "stats_updates_count"),
        ("report", "free_page_report_count"),
        ("hint", "free_page_hint_count"),
    ] {
        totals.count("balloon", key, row(device, "operations", operation));
    }
    for (operation, key) in [
        ("inflate", "event_fails"),
        ("deflate", "event_fails"),
        ("statistics", "stats_update_fails"),
        ("report", "free_page_report_fails"),
        ("hint", "free_page_hint_fails"),
    ] {
        totals.count("balloon", key, row(device, "operation_errors", operation));
    }
    for (field, key) in [
        ("reported", "free_page_report_freed"),
        ("hinted", "free_page_hint_freed"),
    ] {
        let bytes = balloon.counter(field).unwrap_or(0);
        totals.count("balloon", key, bytes);
    }
}

fn add_vsock(snapshot: &Snapshot, sockets: &SectionView, totals: &mut Totals) {
    let Some((_, name)) = sockets.instance.first() else {
        return;
    };
    let device = snapshot.section(&format!("device/{name}"));
    for (operation, index, packets, bytes, kicks, fails) in [
        (
            "rx",
            "0",
            "rx_packets_count",
            "rx_bytes_count",
            "rx_queue_event_count",
            "rx_read_fails",
        ),
        (
            "tx",
            "1",
            "tx_packets_count",
            "tx_bytes_count",
            "tx_queue_event_count",
            "tx_write_fails",
        ),
    ] {
        let of = |field| row(device, field, operation);
        totals.count("vsock", packets, of("operations"));
        totals.count("vsock", bytes, of("operation"));
        totals.count("vsock", fails, of("operation_errors"));
        let queue = snapshot.section(&format!("queue/{name}/{index}"));
        let kicked = queue.and_then(|queue| queue.counter("kicks"));
        totals.count("vsock", kicks, kicked.unwrap_or(0));
    }
    let count = |field| sockets.counter(field).unwrap_or(0);
    let added = count("opened_by_guest").saturating_add(count("opened_by_host"));
    totals.count("vsock", "conns_added", added);
}
#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use vmm::observe::reader::Reader;
    use vmm::observe::{BlackBox, Counter, Field, Meta, Section, Unit};

    use super::*;

    #[repr(C)]
    struct Device {
        operations: [Counter; 2],
        drops: [Counter; 2],
    }

    // SAFETY: repr(C), cells only.
    #[allow(unsafe_code)]
    unsafe impl Section for Device {
        const KIND: &'static str = "device";
        const INSTANCE: &'static [&'static str] = &["device"];
        const FIELDS: &'static [Field] = &[
            Field::counter("operations", Unit::None, 0, ".").column(2, 8, "operation"),
            Field::counter("drops", Unit::None, offset_of!(Device, drops), ".")
                .column(2, 8, "cause"),
        ];
    }

    #[repr(C)]
    struct Queue {
        limited: Counter,
    }

    // SAFETY: repr(C), cells only.
    #[allow(unsafe_code)]
    unsafe impl Section for Queue {
        const KIND: &'static str = "queue";
        const INSTANCE: &'static [&'static str] = &["device", "queue"];
        const FIELDS: &'static [Field] = &[Field::counter("limited", Unit::None, 0, ".")];
    }

    #[repr(C)]
    struct Port {
        output: Counter,
        limit_dropped: Counter,
    }

    // SAFETY: repr(C), cells only.
    #[allow(unsafe_code)]
    unsafe impl Section for Port {
        const KIND: &'static str = "console";
        const INSTANCE: &'static [&'static str] = &["console"];
        const FIELDS: &'static [Field] = &[
            Field::counter("output", Unit::Bytes, 0, "."),
            Field::counter(
                "limit_dropped",
                Unit::Bytes,
                offset_of!(Port, limit_dropped),
                ".",
            ),
        ];
    }

    #[test]
    fn what_limits_and_filters_do_is_under_firecrackers_keys() {
        let meta = Meta {
            vm_id: "x".into(),
            version: "7".into(),
        };
        let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let device = |black_box: &mut BlackBox, name: &str, operations: &[&str]| {
            let causes = match name {
                "eth0" => ["tx_spoofed_mac", "tx_no_tap"],
                _ => ["one", "other"],
            };
            let (operations, causes): (Vec<_>, Vec<_>) = (owned(operations), owned(&causes));
            let labels = [("operation", &*operations), ("cause", &*causes)];
            let section = format!("device/{name}");
            black_box.section::<Device>(&section, &labels).unwrap()
        };
        let card = device(&mut black_box, "eth0", &["rx", "tx"]);
        let random = device(&mut black_box, "virtio-entropy", &["entropy"]);
        // No other device's queue counts as the entropy device's.
        let disk = device(&mut black_box, "rootfs", &["read", "flush"]);
        let mut queue = |name: &str, limited: u64| {
            let section = format!("queue/{name}");
            let queue = black_box.section::<Queue>(&section, &[]).unwrap();
            queue.limited.add(limited);
            queue
        };
        let queues = [
            queue("eth0/0", 3),
            queue("eth0/1", 5),
            queue("eth0/2", 30),
            queue("eth0/3", 50),
            // Commands of the driver wait for no limit.
            queue("eth0/4", 700),
            queue("virtio-entropy/0", 7),
            queue("rootfs/0", 11),
        ];
        let port = black_box.section::<Port>("console/serial", &[]).unwrap();
        card.drops[0].add(13);
        random.operations[0].add(1);
        port.output.add(100);
        port.limit_dropped.add(17);

        let file = black_box.file().unwrap();
        let snapshot = Reader::from_file(file, "test".into()).unwrap().snapshot();
        let snapshot = snapshot.unwrap();
        let mut totals = Totals::default();
        gather(&snapshot, &devices(&snapshot), &mut totals);
        let count = |group: &str, key| totals.counts[&(group.to_owned(), key)];
        for group in ["net", "net_eth0"] {
            assert_eq!(count(group, "rx_rate_limiter_throttled"), 33);
            assert_eq!(count(group, "tx_rate_limiter_throttled"), 55);
            assert_eq!(count(group, "tx_spoofed_mac_count"), 13);
        }
        assert_eq!(count("entropy", "entropy_rate_limiter_throttled"), 7);
        assert_eq!(count("uart", "rate_limiter_dropped_bytes"), 17);
        assert_eq!(count("uart", "write_count"), 117);
        drop((disk, queues));
    }
}
