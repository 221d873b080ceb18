//! Parsers of the kernel's text files: pure, and no text makes them panic. What does not look as
//! expected is `None` or passed over.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::path::PathBuf;

/// Limits from here on are none: version 1 says `i64::MAX` rounded down to a page.
const UNLIMITED: u64 = 1 << 62;

/// Levels of the cgroup hierarchy that are looked at, from the process's own upwards.
const MAX_LEVELS: usize = 8;

/// `key value`, `key: value` and `key: value kB` lines; the last in bytes. Lines without a number
/// are passed over. As in meminfo, vmstat, status, smaps, cpu.stat, memory.events.
pub(super) fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let key = words.next()?;
        let key = key.strip_suffix(':').unwrap_or(key);
        let value: u64 = words.next()?.parse().ok()?;
        match words.next() {
            Some("kB") => Some((key, value.saturating_mul(1024))),
            _ => Some((key, value)),
        }
    })
}

/// The numbers of `keys`, in their order; `None` for those that `text` does not have.
pub(super) fn lookup<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for (key, value) in keyed(text) {
        for (slot, wanted) in found.iter_mut().zip(keys) {
            if wanted == key {
                *slot = Some(value);
            }
        }
    }
    found
}

/// One number alone in its file.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `/proc/PID/task/TID/schedstat`: time on a CPU (ns), time waiting for one (ns), timeslices.
pub(super) fn schedstat(text: &str) -> Option<[u64; 3]> {
    let mut words = text.split_ascii_whitespace();
    let mut next = || words.next()?.parse().ok();
    Some([next()?, next()?, next()?])
}

/// What is taken from `/proc/PID/task/TID/stat`; times in ticks of USER_HZ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    /// The thread's name, at most 15 bytes of it.
    pub comm: &'a str,
    /// The kernel's letter for what it does: R, S, D, T, t ...
    pub state: u8,
    pub minor_faults: u64,
    pub major_faults: u64,
    /// User and system time, the guest's included.
    pub cpu_ticks: u64,
    /// Time in the guest; 0 where the kernel does not tell.
    pub guest_ticks: u64,
}

/// `/proc/PID/task/TID/stat`. The name may hold spaces and parentheses, so it ends with the last.
pub(super) fn stat(text: &str) -> Option<Stat<'_>> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    // Field 3 of proc(5) is the first word here.
    let word = |field: usize| rest.split_ascii_whitespace().nth(field.checked_sub(3)?);
    let number = |field: usize| word(field)?.parse::<u64>().ok();
    Some(Stat {
        comm,
        state: word(3)?.bytes().next()?,
        minor_faults: number(10)?,
        major_faults: number(12)?,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        guest_ticks: number(43).unwrap_or(0),
    })
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pressure {
    /// Average over 10 s, in hundredths of a percent.
    pub avg10: u64,
    /// Sum of all stalls, in microseconds.
    pub total_us: u64,
}

/// `/proc/pressure/*`: the lines `some` and `full`. Kernels before 5.13 have no `full` for the CPU.
pub(super) fn pressure(text: &str) -> Option<(Pressure, Option<Pressure>)> {
    let line = |kind: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, rest) = lines.find(|(word, _)| *word == kind)?;
        let pairs = || rest.split_ascii_whitespace();
        let value = |key: &str| pairs().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        Some(Pressure {
            avg10: hundredths(value("avg10")?)?,
            total_us: value("total")?.parse().ok()?,
        })
    };
    Some((line("some")?, line("full")))
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let mut digits = part.chars().map(|c| c.to_digit(10));
    let mut digit = || digits.next().unwrap_or(Some(0)).map(u64::from);
    let part = digit()?.checked_mul(10)?.checked_add(digit()?)?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(part)
}

/// Ticks of `/proc/stat`'s first line that a hypervisor above us took from our CPUs.
pub(super) fn steal_ticks(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    line.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// A limit of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    None,
    At(u64),
}

impl Limit {
    /// The lower of both.
    pub(super) fn tighter(self, other: Limit) -> Limit {
        match (self, other) {
            (Limit::At(a), Limit::At(b)) => Limit::At(a.min(b)),
            (Limit::None, limit) | (limit, Limit::None) => limit,
        }
    }
}

/// `memory.max`, `memory.limit_in_bytes`, `cpu.cfs_quota_us`: a number, or `max` or -1 for none.
pub(super) fn limit(text: &str) -> Option<Limit> {
    match text.trim() {
        "max" | "-1" => Some(Limit::None),
        text => match text.parse().ok()? {
            UNLIMITED.. => Some(Limit::None),
            at => Some(Limit::At(at)),
        },
    }
}

/// `cpu.max`: quota and period, in microseconds.
pub(super) fn cpu_max(text: &str) -> Option<(Limit, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some((limit(quota)?, number(period)?))
}

/// Where the files of a controller lie for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// 1 or 2.
    pub version: u64,
    /// The process's own cgroup, then those above it, up to the mount.
    pub levels: Vec<PathBuf>,
}

