//! What ferry prints in the specification's forms, held to the specification's own JSON schemas by a validator that is neither
//! ferry's nor the tests'. The schemas let properties pass that they do not know, and so each that is misspelt: where ferry has
//! none of its own, they are made to refuse them.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("features_are_of_it", &[Ferry, Tool("jsonschema")], features),
    scenario("the_configuration_of_spec_is_of_it", &[Ferry, Tool("jsonschema")], configuration),
    scenario("states_are_of_it", &[Ferry, Tool("jsonschema")], states),
    scenario("what_is_not_of_it_is_found", &[Ferry, Tool("jsonschema")], planted),
];

/// The schemas of version 1.3.0 by file name, since they name one another so.
const SCHEMAS: &[(&str, &str)] = &[
    ("config-freebsd.json", include_str!("../../runtime-spec/schema/config-freebsd.json")),
    ("config-linux.json", include_str!("../../runtime-spec/schema/config-linux.json")),
    ("config-schema.json", include_str!("../../runtime-spec/schema/config-schema.json")),
    ("config-solaris.json", include_str!("../../runtime-spec/schema/config-solaris.json")),
    ("config-vm.json", include_str!("../../runtime-spec/schema/config-vm.json")),
    ("config-windows.json", include_str!("../../runtime-spec/schema/config-windows.json")),
    ("config-zos.json", include_str!("../../runtime-spec/schema/config-zos.json")),
    ("defs-freebsd.json", include_str!("../../runtime-spec/schema/defs-freebsd.json")),
    ("defs-linux.json", include_str!("../../runtime-spec/schema/defs-linux.json")),
    ("defs-vm.json", include_str!("../../runtime-spec/schema/defs-vm.json")),
    ("defs-windows.json", include_str!("../../runtime-spec/schema/defs-windows.json")),
    ("defs-zos.json", include_str!("../../runtime-spec/schema/defs-zos.json")),
    ("defs.json", include_str!("../../runtime-spec/schema/defs.json")),
    ("features-linux.json", include_str!("../../runtime-spec/schema/features-linux.json")),
    ("features-schema.json", include_str!("../../runtime-spec/schema/features-schema.json")),
    ("state-schema.json", include_str!("../../runtime-spec/schema/state-schema.json")),
];

/// Makes every object of a schema that lists its properties refuse others. One that is put together of several lists none.
fn refuse_unknown(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if members.get("properties").is_some_and(Value::is_object) && !members.contains_key("additionalProperties")
            {
                members.insert("additionalProperties".into(), false.into());
            }
            members.values_mut().for_each(refuse_unknown);
        }
        Value::Array(items) => items.iter_mut().for_each(refuse_unknown),
        _ => {}
    }
}

/// The schemas as they are, but for properties of others that they do not list.
fn strict(name: &str, text: &str) -> Result<Value, Failed> {
    let mut schema = serde_json::from_str(text)?;
    // `states` has what engines read beside what the specification asks for.
    if name != "state-schema.json" {
        refuse_unknown(&mut schema);
    }
    if name == "features-linux.json" {
        // features-linux.md has these; its schema of 1.3.0 does not.
        let properties = schema.pointer_mut("/linux/properties").ok_or("the schema has no properties of linux")?;
        properties["intelRdt"]["properties"]["schemata"] = json!({"type": "boolean"});
        properties["intelRdt"]["properties"]["monitoring"] = json!({"type": "boolean"});
        let strings = json!({"$ref": "defs.json#/definitions/ArrayOfStrings"});
        properties["memoryPolicy"] = json!({
            "type": "object", "properties": {"modes": strings, "flags": strings}, "additionalProperties": false,
        });
    }
    Ok(schema)
}

/// What the validator says against a document, or none where it is of the schema.
fn against(case: &mut Case, schema: &str, document: &Value) -> Result<Option<String>, Failed> {
    let directory = case.host_directory("schema")?;
    for (name, text) in SCHEMAS {
        fs::write(directory.join(name), serde_json::to_vec(&strict(name, text)?)?)?;
    }
    let instance = directory.join("instance");
    fs::write(&instance, serde_json::to_vec(document)?)?;
    let mut command = Command::new("jsonschema");
    // The slash at its end makes it a folder that the schemas' names are below.
    command.arg("--base-uri").arg(format!("file://{}/", directory.display()));
    command.arg("--instance").arg(&instance).arg(directory.join(schema));
    let end = case.finish(&mut command)?;
    Ok((end.code != 0).then(|| end.stdout + &end.stderr))
}

fn conforms(case: &mut Case, schema: &str, document: &Value) -> Outcome {
    assert!(document.is_object(), "{document}");
    assert_eq!(against(case, schema, document)?, None);
    Ok(())
}

fn features(case: &mut Case) -> Outcome {
    let features = case.call(&["features"])?.success()?.json()?;
    assert_eq!(features["annotations"]["org.opencontainers.runc.checkpoint.enabled"], "true", "{features}");
    conforms(case, "features-schema.json", &features)
}

fn configuration(case: &mut Case) -> Outcome {
    for flags in [&["spec"][..], &["spec", "--rootless"]] {
        let bundle = case.host_directory(&flags.concat())?;
        case.call(&[flags, &["--bundle", &bundle.display().to_string()]].concat())?.success()?;
        let config = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
        conforms(case, "config-schema.json", &config)?;
    }
    Ok(())
}

fn states(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({"org.example.port": "Kiel"});
    let _lines = case.args(&["/probe", "sleep", "forever"]).create()?;
    let id = case.id.clone();
    for (verb, status) in [(None, "created"), (Some(&["start", &id][..]), "running")] {
        if let Some(verb) = verb {
            case.call(verb)?.success()?;
        }
        let state = case.state()?;
        assert_eq!(state["status"], status);
        conforms(case, "state-schema.json", &state)?;
    }
    case.kill_and_wait("KILL")?;
    let state = case.state()?;
    assert_eq!(state["status"], "stopped");
    conforms(case, "state-schema.json", &state)
}

fn planted(case: &mut Case) -> Outcome {
    let features = case.call(&["features"])?.success()?.json()?;
    for (place, wrong, named) in [
        ("/ociVersionMin", json!(1), "1 is not of type 'string'"),
        ("/linux/namespaces/0", json!("kernel"), "'kernel' is not one of"),
        ("/linux/seccomp/actions/0", json!("SCMP_ACT_PARDON"), "'SCMP_ACT_PARDON' is not one of"),
        ("/linux/apparmor", json!({"enabeld": true}), "'enabeld' was unexpected"),
    ] {
        let mut document = features.clone();
        *document.pointer_mut(place).ok_or("ferry's features have no such place")? = wrong;
        let said = against(case, "features-schema.json", &document)?.unwrap_or_default();
        assert!(said.contains(named), "{place}: {said}");
    }
    Ok(())
}
