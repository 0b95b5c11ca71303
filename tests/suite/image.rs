//! `ferry image` and `run --image`, on images that are made here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::need::Need::{Ferry, OrdinaryUser, Root, Tool};
use super::output::{self, Output};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_layout_runs", &[Ferry], layout_runs),
    scenario("every_form_runs", &[Ferry], forms),
    scenario("layers_are_stacked", &[Ferry], stacked),
    scenario("what_is_written_vanishes_and_nothing_is_left", &[Ferry], vanishes),
    scenario("the_image_says_how_it_runs", &[Ferry], execution),
    scenario("labels_ask_nothing_of_the_host", &[Ferry], labels),
    scenario("names", &[Ferry], names),
    scenario("the_form_and_the_progress_are_chosen", &[Ferry], form_and_progress),
    scenario("platforms", &[Ferry], platforms),
    scenario("prune_spares_what_is_in_use", &[Ferry], prune_in_use),
    scenario("check_repairs_layers", &[Ferry], check),
    scenario("owners_and_devices_as_root", &[Ferry, Root], owners_root),
    scenario("owners_and_devices_as_an_ordinary_user", &[Ferry, OrdinaryUser, Tool("newuidmap")], owners_user),
    scenario("many_layers", &[Ferry], many_layers),
    scenario("killed_at_any_moment", &[Ferry], killed),
    scenario("umoci_and_skopeo", &[Ferry, Tool("umoci"), Tool("skopeo")], interoperation),
];

/// Calls the runtime with the case's own store.
pub(super) fn ferry(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    let store = case.path("store");
    case.call(&[&["--store", &store], args].concat())
}

pub(super) fn image(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    ferry(case, &[&["image"], args].concat())
}

pub(super) fn run(case: &mut Case, image: &str, command: &[&str]) -> Result<Output, Failed> {
    ferry(case, &[&["run", "--image", image, "--"], command].concat())
}

pub(super) fn base(case: &Case) -> Result<Vec<u8>, Failed> {
    Ok(fixtures::base(&case.stage.probe)?.finish()?)
}

/// A layout of the base and these layers, imported as `test:latest`.
pub(super) fn import(case: &mut Case, layers: Vec<Vec<u8>>, execution: &Value) -> Outcome {
    let layers = [vec![base(case)?], layers].concat();
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "test:latest", &layers, execution)?;
    image(case, &["import", &path])?.success()?;
    Ok(())
}

/// Everything the store has beside its empty directories goes, owners that are not the user's too.
pub(super) fn clear(case: &mut Case) -> Outcome {
    image(case, &["prune", "--all"])?.success()?;
    for directory in ["blobs/sha256", "layers", "containers", "tmp"] {
        assert_eq!(names_in(&PathBuf::from(case.path("store")).join(directory)), Vec::<String>::new(), "{directory}");
    }
    Ok(())
}

fn layout_runs(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({"Cmd": ["/probe"]}))?;
    let report = run(case, "test", &[])?.success()?.json()?;
    assert_eq!((&report["exe"], &report["uid"]["effective"]), (&json!("/probe"), &json!(0)));
    assert_eq!(run(case, "test", &["/probe", "exit", "7"])?.code, 7);
    let rows = image(case, &["list", "--format", "json"])?.success()?.json()?;
    assert_eq!((&rows[0]["name"], &rows[0]["layers"]), (&json!("test:latest"), &json!(1)));
    clear(case)
}

