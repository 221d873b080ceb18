//! The host's tap device: opened, never made.

#![allow(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net as net;

use super::NetError;

/// Bytes of the header before each frame: `struct virtio_net_hdr_v1`.
pub const HEADER_BYTES: usize = 12;

/// An open file of a tap, nonblocking, with a header of [`HEADER_BYTES`] before each frame. A tap of
/// several queues has a file for each.
pub struct Tap {
    fd: OwnedFd,
    /// Whether the host uses it; one that it does not use has no packets and takes none.
    attached: bool,
    /// False for what stands in for a tap in tests.
    real: bool,
}

impl Tap {
    /// Opens the tap `name`, which must exist: the kernel would make one, which nobody has
    /// configured and which would vanish with this process. Gives a file for each of `queues`, of which
    /// the host uses the first.
    pub(super) fn open(name: &str, queues: usize) -> Result<Vec<Self>, NetError> {
        let missing = || NetError::Missing { tap: name.into() };
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: a NUL-terminated name that outlives the call.
        if name.len() >= libc::IFNAMSIZ || unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(missing());
        }
        let refused = |source| refused(name, queues, source);
        let mut taps = Vec::new();
        for _ in 0..queues {
            let mut tap = Tap::open_file(name, queues)?;
            tap.set_header_bytes().map_err(refused)?;
            if !taps.is_empty() {
                tap.attach(false).map_err(refused)?;
            }
            taps.push(tap);
        }
        Ok(taps)
    }

    fn open_file(name: &str, queues: usize) -> Result<Self, NetError> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let fd: OwnedFd = options
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| NetError::NoTun { source })?
            .into();
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(done).map_err(|source| refused(name, queues, source))?;
        Ok(Tap {
            fd,
            attached: true,
            real: true,
        })
    }

    /// What behaves like a tap: each read and write is a frame with its header.
    #[cfg(test)]
    pub(super) fn stand_in(fd: OwnedFd) -> Self {
        Tap {
            fd,
            attached: true,
            real: false,
        }
    }

    /// Has the host use this file of a tap of several queues, or not. What waits in one that it no
    /// longer uses is lost.
    ///
    /// # Errors
    /// What the kernel says: the tap is gone, or belongs to another user by now.
    pub fn attach(&mut self, attached: bool) -> io::Result<()> {
        if self.attached == attached {
            return Ok(());
        }
        if self.real {
            let flag = match attached {
                true => libc::IFF_ATTACH_QUEUE,
                false => libc::IFF_DETACH_QUEUE,
            };
            let mut request = request("");
            request.ifr_ifru.ifru_flags = flag as libc::c_short;
            // SAFETY: TUNSETQUEUE reads an ifreq, of which it takes the flags.
            check(unsafe {
                libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request)
            })?;
        }
        self.attached = attached;
        Ok(())
    }

    /// Whether a packet waits to be received.
    pub fn has_packet(&self) -> bool {
        let mut asked = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, which outlives the call; it does not wait.
        let ready = unsafe { libc::poll(&raw mut asked, 1, 0) };
        ready > 0 && asked.revents & libc::POLLIN != 0
    }

    fn set_header_bytes(&self) -> io::Result<()> {
        let bytes: libc::c_int = 12;
        const { assert!(HEADER_BYTES == 12) };
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
    }

    /// Lets the host give the guest what its driver said it can take.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_offload(&self, features: u64) -> io::Result<()> {
        if !self.real {
            return Ok(());
        }
        let flags = offload(features);
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        check(unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The host's flags for the guest's features. Segmentation without checksums does not exist
/// (virtio 1.2, 5.1.3.1), and the kernel refuses it.
fn offload(features: u64) -> libc::c_uint {
    if features & (1 << net::VIRTIO_NET_F_GUEST_CSUM) == 0 {
        return 0;
    }
    [
        (net::VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (net::VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (net::VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ]
    .into_iter()
    .filter(|(feature, _)| features & (1 << feature) != 0)
    .fold(libc::TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

/// The MTU of the host's interface `name`.
pub(super) fn mtu(name: &str) -> io::Result<u16> {
    let socket = UnixDatagram::unbound()?;
    let mut request = request(name);
    // SAFETY: SIOCGIFMTU reads the name of an ifreq and writes its mtu.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the kernel has written this member of the union, an int.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn request(name: &str) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 },
    }
}

fn refused(tap: &str, queues: usize, source: io::Error) -> NetError {
    let tap = tap.to_owned();
    match source.raw_os_error() {
        Some(libc::EINVAL) if queues > 1 => NetError::OneQueue { tap, queues },
        Some(libc::EBUSY) => NetError::Busy { tap },
        Some(libc::EPERM | libc::EACCES) => NetError::Denied { tap },
        Some(libc::EINVAL) => NetError::NoTap { tap },
        _ => NetError::Open { tap, source },
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::*;

    #[test]
    fn offloads_are_those_that_the_driver_took() {
        let bit = |feature: u32| 1u64 << feature;
        assert_eq!(offload(bit(net::VIRTIO_NET_F_GUEST_TSO4)), 0);
        assert_eq!(offload(bit(net::VIRTIO_NET_F_GUEST_CSUM)), libc::TUN_F_CSUM);
        let all = bit(net::VIRTIO_NET_F_GUEST_CSUM)
            | bit(net::VIRTIO_NET_F_GUEST_TSO4)
            | bit(net::VIRTIO_NET_F_GUEST_TSO6)
            | bit(net::VIRTIO_NET_F_GUEST_ECN);
        assert_eq!(offload(all), 0xF);
    }
}
