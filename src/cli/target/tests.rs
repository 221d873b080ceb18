use super::*;
use api::vmm::observe::{BlackBox, Meta};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// A folder of its own for one test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vitrine-target-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn make(&self, name: &str, vm_id: &str) -> BlackBox {
        BlackBox::create(&self.0.join(name), 64 << 10, &meta(vm_id)).unwrap()
    }

    fn find(&self, what: impl AsRef<Path>) -> Result<Target, String> {
        let found = Target::find_in(what.as_ref(), &self.0);
        found.map_err(|error| super::super::chain(&error))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn meta(vm_id: &str) -> Meta {
    Meta {
        vm_id: vm_id.to_owned(),
        version: "1".to_owned(),
    }
}

fn path_of(target: &Target) -> &Path {
    target.reader.path()
}

#[test]
fn a_file_and_an_id_lead_to_the_black_box() {
    let folder = Folder::new();
    let file = folder.0.join("web.blackbox");
    let _black_box = folder.make("web.blackbox", "web");
    assert_eq!(path_of(&folder.find(&file).unwrap()), file);
    let by_id = folder.find("web").unwrap();
    assert_eq!(path_of(&by_id), file);
    assert_eq!(by_id.snapshot().unwrap().writer_alive, Some(true));
}

#[test]
fn an_id_that_no_file_is_named_after_is_looked_for_in_all() {
    let folder = Folder::new();
    let _one = folder.make("anonymous-instance-7.blackbox", "anonymous-instance");
    let found = folder.find("anonymous-instance").unwrap();
    assert!(path_of(&found).ends_with("anonymous-instance-7.blackbox"));
    let _two = folder.make("anonymous-instance-8.blackbox", "anonymous-instance");
    let error = folder.find("anonymous-instance").unwrap_err();
    for words in ["may mean", "-7.blackbox or ", "-8.blackbox; give one"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_is_not_there_is_named_with_where_it_was_looked_for() {
    let folder = Folder::new();
    let text = folder.0.join("notes");
    fs::write(&text, "no black box").unwrap();
    let missing = folder.0.join("missing.blackbox");
    let place = folder.0.display().to_string();
    for (what, words) in [
        (
            Path::new("no-such-vm"),
            vec!["no-such-vm", &place, "`vitrine list`"],
        ),
        (
            &missing,
            vec!["missing.blackbox does not exist", "`vitrine list`"],
        ),
        (&folder.0, vec!["neither a file nor a socket"]),
        (
            &text,
            vec!["is not a black box: it does not begin with VITRBBOX"],
        ),
    ] {
        let error = folder.find(what).unwrap_err();
        assert!(words.iter().all(|words| error.contains(words)), "{error}");
    }
}

/// A listener of this process, which holds black boxes open.
fn listen(folder: &Folder) -> (PathBuf, UnixListener) {
    let path = folder.0.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    (path, listener)
}

#[test]
fn a_socket_leads_to_the_black_box_of_its_process_though_nobody_answers() {
    let folder = Folder::new();
    let (socket, _listener) = listen(&folder);
    let black_box = folder.make("x.blackbox", "x");
    let found = folder.find(&socket).unwrap();
    assert!(path_of(&found).ends_with("x.blackbox"));
    // One that nobody holds any more is not its.
    drop(black_box);
    let dead = fs::read(folder.0.join("x.blackbox")).unwrap();
    fs::write(folder.0.join("y.blackbox"), dead).unwrap();
    let elsewhere = Folder::new();
    let _other = elsewhere.make("elsewhere", "z");
    let found = numbers_of_opened(&elsewhere);
    assert_eq!(found, ["z"], "by the open files of the process");
}

/// The ids of the black boxes that this process holds in `folder`.
fn numbers_of_opened(folder: &Folder) -> Vec<String> {
    let process = std::process::id();
    let opened = opened(process, &numbers(process)).into_iter();
    let ids = opened.filter_map(|reader| {
        let place = fs::read_link(reader.path()).ok()?;
        place
            .starts_with(&folder.0)
            .then(|| reader.snapshot().unwrap().header.vm_id)
    });
    ids.collect()
}

#[test]
fn a_black_box_without_a_file_is_found_and_lives_with_its_process() {
    let _black_box = BlackBox::anonymous(64 << 10, &meta("nameless")).unwrap();
    let process = std::process::id();
    let opened = opened(process, &numbers(process)).into_iter();
    let target = opened
        .map(|reader| Target {
            reader,
            process: Some(process),
        })
        .find(|target| target.snapshot().unwrap().header.vm_id == "nameless");
    let snapshot = target.unwrap().snapshot().unwrap();
    assert_eq!(snapshot.writer_alive, Some(true));
}

#[test]
fn a_disk_that_looks_like_a_black_box_is_none() {
    let folder = Folder::new();
    drop(folder.make("disk", "forged"));
    let _disk = fs::File::open(folder.0.join("disk")).unwrap();
    assert_eq!(numbers_of_opened(&folder), Vec::<String>::new());
}

#[test]
fn a_socket_that_nobody_listens_at_says_so() {
    let folder = Folder::new();
    let (socket, listener) = listen(&folder);
    drop(listener);
    let error = folder.find(&socket).unwrap_err();
    assert!(error.contains("nobody listens at") && error.contains("`vitrine list --all`"));
}

/// Gives each client `answer`, then closes.
fn answering(listener: UnixListener, answer: String) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut asked = [0; 1024];
        let count = client.read(&mut asked).unwrap();
        assert!(asked[..count].starts_with(b"GET /observe HTTP/1.1\r\n"));
        client.write_all(answer.as_bytes()).unwrap();
    })
}

#[test]
fn a_vmm_is_asked_where_its_black_box_lies() {
    for (body, expected) in [
        (r#"{"black_box": "/run/x"}"#, Some("/run/x")),
        (r#"{"black_box": null}"#, None),
    ] {
        let folder = Folder::new();
        let (socket, listener) = listen(&folder);
        let thread = answering(listener, format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
        let place = ask(peer::connect(&socket).unwrap()).unwrap();
        assert_eq!(place, expected.map(PathBuf::from));
        thread.join().unwrap();
    }
    let folder = Folder::new();
    let (socket, listener) = listen(&folder);
    let thread = answering(
        listener,
        "HTTP/1.1 400 Bad Request\r\n\r\n<html>".to_owned(),
    );
    assert!(ask(peer::connect(&socket).unwrap()).is_err());
    thread.join().unwrap();
}

#[test]
fn a_vmm_that_does_not_answer_is_not_waited_for_long() {
    let folder = Folder::new();
    let (socket, _listener) = listen(&folder);
    let start = Instant::now();
    let error = ask(peer::connect(&socket).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let took = start.elapsed();
    assert!(took >= DEADLINE && took < DEADLINE * 5, "{took:?}");
}
