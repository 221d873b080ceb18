use super::*;
use crate::spec::{BootSpec, Cache, IoEngine, VmSpec};

fn disk(path: &str) -> DriveSpec {
    DriveSpec {
        id: "d".into(),
        path: path.into(),
        read_only: true,
        root: false,
        partuuid: None,
        cache: Cache::Unsafe,
        engine: IoEngine::Sync,
        limiter: crate::spec::LimiterSpec::default(),
        queues: 1,
    }
}

fn tap(name: &str) -> NetSpec {
    NetSpec {
        id: "n".into(),
        tap: name.into(),
        mac: None,
        mtu: None,
        rx_limiter: crate::spec::LimiterSpec::default(),
        tx_limiter: crate::spec::LimiterSpec::default(),
        mac_filter: false,
        queues: 1,
    }
}

#[test]
fn vcpu_counts_are_1_to_32_and_even_with_smt() {
    assert_eq!(vcpus(1, true).unwrap(), 1);
    assert_eq!(vcpus(32, false).unwrap(), 32);
    for count in [0, 33, 256, u64::MAX] {
        assert!(
            vcpus(count, false)
                .unwrap_err()
                .to_string()
                .contains("give 1 to 32")
        );
    }
    assert!(vcpus(3, true).unwrap_err().to_string().contains("even"));
    assert_eq!(vcpus(3, false).unwrap(), 3);
}

#[test]
fn kernels_that_cannot_be_read_are_named() {
    let absent = kernel(Path::new("/no/such/kernel"))
        .unwrap_err()
        .to_string();
    assert!(
        absent.contains("/no/such/kernel") && absent.contains("No such file"),
        "{absent}"
    );
    let directory = kernel(Path::new("/")).unwrap_err().to_string();
    assert!(directory.contains("is a directory"), "{directory}");
    assert!(
        kernel(Path::new("/dev/null"))
            .unwrap_err()
            .to_string()
            .contains("character device")
    );
    kernel(&std::env::current_exe().unwrap()).unwrap();
}

#[test]
fn drives_are_files_or_block_devices() {
    assert!(
        drive(&disk("/no/such/disk"))
            .unwrap_err()
            .to_string()
            .contains("/no/such/disk")
    );
    assert!(
        drive(&disk("/"))
            .unwrap_err()
            .to_string()
            .contains("a directory")
    );
    let this = std::env::current_exe().unwrap();
    drive(&disk(this.to_str().unwrap())).unwrap();
    for (queues, fits) in [(0, false), (1, true), (8, true), (9, false)] {
        let several = DriveSpec {
            queues,
            ..disk(this.to_str().unwrap())
        };
        assert_eq!(drive(&several).is_ok(), fits, "{queues}");
    }
    let mut odd = disk(this.to_str().unwrap());
    odd.partuuid = Some("a b".into());
    assert!(drive(&odd).unwrap_err().to_string().contains("blkid"));
}

#[test]
fn taps_exist_and_are_taps() {
    assert!(
        net(&tap("nosuchtap0"))
            .unwrap_err()
            .to_string()
            .contains("ip tuntap add dev nosuchtap0")
    );
    for name in ["", "../net", "a name", "longer-than-fifteen"] {
        assert!(
            matches!(net(&tap(name)), Err(SpecError::TapName(_))),
            "{name}"
        );
    }
    if Path::new("/sys/class/net/lo").exists() {
        assert!(matches!(net(&tap("lo")), Err(SpecError::NotTap(_))));
    }
    let small = NetSpec {
        mtu: Some(67),
        ..tap("lo")
    };
    assert!(matches!(net(&small), Err(SpecError::Mtu(67))));
    let group = NetSpec {
        mac: Some([1, 0, 0, 0, 0, 0]),
        ..tap("lo")
    };
    assert!(matches!(net(&group), Err(SpecError::GroupMac(_))));
    let nobodys = NetSpec {
        mac_filter: true,
        ..tap("nosuchtap0")
    };
    assert!(matches!(net(&nobodys), Err(SpecError::FilterWithoutMac(_))));
    let own = NetSpec {
        mac: Some([6, 0, 0, 0, 0, 1]),
        ..nobodys
    };
    assert!(matches!(net(&own), Err(SpecError::TapAbsent(_))));
    for (queues, fits) in [(0, false), (1, true), (8, true), (9, false)] {
        let several = NetSpec {
            queues,
            ..own.clone()
        };
        let judged = net(&several).unwrap_err();
        assert_eq!(matches!(judged, SpecError::TapAbsent(_)), fits, "{queues}");
        let text = judged.to_string();
        assert!(fits || text.contains("give queues from 1 to 8"), "{text}");
    }
}

