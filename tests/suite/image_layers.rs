//! What becomes of layers where readers of archives could differ: records with newlines, links that are said to have content, marks
//! and hard links in an order of their own, rights that a directory hands down.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use rustix::fs::{Mode, OFlags, XattrFlags, lgetxattr, lsetxattr, mkdirat, openat};
use serde_json::json;
use tar::EntryType;

use super::case::{Case, find_named, names_in, remove_tree};
use super::image::{clear, ferry, image};
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("names_and_attributes_with_any_byte_come_back", &[Ferry, Root], any_byte),
    scenario("a_path_that_could_not_be_unpacked_is_not_packed", &[Ferry], too_long),
    scenario("links_have_no_content", &[Ferry], sized_links),
    scenario("a_directory_hands_no_rights_down", &[Ferry, Root], acls),
    scenario("zeros_take_no_room", &[Ferry], zeros),
    scenario("marks_of_a_layer_are_seen_when_it_is_completed", &[Ferry], marks),
    scenario("links_of_a_layer_lead_to_the_directories_of_those_below", &[Ferry, Root], through_links),
    scenario("what_is_of_group_0_is_so_whoever_unpacks_it", &[Ferry, Root], groups),
    scenario("what_a_layer_replaces_is_no_damage", &[Ferry], replaced),
    scenario("an_image_without_layers_runs", &[Ferry], no_layers),
];

/// The files of an image of these layers, in a directory that is made anew.
fn files(case: &mut Case, layers: &[Vec<u8>]) -> Result<PathBuf, Failed> {
    let layout = case.path("layout");
    if Path::new(&layout).exists() {
        remove_tree(layout.as_ref())?;
    }
    fixtures::layout(layout.as_ref(), "test:1", layers, &json!({"Cmd": ["/probe"]}))?;
    image(case, &["import", &layout])?.success()?;
    bundled(case, "test:1")
}

fn bundled(case: &mut Case, name: &str) -> Result<PathBuf, Failed> {
    let bundle = PathBuf::from(case.path("made"));
    if bundle.exists() {
        remove_tree(&bundle)?;
    }
    ferry(case, &["bundle", "create", "--image", name, &bundle.display().to_string(), "--", "/probe"])?.success()?;
    Ok(bundle.join("rootfs"))
}

