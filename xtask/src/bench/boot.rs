//! `cargo xtask bench boot`: how long until the guest's first process runs, beside QEMU. Both boot
//! the same stock kernel and initrd, in turns, in one run of the lab: the ratio holds, the times
//! themselves are those of an emulated machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::median;
use crate::console::Console;
use crate::error::{Context, Result, fail};
use crate::images::{self, Set};
use crate::lab::{self, Qemu};
use crate::program::{say, tail};

/// Vitrine's median may be this part of QEMU's.
pub const BOUND: f64 = 0.45;
const LINE: &str = "VITRINE-GUEST-INIT";
const BOOT_ARGS: &str = "console=ttyS0 reboot=k panic=1 quiet";
const LIMIT: Duration = Duration::from_secs(120);
/// The kernel in the forms that are measured, as the images' files are named: as the distribution
/// has it, which counts, and unpacked beforehand.
const FORMS: [&str; 2] = ["bzImage", "vmlinux"];
/// The programs, as the table's columns are named.
const PROGRAMS: [&str; 3] = ["vitrine", "q35", "bare"];

/// What the measuring in the lab needs to know.
#[derive(clap::Args)]
pub struct BootInside {
    #[arg(long)]
    vitrine: PathBuf,
    #[arg(long)]
    images: PathBuf,
    #[arg(long)]
    runs: u32,
    #[arg(long)]
    bound: f64,
}

/// Prepares, then measures in the lab.
pub fn main(runs: u32, bound: f64) -> Result<()> {
    let vitrine = super::vitrine()?;
    let images = images::ensure(&[Set::Linux], false)?;
    let (vitrine, images) = (vitrine.to_string_lossy(), images.to_string_lossy());
    let (runs_text, bound) = (runs.to_string(), bound.to_string());
    let arguments = [
        "bench-boot-inside",
        "--vitrine",
        &vitrine,
        "--images",
        &images,
        "--runs",
        &runs_text,
        "--bound",
        &bound,
    ];
    say("bench", "starting the lab ...");
    lab::run_self(&arguments, |job| {
        // One emulated CPU: with two, what the emulator does for both at once is most of the noise.
        job.cpus = 1;
        job.timeout = Duration::from_secs(300 + u64::from(runs) * 480);
    })
}

/// The two programs, with what they boot in memory.
struct Pair {
    folder: PathBuf,
    qemu: PathBuf,
}

/// Seconds of every run, by form and program.
type Seconds = [[Vec<f64>; PROGRAMS.len()]; FORMS.len()];

/// Measures: runs in the lab.
pub fn inside(args: &BootInside) -> Result<()> {
    let Some(qemu) = Qemu::find()? else {
        return fail("QEMU is not in the lab");
    };
    let pair = Pair::new(args, &qemu)?;
    println!("boot: from process start to the guest's first process (the line {LINE})");
    println!("  guest: stock Debian cloud kernel 6.12, same initrd, 1 vCPU, 256 MiB");
    println!("  command line of all: {BOOT_ARGS}");
    println!("  beside QEMU {}, accel=kvm, -cpu host:", qemu.version);
    println!("    q35: the machine as QEMU makes it; bare: the same with -nodefaults");
    println!("  all files in memory; one run of each before the first that counts");
    let first = pair.first_boot()?;
    println!("  vitrine unpacks a bzImage once and keeps that: its first boot took {first:.3} s\n");
    let titles = PROGRAMS.map(|name| format!("{name:>9}")).concat();
    println!("      {:<27}   {}", FORMS[0], FORMS[1]);
    println!("  run {titles}   {titles}");
    let mut seconds = Seconds::default();
    for run in 0..=args.runs {
        let took = pair.round(run as usize)?;
        let cells = took.map(|form| form.map(|one| format!("{one:>7.3} s")).concat());
        let number = if run == 0 {
            "-".to_owned()
        } else {
            run.to_string()
        };
        println!("  {number:>3} {}", cells.join("   "));
        if run > 0 {
            for (all, one) in seconds.iter_mut().flatten().zip(took.iter().flatten()) {
                all.push(*one);
            }
        }
    }
    judge(seconds, args.bound)
}

/// Prints medians and ratios; the first form's is the one that counts.
fn judge(seconds: Seconds, bound: f64) -> Result<()> {
    println!();
    let mut ratios = Vec::new();
    for (form, times) in FORMS.iter().zip(seconds) {
        let [our, q35, bare] = times.map(median);
        println!("  {form}, medians: vitrine {our:.3} s, q35 {q35:.3} s, bare {bare:.3} s");
        println!(
            "    ratios: vitrine/q35 {:.3}, vitrine/bare {:.3}",
            our / q35,
            our / bare
        );
        ratios.push(our / q35);
    }
    let ratio = ratios.first().copied().unwrap_or(f64::NAN);
    let met = if ratio <= BOUND { "met" } else { "not met" };
    println!(
        "  boot: vitrine/q35 with {} is {ratio:.3}; at most {BOUND}: {met}",
        FORMS[0]
    );
    if ratio <= bound {
        Ok(())
    } else {
        fail(format!(
            "boot: the ratio {ratio:.3} is above the bound {bound}"
        ))
    }
}

