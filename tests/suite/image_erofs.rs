//! `--erofs`: layers as EROFS images, that a container's root is stacked from.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, remove_tree};
use super::fault_points::{Fault, Point, inject};
use super::image::{base, clear, ferry, image, look_at_stack, odd_layer, stack};
use super::image_bundle::mapped;
use super::need::Need::{Erofs, Ferry, OrdinaryUser, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures as fixtures;

const MKFS: super::need::Need = Tool("mkfs.erofs");

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_root_of_erofs_images_shows_the_same", &[Ferry, Root, Erofs, MKFS], same),
    scenario("containers_share_their_mounts_and_pages", &[Ferry, Root, Erofs, MKFS], shared),
    scenario("what_they_write_is_committed_and_rolled_back", &[Ferry, Root, Erofs, MKFS], written),
    scenario("layers_that_are_there_get_them_too", &[Ferry, Root, Erofs, MKFS], later),
    scenario("check_repairs_them", &[Ferry, Root, Erofs, MKFS], checked),
    scenario("prune_unmounts_what_was_left", &[Ferry, Root, Erofs, MKFS], left),
    scenario("a_kernel_that_mounts_no_files_gets_a_loop_device", &[Ferry, Root, Erofs, MKFS, Tool("strace")], looped),
    scenario("a_kernel_without_erofs_gets_the_directories", &[Ferry, Root, Erofs, MKFS, Tool("strace")], refused),
    scenario("without_mkfs_nothing_is_imported", &[Ferry, Root, MKFS], no_program),
    scenario("only_root_can_use_them", &[Ferry, OrdinaryUser], only_root),
];

/// A layout of the base and these layers, imported as `test:latest` with EROFS images of each.
fn import(case: &mut Case, layers: Vec<Vec<u8>>) -> Outcome {
    let layers = [vec![base(case)?], layers].concat();
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "test:latest", &layers, &json!({}))?;
    image(case, &["import", "--erofs", &path])?.success()?;
    Ok(())
}

/// What of the case's store is mounted on the host: sources and mount points.
fn mounts(case: &Case) -> Result<Vec<(String, PathBuf)>, Failed> {
    let store = case.path("store");
    let table = fs::read_to_string("/proc/self/mounts")?;
    let rows = table.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), PathBuf::from(words.next()?)))
    });
    Ok(rows.filter(|(_, point)| point.starts_with(&store)).collect())
}

/// The directories of a layer's files.
fn directories(case: &mut Case) -> Result<Vec<PathBuf>, Failed> {
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let directories = found["directories"].as_array().cloned().unwrap_or_default();
    Ok(directories.iter().filter_map(|path| path.as_str().map(PathBuf::from)).collect())
}

fn begin(case: &mut Case, id: &str) -> Result<u32, Failed> {
    let store = case.path("store");
    let args = ["--store", &store, "run", "-d", "--erofs", "--image", "test", id, "--", "/probe", "sleep", "forever"];
    case.begin(&args)?.until("ready")?;
    let state = case.call(&["state", id])?.success()?.json()?;
    Ok(u32::try_from(state["pid"].as_u64().ok_or("no pid")?)?)
}

/// Files, marks, links, owners, times, attributes, rights and devices: as the layers' directories have them.
fn same(case: &mut Case) -> Outcome {
    import(case, [stack()?, vec![odd_layer()?]].concat())?;
    look_at_stack(case, &["--erofs"])?;
    for path in ["/owned", "/pipe", "/device", "/probe", "/linked", "/keep/stays", "/lib"] {
        let stat = |case: &mut Case, flags: &[&str]| {
            let args = [&["run", "--image", "test"], flags, &["--", "/probe", "stat", path]].concat();
            ferry(case, &args)?.success()?.json()
        };
        let (mut of_images, mut of_directories) = (stat(case, &["--erofs"])?, stat(case, &[])?);
        for found in [&mut of_images, &mut of_directories] {
            assert!(found["ok"].is_object(), "{path}: {found}");
            // Numbers of inodes and devices are each filesystem's own.
            found["ok"].as_object_mut().map(|fields| ["inode", "device"].map(|name| fields.remove(name)));
        }
        assert_eq!(of_images, of_directories, "{path}");
    }
    assert_eq!(mounts(case)?, vec![], "nobody runs from them any more");
    // A program that is not there is told of, and nothing is left either.
    let end = ferry(case, &["run", "--image", "test", "--erofs", "--", "/no/such/program"])?.failure()?;
    assert!(end.stderr.contains("/no/such/program"), "{}", end.stderr);
    assert_eq!((mounts(case)?, case.leftovers()?), (vec![], vec![]));
    clear(case)
}

