//! The decoder: requests survive any cutting, and no bytes make it panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1000;

fn decode(pieces: &[&[u8]]) -> Result<Vec<Request>, DecodeError> {
    let mut decoder = Decoder::new(LIMIT);
    let mut requests = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.step()? {
                Step::Request(request) => requests.push(request),
                Step::Continue => {}
                Step::NeedMore => break,
            }
        }
    }
    Ok(requests)
}

fn error_of(bytes: &[u8]) -> String {
    decode(&[bytes]).unwrap_err().to_string()
}

const PIPELINE: &[u8] = b"GET / HTTP/1.0\r\n\r\n\
    PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\
    PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n\
    PATCH /b?q=1 HTTP/1.1\r\nConnection: foo, Close\r\nContent-Length: 0\r\n\r\n";

#[test]
fn pipelined_requests_come_out_in_order() {
    let requests = decode(&[PIPELINE]).unwrap();
    let lines: Vec<_> = requests
        .iter()
        .map(|r| {
            (
                r.method.as_str(),
                r.target.as_str(),
                r.keep_alive,
                r.body.as_slice(),
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            ("GET", "/", true, &b""[..]),
            ("PUT", "/actions", true, b"hello"),
            ("PUT", "/a", true, b"abcde"),
            ("PATCH", "/b?q=1", false, b""),
        ]
    );
    assert_eq!(requests[0].minor_version, 0);
}

#[test]
fn a_cut_at_every_byte_changes_nothing() {
    let whole = decode(&[PIPELINE]).unwrap();
    for at in 0..=PIPELINE.len() {
        assert_eq!(
            decode(&[&PIPELINE[..at], &PIPELINE[at..]]).unwrap(),
            whole,
            "cut at {at}"
        );
    }
    let bytes: Vec<&[u8]> = PIPELINE.chunks(1).collect();
    assert_eq!(decode(&bytes).unwrap(), whole);
}

#[test]
fn continue_is_told_once_and_only_when_the_body_is_awaited() {
    let head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(head);
    assert_eq!(decoder.step(), Ok(Step::Continue));
    assert_eq!(decoder.step(), Ok(Step::NeedMore));
    assert!(!decoder.is_idle());
    decoder.push(b"hi");
    assert!(matches!(decoder.step(), Ok(Step::Request(_))));
    assert!(decoder.is_idle());

    let mut eager = Decoder::new(LIMIT);
    eager.push(head);
    eager.push(b"hi");
    assert!(matches!(eager.step(), Ok(Step::Request(_))));
}

#[test]
fn what_is_not_a_request_is_refused_with_the_reason() {
    for (bytes, reason) in [
        (&b"\x16\x03\x01 hello\r\n\r\n"[..], "malformed HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\n", "HTTP/1.0 or HTTP/1.1"),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            "not a number",
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "two different",
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both",
        ),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "gzip"),
        (b"PUT / HTTP/1.1\r\nExpect: tea\r\n\r\n", "tea"),
        (
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "hex",
        ),
        (
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
            "chunk",
        ),
        (
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n",
            "limit of 1000",
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n",
            "--http-api-max-payload-size",
        ),
        (
            b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "limit of 1000",
        ),
    ] {
        let error = error_of(bytes);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn heads_are_bounded() {
    let mut long = b"GET /".to_vec();
    long.resize(MAX_HEAD_BYTES + 1, b'a');
    assert_eq!(decode(&[&long]), Err(DecodeError::HeadTooLarge));
    let many = format!(
        "GET / HTTP/1.1\r\n{}\r\n",
        "a: b\r\n".repeat(MAX_HEADERS + 1)
    );
    assert_eq!(decode(&[many.as_bytes()]), Err(DecodeError::HeadTooLarge));
    let mut trailers = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: ".to_vec();
    trailers.resize(2 * MAX_HEAD_BYTES, b'a');
    assert_eq!(decode(&[&trailers]), Err(DecodeError::HeadTooLarge));
}

#[test]
fn long_chunk_lines_and_trailers_are_refused_however_they_are_cut() {
    let head = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = "a".repeat(MAX_HEAD_BYTES);
    for rest in [
        format!("0;{long}\r\n\r\n"),
        format!("0\r\nx: {long}\r\n\r\n"),
    ] {
        let bytes = format!("{head}{rest}").into_bytes();
        let pieces: Vec<&[u8]> = bytes.chunks(100).collect();
        assert_eq!(decode(&[&bytes]), Err(DecodeError::HeadTooLarge));
        assert_eq!(decode(&pieces), Err(DecodeError::HeadTooLarge));
    }
}

#[test]
fn a_failed_decoder_stays_failed_and_empty() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(b"\0\r\n\r\n");
    let first = decoder.step().unwrap_err();
    decoder.push(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(decoder.step(), Err(first));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let _ = decode(&pieces);
    }

    #[test]
    fn damaged_requests_never_panic(at in 0..PIPELINE.len(), byte: u8, cut in 0..PIPELINE.len()) {
        let mut bytes = PIPELINE.to_vec();
        bytes[at] = byte;
        let whole = decode(&[&bytes]);
        let cut = decode(&[&bytes[..cut], &bytes[cut..]]);
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
    }

    #[test]
    fn any_body_arrives_whole(body: Vec<u8>, sizes in proptest::collection::vec(1usize..40, 1..50)) {
        prop_assume!(body.len() <= LIMIT);
        let mut bytes = format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(&body);
        let mut chunked = b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(7) {
            chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunked.extend_from_slice(piece);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        for stream in [bytes, chunked] {
            let (mut rest, mut pieces) = (stream.as_slice(), Vec::new());
            for size in &sizes {
                let (piece, left) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            pieces.push(rest);
            let requests = decode(&pieces).unwrap();
            prop_assert_eq!(requests.len(), 1);
            prop_assert_eq!(&requests[0].body, &body);
        }
    }
}
