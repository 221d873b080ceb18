//! What the black box holds of a virtio device: its queues, its operations, its transport and its
//! thread. Everything counts from the start of the VM and is never reset, not by a device reset
//! either.

use std::mem::offset_of;
use std::sync::Arc;

use observe::{
    BlackBox, BlackBoxError, Block, Counter, Field, FieldKind, FlightRing, Gauge, Heartbeat,
    Histogram, Section, Unit,
};

use super::device::DeviceProfile;
use super::queue::QueueError;

/// Kinds of operation that a device can tell apart.
pub const MAX_OPERATIONS: usize = 8;
/// Causes of lost work (dropped packets) that a device can tell apart.
pub const MAX_DROP_CAUSES: usize = 8;

/// One virtqueue. Written by the device's I/O thread.
#[derive(Debug, Default)]
#[repr(C)]
pub struct QueueBlock {
    /// Times the guest kicked the queue.
    pub kicks: Counter,
    /// Kicks that found nothing in the ring.
    pub spurious_kicks: Counter,
    /// Buffers in the ring that no kick announced although the device had asked for one.
    pub lost_kicks: Counter,
    /// Requests taken from the ring.
    pub requests: Counter,
    /// Requests given back to the guest.
    pub completions: Counter,
    /// Interrupts sent for completions.
    pub interrupts: Counter,
    /// Times the driver had asked not to be interrupted.
    pub interrupts_suppressed: Counter,
    /// Bytes that the device read from the guest's buffers.
    pub bytes_read: Counter,
    /// Bytes that the device wrote to the guest's buffers.
    pub bytes_written: Counter,
    /// Times the ring was broken by the guest.
    pub broken: Counter,
    /// Times the queue gave way to others on its thread before it was empty.
    pub yields: Counter,
    /// Times the backend had data and the guest had given no buffer.
    pub starved: Counter,
    /// Requests that the device works on.
    pub in_flight: Gauge,
    /// Since when the queue has requests in flight without a pause; 0 if none are.
    pub in_flight_since: Gauge,
    /// Since when the backend waits for buffers of the guest; 0 if it does not.
    pub starved_since: Gauge,
    /// Where the device is in the available ring.
    pub avail_index: Gauge,
    /// Where the device is in the used ring.
    pub used_index: Gauge,
    /// Descriptors of the queue, 0 while it is not set up.
    pub size: Gauge,
    /// The number of the last [`super::queue::QueueError`].
    pub broken_reason: Gauge,
    /// From pop to done: from taking a request to giving it back.
    pub service: Histogram,
    /// From kick to pop. A kick carries no time, so it begins when the I/O thread first turned to
    /// the device after its epoll woke; how long the thread took to wake is in the scheduler's run
    /// delay. One sample for each request that was in the ring when the kick was read, and was
    /// taken in the turns that the kick began: the first of them are at 0 if nothing came between,
    /// those behind waited for those before.
    pub kick_to_pop: Histogram,
    /// From done to interrupt. One sample for each interrupt: how long the oldest of the requests
    /// that share it had been given back when it was sent.
    pub done_to_interrupt: Histogram,
    /// From an interrupt until the guest was seen to have taken back what it announced: with
    /// EVENT_IDX, the driver moved `used_event` on to the used index of the interrupt or past it;
    /// without, it made new buffers available. Or it made more buffers available than it could
    /// otherwise have. It is looked for at kicks, at interrupts and in the look-around, so a
    /// sample is an upper bound. One interrupt at a time is followed, so it is a sample of them.
    /// One that the first look-around finds taken back gives none: nobody knows when it was.
    pub interrupt_to_reclaim: Histogram,
    /// Since when the oldest request in flight is; 0 if none is.
    pub oldest_since: Gauge,
    /// Requests taken before a kick for them was read: the device was at work and needed none.
    /// Those that activation, a resume or a lost kick brought are not among them.
    pub kicks_suppressed: Counter,
    /// Completions that the guest is not known to have taken back, at the last look-around: those
    /// beyond the driver's `used_event`, at most the queue's size. 0 without EVENT_IDX, for then
    /// nothing tells.
    pub unread_completions: Gauge,
    /// When the last interrupt for completions was sent; 0 if none was.
    pub last_interrupt_at: Gauge,
    /// Since when the ring is broken; 0 while it is whole or not set up.
    pub broken_since: Gauge,
    /// Times that requests began to wait because the operator limits the rate.
    pub limited: Counter,
    /// How long they did, all together, in nanoseconds.
    pub limited_ns: Counter,
    /// Since when they do; 0 if they do not.
    pub limited_since: Gauge,
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for QueueBlock {
    const KIND: &'static str = "queue";
    const INSTANCE: &'static [&'static str] = &["device", "queue"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("kicks", Unit::None, offset_of!(QueueBlock, kicks), "Times the guest kicked the queue."),
        Field::counter("spurious_kicks", Unit::None, offset_of!(QueueBlock, spurious_kicks), "Kicks that found nothing in the ring."),
        Field::counter("lost_kicks", Unit::None, offset_of!(QueueBlock, lost_kicks), "Buffers found in the ring that no kick announced although the device had asked for one."),
        Field::counter("requests", Unit::None, offset_of!(QueueBlock, requests), "Requests taken from the ring."),
        Field::counter("completions", Unit::None, offset_of!(QueueBlock, completions), "Requests given back to the guest."),
        Field::counter("interrupts", Unit::None, offset_of!(QueueBlock, interrupts), "Interrupts sent for completions."),
        Field::counter("interrupts_suppressed", Unit::None, offset_of!(QueueBlock, interrupts_suppressed), "Times the driver had asked not to be interrupted."),
        Field::counter("read", Unit::Bytes, offset_of!(QueueBlock, bytes_read), "Bytes that the device read from the guest's buffers."),
        Field::counter("written", Unit::Bytes, offset_of!(QueueBlock, bytes_written), "Bytes that the device wrote to the guest's buffers."),
        Field::counter("broken", Unit::None, offset_of!(QueueBlock, broken), "Times the guest broke the ring."),
        Field::counter("yields", Unit::None, offset_of!(QueueBlock, yields), "Times the queue gave way to others on its thread before it was empty."),
        Field::counter("starved", Unit::None, offset_of!(QueueBlock, starved), "Times the backend had data and the guest had given no buffer."),
        Field::gauge("in_flight", Unit::None, offset_of!(QueueBlock, in_flight), "Requests that the device works on."),
        Field::gauge("in_flight_since", Unit::Ticks, offset_of!(QueueBlock, in_flight_since), "Since when requests are in flight without a pause; 0 if none are."),
        Field::gauge("starved_since", Unit::Ticks, offset_of!(QueueBlock, starved_since), "Since when the backend waits for buffers of the guest; 0 if it does not."),
        Field::gauge("avail_index", Unit::None, offset_of!(QueueBlock, avail_index), "Where the device is in the available ring."),
        Field::gauge("used_index", Unit::None, offset_of!(QueueBlock, used_index), "Where the device is in the used ring."),
        Field::gauge("size", Unit::None, offset_of!(QueueBlock, size), "Descriptors of the queue; 0 while it is not set up."),
        Field::gauge("broken_reason", Unit::None, offset_of!(QueueBlock, broken_reason), "Number of the last fault of the ring; 0 if there was none."),
        Field::histogram("service", Unit::Nanoseconds, offset_of!(QueueBlock, service), "From taking a request to giving it back."),
        Field::histogram("kick_to_pop", Unit::Nanoseconds, offset_of!(QueueBlock, kick_to_pop), "From turning to the device for a kick to taking a request that was there then."),
        Field::histogram("done_to_interrupt", Unit::Nanoseconds, offset_of!(QueueBlock, done_to_interrupt), "From giving back the oldest request that an interrupt announces to sending it."),
        Field::histogram("interrupt_to_reclaim", Unit::Nanoseconds, offset_of!(QueueBlock, interrupt_to_reclaim), "From an interrupt until the guest was seen to have taken back what it announced, at most; a sample."),
        Field::gauge("oldest_since", Unit::Ticks, offset_of!(QueueBlock, oldest_since), "Since when the oldest request in flight is; 0 if none is."),
        Field::counter("kicks_suppressed", Unit::None, offset_of!(QueueBlock, kicks_suppressed), "Requests taken without a kick, because the device was at work and needed none."),
        Field::gauge("unread_completions", Unit::None, offset_of!(QueueBlock, unread_completions), "Completions that the guest is not known to have taken back; 0 if nothing tells."),
        Field::gauge("last_interrupt_at", Unit::Ticks, offset_of!(QueueBlock, last_interrupt_at), "When the last interrupt for completions was sent; 0 if none was."),
        Field::gauge("broken_since", Unit::Ticks, offset_of!(QueueBlock, broken_since), "Since when the ring is broken; 0 while it is whole or not set up."),
        Field::counter("limited", Unit::None, offset_of!(QueueBlock, limited), "Times that requests began to wait because the operator limits the rate."),
        Field::counter("limited_wait", Unit::Nanoseconds, offset_of!(QueueBlock, limited_ns), "How long requests have waited by the operator's limit; a wait counts when it is over."),
        Field::gauge("limited_since", Unit::Ticks, offset_of!(QueueBlock, limited_since), "Since when requests wait by the operator's limit; 0 if they do not."),
    ];
}

