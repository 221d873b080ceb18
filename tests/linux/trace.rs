//! What a trace tells of the kernel's side, checked against the kernel's own count.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmm::trace::record;
use vmm::{VmCommand, VmSpec};

use crate::harness::chrome::{Shared, Trace};
use crate::harness::{Guest, image, spec};
use crate::{PATIENCE, linux};

/// How long the guest runs between the pauses.
const LOOK: Duration = Duration::from_secs(2);

const HISTOGRAM: &str = "hist:keys=exit_reason";

/// A file that, if it has this, stands still while that says so, when the first of the kernel's
/// exits is written.
struct Stalling<'a>(Shared, Option<&'a AtomicBool>);

impl Write for Stalling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = Instant::now() + PATIENCE;
        while bytes.windows(8).any(|word| word == b"kvm_exit")
            && self.1.is_some_and(|stands| stands.load(Ordering::Relaxed))
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The kernel's count of exits by reason, begun by this and ended with it.
struct Histogram(&'static Path);

impl Histogram {
    /// `None` where tracefs is not to be had.
    fn begin() -> Option<Histogram> {
        let folder = Path::new("/sys/kernel/tracing/events/kvm/kvm_exit");
        fs::write(folder.join("trigger"), HISTOGRAM).ok()?;
        Some(Histogram(folder))
    }

    fn counts(&self) -> BTreeMap<u64, u64> {
        let text = fs::read_to_string(self.0.join("hist")).unwrap();
        let rows = text
            .lines()
            .filter(|line| line.starts_with("{ exit_reason:"));
        let row = |line: &str| {
            let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
            (numbers.next().unwrap(), numbers.next().unwrap())
        };
        rows.map(row).collect()
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("trigger"), format!("!{HISTOGRAM}"));
    }
}

/// Traces a guest that runs for two seconds, and makes at least so many exits, between two pauses:
/// what is counted elsewhere is counted of the same exits. If it stalls, the trace cannot be
/// written while the guest runs.
fn trace_between_pauses(
    spec: VmSpec,
    least: u64,
    stalls: bool,
) -> (Trace, Option<BTreeMap<u64, u64>>) {
    let guest = Guest::launch(spec);
    guest.command(VmCommand::Pause);
    let histogram = Histogram::begin();
    let (out, wanted) = (Shared::default(), AtomicBool::new(true));
    let file = Stalling(out.clone(), stalls.then_some(&wanted));
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let mut source = || guest.vm.snapshot().map_err(Into::into);
            let wanted = || wanted.load(Ordering::Relaxed);
            record(&mut source, PATIENCE * 2, &wanted, file).unwrap();
        });
        // The tracepoints are on before the first event of the flight rings is written.
        let end = Instant::now() + PATIENCE;
        while !out.text().contains("user_exit") && !tracer.is_finished() {
            assert!(Instant::now() < end, "{}", out.text());
            std::thread::sleep(Duration::from_millis(5));
        }
        guest.command(VmCommand::Resume);
        std::thread::sleep(LOOK);
        let exits = || guest.seen().written("vcpu/0");
        while exits() < least {
            assert!(Instant::now() < end, "{} exits", exits());
            std::thread::sleep(Duration::from_millis(50));
        }
        guest.command(VmCommand::Pause);
        wanted.store(false, Ordering::Relaxed);
    });
    let counts = histogram.map(|histogram| histogram.counts());
    guest.stop();
    (Trace::check(&out.text()), counts)
}

