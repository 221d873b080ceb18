use super::*;
use crate::events::RunWire;
use crate::machine::{Command, MachineState, Reply};
use vmm::observe::reader::Snapshot;
use vmm::observe::verdict::{Code, Subject, Verdict};
use vmm::{BalloonOrder, DumpKind, Standing};

/// A balloon of this many MiB is refused.
pub(super) const TOO_MUCH: u32 = 999;

/// A VM that does nothing.
struct Still(u64, Arc<Mutex<Vec<String>>>);

impl Machine for Still {
    fn command(&self, command: Command, reply: Reply) {
        reply(match command {
            Command::Balloon(BalloonOrder::Resize { mib: TOO_MUCH }) => Err("too much".into()),
            _ => Ok(()),
        });
    }
    fn change_device(&self, _: &str, _: vmm::DeviceChange, reply: Reply) {
        reply(Ok(()));
    }
    fn fail(&self, reason: String) {
        self.1.lock().unwrap().push(reason);
    }
    fn state(&self) -> MachineState {
        MachineState::Running
    }
    fn openmetrics(&self) -> Result<String, MachineError> {
        Ok(format!("run {}", self.0))
    }
    fn snapshot(&self) -> Result<Snapshot, MachineError> {
        Err("still".into())
    }
    fn standing(&self) -> Arc<Standing> {
        Arc::default()
    }
    fn dump(&self, _: DumpKind, _: &Path, _: &mut dyn FnMut(u64, u64)) -> Result<(), MachineError> {
        Err("still".into())
    }
    fn dump_deadline(&self) -> Duration {
        Duration::ZERO
    }
    fn black_box(&self) -> String {
        String::new()
    }
}

#[derive(Default)]
pub(super) struct Makes {
    made: Mutex<u64>,
    fails: Mutex<bool>,
    /// What the newest was made of.
    pub spec: Mutex<Option<VmSpec>>,
    /// Reasons for which VMs were made to fail.
    given_up: Arc<Mutex<Vec<String>>>,
}

impl Launcher for Arc<Makes> {
    fn launch(&self, spec: VmSpec) -> Result<Arc<dyn Machine>, MachineError> {
        if *self.fails.lock().unwrap() {
            return Err("the tap is gone".into());
        }
        *self.spec.lock().unwrap() = Some(spec);
        let mut made = self.made.lock().unwrap();
        *made += 1;
        Ok(Arc::new(Still(*made, Arc::clone(&self.given_up))))
    }
}

pub(super) struct Test {
    pub keeper: Keeper,
    pub makes: Arc<Makes>,
    events: Arc<EventLog>,
}

pub(super) fn keeper(policy: &str) -> Test {
    let (makes, events) = (Arc::<Makes>::default(), Arc::<EventLog>::default());
    let rulebook = Arc::<Rulebook>::default();
    rulebook.set(crate::wire::policy::parse(policy.as_bytes()).unwrap());
    let keeper = Keeper::new(Arc::clone(&makes), Arc::clone(&events), rulebook);
    Test {
        keeper,
        makes,
        events,
    }
}

pub(super) fn spec() -> VmSpec {
    VmSpec::new("vm1", vmm::BootSpec::default())
}

impl Test {
    fn started(policy: &str) -> (Test, Arc<dyn Machine>) {
        let test = keeper(policy);
        let machine = test.keeper.launch(spec()).unwrap();
        (test, machine)
    }

    pub fn fails(&self) -> Next {
        self.keeper.ended(Ending::Failed("it broke".to_owned()))
    }

