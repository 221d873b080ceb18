//! `vitrine doctor` over black boxes whose VMs are gone, over what is none, and its usage.

use std::fs;

use observe::End;
use serde_json::{Value, json};

use crate::reports::{leave, run, squeezed};
use crate::{Scratch, text};

#[test]
fn the_status_and_the_words_say_how_the_vm_ended() {
    let scratch = Scratch::new();
    let died = [
        "killed: 1 error (health 50 of 100)\nIt died without a clean end: ",
        "\nerror vmm-died, vmm: the VMM died without an orderly end, after ",
        "\nremedy It was killed or crashed: look at the kernel's log ",
        "\n`vitrine report killed` tells all that is known.",
    ];
    let failed = [
        "broken: 1 error (health 50 of 100)\nIt failed on 20",
        "\nerror vm-failed, vm: the VM failed after ",
        "\nfailure the words of the end\n",
        "\nremedy What it said is in the evidence; ",
    ];
    let fine = ["fine: healthy\nIt ended cleanly on 20"];
    let all: [(&str, Option<End>, i32, &[&str]); 3] = [
        ("killed", None, 4, &died),
        ("broken", Some(End::Failed), 4, &failed),
        ("fine", Some(End::Clean), 0, &fine),
    ];
    for (id, end, status, words) in all {
        let file = leave(&scratch, id, end);
        let output = run(&scratch, &["doctor", id]);
        let said = squeezed(&output.stdout);
        assert_eq!(output.status.code(), Some(status), "{id}: {said}");
        assert!(said.starts_with(words[0]), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing:\n{said}");
        }
        assert_eq!(text(&output.stderr), "");
        assert_eq!(said.contains("vitrine report"), status == 4, "{said}");
        // By its file it is the same, but for how it is called.
        let by_file = squeezed(&run(&scratch, &["doctor", &file]).stdout);
        assert_eq!(by_file.replace(&file, id), said);
    }
}

#[test]
fn json_is_the_health_document_with_whose_it_is() {
    let scratch = Scratch::new();
    leave(&scratch, "broken", Some(End::Failed));
    let output = run(&scratch, &["doctor", "broken", "--json"]);
    assert_eq!(output.status.code(), Some(4));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["alive", "ended", "health", "id", "verdicts"]);
    assert_eq!(
        (&document["id"], &document["health"], &document["alive"]),
        (&json!("broken"), &json!(50), &json!(false))
    );
    let ended = &document["ended"];
    assert_eq!(ended["failed"], true);
    assert_eq!(ended["detail"], "the words of the end");
    let verdict = &document["verdicts"][0];
    assert_eq!(verdict["code"], "vm-failed");
    assert_eq!(verdict["evidence"]["failure"], "the words of the end");
    // The end's own date, not today's uptime: both are of the same moment.
    let (since, at) = (verdict["since_ms"].as_u64(), ended["at_ms"].as_u64());
    assert!(since.unwrap().abs_diff(at.unwrap()) <= 1000, "{document}");
}

#[test]
fn no_text_of_the_file_acts_on_the_terminal() {
    let scratch = Scratch::new();
    let file = leave(&scratch, "evil", Some(End::Failed));
    let mut bytes = fs::read(&file).unwrap();
    let words = b"the words of the end";
    let at = bytes.windows(words.len()).position(|part| part == words);
    let at = at.unwrap();
    let evil = "\u{1b}[2J\u{9b}2J\u{202e}\u{7f}\r".as_bytes();
    bytes[at..at + evil.len()].copy_from_slice(evil);
    // The id is at 0x78.
    bytes[0x78..0x7b].copy_from_slice(b"\x1b[m");
    let copy = scratch.file("copy");
    fs::write(&copy, bytes).unwrap();
    for arguments in [&["doctor", &copy][..], &["doctor", &copy, "--json"]] {
        let output = run(&scratch, arguments);
        let said = text(&output.stdout);
        let acts = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!said.contains(acts), "{said:?}");
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains("[2J"), "{said}");
    }
}

#[test]
fn what_is_no_vm_and_no_wait_is_named_and_status_2() {
    let scratch = Scratch::new();
    leave(&scratch, "web", None);
    let notes = scratch.file("notes");
    fs::write(&notes, "no black box").unwrap();
    for (what, words) in [
        ("nobody", "no black box of that name in"),
        ("/no/such/file", "/no/such/file does not exist"),
        (&notes, "is not a black box"),
        ("/dev/null", "neither a file nor a socket"),
    ] {
        let output = run(&scratch, &["doctor", what]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{what}: {error}");
        assert!(error.contains(words), "{error}");
        assert_eq!(text(&output.stdout), "");
    }
    for wait in ["0.1", "61", "nan", "x"] {
        let output = run(&scratch, &["doctor", "web", "--wait", wait]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wait}");
        assert!(error.contains("give seconds from 0.2 to 60"), "{error}");
    }
    assert_eq!(run(&scratch, &["doctor"]).status.code(), Some(2));
}

#[test]
fn a_file_that_was_cut_says_so() {
    let scratch = Scratch::new();
    let file = leave(&scratch, "web", None);
    let bytes = fs::read(&file).unwrap();
    for keep in [16, 1000, 4096, 5000] {
        fs::write(&file, &bytes[..keep]).unwrap();
        let output = run(&scratch, &["doctor", &file]);
        let said = text(&output.stdout);
        assert_ne!(output.status.code(), Some(0), "{keep}: {said}");
        assert!(!said.contains("healthy"), "{keep}: {said}");
        assert!(
            said.contains("The file is cut short or damaged"),
            "{keep}: {said}"
        );
    }
}
