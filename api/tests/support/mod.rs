//! A server over a real socket, a fake VM behind it, and a client that sees every byte.
#![allow(dead_code)] // Each test program uses a part of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::config::{Config, Fixed};
use api::events::EventLog;
use api::http::Options;
use api::logging::LogControl;
use api::machine::{Command, Launcher, Machine, MachineError, MachineState, Reply};
use api::metrics_file::MetricsFile;
use api::policy::Rulebook;
use api::record;
use api::server::{Server, Socket};
use api::session::{Deadlines, SessionParts};
use serde_json::Value;
use vmm::observe::reader::{Reader, Snapshot};
use vmm::observe::{BlackBox, Meta};
use vmm::{BlackBoxSpec, DeviceChange, DumpKind, SerialInput, VmSpec};

/// A VM that does as it is told, or not at all.
pub struct FakeMachine {
    state: AtomicU8,
    pub deaf: bool,
    pub told: Mutex<Vec<Command>>,
    pub changes: Mutex<Vec<(String, DeviceChange)>>,
    /// Replies that are never given, kept so that they are not dropped either.
    kept: Mutex<Vec<Reply>>,
}

impl FakeMachine {
    pub fn set(&self, state: MachineState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }
}

impl Machine for FakeMachine {
    fn command(&self, command: Command, reply: Reply) {
        self.told.lock().unwrap().push(command);
        if self.deaf {
            self.kept.lock().unwrap().push(reply);
            return;
        }
        match command {
            Command::Pause => self.set(MachineState::Paused),
            Command::Resume => self.set(MachineState::Running),
            Command::Stop => self.set(MachineState::Stopped),
            Command::CtrlAltDel | Command::Nmi | Command::Balloon(_) => {}
        }
        std::thread::spawn(move || reply(Ok(())));
    }

    fn change_device(&self, id: &str, change: DeviceChange, reply: Reply) {
        let told = (id.to_owned(), change.clone());
        self.changes.lock().unwrap().push(told);
        let refused = match change {
            DeviceChange::Drive(change) => change.path.is_some_and(|path| path.ends_with("taken")),
            DeviceChange::Network(_) => false,
        };
        reply(match refused {
            true => Err("it is in use".into()),
            false => Ok(()),
        });
    }

    fn fail(&self, _: String) {
        self.set(MachineState::Stopped);
    }

    fn state(&self) -> MachineState {
        match self.state.load(Ordering::SeqCst) {
            0 => MachineState::Running,
            1 => MachineState::Paused,
            _ => MachineState::Stopped,
        }
    }

    fn snapshot(&self) -> Result<Snapshot, MachineError> {
        let meta = Meta {
            vm_id: "vm1".to_owned(),
            version: "0".to_owned(),
        };
        let black_box = BlackBox::anonymous(0, &meta).unwrap();
        let reader = Reader::from_file(black_box.file().unwrap(), "(in memory)".into()).unwrap();
        Ok(reader.snapshot().unwrap())
    }

    fn standing(&self) -> Arc<vmm::Standing> {
        Arc::default()
    }

    fn dump(
        &self,
        _kind: DumpKind,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), MachineError> {
        while self.deaf && self.state() == MachineState::Running {
            std::thread::sleep(Duration::from_millis(1));
        }
        progress(1, 2);
        std::fs::write(path, "dump").map_err(|error| MachineError::new(&error))
    }