/// Finds `controller` from `/proc/self/cgroup` and `/proc/self/mountinfo`: in its own hierarchy
/// (version 1) where that is mounted, else in the unified one (version 2).
pub(super) fn place(membership: &str, mountinfo: &str, controller: &str) -> Option<Place> {
    let among = |list: &str| list.split(',').any(|name| name == controller);
    let first = find(
        membership,
        mountinfo,
        |names| among(names),
        |mount| mount.kind == "cgroup" && among(mount.options),
    );
    let (version, (point, path)) = match first {
        Some(found) => (1, found),
        None => {
            let unified = |names: &str| names.is_empty();
            let second = find(membership, mountinfo, unified, |mount| {
                mount.kind == "cgroup2"
            });
            (2, second?)
        }
    };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // A process outside of its cgroup namespace's root has such a path.
    if parts.contains(&"..") {
        return None;
    }
    let levels = (0..=parts.len()).rev().take(MAX_LEVELS).map(|depth| {
        let below = parts.iter().take(depth);
        below.fold(PathBuf::from(&point), |path, part| path.join(part))
    });
    Some(Place {
        version,
        levels: levels.collect(),
    })
}

/// A line of mountinfo.
struct Mount<'a> {
    root: String,
    point: String,
    kind: &'a str,
    options: &'a str,
}

/// The mount point of a hierarchy and the process's path below it.
fn find(
    membership: &str,
    mountinfo: &str,
    is_listed: impl Fn(&str) -> bool,
    is_mount: impl Fn(&Mount<'_>) -> bool,
) -> Option<(String, String)> {
    let path = membership.lines().find_map(|line| {
        let mut columns = line.splitn(3, ':').skip(1);
        let listed = columns.next().is_some_and(&is_listed);
        columns.next().filter(|_| listed)
    })?;
    let mut mounts = mountinfo.lines().filter_map(mount);
    mounts.find_map(|mount| {
        let below = match mount.root.as_str() {
            "/" => Some(path),
            root => path.strip_prefix(root),
        };
        let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
        let below = below.filter(|_| is_mount(&mount))?.to_owned();
        Some((mount.point, below))
    })
}

fn mount(line: &str) -> Option<Mount<'_>> {
    let (ours, theirs) = line.split_once(" - ")?;
    let mut ours = ours.split(' ').skip(3);
    let mut theirs = theirs.split(' ');
    Some(Mount {
        root: unescaped(ours.next()?),
        point: unescaped(ours.next()?),
        kind: theirs.next()?,
        options: theirs.nth(1)?,
    })
}

/// Text in which the kernel wrote space, tab, newline and backslash as `\ooo`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => plain.push(char::from(code)),
            None => plain.push('\\'),
        }
        let rest = code.and_then(|_| part.get(3..)).unwrap_or(part);
        plain.push_str(rest);
    }
    plain
}

/// Bytes of a mapping, as smaps gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub resident: u64,
    pub swapped: u64,
    pub anonymous_huge: u64,
    pub shared_huge: u64,
    pub hugetlb: u64,
    pub locked: u64,
}

impl Usage {
    /// Adds to `self` the share `part / whole` of `other`.
    pub(super) fn add_share(&mut self, other: &Usage, part: u64, whole: u64) {
        let share = |bytes: u64| {
            let bytes = u128::from(bytes).saturating_mul(u128::from(part));
            let bytes = bytes.checked_div(u128::from(whole)).unwrap_or(0);
            u64::try_from(bytes).unwrap_or(u64::MAX)
        };
        let add = |to: &mut u64, bytes| *to = to.saturating_add(share(bytes));
        add(&mut self.resident, other.resident);
        add(&mut self.swapped, other.swapped);
        add(&mut self.anonymous_huge, other.anonymous_huge);
        add(&mut self.shared_huge, other.shared_huge);
        add(&mut self.hugetlb, other.hugetlb);
        add(&mut self.locked, other.locked);
    }
}

/// A mapping and what it uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vma {
    pub start: u64,
    pub end: u64,
    pub usage: Usage,
}

/// Reads `/proc/self/smaps` line by line.
#[derive(Debug, Default)]
pub(super) struct Smaps {
    current: Option<Vma>,
}

impl Smaps {
    /// Takes a line; gives back the mapping that it ends, if it does.
    pub(super) fn line(&mut self, line: &str) -> Option<Vma> {
        if let Some((start, end)) = range(line) {
            let usage = Usage::default();
            return self.current.replace(Vma { start, end, usage });
        }
        let usage = &mut self.current.as_mut()?.usage;
        let (key, bytes) = keyed(line).next()?;
        let field = match key {
            "Rss" => &mut usage.resident,
            "Swap" => &mut usage.swapped,
            "AnonHugePages" => &mut usage.anonymous_huge,
            "ShmemPmdMapped" => &mut usage.shared_huge,
            // Private or shared: each page is in one of both.
            "Private_Hugetlb" | "Shared_Hugetlb" => &mut usage.hugetlb,
            "Locked" => &mut usage.locked,
            _ => return None,
        };
        *field = field.saturating_add(bytes);
        None
    }

    /// The last mapping, after the last line.
    pub(super) fn finish(self) -> Option<Vma> {
        self.current
    }
}

/// `7f0000000000-7f0010000000 rw-p ...`: the line that begins a mapping.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
