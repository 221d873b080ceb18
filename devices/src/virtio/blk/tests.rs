use super::*;
use crate::virtio::device::F_VERSION_1;
use crate::virtio::mock_driver::{Buffer, DATA, Driver, INDIRECT, Machine, NEXT, WRITE, wait_for};
use crate::virtio::{DeviceEvent, DeviceEventKind};
use memory::{Bytes, GuestAddress};
use proptest::prelude::*;
use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
const STATUS: u64 = DATA + 0x8_0000;

thread_local! {
    /// The engine of the drives that this thread's test makes.
    pub(super) static ENGINE: Cell<IoEngine> = const { Cell::new(IoEngine::Sync) };
}

/// Makes each of these a test with either engine. Where the host has no io_uring, those with `Async`
/// see the fall-back, which has to do the same.
macro_rules! with_both_engines {
    ($($name:ident)*) => {
        mod sync {
            $(#[test] fn $name() { super::$name(); })*
        }
        mod background {
            $(#[test] fn $name() {
                crate::virtio::blk::tests::ENGINE.set(crate::virtio::blk::IoEngine::Async);
                super::$name();
            })*
        }
    };
}

pub(super) use with_both_engines;

with_both_engines! {
    what_is_written_is_on_the_disk_and_read_back
    a_request_may_be_cut_anywhere
    requests_that_cannot_be_get_the_status_that_fits
    what_is_discarded_or_zeroed_is_gone_and_the_rest_stays
    ranges_that_cannot_be_change_nothing
    the_serial_is_the_drives_id
    the_machine_may_have_another_name_for_it
    a_read_only_disk_refuses_writes_and_says_so
    the_hosts_errors_reach_the_guest_and_the_operator
    a_request_without_header_or_status_breaks_the_ring
    the_configuration_tells_size_and_limits
    a_path_that_is_no_disk_is_refused_with_the_remedy
    all_queues_are_served_and_counted_each
    an_image_has_one_writer_or_many_readers
    the_disk_is_the_bytes_that_were_written
}

pub(super) struct DiskFile(pub PathBuf);

impl DiskFile {
    pub fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vitrine-blk-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        DiskFile(path)
    }

    pub fn spec(&self) -> BlockSpec {
        BlockSpec {
            id: "rootfs".into(),
            path: self.0.clone(),
            read_only: false,
            flush: true,
            limiter: LimiterSpec::default(),
            queues: 1,
            engine: ENGINE.get(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|place| (place / 512 * 31 + place) as u8)
        .collect()
}

pub(super) fn start(spec: BlockSpec) -> (Machine, Driver) {
    let mut machine = Machine::new();
    let mut driver = machine.attach(BlockDevice::open(spec).unwrap(), 0x1_0000);
    let offered = driver.offered();
    driver.start_plain(offered & (FLUSH | 1 << blk::VIRTIO_BLK_F_RO));
    (machine, driver)
}

/// Sends a request with these data buffers; gives its status and used length.
pub(super) fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.ram.write_slice(&header, GuestAddress(DATA)).unwrap();
    driver.ram.write_obj(0xFFu8, GuestAddress(STATUS)).unwrap();
    let mut buffers = vec![(DATA, 16, false)];
    buffers.extend_from_slice(data);
    buffers.push((STATUS, 1, true));
    driver.add(0, &buffers);
    driver.kick(0);
    let used = driver.wait_used(0, 1);
    (
        driver.ram.read_obj(GuestAddress(STATUS)).unwrap(),
        used[0].1,
    )
}

