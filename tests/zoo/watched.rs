//! What the watcher sees of a guest is there for each of its threads.

use std::time::Instant;

use crate::harness::Guest;
use crate::{PATIENCE, zoo};

#[test]
fn every_thread_is_seen_by_the_watcher() {
    let guest = Guest::launch(zoo("print=ready cli_hlt"));
    guest.await_words("ready", PATIENCE);
    let mut seen = guest.sampled(PATIENCE);
    for thread in ["vm", "vcpu-0", "watcher", "console"] {
        assert!(seen.number("task", "cpu", thread) > 0, "{thread}");
    }
    // The first look may have come before the kernel was loaded, and the next waits for a thousand
    // times what that took.
    let end = Instant::now() + PATIENCE;
    while seen.number("memory", "sampled", "") < 2 && Instant::now() < end {
        seen = guest.sampled(PATIENCE);
    }
    assert!(seen.number("memory", "resident", "0x0") > 0);
    assert!(guest.stop().seen.number("thread/watcher", "loops", "") >= 4);
}
