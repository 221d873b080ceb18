//! The arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use api::http::DEFAULT_MAX_BODY_BYTES;
use api::policy::{self, PolicyFileError, Rulebook};
use api::vmm::trace::{DEFAULT_PERIOD_MS, PERIOD_MS};
use api::wire::LevelWire;
use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  vitrine --api-sock /tmp/vm.sock --id vm1
      wait for a VM's configuration on a socket, as Firecracker does
  vitrine --api-sock /tmp/vm.sock --config-file vm.json
      start the VM that a file describes, and serve the socket
  vitrine run --kernel vmlinux --drive rootfs.ext4 --memory 512
      boot a guest on this terminal
  vitrine check
      say whether this host can run guests
  vitrine list
      say which VMs run on this host, and which failed or died
  vitrine doctor vm1
      say why a VM is frozen, starving or dead, and what to do
  vitrine report vm1
      tell all that is known of a VM, alive or dead
  vitrine top vm1
      show what a VM does, every second
  vitrine trace vm1 -o trace.json
      what a VM does, for ui.perfetto.dev

Exit status: 0 fine, 1 the VM failed, 2 bad usage or configuration; of doctor: 3 warnings, 4 errors.";

const LIST_EXAMPLES: &str = "\
Examples:
  vitrine list
  vitrine list --all --dir /run/vitrine

A VM is running; ended (cleanly, its black box kept by --keep-blackbox: shown with --all);
failed; or dead, which is killed or crashed without a clean end.

Exit status: 0 fine, 2 bad usage.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  vitrine doctor vm1
      of the VM of that id: looked at twice, a second apart
  vitrine doctor /tmp/vm.sock --wait 10
      of the VM behind an API socket, also when it answers nobody
  vitrine doctor /run/vitrine/vm1.blackbox --json
      of a black box, as GET /observe/health tells it

What each verdict means is in docs/freezes.md.

Exit status: 0 healthy, 2 bad usage, 3 warnings or not all could be judged, 4 errors.";

const REPORT_EXAMPLES: &str = "\
Examples:
  vitrine report vm1
      of the VM of that id
  vitrine report /tmp/vm.sock
      of the VM behind an API socket, also when it answers nobody
  vitrine report /run/vitrine/vm1.blackbox -o vm1.html
      of a black box, as one HTML page

Exit status: 0 fine, 1 the VM failed or died, 2 bad usage.";

const TOP_EXAMPLES: &str = "\
Examples:
  vitrine top vm1
  vitrine top /tmp/vm.sock --interval 5
  vitrine top vm1 --count 3 > three-seconds.txt

Ctrl-C ends it. When standard output is no terminal, one block follows the other.

Exit status: 0 fine, 1 the VM failed or died, 2 bad usage.";

const RUN_EXAMPLES: &str = "\
Examples:
  vitrine run --kernel bzImage --initrd initrd.img --cmdline 'console=ttyS0'
  vitrine run --kernel vmlinux --drive rootfs.ext4 --drive data.img,ro --net tap0 --cpus 2

The first drive is the guest's root, unless there is an initrd. The guest has the terminal;
Ctrl-A x stops it, Ctrl-A h helps.

A balloon, which gives guest memory back to the host, takes the daemon and its API, or the key
\"balloon\" of a --config-file: docs/balloon.md.";

const TRACE_EXAMPLES: &str = "\
Examples:
  vitrine trace vm1 -o trace.json
      of the VM with that id, for a second
  vitrine trace /run/vitrine/vm1.blackbox -o - --ms 5000 | gzip > trace.json.gz
  vitrine trace /tmp/vm.sock -o trace.json
      the VMM makes the trace, with what it is allowed to see

Of a VM that has ended it holds the last events that were kept. What the kernel does for a guest
takes root or CAP_PERFMON, and tracefs; what is missing is told.";

/// A KVM virtual machine monitor in which nothing that happens to a guest is invisible.
///
/// Without a command it is a daemon that speaks Firecracker's API on a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "vitrine", after_help = EXAMPLES, disable_version_flag = true)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<SubCommand>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Debug, Subcommand)]
pub enum SubCommand {
    /// Boot a guest on this terminal
    Run(Box<RunArgs>),
    /// Say whether this host can run guests, and what would hold it back
    Check,
    /// List the VMs of this host: running, failed or dead
    List(ListArgs),
    /// Say why a VM is frozen, starving or dead, and what to do
    Doctor(DoctorArgs),
    /// Tell all that is known of a VM, alive or dead
    Report(ReportArgs),
    /// Show what a VM does, again and again
    Top(TopArgs),
    /// Write a trace of a VM that ui.perfetto.dev opens
    Trace(TraceArgs),
}

