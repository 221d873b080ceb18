//! Bodies: null means absent, unknown fields are refused, nothing makes parsing panic.

use proptest::prelude::*;

use super::*;

fn drive(body: &str) -> Result<DriveWire, WireError> {
    parse(body.as_bytes())
}

#[test]
fn null_means_absent() {
    let with = r#"{"drive_id":"a","is_root_device":true,"path_on_host":"/d","partuuid":null,
        "cache_type":null,"is_read_only":null,"rate_limiter":null,"io_engine":null,"socket":null}"#;
    let without = r#"{"drive_id":"a","is_root_device":true,"path_on_host":"/d"}"#;
    assert_eq!(drive(with).unwrap(), drive(without).unwrap());
    let logger: LoggerWire = parse(
        br#"{"log_path":null,"level":null,"show_level":null,
        "show_log_origin":null,"module":null}"#,
    )
    .unwrap();
    assert_eq!(logger, LoggerWire::default());
    let machine: MachineConfigWire = parse(br#"{"vcpu_count":null,"numa_node":null}"#).unwrap();
    assert_eq!(machine, MachineConfigWire::default());
}

#[test]
fn mac_addresses_are_six_hex_bytes() {
    let mac: MacWire = "06:00:AC:10:00:02".parse().unwrap();
    assert_eq!(mac.to_string(), "06:00:ac:10:00:02");
    for text in [
        "",
        "06:00:ac:10:00",
        "06:00:ac:10:00:02:03",
        "6:0:ac:10:0:2",
        "+6:00:ac:10:00:02",
    ] {
        assert!(text.parse::<MacWire>().is_err(), "{text}");
    }
}

#[test]
fn levels_are_taken_in_any_case() {
    for (text, level) in [
        ("Warning", LevelWire::Warning),
        ("WARN", LevelWire::Warning),
        ("off", LevelWire::Off),
        ("Trace", LevelWire::Trace),
    ] {
        assert_eq!(text.parse::<LevelWire>().unwrap(), level);
    }
    assert!(
        "loud"
            .parse::<LevelWire>()
            .unwrap_err()
            .to_string()
            .contains("Warning")
    );
}

#[test]
fn ids_are_of_letters_digits_and_underscores() {
    assert!(id::check("a_B9", "drive_id", "a_B9").is_ok());
    assert!(matches!(
        id::check("", "drive_id", "a"),
        Err(WireError::EmptyId)
    ));
    assert!(matches!(
        id::check("a-b", "drive_id", "a-b"),
        Err(WireError::BadId(_))
    ));
    assert!(matches!(
        id::check("é", "drive_id", "é"),
        Err(WireError::BadId(_))
    ));
    assert!(matches!(
        id::check("a", "drive_id", "b"),
        Err(WireError::IdMismatch { .. })
    ));
}

fn parse_all(body: &[u8]) {
    let _ = parse::<MachineConfigWire>(body).map(|wire| wire.put());
    let _ = parse::<DriveWire>(body).map(DriveWire::convert);
    let _ = parse::<NetworkWire>(body).map(NetworkWire::convert);
    let _ = parse::<SerialWire>(body).map(|wire| wire.tidy().limit());
    let _ = parse::<BootSourceWire>(body);
    let _ = parse::<LoggerWire>(body);
    let _ = parse::<ActionWire>(body);
    let _ = parse::<VmWire>(body);
}

const BODIES: [&str; 4] = [
    r#"{"vcpu_count":2,"mem_size_mib":128,"huge_pages":"2M","cpu_affinity":[["0-1"],{}]}"#,
    r#"{"drive_id":"a","is_root_device":true,"path_on_host":"/d","rate_limiter":{"ops":{"size":1,"refill_time":2}}}"#,
    r#"{"iface_id":"a","host_dev_name":"tap0","guest_mac":"06:00:ac:10:00:02","mtu":1500}"#,
    r#"{"log_path":"/x","level":"Info","show_level":true}"#,
];

