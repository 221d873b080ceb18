//! The host's random numbers.

#![allow(unsafe_code)]

use std::io;

/// Fills `buffer` with random bytes.
///
/// # Errors
/// The host's kernel has no entropy yet, or no `getrandom`; nothing in `buffer` is to be used then.
pub fn fill(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        // SAFETY: the pointer and the length are those of a slice that is ours to write. Without
        // entropy the call fails and does not wait: this thread has other work.
        let got = unsafe {
            libc::getrandom(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::GRND_NONBLOCK,
            )
        };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => buffer = buffer.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
