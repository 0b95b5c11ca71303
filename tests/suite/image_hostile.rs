//! Archives that mean harm or are broken, made by the hundred: each is imported or refused with a reason, nothing is left half done,
//! and nothing outside of the store changes.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, names_in, remove_tree};
use super::dice::Dice;
use super::hostile_archives::{self, Fate};
use super::image::{base, clear, ferry, image, run};
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use super::stage;
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("broken_sources_leave_nothing", &[Ferry], broken),
    scenario("hostile_layers_stay_inside", &[Ferry], hostile),
    scenario("a_configuration_that_breaks_a_rule_is_refused", &[Ferry], lawless),
    scenario("bombs_end_at_the_limit", &[Ferry], bomb),
    scenario("generated_archives_leave_nothing", &[Ferry, Tool("unshare")], generated),
    scenario("a_full_disk_loses_nothing", &[Ferry, Tool("unshare"), Tool("mount")], full_disk),
];

/// Each way of being broken: refused with its reason, and the store is as it was.
fn broken(case: &mut Case) -> Outcome {
    let good = [base(case)?];
    let fresh = |case: &mut Case| -> Result<PathBuf, Failed> {
        let path = PathBuf::from(case.path(&format!("broken-{}", names_in(&case.directory).len())));
        fixtures::layout(&path, "broken:latest", &good, &json!({}))?;
        Ok(path)
    };
    let largest = |path: &PathBuf| -> Result<PathBuf, Failed> {
        let mut blobs: Vec<_> = fs::read_dir(path.join("blobs/sha256"))?.collect::<Result<_, _>>()?;
        blobs.sort_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()));
        Ok(blobs.pop().ok_or("no blobs")?.path())
    };
    let refused = |case: &mut Case, path: &PathBuf, said: &[&str]| -> Outcome {
        let end = image(case, &["import", &path.display().to_string()])?.failure()?;
        assert!(said.iter().any(|said| end.stderr.contains(said)), "{said:?}: {}", end.stderr);
        assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "");
        for directory in ["blobs/sha256", "layers", "tmp"] {
            assert_eq!(names_in(&PathBuf::from(case.path("store")).join(directory)), Vec::<String>::new(), "{said:?}");
        }
        Ok(())
    };
    let path = fresh(case)?;
    let blob = largest(&path)?;
    let mut bytes = fs::read(&blob)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&blob, &bytes)?;
    refused(case, &path, &["cannot read layer", "its content"])?;

    let path = fresh(case)?;
    let blob = largest(&path)?;
    let bytes = fs::read(&blob)?;
    fs::write(&blob, &bytes[..bytes.len() / 2])?;
    refused(case, &path, &["bytes and not"])?;

    let path = fresh(case)?;
    fs::remove_file(largest(&path)?)?;
    refused(case, &path, &["ENOENT"])?;

    // The blob is what the manifest says, and no gzip to its end.
    let path = fresh(case)?;
    let cut = &fixtures::gzip(&good[0])?;
    let layer = fixtures::blob(&path, "application/vnd.oci.image.layer.v1.tar+gzip", &cut[..cut.len() - 100])?;
    let config = fixtures::blob(
        &path,
        "application/vnd.oci.image.config.v1+json",
        fixtures::config(&good, &json!({})).to_string().as_bytes(),
    )?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let mut entry = fixtures::blob(&path, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "cut:1"});
    fixtures::index(&path, &[entry])?;
    refused(case, &path, &["cannot read layer"])?;

    // The archive is another one than the configuration says.
    let path = fresh(case)?;
    let other = fixtures::blob(
        &path,
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &fixtures::gzip(&Layer::new().file("x", 0o644, b"")?.finish()?)?,
    )?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [other]}).to_string();
    let mut entry = fixtures::blob(&path, "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "other:1"});
    fixtures::index(&path, &[entry])?;
    refused(case, &path, &["and the configuration says"])?;

    let path = fresh(case)?;
    let entry = fixtures::blob(&path, "application/vnd.cncf.helm.config.v1+json", b"{}")?;
    fixtures::index(&path, &[entry])?;
    refused(case, &path, &["cannot understand media type \"application/vnd.cncf.helm.config.v1+json\""])?;

    let path = fresh(case)?;
    fs::write(path.join("oci-layout"), "{\"imageLayoutVersion\":\"9.0\"}")?;
    refused(case, &path, &["its version is \"9.0\""])?;

    // An index that names itself cannot have its own digest; one that says so is found out.
    let path = fresh(case)?;
    let digest = ferry::image::digest::Digest::of(b"itself");
    let cycle = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
                       "digest": digest.to_string(), "size": 6}]});
    fs::write(path.join("blobs/sha256").join(digest.hex()), cycle.to_string())?;
    fs::write(path.join("index.json"), cycle.to_string())?;
    refused(case, &path, &["cannot verify", "contains itself", "bytes"])?;

    let path = PathBuf::from(case.path("text"));
    fs::write(&path, "this is no archive\n".repeat(100))?;
    refused(case, &path, &["cannot read archive"])?;
    Ok(())
}

