//! The filter of source addresses: a guest sends from its own MAC address and no other.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use super::tap::HEADER_BYTES;
use crate::virtio::queue::{Chain, QueueRunner};
use crate::virtio::vectors::GuestVectors;

/// An Ethernet header: the smallest frame.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of a [`Head`].
const HEAD_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES;
/// Where the source address is in a [`Head`], behind the destination.
const SOURCE_OFFSET: usize = HEADER_BYTES + 6;

/// The header and the Ethernet header of a frame, copied once: the guest may write others into its
/// buffers at any moment. A frame that is shorter has zeros at the end.
pub struct Head([u8; HEAD_BYTES]);

impl Head {
    /// That of the frame in `chain`.
    pub fn of(chain: &Chain) -> Head {
        let mut head = [0; HEAD_BYTES];
        chain.readable.copy_to(0, &mut head);
        Head(head)
    }

    /// How the frame is segmented: `gso_type` of the header.
    pub fn segmentation(&self) -> u8 {
        let [_flags, segmentation, ..] = self.0;
        segmentation
    }

    /// The sender's address, VLAN tag or not.
    fn source(&self) -> Option<&[u8]> {
        self.0.get(SOURCE_OFFSET..SOURCE_OFFSET.saturating_add(6))
    }
}

/// See the module.
pub struct SourceFilter {
    mac: [u8; 6],
    /// What follows a head; made for the first frame and then kept.
    rest: Option<GuestVectors>,
}

impl SourceFilter {
    /// One for the guest that has this address.
    pub fn new(mac: [u8; 6]) -> Self {
        SourceFilter { mac, rest: None }
    }

    /// Whether the frame comes from the guest's own address.
    pub fn passes(&self, head: &Head) -> bool {
        head.source() == Some(&self.mac)
    }

