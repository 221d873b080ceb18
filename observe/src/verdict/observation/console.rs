//! What the guest's kernel complained of on its console. The words are the guest's.

use crate::reader::{SectionView, Snapshot};

/// Characters of a line that are kept.
const LINE_CHARS: usize = 240;

/// Messages of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    any(test, feature = "recording"),
    derive(serde::Serialize, serde::Deserialize),
    serde(default)
)]
pub struct MessageSeen {
    /// What they are about: `panic`, `soft_lockup` ...
    pub kind: String,
    /// How many.
    pub count: u64,
    /// When the last one came.
    pub last_ns: u64,
    /// The last one that is still there; empty if none is.
    pub line: String,
    /// The line after it.
    pub next: String,
}

/// The kinds that were seen at all.
pub(super) fn messages(snapshot: &Snapshot, section: &SectionView) -> Vec<MessageSeen> {
    let number = |field, kind| section.table(field, kind).and_then(|value| value.as_u64());
    let mut seen: Vec<MessageSeen> = section
        .row_names("messages")
        .filter_map(|kind| {
            Some(MessageSeen {
                kind: kind.to_owned(),
                count: number("messages", kind).filter(|count| *count > 0)?,
                last_ns: snapshot.header.clock.monotonic_of(number("last_at", kind)?),
                ..MessageSeen::default()
            })
        })
        .collect();
    if seen.is_empty() {
        return seen;
    }
    let excerpts = section.text("excerpts").unwrap_or_default();
    let excerpts = String::from_utf8_lossy(&excerpts.bytes);
    for message in &mut seen {
        let mut after = "";
        for line in excerpts.lines().rev() {
            if is_about(&message.kind, line) {
                message.line = clean(line);
                message.next = clean(after);
                break;
            }
            after = line;
        }
    }
    seen
}

/// Whether a line of the console is a message of that kind.
fn is_about(kind: &str, line: &str) -> bool {
    let has = |words: &str| line.contains(words);
    match kind {
        "panic" => has("Kernel panic - not syncing"),
        "oops" => OOPSES.iter().any(|words| has(words)) && !has("lockup"),
        "soft_lockup" => has("BUG: soft lockup - "),
        "hard_lockup" => has("hard LOCKUP on cpu "),
        "workqueue_lockup" => has("BUG: workqueue lockup - "),
        "rcu_stall" => has("INFO: rcu_") && has("stall"),
        "hung_task" => has("INFO: task ") && has(" for more than "),
        "oom_kill" => has("ut of memory: Kill"),
        "io_error" => has(" error, dev ") || has("Buffer I/O error on dev"),
        _ => false,
    }
}

/// What the account of a fault of the kernel begins with.
const OOPSES: [&str; 7] = [
    "BUG: ",
    "Oops",
    "kernel BUG at ",
    "general protection fault",
    "invalid opcode: ",
    "divide error: ",
    "double fault: ",
];

/// Fit for a terminal, and short.
fn clean(line: &str) -> String {
    let shown = line.trim().chars().take(LINE_CHARS);
    shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
