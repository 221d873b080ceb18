//! What the guest's kernel itself says is wrong, on its console or to the pvpanic device. It may be mistaken, and it may lie: a verdict
//! gives its words.

use super::Look;
use crate::verdict::observation::MessageSeen;
use crate::verdict::{Code, Severity, Subject, Verdict};

/// A message of a CPU or a task that does not go on.
struct Stuck {
    kind: &'static str,
    /// The name of its number.
    count: &'static str,
    code: Code,
    says: &'static str,
}

const fn stuck_message(kind: &'static str, count: &'static str, says: &'static str) -> Stuck {
    Stuck {
        kind,
        count,
        code: Code::VcpuSpin,
        says,
    }
}

const STUCK: [Stuck; 5] = [
    Stuck {
        code: Code::VcpuSpinIrqsOff,
        ..stuck_message("hard_lockup", "hard_lockups", "a CPU takes no interrupts")
    },
    stuck_message(
        "soft_lockup",
        "soft_lockups",
        "a CPU does not let others run",
    ),
    stuck_message(
        "workqueue_lockup",
        "workqueue_lockups",
        "a CPU does not come to the work that waits for it (workqueue)",
    ),
    stuck_message(
        "rcu_stall",
        "rcu_stalls",
        "a CPU or a task holds up the others (RCU)",
    ),
    stuck_message("hung_task", "hung_tasks", "a task waits without end"),
];

/// Comes after the other rules: what they say too is told once.
pub(super) fn judge(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    told(look, verdicts);
    panic(look, verdicts);
    if look.is_running() {
        stuck(look, verdicts);
        out_of_memory(look, verdicts);
        drive(look, verdicts);
    }
}

fn seen<'a>(look: &Look<'a>, kind: &str) -> Option<&'a MessageSeen> {
    let mut messages = look.now.messages.iter();
    messages.find(|message| message.kind == kind)
}

/// A message that is not too long ago: nothing tells that what it says is over.
fn recent<'a>(look: &Look<'a>, kind: &str) -> Option<&'a MessageSeen> {
    seen(look, kind).filter(|message| look.age(message.last_ns) < look.limits.message_ns)
}

fn verdict(code: Code, subject: Subject, message: &MessageSeen, says: &str) -> Verdict {
    let summary = format!("the guest's kernel says that {says}");
    let verdict = Verdict::new(code, subject, message.last_ns, summary);
    match message.line.is_empty() {
        true => verdict,
        false => verdict.text("line", &*message.line),
    }
}

/// Adds a verdict, or its evidence to the same one that is there.
fn add(verdict: Verdict, verdicts: &mut Vec<Verdict>) {
    let mut all = verdicts.iter_mut();
    let Some(there) = all.find(|there| there.key() == verdict.key()) else {
        verdicts.push(verdict);
        return;
    };
    there.severity = there.severity.max(verdict.severity);
    there.since_ns = there.since_ns.min(verdict.since_ns);
    for (name, fact) in verdict.evidence {
        if there.evidence.iter().all(|(known, _)| *known != name) {
            there.evidence.push((name, fact));
        }
    }
}

/// It told the pvpanic device that it gave up. With a crash kernel it goes on, as that one.
fn told(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(told) = look.now.pvpanic else {
        return;
    };
    let (says, severity) = match told.panicked {
        0 => ("and its crash kernel took over", Severity::Warning),
        _ => ("by the pvpanic device", Severity::Error),
    };
    let summary = format!("the guest's kernel told that it gave up (panic), {says}");
    let vm = Subject::whole("vm");
    let verdict = Verdict::new(Code::GuestPanic, vm, told.since_ns, summary).at(severity);
    let verdict = verdict.number("pvpanic", told.panicked);
    add(
        verdict.number("pvpanic_crash_loaded", told.crash_loaded),
        verdicts,
    );
}

