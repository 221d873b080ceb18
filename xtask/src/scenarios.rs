//! `cargo xtask scenarios`: each verdict brought about on purpose, here or in the lab, and one table
//! of what was found.

mod table;

use std::path::PathBuf;
use std::time::Duration;

use crate::apt;
use crate::error::{Context, Result, fail};
use crate::images::{self, Set};
use crate::lab::End;
use crate::program::say;
use crate::suite::{Built, build, kvm_opens, prepare_tools, run_here, run_in_lab};
use table::{HEAD, HEALTHY_HEAD, Table};

/// `cargo xtask scenarios`
#[derive(clap::Args)]
pub struct ScenariosArgs {
    /// Play only these scenarios, by name; `--list` shows all
    names: Vec<String>,
    /// Show the scenarios and play none
    #[arg(long)]
    list: bool,
    /// Only what runs on this machine's own KVM
    #[arg(long)]
    local: bool,
    /// Instead: healthy guests at work, of which nothing bad may be said (about 20 minutes)
    #[arg(long)]
    healthy: bool,
    /// Also write what was observed into tests/scenarios/recorded
    #[arg(long)]
    record: bool,
}

/// Machines start, and guests boot in an emulated one.
const HERE_LIMIT: Duration = Duration::from_secs(900);
const LAB_LIMIT: Duration = Duration::from_secs(2700);
/// A minute for each of the healthy guests, and some more.
const HEALTHY_LIMIT: Duration = Duration::from_secs(1500);

/// Builds, plays, prints the table; fails when a scenario failed.
pub fn main(args: &ScenariosArgs) -> Result<()> {
    let root = crate::repository()?;
    std::env::set_current_dir(&root).context(|| format!("cannot enter {}", root.display()))?;
    prepare_tools()?;
    for (tool, package) in [("dmsetup", "dmsetup"), ("mkswap", "util-linux")] {
        apt::tool(tool, package)?;
    }
    let built = build("scenarios")?;
    if args.list {
        let mut out = std::io::stdout();
        let list = ["--list".to_owned()];
        return ended(run_here(&built, &root, &list, HERE_LIMIT, &mut out)?);
    }
    let known = names(&built, &root)?;
    let unknown = |name: &&String| !known.iter().any(|(there, _)| there == *name);
    if let Some(name) = args.names.iter().find(unknown) {
        return fail(format!(
            "there is no scenario {name}: `cargo xtask scenarios --list` shows all"
        ));
    }
    let wanted = |place: &str| {
        let asked = |name: &String| args.names.is_empty() || args.names.contains(name);
        let mut known = known.iter();
        known.any(|(name, there)| there == place && asked(name))
    };
    let head = if args.healthy { HEALTHY_HEAD } else { HEAD };
    let mut table = Table::new(head, std::io::stdout());
    let mut ends = Vec::new();
    if !args.healthy && wanted("Here") {
        ends.push(play(args, &built, "--here", !kvm_opens(), &mut table));
    }
    if !args.local && wanted(if args.healthy { "Healthy" } else { "Lab" }) {
        ends.push(play(args, &built, "--lab", true, &mut table));
    }
    table.finish();
    println!("{}", table.text());
    for end in ends {
        end.and_then(ended)?;
    }
    if table.is_empty() {
        return fail("no scenario was played: they run in the lab, leave out --local");
    }
    Ok(())
}

fn ended(end: End) -> Result<()> {
    match end {
        End::Exit(0) => Ok(()),
        End::Exit(status) => fail(format!(
            "a scenario failed (status {status}): see the table"
        )),
        End::TimeUp => fail("time was up; the scenarios were ended"),
        End::StoodStill => fail("the emulated machine stood still; the scenarios were ended"),
    }
}

/// All scenarios: name and place.
fn names(built: &Built, root: &std::path::Path) -> Result<Vec<(String, String)>> {
    let mut text = Vec::new();
    let list = ["--list".to_owned()];
    ended(run_here(built, root, &list, HERE_LIMIT, &mut text)?)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(lines
        .map(|(name, place)| (name.to_owned(), place.to_owned()))
        .collect())
}

/// The scenarios of one place, on this machine or in the lab.
fn play(
    args: &ScenariosArgs,
    built: &Built,
    place: &str,
    in_lab: bool,
    table: &mut Table<std::io::Stdout>,
) -> Result<End> {
    let sets = if place == "--here" {
        &[Set::Zoo][..]
    } else {
        &[Set::Zoo, Set::Linux][..]
    };
    let images: PathBuf = images::ensure(sets, false)?;
    let mut words = vec![place.to_owned()];
    for (is_asked, word) in [(args.healthy, "--healthy"), (args.record, "--record")] {
        if is_asked {
            words.push(word.to_owned());
        }
    }
    words.extend(args.names.iter().cloned());
    if !in_lab {
        say("scenarios", "on this host's KVM ...");
        return run_here(built, &images, &words, HERE_LIMIT, table);
    }
    say("scenarios", "in the lab ...");
    let limit = if args.healthy {
        HEALTHY_LIMIT
    } else {
        LAB_LIMIT
    };
    let size = |job: &mut crate::lab::Job| {
        job.timeout = limit;
        job.cpus = 1;
    };
    run_in_lab(built, &images, &words, size, table)
}
