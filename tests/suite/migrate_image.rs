//! Migration of containers of an image between two places that have nothing in common: the image comes along where it is not there, and
//! what a container changed in its files.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::{Case, MARK, names_in};
use super::checkpoint::CRIU;
use super::checkpoint_root::{change, image_counter, is_changed, uses};
use super::migrate::{destination, followed, gone, settled};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_of_an_image_goes_along_with_its_files", CRIU, of_image),
    scenario("a_layer_that_is_another_than_it_is_called_is_refused", CRIU, another_layer),
    scenario("a_container_over_a_directory_is_refused", CRIU, of_directory),
];

/// The words for the other place: where it keeps containers, and images.
fn place(case: &Case) -> [String; 4] {
    ["--root".to_owned(), case.path("there"), "--store".to_owned(), case.path("store-there")]
}

/// The other place as a destination.
pub(super) fn elsewhere(case: &Case) -> String {
    let (output, ferry) = (case.path("output"), case.stage.runtime.path.display().to_string());
    format!("exec:exec {ferry} {} receive --stdio --output {output}", place(case).join(" "))
}

/// Runs ferry there.
pub(super) fn there(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(&case.stage.runtime.path);
    command.args(place(case)).args(args).env(MARK, &case.directory).stdin(Stdio::null());
    case.finish(&mut command)
}

fn of_image(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    let (here, other, report) = (case.id.clone(), case.other_id(), case.path("report.json"));
    let (store, to) = (case.path("store"), elsewhere(case));
    let words = ["--store", &store, "migrate", "--as", &other, "--report", &report, &here, &to];
    let said = case.call(&["--store", &store, "migrate", "--bundle", "/none", &here, &to])?.failure()?.stderr;
    assert!(said.contains("it has no bundle"), "{said}");
    let dry = case.call(&["--store", &store, "migrate", "--dry-run", "--as", &other, &here, &to])?.success()?.stdout;
    assert!(dry.contains("of its image are not there, and would be sent first"), "{dry}");
    let names = names_in(&PathBuf::from(case.path("store-there/layers")));
    assert_eq!(names, Vec::<String>::new(), "nothing is sent to be asked");
    case.call(&words)?.success()?;
    gone(case, &here)?;
    assert_eq!(uses(case), Vec::<String>::new(), "its upper layer goes with it");
    let lines = followed(case, &format!("output/{other}.stdout"))?;
    row.continued(lines)?;
    let read = there(case, &["exec", &other, "/probe", "read", "/dir/new/file"])?.success()?.json()?;
    assert_eq!(read["ok"], "new");
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    assert!(report["bytes"]["content"].as_u64().is_some_and(|bytes| bytes > 500), "{report}");
    assert_eq!(report["steps"][1]["name"], "content", "{report}");
    // It has no name there: nobody runs what he did not choose.
    let listed = there(case, &["image", "list"])?.success()?.stdout;
    assert!(!listed.contains("test"), "{listed}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("what it had changed in its image's files went along"), "{notes}");
    // And back, to another id: what its output was is another's by now.
    let back = case.other_id();
    let to = destination(case);
    there(case, &["migrate", "--as", &back, &other, &to])?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("there"))), Vec::<String>::new());
    assert_eq!(names_in(&PathBuf::from(case.path("store-there/containers"))), Vec::<String>::new());
    assert_eq!(names_in(&PathBuf::from(case.path("store-there/migrations"))), Vec::<String>::new());
    case.id = back;
    assert_eq!(case.state()?["status"], "running");
    is_changed(case)?;
    assert_eq!(uses(case).len(), 1);
    settled(case)
}

/// A layer that is another than it is called is not taken, nothing of it is kept, and the container goes on.
fn another_layer(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let (here, other, store, to) = (case.id.clone(), case.other_id(), case.path("store"), elsewhere(case));
    let blobs = PathBuf::from(case.path("store/blobs/sha256"));
    let named = |name: &String| blobs.join(name);
    let is_layer = |path: &PathBuf| !fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"{"));
    let layer = names_in(&blobs).iter().map(named).find(is_layer).ok_or("a layer without a blob")?;
    let whole = fs::read(&layer)?;
    let mut changed = whole.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&layer, &changed)?;
    let words = ["--store", &store, "migrate", "--as", &other, &here, &to];
    let said = case.call(&words)?.failure()?.stderr;
    assert!(said.contains("what it sends as sha256:"), "{said}");
    row.go_on(5)?;
    for kept in ["store-there/layers", "store-there/blobs/sha256", "store-there/migrations", "there"] {
        let names = names_in(&PathBuf::from(case.path(kept)));
        assert_eq!(names, Vec::<String>::new(), "{kept}");
    }
    // And one that is shorter than it was.
    fs::write(&layer, &whole[..last])?;
    let said = case.call(&words)?.failure()?.stderr;
    assert!(said.contains("what it sends as sha256:"), "{said}");
    fs::write(&layer, &whole)?;
    case.call(&words)?.success()?;
    gone(case, &here)?;
    // What has come stays for the next time.
    let state = there(case, &["state", &other])?.success()?.json()?;
    assert_eq!(state["status"], "running");
    there(case, &["delete", "--force", &other])?.success()?;
    assert_ne!(names_in(&PathBuf::from(case.path("store-there/layers"))), Vec::<String>::new());
    there(case, &["image", "prune"])?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("store-there/layers"))), Vec::<String>::new());
    settled(case)
}

fn of_directory(case: &mut Case) -> Outcome {
    let (id, tree, to) = (case.id.clone(), case.bundle.rootfs().display().to_string(), destination(case));
    let words = ["run", "--detach", "--rootfs", &tree, "--name", &id, "--", "/probe", "count", "1000000", "0"];
    let _lines = case.begin(&words)?;
    let said = case.call(&["migrate", &id, &to])?.failure()?.stderr;
    assert!(said.contains("in the memory of this machine"), "{said}");
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}
