//! What a vCPU thread does for an exit beside KVM_RUN: it allocates nothing and makes no system
//! call, whatever it counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use vmm::measure::Guest;

const EXITS: u64 = 5000;
/// Says to the test program that it is the child whose system calls are trapped.
const CHILD: &str = "VITRINE_TEST_TRAPPED";

/// The system's allocator, which counts what this thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    // A thread at its end has no counter any more, and nobody asks for it.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is the system allocator's work; counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn an_exit_allocates_nothing() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1u64)));
    assert_eq!(allocations() - before, 2, "the counter counts");
    let mut guest = Guest::new().unwrap();
    guest.observed(10).unwrap();
    let before = allocations();
    guest.observed(EXITS).unwrap();
    assert_eq!(allocations() - before, 0);
    assert!(guest.counted() > EXITS);
}

#[test]
fn an_exit_makes_no_system_call_but_kvm_run() {
    if std::env::var_os(CHILD).is_some() {
        trapped();
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "exit_path::an_exit_makes_no_system_call_but_kvm_run",
        ])
        .args(["--test-threads", "1", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stderr);
    assert_eq!(status.status.code(), Some(0), "{said}");
    assert!(said.contains("trap works: 1"), "{said}");
    assert!(said.contains("beside ioctl in 5000 exits: 0"), "{said}");
}

static TRAPPED: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);

/// Runs the guest with every system call of this thread trapped but ioctl, says what was trapped,
/// and ends the process.
#[allow(unsafe_code)]
fn trapped() -> ! {
    let mut guest = Guest::new().unwrap();
    guest.observed(10).unwrap();
    install_trap();
    // SAFETY: getpid takes nothing; it is trapped, which the test wants to see.
    unsafe { libc::syscall(libc::SYS_getpid) };
    let works = TRAPPED.swap(0, Ordering::Relaxed);
    let ran = guest.observed(EXITS);
    let seen = TRAPPED.load(Ordering::Relaxed);
    let last = LAST.load(Ordering::Relaxed);
    let all = ran.is_ok() && guest.counted() >= EXITS;
    // write and exit_group are let through.
    eprintln!("trap works: {works}");
    eprintln!("beside ioctl in {EXITS} exits: {seen} (the last: {last})");
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(!all)) }
}

extern "C" fn on_trap(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    #[allow(unsafe_code)]
    // SAFETY: the kernel hands in a siginfo_t; for SIGSYS si_syscall lies behind si_call_addr, at
    // 24 bytes (siginfo_t in asm-generic/siginfo.h).
    let number = unsafe { info.cast::<u8>().add(24).cast::<i32>().read() };
    LAST.store(number, Ordering::Relaxed);
    TRAPPED.fetch_add(1, Ordering::Relaxed);
}

/// Has the kernel trap this thread's system calls, but those that the test needs (seccomp(2)).
#[allow(unsafe_code)]
fn install_trap() {
    const ALLOWED: [libc::c_long; 4] = [
        libc::SYS_ioctl,
        libc::SYS_write,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
    ];
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // The number is the first word of struct seccomp_data.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for (index, number) in ALLOWED.iter().enumerate() {
        let to_allow = ALLOWED.len() - index;
        program.push(libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: to_allow as u8,
            jf: 0,
            k: *number as u32,
        });
    }
    program.push(statement(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_TRAP,
    ));
    program.push(statement(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_ALLOW,
    ));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the handler only stores to atomics; the filter program outlives the call, which
    // copies it.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()),
            0
        );
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}
