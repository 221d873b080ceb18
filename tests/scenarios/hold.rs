//! What is done to threads and to the host from outside: programs that take a CPU, a tracer that
//! stops one thread, a clock that is set.
#![allow(unsafe_code)]

use std::process::{Child, Command, Stdio};

/// Programs that use a CPU and do nothing with it.
pub struct Burners {
    children: Vec<Child>,
    victim: u32,
}

impl Burners {
    /// So many, on a CPU on which the thread `victim` has to stay, too.
    pub fn beside(victim: u32, count: usize) -> Burners {
        pin(victim, &[0]);
        let children = (0..count).map(|_| {
            let mut command = Command::new("sh");
            let command = command.args(["-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().unwrap()
        });
        let children: Vec<Child> = children.collect();
        for child in &children {
            pin(child.id(), &[0]);
        }
        Burners { children, victim }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let all: Vec<usize> = (0..64).collect();
        // The thread may be gone.
        set_affinity(self.victim, &all);
    }
}

fn pin(tid: u32, cpus: &[usize]) {
    assert!(set_affinity(tid, cpus), "thread {tid} cannot be pinned");
}

fn set_affinity(tid: u32, cpus: &[usize]) -> bool {
    // SAFETY: a set of CPUs is plain data, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: CPU_SET checks the number against the size of the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set lives as long as the call, and its size is given.
    unsafe { libc::sched_setaffinity(tid.cast_signed(), size_of::<libc::cpu_set_t>(), &set) == 0 }
}

/// One thread of another process, stopped as a debugger does it: the rest of the process goes on.
/// The thread that drops it must be the one that made it.
pub struct Stopped(u32);

impl Stopped {
    /// Stops it, and waits until it stands.
    pub fn thread(tid: u32) -> Stopped {
        let none = std::ptr::null_mut::<libc::c_void>();
        let id = tid.cast_signed();
        // SAFETY: neither request reads or writes memory of ours.
        let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, id, none, none) };
        assert_eq!(result, 0, "seize: {}", std::io::Error::last_os_error());
        // SAFETY: as above.
        let result = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, id, none, none) };
        assert_eq!(result, 0, "stop: {}", std::io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: the status is a word of ours.
        let waited = unsafe { libc::waitpid(id, &mut status, libc::__WALL) };
        assert_eq!(waited, id, "wait: {}", std::io::Error::last_os_error());
        Stopped(tid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        let id = self.0.cast_signed();
        // SAFETY: the request touches no memory of ours. The thread may be gone.
        let gone = unsafe { libc::ptrace(libc::PTRACE_DETACH, id, none, none) } != 0;
        if gone {
            let mut status = 0;
            // Its process cannot go altogether before its tracer knows of it.
            // SAFETY: the status is a word of ours.
            unsafe { libc::waitpid(id, &mut status, libc::__WALL | libc::WNOHANG) };
        }
    }
}

/// The host's clock, set so many seconds ahead while this lives. For the lab alone.
pub struct Ahead(i64);

impl Ahead {
    /// Sets it.
    pub fn by(seconds: i64) -> Ahead {
        move_clock(seconds);
        Ahead(seconds)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        move_clock(-self.0);
    }
}

fn move_clock(seconds: i64) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is ours, and as large as the call writes.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    now.tv_sec += seconds;
    // SAFETY: the call reads the time alone.
    let set = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &now) };
    let error = std::io::Error::last_os_error();
    assert_eq!((read, set), (0, 0), "the clock cannot be set: {error}");
}
