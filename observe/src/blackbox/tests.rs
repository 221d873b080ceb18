use super::*;
use crate::cell::Counter;
use crate::reader::{Ended, Reader};
use crate::schema::{Field, Unit};
use std::mem::offset_of;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

#[repr(C)]
struct Toy {
    made: Counter,
    rows: [Counter; 3],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Toy {
    const KIND: &'static str = "toy";
    const INSTANCE: &'static [&'static str] = &["toy"];
    const FIELDS: &'static [Field] = &[
        Field::counter("made", Unit::None, offset_of!(Toy, made), "Toys made."),
        Field::counter("rows", Unit::None, offset_of!(Toy, rows), "Rows.").column(3, 8, "row"),
    ];
}

#[repr(C)]
struct Large {
    cells: [Counter; 129],
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for Large {
    const KIND: &'static str = "large";
    const INSTANCE: &'static [&'static str] = &["large"];
    const FIELDS: &'static [Field] =
        &[Field::counter("cells", Unit::None, 0, "Cells.").column(129, 8, "cell")];
}

fn meta() -> Meta {
    Meta {
        vm_id: "test".into(),
        version: "0".into(),
    }
}

/// A folder of its own, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = format!("vitrine-observe-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn cause(error: &BlackBoxError) -> String {
    use std::error::Error;
    error.source().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn a_full_black_box_names_the_section_that_did_not_fit() {
    let mut black_box = BlackBox::anonymous(0, &meta()).unwrap();
    let mut made = 0;
    let error = loop {
        match black_box.section::<Toy>(&format!("toy/{made}"), &[]) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert!(made > 10);
    assert!(
        error.to_string().contains(&format!("toy/{made}")),
        "{error}"
    );
}

#[test]
fn a_full_directory_is_told_like_a_full_file() {
    let mut black_box = BlackBox::anonymous(0, &meta()).unwrap();
    let names = vec!["n".repeat(200); 200];
    let error = black_box.section::<Toy>("toy/a", &[("row", &names)]).err();
    assert!(matches!(error, Some(BlackBoxError::Full { need, free, .. }) if need > free));
    black_box.section::<Toy>("toy/b", &[]).unwrap();
    let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(snapshot.sections.len(), 1);
    assert_eq!(snapshot.section("toy/b").unwrap().counter("made"), Some(0));
}

#[test]
fn what_was_counted_beforehand_fits() {
    for sections in [0, 1, 100, 1000, 3000] {
        let bytes = sections * BlackBox::section_bytes::<Large>();
        let capacity = BlackBox::capacity_for(bytes);
        let mut black_box = BlackBox::anonymous(capacity, &meta()).unwrap();
        for i in 0..sections {
            black_box
                .section::<Large>(&format!("large/{i}"), &[])
                .unwrap();
        }
    }
}

#[test]
fn blocks_stay_valid_after_the_black_box_is_gone() {
    let mut black_box = BlackBox::anonymous(0, &meta()).unwrap();
    let toy = black_box.section::<Toy>("toy/a", &[]).unwrap();
    drop(black_box);
    toy.made.inc();
    assert_eq!(toy.made.value(), 1);
}

#[test]
fn two_sections_never_share_a_cache_line() {
    let mut black_box = BlackBox::anonymous(0, &meta()).unwrap();
    let toys: Vec<_> = (0..8)
        .map(|i| black_box.section::<Toy>(&format!("toy/{i}"), &[]).unwrap())
        .collect();
    for pair in toys.windows(2) {
        let (one, two) = (pair[0].value.addr().get(), pair[1].value.addr().get());
        assert_eq!(two % SECTION_ALIGN, 0);
        assert!(two >= (one + size_of::<Toy>()).next_multiple_of(64));
    }
}

#[test]
fn the_file_is_private_and_whole() {
    let folder = Folder::new("private");
    let path = folder.0.join("new/vm.blackbox");
    let black_box = BlackBox::create(&path, 100_000, &meta()).unwrap();
    let file = std::fs::metadata(&path).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(file.len(), 102_400);
    assert!(file.blocks() * 512 >= file.len(), "not allocated");
    black_box.remove();
    assert!(!path.exists());
}

#[test]
fn an_older_black_box_is_replaced_by_a_fresh_inode() {
    let folder = Folder::new("replaced");
    let path = folder.0.join("vm.blackbox");
    let mut old = BlackBox::create(&path, 0, &meta()).unwrap();
    let toy = old.section::<Toy>("toy/old", &[]).unwrap();
    let reader = Reader::open(&path).unwrap();
    let new = BlackBox::create(&path, 0, &meta()).unwrap();
    toy.made.add(7);
    let snapshot = reader.snapshot().unwrap();
    let section = snapshot.section("toy/old").unwrap();
    assert_eq!(section.counter("made"), Some(7));
    let there = Reader::open(&path).unwrap().snapshot().unwrap();
    assert!(there.sections.is_empty());
    old.remove();
    assert!(path.exists(), "the old one removed the new one's file");
    new.remove();
    assert_eq!(folder.names(), Vec::<String>::new());
}

#[test]
fn a_symbolic_link_at_the_path_is_replaced_not_followed() {
    let folder = Folder::new("link");
    let (path, target) = (folder.0.join("vm.blackbox"), folder.0.join("target"));
    std::fs::write(&target, "precious").unwrap();
    symlink(&target, &path).unwrap();
    let _black_box = BlackBox::create(&path, 0, &meta()).unwrap();
    assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn what_is_not_a_black_box_is_not_replaced() {
    let folder = Folder::new("foreign");
    let path = folder.0.join("disk.img");
    std::fs::write(&path, "a disk").unwrap();
    let error = BlackBox::create(&path, 0, &meta()).err().unwrap();
    assert!(error.to_string().contains("disk.img"), "{error}");
    assert!(cause(&error).contains("not a black box"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a disk");
    let error = BlackBox::create(&folder.0, 0, &meta()).err().unwrap();
    assert!(cause(&error).contains("directory"), "{}", cause(&error));
    assert_eq!(folder.names(), ["disk.img"]);
    // An empty file, such as mktemp makes, is fine.
    let empty = folder.0.join("empty");
    std::fs::write(&empty, "").unwrap();
    BlackBox::create(&empty, 0, &meta()).unwrap();
}

#[test]
fn a_size_that_no_file_can_have_is_an_error() {
    let error = BlackBox::anonymous(usize::MAX, &meta()).err().unwrap();
    assert!(matches!(error, BlackBoxError::Create { .. }));
}

/// Mounts a tmpfs of 64 KiB at `folder`, for the calling thread alone; needs root.
#[allow(unsafe_code)]
fn mount_small(folder: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let folder = std::ffi::CString::new(folder.as_os_str().as_bytes()).unwrap();
    let none = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: plain system calls on NUL-terminated strings that outlive them; the new mount
    // namespace belongs to this thread.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                folder.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=64k".as_ptr().cast(),
            ) == 0
    }
}

#[test]
fn a_full_file_system_is_an_error_and_keeps_the_old_file() {
    let folder = Folder::new("space");
    let in_small_file_system = || {
        if !mount_small(&folder.0) {
            println!("skipped: mounting needs root");
            return;
        }
        let path = folder.0.join("vm.blackbox");
        drop(BlackBox::create(&path, 0, &meta()).unwrap());
        let error = BlackBox::create(&path, 0, &meta()).err().unwrap();
        assert!(cause(&error).contains("No space left"), "{}", cause(&error));
        assert_eq!(folder.names(), ["vm.blackbox"]);
        Reader::open(&path).unwrap();
    };
    // The mount is the thread's own and goes with it.
    std::thread::scope(|scope| scope.spawn(in_small_file_system).join().unwrap());
}

#[test]
fn an_end_is_read_back_and_a_later_one_counts() {
    let black_box = BlackBox::anonymous(0, &meta()).unwrap();
    let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
    assert_eq!(reader.snapshot().unwrap().header.end, Ended::Running);
    black_box.finish(End::Clean, &"ü".repeat(400));
    let Ended::Clean {
        detail,
        at_realtime_ns,
    } = reader.snapshot().unwrap().header.end
    else {
        panic!("not clean");
    };
    assert_eq!(detail, "ü".repeat(255));
    assert!(at_realtime_ns.abs_diff(realtime_ns()) < 60_000_000_000);
    black_box.finish(End::Failed, "the disk went away");
    let end = reader.snapshot().unwrap().header.end;
    assert!(matches!(end, Ended::Failed { detail, .. } if detail == "the disk went away"));
}

#[test]
fn a_writer_is_known_to_live_until_its_last_block_is_gone() {
    let folder = Folder::new("alive");
    let path = folder.0.join("vm.blackbox");
    let mut black_box = BlackBox::create(&path, 0, &meta()).unwrap();
    let toy = black_box.section::<Toy>("toy/a", &[]).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.snapshot().unwrap().writer_alive, Some(true));
    drop(black_box);
    assert_eq!(reader.snapshot().unwrap().writer_alive, Some(true));
    drop(toy);
    assert_eq!(reader.snapshot().unwrap().writer_alive, Some(false));
}

#[test]
fn the_pulse_is_the_last_sign_of_life() {
    let folder = Folder::new("pulse");
    let path = folder.0.join("vm.blackbox");
    let black_box = BlackBox::create(&path, 0, &meta()).unwrap();
    let pulse = black_box.pulse();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let before = monotonic_ns();
    pulse.beat();
    let after = monotonic_ns();
    drop((black_box, pulse));
    let snapshot = Reader::open(&path).unwrap().snapshot().unwrap();
    let last = snapshot.now_monotonic_ns;
    assert!(before <= last && last <= after);
    assert_eq!(snapshot.header.pulse_monotonic_ns, Some(last));
}
