//! Looks into the vCPUs of guests of which it is known what they do.

use std::time::{Duration, Instant};

use vmm::inspect::VcpuView;
use vmm::{InspectError, VmCommand};

use crate::harness::{Guest, image};
use crate::{PATIENCE, zoo};

/// `jmp .` and `hlt`.
const SPIN: [u8; 2] = [0xEB, 0xFE];
const HLT: u8 = 0xF4;

fn look(guest: &Guest) -> VcpuView {
    guest.vm.inspect(0, PATIENCE).unwrap()
}

/// Looks until the guest does what is waited for: it begins soon.
fn look_until(guest: &Guest, wanted: impl Fn(&VcpuView) -> bool) -> VcpuView {
    let end = Instant::now() + PATIENCE;
    loop {
        let view = look(guest);
        if wanted(&view) {
            return view;
        }
        assert!(Instant::now() < end, "{view}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The bytes of the zoo's kernel around `address`: one before, two from there on.
pub fn code(address: u64) -> [u8; 3] {
    let elf = std::fs::read(image("zoo.elf")).unwrap();
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let (table, count) = (word(32) as usize, elf[56]);
    let mut headers = (0..usize::from(count)).map(|index| table + index * 56);
    let holds =
        |at: &usize| elf[*at] == 1 && (1..word(at + 32)).contains(&(address - word(at + 24)));
    let header = headers
        .find(holds)
        .unwrap_or_else(|| panic!("{address:#x} is no code"));
    let at = (word(header + 8) + address - word(header + 24)) as usize;
    elf[at - 1..at + 2].try_into().unwrap()
}

#[test]
fn a_guest_that_spins_is_seen_at_its_instruction_with_interrupts_off_or_on() {
    for (words, interrupts) in [("spin", false), ("spin_sti", true)] {
        let guest = Guest::launch(zoo(words));
        let spins = |view: &VcpuView| view.rip >= 0x10_0000 && code(view.rip)[1..] == SPIN;
        let view = look_until(&guest, spins);
        println!("{view}\nread in {} ns", view.took_ns);
        assert_eq!(view.interrupts_on(), interrupts, "{view}");
        assert!(!view.halted() && !view.dead_halt());
        assert_eq!((view.ring, view.paging(), view.cs_long), (0, true, true));
        for _ in 0..20 {
            let again = look(&guest);
            assert_eq!((again.rip, again.rsp), (view.rip, view.rsp));
        }
        // Each is counted, and each was one kick.
        let seen = guest.seen();
        let looks = seen.number("vcpu/0", "inspections", "");
        assert!(looks >= 21, "{looks}");
        assert!(seen.exits("interrupted") <= looks);
        guest.stop();
    }
}

#[test]
fn a_guest_that_halted_for_good_is_told_from_one_that_spins() {
    let guest = Guest::launch(zoo("cli_hlt"));
    let view = look_until(&guest, VcpuView::halted);
    println!("{view}");
    assert!(view.dead_halt(), "{view}");
    assert_eq!(code(view.rip)[0], HLT, "{view}");
    assert!(!view.timer.armed(), "{view}");
    assert!(view.requested.is_empty() && view.in_service.is_empty());
    guest.stop();
}

#[test]
fn a_paused_guest_is_looked_into_and_stays_paused() {
    let guest = Guest::launch(zoo("quiet loop_pio=0x80"));
    look_until(&guest, |view| view.rip >= 0x10_0000);
    guest.command(VmCommand::Pause);
    let (before, first) = (guest.seen(), look(&guest));
    for _ in 0..50 {
        let again = look(&guest);
        assert_eq!(
            VcpuView {
                took_ns: 0,
                ..again.clone()
            },
            {
                let tsc = again.tsc;
                VcpuView {
                    took_ns: 0,
                    tsc,
                    ..first.clone()
                }
            }
        );
    }
    let after = guest.seen();
    assert_eq!(after.exits("io_in"), before.exits("io_in"));
    assert_eq!(after.exits("interrupted"), before.exits("interrupted"));
    let looks = |seen: &crate::harness::Seen| seen.number("vcpu/0", "inspections", "");
    assert_eq!(looks(&after), looks(&before) + 51);
    guest.command(VmCommand::Resume);
    let end = Instant::now() + PATIENCE;
    while guest.seen().exits("io_in") == before.exits("io_in") {
        assert!(Instant::now() < end, "the guest does not go on");
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.stop();
}

#[test]
fn looks_disturb_no_access_of_a_guest() {
    let guest = Guest::launch(zoo("quiet pio_write=0x80:300000 poweroff"));
    let (mut looks, mut times) = (0u32, Vec::new());
    let refused = loop {
        match guest.vm.inspect(0, PATIENCE) {
            Ok(view) => times.push(view.took_ns),
            Err(error) => break error,
        }
        looks += 1;
        std::thread::sleep(Duration::from_micros(200));
    };
    assert!(matches!(refused, InspectError::Ended), "{refused}");
    times.sort_unstable();
    println!(
        "{looks} looks, the vCPU was out for {times:?} ns",
        times = {
            let at = |share: usize| times.get(times.len() * share / 100).copied();
            (at(0), at(50), at(90))
        }
    );
    assert!(looks > 20);
    let done = guest.finish(PATIENCE);
    assert_eq!(done.seen.accesses("post"), (0, 300_000));
}

#[test]
fn what_cannot_be_looked_into_is_refused_by_name() {
    let guest = Guest::launch(zoo("spin"));
    let error = guest.vm.inspect(3, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("no vcpu 3: this microVM has 1"), "{error}");
    let error = guest.vm.inspect(0, Duration::ZERO).unwrap_err();
    assert!(matches!(error, InspectError::Late { .. }), "{error}");
    let vm = guest.vm.clone();
    guest.stop();
    let error = vm.inspect(0, PATIENCE).unwrap_err();
    assert!(matches!(error, InspectError::Ended), "{error}");
}
