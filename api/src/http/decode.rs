//! The bytes of a connection turned into requests. Pure: no I/O, no clock, and nothing that a
//! client sends can make it panic or hold more than the limits allow.

#![deny(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use httparse::Status;

/// Most header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// Most bytes of a request's line and headers together.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Most bytes of a body unless the operator says otherwise: Firecracker's.
pub const DEFAULT_MAX_BODY_BYTES: usize = 51_200;

/// One request, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method as sent: `GET`, `PUT`.
    pub method: String,
    /// The request target as sent: path and query.
    pub target: String,
    /// Minor version of HTTP/1: 0 or 1.
    pub minor_version: u8,
    /// Whether the connection outlives the answer. Also true for HTTP/1.0 without a `Connection`
    /// header: published clients count on it.
    pub keep_alive: bool,
    /// Whether the client's `Accept` names OpenMetrics.
    pub accepts_openmetrics: bool,
    /// The body; empty when there is none.
    pub body: Vec<u8>,
}

/// What [`Decoder::step`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// No whole request yet: read on.
    NeedMore,
    /// The client waits for `100 Continue` before it sends the body; told once per request.
    Continue,
    /// A request.
    Request(Request),
}

/// Why bytes are not a request. The connection cannot be read further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not HTTP/1.
    #[error("malformed HTTP request: {0}; send HTTP/1.1 requests to this socket")]
    Malformed(&'static str),
    /// Too many or too long headers.
    #[error(
        "the request line and headers exceed {MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes; send fewer"
    )]
    HeadTooLarge,
    /// A body above the limit.
    #[error(
        "the request body of {} bytes exceeds the limit of {limit} bytes; \
         send a smaller one or raise --http-api-max-payload-size",
        match size { Some(size) => size.to_string(), None => format!("more than {limit}") }
    )]
    BodyTooLarge {
        /// Its size, where the client said it.
        size: Option<u64>,
        /// The limit.
        limit: usize,
    },
    /// A transfer coding other than `chunked`.
    #[error("the transfer coding {0:?} is not understood; send a Content-Length or `chunked`")]
    Coding(String),
    /// An expectation other than `100-continue`.
    #[error("the expectation {0:?} is not understood; send `100-continue` or no Expect header")]
    Expectation(String),
}

#[derive(Debug)]
struct Head {
    method: String,
    target: String,
    minor_version: u8,
    keep_alive: bool,
    accepts_openmetrics: bool,
    expects_continue: bool,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

#[derive(Debug)]
enum Stage {
    Head,
    Body(Head, Vec<u8>),
    Failed(DecodeError),
}

/// Decodes one connection's bytes, in order, however they are cut into pieces.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    stage: Stage,
    max_body_bytes: usize,
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new(max_body_bytes: usize) -> Decoder {
        Decoder {
            buffer: Vec::new(),
            stage: Stage::Head,
            max_body_bytes,
        }
    }

    /// Adds bytes that were read. Call [`Decoder::step`] until it needs more before the next push:
    /// that bounds what is held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the connection rests between two requests. Empty lines there belong to neither.
    pub fn is_idle(&self) -> bool {
        let blank = self.buffer.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
        blank && matches!(self.stage, Stage::Head)
    }

    /// The next request, if it is whole.
    ///
    /// # Errors
    /// [`DecodeError`], again at each further call: there is no way to find the next request.
    pub fn step(&mut self) -> Result<Step, DecodeError> {
        let outcome = self.advance();
        if let Err(error) = &outcome {
            self.stage = Stage::Failed(error.clone());
            self.buffer = Vec::new();
        }
        outcome
    }

    fn advance(&mut self) -> Result<Step, DecodeError> {
        if let Stage::Failed(error) = &self.stage {
            return Err(error.clone());
        }
        if matches!(self.stage, Stage::Head) {
            let Some((head, used)) = parse_head(&self.buffer, self.max_body_bytes)? else {
                return Ok(Step::NeedMore);
            };
            self.consume(used);
            self.stage = Stage::Body(head, Vec::new());
        }
        let Stage::Body(mut head, mut body) = std::mem::replace(&mut self.stage, Stage::Head)
        else {
            return Ok(Step::NeedMore);
        };
        let whole = match head.framing {
            Framing::Length(length) => self.take_length(length, &mut body),
            Framing::Chunked => self.take_chunks(&mut body)?,
        };
        if whole {
            return Ok(Step::Request(Request {
                method: head.method,
                target: head.target,
                minor_version: head.minor_version,
                keep_alive: head.keep_alive,
                accepts_openmetrics: head.accepts_openmetrics,
                body,
            }));
        }
        let asked = std::mem::take(&mut head.expects_continue);
        self.stage = Stage::Body(head, body);
        Ok(if asked {
            Step::Continue
        } else {
            Step::NeedMore
        })
    }

    fn take_length(&mut self, length: usize, body: &mut Vec<u8>) -> bool {
        let wanted = length.saturating_sub(body.len()).min(self.buffer.len());
        body.extend(self.buffer.drain(..wanted));
        body.len() >= length
    }

