//! The threads of this process, as the scheduler sees them.

use std::collections::HashMap;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use super::file::ProcFile;
use super::parse::{lookup, schedstat, stat};
use super::{OTHER, USER_TICK_NS};
use crate::blackbox::{BlackBox, BlackBoxError, Block};
use crate::cell::{Counter, Gauge};
use crate::clock::Clock;
use crate::schema::{Field, Section, Unit};

/// Rows of the table: 127 names and `other`.
pub const TASK_ROWS: usize = 128;

/// Bytes of a thread's name that the kernel keeps.
const COMM_BYTES: usize = 15;

/// The threads of one name, added up over all that ever had it.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TaskRow {
    /// Time on a CPU: the first number of schedstat.
    pub cpu_ns: Counter,
    /// Time runnable but not running, throttled time included: the second.
    pub run_delay_ns: Counter,
    /// Times put on a CPU: the third.
    pub timeslices: Counter,
    /// Time in the guest: `guest_time` of stat, in ticks of 10 ms.
    pub guest_ns: Counter,
    /// Faults that needed no I/O.
    pub minor_faults: Counter,
    /// Faults that needed I/O.
    pub major_faults: Counter,
    /// Context switches because the thread waited.
    pub voluntary_switches: Counter,
    /// Context switches because another took the CPU.
    pub involuntary_switches: Counter,
    /// The kernel's id of the thread; 0 if there is none. Of several, one of them.
    pub tid: Gauge,
    /// Threads that have the name now.
    pub threads: Gauge,
    /// The kernel's letter for what that thread does: `S` asleep, `D` asleep without signals, `T` and
    /// `t` stopped ...; 0 if there is none.
    pub state: Gauge,
}

impl TaskRow {
    /// In the order of [`Thread::read`].
    fn counters(&self) -> [&Counter; NUMBERS] {
        [
            &self.cpu_ns,
            &self.run_delay_ns,
            &self.timeslices,
            &self.guest_ns,
            &self.minor_faults,
            &self.major_faults,
            &self.voluntary_switches,
            &self.involuntary_switches,
        ]
    }
}

/// The section `task`.
#[derive(Debug)]
#[repr(C)]
pub struct TaskBlock {
    /// When it was last sampled.
    pub sampled_at: Gauge,
    /// Threads of which schedstat or status could not be read at the last sample.
    pub missing: Gauge,
    /// Memory of the process that is in the host's memory: VmRSS of status.
    pub resident: Gauge,
    /// Memory of the process that is in the host's swap: VmSwap of status.
    pub swapped: Gauge,
    /// By name.
    pub rows: [TaskRow; TASK_ROWS],
}

const fn column(field: Field) -> Field {
    let offset = field.offset + offset_of!(TaskBlock, rows);
    Field { offset, ..field }.column(TASK_ROWS, size_of::<TaskRow>(), "thread")
}

