//! What a bare-metal guest makes N of is counted N times, and KVM's own statistics agree as far as
//! the kernel counts the same thing (`docs/observe.md`, "Ours and KVM's"). A part of the programs
//! `zoo`, which runs on any KVM, and `linux`, which runs where KVM has hardware virtualisation.

mod table;

use std::time::Duration;

use vmm::{Outcome, VmSpec};

use crate::harness::{Finished, Guest, Scratch, Seen, drive, image, spec};
use table::{Kvm, Row, check};

/// Long enough for any zoo guest in an emulated machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(120);
/// What may come on top where the kernel may do a thing twice: an interrupt is injected again when
/// its delivery met a page that was not there yet, a page is mapped again that the host took away.
const FEW: u64 = 16;
/// The words that use interrupts mask the old interrupt controllers first: two ports of KVM's own.
const MASKS: u64 = 2;

fn zoo(words: &str) -> VmSpec {
    spec(image("zoo.elf"), &format!("console=ttyS0 zoo: {words}"))
}

/// Runs a guest that powers off.
fn run(spec: VmSpec) -> Finished {
    let done = Guest::launch(spec).finish(PATIENCE);
    assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
    done
}

/// KVM's statistic of vCPU 0 as the black box has it; `None` where this KVM has none of that name.
fn kvm(seen: &Seen, stat: &str) -> Option<u64> {
    let view = seen.0.section("kvm_vcpu/0")?;
    view.table("total", stat)?.as_u64()
}

/// User exits of vCPU 0, of all these kinds.
fn ours(seen: &Seen, reasons: &[&str]) -> u64 {
    reasons.iter().map(|reason| seen.exits(reason)).sum()
}

/// All port and MMIO accesses that left for us, and `kept` ports that KVM serves itself.
fn accesses(seen: &Seen, kept: u64) -> [Row; 2] {
    let row = |what, reasons: &[&str], kept, stat| {
        let ours = ours(seen, reasons);
        Row::new(what, stat, kvm(seen, stat))
            .made(ours + kept)
            .kept(kept)
            .ours(ours)
    };
    let (io, mmio) = (["io_in", "io_out"], ["mmio_read", "mmio_write"]);
    [
        row("all port accesses, with KVM's own", &io, kept, "io_exits"),
        row("all MMIO accesses", &mmio, 0, "mmio_exits"),
    ]
}

#[test]
fn port_and_mmio_accesses_are_ours_and_kvms() {
    const WRITES: u64 = 1234;
    const READS: u64 = 777;
    const LOADS: u64 = 321;
    const STORES: u64 = 123;
    let scratch = Scratch::new();
    let mut spec = zoo(&format!(
        "quiet pio_write=0x80:{WRITES} pio_read=0x71:{READS} \
         mmio_read=0xd0000000:{LOADS} mmio_write=0xd0000014:{STORES}:0 poweroff"
    ));
    spec.drives
        .push(drive("disk", &scratch.disk("disk", 4096, 0)));
    let seen = run(spec).seen;
    // Power off is the one more.
    let ports = Row::new("port accesses", "io_exits", kvm(&seen, "io_exits"))
        .made(WRITES + READS + 1)
        .ours(ours(&seen, &["io_in", "io_out"]));
    let mmio = Row::new("MMIO accesses", "mmio_exits", kvm(&seen, "mmio_exits"))
        .made(LOADS + STORES)
        .ours(ours(&seen, &["mmio_read", "mmio_write"]));
    check("port and MMIO accesses", &[ports, mmio]);
    let user = ours(&seen, &["io_in", "io_out", "mmio_read", "mmio_write"]);
    // The machine's end may have interrupted the vCPU.
    let all = seen.total("vcpu/0", "exits") - seen.exits("interrupted");
    assert_eq!(all, user, "no user exit of another kind");
    let exits = kvm(&seen, "exits").unwrap_or(u64::MAX);
    assert!(exits >= user, "KVM counts {exits} exits in all");
}

#[test]
fn hypercalls_are_kvms_and_make_no_user_exit() {
    const CALLS: u64 = 500;
    if !table::on_hardware() {
        // Its emulator writes the instruction anew and executes it again, for ever.
        table::say("\nhypercalls: not run, for this KVM runs without hardware virtualisation\n");
        return;
    }
    let done = run(zoo(&format!("quiet hypercall={CALLS} poweroff")));
    let said = format!("hypercall ok {CALLS}\n");
    assert!(done.console.contains(&said), "{}", done.console);
    let calls = Row::new("hypercalls", "hypercalls", kvm(&done.seen, "hypercalls"))
        .made(CALLS)
        .in_kernel(done.seen.exits("hypercall"));
    let [io, mmio] = accesses(&done.seen, 0);
    check("hypercalls", &[calls, io, mmio]);
}

