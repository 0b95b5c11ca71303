//! `ferry image prune` and `check` where something cannot be read, is damaged or in use: nothing goes that an image or a container
//! needs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::image::{base, clear, image, import, run};
use super::need::Need::{Ferry, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("prune_stops_where_it_cannot_read", &[Ferry], prune_unreadable),
    scenario("one_that_is_read_only_is_read", &[Ferry, Root, Tool("unshare")], read_only),
    scenario("a_layer_in_use_is_not_repaired", &[Ferry], repair_in_use),
    scenario("a_damaged_blob_is_removed_and_comes_again", &[Ferry], damaged_blob),
    scenario("whatever_is_lost_of_a_layer_is_noticed", &[Ferry], lost),
    scenario("nothing_is_removed_while_it_is_checked", &[Ferry, Tool("flock")], checked_alone),
    scenario("nobody_else_may_write_to_a_new_store_or_above_it", &[Ferry], modes),
    scenario("one_that_everybody_may_write_to_is_refused", &[Ferry], everybodys),
];

/// Where the store has a document of the image `test`.
fn document(case: &mut Case, of: impl Fn(&serde_json::Value) -> Option<&str>) -> Result<PathBuf, Failed> {
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let digest = of(&found).ok_or_else(|| format!("no digest in {found}"))?;
    Ok(PathBuf::from(case.path("store/blobs")).join(digest.replace(':', "/")))
}

/// A directory in a document's place is what a reader gets an answer of the kernel's from (EISDIR); other bytes are damage.
fn prune_unreadable(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({"Cmd": ["/probe"]}))?;
    let manifest = document(case, |found| found["digest"].as_str())?;
    let config = document(case, |found| found["manifest"]["config"]["digest"].as_str())?;
    let kept = |case: &Case| {
        ["layers", "blobs/sha256"].map(|of| {
            let mut names = names_in(&PathBuf::from(case.path("store")).join(of));
            names.sort_unstable();
            names
        })
    };
    let before = kept(case);
    assert_eq!(before.each_ref().map(Vec::len), [1, 3], "{before:?}");
    for document in [manifest, config] {
        let bytes = fs::read(&document)?;
        fs::remove_file(&document)?;
        fs::create_dir(&document)?;
        let refused = image(case, &["prune"])?.failure()?;
        assert!(refused.stderr.contains("EISDIR") && refused.stderr.contains("image check"), "{}", refused.stderr);
        assert_eq!(kept(case), before);
        fs::remove_dir(&document)?;
        fs::write(&document, "rot")?;
        let refused = image(case, &["prune"])?.failure()?;
        assert!(refused.stderr.contains("image check"), "{}", refused.stderr);
        assert_eq!(kept(case), before);
        fs::write(&document, bytes)?;
    }
    image(case, &["prune"])?.success()?;
    run(case, "test", &[])?.success()?;
    // What nobody asks for any more is in nobody's way, damaged or not.
    let manifest = document(case, |found| found["digest"].as_str())?;
    fs::write(manifest, "rot")?;
    clear(case)
}

/// What `image check` tells with these flags, and how it ends.
fn checked(case: &mut Case, flags: &[&str]) -> Result<(i32, Value), Failed> {
    let end = image(case, &[&["check", "--format", "json"], flags].concat())?;
    Ok((end.code, end.json()?))
}

