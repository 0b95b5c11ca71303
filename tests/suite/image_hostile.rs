//! Archives that mean harm or are broken, made by the hundred: each is imported or refused with a reason, nothing is left half done,
//! and nothing outside of the store changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, names_in, remove_tree};
use super::dice::Dice;
use super::hostile_archives::{self, Fate};
use super::image::{base, clear, ferry, image};
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use super::stage;
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("generated_archives_leave_nothing", &[Ferry, Tool("unshare")], generated),
    scenario("a_full_disk_loses_nothing", &[Ferry, Tool("unshare"), Tool("mount")], full_disk),
];

/// What must not change: where hostile names lead to, and what is beside the store's own.
fn untouched(case: &Case, outside: &Path, number: u64) -> Outcome {
    assert_eq!(names_in(outside), ["canary"], "number {number}");
    assert_eq!(fs::read_to_string(outside.join("canary"))?, "sings", "number {number}");
    let mut own = names_in(case.path("store").as_ref());
    own.sort();
    assert_eq!(
        own,
        ["blobs", "containers", "format", "images.json", "images.lock", "layers", "lock", "tmp"],
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
# Not a byte more: not even a name can be added, and none is lost.
dd if=/dev/zero of="$STORE/filler" bs=64k 2>/dev/null || true
dd if=/dev/zero of="$STORE/crumbs" bs=512 2>/dev/null || true
refused image tag small:1 other:1
whole
rm "$STORE/filler" "$STORE/crumbs"
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
        ("middle", vec![base(case)?, Layer::new().file("zeros", 0o644, &vec![0; 16 << 20])?.finish()?]),
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
