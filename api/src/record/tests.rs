use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local, yield_now};
use vmm::observe::reader::{Reader, SectionView, Snapshot};
use vmm::observe::{Meta, report};

use super::*;
use crate::http::Status;

fn black_box() -> BlackBox {
    let meta = Meta {
        vm_id: "x".to_owned(),
        version: "1".to_owned(),
    };
    BlackBox::anonymous(256 << 10, &meta).unwrap()
}

fn snapshot(black_box: &BlackBox) -> Snapshot {
    let file = black_box.file().unwrap();
    let reader = Reader::from_file(file, "test".into()).unwrap();
    reader.snapshot().unwrap()
}

fn section(snapshot: &Snapshot) -> &SectionView {
    snapshot.section("thread/api").unwrap()
}

/// What the heartbeat says: the activity and, while it works, the request.
fn doing(black_box: &BlackBox) -> (&'static str, String) {
    let snapshot = snapshot(black_box);
    let section = section(&snapshot);
    let beat = section.heartbeat("heartbeat").unwrap();
    let reason = section.row_name("reason", beat.reason.into());
    (beat.activity_name(), reason.unwrap_or("").to_owned())
}

fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, test).await.unwrap();
    });
}

async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn answer(status: Status) -> Response {
    Response::fault(status, "test")
}

#[test]
fn requests_before_the_black_box_count_and_later_ones_are_told() {
    on_one_thread(async {
        let (place, inbox) = pair();
        let recorder = Rc::new(Recorder::default());
        let taking = Rc::clone(&recorder);
        spawn_local(async move { taking.take(inbox).await });
        for _ in 0..3 {
            let work = async { answer(Status::Ok) };
            recorder.during("GET", "/version", work).await;
        }
        let mut black_box = black_box();
        // As for a start: it is placed while its request is in progress.
        let starting = async {
            place.place(&mut black_box).unwrap();
            settle().await;
            let seen = doing(&black_box);
            assert_eq!(seen, ("in handler", "PUT /actions".to_owned()));
            answer(Status::NoContent)
        };
        recorder.during("PUT", "/actions", starting).await;
        assert_eq!(doing(&black_box).0, "idle");
        let unknown = async { answer(Status::BadRequest) };
        recorder.during("PUT", "/nothing", unknown).await;
        let seen = snapshot(&black_box);
        assert_eq!(section(&seen).counter("loops"), Some(5));
        assert_eq!(section(&seen).flight("flight").unwrap().written, 2);
        let tid = section(&seen).heartbeat("heartbeat").unwrap().tid;
        assert_ne!(tid, 0);
        let text = report::render(&seen, report::Options::default());
        for words in [
            "PUT /actions was answered 204 after ",
            "an unknown request was answered 400 after ",
        ] {
            assert!(text.contains(words), "{words:?} is not in:\n{text}");
        }
        recorder.end();
        assert_eq!(doing(&black_box).0, "ended");
    });
}

#[test]
fn of_several_requests_the_oldest_is_shown_and_one_that_is_dropped_ends() {
    on_one_thread(async {
        let (place, inbox) = pair();
        let recorder = Rc::new(Recorder::default());
        let mut black_box = black_box();
        place.place(&mut black_box).unwrap();
        let taking = Rc::clone(&recorder);
        spawn_local(async move { taking.take(inbox).await });
        let (release, held) = oneshot::channel::<()>();
        let slow = Rc::clone(&recorder);
        let slow = spawn_local(async move {
            let work = async {
                let _ = held.await;
                answer(Status::NoContent)
            };
            slow.during("PATCH", "/vm", work).await
        });
        settle().await;
        let oldest = || doing(&black_box);
        assert_eq!(oldest().1, "PATCH /vm");
        let gone = Rc::clone(&recorder);
        let gone = spawn_local(async move {
            let never = std::future::pending();
            gone.during("PUT", "/drives/a", never).await
        });
        settle().await;
        assert_eq!(oldest().1, "PATCH /vm");
        drop(release);
        slow.await.unwrap();
        assert_eq!(oldest().1, "PUT /drives/ID");
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(oldest().0, "idle");
        let text = report::render(&snapshot(&black_box), report::Options::default());
        assert!(
            text.contains("PUT /drives/ID was given up after "),
            "{text}"
        );
    });
}

#[test]
fn the_section_of_the_next_attempt_to_start_takes_the_place_of_the_last() {
    on_one_thread(async {
        let (place, inbox) = pair();
        let recorder = Rc::new(Recorder::default());
        let (mut first, mut second) = (black_box(), black_box());
        let taking = Rc::clone(&recorder);
        let task = spawn_local(async move { taking.take(inbox).await });
        for black_box in [&mut first, &mut second] {
            place.place(black_box).unwrap();
            settle().await;
            let work = async { answer(Status::Ok) };
            recorder.during("GET", "/", work).await;
        }
        let loops = |black_box| section(&snapshot(black_box)).counter("loops");
        assert_eq!((loops(&first), loops(&second)), (Some(1), Some(2)));
        drop(place);
        task.await.unwrap();
    });
}