#[test]
fn outputs_are_files_or_names_of_files() {
    let directory = std::env::temp_dir();
    output("serial_out_path", &directory.join("vitrine-absent-output")).unwrap();
    assert!(
        output("serial_out_path", &directory)
            .unwrap_err()
            .to_string()
            .contains("a directory")
    );
    let nowhere = output("serial_out_path", Path::new("/no/such/directory/out")).unwrap_err();
    assert!(nowhere.to_string().contains("/no/such/directory/out"));
    output("serial_out_path", Path::new("/dev/null")).unwrap();
}

#[test]
fn command_lines_are_printable_and_short() {
    cmdline("console=ttyS0").unwrap();
    assert!(cmdline(&"x".repeat(MAX_CMDLINE + 1)).is_err());
    assert!(
        cmdline("a\nb")
            .unwrap_err()
            .to_string()
            .contains("offset 1")
    );
}

fn problem(change: impl FnOnce(&mut VmSpec)) -> String {
    let this = std::env::current_exe().unwrap();
    let boot = BootSpec {
        kernel: this,
        ..BootSpec::default()
    };
    let mut spec = VmSpec::new("vm_1-a", boot);
    change(&mut spec);
    match spec.validate() {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_vm_id_is_1_to_64_plain_characters() {
    assert_eq!(problem(|_| ()), "");
    assert_eq!(problem(|spec| spec.id = "x".repeat(64)), "");
    for id in ["", "a b", "a/b", "\u{e4}", &"x".repeat(65)] {
        let text = problem(|spec| spec.id = id.to_owned());
        assert!(text.contains("give 1 to 64 of the characters"), "{text}");
    }
}

#[test]
fn ids_of_devices_are_plain_and_differ_and_one_drive_is_the_root() {
    let this = std::env::current_exe().unwrap();
    let drive = |id: &str, root| DriveSpec {
        id: id.to_owned(),
        root,
        ..disk(this.to_str().unwrap())
    };
    let both = |first, second| problem(|spec| spec.drives = vec![first, second]);
    assert_eq!(both(drive("a", true), drive("b", false)), "");
    assert_eq!(
        both(drive("a", false), drive("a", false)),
        "drive_id a is given twice; give each device an id of its own"
    );
    assert!(both(drive("a", true), drive("b", true)).contains("drives a and b are both"));
    for id in ["", "a-b", "a/b"] {
        let text = both(drive("a", false), drive(id, false));
        assert!(text.starts_with(&format!("drive_id {id:?}")), "{text}");
    }
    let interface = |id: &str| NetSpec {
        id: id.to_owned(),
        ..tap("nosuchtap0")
    };
    let text = problem(|spec| spec.networks = vec![interface("e"), interface("e")]);
    assert!(text.starts_with("iface_id e is given twice"), "{text}");
    let text = problem(|spec| spec.networks = vec![interface("e-0")]);
    assert!(text.starts_with("iface_id \"e-0\""), "{text}");
    // The two kinds have names of their own: it is the tap that is wrong.
    let text = problem(|spec| {
        spec.drives = vec![drive("a", false)];
        spec.networks = vec![interface("a")];
    });
    assert!(text.contains("ip tuntap add dev nosuchtap0"), "{text}");
}
