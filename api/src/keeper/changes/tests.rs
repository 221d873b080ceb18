use vmm::observe::verdict::Code;

use super::*;
use crate::keeper::Next;
use crate::keeper::tests::{TOO_MUCH, Test, actions, keeper, raised, spec};
use crate::machine::{Command, Launcher, Machine};

const RESTARTS: &str =
    r#"{"restart": {"at_most": 9}, "verdicts": {"guest-oom-soon": ["deflate"]}}"#;

#[test]
fn a_drive_that_was_changed_is_so_in_the_next_run() {
    let bucket = |size| {
        Some(vmm::BucketSpec {
            size,
            one_time_burst: 0,
            refill_ms: 10,
        })
    };
    let test = keeper(RESTARTS);
    let mut wanted = spec();
    wanted.drives = ["a", "b"]
        .map(|id| vmm::DriveSpec {
            id: id.to_owned(),
            path: "/old".into(),
            read_only: false,
            root: false,
            partuuid: None,
            cache: vmm::Cache::Unsafe,
            engine: vmm::IoEngine::Sync,
            limiter: vmm::LimiterSpec {
                bandwidth: bucket(5),
                ops: None,
            },
            queues: 1,
        })
        .to_vec();
    // Interfaces have ids of their own.
    wanted.networks = [("c", None), ("b", bucket(3))]
        .map(|(id, ops)| vmm::NetSpec {
            id: id.to_owned(),
            tap: "tap".to_owned(),
            mac: None,
            mtu: None,
            rx_limiter: vmm::LimiterSpec {
                bandwidth: None,
                ops,
            },
            tx_limiter: vmm::LimiterSpec::default(),
            mac_filter: false,
            queues: 1,
        })
        .to_vec();
    let machine = test.keeper.launch(wanted.clone()).unwrap();
    let change = DeviceChange::Drive(vmm::DriveChange {
        path: Some("/new".into()),
        limiter: vmm::LimiterSpec {
            bandwidth: None,
            ops: bucket(7),
        },
    });
    machine.change_device("b", change, Box::new(|done| assert!(done.is_ok())));
    let change = DeviceChange::Network(vmm::NetChange {
        rx_limiter: vmm::LimiterSpec {
            bandwidth: bucket(9),
            ops: None,
        },
        ..vmm::NetChange::default()
    });
    machine.change_device("b", change, Box::new(|done| assert!(done.is_ok())));
    assert!(matches!(test.fails(), Next::Wait(_)));
    test.keeper.again().unwrap();
    let kept = test.makes.spec.lock().unwrap().clone().unwrap();
    let limits = |network: &vmm::NetSpec| (network.rx_limiter, network.tx_limiter);
    let networks: Vec<_> = kept.networks.iter().map(limits).collect();
    let none = vmm::LimiterSpec::default();
    let changed = vmm::LimiterSpec {
        bandwidth: bucket(9),
        ops: bucket(3),
    };
    assert_eq!(networks, [(none, none), (changed, none)]);
    let kept = kept.drives;
    wanted.drives[1].path = "/new".into();
    wanted.drives[1].limiter.ops = bucket(7);
    assert_eq!(kept, wanted.drives);
}

/// The balloon of the run that follows: its size and its interval.
fn next_balloon(test: &Test) -> Option<(u32, u16)> {
    assert!(matches!(test.fails(), Next::Wait(_)));
    test.keeper.again().unwrap();
    let spec = test.makes.spec.lock().unwrap().clone().unwrap();
    spec.balloon
        .map(|balloon| (balloon.target_mib, balloon.statistics_s))
}

fn tell(machine: &dyn Machine, order: BalloonOrder, is_done: bool) {
    let reply = move |done: Result<(), _>| assert_eq!(done.is_ok(), is_done, "{done:?}");
    machine.command(Command::Balloon(order), Box::new(reply));
}

#[test]
fn a_balloon_that_a_client_changed_is_so_in_the_next_run() {
    let test = keeper(RESTARTS);
    let mut wanted = spec();
    wanted.balloon = Some(vmm::BalloonSpec {
        target_mib: 3,
        statistics_s: 1,
        ..vmm::BalloonSpec::default()
    });
    let machine = test.keeper.launch(wanted).unwrap();
    assert_eq!(next_balloon(&test), Some((3, 1)));
    tell(&*machine, BalloonOrder::Resize { mib: 7 }, true);
    tell(&*machine, BalloonOrder::Resize { mib: TOO_MUCH }, false);
    tell(&*machine, BalloonOrder::Poll { seconds: 5 }, true);
    tell(&*machine, BalloonOrder::StopHinting, true);
    assert_eq!(next_balloon(&test), Some((7, 5)));
    assert_eq!(next_balloon(&test), Some((7, 5)), "and in all that follow");
}

#[test]
fn a_balloon_that_the_policy_deflated_is_as_its_client_set_it_in_the_next_run() {
    let test = keeper(RESTARTS);
    let mut wanted = spec();
    wanted.balloon = Some(vmm::BalloonSpec {
        target_mib: 3,
        ..vmm::BalloonSpec::default()
    });
    test.keeper.launch(wanted).unwrap();
    test.keeper.heard(&raised(Code::GuestOomSoon));
    let done = actions(&test, 1);
    assert_eq!(done, [("deflate".to_owned(), None)]);
    assert_eq!(next_balloon(&test), Some((3, 0)));
}

#[test]
fn a_vm_without_a_balloon_gets_none() {
    let test = keeper(RESTARTS);
    let machine = test.keeper.launch(spec()).unwrap();
    tell(&*machine, BalloonOrder::Resize { mib: 7 }, true);
    assert_eq!(next_balloon(&test), None);
}
