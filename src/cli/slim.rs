//! Gives back what only the start needed: most code of a VMM parses, validates and loads, once.
//!
//! Pages of program code come from files and are read back in a few microseconds when they are
//! used again, so nothing is lost by dropping them when the guest has started, and a few times
//! while it settles: what a running VM uses is mapped again by its first use, and the rest is the
//! host's. The kernel maps 16 pages around each that is used, so what was used once, long ago,
//! would hold almost all of the code.

use std::ffi::{CStr, c_int, c_void};

/// Has all threads allocate from one heap. Several make an allocator faster that many threads use at
/// once; here they would only hold what the others have given back. The vCPUs' threads allocate nothing.
#[allow(unsafe_code)]
pub fn one_heap() {
    // SAFETY: sets a number; called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Drops the mapped code of this process, and what the allocator holds and nobody uses. Whoever
/// uses code again has it mapped again: a few page faults without I/O.
#[allow(unsafe_code)]
pub fn drop_unused() {
    // SAFETY: `drop_code` has the signature that dl_iterate_phdr calls, and keeps no pointer.
    // malloc_trim only gives free memory back to the kernel.
    unsafe {
        libc::dl_iterate_phdr(Some(drop_code), std::ptr::null_mut());
        libc::malloc_trim(0);
    }
}

/// One object: the program or a library. Only segments that can never have been written to are
/// dropped: relocated data lies in a writable one, though it is protected later.
#[allow(unsafe_code)]
unsafe extern "C" fn drop_code(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr gives a valid object, whose headers live as long as the call.
    let (object, headers) = unsafe {
        let object = &*info;
        let count = usize::from(object.dlpi_phnum);
        (object, std::slice::from_raw_parts(object.dlpi_phdr, count))
    };
    // SAFETY: dlpi_name is a C string that lives as long as the call, or null.
    let is_kernels = !object.dlpi_name.is_null()
        && unsafe { CStr::from_ptr(object.dlpi_name) }
            .to_bytes()
            .starts_with(b"linux-");
    if is_kernels {
        return 0;
    }
    const PAGE: u64 = 4096;
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let first = (object.dlpi_addr + header.p_vaddr).next_multiple_of(PAGE);
        let end = (object.dlpi_addr + header.p_vaddr + header.p_memsz) & !(PAGE - 1);
        if first < end {
            // SAFETY: whole pages of a segment that the loader mapped privately from a file and
            // nobody may write to: dropped, they read the same again. An error changes nothing.
            unsafe {
                let bytes = (end - first) as usize;
                libc::madvise(first as *mut c_void, bytes, libc::MADV_DONTNEED);
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_works_after_it_was_dropped() {
        drop_unused();
        let text = format!("{:?}", std::env::args().collect::<Vec<_>>());
        drop_unused();
        assert!(!text.is_empty());
    }

    #[test]
    fn dropping_code_leaves_less_of_it_mapped() {
        let mapped = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut code = false;
            let mut kib = 0u64;
            for line in smaps.lines() {
                let mut words = line.split_whitespace();
                match (words.next(), words.next()) {
                    (Some(range), Some(mode)) if range.contains('-') => code = mode == "r-xp",
                    (Some("Rss:"), Some(number)) if code => kib += number.parse::<u64>().unwrap(),
                    _ => {}
                }
            }
            kib
        };
        // Touches much code: the formatting of a failure, clap's help.
        let help = <super::super::args::Cli as clap::CommandFactory>::command().render_help();
        assert!(help.to_string().contains("vitrine"));
        let before = mapped();
        drop_unused();
        let after = mapped();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
