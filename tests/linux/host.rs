//! What the host does with a drive's image while the guest uses it, or has not: another image, one
//! that is taken, bad blocks, no io_uring.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use vmm::{IoEngine, Outcome, VmEvent};

use crate::block::Mapped;
use crate::daemon::Daemon;
use crate::harness::{ENGINES, Guest, Scratch, alone, drive, image};
use crate::{PATIENCE, TRANSPORTS, kernel, on, told};

/// A daemon with a drive whose guest runs `script`; not started.
fn daemon(version: &str, pci: bool, disk: &Path, script: &str) -> Daemon {
    let mut arguments = vec!["--api-sock", "SCRATCH/api.sock"];
    arguments.extend(pci.then_some("--enable-pci"));
    let daemon = Daemon::with(Scratch::new(), &arguments);
    daemon.await_path("api.sock");
    let script = BASE64_STANDARD.encode(script);
    let boot = json!({
        "kernel_image_path": kernel(version, "vmlinux"),
        "initrd_path": image(&format!("initrd-{version}.img")),
        "boot_args": format!("console=ttyS0 reboot=k panic=1 quiet vitrine.script={script}"),
    });
    daemon.put("/boot-source", &boot);
    daemon.put(
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 256}),
    );
    let drive = json!({"drive_id": "disk", "path_on_host": disk, "is_root_device": false});
    daemon.put("/drives/disk", &drive);
    daemon
}

const START: &str = r#"{"action_type": "InstanceStart"}"#;

fn patch(daemon: &Daemon, disk: &Path) -> (u16, String) {
    let body = json!({"drive_id": "disk", "path_on_host": disk});
    daemon.ask("PATCH", "/drives/disk", &body)
}

fn md5(path: &Path) -> String {
    let said = Command::new("md5sum").arg(path).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_drive_takes_another_image_and_a_larger_one_and_nobody_else_may_have_it() {
    let script = "
sum() { dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1; }
for size in 8192 12288 16384; do
  until [ $(blockdev --getsz /dev/vda) = $size ]; do sleep 0.1; done
  echo SUM$size=$(sum)
done
";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let [first, second] = [("first", 4 << 20, 1), ("second", 6 << 20, 2)]
            .map(|(name, bytes, seed)| scratch.disk(name, bytes, seed));
        let start: Value = serde_json::from_str(START).unwrap();
        let mut vm = daemon(version, pci, &first, script);
        vm.put("/actions", &start);
        let said = |vm: &Daemon, size: u32, disk: &Path| {
            vm.await_output(&format!("SUM{size}={}", md5(disk)));
        };
        said(&vm, 8192, &first);

        let other = daemon(version, pci, &first, "echo RUNS; sleep 1000");
        let (status, body) = other.ask("PUT", "/actions", &start);
        assert_eq!(status, 400, "{body}");
        let holder = format!("is in use by process {}", vm.child.id());
        for words in ["drive disk: ", &holder, "set is_read_only on both"] {
            assert!(body.contains(words), "{words:?}: {body}");
        }

        let (status, body) = patch(&vm, &scratch.path("none"));
        assert_eq!(status, 400);
        assert!(body.contains("No such file or directory"), "{body}");
        assert_eq!(patch(&vm, &second), (204, String::new()));
        said(&vm, 12288, &second);
        // The file that it had is free, and the other one is not.
        assert_eq!(other.ask("PUT", "/actions", &start).0, 204);
        other.await_output("RUNS");
        let (status, body) = patch(&vm, &first);
        assert!(status == 400 && body.contains("is in use by"), "{body}");

        let file = fs::File::options().write(true).open(&second).unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(patch(&vm, &second), (204, String::new()));
        said(&vm, 16384, &second);
        assert_eq!(vm.finish().code(), Some(0), "{}", vm.text("stderr"));
    }
}

/// The blocks of 4 KiB that the host cannot read or write: one is read, the next one written.
const BAD: u64 = 256;

