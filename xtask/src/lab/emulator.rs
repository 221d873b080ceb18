//! One run of the emulated machine: QEMU, its three ports, its end.
//!
//! The job's stdout and stderr and word of what becomes of it come over virtio ports that are
//! sockets here, so that the machine's console cannot garble them; the console goes to a file
//! that is shown when the machine fails.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use super::job::Folder;
use super::outer::Outer;
use super::standstill::{Monitor, SILENCE};
use super::wait::{Help, Word, parse, wait};
use super::{End, Job, Qemu};
use crate::error::{Context, Error, Result, fail};
use crate::program::{find, say, tail};

/// After the command ended, the machine has this long to switch itself off.
const OFF: Duration = Duration::from_secs(20);
const PORTS: [&str; 3] = ["control", "stdout", "stderr"];
const CONSOLE_LINES: usize = 30;
/// The emulator's own socket.
const MONITOR: &str = "monitor";
/// Lines that are shown of what it tells when time is up.
const TOLD_LINES: usize = 150;

/// Kills QEMU, if it still runs, when the run is over.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a job in a machine of its own.
pub fn run(
    qemu: &Qemu,
    outer: &Outer,
    job: &Job,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> Result<End> {
    let folder = Folder::new(job)?;
    let listeners = [
        folder.socket("control")?,
        folder.socket("stdout")?,
        folder.socket("stderr")?,
    ];
    let started = Instant::now();
    let errors = fs::File::create(folder.file("qemu.log"))
        .context(|| "cannot make QEMU's log".to_owned())?;
    let child = command(qemu, outer, job, &folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .context(|| format!("{} could not be started", qemu.path.display()))?;
    let mut machine = Machine(child);
    let mut ends = Vec::new();
    for listener in &listeners {
        ends.push(accept(listener, &mut machine).map_err(|error| explain(&folder, &error))?);
    }
    let (Some(err_end), Some(out_end), Some(control)) = (ends.pop(), ends.pop(), ends.pop()) else {
        return fail("QEMU opened too few ports");
    };
    let (sender, words) = channel();
    let mut outside = Outside {
        folder: &folder,
        control: control
            .try_clone()
            .context(|| "a port of the lab".to_owned())?,
        emulator: machine.0.id(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(out_end, stdout));
        scope.spawn(|| copy(err_end, stderr));
        scope.spawn(move || listen(control, &sender));
        let end =
            wait(&words, job, started, &mut outside).map_err(|error| explain(&folder, &error));
        if matches!(end, Ok(End::Exit(_))) {
            wait_off(&mut machine);
        }
        drop(machine); // closes the ports, which ends the threads
        end
    })
}

/// The CPU that all of QEMU's threads share when it emulates one.
///
/// QEMU 10.0 clears a bit of `interrupt_request` at each exit of a nested guest with an instruction
/// that is not atomic, while its main loop sets another bit there: now and then an interrupt is lost,
/// and with it, when it was the timer's, the machine. On one CPU an instruction is not interrupted.
fn shared_cpu() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cpus = cpu_list(allowed);
    // Machines that run at once should not lie on the same one.
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let made = MADE.fetch_add(1, Ordering::Relaxed);
    let chosen = (std::process::id() as usize).wrapping_add(made) % cpus.len().max(1);
    cpus.get(chosen).copied().filter(|_| cpus.len() > 1)
}

/// A list as the kernel writes it: `0-3,7`.
fn cpu_list(text: &str) -> Vec<u32> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    ranges.flatten().collect()
}

/// What starts QEMU: it dies with us, however we die, and has its CPU.
fn start(qemu: &Qemu, job: &Job) -> Command {
    let mut words: Vec<std::ffi::OsString> = Vec::new();
    if let Some(setpriv) = find("setpriv") {
        words.push(setpriv.into());
        words.extend(["--pdeathsig", "KILL", "--"].map(Into::into));
    }
    let cpu = shared_cpu().filter(|_| job.cpus == 1);
    if let (Some(taskset), Some(cpu)) = (find("taskset"), cpu) {
        words.push(taskset.into());
        words.extend(["-c", &cpu.to_string()].map(Into::into));
    }
    words.push((&qemu.path).into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// The whole QEMU command.
fn command(qemu: &Qemu, outer: &Outer, job: &Job, folder: &Folder) -> Command {
    let mut command = start(qemu, job);
    command.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-vga",
        "none",
    ]);
    command.args(["-machine", "q35", "-cpu", "EPYC,+svm,+npt"]);
    command.args(["-accel", "tcg,thread=multi,tb-size=512"]);
    command.args([
        "-smp",
        &job.cpus.to_string(),
        "-m",
        &job.memory_mib.to_string(),
    ]);
    command
        .arg("-kernel")
        .arg(&outer.kernel)
        .arg("-initrd")
        .arg(&outer.initrd);
    let append = format!(
        "console=ttyS0 quiet panic=1 oops=panic mitigations=off nokaslr random.trust_cpu=1 \
         tsc=reliable lab.job={} {}",
        folder.path().display(),
        job.kernel_args
    );
    command.arg("-append").arg(append);
    let share = "local,path=/,mount_tag=hostroot,security_model=none,multidevs=remap";
    command.arg("-virtfs").arg(share);
    command
        .arg("-serial")
        .arg(format!("file:{}", folder.file("console.log").display()));
    let monitor = folder.file(MONITOR);
    let monitor = format!("unix:{},server=on,wait=off", monitor.display());
    command.args(["-qmp", &monitor]);
    command.args(["-device", "virtio-serial-pci,id=lab"]);
    for (number, port) in (1..).zip(PORTS) {
        let socket = folder.file(port);
        command
            .arg("-chardev")
            .arg(format!("socket,id=lab.{port},path={}", socket.display()));
        let device = "virtserialport,bus=lab.0";
        let names = format!("nr={number},chardev=lab.{port},name=lab.{port}");
        command.arg("-device").arg(format!("{device},{names}"));
    }
    command.args(job.qemu_args.split_whitespace());
    command
}

