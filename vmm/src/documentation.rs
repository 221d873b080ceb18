//! That docs/observe.md tells of each metric of a VM, and of none that is not there.

use std::collections::BTreeSet;

use devices::legacy::{ConsoleBlock, PvpanicBlock, WatchBlock};
use devices::virtio::{
    BalloonBlock, DeviceBlock, QueueBlock, ThreadBlock, TransportBlock, VsockBlock,
};
use observe::Section;
use observe::host::{CgroupBlock, HostBlock, MemoryBlock, PsiBlock, TaskBlock};
use observe::ledger::LedgerBlock;
use observe::openmetrics::{MetricType, families_of};
use observe::sight::SightBlock;
use observe::verdict::ThresholdsBlock;

use crate::machine::facts::MachineBlock;
use crate::vcpu::counters::VcpuBlock;
use crate::watcher::kicks::KickBlock;
use crate::watcher::kvm_table::{KvmVcpuBlock, KvmVmBlock};

const PAGE: &str = include_str!("../../docs/observe.md");

/// What a row of the page begins with for each metric of `T`: the name of the sample without
/// `vitrine_KIND_`, and the labels that the section's instance does not have.
fn metrics<T: Section>() -> BTreeSet<String> {
    let prefix = format!("vitrine_{}_", T::KIND);
    let families = families_of::<T>().into_iter().map(|family| {
        let total = match family.metric_type {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            MetricType::Gauge | MetricType::Histogram => "",
        };
        let name = family.name.strip_prefix(&prefix).expect("the kind");
        let own = family.labels.iter().skip(T::INSTANCE.len());
        let labels: String = own.map(|label| format!(" {{{label}}}")).collect();
        format!("`{name}{total}`{labels}")
    });
    families.collect()
}

/// The first cells of the table under `vitrine_KIND_...`.
fn documented(kind: &str) -> BTreeSet<String> {
    let head = format!("| `vitrine_{kind}_...` |");
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(&head));
    assert!(lines.next().is_some(), "no table for {kind}");
    let rows = lines.take_while(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.split('|').nth(1).expect("a cell").trim().to_owned())
        .collect()
}

fn check<T: Section>() {
    let (there, told) = (metrics::<T>(), documented(T::KIND));
    let kind = T::KIND;
    let silent: Vec<_> = there.difference(&told).collect();
    assert!(silent.is_empty(), "{kind}: not documented: {silent:?}");
    let invented: Vec<_> = told.difference(&there).collect();
    assert!(invented.is_empty(), "{kind}: do not exist: {invented:?}");
    for name in &there {
        assert!(name.matches("bytes").count() <= 1, "{kind}: {name}");
    }
}

#[test]
fn the_page_on_metrics_has_each_of_them_and_no_others() {
    check::<MachineBlock>();
    check::<VcpuBlock>();
    check::<QueueBlock>();
    check::<KickBlock>();
    check::<DeviceBlock>();
    check::<TransportBlock>();
    check::<BalloonBlock>();
    check::<VsockBlock>();
    check::<ThreadBlock>();
    check::<ConsoleBlock>();
    check::<PvpanicBlock>();
    check::<WatchBlock>();
    check::<KvmVmBlock>();
    check::<KvmVcpuBlock>();
    check::<TaskBlock>();
    check::<PsiBlock>();
    check::<CgroupBlock>();
    check::<HostBlock>();
    check::<MemoryBlock>();
    check::<LedgerBlock>();
    check::<SightBlock>();
    check::<ThresholdsBlock>();
    assert_eq!(PAGE.matches("_...` |").count(), 22, "a table for no block");
}
