//! The `watcher` thread: once a second it writes down what others know of the VM, the host's kernel
//! and KVM, into sections of the black box that are its own.
//!
//! It takes no lock and waits for no thread of the VM, so it goes on while the VM boots, is paused or
//! hangs; of one thing it asks them, a look into a vCPU that seems stuck, and for that it waits a
//! tenth of a second at most ([`look`]). Its owner is the machine: it runs before the first vCPU does, and its last
//! sample is taken when all else has stopped.

pub mod judge;
pub mod kicks;
pub mod kvm_stats;
pub mod kvm_table;
pub mod look;
pub mod samples;
pub mod signals;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::virtio::ThreadBlock;
use observe::{Activity, Block, Clock};

use crate::driver::JOIN_POLL;
use crate::vcpu::thread::panic_text;

/// From one sample to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// One source: its name, for the log, and what reads it.
pub struct Source {
    /// The name.
    pub name: &'static str,
    /// Takes one sample. Runs on the watcher's thread alone.
    pub sample: Box<dyn FnMut() + Send>,
}

/// The machine's handle on the watcher. Dropped, the thread ends by itself, soon.
pub struct Watcher {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Starts the thread, which takes its first samples at once.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn spawn(block: Block<ThreadBlock>, sources: Vec<Source>) -> io::Result<Watcher> {
        let (stop, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || main(&block, sources, &inbox))?;
        Ok(Watcher { stop, thread })
    }

    /// Takes the last samples and ends the thread.
    ///
    /// # Errors
    /// The thread's name, when it is not done within the time.
    pub fn stop(self, within: Duration) -> Result<(), String> {
        let end = Instant::now() + within;
        drop(self.stop);
        while !self.thread.is_finished() {
            if Instant::now() > end {
                return Err("watcher".to_owned());
            }
            std::thread::sleep(JOIN_POLL);
        }
        // What panicked was logged.
        let _ = self.thread.join();
        Ok(())
    }
}

fn main(block: &Block<ThreadBlock>, sources: Vec<Source>, inbox: &Receiver<()>) {
    let mut sources: Vec<Option<Source>> = sources.into_iter().map(Some).collect();
    let clock = Clock::process();
    block.heartbeat.claim();
    loop {
        sample(block, &mut sources, clock);
        block.heartbeat.enter(Activity::Idle, clock.ticks());
        if inbox.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
            sample(block, &mut sources, clock);
            block.heartbeat.enter(Activity::Ended, clock.ticks());
            return;
        }
    }
}

/// One sample of each source. One that panics is left out from then on: what it knew stays, and the
/// VM goes on.
fn sample(block: &Block<ThreadBlock>, sources: &mut [Option<Source>], clock: Clock) {
    block.loops.inc();
    // The numbers have names in the black box, so that each source keeps its own.
    for (place, number) in sources.iter_mut().zip(1..) {
        let Some(source) = place else {
            continue;
        };
        let heartbeat = &block.heartbeat;
        heartbeat.set(Activity::Blocked, number, 0, 0, clock.ticks());
        let outcome = catch_unwind(AssertUnwindSafe(|| (source.sample)()));
        if let Err(panic) = &outcome {
            let text = panic_text(panic.as_ref());
            tracing::error!("the watcher's source {} panicked: {text}", source.name);
            *place = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observe::{BlackBox, Meta};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn block() -> (BlackBox, Block<ThreadBlock>) {
        let meta = Meta {
            vm_id: "test".to_owned(),
            version: String::new(),
        };
        let mut black_box = BlackBox::anonymous(1 << 20, &meta).unwrap();
        let block = black_box.section("thread/watcher", &[]).unwrap();
        (black_box, block)
    }

    fn counting(count: &Arc<AtomicU32>, panics: bool) -> Source {
        let count = Arc::clone(count);
        let sample = move || {
            count.fetch_add(1, Ordering::Relaxed);
            assert!(!panics, "on purpose");
        };
        Source {
            name: "test",
            sample: Box::new(sample),
        }
    }

    #[test]
    fn a_first_and_a_last_sample_are_taken_and_a_panic_costs_one_source() {
        let (_black_box, block) = block();
        let (whole, broken) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let sources = vec![counting(&broken, true), counting(&whole, false)];
        let watcher = Watcher::spawn(block, sources).unwrap();
        watcher.stop(Duration::from_secs(10)).unwrap();
        assert!(whole.load(Ordering::Relaxed) >= 2);
        assert_eq!(broken.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_source_that_hangs_is_named_and_holds_nobody_up() {
        let (_black_box, block) = block();
        let (release, held) = channel::<()>();
        let source = Source {
            name: "hangs",
            sample: Box::new(move || {
                let _ = held.recv();
            }),
        };
        let watcher = Watcher::spawn(block, vec![source]).unwrap();
        let late = watcher.stop(Duration::from_millis(50));
        assert_eq!(late, Err("watcher".to_owned()));
        drop(release);
    }
}
