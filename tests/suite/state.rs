//! The state of a container, as `state` tells it and as hooks are given it, held to the specification's schema.

use serde_json::{Value, json};

use super::case::Case;
use super::hooks::{log, set_all};
use super::need::Need::Ferry;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("is_of_the_schema_all_its_life", &[], whole_life),
    scenario("of_hooks_is_of_the_schema", &[], of_hooks),
    scenario("without_annotations_has_none", &[Ferry], no_annotations),
    scenario("has_more_than_the_specification_asks", &[], more),
];

/// A property's name, whether it must be there, and whether a value is one of it.
type Property = (&'static str, bool, fn(&Value) -> bool);

/// The properties of schema/state-schema.json.
const PROPERTIES: &[Property] = &[
    ("ociVersion", true, is_version),
    ("id", true, Value::is_string),
    ("status", true, |value| {
        ["creating", "created", "running", "stopped"].contains(&value.as_str().unwrap_or_default())
    }),
    ("pid", false, Value::is_u64),
    ("bundle", true, Value::is_string),
    ("annotations", false, |value| value.as_object().is_some_and(|map| map.values().all(Value::is_string))),
];

fn is_version(value: &Value) -> bool {
    let numbers: Vec<_> = value.as_str().unwrap_or_default().split('.').collect();
    numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
}

fn conforms(state: &Value) {
    assert!(state.is_object(), "{state}");
    for (name, required, fits) in PROPERTIES {
        match state.get(name) {
            None => assert!(!required, "{name} is missing in {state}"),
            Some(value) => assert!(fits(value), "{name} is {value}"),
        }
    }
}

fn whole_life(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({"org.example.port": "Kiel", "org.example.empty": ""});
    let mut lines = case.args(&["/probe", "sleep", "forever"]).create()?;
    let id = case.id.clone();
    let expect = |case: &mut Case, status: &str| {
        let state = case.state()?;
        conforms(&state);
        assert_eq!((&state["status"], &state["id"]), (&json!(status), &json!(id)));
        assert_eq!(state["annotations"], json!({"org.example.port": "Kiel", "org.example.empty": ""}));
        Ok::<_, libtest_mimic::Failed>(state["pid"].as_u64().unwrap_or_default())
    };
    assert!(expect(case, "created")? > 0);
    let id = case.id.clone();
    case.call(&["start", &id])?.success()?;
    lines.until("ready")?;
    assert!(expect(case, "running")? > 0);
    case.kill_and_wait("KILL")?;
    assert_eq!(expect(case, "stopped")?, 0);
    Ok(())
}

fn of_hooks(case: &mut Case) -> Outcome {
    set_all(case);
    case.run()?.success()?;
    let lines = log(case)?;
    assert_eq!(lines.len(), 6);
    lines.iter().for_each(|line| conforms(&line["state"]));
    Ok(())
}

fn no_annotations(case: &mut Case) -> Outcome {
    case.create()?;
    assert_eq!(case.state()?.get("annotations"), None);
    Ok(())
}

fn more(case: &mut Case) -> Outcome {
    case.create()?;
    let state = case.state()?;
    assert_eq!(state["rootfs"], json!(case.bundle.rootfs()));
    assert!(state["created"].as_str().is_some_and(|time| time.contains('T')) && state["owner"].is_string(), "{state}");
    Ok(())
}
