//! ORC: where the caller's frame is, for every instruction of a kernel built without frame pointers
//! (Documentation/arch/x86/orc-unwinder.rst, arch/x86/include/asm/orc_types.h). Read from the guest's
//! memory, and trusted as little as all that is there.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::image::Image;
use super::walk::Physical;

const ENTRY_BYTES: u64 = 6;
/// More entries than this has no kernel.
const MOST_ENTRIES: u64 = 4 << 20;
/// Entries looked at to tell which format they have.
const SAMPLES: u32 = 256;

/// Where the tables are, and which format they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orc {
    ips: u64,
    entries: u64,
    count: u32,
    /// Up to Linux 6.3: two bits of type, then one that ends the stack.
    old: bool,
}

/// What a frame's base is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing: it is not known.
    Undefined,
    /// The caller's stack pointer.
    Caller,
    /// RDX, RDI, R10 or R13, by that order.
    Register(u8),
    /// The frame pointer.
    Bp,
    /// The stack pointer.
    Sp,
    /// What lies where the frame pointer and the offset lead.
    BpIndirect,
    /// What lies where the stack pointer leads; the offset is added to it.
    SpIndirect,
}

/// What lies at a frame's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is known.
    Undefined,
    /// The stack ends here.
    End,
    /// A return address.
    Call,
    /// All registers of what was interrupted.
    Registers,
    /// What an interrupt pushes.
    Interrupt,
}

/// How to come from a frame to its caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What the caller's stack pointer is counted from.
    pub sp: Base,
    /// And how far.
    pub sp_offset: i16,
    /// Where the caller's frame pointer was saved.
    pub bp: Base,
    /// And how far.
    pub bp_offset: i16,
    /// What lies there.
    pub kind: Kind,
}

fn base(number: u8) -> Base {
    match number {
        1 => Base::Caller,
        2 => Base::Register(0),
        3 => Base::Register(1),
        4 => Base::Bp,
        5 => Base::Sp,
        6 => Base::Register(2),
        7 => Base::Register(3),
        8 => Base::BpIndirect,
        9 => Base::SpIndirect,
        _ => Base::Undefined,
    }
}

fn kind(bits: u8, old: bool) -> Kind {
    match (old, bits & 7) {
        (true, 4..=7) | (false, 1) => Kind::End,
        (true, 0) | (false, 2) => Kind::Call,
        (true, 1) | (false, 3) => Kind::Registers,
        (true, 2) | (false, 4) => Kind::Interrupt,
        _ => Kind::Undefined,
    }
}

impl Orc {
    /// The tables between these addresses: of `.orc_unwind_ip`, and the beginning of `.orc_unwind`.
    pub fn find<M: Physical>(
        image: &Image<'_, M>,
        ips: u64,
        ips_end: u64,
        entries: u64,
    ) -> Option<Orc> {
        let count = ips_end.checked_sub(ips)?.checked_div(4)?;
        if count == 0 || count > MOST_ENTRIES {
            return None;
        }
        let mut orc = Orc {
            ips,
            entries,
            count: u32::try_from(count).ok()?,
            old: false,
        };
        // Nearly all are calls: 0 in the old format, 2 in the new one.
        let step = orc.count.div_ceil(SAMPLES);
        let samples = (0..orc.count).step_by(step as usize);
        let (mut zeros, mut twos) = (0u32, 0u32);
        for number in samples {
            match orc.raw(image, number)?.last()? & 7 {
                0 => zeros = zeros.saturating_add(1),
                2 => twos = twos.saturating_add(1),
                _ => {}
            }
        }
        orc.old = zeros > twos;
        Some(orc)
    }

    /// The rule for the instruction at `ip`.
    pub fn rule<M: Physical>(&self, image: &Image<'_, M>, ip: u64) -> Option<Rule> {
        let (mut low, mut high) = (0, self.count);
        while high.checked_sub(low)? > 1 {
            let middle = low.midpoint(high);
            if self.ip(image, middle)? <= ip {
                low = middle;
            } else {
                high = middle;
            }
        }
        if self.ip(image, low)? > ip {
            return None;
        }
        let raw = self.raw(image, low)?;
        let [s0, s1, b0, b1, bases, bits] = raw;
        // An empty entry is a gap.
        if self.old && bases == 0 && bits & 7 == 0 {
            return None;
        }
        Some(Rule {
            sp: base(bases & 0xF),
            sp_offset: i16::from_le_bytes([s0, s1]),
            bp: base(bases >> 4),
            bp_offset: i16::from_le_bytes([b0, b1]),
            kind: kind(bits, self.old),
        })
    }

    /// The first instruction that entry `number` is for: stored as the distance from itself.
    fn ip<M: Physical>(&self, image: &Image<'_, M>, number: u32) -> Option<u64> {
        let at = self.ips.checked_add(u64::from(number).checked_mul(4)?)?;
        let distance = image.u32(at)?.cast_signed();
        Some(at.wrapping_add_signed(distance.into()))
    }

    fn raw<M: Physical>(&self, image: &Image<'_, M>, number: u32) -> Option<[u8; 6]> {
        let at = u64::from(number).checked_mul(ENTRY_BYTES)?;
        image.array(self.entries.checked_add(at)?)
    }
}