prop_compose! {
    fn any_drive()(
        drive_id in "[A-Za-z0-9_]{1,20}",
        partuuid in proptest::option::of("[0-9a-f-]{1,36}"),
        is_root_device: bool,
        cache in 0usize..3,
        is_read_only: Option<bool>,
        path in proptest::option::of("/\\PC{0,40}"),
        burst: Option<u64>,
    ) -> DriveWire {
        DriveWire {
            drive_id,
            partuuid,
            is_root_device,
            cache_type: [None, Some(CacheTypeWire::Unsafe), Some(CacheTypeWire::Writeback)][cache],
            is_read_only,
            path_on_host: path.map(Into::into),
            rate_limiter: burst.map(|burst| RateLimiterWire {
                bandwidth: Some(TokenBucketWire { size: 1, one_time_burst: Some(burst), refill_time: 0 }),
                ops: None,
            }),
            io_engine: None,
            num_queues: None,
            socket: None,
        }
    }
}

fn any_limiter() -> impl Strategy<Value = Option<RateLimiterWire>> {
    let bucket = (0u64..3, any::<Option<u64>>(), 0u64..3);
    let bucket =
        prop::option::of(
            bucket.prop_map(|(size, one_time_burst, refill_time)| TokenBucketWire {
                size,
                one_time_burst,
                refill_time,
            }),
        );
    let both = (bucket.clone(), bucket);
    prop::option::of(both.prop_map(|(bandwidth, ops)| RateLimiterWire { bandwidth, ops }))
}

proptest! {
    #[test]
    fn random_bytes_never_panic(body: Vec<u8>) {
        parse_all(&body);
    }

    #[test]
    fn damaged_bodies_never_panic(which in 0..BODIES.len(), at: prop::sample::Index, byte: u8) {
        let mut body = BODIES[which].as_bytes().to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        parse_all(&body);
    }

    #[test]
    fn drives_survive_the_round_trip(drive in any_drive()) {
        let text = serde_json::to_vec(&drive).unwrap();
        prop_assert_eq!(parse::<DriveWire>(&text).unwrap(), drive);
    }

    #[test]
    fn networks_survive_the_round_trip(
        mac: [u8; 6], mtu: Option<u16>, host_dev_name: String, rx in any_limiter(), tx in any_limiter(),
        mac_filter: Option<bool>, queue_pairs: Option<u8>,
    ) {
        let network = NetworkWire {
            iface_id: "a".to_owned(),
            host_dev_name,
            guest_mac: Some(MacWire(mac)),
            mtu,
            rx_rate_limiter: rx,
            tx_rate_limiter: tx,
            mac_filter,
            queue_pairs,
        };
        let text = serde_json::to_vec(&network).unwrap();
        prop_assert_eq!(parse::<NetworkWire>(&text).unwrap(), network);
    }

    /// What is shown after a change is what the device limits to after it, and is taken again.
    #[test]
    fn a_changed_interface_is_shown_as_it_limits(
        rx in any_limiter(), tx in any_limiter(), new_rx in any_limiter(), new_tx in any_limiter(),
    ) {
        let network = NetworkWire {
            iface_id: "a".to_owned(),
            host_dev_name: "tap0".to_owned(),
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: rx,
            tx_rate_limiter: tx,
            mac_filter: None,
            queue_pairs: None,
        };
        let (network, before) = network.convert();
        let patch = NetworkPatchWire {
            iface_id: "a".to_owned(),
            rx_rate_limiter: new_rx,
            tx_rate_limiter: new_tx,
        };
        let change = patch.change();
        let (shown, after) = patch.applied(network).convert();
        prop_assert_eq!(after.rx_limiter, before.rx_limiter.changed(change.rx_limiter));
        prop_assert_eq!(after.tx_limiter, before.tx_limiter.changed(change.tx_limiter));
        let text = serde_json::to_vec(&shown).unwrap();
        let again = parse::<NetworkWire>(&text).unwrap().convert();
        prop_assert_eq!(again, (shown, after));
    }

    #[test]
    fn boot_sources_survive_the_round_trip(path: String, args: Option<String>) {
        let boot = BootSourceWire { kernel_image_path: path.into(), initrd_path: None, boot_args: args };
        let text = serde_json::to_vec(&boot).unwrap();
        prop_assert_eq!(parse::<BootSourceWire>(&text).unwrap(), boot);
    }
}
