//! `vitrine report`.

use std::ffi::OsStr;

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
        None => drop(output::print(&render(&snapshot, options))?),
        Some(path) => {
            let is_page = path
                .extension()
                .is_some_and(|extension| extension == OsStr::new("html"));
            let text = if is_page {
                render_html(&snapshot, options)
            } else {
                render(&snapshot, options)
            };
            output::write(path, &text)?;
        }
    }
    let is_bad = State::of(&snapshot).is_bad();
    Ok(if is_bad { FAILED } else { FINE })
}