fn forms(case: &mut Case) -> Outcome {
    let layers = vec![base(case)?, Layer::new().file("top", 0o644, b"top")?.finish()?];
    let execution = json!({"Cmd": ["/probe", "read", "/top"]});
    let (layout, archive) = (case.path("layout"), case.path("layout.tar"));
    fixtures::layout(layout.as_ref(), "oci:latest", &layers, &execution)?;
    fixtures::archive(layout.as_ref(), archive.as_ref())?;
    let packed = case.path("packed.tar.gz");
    fs::write(&packed, fixtures::gzip(&fs::read(&archive)?)?)?;
    let docker = case.path("docker.tar");
    fixtures::docker(docker.as_ref(), "localhost/docker:1", &layers, &execution)?;
    for (source, name) in [(&layout, "a:1"), (&archive, "b:1"), (&packed, "c:1")] {
        image(case, &["import", source, "--name", name])?.success()?;
        assert_eq!(run(case, name, &[])?.success()?.json()?["ok"], "top", "{source}");
    }
    image(case, &["import", &docker])?.success()?;
    assert_eq!(run(case, "localhost/docker:1", &[])?.success()?.json()?["ok"], "top");
    // The same by hand, with files that are not called after digests.
    let by_hand = case.path("by-hand.tar");
    let rows = json!([{"Config": "config.json", "RepoTags": ["by:hand"], "Layers": ["0.tar", "1.tar"]}]);
    let whole = Layer::new().file("manifest.json", 0o644, rows.to_string().as_bytes())?;
    let whole = whole.file("config.json", 0o644, fixtures::config(&layers, &execution).to_string().as_bytes())?;
    let whole = whole.file("0.tar", 0o644, &layers[0])?.file("1.tar", 0o644, &layers[1])?;
    fs::write(&by_hand, whole.finish()?)?;
    image(case, &["import", &by_hand])?.success()?;
    assert_eq!(run(case, "by:hand", &[])?.success()?.json()?["ok"], "top");
    // A root filesystem says nothing of what to run.
    let (plain, gzip, tree) = (case.path("rootfs.tar"), case.path("rootfs.tgz"), case.bundle.rootfs());
    fs::write(&plain, &layers[0])?;
    fs::write(&gzip, fixtures::gzip(&layers[0])?)?;
    for (source, name) in [(&plain, "p:1"), (&gzip, "g:1"), (&tree.display().to_string(), "t:1")] {
        image(case, &["import", source, "--name", name])?.success()?;
        let report = run(case, name, &["/probe"])?.success()?.json()?;
        assert_eq!(report["exe"], "/probe", "{source}");
        let refused = run(case, name, &[])?.failure()?;
        assert!(refused.stderr.contains("the image says nothing of what to run"), "{}", refused.stderr);
    }
    let refused = image(case, &["import", &plain])?.failure()?;
    assert!(refused.stderr.contains("--name"), "{}", refused.stderr);
    // Standard input.
    let store = case.path("store");
    let mut command = case.command(&["--store", &store, "image", "import", "-", "--name", "stdin:1"]);
    case.finish(command.stdin(fs::File::open(&docker)?))?.success()?;
    assert_eq!(run(case, "stdin:1", &[])?.success()?.json()?["ok"], "top");
    clear(case)
}

/// Whiteouts, opaque directories, hard links to a layer below, directories that an upper layer only passes through, a path
/// through what is a link below.
pub(super) fn stack() -> Result<Vec<Vec<u8>>, Failed> {
    let lower = Layer::new()
        .directory("keep/")?
        .entry(tar::EntryType::Directory, "odd/", 0o750, "", b"")?
        .file("odd/file", 0o644, b"odd")?
        .file("keep/gone", 0o644, b"x")?
        .file("keep/stays", 0o644, b"stays")?
        .directory("hidden/")?
        .file("hidden/below", 0o644, b"x")?
        .directory("usr/")?
        .directory("usr/lib/")?
        .file("usr/lib/low", 0o644, b"low")?
        .link("lib", "usr/lib")?
        .directory("was/")?
        .file("was/old", 0o644, b"x")?
        .finish()?;
    let upper = Layer::new()
        .file("keep/.wh.gone", 0o644, b"")?
        .directory("hidden/")?
        .file("hidden/.wh..wh..opq", 0o644, b"")?
        .file("hidden/above", 0o644, b"above")?
        .file("odd/new", 0o644, b"new")?
        .hard_link("linked", "keep/stays")?
        .file("lib/high", 0o644, b"high")?
        .file(".wh.was", 0o644, b"")?
        .directory("was/")?
        .file("was/new", 0o644, b"new")?
        .finish()?;
    Ok(vec![lower, upper])
}

