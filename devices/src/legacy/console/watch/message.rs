//! What Linux says when something is wrong, by the words of its source (6.1 to 6.12).
//!
//! The words are looked for where the kernel puts them, at the beginning of a message: after its
//! time stamp if there is one, else at the beginning of the line.

/// Characters of a name that are taken.
const NAME_CHARS: usize = 64;

/// Kinds of messages. The number is the row in the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// The kernel gave up.
    Panic = 0,
    /// A fault inside the kernel.
    Oops = 1,
    /// A CPU has not let others run.
    SoftLockup = 2,
    /// A CPU has had interrupts off.
    HardLockup = 3,
    /// Kernel work waits for a worker.
    WorkqueueLockup = 4,
    /// A CPU or task has held up RCU.
    RcuStall = 5,
    /// A task has waited too long.
    HungTask = 6,
    /// A process was killed for its memory.
    OomKill = 7,
    /// A block device failed.
    IoError = 8,
    /// A file system protects itself.
    ReadOnlyRemount = 9,
    /// The kernel shows where it is.
    CallTrace = 10,
}

/// How many kinds there are.
pub const MESSAGE_KINDS: usize = 11;

impl MessageKind {
    /// All kinds, with their names as labels and in events.
    pub const ALL: [(MessageKind, &'static str); MESSAGE_KINDS] = [
        (MessageKind::Panic, "panic"),
        (MessageKind::Oops, "oops"),
        (MessageKind::SoftLockup, "soft_lockup"),
        (MessageKind::HardLockup, "hard_lockup"),
        (MessageKind::WorkqueueLockup, "workqueue_lockup"),
        (MessageKind::RcuStall, "rcu_stall"),
        (MessageKind::HungTask, "hung_task"),
        (MessageKind::OomKill, "oom_kill"),
        (MessageKind::IoError, "io_error"),
        (MessageKind::ReadOnlyRemount, "read_only_remount"),
        (MessageKind::CallTrace, "call_trace"),
    ];

    /// Its name, as a label and in events.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(kind, _)| *kind == self)
            .map_or("", |(_, name)| name)
    }
}

/// What a message says besides its kind; the guest's own words, of which none can be relied on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The CPU's number.
    pub cpu: Option<u32>,
    /// The task's name.
    pub comm: Option<String>,
    /// The task's number.
    pub pid: Option<u32>,
    /// For how long, in seconds.
    pub seconds: Option<u64>,
    /// The block device.
    pub device: Option<String>,
    /// Where on it, in sectors of 512 bytes.
    pub sector: Option<u64>,
    /// What was asked of it: `READ`, `WRITE`, `FLUSH` ...
    pub operation: Option<String>,
}

/// The message in a line: without level, time stamp and caller, and without what stood in the line
/// before them, such as a prompt.
pub fn message(line: &str) -> &str {
    let stamped = line
        .match_indices('[')
        .find_map(|(at, _)| after_stamp(line.get(at..)?));
    let Some(text) = stamped else {
        return after_level(line).trim_start();
    };
    after_caller(text).unwrap_or(text).trim_start()
}

/// What follows `<4>`.
fn after_level(text: &str) -> &str {
    let digits = text.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    match digits {
        Some((level, rest)) if level.len() <= 3 && number::<u32>(level).is_some() => rest,
        _ => text,
    }
}

/// What follows `[   12.345678]`.
fn after_stamp(text: &str) -> Option<&str> {
    let (seconds, rest) = text.strip_prefix('[')?.split_once('.')?;
    let (fraction, rest) = rest.split_once(']')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(seconds.trim_start_matches(' ')) && fraction.len() == 6 && digits(fraction))
        .then_some(rest)
}

/// What follows `[    T1]` or `[    C0]`.
fn after_caller(text: &str) -> Option<&str> {
    let (caller, rest) = text.strip_prefix('[')?.split_once(']')?;
    let caller = caller.trim_start_matches(' ').strip_prefix(['T', 'C'])?;
    number::<u32>(caller).map(|_| rest)
}

/// What `text`, a [`message`], tells of; `None` for all else that a kernel says.
pub fn kind_of(text: &str) -> Option<MessageKind> {
    use MessageKind as Kind;
    let starts = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    let watchdog = text.strip_prefix("NMI ").unwrap_or(text);
    let watchdog = watchdog.strip_prefix("watchdog: ");
    let info = text.strip_prefix("rcu: ").unwrap_or(text);
    let info = info.strip_prefix("INFO: ").unwrap_or_default();
    if starts(&["Kernel panic - not syncing"]) {
        Some(Kind::Panic)
    } else if watchdog.unwrap_or(text).starts_with("BUG: soft lockup - ") {
        Some(Kind::SoftLockup)
    } else if watchdog.is_some_and(|text| text.contains("hard LOCKUP on cpu ")) {
        Some(Kind::HardLockup)
    } else if starts(&["BUG: workqueue lockup - "]) {
        Some(Kind::WorkqueueLockup)
    } else if info.starts_with("rcu_") && info.contains("stall") {
        Some(Kind::RcuStall)
    } else if info.starts_with("task ") && info.contains(" for more than ") {
        Some(Kind::HungTask)
    } else if starts(&OOPSES) {
        Some(Kind::Oops)
    } else if starts(&OOM_KILLS) {
        Some(Kind::OomKill)
    } else if is_io_error(text) {
        Some(Kind::IoError)
    } else if text.contains("Remounting filesystem read-only") {
        Some(Kind::ReadOnlyRemount)
    } else if starts(&["Call Trace:"]) {
        Some(Kind::CallTrace)
    } else {
        None
    }
}

