//! Writes Chrome's JSON trace format, which ui.perfetto.dev and chrome://tracing open.
//!
//! Events are written as they come, each on a line of its own: nothing is kept. The format's
//! description is "Trace Event Format" of the Chromium project: `X` is an event with a duration,
//! `i` one without, `M` names processes and threads; `ts` and `dur` are in microseconds, here
//! with three decimals.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::json::{self, Json};

/// Where an event is shown: a thread of a process, or what is to look like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    /// The process.
    pub pid: u64,
    /// The thread.
    pub tid: u64,
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Where.
    pub track: Track,
    /// Its kind, by which viewers filter.
    pub category: &'static str,
    /// What is written on it.
    pub name: &'a str,
    /// When it began, in nanoseconds.
    pub start_ns: u64,
    /// How long it took; `None` for a moment.
    pub duration_ns: Option<u64>,
    /// What is shown of it beside.
    pub args: Vec<(&'static str, Json)>,
}

/// A trace that is being written.
pub struct ChromeWriter<W: Write> {
    out: W,
    line: String,
    first: bool,
}

impl<W: Write> ChromeWriter<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn begin(mut out: W) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        Ok(ChromeWriter {
            out,
            line: String::new(),
            first: true,
        })
    }

    /// Names a process.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn name_process(&mut self, pid: u64, name: &str) -> io::Result<()> {
        let track = Track { pid, tid: 0 };
        self.metadata(track, "process_name", "name", &Json::text(name))
    }

    /// Names a track. Viewers show those with a lower `order` first.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn name_track(&mut self, track: Track, name: &str, order: u64) -> io::Result<()> {
        self.metadata(track, "thread_name", "name", &Json::text(name))?;
        let order = Json::Number(order);
        self.metadata(track, "thread_sort_index", "sort_index", &order)
    }

    fn metadata(&mut self, track: Track, name: &str, key: &str, value: &Json) -> io::Result<()> {
        self.head('M', track, name, 0);
        self.line.push_str(",\"args\":");
        json::object([(key, value)].into_iter(), &mut self.line);
        self.end_event()
    }

    /// Writes an event.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let phase = if event.duration_ns.is_some() {
            'X'
        } else {
            'i'
        };
        self.head(phase, event.track, event.name, event.start_ns);
        match event.duration_ns {
            Some(duration_ns) => {
                self.line.push_str(",\"dur\":");
                microseconds(duration_ns, &mut self.line);
            }
            None => self.line.push_str(",\"s\":\"t\""),
        }
        self.line.push_str(",\"cat\":");
        json::quote(event.category, &mut self.line);
        self.line.push_str(",\"args\":");
        let args = event.args.iter().map(|(key, value)| (*key, value));
        json::object(args, &mut self.line);
        self.end_event()
    }

    fn head(&mut self, phase: char, track: Track, name: &str, start_ns: u64) {
        let Track { pid, tid } = track;
        self.line.clear();
        self.line.push_str(if self.first { "\n" } else { ",\n" });
        self.first = false;
        let _ = write!(
            self.line,
            "{{\"ph\":\"{phase}\",\"pid\":{pid},\"tid\":{tid},\"ts\":"
        );
        microseconds(start_ns, &mut self.line);
        self.line.push_str(",\"name\":");
        json::quote(name, &mut self.line);
    }

    fn end_event(&mut self) -> io::Result<()> {
        self.line.push('}');
        self.out.write_all(self.line.as_bytes())
    }

    /// Ends the trace with what is to be known of it, which is the last line but one.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn finish(mut self, other_data: &Json) -> io::Result<W> {
        self.line.clear();
        self.line.push_str("\n],\n\"otherData\":");
        other_data.write(&mut self.line);
        self.line.push_str("\n}\n");
        self.out.write_all(self.line.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn microseconds(ns: u64, out: &mut String) {
    let _ = write!(out, "{}.{:03}", ns / 1000, ns % 1000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_written_to_the_byte() {
        let mut trace = ChromeWriter::begin(Vec::new()).unwrap();
        let track = Track { pid: 7, tid: 8 };
        trace.name_process(7, "vm \"a\"").unwrap();
        trace.name_track(track, "vcpu-0", 3).unwrap();
        let mut event = Event {
            track,
            category: "exit",
            name: "io_out",
            start_ns: 1_002_003,
            duration_ns: Some(40),
            args: vec![("port", Json::hex(0x80))],
        };
        trace.event(&event).unwrap();
        (event.duration_ns, event.args) = (None, Vec::new());
        trace.event(&event).unwrap();
        let bytes = trace
            .finish(&Json::object([("vm", Json::text("a"))]))
            .unwrap();
        let expected = r#"{"displayTimeUnit":"ns","traceEvents":[
{"ph":"M","pid":7,"tid":0,"ts":0.000,"name":"process_name","args":{"name":"vm \"a\""}},
{"ph":"M","pid":7,"tid":8,"ts":0.000,"name":"thread_name","args":{"name":"vcpu-0"}},
{"ph":"M","pid":7,"tid":8,"ts":0.000,"name":"thread_sort_index","args":{"sort_index":3}},
{"ph":"X","pid":7,"tid":8,"ts":1002.003,"name":"io_out","dur":0.040,"cat":"exit","args":{"port":"0x80"}},
{"ph":"i","pid":7,"tid":8,"ts":1002.003,"name":"io_out","s":"t","cat":"exit","args":{}}
],
"otherData":{"vm":"a"}
}
"#;
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
