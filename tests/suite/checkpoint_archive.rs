//! Checkpoints in one file: there and back, by a file and by a pipe; and archives that are not what they say, or hold more than
//! the bundle allows, which end before anything of them runs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

use libtest_mimic::Failed;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::case::{Case, names_in};
use super::checkpoint::CRIU;
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("an_archive_brings_a_container_back", CRIU, there_and_back),
    scenario("an_archive_goes_through_pipes", CRIU, through_pipes),
    scenario("an_archive_is_looked_into", CRIU, inspected),
    scenario("an_archive_that_cannot_be_written_loses_nothing", CRIU, unwritable),
    scenario("flags_of_an_archive_are_needed_again", CRIU, flags),
    scenario("an_archive_that_is_not_whole_is_refused", CRIU, broken),
    scenario("an_archive_of_another_machine_is_refused", CRIU, another_machine),
    scenario("an_archive_gets_no_more_than_the_bundle_gives", CRIU, wider),
    scenario("a_name_that_is_no_text_hides_no_process", CRIU, nameless),
    scenario("an_archive_opens_no_file_that_its_user_may_not", CRIU, files),
    scenario("archives_of_all_sorts_of_containers_come_back", CRIU, all_sorts),
];

/// Where scratch directories go, so that what is left there is seen.
pub(super) fn scratch(case: &Case) -> Result<String, Failed> {
    Ok(case.host_directory("scratch")?.display().to_string())
}

pub(super) fn exported(case: &mut Case, flags: &[&str]) -> Result<String, Failed> {
    let (archive, id, scratch) = (case.path("archive"), case.id.clone(), scratch(case)?);
    let mut command = case.command(&[&["checkpoint", "--export", &archive], flags, &[&id]].concat());
    case.finish(command.env("TMPDIR", &scratch))?.success()?;
    assert_eq!(names_in(Path::new(&scratch)), Vec::<String>::new());
    Ok(archive)
}

/// An import that must not succeed: what it says. Nothing ran, and nothing is left.
fn refused(case: &mut Case, archive: &str) -> Result<String, Failed> {
    refused_with(case, archive, &[])
}

/// The same with more flags.
pub(super) fn refused_with(case: &mut Case, archive: &str, flags: &[&str]) -> Result<String, Failed> {
    let (bundle, scratch) = (case.write_config()?, scratch(case)?);
    // A file, as the container's own was.
    let errors = fs::File::create(case.directory.join("errors"))?;
    let all = [&["restore", "--import", archive, "--bundle", &bundle, "--detach"], flags].concat();
    let mut command = case.command(&all);
    let mut child = command.env("TMPDIR", &scratch).stdout(Stdio::piped()).stderr(errors).spawn()?;
    let (mut stdout, status) = (String::new(), output::wait(&mut child, case.patience())?);
    let stderr = fs::read_to_string(case.directory.join("errors"))?;
    // First: a container that runs all the same prints without end.
    assert!(!status.success(), "{status}, {stderr}");
    child.stdout.take().ok_or("no standard output")?.read_to_string(&mut stdout)?;
    assert!(stdout.is_empty(), "{stdout}, {stderr}");
    assert_eq!(case.leftovers()?, Vec::<String>::new(), "{stderr}");
    // A log may be there to be read.
    for name in names_in(Path::new(&scratch)) {
        assert_eq!(names_in(&Path::new(&scratch).join(&name)), ["restore.log"], "{stderr}");
        fs::remove_file(Path::new(&scratch).join(&name).join("restore.log"))?;
        fs::remove_dir(Path::new(&scratch).join(&name))?;
    }
    Ok(stderr)
}

pub(super) fn imported(case: &mut Case, archive: &str, flags: &[&str]) -> Result<Lines, Failed> {
    let bundle = case.write_config()?;
    case.begin(&[&["restore", "--detach", "--import", archive, "--bundle", &bundle], flags].concat())
}

pub(super) fn counter(case: &mut Case) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(10)?;
    Ok(row)
}

