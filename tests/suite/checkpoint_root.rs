//! Checkpoint and restore of containers whose root is an overlay of their own, from an image or over a directory: what they wrote,
//! removed and renamed comes back with them, from images in a directory and from an archive; which gets no more than `run` gives.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Failed;
use rustix::fs::{Mode, OFlags, XattrFlags, lgetxattr, lsetxattr, mkdirat, openat};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::case::{Case, marked_processes, names_in, remove_tree};
use super::checkpoint::{CRIU, rounds};
use super::checkpoint_archive::{entries, tarred, with_manifest};
use super::image::{clear, ferry, image, import};
use super::need::Need::{Ferry, OrdinaryUser};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_of_an_image_comes_back_with_its_files", CRIU, of_image),
    scenario("a_container_over_a_directory_comes_back_with_its_files", CRIU, of_directory),
    scenario("an_archive_has_the_files_of_a_container_of_an_image", CRIU, archive_of_image),
    scenario("an_archive_has_the_files_of_a_container_over_a_directory", CRIU, archive_of_directory),
    scenario("an_archive_is_made_of_what_comes_back_alone", CRIU, odd_names),
    scenario("a_container_of_an_image_goes_on_and_has_a_copy", CRIU, copied),
    scenario("an_image_that_is_not_there_is_named", CRIU, missing_image),
    scenario("an_archive_of_an_image_gets_no_more_than_run_gives", CRIU, wider),
    scenario("changes_in_an_archive_lead_nowhere_else", CRIU, leading_out),
    scenario("a_root_that_cannot_be_made_again_is_refused", CRIU, refused),
    scenario("a_root_of_an_ordinary_user_is_refused", &[Ferry, OrdinaryUser], rootless),
    scenario("a_killed_restore_of_an_image_is_cleaned_up_by_delete", CRIU, killed_restore),
];

const COUNT: [&str; 5] = ["--", "/probe", "count", "1000000", "0"];

/// Begins something that leaves a container behind, with the case's own store.
fn begin(case: &mut Case, args: &[&str]) -> Result<Lines, Failed> {
    let store = case.path("store");
    case.begin(&[&["--store", &store], args].concat())
}

/// A counter in a container of an image with `/dir/low` and `/kept`.
pub(super) fn image_counter(case: &mut Case) -> Result<Row, Failed> {
    let layer = Layer::new().directory("dir/")?.file("dir/low", 0o644, b"low")?.file("kept", 0o644, b"kept")?;
    import(case, vec![layer.finish()?], &json!({}))?;
    counter(case, &["--image", "test"])
}

/// A counter in a container over a directory with the same.
fn directory_counter(case: &mut Case) -> Result<(Row, String), Failed> {
    case.bundle.directory("dir")?;
    case.bundle.file("dir/low", "low")?;
    case.bundle.file("kept", "kept")?;
    let tree = case.bundle.rootfs().display().to_string();
    Ok((counter(case, &["--rootfs", &tree])?, tree))
}

fn counter(case: &mut Case, root: &[&str]) -> Result<Row, Failed> {
    let id = case.id.clone();
    let mut row = Row::of(begin(case, &[&["run", "--detach"], root, &["--name", &id], &COUNT].concat())?);
    row.go_on(5)?;
    Ok(row)
}

fn done(case: &mut Case, deed: &[&str]) -> Outcome {
    let answer = case.exec(&[], &[&["/probe"], deed].concat())?.success()?.json()?;
    if answer["error"].is_null() { Ok(()) } else { Err(format!("{deed:?}: {answer}").into()) }
}

/// Changes of every kind: something new, replaced, removed, renamed, and a directory with a mode.
pub(super) fn change(case: &mut Case) -> Outcome {
    for deed in [
        &["mkdir", "/dir/new"][..],
        &["write", "/dir/new/file", "new"],
        &["rename", "/dir/low", "/moved"],
        &["remove", "/kept"],
        &["write", "/below", "removed again"],
        &["remove", "/below"],
    ] {
        done(case, deed)?;
    }
    Ok(())
}

fn read(case: &mut Case, path: &str) -> Result<Value, Failed> {
    let answer = case.exec(&[], &["/probe", "read", path])?.success()?.json()?;
    Ok(answer["ok"].clone())
}

pub(super) fn is_changed(case: &mut Case) -> Outcome {
    for (path, text) in [
        ("/dir/new/file", json!("new")),
        ("/moved", json!("low")),
        ("/dir/low", Value::Null),
        ("/kept", Value::Null),
        ("/below", Value::Null),
    ] {
        assert_eq!(read(case, path)?, text, "{path}");
    }
    Ok(())
}

