//! Debian packages: what is missing is installed, what is only looked into is downloaded and
//! unpacked without installing. Says what it does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::error::{Context, Result, fail};
use crate::program::{self, say};

/// Whether this process may install packages.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// An apt program with the options that make it predictable.
fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Reads the package lists when this machine has none.
fn ensure_index() -> Result<()> {
    if program::find("apt-get").is_none() {
        return fail(
            "apt-get is not here: the lab and the guest images are made from Debian packages; \
             use Debian 12 (a container with /dev/kvm will do)",
        );
    }
    let has_lists = fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    });
    if has_lists { Ok(()) } else { update() }
}

/// Reads the package lists anew.
pub fn update() -> Result<()> {
    if !is_root() {
        return fail("the package lists must be read: run `sudo apt-get update`");
    }
    say("apt", "reading the package lists (apt-get update) ...");
    program::run(apt("apt-get").args(["-o", "DPkg::Lock::Timeout=600", "update"]))
}

/// The path of a program; its package is installed when it is missing.
pub fn tool(name: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = program::find(name) {
        return Ok(path);
    }
    install(&[package], None)?;
    program::find(name)
        .ok_or_else(|| crate::error::Error::new(format!("{package} was installed without {name}")))
}

/// Installs packages, from `suite` when one is named.
pub fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    let names = packages.join(" ");
    if !is_root() {
        return fail(format!(
            "missing packages: run `sudo apt-get install {names}`"
        ));
    }
    ensure_index()?;
    let from = suite.map(|s| format!(" from {s}")).unwrap_or_default();
    say("apt", format!("installing {names}{from} ..."));
    let attempt = || {
        let mut command = apt("apt-get");
        command.args([
            "-o",
            "DPkg::Lock::Timeout=600",
            "-y",
            "--no-install-recommends",
            "install",
        ]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        program::run(command.args(packages))
    };
    // A list older than the archive names files that are gone.
    attempt().or_else(|_| update().and_then(|()| attempt()))
}

/// The newest package `linux-image-SERIES.…SUFFIX`, where `SUFFIX` is `cloud-amd64` or `amd64`.
pub fn newest_kernel(series: &str, suffix: &str) -> Result<String> {
    let search = || -> Result<Option<String>> {
        let pattern = format!(
            r"^linux-image-{}\.[^-]+(-[0-9]+)?-{suffix}$",
            series.replace('.', r"\.")
        );
        let found = program::text(apt("apt-cache").args(["search", "--names-only", &pattern]))?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        Ok(newest(names).map(str::to_owned))
    };
    ensure_index()?;
    if let Some(name) = search()? {
        return Ok(name);
    }
    update()?;
    search()?.map_or_else(
        || {
            fail(format!(
                "apt knows no package linux-image-{series}.*-{suffix}: Debian 12 with its \
                 security suite has it; add that suite to /etc/apt/sources.list"
            ))
        },
        Ok,
    )
}

/// The packages with which modules are built for the kernel of that release.
pub fn headers_of(release: &str) -> Result<Vec<String>> {
    ensure_index()?;
    let headers = format!("linux-headers-{release}");
    let listing = program::text(apt("apt-cache").args(["depends", &headers])).unwrap_or_default();
    let names = listing
        .lines()
        .filter_map(|line| line.split_once("Depends: "));
    let needed = names.map(|(_, name)| name.trim()).filter(|name| {
        name.starts_with("linux-kbuild-")
            || name.starts_with("linux-headers-") && name.ends_with("-common")
    });
    let needed: Vec<String> = needed.map(str::to_owned).collect();
    if needed.len() != 2 {
        return fail(format!(
            "apt has no package {headers}, of the kernel that the guests run: a newer one has \
             taken its place; run `cargo xtask images --refresh`"
        ));
    }
    Ok([headers].into_iter().chain(needed).collect())
}

/// The name with the highest version: the numbers in it, compared in order.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names.max_by_key(|name| {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse::<u64>().ok())
            .collect::<Vec<_>>()
    })
}

/// The package file kept under `key` in the cache; downloaded when absent or on `refresh`.
/// `package` is asked for its name only then.
pub fn package_file(
    key: &str,
    refresh: bool,
    package: impl FnOnce() -> Result<String>,
) -> Result<PathBuf> {
    let files = package_files(key, refresh, || Ok(vec![package()?]))?;
    match files.into_iter().next() {
        Some(file) => Ok(file),
        None => fail(format!("apt-get download left no package file for {key}")),
    }
}

