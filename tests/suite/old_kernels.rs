//! Kernels without the younger calls: strace answers ENOSYS in their place, and the container is to be the same.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, marked_processes};
use super::image;
use super::mounts::HostMount;
use super::need::Need::{Criu, Delegated, Ferry, Root, Tool};
use super::output::{self, Output};
use super::pseudo_terminal::Terminal;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;
use crate::rootfs_fixtures::config::{add, bind, mount, user_namespace, without_namespace};

pub const SCENARIOS: &[Scenario] = &[
    scenario("without_mounts_by_descriptor", &[Ferry, STRACE], |case| same(case, BY_DESCRIPTOR)),
    scenario("without_mount_setattr", &[Ferry, STRACE], |case| same(case, &["mount_setattr"])),
    scenario("without_openat2", &[Ferry, STRACE], |case| same(case, &["openat2"])),
    scenario("without_close_range", &[Ferry, STRACE], |case| same(case, &["close_range"])),
    scenario("without_any_of_them", &[Ferry, STRACE], |case| same(case, &all())),
    scenario("in_a_user_namespace_of_roots", &[Ferry, STRACE, Root], in_user_namespace),
    scenario("recursive_attributes_without_mount_setattr", &[Ferry, STRACE, Root], recursive),
    scenario("shared_root_without_mount_setattr", &[Ferry, STRACE, Root], shared),
    scenario("terminal_without_mounts_by_descriptor", &[Ferry, STRACE], terminal),
    // An ordinary user maps subordinate ids through newuidmap, which has no rights of its own under strace.
    scenario("root_on_top_without_mounts_by_descriptor", &[Ferry, STRACE, Root], copy_on_write),
    scenario("an_image_without_mounts_by_descriptor", &[Ferry, STRACE, Root], image_layers),
    scenario("a_detached_container_without_close_range", &[Ferry, STRACE], detached),
    scenario("without_clone3", &[Ferry, STRACE], |case| same(case, &["clone3"])),
    scenario("without_clone3_the_cgroup_is_the_same", &[Ferry, STRACE], |case| clone3(case, "error=ENOSYS")),
    // As filters of engines answered that did not know the call.
    scenario("without_clone3_that_is_refused", &[Ferry, STRACE], |case| clone3(case, "error=EPERM")),
    scenario("without_clones_into_a_cgroup", &[Ferry, STRACE, Delegated(&[])], |case| {
        clone3(case, "error=EINVAL:when=1")
    }),
    scenario("a_user_namespace_is_joined_without_clone3", &[Ferry, STRACE, Root], joined_without_clone3),
    scenario("exec_without_clone3", &[Ferry, STRACE], |case| {
        exec_without_clone3(case, &["error=ENOSYS", "error=EPERM"])
    }),
    scenario("exec_without_clones_into_a_cgroup", &[Ferry, STRACE, Delegated(&[])], |case| {
        exec_without_clone3(case, &["error=EINVAL:when=1"])
    }),
    scenario("without_pidfds_it_says_so", &[Ferry, STRACE], pidfds),
    scenario("a_child_is_ended_without_pidfd_send_signal", &[Ferry, STRACE], undone_without_pidfds),
    scenario("a_restore_without_mounts_by_descriptor", &[Ferry, STRACE, Root, Criu], restored),
    scenario("idmapped_mounts_say_what_they_need", &[Ferry, STRACE, Root], idmapped),
];

const STRACE: super::need::Need = Tool("strace");

/// What Linux 5.2 brought, and mount_setattr, which came later.
const BY_DESCRIPTOR: &[&str] = &["open_tree", "fsopen", "move_mount", "mount_setattr"];

fn all() -> Vec<&'static str> {
    [BY_DESCRIPTOR, &["openat2", "close_range"]].concat()
}

/// `RUNTIME VERB…` where these calls are answered with ENOSYS, in its children too. Strace is no parent of the runtime's, so
/// that it keeps nobody waiting for a container that lives on.
fn without(case: &Case, calls: &[&str], verb: &[&str]) -> Command {
    answered(case, &calls.join(","), "error=ENOSYS", verb)
}

/// The same, where what they are answered is `answer`, as strace says it.
fn answered(case: &Case, calls: &str, answer: &str, verb: &[&str]) -> Command {
    let command = case.command(verb);
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o", &case.path("trace"), "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:{answer}")]).arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace
}

/// `run` without these calls. Each of them must have been tried: what is not called has no way around it to be tested.
fn run_without(case: &mut Case, calls: &[&str]) -> Result<Output, Failed> {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let mut command = without(case, calls, &["run", "--bundle", &bundle, &id]);
    let end = case.finish(&mut command)?;
    let trace = fs::read_to_string(case.path("trace"))?;
    for call in calls {
        let tried = |line: &str| line.contains(&format!("{call}(")) && line.contains("(INJECTED)");
        assert!(trace.lines().any(tried), "{call} was not called");
    }
    Ok(end)
}

