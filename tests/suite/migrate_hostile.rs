//! Migrations whose other end means harm, or is not what it was: what comes gets no more than this end gives.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::case::Case;
use super::checkpoint::CRIU;
use super::migrate::{copied_bundle, counter, destination, gone, printed, settled, words};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("what_comes_gets_no_more_than_the_bundle_there_gives", CRIU, wider),
    scenario("a_name_that_is_no_text_goes_along", CRIU, nameless),
];

/// What a container has more than the bundle at the destination gives it.
type Change = fn(&mut Value);

/// The kernel keeps 15 bytes of a program's name, and the last letter of this one has two of its own.
fn nameless(case: &mut Case) -> Outcome {
    case.bundle.link("fourteen-bytes\u{e9}", "probe")?;
    let mut row = Row::of(case.args(&["/fourteen-bytes\u{e9}", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    let name = fs::read(format!("/proc/{}/comm", case.pid()?))?;
    assert!(name.starts_with(b"fourteen-bytes") && str::from_utf8(&name).is_err(), "{name:?}");
    let (store, id, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
    case.call(&words(&[], &store, (&id, &there), &to))?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    settled(case)
}

/// The source says that the container has the configuration that is there, and sends one that has more.
fn wider(case: &mut Case) -> Outcome {
    let mut narrow = case.config.clone();
    narrow["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO"}]});
    narrow["process"]["noNewPrivileges"] = json!(true);
    narrow["process"]["capabilities"] =
        json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
    let changes: [(&str, Change, &str, &str); 4] = [
        (
            "capabilities",
            |config| {
                for set in ["bounding", "permitted", "effective"] {
                    config::add(config, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
                }
            },
            "stop-and-copy",
            "capabilities that are not in process.capabilities: CAP_SYS_ADMIN",
        ),
        ("filter", |config| config["linux"]["seccomp"] = Value::Null, "stop-and-copy", "linux.seccomp"),
        ("user", |_| (), "stop-and-copy", "is not the user of process.user"),
        (
            "privileges",
            |config| config["process"]["noNewPrivileges"] = json!(false),
            "post-copy",
            "lacks process.noNewPrivileges",
        ),
    ];
    for (what, change, mode, expected) in changes {
        case.config = narrow.clone();
        if what == "user" {
            case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        }
        case.write_config()?;
        let (there, bundle) = (case.other_id(), copied_bundle(case, what)?);
        case.config = narrow.clone();
        change(&mut case.config);
        let mut row = counter(case).map_err(|why| format!("{what}: {why:?}"))?;
        // What the source keeps of it is what it says of it.
        let said = case.state_root().join(&case.id).join("config.json");
        fs::copy(Path::new(&bundle).join("config.json"), said)?;
        let (store, id, to) = (case.path("store"), case.id.clone(), destination(case));
        let flags = ["--mode", mode, "--bundle", &bundle];
        let said = case.call(&words(&flags, &store, (&id, &there), &to))?.failure()?.stderr;
        assert!(said.contains(expected), "{what}: {said}");
        gone(case, &there)?;
        assert_eq!(case.state()?["status"], "running", "{what}");
        row.go_on(5).map_err(|why| format!("{what}: {why:?}"))?;
        settled(case)?;
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Ok(())
}
