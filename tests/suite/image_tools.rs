//! Images there and back between ferry and other tools: everything that a file is made of stays as it was.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use ferry::image::digest::Digest;
use libtest_mimic::Failed;
use serde_json::json;
use tar::EntryType;

use super::case::Case;
use super::image::{base, ferry, image};
use super::need::Need::{Ferry, Root, Tool};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario(
        "umoci_unpacks_what_ferry_does",
        &[Ferry, Root, Tool("busybox"), Tool("umoci"), Tool("skopeo")],
        there_and_back,
    ),
    scenario("a_hundred_layers_go_there_and_back", &[Ferry, Tool("umoci"), Tool("skopeo")], hundred),
    scenario("layers_of_umoci_are_taken", &[Ferry, Root, Tool("busybox"), Tool("umoci"), Tool("skopeo")], repacked),
];

/// cap_net_raw+ep, as the kernel keeps it: linux/capability.h, VFS_CAP_REVISION_2.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What a container of the image does to its files.
const DEEDS: &str = "rm -r /full && echo file >/full && mv /capable /moved && rm /twin && mkdir -p /new/deep && \
                     echo x >/new/deep/file && ln /new/deep/file /new/same && chown 1000:1001 /new/deep/file && \
                     mkfifo /new/pipe && ln -s /nowhere /new/link && chmod 2775 /new/deep && \
                     rm -r /hidden && mkdir /hidden && echo shown >/hidden/shown && \
                     touch -h -d '2001-02-03 04:05:06' /full /hidden/shown /new/pipe /new/link /new/deep/file && \
                     touch -d '2001-02-03 04:05:06' /new/deep /new /hidden";

fn tool(case: &mut Case, program: &str, args: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(program);
    command.args(args).env("XDG_RUNTIME_DIR", &case.directory);
    case.finish(&mut command)?.success()
}

/// Every file below `root` with everything that it is made of, but for the root itself, which archives need not mention.
///
/// `whole`: times without what is below a second, which umoci does not pack.
fn listing(root: &Path, whole: bool) -> Result<BTreeMap<PathBuf, String>, Failed> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let mut entries = fs::read_dir(&directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, stat) = (entry.path(), fs::symlink_metadata(entry.path())?);
            let kind = stat.file_type();
            let content = if kind.is_dir() {
                waiting.push(path.clone());
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("link to {}", fs::read_link(&path)?.display())
            } else if kind.is_file() {
                format!("file {} {}", stat.size(), Digest::of(&fs::read(&path)?).short())
            } else {
                format!("special {} {}", kind.is_fifo(), stat.rdev())
            };
            let inside = path.strip_prefix(root)?.to_owned();
            let first =
                if kind.is_dir() { inside.clone() } else { names.entry(stat.ino()).or_insert(inside.clone()).clone() };
            let (uid, gid, mode) = (stat.uid(), stat.gid(), stat.mode());
            let time = format!("{}.{:09}", stat.mtime(), if whole { 0 } else { stat.mtime_nsec() });
            let xattrs = xattrs(&path)?;
            let told = format!("{content} {uid}:{gid} {mode:o} {time} {xattrs:?} as {}", first.display());
            found.insert(inside, told);
        }
    }
    Ok(found)
}

fn xattrs(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Failed> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    Ok(found)
}

/// The same files, or which differ.
fn same(one: &Path, other: &Path) -> Outcome {
    same_but_for_fractions(one, other, false)
}

fn same_but_for_fractions(one: &Path, other: &Path, whole: bool) -> Outcome {
    let (one, other) = (listing(one, whole)?, listing(other, whole)?);
    for path in one.keys().chain(other.keys()) {
        assert_eq!(one.get(path), other.get(path), "{}", path.display());
    }
    assert!(one.len() > 20, "{one:?}");
    Ok(())
}

