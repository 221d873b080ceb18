//! An NMI by command reaches every vCPU of a stock guest, also of one that hears nothing else.

use vmm::{Outcome, VmCommand, VmEvent};

use crate::harness::Guest;
use crate::{PATIENCE, VERSIONS, linux, told};

#[test]
fn an_nmi_reaches_every_vcpu_and_the_guest_goes_on() {
    let script = "
echo 0 > /proc/sys/kernel/unknown_nmi_panic
echo 0 > /proc/sys/kernel/panic_on_unrecovered_nmi
echo 0 > /proc/sys/kernel/panic_on_io_nmi
echo READY
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  [ $(dmesg | grep -c 'NMI received for unknown reason') -ge 4 ] && break
  sleep 1
done
echo CPUS=$(dmesg | sed -n 's/.*NMI received for unknown reason .* on CPU \\([0-9]*\\).*/\\1/p' | sort | tr '\\n' ,)
echo COUNT=$(sed -n 's/^ *NMI: *\\([0-9]*\\) *\\([0-9]*\\) .*/\\1,\\2/p' /proc/interrupts)
";
    for version in VERSIONS {
        let mut spec = linux(version, "", script);
        spec.vcpus = 2;
        let guest = Guest::launch(spec);
        guest.await_words("READY", PATIENCE);
        for _ in 0..2 {
            guest.command(VmCommand::Nmi);
            // A machine that is busy has verdicts, too.
            let mut events = guest.events.iter();
            let told = events.find(|event| !matches!(event, VmEvent::Verdict(..)));
            assert_eq!(told, Some(VmEvent::NmiSent));
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        guest.command(VmCommand::Pause);
        let refused = guest.vm.command_within(VmCommand::Nmi, PATIENCE);
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("NMI is refused") && refused.contains("resume"),
            "{refused}"
        );
        guest.command(VmCommand::Resume);
        let done = guest.finish(PATIENCE);
        assert_eq!(done.outcome, Outcome::PowerOff);
        assert_eq!(told(&done.console, "CPUS"), "0,0,1,1,", "{}", done.console);
        assert_eq!(told(&done.console, "COUNT"), "2,2", "{version}");
        for vcpu in 0..2 {
            let sent = done.seen.number(&format!("vcpu/{vcpu}"), "nmis", "");
            let kvm = format!("kvm_vcpu/{vcpu}");
            assert_eq!(sent, 2);
            // KVM counts one again whose delivery was interrupted; the guest has counted exactly.
            let injected = done.seen.number(&kvm, "total", "nmi_injections");
            assert!(injected >= 2, "{version}: {injected}");
        }
    }
}
