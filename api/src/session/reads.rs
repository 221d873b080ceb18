//! What only looks: answered at once, whatever the VM does, but for a dump.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vmm::observe::clock::monotonic_ns;
use vmm::observe::verdict::{Observation, diagnose};
use vmm::trace;

use super::{Session, SessionError};
use crate::VERSION;
use crate::admission::{Denial, Operation, admit};
use crate::events::stream;
use crate::health;
use crate::http::Response;
use crate::metrics;
use crate::observation::{self, Details, Subject};
use crate::query::Query;
use crate::wire::{self, DumpWire, InstanceInfoWire, WireError};

/// Pausing, resuming and settling a dump, beyond the time for its bytes.
const DUMP_GRACE: Duration = Duration::from_secs(60);

/// The watcher judges once a second: older than that, and it is late.
const FRESH_NS: u64 = 3_000_000_000;

impl Session {
    pub(super) fn instance_info(&self) -> Response {
        Response::json(&InstanceInfoWire {
            id: self.config.borrow().id().to_owned(),
            state: self.phase().name(),
            vmm_version: VERSION,
            app_name: "Vitrine",
        })
    }

    pub(super) fn metrics(&self, openmetrics: bool) -> Result<Response, SessionError> {
        let machine = self
            .slot
            .machine
            .get()
            .map(|machine| machine.openmetrics())
            .transpose();
        let machine = machine.map_err(SessionError::BlackBox)?;
        let runs = self.slot.machine.get().map(|machine| machine.runs());
        let runs = runs.unwrap_or_default();
        let id = self.config.borrow().id().to_owned();
        let text = metrics::render(
            &id,
            &self.counts,
            self.log.dropped(),
            runs,
            machine.as_deref(),
        );
        Ok(if openmetrics {
            Response::text(metrics::CONTENT_TYPE, text.into_bytes())
        } else {
            let text = metrics::plain::of(&text);
            Response::text(metrics::plain::CONTENT_TYPE, text.into_bytes())
        })
    }

    /// GET /observe, from the black box.
    pub(super) fn observe(&self, target: &str) -> Result<Response, SessionError> {
        let query = Query::parse(target, &["events", "samples"])?;
        let details = Details {
            events: query.flag("events")?,
            samples: query.flag("samples")?,
        };
        let machine = self.slot.machine.get();
        let snapshot = machine.map(|machine| machine.snapshot()).transpose();
        let snapshot = snapshot.map_err(SessionError::BlackBox)?;
        let black_box = machine.map(|machine| machine.black_box());
        let config = self.config.borrow();
        let subject = Subject {
            id: config.id(),
            state: self.phase().name(),
            black_box: black_box.as_deref(),
        };
        let observation = observation::render(subject, snapshot.as_ref(), details);
        Ok(Response::json(&observation))
    }

    /// GET /observe/health: what the watcher judged last. When it has not judged for a while, it is
    /// itself in trouble, and the black box is judged here.
    pub(super) fn health(&self) -> Result<Response, SessionError> {
        let Some(machine) = self.slot.machine.get() else {
            return Ok(Response::json(&health::document(&[], |_| 0)));
        };
        let standing = machine.standing();
        let is_fresh = monotonic_ns().saturating_sub(standing.at_ns) < FRESH_NS;
        if is_fresh {
            let document = health::document(&standing.verdicts, health::dates());
            return Ok(Response::json(&document));
        }
        let snapshot = machine.snapshot().map_err(SessionError::BlackBox)?;
        let verdicts = diagnose(
            None,
            &Observation::of(&snapshot),
            &self.rulebook.read().thresholds,
        );
        Ok(Response::json(&health::document(
            &verdicts,
            health::dates(),
        )))
    }

    /// GET /vm/config: what `--config-file` takes.
    pub(super) fn full_config(&self) -> Response {
        Response::json(&self.config.borrow().full(&self.rulebook.read()))
    }

    /// GET /policy: all of it, defaults too.
    pub(super) fn policy(&self) -> Response {
        Response::json(&wire::policy::document(&self.rulebook.read()))
    }

    /// GET /observe/events.
    pub(super) fn events(&self, target: &str) -> Result<Response, SessionError> {
        let query = Query::parse(target, &["since", "follow"])?;
        let since = query.number("since")?;
        if !query.flag("follow")? {
            return Ok(stream::page(&self.events, since));
        }
        stream::follow(&self.events, since, &self.followers).ok_or(SessionError::Followers)
    }

    /// POST /observe/dump. Takes no turn: it may last, and the VM refuses what does not go with it.
    pub(super) async fn dump(&self, wire: &DumpWire) -> Result<(), SessionError> {
        admit(self.phase(), Operation::Control)?;
        let machine = self.slot.machine.get().ok_or(Denial::BeforeStart)?;
        let after = machine.dump_deadline().saturating_add(DUMP_GRACE);
        let (machine, events) = (Arc::clone(machine), Arc::clone(&self.events));
        let outcome = self.dumping.begin(machine, events, wire)?;
        let what = "writing the dump";
        match timeout(after, outcome).await {
            Err(_) => Err(SessionError::Deadline { what, after }),
            Ok(Err(_)) => {
                let error = "the thread that writes it panicked; see the log".into();
                Err(SessionError::Command { what, error })
            }
            Ok(Ok(done)) => done.map_err(|error| SessionError::Command { what, error }),
        }
    }

    /// GET /observe/trace.
    pub(super) fn trace(&self, target: &str) -> Result<Response, SessionError> {
        let query = Query::parse(target, &["ms"])?;
        let ms = query.number_or("ms", trace::DEFAULT_PERIOD_MS)?;
        if !trace::PERIOD_MS.contains(&ms) {
            return Err(WireError::BadParameter {
                name: "ms",
                value: ms.to_string(),
                remedy: "give 1 to 60000 milliseconds",
            }
            .into());
        }
        let machine = self.slot.machine.get().ok_or(Denial::BeforeStart)?;
        // What cannot be read at all is a refusal, not a trace that breaks off.
        machine.snapshot().map_err(SessionError::BlackBox)?;
        let period = Duration::from_millis(ms);
        Ok(self.tracing.begin(Arc::clone(machine), period)?)
    }
}