/// Layers with everything that is hard to carry.
fn layers(case: &Case) -> Result<Vec<Vec<u8>>, Failed> {
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
    let lower = fixtures::base(&case.stage.probe)?.directory("bin/")?.directory("full/")?.directory("hidden/")?;
    let lower = lower.file("bin/busybox", 0o755, &fs::read("/bin/busybox")?)?;
    let lower =
        lower.records(&[("SCHILY.xattr.security.capability", CAPABILITY), ("mtime", b"1600000000.123456789")])?;
    let lower = lower.file("capable", 0o755, b"capable")?;
    let lower = lower.file("full/one", 0o644, b"one")?.directory("full/deep/")?.file("full/deep/two", 0o644, b"two")?;
    let lower = lower.file("hidden/below", 0o644, b"below")?.file("twin", 0o640, b"twin")?;
    let lower = lower.entry(EntryType::Fifo, "pipe", 0o600, "", b"")?.entry(EntryType::Char, "null", 0o666, "", b"")?;
    let lower = lower.records(&[("uid", b"1000"), ("gid", b"1001"), ("SCHILY.xattr.user.cargo", b"tea")])?;
    let lower = lower.file("owned", 0o4711, b"owned")?.directory("was/")?.file("was/file", 0o644, b"x")?;
    let lower =
        lower.file("many", 0o644, b"names")?.hard_link("full/many", "many")?.hard_link("hidden/many", "many")?;
    let lower = lower.directory("long/")?.records(&[("path", format!("long/{}/", "d".repeat(120)).as_bytes())])?;
    let lower = lower.directory("short/")?;
    let middle = Layer::new().hard_link("linked", "owned")?.file("hidden/.wh..wh..opq", 0o644, b"")?;
    let middle = middle.directory("hidden/")?.file("hidden/above", 0o644, b"above")?;
    let middle = middle.file(".wh.was", 0o644, b"")?.file("was", 0o600, b"a file now")?;
    let middle = middle.records(&[("path", long.as_bytes())])?.file("short", 0o644, b"long")?;
    let top = Layer::new()
        .hard_link("long/many", "full/many")?
        .hard_link("again", "full/one")?
        .file("full/deep/.wh.two", 0o644, b"")?
        .link("to", "full/one")?;
    Ok(vec![lower.finish()?, middle.finish()?, top.finish()?])
}

/// The files of an image of the store, in a directory.
fn files(case: &mut Case, name: &str, directory: &str) -> Result<PathBuf, Failed> {
    let path = case.path(directory);
    ferry(case, &["bundle", "create", "--image", name, &path, "--", "/probe"])?.success()?;
    Ok(Path::new(&path).join("rootfs"))
}

fn unpacked(case: &mut Case, layout: &str, directory: &str) -> Result<PathBuf, Failed> {
    let path = case.path(directory);
    tool(case, "umoci", &["unpack", "--image", layout, &path])?;
    Ok(Path::new(&path).join("rootfs"))
}

