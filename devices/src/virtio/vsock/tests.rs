//! The socket device under a mock driver, with programs of the host on real Unix sockets.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use memory::{Bytes, GuestAddress};
use proptest::prelude::*;

use super::header::{HOST_CID, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::virtio::conformance::tempdir::Folder;
use crate::virtio::mock_driver::{DATA, Driver, Machine, wait_for};

const CID: u32 = 5;
/// The guest's port in most tests, and that of a program of the host.
const GUEST_PORT: u32 = 1234;
const HOST_PORT: u32 = 80;
const BUFFERS: u16 = 8;
const BUFFER_BYTES: u32 = 4096;

struct Guest {
    machine: Machine,
    driver: Driver,
    path: PathBuf,
    _folder: Folder,
    heard: VecDeque<(Header, Vec<u8>)>,
    /// What the guest says of its room.
    room: u32,
    taken: u32,
}

fn open(machine: &mut Machine, name: &str, path: PathBuf) -> VsockDevice {
    let block = VsockBlock::place(&mut machine.black_box, name).unwrap();
    let spec = VsockSpec {
        name: name.to_owned(),
        guest_cid: CID,
        path,
    };
    VsockDevice::open(spec, block).unwrap()
}

impl Guest {
    fn new() -> Guest {
        let (mut machine, folder) = (Machine::new(), Folder::new());
        let path = folder.0.join("v");
        let device = open(&mut machine, "vsock", path.clone());
        let driver = machine.attach(device, 0x1_0000);
        let mut guest = Guest {
            machine,
            driver,
            path,
            _folder: folder,
            heard: VecDeque::new(),
            room: 1 << 20,
            taken: 0,
        };
        guest.start();
        guest
    }

    fn start(&mut self) {
        self.driver.start_plain(0);
        for _ in 0..BUFFERS {
            self.give();
        }
        self.driver.kick(RX);
    }

    /// Where the buffer of a descriptor lies.
    fn place(head: u32) -> u64 {
        DATA + 0x10_0000 + u64::from(head) * 0x2000
    }

    fn give(&mut self) {
        let at = Guest::place(u32::from(self.driver.queues[RX].next_free));
        self.driver.add(RX, &[(at, BUFFER_BYTES, true)]);
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            from_cid: u64::from(CID),
            to_cid: HOST_CID,
            from_port: GUEST_PORT,
            to_port: HOST_PORT,
            bytes: 0,
            socket_type: TYPE_STREAM,
            operation,
            flags: 0,
            room: self.room,
            taken: self.taken,
        }
    }

    /// Sends a packet, and waits until it is taken.
    fn send(&mut self, header: Header, data: &[u8]) {
        let ram = &self.driver.ram;
        ram.write_slice(&header.to_bytes(), GuestAddress(DATA))
            .unwrap();
        ram.write_slice(data, GuestAddress(DATA + 0x1000)).unwrap();
        let mut buffers = vec![(DATA, HEADER_BYTES as u32, false)];
        if !data.is_empty() {
            buffers.push((DATA + 0x1000, data.len() as u32, false));
        }
        self.driver.add(TX, &buffers);
        self.driver.kick(TX);
        assert_eq!(self.driver.wait_used(TX, 1).len(), 1);
    }

    fn say(&mut self, operation: Operation) {
        self.send(self.header(operation), &[]);
    }

    fn data(&mut self, ports: (u32, u32), data: &[u8]) {
        let header = Header {
            from_port: ports.0,
            to_port: ports.1,
            bytes: data.len() as u32,
            ..self.header(Operation::Data)
        };
        self.send(header, data);
    }

    /// The next packet.
    fn hear(&mut self) -> (Header, Vec<u8>) {
        if self.heard.is_empty() {
            for (head, bytes) in self.driver.wait_used(RX, 1) {
                let mut packet = vec![0; bytes as usize];
                let at = GuestAddress(Guest::place(head));
                self.driver.ram.read_slice(&mut packet, at).unwrap();
                let header = Header::parse(packet.first_chunk().unwrap());
                self.heard
                    .push_back((header, packet.split_off(HEADER_BYTES)));
                self.give();
            }
            self.driver.kick(RX);
        }
        self.heard.pop_front().unwrap()
    }

    fn expect(&mut self, operation: Operation) -> Header {
        let (header, data) = self.hear();
        assert_eq!(header.operation, operation, "{header:?}");
        assert_eq!(header.bytes as usize, data.len());
        assert_eq!((header.from_cid, header.to_cid), (HOST_CID, u64::from(CID)));
        header
    }

    /// Connects to a program of the host.
    fn connected(&mut self) -> UnixStream {
        let listener = UnixListener::bind(host::path_of(&self.path, HOST_PORT)).unwrap();
        self.say(Operation::Request);
        let header = self.expect(Operation::Response);
        assert_eq!((header.from_port, header.to_port), (HOST_PORT, GUEST_PORT));
        assert_eq!(header.room, ROOM);
        patient(listener.accept().unwrap().0)
    }

    /// A program of the host calls; gives its stream, and the host's port.
    fn called(&mut self) -> (UnixStream, u32) {
        let mut stream = patient(UnixStream::connect(&self.path).unwrap());
        stream.write_all(b"CONNECT 1234\n").unwrap();
        let asked = self.expect(Operation::Request);
        assert_eq!(asked.to_port, GUEST_PORT);
        let answer = Header {
            to_port: asked.from_port,
            ..self.header(Operation::Response)
        };
        self.send(answer, &[]);
        let line = format!("OK {}\n", asked.from_port);
        let mut got = vec![0; line.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), line);
        (stream, asked.from_port)
    }

    fn number(&self, field: &str) -> u64 {
        let file = self.machine.black_box.file().unwrap();
        let reader = observe::reader::Reader::from_file(file, "anonymous".into()).unwrap();
        let snapshot = reader.snapshot().unwrap();
        let section = snapshot.section("vsock/vsock").unwrap();
        section.value(field).unwrap().as_u64().unwrap()
    }

    fn drops(&self, cause: usize) -> u64 {
        self.driver.seen.device.drops[cause].value()
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    stream
}

