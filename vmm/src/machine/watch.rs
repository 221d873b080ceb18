//! What the watcher of a machine looks at.

use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use memory::GuestRam;
use observe::BlackBox;
use observe::host::{HostSampler, MemorySampler, TaskSampler};
use observe::ledger::LedgerSampler;
use observe::reader::Follower;
use observe::sight::Suspicion;
use observe::verdict::ThresholdsWriter;

use super::virtio;
use crate::spec::VmSpec;
use crate::vm::{LaunchError, open_reader};
use crate::watcher::judge::{self, Judge, Owner};
use crate::watcher::kicks::{Kick, KickSampler};
use crate::watcher::kvm_table::{KvmSampler, KvmVcpuBlock};
use crate::watcher::look::{Inspection, Looker, Watched};
use crate::watcher::samples::{Rows, Samples};
use crate::watcher::signals::SignalProbes;
use crate::watcher::{Source, Watcher};

/// Starts the watcher, with a source for all that it looks at. Threads first: the ledger relates
/// what comes after to the moment at which they were looked at.
///
/// # Errors
/// [`LaunchError`] when the black box is full or the host has no thread left.
pub fn watcher(
    spec: &VmSpec,
    vm: &VmFd,
    fds: &[VcpuFd],
    (ram, kicks): (&Arc<GuestRam>, Vec<Kick>),
    black_box: &mut BlackBox,
    owner: &Owner,
) -> Result<Watcher, LaunchError> {
    // By the number of a source in the heartbeat, from 1.
    let names = [
        "", "task", "kvm", "host", "memory", "kicks", "samples", "look", "judge",
    ];
    let names = names.map(ToOwned::to_owned);
    let block = black_box.section("thread/watcher", &[("reason", &names)])?;
    let mut tasks = TaskSampler::new(black_box, &threads(spec))?;
    let mut of_vm = KvmSampler::of_vm(vm, black_box)?;
    let mut of_vcpus = Vec::new();
    for (index, fd) in fds.iter().enumerate() {
        of_vcpus.extend(KvmSampler::of_vcpu(fd, index, black_box)?);
    }
    let mut host = HostSampler::new(black_box)?;
    let mut memory = MemorySampler::new(black_box, &regions(ram))?;
    let mut kicks = KickSampler::new(black_box, kicks)?;
    let mut follower = Follower::new(open_reader(black_box)?, judge::is_wanted);
    let mut ledger = LedgerSampler::new(black_box, fds.len())?;
    let thresholds = ThresholdsWriter::new(black_box)?;
    let mut judge = Judge::new(owner.clone(), Arc::clone(&spec.limits), thresholds);
    let rows = Rows {
        tasks: &tasks,
        kvm: of_vcpus.first(),
    };
    let samples = Samples::new(black_box, rows)?;
    let watched = watched(fds.len(), black_box, &tasks, &of_vcpus)?;
    let eye = Inspection::new(owner.inbox.clone(), Arc::downgrade(ram));
    let mut looker = Looker::new(eye, watched, Arc::clone(&spec.limits));
    let kvm = move || {
        of_vm.iter_mut().for_each(KvmSampler::sample);
        of_vcpus.iter_mut().for_each(KvmSampler::sample);
    };
    let source = |name, sample| Source { name, sample };
    let sources = vec![
        source("task", Box::new(move || tasks.sample())),
        source("kvm", Box::new(kvm)),
        source("host", Box::new(move || host.sample())),
        source(
            "memory",
            Box::new(move || {
                memory.sample();
            }),
        ),
        source("kicks", Box::new(move || kicks.sample())),
        // After all that it reads.
        source("samples", Box::new(move || samples.sample())),
        // So that it is judged in the same round.
        source("look", Box::new(move || looker.round())),
        source(
            "judge",
            Box::new(move || match follower.snapshot() {
                Ok(snapshot) => {
                    ledger.sample(&snapshot);
                    judge.judge(&snapshot);
                }
                Err(error) => tracing::debug!("the watcher cannot judge: {error}"),
            }),
        ),
    ];
    Watcher::spawn(block, sources).map_err(|source| LaunchError::Refused {
        what: "the watcher thread",
        source,
    })
}

/// The vCPUs that can be looked into when they seem stuck: those of which the host tells enough.
fn watched(
    vcpus: usize,
    black_box: &mut BlackBox,
    tasks: &TaskSampler,
    kvm: &[KvmSampler<KvmVcpuBlock>],
) -> Result<Vec<Watched>, LaunchError> {
    let names = Suspicion::NAMES.map(ToOwned::to_owned);
    let mut all = Vec::new();
    for index in 0..vcpus {
        let Some(probes) = SignalProbes::new(black_box, index, tasks, kvm.get(index)) else {
            continue;
        };
        let block = black_box.section(&format!("sight/{index}"), &[("suspicion", &names)])?;
        let vcpu = u8::try_from(index).unwrap_or(u8::MAX);
        all.push(Watched::new(vcpu, probes, block));
    }
    Ok(all)
}

/// The names of the threads that a VM has, and of those that the process around it may have.
fn threads(spec: &VmSpec) -> Vec<String> {
    let fixed = ["vm", "watcher", "console", "api", "signals", "metrics"];
    let vcpus = (0..spec.vcpus).map(|index| format!("vcpu-{index}"));
    let drives = spec.drives.iter().map(|drive| &drive.id);
    let devices = drives.chain(spec.networks.iter().map(|network| &network.id));
    let devices = devices.cloned().chain(virtio::entropy_name(spec));
    let devices = devices.chain(virtio::vsock_name(spec));
    let devices = devices.map(|id| format!("io-{id}"));
    let balloon = spec.balloon.map(|_| "io-balloon".to_owned());
    let names = fixed.map(ToOwned::to_owned).into_iter();
    names.chain(vcpus).chain(devices).chain(balloon).collect()
}

/// Guest memory, by where it begins in the guest.
fn regions(ram: &GuestRam) -> Vec<(String, usize, usize)> {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    memory::backing::host_ranges(ram)
        .into_iter()
        .map(|(guest, bytes, host)| (format!("{guest:#x}"), size(host), size(bytes)))
        .collect()
}