fn deed_without(case: &mut Case, calls: &[&str], deed: &[&str]) -> Result<Value, Failed> {
    case.args(&[&["/probe"], deed].concat());
    run_without(case, calls)?.success()?.json()
}

/// What is left once strace, which is nobody's child here, has ended too.
fn leftovers(case: &Case) -> Result<Vec<String>, Failed> {
    for pid in marked_processes(&case.directory) {
        if !output::wait_for_pid(pid, case.patience())? {
            break;
        }
    }
    case.leftovers()
}

/// What a container sees of its mounts: in order, without what differs from one run to the next. Superblocks may differ: a
/// filesystem that is mounted read-only by mount(2) is so as a whole.
pub fn mounts(report: &Value) -> Vec<Value> {
    let kind = |tag: &Value| tag.as_str().unwrap_or_default().split(':').next().unwrap_or_default().to_owned();
    let kinds = |tags: &Value| tags.as_array().into_iter().flatten().map(kind).collect::<Vec<_>>();
    let row = |row: &Value| {
        // The bind of the host's /proc is the one that the stage makes private, where it was shared.
        let tags = if row["point"] == "/home/proc" { &Value::Null } else { &row["propagation"] };
        // The host's mount of the same tree, bound where a new one is refused, bears the host's name.
        let source = if row["type"] == "cgroup2" { &Value::Null } else { &row["source"] };
        json!({
            "point": row["point"], "root": row["root"], "type": row["type"], "source": source,
            "options": row["options"], "propagation": kinds(tags),
        })
    };
    report["mounts"].as_array().into_iter().flatten().map(row).collect()
}

/// A bind with every attribute, a file, a tmpfs with an option of the superblock and with what the image has there, masked
/// and read-only paths, a root that cannot be written.
fn furnish(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    let file = case.directory.join("hosts");
    fs::write(&file, "127.0.0.1 localhost")?;
    case.bundle.directory("home/hold")?;
    case.bundle.file("home/hold/secret", "treasure")?;
    case.bundle.file("home/secret", "treasure")?;
    case.bundle.file("tmp/kept", "from the image")?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["rbind", "ro", "nosuid", "nodev", "noexec"]));
    add(&mut case.config, "/mounts", bind(&source, "/source", &["bind", "rslave", "rnosuid"]));
    add(&mut case.config, "/mounts", bind(&file, "/etc/hosts", &["bind", "ro"]));
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/tmp", &["tmpcopyup", "ro", "sync", "size=64k"]));
    add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    add(&mut case.config, "/linux/maskedPaths", json!("/home/hold"));
    case.config["root"]["readonly"] = true.into();
    Ok(())
}

fn same(case: &mut Case, calls: &[&str]) -> Outcome {
    furnish(case)?;
    let expected = mounts(&case.report()?);
    let report = run_without(case, calls)?.success()?.json()?;
    assert_eq!(mounts(&report), expected);
    assert_eq!(report["descriptors"].as_object().map(serde_json::Map::len), Some(3), "{}", report["descriptors"]);
    for (path, error) in [
        ("/new", json!(libc::EROFS)),
        ("/mnt/new", json!(libc::EROFS)),
        ("/etc/hosts", json!(libc::EROFS)),
        ("/tmp/new", json!(libc::EROFS)),
        ("/proc/sys/kernel/domainname", json!(libc::EROFS)),
        ("/home/hold/new", json!(libc::EROFS)),
        ("/source/new", Value::Null),
        ("/dev/null", Value::Null),
    ] {
        assert_eq!(deed_without(case, calls, &["write", path, "x"])?["error"], error, "{path}");
    }
    for (path, text) in
        [("/home/secret", ""), ("/proc/keys", ""), ("/tmp/kept", "from the image"), ("/source/cargo", "tea")]
    {
        assert_eq!(deed_without(case, calls, &["read", path])?, json!({ "ok": text }), "{path}");
    }
    assert_eq!(deed_without(case, calls, &["list", "/home/hold"])?, json!({"ok": []}));
    assert_eq!(leftovers(case)?, Vec::<String>::new());
    Ok(())
}