fn hostile(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    fs::write(outside.join("canary"), "sings")?;
    let target = outside.display().to_string();
    let up = format!("{}{}", "../".repeat(12), target.trim_start_matches('/'));
    let layers = [
        ("dots", Layer::new().file("a/../../../../../../../../tmp/x", 0o644, b"x")?, Some("leads out of the layer")),
        ("hard", Layer::new().hard_link("inside", "../../../../../etc/passwd")?, Some("leads out of the layer")),
        ("absolute-hard", Layer::new().hard_link("inside", "/etc/passwd-of-nobody")?, Some("is a hard link to")),
        ("through", Layer::new().link("way", &target)?.file("way/canary", 0o644, b"dead")?, None),
        ("upwards", Layer::new().link("way", &up)?.file("way/canary", 0o644, b"dead")?, None),
        ("over", Layer::new().link("canary", &format!("{target}/canary"))?.file("canary", 0o644, b"dead")?, None),
        ("whiteout", Layer::new().link("way", &target)?.file("way/.wh.canary", 0o644, b"")?, None),
        ("dots-whiteout", Layer::new().file(".wh...", 0o644, b"")?, Some("cannot unpack")),
    ];
    for (name, layer, said) in layers {
        let path = case.path(name);
        fixtures::layout(path.as_ref(), &format!("{name}:1"), &[layer.finish()?], &json!({}))?;
        let end = image(case, &["import", &path])?;
        match said {
            Some(said) => assert!(end.failure()?.stderr.contains(said), "{name}"),
            // Contained: it is the image's own tree that the link leads into, or there is nothing there.
            None => drop(end),
        }
        assert_eq!(fs::read_to_string(outside.join("canary"))?, "sings", "{name}");
        assert_eq!(names_in(&outside), ["canary"], "{name}");
    }
    clear(case)
}

/// Whoever would become 4294967295 stays root, and what holds a NUL byte would be cut or empty.
fn lawless(case: &mut Case) -> Outcome {
    let group = Layer::new().file("etc/group", 0o644, b"crew:x:4294967295:ship\n")?.finish()?;
    let faults = [
        (json!({"User": "4294967295"}), "the image's User: process.user: 4294967295 is not a valid id"),
        (json!({"User": "1:4294967295"}), "the image's User: process.user: "),
        (json!({"User": "ship"}), "the image's User: process.user: "),
        (json!({"Env": ["A=1", "B=\0"]}), "the image's Env: process.env["),
        (json!({"WorkingDir": "/a\0b"}), "the image's WorkingDir: process.cwd: holds a NUL byte"),
        (
            json!({"Entrypoint": ["/probe", "say", "a\0b"]}),
            "the image's Entrypoint and Cmd, or the command in their place: ",
        ),
    ];
    for (index, (execution, said)) in faults.iter().enumerate() {
        let (path, name) = (case.path(&format!("lawless-{index}")), format!("lawless:{index}"));
        fixtures::layout(path.as_ref(), &name, &[base(case)?, group.clone()], execution)?;
        image(case, &["import", &path])?.success()?;
        let told = run(case, &name, &["/probe"])?.failure()?.stderr;
        assert!(told.contains(said), "{said}: {told}");
        let bundle = case.path("bundle");
        let told = ferry(case, &["bundle", "create", "--image", &name, &bundle, "--", "/probe"])?.failure()?.stderr;
        assert!(told.contains(said), "{said}: {told}");
    }
    let path = case.path("volume");
    fixtures::layout(path.as_ref(), "volume:1", &[base(case)?], &json!({"Cmd": ["/probe"], "Volumes": {"/a\0b": {}}}))?;
    image(case, &["import", &path])?.success()?;
    let bundle = case.path("bundle");
    let told = ferry(case, &["bundle", "create", "--image", "volume:1", &bundle])?.failure()?.stderr;
    assert!(told.contains("the image's Volumes: mounts[") && told.contains("holds a NUL byte"), "{told}");
    clear(case)
}

