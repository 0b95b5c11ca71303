//! `image diff`, `commit` and `export`: what a container changed becomes a layer, and an image an archive for other tools.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use libtest_mimic::Failed;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::case::Case;
use super::image::image;
use super::need::Need::{Ferry, Tool};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("changes_become_a_layer", &[Ferry, Tool("busybox")], changes),
    scenario("who_reads_a_container_has_it_locked", &[Ferry, Tool("busybox")], locked),
    scenario("an_export_is_the_same_image", &[Ferry], export),
    scenario("exports_are_loaded_by_others", &[Ferry, Tool("busybox"), Tool("skopeo"), Tool("umoci")], others),
];

/// What the container of [`changed`] does to its files.
const DEEDS: &str = "rm /gone /replaced /etc/group && rm -r /full && mkdir /full && echo new >/full/new && ln /full/new /full/same && \
                     mv /dir /moved && ln -s ../moved/a /full/link && echo more >>/kept && chmod 4711 /full/new && \
                     touch -d '2001-02-03 04:05:06' /full/new";

fn shell(case: &mut Case, image: &str, line: &str) -> Result<String, Failed> {
    let store = case.path("store");
    let run = ["--store", &store, "run", "--image", image, "--", "/bin/busybox", "sh", "-c", line];
    Ok(case.call(&run)?.success()?.stdout)
}

/// An image of two layers, and a container of it that has changed its files and still runs.
fn changed(case: &mut Case) -> Outcome {
    let lower = fixtures::base(&case.stage.probe)?.directory("bin/")?.directory("full/")?.directory("dir/")?;
    let lower = lower.file("bin/busybox", 0o755, &fs::read("/bin/busybox")?)?;
    let upper = Layer::new().file("full/old", 0o644, b"old")?.file("dir/a", 0o640, b"a")?;
    let upper = upper.file("gone", 0o644, b"")?.file("kept", 0o644, b"kept\n")?.file("replaced", 0o644, b"")?;
    let path = case.path("layout");
    let layers = [lower.finish()?, upper.finish()?];
    fixtures::layout(path.as_ref(), "test:latest", &layers, &json!({"Cmd": ["/probe"], "Labels": {"a": "b"}}))?;
    image(case, &["import", &path])?.success()?;
    let (id, store) = (case.id.clone(), case.path("store"));
    let run = ["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"];
    case.begin(&run)?.until("ready")?;
    case.exec(&[], &["/bin/busybox", "sh", "-c", DEEDS])?.success()?;
    // A socket that stays when nobody listens any more.
    let (mut agent, mut lines) = case.spawn(&["exec", &id, "/probe", "agent", "/replaced", "0"])?;
    lines.until("ready")?;
    agent.kill()?;
    agent.wait()?;
    Ok(())
}

/// Files are as [`DEEDS`] left them.
const SEEN: &str = "test ! -e /gone && test ! -e /replaced && test ! -e /etc/group && test ! -e /full/old && test ! -e /dir && cat /full/same \
                    /full/link /kept && busybox stat -c '%a %h %Y' /full/new && busybox stat -c %a /moved/a";
const SEES: &str = "new\nakept\nmore\n4711 2 981173106\n640\n";

fn seen() -> String {
    SEEN.replace("busybox stat", "/bin/busybox stat").replace("cat ", "/bin/busybox cat ")
}

