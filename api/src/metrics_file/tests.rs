//! Lines: their keys, their differences, and what happens when nobody reads.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use vmm::DumpKind;
use vmm::observe::openmetrics;
use vmm::observe::reader::{Reader, Snapshot};
use vmm::observe::{BlackBox, Block, Counter, Field, Histogram, Meta, Section, Unit};

use super::*;
use crate::machine::{Command, MachineState, Reply as CommandReply};

#[repr(C)]
struct Toy {
    exits: [Counter; 2],
    handler: [Histogram; 2],
    reads: [Counter; 1],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Toy {
    const KIND: &'static str = "vcpu";
    const INSTANCE: &'static [&'static str] = &["vcpu"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("exits", Unit::None, 0, ".").column(2, 8, "reason"),
        Field::histogram("exit_handler", Unit::Nanoseconds, std::mem::offset_of!(Toy, handler), ".")
            .column(2, size_of::<Histogram>(), "reason"),
        Field::counter("device_reads", Unit::None, std::mem::offset_of!(Toy, reads), ".").column(1, 8, "device"),
    ];
}

#[repr(C)]
struct Disk {
    operations: [Counter; 3],
    bytes: [Counter; 3],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Disk {
    const KIND: &'static str = "device";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("operations", Unit::None, 0, ".").column(3, 8, "operation"),
        Field::counter("operation", Unit::Bytes, 24, ".").column(3, 8, "operation"),
    ];
}

struct Fake {
    black_box: Mutex<BlackBox>,
    vcpu: Block<Toy>,
    disk: Block<Disk>,
}

impl Machine for Fake {
    fn command(&self, _: Command, _: CommandReply) {}
    fn change_device(&self, _: &str, _: vmm::DeviceChange, reply: CommandReply) {
        reply(Ok(()));
    }
    fn fail(&self, _: String) {}
    fn state(&self) -> MachineState {
        MachineState::Running
    }
    fn openmetrics(&self) -> Result<String, MachineError> {
        let mut text = String::new();
        openmetrics::render(&self.snapshot()?, &mut text);
        Ok(text)
    }
    fn snapshot(&self) -> Result<Snapshot, MachineError> {
        let file = self.black_box.lock().unwrap().file().unwrap();
        Ok(Reader::from_file(file, "test".into())
            .unwrap()
            .snapshot()
            .unwrap())
    }
    fn standing(&self) -> Arc<vmm::Standing> {
        Arc::default()
    }
    fn dump(&self, _: DumpKind, _: &Path, _: &mut dyn FnMut(u64, u64)) -> Result<(), MachineError> {
        Err(MachineError::from("not dumped"))
    }
    fn dump_deadline(&self) -> Duration {
        Duration::ZERO
    }
    fn black_box(&self) -> String {
        "test".to_owned()
    }
}

