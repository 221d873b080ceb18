//! The life of one VM as the API sees it: configured, started once, told things, read at any time.
//!
//! Requests that change something take turns, as in Firecracker, and each has a deadline; reads
//! take no turn and are answered while a VM starts, pauses or does not answer. When a request is
//! taken is judged in [`crate::admission`] alone.

mod balloon;
mod devices;
mod reads;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};
use vmm::BalloonRefusal;

use crate::FIRECRACKER_VERSION;
use crate::admission::{Denial, Operation, Phase, admit};
use crate::config::{Config, ConfigError};
use crate::dump::{DumpRefusal, Dumping};
use crate::events::stream::{Followers, MAX_FOLLOWERS};
use crate::events::{Event, EventLog};
use crate::http::{Handler, Request, Response, Status};
use crate::logging::{LogControl, SinkError};
use crate::machine::{Command, Launcher, Machine, MachineError, MachineState};
use crate::metrics::RequestCounts;
use crate::metrics_file::{MetricsFile, MetricsFileError};
use crate::policy::Rulebook;
use crate::record::Recorder;
use crate::routes::{self, Endpoint, Route};
use crate::trace::{TraceRefusal, Tracing};
use crate::wire::{self, ActionTypeWire, ActionWire, BalloonWire, DriveWire, LoggerWire};
use crate::wire::{
    MetricsWire, NetworkWire, SerialWire, VersionWire, VmStateWire, VmWire, WireError,
};

/// How long requests may take before their client is told that they did not end.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Building and starting a VM.
    pub launch: Duration,
    /// Pausing, resuming, pressing keys.
    pub command: Duration,
    /// Waiting for the request before this one.
    pub turn: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            launch: Duration::from_secs(60),
            command: Duration::from_secs(10),
            turn: Duration::from_secs(60),
        }
    }
}

