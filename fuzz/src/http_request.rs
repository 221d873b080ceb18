//! The API's HTTP decoder: the same bytes whole and cut into pieces mean the same requests.

use api::http::decode::{DecodeError, Decoder, Request, Step};
use api::routes;

/// A limit that small inputs reach.
const MAX_BODY_BYTES: usize = 200;

/// Most bytes that an input stands for.
const MAX_BYTES: usize = 64 << 10;

/// Runs the target. The first byte says how the rest is cut; FFh repeats the byte two places on, so
/// that small inputs reach the limits.
pub fn run(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = &*expanded(bytes);
    let size = 1 + usize::from(*cut) * (1 + bytes.len() / 1024);
    let whole = decode([bytes].into_iter());
    let split = decode(bytes.chunks(size));
    assert_eq!(whole.0, split.0, "requests by the size of reads");
    assert_eq!(whole.1.is_some(), split.1.is_some(), "{whole:?} {split:?}");
    for request in &whole.0 {
        assert!(request.body.len() <= MAX_BODY_BYTES);
        let found = routes::find(&request.method, &request.target, !request.body.is_empty());
        if let Err(error) = found {
            let _ = error.to_string();
        }
    }
}

fn expanded(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some((byte, rest)) = bytes.split_first() {
        bytes = match rest {
            [times, repeated, rest @ ..] if *byte == 0xFF => {
                all.resize(all.len() + usize::from(*times) * 128, *repeated);
                rest
            }
            _ => {
                all.push(*byte);
                rest
            }
        };
    }
    all.truncate(MAX_BYTES);
    all
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Request>, Option<DecodeError>) {
    let mut decoder = Decoder::new(MAX_BODY_BYTES);
    let mut requests = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        let mut continues = 0;
        loop {
            match decoder.step() {
                Ok(Step::Request(request)) => {
                    requests.push(request);
                    continues = 0;
                }
                Ok(Step::Continue) => {
                    continues += 1;
                    assert_eq!(continues, 1, "told once a request");
                }
                Ok(Step::NeedMore) => break,
                Err(error) => {
                    let _ = error.to_string();
                    assert_eq!(decoder.step(), Err(error.clone()), "errors stay");
                    return (requests, Some(error));
                }
            }
        }
        let _ = decoder.is_idle();
    }
    (requests, None)
}
