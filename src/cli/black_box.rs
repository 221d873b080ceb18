//! Where a VM's black box lies.

use std::path::{Path, PathBuf};

use api::vmm::BlackBoxSpec;

use super::args::BlackBoxArgs;

/// Firecracker's name for a VM that was given none.
const ANONYMOUS: &str = "anonymous-instance";

/// The VM's id, and the name of its black box. VMs without an id share Firecracker's name for
/// them, so that their black boxes need the process's number to be told apart.
pub fn names(id: Option<String>) -> (String, String) {
    match id {
        Some(id) => (id.clone(), id),
        None => (
            ANONYMOUS.to_owned(),
            format!("{ANONYMOUS}-{}", std::process::id()),
        ),
    }
}

/// The black box of the VM whose black box has this name. Where neither place can be had, it has
/// no path, and the log says so.
pub fn spec(name: &str, arguments: BlackBoxArgs) -> BlackBoxSpec {
    let path = arguments.blackbox.or_else(|| {
        let folder = default_folder();
        if let Err(error) = std::fs::create_dir_all(&folder) {
            tracing::warn!(
                "{} cannot be made: {error}; the black box will end with this process: \
                 give a place for it with --blackbox",
                folder.display()
            );
            return None;
        }
        Some(folder.join(format!("{name}.blackbox")))
    });
    BlackBoxSpec {
        path,
        keep: arguments.keep_blackbox,
    }
}

/// Where black boxes lie that were given no place.
pub fn default_folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    runtime
        .map_or_else(|| PathBuf::from("/run"), |path| Path::new(&path).to_owned())
        .join("vitrine")
}