fn saved(case: &mut Case, flags: &[&str]) -> Result<String, Failed> {
    let (images, id) = (case.path("images"), case.id.clone());
    ferry(case, &[&["checkpoint", "--image-path", &images], flags, &[&id]].concat())?.success()?;
    Ok(images)
}

fn exported(case: &mut Case) -> Result<String, Failed> {
    let (archive, id, scratch) = (case.path("archive"), case.id.clone(), case.host_directory("scratch")?);
    let store = case.path("store");
    let mut command = case.command(&["--store", &store, "checkpoint", "--export", &archive, &id]);
    case.finish(command.env("TMPDIR", &scratch))?.success()?;
    assert_eq!(names_in(&scratch), Vec::<String>::new());
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(archive)
}

fn imported(case: &mut Case, archive: &str, flags: &[&str]) -> Result<Lines, Failed> {
    begin(case, &[&["restore", "--detach", "--import", archive], flags].concat())
}

/// What a restore says that must not succeed, upon which nothing is there.
fn not_restored(case: &mut Case, args: &[&str]) -> Result<String, Failed> {
    let said = ferry(case, &[&["restore", "--detach"], args].concat())?.failure()?.stderr;
    assert_eq!(case.leftovers()?, Vec::<String>::new(), "{said}");
    assert_eq!(uses(case), Vec::<String>::new(), "{said}");
    Ok(said)
}

pub(super) fn uses(case: &Case) -> Vec<String> {
    names_in(&PathBuf::from(case.path("store/containers")))
}

fn deleted(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert_eq!(uses(case), Vec::<String>::new());
    Ok(())
}

fn of_image(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    for round in 0..rounds() {
        let images = saved(case, &[])?;
        assert_eq!(case.leftovers()?, Vec::<String>::new());
        assert_eq!(uses(case), Vec::<String>::new(), "the upper layer goes with the container");
        let id = case.id.clone();
        let lines = begin(case, &["restore", "--detach", "--image-path", &images, &id])?;
        row.continued(lines)?;
        is_changed(case).map_err(|why| format!("round {round}: {why:?}"))?;
        remove_tree(Path::new(&images))?;
    }
    assert_eq!(uses(case).len(), 1);
    // It is like any other: what it changed can be made an image of.
    let id = case.id.clone();
    image(case, &["commit", &id, "made:1"])?.success()?;
    deleted(case)?;
    let said = ferry(case, &["run", "--image", "made:1", "--", "/probe", "read", "/dir/new/file"])?.success()?;
    assert_eq!(said.json()?["ok"], "new");
    clear(case)
}

fn of_directory(case: &mut Case) -> Outcome {
    let (mut row, tree) = directory_counter(case)?;
    change(case)?;
    for round in 0..rounds() {
        let images = saved(case, &[])?;
        assert_eq!(case.leftovers()?, Vec::<String>::new());
        let id = case.id.clone();
        let lines = begin(case, &["restore", "--detach", "--image-path", &images, &id])?;
        row.continued(lines)?;
        is_changed(case).map_err(|why| format!("round {round}: {why:?}"))?;
        remove_tree(Path::new(&images))?;
    }
    assert_eq!(fs::read_to_string(format!("{tree}/kept"))?, "kept", "the directory itself is as it was");
    // Without the directory there is nothing to restore upon; in another place, it serves.
    let images = saved(case, &[])?;
    let (elsewhere, id) = (case.path("elsewhere"), case.id.clone());
    fs::rename(&tree, &elsewhere)?;
    let said = not_restored(case, &["--image-path", &images, &id])?;
    assert!(said.contains("ENOENT") && said.contains("--rootfs names another"), "{said}");
    let lines = begin(case, &["restore", "--detach", "--image-path", &images, "--rootfs", &elsewhere, &id])?;
    row.continued(lines)?;
    is_changed(case)?;
    deleted(case)?;
    fs::rename(&elsewhere, &tree)?;
    Ok(())
}

fn archive_of_image(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    let archive = exported(case)?;
    let found = case.call(&["checkpoint", "inspect", "--format", "json", &archive])?.success()?.json()?;
    let rows = image(case, &["list", "--format", "json"])?.success()?.json()?;
    let root = &found["root"]["image"];
    assert_eq!((&root["name"], &root["manifest"]), (&json!("test:latest"), &rows[0]["digest"]), "{found}");
    assert_eq!(root["layers"].as_array().map(Vec::len), Some(2), "{found}");
    let text = case.call(&["checkpoint", "inspect", &archive])?.success()?.stdout;
    assert!(text.contains("image test:latest (sha256:"), "{text}");
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    is_changed(case)?;
    deleted(case)?;
    clear(case)
}

