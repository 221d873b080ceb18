//! Debian's kernels, unpacked: the bzImage, the ELF image inside it, and modules in load order.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt;
use crate::cache::Scratch;
use crate::error::{Context, Result, fail};
use crate::program;

/// The indices that busybox's modprobe reads.
pub const PLAIN_INDICES: [&str; 2] = ["modules.dep", "modules.alias"];
/// The indices that kmod's modprobe reads.
pub const KMOD_INDICES: [&str; 4] = [
    "modules.dep.bin",
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.builtin.bin",
];

/// A kernel package unpacked in a scratch folder.
pub struct Kernel {
    scratch: Scratch,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// For each module: its file below `/lib/modules/RELEASE` and the files that it needs.
    modules: HashMap<String, (String, Vec<String>)>,
}

impl Kernel {
    /// Unpacks a package file beside itself.
    pub fn unpack(package: &Path) -> Result<Self> {
        let scratch = Scratch::beside(package)?;
        apt::unpack(package, scratch.path())?;
        let modules = scratch.path().join("lib/modules");
        let release = fs::read_dir(&modules)
            .ok()
            .and_then(|mut entries| entries.next()?.ok())
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let Some(release) = release else {
            return fail(format!("{} holds no kernel modules", package.display()));
        };
        depmod(scratch.path(), &release)?;
        let file = modules.join(&release).join("modules.dep");
        let text =
            fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            scratch,
            release,
            modules: parse_dependencies(&text),
        })
    }

    /// The bzImage.
    pub fn bzimage(&self) -> PathBuf {
        self.scratch
            .path()
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The files of `wanted` and of what they need, in load order, below `/lib/modules/RELEASE`.
    /// A module that is built in has no file.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order: Vec<String> = Vec::new();
        for name in wanted {
            let Some((file, needs)) = self.modules.get(&module_name(name)) else {
                if self.is_built_in(name) {
                    continue;
                }
                return fail(format!("the kernel {} has no module {name}", self.release));
            };
            // modules.dep names the nearest first: what is needed by all comes last.
            for file in needs.iter().rev().chain([file]) {
                if !order.contains(file) {
                    order.push(file.clone());
                }
            }
        }
        Ok(order)
    }

    fn is_built_in(&self, name: &str) -> bool {
        let list = self.folder().join("modules.builtin");
        let list = fs::read_to_string(list).unwrap_or_default();
        list.lines()
            .any(|line| module_name(line) == module_name(name))
    }

    /// `/lib/modules/RELEASE` of the unpacked package.
    pub fn folder(&self) -> PathBuf {
        self.scratch.path().join("lib/modules").join(&self.release)
    }

    /// A module's content, decompressed. `file` as `load_order` gives it.
    pub fn module(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.folder().join(file);
        let content = fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
        match path.extension().and_then(|x| x.to_str()) {
            Some("xz") => decompress(&["xz", "-dc"], content),
            Some("zst") => decompress(&["zstd", "-dc"], content),
            _ => Ok(content),
        }
    }

    /// `wanted` and what they need as a small `/lib/modules/RELEASE` that modprobe understands:
    /// decompressed files and, of depmod's indices, those asked for, each with its path below the root.
    pub fn module_tree(&self, wanted: &[&str], indices: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let scratch = Scratch::beside(self.scratch.path())?;
        let inside = format!("lib/modules/{}", self.release);
        let folder = scratch.path().join(&inside);
        crate::cache::make_folder(&folder)?;
        let mut files = Vec::new();
        for file in self.load_order(wanted)? {
            let content = self.module(&file)?;
            let name = format!("{}.ko", module_name(&file));
            fs::write(folder.join(&name), &content).context(|| format!("cannot write {name}"))?;
            files.push((format!("{inside}/{name}"), content));
        }
        for list in ["modules.builtin", "modules.order"] {
            let _ = fs::copy(self.folder().join(list), folder.join(list));
        }
        depmod(scratch.path(), &self.release)?;
        for name in indices {
            let index = fs::read(folder.join(name)).context(|| format!("depmod made no {name}"))?;
            files.push((format!("{inside}/{name}"), index));
        }
        Ok(files)
    }
}