fn shared(case: &mut Case) -> Outcome {
    import(case, vec![])?;
    let (first, second) = (case.id.clone(), case.other_id());
    let one = begin(case, &first)?;
    let mounted = mounts(case)?;
    assert_eq!(mounted.len(), directories(case)?.len(), "{mounted:?}");
    let text = fs::read_to_string("/proc/self/mounts")?;
    let row = text.lines().find(|line| line.contains(&mounted[0].1.display().to_string())).unwrap_or_default();
    for word in [" erofs ", "ro,", "nosuid", "nodev"] {
        assert!(row.contains(word), "{word} in {row}");
    }
    let other = begin(case, &second)?;
    assert_eq!(mounts(case)?, mounted, "they are mounted once");
    for pid in [one, other] {
        let (alone, together) = mapped(pid)?;
        assert!(together > alone, "{alone} KiB alone, {together} KiB together");
    }
    case.call(&["delete", "--force", &first])?.success()?;
    assert_eq!(mounts(case)?, mounted, "one still runs from them");
    case.call(&["delete", "--force", &second])?.success()?;
    assert_eq!(mounts(case)?, vec![]);
    clear(case)
}

fn written(case: &mut Case) -> Outcome {
    import(case, stack()?)?;
    let id = case.id.clone();
    begin(case, &id)?;
    for (path, text) in [("/keep/stays", "changed"), ("/new", "new")] {
        case.call(&["exec", &id, "/probe", "write", path, text])?.success()?;
    }
    image(case, &["commit", &id, "made:1"])?.success()?;
    let made = |case: &mut Case, path: &str| {
        ferry(case, &["run", "--image", "made:1", "--", "/probe", "read", path])?.success()?.json()
    };
    assert_eq!(made(case, "/keep/stays")?["ok"], "changed");
    assert_eq!(made(case, "/linked")?["ok"], "stays");
    ferry(case, &["snapshot", "create", &id, "before"])?.success()?;
    case.call(&["exec", &id, "/probe", "write", "/keep/stays", "lost"])?.success()?;
    ferry(case, &["snapshot", "rollback", &id, "before"])?.success()?;
    let read = case.call(&["exec", &id, "/probe", "read", "/keep/stays"])?.success()?.json()?;
    assert_eq!(read["ok"], "changed");
    assert!(!mounts(case)?.is_empty(), "it still runs from them");
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(mounts(case)?, vec![]);
    clear(case)
}

