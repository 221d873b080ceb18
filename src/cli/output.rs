//! Where reports go: standard output, or a file of this user's alone.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use api::vmm::observe::blackbox::MAGIC;

use super::Failure;

/// Prints `text`; gives whether anybody is there to read more. A reader that went away, as `head`
/// does, has what it wanted.
///
/// # Errors
/// Standard output takes nothing.
pub fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!(
            "standard output cannot be written: {error}; is its disk full?"
        ))),
    }
}

/// Writes `text` to the file at `path`, mode 0600. A regular file that is there is overwritten,
/// unless it is a black box; anything else is not.
///
/// # Errors
/// Something else is there, or the file cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let fail = |error| {
        let path = path.display();
        Failure::misuse(format!(
            "{path} cannot be written: {error}; give another file with -o"
        ))
    };
    if let Ok(there) = std::fs::symlink_metadata(path)
        && !there.is_file()
    {
        return Err(fail(io::Error::new(
            ErrorKind::AlreadyExists,
            "something that is no regular file is there and will not be replaced",
        )));
    }
    overwrite(path, text).map_err(fail)
}

fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if is_black_box(&mut file) {
        return Err(io::Error::other(
            "a black box is there and will not be replaced",
        ));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    io::Seek::rewind(&mut file)?;
    file.write_all(text.as_bytes())
}

fn is_black_box(file: &mut File) -> bool {
    let mut first = [0; MAGIC.len()];
    file.read_exact(&mut first).is_ok() && first == MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_that_are_no_black_boxes_are_overwritten() {
        let folder = std::env::temp_dir().join(format!("vitrine-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let plain = folder.join("plain");
        fs::write(&plain, "a longer text that was there").unwrap();
        fs::set_permissions(&plain, Permissions::from_mode(0o644)).unwrap();
        write(&plain, "new").unwrap();
        assert_eq!(fs::read_to_string(&plain).unwrap(), "new");
        let mode = fs::metadata(&plain).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let boxed = folder.join("boxed");
        fs::write(&boxed, b"VITRBBOX and more").unwrap();
        let link = folder.join("link");
        symlink(&plain, &link).unwrap();
        for (path, why) in [
            (&boxed, "a black box is there"),
            (&link, "no regular file"),
            (&folder, "no regular file"),
            (&folder.join("missing/file"), "No such file"),
        ] {
            let error = write(path, "x").unwrap_err().error.to_string();
            assert!(error.contains(why) && error.contains("-o"), "{error}");
        }
        assert_eq!(fs::read_to_string(&plain).unwrap(), "new");
        fs::remove_dir_all(&folder).unwrap();
    }
}