fn depmod(root: &Path, release: &str) -> Result<()> {
    let depmod = apt::tool("depmod", "kmod")?;
    program::run(Command::new(depmod).arg("-b").arg(root).arg(release))
}

/// A module's name from its path: without folders and endings, `-` as `_`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn parse_dependencies(text: &str) -> HashMap<String, (String, Vec<String>)> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            (module_name(file), (file.to_owned(), needs))
        })
        .collect()
}

/// The ELF image that a bzImage carries (Documentation/arch/x86/boot.rst: setup_sects,
/// payload_offset, payload_length).
pub fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(bzimage)?;
    // For these compressions the build appends the unpacked size in four bytes.
    let sized = &payload[..payload.len().saturating_sub(4)];
    let elf = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => decompress(&["xz", "-dc"], sized.to_vec())?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => decompress(&["zstd", "-dc"], sized.to_vec())?,
        [0x02, 0x21, 0x4c, 0x18, ..] => decompress(&["lz4", "-dc"], sized.to_vec())?,
        [0x1f, 0x8b, ..] => decompress(&["gzip", "-dc"], payload.to_vec())?,
        _ => {
            return fail(format!(
                "the kernel's payload is compressed in a way that is not known here (it begins \
                 with {:02x?}): xz, zstd, lz4 and gzip are",
                &payload[..payload.len().min(4)]
            ));
        }
    };
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        fail("the kernel's payload is no ELF file")
    }
}

fn payload(bzimage: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| {
        let bytes = bzimage.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if bzimage.get(0x202..0x206) != Some(b"HdrS") {
        return fail("not a bzImage: the boot protocol's magic HdrS is missing");
    }
    let setup_sectors = match bzimage.get(0x1f1) {
        Some(0) | None => 4,
        Some(count) => usize::from(*count),
    };
    let range = word(0x248).zip(word(0x24c)).and_then(|(offset, length)| {
        let start = (setup_sectors + 1) * 512 + offset;
        Some(start..start.checked_add(length)?)
    });
    match range.and_then(|range| bzimage.get(range)) {
        Some(payload) if !payload.is_empty() => Ok(payload),
        _ => fail("the bzImage's header points outside the file: it is damaged"),
    }
}

/// Sends `content` through a program.
fn decompress(program: &[&str], content: Vec<u8>) -> Result<Vec<u8>> {
    let package = match program[0] {
        "xz" => "xz-utils",
        other => other,
    };
    let path = apt::tool(program[0], package)?;
    let mut child = Command::new(path)
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| format!("{} could not be started", program[0]))?;
    let stdin = child.stdin.take();
    let writer = std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&content)));
    let output = child.wait_with_output().context(|| program[0].to_owned())?;
    let written = writer.join();
    if !output.status.success() || !matches!(written, Ok(Some(Ok(())))) {
        return fail(format!(
            "{} could not unpack its input ({})",
            program[0], output.status
        ));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        assert_eq!(payload(&bzimage(b"abcd")).ok(), Some(&b"abcd"[..]));
        assert!(payload(&bzimage(b"abcd")[..1040]).is_err(), "cut short");
        assert!(payload(b"MZ").is_err());
    }

    #[test]
    fn dependencies_load_before_what_needs_them() {
        let text = "kernel/net_failover.ko.xz: kernel/failover.ko.xz\nkernel/failover.ko.xz:\n\
                    kernel/virtio-net.ko.xz: kernel/net_failover.ko.xz kernel/failover.ko.xz\n";
        let modules = parse_dependencies(text);
        let (file, needs) = &modules["virtio_net"];
        assert_eq!(file, "kernel/virtio-net.ko.xz");
        assert_eq!(needs.len(), 2);
        assert_eq!(module_name(&needs[1]), "failover");
    }
}
