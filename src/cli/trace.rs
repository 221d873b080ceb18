//! `vitrine trace`: a trace of a VM into a file, from its black box or over its API socket.

mod output;
mod socket;

use std::io::{BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use api::vmm::trace::record;
use serde_json::Value;

use super::Failure;
use super::args::TraceArgs;
use super::target::Target;
use output::{Output, Tail};

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
enum TraceFailure {
    #[error("the trace broke off; look whether the VM still runs, and trace again")]
    BrokenOff,
}

/// Writes the trace and says what is in it. A VMM that is asked through its socket makes it itself,
/// with its own permissions; one that does not answer is traced from its black box, as others are.
///
/// # Errors
/// There is no such VM, its black box cannot be read, or the file cannot be written.
pub fn trace(arguments: &TraceArgs) -> Result<(), Failure> {
    let period = Duration::from_millis(arguments.ms);
    let path = Path::new(&arguments.target);
    let mut silence = None;
    if is_socket(path) {
        match socket::ask(path, period) {
            Ok(answer) => {
                return write(arguments, None, |mut out| {
                    answer.copy_to(&mut out).map_err(Failure::failed)?;
                    Ok(out)
                });
            }
            Err(error) => silence = Some(error),
        }
    }
    let target = match (Target::find(path), silence) {
        (Ok(target), None) => target,
        (Ok(target), Some(error)) => {
            eprintln!(
                "{error}; the trace is made from {}",
                target.path().display()
            );
            target
        }
        (Err(_), Some(error)) => return Err(Failure::failed(error)),
        (Err(error), None) => return Err(Failure::misuse(error)),
    };
    let mut source = || target.snapshot().map_err(Into::into);
    write(arguments, Some(target.path()), |out| {
        record(&mut source, period, &|| true, out).map_err(Failure::failed)
    })
}

fn is_socket(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|there| there.file_type().is_socket())
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
