use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;
use crate::blackbox::Meta;
use crate::clock::thread_cpu_ns;
use crate::openmetrics;
use crate::reader::tests::snapshot;
use crate::reader::{SectionView, Snapshot};

/// A folder of its own with made-up files of the kernel, removed with everything in it.
struct Host(PathBuf);

impl Host {
    fn new(name: &str) -> Self {
        let folder = format!("vitrine-host-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        Host(folder)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn roots(&self) -> Roots {
        Roots {
            proc: self.0.join("proc"),
            sys: self.0.join("sys"),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn mount(&self, line: &str, folder: &str, rest: &str) -> String {
        let point = self.0.join(folder);
        format!("{line} / {} rw - {rest}\n", point.display())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn black_box() -> BlackBox {
    let meta = Meta {
        vm_id: "vm".into(),
        version: "1".into(),
    };
    let bytes = BlackBox::capacity_for(section_bytes());
    BlackBox::anonymous(bytes, &meta).unwrap()
}

fn section<'a>(snapshot: &'a Snapshot, name: &str) -> &'a SectionView {
    snapshot.section(name).unwrap()
}

fn row(section: &SectionView, field: &str, row: &str) -> u64 {
    section.table(field, row).unwrap().as_u64().unwrap()
}

fn lone(section: &SectionView, field: &str) -> u64 {
    section.value(field).unwrap().as_u64().unwrap()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Runs `f` on a thread of that name, samples before it ends, and joins it.
fn on_thread(name: &str, sampler: &mut TaskSampler, f: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    let (end, may_end) = channel::<()>();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let thread = thread
        .spawn(move || {
            f();
            done.send(()).unwrap();
            let _ = may_end.recv();
        })
        .unwrap();
    is_done.recv().unwrap();
    // Asleep by now, or soon: the scheduler's numbers are up to date.
    std::thread::sleep(Duration::from_millis(20));
    sampler.sample();
    drop(end);
    thread.join().unwrap();
}

fn burn(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn threads_are_told_apart_by_name_and_their_numbers_outlive_them() {
    let mut black_box = black_box();
    let names = owned(&["vcpu-0", "vcpu-1", "io-a-very-long-name"]);
    let mut sampler = TaskSampler::new(&mut black_box, &names).unwrap();
    on_thread("vcpu-0", &mut sampler, || {
        std::hint::black_box(vec![1u8; 8 << 20]);
        burn(Duration::from_millis(60));
    });
    let first = snapshot(&black_box);
    let task = section(&first, "task");
    let rows: Vec<&str> = task.row_names("cpu").collect();
    assert_eq!(rows, ["vcpu-0", "vcpu-1", "io-a-very-long-name", "other"]);
    assert_eq!(row(task, "threads", "vcpu-0"), 1);
    assert_ne!(row(task, "tid", "vcpu-0"), 0);
    let cpu = row(task, "cpu", "vcpu-0");
    // On a loaded machine the loop may have had little of the time.
    let delay = row(task, "run_delay", "vcpu-0");
    assert!(cpu + delay >= 50_000_000, "{cpu} ns and {delay} ns");
    assert!(row(task, "minor_faults", "vcpu-0") >= 1);
    assert_eq!(row(task, "cpu", "vcpu-1"), 0);
    assert!(row(task, "threads", "other") >= 1);
    assert_ne!(lone(task, "sampled_at"), 0);
    assert_eq!(lone(task, "missing"), 0);

    // Another of the same name is added to it; a name that the kernel cuts is found.
    on_thread("vcpu-0", &mut sampler, || burn(Duration::from_millis(20)));
    on_thread("io-a-very-long-name", &mut sampler, || {});
    // A thread that was joined may still be on its way out.
    let deadline = Instant::now() + Duration::from_secs(5);
    let second = loop {
        sampler.sample();
        let now = snapshot(&black_box);
        if row(section(&now, "task"), "threads", "vcpu-0") == 0 || Instant::now() > deadline {
            break now;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let task = section(&second, "task");
    assert!(row(task, "cpu", "vcpu-0") > cpu);
    assert!(row(task, "timeslices", "io-a-very-long-name") >= 1);
    assert!(row(task, "voluntary_switches", "vcpu-0") >= 1);
    assert_eq!(row(task, "threads", "vcpu-0"), 0);
    assert_eq!(row(task, "tid", "vcpu-0"), 0);
}

#[test]
fn a_thread_without_schedstat_is_measured_in_ticks() {
    let host = Host::new("noschedstat");
    let stat = |ticks: u64| {
        let zeros = "0 ".repeat(27);
        format!("77 (vcpu-0) S 1 1 1 0 -1 0 5 0 2 0 {ticks} 10 {zeros}7 0\n")
    };
    host.write("task/77/stat", &stat(40));
    let mut black_box = black_box();
    let names = owned(&["vcpu-0"]);
    let mut sampler = TaskSampler::in_folder(&mut black_box, &names, host.path("task")).unwrap();
    sampler.sample();
    host.write("task/77/stat", &stat(90));
    host.write(
        "task/77/status",
        "voluntary_ctxt_switches:\t4\nnonvoluntary_ctxt_switches:\t2\n",
    );
    sampler.sample();
    let snapshot = snapshot(&black_box);
    let task = section(&snapshot, "task");
    assert_eq!(row(task, "cpu", "vcpu-0"), 1_000_000_000);
    assert_eq!(row(task, "guest", "vcpu-0"), 70_000_000);
    assert_eq!(row(task, "run_delay", "vcpu-0"), 0);
    assert_eq!(row(task, "major_faults", "vcpu-0"), 2);
    assert_eq!(row(task, "voluntary_switches", "vcpu-0"), 4);
    assert_eq!((row(task, "tid", "vcpu-0"), lone(task, "missing")), (77, 1));
}

#[test]
fn a_cgroup_of_version_2_is_read_with_those_above_it() {
    let host = Host::new("v2");
    host.write("proc/self/cgroup", "0::/vms/a\n");
    let mounts = host.mount("30 23 0:26", "cg", "cgroup2 cgroup2 rw");
    host.write("proc/self/mountinfo", &mounts);
    let a = |name: &str, text: &str| host.write(&format!("cg/vms/a/{name}"), text);
    let cpu_stat = |usage: u64, throttled: u64| {
        format!("usage_usec {usage}\nnr_periods 9\nnr_throttled 3\nthrottled_usec {throttled}\n")
    };
    a("memory.current", "1048576\n");
    a("memory.swap.current", "4096\n");
    a("memory.swap.max", "16384\n");
    a(
        "memory.stat",
        "anon 5\ninactive_anon 9\ninactive_file 300\nactive_file 21\nunevictable 4\n",
    );
    a("memory.max", "max\n");
    a("memory.high", "max\n");
    a("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n");
    a("cpu.stat", &cpu_stat(500, 1000));
    a("cpu.max", "200000 100000\n");
    host.write("cg/vms/memory.max", "8388608\n");
    host.write("cg/vms/cpu.stat", &cpu_stat(9999, 50));
    host.write("cg/vms/cpu.max", "5000 10000\n");
    host.write("cg/cpu.stat", "usage_usec 123456\n");
    let mut black_box = black_box();
    let mut sampler = HostSampler::in_roots(&mut black_box, &host.roots()).unwrap();
    a("cpu.stat", &cpu_stat(700, 1250));
    host.write("cg/vms/cpu.stat", &cpu_stat(19999, 60));
    a("memory.events", "low 0\nhigh 2\nmax 8\noom 1\noom_kill 3\n");
    sampler.sample();
    let first = snapshot(&black_box);
    let cgroup = section(&first, "cgroup");
    let expected = [
        ("memory_version", 2),
        ("cpu_version", 2),
        ("memory_current", 1 << 20),
        ("memory_swap", 4096),
        ("memory_swap_max", 16384),
        ("memory_swap_limited", 1),
        ("memory_reclaimable", 321),
        ("memory_max", 8 << 20),
        ("memory_limited", 1),
        ("memory_high", 0),
        ("memory_high_limited", 0),
        ("cpu_usage", 200_000),
        ("cpu_periods", 0),
        ("cpu_throttled", 260_000),
        ("cpu_quota", 5_000_000),
        ("cpu_period", 10_000_000),
        ("cpu_limited", 1),
        ("moves", 0),
    ];
    for (field, value) in expected {
        assert_eq!(lone(cgroup, field), value, "{field}");
    }
    let events: Vec<u64> = MEMORY_EVENTS
        .map(|event| row(cgroup, "memory_events", event))
        .into();
    assert_eq!(events, [0, 2, 1, 0, 2]);

    // The process is moved: other files, and no counter jumps.
    host.write("cg/b/memory.current", "1\n");
    host.write("cg/b/cpu.stat", &cpu_stat(10_000_000, 10_000_000));
    host.write("proc/self/cgroup", "0::/b\n");
    sampler.sample();
    host.write("cg/b/cpu.stat", &cpu_stat(10_000_001, 10_000_002));
    sampler.sample();
    let second = snapshot(&black_box);
    let cgroup = section(&second, "cgroup");
    assert_eq!(lone(cgroup, "moves"), 1);
    assert_eq!(lone(cgroup, "cpu_usage"), 201_000);
    assert_eq!(lone(cgroup, "cpu_throttled"), 262_000);
    assert_eq!(lone(cgroup, "memory_current"), 1);
    assert_eq!(
        (lone(cgroup, "memory_max"), lone(cgroup, "memory_limited")),
        (0, 0)
    );
    assert_eq!(
        (lone(cgroup, "cpu_quota"), lone(cgroup, "cpu_limited")),
        (0, 0)
    );
}

#[test]
fn a_cgroup_of_version_1_is_read_too() {
    let host = Host::new("v1");
    host.write("proc/self/cgroup", "4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n");
    let mounts = [
        host.mount("1 0 0:1", "memory", "cgroup cgroup rw,memory"),
        host.mount("2 0 0:2", "cpu", "cgroup cgroup rw,cpu,cpuacct"),
        host.mount("3 0 0:3", "unified", "cgroup2 cgroup2 rw"),
    ];
    host.write("proc/self/mountinfo", &mounts.concat());
    host.write("memory/m/memory.usage_in_bytes", "12288\n");
    host.write("memory/m/memory.limit_in_bytes", "9223372036854771712\n");
    host.write("memory/m/memory.stat", "swap 1\ninactive_file 1\nactive_file 2\ntotal_swap 8192\ntotal_inactive_file 40\ntotal_active_file 2\n");
    host.write("memory/m/memory.failcnt", "5\n");
    let oom = |kills: u64| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
    host.write("memory/m/memory.oom_control", &oom(0));
    host.write(
        "cpu/c/cpu.stat",
        "nr_periods 10\nnr_throttled 2\nthrottled_time 1000\n",
    );
    host.write("cpu/c/cpu.cfs_quota_us", "50000\n");
    host.write("cpu/c/cpu.cfs_period_us", "100000\n");
    host.write("cpu/c/cpuacct.usage", "777\n");
    host.write("cpu/cpu.cfs_quota_us", "-1\n");
    let mut black_box = black_box();
    let mut sampler = HostSampler::in_roots(&mut black_box, &host.roots()).unwrap();
    host.write("memory/m/memory.failcnt", "9\n");
    host.write("memory/m/memory.oom_control", &oom(1));
    host.write(
        "cpu/c/cpu.stat",
        "nr_periods 20\nnr_throttled 6\nthrottled_time 3000\n",
    );
    host.write("cpu/c/cpuacct.usage", "1777\n");
    sampler.sample();
    let snapshot = snapshot(&black_box);
    let cgroup = section(&snapshot, "cgroup");
    let expected = [
        ("memory_version", 1),
        ("cpu_version", 1),
        ("memory_current", 12288),
        ("memory_swap", 8192),
        ("memory_swap_limited", 0),
        ("memory_reclaimable", 42),
        ("memory_max", 0),
        ("memory_limited", 0),
        ("cpu_usage", 1000),
        ("cpu_periods", 10),
        ("cpu_throttled_periods", 4),
        ("cpu_throttled", 2000),
        ("cpu_quota", 50_000_000),
        ("cpu_period", 100_000_000),
        ("cpu_limited", 1),
    ];
    for (field, value) in expected {
        assert_eq!(lone(cgroup, field), value, "{field}");
    }
    assert_eq!(row(cgroup, "memory_events", "max"), 4);
    assert_eq!(row(cgroup, "memory_events", "oom_kill"), 1);
}

#[test]
fn pressure_and_the_host_are_counted_from_the_first_reading() {
    let host = Host::new("host");
    let cpu = |total: u64| format!("some avg10=1.50 avg60=0 avg300=0 total={total}\n");
    host.write("proc/pressure/cpu", &cpu(1000));
    host.write(
        "proc/meminfo",
        "MemTotal: 8 kB\nMemAvailable: 4 kB\nSwapTotal: 2 kB\nSwapFree: 1 kB\n",
    );
    host.write(
        "proc/vmstat",
        "pswpin 10\npswpout 20\npgmajfault 30\noom_kill 1\n",
    );
    host.write("proc/stat", "cpu  1 1 1 1 1 1 1 100 0 0\n");
    let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
    host.write(&format!("{pool}/nr_hugepages"), "64\n");
    host.write(&format!("{pool}/free_hugepages"), "60\n");
    host.write(&format!("{pool}/resv_hugepages"), "3\n");
    let mut black_box = black_box();
    let mut sampler = HostSampler::in_roots(&mut black_box, &host.roots()).unwrap();
    host.write("proc/pressure/cpu", &cpu(3500));
    host.write(
        "proc/vmstat",
        "pswpin 11\npswpout 22\npgmajfault 33\noom_kill 5\n",
    );
    host.write("proc/stat", "cpu  1 1 1 1 1 1 1 103 0 0\n");
    sampler.sample();
    let snapshot = snapshot(&black_box);
    let psi = section(&snapshot, "psi");
    assert_eq!(row(psi, "some", "cpu"), 2_500_000);
    assert_eq!(row(psi, "some_avg10", "cpu"), 150);
    let missing = RESOURCES.map(|resource| row(psi, "missing", resource));
    assert_eq!(missing, [0, 1, 1]);
    let told = section(&snapshot, "host");
    let expected = [
        ("missing", 0),
        ("memory", 8192),
        ("memory_available", 4096),
        ("swap", 2048),
        ("swap_free", 1024),
        ("swap_in", 1),
        ("swap_out", 2),
        ("major_faults", 3),
        ("oom_kills", 4),
        ("steal", 30_000_000),
    ];
    for (field, value) in expected {
        assert_eq!(lone(told, field), value, "{field}");
    }
    let pools = ["2M", "1G"].map(|size| {
        let number = |field| row(told, field, size);
        let pages = [
            number("hugepages"),
            number("hugepages_free"),
            number("hugepages_reserved"),
        ];
        (pages, number("hugepages_missing"))
    });
    assert_eq!(pools, [([64, 60, 3], 0), ([0, 0, 0], 1)]);
}

#[test]
fn where_nothing_is_nothing_fails() {
    let host = Host::new("nothing");
    let mut black_box = black_box();
    let mut sampler = HostSampler::in_roots(&mut black_box, &host.roots()).unwrap();
    sampler.sample();
    let mut tasks = TaskSampler::in_folder(&mut black_box, &[], host.path("task")).unwrap();
    tasks.sample();
    let regions = [("ram".to_owned(), 0, 4096)];
    let mut memory = MemorySampler::in_file(&mut black_box, &regions, host.path("smaps")).unwrap();
    assert!(memory.sample());
    let snapshot = snapshot(&black_box);
    assert_eq!(lone(section(&snapshot, "host"), "missing"), 3);
    assert_eq!(lone(section(&snapshot, "cgroup"), "cpu_version"), 0);
    assert_eq!(lone(section(&snapshot, "cgroup"), "memory_version"), 0);
    assert_eq!(row(section(&snapshot, "psi"), "missing", "io"), 1);
    assert_eq!(lone(section(&snapshot, "memory"), "missing"), 1);
    assert_eq!(lone(section(&snapshot, "memory"), "sampled"), 0);
}

/// Two mappings of 4 MiB from 0x10000000 on: all in huge pages, and 1 MiB of small ones.
const SMAPS: &str = "\
10000000-10400000 rw-p 00000000 00:00 0 
Rss:                4096 kB
AnonHugePages:      4096 kB
Swap:                  0 kB
10400000-10800000 rw-s 00000000 00:0f 9 /memfd:ram (deleted)
Rss:                1024 kB
Swap:                512 kB
Private_Hugetlb:    2048 kB
Locked:               64 kB
";

#[test]
fn guest_memory_is_told_region_by_region_and_seldom() {
    let host = Host::new("smaps");
    host.write("smaps", SMAPS);
    let mut black_box = black_box();
    let region = |name: &str, start, mib: usize| (name.to_owned(), start, mib << 20);
    let mut regions = vec![
        region("low", 0x1000_0000, 4),
        region("half", 0x1040_0000, 2),
        region("gone", 0x2000_0000, 4),
    ];
    let more = (regions.len()..MEMORY_ROWS + 1).map(|i| region(&i.to_string(), 0x1000_0000, 2));
    regions.extend(more);
    let mut sampler = MemorySampler::in_file(&mut black_box, &regions, host.path("smaps")).unwrap();
    assert!(sampler.sample());
    assert!(!sampler.sample(), "at once again");
    let snapshot = snapshot(&black_box);
    let memory = section(&snapshot, "memory");
    let usage = |region: &str| {
        [
            "resident",
            "swapped",
            "anonymous_huge",
            "hugetlb",
            "locked",
            "estimated",
        ]
        .map(|field| row(memory, field, region))
    };
    assert_eq!(usage("low"), [4 << 20, 0, 4 << 20, 0, 0, 0]);
    let half = [512 << 10 | 1 << 20, 256 << 10, 0, 1 << 20, 32 << 10, 1];
    assert_eq!(usage("half"), half);
    assert_eq!(usage("gone"), [0; 6]);
    // Two regions have no row of their own.
    assert_eq!(usage("other"), [4 << 20, 0, 4 << 20, 0, 0, 1]);
    assert_eq!(lone(memory, "sampled"), 1);
    assert!(lone(memory, "sampling") > 0 && lone(memory, "sampled_at") > 0);
}

#[test]
fn memory_that_was_touched_is_resident() {
    let touched = vec![1u8; 32 << 20];
    let regions = [("ram".to_owned(), touched.as_ptr().addr(), touched.len())];
    let mut black_box = black_box();
    let mut sampler = MemorySampler::new(&mut black_box, &regions).unwrap();
    assert!(sampler.sample());
    let snapshot = snapshot(&black_box);
    let resident = row(section(&snapshot, "memory"), "resident", "ram");
    let swapped = row(section(&snapshot, "memory"), "swapped", "ram");
    assert!(
        resident + swapped > 30 << 20,
        "{resident} of {}",
        touched.len()
    );
    assert_eq!(lone(section(&snapshot, "memory"), "missing"), 0);
}

#[test]
fn this_host_is_read_and_rendered() {
    let mut black_box = black_box();
    let names: Vec<String> = (0..TASK_ROWS).map(|i| format!("vcpu-{i}")).collect();
    let mut tasks = TaskSampler::new(&mut black_box, &names).unwrap();
    let mut sampler = HostSampler::new(&mut black_box).unwrap();
    let regions: Vec<(String, usize, usize)> = (0..20)
        .map(|i| (format!("region-{i}"), i << 30, 1 << 30))
        .collect();
    let mut memory = MemorySampler::new(&mut black_box, &regions).unwrap();
    let start = thread_cpu_ns();
    for _ in 0..20 {
        tasks.sample();
        sampler.sample();
    }
    let each = (thread_cpu_ns() - start) / 20;
    memory.sample();
    let snapshot = snapshot(&black_box);
    assert!(!snapshot.truncated);
    let host = section(&snapshot, "host");
    assert_eq!(lone(host, "missing"), 0);
    assert!(lone(host, "memory") > lone(host, "memory_available"));
    let mut text = String::new();
    openmetrics::render(&snapshot, &mut text);
    for name in [
        "task_cpu_seconds_total",
        "psi_some_avg10",
        "host_memory_bytes",
    ] {
        assert!(text.contains(&format!("\nvitrine_{name}{{")), "{name}");
    }
    // A sample a second costs about each / 1 s of a CPU; generous, for debug builds under load.
    println!("a sample takes {each} ns");
    assert!(each < 20_000_000, "a sample takes {each} ns");
}
#[test]
fn a_file_that_grows_and_shrinks_is_read_whole() {
    let host = Host::new("file");
    let mut file = file::ProcFile::new(host.path("f"));
    let mut buffer = Vec::new();
    assert_eq!(file.text(&mut buffer), None);
    for length in [10, 100_000, 3] {
        host.write("f", &"x".repeat(length));
        assert_eq!(file.text(&mut buffer).unwrap().len(), length);
    }
    assert_eq!(file::ProcFile::new(Path::new("/")).text(&mut buffer), None);
}
