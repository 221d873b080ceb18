use std::fs;
use std::io::Write;

use super::*;

/// A folder of its own, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    /// On a tmpfs where there is one, for that has files without names.
    fn new(name: &str) -> Self {
        let shm = Path::new("/dev/shm");
        let base = match shm.is_dir() {
            true => shm.to_owned(),
            false => std::env::temp_dir(),
        };
        let folder = base.join(format!("vitrine-place-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn filled((newborn, mut file): (Newborn, File)) -> (Newborn, File) {
    file.write_all(&MAGIC).unwrap();
    (newborn, file)
}

#[test]
fn of_one_whose_maker_is_killed_nothing_is_left() {
    let folder = Folder::new("killed");
    let place = folder.0.join("vm");
    let (newborn, file) = filled(Newborn::of(&place).unwrap());
    assert!(!newborn.named, "{} has no O_TMPFILE", folder.0.display());
    assert_eq!(folder.names(), [""; 0]);
    // As a kill does it: no drop.
    std::mem::forget(newborn);
    drop(file);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn with_and_without_a_name_it_comes_to_its_place_and_replaces_what_is_there() {
    let folder = Folder::new("both");
    let place = folder.0.join("vm");
    let beside = folder.0.join("vm.new-1");
    for with_name in [false, true, false] {
        let before = fs::metadata(&place).map(|there| there.ino()).ok();
        let (newborn, file) = filled(match with_name {
            true => Newborn::named(beside.clone()).unwrap(),
            false => Newborn::of(&place).unwrap(),
        });
        newborn.settle(&file, &place).unwrap();
        assert_eq!(folder.names(), ["vm"]);
        assert!(leads_to(&place, &file));
        assert_ne!(Some(file.metadata().unwrap().ino()), before);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn one_that_never_gets_there_is_removed() {
    let folder = Folder::new("never");
    let beside = folder.0.join("vm.new-1");
    let (newborn, file) = filled(Newborn::named(beside).unwrap());
    assert_eq!(folder.names(), ["vm.new-1"]);
    let missing = folder.0.join("missing").join("vm");
    assert!(newborn.settle(&file, &missing).is_err());
    assert_eq!(folder.names(), [""; 0]);
    let (newborn, file) = filled(Newborn::of(&folder.0.join("vm")).unwrap());
    assert!(newborn.settle(&file, &missing).is_err());
    assert_eq!(folder.names(), [""; 0]);
}
