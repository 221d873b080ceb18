//! A GET over a Unix socket: as much HTTP as a readiness probe needs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Result, fail};

/// The body of the answer to `GET path`, which must be a 200.
pub fn get(socket: &Path, path: &str) -> Result<String> {
    let what = || format!("GET {path} on {}", socket.display());
    let mut stream = UnixStream::connect(socket).context(what)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .context(what)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
    )
    .context(what)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(body) = body(&answer)? {
            return Ok(body);
        }
        match stream.read(&mut buffer).context(what)? {
            0 => return fail(format!("{}: the answer was cut short", what())),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The body, once the answer is whole.
fn body(answer: &[u8]) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return fail(format!("the answer was: {status}"));
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    Ok((body.len() >= length).then(|| body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert!(matches!(body(answer), Ok(Some(text)) if text == "{}"));
        assert!(matches!(body(&answer[..answer.len() - 1]), Ok(None)));
        assert!(matches!(body(b"HTTP/1.1 200"), Ok(None)));
        assert!(body(b"HTTP/1.1 400 Bad Request\r\n\r\n").is_err());
    }
}