fn bomb(case: &mut Case) -> Outcome {
    let path = case.path("bomb");
    fixtures::layout(
        path.as_ref(),
        "bomb:1",
        &[Layer::new().file("zeros", 0o644, &vec![0; 4 << 20])?.finish()?],
        &json!({}),
    )?;
    let end = image(case, &["import", "--max-size", "1m", &path])?.failure()?;
    assert!(end.stderr.contains("--max-size raises it"), "{}", end.stderr);
    assert_eq!(names_in(&PathBuf::from(case.path("store/tmp"))), Vec::<String>::new());
    image(case, &["import", "--max-size", "8m", &path])?.success()?;
    // A header that would fill the memory before anything is unpacked.
    let path = case.path("header");
    let layer = Layer::new().records(&[("comment", &vec![b'x'; 17 << 20])])?.file("a", 0o644, b"")?.finish()?;
    fixtures::layout(path.as_ref(), "header:1", &[layer], &json!({}))?;
    let end = image(case, &["import", &path])?.failure()?;
    assert!(end.stderr.contains("a header has more than 16777216 bytes"), "{}", end.stderr);
    // An archive that is unpacked before anybody knows its layers: more than 500 of them could have, and what is beside them.
    let path = case.path("archive.tar.gz");
    let mut packed = GzEncoder::new(fs::File::create(&path)?, Compression::fast());
    std::io::copy(&mut std::io::repeat(0).take(192 << 20), &mut packed)?;
    packed.finish()?;
    let end = image(case, &["import", "--max-size", "64k", "--format", "oci", &path])?.failure()?;
    assert!(end.stderr.contains("--max-size raises it"), "{}", end.stderr);
    clear(case)
}

/// What must not change: where hostile names lead to, and what is beside the store's own.
fn untouched(case: &Case, outside: &Path, number: u64) -> Outcome {
    assert_eq!(names_in(outside), ["canary"], "number {number}");
    assert_eq!(fs::read_to_string(outside.join("canary"))?, "sings", "number {number}");
    let mut own = names_in(case.path("store").as_ref());
    own.sort();
    assert_eq!(
        own,
        ["blobs", "containers", "format", "images.json", "images.lock", "images.spare", "layers", "lock", "tmp"],
        "number {number}"
    );
    assert_eq!(names_in(&PathBuf::from(case.path("store/tmp"))), Vec::<String>::new(), "number {number}");
    Ok(())
}

/// Imports one archive, and makes a bundle of what was taken; answers whether it was.
fn tried(case: &mut Case, number: u64, outside: &Path) -> Result<bool, Failed> {
    let (kind, fate, path) = hostile_archives::make(case, number, outside)?;
    let named = format!("number {number}, {kind}");
    case.forget_transcript();
    let end = image(case, &["import", "--max-size", "1m", "--name", "test:latest", &path.display().to_string()])?;
    let said = format!("{named}: {}", end.stderr);
    assert!(!end.stderr.contains("panicked"), "{said}");
    match end.code {
        0 => {
            assert_eq!(fate, Fate::Either, "{named}: it was taken");
            let bundle = case.path("bundle");
            // Its files or an error: what the layers together show has not been looked at before.
            ferry(case, &["bundle", "create", "--image", "test:latest", &bundle, "--", "/probe"])?;
            if Path::new(&bundle).exists() {
                // Its files have modes and owners of which only root, here or of the user's own ids, gets rid.
                let root = nix::unistd::geteuid().is_root();
                let mut remove = Command::new(if root { "rm" } else { "unshare" });
                remove.args(if root { &[][..] } else { &["--user", "--map-root-user", "--map-auto", "rm"] });
                case.finish(remove.args(["-r", &bundle]))?.success()?;
            }
            image(case, &["remove", "test:latest"])?.success()?;
        }
        1 => assert!(end.stderr.starts_with("ferry: "), "{said}"),
        other => return Err(format!("it ended with {other}: {said}").into()),
    }
    if path.is_dir() {
        remove_tree(&path)?;
    } else {
        fs::remove_file(&path)?;
    }
    Ok(end.code == 0)
}

