//! Migration of containers of an image between two places that have nothing in common but the image: what a container changed in
//! its files goes along.

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
    scenario("a_container_over_a_directory_is_refused", CRIU, of_directory),
];

/// The words for the other place: where it keeps containers, and images.
fn place(case: &Case) -> [String; 4] {
    ["--root".to_owned(), case.path("there"), "--store".to_owned(), case.path("store-there")]
}

/// Runs ferry there.
fn there(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(&case.stage.runtime.path);
    command.args(place(case)).args(args).env(MARK, &case.directory).stdin(Stdio::null());
    case.finish(&mut command)
}

fn of_image(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    let (here, other, report) = (case.id.clone(), case.other_id(), case.path("report.json"));
    let (store, output, ferry) =
        (case.path("store"), case.path("output"), case.stage.runtime.path.display().to_string());
    let to = format!("exec:exec {ferry} {} receive --stdio --output {output}", place(case).join(" "));
    let words = ["--store", &store, "migrate", "--as", &other, "--report", &report, &here, &to];
    let said = case.call(&words)?.failure()?.stderr;
    assert!(said.contains("image \"test") && said.contains("is not in the store"), "{said}");
    assert!(said.contains("nothing was sent"), "{said}");
    row.go_on(5)?;
    there(case, &["image", "import", &case.path("layout")])?.success()?;
    let said = case.call(&["--store", &store, "migrate", "--bundle", "/none", &here, &to])?.failure()?.stderr;
    assert!(said.contains("it has no bundle"), "{said}");
    case.call(&words)?.success()?;
    gone(case, &here)?;
    assert_eq!(uses(case), Vec::<String>::new(), "its upper layer goes with it");
    let lines = followed(case, &format!("output/{other}.stdout"))?;
    row.continued(lines)?;
    let read = there(case, &["exec", &other, "/probe", "read", "/dir/new/file"])?.success()?.json()?;
    assert_eq!(read["ok"], "new");
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let notes = report["notes"].to_string();
    assert!(notes.contains("its image's files went along while it stood still"), "{notes}");
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

fn of_directory(case: &mut Case) -> Outcome {
    let (id, tree, to) = (case.id.clone(), case.bundle.rootfs().display().to_string(), destination(case));
    let words = ["run", "--detach", "--rootfs", &tree, "--name", &id, "--", "/probe", "count", "1000000", "0"];
    let _lines = case.begin(&words)?;
    let said = case.call(&["migrate", &id, &to])?.failure()?.stderr;
    assert!(said.contains("in the memory of this machine"), "{said}");
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}
