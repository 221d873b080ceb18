//! What the process calls itself. Clients of Firecracker look for a process of that name and read
//! its `--version`; a link of that name makes Vitrine answer to both.
#![allow(unsafe_code)] // prctl(2), which std does not offer.

use std::ffi::OsStr;
use std::path::Path;

use api::{FIRECRACKER_VERSION, VERSION};

/// Whether this process was invoked as `firecracker`.
fn is_firecracker() -> bool {
    let name = std::env::args_os().next();
    name.is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("firecracker")))
}

/// Names the process as it was invoked. The kernel does so by the file that was executed; a name
/// given beside it (`exec -a firecracker vitrine`) needs this.
pub fn name_process() {
    if is_firecracker() {
        // SAFETY: a NUL-terminated string of less than 16 bytes that lives across the call.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"firecracker".as_ptr()) };
    }
}

/// Answers `--version`.
pub fn print_version() {
    if is_firecracker() {
        println!("Firecracker v{FIRECRACKER_VERSION}");
    }
    println!("Vitrine v{VERSION}");
}
