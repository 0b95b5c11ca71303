//! Mounts: kinds, options, propagation, and destinations that try to lead out of the root file system.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::need::Need::{Peer, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{self, add, bind, mount, without_mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("proc_sysfs_tmpfs_devpts", &[], kinds),
    scenario("bind_a_directory", &[], bind_directory),
    scenario("bind_a_file", &[], bind_file),
    scenario("bind_read_only", &[], bind_read_only),
    scenario("bind_with_nosuid_nodev_noexec", &[], bind_flags),
    scenario("bind_keeps_the_sources_flags", &[Root], bind_keeps_flags),
    scenario("rbind_takes_what_is_below", &[Root], rbind),
    scenario("bind_leaves_what_is_below", &[Root], bind_alone),
    scenario("rro_is_read_only_all_the_way_down", &[Root, Peer("runc", "1.1.5: not recursive")], rro),
    scenario("ro_rbind_is_read_only_at_the_top_alone", &[Root], ro_rbind),
    scenario("a_missing_source_is_refused", &[], missing_source),
    scenario("a_missing_source_leaves_nothing", &[], missing_source_leaves_nothing),
    scenario("a_missing_destination_is_made", &[], missing_destination),
    scenario("a_missing_destination_for_a_file_is_made", &[], missing_file_destination),
    scenario("relative_destination", &[Peer("crun", "1.8.1: refused")], relative_destination),
    scenario("relative_source_is_in_the_bundle", &[], relative_source),
    scenario("tmpfs_options", &[], tmpfs_options),
    scenario("an_empty_option_is_none", &[], empty_option),
    scenario("tmpfs_tmpcopyup", &[Peer("runc", "1.1.5: needs a private /tmp")], tmpcopyup),
    scenario("noexec_tmpfs", &[], noexec),
    scenario("order_is_kept", &[], order),
    scenario("an_unknown_option_of_the_file_system_is_refused", &[], unknown_option),
    scenario("an_unknown_type_is_refused", &[], unknown_type),
    scenario("propagation_of_a_mount", &[Root], propagation),
    scenario("root_propagation_is_private_or_slave_by_default", &[Root], root_propagation_default),
    scenario("root_propagation", &[Root, Peer("runc", "1.1.5: private all the same")], root_propagation),
    scenario("nothing_is_mounted_on_the_host", &[], host_untouched),
    scenario("read_only_root", &[], read_only_root),
    scenario("the_old_root_is_gone", &[], old_root),
    scenario("without_pivot_the_root_is_the_same", &[Root], no_pivot),
    scenario("absolute_link_as_destination_stays_inside", &[], absolute_link),
    scenario("relative_link_as_destination_stays_inside", &[], relative_link),
    scenario("dots_in_a_destination_stay_inside", &[], dots),
    scenario("dangling_link_as_destination_stays_inside", &[], dangling_link),
    scenario("a_link_in_an_earlier_mount_stays_inside", &[], link_in_mount),
    scenario("idmapped_bind", &[Root, Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 differs")], idmapped),
    scenario("a_root_path_that_is_a_link", &[Peer("runc", "1.1.5: refused")], root_link),
    scenario("absolute_root_path", &[], absolute_root),
    scenario("a_missing_root_is_refused", &[], missing_root),
    scenario("cgroup_mount", &[Root], cgroup_mount),
    scenario("sysfs_is_mounted_where_the_hosts_is_read_only", &[Root, Tool("unshare")], read_only_sysfs),
];

/// The last mount at `point`, which is the one that is seen.
pub(super) fn row<'a>(report: &'a Value, point: &str) -> Result<&'a Value, Failed> {
    let rows = report["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().rfind(|row| row["point"] == point).ok_or_else(|| format!("nothing is mounted at {point}").into())
}

pub(super) fn has(report: &Value, point: &str, option: &str) -> Result<bool, Failed> {
    Ok(row(report, point)?["options"].as_array().is_some_and(|options| options.contains(&option.into())))
}

