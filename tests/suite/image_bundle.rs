//! `ferry bundle create`, and `ferry image mount`: an image's files outside of the store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::image::{base, clear, ferry, image, import, run};
use super::need::Need::{Ferry, OrdinaryUser, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_bundle_of_an_image_runs", &[Ferry], runs),
    scenario("runc_and_crun_run_it", &[Ferry, Tool("runc"), Tool("crun")], others),
    scenario("what_cannot_be_a_bundle_leaves_nothing", &[Ferry], refused),
    scenario("a_mounted_image_can_be_read", &[Ferry, Root], mounted),
    scenario("an_ordinary_user_mounts_nothing", &[Ferry, OrdinaryUser], mounts_nothing),
    scenario("containers_of_an_image_share_its_pages", &[Ferry], shared),
];

/// Two layers, the upper of which removes and replaces, and all that an image can say of how it runs.
fn volumes(case: &mut Case) -> Outcome {
    let lower =
        Layer::new().directory("data/")?.file("data/seed", 0o640, b"seed")?.file("gone", 0o644, b"x")?.finish()?;
    let upper =
        Layer::new().file(".wh.gone", 0o644, b"")?.file("top", 0o644, b"top")?.hard_link("twin", "top")?.finish()?;
    let execution = json!({"Entrypoint": ["/probe"], "Cmd": ["report"], "Env": ["PORT=Kiel"], "WorkingDir": "/home",
                           "Volumes": {"/data": {}, "/fresh": {}}, "Labels": {"cargo": "tea"}, "StopSignal": "SIGINT"});
    import(case, vec![lower, upper], &execution)
}

fn runs(case: &mut Case) -> Outcome {
    volumes(case)?;
    let (path, id) = (case.path("made"), case.id.clone());
    fs::create_dir(&path)?;
    ferry(case, &["bundle", "create", "--image", "test", &path])?.success()?;
    assert_eq!(fs::metadata(&path)?.mode() & 0o7777, 0o700);
    let report = case.call(&["run", "--bundle", &path, &id])?.success()?.json()?;
    assert_eq!(
        (&report["exe"], &report["cwd"], &report["env"]["PORT"]),
        (&json!("/probe"), &json!("/home"), &json!("Kiel"))
    );
    assert_eq!(report["hostname"], "made", "{report}");
    let root = Path::new(&path).join("rootfs");
    assert!(root.join("top").exists() && !root.join("gone").exists());
    assert_eq!(fs::metadata(root.join("top"))?.ino(), fs::metadata(root.join("twin"))?.ino());
    let config: Value = serde_json::from_slice(&fs::read(Path::new(&path).join("config.json"))?)?;
    assert_eq!(
        (&config["annotations"]["cargo"], &config["annotations"]["org.opencontainers.image.stopSignal"]),
        (&json!("tea"), &json!("SIGINT"))
    );
    // Volumes have what the image has there, and keep what is written.
    let args = |args: &[&str]| -> Outcome {
        let mut changed = config.clone();
        changed["process"]["args"] = json!([&["/probe"], args].concat());
        Ok(fs::write(Path::new(&path).join("config.json"), changed.to_string())?)
    };
    args(&["read", "/data/seed"])?;
    assert_eq!(case.call(&["run", "--bundle", &path, &id])?.success()?.json()?["ok"], "seed");
    args(&["write", "/fresh/new", "kept"])?;
    case.call(&["run", "--bundle", &path, &id])?.success()?;
    assert_eq!(fs::read_to_string(Path::new(&path).join("volumes/1/new"))?, "kept");
    assert!(!root.join("fresh/new").exists());
    // The bundle stands by itself.
    clear(case)?;
    args(&["say", "alone"])?;
    assert_eq!(case.call(&["run", "--bundle", &path, &id])?.success()?.stdout.trim(), "alone");
    Ok(())
}

