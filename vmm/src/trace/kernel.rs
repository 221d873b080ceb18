//! What KVM itself did for a vCPU, from the kernel's tracepoints: exits that never reach the VMM,
//! page faults, interrupts.
//!
//! An exit and the entry after it on the same vCPU are a slice on the vCPU's kernel track.

use std::io::{self, Write};

use observe::clock::monotonic_ns;
use observe::reader::{SectionView, Snapshot};
use observe::trace::format::tracepoint_of;
use observe::trace::{Event, EventFormat, Json, Record, Records, Sample, ThreadEvents, Track};

use super::flights::{TID_LIMIT, order, thread_of, track};
use super::reasons::{self, Isa};
use super::sheet::Sheet;
use super::tracepoints::{ENTRY, EXIT, FAULT, Formats, KernelError, has_thread};

/// vCPUs that are followed.
const MAX_VCPUS: usize = 64;

/// The tracepoints of all vCPUs of a VM.
pub struct Kernel {
    formats: Formats,
    vcpus: Vec<Vcpu>,
    buffer: Vec<u8>,
}

struct Vcpu {
    name: String,
    track: Track,
    order: u64,
    events: ThreadEvents,
    /// The exit whose entry has not come yet.
    open: Option<OpenExit>,
    tally: Tally,
}

/// What was counted of one vCPU.
pub struct Told {
    /// Its thread.
    pub thread: String,
    /// Records that were lost.
    pub lost: u64,
    /// All that is known.
    pub counted: Json,
}

struct OpenExit {
    at_ns: u64,
    name: String,
    args: Vec<(&'static str, Json)>,
}

#[derive(Default)]
struct Tally {
    /// Samples of each tracepoint, in the order of [`Formats::all`].
    seen: [u64; 4],
    /// What the ring told of records that found no place.
    lost: u64,
    /// Times that the kernel held an event back.
    throttled: u64,
    /// Records or pieces of the ring that could not be read.
    broken: u64,
}

impl Kernel {
    /// Opens the tracepoints on the vCPU threads that `snapshot` tells of, and starts them.
    ///
    /// # Errors
    /// [`KernelError`]; nothing is left open.
    pub fn start<W: Write>(
        snapshot: &Snapshot,
        sheet: &mut Sheet<W>,
    ) -> Result<Kernel, KernelError> {
        let formats = Formats::read(sheet)?;
        let ids: Vec<u64> = formats.all().map(|(_, format)| format.id).collect();
        let mut vcpus: Vec<Vcpu> = Vec::new();
        for section in snapshot.of_kind("vcpu") {
            let name = thread_of(section);
            let tid = section.heartbeat("heartbeat").map_or(0, |beat| beat.tid);
            if tid == 0 || vcpus.len() == MAX_VCPUS {
                sheet.lacks(
                    format!("kernel exits of {name}"),
                    "its thread has not started",
                );
                continue;
            }
            vcpus.push(Vcpu::open(section, snapshot.header.pid, tid, &ids)?);
        }
        if vcpus.is_empty() {
            return Err(KernelError::NoVcpus);
        }
        for vcpu in &vcpus {
            let enabled = vcpu.events.enable();
            enabled.map_err(|source| KernelError::Perf { source })?;
        }
        Ok(Kernel {
            formats,
            vcpus,
            buffer: Vec::new(),
        })
    }

    /// Writes what was recorded since the last call.
    ///
    /// # Errors
    /// The file does not take it.
    pub fn take<W: Write>(&mut self, sheet: &mut Sheet<W>) -> io::Result<()> {
        for vcpu in &mut self.vcpus {
            vcpu.events.drain(&mut self.buffer);
            let mut records = Records::new(&self.buffer);
            for record in records.by_ref() {
                match record {
                    Record::Sample(sample) => vcpu.sample(&self.formats, &sample, sheet)?,
                    Record::Lost(lost) => {
                        vcpu.tally.lost = vcpu.tally.lost.saturating_add(lost);
                        // Whether it was entered meanwhile is not known.
                        vcpu.give_up(sheet)?;
                    }
                    Record::Throttled => vcpu.tally.throttled += 1,
                    Record::Other(_) => {}
                }
            }
            vcpu.tally.broken += u64::from(records.is_broken());
        }
        Ok(())
    }

    /// Stops the tracepoints, writes what is left, and gives what was counted of each
    /// vCPU, and when they stopped.
    ///
    /// # Errors
    /// The file does not take it.
    pub fn finish<W: Write>(mut self, sheet: &mut Sheet<W>) -> io::Result<(Vec<Told>, u64)> {
        for vcpu in &self.vcpus {
            if let Err(error) = vcpu.events.disable() {
                let what = format!("the end of {}'s kernel exits", vcpu.name);
                sheet.lacks(what, error.to_string());
            }
        }
        let now_ns = monotonic_ns();
        self.take(sheet)?;
        for vcpu in &mut self.vcpus {
            vcpu.close(now_ns, Some("none yet"), sheet)?;
        }
        let told = self.vcpus.iter().map(|vcpu| vcpu.told(&self.formats));
        Ok((told.collect(), now_ns))
    }
}

impl Vcpu {
    fn open(
        section: &SectionView,
        pid: u64,
        tid: u64,
        tracepoints: &[u64],
    ) -> Result<Vcpu, KernelError> {
        let name = thread_of(section);
        let is_it = has_thread(pid, tid, &name);
        let number = i32::try_from(tid).ok().filter(|_| is_it);
        let Some(number) = number else {
            return Err(KernelError::OtherThreads { pid, tid, name });
        };
        let events = ThreadEvents::open(number, tracepoints);
        let events = events.map_err(|source| KernelError::Perf { source })?;
        let mut track = track(section, pid, 0);
        track.tid = track.tid.saturating_add(TID_LIMIT);
        Ok(Vcpu {
            name,
            track,
            order: order(section).saturating_add(1),
            events,
            open: None,
            tally: Tally::default(),
        })
    }

