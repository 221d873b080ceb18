//! The socket and the thread that serves it.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::events::EventLog;
use crate::http::{self, Options};
use crate::record::{Inbox, Recorder};
use crate::session::{Session, SessionParts};

/// How long [`Server::stop`] waits for requests in progress; a little more than they are given.
const STOP_DEADLINE: Duration = Duration::from_millis(1200);

/// Why the socket or its thread cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something is at the path.
    #[error(
        "the API socket {} already exists: another VMM may be using it; \
         remove it or choose another --api-sock", path.display()
    )]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused the path.
    #[error("the API socket {} cannot be made: {source}; choose another --api-sock", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread or no event loop.
    #[error(
        "the API thread cannot be made: {0}; free memory or raise the limits on threads and files"
    )]
    Thread(io::Error),
}

/// A socket that listens; clients wait until it is served.
#[derive(Debug)]
pub struct Socket(UnixListener);

impl Socket {
    /// Makes the socket and listens. Its file stays behind, as Firecracker's does. It comes to
    /// `path` when it listens already: a client that waits for the file can connect at once.
    ///
    /// # Errors
    /// Something is at the path already, or it cannot be made.
    pub fn bind(path: &Path) -> Result<Socket, ServerError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => ServerError::Exists {
                path: path.to_owned(),
            },
            _ => ServerError::Bind {
                path: path.to_owned(),
                source,
            },
        };
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = Path::new(&beside);
        let listener = match UnixListener::bind(beside) {
            Ok(listener) => {
                // A link, unlike a rename, takes nobody else's place.
                let linked = std::fs::hard_link(beside, path);
                // Gone already is as good as removed.
                let _ = std::fs::remove_file(beside);
                linked.map_err(error)?;
                listener
            }
            // The longer name may not fit where the path itself does.
            Err(_) => UnixListener::bind(path).map_err(error)?,
        };
        listener.set_nonblocking(true).map_err(error)?;
        Ok(Socket(listener))
    }
}

/// The thread `api`.
#[derive(Debug)]
pub struct Server {
    stop: oneshot::Sender<()>,
    ended: mpsc::Receiver<()>,
    events: Arc<EventLog>,
}

impl Server {
    /// Begins to serve. `sections` brings the thread's own section of each black box.
    ///
    /// # Errors
    /// No thread or no event loop can be had.
    pub fn start(
        socket: Socket,
        parts: SessionParts,
        sections: Inbox,
        options: Options,
    ) -> Result<Server, ServerError> {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ServerError::Thread)?;
        let events = Arc::clone(&parts.events);
        let serve = move || {
            // Dropped at the end, panic or not: that is what tells it.
            let _end = end;
            let served = async {
                let listener = tokio::net::UnixListener::from_std(socket.0)?;
                let stop = async {
                    // A server that was dropped and not stopped serves on.
                    if stopped.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                let recorder = Rc::<Recorder>::default();
                let taking = Rc::clone(&recorder);
                tokio::task::spawn_local(async move { taking.take(sections).await });
                let session = Rc::new(Session::new(parts, Rc::clone(&recorder)));
                http::serve(listener, session, options, stop).await;
                recorder.end();
                io::Result::Ok(())
            };
            if let Err(error) = tokio::task::LocalSet::new().block_on(&runtime, served) {
                tracing::error!("the API socket cannot be served: {error}");
            }
        };
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(serve);
        thread.map(drop).map_err(ServerError::Thread)?;
        Ok(Server {
            stop,
            ended,
            events,
        })
    }

    /// Takes no more clients and waits, for a second at most, for the requests in progress.
    pub fn stop(self) {
        // Those who follow are done then.
        self.events.close();
        let _ = self.stop.send(());
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_DEADLINE) {
            tracing::warn!("the API thread did not end in time");
        }
    }
}