fn later(case: &mut Case) -> Outcome {
    super::image::import(case, stack()?, &json!({}))?;
    let end = ferry(case, &["run", "--erofs", "--image", "test", "--", "/probe"])?.failure()?;
    assert!(end.stderr.contains("has no EROFS images") && end.stderr.contains("--erofs"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    let numbers = |case: &mut Case| -> Result<Vec<u64>, Failed> {
        directories(case)?.iter().map(|path| Ok(fs::metadata(path)?.ino())).collect()
    };
    let before = numbers(case)?;
    let layout = case.path("layout");
    image(case, &["import", "--erofs", &layout])?.success()?;
    assert_eq!(numbers(case)?, before, "no layer is unpacked again");
    look_at_stack(case, &["--erofs"])?;
    clear(case)
}

fn erofs_image(directory: &Path) -> PathBuf {
    directory.with_file_name("erofs").join("image")
}

fn checked(case: &mut Case) -> Outcome {
    import(case, stack()?)?;
    image(case, &["check"])?.success()?;
    let directories = directories(case)?;
    // Its content, its length, its record; and that of a layer which is broken itself.
    let harm: [fn(&Path) -> std::io::Result<()>; 4] = [
        |image| {
            let mut bytes = fs::read(image)?;
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(image, bytes)
        },
        |image| fs::File::options().write(true).open(image)?.set_len(4096),
        |image| fs::write(image.with_file_name("erofs.json"), "{"),
        |image| fs::remove_file(image),
    ];
    for (number, harm) in harm.iter().enumerate() {
        harm(&erofs_image(&directories[1]))?;
        let told = image(case, &["check", "--format", "json"])?;
        assert_eq!((told.code, told.json()?["damages"].as_array().map(Vec::len)), (1, Some(1)), "{number}");
        let told = image(case, &["check", "--repair", "--format", "json"])?.success()?.json()?;
        assert_eq!(told["repaired"].as_array().map(Vec::len), Some(1), "{number}: {told}");
        image(case, &["check"])?.success()?;
    }
    fs::remove_file(directories[0].join("probe"))?;
    let told = image(case, &["check", "--repair", "--format", "json"])?.success()?.json()?;
    assert_eq!(told["repaired"].as_array().map(Vec::len), Some(2), "the layer and its image: {told}");
    look_at_stack(case, &["--erofs"])?;
    clear(case)
}

/// A container that nobody deletes, and whose record goes: what it had mounted stays until it is pruned away.
fn left(case: &mut Case) -> Outcome {
    import(case, vec![])?;
    let id = case.id.clone();
    let pid = begin(case, &id)?;
    image(case, &["prune", "--all"])?.success()?;
    assert!(!mounts(case)?.is_empty(), "it runs");
    case.kill_and_wait("KILL")?;
    case.wait_for(pid)?;
    remove_tree(&case.state_root().join(&id))?;
    assert!(!mounts(case)?.is_empty());
    image(case, &["prune"])?.success()?;
    assert_eq!(mounts(case)?, vec![]);
    ferry(case, &["run", "--image", "test", "--erofs", "--", "/probe", "exit", "0"])?.success()?;
    clear(case)
}

/// Begins a container whose runtime gets this answer to its first mount(2); answers what it said.
fn begin_with(case: &mut Case, errno: &'static str) -> Result<String, Failed> {
    let point = Point { cloned: false, call: ("mount".to_owned(), 1), fault: Fault::Answer(errno) };
    let (store, id) = (case.path("store"), case.id.clone());
    let args = ["--store", &store, "run", "-d", "--erofs", "--image", "test", &id, "--", "/probe", "sleep", "forever"];
    let ended = inject(case, &point, &args, "out")?;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    Ok(ended.stderr)
}

fn looped(case: &mut Case) -> Outcome {
    import(case, vec![])?;
    let (said, id) = (begin_with(case, "ENOTBLK")?, case.id.clone());
    let mounted = mounts(case)?;
    if Path::new("/dev/loop-control").exists() {
        assert_eq!(said, "");
        assert!(mounted.iter().all(|(source, _)| source.starts_with("/dev/loop")), "{mounted:?}");
        assert!(!mounted.is_empty());
    } else {
        assert!(said.contains("stand in for") && mounted.is_empty(), "{said} {mounted:?}");
    }
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(mounts(case)?, vec![]);
    // The device went with the mount.
    for (device, _) in mounted {
        let device = Path::new("/sys/block").join(device.trim_start_matches("/dev/")).join("loop/backing_file");
        let file = fs::read_to_string(&device).unwrap_or_default();
        assert!(!file.starts_with(&case.path("store")), "{}: {file}", device.display());
    }
    clear(case)
}

fn refused(case: &mut Case) -> Outcome {
    import(case, vec![])?;
    let (said, id) = (begin_with(case, "ENODEV")?, case.id.clone());
    assert!(said.contains("ENODEV") && said.contains("the layers' directories stand in for"), "{said}");
    assert_eq!(mounts(case)?, vec![]);
    case.call(&["delete", "--force", &id])?.success()?;
    clear(case)
}

/// The program is covered up, in a mount namespace of the call's own.
fn no_program(case: &mut Case) -> Outcome {
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "test:latest", &[base(case)?], &json!({}))?;
    let store = case.path("store");
    let call = case.command(&["--store", &store, "image", "import", "--erofs", &path]);
    let cover = "mount --bind /dev/null \"$(command -v mkfs.erofs)\" && exec \"$@\"";
    let mut covered = Command::new("unshare");
    covered.args(["--mount", "sh", "-c", cover, "sh"]).arg(call.get_program()).args(call.get_args());
    covered.envs(call.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let end = case.finish(&mut covered)?.failure()?;
    assert!(end.stderr.contains("install the package erofs-utils"), "{}", end.stderr);
    assert!(!Path::new(&store).exists(), "nothing was begun");
    Ok(())
}

fn only_root(case: &mut Case) -> Outcome {
    let path = case.path("layout");
    fixtures::layout(path.as_ref(), "test:latest", &[base(case)?], &json!({}))?;
    let end = image(case, &["import", "--erofs", &path])?.failure()?;
    assert!(end.stderr.contains("only root can use EROFS images"), "{}", end.stderr);
    image(case, &["import", &path])?.success()?;
    let end = ferry(case, &["run", "--erofs", "--image", "test", "--", "/probe"])?.failure()?;
    assert!(end.stderr.contains("only root can use EROFS images"), "{}", end.stderr);
    clear(case)
}
