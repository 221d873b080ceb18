//! Words for why KVM cannot go on with a guest.

use kvm_bindings::kvm_regs;

use super::counters::ExitKind;
use super::exit::Failure;

/// KVM_INTERNAL_ERROR_EMULATION, and its flag that the instruction's bytes follow
/// (Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR).
const EMULATION: u64 = 1;
const HAS_BYTES: u64 = 1;
const MOST_BYTES: usize = 15;

/// One sentence: what KVM said, the instruction if it told that, and where the vCPU was.
pub fn describe(vcpu: u8, failure: &Failure, registers: Option<&kvm_regs>) -> String {
    let [first, second, third, fourth] = failure.words;
    let text = match failure.kind {
        ExitKind::FailEntry => format!(
            "vcpu {vcpu}: the CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY, hardware reason \
             {first:#x} on host CPU {second}): its state is invalid"
        ),
        ExitKind::InternalError => {
            let what = if first == EMULATION {
                ": an instruction it cannot emulate"
            } else {
                ""
            };
            let told = instruction(failure.words)
                .unwrap_or_else(|| format!("data {second:#x} {third:#x} {fourth:#x}"));
            format!(
                "vcpu {vcpu}: KVM cannot go on (KVM_EXIT_INTERNAL_ERROR, suberror {first}{what}, \
                 {told})"
            )
        }
        ExitKind::MemoryFault => format!(
            "vcpu {vcpu}: the guest touched memory that the host cannot give it (guest address \
             {first:#x}, {second} bytes, errno {fourth})"
        ),
        ExitKind::SystemEvent => format!("vcpu {vcpu}: KVM reports system event {first}"),
        _ => format!("vcpu {vcpu}: KVM_RUN gave exit reason {first}, errno {fourth}"),
    };
    match registers {
        Some(regs) => format!(
            "{text}; rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x}",
            regs.rip, regs.rsp, regs.rflags, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi
        ),
        None => text,
    }
}

/// The bytes of the instruction that could not be emulated.
fn instruction([suberror, flags, second, third]: [u64; 4]) -> Option<String> {
    if suberror != EMULATION || flags & HAS_BYTES == 0 {
        return None;
    }
    let [size, rest @ ..] = second.to_le_bytes();
    let size = usize::from(size).min(MOST_BYTES);
    let bytes = rest.into_iter().chain(third.to_le_bytes()).take(size);
    let bytes: Vec<String> = bytes.map(|byte| format!("{byte:02x}")).collect();
    (!bytes.is_empty()).then(|| format!("instruction bytes {}", bytes.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internal(words: [u64; 4]) -> String {
        let kind = ExitKind::InternalError;
        describe(3, &Failure { kind, words }, None)
    }

    #[test]
    fn an_instruction_that_cannot_be_emulated_is_told_with_its_bytes_and_its_place() {
        let words = [
            1,
            1,
            u64::from_le_bytes([9, 0x0F, 0x38, 0xF0, 1, 2, 3, 4]),
            u64::from_le_bytes([5, 6, 0xAA, 0, 0, 0, 0, 0]),
        ];
        let text = internal(words);
        assert!(
            text.contains("instruction bytes 0f 38 f0 01 02 03 04 05 06)"),
            "{text}"
        );
        let regs = kvm_regs {
            rip: 0x1234,
            rdi: 0x77,
            ..kvm_regs::default()
        };
        let kind = ExitKind::InternalError;
        let text = describe(3, &Failure { kind, words }, Some(&regs));
        assert!(text.starts_with("vcpu 3: KVM cannot go on"), "{text}");
        assert!(
            text.contains("rip 0x1234") && text.ends_with("rdi 0x77"),
            "{text}"
        );
    }

    #[test]
    fn other_errors_are_told_with_kvms_data() {
        assert!(internal([1, 0, 7, 8]).contains("data 0x0 0x7 0x8"));
        assert!(internal([1, 1, 0, 0]).contains("data 0x1 0x0 0x0"));
        let delivery = internal([3, 0x8000_0B0E, 0x31, 0]);
        assert!(
            delivery.contains("suberror 3, data 0x80000b0e"),
            "{delivery}"
        );
        // As many bytes as no instruction has.
        assert!(internal([1, 1, 0xFF, 0]).contains("bytes 00 00"));
    }
}
