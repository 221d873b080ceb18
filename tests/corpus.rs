//! The fuzz targets without a fuzzer: each gets its corpus, and inputs made of that by chance, the
//! same each time. See docs/fuzz.md.

#[path = "../fuzz/src/lib.rs"]
mod bodies;

use std::fs;
use std::path::Path;

/// Random inputs for each target.
const ROUNDS: usize = 2000;

/// A linear congruential generator.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// Changes, cuts, doubles or lengthens `bytes` a few times.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            let value = [0, 1, 0x7F, 0xFF, self.below(256) as u8][self.below(5)];
            match (self.below(6), bytes.get_mut(at)) {
                (0 | 1, Some(byte)) => *byte = value,
                (2, Some(byte)) => *byte ^= 1 << self.below(8),
                (3, Some(_)) => drop(bytes.drain(at..(at + self.below(9)).min(bytes.len()))),
                (4, Some(_)) => {
                    let part = bytes[at..(at + 1 + self.below(40)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, part);
                }
                _ => bytes.insert(at, value),
            }
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut paths: Vec<_> = fs::read_dir(folder.join(target))
        .unwrap_or_else(|error| panic!("no corpus for {target}: {error}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target}");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn smoke(target: &str) {
    let found = bodies::TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.expect("a target");
    let seeds = corpus(target);
    for seed in &seeds {
        body(seed);
    }
    let mut chance = Chance(20_250_101);
    for round in 0..ROUNDS {
        let input = if round % 4 == 0 {
            chance.bytes(400)
        } else {
            let mut input = seeds[chance.below(seeds.len())].clone();
            chance.change(&mut input);
            input
        };
        // Shown when the body panics.
        println!("round {round}: {}", input.escape_ascii());
        body(&input);
    }
}

macro_rules! targets {
    ($($target:ident)*) => {
        $(#[test] fn $target() { smoke(stringify!($target)); })*

        #[test]
        fn every_target_has_a_test_and_a_program() {
            let tested = [$(stringify!($target)),*];
            let manifest = include_str!("../fuzz/Cargo.toml");
            assert_eq!(bodies::TARGETS.map(|(name, _)| name), tested);
            for name in tested {
                assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
            }
            let programs = manifest.lines().filter(|line| *line == "[[bin]]").count();
            assert_eq!(programs, tested.len());
        }
    };
}

targets! {
    api_bodies balloon_request blackbox_reader blk_request console_watch entropy http_request
    legacy_ports mmio_registers net_control pci_function stack trace_format trace_records virtqueue
    vsock walk
}