/// Looks at it from inside, in a container that is run with these flags.
pub(super) fn look_at_stack(case: &mut Case, flags: &[&str]) -> Outcome {
    let probe = |case: &mut Case, args: &[&str]| {
        let run = [&["run", "--image", "test"], flags, &["--", "/probe"], args].concat();
        ferry(case, &run)?.success()?.json()
    };
    let read = |case: &mut Case, path: &str| probe(case, &["read", path]);
    for (path, text) in [
        ("/keep/stays", "stays"),
        ("/hidden/above", "above"),
        ("/odd/file", "odd"),
        ("/odd/new", "new"),
        ("/linked", "stays"),
        ("/lib/low", "low"),
        ("/lib/high", "high"),
        ("/usr/lib/high", "high"),
        ("/was/new", "new"),
    ] {
        assert_eq!(read(case, path)?["ok"], text, "{path}");
    }
    for path in ["/keep/gone", "/hidden/below", "/was/old"] {
        assert_eq!(read(case, path)?["error"], libc::ENOENT, "{path}");
    }
    let odd = probe(case, &["stat", "/odd"])?;
    assert_eq!(odd["ok"]["mode"], "0750", "{odd}");
    let lib = probe(case, &["stat", "/lib"])?;
    assert_eq!(lib["ok"]["target"], "usr/lib", "{lib}");
    Ok(())
}

fn stacked(case: &mut Case) -> Outcome {
    import(case, stack()?, &json!({}))?;
    look_at_stack(case, &[])?;
    clear(case)
}

fn vanishes(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    for path in ["/home/new", "/etc/passwd"] {
        let answer = run(case, "test", &["/probe", "write", path, "x"])?.success()?.json()?;
        assert!(answer["error"].is_null(), "{answer}");
    }
    let text = run(case, "test", &["/probe", "read", "/etc/passwd"])?.success()?.json()?;
    assert!(text["ok"].as_str().is_some_and(|text| text.starts_with("root:")), "{text}");
    run(case, "test", &["/no/such/program"])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert_eq!(names_in(&PathBuf::from(case.path("store/containers"))), Vec::<String>::new());
    // Kept until it is deleted, when it is detached.
    let (id, store) = (case.id.clone(), case.path("store"));
    let mut lines =
        case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?;
    lines.until("ready")?;
    assert_eq!(names_in(&PathBuf::from(case.path("store/containers"))).len(), 1);
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("store/containers"))), Vec::<String>::new());
    clear(case)
}

fn execution(case: &mut Case) -> Outcome {
    let execution = json!({"Entrypoint": ["/probe"], "Cmd": ["report"], "Env": ["PORT=Kiel", "PATH=/"], "WorkingDir": "/home",
                           "User": "ship:crew", "Labels": {"cargo": "tea"}, "StopSignal": "SIGINT"});
    import(case, vec![], &execution)?;
    let mapped = nix::unistd::geteuid().is_root();
    if mapped {
        let report = run(case, "test", &[])?.success()?.json()?;
        assert_eq!((&report["uid"]["effective"], &report["gid"]["effective"]), (&json!(1000), &json!(50)));
        assert_eq!((&report["env"]["PORT"], &report["env"]["PATH"]), (&json!("Kiel"), &json!("/")));
        assert_eq!(report["cwd"], "/home");
    }
    // A user's groups are the image's to tell, as with the name; a number that it does not know is of group 0.
    let users = [("1000", 1001, json!([50])), ("1000:7", 7, json!([])), ("4242", 0, json!([]))];
    for (user, gid, groups) in users.into_iter().filter(|_| mapped) {
        let report = ferry(case, &["run", "--image", "test", "--user", user])?.success()?.json()?;
        assert_eq!((&report["gid"]["effective"], &report["groups"]), (&json!(gid), &groups), "{user}");
    }
    let flags = ["run", "--image", "test", "--user", "0", "--env", "PORT=Bremen", "--cwd", "/tmp", "--"];
    let report = ferry(case, &flags)?.success()?.json()?;
    assert_eq!((&report["uid"]["effective"], &report["env"]["PORT"]), (&json!(0), &json!("Bremen")));
    assert_eq!(report["cwd"], "/tmp");
    let unknown = json!({"Cmd": ["/probe"], "User": "nobody-here"});
    let path = case.path("unknown");
    fixtures::layout(path.as_ref(), "unknown:latest", &[base(case)?], &unknown)?;
    image(case, &["import", &path])?.success()?;
    let refused = run(case, "unknown", &[])?.failure()?;
    assert!(refused.stderr.contains("\"nobody-here\" is not in its /etc/passwd"), "{}", refused.stderr);
    ferry(case, &["run", "--image", "unknown", "--user", "0"])?.success()?;
    clear(case)
}

