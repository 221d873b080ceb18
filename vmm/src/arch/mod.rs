//! x86-64: what a vCPU looks like before its first instruction.

pub mod cpuid;
pub mod msr;
pub mod registers;