/// What the kernel begins the account of a fault of its own with.
const OOPSES: [&str; 9] = [
    "BUG: ",
    "Oops",
    "kernel BUG at ",
    "general protection fault",
    "invalid opcode: ",
    "divide error: ",
    "double fault: ",
    "stack segment: ",
    "Internal error: ",
];

const OOM_KILLS: [&str; 3] = [
    "Out of memory: Kill",
    "Memory cgroup out of memory: Kill",
    "oom-kill:",
];

/// `I/O error, dev vda, sector 8 op 0x0:(READ)` and its like.
fn is_io_error(text: &str) -> bool {
    let text = text.strip_prefix("blk_update_request: ").unwrap_or(text);
    let text = text.strip_prefix("print_req_error: ").unwrap_or(text);
    if text.starts_with("Buffer I/O error on dev") {
        return true;
    }
    // `I/O`, `critical target`, `timeout` ...: the status comes first, and is short.
    let status = text.split_once(" error, dev ");
    status.is_some_and(|(status, _)| status.len() <= 40 && !status.contains(':'))
}

impl Facts {
    /// What `text`, a [`message`] of that kind, tells.
    pub fn of(kind: MessageKind, text: &str) -> Facts {
        let mut facts = Facts::default();
        match kind {
            MessageKind::SoftLockup => {
                facts.cpu = number_after(text, "CPU#");
                facts.seconds = number_after(text, "stuck for ");
                let task = text.rsplit_once('[').map(|(_, task)| task);
                facts.task(
                    task.and_then(|task| task.split_once(']'))
                        .map(|task| task.0),
                );
            }
            MessageKind::WorkqueueLockup => {
                facts.cpu = number_after(text, "cpus=");
                facts.seconds = number_after(text, "stuck for ");
            }
            MessageKind::HardLockup => facts.cpu = number_after(text, "LOCKUP on cpu "),
            MessageKind::HungTask => {
                let task = text.split_once("task ").map(|(_, task)| task);
                facts.task(
                    task.and_then(|task| task.split_once(" blocked"))
                        .map(|task| task.0),
                );
                facts.seconds = number_after(text, " for more than ");
            }
            MessageKind::OomKill => facts.killed(text),
            MessageKind::IoError => facts.device(text),
            MessageKind::ReadOnlyRemount => {
                facts.device = between(text, "(", ")").map(name);
            }
            MessageKind::Panic
            | MessageKind::Oops
            | MessageKind::RcuStall
            | MessageKind::CallTrace => {}
        }
        facts
    }

    /// `comm:pid`; a name may have colons itself.
    fn task(&mut self, task: Option<&str>) {
        if let Some((comm, pid)) = task.and_then(|task| task.rsplit_once(':')) {
            self.pid = number(pid);
            self.comm = Some(name(comm));
        }
    }

    fn killed(&mut self, text: &str) {
        if let Some((_, task)) = text.split_once(",task=") {
            if let Some((comm, pid)) = task.rsplit_once(",pid=") {
                self.comm = Some(name(comm));
                self.pid = number_after(pid, "");
            }
            return;
        }
        self.pid = number_after(text, "rocess ");
        let comm = text.split_once('(').map(|(_, comm)| comm);
        // A name may have brackets itself.
        let comm = comm.and_then(|comm| comm.rsplit_once(") total-vm").or(comm.split_once(')')));
        self.comm = comm.map(|(comm, _)| name(comm));
    }

    fn device(&mut self, text: &str) {
        self.device = between(text, "dev ", ",").map(name);
        self.sector = number_after(text, "sector ");
        let operation = text.split_once(" op ").map(|(_, operation)| operation);
        self.operation = operation
            .and_then(|operation| between(operation, "(", ")"))
            .map(name);
    }
}

fn name(text: &str) -> String {
    text.chars().take(NAME_CHARS).collect()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(between, _)| between)
}

/// A number that is all of `text`.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The number that follows `word`.
fn number_after<T: std::str::FromStr>(text: &str, word: &str) -> Option<T> {
    let (_, rest) = text.split_once(word)?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    number(rest.get(..end.unwrap_or(rest.len()))?)
}
