//! Cores of stock guests: the kernel's own words are where the guest says that they are.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use vmm::dump::{DumpKind, Progress};
use vmm::{Outcome, VmCommand, VmEvent, VmState};

use crate::harness::{Guest, Scratch};
use crate::{PATIENCE, VERSIONS, linux, told};

/// Says where the kernel's banner lies in physical memory, and then waits.
const WHERE: &str = "
symbol() { sed -n \"s/^\\([0-9a-f]*\\) . $1\\$/\\1/p\" /proc/kallsyms; }
code=$(sed -n 's/^ *\\([0-9a-f]*\\)-.* : Kernel code/\\1/p' /proc/iomem)
echo BANNER=$(printf %d $(( 0x$(symbol linux_banner) - 0x$(symbol _text) + 0x$code )))
echo WAITING
for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1; done
echo OVER=yes
";

#[test]
fn a_core_has_the_kernel_where_the_guest_says_and_the_guest_goes_on() {
    for version in VERSIONS {
        let scratch = Scratch::new();
        let path = scratch.path("core");
        let mut spec = linux(version, "", WHERE);
        spec.vcpus = 2;
        let guest = Guest::launch(spec);
        guest.await_words("WAITING", PATIENCE);
        let mut seen = Vec::new();
        let mut progress = |progress| seen.push(progress);
        guest.vm.dump(DumpKind::Core, &path, &mut progress).unwrap();
        assert_eq!(guest.vm.state(), VmState::Running);
        // A machine that is busy has verdicts, too.
        let events = guest.events.try_iter();
        let events = events.filter(|event| !matches!(event, VmEvent::Verdict(..)));
        let events: Vec<VmEvent> = events.collect();
        assert_eq!(events, [VmEvent::Paused, VmEvent::Resumed]);
        let total = 256 << 20;
        let last = Progress { done: total, total };
        assert_eq!((seen.len(), seen.last()), (4, Some(&last)));

        let core = File::open(&path).unwrap();
        let metadata = core.metadata().unwrap();
        let memory = metadata.len() - total;
        assert_eq!(memory, 4096, "one piece of memory, after the head");
        assert!(
            metadata.blocks() * 512 < total,
            "pages without content take room"
        );
        let banner: u64 = told(&guest.said(), "BANNER").parse().unwrap();
        let mut words = vec![0; 64];
        core.read_exact_at(&mut words, memory + banner).unwrap();
        let words = String::from_utf8_lossy(&words).into_owned();
        assert!(
            words.starts_with(&format!("Linux version {version}")),
            "{words}"
        );
        if let Ok(told) = Command::new("readelf").arg("-Wln").arg(&path).output() {
            let told = String::from_utf8(told.stdout).unwrap();
            assert_eq!(told.matches("NT_PRSTATUS").count(), 2, "{told}");
            assert_eq!(told.matches("  LOAD  ").count(), 1, "{told}");
        }
        let registers = scratch.path("registers");
        let none = &mut |_| ();
        guest
            .vm
            .dump(DumpKind::Registers, &registers, none)
            .unwrap();
        let registers = fs::read_to_string(&registers).unwrap();
        assert_eq!(registers.matches("\"rip\":\"0x").count(), 2, "{registers}");
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff);
        assert_eq!(told(&done.console, "OVER"), "yes");
    }
}

#[test]
fn a_disk_that_is_full_leaves_no_half_core_and_a_guest_that_goes_on() {
    let scratch = Scratch::new();
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(&small)
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        println!("no disk can be mounted here");
        return;
    }
    let guest = Guest::launch(linux("6.12", "", "echo WAITING; sleep 3; echo OVER=yes"));
    guest.await_words("WAITING", PATIENCE);
    let path = small.join("core");
    let dumped = guest.vm.dump(DumpKind::Core, &path, &mut |_| ());
    let left = fs::read_dir(&small).unwrap().count();
    let state = guest.vm.state();
    let unmounted = Command::new("umount").arg(&small).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    let error = dumped.unwrap_err().to_string();
    assert!(
        error.contains("No space left") && error.contains("free space"),
        "{error}"
    );
    assert_eq!((left, state), (0, VmState::Running));
    let done = guest.finish(PATIENCE);
    assert_eq!(told(&done.console, "OVER"), "yes");
}

#[test]
fn who_pauses_while_a_core_is_written_is_heard_and_who_resumes_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("core");
    let guest = Guest::launch(linux("6.12", "", "echo WAITING; sleep 2; echo OVER=yes"));
    guest.await_words("WAITING", PATIENCE);
    let mut refused = None;
    let vm = guest.vm.clone();
    let mut meddle = |_| {
        let resumed = vm.command_within(VmCommand::Resume, PATIENCE);
        refused = Some(resumed.unwrap_err().to_string());
        vm.command_within(VmCommand::Pause, PATIENCE).unwrap();
    };
    guest.vm.dump(DumpKind::Core, &path, &mut meddle).unwrap();
    let refused = refused.unwrap();
    assert!(
        refused.contains("a dump of the microVM is being written"),
        "{refused}"
    );
    assert_eq!(guest.vm.state(), VmState::Paused);
    guest.command(VmCommand::Resume);
    let done = guest.finish(PATIENCE);
    assert_eq!(told(&done.console, "OVER"), "yes");
}
