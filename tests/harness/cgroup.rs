//! A cgroup of its own for one VM: what limits it, and what the kernel counts of it.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A cgroup, version 2, that ends with the test.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// With the controllers of memory and, where there is one, of CPU time; without limits.
    pub fn new() -> Cgroup {
        let root = PathBuf::from("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        assert!(
            controllers.split_whitespace().any(|name| name == "memory"),
            "{} is no cgroup version 2 with a memory controller; run this in the lab",
            root.display()
        );
        let path = root.join(format!("vitrine-test-{}", std::process::id()));
        let control = root.join("cgroup.subtree_control");
        fs::write(&control, "+memory").unwrap();
        if controllers.split_whitespace().any(|name| name == "cpu") {
            fs::write(&control, "+cpu").unwrap();
        }
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }

    /// No swap for whoever is in it.
    pub fn without_swap(&self) {
        match fs::write(self.0.join("memory.swap.max"), "0") {
            // A kernel without swap has no such file.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other.unwrap(),
        }
    }

    /// Moves a process into it.
    pub fn enter(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// As [`Cgroup::write`], where the kernel may refuse.
    pub fn try_write(&self, name: &str, text: &str) -> std::io::Result<()> {
        fs::write(self.path(name), text)
    }

    /// Where one of its files is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads one of its files.
    pub fn read(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The number of `key` in one of its files.
    pub fn number(&self, name: &str, key: &str) -> u64 {
        let text = self.read(name);
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, count) = lines.find(|(event, _)| *event == key).unwrap();
        count.parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        // Its last process may not be gone altogether.
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
