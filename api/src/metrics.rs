//! GET /metrics, as OpenMetrics or, for who does not ask for that, [`plain`]: what is counted of this process, and, once a VM runs, all that its black box has.

pub mod plain;

use std::cell::Cell;
use std::fmt::Write;
use std::fs;

use crate::VERSION;
use crate::http::Status;
use crate::machine::{RestartCause, Runs};

/// OpenMetrics.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Ends every OpenMetrics text.
const END: &str = "# EOF\n";

/// Requests answered, by status; written by the API's thread alone.
#[derive(Debug, Default)]
pub struct RequestCounts {
    ok: Cell<u64>,
    no_content: Cell<u64>,
    bad_request: Cell<u64>,
    unavailable: Cell<u64>,
}

impl RequestCounts {
    /// Counts one answer.
    pub fn count(&self, status: Status) {
        let cell = match status {
            Status::Ok => &self.ok,
            Status::NoContent => &self.no_content,
            Status::BadRequest => &self.bad_request,
            Status::Unavailable => &self.unavailable,
        };
        cell.set(cell.get() + 1);
    }
}

/// The whole text: this process's families, then the machine's, with one end.
pub fn render(
    id: &str,
    counts: &RequestCounts,
    dropped: u64,
    runs: Runs,
    machine: Option<&str>,
) -> String {
    let mut text = Families {
        text: String::new(),
        id,
    };
    let version = [("version", VERSION)];
    // A black box has these two, word for word.
    if machine.is_none() {
        let help = "The VMM's version.";
        text.family("vitrine_build", "info", help, &[(&version, "1".into())]);
        let help = "1 while the VMM lives, as far as its black box tells.";
        text.plain("vitrine_up", "gauge", help, "1".into());
    }
    process(&mut text);
    let answers = [
        (Status::Ok, "200", &counts.ok),
        (Status::NoContent, "204", &counts.no_content),
        (Status::BadRequest, "400", &counts.bad_request),
        (Status::Unavailable, "503", &counts.unavailable),
    ];
    let labels = answers.each_ref().map(|(_, code, _)| [("code", *code)]);
    let samples: Vec<Sample<'_>> = answers
        .iter()
        .zip(&labels)
        .map(|((_, _, cell), label)| (&label[..], cell.get().to_string()))
        .collect();
    text.family(
        "vitrine_api_requests",
        "counter",
        "API requests by status.",
        &samples,
    );
    let dropped = [(&[][..], dropped.to_string())];
    text.family(
        "vitrine_log_lines_dropped",
        "counter",
        "Log lines not taken in time.",
        &dropped,
    );
    of_runs(&mut text, runs);
    let mut text = text.text;
    if let Some(machine) = machine {
        text.push_str(machine.strip_suffix(END).unwrap_or(machine));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text.push_str(END);
    text
}

type Sample<'a> = (&'a [(&'a str, &'a str)], String);

struct Families<'a> {
    text: String,
    id: &'a str,
}

impl Families<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[Sample<'_>]) {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        for (labels, value) in samples {
            let mut all = format!("vm=\"{}\"", self.id);
            for (label, value) in *labels {
                let _ = write!(all, ",{label}=\"{value}\"");
            }
            let _ = writeln!(self.text, "{name}{suffix}{{{all}}} {value}");
        }
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, value: String) {
        self.family(name, kind, help, &[(&[], value)]);
    }
}

/// What the counters of one run do not tell: how many there were.
fn of_runs(text: &mut Families<'_>, runs: Runs) {
    let number = runs.number.to_string();
    let help = "Times that the VM was started in this process.";
    text.plain("vitrine_runs", "counter", help, number.clone());
    let help = "Number of the VM's run, from 1; 0 before the start. The counters of the VM are those of this run.";
    text.plain("vitrine_run", "gauge", help, number);
    let seconds = format!("{}.{:03}", runs.began_ms / 1000, runs.began_ms % 1000);
    let help = "When the run was begun, in seconds since 1970; 0 before the start.";
    text.plain("vitrine_run_began_at_seconds", "gauge", help, seconds);
    let labels = RestartCause::ALL.map(|cause| [("cause", cause.name())]);
    let counts = labels.iter().zip(runs.restarts);
    let samples: Vec<Sample<'_>> = counts
        .map(|(label, count)| (&label[..], count.to_string()))
        .collect();
    let help = "Times that the VM was started again, by why.";
    text.family("vitrine_restarts", "counter", help, &samples);
}

/// What /proc says of this process; what it does not say is left out.
fn process(text: &mut Families<'_>) {
    if let Some((user, system)) = cpu_ticks() {
        let hundredths = (user + system) * 100 / ticks_per_second();
        let seconds = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        let help = "CPU time of all threads, the guest's time included.";
        text.plain("vitrine_process_cpu_seconds", "counter", help, seconds);
    }
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory of the process, the guest's included.";
        text.plain(
            "vitrine_process_resident_memory_bytes",
            "gauge",
            help,
            bytes.to_string(),
        );
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        let help = "Open file descriptors.";
        text.plain(
            "vitrine_process_open_fds",
            "gauge",
            help,
            entries.count().to_string(),
        );
    }
}

/// User and system time; the name before them may hold anything but ends with the last bracket.
fn cpu_ticks() -> Option<(u64, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[allow(unsafe_code)]
fn ticks_per_second() -> u64 {
    // SAFETY: takes a number and gives one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::observe::openmetrics;
    use vmm::observe::reader::Reader;
    use vmm::observe::{BlackBox, Meta};

    /// The lines of the families that are there with and without a machine.
    fn always(text: &str) -> Vec<String> {
        let family = |line: &&str| line.contains("vitrine_build") || line.contains("vitrine_up");
        text.lines().filter(family).map(str::to_owned).collect()
    }

    #[test]
    fn what_is_there_before_the_start_stays_the_same_after_it() {
        let meta = Meta {
            vm_id: "x".into(),
            version: VERSION.into(),
        };
        let black_box = BlackBox::anonymous(0, &meta).unwrap();
        let reader = Reader::from_file(black_box.file().unwrap(), "test".into()).unwrap();
        let mut machine = String::new();
        openmetrics::render(&reader.snapshot().unwrap(), &mut machine);
        let counts = RequestCounts::default();
        let before = always(&render("x", &counts, 0, Runs::default(), None));
        assert_eq!(before.len(), 6, "{before:?}");
        assert_eq!(
            before,
            always(&render("x", &counts, 0, Runs::default(), Some(&machine)))
        );
        assert!(before.contains(&"# TYPE vitrine_build info".to_owned()));
    }

    #[test]
    fn there_is_one_end_and_every_sample_names_the_vm() {
        let counts = RequestCounts::default();
        counts.count(Status::Ok);
        for machine in [
            None,
            Some("# TYPE a gauge\na{vm=\"x\"} 1\n# EOF\n"),
            Some("a{vm=\"x\"} 1"),
        ] {
            let text = render("x", &counts, 7, Runs::default(), machine);
            assert!(text.ends_with("\n# EOF\n"));
            assert_eq!(text.matches("# EOF").count(), 1);
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                assert!(line.contains("{vm=\"x\""), "{line}");
            }
            assert!(text.contains("vitrine_api_requests_total{vm=\"x\",code=\"200\"} 1\n"));
            assert!(text.contains("vitrine_log_lines_dropped_total{vm=\"x\"} 7\n"));
            assert!(text.contains("vitrine_process_cpu_seconds_total"));
        }
    }
}