fn others(case: &mut Case) -> Outcome {
    volumes(case)?;
    let path = case.path("made");
    ferry(case, &["bundle", "create", "--image", "test", &path, "--", "read", "/data/seed"])?.success()?;
    let root = nix::unistd::geteuid().is_root();
    for runtime in ["runc", "crun"] {
        // crun does not take both versions of cgroups at once: root can show it one of them.
        if runtime == "crun" && !root && case.stage.cgroup_v2.as_deref() != Some(Path::new("/sys/fs/cgroup")) {
            continue;
        }
        let (state, id) = (case.path(runtime), case.other_id());
        let mut command = Command::new(if root { "unshare" } else { "env" });
        if root {
            command.args(["--mount", "sh", "-c", "mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"", "sh"]);
        }
        command
            .args([runtime, "--root", &state, "run", "--bundle", &path, &id])
            .env("XDG_RUNTIME_DIR", &case.directory);
        let end = case.finish(&mut command)?;
        // crun before 1.9 raises this limit for every device rule, and root need not have the right to.
        if end.stderr.contains("RLIM_MEMLOCK") {
            case.stage.skip("image_bundle::runc_and_crun_run_it, crun", "crun needs CAP_SYS_RESOURCE".to_owned());
            continue;
        }
        let read = end.success()?.json()?;
        assert_eq!(read["ok"], "seed", "{runtime}: {read}");
    }
    clear(case)
}

fn refused(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (path, full) = (case.path("made"), case.path("full"));
    fs::create_dir(&full)?;
    fs::write(Path::new(&full).join("mine"), "mine")?;
    let nowhere = case.path("no/where");
    for (image, path, said) in [
        ("nowhere", &path, "there is no image \"nowhere\""),
        ("test", &path, "the image says nothing of what to run"),
        ("test", &full, "it is there already"),
        ("test", &nowhere, "ENOENT"),
    ] {
        let command: &[&str] = if said.contains("what to run") { &[] } else { &["--", "/probe"] };
        let end = ferry(case, &[&["bundle", "create", "--image", image, path], command].concat())?.failure()?;
        assert!(end.stderr.contains(said), "{}", end.stderr);
    }
    let end = ferry(case, &["bundle", "create", &path])?.failure()?;
    assert!(end.stderr.contains("--image is missing"), "{}", end.stderr);
    assert_eq!(names_in(Path::new(&full)), ["mine"]);
    let left = names_in(&case.directory);
    assert!(!left.iter().any(|name| name == "made" || name.starts_with(".bundle-")), "{left:?}");
    clear(case)
}

fn mounted(case: &mut Case) -> Outcome {
    volumes(case)?;
    let point = case.host_directory("point")?;
    let path = point.display().to_string();
    image(case, &["mount", "test", &path])?.success()?;
    let checked = (|| -> Outcome {
        assert_eq!(fs::read_to_string(point.join("top"))?, "top");
        assert!(!point.join("gone").exists());
        let refused = fs::write(point.join("top"), "mine").err().and_then(|error| error.raw_os_error());
        assert_eq!(refused, Some(libc::EROFS));
        let options = fs::read_to_string("/proc/self/mountinfo")?;
        let line = options.lines().find(|line| line.contains(&path)).unwrap_or_default();
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
        let end = image(case, &["mount", "test", &path])?.failure()?;
        assert!(end.stderr.contains("there is one already"), "{}", end.stderr);
        // Nothing that is mounted goes, with or without a name.
        image(case, &["remove", "test"])?.success()?;
        image(case, &["prune", "--all"])?.success()?;
        assert_eq!(fs::read_to_string(point.join("data/seed"))?, "seed");
        let file = fs::File::open(point.join("top"))?;
        let end = image(case, &["unmount", &path])?.failure()?;
        assert!(end.stderr.contains("something still works in there"), "{}", end.stderr);
        drop(file);
        // From another mount namespace it is not to be seen, and spared all the same.
        let store = case.path("store");
        let mut other = Command::new("unshare");
        let script = format!("umount {path} && exec \"$0\" --store {store} image prune --all");
        let runtime = case.stage.runtime.path.clone();
        other.args(["--mount", "sh", "-c", &script]).arg(runtime);
        case.finish(&mut other)?.success()?;
        assert_eq!(fs::read_to_string(point.join("data/seed"))?, "seed");
        Ok(())
    })();
    image(case, &["unmount", &path])?.success()?;
    checked?;
    assert_eq!(names_in(&point), Vec::<String>::new());
    let end = image(case, &["unmount", &path])?.failure()?;
    assert!(end.stderr.contains("no image is mounted on"), "{}", end.stderr);
    // A single layer is no overlay by itself.
    let one = case.path("one");
    fixtures::layout(one.as_ref(), "one:1", &[base(case)?], &json!({}))?;
    image(case, &["import", &one])?.success()?;
    image(case, &["mount", "one:1", &path])?.success()?;
    let seen = point.join("probe").exists();
    image(case, &["unmount", &path])?.success()?;
    assert!(seen);
    // One that was unmounted by hand keeps nothing.
    image(case, &["mount", "one:1", &path])?.success()?;
    case.finish(Command::new("umount").arg(&path))?.success()?;
    clear(case)
}

fn mounts_nothing(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let point = case.host_directory("point")?.display().to_string();
    let end = image(case, &["mount", "test", &point])?.failure()?;
    assert!(end.stderr.contains("only root can mount"), "{}", end.stderr);
    assert_eq!(names_in(&PathBuf::from(case.path("store/containers"))), Vec::<String>::new());
    clear(case)
}

/// KiB of the program's own file that the process has mapped alone, and together with others.
pub(super) fn mapped(pid: u32) -> Result<(u64, u64), libtest_mimic::Failed> {
    let (mut alone, mut together, mut counts) = (0, 0, false);
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !first.ends_with(':') {
            // What it writes to becomes its own.
            counts = line.ends_with("/probe") && !second.starts_with("rw");
        } else if counts {
            let size: u64 = second.parse().unwrap_or(0);
            match first {
                // A page of a file in memory counts as dirty.
                "Private_Clean:" | "Private_Dirty:" => alone += size,
                "Shared_Clean:" | "Shared_Dirty:" => together += size,
                _ => (),
            }
        }
    }
    Ok((alone, together))
}

fn shared(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    let start = |case: &mut Case, id: &str| -> Result<u32, libtest_mimic::Failed> {
        case.begin(&["--store", &store, "run", "-d", "--image", "test", id, "--", "/probe", "sleep", "forever"])?
            .until("ready")?;
        let state = case.call(&["state", id])?.success()?.json()?;
        Ok(u32::try_from(state["pid"].as_u64().ok_or("no pid")?)?)
    };
    let one = start(case, &id)?;
    let (alone, together) = mapped(one)?;
    // A page that is mapped twice counts as shared.
    assert!(alone > 10 * together, "of one container: {alone} KiB alone, {together} KiB together");
    let second = case.other_id();
    let other = start(case, &second)?;
    for pid in [one, other] {
        let (alone, together) = mapped(pid)?;
        assert!(together > alone, "of two containers: {alone} KiB alone, {together} KiB together");
    }
    for id in [&id, &second] {
        case.call(&["delete", "--force", id])?.success()?;
    }
    assert_eq!(run(case, "test", &["/probe", "exit", "3"])?.code, 3);
    clear(case)
}