    /// Sends a frame that [`SourceFilter::passes`]: with the head that was judged, whatever the
    /// guest has written over it since. The frame has at least an Ethernet header.
    ///
    /// # Errors
    /// As [`GuestVectors::send`].
    pub fn send(
        &mut self,
        head: &Head,
        chain: &Chain,
        tap: BorrowedFd,
        queue: &QueueRunner,
    ) -> io::Result<usize> {
        let rest = self.rest.get_or_insert_with(|| queue.vectors());
        rest.clear();
        if !rest.append(&chain.readable) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        rest.advance(HEAD_BYTES);
        rest.send_behind(&head.0, tap)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use memory::{Bytes, GuestAddress};
    use proptest::prelude::*;

    use super::super::tests::{Wire, stand_in_spec};
    use super::super::{Loss, NetDevice, TX, TapSpec};
    use super::*;
    use crate::virtio::mock_driver::{Buffer, DATA, wait_for};

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn filtered() -> Wire {
        let spec = TapSpec {
            mac_filter: true,
            ..stand_in_spec("eth0")
        };
        Wire::with(spec, 0)
    }

    /// A frame of `bytes` bytes with its header, from `source`, in the guest's memory.
    fn write(wire: &Wire, source: [u8; 6], bytes: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend([0xFF; 6]);
        frame.extend(source);
        frame.extend((0..60_000u32).map(|place| place as u8));
        frame.truncate(HEADER_BYTES + bytes);
        let ram = &wire.driver.ram;
        ram.write_slice(&frame, GuestAddress(DATA)).unwrap();
        frame
    }

    /// The frame at [`DATA`], in pieces of these sizes and a rest.
    fn pieces(sizes: &[usize], bytes: usize) -> Vec<Buffer> {
        let (mut at, mut left) = (DATA, bytes);
        let mut buffers = Vec::new();
        for size in sizes.iter().copied().chain([bytes]) {
            let size = size.min(left);
            if size > 0 {
                buffers.push((at, size as u32, false));
            }
            (at, left) = (at + size as u64, left - size);
        }
        buffers
    }

    #[test]
    fn frames_from_another_address_are_dropped_and_counted_when_asked() {
        let mut wire = filtered();
        let spoofed = write(&wire, OTHER, 100);
        for _ in 0..2 {
            wire.driver.add(TX, &pieces(&[HEADER_BYTES], spoofed.len()));
            wire.driver.kick(TX);
            wire.driver.wait_used(TX, 1);
        }
        let own = write(&wire, OWN, 100);
        wire.driver.add(TX, &pieces(&[HEADER_BYTES], own.len()));
        wire.driver.kick(TX);
        let mut seen = [0; 300];
        assert_eq!(wire.host.recv(&mut seen).unwrap(), own.len());
        assert_eq!(seen[..own.len()], own, "the spoofed ones did not come");
        wire.driver.wait_used(TX, 1);
        assert_eq!(wire.drops(Loss::TxSpoofed), 2);
        let row = &wire.driver.seen.device.operations[1];
        wait_for("the counters", || row.count.value() == 3);
        assert_eq!((row.errors.value(), row.bytes.value()), (2, 100));

        // Without the filter, all pass.
        let mut open = Wire::new(0);
        let spoofed = write(&open, OTHER, 100);
        open.driver.add(TX, &pieces(&[], spoofed.len()));
        open.driver.kick(TX);
        assert_eq!(open.host.recv(&mut seen).unwrap(), spoofed.len());
        assert_eq!(open.drops(Loss::TxSpoofed), 0);
    }

    #[test]
    fn runts_are_no_way_around_it() {
        let mut wire = filtered();
        // Zeros stand for what is missing: an address of zeros is nobody's.
        write(&wire, OWN, 13);
        for bytes in [1, 12, 20, 25] {
            wire.driver.add(TX, &[(DATA, bytes, false)]);
            wire.driver.kick(TX);
            wire.driver.wait_used(TX, 1);
        }
        assert_eq!(wire.drops(Loss::TxMalformed), 4);
        let smallest = write(&wire, OWN, 14);
        wire.driver.add(TX, &[(DATA, 26, false)]);
        wire.driver.kick(TX);
        let mut seen = [0; 100];
        assert_eq!(wire.host.recv(&mut seen).unwrap(), 26);
        assert_eq!(seen[..26], smallest);
    }

    #[test]
    fn what_was_judged_is_sent_whatever_the_guest_writes_meanwhile() {
        let mut machine = crate::virtio::mock_driver::Machine::new();
        let (tap, host) = UnixDatagram::pair().unwrap();
        let spec = stand_in_spec("eth0");
        let device = NetDevice::with_stand_ins(spec, [tap.into()]).unwrap();
        let driver = machine.attach(device, 0x1_0000);
        let at = GuestAddress(DATA);
        let mut guest = GuestVectors::new(std::sync::Arc::new(driver.ram.clone()));
        guest.push(at, 20).unwrap();
        guest.push(GuestAddress(DATA + 20), 80).unwrap();
        let mut judged = [7; HEAD_BYTES];
        judged[SOURCE_OFFSET..SOURCE_OFFSET + 6].copy_from_slice(&OWN);
        driver.ram.write_slice(&[9; 100], at).unwrap();
        guest.advance(HEAD_BYTES);
        let (to, from) = UnixDatagram::pair().unwrap();
        let sent = guest.send_behind(&judged, std::os::fd::AsFd::as_fd(&to));
        assert_eq!(sent.unwrap(), 100);
        // It can be sent again: nothing of the head stays in the list.
        assert_eq!(guest.bytes(), 100 - HEAD_BYTES);
        let again = guest.send(std::os::fd::AsFd::as_fd(&to)).unwrap();
        assert_eq!(again, 100 - HEAD_BYTES);
        let mut seen = [0; 200];
        assert_eq!(from.recv(&mut seen).unwrap(), 100);
        assert_eq!(seen[..HEAD_BYTES], judged);
        assert_eq!(seen[HEAD_BYTES..100], [9; 100 - HEAD_BYTES]);
        drop(host);
    }

    #[test]
    fn a_frame_that_a_full_tap_held_is_sent_whole() {
        let mut wire = filtered();
        let frame = write(&wire, OWN, 2000);
        let mut sent = 0;
        while wire.tx().in_flight.value() == 0 {
            wire.driver.add(TX, &pieces(&[12, 9], frame.len()));
            wire.driver.kick(TX);
            wire.driver.settle(&wire.machine.thread);
            if wire.tx().in_flight.value() == 0 {
                wire.driver.wait_used(TX, 1);
            }
            sent += 1;
            assert!(sent < 2000);
        }
        let mut seen = vec![0; 4096];
        for _ in 0..sent {
            assert_eq!(wire.host.recv(&mut seen).unwrap(), frame.len());
            assert_eq!(seen[..frame.len()], frame);
        }
        wire.driver.wait_used(TX, 1);
        assert_eq!(wire.drops(Loss::TxSpoofed), 0);
    }

    #[test]
    fn a_filter_without_an_address_is_refused() {
        let (tap, _host) = UnixDatagram::pair().unwrap();
        let spec = TapSpec {
            mac: None,
            mac_filter: true,
            ..stand_in_spec("eth0")
        };
        let error = NetDevice::with_stand_ins(spec, [tap.into()]).err().unwrap();
        assert!(error.to_string().contains("guest_mac"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However a frame lies in the ring, it comes out as it was if it is the guest's own, and
        /// not at all if it is not.
        #[test]
        fn only_own_frames_pass_however_they_are_cut(
            sizes in prop::collection::vec(1usize..40, 0..8), bytes in 14usize..200, own: bool,
            place in 0usize..6, change in 1u8..,
        ) {
            let mut wire = filtered();
            let mut source = OWN;
            if !own {
                source[place] ^= change;
            }
            let frame = write(&wire, source, bytes);
            wire.driver.add(TX, &pieces(&sizes, frame.len()));
            wire.driver.kick(TX);
            wire.driver.wait_used(TX, 1);
            wire.driver.settle(&wire.machine.thread);
            wire.host.set_nonblocking(true).unwrap();
            let mut seen = [0; 300];
            let got = wire.host.recv(&mut seen).ok();
            prop_assert_eq!(got, own.then_some(frame.len()));
            prop_assert!(!own || seen[..frame.len()] == frame);
            prop_assert_eq!(wire.drops(Loss::TxSpoofed), u64::from(!own));
        }
    }
}