fn kinds(case: &mut Case) -> Outcome {
    let report = case.report()?;
    for (point, kind) in
        [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/mqueue", "mqueue")]
    {
        assert_eq!(row(&report, point)?["type"], kind);
    }
    assert!(has(&report, "/sys", "ro")? && has(&report, "/sys", "noexec")? && has(&report, "/dev", "nosuid")?);
    assert!(row(&report, "/dev")?["super"].as_array().is_some_and(|words| words.contains(&"size=65536k".into())));
    Ok(())
}

fn with_bind(case: &mut Case, options: &[&str]) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", options));
    Ok(())
}

fn bind_directory(case: &mut Case) -> Outcome {
    with_bind(case, &["bind"])?;
    assert_eq!(case.deed(&["read", "/mnt/cargo"])?["ok"], "tea");
    assert!(case.deed(&["write", "/mnt/new", "rum"])?["error"].is_null());
    assert_eq!(fs::read_to_string(case.directory.join("source/new"))?, "rum");
    Ok(())
}

fn bind_file(case: &mut Case) -> Outcome {
    let source = case.directory.join("hosts");
    fs::write(&source, "127.0.0.1 localhost")?;
    add(&mut case.config, "/mounts", bind(&source, "/etc/hosts", &["rbind", "ro"]));
    assert_eq!(case.deed(&["read", "/etc/hosts"])?["ok"], "127.0.0.1 localhost");
    assert_eq!(case.deed(&["write", "/etc/hosts", "x"])?["error"], libc::EROFS);
    Ok(())
}

fn bind_read_only(case: &mut Case) -> Outcome {
    with_bind(case, &["bind", "ro"])?;
    assert_eq!(case.deed(&["write", "/mnt/new", "x"])?["error"], libc::EROFS);
    assert_eq!(case.deed(&["read", "/mnt/cargo"])?["ok"], "tea");
    Ok(())
}

fn bind_flags(case: &mut Case) -> Outcome {
    with_bind(case, &["bind", "nosuid", "nodev", "noexec"])?;
    let report = case.report()?;
    for option in ["nosuid", "nodev", "noexec", "rw"] {
        assert!(has(&report, "/mnt", option)?, "{option}");
    }
    Ok(())
}

/// A tmpfs on the host, made with mount(8) in the test's own directory; unmounted when dropped.
pub(super) struct HostMount(pub(super) std::path::PathBuf);

impl HostMount {
    pub(super) fn tmpfs(path: std::path::PathBuf, options: &str) -> Result<Self, Failed> {
        fs::create_dir_all(&path)?;
        let mut command = std::process::Command::new("mount");
        let done = command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status()?;
        if done.success() { Ok(Self(path)) } else { Err("the test cannot mount a tmpfs".into()) }
    }

    /// A directory that is a mount point.
    pub(super) fn of_itself(path: std::path::PathBuf) -> Result<Self, Failed> {
        let none: Option<&str> = None;
        nix::mount::mount(Some(&path), &path, none, nix::mount::MsFlags::MS_BIND, none)?;
        Ok(Self(path))
    }

    /// The same, from which mounts spread to where else it is seen, as from those of most hosts.
    pub(super) fn shared(path: std::path::PathBuf) -> Result<Self, Failed> {
        let (mount, none) = (Self::of_itself(path)?, None::<&str>);
        nix::mount::mount(none, &mount.0, none, nix::mount::MsFlags::MS_SHARED, none)?;
        Ok(mount)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH) {
            println!("{} stays mounted: {error}", self.0.display());
        }
    }
}

fn bind_keeps_flags(case: &mut Case) -> Outcome {
    let source = HostMount::tmpfs(case.directory.join("source"), "nosuid,nodev,noexec")?;
    add(&mut case.config, "/mounts", bind(&source.0, "/mnt", &["bind"]));
    let report = case.report()?;
    assert!(has(&report, "/mnt", "nosuid")? && has(&report, "/mnt", "nodev")?);
    Ok(())
}

/// A directory of the host with a tmpfs below it, bound to /mnt.
fn with_submount(case: &mut Case, options: &[&str]) -> Result<HostMount, Failed> {
    let source = case.host_directory("source")?;
    let below = HostMount::tmpfs(source.join("below"), "mode=755")?;
    fs::write(below.0.join("deep"), "x")?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", options));
    Ok(below)
}