fn what_is_written_is_on_the_disk_and_read_back() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (_machine, mut driver) = start(file.spec());
    let at = DATA + 0x1000;
    assert_eq!(
        ask(
            &mut driver,
            0,
            3,
            &[(at, 1024, true), (at + 0x3000, 512, true)]
        ),
        (0, 1537)
    );
    let mut data = vec![0; 1536];
    driver
        .ram
        .read_slice(&mut data[..1024], GuestAddress(at))
        .unwrap();
    driver
        .ram
        .read_slice(&mut data[1024..], GuestAddress(at + 0x3000))
        .unwrap();
    assert_eq!(data, pattern(64 * 512)[3 * 512..6 * 512]);

    driver
        .ram
        .write_slice(&[0xAB; 1024], GuestAddress(at))
        .unwrap();
    assert_eq!(
        ask(
            &mut driver,
            1,
            62,
            &[(at, 1000, false), (at + 1000, 24, false)]
        ),
        (0, 1)
    );
    assert_eq!(ask(&mut driver, 4, 0, &[]), (0, 1));
    let mut expected = pattern(64 * 512);
    expected[62 * 512..].fill(0xAB);
    assert_eq!(file.bytes(), expected);

    let rows = &driver.seen.device.operations;
    wait_for("the counters", || rows[2].count.value() == 1);
    assert_eq!((rows[0].count.value(), rows[0].bytes.value()), (1, 1536));
    assert_eq!((rows[1].count.value(), rows[1].bytes.value()), (1, 1024));
    let queue = &driver.seen.queues[0];
    assert_eq!(queue.bytes_read.value(), 3 * 16 + 1024);
    assert_eq!(queue.bytes_written.value(), 1537 + 1 + 1);
}

fn a_request_may_be_cut_anywhere() {
    let file = DiskFile::new(&pattern(8 * 512));
    let (_machine, mut driver) = start(file.spec());
    // Header in three parts; data and status in one buffer, through an indirect table.
    driver
        .ram
        .write_slice(&[0; 16], GuestAddress(DATA))
        .unwrap();
    let table = DATA + 0x7_0000;
    let parts = [
        (DATA, 1, NEXT),
        (DATA + 1, 8, NEXT),
        (DATA + 9, 7, NEXT),
        (DATA + 0x1000, 300, NEXT | WRITE),
        (DATA + 0x2000, 213, WRITE),
    ];
    for (place, (address, bytes, flags)) in (0u16..).zip(parts) {
        let at = table + u64::from(place) * 16;
        driver.descriptor(at, (address, bytes), flags, place + 1);
    }
    let head = driver.queues[0].table;
    driver.descriptor(head, (table, 5 * 16), INDIRECT, 0);
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, 1), [(0, 513)]);
    let mut data = vec![0; 513];
    driver
        .ram
        .read_slice(&mut data[..300], GuestAddress(DATA + 0x1000))
        .unwrap();
    driver
        .ram
        .read_slice(&mut data[300..], GuestAddress(DATA + 0x2000))
        .unwrap();
    assert_eq!(data[..512], pattern(512)[..]);
    assert_eq!(data[512], 0);
}

fn requests_that_cannot_be_get_the_status_that_fits() {
    let file = DiskFile::new(&pattern(8 * 512 + 100));
    let (_machine, mut driver) = start(file.spec());
    let at = DATA + 0x1000;
    for (kind, sector, bytes, write, status) in [
        (0, 8, 512, true, 1),
        (0, u64::MAX / 512, 512, true, 1),
        (0, 0, 100, true, 1),
        (1, 7, 1024, false, 1),
        (14, 0, 512, false, 2),
        (77, 0, 512, true, 2),
    ] {
        assert_eq!(
            ask(&mut driver, kind, sector, &[(at, bytes, write)]).0,
            status,
            "{kind} at {sector}"
        );
    }
    let rows = &driver.seen.device.operations;
    wait_for("the counters", || rows[4].errors.value() == 2);
    assert_eq!((rows[0].errors.value(), rows[1].errors.value()), (3, 1));
    assert_eq!(file.bytes(), pattern(8 * 512 + 100));
    assert_eq!(driver.seen.device.host_errors.value(), 0);
}