/// One kind of operation.
#[derive(Debug, Default)]
#[repr(C)]
pub struct OperationCounters {
    /// Operations done, failed ones too.
    pub count: Counter,
    /// Operations that failed.
    pub errors: Counter,
    /// Payload.
    pub bytes: Counter,
    /// Time from taking the request to giving it back.
    pub service_ns: Counter,
}

/// A device as a whole. Written by its I/O thread.
#[derive(Debug, Default)]
#[repr(C)]
pub struct DeviceBlock {
    /// Times a driver took the device.
    pub activations: Counter,
    /// Times a driver reset the device.
    pub resets: Counter,
    /// Times the device asked to be reset.
    pub needs_reset: Counter,
    /// Errors that the host's kernel gave.
    pub host_errors: Counter,
    /// The last of them.
    pub last_errno: Gauge,
    /// When it came; 0 if there was none.
    pub last_error_at: Gauge,
    /// By kind.
    pub operations: [OperationCounters; MAX_OPERATIONS],
    /// By cause.
    pub drops: [Counter; MAX_DROP_CAUSES],
    /// By kind: from taking the request to giving it back. Pages of kinds that never come are
    /// never touched.
    pub latency: [Histogram; MAX_OPERATIONS],
    /// The kind of operation that the last error of the host's kernel met.
    pub last_error_operation: Gauge,
    /// Where on the disk it did; 0 for operations that have no place.
    pub last_error_sector: Gauge,
    /// How a drive works: an [`super::IoEngine`] by number; 0 for other devices.
    pub io_engine: Gauge,
}

