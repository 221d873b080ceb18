//! Answers, and their exact bytes.
//!
//! The head is Firecracker's to the byte: `HTTP/1.1 204 ` without a reason, `Server`,
//! `Connection`, then `Content-Type` and `Content-Length` where there is a body and nothing more.
//! One published client reads 64 bytes at a time until a read is short and hangs on an answer
//! whose length is a multiple of 64, so a JSON body then gets a newline more.

use serde::Serialize;
use tokio::sync::mpsc;

/// What that client reads at a time.
const SHORT_READ: usize = 64;

/// The statuses that this API gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200, with a body.
    Ok,
    /// 204, without one.
    NoContent,
    /// 400: nearly every refusal.
    BadRequest,
    /// 503: too many clients.
    Unavailable,
}

impl Status {
    /// The number.
    pub fn code(self) -> u16 {
        match self {
            Status::Ok => 200,
            Status::NoContent => 204,
            Status::BadRequest => 400,
            Status::Unavailable => 503,
        }
    }
}

/// What follows an answer's head.
#[derive(Debug)]
pub enum Body {
    /// Nothing, not even a length.
    Empty,
    /// All of it, written together with the head.
    Whole(Vec<u8>),
    /// Pieces as they come, until the sender is dropped; a slow client holds the sender back.
    Stream(mpsc::Receiver<Vec<u8>>),
}

/// One answer.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// The type of its body; not sent when there is none.
    pub content_type: &'static str,
    /// Its body.
    pub body: Body,
}

/// JSON's content type.
pub const JSON: &str = "application/json";

#[derive(Serialize)]
struct Fault<'a> {
    fault_message: &'a str,
}

impl Response {
    /// 204.
    pub fn no_content() -> Response {
        Response {
            status: Status::NoContent,
            content_type: JSON,
            body: Body::Empty,
        }
    }

    /// 200 with `value` as JSON.
    pub fn json<T: Serialize>(value: &T) -> Response {
        match serde_json::to_vec(value) {
            Ok(text) => Response::text(JSON, text),
            Err(error) => Response::fault(
                Status::BadRequest,
                &format!("the answer is not JSON: {error}"),
            ),
        }
    }

    /// 200 with a body of another type.
    pub fn text(content_type: &'static str, body: Vec<u8>) -> Response {
        Response {
            status: Status::Ok,
            content_type,
            body: Body::Whole(body),
        }
    }

    /// 200 with a body that comes in pieces.
    pub fn stream(content_type: &'static str, pieces: mpsc::Receiver<Vec<u8>>) -> Response {
        Response {
            status: Status::Ok,
            content_type,
            body: Body::Stream(pieces),
        }
    }

    /// A refusal: `{"fault_message": message}`.
    pub fn fault(status: Status, message: &str) -> Response {
        // A struct of one string is always JSON.
        let text = serde_json::to_vec(&Fault {
            fault_message: message,
        })
        .unwrap_or_default();
        Response {
            status,
            content_type: JSON,
            body: Body::Whole(text),
        }
    }

    /// The bytes to write first: head and whole body in one piece, or the head of a stream, which
    /// is chunked for HTTP/1.1 and ends with the connection for HTTP/1.0.
    pub fn encode(&self, keep_alive: bool, minor_version: u8) -> Vec<u8> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n",
            self.status.code()
        );
        let mut bytes = head.into_bytes();
        match &self.body {
            Body::Empty => bytes.extend_from_slice(b"\r\n"),
            Body::Whole(body) => self.append_whole(&mut bytes, body),
            Body::Stream(_) => {
                let coding = if minor_version > 0 {
                    "Transfer-Encoding: chunked\r\n"
                } else {
                    ""
                };
                let rest = format!("Content-Type: {}\r\n{coding}\r\n", self.content_type);
                bytes.extend_from_slice(rest.as_bytes());
            }
        }
        bytes
    }

    fn append_whole(&self, bytes: &mut Vec<u8>, body: &[u8]) {
        let rest = |length: usize| {
            format!(
                "Content-Type: {}\r\nContent-Length: {length}\r\n\r\n",
                self.content_type
            )
        };
        let plain = rest(body.len());
        let total = bytes.len() + plain.len() + body.len();
        let pads = self.content_type == JSON && total.is_multiple_of(SHORT_READ);
        let rest = if pads { rest(body.len() + 1) } else { plain };
        bytes.extend_from_slice(rest.as_bytes());
        bytes.extend_from_slice(body);
        if pads {
            bytes.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_204_is_firecrackers_to_the_byte() {
        let bytes = Response::no_content().encode(true, 1);
        let expected = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        assert!(!expected.len().is_multiple_of(64));
        assert!(
            !Response::no_content()
                .encode(false, 1)
                .len()
                .is_multiple_of(64)
        );
    }

    #[test]
    fn no_json_answer_is_a_multiple_of_64_and_lengths_are_true() {
        for length in 0..300 {
            let response = Response::fault(Status::BadRequest, &"x".repeat(length));
            let text = String::from_utf8(response.encode(true, 1)).unwrap();
            assert!(!text.len().is_multiple_of(64), "{length}");
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.ends_with(&format!("Content-Length: {}", body.len())),
                "{head}"
            );
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
        }
    }
}