/// A range of a discard or write-zeroes request, at `at` in guest memory.
fn put_range(driver: &Driver, at: u64, (sector, count, flags): (u64, u32, u32)) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    driver.ram.write_slice(&bytes, GuestAddress(at)).unwrap();
}

fn what_is_discarded_or_zeroed_is_gone_and_the_rest_stays() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (_machine, mut driver) = start(file.spec());
    let at = DATA + 0x1000;
    let mut expected = pattern(64 * 512);
    for (range, kind) in [((9, 3, 0), 13), ((16, 8, 1), 13), ((32, 8, 0), 11)] {
        put_range(&driver, at, range);
        assert_eq!(ask(&mut driver, kind, 0, &[(at, 16, false)]), (0, 1));
        let (from, bytes) = (range.0 as usize * 512, range.1 as usize * 512);
        expected[from..from + bytes].fill(0);
        assert!(file.bytes() == expected, "{range:?}");
    }
    // Two at once, cut where they should not be.
    put_range(&driver, at, (0, 1, 0));
    put_range(&driver, at + 16, (63, 1, 0));
    let parts = [(at, 10, false), (at + 10, 22, false)];
    assert_eq!(ask(&mut driver, 13, 0, &parts), (0, 1));
    expected[..512].fill(0);
    expected[63 * 512..].fill(0);
    assert!(file.bytes() == expected);
    let rows = &driver.seen.device.operations;
    wait_for("the counters", || rows[6].count.value() == 3);
    assert_eq!(
        (rows[6].bytes.value(), rows[5].bytes.value()),
        (13 * 512, 8 * 512)
    );
}

fn ranges_that_cannot_be_change_nothing() {
    let file = DiskFile::new(&pattern(64 * 512));
    let (_machine, mut driver) = start(file.spec());
    let at = DATA + 0x1000;
    // The first could be carried out.
    put_range(&driver, at, (0, 8, 0));
    for (second, kind, status) in [
        ((60, 5, 0), 13, 1),
        ((60, 0, 0), 13, 1),
        ((60, 1, 4), 13, 2),
        ((60, 1, 1), 11, 2),
    ] {
        put_range(&driver, at + 16, second);
        let answer = ask(&mut driver, kind, 0, &[(at, 32, false)]);
        assert_eq!(answer.0, status, "{second:?}");
    }
    assert!(file.bytes() == pattern(64 * 512));

    let read_only = BlockSpec {
        read_only: true,
        ..DiskFile::new(&[1; 512]).spec()
    };
    std::fs::write(&read_only.path, [1; 512]).unwrap();
    let (_machine, mut driver) = start(read_only.clone());
    let offered = 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(driver.offered() & offered, 0);
    put_range(&driver, at, (0, 1, 0));
    for kind in [11, 13] {
        assert_eq!(ask(&mut driver, kind, 0, &[(at, 16, false)]).0, 1);
    }
    assert_eq!(std::fs::read(&read_only.path).unwrap(), [1; 512]);
    std::fs::remove_file(&read_only.path).unwrap();
}

fn the_serial_is_the_drives_id() {
    let file = DiskFile::new(&[0; 512]);
    let (_machine, mut driver) = start(file.spec());
    assert_eq!(ask(&mut driver, 8, 0, &[(DATA + 0x1000, 20, true)]).0, 0);
    let mut serial = [0xFF; 20];
    driver
        .ram
        .read_slice(&mut serial, GuestAddress(DATA + 0x1000))
        .unwrap();
    assert_eq!(&serial[..7], b"rootfs\0");
}

fn the_machine_may_have_another_name_for_it() {
    let file = DiskFile::new(&[0; 512]);
    let device = BlockDevice::open(file.spec()).unwrap();
    assert_eq!(device.profile().name, "rootfs");
    let device = device.named("drive-rootfs".to_owned());
    assert_eq!(device.profile().name, "drive-rootfs");
    assert_eq!(device.spec.id, "rootfs", "the guest's serial stays");
}

