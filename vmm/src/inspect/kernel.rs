//! Where a guest's kernel has its symbols and its unwind tables: a few addresses, found once and
//! checked at each use, for a guest may start another kernel.

use std::ops::Range;

use super::image::{Image, KERNEL_MAP};
use super::kallsyms::{Kallsyms, Tables};
use super::orc::Orc;
use super::view::VcpuView;
use super::walk::{Physical, Space};

/// A 64-bit system call enters a kernel here, and LSTAR says where: so the symbols can be checked.
const SYSCALL_ENTRY: &str = "entry_SYSCALL_64";

/// What is remembered of a guest's kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub(super) delta: u64,
    pub(super) tables: Tables,
    /// The list of its modules.
    pub modules: Option<u64>,
    /// Its unwind tables.
    pub orc: Option<Orc>,
    /// Code that stays, and code of the start.
    pub(super) text: [Range<u64>; 2],
}

impl Kernel {
    /// Finds it from what a vCPU's registers say.
    ///
    /// # Errors
    /// Why there are no names, in words.
    pub fn find<M: Physical>(
        space: &Space<'_, M>,
        view: &VcpuView,
    ) -> Result<Kernel, &'static str> {
        // A kernel that has not set LSTAR is at its start; then its own code is the best to know.
        let code = if view.lstar == 0 {
            view.rip
        } else {
            view.lstar
        };
        if code < KERNEL_MAP {
            return Err("the guest has no Linux kernel of x86-64 yet");
        }
        let unmapped = "the guest's kernel is not mapped where the registers say";
        let image = Image::around(space, code).map_err(|_| unmapped)?;
        let kernels = space.kernel_half();
        let mapped = |at| space.translate(at).is_ok() || kernels.translate(at).is_ok();
        let symbols = Kallsyms::find(&image, code, mapped)
            .ok_or("the guest's kernel has no kallsyms of a form that is known here")?;
        let names = [
            "__start_orc_unwind_ip",
            "__stop_orc_unwind_ip",
            "__start_orc_unwind",
            "_stext",
            "_etext",
            "_sinittext",
            "_einittext",
            "modules",
        ];
        let [
            ips,
            ips_end,
            entries,
            text,
            text_end,
            init,
            init_end,
            modules,
        ] = symbols.addresses(names);
        let orc = match (ips, ips_end, entries) {
            (Some(ips), Some(end), Some(entries)) => Orc::find(&image, ips, end, entries),
            _ => None,
        };
        let range = |from: Option<u64>, to: Option<u64>| from.unwrap_or(0)..to.unwrap_or(0);
        let kernel = Kernel {
            delta: image.delta(),
            tables: symbols.tables(),
            modules,
            orc,
            text: [range(text, text_end), range(init, init_end)],
        };
        if kernel.is_that_of(&symbols, view) {
            Ok(kernel)
        } else {
            Err("the guest's kallsyms does not fit the kernel that runs")
        }
    }

    /// The image in guest memory.
    pub fn image<'a, M: Physical>(&self, memory: &'a M) -> Image<'a, M> {
        Image::at(memory, self.delta)
    }

    /// Its symbols, if they are still there and still those of the kernel that runs.
    pub fn symbols<'a, M: Physical>(
        &self,
        image: &'a Image<'a, M>,
        view: &VcpuView,
    ) -> Option<Kallsyms<'a, M>> {
        let symbols = Kallsyms::open(image, self.tables)?;
        self.is_that_of(&symbols, view).then_some(symbols)
    }

    fn is_that_of<M: Physical>(&self, symbols: &Kallsyms<'_, M>, view: &VcpuView) -> bool {
        if view.lstar == 0 {
            return true;
        }
        let entry = symbols.symbol(view.lstar);
        entry.is_some_and(|entry| entry.offset == 0 && entry.name.starts_with(SYSCALL_ENTRY))
    }

    /// Whether the kernel's image has code there.
    pub fn is_text(&self, address: u64) -> bool {
        self.text.iter().any(|range| range.contains(&address))
    }
}
