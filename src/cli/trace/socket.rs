//! The trace that a VM's API gives, asked for by HTTP/1.0: head, body, end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// How long the answer may be silent beyond the time that was asked for.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a head, or of a refusal, that are read.
const SHORT_BYTES: u64 = 64 << 10;

/// Why the API gave no trace.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody answers.
    #[error(
        "the API socket {path} does not answer: {source}; give the VM's black box, which needs no \
         help from the VMM, or start the VM"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It refuses.
    #[error("the VM at {path} gives no trace: {message}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        message: String,
    },
}

/// An answer whose head was read.
#[derive(Debug)]
pub struct Answer {
    path: PathBuf,
    body: BufReader<UnixStream>,
}

/// Asks for a trace of `period`.
///
/// # Errors
/// [`SocketError`].
pub fn ask(path: &Path, period: Duration) -> Result<Answer, SocketError> {
    let silent = |source| SocketError::Silent {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(silent)?;
    stream
        .set_read_timeout(Some(period + GRACE))
        .map_err(silent)?;
    stream.set_write_timeout(Some(GRACE)).map_err(silent)?;
    let ms = period.as_millis();
    let request = format!("GET /observe/trace?ms={ms} HTTP/1.0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(silent)?;
    let mut body = BufReader::new(stream);
    let status = head(&mut body).map_err(silent)?;
    if status == 200 {
        let path = path.to_owned();
        return Ok(Answer { path, body });
    }
    let mut text = String::new();
    body.take(SHORT_BYTES)
        .read_to_string(&mut text)
        .map_err(silent)?;
    let fault: Option<Value> = serde_json::from_str(&text).ok();
    let message = fault
        .as_ref()
        .and_then(|fault| fault["fault_message"].as_str());
    Err(SocketError::Refused {
        path: path.to_owned(),
        message: message.map_or_else(|| format!("status {status}"), ToOwned::to_owned),
    })
}

/// Reads the head of an answer; gives its status, 0 if that is none.
fn head(stream: &mut BufReader<UnixStream>) -> io::Result<u16> {
    let mut lines = stream.take(SHORT_BYTES);
    let (mut line, mut status) = (String::new(), None);
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            let text = "it ended the connection";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        if line.trim_end().is_empty() {
            return Ok(status.unwrap_or(0));
        }
        let second = || {
            line.split(' ')
                .nth(1)
                .and_then(|word| word.trim().parse().ok())
        };
        status = status.or_else(|| Some(second().unwrap_or(0)));
    }
}

impl Answer {
    /// Copies the trace as it comes.
    ///
    /// # Errors
    /// The VMM fell silent, or `out` does not take it.
    pub fn copy_to(mut self, out: &mut impl Write) -> Result<(), SocketError> {
        io::copy(&mut self.body, out).map_err(|source| SocketError::Silent {
            path: self.path,
            source,
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(bytes: &'static [u8]) -> io::Result<u16> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        head(&mut BufReader::new(ours))
    }

    #[test]
    fn heads_are_read_to_their_end() {
        let told = b"HTTP/1.1 400 \r\nServer: x\r\n\r\n{}";
        assert_eq!(answered(told).unwrap(), 400);
        assert_eq!(answered(b"nonsense\r\n\r\n").unwrap(), 0);
        assert!(answered(b"HTTP/1.1 200 \r\n").is_err());
    }

    /// Asks at a socket whose other side answers `bytes` and stays, and sees what comes of it.
    fn asked(name: &str, bytes: &'static [u8]) -> String {
        let name = format!("vitrine-trace-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(bytes).unwrap();
            // Until the client is gone.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let asked = ask(&path, Duration::from_millis(1));
        let text = asked.map_or_else(|error| error.to_string(), |_| "an answer".to_owned());
        server.join().unwrap();
        let _ = std::fs::remove_file(&path);
        text
    }

    #[test]
    fn who_is_silent_is_given_up() {
        for (name, bytes) in [("silent", &b""[..]), ("half", b"HTTP/1.1 200 \r\nSer")] {
            let text = asked(name, bytes);
            assert!(text.contains("does not answer"), "{text}");
            assert!(text.contains("give the VM's black box"), "{text}");
        }
        assert_eq!(asked("fine", b"HTTP/1.1 200 \r\n\r\n{"), "an answer");
    }
}
