//! The cache folder, and making a thing in it once: built beside its place, then renamed, so that
//! what is there under its name is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Context, Result, fail};

/// `$XDG_CACHE_HOME/vitrine`, made when absent.
pub fn folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".cache"),
            None => return fail("neither XDG_CACHE_HOME nor HOME is set: set one of them"),
        },
    };
    let folder = std::path::absolute(base.join("vitrine"))
        .context(|| "the cache folder has no absolute path".to_owned())?;
    make_folder(&folder)?;
    Ok(folder)
}

/// Makes a folder and its parents.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).context(|| format!("cannot make the folder {}", folder.display()))
}

/// A path beside `target` that no other process uses, for building it.
pub fn beside(target: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}-{count}", std::process::id()))
}

/// Moves what was built into its place. Another process that was faster is fine: its work stays.
pub fn put(built: &Path, target: &Path) -> Result<()> {
    if built.is_dir() && target.is_dir() {
        return fs::remove_dir_all(built).context(|| format!("cannot remove {}", built.display()));
    }
    fs::rename(built, target)
        .context(|| format!("cannot move {} to {}", built.display(), target.display()))
}

/// A folder that is removed when the value is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder beside `target`.
    pub fn beside(target: &Path) -> Result<Self> {
        let folder = beside(target);
        make_folder(&folder)?;
        Ok(Self(folder))
    }

    /// The empty folder `path`; what was there is removed.
    pub fn at(path: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(path);
        make_folder(path)?;
        Ok(Self(path.to_path_buf()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A 64-bit FNV-1a hash as text: names the inputs of a cached thing. Not for secrets.
pub fn stamp(inputs: &[&[u8]]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for input in inputs {
        input.iter().copied().for_each(&mut mix);
        (input.len() as u64)
            .to_le_bytes()
            .into_iter()
            .for_each(&mut mix);
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_where_inputs_end() {
        assert_ne!(stamp(&[b"ab", b"c"]), stamp(&[b"a", b"bc"]));
        assert_eq!(stamp(&[b"ab", b"c"]), stamp(&[b"ab", b"c"]));
    }

    #[test]
    fn two_builds_never_share_a_path() {
        let target = Path::new("/x/y");
        assert_ne!(beside(target), beside(target));
    }
}
