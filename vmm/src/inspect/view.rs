//! What a look into a vCPU finds, and the words for it.

use std::fmt;

const FLAG_INTERRUPT: u64 = 1 << 9;
const CR0_PAGING: u64 = 1 << 31;
/// KVM_MP_STATE_... (Documentation/virt/kvm/api.rst, 4.38).
const RUNNABLE: u32 = 0;
const UNINITIALIZED: u32 = 1;
const INIT_RECEIVED: u32 = 2;
const HALTED: u32 = 3;
const SIPI_RECEIVED: u32 = 4;

/// One vCPU at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuView {
    /// Its number.
    pub vcpu: u8,
    /// The next instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The frame pointer, in code that keeps one.
    pub rbp: u64,
    /// For unwinding, as the three after it.
    pub rdx: u64,
    /// See `rdx`.
    pub rdi: u64,
    /// See `rdx`.
    pub r10: u64,
    /// See `rdx`.
    pub r13: u64,
    /// All general registers, RAX to R15 in the order of struct kvm_regs.
    pub general: [u64; 16],
    /// The flags register.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2: the address of the last page fault.
    pub cr2: u64,
    /// Control register 3: the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The extended features register.
    pub efer: u64,
    /// The code segment's selector.
    pub cs_selector: u16,
    /// The code segment's base.
    pub cs_base: u64,
    /// Whether the code segment is one of 64-bit code.
    pub cs_long: bool,
    /// The stack segment's base.
    pub ss_base: u64,
    /// The base of GS: in a Linux kernel, of this CPU's own data.
    pub gs_base: u64,
    /// Where the interrupt descriptor table lies.
    pub idt_base: u64,
    /// The privilege level: 0 is the kernel, 3 user space.
    pub ring: u8,
    /// KVM's number for what the vCPU does; [`VcpuView::activity`] has the word.
    pub mp_state: u32,
    /// Interrupts that the local APIC has not yet delivered (IRR).
    pub requested: Vectors,
    /// Interrupts whose end the guest has not yet told (ISR).
    pub in_service: Vectors,
    /// The local APIC's task priority: it holds back vectors below it.
    pub task_priority: u8,
    /// Whether the local APIC is on.
    pub apic_on: bool,
    /// The local APIC's timer.
    pub timer: Timer,
    /// The guest's time-stamp counter, if KVM told it.
    pub tsc: Option<u64>,
    /// Where a 64-bit system call enters the kernel; 0 before the kernel has set it.
    pub lstar: u64,
    /// What KVM is to deliver before the next instruction.
    pub pending: Pending,
    /// How long the vCPU was kept out of the guest by the reading, in nanoseconds.
    pub took_ns: u64,
}

impl VcpuView {
    /// Whether it waits in HLT.
    pub fn halted(&self) -> bool {
        self.mp_state == HALTED
    }

    /// Whether it takes maskable interrupts (RFLAGS.IF).
    pub fn interrupts_on(&self) -> bool {
        self.rflags & FLAG_INTERRUPT != 0
    }

    /// Whether addresses are translated by page tables.
    pub fn paging(&self) -> bool {
        self.cr0 & CR0_PAGING != 0
    }

    /// Halted with interrupts off: only an NMI, an INIT or a reset ends that.
    pub fn dead_halt(&self) -> bool {
        self.halted() && !self.interrupts_on()
    }

    /// The address of the next instruction: in 64-bit code, RIP itself.
    pub fn code_address(&self) -> u64 {
        if self.cs_long {
            self.rip
        } else {
            self.cs_base.wrapping_add(self.rip)
        }
    }

    /// What KVM has it do.
    pub fn activity(&self) -> &'static str {
        match self.mp_state {
            RUNNABLE => "runs",
            UNINITIALIZED => "waits for its startup",
            INIT_RECEIVED => "has an INIT",
            HALTED => "is halted",
            SIPI_RECEIVED => "has a startup IPI",
            _ => "is in a state that has no name here",
        }
    }
}

/// A set of interrupt vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors(pub [u32; 8]);

impl Vectors {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// The vectors, from the lowest.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|vector| {
            let word = self.0.get(usize::from(*vector) / 32);
            word.is_some_and(|word| word >> (*vector % 32) & 1 != 0)
        })
    }
}

impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, vector) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{vector:#x}")?;
        }
        Ok(())
    }
}

/// How the local APIC's timer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimerMode {
    /// Down to zero, once.
    #[default]
    OneShot,
    /// Down to zero, again and again.
    Periodic,
    /// Until the time-stamp counter reaches a value.
    TscDeadline,
    /// A mode that does not exist.
    Reserved,
}

/// The local APIC's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    /// How it counts.
    pub mode: TimerMode,
    /// The vector that it raises.
    pub vector: u8,
    /// Whether that is masked.
    pub masked: bool,
    /// Whether it counts towards something.
    pub counting: bool,
    /// What is left of its count, in its own ticks; 0 in TSC deadline mode.
    pub current: u32,
    /// The TSC deadline, if one is set.
    pub deadline: Option<u64>,
}

impl Timer {
    /// Whether it will raise an interrupt.
    pub fn armed(&self) -> bool {
        self.counting && !self.masked
    }
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            TimerMode::OneShot => "one-shot",
            TimerMode::Periodic => "periodic",
            TimerMode::TscDeadline => "TSC deadline",
            TimerMode::Reserved => "reserved mode",
        };
        let armed = match (self.counting, self.masked) {
            (true, false) => "armed",
            (true, true) => "counts, but is masked",
            (false, _) => "not armed",
        };
        write!(f, "{armed} ({mode}, vector {:#x})", self.vector)?;
        match self.deadline {
            Some(deadline) => write!(f, ", deadline {deadline:#x}"),
            None => Ok(()),
        }
    }
}

/// What KVM is to deliver before the next instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// An exception, by its vector.
    pub exception: Option<u8>,
    /// An interrupt on its way in, by its vector.
    pub interrupt: Option<u8>,
    /// The instruction before holds interrupts back (STI, MOV SS).
    pub interrupt_shadow: bool,
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// Non-maskable interrupts are held back: one is being handled.
    pub nmi_masked: bool,
    /// It is in system management mode.
    pub smm: bool,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.exception.map(|vector| format!("exception {vector}")));
        words.extend(
            self.interrupt
                .map(|vector| format!("interrupt {vector:#x}")),
        );
        words.extend(self.nmi.then(|| "NMI".to_owned()));
        words.extend(self.nmi_masked.then(|| "NMIs masked".to_owned()));
        words.extend(self.smm.then(|| "in SMM".to_owned()));
        if words.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&words.join(", "))
    }
}

impl fmt::Display for VcpuView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on| if on { "on" } else { "off" };
        writeln!(
            f,
            "vcpu {} {} in ring {}, interrupts {}",
            self.vcpu,
            self.activity(),
            self.ring,
            on(self.interrupts_on())
        )?;
        writeln!(
            f,
            "  rip {:#x}  rsp {:#x}  rbp {:#x}  cs {:#x} base {:#x}",
            self.rip, self.rsp, self.rbp, self.cs_selector, self.cs_base
        )?;
        writeln!(
            f,
            "  cr0 {:#x}  cr2 {:#x}  cr3 {:#x}  cr4 {:#x}  efer {:#x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )?;
        writeln!(
            f,
            "  interrupts requested {}, in service {}, local APIC {}",
            self.requested,
            self.in_service,
            on(self.apic_on)
        )?;
        write!(f, "  timer {}; to deliver: {}", self.timer, self.pending)
    }
}
