//! `ferry snapshot`: what a container wrote is kept, and it goes back to any of it.

use std::fs;
use std::path::PathBuf;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::image::{clear, image, import, run};
use super::need::Need::Ferry;
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_goes_back_and_forth", &[Ferry], back_and_forth),
    scenario("whiteouts_and_links_are_kept", &[Ferry], whiteouts),
    scenario("what_is_lain_upon_stays", &[Ferry], lain_upon),
    scenario("more_than_an_overlay_takes_is_refused", &[Ferry], too_many),
    scenario("a_container_without_an_image_has_none", &[Ferry], without),
];

fn snapshot(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    case.call(&[&["snapshot"], args].concat())
}

/// A container of an image with `/dir/low` and `/kept`, which runs.
fn started(case: &mut Case) -> Result<String, Failed> {
    let layer = Layer::new().directory("dir/")?.file("dir/low", 0o644, b"low")?.file("kept", 0o644, b"kept")?;
    import(case, vec![layer.finish()?], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    Ok(id)
}

fn write(case: &mut Case, path: &str, text: &str) -> Outcome {
    let answer = case.exec(&[], &["/probe", "write", path, text])?.success()?.json()?;
    assert!(answer["error"].is_null(), "{answer}");
    Ok(())
}

/// What a file says; nothing where it is not there.
fn read(case: &mut Case, path: &str) -> Result<Option<String>, Failed> {
    let answer = case.exec(&[], &["/probe", "read", path])?.success()?.json()?;
    Ok(answer["ok"].as_str().map(str::to_owned))
}

fn rollback(case: &mut Case, id: &str, name: &str) -> Outcome {
    case.begin(&["snapshot", "rollback", id, name])?.until("ready")?;
    Ok(())
}

fn back_and_forth(case: &mut Case) -> Outcome {
    let id = started(case)?;
    write(case, "/file", "one")?;
    assert_eq!(snapshot(case, &["create", &id])?.success()?.stdout, "1\n");
    write(case, "/file", "two")?;
    assert_eq!(snapshot(case, &["create", &id, "two"])?.success()?.stdout, "two\n");
    write(case, "/file", "three")?;
    let taken = snapshot(case, &["create", &id, "two"])?.failure()?;
    assert!(taken.stderr.contains("there is a snapshot \"two\" of this container already"), "{}", taken.stderr);
    let pid = case.pid()?;
    rollback(case, &id, "1")?;
    assert_ne!(case.pid()?, pid, "the program begins anew");
    assert_eq!(read(case, "/file")?.as_deref(), Some("one"));
    // What is written now lies upon the first.
    write(case, "/other", "upon one")?;
    snapshot(case, &["create", &id, "three"])?.success()?;
    rollback(case, &id, "two")?;
    assert_eq!((read(case, "/file")?.as_deref(), read(case, "/other")?), (Some("two"), None));
    rollback(case, &id, "three")?;
    assert_eq!((read(case, "/file")?.as_deref(), read(case, "/other")?.as_deref()), (Some("one"), Some("upon one")));
    let listed = snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?;
    let names: Vec<_> = listed.as_array().into_iter().flatten().map(|one| (&one["name"], &one["parent"])).collect();
    assert_eq!(names, [(&json!("1"), &json!(null)), (&json!("two"), &json!(null)), (&json!("three"), &json!("1"))]);
    assert!(listed[0]["bytes"].as_u64().is_some_and(|bytes| bytes >= 3), "{listed}");
    let table = snapshot(case, &["list", &id])?.success()?.stdout;
    assert!(table.starts_with("NAME") && table.contains("\nthree"), "{table}");
    let shown = snapshot(case, &["show", &id, "three"])?.success()?.json()?;
    assert_eq!((&shown["current"], &shown["image"]), (&json!(true), &json!("test:latest")), "{shown}");
    assert_eq!(shown["directories"].as_array().map(Vec::len), Some(4), "{shown}");
    let unknown = snapshot(case, &["rollback", &id, "nowhere"])?.failure()?;
    assert!(unknown.stderr.contains("there is no snapshot \"nowhere\""), "{}", unknown.stderr);
    assert_eq!(read(case, "/other")?.as_deref(), Some("upon one"), "it runs on as it was");
    // An image of it has the layers of all that it lies upon.
    write(case, "/last", "last")?;
    let refused = image(case, &["diff", &id])?.failure()?;
    assert!(refused.stderr.contains("was rolled back to snapshot \"three\""), "{}", refused.stderr);
    image(case, &["commit", &id, "made:1"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("store/snapshots"))), Vec::<String>::new());
    for (path, text) in [("/file", "one"), ("/other", "upon one"), ("/last", "last"), ("/kept", "kept")] {
        assert_eq!(run(case, "made:1", &["/probe", "read", path])?.success()?.json()?["ok"], text, "{path}");
    }
    clear(case)
}