fn a_read_only_disk_refuses_writes_and_says_so() {
    let file = DiskFile::new(&pattern(512));
    let spec = BlockSpec {
        read_only: true,
        flush: false,
        ..file.spec()
    };
    let (_machine, mut driver) = start(spec);
    assert_eq!(
        driver.offered() & (FLUSH | 1 << blk::VIRTIO_BLK_F_RO),
        1 << blk::VIRTIO_BLK_F_RO
    );
    assert_eq!(ask(&mut driver, 1, 0, &[(DATA + 0x1000, 512, false)]).0, 1);
    assert_eq!(ask(&mut driver, 4, 0, &[]).0, 2);
    assert_eq!(ask(&mut driver, 0, 0, &[(DATA + 0x1000, 512, true)]).0, 0);
    assert_eq!(file.bytes(), pattern(512));
}

fn the_hosts_errors_reach_the_guest_and_the_operator() {
    let file = DiskFile::new(&pattern(8 * 512));
    let (machine, mut driver) = start(file.spec());
    // The file shrinks behind the guest's back.
    std::fs::write(&file.0, [0; 512]).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&mut driver, 0, 4, &[(DATA + 0x1000, 512, true)]).0, 1);
    }
    let device = &driver.seen.device;
    wait_for("the counters", || device.operations[0].errors.value() == 3);
    assert_eq!(
        (device.host_errors.value(), device.last_errno.value()),
        (3, 5)
    );
    let next = || machine.events.recv_timeout(Duration::from_secs(5)).unwrap();
    let mut event = next();
    // A host without io_uring was told of first.
    if matches!(event.kind, DeviceEventKind::EngineFallBack { .. }) {
        event = next();
    }
    let kind = DeviceEventKind::HostError {
        operation: "read",
        sector: Some(4),
        errno: libc::EIO,
    };
    assert_eq!(
        event,
        DeviceEvent {
            device: "rootfs".into(),
            kind: kind.clone()
        }
    );
    let place = (&device.last_error_operation, &device.last_error_sector);
    assert_eq!((place.0.value(), place.1.value()), (0, 4));
    let text = kind.to_string();
    assert!(
        text.starts_with("the host refused read at sector 4: "),
        "{text}"
    );
    // The others came within a second of it.
    assert!(machine.events.try_recv().is_err());
}

fn a_request_without_header_or_status_breaks_the_ring() {
    for buffers in [
        vec![(DATA, 15, false), (DATA, 1, true)],
        vec![(DATA, 16, false)],
    ] {
        let file = DiskFile::new(&[0; 512]);
        let (_machine, mut driver) = start(file.spec());
        driver.add(0, &buffers);
        driver.kick(0);
        let link = driver.link.clone();
        wait_for("DEVICE_NEEDS_RESET", || link.needs_reset());
        wait_for("an idle queue", || {
            driver.seen.queues[0].in_flight.value() == 0
        });
    }
}

fn the_configuration_tells_size_and_limits() {
    let file = DiskFile::new(&[0; 3 * 512 + 7]);
    let device = BlockDevice::open(file.spec()).unwrap();
    let mut capacity = [0; 8];
    device.config.read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 3);
    for (offset, value) in [
        (8, 4 << 20),
        (12, 254),
        (20, 512),
        (24, 3 | 8 << 16),
        (48, 1 << 15),
        (52, 16),
        (56, 1),
    ] {
        let mut field = [0; 4];
        device.config.read(offset, &mut field);
        assert_eq!(u32::from_le_bytes(field), value);
    }
    assert!(device.profile().features & F_VERSION_1 != 0);
}

