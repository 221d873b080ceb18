//! One client: its requests in order, each answered before the next is looked at.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::decode::{DecodeError, Decoder, Request, Step};
use super::response::{Body, Response, Status};
use super::{Handler, Options};

/// How often it is looked whether a client that is streamed to is still there.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// How long a client may take. Being silent between two requests is not limited.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the first byte of a request to its last.
    pub request: Duration,
    /// To take an answer, or a piece of a streamed one.
    pub answer: Duration,
    /// After a refusal that ends the connection: how long what the client still sends is read and
    /// thrown away, so that it sees the answer and not a broken pipe.
    pub linger: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            request: Duration::from_secs(30),
            answer: Duration::from_secs(10),
            linger: Duration::from_millis(500),
        }
    }
}

/// Why a connection ends.
enum End {
    /// The client or the kernel ended it, or an answer said that it would end.
    Gone,
    /// What the client sent cannot be read.
    Refused(DecodeError),
    /// The client began a request and did not end it in time.
    Slow,
}

/// Serves one client until it is gone. `mark` is told when a request begins and ends.
pub(super) async fn serve<H: Handler>(
    mut stream: UnixStream,
    handler: Rc<H>,
    options: Options,
    mark: impl Fn(bool),
) {
    let mut decoder = Decoder::new(options.max_body_bytes);
    let message = loop {
        let end = match next_request(&mut stream, &mut decoder, options.timing, &mark).await {
            Ok(request) => answer_one(&mut stream, &*handler, request, options.timing).await,
            Err(end) => Err(end),
        };
        mark(false);
        match end {
            Ok(()) => {}
            Err(End::Gone) => return,
            Err(End::Refused(error)) => break error.to_string(),
            Err(End::Slow) => {
                let seconds = options.timing.request.as_secs_f32();
                break format!(
                    "the request was not complete after {seconds} seconds; send it at once"
                );
            }
        }
    };
    tracing::warn!("an API client is refused: {message}");
    let refusal = Response::fault(Status::BadRequest, &message).encode(false, 1);
    if write(&mut stream, &refusal, options.timing).await.is_ok() {
        linger(stream, options.timing.linger).await;
    }
}

/// Tells a client that there are too many, without waiting for anything.
pub(super) fn refuse(stream: &UnixStream, limit: usize) {
    let message = format!("{limit} clients have requests in progress; try again later");
    // A fresh socket's buffer takes this; when not, the client is closed without a word.
    let _ = stream.try_write(&Response::fault(Status::Unavailable, &message).encode(false, 1));
}

async fn next_request(
    stream: &mut UnixStream,
    decoder: &mut Decoder,
    timing: Timing,
    mark: &impl Fn(bool),
) -> Result<Request, End> {
    let mut piece = [0; 8192];
    let mut deadline = None;
    loop {
        match decoder.step().map_err(End::Refused)? {
            Step::Request(request) => {
                mark(true);
                return Ok(request);
            }
            Step::Continue => write(stream, b"HTTP/1.1 100 Continue\r\n\r\n", timing).await?,
            Step::NeedMore => {}
        }
        // Only a request that has begun must end. It does not count as busy before it is whole: a
        // client that dawdles makes room for others.
        let read = if decoder.is_idle() {
            stream.read(&mut piece).await
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + timing.request);
            timeout_at(deadline, stream.read(&mut piece))
                .await
                .map_err(|_| End::Slow)?
        };
        match read {
            Ok(count) if count > 0 => decoder.push(piece.get(..count).unwrap_or_default()),
            _ => return Err(End::Gone),
        }
    }
}

async fn answer_one<H: Handler>(
    stream: &mut UnixStream,
    handler: &H,
    request: Request,
    timing: Timing,
) -> Result<(), End> {
    let minor_version = request.minor_version;
    let mut keep_alive = request.keep_alive;
    let response = handler.handle(request).await;
    if minor_version == 0 && matches!(response.body, Body::Stream(_)) {
        keep_alive = false;
    }
    write(stream, &response.encode(keep_alive, minor_version), timing).await?;
    if let Body::Stream(pieces) = response.body {
        relay(stream, pieces, minor_version > 0, timing).await?;
    }
    if keep_alive { Ok(()) } else { Err(End::Gone) }
}

/// Writes the pieces of a streamed body as they come, each in one write.
async fn relay(
    stream: &mut UnixStream,
    mut pieces: mpsc::Receiver<Vec<u8>>,
    chunked: bool,
    timing: Timing,
) -> Result<(), End> {
    while let Some(piece) = next_piece(stream, &mut pieces).await? {
        if piece.is_empty() {
            continue;
        }
        if chunked {
            let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
            bytes.extend_from_slice(&piece);
            bytes.extend_from_slice(b"\r\n");
            write(stream, &bytes, timing).await?;
        } else {
            write(stream, &piece, timing).await?;
        }
    }
    if chunked {
        write(stream, b"0\r\n\r\n", timing).await
    } else {
        Ok(())
    }
}

/// The next piece; an error when the client hangs up while there is none.
async fn next_piece(
    stream: &UnixStream,
    pieces: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<Option<Vec<u8>>, End> {
    loop {
        if let Ok(piece) = timeout(LOOK_AROUND, pieces.recv()).await {
            return Ok(piece);
        }
        // Ready at once while the client takes more. One that only says no more is not gone.
        let ready = timeout(Duration::ZERO, stream.ready(Interest::WRITABLE)).await;
        if matches!(ready, Ok(Ok(ready)) if ready.is_write_closed()) {
            return Err(End::Gone);
        }
    }
}

async fn write(stream: &mut UnixStream, bytes: &[u8], timing: Timing) -> Result<(), End> {
    match timeout(timing.answer, stream.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(End::Gone),
    }
}

/// Reads and drops what still comes, until the client closes or the time is over.
async fn linger(mut stream: UnixStream, time: Duration) {
    let _ = stream.shutdown().await;
    let mut piece = [0; 8192];
    let drain = async { while matches!(stream.read(&mut piece).await, Ok(count) if count > 0) {} };
    let _ = timeout(time, drain).await;
}