fn rbind(case: &mut Case) -> Outcome {
    let _below = with_submount(case, &["rbind"])?;
    assert_eq!(case.deed(&["list", "/mnt/below"])?["ok"], json!(["deep"]));
    Ok(())
}

fn bind_alone(case: &mut Case) -> Outcome {
    let _below = with_submount(case, &["bind"])?;
    assert_eq!(case.deed(&["list", "/mnt/below"])?["ok"], json!([]));
    Ok(())
}

fn rro(case: &mut Case) -> Outcome {
    let _below = with_submount(case, &["rbind", "rro"])?;
    assert_eq!(case.deed(&["write", "/mnt/new", "x"])?["error"], libc::EROFS);
    assert_eq!(case.deed(&["write", "/mnt/below/new", "x"])?["error"], libc::EROFS);
    Ok(())
}

fn ro_rbind(case: &mut Case) -> Outcome {
    let _below = with_submount(case, &["rbind", "ro"])?;
    assert_eq!(case.deed(&["write", "/mnt/new", "x"])?["error"], libc::EROFS);
    assert!(case.deed(&["write", "/mnt/below/new", "x"])?["error"].is_null());
    Ok(())
}

fn missing_source(case: &mut Case) -> Outcome {
    let missing = case.directory.join("missing");
    add(&mut case.config, "/mounts", bind(&missing, "/mnt", &["bind"]));
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("missing"), "{}", end.stderr);
    Ok(())
}

fn missing_source_leaves_nothing(case: &mut Case) -> Outcome {
    missing_source(case)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn missing_destination(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/home/a/b", &["nosuid"]));
    assert_eq!(row(&case.report()?, "/home/a/b")?["type"], "tmpfs");
    Ok(())
}

fn missing_file_destination(case: &mut Case) -> Outcome {
    let source = case.directory.join("file");
    fs::write(&source, "text")?;
    add(&mut case.config, "/mounts", bind(&source, "/home/a/file", &["bind"]));
    assert_eq!(case.deed(&["read", "/home/a/file"])?["ok"], "text");
    Ok(())
}

fn relative_destination(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "home/relative", &[]));
    assert_eq!(row(&case.report()?, "/home/relative")?["type"], "tmpfs");
    Ok(())
}

fn relative_source(case: &mut Case) -> Outcome {
    fs::create_dir(case.bundle.path().join("data"))?;
    fs::write(case.bundle.path().join("data/file"), "beside")?;
    add(&mut case.config, "/mounts", bind("data".as_ref(), "/mnt", &["bind"]));
    assert_eq!(case.deed(&["read", "/mnt/file"])?["ok"], "beside");
    Ok(())
}

fn tmpfs_options(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "hold", "/home/hold", &["mode=1750", "size=16k", "noatime"]));
    assert_eq!(case.deed(&["stat", "/home/hold"])?["ok"]["mode"], "1750");
    let report = case.args(&["/probe"]).report()?;
    assert!(has(&report, "/home/hold", "noatime")?);
    assert_eq!(row(&report, "/home/hold")?["source"], "hold");
    Ok(())
}

/// podman gives one to the filesystems of a container that runs systemd.
fn empty_option(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/home/run", &["nosuid", ""]));
    assert!(has(&case.report()?, "/home/run", "nosuid")?);
    Ok(())
}

fn tmpcopyup(case: &mut Case) -> Outcome {
    case.bundle.file("home/below", "copied")?;
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/home", &["tmpcopyup"]));
    assert_eq!(case.deed(&["read", "/home/below"])?["ok"], "copied");
    case.deed(&["write", "/home/new", "x"])?;
    assert!(!case.bundle.inside("home/new").exists());
    Ok(())
}

fn noexec(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::hard_link(case.bundle.inside("probe"), source.join("probe"))?;
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["bind", "noexec"]));
    case.args(&["/mnt/probe"]).run()?.failure().map(drop)
}

