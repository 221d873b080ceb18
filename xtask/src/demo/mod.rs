//! `cargo xtask demo`: a guest from nothing to its end through the API, each step with the command
//! that anyone could have typed.

mod metrics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::console::{Console, LAST_WORDS};
use crate::error::{Context, Error, Result, fail};
use crate::images::{self, Set};
use crate::program::{self, say, shown};
use crate::{apt, bench, lab, suite};

const TAP: &str = "vitrine-demo0";
const HOST: &str = "172.30.77.1";
const GUEST: &str = "172.30.77.2";
const FILE: &str = "/from-the-guest";

/// What the guest does; it then stays up until it is asked to end.
const SCRIPT: &str = "ip addr add 172.30.77.2/24 dev eth0\nip link set eth0 up\n\
    echo \"written by Linux $(uname -r) in the guest\" > /from-the-guest\nsync\n\
    echo DEMO-GUEST-UP\nwhile :; do sleep 1; done\n";

/// What the part in the lab needs to know.
#[derive(clap::Args)]
pub struct DemoInside {
    #[arg(long)]
    vitrine: PathBuf,
    #[arg(long)]
    images: PathBuf,
}

/// Prepares, then shows the demo where Linux guests boot.
pub fn main() -> Result<()> {
    for (tool, package) in [
        ("curl", "curl"),
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
    ] {
        apt::tool(tool, package)?;
    }
    apt::tool("debugfs", "e2fsprogs")?;
    let vitrine = bench::vitrine()?;
    let images = images::ensure(&[Set::Linux], false)?;
    if suite::runs_linux() && apt::is_root() {
        say("demo", "this host boots Linux guests: running here");
        return inside(&DemoInside { vitrine, images });
    }
    say(
        "demo",
        "Linux guests do not boot on this host's own KVM: starting the lab ...",
    );
    let (vitrine, images) = (vitrine.to_string_lossy(), images.to_string_lossy());
    let arguments = ["demo-inside", "--vitrine", &vitrine, "--images", &images];
    lab::run_self(&arguments, |job| job.timeout = Duration::from_secs(600))
}

/// Removes the tap when the demo is over.
struct Tap;

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = program::run(Command::new("ip").args(["link", "delete", TAP]));
    }
}

/// The demo's folder and the API's socket in it.
struct Demo {
    folder: PathBuf,
    socket: PathBuf,
}

/// The demo itself: runs in the lab, or on a host with hardware virtualisation.
pub fn inside(args: &DemoInside) -> Result<()> {
    let scratch = crate::cache::Scratch::at(Path::new("/run/vitrine-demo"))?;
    let folder = scratch.path().to_path_buf();
    let demo = Demo {
        socket: folder.join("api.sock"),
        folder,
    };

    step("copying the kernel, the initrd and the root drive to memory");
    demo.copy(&args.images.join("linux-6.12.bzImage"), "kernel")?;
    demo.copy(&args.images.join("initrd-6.12.img"), "initrd")?;
    demo.copy(&args.images.join("root.ext4"), "root.ext4")?;
    demo.copy(&args.vitrine, "vitrine")?;

    step("making a tap device with an address for the host's side");
    let _tap = Tap;
    demo.show(Command::new("ip").args(["tuntap", "add", TAP, "mode", "tap"]))?;
    demo.show(Command::new("ip").args(["addr", "add", &format!("{HOST}/24"), "dev", TAP]))?;
    demo.show(Command::new("ip").args(["link", "set", TAP, "up"]))?;

    step("starting vitrine; its serial console is its stdout");
    let mut vitrine = Command::new(demo.file("vitrine"));
    vitrine
        .arg("--no-kernel-cache")
        .arg("--api-sock")
        .arg(&demo.socket)
        .args(["--id", "demo"]);
    println!("  $ {}", shown(&vitrine));
    let mut console = Console::start(&mut vitrine, &demo.file("vitrine.log"))?;
    demo.wait_for_socket(&mut console)?;

    demo.tour(&mut console).map_err(|error| {
        let (error, words) = (error.to_string(), console.last_words());
        Error::new(if error.contains(LAST_WORDS) {
            error
        } else {
            error + &words
        })
    })?;

    step("reading from the drive's image what the guest wrote there");
    let request = format!("cat {FILE}");
    let wrote = demo.show(
        Command::new("debugfs")
            .args(["-R", &request])
            .arg(demo.file("root.ext4")),
    )?;
    if !wrote.contains("written by Linux") {
        return fail(format!(
            "the drive has no {FILE}: the guest's write did not get there"
        ));
    }
    println!("\ndemo: done; everything worked");
    Ok(())
}

