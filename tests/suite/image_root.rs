//! What the root of a container of an image is: an overlay, with what options; and a copy, where the kernel will not stack layers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Failed;
use rustix::fs::lgetxattr;
use serde_json::json;

use super::case::{Case, names_in};
use super::image::{clear, image, import, run};
use super::need::Need::{self, Ferry, Tool};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

const NESTED: Need = Need::Kernel(6, 7, "before, an overlay could not hold whiteouts of another");

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("the_overlay_copies_whole_files_and_syncs_none", &[Ferry], options),
    scenario("the_root_directory_is_as_the_image_says", &[Ferry, Tool("busybox"), Tool("newuidmap")], root_directory),
    scenario("layers_that_cannot_be_stacked_are_copied", &[Ferry, Tool("unshare"), NESTED], copied),
    scenario("what_fails_upon_a_copy_leaves_nothing", &[Ferry, Tool("unshare"), NESTED], copied_in_vain),
];

/// The kernel shows an option where it is not what its module's parameter says.
fn options(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let read = run(case, "test", &["/probe", "read", "/proc/self/mountinfo"])?.success()?.json()?;
    let rows = read["ok"].as_str().unwrap_or_default();
    let root = rows.lines().find(|row| row.split(' ').nth(4) == Some("/")).ok_or("no root is mounted")?;
    assert!(root.contains(" - overlay "), "{root}");
    let shown: Vec<&str> = root.rsplit(' ').next().unwrap_or_default().split(',').collect();
    let parameter = |name: &str| fs::read_to_string(format!("/sys/module/overlay/parameters/{name}"));
    let mut by_itself = Vec::new();
    for name in ["index", "metacopy", "redirect_dir"] {
        let own = shown.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        let is_on = match own {
            Some(value) => value == "on",
            None => parameter(name).is_ok_and(|value| value.trim() == "Y"),
        };
        by_itself.extend(is_on.then_some(name));
    }
    assert_eq!(by_itself, Vec::<&str>::new(), "{root}");
    assert!(shown.iter().any(|option| ["volatile", "fsync=volatile"].contains(option)), "{root}");
    // Layers and upper lie on one filesystem, whose numbers files keep without it.
    assert!(!shown.contains(&"xino=on"), "{root}");
    assert_eq!(shown.contains(&"userxattr"), !nix::unistd::geteuid().is_root(), "{root}");
    clear(case)
}

/// Mode, owner and time of the root directory, seen from within.
const LOOK: [&str; 5] = ["/bin/busybox", "stat", "-c", "%a %u %g %Y", "/"];

