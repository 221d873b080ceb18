//! `vitrine report`.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use api::vmm::observe::reader::{Ended, Reader, Snapshot};
use api::vmm::observe::report::format::{clean, date};
use api::vmm::observe::report::{Options, State, render, render_html};

use super::args::ReportArgs;
use super::target::Target;
use super::{FAILED, FINE, Failure, output};

/// Tells all that is known of a VM; gives the exit status.
///
/// # Errors
/// There is no such VM, or the report cannot be written.
pub fn report(arguments: &ReportArgs) -> Result<u8, Failure> {
    let target = Target::find(&arguments.target).map_err(Failure::misuse)?;
    let snapshot = target.snapshot().map_err(Failure::misuse)?;
    let options = Options {
        events: arguments.events,
        all: arguments.all,
    };
    match &arguments.output {
        None => {
            let text = render(&snapshot, options) + &earlier_runs(target.path(), &snapshot);
            let _ = output::print(&text)?;
        }
        Some(path) => {
            let is_page = path
                .extension()
                .is_some_and(|extension| extension == OsStr::new("html"));
            let text = if is_page {
                render_html(&snapshot, options)
            } else {
                render(&snapshot, options) + &earlier_runs(target.path(), &snapshot)
            };
            output::write(path, &text)?;
        }
    }
    let is_bad = State::of(&snapshot).is_bad();
    Ok(if is_bad { FAILED } else { FINE })
}

/// The black boxes of earlier runs of this VM, which lie beside its own; "" without any.
fn earlier_runs(path: &Path, snapshot: &Snapshot) -> String {
    let mut runs: Vec<(u64, String)> = Vec::new();
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let entries = fs::read_dir(folder.unwrap_or(Path::new(".")));
    for entry in entries.into_iter().flatten().flatten() {
        let there = entry.path();
        let Some(run) = number(path, &there) else {
            continue;
        };
        let Ok(earlier) = Reader::open(&there).and_then(|reader| reader.snapshot()) else {
            continue;
        };
        let (known, header) = (&snapshot.header, &earlier.header);
        if (&header.vm_id, header.pid) != (&known.vm_id, known.pid) {
            continue;
        }
        let how = match &header.end {
            Ended::Clean {
                at_realtime_ns,
                detail,
            }
            | Ended::Failed {
                at_realtime_ns,
                detail,
            } => format!("ended {}: {}", date(*at_realtime_ns), clean(detail)),
            Ended::Running => "no end is known".to_owned(),
        };
        runs.push((
            run,
            format!("{how}; {}", clean(&there.display().to_string())),
        ));
    }
    runs.sort();
    let mut text = String::new();
    for (number, (run, line)) in runs.iter().enumerate() {
        if number == 0 {
            text.push_str("\nEarlier runs of this VM\n");
        }
        text.push_str(&format!("  run {run}: {line}\n"));
    }
    text
}

/// N, if `there` is `ID.N.blackbox` beside `path`, which is `ID.blackbox`.
fn number(path: &Path, there: &Path) -> Option<u64> {
    if path.extension() != there.extension() {
        return None;
    }
    let (stem, longer) = (path.file_stem()?.to_str()?, there.file_stem()?.to_str()?);
    longer.strip_prefix(stem)?.strip_prefix('.')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_black_boxes_of_the_same_name_are_earlier_runs() {
        let of = |there: &str| number("/run/a.blackbox".as_ref(), there.as_ref());
        assert_eq!(of("/run/a.12.blackbox"), Some(12));
        for other in [
            "a.blackbox",
            "a.x.blackbox",
            "ab.1.blackbox",
            "a.1.disk",
            "a1.blackbox",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
