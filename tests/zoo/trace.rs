//! A trace tells each user exit once, or counts it as lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm::VmCommand;
use vmm::trace::record;

use crate::harness::Guest;
use crate::harness::chrome::{Shared, Trace};
use crate::{PATIENCE, zoo};

#[test]
fn user_exits_that_are_shown_and_those_that_are_lost_are_all_there_were() {
    let guest = Guest::launch(zoo("quiet loop_pio=0x80"));
    guest.command(VmCommand::Pause);
    let written = || guest.seen().written("vcpu/0");
    let before = written();
    let (out, wanted) = (Shared::default(), AtomicBool::new(true));
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| {
            let mut source = || guest.vm.snapshot().map_err(Into::into);
            let wanted = || wanted.load(Ordering::Relaxed);
            record(&mut source, PATIENCE, &wanted, out.clone()).unwrap();
        });
        let end = Instant::now() + PATIENCE;
        while !out.text().contains("user_exit") && !tracer.is_finished() {
            assert!(Instant::now() < end, "{}", out.text());
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.command(VmCommand::Resume);
        while written() < before + 3000 {
            assert!(Instant::now() < end, "the guest does nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        guest.command(VmCommand::Pause);
        // The next snapshot is taken at rest.
        std::thread::sleep(Duration::from_millis(100));
        wanted.store(false, Ordering::Relaxed);
    });
    let after = written();
    let trace = Trace::check(&out.text());
    let data = &trace.0["otherData"];
    let lost = data["lost"]["flight"]["vcpu-0"].as_u64().unwrap_or(0);
    let shown = trace.of("user_exit").count() as u64;
    println!("{shown} shown, {lost} lost, {} there were", after - before);
    // The ring held up to 511 whole ones at the beginning.
    assert_eq!(shown + lost, after - before + before.min(511));
    assert!(after - before >= 3000);
    let loops = trace
        .of("user_exit")
        .filter(|event| event["name"] == "io_in post");
    assert!(loops.count() > 500);
    let mut end = 0.0;
    for event in trace.of("user_exit") {
        let start = event["ts"].as_f64().unwrap();
        assert!(start >= end - 0.001, "{event} begins before {end}");
        end = start + event["dur"].as_f64().unwrap();
    }
}
