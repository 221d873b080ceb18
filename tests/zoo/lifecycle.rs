//! How guests begin, pause, and end.

use std::time::Duration;

use vmm::{CommandError, Entry, Outcome, ResetCause, VmCommand, VmEvent, VmState};

use crate::harness::{ENGINES, Guest, Scratch, alone, drive, leftovers};
use crate::{PATIENCE, run, zoo};

#[test]
fn each_way_out_of_the_guest_is_told_apart() {
    assert_eq!(run(zoo("poweroff")).outcome, Outcome::PowerOff);
    assert_eq!(
        run(zoo("reset=i8042")).outcome,
        Outcome::Reset(ResetCause::Device)
    );
    assert_eq!(
        run(zoo("reset=acpi")).outcome,
        Outcome::Reset(ResetCause::Device)
    );
    assert_eq!(
        run(zoo("reset=triple")).outcome,
        Outcome::Reset(ResetCause::TripleFault)
    );
}

#[test]
fn both_entries_of_an_elf_kernel_are_taken() {
    for (entry, word) in [
        (Entry::Pvh, "pvh"),
        (Entry::Linux64, "linux64"),
        (Entry::Auto, "pvh"),
    ] {
        let mut spec = zoo("entry mem cmdline");
        spec.boot.entry = entry;
        let console = run(spec).console;
        assert!(console.contains(&format!("entry {word}")), "{console}");
        assert!(console.contains("mem 0x8000000"), "128 MiB: {console}");
    }
}

#[test]
fn memory_on_both_sides_of_the_hole_is_reported() {
    let mut spec = zoo("mem");
    spec.memory.size_mib = 5 * 1024;
    let console = run(spec).console;
    // 3 GiB below the hole, 2 GiB from 4 GiB on.
    assert!(console.contains("mem 0x180000000"), "{console}");
}

#[test]
fn a_paused_guest_makes_no_exit_and_goes_on_where_it_was() {
    let guest = Guest::launch(zoo("quiet loop_pio=0x80"));
    for _ in 0..50 {
        guest.command(VmCommand::Pause);
        assert_eq!(guest.vm.state(), VmState::Paused);
        let before = guest.seen().exits("io_in");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(guest.seen().exits("io_in"), before);
        guest.command(VmCommand::Resume);
        let end = std::time::Instant::now() + PATIENCE;
        while guest.seen().exits("io_in") == before {
            assert!(std::time::Instant::now() < end, "the guest does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(guest.seen().number("vcpu/0", "pauses", ""), 50);
    assert_eq!(guest.stop().outcome, Outcome::Stopped);
}

#[test]
fn pausing_in_the_middle_of_requests_loses_none() {
    ENGINES.into_iter().for_each(a_pause_loses_no_request);
}

fn a_pause_loses_no_request(engine: vmm::IoEngine) {
    let scratch = Scratch::new();
    let mut spec = zoo("quiet blk_read=0:2000 poweroff");
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 2000 * 512, 9)));
    spec.drives[0].engine = engine;
    let guest = Guest::launch(spec);
    let mut pauses = 0;
    // Until the guest has ended, which refuses the next command.
    let refused = loop {
        let pause = guest.vm.command_within(VmCommand::Pause, PATIENCE);
        let resume = pause.and_then(|()| guest.vm.command_within(VmCommand::Resume, PATIENCE));
        if let Err(refused) = resume {
            break refused;
        }
        pauses += 1;
        std::thread::sleep(Duration::from_millis(3));
    };
    assert_eq!(refused, CommandError::Ended);
    let done = guest.finish(PATIENCE);
    assert!(pauses > 0);
    let sum: u64 = (0..2000 * 64u64).map(|i| 9 + i).sum();
    assert!(
        done.console
            .contains(&format!("blk_read ok 2000 sum={sum:#x}")),
        "{}",
        done.console
    );
    assert_eq!(done.seen.number("queue/disk/0", "completions", ""), 2000);
}

#[test]
fn commands_are_refused_in_the_wrong_state_with_the_reason() {
    let guest = Guest::launch(zoo("loop_pio=0x80"));
    guest.command(VmCommand::Resume);
    guest.command(VmCommand::Pause);
    guest.command(VmCommand::Pause);
    let error = guest
        .vm
        .command_within(VmCommand::CtrlAltDel, PATIENCE)
        .unwrap_err();
    assert!(error.to_string().contains("paused"), "{error}");
    let vm = guest.vm.clone();
    guest.stop();
    assert_eq!(vm.state(), VmState::Ended);
    let error = vm.command_within(VmCommand::Pause, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("ended"), "{error}");
}

#[test]
fn the_events_of_a_life_come_in_order() {
    let guest = Guest::launch(zoo("loop_pio=0x80"));
    guest.command(VmCommand::Pause);
    guest.command(VmCommand::Resume);
    guest.command(VmCommand::Stop);
    // On a slow host its port accesses may be judged meanwhile.
    let events = guest.events.iter();
    let events = events.filter(|event| !matches!(event, VmEvent::Verdict(..)));
    let events: Vec<VmEvent> = events.collect();
    let ended = VmEvent::Ended(Outcome::Stopped);
    assert_eq!(events, [VmEvent::Paused, VmEvent::Resumed, ended]);
}

#[test]
fn twenty_guests_leave_no_thread_and_no_file() {
    if !alone("lifecycle::twenty_guests_leave_no_thread_and_no_file") {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.disk("disk", 8192, 0);
    let one = |round: usize| {
        let mut spec = zoo("quiet blk_read=0:2 poweroff");
        spec.drives.push(drive("disk", &disk));
        spec.drives[0].engine = ENGINES[round % 2];
        spec.black_box.path = Some(scratch.path("test.blackbox"));
        assert_eq!(run(spec).outcome, Outcome::PowerOff);
        assert!(
            !scratch.path("test.blackbox").exists(),
            "a clean end leaves no black box"
        );
    };
    one(0);
    let before = leftovers();
    for round in 0..20 {
        one(round);
    }
    assert_eq!(leftovers(), before);
}

#[test]
fn several_vms_in_one_process_do_not_meet() {
    let guests: Vec<Guest> = (1..=3)
        .map(|n| {
            let mut spec = zoo(&format!("quiet pio_write=0x80:{} poweroff", n * 100));
            spec.id = format!("vm{n}");
            Guest::launch(spec)
        })
        .collect();
    for (n, guest) in (1..=3).zip(guests) {
        let done = guest.finish(PATIENCE);
        assert_eq!(done.seen.accesses("post"), (0, n * 100));
    }
}

#[test]
fn a_black_box_is_kept_after_a_clean_end_when_asked() {
    let scratch = Scratch::new();
    let path = scratch.path("kept.blackbox");
    let mut spec = zoo("quiet pio_write=0x80:42 poweroff");
    spec.black_box.path = Some(path.clone());
    spec.black_box.keep = true;
    run(spec);
    let reader = vmm::observe::reader::Reader::open(&path).unwrap();
    let seen = crate::harness::Seen(reader.snapshot().unwrap());
    assert_eq!(seen.accesses("post"), (0, 42));
}