/// An overlay shows its upper layer's: the image's to begin with, and what the container made of it from then on.
fn root_directory(case: &mut Case) -> Outcome {
    let busybox = Layer::new().directory("bin/")?.file("bin/busybox", 0o755, &fs::read("/bin/busybox")?)?;
    let owned = Layer::new().records(&[("uid", b"5"), ("gid", b"6"), ("SCHILY.xattr.user.note", b"note")])?;
    let owned = owned.entry(tar::EntryType::Directory, "./", 0o715, "", b"")?;
    // The uppermost says nothing of it.
    let layers = vec![busybox.finish()?, owned.finish()?, Layer::new().file("top", 0o644, b"top")?.finish()?];
    import(case, layers, &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    let run_detached = ["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"];
    case.begin(&run_detached)?.until("ready")?;
    assert_eq!(case.exec(&[], &LOOK)?.success()?.stdout, "715 5 6 1700000000\n");
    let containers = PathBuf::from(&store).join("containers");
    let upper = containers.join(&names_in(&containers)[0]).join("upper");
    let mut value = [0; 8];
    assert_eq!(lgetxattr(&upper, "user.note", &mut value[..]).map(|length| &value[..length]), Ok(&b"note"[..]));
    let change = "chown 7:8 / && chmod 2705 / && touch -d '2001-02-03 04:05:06' /";
    case.exec(&[], &["/bin/busybox", "sh", "-c", change])?.success()?;
    case.call(&["snapshot", "create", &id, "changed"])?.success()?;
    case.exec(&[], &["/bin/busybox", "chmod", "755", "/"])?.success()?;
    case.begin(&["snapshot", "rollback", &id, "changed"])?.until("ready")?;
    assert_eq!(case.exec(&[], &LOOK)?.success()?.stdout, "2705 7 8 981173106\n");
    image(case, &["commit", &id, "made:1"])?.success()?;
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(run(case, "made:1", &LOOK)?.success()?.stdout, "2705 7 8 981173106\n");
    clear(case)
}

/// A script in which `$store` is on a filesystem that cannot be an upper layer, an overlay, and `ferry` runs with it. What is
/// written to the store is there again for the next script. An ordinary user's has a user namespace around it, to mount in.
fn on_an_overlay(case: &mut Case, script: &str) -> Result<Output, Failed> {
    let root = nix::unistd::geteuid().is_root();
    for name in ["lower", "upper", "work", "merged"] {
        case.host_directory(name)?;
    }
    // In the namespace everybody is root: what ferry does for an ordinary user it does for another user in there.
    let (namespaces, option, user): (&[&str], &str, &str) = match root {
        true => (&["--mount"], "", ""),
        false => {
            (&["--user", "--map-root-user", "--mount"], ",userxattr", "unshare --user --map-user=1000 --map-group=1000")
        }
    };
    let mount = format!(
        "cd {}; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work{option} ferry merged; \
         exec {user} sh -euc \"$0\"",
        case.directory.display()
    );
    let functions = format!(
        "store=$PWD/merged/store; ferry() {{ {} --root {} --store $store \"$@\"; }}\n",
        case.stage.runtime.path.display(),
        case.state_root().display()
    );
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-euc", &mount, &(functions + script)]);
    let end = case.finish(&mut command);
    // The kernel's own, which nobody may look into; it goes with the case.
    let own = PathBuf::from(case.path("work/work"));
    if own.exists() {
        fs::set_permissions(own, fs::Permissions::from_mode(0o700))?;
    }
    end
}

/// An image with a file that an upper layer removes, and another that it changes.
fn image_on_an_overlay(case: &mut Case) -> Outcome {
    let lower = Layer::new().file("changed", 0o644, b"low")?.file("gone", 0o644, b"x")?.file("kept", 0o640, b"kept")?;
    let upper = Layer::new().file("changed", 0o644, b"high")?.file(".wh.gone", 0o644, b"")?;
    let layers = [super::image::base(case)?, lower.finish()?, upper.finish()?];
    fixtures::layout(case.path("layout").as_ref(), "test:latest", &layers, &json!({"Cmd": ["/probe"]}))?;
    on_an_overlay(case, "ferry image import layout")?.success()?;
    Ok(())
}

const SAID: &str = "the container runs on a copy of its image";

/// What the store has of containers, and what is being made there.
fn in_the_store(case: &Case) -> [Vec<String>; 2] {
    ["containers", "tmp"].map(|name| names_in(&PathBuf::from(case.path("upper/store")).join(name)))
}

fn copied(case: &mut Case) -> Outcome {
    image_on_an_overlay(case)?;
    let read = |case: &mut Case, path: &str| -> Result<serde_json::Value, Failed> {
        let end = on_an_overlay(case, &format!("ferry run --image test -- /probe read {path}"))?.success()?;
        assert!(end.stderr.contains(SAID) && end.stderr.contains("cannot be an upper layer"), "{}", end.stderr);
        end.json()
    };
    assert_eq!(read(case, "/changed")?["ok"], "high");
    assert_eq!(read(case, "/gone")?["error"], libc::ENOENT);
    let end = on_an_overlay(case, "ferry run --image test -- /probe write /kept mine")?.success()?;
    assert!(end.json()?["error"].is_null());
    // The next one has what the image says.
    assert_eq!(read(case, "/kept")?["ok"], "kept");
    let refused = on_an_overlay(case, "ferry run --image test --read-only -- /probe write /kept mine")?.success()?;
    assert_eq!(refused.json()?["error"], libc::EROFS);
    assert_eq!(on_an_overlay(case, "ferry run --image test -- /probe exit 7")?.code, 7);
    assert_eq!(in_the_store(case), [vec![], Vec::<String>::new()]);
    // One that goes on, and what it cannot be asked for.
    let id = case.id.clone();
    let script = format!(
        "ferry run --detach --image test {id} -- /probe sleep forever >&2\n\
         stat -c %h merged/store/containers/*/copy/rootfs/kept\n\
         ferry exec {id} /probe write /kept mine >&2\n\
         for verb in 'snapshot create {id}' 'image diff {id}' 'image commit {id} made:1'; do ! ferry $verb >&2; done\n\
         ferry image prune >&2\n\
         ferry exec {id} /probe read /kept\n\
         ferry delete --force {id}"
    );
    let end = on_an_overlay(case, &script)?.success()?;
    let lines: Vec<&str> = end.stdout.lines().collect();
    assert_eq!(lines.first(), Some(&"1"), "{lines:?}");
    assert!(lines.get(1).is_some_and(|line| line.contains("\"mine\"")), "{lines:?}");
    let said =
        format!("container {id:?} runs on a copy of its image, which tells nothing of what the container changed");
    assert_eq!(end.stderr.matches(&said).count(), 3, "{}", end.stderr);
    assert_eq!(in_the_store(case), [vec![], Vec::<String>::new()]);
    // A bundle is made of the image as ever.
    let script = "ferry bundle create --image test merged/bundle -- /probe && cat merged/bundle/rootfs/changed && rm -r merged/bundle";
    assert_eq!(on_an_overlay(case, script)?.success()?.stdout, "high");
    end_with(case)
}

fn copied_in_vain(case: &mut Case) -> Outcome {
    image_on_an_overlay(case)?;
    for (line, said) in [
        ("ferry run --image test -- /no/such/program", "/no/such/program"),
        ("ferry run --image test --cwd /kept -- /probe", "/kept"),
    ] {
        let end = on_an_overlay(case, line)?.failure()?;
        assert!(end.stderr.contains(SAID) && end.stderr.contains(said), "{}", end.stderr);
        assert_eq!((in_the_store(case), case.leftovers()?), ([vec![], vec![]], Vec::<String>::new()), "{line}");
    }
    end_with(case)
}

/// Takes the image away, whose files may be another's.
fn end_with(case: &mut Case) -> Outcome {
    on_an_overlay(case, "ferry image prune --all && rm -r merged/store")?.success()?;
    Ok(())
}
