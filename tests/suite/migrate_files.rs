//! What a container changes in the files of its image while it is migrated: it goes in rounds, and arrives as it was when the container
//! was stopped; and nothing of it stays where it did not get to.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, XattrFlags, lgetxattr, llistxattr, makedev, mknodat};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::case::{Case, names_in};
use super::checkpoint::CRIU;
use super::checkpoint_root::image_counter;
use super::image::import;
use super::migrate::{counter, followed, gone, settled};
use super::migrate_cut_off::{MIGRATES, of_this};
use super::migrate_image::{elsewhere, there};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("what_is_written_meanwhile_arrives_as_it_is", CRIU, written_meanwhile),
    scenario("memory_and_files_say_the_same", CRIU, in_step),
    scenario("files_go_with_a_migration_that_is_cut_off", CRIU, cut_off),
    scenario("files_in_memory_are_memory_that_is_asked_for", CRIU, in_memory),
];

const MB: usize = 1 << 20;

/// Bytes that do not compress, and are others for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| byte()).collect()
}

/// The container's root, as somebody in it would change it.
fn root(case: &mut Case) -> Result<PathBuf, Failed> {
    Ok(PathBuf::from(format!("/proc/{}/root", case.pid()?)))
}

/// A migration that sends slowly, from the moment on at which something of the files is there.
fn begun(case: &mut Case, flags: &[&str], other: &str) -> Result<(Child, Lines), Failed> {
    let (here, store, to) = (case.id.clone(), case.path("store"), elsewhere(case));
    let first = ["--store", &store, "migrate", "--as", other, "--bandwidth", "2M", "--timeout", "60s"];
    let (mut child, told) = case.spawn(&[&first, flags, &[&here, &to]].concat())?;
    let end = Instant::now() + case.patience();
    while staged(case).is_empty() {
        let ended = child.try_wait()?;
        assert!(ended.is_none() && Instant::now() < end, "nothing comes: {ended:?}");
        std::thread::yield_now();
    }
    Ok((child, told))
}

/// Bodies that have come.
fn staged(case: &Case) -> Vec<String> {
    let migrations = PathBuf::from(case.path("store-there/migrations"));
    names_in(&migrations).iter().flat_map(|name| names_in(&migrations.join(name).join("images/bodies"))).collect()
}

fn signal(case: &Case, word: &str, signal: Signal) -> Outcome {
    let pids = of_this(case, word);
    assert!(!pids.is_empty(), "nobody is called {word}");
    pids.into_iter().try_for_each(|pid| kill(Pid::from_raw(pid), signal).map_err(Failed::from))
}

fn written_meanwhile(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    let tree = root(case)?;
    before(&tree)?;
    let (here, other, report) = (case.id.clone(), case.other_id(), case.path("report.json"));
    let (mut child, _told) = begun(case, &["--report", &report], &other)?;
    // Nothing more is taken until all is changed.
    signal(case, " receive ", Signal::SIGSTOP)?;
    let changed = meanwhile(&tree).and_then(|()| listing(&tree));
    signal(case, " receive ", Signal::SIGCONT)?;
    let expected = changed?;
    let ended = output::wait(&mut child, case.patience())?;
    assert!(ended.success(), "{ended}");
    gone(case, &here)?;
    let lines = followed(case, &format!("output/{other}.stdout"))?;
    row.continued(lines)?;
    let pid = there(case, &["state", &other])?.success()?.json()?["pid"].clone();
    let arrived = listing(Path::new(&format!("/proc/{pid}/root")))?;
    for (path, what) in &expected {
        assert_eq!(arrived.get(path), Some(what), "{}", path.display());
    }
    assert_eq!(arrived.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
    let rounds = report["rounds"].as_array().cloned().unwrap_or_default();
    assert!(rounds.len() > 2, "{report}");
    let files = number(&report["bytes"]["files"]);
    assert!((8 * MB as u64..20 * MB as u64).contains(&files), "{report}");
    assert_eq!(rounds.last().map(|last| number(&last["files"])), Some(0), "nothing was written any more: {report}");
    assert!(number(&report["bytes"]["images"]) < 2 * MB as u64, "what had come went again: {report}");
    assert_eq!(names_in(Path::new(&case.path("store-there/migrations"))), Vec::<String>::new());
    there(case, &["delete", "--force", &other])?.success()?;
    settled(case)
}

/// Files of all kinds.
fn before(tree: &Path) -> Outcome {
    let at = |name: &str| tree.join(name);
    fs::remove_file(at("kept"))?;
    // Made anew, it hides what the image has there.
    fs::remove_file(at("dir/low"))?;
    fs::remove_dir(at("dir"))?;
    fs::create_dir(at("dir"))?;
    for (seed, name) in
        (1..).zip(["dir/large", "appended", "patched", "cut", "renamed", "removed", "linked", "same", "file"])
    {
        fs::write(at(name), noise(seed, if seed == 1 { 4 * MB } else { MB }))?;
    }
    let sparse = File::create(at("sparse"))?;
    sparse.write_all_at(b"in the middle", 8 * MB as u64)?;
    sparse.set_len(16 * MB as u64)?;
    fs::write(at("empty"), "")?;
    fs::write(at("set-id"), "set-id")?;
    chown(at("set-id"), Some(1000), Some(1001))?;
    fs::set_permissions(at("set-id"), Permissions::from_mode(0o6711))?;
    fs::DirBuilder::new().mode(0o770).create(at("shared"))?;
    chown(at("shared"), Some(7), Some(8))?;
    symlink("../anywhere", at("symlink"))?;
    chown_link(&at("symlink"))?;
    mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    mknodat(rustix::fs::CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3))?;
    attribute(&at("dir/large"), "user.first", "one")?;
    attribute(&at("shared"), "user.of", "a directory")
}

