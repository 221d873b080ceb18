//! The codes: what a verdict can say. Names are part of the API and never change their meaning.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; healthy.
    Info,
    /// The guest suffers.
    Warning,
    /// The guest cannot go on by itself.
    Error,
}

impl Severity {
    /// Its name: `info`, `warning` or `error`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }

    /// What it takes from a health of 100.
    pub fn points(self) -> u32 {
        match self {
            Severity::Info => 0,
            Severity::Warning => 15,
            Severity::Error => 50,
        }
    }
}

/// What is fixed about a code.
#[derive(Debug)]
pub struct Entry {
    /// The code itself.
    pub code: Code,
    /// Its name in the API: `vcpu-dead-halt`.
    pub name: &'static str,
    /// How bad it is, if a finding does not say otherwise.
    pub severity: Severity,
    /// What it means, one sentence.
    pub means: &'static str,
    /// What to do about it, one or two sentences.
    pub remedy: &'static str,
}

macro_rules! codes {
    ($($code:ident, $name:literal, $severity:ident, $means:literal, $remedy:literal;)*) => {
        /// What a verdict says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $means] $code,)*
        }

        impl Code {
            /// All codes, in the order in which they are documented.
            pub const ALL: &'static [Code] = &[$(Code::$code,)*];

            /// What is fixed about it.
            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Code::$code => &Entry {
                        code: Code::$code,
                        name: $name,
                        severity: Severity::$severity,
                        means: $means,
                        remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

codes! {
    VcpuDeadHalt, "vcpu-dead-halt", Error,
        "Halted with interrupts off: nothing can wake it, or only another vCPU.",
        "The guest has stopped itself: look at its console and at its last exits, and reset or restart it. Where it waits for a lock, look at what the other vCPUs do.";
    VcpuSpinIrqsOff, "vcpu-spin-irqs-off", Error,
        "Runs without end and takes no interrupts.",
        "A kernel function of the guest loops with interrupts off: send it an NMI (POST /observe/nmi) for the stacks on its console, then restart it.";
    VcpuSpin, "vcpu-spin", Warning,
        "Runs without end in its kernel and makes no progress.",
        "A kernel function of the guest loops; where its kernel said so, its words are in the evidence. Send it an NMI (POST /observe/nmi) for the stacks on its console.";
    VcpuStarved, "vcpu-starved", Warning,
        "Wants to run, and the host gives it no CPU.",
        "Others use its host CPU: move them away, give the VM CPUs of its own, or a larger CPU weight.";
    VcpuThrottled, "vcpu-throttled", Warning,
        "Its cgroup's CPU quota is spent.",
        "Raise the CPU limit (cpu.max) of the VMM's cgroup, or give the guest fewer vCPUs.";
    VcpuInHandler, "vcpu-in-handler", Error,
        "Stuck in the VMM, in the handler of an exit.",
        "A device does not answer: it is named with the address and the thread. Report it with the black box.";
    VcpuHostFault, "vcpu-host-fault", Warning,
        "Waits for the host to bring in a page of its memory.",
        "The host swaps, or a page server does not answer: give the host memory, or lock the guest's.";
    VcpuNotStarted, "vcpu-not-started", Warning,
        "The guest never started it.",
        "The guest uses fewer CPUs than it was given: look at its command line (maxcpus, nr_cpus), or give it fewer.";
    ExitStorm, "exit-storm", Warning,
        "One kind of exit at one address floods.",
        "The guest's driver of that device polls it: the address is named. Update the driver, or take the device away.";
    WakeStorm, "wake-storm", Warning,
        "Halts and wakes so often that an idle guest uses a host CPU.",
        "Something in the guest sets a very short timer: look at its timers (/proc/timer_list), or raise its slack.";
    GuestPanic, "guest-panic", Error,
        "The guest's kernel died.",
        "Its last words are at the end of its console: `vitrine report` shows them. Restart it.";
    KvmError, "kvm-error", Error,
        "KVM cannot go on with the guest.",
        "The guest's state is one that this host cannot run: the reason is in the evidence. Report it with the black box.";
    GuestIdle, "guest-idle", Info,
        "Halted with nothing to do: healthy.",
        "Nothing.";
    QueueBackendStall, "queue-backend-stall", Error,
        "A request waits for the host's disk or tap.",
        "The host file or device under it does not answer: look at the host's storage. The guest goes on when it does.";
    QueueDeviceStall, "queue-device-stall", Error,
        "The guest gave requests, and the device's thread does not take them.",
        "The thread that is named is stuck or stopped: look at what it does in the evidence.";
    QueueLostKick, "queue-lost-kick", Error,
        "The guest gave requests without the kick that was asked for; Vitrine serves them after all.",
        "The guest's driver has lost a notification: update it. Each one costs up to 1.25 s.";
    QueueGuestNotReaping, "queue-guest-not-reaping", Warning,
        "Answers lie unread in the guest.",
        "The guest does not take the device's interrupts: look at its CPUs and its driver.";
    QueueRxStarved, "queue-rx-starved", Warning,
        "Packets wait, and the guest gives no buffers.",
        "The guest's interface is down or its driver is stuck.";
    QueueRateLimited, "queue-rate-limited", Info,
        "Requests wait because the operator limits their rate.",
        "If that is not wanted, raise the device's rate_limiter (PATCH /drives/ID or /network-interfaces/ID while the VM runs).";
    QueueBroken, "queue-broken", Error,
        "The guest broke the ring.",
        "The guest's driver is faulty or hostile: the reason is named. It has to reset the device.";
    DriveError, "drive-error", Error,
        "The host's disk fails or is full.",
        "Look at the drive's file and its file system on the host, and at the host's kernel log; the guest got I/O errors.";
    BalloonStuck, "balloon-stuck", Warning,
        "The balloon is not as large as it is to be, and does not move.",
        "The guest has no memory to give, or no driver for the balloon: ask for less (PATCH /balloon), or load virtio_balloon.";
    GuestOom, "guest-oom", Error,
        "The guest's kernel killed a process for want of memory.",
        "Give the guest more memory, or its programs less work.";
    GuestMemoryPressure, "guest-memory-pressure", Warning,
        "The guest has little memory left, and its programs wait for it.",
        "Give the guest more memory, take some out of its balloon (PATCH /balloon), or its programs less work.";
    GuestOomSoon, "guest-oom-soon", Warning,
        "At this trend the guest's memory ends soon.",
        "Something in the guest leaks: find it, take memory out of its balloon (PATCH /balloon), or give it more.";
    HostMemoryPressure, "host-memory-pressure", Warning,
        "The host or the VMM's cgroup stalls for want of memory.",
        "Free memory on the host, or raise memory.high of the VMM's cgroup.";
    HostSwappingGuest, "host-swapping-guest", Warning,
        "The host swaps guest memory out.",
        "Give the host or the cgroup more memory, or lock the guest's.";
    VmmOomRisk, "vmm-oom-risk", Error,
        "The VMM's cgroup is at its memory limit: a kill is near.",
        "Raise the memory limit (memory.max) of the VMM's cgroup, or make the guest smaller.";
    VmmOomKilled, "vmm-oom-killed", Error,
        "The VMM was killed for want of memory.",
        "Raise memory.max of the cgroup, or make the guest smaller; then start it again.";
    VmmThreadStuck, "vmm-thread-stuck", Error,
        "A thread of Vitrine does not move.",
        "Its process is stopped (kill -CONT lets it go on), or the thread is stuck in the operation that is named: report that with the black box.";
    VmmDied, "vmm-died", Error,
        "The VMM died without an orderly end.",
        "It was killed or crashed: look at the kernel's log and at its last events, which are kept.";
    VmFailed, "vm-failed", Error,
        "The VM failed, and said why.",
        "What it said is in the evidence; its last events are kept. Start it again when the cause is gone.";
    ClockJump, "clock-jump", Warning,
        "The host's clock jumped.",
        "Somebody set the host's clock, or it slept: set the guest's clock.";
    Paused, "paused", Info,
        "Paused by command.",
        "PATCH /vm with Resumed lets it go on.";
}

/// Codes whose signals are not read yet: no rule gives them.
const NOT_JUDGED: &[Code] = &[];

impl Code {
    /// Whether this version can say it.
    pub fn is_judged(self) -> bool {
        !NOT_JUDGED.contains(&self)
    }

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The code of that name.
    pub fn named(name: &str) -> Option<Code> {
        let mut all = Code::ALL.iter();
        all.find(|code| code.name() == name).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::path::Path;

    #[test]
    fn each_code_has_its_own_entry_and_name() {
        for code in Code::ALL {
            let entry = code.entry();
            assert_eq!(entry.code, *code);
            assert_eq!(Code::named(entry.name), Some(*code));
            assert!(entry.means.ends_with('.') && entry.remedy.ends_with('.'));
        }
        assert_eq!(Code::named("no-such"), None);
    }

    #[test]
    fn what_is_said_to_be_judged_is_what_the_rules_can_say() {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verdict/rules");
        let files = std::fs::read_dir(rules).unwrap();
        let text: String = files
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect();
        let said: HashSet<&str> = text
            .split("Code::")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next())
            .collect();
        assert!(said.contains("VcpuStarved"), "the rules are elsewhere");
        for code in Code::ALL {
            let is_said = said.contains(format!("{code:?}").as_str());
            assert_eq!(code.is_judged(), is_said, "{code:?}: see NOT_JUDGED");
        }
    }
}
