//! The project's own commands, as `cargo xtask …`: guests, the lab, the tests, the demo, the
//! benchmarks.
//!
//! Runs on the host or, through hidden commands, in the lab. Depends on no crate of the project.

mod apt;
mod arrows;
mod backports;
mod bench;
mod busybox;
mod cache;
mod console;
mod cpio;
mod demo;
mod error;
mod http;
mod images;
mod kernel;
mod lab;
mod licences;
mod program;
mod promtool;
mod scenarios;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::{Result, fail};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What is done with Vitrine's sources")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs a command as root in an emulated machine with real KVM
    Lab(lab::LabArgs),
    /// Makes the kernels, initrds, drive and bare-metal guest that tests boot
    Images(images::ImagesArgs),
    /// Runs the whole test suite, or parts of it, and says what ran where
    Test(suite::TestArgs),
    /// Brings each verdict about on purpose, and checks that it is found, in time and truly
    Scenarios(scenarios::ScenariosArgs),
    /// Checks the direction of dependencies between the project's crates
    Arrows,
    /// Checks that all packages have a licence that deny.toml allows
    Licences,
    /// Boots a guest, talks to it and ends it through the API, showing each command
    Demo,
    /// Measures against a bound
    #[command(subcommand)]
    Bench(bench::Bench),
    #[command(hide = true)]
    BenchBootInside(bench::BootInside),
    #[command(hide = true)]
    BenchPssInside(bench::PssInside),
    #[command(hide = true)]
    DemoInside(demo::DemoInside),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Task::Lab(args) => return lab::main(args),
        Task::Images(args) => images::main(&args),
        Task::Test(args) => suite::main(&args),
        Task::Scenarios(args) => scenarios::main(&args),
        Task::Arrows => arrows::check(),
        Task::Licences => licences::check(),
        Task::Demo => demo::main(),
        Task::Bench(bench) => bench::main(&bench),
        Task::BenchBootInside(args) => bench::boot_inside(&args),
        Task::BenchPssInside(args) => bench::pss_inside(&args),
        Task::DemoInside(args) => demo::inside(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the project's sources.
fn repository() -> Result<PathBuf> {
    // Cargo tells; without it (in the lab, or started by hand) the folder of the build is right.
    let own =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    match PathBuf::from(own).parent() {
        Some(folder) if folder.join("Cargo.toml").exists() => Ok(folder.to_path_buf()),
        _ => fail("the project's sources were not found: start it as `cargo xtask …`"),
    }
}