fn changes(case: &mut Case) -> Outcome {
    changed(case)?;
    let id = case.id.clone();
    let (one, other) = (case.path("one.tar"), case.path("other.tar"));
    image(case, &["diff", "-o", &one, &id])?.success()?;
    image(case, &["diff", "--output", &other, &id])?.success()?;
    assert!(fs::read(&one)? == fs::read(&other)?, "the same changes give the same archive");
    let mut archive = tar::Archive::new(fs::File::open(&one)?);
    let mut names = Vec::new();
    for entry in archive.entries()? {
        names.push(String::from_utf8_lossy(&entry?.path_bytes()).into_owned());
    }
    for name in [
        ".wh.gone",
        ".wh.replaced",
        ".wh.dir",
        "etc/.wh.group",
        "full/.wh..wh..opq",
        "full/new",
        "full/same",
        "moved/a",
        "kept",
    ] {
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
    for name in ["full/old", "bin/busybox", "probe", "gone"] {
        assert!(!names.iter().any(|found| found == name), "{name} is among {names:?}");
    }
    let made = image(case, &["commit", "--created", "1700000000", &id, "new:1"])?.success()?.stdout;
    let again = image(case, &["commit", "--created", "1700000000", &id, "again:1"])?.success()?.stdout;
    assert_eq!(made.replace("new:1", ""), again.replace("again:1", ""), "the same changes give the same image");
    let refused = image(case, &["commit", "nowhere", "x:1"])?.failure()?;
    assert!(refused.stderr.contains("container \"nowhere\" does not exist"), "{}", refused.stderr);
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(shell(case, "new:1", &seen())?, SEES);
    let found = image(case, &["inspect", "new:1"])?.success()?.json()?;
    assert_eq!(
        (&found["config"]["created"], &found["config"]["config"]["Labels"]["a"]),
        (&json!("2023-11-14T22:13:20Z"), &json!("b"))
    );
    assert_eq!(found["manifest"]["layers"].as_array().map(Vec::len), Some(3));
    image(case, &["check"])?.success()?;
    image(case, &["prune", "--all"])?.success()?;
    Ok(())
}

/// A rollback that came in between would leave an image of what never was.
fn locked(case: &mut Case) -> Outcome {
    changed(case)?;
    let (id, store, archive) = (case.id.clone(), case.path("store"), case.path("diff.tar"));
    let container = fs::File::open(case.state_root().join(&id))?;
    for verb in [&["diff", "-o", &archive, &id][..], &["commit", &id, "new:1"]] {
        // It comes no further than to the store.
        let alone = fs::File::open(Path::new(&store).join("lock"))?;
        flock(&alone, FlockOperation::NonBlockingLockExclusive)?;
        let mut reader = case.command(&[&["--store", &store, "image"], verb].concat()).stdout(Stdio::null()).spawn()?;
        let end = Instant::now() + case.patience();
        while flock(&container, FlockOperation::NonBlockingLockExclusive).is_ok() {
            flock(&container, FlockOperation::Unlock)?;
            assert!(Instant::now() < end, "{verb:?} leaves the container to others");
            std::thread::yield_now();
        }
        drop(alone);
        assert!(output::wait(&mut reader, case.patience())?.success(), "{verb:?}");
    }
    case.call(&["delete", "--force", &id])?.success()?;
    image(case, &["prune", "--all"])?.success()?;
    Ok(())
}

fn export(case: &mut Case) -> Outcome {
    let path = case.path("layout");
    let layers = [fixtures::base(&case.stage.probe)?.finish()?, Layer::new().file("top", 0o644, b"top")?.finish()?];
    fixtures::layout(path.as_ref(), "test:1", &layers, &json!({"Cmd": ["/probe", "read", "/top"]}))?;
    image(case, &["import", &path])?.success()?;
    let digest = image(case, &["inspect", "test:1"])?.success()?.json()?["digest"].clone();
    let (one, other) = (case.path("one.tar"), case.path("other.tar"));
    fs::write(&other, "what was there before")?;
    image(case, &["export", "-o", &one, "test:1"])?.success()?;
    image(case, &["export", "--output", &other, "test:1"])?.success()?;
    assert!(fs::read(&one)? == fs::read(&other)?, "the same image gives the same archive");
    let printed = case.path("printed.tar");
    let store = case.path("store");
    let mut command = case.command(&["--store", &store, "image", "export", "test:1"]);
    assert!(command.stdout(fs::File::create(&printed)?).status()?.success());
    assert!(fs::read(&one)? == fs::read(&printed)?);
    image(case, &["remove", "test:1"])?.success()?;
    image(case, &["prune"])?.success()?;
    image(case, &["import", &one])?.success()?;
    assert_eq!(image(case, &["inspect", "test:1"])?.success()?.json()?["digest"], digest);
    // As what was pulled by digest is called. No tool takes that for a tag.
    let by_digest = format!("test@{}", digest.as_str().unwrap_or_default());
    let names = Path::new(&store).join("images.json");
    let text = fs::read_to_string(&names)?;
    fs::write(&names, text.replace("test:1", &by_digest))?;
    image(case, &["export", "-o", &printed, &by_digest])?.success()?;
    fs::write(&names, text)?;
    let document = |name: &str| -> Result<Value, Failed> {
        let mut archive = tar::Archive::new(fs::File::open(&printed)?);
        let mut entries = archive.entries()?.filter_map(Result::ok);
        let entry = entries.find(|entry| entry.path_bytes().as_ref() == name.as_bytes()).ok_or("it is not there")?;
        Ok(serde_json::from_reader(entry)?)
    };
    assert_eq!(document("manifest.json")?[0]["RepoTags"], json!([]));
    assert_eq!(document("index.json")?["manifests"][0]["annotations"], Value::Null);
    // A damaged blob makes no archive, and what was at the place stays.
    let blob = digest.as_str().unwrap_or_default().replace("sha256:", "");
    let found = image(case, &["inspect", "test:1"])?.success()?.json()?;
    let layer = found["manifest"]["layers"][1]["digest"].as_str().unwrap_or_default().replace("sha256:", "");
    let damaged = Path::new(&store).join("blobs/sha256").join(layer);
    let mut bytes = fs::read(&damaged)?;
    bytes[20] ^= 1;
    fs::write(&damaged, bytes)?;
    let refused = image(case, &["export", "-o", &one, "test:1"])?.failure()?;
    assert!(refused.stderr.contains("image check"), "{}", refused.stderr);
    assert!(fs::read(&one)? == fs::read(&other)? && !blob.is_empty());
    let left = super::case::names_in(&case.directory);
    assert!(!left.iter().any(|name| name.starts_with("one.tar.")), "{left:?}");
    image(case, &["prune", "--all"])?.success()?;
    Ok(())
}

fn others(case: &mut Case) -> Outcome {
    changed(case)?;
    let id = case.id.clone();
    image(case, &["commit", &id, "localhost/new:1"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    let archive = case.path("new.tar");
    image(case, &["export", "-o", &archive, "localhost/new:1"])?.success()?;
    let copies = case.path("copies");
    for (form, name) in [("oci-archive", "a"), ("docker-archive", "b")] {
        let mut skopeo = Command::new("skopeo");
        let (from, to) = (format!("{form}:{archive}"), format!("oci:{copies}:{name}"));
        skopeo.args(["copy", "--insecure-policy", &from, &to]).env("XDG_RUNTIME_DIR", &case.directory);
        case.finish(&mut skopeo)?.success()?;
        // What umoci makes of the layers is what the container had.
        let (tree, source) = (case.path(name), format!("{copies}:{name}"));
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &source, &tree]);
        if !nix::unistd::geteuid().is_root() {
            umoci.arg("--rootless");
        }
        case.finish(&mut umoci)?.success()?;
        let root = Path::new(&tree).join("rootfs");
        assert_eq!(fs::read_to_string(root.join("full/same"))?, "new\n", "{form}");
        for gone in ["gone", "replaced", "dir", "full/old", "etc/group"] {
            assert!(!root.join(gone).exists(), "{form}: {gone}");
        }
    }
    image(case, &["import", &copies])?.success()?;
    let listed = image(case, &["list", "-q"])?.success()?.stdout;
    let copy = listed.lines().find(|name| name.ends_with(":a")).unwrap_or_default().to_owned();
    assert_eq!(shell(case, &copy, &seen())?, SEES, "{listed}");
    image(case, &["prune", "--all"])?.success()?;
    Ok(())
}
