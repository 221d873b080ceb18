use std::cell::Cell;
use std::time::Duration;

use devices::virtio::ThreadBlock;
use devices::virtio::counters::Flight;
use observe::reader::{Reader, Snapshot};
use observe::{BlackBox, Block, Clock, FlightEvent, Meta};

use super::*;
use crate::vcpu::counters::{EXIT_NAMES, ExitKind, VcpuBlock};

/// A black box with a vCPU and an I/O thread, written by hand.
struct Written {
    black_box: BlackBox,
    vcpu: Block<VcpuBlock>,
    io: Block<ThreadBlock>,
    clock: Clock,
}

impl Written {
    fn new() -> Written {
        let meta = Meta {
            vm_id: "test".to_owned(),
            version: "0".to_owned(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let reasons = EXIT_NAMES.map(ToOwned::to_owned);
        let devices = ["", "serial"].map(ToOwned::to_owned);
        let labels = [("reason", &reasons[..]), ("device", &devices[..])];
        let vcpu = black_box.section("vcpu/0", &labels).unwrap();
        let io = black_box.section("thread/io-disk", &[]).unwrap();
        Written {
            black_box,
            vcpu,
            io,
            clock: Clock::process(),
        }
    }

    fn exit(&self, kind: ExitKind, ns: u64) {
        self.vcpu.flight.push(FlightEvent {
            at: self.clock.ticks(),
            what: kind as u64 | 1 << 16 | 1 << 32,
            address: 0x3f8,
            value: ns,
        });
    }

    fn deed(&self, kind: Flight, address: u64, value: u64) {
        self.io.flight.push(FlightEvent {
            at: self.clock.ticks(),
            what: kind as u64 | 1 << 16,
            address,
            value,
        });
    }

    fn snapshot(&self) -> Snapshot {
        let file = self.black_box.file().unwrap();
        Reader::from_file(file, "(test)".into())
            .unwrap()
            .snapshot()
            .unwrap()
    }

    fn trace(&self, ms: u64, wanted: &dyn Fn() -> bool) -> String {
        let mut source = || Ok(self.snapshot());
        let out = record(&mut source, Duration::from_millis(ms), wanted, Vec::new());
        String::from_utf8(out.unwrap()).unwrap()
    }
}

fn lines<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(word)).collect()
}

#[test]
fn user_exits_and_what_devices_did_are_told_by_name() {
    let written = Written::new();
    written.exit(ExitKind::IoOut, 700);
    written.deed(Flight::Kick, 0, 3);
    written.deed(Flight::Done, 512, 2000);
    written.deed(Flight::HostError, 0, 5);
    let text = written.trace(1, &|| true);
    let exit = lines(&text, "\"cat\":\"user_exit\"");
    assert_eq!(exit.len(), 1, "{text}");
    for part in [
        r#""ph":"X""#,
        r#""name":"io_out serial""#,
        r#""dur":0.700"#,
        r#""address":"0x3f8","bytes":1"#,
    ] {
        assert!(exit[0].contains(part), "{part}: {}", exit[0]);
    }
    let deeds = lines(&text, "\"cat\":\"device\"");
    let expected = [
        r#""name":"kick","s":"t","cat":"device","args":{"queue":0,"kicks":3}"#,
        r#""name":"operation 0","dur":2.000,"cat":"device","args":{"bytes":512,"service_ns":2000}"#,
        r#""name":"host error","s":"t","cat":"device","args":{"operation":"operation 0","errno":5}"#,
    ];
    assert_eq!(deeds.len(), expected.len(), "{text}");
    for (deed, part) in deeds.iter().zip(expected) {
        assert!(deed.contains(part), "{part}: {deed}");
    }
    assert!(
        text.contains(r#""events":{"device":3,"user_exit":1}"#),
        "{text}"
    );
}

#[test]
fn requests_that_overlap_lie_on_different_tracks() {
    let written = Written::new();
    for _ in 0..20 {
        written.deed(Flight::Done, 512, 1_000_000_000);
    }
    let text = written.trace(1, &|| true);
    for track in ["\"io-disk\"", "\"io-disk (2)\"", "\"io-disk (8)\""] {
        assert_eq!(lines(&text, track).len(), 1, "{track}: {text}");
    }
    assert!(!text.contains("io-disk (9)"));
    assert_eq!(lines(&text, "\"service_ns\":1000000000").len(), 20);
}

#[test]
fn events_that_were_overwritten_meanwhile_are_counted_by_thread() {
    let written = Written::new();
    let calls = Cell::new(0);
    let mut source = || {
        let snapshot = written.snapshot();
        if calls.replace(calls.get() + 1) < 2 {
            (0..1000).for_each(|_| written.exit(ExitKind::IoIn, 1));
        }
        Ok(snapshot)
    };
    let wanted = || calls.get() < 4;
    let out = record(&mut source, Duration::from_secs(10), &wanted, Vec::new());
    let text = String::from_utf8(out.unwrap()).unwrap();
    // 2000 were written, and the last 511 of each thousand are whole.
    assert!(text.contains(r#""user_exit":1022"#), "{text}");
    assert!(text.contains(r#""lost":{"flight":{"vcpu-0":978},"kernel":{}}"#));
}

#[test]
fn a_vm_that_has_ended_is_told_at_once_and_what_is_missing_too() {
    let written = Written::new();
    written.exit(ExitKind::Shutdown, 5);
    let mut snapshot = written.snapshot();
    snapshot.writer_alive = Some(false);
    let mut snapshot = Some(snapshot);
    let mut source = || snapshot.take().ok_or_else(|| "asked twice".into());
    let out = record(&mut source, Duration::from_secs(60), &|| true, Vec::new());
    let text = String::from_utf8(out.unwrap()).unwrap();
    assert!(
        text.contains(r#""what":"kernel exits","reason":"the VM has ended"#),
        "{text}"
    );
    assert!(text.contains("\"user_exit\":1"));
}

#[test]
fn a_vcpu_that_never_started_has_no_kernel_exits_and_the_trace_says_so() {
    let text = Written::new().trace(1, &|| true);
    assert!(text.contains(r#""what":"kernel exits""#), "{text}");
}

#[test]
fn nobody_waits_for_a_trace_that_is_not_wanted() {
    let begun = Instant::now();
    Written::new().trace(60_000, &|| false);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_cannot_be_written_ends_the_trace() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let written = Written::new();
    let mut source = || Ok(written.snapshot());
    let out = record(&mut source, Duration::from_secs(60), &|| true, Full);
    assert!(matches!(out, Err(TraceError::Write(_))));
}