fn order(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "first", "/mnt", &[]));
    add(&mut case.config, "/mounts", mount("tmpfs", "second", "/mnt/inner", &[]));
    add(&mut case.config, "/mounts", mount("tmpfs", "third", "/mnt/inner", &[]));
    let report = case.report()?;
    assert_eq!(
        (&row(&report, "/mnt")?["source"], &row(&report, "/mnt/inner")?["source"]),
        (&json!("first"), &json!("third"))
    );
    Ok(())
}

fn unknown_option(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/mnt", &["rigged=yes"]));
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn unknown_type(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("seafs", "sea", "/mnt", &[]));
    let end = case.run()?.failure()?;
    assert!(
        end.stderr.contains("seafs") || end.stderr.contains("/mnt") || end.stderr.contains("`mnt`"),
        "{}",
        end.stderr
    );
    Ok(())
}

fn propagation(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    for (option, expected) in [("private", ""), ("shared", "shared:"), ("unbindable", "unbindable")] {
        without_mount(&mut case.config, "/mnt");
        add(&mut case.config, "/mounts", bind(&source, "/mnt", &["bind", option]));
        let report = case.report()?;
        let words = row(&report, "/mnt")?["propagation"].to_string();
        assert!(if expected.is_empty() { words == "[]" } else { words.contains(expected) }, "{option}: {words}");
    }
    Ok(())
}

fn root_propagation_default(case: &mut Case) -> Outcome {
    let words = row(&case.report()?, "/")?["propagation"].to_string();
    assert!(!words.contains("shared"), "{words}");
    Ok(())
}

fn root_propagation(case: &mut Case) -> Outcome {
    for (wanted, expected) in [("private", ""), ("shared", "shared:"), ("unbindable", "unbindable")] {
        case.config["linux"]["rootfsPropagation"] = wanted.into();
        let words = row(&case.report()?, "/")?["propagation"].to_string();
        assert!(if expected.is_empty() { words == "[]" } else { words.contains(expected) }, "{wanted}: {words}");
    }
    Ok(())
}

fn host_untouched(case: &mut Case) -> Outcome {
    let table = || fs::read_to_string("/proc/self/mountinfo");
    let of_case = |text: String, case: &Case| {
        let own = case.directory.display().to_string();
        text.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect::<Vec<_>>()
    };
    with_bind(case, &["rbind", "rshared"])?;
    case.start_waiting()?;
    assert_eq!(of_case(table()?, case), Vec::<String>::new());
    Ok(())
}

fn read_only_root(case: &mut Case) -> Outcome {
    case.config["root"]["readonly"] = true.into();
    assert_eq!(case.deed(&["write", "/home/new", "x"])?["error"], libc::EROFS);
    assert!(case.deed(&["write", "/dev/shm/new", "x"])?["error"].is_null());
    Ok(())
}

fn no_pivot(case: &mut Case) -> Outcome {
    let names = |report: &Value| report["ok"].clone();
    let pivoted = names(&case.deed(&["list", "/"])?);
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let moved = case.call(&["run", "--no-pivot", "--bundle", &bundle, &id])?.success()?.json()?;
    assert_eq!(names(&moved), pivoted);
    // As with a pivot, nothing is above the root.
    case.args(&["/probe", "list", "/../.."]).write_config()?;
    let above = case.call(&["run", "--no-pivot", "--bundle", &bundle, &id])?.success()?.json()?;
    assert_eq!(names(&above), pivoted);
    Ok(())
}

fn old_root(case: &mut Case) -> Outcome {
    let report = case.report()?;
    let host = case.directory.display().to_string();
    let points: Vec<&str> =
        report["mounts"].as_array().into_iter().flatten().filter_map(|row| row["point"].as_str()).collect();
    assert!(points.iter().all(|point| !point.starts_with(&host) && !point.contains("old")), "{points:?}");
    assert_eq!(case.deed(&["list", "/"])?["ok"], json!(["dev", "etc", "home", "mnt", "probe", "proc", "sys", "tmp"]));
    Ok(())
}

