//! A vCPU with the names of where it is, and of who called that.

use std::fmt;
use std::sync::OnceLock;

use memory::GuestRam;

use super::Sight;
use super::image::KERNEL_MAP;
use super::kallsyms::{Kallsyms, Symbol};
use super::kernel::Kernel;
use super::modules::{self, Module};
use super::stack::{Found, Walker};
use super::view::VcpuView;
use super::walk::Space;

/// What a look into a vCPU finds, with names.
#[derive(Clone, Debug)]
pub struct VcpuSight {
    /// The registers.
    pub view: VcpuView,
    /// Where it is, and then who called whom, at most 32. One in user space has this one alone.
    pub frames: Vec<Frame>,
    /// Why there are no names, if there are none.
    pub nameless: Option<&'static str>,
}

impl VcpuSight {
    /// The function of the guest's kernel or of a module that it is in.
    pub fn function(&self) -> Option<&str> {
        match &self.frames.first()?.place {
            Place::Kernel(symbol) => Some(&symbol.name),
            Place::Module(module) => module.symbol.as_ref().map(|symbol| symbol.name.as_str()),
            _ => None,
        }
    }
}

/// One frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The next instruction there.
    pub address: u64,
    /// What is there.
    pub place: Place,
    /// How far it can be trusted.
    pub trust: Trust,
}

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into a function of the kernel's image.
    Kernel(Symbol),
    /// Into a module of the kernel.
    Module(Module),
    /// Where the kernel has its modules and other code that was added to it.
    Modules(u64),
    /// Into user space.
    User(u64),
    /// Nothing is known of it.
    Unknown(u64),
}

/// How far a frame can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is where the vCPU is, or the kernel's unwind tables lead to it.
    Known,
    /// A frame pointer leads to it.
    FramePointer,
    /// Something on the stack looks so.
    Guess,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Kernel(symbol) => symbol.fmt(f),
            Place::Module(module) => module.fmt(f),
            Place::Modules(at) => write!(f, "module area {at:#x}"),
            Place::User(at) => write!(f, "user space {at:#x}"),
            Place::Unknown(at) => write!(f, "{at:#x}"),
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.trust == Trust::Guess { "? " } else { "" };
        write!(f, "{mark}{}", self.place)
    }
}

impl fmt::Display for VcpuSight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.view)?;
        for (index, frame) in self.frames.iter().enumerate() {
            let word = if index == 0 { "at" } else { "from" };
            write!(f, "\n  {word} {frame}")?;
        }
        match self.nameless {
            Some(why) => write!(f, "\n  no names: {why}"),
            None => Ok(()),
        }
    }
}

/// What is at a frame's address. Behind a call that does not return there may be another function:
/// so a return address is looked for one byte before it.
fn place(
    symbols: Option<&Kallsyms<'_, GuestRam>>,
    module: impl Fn(u64) -> Option<Module>,
    found: &Found,
) -> Place {
    let back = u64::from(!found.exact);
    let symbol = symbols.and_then(|symbols| symbols.symbol(found.address.wrapping_sub(back)));
    match symbol {
        Some(symbol) => Place::Kernel(Symbol {
            offset: symbol.offset.saturating_add(back),
            ..symbol
        }),
        None if modules::AREA.contains(&found.address) => {
            module(found.address).map_or(Place::Modules(found.address), Place::Module)
        }
        None => Place::Unknown(found.address),
    }
}

/// Gives names to what was read of a vCPU. `known` is what earlier looks found of the kernel.
pub(crate) fn look(ram: &GuestRam, sight: &Sight, known: &OnceLock<Kernel>) -> VcpuSight {
    let view = &sight.view;
    let space = Space::of(ram, view);
    let kernel = match known.get() {
        Some(kernel) if kernel.symbols(&kernel.image(ram), view).is_some() => Ok(kernel.clone()),
        _ => Kernel::find(&space, view).inspect(|kernel| drop(known.set(kernel.clone()))),
    };
    let lone = |place| Frame {
        address: view.code_address(),
        place,
        trust: Trust::Known,
    };
    let frames = match &kernel {
        _ if view.ring != 0 => vec![lone(Place::User(view.code_address()))],
        Ok(kernel) if view.code_address() >= KERNEL_MAP => {
            let image = kernel.image(ram);
            let symbols = kernel.symbols(&image, view);
            let list = kernel.modules;
            let module = |address| modules::module(&space, list?, address);
            let walker = Walker {
                space,
                image: &image,
                kernel,
                copy: &sight.stack,
            };
            let frames = walker.frames(view).into_iter();
            let frame = |found: Found| Frame {
                address: found.address,
                place: place(symbols.as_ref(), module, &found),
                trust: found.trust,
            };
            frames.map(frame).collect()
        }
        _ => vec![lone(Place::Unknown(view.code_address()))],
    };
    VcpuSight {
        view: view.clone(),
        frames,
        nameless: kernel.err(),
    }
}