/// As annotations of a bundle each of these would be an error.
fn labels(case: &mut Case) -> Outcome {
    let labels = json!({"run.oci.pidfd_receiver": "/nowhere", "run.oci.hooks.stdout": "here", "dev.ferry.ksm": "perhaps",
                        "cargo": "tea"});
    import(case, vec![], &json!({"Cmd": ["/probe"], "Labels": labels}))?;
    let told = run(case, "test", &[])?.success()?.stderr;
    let names = "\"dev.ferry.ksm\", \"run.oci.hooks.stdout\", \"run.oci.pidfd_receiver\"";
    // In a line of the log, quotation marks are escaped.
    assert!(told.contains("ask something of the host") && told.replace('\\', "").contains(names), "{told}");
    clear(case)
}

fn names(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({"Cmd": ["/probe"]}))?;
    image(case, &["tag", "test", "other:2"])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "other:2\ntest:latest\n");
    let found = image(case, &["inspect", "other:2"])?.success()?.json()?;
    assert_eq!(found["names"], json!(["other:2", "test:latest"]));
    let digest = found["digest"].as_str().unwrap_or_default().to_owned();
    assert!(run(case, &digest[7..17], &[])?.success().is_ok());
    let refused = image(case, &["remove", "other:2", "nowhere"])?.failure()?;
    assert!(refused.stderr.contains("there is no image \"nowhere\""), "{}", refused.stderr);
    image(case, &["remove", "test"])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "other:2\n");
    let history = image(case, &["history", "other:2", "--format", "json"])?.success()?.json()?;
    assert!(history.as_array().is_some_and(|rows| rows.len() == 1), "{history}");
    // The other name keeps everything.
    let removed = image(case, &["prune", "--format", "json"])?.success()?.json()?;
    assert_eq!((&removed["layers"], &removed["blobs"]), (&json!([]), &json!([])), "{removed}");
    assert!(run(case, "other:2", &[])?.success().is_ok());
    image(case, &["remove", &digest])?.success()?;
    let refused = run(case, "other:2", &[])?.failure()?;
    assert!(refused.stderr.contains("there is no image \"other:2\""), "{}", refused.stderr);
    clear(case)
}

/// A layout's archive is a root filesystem too, where somebody says so.
fn form_and_progress(case: &mut Case) -> Outcome {
    let (layout, archive) = (case.path("layout"), case.path("layout.tar"));
    fixtures::layout(layout.as_ref(), "oci:latest", &[base(case)?], &json!({}))?;
    fixtures::archive(layout.as_ref(), archive.as_ref())?;
    let told = image(case, &["import", "--format", "rootfs", "--progress", "json", "--name", "tree:1", &archive])?;
    let lines: Vec<Value> =
        told.success()?.stdout.lines().map(serde_json::from_str).collect::<Result<_, serde_json::Error>>()?;
    assert_eq!((&lines[0]["event"], &lines[0]["layers"]), (&json!("begin"), &json!(1)), "{lines:?}");
    let last = lines.last().unwrap_or(&Value::Null);
    assert_eq!((&last["event"], &last["names"]), (&json!("done"), &json!(["tree:1"])), "{lines:?}");
    let layers = PathBuf::from(case.path("store/layers"));
    let layer = names_in(&layers).pop().unwrap_or_default();
    assert!(layers.join(layer).join("diff/oci-layout").is_file());
    for wrong in [["--format", "zip"], ["--progress", "loud"], ["--platform", "here"], ["--max-size", "much"]] {
        let end = image(case, &["import", wrong[0], wrong[1], &archive])?.failure()?;
        assert!(end.stderr.contains(wrong[1]), "{}", end.stderr);
    }
    clear(case)
}

