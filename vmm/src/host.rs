//! What this host offers a VM, and what would hold one back: `vitrine check`.

use std::fs;
use std::path::Path;

use kvm_ioctls::Cap;
use memory::backing::pool_2m;

use crate::hypervisor::{DEVICE, Hypervisor};

/// How a finding bears on running guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// All is well.
    Fine,
    /// Worth knowing: something is slower or not to be had.
    Note,
    /// Guests cannot run, or not stock Linux.
    Blocks,
}

/// One thing about this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it bears on guests.
    pub weight: Weight,
    /// In plain words, with the remedy if there is one.
    pub text: String,
}

fn fine(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        subject,
        weight: Weight::Fine,
        text: text.into(),
    }
}

fn note(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        subject,
        weight: Weight::Note,
        text: text.into(),
    }
}

fn blocks(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding {
        subject,
        weight: Weight::Blocks,
        text: text.into(),
    }
}

/// Looks at the host. Changes nothing; makes one empty VM and drops it.
pub fn check() -> Vec<Finding> {
    vec![
        kvm(),
        virtualisation(),
        clock(),
        memory(),
        huge_pages(),
        tun(),
        io_uring(),
        cgroup(),
        pressure(),
    ]
}

fn kvm() -> Finding {
    match Hypervisor::open().and_then(|hypervisor| hypervisor.create_vm().map(|_| hypervisor)) {
        Ok(hypervisor) => {
            let vcpus = hypervisor.kvm.get_max_vcpus();
            fine(
                "kvm",
                format!("{DEVICE} works: API 12, up to {vcpus} vCPUs a VM"),
            )
        }
        Err(error) => blocks("kvm", error.to_string()),
    }
}

fn virtualisation() -> Finding {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let name = "virtualisation";
    if has("vmx") {
        fine(name, "the CPU has Intel VT-x")
    } else if has("svm") {
        fine(name, "the CPU has AMD-V")
    } else if Path::new(DEVICE).exists() {
        blocks(
            name,
            "the CPU shows neither vmx nor svm, yet there is a /dev/kvm: KVM works without \
             hardware virtualisation here (PVM). Small bare-metal guests run, stock Linux does not; \
             for that, use a host with VT-x or AMD-V, or nested virtualisation",
        )
    } else {
        blocks(
            name,
            "the CPU shows neither vmx nor svm: enable virtualisation in the firmware, or nested \
             virtualisation in the outer hypervisor",
        )
    }
}

fn clock() -> Finding {
    let source =
        fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.as_deref().map_or("unknown", str::trim);
    let deadline = Hypervisor::open()
        .is_ok_and(|hypervisor| hypervisor.kvm.check_extension(Cap::TscDeadlineTimer));
    let timers = if deadline {
        "TSC deadline timers"
    } else {
        "no TSC deadline timers"
    };
    if observe::Clock::process().is_tsc() {
        fine(
            "clock",
            format!("the host keeps time by {source}; guests get {timers}"),
        )
    } else {
        note(
            "clock",
            format!(
                "the host keeps time by {source}, not by its TSC: observation costs more an exit; \
                 guests get {timers}"
            ),
        )
    }
}

fn memory() -> Finding {
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib / 1024)
    };
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match (
        field(&text, "MemTotal:"),
        field(&text, "MemAvailable:"),
        field(&text, "SwapTotal:"),
    ) {
        (Some(total), Some(available), swap) => fine(
            "memory",
            format!(
                "{available} of {total} MiB available, {} MiB swap",
                swap.unwrap_or(0)
            ),
        ),
        _ => note("memory", "/proc/meminfo cannot be read"),
    }
}

fn huge_pages() -> Finding {
    let (free, total) = pool_2m();
    let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let thp = thp.ok().and_then(|text| {
        let (_, rest) = text.split_once('[')?;
        rest.split_once(']').map(|(word, _)| word.to_owned())
    });
    let transparent = thp.map_or("not there".to_owned(), |word| format!("'{word}'"));
    let pool = if total == 0 {
        "no pool of 2 MiB pages (raise /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages to \
         use huge_pages 2M)"
            .to_owned()
    } else {
        format!("{free} of {total} pages of 2 MiB free")
    };
    let text = format!("{pool}; transparent huge pages {transparent}");
    if total == 0 {
        note("huge pages", text)
    } else {
        fine("huge pages", text)
    }
}

fn tun() -> Finding {
    let device = Path::new("/dev/net/tun");
    if !device.exists() {
        return note(
            "network",
            "/dev/net/tun does not exist: load the tun module to use taps",
        );
    }
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => fine("network", "/dev/net/tun can be opened"),
        Err(error) => note("network", format!("/dev/net/tun cannot be opened: {error}")),
    }
}

fn io_uring() -> Finding {
    match devices::virtio::try_async() {
        Ok(()) => fine("io_uring", "works: drives can have io_engine Async"),
        Err(error) => note(
            "io_uring",
            format!("drives with io_engine Async work as with Sync: {error}"),
        ),
    }
}

fn cgroup() -> Finding {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
        return note(
            "cgroup",
            "this process is in no cgroup v2: limits on it will not be seen",
        );
    };
    let folder = format!("/sys/fs/cgroup{path}");
    let read = |name: &str| {
        fs::read_to_string(format!("{folder}/{name}"))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let limits: Vec<String> = ["memory.max", "memory.high", "cpu.max"]
        .iter()
        .filter_map(|name| Some((name, read(name)?)))
        .filter(|(_, value)| !value.starts_with("max"))
        .map(|(name, value)| format!("{name} is {value}"))
        .collect();
    if limits.is_empty() {
        fine("cgroup", format!("v2, {path}, no limit of its own"))
    } else {
        note(
            "cgroup",
            format!("v2, {path}, limited: {}", limits.join(", ")),
        )
    }
}

fn pressure() -> Finding {
    if Path::new("/proc/pressure/memory").exists() {
        fine(
            "pressure",
            "the kernel tells CPU, memory and I/O pressure (PSI)",
        )
    } else {
        note(
            "pressure",
            "no /proc/pressure: boot the host with psi=1 to see pressure",
        )
    }
}