fn archive_of_directory(case: &mut Case) -> Outcome {
    let (mut row, tree) = directory_counter(case)?;
    change(case)?;
    let archive = exported(case)?;
    // Which directory of the host it is shown is not the archive's choice.
    let said = not_restored(case, &["--import", &archive])?;
    assert!(said.contains("an archive chooses no directory of this host"), "{said}");
    let lines = imported(case, &archive, &["--rootfs", &tree])?;
    row.continued(lines)?;
    is_changed(case)?;
    deleted(case)
}

/// Newlines in names and attributes come back; a path that could not, as no call takes it whole, lets the container go on.
fn odd_names(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let root = PathBuf::from(format!("/proc/{}/root", case.pid()?));
    let long = format!("{}\n{}", "n".repeat(100), "m".repeat(100));
    fs::write(root.join(&long), "long")?;
    lsetxattr(root.join(&long), "user.note", b"a\nb", XattrFlags::empty())?;
    let part = "d".repeat(250);
    let mut deep: OwnedFd = fs::File::open(&root)?.into();
    for _ in 0..17 {
        mkdirat(&deep, &part, Mode::RWXU)?;
        deep = openat(&deep, &part, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    drop(deep);
    let (archive, id) = (case.path("archive"), case.id.clone());
    let said = ferry(case, &["checkpoint", "--export", &archive, &id])?.failure()?.stderr;
    assert!(said.contains("its path has more than 4096 bytes") && !Path::new(&archive).exists(), "{said}");
    row.go_on(10)?;
    remove_tree(&root.join(part))?;
    let archive = exported(case)?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    let root = PathBuf::from(format!("/proc/{}/root", case.pid()?));
    let mut value = [0; 8];
    let length = lgetxattr(root.join(&long), "user.note", &mut value)?;
    assert_eq!((fs::read_to_string(root.join(&long))?.as_str(), &value[..length]), ("long", &b"a\nb"[..]));
    deleted(case)?;
    clear(case)
}

fn copied(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    let images = saved(case, &["--leave-running"])?;
    row.go_on(5)?;
    done(case, &["write", "/dir/new/file", "later"])?;
    let (other, id) = (case.other_id(), case.id.clone());
    let lines = begin(case, &["restore", "--detach", "--image-path", &images, &other])?;
    // It goes on from where the first one was.
    let mut from: Row = Row::of(lines);
    from.resume()?;
    from.go_on(5)?;
    row.go_on(5)?;
    assert_eq!(read(case, "/dir/new/file")?, "later");
    case.id = other;
    is_changed(case)?;
    let copy = case.id.clone();
    case.call(&["delete", "--force", &copy])?.success()?;
    case.id = id;
    row.go_on(5)?;
    deleted(case)?;
    clear(case)
}

fn missing_image(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let (archive, layout) = (exported(case)?, case.path("layout"));
    image(case, &["remove", "test"])?.success()?;
    clear(case)?;
    let said = not_restored(case, &["--import", &archive])?;
    assert!(said.contains("image \"test:latest\" (sha256:") && said.contains("is not in the store"), "{said}");
    assert!(said.contains("`ferry image pull test:latest`"), "{said}");
    image(case, &["import", &layout])?.success()?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    deleted(case)
}

/// The archive with another part.
fn with_part(archive: &str, name: &str, bytes: &[u8]) -> Outcome {
    let mut whole = entries(archive)?;
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let part = json!({"size": bytes.len(), "digest": format!("sha256:{digest}")});
    whole.iter_mut().find(|(found, _)| found == name).ok_or("no such part")?.1 = bytes.to_vec();
    let whole = with_manifest(&whole, |manifest| manifest["parts"][name] = part)?;
    Ok(fs::write(archive, tarred(&whole)?)?)
}

fn wider(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let archive = exported(case)?;
    let whole = fs::read(&archive)?;
    let spec = entries(&archive)?.into_iter().find(|(name, _)| name == "spec.dump").ok_or("no spec.dump")?.1;
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (
            |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]),
            "process.capabilities.bounding differs, and nothing was run",
        ),
        (|spec| spec["linux"]["maskedPaths"] = json!([]), "linux.maskedPaths differs"),
        (
            |spec| {
                let bind = json!({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]});
                spec["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(bind.clone()));
            },
            "mounts differs",
        ),
        (|spec| spec["hooks"] = json!({"poststart": [{"path": "/bin/true"}]}), "hooks differs"),
        (|spec| spec["process"]["user"]["uid"] = json!(u32::MAX), "process.user: 4294967295 is not a valid id"),
        (|spec| spec["process"]["env"][0] = json!("A=\0"), "process.env[0]: holds a NUL byte"),
    ];
    for (change, told) in changes {
        let mut spec: Value = serde_json::from_slice(&spec)?;
        change(&mut spec);
        with_part(&archive, "spec.dump", &serde_json::to_vec(&spec)?)?;
        let said = not_restored(case, &["--import", &archive])?;
        assert!(said.contains(told), "{told}: {said}");
        fs::write(&archive, &whole)?;
    }
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    deleted(case)
}

