//! What a guest asks of a disk: what is accepted lies on the disk and is allowed.

use devices::virtio::blk::request::{
    Disk, HEADER_BYTES, ID_BYTES, Operation, SECTOR_BYTES, parse, serial,
};

use super::input::Input;

/// Runs the target: header, bytes from and for the guest, sectors, what the disk can, its id.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let header = input.array::<HEADER_BYTES>();
    let (from_guest, to_guest, sectors) = (input.u64(), input.u64(), input.u64());
    let can = input.u8();
    let disk = Disk {
        sectors,
        read_only: can & 1 != 0,
        flush: can & 2 != 0,
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
        (Operation::Flush, Ok(_)) => assert!(disk.flush),
        (Operation::Unsupported, Ok(_)) => panic!("carried out: {request:?}"),
        (_, Ok(_)) => {}
        (_, Err(refusal)) => assert_ne!(refusal.status(), 0, "{refusal} is told as success"),
    }
    let id = String::from_utf8_lossy(input.slice(64));
    let answer = serial(&id);
    let kept = id.len().min(ID_BYTES);
    assert_eq!(&answer[..kept], &id.as_bytes()[..kept]);
}
