use std::mem::offset_of;

use super::*;
use crate::blackbox::{BlackBox, Block, Meta};
use crate::reader::{Reader, Snapshot, TextView, fuzz_entry};
use crate::report::{Options, render, render_html};
use crate::schema::{Field, Section};

const BYTES: usize = 1024;

#[derive(Default)]
#[repr(C)]
struct Toy {
    text: TextRing<BYTES>,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Toy {
    const KIND: &'static str = "console_watch";
    const INSTANCE: &'static [&'static str] = &["console"];
    const FIELDS: &'static [Field] = &[Field::text::<BYTES>(
        "output",
        offset_of!(Toy, text),
        "What was said.",
    )];
}

fn toy() -> (BlackBox, Block<Toy>) {
    let meta = Meta {
        vm_id: "talker".into(),
        version: "1".into(),
    };
    let mut black_box = BlackBox::anonymous(64 << 10, &meta).unwrap();
    let block = black_box.section("console_watch/serial", &[]).unwrap();
    (black_box, block)
}

fn snapshot(black_box: &BlackBox) -> Snapshot {
    let reader = Reader::from_file(black_box.file().unwrap(), "test".into());
    reader.unwrap().snapshot().unwrap()
}

fn text(black_box: &BlackBox) -> TextView {
    let snapshot = snapshot(black_box);
    let section = snapshot.section("console_watch/serial").unwrap();
    section.text("output").unwrap()
}

/// What byte `n` is.
fn byte(n: u64) -> u8 {
    (n.wrapping_mul(2_654_435_761) >> 11) as u8
}

#[test]
fn the_last_bytes_are_read_whatever_their_number() {
    let (black_box, block) = toy();
    let mut said = Vec::new();
    for piece in [0, 1, 255, 256, 257, 3000, 5] {
        let first = said.len() as u64;
        let bytes: Vec<u8> = (first..first + piece).map(byte).collect();
        block.text.push(&bytes);
        said.extend(bytes);
        let seen = text(&black_box);
        assert_eq!(seen.written, said.len() as u64);
        let kept = said.len().min(BYTES - TEXT_STEP);
        assert!(said.ends_with(&seen.bytes));
        assert!(seen.bytes.len() >= kept && seen.bytes.len() <= BYTES);
    }
}

#[test]
fn a_reader_sees_no_byte_of_another_round_while_a_writer_hammers() {
    use std::sync::atomic::AtomicBool;
    let (black_box, block) = toy();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut written = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let bytes: Vec<u8> = (written..written + 97).map(byte).collect();
                block.text.push(&bytes);
                written += 97;
            }
        });
        let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
        let mut seen = 0;
        for _ in 0..3000 {
            let snapshot = reader.snapshot().unwrap();
            let text = snapshot.sections[0].text("output").unwrap();
            // The last byte is the one before the reading of `written` that came first.
            let length = text.bytes.len() as u64;
            let ends = (0..=text.written - length).rev();
            let fits = |first: u64| (first..).zip(&text.bytes).all(|(n, b)| byte(n) == *b);
            if length > 64 {
                assert!(ends.take(BYTES).any(fits), "a torn text");
            }
            seen += length;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen > 0, "no snapshot held a byte");
    });
}

#[test]
fn a_report_shows_the_last_lines_and_no_control_character() {
    let (black_box, block) = toy();
    let empty = render(&snapshot(&black_box), Options::default());
    assert!(!empty.contains("console"), "{empty}");
    for line in 0..200 {
        block.text.push(format!("line {line}\r\n").as_bytes());
    }
    block.text.push(b"\x1b[2J<b>\xff end");
    let page = render(&snapshot(&black_box), Options::default());
    let shown: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("  | "))
        .collect();
    assert_eq!(shown.len(), 40, "{page}");
    assert_eq!(shown[39], "  | \\u{1b}[2J<b>\u{fffd} end");
    assert_eq!(shown[38], "  | line 199");
    let html = render_html(&snapshot(&black_box), Options::default());
    assert!(html.contains("&lt;b&gt;") && !html.contains('\x1b'));
    assert!(!page.contains("Other numbers"), "{page}");
}

#[test]
fn a_ring_of_any_size_never_harms_its_reader() {
    for stride in [
        "0",
        "7",
        "8",
        "9",
        "16",
        "65544",
        "65545",
        "18446744073709551615",
    ] {
        for count in ["1", "4096"] {
            let mut bytes = vec![0; 8192];
            let (black_box, _) = toy();
            let file = black_box.file().unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
            let line = format!(
                "kind\tt\nfield\tt\tx\t7\t2\t0\t{count}\t{stride}\tr\t.\nsection\tt\tt\t4096\t4096\n\
                 labels\tt\tr\ta,b,c,d\n"
            );
            bytes.truncate(4096);
            bytes.extend(line.as_bytes());
            bytes.resize(80_000, b'\n');
            fuzz_entry(&bytes);
        }
    }
}
