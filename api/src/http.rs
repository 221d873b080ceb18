//! HTTP/1.1 over a Unix socket, as Firecracker's clients need it.
//!
//! Written on `httparse` and not on hyper, for hyper closes an HTTP/1.0 connection whose request
//! has no `Connection` header, and decides itself about the headers of a 204; published clients
//! count on the connection staying open and on the exact bytes of Firecracker's answers.
//!
//! * [`decode`]: bytes to requests, pure;
//! * [`response`]: answers to bytes, each in one piece;
//! * [`connection`]: one client, requests in order, pipelined or not;
//! * this file: accepting clients. All run on one thread; none waits for another.

pub mod connection;
pub mod decode;
pub mod response;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

pub use connection::Timing;
pub use decode::{DEFAULT_MAX_BODY_BYTES, DecodeError, Request};
pub use response::{Body, Response, Status};

/// Most clients at a time. Beyond it the client that has been silent longest makes room; when all
/// have a request in progress, the new one is refused.
pub const MAX_CONNECTIONS: usize = 64;
/// How long the requests in progress may take to end once the server is told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Answers requests; one at a time for each client, any number of clients at a time.
pub trait Handler: 'static {
    /// Answers one request.
    fn handle(&self, request: Request) -> impl Future<Output = Response>;
}

/// What a server goes by.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// How long clients may take.
    pub timing: Timing,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            timing: Timing::default(),
        }
    }
}

/// What the server knows of a client.
struct Client {
    task: AbortHandle,
    activity: Rc<Activity>,
}

/// Whether a client has a request in progress, shared between its task and the server.
#[derive(Debug, Default)]
pub struct Activity {
    busy: Cell<bool>,
    /// Rises with each change of any client: the lowest among the idle has been silent longest.
    order: Cell<u64>,
}

/// Serves clients until `stop` is ready, and then only the requests in progress. Must run in a
/// [`tokio::task::LocalSet`].
pub async fn serve<H: Handler>(
    listener: UnixListener,
    handler: Rc<H>,
    options: Options,
    stop: impl Future<Output = ()>,
) {
    let clients: RefCell<Vec<Client>> = RefCell::default();
    let order = Rc::new(Cell::new(0));
    let mut stop = pin!(stop);
    loop {
        let accepted = poll_fn(|context| match stop.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => listener.poll_accept(context).map(Some),
        });
        match accepted.await {
            None => break,
            Some(Ok((stream, _))) => admit(stream, &clients, &order, &handler, options),
            Some(Err(error)) => {
                // Most likely no file descriptors are left: wait for one rather than spin.
                tracing::warn!("the API socket cannot accept a client: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let drained = async {
        while clients
            .borrow()
            .iter()
            .any(|client| client.activity.busy.get())
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(STOP_DEADLINE, drained).await.is_err() {
        tracing::warn!("API requests were still in progress at the end");
    }
}

fn admit<H: Handler>(
    stream: UnixStream,
    clients: &RefCell<Vec<Client>>,
    order: &Rc<Cell<u64>>,
    handler: &Rc<H>,
    options: Options,
) {
    let mut clients = clients.borrow_mut();
    clients.retain(|client| !client.task.is_finished());
    if clients.len() >= MAX_CONNECTIONS {
        let idle = clients
            .iter()
            .enumerate()
            .filter(|(_, client)| !client.activity.busy.get());
        let Some((oldest, _)) = idle.min_by_key(|(_, client)| client.activity.order.get()) else {
            connection::refuse(&stream, MAX_CONNECTIONS);
            return;
        };
        clients.swap_remove(oldest).task.abort();
    }
    let activity = Rc::new(Activity::default());
    let mark = {
        let (activity, order) = (Rc::clone(&activity), Rc::clone(order));
        move |busy: bool| {
            order.set(order.get() + 1);
            activity.order.set(order.get());
            activity.busy.set(busy);
        }
    };
    mark(false);
    let served = connection::serve(stream, Rc::clone(handler), options, mark);
    let task = tokio::task::spawn_local(served).abort_handle();
    clients.push(Client { task, activity });
}

#[cfg(test)]
mod tests;
