//! Names of the reasons for which the processor leaves a guest.

/// Which processor's numbers they are, as the tracepoint's `isa` tells: 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
}

impl Isa {
    /// The field `isa` of `kvm_exit`.
    pub fn of(number: u64) -> Option<Isa> {
        match number {
            1 => Some(Isa::Vmx),
            2 => Some(Isa::Svm),
            _ => None,
        }
    }
}

/// The name of an exit reason; one without a name is told by its number.
pub fn name(isa: Option<Isa>, reason: u64) -> String {
    let known = match isa {
        Some(Isa::Vmx) => vmx(reason),
        Some(Isa::Svm) => svm(reason),
        None => None,
    };
    known.unwrap_or_else(|| format!("exit {reason:#x}"))
}

/// Intel SDM volume 3, appendix C: bits 15:0 are the basic reason, bit 31 says that the entry
/// failed, bit 27 that the exit was from an enclave.
fn vmx(reason: u64) -> Option<String> {
    let basic = reason & 0xffff;
    let (_, name) = VMX.iter().find(|(number, _)| *number == basic)?;
    let failed = if reason & 1 << 31 != 0 {
        " (failed entry)"
    } else {
        ""
    };
    Some(format!("{name}{failed}"))
}

/// AMD APM volume 2, appendix C. The negative codes are 32 bits wide in the tracepoint's record of
/// most kernels and 64 in that of others.
fn svm(code: u64) -> Option<String> {
    let number = code & 0xf;
    let bank = match code {
        0x00..=0x0f => Some(format!("CR{number}_READ")),
        0x10..=0x1f => Some(format!("CR{number}_WRITE")),
        0x20..=0x2f => Some(format!("DR{number}_READ")),
        0x30..=0x3f => Some(format!("DR{number}_WRITE")),
        0x40..=0x5f => Some(exception(code & 0x1f)),
        0x90..=0x9f => Some(format!("CR{number}_WRITE_TRAP")),
        0xffff_ffff | u64::MAX => Some("INVALID".to_owned()),
        0xffff_fffe | 0xffff_ffff_ffff_fffe => Some("BUSY".to_owned()),
        _ => None,
    };
    bank.or_else(|| {
        let found = SVM.iter().find(|(known, _)| *known == code);
        found.map(|(_, name)| (*name).to_owned())
    })
}

fn exception(vector: u64) -> String {
    const NAMES: [&str; 22] = [
        "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "09", "TS", "NP", "SS", "GP", "PF",
        "15", "MF", "AC", "MC", "XF", "VE", "CP",
    ];
    let name = usize::try_from(vector).ok().and_then(|v| NAMES.get(v));
    name.map_or_else(|| format!("EXCP_{vector}"), |name| format!("EXCP_{name}"))
}

#[rustfmt::skip]
const VMX: &[(u64, &str)] = &[
    (0, "EXCEPTION_NMI"), (1, "EXTERNAL_INTERRUPT"), (2, "TRIPLE_FAULT"), (3, "INIT"), (4, "SIPI"),
    (5, "IO_SMI"), (6, "OTHER_SMI"), (7, "INTERRUPT_WINDOW"), (8, "NMI_WINDOW"),
    (9, "TASK_SWITCH"), (10, "CPUID"), (11, "GETSEC"), (12, "HLT"), (13, "INVD"), (14, "INVLPG"),
    (15, "RDPMC"), (16, "RDTSC"), (17, "RSM"), (18, "VMCALL"), (19, "VMCLEAR"), (20, "VMLAUNCH"),
    (21, "VMPTRLD"), (22, "VMPTRST"), (23, "VMREAD"), (24, "VMRESUME"), (25, "VMWRITE"),
    (26, "VMXOFF"), (27, "VMXON"), (28, "CR_ACCESS"), (29, "DR_ACCESS"), (30, "IO_INSTRUCTION"),
    (31, "MSR_READ"), (32, "MSR_WRITE"), (33, "INVALID_GUEST_STATE"), (34, "MSR_LOAD_FAILED"),
    (36, "MWAIT"), (37, "MONITOR_TRAP_FLAG"), (39, "MONITOR"), (40, "PAUSE"),
    (41, "MACHINE_CHECK"), (43, "TPR_BELOW_THRESHOLD"), (44, "APIC_ACCESS"),
    (45, "EOI_INDUCED"), (46, "GDTR_IDTR_ACCESS"), (47, "LDTR_TR_ACCESS"), (48, "EPT_VIOLATION"),
    (49, "EPT_MISCONFIG"), (50, "INVEPT"), (51, "RDTSCP"), (52, "PREEMPTION_TIMER"),
    (53, "INVVPID"), (54, "WBINVD"), (55, "XSETBV"), (56, "APIC_WRITE"), (57, "RDRAND"),
    (58, "INVPCID"), (59, "VMFUNC"), (60, "ENCLS"), (61, "RDSEED"), (62, "PML_FULL"),
    (63, "XSAVES"), (64, "XRSTORS"), (65, "PCONFIG"), (66, "SPP_EVENT"), (67, "UMWAIT"),
    (68, "TPAUSE"), (69, "LOADIWKEY"), (70, "ENCLV"), (72, "ENQCMD_PASID"), (73, "ENQCMDS_PASID"),
    (74, "BUS_LOCK"), (75, "NOTIFY_WINDOW"), (76, "SEAMCALL"), (77, "TDCALL"),
    (78, "RDMSRLIST"), (79, "WRMSRLIST"),
];

