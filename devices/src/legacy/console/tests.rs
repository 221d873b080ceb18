use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use observe::{BlackBox, Meta};

use super::*;
use crate::bus::BusDevice;
use crate::legacy::terminal::tests::{local_flags, pty, turn};

const SOON: Duration = Duration::from_secs(10);

/// The console's section seen through the black box's file, as any reader sees it.
struct View(File, u64);

impl View {
    fn of(black_box: &BlackBox) -> View {
        use std::os::unix::fs::FileExt;
        let file = black_box.file().unwrap();
        let mut directory = vec![0; 32 << 10];
        file.read_exact_at(&mut directory, 4096).unwrap();
        let text = String::from_utf8_lossy(&directory).into_owned();
        let line = text
            .lines()
            .find(|l| l.starts_with("section\tconsole/0\t"))
            .unwrap();
        let offset = line.split('\t').nth(3).unwrap().parse().unwrap();
        View(file, offset)
    }

    fn counter(&self, name: &str) -> u64 {
        use std::os::unix::fs::FileExt;
        let field = <ConsoleBlock as observe::Section>::FIELDS
            .iter()
            .find(|f| f.name == name)
            .unwrap();
        let mut bytes = [0; 8];
        self.0
            .read_exact_at(&mut bytes, self.1 + field.offset as u64)
            .unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Waits until the counter is `value`.
    fn await_counter(&self, name: &str, value: u64) {
        await_true(|| self.counter(name) == value, name);
    }
}

fn await_true(mut condition: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < SOON, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Bench {
    serial: Arc<Serial>,
    console: Console,
    view: View,
}

fn bench(input: ConsoleInput, output: ConsoleOutput, on_key: Option<OnKey>) -> Bench {
    limited(input, output, on_key, None)
}

fn limited(
    input: ConsoleInput,
    output: ConsoleOutput,
    on_key: Option<OnKey>,
    limit: Option<BucketSpec>,
) -> Bench {
    let serial = Arc::new(Serial::new().unwrap());
    let meta = Meta {
        vm_id: "test".into(),
        version: "0".into(),
    };
    let mut black_box = BlackBox::anonymous(0, &meta).unwrap();
    let block = black_box.section("console/0", &[]).unwrap();
    let view = View::of(&black_box);
    let shared = Arc::clone(&serial);
    let console = Console::spawn(shared, input, output, block, on_key, None, limit).unwrap();
    Bench {
        serial,
        console,
        view,
    }
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), writer.into())
}

fn print(serial: &Serial, bytes: &[u8]) {
    for byte in bytes {
        serial.write(0, &[*byte]).unwrap();
    }
}

fn receive(serial: &Serial) -> Option<u8> {
    let mut byte = [0];
    serial.read(5, &mut byte).unwrap();
    (byte[0] & 1 != 0).then(|| {
        serial.read(0, &mut byte).unwrap();
        byte[0]
    })
}

fn receive_all(serial: &Serial, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    await_true(
        || {
            all.extend(std::iter::from_fn(|| receive(serial)));
            all.len() >= count
        },
        "input",
    );
    all
}

#[test]
fn output_beyond_the_limit_is_dropped_and_counted_and_the_guest_goes_on() {
    let (mut reader, writer) = pipe();
    let hourly = BucketSpec {
        size: 10,
        one_time_burst: 2,
        refill_ms: 3_600_000,
    };
    let output = ConsoleOutput::Stream(writer);
    let bench = limited(ConsoleInput::Nothing, output, None, Some(hourly));
    // More than the port's ring and a pipe hold: nothing waits for a token.
    for _ in 0..100 {
        print(&bench.serial, &[b'x'; 1000]);
        std::thread::sleep(Duration::from_micros(100));
    }
    bench.view.await_counter("output", 12);
    let gone = |view: &View| view.counter("limit_dropped") + view.counter("overrun");
    await_true(|| gone(&bench.view) == 99_988, "the rest");
    assert!(bench.view.counter("limit_dropped") > 1000);
    assert_eq!(bench.view.counter("discarded"), 0);
    assert_eq!(bench.view.counter("stalls"), 0);
    bench.console.stop(SOON).unwrap();
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert_eq!(got, [b'x'; 12]);
}