    /// Moves whole chunks into `body`; true after the last one and its trailers.
    fn take_chunks(&mut self, body: &mut Vec<u8>) -> Result<bool, DecodeError> {
        loop {
            let (line, size) = match httparse::parse_chunk_size(&self.buffer) {
                Ok(Status::Complete((line, _))) if line > MAX_HEAD_BYTES => {
                    return Err(DecodeError::HeadTooLarge);
                }
                Ok(Status::Complete(found)) => found,
                Ok(Status::Partial) => return self.wait_within_head(),
                Err(_) => return Err(DecodeError::Malformed("a chunk's size is not a hex number")),
            };
            let size = usize::try_from(size)
                .ok()
                .filter(|size| body.len().saturating_add(*size) <= self.max_body_bytes)
                .ok_or(DecodeError::BodyTooLarge {
                    size: None,
                    limit: self.max_body_bytes,
                })?;
            if size == 0 {
                return self.take_trailers(line);
            }
            let end = line.saturating_add(size);
            let Some(closing) = self.buffer.get(end..end.saturating_add(2)) else {
                return Ok(false);
            };
            if closing != b"\r\n" {
                return Err(DecodeError::Malformed(
                    "a chunk does not end where its size says",
                ));
            }
            body.extend_from_slice(self.buffer.get(line..end).unwrap_or_default());
            self.consume(end.saturating_add(2));
        }
    }

    fn take_trailers(&mut self, line: usize) -> Result<bool, DecodeError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let rest = self.buffer.get(line..).unwrap_or_default();
        match httparse::parse_headers(rest, &mut headers) {
            Ok(Status::Complete((used, _))) => {
                let used = line.saturating_add(used);
                if used > MAX_HEAD_BYTES {
                    return Err(DecodeError::HeadTooLarge);
                }
                self.consume(used);
                Ok(true)
            }
            Ok(Status::Partial) => self.wait_within_head(),
            Err(_) => Err(DecodeError::Malformed("the trailers after the last chunk")),
        }
    }

    /// Waits for the rest of a chunk line or trailers, of which no more than a head's bytes count.
    fn wait_within_head(&self) -> Result<bool, DecodeError> {
        if self.buffer.len() > MAX_HEAD_BYTES {
            Err(DecodeError::HeadTooLarge)
        } else {
            Ok(false)
        }
    }

    fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.buffer.len());
        self.buffer.drain(..bytes);
    }
}

/// The head at the start of `bytes` and its length; `None` when it is not whole.
fn parse_head(bytes: &[u8], max_body: usize) -> Result<Option<(Head, usize)>, DecodeError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(Status::Complete(used)) if used <= MAX_HEAD_BYTES => used,
        Ok(Status::Partial) if bytes.len() <= MAX_HEAD_BYTES => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(DecodeError::HeadTooLarge),
        Err(error) => return Err(DecodeError::Malformed(describe(error))),
    };
    let mut head = Head {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        minor_version: parsed.version.unwrap_or(1),
        keep_alive: true,
        accepts_openmetrics: false,
        expects_continue: false,
        framing: Framing::Length(0),
    };
    read_headers(&mut head, parsed.headers, max_body)?;
    Ok(Some((head, used)))
}

fn read_headers(
    head: &mut Head,
    headers: &[httparse::Header<'_>],
    max_body: usize,
) -> Result<(), DecodeError> {
    let mut length: Option<u64> = None;
    for header in headers {
        let value = String::from_utf8_lossy(header.value);
        let value = value.trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let this = content_length(value)?;
            if length.is_some_and(|other| other != this) {
                return Err(DecodeError::Malformed(
                    "two different Content-Length headers",
                ));
            }
            length = Some(this);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") || head.framing == Framing::Chunked {
                return Err(DecodeError::Coding(value.to_owned()));
            }
            head.framing = Framing::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") {
            let closes = value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("close"));
            head.keep_alive &= !closes;
        } else if header.name.eq_ignore_ascii_case("accept") {
            let names = value.split(',').map(|range| range.split(';').next());
            let mut names = names.map(|name| name.unwrap_or_default().trim());
            head.accepts_openmetrics |=
                names.any(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        } else if header.name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case("100-continue") {
                return Err(DecodeError::Expectation(value.to_owned()));
            }
            head.expects_continue = head.minor_version > 0;
        }
    }
    match (length, head.framing) {
        (None, _) => Ok(()),
        (Some(_), Framing::Chunked) => Err(DecodeError::Malformed(
            "both Content-Length and Transfer-Encoding",
        )),
        (Some(size), Framing::Length(_)) => {
            let fits = usize::try_from(size).ok().filter(|size| *size <= max_body);
            let error = DecodeError::BodyTooLarge {
                size: Some(size),
                limit: max_body,
            };
            head.framing = Framing::Length(fits.ok_or(error)?);
            Ok(())
        }
    }
}

/// Digits only: `str::parse` would take a sign.
fn content_length(value: &str) -> Result<u64, DecodeError> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| value.parse().unwrap_or(u64::MAX))
        .ok_or(DecodeError::Malformed("Content-Length is not a number"))
}

fn describe(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name",
        httparse::Error::HeaderValue => "a header's value",
        httparse::Error::NewLine => "a line's end",
        httparse::Error::Token => "the method or request target",
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
        _ => "the request line",
    }
}

#[cfg(test)]
mod tests;
