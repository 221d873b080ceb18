//! What the guest does to a device, and what Vitrine has to say of it.

use super::{DEVICES, Transport};

/// What has to be told of a ring that was broken: the words of the event, and those of the verdict.
#[derive(Clone, Copy)]
pub struct Told {
    pub event: &'static str,
    pub verdict: &'static str,
}

/// What the guest does, and which queues it breaks.
pub struct Fault {
    /// Its name in `guests/zoo/faults.c`.
    pub name: &'static str,
    /// `None`: nothing is broken by it.
    pub told: Option<Told>,
    /// The queues that it breaks; empty for all.
    only: &'static [(&'static str, u16)],
}

/// The guest's order.
pub fn all(transport: Transport) -> Vec<Fault> {
    let mut all = layouts();
    all.extend(chains());
    all.extend(buffers());
    let deeds = [
        "read_only",
        "status",
        "no_queue",
        "storm",
        "reset",
        "widths",
    ];
    let of_pci = ["bar", "decoding", "messages", "window"];
    let of_pci = of_pci.iter().filter(|_| transport == Transport::Pci);
    all.extend(deeds.iter().chain(of_pci).map(|name| Fault {
        name,
        told: None,
        only: &[],
    }));
    all
}

impl Fault {
    /// The queues that it breaks.
    pub fn broken(&self) -> Vec<(&'static str, u16)> {
        if self.told.is_none() || !self.only.is_empty() {
            return self.only.to_vec();
        }
        let queues = DEVICES.iter();
        queues
            .flat_map(|(device, count)| (0..*count).map(move |queue| (*device, queue)))
            .collect()
    }
}

fn breaks(name: &'static str, event: &'static str, verdict: &'static str) -> Fault {
    Fault {
        name,
        told: Some(Told { event, verdict }),
        only: &[],
    }
}

/// Where a queue lies.
fn layouts() -> Vec<Fault> {
    let size = "the queue's size is none that it may have";
    let outside = "a ring is outside RAM";
    vec![
        breaks("no_size", "queue size 0 is not a power of two", size),
        breaks("odd_size", "queue size 15 is not a power of two", size),
        breaks("large_size", "queue size 32768 is not a power of two", size),
        breaks(
            "unaligned",
            "the descriptor table is not aligned",
            "a ring is not aligned",
        ),
        breaks(
            "table_nowhere",
            "the descriptor table is outside RAM",
            outside,
        ),
        breaks(
            "avail_nowhere",
            "the available ring is outside RAM",
            outside,
        ),
        breaks("used_nowhere", "the used ring is outside RAM", outside),
    ]
}

/// What its descriptors say.
fn chains() -> Vec<Fault> {
    let endless = (
        "the chain at 0 is a loop or longer than the queue",
        "a chain never ends",
    );
    let outside = (
        "the chain at 0 has a buffer outside RAM",
        "a buffer is outside RAM",
    );
    let off = ("the chain at 0 breaks off", "a chain breaks off");
    let of = |name, (event, verdict): (&'static str, &'static str)| breaks(name, event, verdict);
    vec![
        of("loop", endless),
        of("overlong", endless),
        of("nowhere", outside),
        of("registers", outside),
        of("edge", outside),
        of(
            "zero",
            (
                "the chain at 0 has a buffer of no bytes",
                "a buffer has no bytes",
            ),
        ),
        of("nested", off),
        of("misshapen", off),
        of("indirect_nowhere", off),
        of("outside", off),
        of(
            "order",
            (
                "a readable buffer after a writable one",
                "a readable buffer comes after a writable one",
            ),
        ),
        of(
            "head",
            (
                "head 16 leads to no descriptor",
                "a head leads to no descriptor",
            ),
        ),
        of(
            "jump",
            (
                "the available index is more than the queue's size ahead",
                "the available index is too far ahead",
            ),
        ),
    ]
}

/// What only some devices can make nothing of; the others drop it, or answer it with an error.
fn buffers() -> Vec<Fault> {
    let told = Some(Told {
        event: "the chain at 0 is too small for its device",
        verdict: "the buffers are too small",
    });
    vec![
        Fault {
            name: "small",
            told,
            only: &[("sync", 0), ("async", 0), ("net", 0), ("vsock", 0)],
        },
        Fault {
            name: "backwards",
            told,
            only: &[
                ("sync", 0),
                ("async", 0),
                ("net", 0),
                ("entropy", 0),
                ("vsock", 0),
            ],
        },
    ]
}