fn platforms(case: &mut Case) -> Outcome {
    let path = PathBuf::from(case.path("layout"));
    let layers = [base(case)?];
    let own = ferry::image::manifest::host_platform().architecture;
    let mut mine = fixtures::manifest(&path, &layers, &json!({"Cmd": ["/probe", "say", "mine"]}))?;
    mine["platform"] = json!({"os": "linux", "architecture": own});
    let mut other = fixtures::manifest(&path, &layers, &json!({"Cmd": ["/probe", "say", "other"]}))?;
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let inner = json!({"schemaVersion": 2, "manifests": [other.clone(), mine]}).to_string();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let inner = fixtures::blob(&path, media_type, inner.as_bytes())?;
    let outer = json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
    fixtures::index(&path, &[fixtures::blob(&path, media_type, outer.as_bytes())?])?;
    let path = path.display().to_string();
    image(case, &["import", &path, "--name", "many:1"])?.success()?;
    assert_eq!(run(case, "many:1", &[])?.success()?.stdout.trim(), "mine");
    image(case, &["import", &path, "--name", "z:1", "--platform", "linux/s390x"])?.success()?;
    assert_eq!(run(case, "z:1", &[])?.success()?.stdout.trim(), "other");
    let refused = image(case, &["import", &path, "--name", "x:1", "--platform", "linux/riscv64"])?.failure()?;
    assert!(
        refused.stderr.contains("there is no image for linux/riscv64 (hint: there is one for linux/"),
        "{}",
        refused.stderr
    );
    clear(case)
}

fn prune_in_use(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    let mut lines =
        case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?;
    lines.until("ready")?;
    image(case, &["prune", "--all"])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "test:latest\n");
    image(case, &["remove", "test"])?.success()?;
    image(case, &["prune"])?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("store/layers"))).len(), 1, "the container still runs from it");
    let seen = case.exec(&[], &["/probe", "read", "/etc/group"])?.success()?.json()?;
    assert!(seen["ok"].as_str().is_some_and(|text| text.contains("crew")), "{seen}");
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

fn check(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({"Cmd": ["/probe"]}))?;
    image(case, &["check"])?.success()?;
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let layer = PathBuf::from(found["directories"][0].as_str().unwrap_or_default());
    fs::remove_file(layer.join("probe"))?;
    let told = image(case, &["check", "--format", "json"])?;
    assert_eq!(told.code, 1);
    assert_eq!(told.json()?["damages"].as_array().map(Vec::len), Some(1));
    let told = image(case, &["check", "--repair", "--format", "json"])?.success()?.json()?;
    assert_eq!(told["repaired"].as_array().map(Vec::len), Some(1), "{told}");
    run(case, "test", &[])?.success()?;
    let digest = found["manifest"]["layers"][0]["digest"].as_str().unwrap_or_default().replace(':', "/");
    fs::write(PathBuf::from(case.path("store/blobs")).join(digest), "rot")?;
    let told = image(case, &["check", "--repair", "--format", "json"])?;
    assert_eq!(told.code, 1);
    // Importing it again makes it whole.
    let path = case.path("layout");
    image(case, &["import", &path])?.success()?;
    image(case, &["check"])?.success()?;
    clear(case)
}

/// Owners, nanoseconds, attributes, set-user-id bits and device nodes.
pub(super) fn odd_layer() -> Result<Vec<u8>, Failed> {
    let layer = Layer::new().records(&[
        ("uid", b"1000"),
        ("gid", b"1001"),
        ("mtime", b"1600000000.123456789"),
        ("SCHILY.xattr.user.cargo", b"tea"),
    ])?;
    let layer = layer.file("owned", 0o4711, b"x")?;
    let layer = layer.entry(tar::EntryType::Fifo, "pipe", 0o600, "", b"")?;
    Ok(layer.entry(tar::EntryType::Char, "device", 0o600, "", b"")?.finish()?)
}

fn owners_root(case: &mut Case) -> Outcome {
    import(case, vec![odd_layer()?], &json!({}))?;
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let owned = PathBuf::from(found["directories"][1].as_str().unwrap_or_default()).join("owned");
    let data = fs::metadata(&owned)?;
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 1001, 0o4711));
    assert_eq!((data.mtime(), data.mtime_nsec()), (1_600_000_000, 123_456_789));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(&owned, "user.cargo", &mut value[..])?;
    assert_eq!(&value[..length], b"tea");
    assert!(fs::symlink_metadata(owned.with_file_name("device"))?.mode() & libc::S_IFMT == libc::S_IFCHR);
    clear(case)
}

fn owners_user(case: &mut Case) -> Outcome {
    import(case, vec![odd_layer()?], &json!({}))?;
    let seen = run(case, "test", &["/probe", "stat", "/owned"])?.success()?.json()?;
    assert_eq!(
        (&seen["ok"]["uid"], &seen["ok"]["gid"], &seen["ok"]["mode"]),
        (&json!(1000), &json!(1001), &json!("4711"))
    );
    // What another user wrote inside is removed with the container all the same.
    let flags = ["run", "--image", "test", "--user", "1000:1001", "--", "/probe", "mkdir", "/tmp/new"];
    ferry(case, &flags)?.success()?;
    assert_eq!(names_in(&PathBuf::from(case.path("store/containers"))), Vec::<String>::new());
    clear(case)
}

