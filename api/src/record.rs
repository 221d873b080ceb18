//! What the thread `api` does, in the black box: the section `thread/api`.
//!
//! The black box is made when a VM is, on another thread. So the one who makes it places the
//! section through a [`Place`] and hands it over; the API's thread, which alone writes it, takes it
//! from the [`Inbox`] at once. Requests before that are counted in memory, and in the section from
//! then on; no event tells of them.
//!
//! Many clients may have requests in progress on the one thread: the heartbeat tells of the oldest.

use std::cell::RefCell;
use std::future::Future;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vmm::ThreadBlock;
use vmm::observe::{Activity, BlackBox, BlackBoxError, Block, Clock, FlightEvent, Ticks};

use crate::http::Response;
use crate::routes::{self, ROUTES};

/// Kinds of event, which are part of the black box's format.
const ANSWERED: u64 = 1;
const LEFT: u64 = 2;

/// What they say, by number.
const EVENTS: [&str; 3] = [
    "",
    "{detail:reason} was answered {length} after {value:ns}",
    "{detail:reason} was given up after {value:ns}: its client was gone",
];

/// The section's way to the API's thread, and its end there.
pub fn pair() -> (Place, Inbox) {
    let (sender, receiver) = unbounded_channel();
    (Place(sender), Inbox(receiver))
}

/// Places the section in each new black box.
#[derive(Clone, Debug)]
pub struct Place(UnboundedSender<Block<ThreadBlock>>);

impl Place {
    /// Places `thread/api` and gives it to the API's thread.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(&self, black_box: &mut BlackBox) -> Result<(), BlackBoxError> {
        let mut names: Vec<String> = ROUTES.iter().map(routes::Route::name).collect();
        names.push("an unknown request".to_owned());
        let events = EVENTS.map(ToOwned::to_owned);
        let labels = [("reason", &names[..]), ("event", &events[..])];
        let block = black_box.section("thread/api", &labels)?;
        // A server that has ended needs it no more.
        let _ = self.0.send(block);
        Ok(())
    }
}

/// Where the sections arrive.
#[derive(Debug)]
pub struct Inbox(UnboundedReceiver<Block<ThreadBlock>>);

/// A request in progress.
struct Begun {
    number: u64,
    route: u8,
    at: Ticks,
}

#[derive(Default)]
struct State {
    block: Option<Block<ThreadBlock>>,
    /// Requests so far.
    begun: u64,
    /// Oldest first.
    in_progress: Vec<Begun>,
}

impl State {
    /// Says what the thread does from `now` on, or has done since a request that goes on began.
    fn show(&self, now: Ticks) {
        let Some(block) = &self.block else {
            return;
        };
        match self.in_progress.first() {
            Some(oldest) => {
                let heartbeat = &block.heartbeat;
                heartbeat.set(Activity::InHandler, oldest.route, 0, 0, oldest.at);
            }
            None => block.heartbeat.enter(Activity::Idle, now),
        }
    }
}

/// Writes the section; lives on the API's thread.
pub struct Recorder {
    state: RefCell<State>,
    clock: Clock,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder {
            state: RefCell::default(),
            clock: Clock::process(),
        }
    }
}

impl Recorder {
    /// Takes each section that arrives; ends when no more can.
    pub async fn take(&self, mut inbox: Inbox) {
        while let Some(block) = inbox.0.recv().await {
            block.heartbeat.claim();
            let mut state = self.state.borrow_mut();
            block.loops.add(state.begun);
            state.block = Some(block);
            state.show(self.clock.ticks());
        }
    }

    /// Carries out a request, and tells of it.
    pub async fn during(
        &self,
        method: &str,
        target: &str,
        work: impl Future<Output = Response>,
    ) -> Response {
        let begun = self.begin(routes::number(method, target));
        let response = work.await;
        begun.answered(response.status.code());
        response
    }

    /// Says that the thread has ended.
    pub fn end(&self) {
        if let Some(block) = &self.state.borrow().block {
            block.heartbeat.enter(Activity::Ended, self.clock.ticks());
        }
    }

    fn begin(&self, route: usize) -> Progress<'_> {
        let at = self.clock.ticks();
        let route = u8::try_from(route).unwrap_or(u8::MAX);
        let mut state = self.state.borrow_mut();
        state.begun += 1;
        let number = state.begun;
        state.in_progress.push(Begun { number, route, at });
        if let Some(block) = &state.block {
            block.loops.inc();
        }
        state.show(at);
        Progress {
            recorder: self,
            number,
            status: None,
        }
    }
}

/// A request in progress, which ends when this is dropped: also when its client is gone.
struct Progress<'a> {
    recorder: &'a Recorder,
    number: u64,
    status: Option<u16>,
}

impl Progress<'_> {
    fn answered(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        let clock = self.recorder.clock;
        let mut state = self.recorder.state.borrow_mut();
        let place = state
            .in_progress
            .iter()
            .position(|begun| begun.number == self.number);
        let Some(begun) = place.map(|place| state.in_progress.remove(place)) else {
            return;
        };
        let now = clock.ticks();
        if let Some(block) = &state.block {
            let kind = self.status.map_or(LEFT, |_| ANSWERED);
            let status = u64::from(self.status.unwrap_or(0));
            block.flight.push(FlightEvent {
                at: now,
                what: kind | u64::from(begun.route) << 8 | status << 32,
                address: 0,
                value: clock.ns_between(begun.at, now),
            });
        }
        state.show(now);
    }
}

#[cfg(test)]
mod tests;