fn chown_link(path: &Path) -> Outcome {
    Ok(std::os::unix::fs::lchown(path, Some(9), Some(9))?)
}

fn attribute(path: &Path, name: &str, value: &str) -> Outcome {
    Ok(rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty())?)
}

/// Changes of all kinds, while some of that has gone.
fn meanwhile(tree: &Path) -> Outcome {
    let at = |name: &str| tree.join(name);
    let open = |name: &str| OpenOptions::new().write(true).open(at(name));
    open("appended")?.write_all_at(&noise(20, 100_000), MB as u64)?;
    open("patched")?.write_all_at(b"patched", 500_000)?;
    open("cut")?.set_len(100_001)?;
    open("sparse")?.write_all_at(b"elsewhere", 15 * MB as u64)?;
    fs::rename(at("renamed"), at("shared/renamed"))?;
    fs::remove_file(at("removed"))?;
    fs::hard_link(at("linked"), at("shared/again"))?;
    fs::hard_link(at("linked"), at("shared/and-again"))?;
    fs::remove_file(at("linked"))?;
    fs::remove_file(at("file"))?;
    fs::create_dir(at("file"))?;
    fs::write(at("file/below"), noise(21, 70_000))?;
    fs::write(at("empty"), "not any more")?;
    chown(at("set-id"), Some(1002), None)?;
    fs::set_permissions(at("set-id"), Permissions::from_mode(0o4755))?;
    attribute(&at("dir/large"), "user.first", "another")?;
    attribute(&at("dir/large"), "user.second", "two")?;
    // Other bytes, and nothing that tells so but the time of change, which nobody can set.
    let past = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let same = open("same")?;
    same.write_all_at(b"other", 7)?;
    same.set_times(FileTimes::new().set_modified(past).set_accessed(past))?;
    Ok(File::open(at("shared"))?.set_times(FileTimes::new().set_modified(past))?)
}

/// Everything below a root that lies on its filesystem: names, kinds, modes, owners, times, attributes, contents, and which are the same.
fn listing(root: &Path) -> Result<BTreeMap<PathBuf, Value>, Failed> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    list(root, Path::new(""), fs::metadata(root)?.dev(), &mut found, &mut inodes)?;
    Ok(found)
}

fn list(
    root: &Path,
    below: &Path,
    dev: u64,
    found: &mut BTreeMap<PathBuf, Value>,
    inodes: &mut BTreeMap<u64, PathBuf>,
) -> Outcome {
    let mut names = names_in(&root.join(below));
    names.sort();
    for name in names {
        let path = below.join(name);
        let here = root.join(&path);
        let is = fs::symlink_metadata(&here)?;
        if is.is_dir() && is.dev() != dev {
            continue;
        }
        let content = match is.file_type() {
            kind if kind.is_file() => format!("{:?}", Sha256::digest(fs::read(&here)?)),
            kind if kind.is_symlink() => fs::read_link(&here)?.display().to_string(),
            kind if kind.is_char_device() => is.rdev().to_string(),
            _ => String::new(),
        };
        // CRIU enters the root by way of its `tmp`.
        let modified = if path == Path::new("tmp") { (0, 0) } else { (is.mtime(), is.mtime_nsec()) };
        let first = inodes.entry(is.ino()).or_insert_with(|| path.clone()).clone();
        let links = if is.is_dir() { 0 } else { is.nlink() };
        let what = json!({
            "mode": is.mode(), "owner": [is.uid(), is.gid()], "modified": modified,
            "size": if is.is_dir() { 0 } else { is.size() }, "links": links, "as": first,
            "content": content, "attributes": attributes(&here)?,
        });
        found.insert(path.clone(), what);
        if is.is_dir() {
            list(root, &path, dev, found, inodes)?;
        }
    }
    Ok(())
}

