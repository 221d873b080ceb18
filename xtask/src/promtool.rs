//! Prometheus' checker of metrics: the installed one, else out of Debian's package, which is only
//! unpacked, for installing it would start a server.

use std::path::PathBuf;

use crate::error::{Result, fail};
use crate::{apt, cache, program};

/// The program's path.
pub fn ensure() -> Result<PathBuf> {
    if let Some(path) = program::find("promtool") {
        return Ok(path);
    }
    let target = cache::folder()?.join("promtool");
    if target.exists() {
        return Ok(target);
    }
    let package = apt::package_file("prometheus", false, || Ok("prometheus".to_owned()))?;
    let scratch = cache::Scratch::beside(&target)?;
    apt::unpack(&package, scratch.path())?;
    let built = scratch.path().join("usr/bin/promtool");
    if !built.exists() {
        return fail("the package prometheus holds no promtool");
    }
    cache::put(&built, &target)?;
    Ok(target)
}