#[derive(Args, Debug)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ListArgs {
    /// Show VMs that ended cleanly, too
    #[arg(long)]
    pub all: bool,
    /// Folder of black boxes [default: $XDG_RUNTIME_DIR/vitrine or /run/vitrine]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct DoctorArgs {
    /// A black box file, a VM's id, or an API socket
    #[arg(value_name = "X")]
    pub target: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Seconds between the two looks at a VM that lives, 0.2 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_wait)]
    pub wait: Duration,
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    parse_seconds(text, 0.2, 60.0)
}

#[derive(Args, Debug)]
#[command(after_help = REPORT_EXAMPLES)]
pub struct ReportArgs {
    /// A black box file, a VM's id, or an API socket
    #[arg(value_name = "X")]
    pub target: PathBuf,
    /// How many of the last events to show
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub events: usize,
    /// All of KVM's statistics, and what is 0, too
    #[arg(long)]
    pub all: bool,
    /// Write to this file; a name that ends in .html gets an HTML page
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = TOP_EXAMPLES)]
pub struct TopArgs {
    /// A black box file, a VM's id, or an API socket
    #[arg(value_name = "X")]
    pub target: PathBuf,
    /// Seconds from one screen to the next, 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub interval: Duration,
    /// End after so many screens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    parse_seconds(text, 0.1, 3600.0)
}

fn parse_seconds(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|s| (least..=most).contains(s));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("give seconds from {least} to {most}, such as 2 or 0.5"))
}

/// What is traced, and where to.
#[derive(Args, Debug)]
#[command(after_help = TRACE_EXAMPLES)]
pub struct TraceArgs {
    /// A black box, the API socket of a VM, or a VM's id
    #[arg(value_name = "X")]
    pub target: OsString,
    /// File for the trace, made readable by you alone; - is standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// How long to look at a VM that runs, in milliseconds: 1 to 60000
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PERIOD_MS,
        value_parser = clap::value_parser!(u64).range(PERIOD_MS))]
    pub ms: u64,
}

/// The daemon's flags: Firecracker's, then Vitrine's own.
#[derive(Args, Debug)]
pub struct DaemonArgs {
    /// Unix socket of the API; it must not exist yet
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// Name of the VM: letters, digits, - and _, at most 64
    #[arg(long, value_parser = parse_id)]
    pub id: Option<String>,
    /// A VM's configuration in JSON; the VM starts at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Serve no API
    #[arg(long, requires = "config_file")]
    pub no_api: bool,
    /// Metadata for the guest (no effect in this build)
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Log to this file or FIFO and not to standard error
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,
    /// Least severe level to log: Error, Warning, Info, Debug, Trace or Off
    #[arg(long)]
    pub level: Option<LevelWire>,
    /// Log only modules whose path begins so
    #[arg(long, value_name = "PREFIX")]
    pub module: Option<String>,
    /// Tell the level in each line of the log
    #[arg(long)]
    pub show_level: bool,
    /// Tell the source file and line in each line of the log
    #[arg(long)]
    pub show_log_origin: bool,
    /// Write Firecracker's metrics as JSON lines to this file or FIFO
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,
    /// A seccomp filter (no effect in this build)
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,
    /// Run without seccomp filters (no effect in this build)
    #[arg(long)]
    pub no_seccomp: bool,
    /// A device that tells how long the boot took (no effect in this build)
    #[arg(long)]
    pub boot_timer: bool,
    /// Wall-clock time at which the process was started (no effect in this build)
    #[arg(long, value_name = "US")]
    pub start_time_us: Option<u64>,
    /// CPU time at which the process was started (no effect in this build)
    #[arg(long, value_name = "US")]
    pub start_time_cpu_us: Option<u64>,
    /// CPU time that the parent used for it (no effect in this build)
    #[arg(long, value_name = "US")]
    pub parent_cpu_time_us: Option<u64>,
    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_BODY_BYTES)]
    pub http_api_max_payload_size: usize,
    /// Most bytes of metadata (no effect in this build)
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,
    /// Give the guest its devices on a PCI bus, with MSI-X, and not over MMIO
    #[arg(long)]
    pub enable_pci: bool,
    /// Print the version
    #[arg(long, short = 'V')]
    pub version: bool,
    #[command(flatten)]
    pub black_box: BlackBoxArgs,
    #[command(flatten)]
    pub kernel_cache: KernelCacheArgs,
    #[command(flatten)]
    pub policy: PolicyArgs,
}

impl DaemonArgs {
    /// The flags that were given and do nothing yet.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let flags = [
            ("--metadata", self.metadata.is_some()),
            ("--seccomp-filter", self.seccomp_filter.is_some()),
            ("--no-seccomp", self.no_seccomp),
            ("--boot-timer", self.boot_timer),
            ("--start-time-us", self.start_time_us.is_some()),
            ("--start-time-cpu-us", self.start_time_cpu_us.is_some()),
            ("--parent-cpu-time-us", self.parent_cpu_time_us.is_some()),
            ("--mmds-size-limit", self.mmds_size_limit.is_some()),
        ];
        flags
            .iter()
            .filter(|(_, given)| *given)
            .map(|(flag, _)| *flag)
            .collect()
    }
}