/// The sources of binds are opened by the host side, devices are bound, and `/proc` of the host is bound with what is
/// below: the stage must not be.
fn in_user_namespace(case: &mut Case) -> Outcome {
    user_namespace(&mut case.config, (100_000, 100_000), 1000);
    case.bundle.give_to(100_000)?;
    furnish(case)?;
    add(&mut case.config, "/mounts", bind("/proc".as_ref(), "/home/proc", &["rbind"]));
    case.bundle.directory("home/proc")?;
    for propagation in ["slave", "rshared"] {
        case.config["linux"]["rootfsPropagation"] = propagation.into();
        let expected = mounts(&case.args(&["/probe"]).report()?);
        for calls in [BY_DESCRIPTOR, &["mount_setattr"], &all()] {
            assert_eq!(mounts(&deed_without(case, calls, &[])?), expected, "{propagation} {calls:?}");
            let null = deed_without(case, calls, &["stat", "/dev/null"])?["ok"].clone();
            assert_eq!((&null["type"], &null["major"], &null["minor"]), (&json!("char"), &json!(1), &json!(3)));
        }
    }
    Ok(())
}

fn recursive(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    let _below = HostMount::tmpfs(source.join("be low"), "mode=755,nodev")?;
    let _deeper = HostMount::tmpfs(source.join("be low/deeper"), "mode=755,noatime")?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["rbind", "rro", "rnosuid", "noatime"]));
    let expected = mounts(&case.report()?);
    for calls in [BY_DESCRIPTOR, &["mount_setattr"]] {
        assert_eq!(mounts(&deed_without(case, calls, &[])?), expected, "{calls:?}");
        let answer = deed_without(case, calls, &["write", "/mnt/be low/deeper/new", "x"])?;
        assert_eq!(answer["error"], libc::EROFS, "{calls:?}");
    }
    Ok(())
}

fn shared(case: &mut Case) -> Outcome {
    furnish(case)?;
    case.config["linux"]["rootfsPropagation"] = "shared".into();
    let expected = mounts(&case.report()?);
    for calls in [BY_DESCRIPTOR, &["mount_setattr"]] {
        assert_eq!(mounts(&run_without(case, calls)?.success()?.json()?), expected, "{calls:?}");
    }
    assert_eq!(leftovers(case)?, Vec::<String>::new());
    assert!(!fs::read_to_string("/proc/self/mountinfo")?.contains(" /proc/fs "));
    Ok(())
}

fn terminal(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "stat", "/dev/console"]).write_config()?, case.id.clone());
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let command = without(case, BY_DESCRIPTOR, &["run", "-b", &bundle, &id]);
    let mut child = terminal.spawn(&command)?;
    let line = terminal.lines(case.patience())?.until("type")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    let seen: Value = serde_json::from_str(&line)?;
    assert_eq!((&seen["ok"]["type"], &seen["ok"]["major"]), (&json!("char"), &json!(136)), "{seen}");
    Ok(())
}

/// `run --rootfs`: the root is an overlay.
fn copy_on_write(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    let mut command = without(case, BY_DESCRIPTOR, &["run", "--rootfs", &tree, "--", "/probe", "write", "/new", "x"]);
    assert!(case.finish(&mut command)?.success()?.json()?["error"].is_null());
    assert!(!case.bundle.inside("new").exists());
    Ok(())
}

/// Of a hundred layers: more than their paths would fit into the one page that mount(2) takes.
fn image_layers(case: &mut Case) -> Outcome {
    let layer = |index: usize| -> Result<Vec<u8>, Failed> {
        Ok(Layer::new().file("last", 0o644, format!("{index}").as_bytes())?.finish()?)
    };
    image::import(case, (0..100).map(layer).collect::<Result<_, _>>()?, &json!({}))?;
    let store = case.path("store");
    for (calls, deed, answer) in [
        (BY_DESCRIPTOR, &["read", "/last"][..], json!({"ok": "99"})),
        (&["fsopen"], &["write", "/last", "x"], json!({"ok": null})),
    ] {
        let run = ["--store", &store, "run", "--image", "test", "--", "/probe"];
        let mut command = without(case, calls, &[&run, deed].concat());
        let report = case.finish(&mut command)?.success()?.json()?;
        assert_eq!((&report["ok"], report["error"].is_null()), (&answer["ok"], true), "{report}");
        assert!(fs::read_to_string(case.path("trace"))?.contains("fsopen("), "an image is not mounted so");
    }
    image::clear(case)
}

