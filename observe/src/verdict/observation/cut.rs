//! Signals of an observation, one by one cut away: as where the host's kernel does not tell, or an
//! older Vitrine did not write it down. A rule that has lost a signal must be silent or say less,
//! and never something else; recordings are judged so.

use super::{MemorySeen, Observation, QueueSeen, ThreadSeen, VcpuSeen};

/// A signal that can be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// KVM's statistics.
    Kvm,
    /// The scheduler's account of threads, and their states.
    Scheduler,
    /// The states of threads alone.
    States,
    /// The cgroup.
    Cgroup,
    /// Pressure (PSI).
    Pressure,
    /// What the host holds of guest memory.
    Swapped,
    /// The host's date.
    Date,
    /// Kicks that nobody has taken.
    Kicks,
    /// What threads say that they do.
    Heartbeats,
    /// Exits by address.
    Places,
    /// All that queues and devices tell.
    Queues,
    /// Looks into vCPUs.
    Sight,
    /// The last minutes' samples.
    Samples,
    /// What the guest's kernel says, on its console and to the pvpanic device.
    Console,
    /// How many vCPUs the guest may start.
    Allowed,
    /// The balloon.
    Balloon,
}

impl Cut {
    /// All of them.
    pub const ALL: [Cut; 16] = [
        Cut::Kvm,
        Cut::Scheduler,
        Cut::States,
        Cut::Cgroup,
        Cut::Pressure,
        Cut::Swapped,
        Cut::Date,
        Cut::Kicks,
        Cut::Heartbeats,
        Cut::Places,
        Cut::Queues,
        Cut::Sight,
        Cut::Samples,
        Cut::Console,
        Cut::Allowed,
        Cut::Balloon,
    ];

    /// Takes the signal out of an observation. Every field is named here: a new one has to be put
    /// under a signal, or passed over as one that is always there.
    pub fn from(self, seen: &mut Observation) {
        let Observation {
            at_ns: _,
            created_ns: _,
            pid: _,
            pulse_ns: _,
            writer_alive: _,
            has_ended: _,
            failure: _,
            vcpus,
            vcpus_allowed,
            queues,
            threads,
            cgroup,
            memory_pressure,
            swapped_bytes,
            own_cpu_ns,
            date_offset_ns,
            memory,
            guest_memory_bytes: _,
            balloon,
            host_errors,
            drives,
            messages,
            pvpanic,
        } = seen;
        match self {
            Cut::Cgroup => *cgroup = None,
            Cut::Pressure => *memory_pressure = None,
            Cut::Swapped => *swapped_bytes = None,
            Cut::Date => *date_offset_ns = None,
            Cut::Scheduler => *own_cpu_ns = None,
            Cut::Queues => {
                queues.clear();
                host_errors.clear();
                drives.clear();
            }
            Cut::Samples => *memory = MemorySeen::default(),
            Cut::Console => {
                messages.clear();
                *pvpanic = None;
            }
            Cut::Allowed => *vcpus_allowed = None,
            Cut::Balloon => *balloon = None,
            Cut::Kvm | Cut::States | Cut::Kicks | Cut::Heartbeats | Cut::Places | Cut::Sight => {}
        }
        vcpus.iter_mut().for_each(|vcpu| self.of_vcpu(vcpu));
        queues.iter_mut().for_each(|queue| self.of_queue(queue));
        threads.iter_mut().for_each(|thread| self.of_thread(thread));
    }

    fn of_vcpu(self, vcpu: &mut VcpuSeen) {
        let VcpuSeen {
            index: _,
            doing,
            moment,
            exits: _,
            places,
            kvm,
            paused_ns: _,
            sight,
            state,
        } = vcpu;
        match self {
            Cut::Kvm => {
                *kvm = None;
                moment.cut_kvm();
            }
            Cut::Scheduler => {
                *state = None;
                moment.cut_task();
            }
            Cut::States => *state = None,
            Cut::Cgroup => moment.cut_cgroup(),
            Cut::Heartbeats => {
                doing.activity = None;
                moment.cut_beat();
            }
            Cut::Places => places.clear(),
            Cut::Sight => *sight = None,
            Cut::Pressure
            | Cut::Swapped
            | Cut::Date
            | Cut::Kicks
            | Cut::Queues
            | Cut::Samples
            | Cut::Console
            | Cut::Allowed
            | Cut::Balloon => {}
        }
    }

    fn of_queue(self, queue: &mut QueueSeen) {
        let QueueSeen {
            device: _,
            queue: _,
            name: _,
            size: _,
            in_flight: _,
            oldest_since_ns: _,
            starved_since_ns: _,
            unread: _,
            last_interrupt_ns: _,
            requests: _,
            kicks: _,
            kick_pending,
            lost_kicks: _,
            broken: _,
            broken_since_ns: _,
            limited_wait_ns: _,
            limited_since_ns: _,
        } = queue;
        if self == Cut::Kicks {
            *kick_pending = None;
        }
    }

    fn of_thread(self, thread: &mut ThreadSeen) {
        let ThreadSeen {
            name: _,
            doing,
            loops: _,
            state,
        } = thread;
        match self {
            Cut::Scheduler | Cut::States => *state = None,
            Cut::Heartbeats => doing.activity = None,
            _ => {}
        }
    }
}