// SAFETY: repr(C), cells and an array of repr(C) structs of cells only.
#[allow(unsafe_code)]
unsafe impl Section for TaskBlock {
    const KIND: &'static str = "task";
    const INSTANCE: &'static [&'static str] = &[];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("sampled_at", Unit::Ticks, offset_of!(TaskBlock, sampled_at), "When the threads were last looked at."),
        Field::gauge("missing", Unit::None, offset_of!(TaskBlock, missing), "Threads of which schedstat or status could not be read."),
        Field::gauge("resident", Unit::Bytes, offset_of!(TaskBlock, resident), "Memory of the VMM's process in the host's memory, the guest's included; 0 if nothing tells."),
        Field::gauge("swapped", Unit::Bytes, offset_of!(TaskBlock, swapped), "Memory of the VMM's process in the host's swap, the guest's included; 0 if nothing tells."),
        column(Field::counter("cpu", Unit::Nanoseconds, offset_of!(TaskRow, cpu_ns), "Time on a CPU, the guest's included.")),
        column(Field::counter("run_delay", Unit::Nanoseconds, offset_of!(TaskRow, run_delay_ns), "Time that the thread could run and had no CPU, throttled time included.")),
        column(Field::counter("timeslices", Unit::None, offset_of!(TaskRow, timeslices), "Times that the thread was put on a CPU.")),
        column(Field::counter("guest", Unit::Nanoseconds, offset_of!(TaskRow, guest_ns), "Time in the guest, to 10 ms.")),
        column(Field::counter("minor_faults", Unit::None, offset_of!(TaskRow, minor_faults), "Page faults that needed no I/O.")),
        column(Field::counter("major_faults", Unit::None, offset_of!(TaskRow, major_faults), "Page faults that needed I/O.")),
        column(Field::counter("voluntary_switches", Unit::None, offset_of!(TaskRow, voluntary_switches), "Context switches because the thread waited.")),
        column(Field::counter("involuntary_switches", Unit::None, offset_of!(TaskRow, involuntary_switches), "Context switches because another took the CPU.")),
        column(Field::gauge("tid", Unit::None, offset_of!(TaskRow, tid), "The kernel's id of the thread; 0 if there is none.")),
        column(Field::gauge("threads", Unit::None, offset_of!(TaskRow, threads), "Threads of that name.")),
        column(Field::gauge("state", Unit::None, offset_of!(TaskRow, state), "The kernel's letter for what the thread does, as a number: 82 runs, 83 asleep, 68 asleep without signals, 84 and 116 stopped; 0 if there is none.")),
    ];
}

/// Numbers of a thread that are followed.
const NUMBERS: usize = 8;

/// A reading of one thread.
struct Reading {
    row: usize,
    numbers: [u64; NUMBERS],
    whole: bool,
    /// Memory of the process, which every thread tells.
    resident: Option<u64>,
    swapped: Option<u64>,
    /// The kernel's letter for what it does.
    state: u8,
}

/// A thread that is there.
struct Thread {
    stat: ProcFile,
    schedstat: ProcFile,
    status: ProcFile,
    last: [u64; NUMBERS],
    seen: u64,
}

impl Thread {
    fn new(folder: &Path) -> Self {
        Thread {
            stat: ProcFile::new(folder.join("stat")),
            schedstat: ProcFile::new(folder.join("schedstat")),
            status: ProcFile::new(folder.join("status")),
            last: [0; NUMBERS],
            seen: 0,
        }
    }

    /// The numbers now, in the order of [`TaskRow::counters`]; `None` if the thread is gone.
    fn read(&mut self, names: &[String], buffer: &mut Vec<u8>) -> Option<Reading> {
        let mut numbers = self.last;
        let [
            cpu,
            delay,
            slices,
            guest,
            minor,
            major,
            voluntary,
            involuntary,
        ] = &mut numbers;
        let text = self.stat.text(buffer)?;
        let told = stat(&text)?;
        let other = names.len().saturating_sub(1);
        let row = names.iter().position(|name| name == told.comm);
        let row = row.unwrap_or(other);
        let state = told.state;
        *minor = told.minor_faults;
        *major = told.major_faults;
        *guest = told.guest_ticks.saturating_mul(USER_TICK_NS);
        let cpu_ticks = told.cpu_ticks;
        let text = self.schedstat.text(buffer);
        let scheduled = text.and_then(|text| schedstat(&text));
        if let Some(scheduled) = scheduled {
            [*cpu, *delay, *slices] = scheduled;
        } else {
            *cpu = cpu_ticks.saturating_mul(USER_TICK_NS);
        }
        let keys = [
            "VmRSS",
            "VmSwap",
            "voluntary_ctxt_switches",
            "nonvoluntary_ctxt_switches",
        ];
        let text = self.status.text(buffer);
        let [resident, swapped, switched @ ..] = text.map_or([None; 4], |text| lookup(&text, keys));
        if let [Some(of_its_own), Some(forced)] = switched {
            [*voluntary, *involuntary] = [of_its_own, forced];
        }
        Some(Reading {
            row,
            numbers,
            whole: scheduled.is_some() && switched[0].is_some(),
            resident,
            swapped,
            state,
        })
    }
}