#[test]
fn output_goes_on_when_the_bucket_has_filled() {
    let (mut reader, writer) = pipe();
    let quick = BucketSpec {
        size: 4,
        one_time_burst: 0,
        refill_ms: 10,
    };
    let output = ConsoleOutput::Stream(writer);
    let bench = limited(ConsoleInput::Nothing, output, None, Some(quick));
    print(&bench.serial, b"abcdefgh");
    await_true(
        || bench.view.counter("output") + bench.view.counter("limit_dropped") == 8,
        "all of it",
    );
    let before = bench.view.counter("output");
    assert!(before >= 4, "{before}");
    std::thread::sleep(Duration::from_millis(50));
    print(&bench.serial, b"wxyz");
    bench.view.await_counter("output", before + 4);
    bench.console.stop(SOON).unwrap();
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert!(
        got.starts_with(b"abcd") && got.ends_with(b"wxyz"),
        "{got:?}"
    );
}

#[test]
fn no_metric_says_its_unit_twice() {
    let families = observe::openmetrics::families_of::<ConsoleBlock>();
    let name = |family: &observe::openmetrics::Family| family.name.clone();
    let names: Vec<String> = families.iter().map(name).collect();
    assert!(names.contains(&"vitrine_console_output_bytes".to_owned()));
    for name in names {
        assert!(name.matches("bytes").count() <= 1, "{name}");
    }
}

#[test]
fn output_arrives_and_is_counted() {
    let (mut reader, writer) = pipe();
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    print(&b.serial, b"hello");
    let mut seen = [0; 5];
    reader.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");
    b.view.await_counter("output", 5);
    assert!(b.view.counter("writes") >= 1);
    print(&b.serial, b" world");
    b.console.stop(SOON).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, " world", "stop flushes");
}