/// Whatever the link says, the mount lands in the root file system and the host's directory stays as it was.
fn stays_inside(case: &mut Case, destination: &str, target: &str, lands: &str) -> Outcome {
    let outside = case.host_directory("outside")?;
    let target = target.replace("OUTSIDE", outside.to_str().unwrap_or_default());
    case.bundle.link("home/link", &target)?;
    add(&mut case.config, "/mounts", mount("tmpfs", "caught", destination, &[]));
    let end = case.run()?;
    assert_eq!(names_in(&outside), Vec::<String>::new());
    if end.code == 0 {
        let report = end.json()?;
        let lands = lands.replace("OUTSIDE", outside.to_str().unwrap_or_default());
        assert_eq!(row(&report, &lands)?["source"], "caught");
    }
    Ok(())
}

fn absolute_link(case: &mut Case) -> Outcome {
    stays_inside(case, "/home/link", "OUTSIDE", "OUTSIDE")
}

fn relative_link(case: &mut Case) -> Outcome {
    stays_inside(case, "/home/link", "../../../../../../../mnt", "/mnt")
}

fn dots(case: &mut Case) -> Outcome {
    stays_inside(case, "/../../../../mnt", "unused", "/mnt")
}

fn dangling_link(case: &mut Case) -> Outcome {
    stays_inside(case, "/home/link/deeper", "OUTSIDE/new", "OUTSIDE/new/deeper")?;
    assert!(!case.directory.join("outside/new").exists());
    Ok(())
}

fn link_in_mount(case: &mut Case) -> Outcome {
    let volume = case.host_directory("volume")?;
    let outside = case.host_directory("outside")?;
    std::os::unix::fs::symlink(&outside, volume.join("link"))?;
    add(&mut case.config, "/mounts", bind(&volume, "/mnt", &["bind"]));
    add(&mut case.config, "/mounts", mount("tmpfs", "caught", "/mnt/link/new", &[]));
    case.run().map(drop)?;
    assert_eq!(names_in(&outside), Vec::<String>::new());
    Ok(())
}

fn idmapped(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("file"), "x")?;
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mut row = bind(&source, "/mnt", &["bind"]);
    (row["uidMappings"], row["gidMappings"]) = (map.clone(), map);
    add(&mut case.config, "/mounts", row);
    let seen = case.deed(&["stat", "/mnt/file"])?["ok"].clone();
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(1000), &json!(1000)));
    Ok(())
}

fn root_link(case: &mut Case) -> Outcome {
    std::os::unix::fs::symlink("rootfs", case.bundle.path().join("link"))?;
    case.config["root"]["path"] = "link".into();
    case.report().map(drop)
}

fn absolute_root(case: &mut Case) -> Outcome {
    case.config["root"]["path"] = case.bundle.rootfs().to_str().into();
    case.report().map(drop)
}

fn missing_root(case: &mut Case) -> Outcome {
    case.config["root"]["path"] = "no-such-root".into();
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("no-such-root"), "{}", end.stderr);
    Ok(())
}

fn cgroup_mount(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "ro"]));
    let report = case.report()?;
    let kind = row(&report, "/sys/fs/cgroup")?["type"].clone();
    assert!(kind == "cgroup2" || kind == "tmpfs", "{kind}");
    let answer = case.deed(&["mkdir", "/sys/fs/cgroup/new"])?;
    assert!(answer["error"].is_i64(), "{answer}");
    Ok(())
}

/// As in a container of a container: the kernel gives a user namespace no sysfs that is written to where there is none.
fn read_only_sysfs(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 1000);
    config::without_mount(&mut case.config, "/sys/fs/cgroup");
    add(&mut case.config, "/mounts", mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "ro"]));
    let (bundle, id) = (case.args(&["/probe", "report"]).write_config()?, case.id.clone());
    let call = case.command(&["run", "--bundle", &bundle, &id]);
    let cover =
        "umount --lazy /sys; mount -t sysfs -o ro sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec \"$@\"";
    let mut nested = Command::new("unshare");
    nested.args(["--mount", "sh", "-euc", cover, "sh"]).arg(call.get_program()).args(call.get_args());
    nested.envs(call.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let report = case.finish(&mut nested)?.success()?.json()?;
    assert_eq!(row(&report, "/sys")?["type"], "sysfs");
    assert!(has(&report, "/sys", "ro")?);
    Ok(())
}
