//! The shared mapping of a black box file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// The mapping itself; unmapped when the last [`super::Block`] is gone.
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain shared memory that is only accessed through atomics (cells) or, for
// the header's plain fields, before the BlackBox is handed out; it is unmapped in Drop alone.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Allocates `bytes` of `file` and maps them, present: no thread that writes there takes a
    /// page fault later, and none dies of SIGBUS because the file system is full.
    #[allow(unsafe_code)]
    pub fn new(file: &File, bytes: usize) -> Result<Self, std::io::Error> {
        let length = libc::off_t::try_from(bytes).map_err(std::io::Error::other)?;
        loop {
            // SAFETY: plain system call on a descriptor that we own.
            match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
                0 => break,
                libc::EINTR => {}
                error => return Err(std::io::Error::from_raw_os_error(error)),
            }
        }
        // SAFETY: a fresh shared mapping of a descriptor that we own, at an address of the
        // kernel's choice; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(std::io::Error::last_os_error)?;
        Ok(Mapping { start, bytes })
    }

    /// The first byte; page-aligned.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: start and bytes are those of the successful mmap in `new`, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
