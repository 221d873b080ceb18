use super::*;
use proptest::prelude::*;

#[test]
fn schedstat_has_three_numbers() {
    assert_eq!(schedstat("77775 1395992 2\n"), Some([77775, 1_395_992, 2]));
    assert_eq!(schedstat("77775 1395992\n"), None);
    assert_eq!(schedstat("a b c\n"), None);
}

#[test]
fn a_thread_name_may_hold_anything() {
    let rest = "S 1 10747 9194 0 -1 4194304 104 7 3 8 11 22 0 0 20 0 1 0 1712754 3133440 416 \
                18446744073709551615 94160157601792 94160157621673 140727023360848 0 0 0 0 0 0 0 0 0 \
                17 1 0 0 0 33 0 94160157637680 94160157639296 94160970719232 140727023368630\n";
    for comm in ["vcpu-0", "io-a) R 1 2", "((", ""] {
        let text = format!("10751 ({comm}) {rest}");
        let expected = Stat {
            comm,
            state: b'S',
            minor_faults: 104,
            major_faults: 3,
            cpu_ticks: 33,
            guest_ticks: 33,
        };
        assert_eq!(stat(&text), Some(expected));
    }
    assert_eq!(stat("10751 (cat) R 1 2"), None);
    assert_eq!(stat("10751 )cat( R 1 2"), None);
}

const STATUS: &str = "Name:\tcat\nState:\tR (running)\nTgid:\t10751\nVmHWM:\t    1848 kB\n\
    Mems_allowed_list:\t0\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t1\n";

#[test]
fn keys_are_found_whole() {
    let keys = ["nonvoluntary_ctxt_switches", "VmHWM", "voluntary", "State"];
    assert_eq!(
        lookup(STATUS, keys),
        [Some(1), Some(1848 << 10), None, None]
    );
    let meminfo = "MemTotal:       24682416 kB\nHugePages_Total:       3\n";
    let keys = ["MemTotal", "HugePages_Total"];
    assert_eq!(lookup(meminfo, keys), [Some(24_682_416 << 10), Some(3)]);
    let events = "low 0\nhigh 5\nmax 6\noom 1\noom_kill 2\noom_group_kill 0\n";
    assert_eq!(lookup(events, ["oom", "oom_kill"]), [Some(1), Some(2)]);
}

#[test]
fn pressure_is_microseconds_and_hundredths() {
    let text = "some avg10=0.11 avg60=0.25 avg300=2.16 total=1298160685\n\
                full avg10=12.05 avg60=0.00 avg300=0.00 total=7\n";
    let some = Pressure {
        avg10: 11,
        total_us: 1_298_160_685,
    };
    let full = Pressure {
        avg10: 1205,
        total_us: 7,
    };
    assert_eq!(pressure(text), Some((some, Some(full))));
    let old = text.lines().next().unwrap();
    assert_eq!(pressure(old), Some((some, None)));
    assert_eq!(pressure("some avg10=x total=1\n"), None);
    assert_eq!(hundredths("100"), Some(10_000));
    assert_eq!(hundredths("1.5"), Some(150));
}

#[test]
fn steal_is_the_eighth_number() {
    let text = "cpu  1046401 106114 64852 2211658 2672 0 5711 1061 19 0\ncpu0 1 2 3 4 5 6 7 8\n";
    assert_eq!(steal_ticks(text), Some(1061));
    assert_eq!(steal_ticks("cpu0 1 2 3 4 5 6 7 8\n"), None);
}

#[test]
fn unlimited_is_not_a_number() {
    let cases = [
        ("max\n", Some(Limit::None)),
        ("-1\n", Some(Limit::None)),
        ("9223372036854771712\n", Some(Limit::None)),
        ("18446744073709551615\n", Some(Limit::None)),
        ("1073741824\n", Some(Limit::At(1 << 30))),
        ("0\n", Some(Limit::At(0))),
        ("", None),
        ("much\n", None),
    ];
    for (text, expected) in cases {
        assert_eq!(limit(text), expected, "{text}");
    }
    assert_eq!(cpu_max("max 100000\n"), Some((Limit::None, 100_000)));
    assert_eq!(
        cpu_max("50000 100000\n"),
        Some((Limit::At(50_000), 100_000))
    );
    assert_eq!(cpu_max("50000\n"), None);
    assert_eq!(Limit::None.tighter(Limit::At(3)), Limit::At(3));
    assert_eq!(Limit::At(2).tighter(Limit::At(3)), Limit::At(2));
}

/// A host with version 1 controllers and an empty unified hierarchy.
const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

