//! The thread's side of an I/O thread: its event loop, round by round.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use observe::{Activity, Block, Clock};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::counters::ThreadBlock;
use crate::virtio::device_loop::DeviceLoop;
use crate::virtio::link::DeviceLink;

/// How often the thread looks at its devices' queues, kicked or not: for lost kicks, and for what
/// the guest has taken back.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And again so soon after a look that found buffers without a kick. A vCPU that lost its CPU between
/// ring and kick has it back by then.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the owner tells the thread.
pub(super) enum Message {
    Attach(Box<DeviceLoop>, Arc<DeviceLink>),
    Stop,
}

pub(super) enum Subscriber {
    /// Wakes the loop, which then reads the thread's own inbox.
    Inbox(Arc<EventFd>),
    Device(Box<DeviceLoop>),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self {
            Subscriber::Inbox(wake) => {
                // Only the wake-up matters.
                let _ = wake.read();
            }
            Subscriber::Device(device) => device.process(events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        match self {
            Subscriber::Inbox(wake) => {
                if let Err(error) = ops.add(Events::new(&**wake, EventSet::IN)) {
                    tracing::error!("an I/O thread cannot wait for its messages: {error}");
                }
            }
            Subscriber::Device(device) => device.init(ops),
        }
    }
}

/// The thread's side.
pub(super) struct Rounds {
    manager: EventManager<Subscriber>,
    inbox: Receiver<Message>,
    wake: Arc<EventFd>,
    block: Arc<Block<ThreadBlock>>,
    clock: Clock,
    devices: Vec<SubscriberId>,
    links: Vec<Arc<DeviceLink>>,
    looked: Instant,
    /// From one look to the next.
    look_after: Duration,
}

impl Rounds {
    pub fn new(
        manager: EventManager<Subscriber>,
        inbox: Receiver<Message>,
        wake: Arc<EventFd>,
        block: Arc<Block<ThreadBlock>>,
    ) -> Self {
        Rounds {
            manager,
            inbox,
            wake,
            block,
            clock: Clock::process(),
            devices: Vec::new(),
            links: Vec::new(),
            looked: Instant::now(),
            look_after: LOOK_EVERY,
        }
    }

    /// Serves until it is told to stop.
    pub fn run(&mut self) -> Result<(), event_manager::Error> {
        self.block.heartbeat.claim();
        let inbox = Subscriber::Inbox(Arc::clone(&self.wake));
        self.manager.add_subscriber(inbox);
        loop {
            let wait = i32::try_from(self.look_after.as_millis()).unwrap_or(i32::MAX);
            self.block
                .heartbeat
                .enter(Activity::Idle, self.clock.ticks());
            self.manager.run_with_timeout(wait)?;
            self.block.loops.inc();
            while let Ok(message) = self.inbox.try_recv() {
                match message {
                    Message::Attach(device, link) => {
                        self.links.push(link);
                        let device = Subscriber::Device(device);
                        self.devices.push(self.manager.add_subscriber(device));
                    }
                    Message::Stop => {
                        self.each_device(DeviceLoop::stop);
                        return Ok(());
                    }
                }
            }
            self.look_around();
        }
    }

    fn look_around(&mut self) {
        if self.looked.elapsed() < self.look_after {
            return;
        }
        self.looked = Instant::now();
        let mut again = false;
        self.each_device(|device| again |= device.look_around());
        self.look_after = if again { LOOK_AGAIN } else { LOOK_EVERY };
    }

    fn each_device(&mut self, mut each: impl FnMut(&mut DeviceLoop)) {
        for id in &self.devices {
            if let Ok(Subscriber::Device(device)) = self.manager.subscriber_mut(*id) {
                each(device);
            }
        }
    }

    /// Takes the devices out of the loop; after a failure, has them ask for a reset and tells the
    /// owner.
    pub fn end(
        &mut self,
        outcome: Result<Result<(), event_manager::Error>, Box<dyn Any + Send>>,
        on_failure: Box<dyn FnOnce(String) + Send>,
    ) {
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(&*panic)),
        };
        // Out of epoll before the descriptors close: a duplicate would go on firing.
        for id in self.devices.drain(..) {
            let _ = self.manager.remove_subscriber(id);
        }
        self.block
            .heartbeat
            .enter(Activity::Ended, self.clock.ticks());
        if let Some(failure) = failure {
            for link in &self.links {
                link.ask_for_reset();
            }
            on_failure(failure);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}