fn detached(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    let mut command = without(case, &["close_range"], &["create", "--bundle", &bundle, &id]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(output::wait(&mut command.spawn()?, case.patience())?.success());
    case.call(&["start", &id])?.success()?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

/// What is made on the way to a bind is made in CRIU's mount namespace and never on the host.
fn restored(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    case.bundle.directory("mnt")?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["rbind", "ro"]));
    case.args(&["/probe", "sleep", "forever"]).start()?.until("ready")?;
    super::checkpoint::checkpoint(case, &[])?;
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    let bundle = case.bundle.path().display().to_string();
    let (images, id) = (super::checkpoint::images(case), case.id.clone());
    let verb = ["restore", "--detach", "--image-path", &images, "--bundle", &bundle, &id];
    let command = without(case, BY_DESCRIPTOR, &verb);
    // Nobody else may trace what CRIU restores.
    let mut traced = Command::new("strace");
    traced.args(["-b", "execve"]).args(command.get_args());
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    traced.stderr(fs::File::options().write(true).open(case.directory.join("errors"))?);
    let status = output::wait(&mut traced.spawn()?, case.patience())?;
    assert!(status.success(), "{}", fs::read_to_string(case.directory.join("errors"))?);
    assert!(fs::read_to_string(case.path("trace"))?.contains("open_tree"), "it is not called");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo")?, before);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn idmapped(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    let mut row = bind(&source, "/mnt", &["bind"]);
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    (row["uidMappings"], row["gidMappings"]) = (map.clone(), map);
    add(&mut case.config, "/mounts", row);
    let end = run_without(case, &["mount_setattr"])?.failure()?;
    assert!(end.stderr.contains("Linux 5.12"), "{}", end.stderr);
    Ok(())
}

/// A process that was moved into its cgroup sees it, and everything else, as one that was born there; its cgroup namespace,
/// where it has one, begins there too.
fn clone3(case: &mut Case, answer: &str) -> Outcome {
    furnish(case)?;
    let expected = case.report()?;
    let (bundle, id) = (case.write_config()?, case.id.clone());
    for verb in [&["run", "--bundle", &bundle, &id][..], &["run", "--no-pivot", "--bundle", &bundle, &id]] {
        let mut command = answered(case, "clone3", answer, verb);
        let report = case.finish(&mut command)?.success()?.json()?;
        assert!(fs::read_to_string(case.path("trace"))?.contains("INJECTED"));
        for field in ["cgroup", "capabilities", "seccomp", "no_new_privs", "uid_map", "processes"] {
            assert_eq!(report[field], expected[field], "{field}");
        }
        assert_eq!(leftovers(case)?, Vec::<String>::new());
    }
    Ok(())
}

fn joined_without_clone3(case: &mut Case) -> Outcome {
    user_namespace(&mut case.config, (100_000, 100_000), 1000);
    case.bundle.give_to(100_000)?;
    case.start_waiting()?;
    let path = format!("/proc/{}/ns/user", case.pid()?);
    without_namespace(&mut case.config, "user");
    add(&mut case.config, "/linux/namespaces", json!({"type": "user", "path": path}));
    for map in ["uidMappings", "gidMappings"] {
        case.config["linux"][map] = Value::Null;
    }
    let (bundle, other) = (case.args(&["/probe"]).write_config()?, case.other_id());
    let verb = ["run", "--bundle", &bundle, &other];
    let expected = case.call(&verb)?.success()?.json()?;
    for answer in ["error=ENOSYS", "error=EPERM"] {
        let mut command = answered(case, "clone3", answer, &verb);
        let report = case.finish(&mut command)?.success()?.json()?;
        assert_eq!((&report["cgroup"], &report["uid_map"]), (&expected["cgroup"], &expected["uid_map"]), "{answer}");
    }
    Ok(())
}

fn exec_without_clone3(case: &mut Case, answers: &[&str]) -> Outcome {
    case.start_waiting()?;
    let expected = case.exec(&[], &["/probe"])?.success()?.json()?;
    let id = case.id.clone();
    for answer in answers {
        let mut command = answered(case, "clone3", answer, &["exec", &id, "/probe"]);
        let report = case.finish(&mut command)?.success()?.json()?;
        assert_eq!(
            (&report["cgroup"], &report["namespaces"]),
            (&expected["cgroup"], &expected["namespaces"]),
            "{answer}"
        );
    }
    Ok(())
}

fn pidfds(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    for verb in [&["kill", &id, "KILL"][..], &["exec", &id, "/probe"], &["delete", "--force", &id]] {
        let mut command = without(case, &["pidfd_open"], verb);
        let end = case.finish(&mut command)?.failure()?;
        assert!(end.stderr.contains("ferry doctor"), "{}", end.stderr);
        assert_eq!(case.state()?["status"], "running", "{verb:?}");
    }
    Ok(())
}

fn undone_without_pidfds(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    // A child that waits, and a parent that fails.
    let verb = ["create", "--pid-file", "/no/such/directory/pid", "--bundle", &bundle, &id];
    let mut command = without(case, &["pidfd_send_signal"], &verb);
    case.finish(&mut command)?.failure()?;
    assert_eq!(leftovers(case)?, Vec::<String>::new());
    Ok(())
}