fn there_and_back(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let archive = exported(case, &[])?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert_eq!(names_in(&case.directory).iter().filter(|name| name.contains("archive")).count(), 1);
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    assert_eq!(case.state()?["status"], "running", "under the name it had");
    let other = case.other_id();
    let archive = exported(case, &[])?;
    let lines = imported(case, &archive, &["--name", &other])?;
    row.continued(lines)?;
    let images = case.path("kept");
    let mut command =
        case.command(&["checkpoint", "--leave-running", "--image-path", &images, "--export", &archive, &other]);
    case.finish(&mut command)?.success()?;
    assert!(names_in(Path::new(&images)).contains(&"inventory.img".to_owned()));
    row.go_on(5)
}

fn through_pipes(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (id, other, scratch) = (case.id.clone(), case.other_id(), scratch(case)?);
    let mut command = case.command(&["checkpoint", "--export", "-", &id]);
    let mut source = command.env("TMPDIR", &scratch).stdout(Stdio::piped()).spawn()?;
    let mut archive = Vec::new();
    source.stdout.take().ok_or("no standard output")?.read_to_end(&mut archive)?;
    assert!(output::wait(&mut source, case.patience())?.success());
    let bundle = case.bundle.path().display().to_string();
    let errors = fs::File::options().write(true).open(case.directory.join("errors"))?;
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let mut command = case.command(&["restore", "--import", "-", "--bundle", &bundle, "--detach", &other]);
    let mut command = command.env("TMPDIR", &scratch).stdin(Stdio::piped()).stdout(pipe).stderr(errors).spawn()?;
    command.stdin.take().ok_or("no standard input")?.write_all(&archive)?;
    assert!(
        output::wait(&mut command, case.patience())?.success(),
        "{}",
        fs::read_to_string(case.directory.join("errors"))?
    );
    row.continued(lines)?;
    assert_eq!(names_in(Path::new(&scratch)), Vec::<String>::new());
    Ok(())
}

fn inspected(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(3)?;
    let archive = exported(case, &["--leave-running"])?;
    let found = case.call(&["checkpoint", "inspect", "--format", "json", &archive])?.success()?.json()?;
    assert_eq!((&found["id"], &found["format"]), (&json!(case.id), &json!(1)));
    let processes = found["processes"].as_array().ok_or("no processes")?;
    assert_eq!(processes.len(), 3, "{processes:?}");
    for process in processes {
        assert!(process["name"] == "probe" && process["memory"].as_u64() > Some(0), "{process}");
    }
    let mounts = found["mounts"].as_array().ok_or("no mounts")?;
    assert!(mounts.iter().any(|mount| mount["point"] == "/proc"), "{mounts:?}");
    let text = case.call(&["checkpoint", "inspect", &archive])?.success()?.stdout;
    assert!(text.contains("probe") && text.contains("unix"), "{text}");
    row.go_on(3)?;
    // What is looked into is held in memory, and a few bytes are enough for much of it.
    let zeros = vec![0; 60 << 20];
    let digest: String = Sha256::digest(&zeros).iter().map(|byte| format!("{byte:02x}")).collect();
    let names: Vec<String> = (1..6).map(|number| format!("checkpoint/core-{number}000.img")).collect();
    let mut large = with_manifest(&entries(&archive)?, |manifest| {
        for name in &names {
            manifest["parts"][name] = json!({"size": zeros.len(), "digest": format!("sha256:{digest}")});
        }
    })?;
    large.extend(names.into_iter().map(|name| (name, zeros.clone())));
    fs::write(&archive, tarred(&large)?)?;
    let said = case.call(&["checkpoint", "inspect", &archive])?.failure()?.stderr;
    assert!(said.contains("larger than 268435456 bytes"), "{said}");
    Ok(())
}

fn unwritable(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (id, scratch, images) = (case.id.clone(), scratch(case)?, case.path("none"));
    let said =
        case.call(&["checkpoint", "--export", &format!("{images}/archive"), "--leave-running", &id])?.failure()?.stderr;
    assert!(said.contains("ENOENT"), "{said}");
    row.go_on(3)?;
    let said = case.call(&["checkpoint", "--export", "x", "--pre-dump", &id])?.failure()?.stderr;
    assert!(said.contains("--pre-dump does not go with --export"), "{said}");
    row.go_on(3)?;
    // Where it was to end, it has ended; and is still there to be had.
    let errors = fs::File::create(case.directory.join("errors"))?;
    let mut command = case.command(&["checkpoint", "--export", "-", &id]);
    let full = fs::File::options().write(true).open("/dev/full")?;
    let mut child = command.env("TMPDIR", &scratch).stdout(full).stderr(errors).spawn()?;
    assert!(!output::wait(&mut child, case.patience())?.success());
    let said = fs::read_to_string(case.directory.join("errors"))?;
    let [kept] = &names_in(Path::new(&scratch))[..] else {
        return Err(format!("the images are not kept: {said}").into());
    };
    let kept = format!("{scratch}/{kept}");
    assert!(said.contains(&format!("ferry restore --image-path {kept}")), "{said}");
    let bundle = case.bundle.path().display().to_string();
    let lines = case.begin(&["restore", "--detach", "--image-path", &kept, "--bundle", &bundle, &id])?;
    row.continued(lines)
}