/// The package files kept under `key`, as `package_file` keeps one.
pub fn package_files(
    key: &str,
    refresh: bool,
    packages: impl FnOnce() -> Result<Vec<String>>,
) -> Result<Vec<PathBuf>> {
    let folder = cache::folder()?.join("packages").join(key);
    if !refresh && let Some(files) = debs_in(&folder) {
        return Ok(files);
    }
    let names = packages()?;
    ensure_index()?;
    let scratch = cache::Scratch::beside(&folder)?;
    let built = scratch.path().join("debs");
    cache::make_folder(&built)?;
    let attempt = || {
        say("apt", format!("downloading {} ...", names.join(" ")));
        program::run(
            apt("apt-get")
                .current_dir(&built)
                .arg("download")
                .args(&names),
        )
    };
    attempt().or_else(|_| update().and_then(|()| attempt()))?;
    let _ = fs::remove_dir_all(&folder);
    cache::put(&built, &folder)?;
    debs_in(&folder).map_or_else(
        || fail(format!("apt-get left no package files for {key}")),
        Ok,
    )
}

/// Whether the cache has the package file of `key`.
pub fn has_package_file(key: &str) -> bool {
    cache::folder().is_ok_and(|folder| debs_in(&folder.join("packages").join(key)).is_some())
}

/// The package files in a folder, sorted; nothing when there is none.
fn debs_in(folder: &Path) -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> = entries
        .filter(|p| p.extension().is_some_and(|x| x == "deb"))
        .collect();
    files.sort();
    (!files.is_empty()).then_some(files)
}

/// Unpacks a package file into a folder.
pub fn unpack(file: &Path, folder: &Path) -> Result<()> {
    program::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(folder),
    )
}

/// The libraries that `packages` need, with those that these need, as package names.
pub fn libraries_of(packages: &[&str]) -> Result<Vec<String>> {
    ensure_index()?;
    let leave_out = [
        "recommends",
        "suggests",
        "conflicts",
        "breaks",
        "replaces",
        "enhances",
    ];
    let mut command = apt("apt-cache");
    command.args(["depends", "--recurse"]);
    command.args(leave_out.map(|kind| format!("--no-{kind}")));
    let listing = program::text(command.args(packages))?;
    Ok(library_closure(&listing, packages))
}

fn library_closure(listing: &str, roots: &[&str]) -> Vec<String> {
    let is_library = |name: &str| name.starts_with("lib") || name.starts_with("zlib");
    let mut needs: Vec<(&str, &str)> = Vec::new();
    let mut package = "";
    for line in listing.lines() {
        if !line.starts_with([' ', '|']) {
            package = line.trim();
        } else if let Some((kind, name)) = line.split_once(": ")
            && kind.ends_with("Depends")
        {
            needs.push((package, name.trim()));
        }
    }
    let mut closure: Vec<String> = Vec::new();
    let mut open: Vec<&str> = roots.to_vec();
    while let Some(package) = open.pop() {
        for (_, name) in needs
            .iter()
            .filter(|(of, name)| *of == package && is_library(name))
        {
            if !closure.iter().any(|known| known == name) {
                closure.push((*name).to_owned());
                open.push(name);
            }
        }
    }
    closure.sort();
    closure
}

/// The name of this distribution's release, such as `bookworm`.
pub fn codename() -> Result<String> {
    let file = fs::read_to_string("/etc/os-release")
        .context(|| "cannot read /etc/os-release".to_owned())?;
    file.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map_or_else(
            || fail("/etc/os-release names no VERSION_CODENAME: use Debian 12"),
            |name| Ok(name.trim_matches('"').to_owned()),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let names = ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-47-amd64"];
        assert_eq!(newest(names.into_iter()), Some(names[1]));
        assert_eq!(newest(std::iter::empty()), None);
    }

    #[test]
    fn only_libraries_are_followed() {
        let listing = "ip\n |Depends: debconf\n  Depends: libb\n  PreDepends: liba\n\
                       debconf\n  Depends: libx\nliba\n  Depends: zlib1g\n  Depends: <libv>\nlibb\n";
        assert_eq!(
            library_closure(listing, &["ip"]),
            ["liba", "libb", "zlib1g"]
        );
    }
}