fn many_layers(case: &mut Case) -> Outcome {
    let layer = |index: usize| -> Result<Vec<u8>, Failed> {
        Ok(Layer::new()
            .file(&format!("layer-{index}"), 0o644, b"x")?
            .file("last", 0o644, format!("{index}").as_bytes())?
            .finish()?)
    };
    let layers = (0..120).map(layer).collect::<Result<Vec<_>, _>>()?;
    import(case, layers, &json!({}))?;
    assert_eq!(run(case, "test", &["/probe", "read", "/last"])?.success()?.json()?["ok"], "119");
    assert_eq!(run(case, "test", &["/probe", "read", "/layer-0"])?.success()?.json()?["ok"], "x");
    clear(case)
}

/// Killed anywhere, an import leaves a store that is whole, with the image in it or not.
fn killed(case: &mut Case) -> Outcome {
    let layers: Vec<Vec<u8>> = (0..6)
        .map(|index| Ok(Layer::new().file(&format!("f{index}"), 0o644, &vec![index; 300_000])?.finish()?))
        .collect::<Result<_, Failed>>()?;
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "test:latest", &[vec![base(case)?], layers].concat(), &json!({"Cmd": ["/probe"]}))?;
    let store = case.path("store");
    let began = std::time::Instant::now();
    image(case, &["import", &path])?.success()?;
    let whole = began.elapsed();
    let times = if std::env::var_os("FERRY_LONG").is_some() { 50 } else { 12 };
    let (mut there, mut not) = (0, 0);
    for round in 0..times {
        for verb in [&["image", "import", &path][..], &["image", "prune", "--all"]] {
            let mut command = case.command(&[&["--store", &store], verb].concat());
            let mut child = command.stdout(std::process::Stdio::null()).spawn()?;
            // Spread over the time that a whole import takes: by a fixed sequence, so that a failure can be met again.
            let moment = whole * (round * 37 % times) / times;
            output::wait_for_pid(child.id(), moment)?;
            // It may have ended by itself.
            child.kill().ok();
            child.wait()?;
            image(case, &["check"])?.success()?;
        }
        match image(case, &["list", "-q"])?.success()?.stdout.as_str() {
            "" => not += 1,
            "test:latest\n" => {
                run(case, "test", &[])?.success()?;
                there += 1;
            }
            other => return Err(format!("the list says {other:?}").into()),
        }
    }
    assert_eq!(there + not, times);
    clear(case)
}

fn interoperation(case: &mut Case) -> Outcome {
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "one", &[base(case)?], &json!({"Cmd": ["/probe"]}))?;
    let tool = |case: &mut Case, program: &str, args: &[&str]| -> Result<Output, Failed> {
        let mut command = std::process::Command::new(program);
        case.finish(command.args(args).env("XDG_RUNTIME_DIR", &case.directory))
    };
    let (archive, from) = (format!("docker-archive:{}:localhost/sk:1", case.path("sk.tar")), format!("oci:{path}:one"));
    tool(case, "skopeo", &["copy", "--insecure-policy", &from, &archive])?.success()?;
    let source = case.path("sk.tar");
    image(case, &["import", &source])?.success()?;
    run(case, "localhost/sk:1", &[])?.success()?;
    let archive = format!("oci-archive:{}:localhost/so:1", case.path("so.tar"));
    tool(case, "skopeo", &["copy", "--insecure-policy", &from, &archive])?.success()?;
    let source = case.path("so.tar");
    image(case, &["import", &source])?.success()?;
    run(case, "localhost/so:1", &[])?.success()?;
    let named = format!("{path}:one");
    tool(case, "umoci", &["config", "--image", &named, "--config.user", "0:50"])?.success()?;
    image(case, &["import", &path, "--name", "um:1"])?.success()?;
    if nix::unistd::geteuid().is_root() {
        assert_eq!(run(case, "um:1", &[])?.success()?.json()?["gid"]["effective"], 50);
    }
    clear(case)
}
