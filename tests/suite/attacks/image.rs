//! Attacks by what an image holds: links where the runtime makes directories, mounts, devices and masks.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::super::case::{Case, names_in};
use super::super::need::Need::{OrdinaryUser, Peer, Root};
use super::super::output;
use super::super::pseudo_terminal::Terminal;
use super::super::scenario::{Outcome, Scenario, scenario};
use super::{assert_unharmed, outside, told, without_dev};
use crate::rootfs_fixtures::config::{add, bind, mount, user_namespace, without_mount, without_namespace};

pub const SCENARIOS: &[Scenario] = &[
    scenario("destination_whose_last_name_is_a_link_out", &[], last_name_link),
    scenario("destination_by_way_of_a_link_out", &[], link_on_the_way),
    scenario("missing_destination_below_a_link_out", &[], missing_below_link),
    scenario("proc_that_is_a_link", &[], |case| link_in_place_of(case, "proc")),
    scenario("sys_that_is_a_link", &[], |case| link_in_place_of(case, "sys")),
    scenario("mount_over_proc_that_is_no_proc", &[Peer("crun", "1.8.1 allows it")], fake_proc),
    scenario("mount_over_proc_by_another_name", &[Peer("crun", "1.8.1 allows it")], fake_proc_by_link),
    scenario("mount_over_what_labels_are_written_to", &[Peer("crun", "1.8.1 allows it")], fake_attributes),
    scenario("sysctl_that_a_mount_would_redirect", &[Root], redirected_sysctl),
    scenario("null_that_is_a_link", &[Root, PEER_NULL_1, PEER_NULL_2], null_link),
    scenario("null_that_is_a_link_to_a_kernel_parameter", &[Root, PEER_NULL_1], null_kernel_link),
    scenario("null_that_is_a_link_is_not_opened_for_streams", &[], null_for_streams),
    scenario(
        "dev_that_is_a_link_to_the_host",
        &[Root, PEER_DEV_1, Peer("crun", "1.8.1 deletes the host's ptmx")],
        dev_link,
    ),
    scenario("dev_below_a_tmpfs_that_is_a_link_to_the_host", &[PEER_DEV_2], dev_link_under_tmpfs),
    scenario(
        "console_that_is_a_link_to_the_host",
        &[Root, Peer("crun", "1.8.1 makes the link's target")],
        console_link,
    ),
    scenario("masked_path_by_way_of_a_link", &[], masked_link),
    scenario("read_only_path_by_way_of_a_link", &[], read_only_link),
    scenario("the_cgroup_tree_without_a_cgroup_namespace", &[OrdinaryUser, PEER_CGROUP], cgroup_tree),
    scenario("working_directory_that_is_a_link_out", &[], working_directory),
];

const PEER_NULL_1: super::super::need::Need = Peer("runc", "1.1.5 loses the output");
const PEER_NULL_2: super::super::need::Need = Peer("crun", "1.8.1 loses the output");
const PEER_DEV_1: super::super::need::Need = Peer("runc", "1.1.5 deletes the host's ptmx");
const PEER_DEV_2: super::super::need::Need = Peer("runc", "1.1.5 makes links in the host's directory");
const PEER_CGROUP: super::super::need::Need = Peer("crun", "leaves it writable where the user may write");

/// CVE-2019-18837.
fn last_name_link(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    for kind in ["tmpfs", "bind"] {
        let link = format!("/home/{kind}");
        case.bundle.link(&link, &outside.display().to_string())?;
        let row = match kind {
            "bind" => bind(&case.host_directory("source")?, &link, &["bind"]),
            _ => mount("tmpfs", "trap", &link, &[]),
        };
        add(&mut case.config, "/mounts", row);
    }
    if let Some(written) = told(case.args(&["/probe", "write", "/home/tmpfs/new", "x"]).run()?)? {
        assert!(written["error"].is_null(), "{written}");
    }
    assert_unharmed(&outside)
}