fn noise(bytes: usize) -> Vec<u8> {
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24) as u8)
    };
    std::iter::repeat(())
        .scan(7u32, |state, ()| step(state))
        .take(bytes)
        .collect()
}

#[test]
fn a_guest_reaches_a_program_and_each_side_ends_by_itself() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    guest.data((GUEST_PORT, HOST_PORT), b"to the host");
    let mut got = [0; 11];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"to the host");
    stream.write_all(b"to the guest").unwrap();
    assert_eq!(guest.hear().1, b"to the guest");
    // The guest sends nothing more; the host still does.
    let end = |flags| Header {
        flags,
        ..guest.header(Operation::Shutdown)
    };
    let (no_more, nothing) = (end(SHUTDOWN_SEND), end(SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    guest.send(no_more, &[]);
    assert_eq!(stream.read(&mut got).unwrap(), 0);
    stream.write_all(b"late").unwrap();
    assert_eq!(guest.hear().1, b"late");
    stream.shutdown(Shutdown::Write).unwrap();
    // Neither direction is open any more, though the guest has not closed its end.
    let flags = guest.expect(Operation::Shutdown).flags;
    assert_eq!(flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
    assert_eq!(guest.number("connections"), 1);
    guest.send(nothing, &[]);
    guest.expect(Operation::Reset);
    wait_for("the end", || guest.number("connections") == 0);
    assert_eq!(guest.number("opened_by_guest"), 1);
    let operations = &guest.driver.seen.device.operations;
    assert_eq!(operations[usize::from(OPERATION_RX)].bytes.value(), 16);
    assert_eq!(operations[usize::from(OPERATION_TX)].bytes.value(), 11);
    assert_eq!(operations[usize::from(OPERATION_TX)].errors.value(), 0);
}

#[test]
fn a_program_that_sends_nothing_more_still_hears_the_guest() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.hear().1, b"last");
    assert_eq!(guest.expect(Operation::Shutdown).flags, SHUTDOWN_SEND);
    guest.data((GUEST_PORT, HOST_PORT), b"answer");
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"answer");
    // And when it is gone, what the guest sends has nowhere to go.
    drop(stream);
    guest.data((GUEST_PORT, HOST_PORT), b"too late");
    guest.expect(Operation::Reset);
    assert_eq!(guest.number("connections"), 0);
}

