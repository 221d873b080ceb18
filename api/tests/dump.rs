//! POST /observe/dump: what is refused, what is told, and that one dump holds nobody else up.

mod support;

use api::events::{DumpStage, Event};
use api::http::Options;
use api::machine::MachineState;
use api::session::Deadlines;
use support::{FakeLauncher, TestServer, request};

fn stages(server: &TestServer) -> Vec<DumpStage> {
    let events = server.events.after(0, 99).events;
    let stages = events.into_iter().filter_map(|told| match told.event {
        Event::Dump { stage, .. } => Some(stage),
        _ => None,
    });
    stages.collect()
}

#[test]
fn a_dump_is_written_after_the_start_and_its_stages_are_told() {
    let server = TestServer::new();
    let path = server.file("dumped");
    let ask = |body: &str| server.ask("POST", "/observe/dump", body);
    let body = format!(r#"{{"kind":"core","path":"{path}"}}"#);
    ask(&body).refuses(&["not supported before starting"]);
    let machine = server.start();
    ask("").refuses(&["json"]);
    ask(r#"{"kind":"cores","path":"/x"}"#).refuses(&["cores", "blackbox"]);
    ask(r#"{"kind":"core"}"#).refuses(&["path"]);
    ask(r#"{"kind":"core","path":"/x","compress":true}"#).refuses(&["compress"]);
    ask(&body).is_204();
    assert_eq!(std::fs::read(&path).unwrap(), b"dump");
    assert_eq!(stages(&server), [DumpStage::Begun, DumpStage::Done]);
    let folder = server.file("");
    let folder = format!(r#"{{"kind":"registers","path":"{folder}"}}"#);
    ask(&folder).refuses(&["writing the dump failed"]);
    let [.., DumpStage::Failed { detail }] = &stages(&server)[..] else {
        panic!("{:?}", stages(&server));
    };
    assert!(detail.contains("directory"), "{detail}");
    machine.set(MachineState::Stopped);
    ask(&body).refuses(&["has ended"]);
}

#[test]
fn one_dump_at_a_time_and_others_are_served_meanwhile() {
    let launcher = FakeLauncher {
        deaf: true,
        ..FakeLauncher::default()
    };
    let server = TestServer::with(launcher, Options::default(), Deadlines::default());
    let machine = server.start();
    let path = server.file("dumped");
    let body = format!(r#"{{"kind":"core","path":"{path}"}}"#);
    let mut first = server.connect();
    first.send(request("POST", "/observe/dump", &body).as_bytes());
    while stages(&server).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    server
        .ask("POST", "/observe/dump", &body)
        .refuses(&["being written", "ask again"]);
    server.ask("GET", "/observe", "").json();
    machine.set(MachineState::Paused);
    first.answer().is_204();
    assert_eq!(stages(&server), [DumpStage::Begun, DumpStage::Done]);
}