fn whiteouts(case: &mut Case) -> Outcome {
    let id = started(case)?;
    // Removed, replaced and renamed: the marks that the snapshot must carry.
    for deed in [&["rename", "/dir/low", "/moved"][..], &["remove", "/kept"]] {
        let answer = case.exec(&[], &[&["/probe"], deed].concat())?.success()?.json()?;
        assert!(answer["error"].is_null(), "{answer}");
    }
    snapshot(case, &["create", &id, "marks"])?.success()?;
    write(case, "/kept", "again")?;
    write(case, "/dir/low", "again")?;
    rollback(case, &id, "marks")?;
    assert_eq!((read(case, "/kept")?, read(case, "/dir/low")?), (None, None));
    assert_eq!(read(case, "/moved")?.as_deref(), Some("low"));
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

fn lain_upon(case: &mut Case) -> Outcome {
    let id = started(case)?;
    for name in ["a", "b"] {
        snapshot(case, &["create", &id, name])?.success()?;
    }
    rollback(case, &id, "a")?;
    snapshot(case, &["create", &id, "c"])?.success()?;
    for (name, said) in [("a", "the container's own files lie upon"), ("x", "there is no snapshot \"x\"")] {
        let refused = snapshot(case, &["remove", &id, "b", name])?.failure()?;
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    rollback(case, &id, "b")?;
    let refused = snapshot(case, &["remove", &id, "a"])?.failure()?;
    assert!(refused.stderr.contains("snapshot \"c\" lies upon \"a\""), "{}", refused.stderr);
    snapshot(case, &["remove", &id, "a", "c"])?.success()?;
    let listed = snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    // prune leaves alone what belongs to a container that is there.
    image(case, &["prune", "--all"])?.success()?;
    rollback(case, &id, "b")?;
    for bad in ["../x", ".x", "a b"] {
        let refused = snapshot(case, &["create", &id, bad])?.failure()?;
        assert!(refused.stderr.contains("is no name of a snapshot"), "{}", refused.stderr);
    }
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

fn too_many(case: &mut Case) -> Outcome {
    let layers = (1..499).map(|index| Ok(Layer::new().file(&format!("{index}"), 0o644, b"")?.finish()?));
    import(case, layers.collect::<Result<_, Failed>>()?, &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    for name in ["one", "two"] {
        snapshot(case, &["create", &id, name])?.success()?;
    }
    rollback(case, &id, "one")?;
    let refused = snapshot(case, &["create", &id, "upon-one"])?.failure()?;
    assert!(refused.stderr.contains("an overlay takes 500 at most"), "{}", refused.stderr);
    // One that could be taken all the same: nothing is ended for it.
    let snapshots = PathBuf::from(&store).join("snapshots");
    let record = snapshots.join(&names_in(&snapshots)[0]).join("two/snapshot.json");
    let mut two: Value = serde_json::from_slice(&fs::read(&record)?)?;
    two["parent"] = json!("one");
    fs::write(record, two.to_string())?;
    let pid = case.pid()?;
    let refused = snapshot(case, &["rollback", &id, "two"])?.failure()?;
    assert!(refused.stderr.contains("an overlay takes 500 at most"), "{}", refused.stderr);
    assert_eq!((case.pid()?, &case.state()?["status"]), (pid, &json!("running")));
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

fn without(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let refused = snapshot(case, &["create", &id])?.failure()?;
    assert!(refused.stderr.contains("does not run from an image"), "{}", refused.stderr);
    let refused = snapshot(case, &["list", "nowhere"])?.failure()?;
    assert!(refused.stderr.contains("\"nowhere\""), "{}", refused.stderr);
    Ok(())
}
