//! Boots a guest in this process and prints what happens to it and what was seen of it.
//!
//! ```text
//! cargo run --example embed -- KERNEL [INITRD] [-- KERNEL COMMAND LINE]
//! ```
//! The guest's console goes to standard output. Ends with the guest.

use std::error::Error;
use std::sync::mpsc::channel;

use vmm::observe::reader::Value;
use vmm::{BootSpec, Outcome, SerialOutput, Vm, VmEvent, VmSpec};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut parts = arguments.splitn(2, |word| word == "--");
    let files = parts.next().unwrap_or_default();
    let cmdline = parts.next().map(|words| words.join(" "));
    let [kernel, initrd @ ..] = files else {
        return Err("usage: embed KERNEL [INITRD] [-- KERNEL COMMAND LINE]".into());
    };

    let mut spec = VmSpec::new(
        "embedded",
        BootSpec {
            kernel: kernel.into(),
            initrd: initrd.first().map(Into::into),
            cmdline,
            ..BootSpec::default()
        },
    );
    spec.memory.size_mib = 256;
    spec.serial.output = SerialOutput::Stdout;

    let (events, inbox) = channel();
    let vm = Vm::launch(spec, move |event| drop(events.send(event)))?;
    let outcome = loop {
        match inbox.recv()? {
            VmEvent::Ended(outcome) => break outcome,
            event => eprintln!("event: {event:?}"),
        }
    };

    // The observation outlives the guest: it is in the black box, here one in memory.
    for section in &vm.snapshot()?.sections {
        if section.kind() != "vcpu" {
            continue;
        }
        for (field, reason, value) in section.values() {
            if let ("exits", Value::Counter(count @ 1..)) = (field.name.as_str(), value) {
                eprintln!("{}: {count} exits of kind {reason}", section.name);
            }
        }
    }
    eprintln!("the guest has ended: {outcome}");
    match outcome {
        Outcome::Failed(detail) => Err(detail.into()),
        _ => Ok(()),
    }
}