/// The value of an attribute, if the file has it.
fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// cap_dac_override and cap_fowner, whose mask is a newline: linux/capability.h, VFS_CAP_REVISION_2.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn any_byte(case: &mut Case) -> Outcome {
    let tree = case.host_directory("tree")?;
    let long = format!("{}\n\n{}", "n".repeat(100), "m".repeat(100));
    fs::write(tree.join("note"), "note")?;
    fs::write(tree.join(&long), "long")?;
    std::os::unix::fs::symlink(&long, tree.join("link"))?;
    let attributes = [
        ("user.note", &b"a\nb"[..]),
        ("user.a=b", b"=\n"),
        ("user.50%", b"\n\n"),
        ("user.none", b""),
        ("security.capability", &CAPABILITY),
    ];
    for (name, value) in attributes {
        lsetxattr(tree.join("note"), name, value, XattrFlags::empty())?;
    }
    // A socket is left out, all its names.
    UnixListener::bind(tree.join("socket"))?;
    fs::hard_link(tree.join("socket"), tree.join("socket-too"))?;
    image(case, &["import", &tree.display().to_string(), "--name", "test:1"])?.success()?;
    let root = bundled(case, "test:1")?;
    for (name, value) in attributes {
        assert_eq!(attribute(&root.join("note"), name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(fs::read_to_string(root.join("link"))?, "long");
    assert!(!root.join("socket").exists() && !root.join("socket-too").exists());
    clear(case)
}

fn too_long(case: &mut Case) -> Outcome {
    let tree = case.host_directory("tree")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut deep: OwnedFd = fs::File::open(&tree)?.into();
    let name = "d".repeat(255);
    for _ in 0..15 {
        mkdirat(&deep, &name, Mode::RWXU)?;
        deep = openat(&deep, &name, flags, Mode::empty())?;
    }
    // With a slash behind each that is 3840 bytes, and this one fills what a path may have.
    let source = tree.display().to_string();
    mkdirat(&deep, &name, Mode::RWXU)?;
    image(case, &["import", &source, "--name", "test:1"])?.success()?;
    deep = openat(&deep, &name, flags, Mode::empty())?;
    mkdirat(&deep, "e", Mode::RWXU)?;
    let end = image(case, &["import", &source, "--name", "test:1"])?.failure()?;
    assert!(end.stderr.contains("its path has more than 4096 bytes"), "{}", end.stderr);
    remove_tree(&tree)?;
    clear(case)
}

/// An archive whose first entry is said to have a block of content behind it.
fn sized(mut archive: Vec<u8>) -> Vec<u8> {
    archive[124..136].copy_from_slice(b"00000001000\0");
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive
}

fn sized_links(case: &mut Case) -> Outcome {
    for (kind, target) in [(EntryType::Link, "file"), (EntryType::Symlink, "file"), (EntryType::Directory, "")] {
        let base = Layer::new().file("file", 0o644, b"file")?.finish()?;
        let layer = Layer::new().entry(kind, "first", 0o755, target, b"")?.file("second", 0o644, b"second")?;
        let root = files(case, &[base, sized(layer.file("third", 0o644, b"third")?.finish()?)])?;
        for name in ["second", "third"] {
            assert_eq!(fs::read_to_string(root.join(name)).ok().as_deref(), Some(name), "{kind:?}");
        }
    }
    clear(case)
}

fn zeros(case: &mut Case) -> Outcome {
    let mut sparse = vec![0; 4 << 20];
    sparse[(2 << 20) + 5] = b'x';
    let (some, none) = (&sparse[..(2 << 20) + 6], vec![0; 3 << 20]);
    let layer = Layer::new().file("hole-behind", 0o644, &sparse)?.file("data-behind", 0o644, some)?;
    let root = files(case, &[layer.file("none", 0o644, &none)?.finish()?])?;
    for (name, content) in [("hole-behind", &sparse[..]), ("data-behind", some), ("none", &none)] {
        assert!(fs::read(root.join(name))? == content, "{name}");
        let room = fs::metadata(root.join(name))?.blocks() * 512;
        assert!(room <= 1 << 20, "{name} takes {room} bytes");
    }
    clear(case)
}

/// An ACL as the kernel keeps it: linux/posix_acl_xattr.h. User 1000 may everything.
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    acl
}

fn acls(case: &mut Case) -> Outcome {
    let (access, default, acl) = ("system.posix_acl_access", "system.posix_acl_default", acl());
    let given = [(&*format!("SCHILY.xattr.{default}"), acl.as_slice())];
    let lower = Layer::new().file("elsewhere", 0o640, b"elsewhere")?.records(&given)?.directory("d/")?;
    let lower = lower.file("d/secret", 0o640, b"secret")?.directory("d/plain/")?.file("d/implied/x", 0o640, b"x")?;
    let lower = lower.entry(EntryType::Fifo, "d/pipe", 0o640, "", b"")?;
    let lower = lower.records(&[(&format!("SCHILY.xattr.{access}"), &acl)])?.file("d/open", 0o670, b"open")?;
    let upper = Layer::new().hard_link("d/copied", "elsewhere")?.file("d/later", 0o640, b"later")?;
    let root = files(case, &[lower.finish()?, upper.finish()?])?;
    assert_eq!(attribute(&root.join("d"), default), Some(acl.clone()));
    assert_eq!(attribute(&root.join("d/open"), access), Some(acl));
    for name in ["secret", "plain", "implied", "implied/x", "pipe", "copied", "later"] {
        let path = root.join("d").join(name);
        let (is_directory, mode) = (path.is_dir(), fs::symlink_metadata(&path)?.mode() & 0o7777);
        assert_eq!(mode, if is_directory { 0o755 } else { 0o640 }, "{name}");
        for acl in [access, default] {
            assert_eq!(attribute(&path, acl), None, "{name}: {acl}");
        }
    }
    clear(case)
}

/// What is at a path: a file's text, where a link leads, or a slash for a directory.
fn shown(root: &Path, path: &str) -> Option<String> {
    // A link on the way leads out of here.
    let mut here = root.to_owned();
    for part in Path::new(path).parent()?.components() {
        here.push(part);
        if !fs::symlink_metadata(&here).ok()?.is_dir() {
            return None;
        }
    }
    let path = root.join(path);
    match fs::symlink_metadata(&path).ok()?.file_type() {
        kind if kind.is_dir() => Some("/".to_owned()),
        kind if kind.is_symlink() => Some(format!("-> {}", fs::read_link(&path).ok()?.display())),
        _ => fs::read_to_string(&path).ok(),
    }
}

/// A layer's entries: whiteouts and files with their names for content, hard links as `NAME=TARGET`, directories with a slash.
fn layer(entries: &[&str]) -> Result<Vec<u8>, Failed> {
    let mut layer = Layer::new();
    for entry in entries {
        layer = match entry.split_once('=') {
            Some((name, target)) => layer.hard_link(name, target)?,
            None if entry.ends_with('/') => layer.directory(entry)?,
            None => layer.file(entry, 0o644, if entry.contains(".wh.") { b"" } else { b"new" })?,
        };
    }
    Ok(layer.finish()?)
}

/// Entries of a layer, and what is to be seen of it then: path and content, none where nothing is.
type Row = (&'static [&'static str], &'static [(&'static str, Option<&'static str>)]);

const ROWS: &[Row] = &[
    // Hidden with the directory it is in, what is a link below is none.
    (&["a/", "a/.wh..wh..opq", "a/lib/x"], &[("a/lib/x", Some("new")), ("usr/lib/x", None), ("a/old", None)]),
    (&[".wh.a", "a/lib/x"], &[("a/lib/x", Some("new")), ("usr/lib/x", None), ("a/old", None)]),
    (&["a/lib/x", ".wh.a"], &[("a/lib/x", Some("new")), ("usr/lib/x", None), ("a/old", None)]),
    (&[".wh.lib", "lib/x"], &[("lib/x", Some("new")), ("usr/lib/x", None), ("usr/lib/low", Some("low"))]),
    // What is said through a link is said of where it leads.
    (&["lib/.wh..wh..opq", "lib/x"], &[("lib", Some("-> usr/lib")), ("usr/lib/x", Some("new")), ("usr/lib/low", None)]),
    (&["lib/.wh.low", "lib/x"], &[("usr/lib/x", Some("new")), ("usr/lib/low", None), ("usr/lib/sub", Some("-> /opt"))]),
    (&["lib/.wh.low", "usr/lib/low"], &[("usr/lib/low", Some("new"))]),
    (&["lib/low/x", "usr/lib/.wh.low"], &[("usr/lib/low/x", Some("new"))]),
    (&["lib/sub/x"], &[("lib", Some("-> usr/lib")), ("usr/lib/sub", Some("-> /opt")), ("opt/x", Some("new"))]),
    (
        &["a/lib/x", "lib/y", "usr/lib/z"],
        &[("usr/lib/x", Some("new")), ("usr/lib/y", Some("new")), ("a/lib", Some("-> /usr/lib"))],
    ),
    // A hard link has the file that was there when it was made.
    (&["y=a/old"], &[("y", Some("old")), ("a/old", Some("old"))]),
    (&["y=a/old", "y"], &[("y", Some("new")), ("a/old", Some("old"))]),
    (&["y", "y=a/old"], &[("y", Some("old"))]),
    (&["y=a/old", ".wh.y"], &[("y", Some("old"))]),
    (&["y=a/old", "z=y", "y"], &[("y", Some("new")), ("z", Some("old"))]),
    (&["y=a/old", "a/old"], &[("y", Some("old")), ("a/old", Some("new"))]),
    (&["y=a/old", "a/.wh.old"], &[("y", Some("old")), ("a/old", None), ("a/twin", Some("old"))]),
    (&["y=a/old", "z=a/old", ".wh.a"], &[("y", Some("old")), ("z", Some("old")), ("a", None)]),
    (&["y=a/old", "a/.wh..wh..opq"], &[("y", Some("old")), ("a", Some("/")), ("a/old", None)]),
];

fn marks(case: &mut Case) -> Outcome {
    let low =
        Layer::new().directory("usr/")?.directory("usr/lib/")?.file("usr/lib/low", 0o644, b"low")?.directory("opt/")?;
    let low = low.link("usr/lib/sub", "/opt")?.link("lib", "usr/lib")?.directory("a/")?.link("a/lib", "/usr/lib")?;
    let low = low.file("a/old", 0o644, b"old")?.hard_link("a/twin", "a/old")?.finish()?;
    for (entries, seen) in ROWS {
        let root = files(case, &[low.clone(), layer(entries)?]).map_err(|why| format!("{entries:?}: {why:?}"))?;
        for (path, content) in *seen {
            assert_eq!(shown(&root, path).as_deref(), *content, "{entries:?}: {path}");
        }
    }
    // All names of it are one file still, but for the one that is removed.
    let root = files(case, &[low.clone(), layer(&["y=a/old", "z=a/old", "a/.wh.old"])?])?;
    let inode = |name: &str| fs::symlink_metadata(root.join(name)).map(|stat| (stat.ino(), stat.nlink()));
    assert_eq!((inode("y")?, inode("z")?), (inode("a/twin")?, inode("a/twin")?));
    assert_eq!(inode("y")?.1, 3);
    // What was removed before, no link can reach.
    let layout = case.path("layout");
    remove_tree(layout.as_ref())?;
    fixtures::layout(layout.as_ref(), "test:2", &[low, layer(&["a/.wh.old", "y=a/old"])?], &json!({}))?;
    let refused = image(case, &["import", &layout])?.failure()?;
    assert!(refused.stderr.contains("it is a hard link to \"a/old\", which is not there"), "{}", refused.stderr);
    clear(case)
}

/// What is put through a link of the same layer is said of where it leads, however it is called.
fn through_links(case: &mut Case) -> Outcome {
    let owned = [("uid", &b"33"[..]), ("gid", b"44"), ("mtime", b"1000000001")];
    let low = Layer::new().records(&owned)?.entry(EntryType::Directory, "secret/", 0o700, "", b"")?;
    let low = low.records(&owned)?.entry(EntryType::Directory, "secret/in/", 0o1777, "", b"")?;
    let low = low.file("secret/in/old", 0o644, b"old")?.link("lower", "secret")?.finish()?;
    // Straight, over two links and back up, and by a link of the layer below.
    for (links, whiteout) in [
        (&[("ln", "secret/in")][..], "secret/in/.wh.old"),
        (&[("by", "/none/../secret"), ("ln", "by/in/.")], "by/in/.wh.old"),
        (&[("ln", "lower/in")], "lower/in/.wh.old"),
    ] {
        let mut upper = Layer::new();
        for (name, target) in links {
            upper = upper.link(name, target)?;
        }
        let upper = upper.file("ln/x", 0o644, b"x")?.directory("ln/sub/")?.file("ln/sub/y", 0o644, b"y")?;
        // A link to what is removed then, the one by one name and the other by another.
        let upper = upper.hard_link("kept", "ln/old")?.file(whiteout, 0o644, b"")?;
        let root = files(case, &[low.clone(), upper.finish()?]).map_err(|why| format!("{links:?}: {why:?}"))?;
        let seen = |path: &str| fs::symlink_metadata(root.join(path));
        for (path, mode) in [("secret", 0o700), ("secret/in", 0o1777)] {
            let stat = seen(path)?;
            let found = (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime());
            assert_eq!(found, (mode, 33, 44, 1_000_000_001), "{links:?}: {path}");
        }
        assert_eq!(seen("secret/in/sub")?.mtime(), 1_700_000_000, "{links:?}");
        for (path, text) in [("secret/in/x", Some("x")), ("secret/in/sub/y", Some("y")), ("secret/in/old", None)] {
            assert_eq!(shown(&root, path).as_deref(), text, "{links:?}: {path}");
        }
        assert_eq!(shown(&root, "kept").as_deref(), Some("old"), "{links:?}");
    }
    // One that leads to itself leads nowhere.
    let layout = case.path("layout");
    remove_tree(layout.as_ref())?;
    let looped = Layer::new().link("a", "b")?.link("b", "a")?.file("a/x", 0o644, b"x")?.finish()?;
    fixtures::layout(layout.as_ref(), "test:2", &[low, looped], &json!({}))?;
    let refused = image(case, &["import", &layout])?.failure()?;
    assert!(refused.stderr.contains("cannot unpack \"a/x\": ELOOP"), "{}", refused.stderr);
    clear(case)
}

/// By a process of another group, and into a store whose directory gives another.
fn groups(case: &mut Case) -> Outcome {
    let low = Layer::new().directory("d/")?.file("d/file", 0o4755, b"x")?.file("implied/x", 0o644, b"x")?;
    let low = low.link("link", "d")?.entry(EntryType::Fifo, "pipe", 0o644, "", b"")?.finish()?;
    let up = Layer::new().hard_link("copied", "d/file")?.file("d/new", 0o644, b"x")?.file("link/too", 0o644, b"x")?;
    let layout = case.path("layout");
    fixtures::layout(layout.as_ref(), "test:1", &[low, up.finish()?], &json!({}))?;
    let store = case.host_directory("store")?;
    for (process, directory, mode) in [(1000, 0, 0o700), (0, 1000, 0o2700)] {
        chown(&store, None, Some(directory))?;
        fs::set_permissions(&store, fs::Permissions::from_mode(mode))?;
        let mut import = case.command(&["--store", &store.display().to_string(), "image", "import", &layout]);
        case.finish(import.gid(process))?.success()?;
        let layers = store.join("layers");
        let mut left: Vec<PathBuf> = names_in(&layers).iter().map(|name| layers.join(name).join("diff")).collect();
        let mut seen = 0;
        while let Some(path) = left.pop() {
            let stat = fs::symlink_metadata(&path)?;
            assert_eq!((stat.uid(), stat.gid()), (0, 0), "{process}: {}", path.display());
            if stat.is_dir() {
                assert_eq!(stat.mode() & 0o7777, 0o755, "{process}: {}", path.display());
                left.extend(names_in(&path).iter().map(|name| path.join(name)));
            }
            seen += 1;
        }
        // Seven of the lower layer; of the upper its own three, their two directories, and what was copied up for the link.
        assert_eq!(seen, 13, "{process}");
        clear(case)?;
        remove_tree(&store)?;
        fs::create_dir(&store)?;
    }
    Ok(())
}

fn replaced(case: &mut Case) -> Outcome {
    let low = Layer::new().file("low", 0o644, b"low")?.directory("usr/")?.link("lib", "usr")?.finish()?;
    let large = vec![b'x'; 5000];
    let x = Layer::new().file("x", 0o644, &large)?;
    for upper in [
        Layer::new().file("x", 0o644, &large)?.directory("x/")?.file("x/y", 0o644, b"y")?,
        Layer::new().file("x", 0o644, &large)?.hard_link("x", "low")?,
        Layer::new().file("lib/x", 0o644, b"y")?.file("usr/x", 0o644, &large)?,
        x.file("x", 0o644, b"y")?,
    ] {
        files(case, &[low.clone(), upper.finish()?])?;
        image(case, &["check"])?.success()?;
    }
    // What is missing is damage all the same.
    files(case, &[low, Layer::new().file("x", 0o644, &large)?.finish()?])?;
    let mut found = Vec::new();
    find_named(case.path("store/layers").as_ref(), "diff", &mut found);
    let removed = found.iter().filter(|path| fs::remove_file(path.join("x")).is_ok());
    assert!(removed.count() > 0, "{found:?}");
    let damaged = image(case, &["check"])?;
    assert!(
        damaged.code == 1 && damaged.stdout.contains("it has 0 entries and 0 bytes, and had 1 and 5000"),
        "{}",
        damaged.stdout
    );
    clear(case)
}

/// It has what is mounted, and what is written.
fn no_layers(case: &mut Case) -> Outcome {
    let (path, probe) = (case.path("none"), case.stage.probe.display().to_string());
    fixtures::layout(path.as_ref(), "none:1", &[], &json!({"Cmd": ["/probe", "say", "hello"]}))?;
    image(case, &["import", &path])?.success()?;
    let mount = format!("type=bind,src={probe},dst=/probe,ro");
    let end = ferry(case, &["run", "--image", "none:1", "--mount", &mount])?.success()?;
    assert_eq!((end.stdout.trim(), end.stderr.as_str()), ("hello", ""));
    image(case, &["check"])?.success()?;
    clear(case)
}