#[rustfmt::skip]
const SVM: &[(u64, &str)] = &[
    (0x60, "INTR"), (0x61, "NMI"), (0x62, "SMI"), (0x63, "INIT"), (0x64, "VINTR"),
    (0x65, "CR0_SEL_WRITE"), (0x66, "IDTR_READ"), (0x67, "GDTR_READ"), (0x68, "LDTR_READ"),
    (0x69, "TR_READ"), (0x6a, "IDTR_WRITE"), (0x6b, "GDTR_WRITE"), (0x6c, "LDTR_WRITE"),
    (0x6d, "TR_WRITE"), (0x6e, "RDTSC"), (0x6f, "RDPMC"), (0x70, "PUSHF"), (0x71, "POPF"),
    (0x72, "CPUID"), (0x73, "RSM"), (0x74, "IRET"), (0x75, "SWINT"), (0x76, "INVD"),
    (0x77, "PAUSE"), (0x78, "HLT"), (0x79, "INVLPG"), (0x7a, "INVLPGA"), (0x7b, "IOIO"),
    (0x7c, "MSR"), (0x7d, "TASK_SWITCH"), (0x7e, "FERR_FREEZE"), (0x7f, "SHUTDOWN"),
    (0x80, "VMRUN"), (0x81, "VMMCALL"), (0x82, "VMLOAD"), (0x83, "VMSAVE"), (0x84, "STGI"),
    (0x85, "CLGI"), (0x86, "SKINIT"), (0x87, "RDTSCP"), (0x88, "ICEBP"), (0x89, "WBINVD"),
    (0x8a, "MONITOR"), (0x8b, "MWAIT"), (0x8c, "MWAIT_CONDITIONAL"), (0x8d, "XSETBV"),
    (0x8e, "RDPRU"), (0x8f, "EFER_WRITE_TRAP"), (0xa0, "INVLPGB"), (0xa1, "INVLPGB_ILLEGAL"),
    (0xa2, "INVPCID"), (0xa3, "MCOMMIT"), (0xa4, "TLBSYNC"), (0xa5, "BUSLOCK"),
    (0xa6, "IDLE_HLT"), (0x400, "NPF"), (0x401, "AVIC_INCOMPLETE_IPI"),
    (0x402, "AVIC_UNACCELERATED_ACCESS"), (0x403, "VMGEXIT"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_manuals_names() {
        let (vmx, svm) = (Some(Isa::Vmx), Some(Isa::Svm));
        let cases = [
            (vmx, 48, "EPT_VIOLATION"),
            (vmx, 0x8000_0021, "INVALID_GUEST_STATE (failed entry)"),
            (vmx, 35, "exit 0x23"),
            (svm, 0x400, "NPF"),
            (svm, 0x7b, "IOIO"),
            (svm, 0x4e, "EXCP_PF"),
            (svm, 0x5e, "EXCP_30"),
            (svm, 0x14, "CR4_WRITE"),
            (svm, 0xffff_ffff, "INVALID"),
            (svm, 0x9999, "exit 0x9999"),
            (None, 48, "exit 0x30"),
        ];
        for (isa, reason, expected) in cases {
            assert_eq!(name(isa, reason), expected);
        }
        assert_eq!([Isa::of(1), Isa::of(2), Isa::of(3)], [vmx, svm, None]);
    }

    #[test]
    fn the_tables_are_in_order_and_no_number_is_twice() {
        for table in [VMX, SVM] {
            assert!(table.windows(2).all(|two| two[0].0 < two[1].0));
        }
    }
}
