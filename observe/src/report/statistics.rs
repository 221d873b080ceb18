//! KVM's own statistics: those that are not 0, or the most telling of them.

use std::collections::BTreeMap;

use super::format::{bytes, span};
use super::page::{Page, Table};
use super::scene::Scene;
use super::vcpus::number;

/// Shown when not all are asked for.
const SHOWN: usize = 10;
/// vCPUs with a column of their own.
const COLUMNS: usize = 8;
/// What tells most, first: exits, halts, faults, interrupts, what should be rare. Names of KVM's.
const TELLING: [&str; 16] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "halt_wait_ns",
    "pf_taken",
    "irq_injections",
    "signal_exits",
    "insn_emulation_fail",
    "remote_tlb_flush",
    "blocking",
    "irq_exits",
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "pf_mmio_spte_created",
];
/// The tables of a section of KVM's statistics that have names of KVM's.
const COLUMNS_OF_KVM: [&str; 2] = ["total", "level"];

/// By statistic: the value of each section that has it, in the order of sections.
type Values = BTreeMap<String, Vec<u64>>;

pub(super) fn show(scene: &Scene<'_>, all: bool, page: &mut Page) {
    let vcpus = collect(scene, "kvm_vcpu");
    let machine = collect(scene, "kvm_vm");
    if vcpus.is_empty() && machine.is_empty() {
        return;
    }
    page.heading("KVM's statistics");
    let count = scene.of_kind("kvm_vcpu").count();
    page.table(table("statistic of vCPUs", &vcpus, count, all));
    page.table(table("statistic of the VM", &machine, 1, all));
    if !all {
        page.line("Not all are shown; --all shows all that are not 0.");
    }
}

fn collect(scene: &Scene<'_>, kind: &str) -> Values {
    let mut values = Values::new();
    for (index, section) in scene.of_kind(kind).enumerate() {
        for field in COLUMNS_OF_KVM {
            for row in section.row_names(field) {
                let value = number(section, field, row);
                let of_row = values.entry(row.to_owned()).or_default();
                of_row.resize(index, 0);
                of_row.push(value);
            }
        }
    }
    values.retain(|_, values| values.iter().any(|value| *value > 0));
    values
}

fn table(title: &str, values: &Values, sections: usize, all: bool) -> Table {
    let several = sections > 1;
    let mut head = vec![title.to_owned(), "all".to_owned()];
    if several {
        head.extend((0..sections.min(COLUMNS)).map(|index| format!("vCPU {index}")));
    }
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new(&head);
    let mut names: Vec<&String> = values.keys().collect();
    if !all {
        let place = |name: &str| TELLING.iter().position(|known| *known == name);
        names.sort_by_key(|name| place(name).unwrap_or(TELLING.len()));
        names.truncate(SHOWN);
    }
    for name in names {
        let of_row = values.get(name).map_or(&[][..], Vec::as_slice);
        let sum = of_row.iter().copied().fold(0, u64::saturating_add);
        let mut cells = vec![name.clone(), amount(name, sum)];
        if several {
            let each = of_row.iter().take(COLUMNS);
            cells.extend(each.map(|value| amount(name, *value)));
        }
        table.row(cells);
    }
    table
}

/// KVM's names end in their unit.
fn amount(name: &str, value: u64) -> String {
    if name.ends_with("_ns") {
        span(value)
    } else if name.ends_with("_bytes") {
        bytes(value)
    } else {
        value.to_string()
    }
}