    /// The last event, which has to be the end, with its runs.
    fn end(&self) -> (bool, String, Vec<RunWire>) {
        let told = self.events.after(0, 99);
        assert!(told.is_last, "{told:?}");
        match told.events.last().unwrap().event.clone() {
            Event::Ended {
                failed,
                detail,
                runs,
            } => (failed, detail, runs),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn wait(ms: u64) -> Next {
    Next::Wait(Duration::from_millis(ms))
}

#[test]
fn by_default_a_vm_ends_once() {
    for (ending, expected) in [
        (
            Ending::Rebooted("reset".into()),
            Ending::Fine("reset".into()),
        ),
        (
            Ending::Panicked("panic".into()),
            Ending::Fine("panic".into()),
        ),
        (Ending::Fine("off".into()), Ending::Fine("off".into())),
        (Ending::Failed("bad".into()), Ending::Failed("bad".into())),
    ] {
        let (test, _) = Test::started("{}");
        assert_eq!(test.keeper.ended(ending), Next::Over(expected.clone()));
        let (failed, _, runs) = test.end();
        assert_eq!(failed, matches!(expected, Ending::Failed(_)));
        assert!(runs.is_empty() && test.keeper.account().is_empty());
    }
}

#[test]
fn a_vm_that_fails_is_started_again_as_often_as_allowed_and_then_left_failed() {
    let policy = r#"{"restart": {"at_most": 3, "first_wait_ms": 10, "longest_wait_ms": 30}}"#;
    let (test, machine) = Test::started(policy);
    for (run, ms) in [(1, 10), (2, 20), (3, 30)] {
        assert_eq!(machine.openmetrics().unwrap(), format!("run {run}"));
        assert_eq!(machine.runs().number, run);
        assert_eq!(test.fails(), wait(ms));
        assert_eq!(machine.state(), MachineState::Waiting);
        let told = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&told);
        let reply = move |done: Result<(), MachineError>| {
            *heard.lock().unwrap() = done.unwrap_err().to_string();
        };
        machine.command(Command::Pause, Box::new(reply));
        assert!(told.lock().unwrap().contains("started again in a while"));
        test.keeper.again().unwrap();
        assert_eq!(machine.state(), MachineState::Running);
    }
    let Next::Over(Ending::Failed(why)) = test.fails() else {
        panic!("a fourth restart");
    };
    assert!(
        why.starts_with("it broke; it is not started again, for the policy allows 3 "),
        "{why}"
    );
    assert_eq!(machine.runs().restarts, [3, 0, 0, 0]);
    let (failed, detail, runs) = test.end();
    assert!(failed && detail == why);
    let numbers: Vec<u64> = runs.iter().map(|run| run.run).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let account = test.keeper.account();
    assert_eq!(account.len(), 4);
    assert!(
        account[3].starts_with("run 4: began ") && account[3].contains("it broke; no black box"),
        "{account:?}"
    );
    let kinds = test.events.after(0, 99).events;
    let waits: Vec<u64> = kinds
        .iter()
        .filter_map(|told| match told.event {
            Event::Restarting { wait_ms, .. } => Some(wait_ms),
            _ => None,
        })
        .collect();
    assert_eq!(waits, [10, 20, 30]);
}

#[test]
fn a_reboot_is_no_death_and_a_panic_is_no_reboot() {
    let policy = r#"{"on_reboot": "restart", "restart": {"at_most": 1, "first_wait_ms": 0}}"#;
    let (test, machine) = Test::started(policy);
    for _ in 0..5 {
        assert_eq!(test.keeper.ended(Ending::Rebooted("reset".into())), wait(0));
        test.keeper.again().unwrap();
    }
    assert_eq!(test.keeper.ended(Ending::Panicked("panic".into())), wait(0));
    test.keeper.again().unwrap();
    assert_eq!(machine.runs().restarts, [0, 1, 5, 0]);
    let Next::Over(Ending::Failed(why)) = test.keeper.ended(Ending::Panicked("panic".into()))
    else {
        panic!("a second restart after a panic");
    };
    assert!(why.starts_with("panic; "), "{why}");
    let only_reboots = Test::started(r#"{"on_reboot": "restart"}"#).0;
    let over = only_reboots.keeper.ended(Ending::Panicked("panic".into()));
    assert_eq!(over, Next::Over(Ending::Failed("panic".into())));
}

#[test]
fn a_run_that_cannot_begin_counts_as_a_death_and_a_first_one_does_not() {
    let policy = r#"{"restart": {"at_most": 2, "first_wait_ms": 1}}"#;
    let test = keeper(policy);
    *test.makes.fails.lock().unwrap() = true;
    assert!(test.keeper.launch(spec()).is_err());
    *test.makes.fails.lock().unwrap() = false;
    let machine = test.keeper.launch(spec()).unwrap();
    assert_eq!(machine.runs().number, 1);
    assert_eq!(test.fails(), wait(1));
    *test.makes.fails.lock().unwrap() = true;
    assert!(test.keeper.again().is_err());
    assert_eq!(machine.state(), MachineState::Waiting);
    assert_eq!(test.fails(), wait(2));
    assert_eq!(machine.runs().number, 2);
    assert!(test.keeper.again().is_err());
    assert!(matches!(test.fails(), Next::Over(Ending::Failed(_))));
}

#[test]
fn a_stop_while_it_waits_is_a_fine_end() {
    let (test, _) = Test::started(r#"{"restart": {"at_most": 1}}"#);
    assert_eq!(test.fails(), wait(1000));
    test.keeper.give_up();
    let (failed, detail, runs) = test.end();
    assert!(!failed && detail.contains("before it was started again"));
    assert!(runs.is_empty(), "there was one run");
}

/// Waits until the events hold so many actions; gives them.
pub(super) fn actions(test: &Test, count: usize) -> Vec<(String, Option<String>)> {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let events = test.events.after(0, 99).events;
        let actions: Vec<_> = events
            .into_iter()
            .filter_map(|told| match told.event {
                Event::Action { action, error, .. } => Some((action.to_owned(), error)),
                _ => None,
            })
            .collect();
        if actions.len() >= count {
            return actions;
        }
        assert!(std::time::Instant::now() < end, "{actions:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn raised(code: Code) -> Change {
    let summary = "it spins".to_owned();
    Change::Raised(Verdict::new(code, Subject::vcpu(0), 0, summary))
}

#[test]
fn actions_are_done_in_order_once_and_a_restart_ends_the_run() {
    let policy = r#"{"verdicts": {"vcpu-spin": ["nmi", {"wait_ms": 1},
        {"dump": "registers", "path": "/no/such/file"}, "restart"], "exit-storm": ["pause"],
        "vcpu-dead-halt": ["reset"]}, "restart": {"at_most": 2, "first_wait_ms": 50}}"#;
    let (test, machine) = Test::started(policy);
    for _ in 0..3 {
        test.keeper.heard(&raised(Code::VcpuSpin));
    }
    let done = actions(&test, 4);
    let names: Vec<&str> = done.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["nmi", "wait", "dump", "restart"]);
    let errors: Vec<Option<&str>> = done.iter().map(|(_, error)| error.as_deref()).collect();
    assert_eq!(errors, [None, None, Some("still"), None]);
    let given_up = || {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(reason) = test.makes.given_up.lock().unwrap().pop() {
                return reason;
            }
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let reason = given_up();
    assert_eq!(
        reason,
        "vcpu-spin vcpu/0: it spins; the policy says restart"
    );
    assert_eq!(test.keeper.ended(Ending::Failed(reason)), wait(50));
    test.keeper.again().unwrap();
    assert_eq!(machine.runs().restarts, [0, 0, 0, 1]);
    // In the next run the same verdict is a new one. A reset does not wait, and counts.
    test.keeper.heard(&raised(Code::VcpuDeadHalt));
    assert_eq!(test.keeper.ended(Ending::Failed(given_up())), wait(0));
    assert_eq!(machine.runs().restarts, [0, 0, 0, 2]);
    test.keeper.again().unwrap();
    test.keeper.heard(&raised(Code::VcpuSpin));
    let over = test.keeper.ended(Ending::Failed(given_up()));
    assert!(matches!(over, Next::Over(Ending::Failed(_))), "{over:?}");
}

#[test]
fn an_action_of_a_run_that_is_over_is_not_done_to_the_next() {
    let policy = r#"{"verdicts": {"vcpu-spin": [{"wait_ms": 300}, "pause", "nmi"]},
        "restart": {"at_most": 1}}"#;
    let (test, _) = Test::started(policy);
    test.keeper.heard(&raised(Code::VcpuSpin));
    assert_eq!(test.fails(), wait(1000));
    test.keeper.again().unwrap();
    let late = actions(&test, 3);
    for (name, error) in &late[1..] {
        let error = error.as_deref().unwrap();
        assert!(error.contains("is over"), "{name}: {error}");
    }
}