#[test]
fn a_program_reaches_the_guest_and_gets_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    guest.room = 8192;
    let (mut stream, port) = guest.called();
    let sent = noise(200_000);
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream
    });
    let (mut got, mut update) = (Vec::new(), 0);
    while got.len() < expected.len() {
        let (header, data) = guest.hear();
        got.extend(data);
        let under_way = got.len() as u32 - guest.taken;
        assert!(under_way <= 8192, "{under_way} bytes in a room of 8192");
        if header.operation == Operation::CreditRequest || under_way == 8192 {
            guest.taken = got.len() as u32;
            let room = Header {
                to_port: port,
                ..guest.header(Operation::CreditUpdate)
            };
            guest.send(room, &[]);
            update += 1;
        }
    }
    assert!(got == expected, "what came is not what was sent");
    assert!(update >= 20);
    assert!(guest.number("credit_stalls") >= 20);
    assert_eq!(guest.number("opened_by_host"), 1);
    // It is gone altogether: the guest learns both.
    drop(writer.join().unwrap());
    guest.taken = got.len() as u32;
    let room = Header {
        to_port: port,
        ..guest.header(Operation::CreditUpdate)
    };
    guest.send(room, &[]);
    let flags = loop {
        let (header, _) = guest.hear();
        if header.operation == Operation::Shutdown {
            break header.flags;
        }
    };
    assert_eq!(flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn much_data_of_the_guest_arrives_whole_and_the_guest_is_told_of_room() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    let sent = noise(1 << 20);
    let expected = sent.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected];
        stream.read_exact(&mut got).unwrap();
        got
    });
    let (mut under_way, mut taken) = (0u32, 0u32);
    for part in sent.chunks(16 << 10) {
        while under_way + part.len() as u32 > ROOM {
            let header = guest.expect(Operation::CreditUpdate);
            under_way -= header.taken - taken;
            taken = header.taken;
        }
        guest.data((GUEST_PORT, HOST_PORT), part);
        under_way += part.len() as u32;
    }
    assert!(
        reader.join().unwrap() == sent,
        "what came is not what was sent"
    );
    wait_for("an empty store", || guest.number("waiting") == 0);
}

#[test]
fn a_guest_that_sends_beyond_its_room_is_cut_off() {
    let mut guest = Guest::new();
    let mut stream = guest.connected();
    let part = [9; 16 << 10];
    // What the host's kernel takes for a program that does not read, and our room.
    for _ in 0..64 {
        if guest.number("resets") > 0 {
            break;
        }
        guest.data((GUEST_PORT, HOST_PORT), &part);
    }
    wait_for("the end", || guest.number("connections") == 0);
    assert_eq!(guest.number("resets"), 1);
    assert_eq!(guest.drops(DROP_CONNECTION), 1);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 9));
}

#[test]
fn what_is_unknown_is_refused_by_a_reset() {
    let mut guest = Guest::new();
    // Nobody listens.
    guest.say(Operation::Request);
    guest.expect(Operation::Reset);
    assert_eq!(guest.number("refused"), 1);
    // No such connection, and then no such packet.
    guest.data((GUEST_PORT, HOST_PORT), b"x");
    guest.expect(Operation::Reset);
    let _stream = guest.connected();
    guest.say(Operation::Unknown(77));
    guest.expect(Operation::Reset);
    // A second request for what is there.
    std::fs::remove_file(host::path_of(&guest.path, HOST_PORT)).unwrap();
    let _stream = guest.connected();
    guest.say(Operation::Request);
    guest.expect(Operation::Reset);
    let datagram = Header {
        socket_type: 3,
        ..guest.header(Operation::Request)
    };
    guest.send(datagram, &[]);
    assert_eq!(guest.expect(Operation::Reset).socket_type, 3);
    assert_eq!(guest.number("connections"), 0);
    // Addresses that are not its own get no answer.
    for (from_cid, to_cid) in [(9, HOST_CID), (u64::from(CID), 1)] {
        let header = Header {
            from_cid,
            to_cid,
            ..guest.header(Operation::Request)
        };
        guest.send(header, &[]);
    }
    assert_eq!(guest.drops(DROP_ADDRESS), 3);
    // A header that promises more than is there.
    let header = Header {
        bytes: 100,
        ..guest.header(Operation::Data)
    };
    guest.send(header, b"few");
    assert_eq!(guest.drops(DROP_MALFORMED), 1);
    guest.driver.settle(&guest.machine.thread);
    assert_eq!(guest.heard.len(), 0);
    assert_eq!(guest.driver.seen.queues[TX].broken.value(), 0);
}

#[test]
fn callers_that_do_not_say_where_they_go_are_let_go() {
    let guest = Guest::new();
    let lines: [&[u8]; 5] = [
        b"HELLO 1\n",
        b"CONNECT x\n",
        b"CONNECT 4294967295\n",
        b"\n",
        &[b'C'; 64],
    ];
    for (number, line) in (1u64..).zip(lines) {
        let mut stream = patient(UnixStream::connect(&guest.path).unwrap());
        // It may be gone before the line is.
        let _ = stream.write_all(line);
        let ended = stream.read(&mut [0; 8]);
        assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0));
        wait_for("the count", || guest.number("refused") == number);
    }
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    let callers: Vec<UnixStream> = (0..switch::MAX_CONNECTIONS + 20)
        .map(|_| {
            let stream = UnixStream::connect(&guest.path).unwrap();
            // As many as may wait to be heard at a time are few on some hosts.
            guest.driver.settle(&guest.machine.thread);
            stream
        })
        .collect();
    wait_for("the count", || guest.number("refused") == 20);
    guest.say(Operation::Request);
    guest.expect(Operation::Reset);
    drop(callers);
}

