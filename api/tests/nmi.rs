//! POST /observe/nmi.

mod support;

use api::events::Event;
use api::machine::Command;
use support::TestServer;

#[test]
fn an_nmi_is_sent_to_a_started_vm_alone() {
    let server = TestServer::new();
    let ask = |body: &str| server.ask("POST", "/observe/nmi", body);
    ask("").refuses(&["not supported before starting"]);
    let machine = server.start();
    ask("").is_204();
    ask("{}").is_204();
    ask(r#"{"vcpu":1}"#).refuses(&["vcpu"]);
    assert_eq!(*machine.told.lock().unwrap(), [Command::Nmi, Command::Nmi]);
    let events = server.events.after(0, 99).events;
    let asked = events.iter().filter(
        |told| matches!(&told.event, Event::Request { path, .. } if path == "/observe/nmi"),
    );
    assert_eq!(asked.count(), 2);
    server.ask("GET", "/observe/nmi", "").refuses(&["method"]);
}
