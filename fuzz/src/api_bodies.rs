//! The bodies of API requests: every wire type and what it is converted to, as far as that does
//! not look at the host. What a PUT makes of a body, a GET shows, and that is a body again.

use std::fmt::Debug;

use api::routes;
use api::vmm::BucketSpec;
use api::wire::machine_config::MachineConfig;
use api::wire::{
    self, ActionWire, BootSourceWire, DriveWire, LevelWire, LoggerWire, MacWire, MachineConfigWire,
    NetworkPatchWire, NetworkWire, RateLimiterWire, SerialWire, TokenBucketWire, VmWire, WireError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Runs the target. A first line of three words is a method, a request target and an id.
pub fn run(bytes: &[u8]) {
    let (line, body) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&b""[..], bytes),
    };
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, target, id) = (word(), word(), word());
    if let Some((_, path_id)) = told(routes::find(method, target, !body.is_empty())) {
        let _ = told(wire::id::check(path_id, "drive_id", id));
    }
    let _ = told(wire::id::check(id, "iface_id", id));
    texts(id);
    devices(body);
    machine(body);
    round::<BootSourceWire>(body);
    round::<LoggerWire>(body);
    round::<VmWire>(body);
    round::<ActionWire>(body);
    round::<RateLimiterWire>(body);
    round::<TokenBucketWire>(body);
    if let Some(policy) = told(wire::policy::parse(body)) {
        let shown = wire::policy::document(&policy);
        assert!(told(wire::policy::of(&shown)).is_some());
    }
}

/// What came of it; of an error the text, which must be there.
fn told<T>(outcome: Result<T, WireError>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn texts(text: &str) {
    if let Ok(mac) = text.parse::<MacWire>() {
        assert_eq!(mac.to_string(), text.to_ascii_lowercase());
    }
    let _ = text.parse::<LevelWire>();
}

/// Parses a body; what it is written as is read as the same.
fn round<T>(body: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let value = told(wire::parse::<T>(body))?;
    let again = serde_json::to_vec(&value).expect("wire types are JSON");
    assert_eq!(told(wire::parse::<T>(&again)).as_ref(), Some(&value));
    Some(value)
}

fn devices(body: &[u8]) {
    if let Some((filled, spec)) = round::<DriveWire>(body).and_then(|drive| told(drive.convert())) {
        let again = filled.clone().convert().expect("what GET shows is taken");
        assert_eq!((again.0, again.1.id), (filled, spec.id));
    }
    let patch = round::<NetworkPatchWire>(body);
    if let Some(network) = round::<NetworkWire>(body) {
        let (filled, spec) = network.convert();
        assert_eq!(filled.clone().convert(), (filled.clone(), spec));
        // One body can be both.
        let changed = patch.unwrap_or_default().applied(filled).convert();
        assert_eq!(changed.0.clone().convert(), changed);
    }
    if let Some(entropy) = round::<wire::EntropyWire>(body) {
        let (filled, spec) = entropy.convert();
        assert_eq!(filled.clone().convert(), (filled, spec));
    }
    if let Some(serial) = round::<SerialWire>(body) {
        let shown = serial.clone().tidy();
        assert_eq!(shown.clone().tidy(), shown);
        let limit = serial.limit().filter(BucketSpec::limits);
        assert_eq!(shown.limit(), limit);
    }
}

fn machine(body: &[u8]) {
    let Some(wire) = told(wire::parse::<MachineConfigWire>(body)) else {
        return;
    };
    let patched = told(wire.patch(&MachineConfig::default()));
    let put = told(wire.put());
    for config in put.iter().chain(&patched) {
        let spec = config.memory();
        assert_eq!(spec.size_mib, config.mem_size_mib);
        let _ = spec.bytes();
        let shown = serde_json::to_vec(config).expect("JSON");
        let again = wire::parse::<MachineConfigWire>(&shown).expect("what GET shows is a body");
        assert_eq!(again.put().as_ref().ok(), Some(config));
    }
}