/// Waits for QEMU to open one of the sockets.
fn accept(listener: &UnixListener, machine: &mut Machine) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream
                .set_nonblocking(false)
                .context(|| "a port of the lab".to_owned())?;
            return Ok(stream);
        }
        if let Ok(Some(status)) = machine.0.try_wait() {
            return fail(format!("QEMU ended at once ({status})"));
        }
        if Instant::now() > until {
            return fail("QEMU did not start within 60 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn copy(mut from: UnixStream, to: &mut (dyn Write + Send)) {
    let mut buffer = vec![0; 1 << 16];
    let mut open = true;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // A reader that went away must not stop the job: what it says is dropped then.
        open = open
            && to
                .write_all(&buffer[..count])
                .and_then(|()| to.flush())
                .is_ok();
    }
}

fn listen(control: UnixStream, words: &Sender<Word>) {
    for line in BufReader::new(control)
        .lines()
        .map_while(std::result::Result::ok)
    {
        if let Some(word) = parse(&line) {
            let _ = words.send(word);
        }
    }
    let _ = words.send(Word::Closed);
}

struct Outside<'a> {
    folder: &'a Folder,
    control: UnixStream,
    emulator: u32,
}

impl Outside<'_> {
    fn monitor(&self) -> Monitor {
        Monitor {
            socket: self.folder.file(MONITOR),
        }
    }
}

impl Help for Outside<'_> {
    fn silence(&self) -> Duration {
        SILENCE
    }

    fn tell(&mut self) {
        let _ = self.control.write_all(b"tell\n");
    }

    fn told(&mut self) {
        let console = fs::read(self.folder.file("console.log")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        say("lab", "time is up; the last lines of its console:");
        eprintln!("{}", tail(&console, TOLD_LINES));
    }

    fn nudge(&mut self) {
        self.monitor().press_key();
    }

    fn examine(&mut self) {
        let silence = SILENCE.as_secs();
        let told =
            format!("no sign of life of the emulated machine for {silence} s; what is seen of it:");
        say("lab", told);
        self.monitor().examine(self.emulator);
    }
}

fn wait_off(machine: &mut Machine) {
    let until = Instant::now() + OFF;
    while Instant::now() < until && !matches!(machine.0.try_wait(), Ok(Some(_)) | Err(_)) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Adds what QEMU and the machine's console said last.
fn explain(folder: &Folder, error: &Error) -> Error {
    let mut text = error.to_string();
    let read = |name| {
        let bytes = fs::read(folder.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let console = read("console.log");
    for sign in ["Kernel panic", "Out of memory", "Oops", "BUG:"] {
        if let Some(line) = console.lines().find(|line| line.contains(sign)) {
            text.push_str(&format!("\nthe lab's kernel said: {}", line.trim()));
            break;
        }
    }
    let noise = |line: &&str| !line.contains("TCG doesn't support");
    let qemu: Vec<String> = read("qemu.log")
        .lines()
        .filter(noise)
        .map(str::to_owned)
        .collect();
    for (what, said) in [("QEMU", qemu.join("\n")), ("its console", console)] {
        if !said.trim().is_empty() {
            text.push_str(&format!(
                "\n--- last lines of {what}\n{}",
                tail(&said, CONSOLE_LINES)
            ));
        }
    }
    Error::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpu_list("\t0-1\n"), [0, 1]);
        assert_eq!(cpu_list("0-2,7,9-10"), [0, 1, 2, 7, 9, 10]);
        assert_eq!(cpu_list("5"), [5]);
        assert_eq!(cpu_list(""), [0; 0]);
    }
}
