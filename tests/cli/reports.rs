//! `list`, `report` and `top` over black boxes whose VMs are gone, and over what is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use observe::blackbox::MAGIC;
use observe::{BlackBox, End, Meta};

use crate::{Scratch, VITRINE, text};

/// Runs vitrine with the scratch folder as the place of black boxes.
pub fn run(scratch: &Scratch, arguments: &[&str]) -> Output {
    Command::new(VITRINE)
        .args(arguments)
        .env("XDG_RUNTIME_DIR", &scratch.0)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The black box of a VM that is gone.
pub fn leave(scratch: &Scratch, id: &str, end: Option<End>) -> String {
    let path = scratch.0.join(format!("vitrine/{id}.blackbox"));
    let meta = Meta {
        vm_id: id.to_owned(),
        version: "1.2.3".to_owned(),
    };
    let black_box = BlackBox::create(&path, 64 << 10, &meta).unwrap();
    if let Some(end) = end {
        black_box.finish(end, "the words of the end");
    }
    path.to_str().unwrap().to_owned()
}

pub fn squeezed(bytes: &[u8]) -> String {
    let text = text(bytes);
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn list_tells_the_dead_from_the_failed_and_hides_what_ended_cleanly() {
    let scratch = Scratch::new();
    let none = run(&scratch, &["list"]);
    let said = text(&none.stdout);
    assert!(none.status.success() && said.starts_with("There is no VM with a black box in "));
    assert!(said.contains(scratch.0.to_str().unwrap()), "{said}");
    leave(&scratch, "killed", None);
    leave(&scratch, "broken", Some(End::Failed));
    leave(&scratch, "fine", Some(End::Clean));
    fs::write(
        scratch.0.join("vitrine/no\u{1b}[2J.blackbox"),
        "what is this",
    )
    .unwrap();
    fs::write(scratch.0.join("vitrine/other"), "what is this").unwrap();
    let pid = std::process::id();
    let output = run(&scratch, &["list"]);
    assert_eq!(output.status.code(), Some(0));
    let said = squeezed(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[0],
        "ID PID STATE SINCE (UTC) VCPUS MEMORY RESIDENT FILE"
    );
    assert!(lines[1].starts_with(&format!("broken {pid} failed 20")));
    assert!(lines[2].starts_with(&format!("killed {pid} dead 20")));
    assert!(lines[2].ends_with("vitrine/killed.blackbox"));
    assert!(lines[3].starts_with("unreadable: ") && lines[3].contains("is not a black box"));
    assert!(lines[4].starts_with("dead: died without a clean end"));
    assert_eq!(lines[5], "1 that ended cleanly: shown with --all.");
    assert_eq!(lines.len(), 6, "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let folder = scratch.file("vitrine");
    let all = run(&scratch, &["list", "--all", "--dir", &folder]);
    let all = squeezed(&all.stdout);
    assert!(all.contains(&format!("\nfine {pid} ended 20")), "{all}");
    let missing = run(&scratch, &["list", "--dir", "/no/such/folder"]);
    assert_eq!(missing.status.code(), Some(2));
    let error = text(&missing.stderr);
    assert!(error.contains("/no/such/folder cannot be read") && error.contains("--dir"));
}

#[test]
fn the_status_of_report_and_top_says_how_the_vm_ended() {
    let scratch = Scratch::new();
    for (id, end, status, words) in [
        ("killed", None, 1, "It died without a clean end"),
        ("broken", Some(End::Failed), 1, "It failed on 20"),
        ("fine", Some(End::Clean), 0, "It ended cleanly on 20"),
    ] {
        let file = leave(&scratch, id, end);
        for arguments in [["report", id], ["report", &file], ["top", id]] {
            let output = run(&scratch, &arguments);
            let said = text(&output.stdout);
            assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
            assert!(said.contains(words), "{said}");
            assert_eq!(said.contains("the words of the end"), end.is_some());
            assert_eq!(text(&output.stderr), "");
        }
    }
}

#[test]
fn a_report_goes_to_a_file_as_text_or_html() {
    let scratch = Scratch::new();
    leave(&scratch, "web", Some(End::Clean));
    for (name, beginning) in [("a.txt", "VM web: ended"), ("a.html", "<!DOCTYPE html>")] {
        let file = scratch.file(name);
        let output = run(&scratch, &["report", "web", "-o", &file]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
        let written = fs::read_to_string(&file).unwrap();
        assert!(written.starts_with(beginning), "{written}");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let boxed = scratch.file("vitrine/web.blackbox");
    for place in ["/dev/null", &scratch.file("vitrine"), &boxed] {
        let output = run(&scratch, &["report", "web", "-o", place]);
        assert_eq!(output.status.code(), Some(2));
        let error = text(&output.stderr);
        assert!(error.contains(place) && error.contains("-o"), "{error}");
    }
    assert!(fs::read(&boxed).unwrap().starts_with(&MAGIC));
}

#[test]
fn what_is_no_vm_is_named_and_status_2() {
    let scratch = Scratch::new();
    let notes = scratch.file("notes");
    fs::write(&notes, "no black box").unwrap();
    let newer = scratch.file("newer");
    let mut bytes = fs::read(leave(&scratch, "web", None)).unwrap();
    bytes[8] = 99;
    fs::write(&newer, bytes).unwrap();
    let folder = scratch.file("");
    for command in ["report", "top"] {
        for (what, words) in [
            ("nobody", "no black box of that name in"),
            ("/no/such/file", "/no/such/file does not exist"),
            (&notes, "is not a black box"),
            (&newer, "has format 99"),
            (&folder, "neither a file nor a socket"),
            ("/dev/null", "neither a file nor a socket"),
        ] {
            let output = run(&scratch, &[command, what]);
            assert_eq!(output.status.code(), Some(2), "{command} {what}");
            let error = text(&output.stderr);
            assert!(error.contains(words), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
            assert_eq!(text(&output.stdout), "");
        }
        assert_eq!(run(&scratch, &[command]).status.code(), Some(2));
    }
    for wrong in [["--interval", "0"], ["--count", "0"]] {
        let output = run(&scratch, &["top", "web", wrong[0], wrong[1]]);
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_file_that_was_cut_is_told_as_far_as_it_goes() {
    let scratch = Scratch::new();
    let file = leave(&scratch, "web", None);
    let bytes = fs::read(&file).unwrap();
    for keep in [16, 1000, 4096, 5000] {
        fs::write(&file, &bytes[..keep]).unwrap();
        let output = run(&scratch, &["report", &file]);
        let said = text(&output.stdout);
        assert!(said.contains("The file is cut short or damaged"), "{said}");
        assert!(Path::new(&file).exists());
    }
}

#[test]
fn a_socket_of_a_daemon_without_a_vm_says_that_there_is_none_yet() {
    let scratch = Scratch::new();
    let mut child = scratch.daemon(&["--level", "Off"]);
    let output = run(&scratch, &["report", &scratch.file("sock")]);
    crate::signal(&child, "TERM");
    child.wait().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    let process = format!("process {}", child.id());
    for words in [&process, "has no black box", "GET /observe", "start it"] {
        assert!(error.contains(words), "{error}");
    }
    let output = run(&scratch, &["top", &scratch.file("sock")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nobody listens at"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let scratch = Scratch::new();
    leave(&scratch, "web", Some(End::Clean));
    let mut child = Command::new(VITRINE)
        .args(["report", "web"])
        .env("XDG_RUNTIME_DIR", &scratch.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
}
