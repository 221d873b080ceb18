//! The daemon: a VM configured and told things through a socket, or started from a file.

use std::sync::Arc;

use api::config::{Config, Fixed};
use api::config_file;
use api::events::EventLog;
use api::http::Options;
use api::logging::LogControl;
use api::machine::{Launcher, Machine};
use api::metrics_file::MetricsFile;
use api::policy::Rulebook;
use api::record;
use api::server::{Server, Socket};
use api::session::{Deadlines, SessionParts};
use api::vmm::SerialInput;
use api::wire::{LoggerWire, MetricsWire};

use super::args::DaemonArgs;
use super::signals::Signals;
use super::supervise::Supervisor;
use super::{Failure, black_box};

/// Runs until the VM ends or a signal asks for it.
///
/// # Errors
/// Bad usage or configuration; the VM failed.
pub fn daemon(arguments: DaemonArgs) -> Result<(), Failure> {
    // The socket first of all: clients look for it at once.
    let path = arguments.api_sock.clone();
    let socket = if arguments.no_api {
        None
    } else {
        Some(Socket::bind(&path).map_err(Failure::misuse)?)
    };
    let is_ours = socket.is_some();
    let prepared = prepare(arguments, socket);
    if prepared.is_err() && is_ours {
        // Nobody was served: the next attempt shall not find it in its way.
        let _ = std::fs::remove_file(&path);
    }
    let Prepared {
        supervisor,
        server,
        metrics_file,
    } = prepared?;
    let outcome = supervisor.wait();
    metrics_file.finish();
    if let Some(server) = server {
        server.stop();
    }
    outcome
}

/// All that runs beside the VM.
struct Prepared {
    supervisor: Supervisor,
    server: Option<Server>,
    metrics_file: Arc<MetricsFile>,
}

fn prepare(arguments: DaemonArgs, socket: Option<Socket>) -> Result<Prepared, Failure> {
    let events = Arc::<EventLog>::default();
    let rulebook = Arc::<Rulebook>::default();
    let (place, sections) = record::pair();
    let place = socket.is_some().then_some(place);
    let supervisor = Supervisor::new(
        Signals::block(),
        Arc::clone(&events),
        Arc::clone(&rulebook),
        place,
    )?;
    let (id, black_box_name) = black_box::names(arguments.id.clone());
    let log = start_log(&id, &arguments)?;
    for flag in arguments.without_effect() {
        tracing::warn!("{flag} has no effect in this build");
    }
    let options = Options {
        max_body_bytes: arguments.http_api_max_payload_size,
        ..Options::default()
    };
    let metrics_file = MetricsFile::new(&id, Arc::clone(&log));
    let mut config = Config::new(Fixed {
        id,
        serial_input: SerialInput::Stdin,
        black_box: black_box::spec(&black_box_name, arguments.black_box),
        kernel_cache: arguments.kernel_cache.folder(),
        pci: arguments.enable_pci,
        limits: rulebook.limits(),
    });
    if let Some(path) = arguments.metrics_path {
        config.note_metrics(MetricsWire {
            metrics_path: path,
            ..MetricsWire::default()
        });
    }
    let mut machine = None;
    if let Some(path) = &arguments.config_file {
        config_file::load(path, &mut config, &log, &rulebook).map_err(Failure::misuse)?;
    }
    arguments.policy.apply(&rulebook).map_err(Failure::misuse)?;
    if let Some(metrics) = config.metrics() {
        metrics_file.open(metrics).map_err(Failure::misuse)?;
    }
    if arguments.config_file.is_some() {
        let started = start(&config, &supervisor)?;
        metrics_file.started(Arc::clone(&started));
        machine = Some(started);
    }
    let parts = SessionParts {
        config,
        machine,
        launcher: supervisor.launcher(),
        events,
        metrics_file: Arc::clone(&metrics_file),
        log,
        rulebook,
        deadlines: Deadlines::default(),
    };
    let server = socket
        .map(|socket| Server::start(socket, parts, sections, options))
        .transpose();
    Ok(Prepared {
        supervisor,
        server: server.map_err(Failure::failed)?,
        metrics_file,
    })
}

/// Starts the VM that was read from a file.
pub fn start(config: &Config, supervisor: &Supervisor) -> Result<Arc<dyn Machine>, Failure> {
    let spec = config.spec().map_err(Failure::misuse)?;
    supervisor.launcher().launch(spec).map_err(Failure::failed)
}

fn start_log(id: &str, arguments: &DaemonArgs) -> Result<Arc<LogControl>, Failure> {
    let log = LogControl::new(id);
    log.install();
    let wire = LoggerWire {
        log_path: arguments.log_path.clone(),
        level: arguments.level,
        show_level: arguments.show_level.then_some(true),
        show_log_origin: arguments.show_log_origin.then_some(true),
        module: arguments.module.clone(),
    };
    log.apply(&wire).map_err(Failure::misuse)?;
    tracing::info!("running Vitrine v{}", api::VERSION);
    Ok(log)
}
