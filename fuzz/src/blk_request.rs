//! What a guest asks of a disk: what is accepted lies on the disk and is allowed.

use devices::virtio::blk::request::{
    Disk, HEADER_BYTES, ID_BYTES, MAX_RANGES, Operation, RANGE_BYTES, SECTOR_BYTES, parse, range,
    serial,
};

use super::input::Input;

/// Runs the target: header, bytes from and for the guest, sectors, what the disk can, a range, its id.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let header = input.array::<HEADER_BYTES>();
    let (from_guest, to_guest, sectors) = (input.u64(), input.u64(), input.u64());
    let can = input.u8();
    let disk = Disk {
        sectors,
        read_only: can & 1 != 0,
        flush: can & 2 != 0,
        discard: can & 4 != 0,
    };
    let request = parse(header, from_guest, to_guest, disk);
    match (request.operation, request.offset) {
        (operation @ (Operation::Read | Operation::Write), Ok(offset)) => {
            let read = operation == Operation::Read;
            assert!(read || !disk.read_only);
            let length = if read { to_guest } else { from_guest };
            let end = u128::from(offset) + u128::from(length);
            assert!(length > 0 && end <= u128::from(sectors) * u128::from(SECTOR_BYTES));
            assert!(offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES));
        }
        (operation @ (Operation::Discard | Operation::WriteZeroes), Ok(_)) => {
            assert!(!disk.read_only && (disk.discard || operation == Operation::WriteZeroes));
            assert!(from_guest > 0 && from_guest.is_multiple_of(RANGE_BYTES as u64));
            assert!(from_guest <= (MAX_RANGES * RANGE_BYTES) as u64);
        }
        (Operation::Flush, Ok(_)) => assert!(disk.flush),
        (Operation::Unsupported, Ok(_)) => panic!("carried out: {request:?}"),
        (_, Ok(_)) => {}
        (_, Err(refusal)) => assert_ne!(refusal.status(), 0, "{refusal} is told as success"),
    }
    let bytes = input.array::<RANGE_BYTES>();
    match range(request.operation, bytes, disk) {
        Ok(range) => {
            let end = u128::from(range.offset) + u128::from(range.bytes);
            assert!(range.bytes > 0 && end <= u128::from(sectors) * u128::from(SECTOR_BYTES));
        }
        Err(refusal) => assert_ne!(refusal.status(), 0, "{refusal} is told as success"),
    }
    let id = String::from_utf8_lossy(input.slice(64));
    let answer = serial(&id);
    let kept = id.len().min(ID_BYTES);
    assert_eq!(&answer[..kept], &id.as_bytes()[..kept]);
}