/// By its size it is the one that it was. It is a container's that runs, and has no name any more.
fn damaged_blob(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let blob = document(case, |found| found["manifest"]["layers"][0]["digest"].as_str())?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    image(case, &["remove", "test"])?.success()?;
    let whole = fs::read(&blob)?;
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    fs::write(&blob, &bytes)?;
    let (code, found) = checked(case, &[])?;
    let told = found["damages"].to_string();
    assert!(code == 1 && told.contains(&format!("container \\\"{id}\\\": cannot verify")), "{found}");
    assert!(told.contains("--repair removes it") && blob.exists(), "{found}");
    let (code, found) = checked(case, &["--repair"])?;
    assert!(code == 1 && found["damages"].to_string().contains("it is no use and was removed"), "{found}");
    assert!(!blob.exists());
    let layout = case.path("layout");
    image(case, &["import", &layout])?.success()?;
    assert_eq!(fs::read(&blob)?, whole);
    let (code, found) = checked(case, &[])?;
    assert_eq!((code, &found["images"], &found["damages"]), (0, &json!(1), &json!([])), "{found}");
    case.exec(&[], &["/probe", "read", "/etc/group"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

/// Files without content, links, directories; and what came in addition.
fn lost(case: &mut Case) -> Outcome {
    let layer = Layer::new().file("empty", 0o644, b"")?.link("link", "probe")?.hard_link("too", "etc/passwd")?;
    import(case, vec![layer.finish()?], &json!({"Cmd": ["/probe"]}))?;
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let layer = PathBuf::from(found["directories"][1].as_str().unwrap_or_default());
    let base = PathBuf::from(found["directories"][0].as_str().unwrap_or_default());
    let changes: [&dyn Fn() -> std::io::Result<()>; 6] = [
        &|| fs::remove_file(layer.join("empty")),
        &|| fs::remove_file(layer.join("link")),
        &|| fs::remove_file(layer.join("too")),
        &|| fs::write(layer.join("etc/passwd"), "root"),
        &|| fs::remove_dir(base.join("home")),
        &|| fs::create_dir_all(base.join("home/more")),
    ];
    for (number, change) in changes.iter().enumerate() {
        assert_eq!(checked(case, &[])?.0, 0, "{number}");
        change()?;
        let (code, found) = checked(case, &[])?;
        assert_eq!((code, found["damages"].as_array().map(Vec::len)), (1, Some(1)), "{number}: {found}");
        let (code, found) = checked(case, &["--repair"])?;
        assert_eq!((code, found["repaired"].as_array().map(Vec::len)), (0, Some(1)), "{number}: {found}");
    }
    // A record of before says nothing of entries.
    let record = layer.with_file_name("layer.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&record)?)?;
    assert!(text.as_object_mut().and_then(|text| text.remove("contents")).is_some(), "{text}");
    fs::write(&record, text.to_string())?;
    assert_eq!(checked(case, &[])?.0, 0);
    run(case, "test", &[])?.success()?;
    clear(case)
}

/// A blob that says nothing until the lock was tried.
fn checked_alone(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let blob = document(case, |found| found["manifest"]["layers"][0]["digest"].as_str())?;
    let (kept, store) = (case.path("kept"), case.path("store"));
    fs::rename(&blob, &kept)?;
    nix::unistd::mkfifo(&blob, nix::sys::stat::Mode::S_IRWXU)?;
    let mut check = case.command(&["--store", &store, "image", "check"]).stdout(Stdio::piped()).spawn()?;
    // It opens what is being read by then, or waits for that.
    let script = "exec 9>\"$0\"; flock --exclusive --nonblock \"$1/lock\" echo nobody looks; cat \"$2\" >&9";
    let told = case.finish(Command::new("sh").args(["-c", script]).arg(&blob).args([&store, &kept]));
    if told.is_err() {
        check.kill()?;
    }
    let end = check.wait_with_output()?;
    assert_eq!(told?.stdout, "");
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stdout));
    fs::rename(&kept, &blob)?;
    clear(case)
}

fn modes(case: &mut Case) -> Outcome {
    let (archive, above) = (PathBuf::from(case.path("base.tar")), PathBuf::from(case.path("above")));
    fs::write(&archive, base(case)?)?;
    for umask in ["000", "077"] {
        let store = above.join(umask).join("store");
        let verb = format!("umask {umask}; exec \"$@\"");
        let ferry = case.command(&["--store", &store.display().to_string(), "image", "import", "--name", "test"]);
        let mut command = Command::new("sh");
        command.args(["-c", &verb, "sh"]).arg(ferry.get_program()).args(ferry.get_args()).arg(&archive);
        case.finish(&mut command)?.success()?;
        for made in [above.as_path(), &above.join(umask), &store] {
            assert_eq!(fs::metadata(made)?.permissions().mode() & 0o7777, 0o700, "{}", made.display());
        }
        case.call(&["--store", &store.display().to_string(), "image", "prune", "--all"])?.success()?;
    }
    Ok(())
}

fn everybodys(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    fs::set_permissions(case.path("store"), Permissions::from_mode(0o777))?;
    for refused in [image(case, &["list"])?, image(case, &["prune"])?, run(case, "test", &[])?] {
        let told = refused.failure()?.stderr;
        assert!(told.contains("everybody may write there (mode 0777)"), "{told}");
    }
    fs::set_permissions(case.path("store"), Permissions::from_mode(0o775))?;
    run(case, "test", &["/probe", "exit", "0"])?.success()?;
    clear(case)
}

/// As where the filesystem has become so after an error.
fn read_only(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (store, one, other) = (case.path("store"), case.path("one.tar"), case.path("other.tar"));
    image(case, &["export", "-o", &one, "test"])?.success()?;
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let mut read_only = |args: &[&str]| {
        let ferry = case.command(&[&["--store", &store, "image"], args].concat());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, &store]).arg(ferry.get_program()).args(ferry.get_args());
        case.finish(&mut command)
    };
    read_only(&["check"])?.success()?;
    read_only(&["export", "-o", &other, "test"])?.success()?;
    let refused = read_only(&["remove", "test"])?.failure()?;
    assert!(refused.stderr.contains("EROFS"), "{}", refused.stderr);
    assert!(fs::read(one)? == fs::read(other)?);
    clear(case)
}

fn repair_in_use(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let layer = PathBuf::from(found["directories"][0].as_str().unwrap_or_default());
    fs::write(layer.join("etc/passwd"), "")?;
    let told = image(case, &["check", "--repair", "--format", "json"])?;
    assert_eq!(told.code, 1);
    let damages = told.json()?["damages"].to_string();
    assert!(damages.contains("cannot repair layer") && damages.contains(&id), "{damages}");
    let seen = case.exec(&[], &["/probe", "read", "/etc/group"])?.success()?.json()?;
    assert!(seen["ok"].as_str().is_some_and(|text| text.contains("crew")), "{seen}");
    case.call(&["delete", "--force", &id])?.success()?;
    let told = image(case, &["check", "--repair", "--format", "json"])?.success()?.json()?;
    assert_eq!(told["repaired"].as_array().map(Vec::len), Some(1), "{told}");
    clear(case)
}