fn generated(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    fs::write(outside.join("canary"), "sings")?;
    // The store has all its files before anything is counted.
    let first = case.path("first");
    fixtures::layout(first.as_ref(), "first:1", &[base(case)?], &json!({}))?;
    image(case, &["import", &first])?.success()?;
    let before = image(case, &["list"])?.success()?.stdout;
    let count = if stage::is_long() { 520 } else { 3 * hostile_archives::kinds() as u64 };
    let mut taken = 0;
    for number in 0..count {
        if tried(case, number, &outside)? {
            taken += 1;
        }
        untouched(case, &outside, number)?;
        assert_eq!(image(case, &["list"])?.success()?.stdout, before, "number {number}");
    }
    // Neither end is all there is: else the archives would show nothing.
    assert!(taken > count / 20 && count - taken > count / 4, "{taken} of {count} were taken");
    let pruned = image(case, &["prune", "--format", "json"])?.success()?.json()?;
    assert_eq!(pruned["unfinished"], 0, "{pruned}");
    image(case, &["check"])?.success()?;
    clear(case)
}

/// What is done on a disk of a few megabytes: an image comes and runs, others are too large for what is left, and the first is
/// still whole each time.
const FULL: &str = r#"
set -e
mount -t tmpfs -o size=12m,mode=0700 none "$STORE"
image() { "$FERRY" --store "$STORE" image "$@"; }
whole() { image check >/dev/null && test "$(image list -q)" = small:1; }
refused() { if "$@" 2>"$STORE.errors"; then echo "not refused: $*"; exit 1; fi; grep -q "ENOSPC" "$STORE.errors" || { cat "$STORE.errors"; exit 1; }; }
image import small >/dev/null
whole
refused image import large
whole
test -z "$(ls "$STORE/tmp")"
refused image import middle
whole
# Not a byte more: not even a name can be added, and none is lost; but one can go, and then what it named.
image tag small:1 gone:1
dd if=/dev/zero of="$STORE/filler" bs=64k 2>/dev/null || true
dd if=/dev/zero of="$STORE/crumbs" bs=512 2>/dev/null || true
refused image tag small:1 other:1
image remove gone:1 >/dev/null
whole
refused image tag small:1 other:1
image prune --all >/dev/null
test -z "$(image list -q)$(ls "$STORE/layers")"
rm "$STORE/filler" "$STORE/crumbs"
image import small >/dev/null
image tag small:1 other:1
image remove other:1 >/dev/null
whole
image prune >/dev/null
whole
echo "nothing lost"
"#;

fn full_disk(case: &mut Case) -> Outcome {
    let noise = |size: usize| {
        let mut dice = Dice::new(size as u64);
        (0..size).map(|_| dice.roll(256) as u8).collect::<Vec<u8>>()
    };
    for (name, layers) in [
        ("small", vec![base(case)?]),
        // The blob alone is too large; the blob is not, and what is in it is.
        ("large", vec![Layer::new().file("noise", 0o644, &noise(16 << 20))?.finish()?]),
        ("middle", vec![base(case)?, Layer::new().file("ones", 0o644, &vec![1; 16 << 20])?.finish()?]),
    ] {
        fixtures::layout(case.path(name).as_ref(), &format!("{name}:1"), &layers, &json!({"Cmd": ["/probe"]}))?;
    }
    let store = case.host_directory("store")?;
    let root = nix::unistd::geteuid().is_root();
    let mut shell = Command::new("unshare");
    shell.args(if root { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] });
    shell.args(["sh", "-c", FULL]).current_dir(&case.directory);
    shell.env("STORE", store).env("FERRY", &case.stage.runtime.path);
    let end = case.finish(&mut shell)?;
    assert!(end.code == 0 && end.stdout.contains("nothing lost"), "{} {}", end.stdout, end.stderr);
    Ok(())
}
