//! Events as JSON lines, for one client: those that are there, or all that come.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::{Batch, EventLog, KEPT};
use crate::http::Response;

/// JSON lines' content type.
pub const JSON_LINES: &str = "application/jsonl";
/// Most clients that follow at a time.
pub const MAX_FOLLOWERS: usize = 16;
/// Events that a follower gets in one piece.
const PIECE: usize = 64;

/// Instead of events that are kept no longer.
#[derive(Serialize)]
struct Lost {
    lost: u64,
}

/// Those who follow now.
#[derive(Clone, Debug, Default)]
pub struct Followers(Rc<Cell<usize>>);

/// One of them.
struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Followers {
    fn place(&self) -> Option<Place> {
        if self.0.get() >= MAX_FOLLOWERS {
            return None;
        }
        self.0.set(self.0.get() + 1);
        Some(Place(Rc::clone(&self.0)))
    }
}

/// All events above `since` that are kept.
pub fn page(log: &EventLog, since: u64) -> Response {
    Response::text(JSON_LINES, lines(&log.after(since, KEPT)))
}

/// As [`page`], and then all that come, until the VM has ended or the client is gone; `None` when
/// there are too many followers. Must be called in a [`tokio::task::LocalSet`].
pub fn follow(log: &Arc<EventLog>, since: u64, followers: &Followers) -> Option<Response> {
    let place = followers.place()?;
    let (sender, pieces) = mpsc::channel(1);
    tokio::task::spawn_local(feed(Arc::clone(log), since, sender, place));
    Some(Response::stream(JSON_LINES, pieces))
}

async fn feed(log: Arc<EventLog>, mut since: u64, sender: mpsc::Sender<Vec<u8>>, _place: Place) {
    let mut bell = log.listen();
    loop {
        // Before looking: what comes afterwards rings again.
        bell.mark_unchanged();
        let batch = log.after(since, PIECE);
        let piece = lines(&batch);
        if !piece.is_empty() && sender.send(piece).await.is_err() {
            return;
        }
        if batch.is_last {
            return;
        }
        let told = batch.events.last().map(|last| last.number);
        since = told.unwrap_or(since);
        if batch.events.is_empty() && !rings(&mut bell, &sender).await {
            return;
        }
    }
}

/// Waits for an event; false when the client is gone first.
async fn rings(bell: &mut watch::Receiver<u64>, sender: &mpsc::Sender<Vec<u8>>) -> bool {
    let mut gone = pin!(sender.closed());
    let mut rung = pin!(bell.changed());
    poll_fn(|context| match gone.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending => rung.as_mut().poll(context).map(|rung| rung.is_ok()),
    })
    .await
}

fn lines(batch: &Batch) -> Vec<u8> {
    let mut text = Vec::new();
    if batch.lost > 0 {
        line(&mut text, &Lost { lost: batch.lost });
    }
    for event in &batch.events {
        line(&mut text, event);
    }
    text
}

/// A struct of texts and numbers is always JSON, and a Vec takes all.
fn line<T: Serialize>(text: &mut Vec<u8>, value: &T) {
    if serde_json::to_writer(&mut *text, value).is_ok() {
        text.push(b'\n');
    }
}
