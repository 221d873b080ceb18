//! The command line, as far as it goes without KVM: usage, names, the socket, signals.

#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/reports.rs"]
mod reports;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("vitrine-cli-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn daemon(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(VITRINE);
        command
            .args(["--api-sock", &self.file("sock")])
            .args(arguments);
        command.env("XDG_RUNTIME_DIR", &self.0).stdin(Stdio::null());
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&self.0.join("sock"));
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(VITRINE)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn get(socket: &str, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn the_version_is_told_under_both_names() {
    let own = run(&["--version"]);
    assert!(own.status.success());
    assert!(text(&own.stdout).starts_with("Vitrine v"));
    let scratch = Scratch::new();
    let link = scratch.0.join("firecracker");
    symlink(VITRINE, &link).unwrap();
    let linked = Command::new(&link).arg("--version").output().unwrap();
    let linked = text(&linked.stdout);
    let mut lines = linked.lines();
    assert_eq!(lines.next(), Some("Firecracker v1.17.0"));
    assert!(lines.next().unwrap().starts_with("Vitrine v"));
}

#[test]
fn bad_usage_is_status_2_and_help_has_examples() {
    for arguments in [
        &["--no-such-flag"][..],
        &["run"],
        &["--no-api"],
        &["--level", "loud"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["list", "--help"],
        &["report", "--help"],
        &["top", "--help"],
    ] {
        let output = run(arguments);
        assert!(output.status.success() && text(&output.stdout).contains("Examples:"));
    }
    let kernel = run(&["run", "--kernel", "/no/kernel"]);
    assert_eq!(kernel.status.code(), Some(2));
    let error = text(&kernel.stderr);
    assert!(
        error.contains("/no/kernel") && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn the_daemon_answers_and_ends_by_sigterm_with_0_and_leaves_its_socket() {
    let scratch = Scratch::new();
    let mut child = scratch.daemon(&["--id", "vm-1", "--mmds-size-limit=9", "--boot-timer"]);
    let answer = get(&scratch.file("sock"), "/");
    assert!(
        answer.contains("\"id\":\"vm-1\"") && answer.contains("Not started"),
        "{answer}"
    );
    assert!(get(&scratch.file("sock"), "/metrics").contains("vitrine_build_info"));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(scratch.0.join("sock").exists());
    let mut log = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    for flag in [
        "--mmds-size-limit has no effect",
        "--boot-timer has no effect",
    ] {
        assert!(log.contains(flag), "{log}");
    }
    let again = run(&["--api-sock", &scratch.file("sock")]);
    assert_eq!(again.status.code(), Some(2));
    let error = text(&again.stderr);
    assert!(
        error.contains("already exists: another VMM may be using it"),
        "{error}"
    );
}

#[test]
fn a_process_invoked_as_firecracker_is_found_by_that_name() {
    let scratch = Scratch::new();
    let socket = scratch.file("sock");
    let mut command = Command::new(VITRINE);
    command
        .arg0("firecracker")
        .args(["--api-sock", &socket, "--level", "Off"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    wait_for(Path::new(&socket));
    get(&socket, "/version");
    let name = fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(name, "firecracker\n");
}

#[test]
fn a_bad_configuration_is_status_2_and_leaves_no_socket() {
    let scratch = Scratch::new();
    fs::write(
        scratch.0.join("vm.json"),
        r#"{"boot-source":{"kernel_image_path":"/no/kernel"}}"#,
    )
    .unwrap();
    let (socket, file) = (scratch.file("sock"), scratch.file("vm.json"));
    for extra in [&[][..], &["--no-api"]] {
        let mut arguments = vec![
            "--api-sock",
            &socket,
            "--config-file",
            &file,
            "--level",
            "Error",
        ];
        arguments.extend(extra);
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2));
        let error = text(&output.stderr);
        assert!(
            error.contains("boot-source") && error.contains("/no/kernel"),
            "{error}"
        );
        assert!(!Path::new(&socket).exists());
    }
}

#[test]
fn the_socket_listens_with_little_cpu_time() {
    let scratch = Scratch::new();
    let mut child = scratch.daemon(&["--level", "Off"]);
    get(&scratch.file("sock"), "/machine-config");
    let stat = fs::read_to_string(format!("/proc/{}/schedstat", child.id())).unwrap();
    let cpu_ns: u64 = stat.split(' ').next().unwrap().parse().unwrap();
    signal(&child, "TERM");
    child.wait().unwrap();
    // The main thread's; a debug build takes a few milliseconds, a release build less than one.
    assert!(cpu_ns < 30_000_000, "{cpu_ns} ns");
    println!("{cpu_ns} ns of CPU until the first answer");
}
