use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::*;

/// A folder of its own for one test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("vitrine-dump-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_dump_is_there_when_it_is_whole_and_takes_the_place_of_a_file_alone() {
    let folder = Scratch::new("target");
    let path = folder.0.join("core");
    fs::write(&path, "old").unwrap();
    let target = Target::create(&path, None).unwrap();
    target.write_at(b"new", 5).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    target.settle().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0\0new");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    drop(Target::create(&path, None).unwrap());
    assert_eq!(folder.names(), ["core"], "what is given up leaves nothing");

    symlink(&path, folder.0.join("link")).unwrap();
    fs::create_dir(folder.0.join("folder")).unwrap();
    let refused = |path: &Path, taken: Option<&fs::File>| match Target::create(path, taken) {
        Ok(_) => panic!("{} is taken", path.display()),
        Err(error) => error.to_string(),
    };
    for name in ["link", "folder"] {
        let text = refused(&folder.0.join(name), None);
        assert!(text.contains("not a regular file"), "{text}");
    }
    let text = refused(Path::new("/dev/full"), None);
    assert!(text.contains("not a regular file"), "{text}");
    let text = refused(Path::new("core"), None);
    assert!(text.contains("absolute"), "{text}");
    let text = refused(&folder.0.join("no/core"), None);
    assert!(text.contains("cannot be made"), "{text}");
    let black_box = fs::File::open(&path).unwrap();
    let text = refused(&path, Some(&black_box));
    assert!(text.contains("black box itself"), "{text}");
}

fn registers(seed: u64) -> Registers {
    Registers {
        general: kvm_regs {
            rip: seed,
            rsp: seed + 1,
            r15: seed + 2,
            ..kvm_regs::default()
        },
        special: kvm_sregs {
            cr3: seed + 3,
            cs: kvm_segment {
                selector: 0x10,
                limit: 0xffff_ffff,
                type_: 11,
                present: 1,
                s: 1,
                l: 1,
                g: 1,
                ..kvm_segment::default()
            },
            ..kvm_sregs::default()
        },
        kernel_gs_base: seed + 4,
        mp_state: 3,
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn the_head_of_a_core_says_where_memory_and_registers_are() {
    let regions = [(0, 3 << 30), (4 << 30, 64 << 20)];
    let head = elf::head(&regions, &[registers(1000), registers(2000)]);
    let bytes = &head.bytes;
    assert_eq!(&bytes[..7], b"\x7fELF\x02\x01\x01");
    assert_eq!((half(bytes, 16), word(bytes, 32)), (62 << 16 | 4, 64));
    assert_eq!(half(bytes, 52), 56 << 16 | 64);
    assert_eq!(half(bytes, 56), 3);
    // A note, then both pieces of memory.
    assert_eq!(half(bytes, 64), 4);
    let notes = word(bytes, 64 + 8) as usize;
    assert_eq!(notes + word(bytes, 64 + 32) as usize, bytes.len());
    for (index, (piece, (guest, length))) in head.pieces.iter().zip(regions).enumerate() {
        let at = 64 + 56 * (index + 1);
        assert_eq!(half(bytes, at), 1);
        assert_eq!(
            (piece.guest, piece.bytes, piece.offset % 4096),
            (guest, length, 0)
        );
        let words = [8, 16, 24, 32, 40].map(|field| word(bytes, at + field));
        assert_eq!(words, [piece.offset, guest, guest, length, length]);
        assert!(piece.offset >= bytes.len() as u64);
    }
    assert_eq!(head.pieces[1].offset, head.pieces[0].offset + (3 << 30));
    assert_eq!(head.file_bytes, head.pieces[1].offset + (64 << 20));
    // Both vCPUs as processes 1 and 2, then both states.
    let mut at = notes;
    for (kind, length, name) in [
        (1, 336, b"CORE\0"),
        (1, 336, b"CORE\0"),
        (0, 440, b"QEMU\0"),
        (0, 440, b"QEMU\0"),
    ] {
        assert_eq!(
            [half(bytes, at), half(bytes, at + 4), half(bytes, at + 8)],
            [5, length, kind]
        );
        assert_eq!(&bytes[at + 12..at + 17], name);
        let content = &bytes[at + 20..];
        let seed = if at == notes || at == notes + 2 * 356 {
            1000
        } else {
            2000
        };
        if kind == 1 {
            assert_eq!(half(content, 32), u32::try_from(seed / 1000).unwrap());
            assert_eq!(word(content, 112), seed + 2, "r15");
            assert_eq!(word(content, 112 + 16 * 8), seed, "rip");
            assert_eq!(word(content, 112 + 19 * 8), seed + 1, "rsp");
        } else {
            assert_eq!([half(content, 0), half(content, 4)], [1, 440]);
            assert_eq!(word(content, 8 + 16 * 8), seed, "rip");
            assert_eq!(half(content, 8 + 18 * 8), 0x10, "cs");
            assert_eq!(half(content, 8 + 18 * 8 + 8), 0x00a0_9b00, "its attributes");
            assert_eq!(word(content, 440 - 24), seed + 3, "cr3");
            assert_eq!(word(content, 440 - 8), seed + 4, "kernel_gs_base");
        }
        at += 20 + length as usize;
    }
    assert_eq!(at, bytes.len());
}

#[test]
fn registers_are_json_with_exact_numbers() {
    let text = registers::json(&[registers(u64::MAX - 9), registers(0)]);
    assert!(text.contains(r#""rip":"0xfffffffffffffff6""#), "{text}");
    assert!(text.contains(r#""vcpu":1,"state":"halted""#), "{text}");
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    assert_eq!(registers::json(&[]), "{\"vcpus\":[\n]}\n");
}

#[test]
fn a_vm_stays_paused_while_it_is_held_and_no_longer() {
    let mut holding = Holding::default();
    assert!(!holding.refuses(VmCommand::Resume));
    let hold = holding.begin(0);
    assert!(holding.refuses(VmCommand::Resume));
    assert!(!holding.refuses(VmCommand::Stop) && !hold.stays.load(Ordering::Relaxed));
    assert!(!holding.refuses(VmCommand::Pause));
    assert!(
        hold.stays.load(Ordering::Relaxed),
        "who paused meanwhile is heard"
    );
    drop(hold);
    assert!(!holding.refuses(VmCommand::Resume));
    assert_eq!(deadline(0), LEAST_TIME);
    assert_eq!(deadline(16 << 30), LEAST_TIME + Duration::from_secs(1024));
}

#[test]
fn holes_of_a_core_take_no_room() {
    let folder = Scratch::new("sparse");
    let spec = ::memory::MemorySpec {
        size_mib: 64,
        ..::memory::MemorySpec::default()
    };
    let ram = ::memory::build(&spec).unwrap();
    let at = ::memory::GuestAddress(33 << 20);
    ::memory::Bytes::write_slice(&ram, b"needle", at).unwrap();
    let capture = Capture {
        ram: Arc::new(ram),
        registers: vec![Registers::default()],
        hold: Holding::default().begin(64 << 20),
    };
    let path = folder.0.join("core");
    let target = Target::create(&path, None).unwrap();
    let mut seen = Vec::new();
    write_core(&capture, &target, &mut |progress| seen.push(progress)).unwrap();
    target.settle().unwrap();
    let total = 64 << 20;
    assert_eq!(seen, [Progress { done: total, total }]);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 4096 + total);
    assert!(metadata.blocks() * 512 < 64 << 10, "{}", metadata.blocks());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[4096 + (33 << 20)..][..7], b"needle\0");
}
