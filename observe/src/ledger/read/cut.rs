//! Takes signals out of a moment, for recordings that are judged without them.

use super::Moment;

impl Moment {
    /// As where KVM gives no statistics.
    pub(crate) fn cut_kvm(&mut self) {
        self.kvm.numbers = None;
        self.is_blocking = false;
    }

    /// As where the scheduler tells nothing of threads.
    pub(crate) fn cut_task(&mut self) {
        self.task.numbers = None;
    }

    /// As where there is no cgroup.
    pub(crate) fn cut_cgroup(&mut self) {
        self.throttled.numbers = None;
    }

    /// As of a thread that was caught between two states.
    pub(crate) fn cut_beat(&mut self) {
        if let Some(vcpu) = &mut self.vcpu {
            vcpu.beat = None;
        }
    }
}
