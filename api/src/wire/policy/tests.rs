use super::*;
use crate::policy::Rulebook;
use vmm::observe::verdict::Thresholds;

fn refusal(value: &Value) -> String {
    of(value).unwrap_err().to_string()
}

#[test]
fn what_is_left_out_has_its_default_and_all_of_it_is_taken_back() {
    let empty = of(&json!({})).unwrap();
    assert_eq!(empty, Policy::default());
    let given = json!({ "thresholds": { "starved_share": 0.5, "spin_ms": 1500, "raise_ms": 0 } });
    let policy = of(&given).unwrap();
    assert_eq!(policy.thresholds.spin_ns, 1_500_000_000);
    assert_eq!(policy.thresholds.raise_ns, 0);
    assert_eq!(
        policy.thresholds.handler_ns,
        Thresholds::default().handler_ns
    );
    let told = document(&policy);
    assert_eq!(told["thresholds"]["starved_share"], 0.5);
    assert_eq!(of(&told).unwrap(), policy);
}

#[test]
fn every_threshold_can_be_set_by_its_name() {
    let debug = format!("{:?}", Thresholds::default());
    let fields = debug.trim_start_matches("Thresholds { ").split(", ");
    let fields = fields.filter_map(|field| field.split_once(':'));
    let expected: Vec<String> = fields.map(|(name, _)| name.replace("_ns", "_ms")).collect();
    assert!(expected.len() > 20, "{debug}");
    assert_eq!(thresholds::names(), expected);
    for name in thresholds::names() {
        let policy = of(&json!({ "thresholds": { name: 1 } })).unwrap();
        assert_eq!(document(&policy)["thresholds"][name].as_f64(), Some(1.0));
    }
}

#[test]
fn a_refusal_names_the_field_the_value_and_what_is_allowed() {
    for (given, words) in [
        (
            json!({ "thresholds": { "starved_share": 1.5 } }),
            "`thresholds.starved_share` cannot be 1.5; give a number above 0 and up to 1",
        ),
        (
            json!({ "thresholds": { "spin_ms": "5s" } }),
            "`thresholds.spin_ms` cannot be \"5s\"; give a whole number from 1 to 86400000",
        ),
        (
            json!({ "thresholds": 7 }),
            "`thresholds` cannot be 7; give an object in braces",
        ),
        (
            json!([]),
            "`the body` cannot be []; give an object in braces",
        ),
    ] {
        assert_eq!(refusal(&given), words);
    }
    let unknown = refusal(&json!({ "thresholds": { "spin_ns": 5 } }));
    assert!(unknown.starts_with("`thresholds.spin_ns` is not known; give starved_share, "));
    let long = refusal(&json!({ "thresholds": "x".repeat(500) }));
    assert!(long.len() < 150, "{long}");
}

#[test]
fn the_documentation_has_every_threshold_with_its_default() {
    let page = include_str!("../../../../docs/policy.md");
    let told = document(&Policy::default());
    for (name, value) in told["thresholds"].as_object().unwrap() {
        let value = value.as_f64().unwrap();
        let row = format!("| `{name}` | {value} | ");
        assert!(page.contains(&row), "docs/policy.md lacks {row:?}");
    }
}

#[test]
fn looks_into_vcpus_can_be_forbidden() {
    assert!(Policy::default().look_into_vcpus);
    let policy = of(&json!({ "look_into_vcpus": false })).unwrap();
    assert!(!policy.look_into_vcpus);
    assert_eq!(document(&policy)["look_into_vcpus"], json!(false));
    let book = Rulebook::default();
    book.set(policy);
    assert!(!book.limits().read().look_into_vcpus);
    let error = of(&json!({ "look_into_vcpus": "no" })).unwrap_err();
    let words = "`look_into_vcpus` cannot be \"no\"; give true or false";
    assert_eq!(error.to_string(), words);
}