fn there_and_back(case: &mut Case) -> Outcome {
    let layout = case.path("layout");
    fixtures::layout(layout.as_ref(), "one", &layers(case)?, &json!({"Cmd": ["/probe"]}))?;
    image(case, &["import", &layout, "--name", "test:1"])?.success()?;
    let (theirs, ours) = (unpacked(case, &format!("{layout}:one"), "theirs")?, files(case, "test:1", "ours")?);
    same(&theirs, &ours)?;
    // What a container changes goes through ferry's archive and skopeo's copy to umoci, and back.
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test:1", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    case.exec(&[], &["/bin/busybox", "sh", "-c", DEEDS])?.success()?;
    image(case, &["commit", &id, "test:2"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    let ours = files(case, "test:2", "ours-2")?;
    let seen = listing(&ours, false)?;
    let moved = seen.get(Path::new("moved")).ok_or("moved is not there")?;
    assert!(moved.contains("security.capability"), "{moved}");
    for gone in ["capable", "twin", "full/one", "hidden/above"] {
        assert!(!seen.contains_key(Path::new(gone)), "{gone}");
    }
    let archive = case.path("two.tar");
    image(case, &["export", "-o", &archive, "test:2"])?.success()?;
    for (form, name) in [("oci-archive", "a"), ("docker-archive", "b")] {
        let copy = format!("oci:{}:{name}", case.path("copies"));
        tool(case, "skopeo", &["copy", "--insecure-policy", &format!("{form}:{archive}"), &copy])?;
        let theirs = unpacked(case, &copy["oci:".len()..], &format!("theirs-{name}"))?;
        same(&theirs, &ours)?;
    }
    let (copies, other) = (case.path("copies"), case.path("other"));
    case.call(&["--store", &other, "image", "import", &copies])?.success()?;
    let back = case.path("back");
    case.call(&["--store", &other, "bundle", "create", "--image", "copies:a", &back])?.success()?;
    same(&Path::new(&back).join("rootfs"), &ours)
}

/// What umoci makes of changed files is what ferry makes of its layer.
fn repacked(case: &mut Case) -> Outcome {
    let layout = case.path("layout");
    fixtures::layout(layout.as_ref(), "one", &layers(case)?, &json!({"Cmd": ["/probe"]}))?;
    let root = unpacked(case, &format!("{layout}:one"), "tree")?;
    let mut shell = Command::new("busybox");
    let deeds = format!(
        "cd {} && {}",
        root.display(),
        DEEDS.replace(" /", " ./").replace(">/", ">./").replace("./nowhere", "/nowhere")
    );
    shell.args(["sh", "-c", &deeds]);
    case.finish(&mut shell)?.success()?;
    let tree = case.path("tree");
    tool(case, "umoci", &["repack", "--image", &format!("{layout}:two"), &tree])?;
    // One of its two, as these tools name it.
    let unknown = image(case, &["import", &format!("{layout}:three")])?;
    let unknown = unknown.failure()?.stderr;
    assert!(unknown.contains("no image \"three\"") && unknown.contains("layout:one, layout:two"), "{unknown}");
    image(case, &["import", &format!("{layout}:two")])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "layout:two\n");
    let ours = files(case, "layout:two", "ours")?;
    same_but_for_fractions(&root, &ours, true)?;
    // And of an archive of docker's form, by its name.
    let (archive, source) = (case.path("archive"), format!("oci:{layout}:one"));
    tool(case, "skopeo", &["copy", "--insecure-policy", &source, &format!("docker-archive:{archive}:localhost/a:1")])?;
    let unknown = image(case, &["import", &format!("{archive}:localhost/b:1")])?.failure()?.stderr;
    assert!(unknown.contains("there is localhost/a:1"), "{unknown}");
    image(case, &["import", &format!("{archive}:localhost/a:1")])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "layout:two\nlocalhost/a:1\n");
    Ok(())
}

fn hundred(case: &mut Case) -> Outcome {
    let mut all = vec![base(case)?];
    for index in 0..99 {
        let layer = Layer::new().file(&format!("layer-{index}"), 0o644, b"x")?.file(
            "last",
            0o644,
            index.to_string().as_bytes(),
        )?;
        // Every layer takes away what the one before it brought.
        all.push(
            if index == 0 { layer } else { layer.file(&format!(".wh.layer-{}", index - 1), 0o644, b"")? }.finish()?,
        );
    }
    let layout = case.path("layout");
    fixtures::layout(layout.as_ref(), "one", &all, &json!({"Cmd": ["/probe"]}))?;
    image(case, &["import", &layout, "--name", "test:1"])?.success()?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test:1", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    case.exec(&[], &["/probe", "write", "/last", "100"])?.success()?;
    image(case, &["commit", &id, "test:2"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    let (archive, copy) = (case.path("two.tar"), case.path("copy"));
    image(case, &["export", "-o", &archive, "test:2"])?.success()?;
    tool(
        case,
        "skopeo",
        &["copy", "--insecure-policy", &format!("oci-archive:{archive}"), &format!("oci:{copy}:two")],
    )?;
    let tree = case.path("tree");
    let source = format!("{copy}:two");
    let rootless: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["--rootless"] };
    tool(case, "umoci", &[&["unpack"], rootless, &["--image", &source, &tree]].concat())?;
    let root = Path::new(&tree).join("rootfs");
    assert_eq!(fs::read_to_string(root.join("last"))?, "100");
    assert!(root.join("layer-98").exists() && !root.join("layer-97").exists());
    image(case, &["import", &copy])?.success()?;
    let read = ferry(case, &["run", "--image", "copy:two", "--", "/probe", "read", "/last"])?.success()?.json()?;
    assert_eq!(read["ok"], "100");
    let found = image(case, &["inspect", "copy:two"])?.success()?.json()?;
    assert_eq!(found["manifest"]["layers"].as_array().map(Vec::len), Some(101));
    image(case, &["prune", "--all"])?.success()?;
    Ok(())
}