    fn dump_deadline(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn black_box(&self) -> String {
        "/run/vitrine/vm1.blackbox".to_owned()
    }

    fn openmetrics(&self) -> Result<String, MachineError> {
        Ok("# TYPE fake_exits counter\nfake_exits_total{vm=\"vm1\"} 5\n# EOF\n".to_owned())
    }
}

/// Makes fake VMs.
#[derive(Default)]
pub struct FakeLauncher {
    pub deaf: bool,
    pub fails: Mutex<Option<&'static str>>,
    pub takes: Duration,
    pub specs: Mutex<Vec<VmSpec>>,
    pub machine: Mutex<Option<Arc<FakeMachine>>>,
}

impl Launcher for FakeLauncher {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        std::thread::sleep(self.takes);
        if let Some(reason) = self.fails.lock().unwrap().take() {
            return Err(reason.into());
        }
        self.specs.lock().unwrap().push(spec);
        let machine = Arc::new(FakeMachine {
            state: AtomicU8::new(0),
            deaf: self.deaf,
            told: Mutex::default(),
            changes: Mutex::default(),
            kept: Mutex::default(),
        });
        *self.machine.lock().unwrap() = Some(Arc::clone(&machine));
        Ok(machine)
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory of its own for each test.
pub fn scratch() -> PathBuf {
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("vitrine-api-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A running server; its files go with it.
pub struct TestServer {
    pub directory: PathBuf,
    pub launcher: Arc<FakeLauncher>,
    pub events: Arc<EventLog>,
    pub rulebook: Arc<Rulebook>,
    server: Option<Server>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn config() -> Config {
    Config::new(Fixed {
        id: "vm1".to_owned(),
        serial_input: SerialInput::Nothing,
        black_box: BlackBoxSpec::default(),
        kernel_cache: None,
        pci: false,
        limits: Arc::default(),
    })
}

impl TestServer {
    pub fn new() -> TestServer {
        TestServer::with(
            FakeLauncher::default(),
            Options::default(),
            Deadlines::default(),
        )
    }

    pub fn with(launcher: FakeLauncher, options: Options, deadlines: Deadlines) -> TestServer {
        let directory = scratch();
        for name in ["vmlinux", "disk", "disk2"] {
            std::fs::write(directory.join(name), b"content").unwrap();
        }
        let launcher = Arc::new(launcher);
        let events: Arc<EventLog> = Arc::default();
        let rulebook: Arc<Rulebook> = Arc::default();
        let parts = SessionParts {
            config: config(),
            machine: None,
            launcher: launcher.clone(),
            events: events.clone(),
            metrics_file: MetricsFile::new("vm1", LogControl::new("vm1")),
            log: LogControl::new("vm1"),
            rulebook: rulebook.clone(),
            deadlines,
        };
        let socket = Socket::bind(&directory.join("api.sock")).unwrap();
        let server = Some(Server::start(socket, parts, record::pair().1, options).unwrap());
        TestServer {
            directory,
            launcher,
            events,
            rulebook,
            server,
        }
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.directory.join("api.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client {
            stream,
            rest: Vec::new(),
        }
    }

    /// One request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect().ask(method, path, body)
    }

    pub fn put_kernel(&self) {
        let body = format!(r#"{{"kernel_image_path":"{}"}}"#, self.file("vmlinux"));
        self.ask("PUT", "/boot-source", &body).is_204();
    }

    /// Configures and starts the VM.
    pub fn start(&self) -> Arc<FakeMachine> {
        self.put_kernel();
        self.action("InstanceStart").is_204();
        self.launcher.machine.lock().unwrap().clone().unwrap()
    }

    pub fn action(&self, action: &str) -> Answer {
        self.ask(
            "PUT",
            "/actions",
            &format!(r#"{{"action_type":"{action}"}}"#),
        )
    }
}

/// One connection.
pub struct Client {
    pub stream: UnixStream,
    rest: Vec<u8>,
}

impl Client {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(request(method, path, body).as_bytes());
        self.answer()
    }

    /// The next answer on this connection.
    pub fn answer(&mut self) -> Answer {
        loop {
            if let Some((answer, used)) = Answer::parse(&self.rest) {
                self.rest.drain(..used);
                return answer;
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).unwrap();
            let seen = String::from_utf8_lossy(&self.rest).into_owned();
            assert!(count > 0, "the connection ended within an answer: {seen:?}");
            self.rest.extend_from_slice(&piece[..count]);
        }
    }

    pub fn is_closed(&mut self) -> bool {
        assert!(self.rest.is_empty());
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

pub fn request(method: &str, path: &str, body: &str) -> String {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}")
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let body = bytes.get(end..end + length)?;
        let body = String::from_utf8(body.to_vec()).unwrap();
        Some((Answer { status, head, body }, end + length))
    }

    #[track_caller]
    pub fn is_204(&self) {
        assert_eq!((self.status, self.body.as_str()), (204, ""), "{self:?}");
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.head.contains("Content-Type: application/json\r\n"));
        serde_json::from_str(&self.body).unwrap()
    }

    /// The text of a refusal.
    #[track_caller]
    pub fn fault(&self) -> String {
        assert_eq!(self.status, 400, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        let fields = body.as_object().unwrap();
        assert_eq!(fields.len(), 1, "{self:?}");
        fields["fault_message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn refuses(&self, texts: &[&str]) {
        let fault = self.fault();
        for text in texts {
            assert!(fault.contains(text), "{text:?} is not in {fault:?}");
        }
    }
}