#[test]
fn restarts_and_reboots_have_limits_that_make_sense() {
    let given = json!({
        "restart": { "at_most": 3, "within_ms": 5, "first_wait_ms": 0, "longest_wait_ms": 7 },
        "on_reboot": "restart",
    });
    let policy = of(&given).unwrap();
    assert_eq!(policy.on_reboot, OnReboot::Restart);
    assert_eq!(document(&policy)["restart"], given["restart"]);
    assert_eq!(of(&document(&policy)).unwrap(), policy);
    for (given, words) in [
        (
            json!({ "on_reboot": "again" }),
            "`on_reboot` cannot be \"again\"; give exit or restart",
        ),
        (
            json!({ "restart": { "at_most": -1 } }),
            "`restart.at_most` cannot be -1; give a whole number from 0 to 1000",
        ),
        (
            json!({ "restart": { "first_wait_ms": 9, "longest_wait_ms": 8 } }),
            "`restart.longest_wait_ms` cannot be 8; give at least first_wait_ms, 9",
        ),
    ] {
        assert_eq!(refusal(&given), words);
    }
    let unknown = refusal(&json!({ "restart": { "max": 1 } }));
    assert!(unknown.starts_with("`restart.max` is not known; give at_most, "));
}

#[test]
fn actions_are_taken_back_as_they_were_told() {
    let given = json!({
        "restart": { "at_most": 1 },
        "verdicts": {
            "guest-panic": [{ "dump": "core", "path": "/var/dumps" }, "restart"],
            "vcpu-spin": ["nmi", { "wait_ms": 500 }, "pause"],
            "exit-storm": [],
            "guest-oom": null,
        },
    });
    let policy = of(&given).unwrap();
    assert_eq!(policy.actions.len(), 2);
    let told = document(&policy);
    for code in ["guest-panic", "vcpu-spin"] {
        assert_eq!(told["verdicts"][code], given["verdicts"][code]);
    }
    assert_eq!(of(&told).unwrap(), policy);
}

#[test]
fn an_action_that_cannot_be_is_refused_by_name() {
    let of_panic = |actions: Value| refusal(&json!({ "verdicts": { "guest-panic": actions } }));
    for (actions, words) in [
        (
            json!(["restart"]),
            "cannot be \"restart\"; give restart.at_most of 1 or more with it",
        ),
        (
            json!("nmi"),
            "`verdicts.guest-panic` cannot be \"nmi\"; give a list of up to 8 actions",
        ),
        (json!(["reboot"]), "cannot be \"reboot\"; give \"nmi\", "),
        (json!([7]), "cannot be 7; give \"nmi\", "),
        (json!(["reset", "nmi"]), "nothing after reset or restart"),
        (json!([{ "run": "/bin/sh" }]), "cannot be {\"run\":"),
        (
            json!([{ "dump": "all", "path": "/d" }]),
            "give blackbox, core or registers",
        ),
        (
            json!([{ "dump": "core", "path": "d" }]),
            "`verdicts.guest-panic.path` cannot be \"d\"; give the absolute path",
        ),
        (
            json!([{ "dump": "core" }]),
            "cannot be null; give the absolute",
        ),
        (
            json!([{ "dump": "core", "path": "/d", "of": 1 }]),
            "`verdicts.guest-panic.of` is not known",
        ),
        (json!([{ "wait_ms": 60_001 }]), "from 0 to 60000"),
    ] {
        let refused = of_panic(actions);
        assert!(refused.contains(words), "{refused}");
    }
    let unknown = refusal(&json!({ "verdicts": { "guest-panics": [] } }));
    assert!(unknown.starts_with("`verdicts.guest-panics` is not known; give vcpu-dead-halt, "));
}

#[test]
fn deflate_is_an_action_like_the_others() {
    let policy = json!({ "verdicts": { "guest-oom-soon": ["deflate"] } });
    let judged = of(&policy).unwrap();
    let actions = judged.actions.values().next().unwrap();
    assert_eq!(actions[0].name(), "deflate");
    assert_eq!(document(&judged)["verdicts"], policy["verdicts"]);
}