#[test]
fn a_reader_that_never_reads_stalls_the_console_and_no_vcpu() {
    let (reader, writer) = pipe();
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    // More than pipe, chunk and ring hold.
    print(&b.serial, &vec![b'x'; 256 << 10]);
    b.view.await_counter("stalls", 1);
    assert!(b.serial.overruns() > 0);
    let mut byte = [0];
    b.serial.read(5, &mut byte).unwrap();
    assert_eq!(byte[0] & 0x60, 0, "the guest can see it");
    let start = Instant::now();
    b.console.stop(Duration::from_millis(50)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(b.view.counter("overrun"), b.serial.overruns());
    assert!(b.view.counter("discarded") > 0, "the rest is counted");
    b.serial.read(5, &mut byte).unwrap();
    assert_eq!(byte[0] & 0x60, 0x60, "and holds nobody up any more");
    drop(reader);
}

/// Writes `count` bytes, 0 to 255 over and over, each when the transmitter is ready.
fn polite_guest(serial: &Arc<Serial>, count: u32) -> std::thread::JoinHandle<()> {
    let serial = Arc::clone(serial);
    std::thread::spawn(move || {
        for i in 0..count {
            let mut status = [0];
            serial.read(5, &mut status).unwrap();
            while status[0] & 0x20 == 0 {
                std::thread::yield_now();
                serial.read(5, &mut status).unwrap();
            }
            serial.write(0, &[i as u8]).unwrap();
        }
    })
}

#[test]
fn a_reader_that_stays_away_is_given_up_until_it_comes_back() {
    let (mut reader, writer) = pipe();
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    // Far more than all buffers hold: the guest ends only because its output is discarded.
    polite_guest(&b.serial, 600_000).join().unwrap();
    await_true(|| b.view.counter("discarded") > 0, "discard");
    assert_eq!((b.view.counter("stalls"), b.serial.overruns()), (1, 0));
    let mut rest = vec![0; 256 << 10];
    // What the pipe held; then the output is taken again.
    while b.view.counter("output") > 0 {
        let n = reader.read(&mut rest).unwrap();
        if n < rest.len() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    let before = b.view.counter("output");
    print(&b.serial, b"back");
    b.view.await_counter("output", before + 4);
    let n = reader.read(&mut rest).unwrap();
    assert!(rest[..n].ends_with(b"back"));
    b.console.stop(SOON).unwrap();
}

#[test]
fn a_slow_reader_loses_nothing() {
    let (mut reader, writer) = pipe();
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    let guest = polite_guest(&b.serial, 300_000);
    await_true(|| b.view.counter("stalls") > 0, "stall");
    let mut seen = vec![0; 300_000];
    reader.read_exact(&mut seen).unwrap();
    guest.join().unwrap();
    assert!(seen.iter().enumerate().all(|(i, b)| *b == i as u8));
    assert_eq!(b.serial.overruns(), 0);
    b.console.stop(SOON).unwrap();
}

#[test]
fn a_broken_output_is_counted_and_discarded() {
    let (reader, writer) = pipe();
    drop(reader);
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    print(&b.serial, b"lost");
    b.view.await_counter("discarded", 4);
    assert!(b.view.counter("write_errors") >= 1);
    assert_eq!(b.view.counter("output"), 0);
    b.console.stop(SOON).unwrap();
}

#[test]
fn a_full_disk_is_counted_and_discarded() {
    let full = ConsoleOutput::path(std::path::Path::new("/dev/full")).unwrap();
    let b = bench(ConsoleInput::Nothing, full, None);
    print(&b.serial, b"lost");
    b.view.await_counter("discarded", 4);
    b.console.stop(SOON).unwrap();
}

#[test]
fn no_output_is_counted() {
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Nothing, None);
    print(&b.serial, &[b'x'; 100_000]);
    b.console.stop(SOON).unwrap();
    let lost = b.view.counter("discarded") + b.view.counter("overrun");
    assert_eq!(lost, 100_000);
}

#[test]
fn a_file_is_made_and_appended_to() {
    let path = std::env::temp_dir().join(format!("vitrine-console-{}", std::process::id()));
    for _ in 0..2 {
        let output = ConsoleOutput::path(&path).unwrap();
        let b = bench(ConsoleInput::Nothing, output, None);
        print(&b.serial, b"line\n");
        b.console.stop(SOON).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text, "line\nline\n");
}

#[test]
#[allow(unsafe_code)]
fn a_fifo_needs_no_reader_to_start() {
    let path = std::env::temp_dir().join(format!("vitrine-fifo-{}", std::process::id()));
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let output = ConsoleOutput::path(&path).unwrap();
    let b = bench(ConsoleInput::Nothing, output, None);
    print(&b.serial, b"early");
    b.view.await_counter("output", 5);
    let mut seen = [0; 5];
    File::open(&path).unwrap().read_exact(&mut seen).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(&seen, b"early");
    b.console.stop(SOON).unwrap();
}

#[test]
fn input_larger_than_every_buffer_arrives_whole_and_in_order() {
    let (reader, writer) = pipe();
    let input = ConsoleInput::Stream(reader.into());
    let b = bench(input, ConsoleOutput::Nothing, None);
    let sent: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
    let mut writer = File::from(writer);
    writer.write_all(&sent).unwrap();
    assert_eq!(receive_all(&b.serial, sent.len()), sent);
    b.view.await_counter("input", sent.len() as u64);
    // End of input stops input only.
    drop(writer);
    print(&b.serial, b"on");
    b.view.await_counter("discarded", 2);
    assert_eq!(b.view.counter("input_dropped"), 0);
    b.console.stop(SOON).unwrap();
}

#[test]
fn a_pipe_is_not_made_nonblocking_for_others() {
    let (_reader, writer) = pipe();
    let other = writer.try_clone().unwrap();
    let b = bench(ConsoleInput::Nothing, ConsoleOutput::Stream(writer), None);
    print(&b.serial, b"x");
    b.view.await_counter("output", 1);
    let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", other.as_raw_fd()));
    let flags = flags.unwrap();
    let flags = flags
        .lines()
        .find_map(|l| l.strip_prefix("flags:"))
        .unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    assert_eq!(flags & libc::O_NONBLOCK, 0);
    b.console.stop(SOON).unwrap();
}

#[test]
fn a_terminal_has_keys_for_vitrine_even_when_the_guest_does_not_read() {
    let _turn = turn();
    let (master, terminal) = pty();
    let before = local_flags(&terminal);
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    let on_key: OnKey = Box::new(move |key| {
        assert_eq!(key, ConsoleKey::Stop);
        stop.store(true, Ordering::Release);
    });
    let input = ConsoleInput::Terminal(terminal.try_clone().unwrap());
    let output = ConsoleOutput::Stream(terminal.try_clone().unwrap());
    let b = bench(input, output, Some(on_key));
    assert_eq!(local_flags(&terminal), 0, "raw");
    let mut master = File::from(master);
    master.write_all(b"a\x01\x01\x01c\r\x03").unwrap();
    assert_eq!(receive_all(&b.serial, 6), b"a\x01\x01c\r\x03");
    master.write_all(b"\x01h").unwrap();
    let mut help = [0; 4];
    master.read_exact(&mut help).unwrap();
    assert_eq!(help, HELP_START);
    // 64 bytes of FIFO, 4096 that wait, and then some.
    for _ in 0..50 {
        master.write_all(&[b'y'; 100]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    master.write_all(b"\x01x").unwrap();
    await_true(|| stopped.load(Ordering::Acquire), "Ctrl-A x");
    assert_eq!(b.view.counter("input_dropped"), 5000 - 4096 - 64);
    b.console.stop(SOON).unwrap();
    assert_eq!(local_flags(&terminal), before, "restored");
}

const HELP_START: [u8; 4] = *b"\r\nCt";