fn leading_out(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let archive = exported(case)?;
    let (whole, outside) = (fs::read(&archive)?, case.host_directory("outside")?);
    let layers = [
        Layer::new().file("../../../../outside/file", 0o644, b"out")?,
        Layer::new().link("way", &outside.display().to_string())?.file("way/file", 0o644, b"out")?,
        Layer::new().hard_link("stolen", "/etc/hostname")?,
    ];
    for layer in layers {
        with_part(&archive, "rootfs-diff.tar", &layer.finish()?)?;
        // Refused, or made inside; never outside.
        let (store, id) = (case.path("store"), case.id.clone());
        case.call(&["--store", &store, "restore", "--detach", "--import", &archive])?;
        assert_eq!(names_in(&outside), Vec::<String>::new());
        case.call(&["delete", "--force", &id])?.success()?;
        assert_eq!(uses(case), Vec::<String>::new());
        fs::write(&archive, &whole)?;
    }
    with_part(&archive, "rootfs-diff.tar", b"no archive at all")?;
    let said = not_restored(case, &["--import", &archive])?;
    assert!(said.contains("rootfs-diff.tar"), "{said}");
    fs::write(&archive, &whole)?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    deleted(case)
}

fn refused(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let (id, images) = (case.id.clone(), case.path("images"));
    ferry(case, &["snapshot", "create", &id, "one"])?.success()?;
    row.go_on(3)?;
    let store = case.path("store");
    // The program begins anew.
    let mut row = Row::of(case.begin(&["--store", &store, "snapshot", "rollback", &id, "one"])?);
    row.go_on(3)?;
    let said = ferry(case, &["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("it was rolled back to snapshot \"one\"") && said.contains("ferry image commit"), "{said}");
    row.go_on(3)?;
    deleted(case)?;
    // A directory with mounts below it is put together of several overlays.
    let probe = case.stage.probe.display().to_string();
    let command = ["run", "--detach", "--rootfs", "/", "--name", &id, "--", &probe, "count", "1000000", "0"];
    let mut row = Row::of(case.begin(&command)?);
    row.go_on(3)?;
    let said = ferry(case, &["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("its root is put together of several mounts"), "{said}");
    row.go_on(3)?;
    assert!(!Path::new(&images).exists(), "nothing was begun");
    deleted(case)
}

fn rootless(case: &mut Case) -> Outcome {
    let (tree, id, images) = (case.bundle.rootfs().display().to_string(), case.id.clone(), case.path("images"));
    let mut row = counter(case, &["--rootfs", &tree])?;
    let said = ferry(case, &["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("its root is an overlay in a user namespace"), "{said}");
    row.go_on(3)?;
    case.call(&["delete", "--force", &id])?.success().map(drop)
}

#[allow(clippy::disallowed_methods, reason = "the moments are what the test is about")]
fn killed_restore(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    change(case)?;
    let (images, id, store) = (saved(case, &[])?, case.id.clone(), case.path("store"));
    for number in 0..6_u64 {
        let errors = fs::File::options().write(true).open(case.directory.join("errors"))?;
        let (_lines, pipe) = Lines::pipe(case.patience())?;
        let mut command = case.command(&["--store", &store, "restore", "--detach", "--image-path", &images, &id]);
        let mut child = command.stdout(pipe).stderr(errors).spawn()?;
        std::thread::sleep(Duration::from_millis(number * 30));
        child.kill()?;
        output::wait(&mut child, case.patience())?;
        case.call(&["delete", "--force", &id])?.success()?;
        // What lost its ferry ends by itself.
        marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "at {number}");
        assert_eq!(uses(case), Vec::<String>::new(), "at {number}");
    }
    let lines = begin(case, &["restore", "--detach", "--image-path", &images, &id])?;
    row.continued(lines)?;
    is_changed(case)?;
    deleted(case)
}
