//! The stack of a guest's kernel: from the instruction that a vCPU is at to who called whom.
//!
//! ORC tells it exactly where the kernel has it. Where it has no rule (a module, code that was made
//! at run time) a frame pointer that leads to a plausible frame is followed, which is how kernels
//! without ORC are built; and where there is none, whatever looks like a return address is taken and
//! marked as a guess.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::StackCopy;
use super::image::Image;
use super::kernel::Kernel;
use super::look::Trust;
use super::orc::{Base, Kind, Rule};
use super::view::VcpuView;
use super::walk::{Physical, Space};

/// Frames at most.
pub const MOST_FRAMES: usize = 32;
/// Bytes of a stack that are searched for return addresses, and that a frame can have.
const STACK_BYTES: u64 = 16 << 10;

/// `struct pt_regs`, from its beginning.
mod pt_regs {
    pub const R13: u64 = 16;
    pub const BP: u64 = 32;
    pub const R10: u64 = 56;
    pub const DX: u64 = 96;
    pub const DI: u64 = 112;
    /// From here on, what an interrupt pushes: IP, CS, flags, SP, SS.
    pub const IP: u64 = 128;
}

/// What reading the stack needs.
pub struct Walker<'a, M> {
    pub space: Space<'a, M>,
    pub image: &'a Image<'a, M>,
    pub kernel: &'a Kernel,
    pub copy: &'a StackCopy,
}

/// A frame, without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The next instruction in it.
    pub address: u64,
    /// It was interrupted there, and has not called anything.
    pub exact: bool,
    /// How far it can be trusted.
    pub trust: Trust,
}

struct State {
    ip: u64,
    sp: u64,
    bp: u64,
    /// RDX, RDI, R10 and R13, as far as they are known.
    registers: Option<[u64; 4]>,
    /// `ip` is the next instruction, not the one behind a call.
    exact: bool,
}

enum Step {
    /// To the caller.
    On(State),
    /// There is none.
    End,
    /// It is not known.
    Lost,
}