const OPERATION_STRIDE: usize = size_of::<OperationCounters>();

const fn operation(name: &'static str, unit: Unit, offset: usize, help: &'static str) -> Field {
    let at = offset_of!(DeviceBlock, operations) + offset;
    Field::counter(name, unit, at, help).column(MAX_OPERATIONS, OPERATION_STRIDE, "operation")
}

// SAFETY: repr(C), cells and arrays of repr(C) structs of cells only.
#[allow(unsafe_code)]
unsafe impl Section for DeviceBlock {
    const KIND: &'static str = "device";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::counter("activations", Unit::None, offset_of!(DeviceBlock, activations), "Times a driver took the device."),
        Field::counter("resets", Unit::None, offset_of!(DeviceBlock, resets), "Times a driver reset the device."),
        Field::counter("needs_reset", Unit::None, offset_of!(DeviceBlock, needs_reset), "Times the device asked the driver for a reset."),
        Field::counter("host_errors", Unit::None, offset_of!(DeviceBlock, host_errors), "Errors that the host's kernel gave to the device."),
        Field::gauge("last_errno", Unit::None, offset_of!(DeviceBlock, last_errno), "The last error of the host's kernel; 0 if there was none."),
        Field::gauge("last_error_at", Unit::Ticks, offset_of!(DeviceBlock, last_error_at), "When the last error came; 0 if there was none."),
        operation("operations", Unit::None, offset_of!(OperationCounters, count), "Operations done, failed ones too."),
        operation("operation_errors", Unit::None, offset_of!(OperationCounters, errors), "Operations that failed."),
        operation("operation", Unit::Bytes, offset_of!(OperationCounters, bytes), "Payload of the operations."),
        operation("operation_service", Unit::Nanoseconds, offset_of!(OperationCounters, service_ns), "From taking the requests to giving them back."),
        Field::counter("drops", Unit::None, offset_of!(DeviceBlock, drops), "Work lost, by cause.").column(MAX_DROP_CAUSES, 8, "cause"),
        Field::histogram("operation_latency", Unit::Nanoseconds, offset_of!(DeviceBlock, latency), "From taking a request to giving it back.").column(MAX_OPERATIONS, size_of::<Histogram>(), "operation"),
        Field::gauge("last_error_operation", Unit::None, offset_of!(DeviceBlock, last_error_operation), "The number of the kind of operation that the last error of the host's kernel met."),
        Field::gauge("last_error_sector", Unit::None, offset_of!(DeviceBlock, last_error_sector), "The disk's sector at which it did; 0 for operations that have none."),
        Field::gauge("io_engine", Unit::None, offset_of!(DeviceBlock, io_engine), "How a drive carries requests out: 1 is Sync, 2 Async (io_uring); 0 for other devices."),
    ];
}