fn link_on_the_way(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    fs::create_dir(outside.join("inner"))?;
    case.bundle.link("/home/way", &outside.display().to_string())?;
    case.bundle.link("/home/up", "../../../../../../../..")?;
    add(&mut case.config, "/mounts", mount("tmpfs", "trap", "/home/way/inner", &[]));
    add(&mut case.config, "/mounts", mount("tmpfs", "trap", &format!("/home/up{}/inner", outside.display()), &[]));
    told(case.args(&["/probe", "write", "/home/way/inner/new", "x"]).run()?)?;
    assert_eq!(names_in(&outside.join("inner")), Vec::<String>::new());
    fs::remove_dir(outside.join("inner"))?;
    assert_unharmed(&outside)
}

/// CVE-2024-45310.
fn missing_below_link(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    case.bundle.link("/home/way", &outside.display().to_string())?;
    let file = outside.join("treasure");
    add(&mut case.config, "/mounts", mount("tmpfs", "trap", "/home/way/new/deep", &[]));
    add(&mut case.config, "/mounts", bind(&file, "/home/way/file", &["bind", "ro"]));
    told(case.run()?)?;
    assert_unharmed(&outside)
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867.
fn link_in_place_of(case: &mut Case, name: &str) -> Outcome {
    fs::remove_dir(case.bundle.inside(name))?;
    case.bundle.directory("home/elsewhere")?;
    case.bundle.link(name, "/home/elsewhere")?;
    case.run()?.failure()?;
    assert_eq!(fs::read_dir(case.bundle.inside("home/elsewhere"))?.count(), 0);
    Ok(())
}

/// CVE-2019-16884.
fn fake_proc(case: &mut Case) -> Outcome {
    let fake = case.host_directory("fake")?;
    without_mount(&mut case.config, "/proc");
    for row in [bind(&fake, "/proc", &["bind"]), mount("tmpfs", "proc", "/proc", &[])] {
        add(&mut case.config, "/mounts", row);
        case.run()?.failure()?;
        without_mount(&mut case.config, "/proc");
    }
    Ok(())
}

fn fake_proc_by_link(case: &mut Case) -> Outcome {
    let fake = case.host_directory("fake")?;
    case.bundle.link("home/kernel", "/proc")?;
    add(&mut case.config, "/mounts", bind(&fake, "/home/kernel", &["bind"]));
    // Where it is let through, no label and no parameter may be written into it.
    case.run()?.failure().map(drop)
}

/// CVE-2019-19921, the way by `/proc/self/attr`.
fn fake_attributes(case: &mut Case) -> Outcome {
    let fake = case.host_directory("fake")?;
    fs::write(fake.join("exec"), "")?;
    for place in ["/proc/self/attr", "/proc/thread-self/attr", "/proc/1/attr", "/proc/sys/kernel"] {
        add(&mut case.config, "/mounts", bind(&fake, place, &["bind"]));
        case.run()?.failure()?;
        without_mount(&mut case.config, place);
    }
    assert_eq!(fs::read_to_string(fake.join("exec"))?, "");
    Ok(())
}

/// CVE-2025-52881, CVE-2025-62596: a write that is meant for one file of procfs must not reach another.
fn redirected_sysctl(case: &mut Case) -> Outcome {
    let shared = case.host_directory("shared")?;
    fs::write(shared.join("file"), "untouched")?;
    let host = fs::read_to_string("/proc/sys/kernel/domainname")?;
    case.config["linux"]["sysctl"] = json!({"kernel.domainname": "aboard"});
    for (source, place) in [
        (shared.join("file"), "/proc/sys/kernel/domainname"),
        ("/proc/sys/kernel/hostname".into(), "/proc/sys/kernel/domainname"),
        (shared.clone(), "/proc/sys"),
    ] {
        add(&mut case.config, "/mounts", bind(&source, place, &["bind"]));
        told(case.run()?)?;
        without_mount(&mut case.config, place);
        assert_eq!(fs::read_to_string(shared.join("file"))?, "untouched", "{place}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/domainname")?, host);
    assert_eq!(case.deed(&["read", "/proc/sys/kernel/domainname"])?["ok"], "aboard\n");
    Ok(())
}

/// CVE-2025-31133. Without a tmpfs on /dev the image's own /dev/null would be what a masked file is covered with.
fn null_link(case: &mut Case) -> Outcome {
    without_dev(case);
    case.bundle.file("home/target", "the link's target")?;
    case.bundle.file("home/secret", "treasure")?;
    case.bundle.link("dev/null", "/home/target")?;
    add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    let end = case.args(&["/probe", "read", "/home/secret"]).run()?;
    assert!(end.code != 0 || end.json()? == json!({"ok": ""}), "{}", end.stdout);
    Ok(())
}

/// CVE-2025-31133, CVE-2025-62161: the way to the host.
fn null_kernel_link(case: &mut Case) -> Outcome {
    const PARAMETER: &str = "/proc/sys/kernel/core_pattern";
    let host = fs::read_to_string(PARAMETER)?;
    without_dev(case);
    case.bundle.link("dev/null", PARAMETER)?;
    case.bundle.file("home/secret", "treasure")?;
    add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    // What the host already has, so that it is not harmed where the attack works.
    let end = case.args(&["/probe", "write", "/home/secret", host.trim_end()]).run()?;
    drop(end);
    let end = case.args(&["/probe", "read", "/home/secret"]).run()?;
    assert!(end.code != 0 || end.json()? == json!({"ok": ""}), "{}", end.stdout);
    let end = case.args(&["/probe", "write", PARAMETER, host.trim_end()]).run()?;
    assert!(end.code != 0 || end.json()?["error"] == libc::EROFS, "{}", end.stdout);
    assert_eq!(fs::read_to_string(PARAMETER)?, host);
    Ok(())
}

/// CVE-2026-88265: the runtime is called with its streams closed, and what it opens in their place must not be the image's.
fn null_for_streams(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    if nix::unistd::geteuid().is_root() {
        without_dev(case);
    }
    case.bundle.link("dev/null", &outside.join("treasure").display().to_string())?;
    let log = case.path("report");
    fs::write(&log, "")?;
    let hook = json!({"path": case.stage.probe, "args": ["probe", "hook", "createContainer", log], "env": ["A=b"]});
    case.config["hooks"] = json!({"createContainer": [hook]});
    let (bundle, id) = (case.args(&["/probe", "exit", "0"]).write_config()?, case.id.clone());
    let command = case.command(&["run", "--bundle", &bundle, &id]);
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg("exec \"$0\" \"$@\" <&- >&- 2>&-").arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    output::wait(&mut shell.spawn()?, case.patience())?;
    let seen = fs::read_to_string(&log)?;
    assert!(!seen.contains("/outside/"), "{seen}");
    assert_unharmed(&outside)
}

/// CVE-2026-41579, CVE-2026-47766.
fn dev_link(case: &mut Case) -> Outcome {
    without_dev(case);
    let outside = outside(case)?;
    fs::write(outside.join("ptmx"), "the host's")?;
    fs::remove_dir(case.bundle.inside("dev"))?;
    case.bundle.link("dev", &outside.display().to_string())?;
    case.run().map(drop)?;
    assert_eq!(fs::read_to_string(outside.join("ptmx"))?, "the host's");
    fs::remove_file(outside.join("ptmx"))?;
    assert_unharmed(&outside)
}

fn dev_link_under_tmpfs(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    fs::remove_dir(case.bundle.inside("dev"))?;
    case.bundle.link("dev", &outside.display().to_string())?;
    told(case.run()?)?;
    assert_unharmed(&outside)
}

/// CVE-2026-88264.
fn console_link(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    without_mount(&mut case.config, "/dev");
    case.bundle.directory("dev/pts")?;
    case.bundle.directory("dev/shm")?;
    case.bundle.directory("dev/mqueue")?;
    case.config["process"]["terminal"] = true.into();
    case.args(&["/probe", "exit", "0"]);
    for target in ["treasure", "new"] {
        case.bundle.link("dev/console", &outside.join(target).display().to_string())?;
        let (bundle, id) = (case.write_config()?, case.id.clone());
        let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
        output::wait(&mut terminal.spawn(&case.command(&["run", "--bundle", &bundle, &id]))?, case.patience())?;
        assert_unharmed(&outside)?;
        fs::remove_file(case.bundle.inside("dev/console"))?;
    }
    Ok(())
}

/// A container with a secret at `/home/hold/secret`, and a link to the directory.
fn hold(case: &mut Case) -> Outcome {
    case.bundle.directory("home/hold")?;
    case.bundle.file("home/hold/secret", "treasure")?;
    Ok(case.bundle.link("home/link", "/home/hold")?)
}

fn masked_link(case: &mut Case) -> Outcome {
    hold(case)?;
    add(&mut case.config, "/linux/maskedPaths", json!("/home/link/secret"));
    for path in ["/home/link/secret", "/home/hold/secret"] {
        let read = told(case.args(&["/probe", "read", path]).run()?)?;
        assert!(read.is_none_or(|read| read == json!({"ok": ""})), "{path}");
    }
    Ok(())
}

fn read_only_link(case: &mut Case) -> Outcome {
    hold(case)?;
    add(&mut case.config, "/linux/readonlyPaths", json!("/home/link"));
    for path in ["/home/link/new", "/home/hold/new", "/home/hold/secret"] {
        let written = told(case.args(&["/probe", "write", path, "x"]).run()?)?;
        assert!(written.is_none_or(|written| written["error"] == libc::EROFS), "{path}");
    }
    Ok(())
}

/// CVE-2023-25809: whoever may write in the host's tree could do so from inside.
fn cgroup_tree(case: &mut Case) -> Outcome {
    without_namespace(&mut case.config, "cgroup");
    let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    add(&mut case.config, "/mounts", mount("cgroup", "cgroup", "/sys/fs/cgroup", &options));
    assert!(case.config["linux"]["uidMappings"].is_array());
    for path in written_by_this_user()? {
        let inside = format!("/sys/fs/cgroup{path}/ferry-test-attack");
        let made = told(case.args(&["/probe", "mkdir", &inside]).run()?)?;
        assert!(made.is_none_or(|made| made["error"].is_i64()), "{inside}");
    }
    Ok(())
}

/// The cgroups of this process, and the root of the tree.
fn written_by_this_user() -> Result<Vec<String>, Failed> {
    let table = fs::read_to_string("/proc/self/cgroup")?;
    let own = table.lines().filter_map(|line| line.rsplit(':').next()).map(str::to_owned);
    Ok(own.chain([String::new(), "/unified".into()]).collect())
}

fn working_directory(case: &mut Case) -> Outcome {
    let outside = outside(case)?;
    case.bundle.link("home/link", &outside.display().to_string())?;
    for cwd in ["/home/link", "/home/link/new"] {
        case.config["process"]["cwd"] = cwd.into();
        if let Some(list) = told(case.args(&["/probe", "list", "."]).run()?)? {
            assert_ne!(list["ok"], json!(["treasure"]), "{cwd}");
        }
        assert_unharmed(&outside)?;
    }
    if nix::unistd::geteuid().is_root() {
        user_namespace(&mut case.config, (100_000, 100_000), 1000);
        case.bundle.give_to(100_000)?;
        let list: Option<Value> = told(case.run()?)?;
        assert!(list.is_none_or(|list| list["ok"] != json!(["treasure"])));
    }
    assert_unharmed(&outside)
}