/// Exits by reason are those that the kernel counted, up to those that are told as lost: so many.
fn agree(trace: &Trace, kernels: &BTreeMap<u64, u64>) -> u64 {
    let data = &trace.0["otherData"];
    let mut ours = BTreeMap::<u64, u64>::new();
    let mut names = BTreeMap::new();
    for event in trace.of("kvm_exit") {
        let reason = event["args"]["reason"].as_u64().unwrap();
        *ours.entry(reason).or_default() += 1;
        names.insert(reason, event["name"].as_str().unwrap());
    }
    let lost = data["lost"]["kernel"]["vcpu-0"].as_u64().unwrap_or(0);
    println!("{:<20} {:>10} {:>10}", "", "the trace", "the kernel");
    for (reason, count) in kernels {
        let name = names.get(reason).copied().unwrap_or("?");
        let ours = ours.get(reason).copied().unwrap_or(0);
        println!("{name:<20} {ours:>10} {count:>10}");
        assert!(ours <= *count && count - ours <= lost, "{name}");
    }
    assert!(ours.keys().all(|reason| kernels.contains_key(reason)));
    let (ours, kernels): (u64, u64) = (ours.values().sum(), kernels.values().sum());
    println!("{:<20} {ours:>10} {kernels:>10}   lost {lost}", "all");
    assert!(kernels > 200);
    let exits = &data["kernel"]["vcpu-0"]["kvm_exit"];
    assert_eq!(exits["hits"], kernels);
    assert_eq!(exits["seen"], ours);
    lost
}

#[test]
fn kernel_exits_of_a_trace_agree_with_the_kernels_own_count_by_reason() {
    // With words on the console from the first on, and so with user exits.
    let words = "loglevel=7 earlyprintk=serial,ttyS0";
    let (trace, counts) = trace_between_pauses(linux("6.12", words, "sleep 100"), 0, false);
    assert!(trace.of("user_exit").count() > 50);
    let Some(kernels) = counts else {
        // Not root, or no tracefs: then the trace must say so.
        assert!(
            trace.missing().contains("kernel exits"),
            "{}",
            trace.missing()
        );
        return;
    };
    assert_eq!(trace.missing(), "[]");
    agree(&trace, &kernels);
    let mut faults = trace.of("page_fault");
    assert!(faults.all(|event| event["args"]["address"].is_string()));
    assert!(trace.of("page_fault").count() > 10);
    user_exits_lie_in_kernel_exits(&trace);
}

#[test]
fn what_finds_no_place_in_the_ring_is_counted_as_lost() {
    let busy = spec(image("zoo.elf"), "console=ttyS0 zoo: quiet loop_pio=0x80");
    let (trace, counts) = trace_between_pauses(busy, 20_000, true);
    let Some(kernels) = counts else {
        assert!(
            trace.missing().contains("kernel exits"),
            "{}",
            trace.missing()
        );
        return;
    };
    let lost = agree(&trace, &kernels);
    assert!(lost > 0);
    let rows = trace.0["otherData"]["kernel"]["vcpu-0"]
        .as_object()
        .unwrap();
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap_or(0);
    let missed: u64 = rows
        .values()
        .map(|row| number(row, "hits") - number(row, "seen"))
        .sum();
    assert_eq!(missed, lost);
}

/// A user exit is a part of the kernel exit that led to it: so the two clocks agree.
fn user_exits_lie_in_kernel_exits(trace: &Trace) {
    const TOLERANCE_US: f64 = 100.0;
    let span = |event: &Value| {
        let start = event["ts"].as_f64().unwrap();
        (start, start + event["dur"].as_f64().unwrap_or(0.0))
    };
    let kernel: Vec<_> = trace.of("kvm_exit").map(span).collect();
    let begin = kernel.first().unwrap().0;
    let io = ["io_in", "io_out", "mmio_read", "mmio_write"];
    let user = trace.of("user_exit").filter(|event| {
        event["args"]["reason"]
            .as_str()
            .is_some_and(|reason| io.contains(&reason))
    });
    let spans: Vec<_> = user.map(span).filter(|(start, _)| *start > begin).collect();
    let within = |(start, end): &&(f64, f64)| {
        let holds =
            |(from, to): &(f64, f64)| from - TOLERANCE_US <= *start && *end <= to + TOLERANCE_US;
        // They are in order: it is one of the last that had begun.
        let begun = kernel.partition_point(|(from, _)| from - TOLERANCE_US <= *start);
        kernel[..begun].iter().rev().take(16).any(holds)
    };
    let inside = spans.iter().filter(within).count();
    println!(
        "{inside} of {} user exits lie in a kernel exit",
        spans.len()
    );
    assert!(spans.len() > 50);
    assert!(inside * 100 >= spans.len() * 95);
}