fn a_path_that_is_no_disk_is_refused_with_the_remedy() {
    let empty = DiskFile::new(&[0; 100]);
    let refuse = |path: &Path| {
        let path = path.to_owned();
        let spec = BlockSpec {
            path,
            ..empty.spec()
        };
        BlockDevice::open(spec).err().unwrap().to_string()
    };
    for (path, words) in [
        (
            Path::new("/nonexistent/disk"),
            ["/nonexistent/disk does not exist", "truncate -s"],
        ),
        (Path::new("/tmp"), ["/tmp is a directory", "regular file"]),
        (
            Path::new("/dev/null"),
            ["a character device", "regular file"],
        ),
        (&empty.0, ["100 bytes, less than a sector", "truncate -s"]),
    ] {
        let error = refuse(path);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(error.starts_with("drive rootfs: "), "{error}");
    }
}

fn all_queues_are_served_and_counted_each() {
    let file = DiskFile::new(&pattern(8 * 512));
    let mut machine = Machine::new();
    let spec = BlockSpec {
        queues: 3,
        ..file.spec()
    };
    let mut driver = machine.attach(BlockDevice::open(spec).unwrap(), 0x1_0000);
    let many = 1 << blk::VIRTIO_BLK_F_MQ;
    assert_eq!(driver.offered() & many, many);
    driver.start_plain(many);
    assert_eq!(driver.read(0x100 + 32) >> 16, 3, "num_queues");
    driver
        .ram
        .write_slice(&[0; 16], GuestAddress(DATA))
        .unwrap();
    for queue in [2, 0, 1, 2] {
        let request = [
            (DATA, 16, false),
            (DATA + 0x1000, 512, true),
            (STATUS, 1, true),
        ];
        driver.add(queue, &request);
        driver.kick(queue);
        assert_eq!(driver.wait_used(queue, 1)[0].1, 513);
    }
    let seen = &driver.seen;
    wait_for("the counters", || {
        seen.device.operations[0].count.value() == 4
    });
    let counts: Vec<u64> = seen
        .queues
        .iter()
        .map(|queue| queue.requests.value())
        .collect();
    assert_eq!(counts, [1, 1, 2]);
    let other = DiskFile::new(&[0; 512]);
    let one = BlockDevice::open(other.spec()).unwrap();
    assert_eq!(one.profile().features & many, 0);
}

fn an_image_has_one_writer_or_many_readers() {
    let file = DiskFile::new(&[0; 512]);
    let as_reader = BlockSpec {
        id: "reader".into(),
        read_only: true,
        ..file.spec()
    };
    let writer = BlockDevice::open(file.spec()).unwrap();
    for spec in [file.spec(), as_reader.clone()] {
        let id = spec.id.clone();
        let error = BlockDevice::open(spec).err().unwrap().to_string();
        let begin = format!(
            "drive {id}: {} is in use by this process (",
            file.0.display()
        );
        assert!(error.starts_with(&begin), "{error}");
        assert!(error.contains("copy of its own"), "{error}");
    }
    drop(writer);
    let readers = [as_reader.clone(), as_reader].map(|spec| BlockDevice::open(spec).unwrap());
    assert!(BlockDevice::open(file.spec()).is_err());
    drop(readers);
    BlockDevice::open(file.spec()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    fn the_disk_is_the_bytes_that_were_written(
        writes in prop::collection::vec((0u64..60, 1usize..8, any::<u8>(), 1u32..511), 1..12)
    ) {
        let file = DiskFile::new(&pattern(64 * 512));
        let (_machine, mut driver) = start(file.spec());
        let mut expected = pattern(64 * 512);
        for (sector, sectors, value, cut) in writes {
            let bytes = sectors.min((64 - sector) as usize) * 512;
            let at = DATA + 0x1000;
            driver.ram.write_slice(&vec![value; bytes], GuestAddress(at)).unwrap();
            let parts = [(at, cut, false), (at + u64::from(cut), bytes as u32 - cut, false)];
            prop_assert_eq!(ask(&mut driver, 1, sector, &parts), (0, 1));
            expected[sector as usize * 512..][..bytes].fill(value);
        }
        prop_assert!(file.bytes() == expected);
    }
}