impl<M: Physical> Walker<'_, M> {
    /// The frames from where the vCPU is outwards.
    pub fn frames(&self, view: &VcpuView) -> Vec<Found> {
        let mut state = State {
            ip: view.rip,
            sp: view.rsp,
            bp: view.rbp,
            registers: Some([view.rdx, view.rdi, view.r10, view.r13]),
            exact: true,
        };
        let mut frames = vec![Found {
            address: state.ip,
            exact: true,
            trust: Trust::Known,
        }];
        while frames.len() < MOST_FRAMES {
            let (step, trust) = match self.by_orc(&state) {
                Step::Lost => (self.by_frame_pointer(&state), Trust::FramePointer),
                step => (step, Trust::Known),
            };
            match step {
                Step::On(next) => {
                    // A frame that leads to itself leads nowhere.
                    if next.sp == state.sp && next.ip == state.ip {
                        break;
                    }
                    frames.push(Found {
                        address: next.ip,
                        exact: next.exact,
                        trust,
                    });
                    state = next;
                }
                Step::End => break,
                Step::Lost => {
                    self.guess(state.sp, &mut frames);
                    break;
                }
            }
        }
        frames
    }

    fn by_orc(&self, state: &State) -> Step {
        // Behind a call that does not return there may be another function.
        let at = if state.exact {
            state.ip
        } else {
            state.ip.wrapping_sub(1)
        };
        let orc = self.kernel.orc.as_ref().filter(|_| self.kernel.is_text(at));
        let rule = orc.and_then(|orc| orc.rule(self.image, at));
        rule.map_or(Step::Lost, |rule| {
            if rule.kind == Kind::End {
                return Step::End;
            }
            self.follow(state, rule).unwrap_or(Step::Lost)
        })
    }

    fn follow(&self, state: &State, rule: Rule) -> Option<Step> {
        let offset = i64::from(rule.sp_offset);
        let sp = match rule.sp {
            Base::Sp => state.sp.wrapping_add_signed(offset),
            Base::Bp => state.bp.wrapping_add_signed(offset),
            Base::BpIndirect => self.word(state.bp.wrapping_add_signed(offset))?,
            Base::SpIndirect => self.word(state.sp)?.wrapping_add_signed(offset),
            Base::Register(number) => *state.registers?.get(usize::from(number))?,
            Base::Caller | Base::Undefined => return None,
        };
        let (ip, next_sp, saved) = match rule.kind {
            Kind::Call => (self.word(sp.wrapping_sub(8))?, sp, None),
            Kind::Registers => {
                let frame = sp.wrapping_add(pt_regs::IP);
                let Some((ip, next)) = self.interrupted(frame)? else {
                    return Some(Step::End);
                };
                (ip, next, Some(sp))
            }
            Kind::Interrupt => {
                let Some((ip, next)) = self.interrupted(sp)? else {
                    return Some(Step::End);
                };
                (ip, next, None)
            }
            Kind::Undefined | Kind::End => return None,
        };
        let offset = i64::from(rule.bp_offset);
        let bp = match rule.bp {
            Base::Caller => self.word(sp.wrapping_add_signed(offset))?,
            Base::Bp => self.word(state.bp.wrapping_add_signed(offset))?,
            _ => saved.map_or(Some(state.bp), |at| self.word(at.wrapping_add(pt_regs::BP)))?,
        };
        let registers = saved.and_then(|at| {
            let word = |offset| self.word(at.wrapping_add(offset));
            Some([
                word(pt_regs::DX)?,
                word(pt_regs::DI)?,
                word(pt_regs::R10)?,
                word(pt_regs::R13)?,
            ])
        });
        let next = State {
            ip,
            sp: next_sp,
            bp,
            registers,
            exact: rule.kind != Kind::Call,
        };
        // Zero is where the stack of a kernel thread begins.
        Some(if ip == 0 { Step::End } else { Step::On(next) })
    }

    /// Instruction and stack pointer of what an interrupt's frame at `at` interrupted; `None` inside
    /// if that was user space, where the kernel's stack ends.
    fn interrupted(&self, at: u64) -> Option<Option<(u64, u64)>> {
        let (ip, cs) = (self.word(at)?, self.word(at.wrapping_add(8))?);
        let sp = self.word(at.wrapping_add(24))?;
        Some((cs & 3 == 0).then_some((ip, sp)))
    }

    /// A frame pointer leads up the stack to that of the caller, with the return address above it.
    fn by_frame_pointer(&self, state: &State) -> Step {
        let follow = || {
            let far = state.bp.checked_sub(state.sp)?;
            let (bp, ip) = (self.word(state.bp)?, self.word(state.bp.checked_add(8)?)?);
            let next = State {
                ip,
                sp: state.bp.checked_add(16)?,
                bp,
                registers: None,
                exact: false,
            };
            let up = bp > state.bp || bp == 0;
            let plausible = far < STACK_BYTES && state.bp & 7 == 0 && up && self.kernel.is_text(ip);
            plausible.then_some(next)
        };
        follow().map_or(Step::Lost, Step::On)
    }

    /// Whatever from `sp` on looks like a return address.
    fn guess(&self, sp: u64, frames: &mut Vec<Found>) {
        let from = sp & !7;
        for at in (0..STACK_BYTES).step_by(8).map(|up| from.wrapping_add(up)) {
            if frames.len() >= MOST_FRAMES {
                return;
            }
            let Some(word) = self.word(at) else {
                return;
            };
            if self.kernel.is_text(word) {
                frames.push(Found {
                    address: word,
                    exact: false,
                    trust: Trust::Guess,
                });
            }
        }
    }

    /// A word of the stack: from the copy, else as it is by now.
    fn word(&self, at: u64) -> Option<u64> {
        let inside = at.checked_sub(self.copy.from);
        let inside = inside.and_then(|inside| usize::try_from(inside).ok());
        let copied = inside.and_then(|inside| self.copy.bytes.get(inside..)?.first_chunk());
        match copied {
            Some(word) => Some(u64::from_le_bytes(*word)),
            None => self.space.word(at).ok(),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests;