    fn sample<W: Write>(
        &mut self,
        formats: &Formats,
        sample: &Sample<'_>,
        sheet: &mut Sheet<W>,
    ) -> io::Result<()> {
        let id = tracepoint_of(sample.raw);
        let mut all = formats.all().enumerate();
        let Some((at, (name, format))) = all.find(|(_, (_, format))| Some(format.id) == id) else {
            self.tally.broken += 1;
            return Ok(());
        };
        if self.tally.seen.iter().all(|seen| *seen == 0) {
            let name = format!("{} kernel", self.name);
            sheet.name_track(self.track, &name, self.order)?;
        }
        if let Some(seen) = self.tally.seen.get_mut(at) {
            *seen += 1;
        }
        match name {
            EXIT => {
                self.give_up(sheet)?;
                self.open = Some(exit(format, sample));
                Ok(())
            }
            ENTRY => self.close(sample.time_ns, None, sheet),
            _ => {
                let event = moment(name, format, sample, self.track);
                sheet.event(&event)
            }
        }
    }

    /// Writes the open exit as one that lasted until `end_ns`.
    fn close<W: Write>(
        &mut self,
        end_ns: u64,
        entry: Option<&str>,
        sheet: &mut Sheet<W>,
    ) -> io::Result<()> {
        let Some(mut exit) = self.open.take() else {
            return Ok(());
        };
        exit.args
            .extend(entry.map(|entry| ("entry", Json::text(entry))));
        self.write(exit, Some(end_ns), sheet)
    }

    /// Writes the open exit as a moment: when the guest was entered again is not known.
    fn give_up<W: Write>(&mut self, sheet: &mut Sheet<W>) -> io::Result<()> {
        let Some(mut exit) = self.open.take() else {
            return Ok(());
        };
        exit.args.push(("entry", Json::text("not seen")));
        self.write(exit, None, sheet)
    }

    fn write<W: Write>(
        &self,
        exit: OpenExit,
        end_ns: Option<u64>,
        sheet: &mut Sheet<W>,
    ) -> io::Result<()> {
        sheet.event(&Event {
            track: self.track,
            category: "kvm_exit",
            name: &exit.name,
            start_ns: exit.at_ns,
            duration_ns: end_ns.map(|end| end.saturating_sub(exit.at_ns)),
            args: exit.args,
        })
    }

    /// Name, lost records, and all that was counted.
    fn told(&self, formats: &Formats) -> Told {
        let counts = self.events.counts();
        let (mut rows, mut lost) = (Vec::new(), 0u64);
        for ((name, format), seen) in formats.all().zip(self.tally.seen) {
            let count = counts.iter().find(|count| count.tracepoint == format.id);
            let hits = count.map_or(seen, |count| count.hits);
            lost = lost.saturating_add(hits.saturating_sub(seen));
            let facts = [("hits", Json::Number(hits)), ("seen", Json::Number(seen))];
            let name = name.strip_prefix("kvm:").unwrap_or(name);
            rows.push((name.to_owned(), Json::object(facts)));
        }
        let counted = counts.iter().filter_map(|count| count.lost);
        let lost = lost.max(self.tally.lost).max(counted.sum());
        for (name, number) in [
            ("throttled", self.tally.throttled),
            ("broken", self.tally.broken),
        ] {
            rows.push((name.to_owned(), Json::Number(number)));
        }
        Told {
            thread: self.name.clone(),
            lost,
            counted: Json::Object(rows),
        }
    }
}

fn exit(format: &EventFormat, sample: &Sample<'_>) -> OpenExit {
    let value = |name| format.value(sample.raw, name);
    let reason = value("exit_reason").unwrap_or(u64::MAX);
    let isa = value("isa").and_then(Isa::of);
    let mut args = vec![("reason", Json::Number(reason))];
    for (key, field) in [("rip", "guest_rip"), ("info1", "info1"), ("info2", "info2")] {
        args.extend(value(field).map(|value| (key, Json::hex(value))));
    }
    args.push(("cpu", Json::Number(sample.cpu.into())));
    OpenExit {
        at_ns: sample.time_ns,
        name: reasons::name(isa, reason),
        args,
    }
}

/// A page fault or an interrupt.
fn moment<'a>(
    tracepoint: &str,
    format: &EventFormat,
    sample: &Sample<'_>,
    track: Track,
) -> Event<'a> {
    let value = |name| format.value(sample.raw, name);
    let mut args = Vec::new();
    let (category, name) = if tracepoint == FAULT {
        let fields = [
            ("address", "fault_address"),
            ("error", "error_code"),
            ("rip", "guest_rip"),
        ];
        for (key, field) in fields {
            args.extend(value(field).map(|value| (key, Json::hex(value))));
        }
        ("page_fault", "page fault")
    } else {
        // `irq` before Linux 5.19.
        let vector = value("vector").or_else(|| value("irq"));
        args.extend(vector.map(|vector| ("vector", Json::hex(vector))));
        ("interrupt", "interrupt")
    };
    Event {
        track,
        category,
        name,
        start_ns: sample.time_ns,
        duration_ns: None,
        args,
    }
}
