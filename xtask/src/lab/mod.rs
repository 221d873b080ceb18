//! The lab: an emulated machine with AMD virtualisation, in which /dev/kvm is the genuine kvm-amd
//! and the host's root folder is `/`. It makes unmodified Linux guests boot on hosts that cannot
//! run them themselves. Slow, but true: ratios between programs hold within one run of it.

mod emulator;
mod job;
mod outer;
mod qemu;
mod standstill;
mod wait;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::error::{Result, fail};
use crate::program::say;

pub use qemu::Qemu;

/// The exit status when the lab itself failed.
const LAB_FAILED: u8 = 125;
/// The exit status when time was up.
const TIME_UP: u8 = 124;
/// The exit status for a command that does not exist, as in the shell.
const NOT_FOUND: u8 = 127;

/// `cargo xtask lab`
#[derive(clap::Args)]
pub struct LabArgs {
    /// CPUs of the emulated machine
    #[arg(short = 'c', long, default_value_t = 2)]
    cpus: u32,
    /// Its memory in MiB
    #[arg(short = 'm', long, default_value_t = 4096)]
    memory: u32,
    /// More words for its kernel command line
    #[arg(short = 'a', long, default_value = "", allow_hyphen_values = true)]
    kernel_args: String,
    /// More arguments for QEMU
    #[arg(short = 'q', long, default_value = "", allow_hyphen_values = true)]
    qemu_args: String,
    /// Seconds until the machine is ended, whatever it does
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Make the machine's kernel and initrd anew from the newest packages
    #[arg(long)]
    refresh: bool,
    /// The command and its arguments, run as root in the current folder
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What to run in the lab, and in how big a machine.
pub struct Job {
    /// CPUs of the emulated machine.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// More words for its kernel command line.
    pub kernel_args: String,
    /// More arguments for QEMU.
    pub qemu_args: String,
    /// When the machine is ended, whatever it does.
    pub timeout: Duration,
    /// Whether a machine that stands still may go on where an interrupt from outside wakes it. Not for
    /// a job that measures time: it is missing there.
    pub wake: bool,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Variables set for it, beside those that are passed on.
    pub env: Vec<(String, String)>,
}

impl Job {
    /// A command in a machine of the usual size.
    pub fn new(command: &[&str]) -> Self {
        Self {
            cpus: 2,
            memory_mib: 4096,
            kernel_args: String::new(),
            qemu_args: String::new(),
            timeout: Duration::from_secs(3600),
            wake: true,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
        }
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status.
    Exit(u8),
    /// Time was up.
    TimeUp,
    /// The emulated machine gave no sign of life any more: the emulator's fault, not the job's.
    StoodStill,
}

/// Installs and makes what a machine needs, so that several may start at once.
pub fn prepare() -> Result<()> {
    Qemu::ensure()?;
    outer::ensure(false).map(drop)
}

/// Runs a job; its output goes to `stdout` and `stderr` as it comes.
pub fn run(
    mut job: Job,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> Result<End> {
    let qemu = Qemu::ensure()?;
    if job.cpus > 1 && !qemu.is_reliable() {
        say(
            "lab",
            format!(
                "QEMU {} emulates two CPUs unreliably: using one",
                qemu.version
            ),
        );
        job.cpus = 1;
    }
    let outer = outer::ensure(false)?;
    emulator::run(&qemu, &outer, &job, stdout, stderr)
}

/// `cargo xtask lab`: the command's status becomes ours.
pub fn main(args: LabArgs) -> ExitCode {
    let job = Job {
        cpus: args.cpus,
        memory_mib: args.memory,
        kernel_args: args.kernel_args,
        qemu_args: args.qemu_args,
        timeout: Duration::from_secs(args.timeout),
        wake: true,
        command: args.command,
        env: Vec::new(),
    };
    if let Err(error) = job::find_command(&job.command) {
        say("lab", error.to_string());
        return ExitCode::from(NOT_FOUND);
    }
    let refreshed = if args.refresh {
        outer::ensure(true).map(drop)
    } else {
        Ok(())
    };
    let end = refreshed.and_then(|()| run(job, &mut std::io::stdout(), &mut std::io::stderr()));
    match end {
        Ok(End::Exit(status)) => ExitCode::from(status),
        Ok(End::TimeUp) => {
            say(
                "lab",
                format!(
                    "time was up after {} s: the machine was ended",
                    args.timeout
                ),
            );
            ExitCode::from(TIME_UP)
        }
        Ok(End::StoodStill) => {
            say("lab", "the emulated machine stood still: it was ended");
            ExitCode::from(LAB_FAILED)
        }
        Err(error) => {
            say("lab", error.to_string());
            ExitCode::from(LAB_FAILED)
        }
    }
}

/// Runs one of xtask's own hidden commands in the lab, output to the terminal.
pub fn run_self(arguments: &[&str], size: impl FnOnce(&mut Job)) -> Result<()> {
    let Ok(own) = std::env::current_exe() else {
        return fail("the path of xtask itself is not known");
    };
    let own = own.to_string_lossy();
    let mut job = Job::new(&[&[&*own], arguments].concat());
    size(&mut job);
    let seconds = job.timeout.as_secs();
    match run(job, &mut std::io::stdout(), &mut std::io::stderr())? {
        End::Exit(0) => Ok(()),
        End::Exit(status) => fail(format!(
            "`{}` ended with status {status}",
            arguments.join(" ")
        )),
        End::TimeUp => fail(format!(
            "`{}` was not done in {seconds} s",
            arguments.join(" ")
        )),
        End::StoodStill => fail(format!(
            "the emulated machine stood still during `{}`: start it again",
            arguments.join(" ")
        )),
    }
}