/// Samples every thread of this process into the section `task`.
pub struct TaskSampler {
    block: Block<TaskBlock>,
    tasks: PathBuf,
    /// The rows' names as the kernel cuts them; the last one is `other`.
    names: Vec<String>,
    threads: HashMap<u64, Thread>,
    round: u64,
    buffer: Vec<u8>,
}

impl TaskSampler {
    /// Places the section `task` with a row for each thread name in `names`, as far as there are
    /// rows, and the row `other` for threads of other names. The kernel keeps 15 bytes of a name:
    /// of two names that begin with the same 15 bytes the first has the numbers.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn new(black_box: &mut BlackBox, names: &[String]) -> Result<Self, BlackBoxError> {
        Self::in_folder(black_box, names, PathBuf::from("/proc/self/task"))
    }

    pub(super) fn in_folder(
        black_box: &mut BlackBox,
        names: &[String],
        tasks: PathBuf,
    ) -> Result<Self, BlackBoxError> {
        let other = [OTHER.to_owned()];
        let rows = names.iter().take(TASK_ROWS - 1).chain(&other);
        let rows: Vec<String> = rows.cloned().collect();
        let block = black_box.section(TaskBlock::KIND, &[("thread", &rows)])?;
        Ok(TaskSampler {
            block,
            tasks,
            names: rows.iter().map(|name| cut(name)).collect(),
            threads: HashMap::new(),
            round: 0,
            buffer: Vec::new(),
        })
    }

    /// The row of the thread of that name; that of all others if it has none.
    pub fn row(&self, name: &str) -> usize {
        let name = cut(name);
        let row = self.names.iter().position(|known| *known == name);
        row.unwrap_or(self.names.len().saturating_sub(1))
    }

    /// Looks at all threads: four system calls and more for each. What a thread did after its last
    /// sample and before its end is not seen. Called by one thread alone.
    pub fn sample(&mut self) {
        self.round = self.round.wrapping_add(1);
        let mut live = [(0u64, 0u64, 0u8); TASK_ROWS];
        let (mut missing, mut resident, mut swapped) = (0, 0, 0);
        let entries = std::fs::read_dir(&self.tasks).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Some(reading) = self.thread(tid) else {
                continue;
            };
            missing += u64::from(!reading.whole);
            resident = reading.resident.unwrap_or(resident);
            swapped = reading.swapped.unwrap_or(swapped);
            if let Some((tid_now, threads, state)) = live.get_mut(reading.row) {
                (*tid_now, *state) = (tid, reading.state);
                *threads += 1;
            }
        }
        let round = self.round;
        self.threads.retain(|_, thread| thread.seen == round);
        for (row, (tid, threads, state)) in self.block.rows.iter().zip(live) {
            row.tid.set(tid);
            row.state.set(u64::from(state));
            row.threads.set(threads);
        }
        self.block.missing.set(missing);
        self.block.resident.set(resident);
        self.block.swapped.set(swapped);
        self.block.sampled_at.set(Clock::process().ticks());
    }

    /// Reads one thread and counts what is new.
    fn thread(&mut self, tid: u64) -> Option<Reading> {
        let folder = || self.tasks.join(tid.to_string());
        let (names, buffer) = (&self.names, &mut self.buffer);
        let thread = self
            .threads
            .entry(tid)
            .or_insert_with(|| Thread::new(&folder()));
        let reading = match thread.read(names, buffer) {
            Some(reading) => reading,
            None => {
                // Gone, and perhaps another one has its number: open descriptors stay with the old.
                *thread = Thread::new(&folder());
                thread.read(names, buffer)?
            }
        };
        let cells = self.block.rows.get(reading.row)?.counters();
        for ((cell, now), last) in cells.into_iter().zip(reading.numbers).zip(thread.last) {
            cell.add(now.saturating_sub(last));
        }
        thread.last = reading.numbers;
        thread.seen = self.round;
        Some(reading)
    }
}

/// The name as the kernel gives it back, and as [`ProcFile`] then reads it.
fn cut(name: &str) -> String {
    let bytes = name.as_bytes();
    let kept = bytes.get(..COMM_BYTES).unwrap_or(bytes);
    String::from_utf8_lossy(kept).into_owned()
}
