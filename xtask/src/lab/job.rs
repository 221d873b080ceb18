//! A job's folder: the script that the lab runs, the sockets of its ports, its console's log.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Job;
use crate::error::{Context, Result, fail};
use crate::program::{find, is_executable, quoted};

const PREFIX: &str = "vitrine-lab";

/// Folders of the host that the lab has its own file systems on.
const HIDDEN: [&str; 4] = ["/run", "/proc", "/sys", "/dev"];

/// A job's folder, removed with the value.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder and the job's script in it.
    pub fn new(job: &Job) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let parent = std::env::temp_dir();
        remove_leftovers(&parent);
        let name = format!("{PREFIX}-{}-{count}", std::process::id());
        let path = [parent, PathBuf::from("/tmp")]
            .into_iter()
            .find(|folder| folder.as_os_str().len() < 60 && !is_hidden(folder))
            .map(|folder| folder.join(name));
        let Some(path) = path else {
            return fail("no folder for temporary files");
        };
        fs::create_dir(&path).context(|| format!("cannot make {}", path.display()))?;
        let folder = Self { path };
        let script = folder.file("run");
        fs::write(&script, self::script(job)?)
            .context(|| format!("cannot write {}", script.display()))?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A socket in it, which waits for QEMU without blocking.
    pub fn socket(&self, name: &str) -> Result<UnixListener> {
        let path = self.file(name);
        let listener = UnixListener::bind(&path)
            .context(|| format!("cannot make the socket {}", path.display()))?;
        listener
            .set_nonblocking(true)
            .context(|| format!("the socket {}", path.display()))?;
        Ok(listener)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of jobs whose xtask was killed.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').nth(1));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_hidden(folder: &Path) -> bool {
    HIDDEN.iter().any(|hidden| folder.starts_with(hidden))
}

/// Fails when the command cannot be found: its root folder is the host's, so the host knows.
pub fn find_command(command: &[String]) -> Result<()> {
    let Some(name) = command.first() else {
        return fail("no command was given");
    };
    let path = Path::new(name);
    let known = if name.contains('/') {
        is_hidden(path) || is_executable(path)
    } else {
        find(name).is_some() || is_shell_word(name)
    };
    if known {
        Ok(())
    } else {
        fail(format!("command not found: {name}"))
    }
}

/// Words that the shell runs itself.
fn is_shell_word(name: &str) -> bool {
    ["exit", "cd", "ulimit", "type", "export", "exec", "eval"].contains(&name)
}

/// The script that bash runs as the job.
fn script(job: &Job) -> Result<String> {
    let folder = std::env::current_dir().context(|| "no current folder".to_owned())?;
    if is_hidden(&folder) {
        return fail(format!(
            "the current folder {} is not in the lab, which has its own {}: start it elsewhere",
            folder.display(),
            HIDDEN.join(", ")
        ));
    }
    let mut script = String::from("ulimit -n 65536\nexport VITRINE_LAB=1 DM_DISABLE_UDEV=1\n");
    let mut set = |name: &str, value: &OsStr| {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    };
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if is_passed_on(&name) {
            set(&name, &value);
        }
    }
    for (name, value) in &job.env {
        set(name, OsStr::new(value));
    }
    set(
        "HOME",
        &std::env::var_os("HOME").unwrap_or_else(|| "/root".into()),
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    set(
        "PATH",
        OsStr::new(&format!("{}:{system}", path.to_string_lossy())),
    );
    script.push_str(&format!("cd {} || exit 125\n", quoted(folder.as_os_str())));
    let words: Vec<String> = job
        .command
        .iter()
        .map(|word| quoted(OsStr::new(word)))
        .collect();
    script.push_str(&words.join(" "));
    script.push('\n');
    Ok(script)
}

fn is_passed_on(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let prefixed = name.starts_with("VITRINE_") || name.starts_with("RUST_");
    plain && (prefixed || name == "CI" || name == "TERM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_its_words_and_its_folder() {
        let script = script(&Job::new(&["echo", "two words", "it's"]));
        let script = script.unwrap_or_default();
        assert!(
            script.ends_with("echo 'two words' 'it'\\''s'\n"),
            "{script}"
        );
        let folder = std::env::current_dir().unwrap_or_default();
        assert!(
            script.contains(&format!("cd {}", folder.display())),
            "{script}"
        );
    }

    #[test]
    fn only_some_variables_are_passed_on() {
        assert!(is_passed_on("VITRINE_BIN") && is_passed_on("RUST_LOG") && is_passed_on("CI"));
        assert!(!is_passed_on("HOME") && !is_passed_on("RUST_A(B)"));
    }

    #[test]
    fn a_missing_command_is_named() {
        let missing = find_command(&["no-such-command-here".to_owned()]);
        assert!(missing.is_err_and(|e| e.to_string().contains("no-such-command-here")));
        assert!(find_command(&["uname".to_owned()]).is_ok());
    }
}