fn flags(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let archive = exported(case, &["--file-locks"])?;
    let said = refused(case, &archive)?;
    assert!(said.contains("the archive was made with --file-locks: give it here too"), "{said}");
    let lines = imported(case, &archive, &["--file-locks"])?;
    row.continued(lines)
}

/// An archive taken apart: names and contents, in order.
pub(super) type Entries = Vec<(String, Vec<u8>)>;

pub(super) fn entries(archive: &str) -> Result<Entries, Failed> {
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(fs::File::open(archive)?)?);
    let mut entries = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let (name, mut bytes) = (String::from_utf8(entry.path_bytes().to_vec())?, Vec::new());
        entry.read_to_end(&mut bytes)?;
        entries.push((name, bytes));
    }
    Ok(entries)
}

pub(super) fn tarred(entries: &Entries) -> Result<Vec<u8>, Failed> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        // As a hostile writer has it, and not as the library allows it.
        let field = &mut header.as_gnu_mut().ok_or("no header")?.name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = name.strip_prefix("link:") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(target)?;
        }
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        builder.append(&header, bytes.as_slice())?;
    }
    Ok(zstd::stream::encode_all(builder.into_inner()?.as_slice(), 1)?)
}

fn manifest(entries: &Entries) -> Result<Value, Failed> {
    Ok(serde_json::from_slice(&entries[0].1)?)
}

pub(super) fn with_manifest(entries: &Entries, change: impl FnOnce(&mut Value)) -> Result<Entries, Failed> {
    let (mut entries, mut changed) = (entries.clone(), manifest(entries)?);
    change(&mut changed);
    entries[0].1 = serde_json::to_vec(&changed)?;
    Ok(entries)
}

fn broken(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let archive = exported(case, &[])?;
    let (whole, bytes) = (entries(&archive)?, fs::read(&archive)?);
    let outside = case.path("outside");
    let image = whole.iter().position(|(name, _)| name == "checkpoint/pstree.img").ok_or("no pstree.img")?;
    let mut cases: Vec<(&str, Vec<u8>, &str)> = Vec::new();
    let mut add = |what, entries: &Entries, said| -> Outcome {
        cases.push((what, tarred(entries)?, said));
        Ok(())
    };
    let mut other = whole.clone();
    other[image].1[20] ^= 1;
    add("another content", &other, "its content is that of")?;
    let mut other = whole.clone();
    other[image].1.push(0);
    add("a byte more", &other, "and the manifest says")?;
    let mut other = whole.clone();
    other.remove(image);
    add("a part that is missing", &other, "it is missing")?;
    let mut other = whole.clone();
    other.push(whole[image].clone());
    add("a part that is there twice", &other, "it is there twice")?;
    let mut other = whole.clone();
    other.push(("checkpoint/other.img".into(), vec![1]));
    add("a part that is not listed", &other, "the manifest does not list it")?;
    let mut other = whole.clone();
    other.insert(1, ("link:/etc".into(), Vec::new()));
    add("a link", &other, "it is no plain file")?;
    let mut other = whole.clone();
    other.remove(0);
    add("no manifest", &other, "and not with ferry.json")?;
    for name in ["../outside", "checkpoint/../../outside", outside.as_str()] {
        let listed =
            json!({"size": 1, "digest": "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"});
        let mut other = with_manifest(&whole, |manifest| manifest["parts"][name] = listed)?;
        other.push((name.to_owned(), b"1".to_vec()));
        add("a way out", &other, "is no part of an archive")?;
    }
    let other = with_manifest(&whole, |manifest| {
        manifest["parts"]["checkpoint/pages-9.img"] =
            json!({"size": 1_u64 << 50, "digest": format!("sha256:{}", "0".repeat(64))});
    })?;
    add("more than fits", &other, "has room for")?;
    let other = with_manifest(&whole, |manifest| manifest["format"] = json!(2))?;
    add("another format", &other, "it is of format 2")?;
    for part in [2, 3, 5] {
        cases.push(("cut off", bytes[..bytes.len() * (part - 1) / part].to_vec(), "cannot"));
    }
    cases.push(("nothing", Vec::new(), "cannot"));
    cases.push(("something else", b"hello\n".repeat(1000), "cannot"));
    let mut bomb = zstd::stream::Encoder::new(Vec::new(), 1)?;
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut bomb)?;
    cases.push(("zeros without an end", [bytes.clone(), bomb.finish()?].concat(), "something follows its end"));
    for (what, bytes, expected) in cases {
        fs::write(&archive, bytes)?;
        let said = refused(case, &archive)?;
        assert!(said.contains(expected), "{what}: {said}");
        assert!(!fs::exists(&outside)?, "{what}");
    }
    fs::write(&archive, bytes)?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)
}

