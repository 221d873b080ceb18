//! `vitrine top`.

use std::io::{self, IsTerminal};

use api::vmm::observe::reader::Snapshot;
use api::vmm::observe::report::{State, ending, render_top};

use super::args::TopArgs;
use super::screen::Screen;
use super::signals::Signals;
use super::target::Target;
use super::{FAILED, FINE, Failure, output};

/// Shows what a VM does until it ends, a signal comes, or enough was shown; gives the exit status.
///
/// # Errors
/// There is no such VM, or standard output takes nothing.
pub fn top(arguments: &TopArgs) -> Result<u8, Failure> {
    let target = Target::find(&arguments.target).map_err(Failure::misuse)?;
    let signals = Signals::block();
    let mut before = target.snapshot().map_err(Failure::misuse)?;
    if State::of(&before).is_over() {
        let lines = format!(
            "{}\nThere is nothing more to come: `vitrine report {}` tells all that is known.\n",
            ending(&before),
            arguments.target.display()
        );
        output::print(&lines)?;
        return Ok(status(&before));
    }
    let screen = io::stdout().is_terminal().then(Screen::take);
    let mut last = String::new();
    let mut shown = 0;
    let mut outcome = FINE;
    while signals.wait(arguments.interval).is_none() {
        let now = target.snapshot().map_err(Failure::misuse)?;
        last = render_top(&before, &now);
        let is_read = match &screen {
            Some(screen) => screen.draw(&last)?,
            None => output::print(&format!("{last}\n"))?,
        };
        shown += 1;
        outcome = status(&now);
        let is_enough = arguments.count.is_some_and(|count| shown >= count);
        if State::of(&now).is_over() || is_enough || !is_read {
            break;
        }
        before = now;
    }
    // The last block stays on the terminal when the screen is given back.
    if screen.is_some() {
        drop(screen);
        output::print(&last)?;
    }
    Ok(outcome)
}

fn status(snapshot: &Snapshot) -> u8 {
    if State::of(snapshot).is_bad() {
        FAILED
    } else {
        FINE
    }
}