#[test]
fn bad_blocks_of_the_host_are_io_errors_of_the_guest_and_heal() {
    let script = format!(
        "
dev=/dev/vda
why() {{ grep -o -m1 'Input/output error' /run/why || echo fine; }}
take() {{ dd if=$dev of=/dev/null bs=4k skip=$1 count=1 iflag=direct 2>/run/why; why; }}
give() {{ dd if=/dev/zero of=$dev bs=4k seek=$1 count=1 oflag=direct conv=fsync 2>/run/why; why; }}
echo BEFORE=$(take {before})
echo READ=$(take {BAD})
echo WRITTEN=$(give {after})
echo AFTER=$(give {before})
until [ \"$(take {BAD})\" = fine ]; do sleep 0.2; done
echo HEALED=$(give {after})
",
        before = BAD - 32,
        after = BAD + 1,
    );
    for ((version, pci), engine) in TRANSPORTS.into_iter().zip(ENGINES) {
        let disk = Mapped::new("vitrine-bad", 4, 0);
        disk.break_sectors(BAD * 8, 16);
        let mut spec = on(version, pci, "", &script);
        spec.drives.push(drive("disk", &disk.path()));
        spec.drives[0].engine = engine;
        let guest = Guest::launch(spec);
        guest.await_words("AFTER=", PATIENCE);
        let seen = guest.seen();
        let of = |field, row| seen.number("device/disk", field, row);
        assert!(of("operation_errors", "read") > 0, "{version}");
        assert!(of("operation_errors", "flush") > 0, "{version}");
        assert_eq!(of("last_errno", ""), libc::EIO as u64);
        let mut events = guest.events.try_iter();
        let is_told = events.any(|event| {
            matches!(event, VmEvent::Device { device, detail } if device == "disk"
                && detail.contains("refused read at sector 2048")
                && detail.contains("Input/output error"))
        });
        assert!(is_told, "{version}");
        disk.heal();
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        let bad = "Input/output error";
        for (key, value) in [("BEFORE", "fine"), ("READ", bad), ("WRITTEN", bad)] {
            assert_eq!(told(&done.console, key), value, "{key}: {}", done.console);
        }
        assert_eq!(told(&done.console, "HEALED"), "fine");
        assert!(
            !fs::read(disk.path()).unwrap()[((BAD + 1) * 4096) as usize..][..4096]
                .iter()
                .any(|byte| *byte != 0)
        );
    }
}

/// Has the host's kernel refuse io_uring to this process, as filters of containers do.
fn forbid_io_uring() {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD_NUMBER, 0, 0, 0),
        step(IS_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    #[allow(unsafe_code)]
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(done, 0);
    // SAFETY: the kernel copies the program and its steps, which live beyond the call.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn without_io_uring_an_async_drive_works_as_a_sync_one_and_says_so() {
    if !alone("host::without_io_uring_an_async_drive_works_as_a_sync_one_and_says_so") {
        return;
    }
    forbid_io_uring();
    let script = "echo SUM=$(md5sum < /dev/vda | cut -d' ' -f1)";
    for (version, pci) in TRANSPORTS {
        let scratch = Scratch::new();
        let disk = scratch.disk("disk", 1 << 20, 3);
        let mut spec = on(version, pci, "", script);
        spec.drives.push(drive("disk", &disk));
        spec.drives[0].engine = IoEngine::Async;
        let guest = Guest::launch(spec);
        guest.await_words("SUM=", PATIENCE);
        let mut events = guest.events.try_iter();
        let is_told = events.any(|event| {
            matches!(event, VmEvent::Device { device, detail } if device == "disk"
                && detail.contains("may not use io_uring")
                && detail.contains("kernel.io_uring_disabled"))
        });
        assert!(is_told, "{version}");
        let done = guest.finish(PATIENCE);
        assert_eq!(told(&done.console, "SUM"), md5(&disk), "{version}");
        assert_eq!(done.seen.number("device/disk", "io_engine", ""), 1);
    }
}