fn another_machine(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let archive = exported(case, &[])?;
    let (whole, bytes) = (entries(&archive)?, fs::read(&archive)?);
    for (key, value, expected) in [
        ("architecture", json!("vax"), "it is from a machine of architecture vax"),
        ("criu", json!(990_000), "it was made by CRIU 99.0, and here is"),
        ("kernel", json!("99.1.2"), "it is from Linux 99.1.2, and this is the older"),
        ("pageSize", json!(512), "its kernel had pages of 512 bytes"),
        ("cpuFeatures", json!(["avx1024"]), "what this processor does not have: avx1024"),
    ] {
        fs::write(&archive, tarred(&with_manifest(&whole, |manifest| manifest["host"][key] = value)?)?)?;
        let said = refused(case, &archive)?;
        assert!(said.contains(expected), "{said}");
    }
    fs::write(&archive, bytes)?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)
}

/// What a container has more than the bundle it is restored with.
type Change = fn(&mut Value);

/// Every archive here holds what a crafted one would: it was dumped from a container that had more.
fn wider(case: &mut Case) -> Outcome {
    let mut all = case.config.clone();
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO"}]});
    let changes: [(&str, Change, &str); 12] = [
        (
            "capabilities",
            |config| {
                for set in ["bounding", "permitted", "effective"] {
                    config::add(config, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
                }
            },
            "capabilities that are not in process.capabilities: CAP_SYS_ADMIN",
        ),
        ("seccomp", |config| config["linux"]["seccomp"] = Value::Null, "linux.seccomp"),
        (
            "another filter",
            |config| {
                config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["add_key"]);
            },
            "another system call filter than linux.seccomp gives",
        ),
        (
            "no new privileges",
            |config| config["process"]["noNewPrivileges"] = json!(false),
            "lacks process.noNewPrivileges",
        ),
        (
            "a mount",
            |config| {
                config::add(config, "/mounts", json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}));
            },
            "has a mount that config.json does not have, on /mnt",
        ),
        ("masked paths", |config| config["linux"]["maskedPaths"] = json!([]), "which linux.maskedPaths hides"),
        ("read-only paths", |config| config["linux"]["readonlyPaths"] = json!([]), "which linux.readonlyPaths forbids"),
        ("the user", |_| (), "is not the user of process.user"),
        (
            "groups",
            |config| config["process"]["user"]["additionalGids"] = json!([6, 42]),
            "has a supplementary group that process.user.additionalGids does not give: 42",
        ),
        (
            "priority",
            |config| config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": -5}),
            "has a higher priority than process.scheduler gives",
        ),
        (
            "a larger filesystem",
            |config| config["mounts"][3]["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=70m"]),
            "has a tmpfs with another option size than config.json has, on /dev/shm",
        ),
        (
            "other processes",
            |config| config["mounts"][0]["options"] = json!([]),
            "has a proc with another option hidepid than config.json has, on /proc",
        ),
    ];
    all["process"]["user"]["additionalGids"] = json!([6]);
    all["mounts"][0]["options"] = json!(["hidepid=2"]);
    all["linux"]["seccomp"] = seccomp;
    all["linux"]["maskedPaths"] = json!(["/proc/keys", "/sys/firmware"]);
    all["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    all["process"]["noNewPrivileges"] = json!(true);
    all["process"]["capabilities"] =
        json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
    for (what, change, expected) in changes {
        case.config = all.clone();
        change(&mut case.config);
        let mut row = counter(case).map_err(|why| format!("{what}: {why:?}"))?;
        let archive = exported(case, &[])?;
        let more = std::mem::replace(&mut case.config, all.clone());
        if what == "the user" {
            case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        }
        let said = refused(case, &archive)?;
        assert!(said.contains(expected), "{what}: {said}");
        // Given what it has, it runs.
        case.config = more;
        let lines = imported(case, &archive, &[])?;
        row.continued(lines).map_err(|why| format!("{what}: {why:?}"))?;
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

/// The one that has more is a child, which nothing but its name tells from the others.
fn nameless(case: &mut Case) -> Outcome {
    case.config["process"]["noNewPrivileges"] = json!(false);
    let mut row = Row::of(case.args(&["/probe", "beside-nameless"]).start()?);
    row.go_on(10)?;
    let archive = exported(case, &[])?;
    case.config["process"]["noNewPrivileges"] = json!(true);
    let said = refused(case, &archive)?;
    assert!(said.contains("lacks process.noNewPrivileges"), "{said}");
    case.config["process"]["noNewPrivileges"] = json!(false);
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)
}

/// The file comes to be another's while it is open: CRIU opens it all the same.
fn files(case: &mut Case) -> Outcome {
    case.config["process"]["capabilities"] = json!({});
    let mut row = Row::of(case.args(&["/probe", "lock", "/home/file"]).start()?);
    row.go_on(5)?;
    let file = case.bundle.inside("home/file");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640))?;
    chown(&file, Some(5), Some(42))?;
    let archive = exported(case, &["--file-locks"])?;
    let said = refused_with(case, &archive, &["--file-locks"])?;
    assert!(said.contains("has /home/file open, which process.user may not open"), "{said}");
    // Who may override that may have opened it.
    case.config["process"]["capabilities"] =
        json!({"bounding": ["CAP_DAC_OVERRIDE"], "permitted": ["CAP_DAC_OVERRIDE"]});
    let lines = imported(case, &archive, &["--file-locks"])?;
    row.continued(lines)?;
    case.config["process"]["capabilities"] = json!({});
    chown(&file, Some(0), Some(0))?;
    let archive = exported(case, &["--file-locks"])?;
    let lines = imported(case, &archive, &["--file-locks"])?;
    row.continued(lines)
}