impl Pair {
    fn new(args: &BootInside, qemu: &Qemu) -> Result<Self> {
        let folder = PathBuf::from("/run/vitrine-bench");
        crate::cache::make_folder(&folder)?;
        let image = |name: &str| args.images.join(name);
        let mut files = vec![
            (image("initrd-6.12.img"), "initrd"),
            (args.vitrine.clone(), "vitrine"),
        ];
        files.extend(FORMS.map(|form| (image(&format!("linux-6.12.{form}")), form)));
        for (from, name) in files {
            fs::copy(&from, folder.join(name))
                .context(|| format!("cannot copy {}", from.display()))?;
        }
        for form in FORMS {
            let config = json!({
                "boot-source": {
                    "kernel_image_path": folder.join(form),
                    "initrd_path": folder.join("initrd"),
                    "boot_args": BOOT_ARGS,
                },
                "drives": [],
                "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
            });
            fs::write(folder.join(config_name(form)), config.to_string())
                .context(|| "cannot write vitrine's configuration".to_owned())?;
        }
        Ok(Self {
            folder,
            qemu: qemu.path.clone(),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Boots the bzImage once and waits until Vitrine has kept what it unpacked; gives the seconds
    /// of that boot.
    fn first_boot(&self) -> Result<f64> {
        let until = Instant::now() + LIMIT;
        let mut command = self.vitrine_command("bzImage");
        let mut console = Console::start(&mut command, &self.file("vitrine.log"))?;
        let took = console.wait_for(LINE, LIMIT)?;
        let is_kept = || {
            let entries = fs::read_dir(self.file("kernels"))?;
            let names = entries.map(|entry| Ok(entry?.path()));
            let names: Vec<PathBuf> = names.collect::<std::io::Result<_>>()?;
            std::io::Result::Ok(names.iter().any(|path| path.extension().is_some()))
        };
        while !is_kept().unwrap_or(false) {
            if Instant::now() > until {
                return fail(format!(
                    "vitrine kept no unpacked kernel{}",
                    console.last_words()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(took.as_secs_f64())
    }

    /// One run of all, in turns: another is first in each.
    fn round(&self, run: usize) -> Result<[[f64; PROGRAMS.len()]; FORMS.len()]> {
        let mut took = [[0.0; PROGRAMS.len()]; FORMS.len()];
        for (form, took) in FORMS.into_iter().zip(&mut took) {
            for turn in 0..took.len() {
                let which = (turn + run) % took.len();
                took[which] = match which {
                    0 => self.vitrine(form)?,
                    1 => self.qemu(form, &[])?,
                    _ => self.qemu(form, &["-nodefaults", "-serial", "stdio"])?,
                };
            }
        }
        Ok(took)
    }

    fn vitrine_command(&self, form: &str) -> Command {
        let mut command = Command::new(self.file("vitrine"));
        command
            .args(["--no-api", "--config-file"])
            .arg(self.file(&config_name(form)))
            .arg("--kernel-cache")
            .arg(self.file("kernels"));
        command
    }

    fn vitrine(&self, form: &str) -> Result<f64> {
        let mut command = self.vitrine_command(form);
        measure(&mut command, &self.file("vitrine.log")).context(|| "vitrine".to_owned())
    }

    fn qemu(&self, form: &str, more: &[&str]) -> Result<f64> {
        let mut command = Command::new(&self.qemu);
        command.args([
            "-machine",
            "q35,accel=kvm",
            "-cpu",
            "host",
            "-m",
            "256",
            "-smp",
            "1",
        ]);
        command.args(["-nographic", "-no-reboot"]).args(more);
        command.arg("-kernel").arg(self.file(form));
        command.arg("-initrd").arg(self.file("initrd"));
        command.args(["-append", BOOT_ARGS]);
        measure(&mut command, &self.file("qemu.log")).context(|| "QEMU".to_owned())
    }
}

fn config_name(form: &str) -> String {
    format!("{form}.json")
}

/// Writes over the memory that the guest before this one gave back. The lab's emulator keeps the
/// code that it translated until its place is written to, and is slow at that: without this, whoever
/// is measured pays for the guest of its predecessor, and that is neither's doing.
fn forget_the_last_guest() {
    const BYTES: usize = 1 << 30;
    std::hint::black_box(vec![0xA5u8; BYTES]);
}

/// Seconds from just before the process starts until the line was read from its stdout.
fn measure(command: &mut Command, log: &Path) -> Result<f64> {
    forget_the_last_guest();
    let mut console = Console::start(command, log)?;
    let after = console.wait_for(LINE, LIMIT)?;
    // Let it come to rest, so that what it still does does not disturb the next.
    let ready = console.wait_for("VITRINE-GUEST-READY", LIMIT);
    ready.map_err(|error| crate::error::Error::new(tail(&error.to_string(), 20)))?;
    Ok(after.as_secs_f64())
}
