//! Over the host's own io_uring, with a pipe as the file that takes its time. A host without one
//! gives these tests nothing to look at, but for how it refuses.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memory::{Bytes, GuestAddress, GuestRam};

use super::*;
use crate::virtio::host_file::Erase;
use crate::virtio::queue::Chain;

const AT: GuestAddress = GuestAddress(0x1000);

/// A ring of another thread, which has ended: that of a drive is made by the thread that builds the VM.
fn ring() -> Option<Uring<u32>> {
    match std::thread::spawn(Uring::new).join().unwrap() {
        Ok(ring) => Some(ring),
        Err(error @ (UringError::Missing | UringError::Old(_) | UringError::Forbidden)) => {
            eprintln!("not tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap())
}

/// A job with one buffer of so many bytes at [`AT`].
fn job(ram: &Arc<GuestRam>, file: &Arc<File>, op: Op, bytes: usize, of: u32) -> Job<u32> {
    let mut chain = Chain::new(ram);
    match op {
        Op::Write(_) => chain.readable.push(AT, bytes).unwrap(),
        _ => chain.writable.push(AT, bytes).unwrap(),
    }
    let file = Arc::clone(file);
    Job {
        file,
        chain,
        op,
        of,
    }
}

fn pipe() -> (Arc<File>, File) {
    let (reader, writer) = io::pipe().unwrap();
    let file = |end: OwnedFd| File::from(end);
    (Arc::new(file(reader.into())), file(writer.into()))
}

fn temporary(bytes: &[u8]) -> Arc<File> {
    let name = format!(
        "vitrine-uring-{}-{:p}",
        std::process::id(),
        &raw const bytes
    );
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

/// The next job that ends, within 5 s.
fn next(ring: &mut Uring<u32>) -> (Job<u32>, io::Result<usize>) {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(ended) = ring.ended() {
            return ended;
        }
        assert!(Instant::now() < until, "no job has ended in time");
        ring.wait(Duration::from_millis(100));
    }
}

#[test]
fn each_kind_of_job_does_what_it_does_on_this_thread() {
    let Some(mut ring) = ring() else { return };
    let ram = ram();
    let before: Vec<u8> = (0..1 << 18).map(|at| (at % 251) as u8).collect();
    let (here, there) = (temporary(&before), temporary(&before));
    ram.write_slice(&[0xAB; 700], AT).unwrap();
    for (op, bytes) in [
        (Op::Write(300), 700),
        (Op::Read(4096), 600),
        (Op::Flush, 1),
        (Op::Erase(Erase::Punch, 8192, 4096), 1),
        (Op::Erase(Erase::Zero, 16384, 4096), 1),
        (Op::Zeros(32768, 1 << 16), 1),
        // Beyond the end, and nothing there.
        (Op::Read(1 << 30), 512),
    ] {
        let expected = job(&ram, &here, op, bytes, 0).step();
        let mut memory = [0; 700];
        ram.read_slice(&mut memory, AT).unwrap();
        if let Op::Read(_) = op {
            ram.write_slice(&[1; 700], AT).unwrap();
        }
        assert!(ring.start(job(&ram, &there, op, bytes, 7)).is_none());
        ring.submit();
        let (ended, result) = next(&mut ring);
        assert_eq!((ended.of, ended.op), (7, op));
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(result.map_err(errno), expected.map_err(errno), "{op:?}");
        let mut read = [1; 700];
        ram.read_slice(&mut read, AT).unwrap();
        if op == Op::Read(4096) {
            assert_eq!(read[..600], memory[..600]);
        }
    }
    let mut after = [vec![0; 1 << 18], vec![0; 1 << 18]];
    for (file, after) in [here, there].iter().zip(&mut after) {
        file.read_exact_at(after, 0).unwrap();
    }
    assert!(after[0] == after[1] && after[0] != before);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn its_descriptor_tells_of_the_end_and_jobs_end_in_any_order() {
    let Some(mut ring) = ring() else { return };
    let ram = ram();
    let ((slow, mut writer), quick) = (pipe(), temporary(&[9; 4096]));
    ring.acknowledge();
    for (file, of) in [(&slow, 1), (&quick, 2)] {
        assert!(ring.start(job(&ram, file, Op::Read(0), 512, of)).is_none());
    }
    ring.submit();
    assert_eq!(next(&mut ring).0.of, 2);
    assert_eq!(ring.in_flight(), 1);
    assert_eq!(ring.told.read().unwrap_or(0).min(1), 1);
    ring.wait(Duration::from_millis(20));
    assert!(ring.ended().is_none(), "nobody wrote");
    writer.write_all(&[5; 100]).unwrap();
    let (ended, result) = next(&mut ring);
    assert_eq!((ended.of, result.unwrap()), (1, 100), "short");
    assert_eq!(ram.read_obj::<u8>(AT).unwrap(), 5);
    assert!(ring.told.read().is_ok());
}

#[test]
fn there_is_room_for_so_many_and_all_can_be_cancelled() {
    let Some(mut ring) = ring() else { return };
    let ram = ram();
    let (slow, mut writer) = pipe();
    for of in 0..u32::from(MAX_JOBS) {
        assert!(ring.has_room());
        assert!(ring.start(job(&ram, &slow, Op::Read(0), 512, of)).is_none());
    }
    assert!(!ring.has_room());
    let over = ring.start(job(&ram, &slow, Op::Read(0), 512, 999));
    assert_eq!(over.map(|job| job.of), Some(999));
    ring.submit();
    ring.cancel();
    let mut ended: Vec<u32> = (0..MAX_JOBS)
        .map(|_| {
            let (job, result) = next(&mut ring);
            let errno = result.unwrap_err().raw_os_error();
            assert!(matches!(errno, Some(libc::ECANCELED | libc::EINTR)));
            job.of
        })
        .collect();
    ended.sort_unstable();
    assert!(ended.into_iter().eq(0..u32::from(MAX_JOBS)));
    assert_eq!(ring.in_flight(), 0);
    // Nothing reads any more: what is written now stays out of the guest's memory.
    writer.write_all(&[5; 512]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(ram.read_obj::<u8>(AT).unwrap(), 0);
}

#[test]
fn a_dropped_ring_gives_back_the_memory_that_the_host_gave_back() {
    let Some(mut ring) = ring() else { return };
    let ram = ram();
    let (slow, _writer) = pipe();
    for of in 0..3 {
        assert!(ring.start(job(&ram, &slow, Op::Read(0), 512, of)).is_none());
    }
    ring.submit();
    assert!(Arc::strong_count(&ram) > 3);
    let began = Instant::now();
    drop(ring);
    assert!(began.elapsed() < DROP_WAIT);
    assert_eq!((Arc::strong_count(&ram), Arc::strong_count(&slow)), (1, 1));
}

#[test]
fn a_refusal_names_cause_and_remedy() {
    for (errno, words) in [
        (libc::ENOSYS, ["has no io_uring", "5.11 or newer"]),
        (
            libc::EPERM,
            ["may not use", "kernel.io_uring_disabled to 0"],
        ),
        (libc::ENOMEM, ["no memory", "ulimit -l"]),
        (libc::EMFILE, ["gives no io_uring", "open files"]),
    ] {
        let text = UringError::from(io::Error::from_raw_os_error(errno)).to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}
