//! virtio-vsock under stock kernels: programs of the guest reach those of the host, and the other
//! way round.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use vmm::{Outcome, VsockSpec};

use crate::harness::{Guest, Scratch, Seen};
use crate::{PATIENCE, kernel, linux, told};

const MIB: usize = 1 << 20;

/// A guest with a socket device over one of the transports, and where the host reaches it.
fn guest(scratch: &Scratch, version: &str, pci: bool, script: &str) -> (Guest, PathBuf) {
    let path = scratch.path("v.sock");
    let mut spec = linux(version, "", script);
    spec.boot.kernel = kernel(version, "vmlinux");
    spec.pci = pci;
    spec.vsock = Some(VsockSpec {
        guest_cid: 42,
        path: path.clone(),
    });
    (Guest::launch(spec), path)
}

fn count(seen: &Seen, field: &str) -> u64 {
    seen.number("vsock/vsock", field, "")
}

/// Takes one caller: all that it sends, and then all of it back.
fn mirror(path: &Path) -> thread::JoinHandle<usize> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        caller.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut sent = Vec::new();
        caller.read_to_end(&mut sent).unwrap();
        caller.write_all(&sent).unwrap();
        sent.len()
    })
}

#[test]
fn a_program_of_the_guest_reaches_one_of_the_host_and_gets_all_of_it_back() {
    let script = "
dd if=/dev/urandom of=/run/sent bs=64k count=32 2> /dev/null
vitrine-peer connect 2 6000 < /run/sent > /run/back
echo STATUS=$?
echo BACK=$(wc -c < /run/back)
cmp /run/sent /run/back && echo SAME=yes
vitrine-peer connect 2 7000 < /dev/null
echo NOBODY=$?
";
    for (version, pci) in [("6.1", false), ("6.12", true)] {
        let scratch = Scratch::new();
        let host = mirror(&scratch.path("v.sock_6000"));
        let (guest, _) = guest(&scratch, version, pci, script);
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff, "{}", done.console);
        assert_eq!(told(&done.console, "STATUS"), "0", "{}", done.console);
        assert_eq!(told(&done.console, "BACK"), (2 * MIB).to_string());
        assert_eq!(told(&done.console, "SAME"), "yes");
        assert_eq!(host.join().unwrap(), 2 * MIB);
        // Where nobody listens the guest's kernel is told so at once.
        assert_eq!(told(&done.console, "NOBODY"), "1");
        assert!(done.console.contains("connect failed with error 104"));
        let seen = &done.seen;
        assert_eq!(count(seen, "opened_by_guest"), 1);
        assert_eq!(
            (count(seen, "opened_by_host"), count(seen, "refused")),
            (0, 1)
        );
        assert_eq!((count(seen, "connections"), count(seen, "waiting")), (0, 0));
        for operation in ["rx", "tx"] {
            let bytes = seen.number("device/vsock", "operation", operation);
            assert!(bytes >= 2 * MIB as u64, "{operation}: {bytes}");
        }
        println!("{version}, pci {pci}: 2 MiB there and back");
    }
}

/// Calls the guest's port; what it sends and gets back, or `None` where nobody takes the call.
fn call(path: &Path, port: u32, sent: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    if !answer.starts_with("OK ") {
        assert_eq!(answer, "");
        return None;
    }
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            stream.write_all(sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        reader.read_to_end(&mut back).unwrap();
    });
    Some(back)
}

#[test]
fn a_program_of_the_host_reaches_one_of_the_guest_and_gets_all_of_it_back() {
    for (version, pci) in [("6.1", true), ("6.12", false)] {
        let scratch = Scratch::new();
        let script = "vitrine-peer echo 5000";
        let (guest, path) = guest(&scratch, version, pci, script);
        guest.await_words("vitrine-peer: listens", PATIENCE);
        let sent: Vec<u8> = (0..MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
        for round in 1..=2 {
            let back = call(&path, 5000, &sent);
            assert!(back.as_deref() == Some(&*sent), "round {round}");
        }
        assert_eq!(call(&path, 5000, b""), Some(Vec::new()));
        assert_eq!(call(&path, 5001, b""), None, "nobody listens there");
        let seen = guest.seen();
        assert_eq!(
            (count(&seen, "opened_by_host"), count(&seen, "refused")),
            (3, 1)
        );
        assert_eq!(count(&seen, "opened_by_guest"), 0);
        println!("{version}, pci {pci}: 2 MiB there and back");
        guest.stop();
    }
}