#[test]
fn a_reset_in_the_middle_of_traffic_ends_all_connections_and_the_device_serves_again() {
    let mut guest = Guest::new();
    for _ in 0..3 {
        let (mut first, port) = guest.called();
        let mut second = guest.connected();
        guest.data((GUEST_PORT, port), b"half a");
        first.write_all(&noise(100_000)).unwrap();
        guest.driver.write(0x70, 0);
        assert_eq!(guest.driver.read(0x70), 0);
        assert_eq!(guest.number("connections"), 0);
        let mut rest = Vec::new();
        // Data that nobody read make the end an error.
        let ended = first.read_to_end(&mut rest);
        assert!(ended.is_err() || rest == b"half a", "{rest:?}");
        assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
        std::fs::remove_file(host::path_of(&guest.path, HOST_PORT)).unwrap();
        guest.heard.clear();
        guest.start();
    }
    let _stream = guest.connected();
}

#[test]
fn a_socket_that_was_left_is_replaced_and_nothing_else_is() {
    let (mut machine, folder) = (Machine::new(), Folder::new());
    let path = folder.0.join("v");
    drop(open(&mut machine, "first", path.clone()));
    assert!(path.exists(), "the socket stays");
    let _second = open(&mut machine, "second", path.clone());
    let taken = |machine: &mut Machine, name: &str, path: &std::path::Path| {
        let block = VsockBlock::place(&mut machine.black_box, name).unwrap();
        let spec = VsockSpec {
            name: name.to_owned(),
            guest_cid: CID,
            path: path.to_owned(),
        };
        VsockDevice::open(spec, block).err().unwrap().to_string()
    };
    let text = taken(&mut machine, "third", &path);
    assert!(
        text.contains("is in use") && text.contains("uds_path"),
        "{text}"
    );
    let file = folder.0.join("file");
    std::fs::write(&file, "mine").unwrap();
    assert!(taken(&mut machine, "fourth", &file).contains("is in use"));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let text = taken(&mut machine, "fifth", &folder.0.join("none/v"));
    assert!(text.contains("cannot be listened at"), "{text}");
}

proptest! {
    #[test]
    fn every_header_is_read_and_written_the_same(bytes: [u8; HEADER_BYTES]) {
        prop_assert_eq!(Header::parse(&bytes).to_bytes(), bytes);
    }

    /// Whatever a guest sends, in whatever order, nothing grows beyond its bound.
    #[test]
    fn a_hostile_guest_makes_nothing_grow(
        packets in proptest::collection::vec((0u16..9, 0u32..3, 0u32..3, 0u32..4, any::<u32>(), any::<u32>()), 1..400),
    ) {
        let (mut machine, folder) = (Machine::new(), Folder::new());
        let path = folder.0.join("v");
        let _listener = UnixListener::bind(host::path_of(&path, 1)).unwrap();
        let block = VsockBlock::place(&mut machine.black_box, "vsock").unwrap();
        let mut switch = Switch::new(path, u64::from(CID), block).unwrap();
        let data = vec![1; ROOM as usize];
        for (operation, from_port, to_port, flags, room, taken) in packets {
            let header = Header {
                from_cid: u64::from(CID),
                to_cid: HOST_CID,
                from_port,
                to_port,
                bytes: 0,
                socket_type: TYPE_STREAM,
                operation: Operation::of(operation),
                flags,
                room,
                taken,
            };
            let some = usize::try_from(room % (ROOM + 1)).unwrap();
            let _ = switch.packet(&header, &data[..some]);
            switch.arm(flags == 0);
            let readable = switch.poll().unwrap();
            for connection in readable {
                let told = switch.read(connection, &mut [0; 100]);
                prop_assert!(told.is_none_or(|header| header.bytes <= 100));
            }
        }
        let mut told = 0;
        while switch.has_next() && told < 2000 {
            told += usize::from(switch.next().is_some());
        }
        prop_assert!(told <= 400 + 9 * 5, "{} packets are due", told);
    }
}
