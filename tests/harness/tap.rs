//! Taps of the host.

use std::process::Command;

/// A tap with an address, removed with it.
pub struct Tap {
    /// Its name.
    pub name: &'static str,
}

impl Tap {
    /// Makes it, up, with this address of 24 bits.
    pub fn new(name: &'static str, address: &str) -> Tap {
        Tap::of("", name, address)
    }

    /// As [`Tap::new`], for an interface with several queue pairs.
    pub fn wide(name: &'static str, address: &str) -> Tap {
        Tap::of(" multi_queue", name, address)
    }

    fn of(kind: &str, name: &'static str, address: &str) -> Tap {
        let ip = |arguments: &str| {
            let output = Command::new("ip")
                .args(arguments.split(' '))
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "ip {arguments}: {error}");
        };
        ip(&format!("tuntap add dev {name} mode tap{kind}"));
        let tap = Tap { name };
        ip(&format!("addr add {address}/24 dev {name}"));
        ip(&format!("link set {name} up"));
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.name]).output();
    }
}