/// Says what comes next.
fn step(text: &str) {
    println!("\ndemo: {text}");
}

impl Demo {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let mut command = Command::new("cp");
        program::run(
            command
                .arg("--sparse=always")
                .arg(from)
                .arg(self.file(name)),
        )
    }

    /// Shows a command, runs it, shows what it said.
    fn show(&self, command: &mut Command) -> Result<String> {
        println!("  $ {}", shown(command));
        let said = program::text(command)?;
        for line in said.lines() {
            println!("    {line}");
        }
        Ok(said)
    }

    fn wait_for_socket(&self, console: &mut Console) -> Result<()> {
        for _ in 0..500 {
            if crate::http::get(&self.socket, "/").is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        fail(format!(
            "vitrine's API did not answer in 10 s{}",
            console.last_words()
        ))
    }

    /// One request with curl: the command is shown, the answer is returned.
    fn curl(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--unix-socket"])
            .arg(&self.socket);
        command.args(["-X", method, &format!("http://localhost{path}")]);
        if let Some(body) = body {
            command.args([
                "-H",
                "Content-Type: application/json",
                "-d",
                &body.to_string(),
            ]);
        }
        println!("  $ {}", shown(&command));
        command.args(["--max-time", "30", "--write-out", "\n%{http_code}"]);
        let answer = program::text(&mut command)?;
        let (body, status) = answer.rsplit_once('\n').unwrap_or(("", &answer));
        println!("    -> {status}");
        if status.starts_with('2') {
            Ok(body.to_owned())
        } else {
            fail(format!("{method} {path} was refused with {status}: {body}"))
        }
    }

    fn put(&self, path: &str, body: &Value) -> Result<()> {
        self.curl("PUT", path, Some(body)).map(drop)
    }

    fn tour(&self, console: &mut Console) -> Result<()> {
        self.configure()?;
        step("starting the guest");
        self.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
        let came = console.wait_for("VITRINE-GUEST-INIT", Duration::from_secs(60))?;
        println!(
            "  the guest's first process runs, {:.1} s after vitrine started",
            came.as_secs_f64()
        );
        console.wait_for("DEMO-GUEST-UP", Duration::from_secs(60))?;
        println!("  the guest has its address and has written {FILE} to its drive");

        step("pinging the guest from the host");
        self.show(Command::new("ping").args(["-c", "3", "-i", "0.3", "-W", "5", GUEST]))?;

        step("what the guest made vitrine do (GET /metrics, in short)");
        let metrics = self.curl("GET", "/metrics", None)?;
        print!("{}", metrics::digest(&metrics));

        step("asking the guest to end");
        self.put("/actions", &json!({ "action_type": "SendCtrlAltDel" }))?;
        let status = console.wait_end(Duration::from_secs(60))?;
        println!("  vitrine has ended ({status})");
        if status.success() {
            Ok(())
        } else {
            fail(format!("vitrine ended badly: {status}"))
        }
    }

    fn configure(&self) -> Result<()> {
        step("configuring the machine");
        let script = self.file("script");
        fs::write(&script, SCRIPT).context(|| "cannot write the guest's script".to_owned())?;
        let script = program::text(Command::new("base64").arg("-w0").arg(script))?;
        let boot_args = format!(
            "console=ttyS0 reboot=k panic=1 quiet vitrine.root=/dev/vda vitrine.script={script}"
        );
        self.put(
            "/boot-source",
            &json!({
                "kernel_image_path": self.file("kernel"),
                "initrd_path": self.file("initrd"),
                "boot_args": boot_args,
            }),
        )?;
        self.put(
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": 256 }),
        )?;
        self.put(
            "/drives/rootfs",
            &json!({
                "drive_id": "rootfs",
                "path_on_host": self.file("root.ext4"),
                "is_root_device": false,
                "is_read_only": false,
            }),
        )?;
        self.put(
            "/network-interfaces/eth0",
            &json!({
                "iface_id": "eth0",
                "host_dev_name": TAP,
                "guest_mac": "06:00:ac:1e:4d:02",
            }),
        )
    }
}
