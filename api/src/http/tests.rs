//! The server apart from the API: streamed answers, and what happens when all clients are busy.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::*;

/// `/stream` answers in pieces, `/wait` never, all else at once.
struct Fake;

impl Handler for Fake {
    async fn handle(&self, request: Request) -> Response {
        match request.target.as_str() {
            "/stream" => {
                let (sender, pieces) = mpsc::channel(1);
                tokio::task::spawn_local(async move {
                    for piece in ["one\n", "", "two\n"] {
                        let _ = sender.send(piece.as_bytes().to_vec()).await;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
                Response::stream("application/jsonl", pieces)
            }
            "/wait" => std::future::pending().await,
            _ => Response::no_content(),
        }
    }
}

/// Runs a server beside `client`, which gets its path.
fn with_server(name: &str, client: impl FnOnce(PathBuf) + Send + 'static) {
    let path = std::env::temp_dir().join(format!("vitrine-http-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(&path).unwrap();
        let (done, ended) = oneshot::channel::<()>();
        let client_path = path.clone();
        let client = std::thread::spawn(move || {
            let _done = done;
            client(client_path);
        });
        let stop = async move { drop(ended.await) };
        serve(listener, Rc::new(Fake), Options::default(), stop).await;
        client.join().unwrap();
    });
    std::fs::remove_file(&path).unwrap();
}

fn ask(path: &PathBuf, request: &str) -> Blocking {
    let mut stream = Blocking::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[test]
fn streams_are_chunked_and_the_connection_goes_on() {
    with_server("chunked", |path| {
        let request = "GET /stream HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        ask(&path, request).read_to_string(&mut text).unwrap();
        let (stream, rest) = text.split_once("0\r\n\r\n").unwrap();
        assert!(stream.contains("Transfer-Encoding: chunked\r\n"), "{text}");
        assert!(
            stream.ends_with("\r\n\r\n4\r\none\n\r\n4\r\ntwo\n\r\n"),
            "{text}"
        );
        assert!(rest.starts_with("HTTP/1.1 204 "), "{text}");
    });
}

#[test]
fn streams_to_http_1_0_end_with_the_connection() {
    with_server("plain", |path| {
        let mut text = String::new();
        ask(&path, "GET /stream HTTP/1.0\r\n\r\n")
            .read_to_string(&mut text)
            .unwrap();
        assert!(
            text.contains("Connection: close\r\n") && !text.contains("chunked"),
            "{text}"
        );
        assert!(text.ends_with("\r\n\r\none\ntwo\n"), "{text}");
    });
}

#[test]
fn when_all_clients_are_busy_a_new_one_is_told_so() {
    with_server("busy", |path| {
        let request = "GET /wait HTTP/1.1\r\n\r\n";
        let busy: Vec<_> = (0..MAX_CONNECTIONS).map(|_| ask(&path, request)).collect();
        // Until all are read, a new client may still take the place of one that looks idle.
        std::thread::sleep(Duration::from_millis(200));
        let mut text = String::new();
        let mut late = Blocking::connect(&path).unwrap();
        late.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        late.read_to_string(&mut text).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 503 ") && text.contains("64 clients"),
            "{text}"
        );
        drop(busy);
    });
}
