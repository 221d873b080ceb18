//! The vitrine command line: reads it, does it, and tells once what went wrong.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