#[derive(Args, Debug)]
pub struct BlackBoxArgs {
    /// The black box's file [default: ID.blackbox in $XDG_RUNTIME_DIR/vitrine or /run/vitrine]
    #[arg(long, value_name = "PATH")]
    pub blackbox: Option<PathBuf>,
    /// Keep the black box after a clean end
    #[arg(long)]
    pub keep_blackbox: bool,
}

#[derive(Args, Debug)]
pub struct PolicyArgs {
    /// What is done about verdicts: the body of PUT /policy
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

impl PolicyArgs {
    /// Has `rulebook` go by the file, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or is refused.
    pub fn apply(&self, rulebook: &Rulebook) -> Result<(), PolicyFileError> {
        let policy = self.policy.as_deref().map(policy::load).transpose()?;
        if let Some(policy) = policy {
            rulebook.set(policy);
        }
        Ok(())
    }
}

#[derive(Args, Debug)]
pub struct KernelCacheArgs {
    /// Folder for unpacked bzImages, which spare the next VM the work
    /// [default: $XDG_CACHE_HOME/vitrine/kernels or ~/.cache/vitrine/kernels]
    #[arg(long, value_name = "DIR", conflicts_with = "no_kernel_cache")]
    pub kernel_cache: Option<PathBuf>,
    /// Keep no unpacked bzImages
    #[arg(long)]
    pub no_kernel_cache: bool,
}

impl KernelCacheArgs {
    /// The folder, if there is to be one.
    pub fn folder(self) -> Option<PathBuf> {
        if self.no_kernel_cache {
            return None;
        }
        let named = |name| std::env::var_os(name).filter(|path| !path.is_empty());
        let cache = || {
            let cache = named("XDG_CACHE_HOME").map(PathBuf::from);
            cache.or_else(|| named("HOME").map(|home| PathBuf::from(home).join(".cache")))
        };
        self.kernel_cache
            .or_else(|| cache().map(|cache| cache.join("vitrine/kernels")))
    }
}

#[derive(Args, Debug)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Kernel: bzImage or ELF vmlinux
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Disk image or block device; `,ro` makes it read-only; may be repeated
    #[arg(long, value_name = "PATH[,ro]", value_parser = clap::builder::OsStringValueParser::new())]
    pub drive: Vec<OsString>,
    /// Tap device of the host; may be repeated
    #[arg(long, value_name = "TAP")]
    pub net: Vec<String>,
    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u64,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub memory: u64,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Give the guest its devices on a PCI bus, with MSI-X, and not over MMIO
    #[arg(long)]
    pub enable_pci: bool,
    /// Name of the VM
    #[arg(long, value_parser = parse_id)]
    pub id: Option<String>,
    /// Least severe level to log on standard error
    #[arg(long, default_value = "Warning")]
    pub level: LevelWire,
    #[command(flatten)]
    pub black_box: BlackBoxArgs,
    #[command(flatten)]
    pub kernel_cache: KernelCacheArgs,
    #[command(flatten)]
    pub policy: PolicyArgs,
}

fn parse_id(text: &str) -> Result<String, String> {
    if is_id(text) {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 64 letters, digits, - and _".to_owned())
    }
}

/// Whether a VM may have this id.
pub fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn all_of_firecrackers_flags_are_taken_together() {
        let flags = "firecracker --api-sock /s --id a-b --config-file c --no-api --metadata m \
            --log-path l --level Warn --module x --show-level --show-log-origin --metrics-path p \
            --no-seccomp --boot-timer --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 \
            --http-api-max-payload-size 9 --mmds-size-limit 9 --enable-pci";
        let cli = Cli::try_parse_from(flags.split_whitespace()).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.daemon.without_effect().len(), 7);
        let equals = [
            "vitrine",
            "--api-sock=/s",
            "--seccomp-filter=f",
            "--level=info",
        ];
        assert_eq!(
            Cli::try_parse_from(equals).unwrap().daemon.api_sock,
            PathBuf::from("/s")
        );
        assert!(Cli::try_parse_from(["vitrine", "--id", "a/b"]).is_err());
        assert!(Cli::try_parse_from(["vitrine", "--no-api"]).is_err());
    }

    #[test]
    fn an_interval_is_a_time_that_can_be_waited_for() {
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_interval("3600"), Ok(Duration::from_secs(3600)));
        for wrong in ["0", "-1", "nan", "inf", "1e9", "", "1s"] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
            assert!(parse_wait(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_wait("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_wait("60"), Ok(Duration::from_secs(60)));
        assert!(parse_wait("0.1").is_err() && parse_wait("61").is_err());
    }
}
