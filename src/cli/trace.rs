//! `vitrine trace`: a trace of a VM into a file, from its black box or over its API socket.

mod output;
mod socket;

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::vmm::observe::reader::Reader;
use api::vmm::trace::record;
use serde_json::Value;

use super::args::TraceArgs;
use super::{Failure, black_box};
use output::{Output, Tail};

/// What is traced.
enum Target {
    /// A black box: it is read here.
    BlackBox(PathBuf),
    /// A VM's API socket: the VMM makes the trace.
    Socket(PathBuf),
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
enum TraceFailure {
    #[error(
        "there is no file and no VM {0}; give a black box, an API socket or the id of a VM whose \
         black box is in its default place"
    )]
    NoTarget(String),
    #[error("the trace broke off; look whether the VM still runs, and trace again")]
    BrokenOff,
}

/// Writes the trace and says what is in it.
///
/// # Errors
/// There is no such VM, its black box cannot be read, or the file cannot be written.
pub fn trace(arguments: &TraceArgs) -> Result<(), Failure> {
    let period = Duration::from_millis(arguments.ms);
    match resolve(&arguments.target)? {
        Target::BlackBox(path) => {
            let reader = Reader::open(&path).map_err(Failure::misuse)?;
            let mut source = || reader.snapshot().map_err(Into::into);
            write(arguments, Some(&path), |out| {
                record(&mut source, period, &|| true, out).map_err(Failure::failed)
            })
        }
        Target::Socket(path) => {
            let answer = socket::ask(&path, period).map_err(Failure::failed)?;
            write(arguments, None, |mut out| {
                answer.copy_to(&mut out).map_err(Failure::failed)?;
                Ok(out)
            })
        }
    }
}

/// Opens the output, has `make` write into it, and says what came of it.
fn write(
    arguments: &TraceArgs,
    black_box: Option<&Path>,
    make: impl FnOnce(BufWriter<Tail>) -> Result<BufWriter<Tail>, Failure>,
) -> Result<(), Failure> {
    let output = Output::open(&arguments.output, black_box).map_err(Failure::misuse)?;
    let made = make(BufWriter::new(Tail::new(output))).and_then(|mut out| {
        out.flush().map_err(Failure::failed)?;
        let whole = out.get_ref().kept().ends_with(b"\n}\n");
        if whole {
            Ok(out)
        } else {
            Err(Failure::failed(TraceFailure::BrokenOff))
        }
    });
    match made {
        Ok(out) => {
            tell(out.get_ref().kept(), &arguments.output);
            Ok(())
        }
        Err(failure) => {
            output::remove(&arguments.output);
            Err(failure)
        }
    }
}

fn resolve(target: &OsStr) -> Result<Target, Failure> {
    let path = Path::new(target);
    if let Ok(metadata) = path.metadata() {
        let path = path.to_owned();
        let is_socket = metadata.file_type().is_socket();
        return Ok(if is_socket {
            Target::Socket(path)
        } else {
            Target::BlackBox(path)
        });
    }
    let name = format!("{}.blackbox", target.display());
    let folders = [black_box::default_folder(), PathBuf::from("/run/vitrine")];
    let is_id = !name.contains('/');
    let mut paths = folders.into_iter().map(|folder| folder.join(&name));
    let found = paths.find(|path| is_id && path.exists());
    let missing = || TraceFailure::NoTarget(target.display().to_string());
    found
        .map(Target::BlackBox)
        .ok_or_else(|| Failure::misuse(missing()))
}

/// Says on standard error what the trace has and what not, from its last lines.
fn tell(end: &[u8], path: &Path) {
    let text = String::from_utf8_lossy(end);
    let data = text.rsplit_once("\n\"otherData\":").map(|(_, data)| data);
    let data = data.and_then(|data| data.trim_end().strip_suffix('}'));
    let facts: Option<Value> = data.and_then(|data| serde_json::from_str(data).ok());
    for line in facts.iter().flat_map(lines) {
        eprintln!("{}", line.replace(char::is_control, "?"));
    }
    if path != Path::new("-") {
        eprintln!("open {} at https://ui.perfetto.dev", path.display());
    }
}

/// What `otherData` says, for people.
fn lines(facts: &Value) -> Vec<String> {
    let of = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let events = of(&facts["events"]);
    let kinds: Vec<_> = events
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let kinds = if kinds.is_empty() {
        "none".to_owned()
    } else {
        kinds.join(", ")
    };
    let vm = facts["vm"].as_str().unwrap_or("?");
    let mut lines = vec![format!("{vm}: events: {kinds}")];
    for (ring, threads) in of(&facts["lost"]) {
        for (thread, count) in of(&threads) {
            lines.push(format!("lost: {count} {ring} events of {thread}"));
        }
    }
    for missing in facts["missing"].as_array().into_iter().flatten() {
        let text = |key: &str| missing[key].as_str().unwrap_or("?");
        lines.push(format!("missing: {}: {}", text("what"), text("reason")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_summary_tells_counts_losses_and_what_is_missing() {
        let facts = json!({
            "vm": "web-1",
            "events": {"device": 2, "user_exit": 3},
            "lost": {"flight": {"vcpu-0": 9}, "kernel": {}},
            "missing": [{"what": "kernel exits", "reason": "no tracefs; mount it"}],
        });
        let expected = [
            "web-1: events: 2 device, 3 user_exit",
            "lost: 9 flight events of vcpu-0",
            "missing: kernel exits: no tracefs; mount it",
        ];
        assert_eq!(lines(&facts), expected);
        assert_eq!(lines(&json!({})), ["?: events: none"]);
    }
}
