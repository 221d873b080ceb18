//! Looks into the vCPUs of stock kernels that do what is known: the names are those that the guest's
//! own /proc/kallsyms has, wherever KASLR has put it.

use std::time::Instant;

use vmm::inspect::{Place, Trust, VcpuSight};

use crate::harness::{Guest, Scratch, drive};
use crate::{PATIENCE, VERSIONS, kernel, linux, told};

/// Where the kernel begins without KASLR.
const LINKED: u64 = 0xFFFF_FFFF_8100_0000;

fn names(sight: &VcpuSight) -> Vec<&str> {
    let names = sight.frames.iter().map(|frame| match &frame.place {
        Place::Kernel(symbol) => symbol.name.as_str(),
        _ => "",
    });
    names.collect()
}

/// Looks until the guest is caught at what is waited for.
fn look_until(guest: &Guest, wanted: impl Fn(&VcpuSight) -> bool) -> VcpuSight {
    let end = Instant::now() + PATIENCE;
    loop {
        let sight = guest.vm.look(0, PATIENCE).unwrap();
        if wanted(&sight) {
            println!("{sight}\n  read in {} ns", sight.view.took_ns);
            return sight;
        }
        assert!(Instant::now() < end, "{sight}\n{}", guest.said());
        std::thread::sleep(std::time::Duration::from_millis(7));
    }
}

/// The kernels of both versions, in both forms, at their own place and at random ones.
fn kernels() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    VERSIONS.into_iter().flat_map(|version| {
        [
            (version, "bzImage", "nokaslr"),
            (version, "bzImage", ""),
            (version, "vmlinux", ""),
        ]
    })
}

#[test]
fn an_idle_guest_is_seen_halted_in_its_idle_loop() {
    let script = "
echo IDLE=$(grep -w default_idle /proc/kallsyms | head -1 | cut -d' ' -f1)
sleep 1000
";
    for (version, form, words) in kernels() {
        println!("{version} {form} {words}");
        let mut spec = linux(version, words, script);
        spec.boot.kernel = kernel(version, form);
        let guest = Guest::launch(spec);
        guest.await_words("IDLE=", PATIENCE);
        let sight = look_until(&guest, |sight| sight.view.halted());
        assert_eq!(sight.nameless, None);
        assert!(sight.view.interrupts_on() && !sight.view.dead_halt());
        let function = sight.function().unwrap();
        assert!(
            [
                "default_idle",
                "pv_native_safe_halt",
                "native_safe_halt",
                "native_halt"
            ]
            .contains(&function),
            "{sight}"
        );
        let names = names(&sight);
        let idle = names.iter().position(|name| *name == "default_idle");
        let idle = idle.unwrap_or_else(|| panic!("{sight}"));
        let Place::Kernel(symbol) = &sight.frames[idle].place else {
            panic!("{sight}");
        };
        let start = sight.frames[idle].address - symbol.offset;
        assert_eq!(format!("{start:016x}"), told(&guest.said(), "IDLE"));
        if words == "nokaslr" || form == "vmlinux" {
            assert!((LINKED..LINKED + (64 << 20)).contains(&start), "{start:x}");
        }
        assert!(names.contains(&"do_idle"), "{sight}");
        assert!(names.contains(&"cpu_startup_entry"), "{sight}");
        assert!(sight.frames.iter().all(|frame| frame.trust == Trust::Known));
        guest.stop();
    }
}

#[test]
fn a_guest_that_reads_zeros_is_seen_doing_so_from_its_system_call_on() {
    let script = "
echo READS
dd if=/dev/zero of=/dev/null bs=1M
";
    for (version, form, words) in kernels() {
        println!("{version} {form} {words}");
        let mut spec = linux(version, words, script);
        spec.boot.kernel = kernel(version, form);
        let guest = Guest::launch(spec);
        guest.await_words("READS", PATIENCE);
        let clears = |name: &str| name.contains("clear_user") || name.contains("rep_stos");
        let reads = |name: &&str| ["read_zero", "read_iter_zero"].contains(name);
        let sight = look_until(&guest, |sight| sight.function().is_some_and(clears));
        assert_eq!(sight.view.ring, 0);
        let names = names(&sight);
        assert!(names.iter().any(reads), "{sight}");
        assert!(
            names.contains(&"vfs_read") && names.contains(&"ksys_read"),
            "{sight}"
        );
        assert_eq!(
            names.last(),
            Some(&"entry_SYSCALL_64_after_hwframe"),
            "{sight}"
        );
        assert!(sight.frames.iter().all(|frame| frame.trust == Trust::Known));
        guest.stop();
    }
}

#[test]
fn a_guest_that_reads_a_disk_is_caught_in_a_module_by_name() {
    let script = "
echo MODULES=$(cut -d' ' -f1 /proc/modules | tr '\\n' ' ')
while :; do dd if=/dev/vda of=/dev/null bs=4k iflag=direct || break; done
echo NO DIRECT READS
while :; do echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=4k; done
";
    for version in VERSIONS {
        let scratch = Scratch::new();
        let mut spec = linux(version, "", script);
        let disk = scratch.disk("disk", 8 << 20, 1);
        spec.drives.push(drive("disk", &disk));
        let guest = Guest::launch(spec);
        guest.await_words("MODULES=", PATIENCE);
        let module = |sight: &VcpuSight| match &sight.frames[0].place {
            Place::Module(module) => Some(module.name.clone()),
            _ => None,
        };
        let sight = look_until(&guest, |sight| module(sight).is_some());
        let name = module(&sight).unwrap();
        let said = guest.said();
        let modules = told(&said, "MODULES");
        println!("{version}: {name} of {modules}");
        assert!(
            modules.split(' ').any(|other| other == name),
            "{name}: {modules}"
        );
        guest.stop();
    }
}
