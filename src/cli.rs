//! What the command line leads to.

mod args;
mod black_box;
mod check;
mod crash;
mod daemon;
mod doctor;
mod identity;
mod list;
mod output;
mod peer;
mod report;
mod run;
mod screen;
mod signals;
mod slim;
mod supervise;
mod target;
mod top;
mod trace;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, SubCommand};

/// All is well.
const FINE: u8 = 0;
/// The VM failed.
const FAILED: u8 = 1;
/// Bad usage or configuration.
const MISUSED: u8 = 2;
/// The guest suffers: the status of `doctor` with warnings.
const SUFFERS: u8 = 3;
/// The guest cannot go on by itself: the status of `doctor` with errors.
const STUCK: u8 = 4;

/// Why the process ends with another status than 0.
#[derive(Debug)]
struct Failure {
    status: u8,
    error: Box<dyn Error>,
}

impl Failure {
    /// What was asked cannot be done.
    fn misuse(error: impl Into<Box<dyn Error>>) -> Failure {
        Failure {
            status: MISUSED,
            error: error.into(),
        }
    }

    /// It was tried and failed.
    fn failed(error: impl Into<Box<dyn Error>>) -> Failure {
        Failure {
            status: FAILED,
            error: error.into(),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    slim::one_heap();
    identity::name_process();
    crash::install();
    let cli = Cli::parse();
    let done = match cli.command {
        Some(SubCommand::Run(arguments)) => run::run(*arguments).map(|()| FINE),
        Some(SubCommand::Check) => check::check().map(|()| FINE),
        Some(SubCommand::List(arguments)) => list::list(arguments).map(|()| FINE),
        Some(SubCommand::Doctor(arguments)) => doctor::doctor(&arguments),
        Some(SubCommand::Report(arguments)) => report::report(&arguments),
        Some(SubCommand::Top(arguments)) => top::top(&arguments),
        Some(SubCommand::Trace(arguments)) => trace::trace(&arguments).map(|()| FINE),
        None if cli.daemon.version => {
            identity::print_version();
            Ok(FINE)
        }
        None => daemon::daemon(cli.daemon).map(|()| FINE),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            print_chain(&*failure.error);
            ExitCode::from(failure.status)
        }
    }
}

/// The error and all its causes, on one line, each said once.
fn print_chain(error: &dyn Error) {
    eprintln!("vitrine: {}", chain(error));
}

fn chain(error: &dyn Error) -> String {
    api::machine::MachineError::new(error).to_string()
}