fn levels(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

#[test]
fn version_1_is_used_where_it_is_mounted() {
    let membership = "9:name=systemd:/\n4:memory:/vms/a:b\n2:cpuacct:/\n1:cpu:/\n0::/\n";
    let memory = place(membership, HYBRID, "memory").unwrap();
    let root = "/sys/fs/cgroup/memory";
    let paths = levels(&[
        "/sys/fs/cgroup/memory/vms/a:b",
        "/sys/fs/cgroup/memory/vms",
        root,
    ]);
    assert_eq!((memory.version, memory.levels), (1, paths));
    let cpu = place(membership, HYBRID, "cpu").unwrap();
    assert_eq!(cpu.levels, levels(&["/sys/fs/cgroup/cpu"]));
}

#[test]
fn version_2_is_used_otherwise() {
    let membership = "0::/vm.slice/a b.scope\n";
    let mountinfo =
        "30 23 0:26 / /sys/fs/c\\040group rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    let found = place(membership, mountinfo, "memory").unwrap();
    let paths = levels(&[
        "/sys/fs/c group/vm.slice/a b.scope",
        "/sys/fs/c group/vm.slice",
        "/sys/fs/c group",
    ]);
    assert_eq!((found.version, found.levels), (2, paths));
}

#[test]
fn a_container_sees_only_what_is_below_its_mount() {
    let mountinfo = "30 23 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    let found = |path: &str| place(&format!("4:memory:{path}\n"), mountinfo, "memory");
    let root = "/sys/fs/cgroup/memory";
    assert_eq!(found("/docker/abc").unwrap().levels, levels(&[root]));
    let inner = found("/docker/abc/vm").unwrap().levels;
    assert_eq!(inner, levels(&["/sys/fs/cgroup/memory/vm", root]));
    assert_eq!(found("/docker/abcd"), None);
    assert_eq!(found("/docker/abc/../x"), None);
    assert_eq!(place("0::/\n", "", "cpu"), None);
}

const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
KernelPageSize:        4 kB
Rss:                2052 kB
Private_Dirty:      2052 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                 16 kB
SwapPss:              16 kB
Locked:                4 kB
VmFlags: rd wr mr mw me ac
7f0000400000-7f0000800000 rw-s 00000000 00:0f 99                         /anon: hugepage (deleted)
Rss:                   0 kB
Private_Hugetlb:    2048 kB
Shared_Hugetlb:     2048 kB
";

#[test]
fn smaps_is_read_mapping_by_mapping() {
    let mut smaps = Smaps::default();
    let mut found: Vec<Vma> = SMAPS.lines().filter_map(|line| smaps.line(line)).collect();
    found.extend(smaps.finish());
    let first = Usage {
        resident: 2052 << 10,
        swapped: 16 << 10,
        anonymous_huge: 2 << 20,
        shared_huge: 0,
        hugetlb: 0,
        locked: 4 << 10,
    };
    let second = Usage {
        hugetlb: 4 << 20,
        ..Usage::default()
    };
    let vma = |start, usage| Vma {
        start,
        end: start + (4 << 20),
        usage,
    };
    assert_eq!(
        found,
        [vma(0x7f00_0000_0000, first), vma(0x7f00_0040_0000, second)]
    );
    let mut half = Usage::default();
    half.add_share(&first, 2 << 20, 4 << 20);
    assert_eq!((half.resident, half.swapped), (1026 << 10, 8 << 10));
    half.add_share(&first, 1, 0);
    assert_eq!(half.resident, 1026 << 10);
}

fn read_everything(text: &str) {
    let _ = (schedstat(text), stat(text), pressure(text), number(text));
    let _ = (
        limit(text),
        cpu_max(text),
        steal_ticks(text),
        lookup(text, ["a", "Rss"]),
    );
    let _ = (
        place(text, text, "cpu"),
        place(text, HYBRID, "memory"),
        unescaped(text),
    );
    let mut smaps = Smaps::default();
    let mut sum = Usage::default();
    for vma in text.lines().filter_map(|line| smaps.line(line)) {
        sum.add_share(&vma.usage, vma.start, vma.end);
    }
    let _ = smaps.finish();
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in any::<String>()) {
        read_everything(&text);
    }

    #[test]
    fn no_damage_to_a_real_file_makes_a_parser_panic(
        which in 0usize..4,
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), "[ -~\\n]{0,6}"), 0..6),
    ) {
        let mut text = [STATUS, HYBRID, SMAPS, "0::/a\nsome avg10=1.2 total=3\n"][which].to_owned();
        for (at, put) in cuts {
            let at = at.index(text.len() + 1);
            let end = (at + put.len() / 2).min(text.len());
            text.replace_range(at..end, &put);
        }
        read_everything(&text);
    }
}
