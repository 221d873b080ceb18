//! docs/freezes.md has a section of each code: its head is made from the program, the rest is
//! written by hand.

use std::fmt::Write;

use observe::verdict::{Code, Severity, Thresholds};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/freezes.md");
const REMEDY: &str = "VITRINE_BLESS=1 cargo test -p observe --test freezes_page";
const TABLE: &str = "<!-- codes -->\n";
const SECTION: &str = "<!-- code: ";
const END: &str = "<!-- end -->\n";

fn begin(code: Code) -> String {
    format!("{SECTION}{} -->\n", code.name())
}

fn table() -> String {
    let mut table = "\n| code | severity | what it means |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let entry = code.entry();
        let not = match code.is_judged() {
            true => "",
            false => " *Not judged in this version.*",
        };
        let (name, severity, means) = (entry.name, entry.severity.name(), entry.means);
        let _ = writeln!(table, "| [{name}](#{name}) | {severity} | {means}{not} |");
    }
    table.push('\n');
    table
}

fn head(code: Code) -> String {
    let entry = code.entry();
    let (name, severity, means) = (entry.name, entry.severity.name(), entry.means);
    let mut head = format!("\n## {name}\n\n*{severity}*: {means}\n\n");
    if !code.is_judged() {
        head.push_str("**Not judged in this version**: Vitrine never says it yet.\n\n");
    }
    let _ = writeln!(head, "**What to do:** {}\n", entry.remedy);
    head
}

/// What is written by hand about a code; nothing where it has no section.
fn by_hand(page: &str, code: Code) -> Option<&str> {
    let (_, rest) = page.split_once(&begin(code))?;
    let (_, rest) = rest.split_once(END)?;
    rest.split(SECTION).next()
}

/// The page with fresh blocks; sections that are missing are added, what is written by hand stays.
fn fresh(page: &str) -> String {
    let (intro, rest) = page.split_once(TABLE).unwrap_or((page, END));
    let (_, after) = rest.split_once(END).unwrap_or(("", "\n"));
    let between = after.split(SECTION).next().unwrap_or("\n");
    let mut fresh = format!("{intro}{TABLE}{}{END}{between}", table());
    for code in Code::ALL {
        let text = by_hand(page, *code).unwrap_or("\n");
        let _ = write!(fresh, "{}{}{END}{text}", begin(*code), head(*code));
    }
    fresh
}

#[test]
fn the_page_of_all_verdicts_is_fresh() {
    let there = std::fs::read_to_string(PAGE).unwrap_or_default();
    let fresh = fresh(&there);
    if std::env::var_os("VITRINE_BLESS").is_some() {
        std::fs::write(PAGE, &fresh).unwrap();
    } else {
        assert!(there == fresh, "docs/freezes.md is stale: run {REMEDY}");
    }
}

#[test]
fn every_code_has_one_section_with_something_written_by_hand() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert_eq!(page.matches(SECTION).count(), Code::ALL.len());
    for code in Code::ALL {
        let name = code.name();
        assert_eq!(page.matches(&begin(*code)).count(), 1, "{name}");
        assert_eq!(page.matches(&format!("\n## {name}\n")).count(), 1, "{name}");
        let text = by_hand(&page, *code).unwrap();
        let mut paragraphs = text.split("\n\n");
        assert!(
            paragraphs.any(|paragraph| paragraph.trim().len() >= 80),
            "{name}: write how Vitrine knows and what to look at next"
        );
    }
}

/// From where on a number is a verdict, as the page has to tell it.
fn thresholds() -> Vec<(Code, String)> {
    let limits = Thresholds::default();
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let seconds = |ns: u64| format!("{} s", ns as f64 / 1e9);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    vec![
        (Code::VcpuStarved, percent(limits.starved_share)),
        (Code::VcpuThrottled, percent(limits.throttled_share)),
        (Code::VcpuInHandler, seconds(limits.handler_ns)),
        (Code::VcpuHostFault, percent(limits.fault_share)),
        (Code::ExitStorm, format!("{} times", limits.storm_exits)),
        (Code::ExitStorm, percent(limits.storm_share)),
        (Code::WakeStorm, format!("{} times", limits.wake_halts)),
        (Code::WakeStorm, percent(limits.wake_kernel_share)),
        (Code::VcpuSpin, seconds(limits.message_ns)),
        (Code::GuestPanic, seconds(limits.message_ns)),
        (Code::GuestOom, seconds(limits.message_ns)),
        (Code::DriveError, seconds(limits.message_ns)),
        (Code::QueueBackendStall, seconds(limits.backend_stall_ns)),
        (Code::QueueGuestNotReaping, seconds(limits.not_reaping_ns)),
        (Code::QueueRxStarved, seconds(limits.rx_starved_ns)),
        (Code::QueueRateLimited, percent(limits.limited_share)),
        (Code::VmmThreadStuck, seconds(limits.thread_ns)),
        (
            Code::HostMemoryPressure,
            percent(limits.memory_pressure_share),
        ),
        (Code::HostSwappingGuest, mib(limits.swapped_bytes)),
        (Code::VmmOomRisk, percent(limits.oom_share)),
        (Code::VmmOomRisk, seconds(limits.oom_soon_ns)),
        (Code::VmmOomKilled, percent(limits.oom_share)),
        (Code::BalloonStuck, seconds(limits.balloon_ns)),
        (
            Code::GuestMemoryPressure,
            percent(limits.guest_available_share),
        ),
        (Code::GuestOomSoon, seconds(limits.oom_soon_ns)),
    ]
}

#[test]
fn the_page_tells_the_thresholds_that_are_in_force() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let limits = Thresholds::default();
    let [raise, clear] = [limits.raise_ns, limits.clear_ns].map(|ns| ns / 1_000_000_000);
    let [error, warning] = [Severity::Error, Severity::Warning].map(Severity::points);
    for words in [
        format!("it has held for {raise} s and *cleared*\nwhen it has been gone for {clear} s"),
        format!("less {error} for each error and {warning} for each warning"),
    ] {
        assert!(page.contains(&words), "{words} is not told");
    }
    for (code, number) in thresholds() {
        let name = code.name();
        assert!(
            by_hand(&page, code).is_some_and(|text| text.contains(&number)),
            "{name}: the threshold {number} is not told"
        );
    }
}

#[test]
fn a_stale_or_missing_head_is_made_anew_and_the_rest_stays() {
    let section = begin(Code::Paused);
    let old = format!("# T\n{TABLE}old\n{END}\nbetween\n\n{section}old\n{END}\nby hand\n\n");
    let new = fresh(&old);
    assert!(new.starts_with("# T\n") && new.contains("\nbetween\n\n<!-- code: "));
    assert!(!new.contains("old\n"), "{new}");
    assert!(new.ends_with(&format!("{END}\nby hand\n\n")), "{new}");
    assert_eq!(new.matches(SECTION).count(), Code::ALL.len());
    assert_eq!(fresh(&new), new);
}
