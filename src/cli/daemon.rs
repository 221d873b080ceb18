//! The daemon: a VM configured and told things through a socket, or started from a file.

use std::sync::Arc;

use api::config::{Config, Fixed};
use api::config_file;
use api::events::EventLog;
use api::http::Options;
use api::logging::LogControl;
use api::machine::{Launcher, Machine};
use api::server::{Server, Socket};
use api::session::{Deadlines, SessionParts};
use api::vmm::SerialInput;
use api::wire::LoggerWire;

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
    let (supervisor, server) = prepared?;
    let outcome = supervisor.wait();
    if let Some(server) = server {
        server.stop();
    }
    outcome
}

fn prepare(
    arguments: DaemonArgs,
    socket: Option<Socket>,
) -> Result<(Supervisor, Option<Server>), Failure> {
    let events = Arc::<EventLog>::default();
    let supervisor = Supervisor::new(Signals::block(), Arc::clone(&events))?;
    let (id, black_box_name) = black_box::names(arguments.id.clone());
    let log = start_log(&id, &arguments)?;
    for flag in arguments.without_effect() {
        tracing::warn!("{flag} has no effect in this build");
    }
    let options = Options {
        max_body_bytes: arguments.http_api_max_payload_size,
        ..Options::default()
    };
    let mut config = Config::new(Fixed {
        id,
        serial_input: SerialInput::Stdin,
        black_box: black_box::spec(&black_box_name, arguments.black_box),
        kernel_cache: arguments.kernel_cache.folder(),
    });
    let mut machine = None;
    if let Some(path) = &arguments.config_file {
        config_file::load(path, &mut config, &log).map_err(Failure::misuse)?;
        machine = Some(start(&config, &supervisor)?);
    }
    let parts = SessionParts {
        config,
        machine,
        launcher: supervisor.launcher(),
        events,
        log,
        deadlines: Deadlines::default(),
    };
    let server = socket
        .map(|socket| Server::start(socket, parts, options))
        .transpose();
    Ok((supervisor, server.map_err(Failure::failed)?))
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