#[test]
fn halts_and_timer_interrupts_are_kvms_and_make_no_user_exit() {
    const TIMERS: u64 = 500;
    let done = run(zoo(&format!("quiet timer_hlt={TIMERS} poweroff")));
    // One halt for each: an interrupt that is there already ends it, and nothing else does.
    let said = format!("timer_hlt ok {TIMERS} halts={TIMERS}\n");
    assert!(done.console.contains(&said), "{}", done.console);
    let seen = &done.seen;
    let halts = Row::new("halts", "halt_exits", kvm(seen, "halt_exits"))
        .made(TIMERS)
        .in_kernel(seen.exits("hlt"));
    let interrupts = injected("timer interrupts", seen, TIMERS);
    let [io, mmio] = accesses(seen, MASKS);
    check("halts and timers", &[halts, interrupts, io, mmio]);
}

#[test]
fn interrupts_to_oneself_are_kvms_and_make_no_user_exit() {
    const INTERRUPTS: u64 = 500;
    let done = run(zoo(&format!("quiet self_ipi={INTERRUPTS} poweroff")));
    let said = format!("self_ipi ok {INTERRUPTS}\n");
    assert!(done.console.contains(&said), "{}", done.console);
    let interrupts = injected("self IPIs", &done.seen, INTERRUPTS);
    let [io, mmio] = accesses(&done.seen, MASKS);
    check("interrupts to oneself", &[interrupts, io, mmio]);
}

#[test]
fn nmis_are_kvms_and_make_no_user_exit() {
    const NMIS: u64 = 200;
    let done = run(zoo(&format!("quiet nmi={NMIS} poweroff")));
    let said = format!("nmi ok {NMIS}\n");
    assert!(done.console.contains(&said), "{}", done.console);
    let stat = "nmi_injections";
    let nmis = Row::new("NMIs", stat, kvm(&done.seen, stat))
        .made(NMIS)
        .or_more(FEW);
    let [io, mmio] = accesses(&done.seen, MASKS);
    check("NMIs", &[nmis, io, mmio]);
}

/// KVM counts each interrupt that it injects; where the CPU delivers them itself it sees none.
fn injected(what: &'static str, seen: &Seen, made: u64) -> Row {
    let row = Row::new(what, "irq_injections", kvm(seen, "irq_injections"))
        .made(made)
        .or_more(FEW);
    match table::cpu_delivers_interrupts() {
        true => row.kvm_counts(Kvm::AtMost),
        false => row,
    }
}

#[test]
fn pages_that_are_touched_are_kvms_faults_and_the_threads() {
    const PAGES: u64 = 4096;
    let _small = table::SmallPages::only();
    // A process' first guest touches pages of the VMM, too, that are there for the next.
    touched(0);
    let (none, all) = (touched(0), touched(PAGES));
    let more = |of: fn(&Faults) -> Option<u64>| Some(of(&all)?.saturating_sub(of(&none)?));
    let fixed = Row::new("pages touched", "pf_fixed", more(|seen| seen.fixed))
        .made(PAGES)
        .or_more(FEW);
    // A fault that KVM has to look at twice is taken twice.
    let taken = Row::new("pages touched", "pf_taken", more(|seen| seen.taken))
        .made(PAGES)
        .or_more(PAGES / 8);
    let minor = Row::new("faults of the vCPU's thread", "", None)
        .made(PAGES)
        .ours(all.minor - none.minor)
        // The thread's own pages, its stack's say, are not always as many.
        .or_less(FEW)
        .or_more(FEW);
    assert!(all.minor >= PAGES, "{} faults in all", all.minor);
    check(
        "touched pages, beside a guest that touches none",
        &[fixed, taken, minor],
    );
}

/// Page faults, by who counts them.
struct Faults {
    fixed: Option<u64>,
    taken: Option<u64>,
    minor: u64,
}

/// What a guest that touches so many fresh pages has done when it halts.
fn touched(pages: u64) -> Faults {
    let bytes = pages * 4096;
    let guest = Guest::launch(zoo(&format!("quiet memtouch={bytes} cli_hlt")));
    guest.await_words(&format!("memtouch {bytes}\n"), PATIENCE);
    let seen = guest.sampled(PATIENCE);
    let faults = Faults {
        fixed: kvm(&seen, "pf_fixed"),
        taken: kvm(&seen, "pf_taken"),
        minor: seen.number("task", "minor_faults", "vcpu-0"),
    };
    guest.stop();
    faults
}