fn fake() -> Arc<Fake> {
    let meta = Meta {
        vm_id: "x".into(),
        version: "7".into(),
    };
    let mut black_box = BlackBox::anonymous(256 << 10, &meta).unwrap();
    let owned = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let (reasons, devices) = (owned(&["io_in", "mmio_write"]), owned(&["i8042"]));
    let operations = owned(&["read", "write", "flush"]);
    let labels = [("reason", &*reasons), ("device", &*devices)];
    let vcpu = black_box.section("vcpu/0", &labels).unwrap();
    let disk = black_box
        .section("device/rootfs", &[("operation", &*operations)])
        .unwrap();
    let black_box = Mutex::new(black_box);
    Arc::new(Fake {
        black_box,
        vcpu,
        disk,
    })
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("vitrine-metrics-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&path);
        Scratch(path)
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.0).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn wire(&self) -> MetricsWire {
        MetricsWire {
            metrics_path: self.0.clone(),
            ..MetricsWire::default()
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn flush(file: &MetricsFile) -> Result<(), MetricsFileError> {
    let (sender, done) = mpsc::channel();
    file.flush(move |outcome| drop(sender.send(outcome)));
    done.recv_timeout(Duration::from_secs(10)).unwrap()
}

#[test]
fn a_line_has_what_came_since_the_line_before() {
    let scratch = Scratch::new("deltas");
    let file = MetricsFile::new("vm1", LogControl::new("vm1"));
    let mut wire = scratch.wire();
    wire.emit_id = Some(true);
    wire.properties = Some([("team".to_owned(), "a".to_owned())].into());
    file.open(&wire).unwrap();
    let machine = fake();
    machine.vcpu.exits[0].add(5);
    machine.vcpu.handler[0].record(3_000);
    machine.disk.operations[0].add(2);
    machine.disk.bytes[0].add(1024);
    file.requests.count("PUT", "/drives/{drive_id}", true);
    file.started(machine.clone());
    flush(&file).unwrap();
    machine.vcpu.exits[0].add(1);
    machine.vcpu.reads[0].add(4);
    machine.disk.operations[2].add(7);
    file.requests.paused(Duration::from_micros(9));
    flush(&file).unwrap();
    file.finish();
    let lines = scratch.lines();
    assert_eq!(lines.len(), 4, "the start, two flushes, the end");
    let sum = |group: &str, key: &str| -> u64 {
        lines
            .iter()
            .map(|line| line[group][key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(
        (sum("vcpu", "exit_io_in"), sum("i8042", "read_count")),
        (6, 4)
    );
    assert_eq!(
        (
            sum("block", "read_count"),
            sum("block_rootfs", "read_bytes")
        ),
        (2, 1024)
    );
    assert_eq!(sum("block_rootfs", "flush_count"), 7);
    assert_eq!(sum("put_api_requests", "drive_fails"), 1);
    let (first, flushed) = (&lines[0], &lines[2]);
    assert_eq!(first["vcpu"]["exit_io_in"], 5);
    assert_eq!(first["vcpu"]["exit_io_in_agg"]["sum_us"], 3);
    assert_eq!(flushed["vcpu"]["exit_io_in"], 1);
    assert_eq!(flushed["latencies_us"]["pause_vm"], 9);
    assert_eq!(
        lines[3]["latencies_us"]["pause_vm"], 9,
        "a value, not a counter"
    );
    assert_eq!(
        (&first["id"], &first["properties"]["team"]),
        (&json!("vm1"), &json!("a"))
    );
    assert!(first["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
}

#[repr(C)]
struct Sockets {
    by_guest: Counter,
    by_host: Counter,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Sockets {
    const KIND: &'static str = "vsock";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("opened_by_guest", Unit::None, 0, "."),
        Field::counter("opened_by_host", Unit::None, 8, "."),
    ];
}

#[repr(C)]
struct Balloon {
    reported: Counter,
    hinted: Counter,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Balloon {
    const KIND: &'static str = "balloon";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("reported", Unit::Bytes, 0, "."),
        Field::counter("hinted", Unit::Bytes, 8, "."),
    ];
}

/// Sockets have operations of the same names as an interface and are none.
#[test]
fn balloon_and_sockets_have_their_own_groups() {
    let machine = fake();
    let owned = |names: [&str; 3]| names.map(ToOwned::to_owned);
    let place = |name: &str, operations: [&str; 3]| -> Block<Disk> {
        let mut black_box = machine.black_box.lock().unwrap();
        let labels = [("operation", &owned(operations)[..])];
        black_box.section(name, &labels).unwrap()
    };
    let device = place("device/balloon", ["inflate", "report", "hint"]);
    let packets = place("device/vsock", ["rx", "tx", "other"]);
    let (balloon, sockets): (Block<Balloon>, Block<Sockets>) = {
        let mut black_box = machine.black_box.lock().unwrap();
        (
            black_box.section("balloon", &[]).unwrap(),
            black_box.section("vsock/vsock", &[]).unwrap(),
        )
    };
    for (row, count) in [(0, 3), (1, 5), (2, 7)] {
        device.operations[row].add(count);
    }
    balloon.reported.add(8192);
    balloon.hinted.add(4096);
    packets.operations[0].add(11);
    packets.bytes[1].add(13);
    sockets.by_guest.add(1);
    sockets.by_host.add(2);
    let snapshot = machine.snapshot().unwrap();
    let devices = values::devices(&snapshot);
    let groups: Vec<&str> = devices.iter().map(|device| &*device.group).collect();
    assert_eq!(groups, ["block_rootfs"]);
    let mut totals = Totals::default();
    values::gather(&snapshot, &devices, &mut totals);
    let line = totals.line(&Totals::default(), &devices);
    for (group, key, number) in [
        ("balloon", "inflate_count", 3),
        ("balloon", "free_page_report_count", 5),
        ("balloon", "free_page_hint_count", 7),
        ("balloon", "free_page_report_freed", 8192),
        ("balloon", "free_page_hint_freed", 4096),
        ("vsock", "rx_packets_count", 11),
        ("vsock", "tx_bytes_count", 13),
        ("vsock", "conns_added", 3),
        ("net", "rx_packets_count", 0),
    ] {
        assert_eq!(line[group][key], number, "{group} {key}");
    }
}

#[test]
fn every_line_has_every_group() {
    let line = Totals::default().line(&Totals::default(), &[]);
    for group in [
        "api_server",
        "balloon",
        "block",
        "deprecated_api",
        "entropy",
        "get_api_requests",
        "i8042",
        "interrupts",
        "latencies_us",
        "logger",
        "memory_hotplug",
        "mmds",
        "net",
        "patch_api_requests",
        "pmem",
        "put_api_requests",
        "seccomp",
        "signals",
        "uart",
        "vcpu",
        "vmm",
        "vsock",
    ] {
        let keys = line[group].as_object().unwrap();
        assert!(!keys.is_empty(), "{group}");
    }
    assert_eq!(
        line["vcpu"]["exit_io_in_agg"],
        json!({"min_us": 0, "max_us": 0, "sum_us": 0})
    );
    assert_eq!(line["net"]["tap_write_agg"]["sum_us"], 0);
}

#[test]
fn a_path_is_taken_once_and_a_bad_one_is_named() {
    let scratch = Scratch::new("once");
    let file = MetricsFile::new("vm1", LogControl::new("vm1"));
    flush(&file).unwrap();
    let mut wire = scratch.wire();
    wire.metrics_path = "/no/such/folder/metrics".into();
    let error = file.open(&wire).unwrap_err().to_string();
    assert!(
        error.contains("metrics_path /no/such/folder/metrics"),
        "{error}"
    );
    file.open(&scratch.wire()).unwrap();
    let error = file.open(&scratch.wire()).unwrap_err().to_string();
    assert_eq!(error, "Reinitialization of metrics not allowed.");
    file.finish();
}

#[test]
fn a_fifo_that_nobody_reads_loses_whole_lines_and_no_counts() {
    let scratch = Scratch::new("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&scratch.0)
        .status();
    assert!(made.unwrap().success());
    let file = MetricsFile::new("vm1", LogControl::new("vm1"));
    file.open(&scratch.wire()).unwrap();
    let machine = fake();
    file.started(machine.clone());
    let mut refused = 0;
    for _ in 0..40 {
        machine.vcpu.exits[0].add(1);
        if let Err(error) = flush(&file) {
            assert!(error.to_string().contains("takes no more"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    let mut options = fs::OpenOptions::new();
    let mut reader = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&scratch.0)
        .unwrap();
    let mut text = Vec::new();
    // The rest of a line that was begun comes as soon as there is room.
    for _ in 0..4 {
        let _ = reader.read_to_end(&mut text);
        std::thread::sleep(Duration::from_millis(300));
    }
    flush(&file).unwrap();
    file.finish();
    let _ = reader.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sum = |group: &str, key: &str| -> u64 {
        lines
            .iter()
            .map(|line| line[group][key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("vcpu", "exit_io_in"), 40);
    assert_eq!(sum("logger", "missed_metrics_count"), refused);
}