/// The register window of a device. Written by vCPU threads under the register file's lock.
#[derive(Debug, Default)]
#[repr(C)]
pub struct TransportBlock {
    /// The status register.
    pub status: Gauge,
    /// The features that the driver accepted.
    pub driver_features: Gauge,
    /// Register writes refused, for their width, place or moment.
    pub refused: Counter,
    /// Resets that the I/O thread did not confirm in time.
    pub resets_missed: Counter,
    /// Kicks that came as register writes and not by ioeventfd.
    pub trapped_kicks: Counter,
    /// The transport: a [`TransportKind`].
    pub kind: Gauge,
}

/// How a guest reaches a device. The number is part of the black box format: add at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TransportKind {
    /// Virtio over MMIO.
    Mmio = 0,
    /// Virtio over PCI.
    Pci = 1,
}

impl TransportKind {
    /// By number: the row names `kind` of a [`TransportBlock`].
    const NAMES: [&str; 2] = ["virtio-mmio", "virtio-pci"];
}

// SAFETY: repr(C), cells only.
#[allow(unsafe_code)]
unsafe impl Section for TransportBlock {
    const KIND: &'static str = "transport";
    const INSTANCE: &'static [&'static str] = &["device"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::gauge("status", Unit::None, offset_of!(TransportBlock, status), "The status register as the driver left it."),
        Field::gauge("driver_features", Unit::None, offset_of!(TransportBlock, driver_features), "The features that the driver accepted."),
        Field::counter("refused", Unit::None, offset_of!(TransportBlock, refused), "Register writes refused for their width, place or moment."),
        Field::counter("resets_missed", Unit::None, offset_of!(TransportBlock, resets_missed), "Resets that the I/O thread did not confirm in time."),
        Field::counter("trapped_kicks", Unit::None, offset_of!(TransportBlock, trapped_kicks), "Kicks that came as register writes and not by ioeventfd."),
        Field::gauge("kind", Unit::None, offset_of!(TransportBlock, kind), "The transport: 0 is virtio-mmio, 1 virtio-pci."),
    ];
}

/// One thread that serves devices. Written by it.
#[derive(Debug)]
#[repr(C)]
pub struct ThreadBlock {
    /// What it does; a device's number is its place in the order of attachment, from 1.
    pub heartbeat: Heartbeat,
    /// Rounds of its event loop.
    pub loops: Counter,
    /// Its last events, see [`Flight`].
    pub flight: FlightRing,
}

// SAFETY: repr(C), cells and a flight ring only.
#[allow(unsafe_code)]
unsafe impl Section for ThreadBlock {
    const KIND: &'static str = "thread";
    const INSTANCE: &'static [&'static str] = &["thread"];
    #[rustfmt::skip]
    const FIELDS: &'static [Field] = &[
        Field::lone("heartbeat", FieldKind::Heartbeat, Unit::None, offset_of!(ThreadBlock, heartbeat), "What the thread does, and since when."),
        Field::counter("loops", Unit::None, offset_of!(ThreadBlock, loops), "Rounds of the event loop."),
        Field::lone("flight", FieldKind::FlightRing, Unit::None, offset_of!(ThreadBlock, flight), "The last events of the thread."),
    ];
}