/// Why a request was refused or failed.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(transparent)]
    Log(#[from] SinkError),
    #[error(transparent)]
    MetricsFile(#[from] MetricsFileError),
    #[error("the microVM did not start: {0}")]
    Launch(MachineError),
    #[error("{what} failed: {error}")]
    Command {
        what: &'static str,
        error: MachineError,
    },
    #[error("the black box cannot be read: {0}")]
    BlackBox(MachineError),
    #[error("{MAX_FOLLOWERS} clients follow the events; end one of them or ask without follow")]
    Followers,
    #[error(transparent)]
    Trace(#[from] TraceRefusal),
    #[error(transparent)]
    Dump(#[from] DumpRefusal),
    #[error(transparent)]
    Balloon(#[from] BalloonRefusal),
    #[error(
        "Statistics for the balloon device are not enabled: give stats_polling_interval_s of 1 or more before the start."
    )]
    StatisticsDisabled,
    #[error("{what} did not end within {} s; the log and GET /metrics may tell what holds it up", after.as_secs_f32())]
    Deadline { what: &'static str, after: Duration },
    #[error(
        "the thread that starts the microVM cannot be made: {0}; free memory or raise the limit on threads"
    )]
    Thread(std::io::Error),
}

/// What a session begins with; may be made on another thread.
pub struct SessionParts {
    /// What is known of the VM.
    pub config: Config,
    /// The VM, when it was started already.
    pub machine: Option<Arc<dyn Machine>>,
    /// Starts it otherwise.
    pub launcher: Arc<dyn Launcher>,
    /// What GET /observe/events tells; the launcher tells of the VM there.
    pub events: Arc<EventLog>,
    /// What PUT /metrics opens.
    pub metrics_file: Arc<MetricsFile>,
    /// What PUT /logger changes.
    pub log: Arc<LogControl>,
    /// What GET and PUT /policy are about.
    pub rulebook: Arc<Rulebook>,
    /// How long things may take.
    pub deadlines: Deadlines,
}

/// Shared with the thread that starts the VM, which may outlast the wait for it.
#[derive(Default)]
struct Slot {
    launching: AtomicBool,
    machine: OnceLock<Arc<dyn Machine>>,
}

/// The session; lives on the API's thread.
pub struct Session {
    config: RefCell<Config>,
    slot: Arc<Slot>,
    launcher: Arc<dyn Launcher>,
    log: Arc<LogControl>,
    deadlines: Deadlines,
    events: Arc<EventLog>,
    metrics_file: Arc<MetricsFile>,
    rulebook: Arc<Rulebook>,
    followers: Followers,
    tracing: Tracing,
    dumping: Dumping,
    counts: RequestCounts,
    recorder: Rc<Recorder>,
    /// Held while a request changes something. An async lock on one thread: it orders requests,
    /// and no thread ever waits for it.
    turn: Mutex<()>,
}

impl Session {
    /// A session at its beginning, whose requests `recorder` tells of.
    pub fn new(parts: SessionParts, recorder: Rc<Recorder>) -> Session {
        let slot = Slot::default();
        if let Some(machine) = parts.machine {
            let _ = slot.machine.set(machine);
        }
        Session {
            config: RefCell::new(parts.config),
            slot: Arc::new(slot),
            launcher: parts.launcher,
            log: parts.log,
            deadlines: parts.deadlines,
            events: parts.events,
            metrics_file: parts.metrics_file,
            rulebook: parts.rulebook,
            followers: Followers::default(),
            tracing: Tracing::default(),
            dumping: Dumping::default(),
            counts: RequestCounts::default(),
            recorder,
            turn: Mutex::new(()),
        }
    }

    async fn respond(&self, request: &Request) -> Response {
        self.answer(request).await.unwrap_or_else(|error| {
            let (method, target) = (&request.method, &request.target);
            tracing::warn!("API request refused: {method} {target}: {error}");
            let status = match error {
                SessionError::Followers => Status::Unavailable,
                _ => Status::BadRequest,
            };
            Response::fault(status, &error.to_string())
        })
    }

    fn phase(&self) -> Phase {
        match self.slot.machine.get().map(|machine| machine.state()) {
            None => Phase::NotStarted,
            Some(MachineState::Running) => Phase::Running,
            Some(MachineState::Paused) => Phase::Paused,
            Some(MachineState::Waiting) => Phase::Restarting,
            Some(MachineState::Stopped) => Phase::Ended,
        }
    }

    async fn answer(&self, request: &Request) -> Result<Response, SessionError> {
        let has_body = !request.body.is_empty();
        let (route, id) = routes::find(&request.method, &request.target, has_body)?;
        let outcome = self.carry_out(route, id, request).await;
        let tally = &self.metrics_file.requests;
        tally.count(route.method, route.path, outcome.is_err());
        outcome
    }

    async fn carry_out(
        &self,
        route: Route,
        id: &str,
        request: &Request,
    ) -> Result<Response, SessionError> {
        match route.endpoint {
            Endpoint::InstanceInfo => Ok(self.instance_info()),
            Endpoint::Version => Ok(Response::json(&VersionWire {
                firecracker_version: FIRECRACKER_VERSION,
            })),
            Endpoint::FullConfig => Ok(self.full_config()),
            Endpoint::MachineConfig => Ok(Response::json(self.config.borrow().machine())),
            Endpoint::Metrics => self.metrics(request.accepts_openmetrics),
            Endpoint::Observe => self.observe(&request.target),
            Endpoint::Health => self.health(),
            Endpoint::NotSupported(what) => Err(WireError::NotSupported {
                what: format!("{} {} ({what})", route.method, route.path),
                remedy: "leave this request out",
            }
            .into()),
            Endpoint::Balloon => self.balloon(),
            Endpoint::BalloonStatistics => self.balloon_statistics(),
            Endpoint::HintingStatus => self.hinting_status(),
            Endpoint::Events => self.events(&request.target),
            Endpoint::Trace => self.trace(&request.target),
            Endpoint::Policy => Ok(self.policy()),
            endpoint => {
                self.change(endpoint, id, &request.body).await?;
                self.events.push(Event::Request {
                    method: request.method.clone(),
                    path: routes::path_of(&request.target).to_owned(),
                    action: action(endpoint, &request.body),
                });
                Ok(Response::no_content())
            }
        }
    }

    async fn change(&self, endpoint: Endpoint, id: &str, body: &[u8]) -> Result<(), SessionError> {
        match endpoint {
            Endpoint::Actions => match wire::parse::<ActionWire>(body)?.action_type {
                ActionTypeWire::InstanceStart => self.start().await,
                ActionTypeWire::SendCtrlAltDel => {
                    self.command(Command::CtrlAltDel, "pressing Ctrl-Alt-Del")
                        .await
                }
                ActionTypeWire::FlushMetrics => self.flush_metrics().await,
            },
            Endpoint::VmState => match wire::parse::<VmWire>(body)?.state {
                VmStateWire::Paused => self.command(Command::Pause, "pausing the microVM").await,
                VmStateWire::Resumed => self.command(Command::Resume, "resuming the microVM").await,
            },
            Endpoint::Dump => self.dump(&wire::parse(body)?).await,
            Endpoint::Nmi => {
                wire::parse_empty(body)?;
                self.command(Command::Nmi, "sending an NMI").await
            }
            Endpoint::PutMachineConfig => {
                self.configure(body, |c, wire| c.put_machine(&wire)).await
            }
            Endpoint::PatchMachineConfig => {
                self.configure(body, |c, wire| c.patch_machine(&wire)).await
            }
            Endpoint::BootSource => self.configure(body, Config::put_boot_source).await,
            Endpoint::Serial => self.configure::<SerialWire>(body, Config::put_serial).await,
            Endpoint::Entropy => {
                let put = |config: &mut Config, wire| {
                    config.put_entropy(wire);
                    Ok(())
                };
                self.configure(body, put).await
            }
            Endpoint::Vsock => self.configure(body, Config::put_vsock).await,
            Endpoint::Drive => {
                let judge = |config: &mut Config, wire: DriveWire| {
                    wire::id::check(id, "drive_id", &wire.drive_id)?;
                    config.put_drive(wire)
                };
                self.configure(body, judge).await
            }
            Endpoint::PatchDrive => self.patch_drive(id, body).await,
            Endpoint::Network => {
                let judge = |config: &mut Config, wire: NetworkWire| {
                    wire::id::check(id, "iface_id", &wire.iface_id)?;
                    config.put_network(wire)
                };
                self.configure(body, judge).await
            }
            Endpoint::PatchNetwork => self.patch_network(id, body).await,
            Endpoint::PutBalloon => {
                self.configure(body, |c, wire: BalloonWire| c.put_balloon(wire))
                    .await
            }
            Endpoint::PatchBalloon
            | Endpoint::PatchBalloonStatistics
            | Endpoint::StartHinting
            | Endpoint::StopHinting => self.change_balloon(endpoint, body).await,
            Endpoint::Logger => self.put_logger(body).await,
            Endpoint::PutMetrics => self.put_metrics(body).await,
            // Takes no turn: it holds at any time, also while the VM starts.
            Endpoint::PutPolicy => {
                self.rulebook.set(wire::policy::parse(body)?);
                Ok(())
            }
            // The reads are answered above.
            _ => Ok(()),
        }
    }

    /// Changes the configuration with a body of type `T`, in turn and in time.
    async fn configure<T: DeserializeOwned>(
        &self,
        body: &[u8],
        change: impl FnOnce(&mut Config, T) -> Result<(), ConfigError>,
    ) -> Result<(), SessionError> {
        let wire = wire::parse(body)?;
        let _turn = self.turn(Operation::Configure).await?;
        Ok(change(&mut self.config.borrow_mut(), wire)?)
    }

    async fn put_logger(&self, body: &[u8]) -> Result<(), SessionError> {
        let wire: LoggerWire = wire::parse(body)?;
        let _turn = self.turn(Operation::Configure).await?;
        self.log.apply(&wire)?;
        self.config.borrow_mut().note_logger(wire);
        Ok(())
    }

    async fn put_metrics(&self, body: &[u8]) -> Result<(), SessionError> {
        let wire: MetricsWire = wire::parse(body)?;
        let _turn = self.turn(Operation::Configure).await?;
        self.metrics_file.open(&wire)?;
        self.config.borrow_mut().note_metrics(wire);
        Ok(())
    }

    async fn flush_metrics(&self) -> Result<(), SessionError> {
        let _turn = self.turn(Operation::Control).await?;
        let (sender, outcome) = oneshot::channel();
        self.metrics_file.flush(move |done| drop(sender.send(done)));
        let (after, what) = (self.deadlines.command, "writing the metrics");
        match timeout(after, outcome).await {
            Ok(Ok(done)) => Ok(done?),
            _ => Err(SessionError::Deadline { what, after }),
        }
    }

    async fn start(&self) -> Result<(), SessionError> {
        let _turn = self.turn(Operation::Start).await?;
        let spec = self.config.borrow().spec()?;
        let (sender, outcome) = oneshot::channel();
        let (slot, launcher) = (Arc::clone(&self.slot), Arc::clone(&self.launcher));
        let metrics_file = Arc::clone(&self.metrics_file);
        slot.launching.store(true, Ordering::Release);
        let build = move || {
            let launched = launcher.launch(spec).map(|machine| {
                metrics_file.started(Arc::clone(&machine));
                let _ = slot.machine.set(machine);
            });
            slot.launching.store(false, Ordering::Release);
            let _ = sender.send(launched);
        };
        let thread = std::thread::Builder::new()
            .name("launch".to_owned())
            .spawn(build);
        if let Err(error) = thread {
            self.slot.launching.store(false, Ordering::Release);
            return Err(SessionError::Thread(error));
        }
        let after = self.deadlines.launch;
        let what = "starting the microVM";
        match timeout(after, outcome).await {
            Err(_) => Err(SessionError::Deadline { what, after }),
            Ok(Err(_)) => {
                self.slot.launching.store(false, Ordering::Release);
                Err(SessionError::Launch(
                    "the thread that starts it panicked; see the log".into(),
                ))
            }
            Ok(Ok(launched)) => launched.map_err(SessionError::Launch),
        }
    }

    async fn command(&self, command: Command, what: &'static str) -> Result<(), SessionError> {
        let _turn = self.turn(Operation::Control).await?;
        let Some(machine) = self.slot.machine.get() else {
            return Err(Denial::BeforeStart.into());
        };
        let (sender, outcome) = oneshot::channel();
        let reply = move |done| {
            let _ = sender.send(done);
        };
        let begin = Instant::now();
        machine.command(command, Box::new(reply));
        let after = self.deadlines.command;
        match timeout(after, outcome).await {
            Err(_) => Err(SessionError::Deadline { what, after }),
            Ok(Err(_)) => {
                let error = "the microVM ended before it answered".into();
                Err(SessionError::Command { what, error })
            }
            Ok(Ok(Ok(()))) => {
                match command {
                    Command::Pause => self.metrics_file.requests.paused(begin.elapsed()),
                    Command::Resume => self.metrics_file.requests.resumed(begin.elapsed()),
                    Command::CtrlAltDel | Command::Nmi | Command::Balloon(_) | Command::Stop => {}
                }
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(SessionError::Command { what, error }),
        }
    }

    /// Waits for the request before this one, then judges whether this one is taken.
    async fn turn(&self, operation: Operation) -> Result<impl Drop, SessionError> {
        let after = self.deadlines.turn;
        let what = "the request before this one";
        let turn = timeout(after, self.turn.lock()).await;
        let turn = turn.map_err(|_| SessionError::Deadline { what, after })?;
        admit(self.phase(), operation)?;
        // A start whose client was told that it did not end in time may still go on.
        if self.slot.launching.load(Ordering::Acquire) && operation != Operation::Control {
            return Err(Denial::AfterStart.into());
        }
        Ok(turn)
    }
}

/// What a request that was carried out asked for, where its path does not say it.
fn action(endpoint: Endpoint, body: &[u8]) -> Option<&'static str> {
    match endpoint {
        Endpoint::Actions => {
            let wire = wire::parse::<ActionWire>(body).ok();
            wire.map(|wire| wire.action_type.name())
        }
        Endpoint::VmState => {
            let wire = wire::parse::<VmWire>(body).ok();
            wire.map(|wire| wire.state.name())
        }
        _ => None,
    }
}

impl Handler for Session {
    async fn handle(&self, request: Request) -> Response {
        let (method, target) = (&request.method, &request.target);
        tracing::debug!("API request: {method} {target}");
        let response = self.respond(&request);
        let response = self.recorder.during(method, target, response).await;
        self.counts.count(response.status);
        response
    }
}