/// After a panic there is no kernel. After an oops there may be one for long.
fn panic(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let oops = seen(look, "oops");
    let oopses = oops.map_or(0, |oops| oops.count);
    let vm = || Subject::whole("vm");
    if let Some(panic) = seen(look, "panic") {
        let verdict = verdict(Code::GuestPanic, vm(), panic, "it gave up (panic)");
        let verdict = verdict.number("panics", panic.count);
        add(verdict.number("oopses", oopses), verdicts);
    } else if let Some(oops) = recent(look, "oops").filter(|_| look.is_running()) {
        let says = "it had a fault of its own (oops), and it goes on";
        let verdict = verdict(Code::GuestPanic, vm(), oops, says).at(Severity::Warning);
        add(verdict.number("oopses", oopses), verdicts);
    }
}

/// As a warning: when what it says began is long ago, and it may be over.
fn stuck(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    for about in &STUCK {
        let Some(message) = recent(look, about.kind) else {
            continue;
        };
        let cpu = cpu(message).filter(|cpu| {
            let mut vcpus = look.now.vcpus.iter();
            vcpus.any(|vcpu| vcpu.index == *cpu)
        });
        let subject = cpu.map_or(Subject::whole("vm"), Subject::vcpu);
        let verdict = verdict(about.code, subject, message, about.says);
        let mut verdict = verdict.at(Severity::Warning);
        if let Some(cpu) = cpu {
            verdict = verdict.number("cpu", cpu as u64);
        }
        add(verdict.number(about.count, message.count), verdicts);
    }
}

fn out_of_memory(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(message) = recent(look, "oom_kill") else {
        return;
    };
    let says = "it killed a process for want of memory";
    let verdict = verdict(Code::GuestOom, Subject::whole("vm"), message, says);
    add(verdict.number("kills", message.count), verdicts);
}

fn drive(look: &Look<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(message) = recent(look, "io_error") else {
        return;
    };
    let name = device(&message.line);
    // The guest counts its drives as it finds them. Of several, nothing tells which is which.
    let drive = match &*look.now.drives {
        [drive] if name.is_some_and(is_first) => Some(drive),
        _ => None,
    };
    let subject = drive.map_or(Subject::whole("vm"), |drive| Subject::device(drive));
    let says = "a block device failed";
    let verdict = verdict(Code::DriveError, subject, message, says).at(Severity::Error);
    let verdict = verdict.number("io_errors", message.count);
    let verdict = match name {
        Some(name) => verdict.text("guest_device", name),
        None => verdict,
    };
    add(verdict, verdicts);
}

/// The CPU that a message names.
fn cpu(message: &MessageSeen) -> Option<usize> {
    let after = |text: &str, words: &str| {
        let (_, rest) = text.split_once(words)?;
        let rest = rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let number = rest.get(..end.unwrap_or(rest.len()))?;
        number.parse().ok()
    };
    match &*message.kind {
        "soft_lockup" => after(&message.line, "CPU#"),
        "hard_lockup" => after(&message.line, "LOCKUP on cpu "),
        // `pool cpus=1 node=0`; a pool of several CPUs has a list there.
        "workqueue_lockup" => {
            let (_, rest) = message.line.split_once("pool cpus=")?;
            let (cpus, _) = rest.split_once(' ')?;
            cpus.parse().ok()
        }
        // The line itself, or the next one: `rcu: 1-....: (21000 ticks this GP)`.
        "rcu_stall" => {
            let own = message.line.split_once("CPU").map_or("", |(_, rest)| rest);
            let next = message.next.split_once("rcu:").map_or("", |(_, rest)| rest);
            let is_cpu = next.split_once('-').is_some_and(|(cpu, _)| {
                let cpu = cpu.trim();
                !cpu.is_empty() && cpu.bytes().all(|byte| byte.is_ascii_digit())
            });
            after(own, "{").or_else(|| after(next, "").filter(|_| is_cpu))
        }
        _ => None,
    }
}

/// The device in `I/O error, dev vda, sector 8` and its like.
fn device(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("error")?;
    let (_, rest) = rest.split_once("dev ")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
    rest.get(..end.unwrap_or(rest.len()))
        .filter(|name| !name.is_empty())
}

/// `vda`, or a partition of it.
fn is_first(name: &str) -> bool {
    let partition = name.strip_prefix("vda");
    partition.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}