/// What is looked at before it runs is found to be as the bundle has it.
fn all_sorts(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    fs::write(outside.join("file"), "from outside")?;
    case.bundle.link("through", "mnt")?;
    let plain = case.config.clone();
    type Sort = fn(&mut Value, &Path);
    let sorts: [(&str, Sort); 6] = [
        ("a read-only root", |config, _| config["root"]["readonly"] = json!(true)),
        ("the host's network", |config, _| config::without_namespace(config, "network")),
        ("binds and masks", |config, outside| {
            config::add(config, "/mounts", config::bind(outside, "/through/deep", &["rbind", "ro", "nosuid"]));
            config::add(config, "/mounts", config::bind(&outside.join("file"), "/etc/bound", &["bind"]));
            config::add(config, "/mounts", config::bind(outside, "/dev/outside", &["bind"]));
            config::add(config, "/linux/maskedPaths", json!("/etc/group"));
        }),
        ("limits", |config, _| {
            config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]);
            config["process"]["oomScoreAdj"] = json!(500);
        }),
        ("devices", |config, _| {
            config["linux"]["devices"] = json!([{"path": "/dev/other", "type": "c", "major": 1, "minor": 3}]);
        }),
        ("a user namespace", |config, _| config::user_namespace(config, (100_000, 100_000), 65_536)),
    ];
    for (what, sort) in sorts {
        case.config = plain.clone();
        sort(&mut case.config, &outside);
        if what == "a user namespace" {
            case.bundle.give_to(100_000)?;
        }
        let mut row = counter(case).map_err(|why| format!("{what}: {why:?}"))?;
        let archive = exported(case, &[])?;
        let lines = imported(case, &archive, &[])?;
        row.continued(lines).map_err(|why| format!("{what}: {why:?}"))?;
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success()?;
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "{what}");
    }
    Ok(())
}