fn attributes(path: &Path) -> Result<BTreeMap<String, String>, Failed> {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in
        String::from_utf8_lossy(&names[..length]).split_terminator('\0').filter(|name| name.starts_with("user."))
    {
        let mut value = vec![0; 4096];
        let length = lgetxattr(path, name, &mut value[..])?;
        found.insert(name.to_owned(), String::from_utf8_lossy(&value[..length]).into_owned());
    }
    Ok(found)
}

/// It writes to files by calls and by memory, and looks whether they have what it remembers, wherever it is.
fn in_step(case: &mut Case) -> Outcome {
    import(case, vec![Layer::new().directory("dir/")?.finish()?], &json!({}))?;
    let (here, store) = (case.id.clone(), case.path("store"));
    let program = ["--", "/probe", "record", "/dir", "4", "20"];
    let run = ["--store", &store, "run", "--detach", "--image", "test", "--name", &here];
    let mut row = Row::of(case.begin(&[&run[..], &program].concat())?);
    row.go_on(20)?;
    let (other, report) = (case.other_id(), case.path("report.json"));
    let to = elsewhere(case);
    let words = ["--store", &store, "migrate", "--as", &other, "--report", &report, "--bandwidth", "8M", &here, &to];
    case.call(&words)?.success()?;
    let lines = followed(case, &format!("output/{other}.stdout"))?;
    row.continued(lines)?;
    // Once all of both files is looked at again.
    row.go_on((4 * MB / 4096 / 20 + 1) as u64)?;
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    assert!(report["bytes"]["files"].as_u64().is_some_and(|bytes| bytes >= 8 * MB as u64), "{report}");
    assert_eq!(there(case, &["state", &other])?.success()?.json()?["status"], "running");
    there(case, &["delete", "--force", &other])?.success()?;
    settled(case)
}

/// What has come of the files goes when the migration does, whichever end it was that was killed.
fn cut_off(case: &mut Case) -> Outcome {
    let mut row = image_counter(case)?;
    fs::write(root(case)?.join("large"), noise(1, 8 * MB))?;
    let here = case.id.clone();
    for whom in [" receive ", MIGRATES] {
        let other = case.other_id();
        let (mut child, _told) = begun(case, &[], &other)?;
        signal(case, whom, Signal::SIGKILL)?;
        output::wait(&mut child, case.patience())?;
        for pid in of_this(case, " receive ") {
            case.wait_for(u32::try_from(pid)?)?;
        }
        // The one that was killed could not.
        assert_eq!(staged(case).is_empty(), whom == MIGRATES, "{whom}");
        there(case, &["migrate", "--recover", &other])?.success()?;
        assert_eq!(names_in(Path::new(&case.path("store-there/migrations"))), Vec::<String>::new(), "{whom}");
        let store = case.path("store");
        case.call(&["--store", &store, "migrate", "--recover", &here])?.success()?;
        assert_eq!(case.state()?["status"], "running");
        row.go_on(5)?;
        settled(case)?;
    }
    Ok(())
}

/// The memory that a destination is asked for, in bytes: one that takes down the first words, and does not answer.
fn asked(case: &mut Case) -> Result<u64, Failed> {
    let (store, id, words) = (case.path("store"), case.id.clone(), case.path("words"));
    fs::write(&words, "")?;
    let to = format!("exec:cat >{words}");
    case.call(&["--store", &store, "migrate", "--timeout", "200ms", &id, &to])?.failure()?;
    let end = Instant::now() + case.patience();
    loop {
        let text = String::from_utf8_lossy(&fs::read(&words)?).into_owned();
        if let Some((number, _)) = text.split_once("\"memory\":").and_then(|(_, rest)| rest.split_once(',')) {
            return Ok(number.parse()?);
        }
        assert!(Instant::now() < end, "it is asked for nothing: {text}");
        std::thread::yield_now();
    }
}

fn in_memory(case: &mut Case) -> Outcome {
    const FILE: u64 = 16 << 20;
    config::add(&mut case.config, "/mounts", config::mount("tmpfs", "tmpfs", "/tmp", &[]));
    config::add(&mut case.config, "/mounts", config::mount("bind", "/dev/shm", "/hosts", &["bind"]));
    let mut row = counter(case)?;
    let before = asked(case)?;
    let file = noise(1, usize::try_from(FILE)?);
    fs::write(root(case)?.join("tmp/file"), &file)?;
    let filled = asked(case)?;
    assert!((before + FILE..before + 2 * FILE).contains(&filled), "{before} {filled}");
    // What is the host's stays with it.
    let hosts = format!("/dev/shm/{}", case.id);
    fs::write(&hosts, &file)?;
    let with_hosts = asked(case);
    fs::remove_file(&hosts)?;
    assert!(with_hosts? < filled + FILE / 2, "{filled}");
    row.go_on(5)
}
