//! What is logged where, and that a full FIFO holds up nobody.

use std::ffi::CString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("vitrine-log-{}-{name}", std::process::id()));
    let _ = fs::remove_file(&path);
    path
}

fn to_file(path: &Path) -> LoggerWire {
    LoggerWire {
        log_path: Some(path.to_owned()),
        ..LoggerWire::default()
    }
}

fn with<R>(control: &Arc<LogControl>, run: impl FnOnce() -> R) -> R {
    tracing::subscriber::with_default(Logger(Arc::clone(control)), run)
}

#[test]
fn lines_have_what_was_asked() {
    let path = scratch("lines");
    let control = LogControl::new("vm1");
    control.apply(&to_file(&path)).unwrap();
    with(&control, || {
        tracing::info!(drive = "root", "plain");
        tracing::debug!("hidden");
        let more = LoggerWire {
            level: Some(LevelWire::Debug),
            show_level: Some(true),
            show_log_origin: Some(true),
            ..LoggerWire::default()
        };
        control.apply(&more).unwrap();
        tracing::debug!("now\nseen");
        let none = LoggerWire {
            module: Some("devices".into()),
            ..LoggerWire::default()
        };
        control.apply(&none).unwrap();
        tracing::error!("of another module");
    });
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].contains("[vm1:") && lines[0].ends_with("] plain drive=root"),
        "{text}"
    );
    assert!(
        lines[1].contains(":DEBUG:") && lines[1].contains("tests.rs:"),
        "{text}"
    );
    assert!(lines[1].ends_with("now seen"), "{text}");
}

#[test]
#[allow(unsafe_code)]
fn a_full_fifo_drops_lines_and_counts_them() {
    let path = scratch("fifo");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path that lives across the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let control = LogControl::new("vm");
    control.apply(&to_file(&path)).unwrap();
    let begin = SystemTime::now();
    with(&control, || {
        for _ in 0..1000 {
            tracing::info!("{}", "x".repeat(500));
        }
    });
    assert!(begin.elapsed().unwrap() < Duration::from_secs(5));
    let dropped = control.dropped();
    assert!((1..1000).contains(&dropped), "{dropped}");

    let mut reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut text = vec![0; 1 << 20];
    let read = std::io::Read::read(&mut reader, &mut text).unwrap();
    assert!(read > 10_000);
    with(&control, || tracing::info!("after"));
    let read = std::io::Read::read(&mut reader, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..read]).into_owned();
    fs::remove_file(&path).unwrap();
    assert!(
        text.contains(&format!("{dropped} log lines were dropped here")),
        "{text}"
    );
    assert!(text.contains("] after"), "{text}");
}

#[test]
fn a_log_that_cannot_be_opened_changes_nothing() {
    let control = LogControl::new("vm");
    let wire = LoggerWire {
        log_path: Some("/no/such/directory/log".into()),
        level: Some(LevelWire::Off),
        ..LoggerWire::default()
    };
    let error = control.apply(&wire).unwrap_err().to_string();
    assert!(error.contains("/no/such/directory/log"), "{error}");
    assert!(control.admits(Level::INFO));
}
