//! A trace of a VM: what its flight rings hold, and for a bounded time what KVM does for its
//! vCPUs in the kernel, as a file that ui.perfetto.dev opens. See `docs/trace.md`.
//!
//! [`record`] runs in the VMM or in any other process that may open the VM's black box, on a
//! thread that it has for itself: it sleeps. It asks nothing of the VM's threads. Memory is
//! bounded, for events are written as they come; who is slow to take them loses some, and the
//! trace says how many.

mod flights;
mod kernel;
mod reasons;
mod sheet;
mod tracepoints;

use std::error::Error;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use observe::reader::{Ended, Snapshot};
use observe::trace::Json;

use flights::Flights;
use kernel::Kernel;
pub use sheet::MAX_EVENTS;
use sheet::Sheet;

/// Milliseconds that a trace may take.
pub const PERIOD_MS: RangeInclusive<u64> = 1..=60_000;
/// Milliseconds that it takes if nobody says.
pub const DEFAULT_PERIOD_MS: u64 = 1000;

/// Between two snapshots, at least and at most. A ring of 512 events that is written to all the
/// time at full speed overruns even so; what is lost then is counted.
const SHORTEST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(20);
/// Snapshots come closer together when a ring has more news than this in one, and less close when
/// it has less than a quarter of that.
const MANY_NEWS: u64 = 200;

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The black box cannot be read.
    #[error("there is nothing to trace: {0}")]
    BlackBox(Box<dyn Error + Send + Sync>),
    /// The trace cannot be written.
    #[error("the trace cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Where snapshots come from.
pub type Source<'a> = dyn FnMut() -> Result<Snapshot, Box<dyn Error + Send + Sync>> + 'a;

/// Writes a trace of the VM whose black box `source` reads, for `period` if it lives; ends early
/// when the VM ends or `wanted` says no. Gives `out` back when all is written.
///
/// # Errors
/// [`TraceError`]. What is merely missing is told in the trace.
pub fn record<W: Write>(
    source: &mut Source<'_>,
    period: Duration,
    wanted: &dyn Fn() -> bool,
    out: W,
) -> Result<W, TraceError> {
    let snapshot = source().map_err(TraceError::BlackBox)?;
    let header = &snapshot.header;
    let name = format!("vitrine {}", header.vm_id);
    let mut trace = Trace {
        sheet: Sheet::begin(out, header.pid, &name)?,
        flights: Flights::default(),
        kernel: None,
    };
    let from_ns = snapshot.now_monotonic_ns;
    let last = if lives(&snapshot) {
        match Kernel::start(&snapshot, &mut trace.sheet) {
            Ok(kernel) => trace.kernel = Some(kernel),
            Err(error) => trace.sheet.lacks("kernel exits", error.to_string()),
        }
        trace.flights.take(&snapshot, &mut trace.sheet)?;
        trace.follow(source, snapshot, Instant::now() + period, wanted)?
    } else {
        let reason = "the VM has ended, and the kernel keeps none; trace one that runs";
        trace.sheet.lacks("kernel exits", reason);
        trace.flights.take(&snapshot, &mut trace.sheet)?;
        snapshot
    };
    trace.finish(&last, from_ns)
}

/// Whether the VM may still do something.
fn lives(snapshot: &Snapshot) -> bool {
    snapshot.writer_alive == Some(true) && snapshot.header.end == Ended::Running
}

struct Trace<W: Write> {
    sheet: Sheet<W>,
    flights: Flights,
    kernel: Option<Kernel>,
}

impl<W: Write> Trace<W> {
    /// Follows the VM; gives the last snapshot.
    fn follow(
        &mut self,
        source: &mut Source<'_>,
        first: Snapshot,
        until: Instant,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Snapshot, TraceError> {
        let (mut last, mut rest) = (first, SHORTEST_REST);
        while lives(&last) && wanted() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(rest.min(left));
            let begun = Instant::now();
            match source() {
                Ok(snapshot) => last = snapshot,
                Err(error) => {
                    self.sheet
                        .lacks("the end of the flight rings", error.to_string());
                    break;
                }
            }
            let busiest = self.flights.take(&last, &mut self.sheet)?;
            if let Some(kernel) = &mut self.kernel {
                kernel.take(&mut self.sheet)?;
            }
            if busiest > MANY_NEWS {
                rest /= 2;
            } else if busiest < MANY_NEWS / 4 {
                rest *= 2;
            }
            // At most half of a CPU is used.
            rest = rest.max(begun.elapsed()).clamp(SHORTEST_REST, LONGEST_REST);
        }
        Ok(last)
    }

    fn finish(mut self, last: &Snapshot, from_ns: u64) -> Result<W, TraceError> {
        let (counted, now_ns) = match self.kernel.take() {
            Some(kernel) => kernel.finish(&mut self.sheet)?,
            None => (Vec::new(), last.now_monotonic_ns),
        };
        if last.truncated {
            let reason = "the black box is cut short or larger than is read; its rest is not told";
            self.sheet.lacks("a part of the black box", reason);
        }
        let mut lost = self.flights.lost;
        lost.retain(|_, lost| *lost > 0);
        let flights = lost
            .into_iter()
            .map(|(thread, lost)| (thread, Json::Number(lost)));
        let flights = Json::object(flights);
        let overrun = counted.iter().filter(|told| told.lost > 0);
        let overrun = overrun.map(|told| (told.thread.clone(), Json::Number(told.lost)));
        let overrun = Json::object(overrun);
        let counted = counted.into_iter().map(|told| (told.thread, told.counted));
        let header = &last.header;
        let facts = [
            ("vm", Json::text(&*header.vm_id)),
            ("version", Json::text(&*header.version)),
            ("clock", Json::text("CLOCK_MONOTONIC")),
            ("boot_id", Json::text(&*header.boot_id)),
            ("alive", last.writer_alive.map_or(Json::Null, Json::Bool)),
            ("from_ns", Json::Number(from_ns)),
            ("to_ns", Json::Number(now_ns)),
            (
                "lost",
                Json::object([("flight", flights), ("kernel", overrun)]),
            ),
            ("kernel", Json::object(counted)),
        ];
        let facts = facts.map(|(key, value)| (key.to_owned(), value));
        Ok(self.sheet.finish(facts.into())?)
    }
}

#[cfg(test)]
mod tests;