/// Kinds of flight event of a [`ThreadBlock`]. The number is part of the black box format: add at
/// the end. `device` is the number of the heartbeat; `address` and `value` as said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flight {
    /// Kicks read: address is the queue, value the number of kicks.
    Kick = 1,
    /// A request given back: detail is the operation, address the payload, value nanoseconds.
    Done = 2,
    /// A driver took the device: value is the features.
    Activate = 3,
    /// A driver reset the device.
    Reset = 4,
    /// The guest broke a ring: address is the queue, value the reason.
    Broken = 5,
    /// The host's kernel gave an error: detail is the operation, address the disk's sector if it has
    /// one, value the errno.
    HostError = 6,
    /// The device stopped for a pause.
    Pause = 7,
    /// The device goes on.
    Resume = 8,
}

/// What the kinds of [`Flight`] say, by number: the row names `event` of a [`ThreadBlock`], from
/// which readers make words. `docs/blackbox.md` describes the templates.
const FLIGHT_WORDS: [&str; 9] = [
    "",
    "{device:device}: queue {address} was kicked {value} times",
    "{device:device}: {detail:operation} of {address:bytes} was given back after {value:ns}",
    "{device:device}: a driver took the device with features {value:hex}",
    "{device:device}: a driver reset the device",
    "{device:device}: the guest broke queue {address}: {value:broken}",
    "{device:device}: {detail:operation} failed on the host: {value:errno}",
    "{device:device}: stopped for a pause",
    "{device:device}: goes on after a pause",
];

impl ThreadBlock {
    /// Places the section `thread/NAME` of a thread that serves one device.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for it.
    pub fn place(
        black_box: &mut BlackBox,
        name: &str,
        profile: &DeviceProfile,
    ) -> Result<Block<Self>, BlackBoxError> {
        // Devices are numbered from 1.
        let devices = [String::new(), profile.name.clone()];
        let labels = [
            ("event", &owned(&FLIGHT_WORDS)[..]),
            ("device", &devices),
            ("operation", &owned(profile.operations)),
            ("broken", &owned(&QueueError::REASONS)),
        ];
        black_box.section(&format!("thread/{name}"), &labels)
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// All that is counted of one device: made before the device is attached to its thread. A clone
/// is for readers; only the device's own threads write.
#[derive(Clone)]
pub struct DeviceCounters {
    /// The device as a whole.
    pub device: Arc<Block<DeviceBlock>>,
    /// Its register window.
    pub transport: Arc<Block<TransportBlock>>,
    /// Its queues.
    pub queues: Vec<Arc<Block<QueueBlock>>>,
}

impl DeviceCounters {
    /// Places the sections `device/NAME`, `transport/NAME` and `queue/NAME/INDEX`.
    ///
    /// # Errors
    /// [`BlackBoxError::Full`] when the black box has no room for them.
    pub fn place(black_box: &mut BlackBox, profile: &DeviceProfile) -> Result<Self, BlackBoxError> {
        let name = &profile.name;
        let (operations, causes) = (owned(profile.operations), owned(profile.drop_causes));
        let labels = [("operation", &*operations), ("cause", &*causes)];
        let reasons = owned(&QueueError::REASONS);
        let kinds = owned(&TransportKind::NAMES);
        Ok(DeviceCounters {
            device: Arc::new(black_box.section(&format!("device/{name}"), &labels)?),
            transport: Arc::new(
                black_box.section(&format!("transport/{name}"), &[("kind", &kinds)])?,
            ),
            queues: (0..profile.queue_max_sizes.len())
                .map(|index| {
                    let called = profile.queue_names.get(index).map(std::slice::from_ref);
                    let mut labels = vec![("broken", &*reasons)];
                    labels.extend(called.map(|called| ("name", called)));
                    let queue = black_box.section(&format!("queue/{name}/{index}"), &labels);
                    queue.map(Arc::new)
                })
                .collect::<Result<_, _>>()?,
        })
    }
}
