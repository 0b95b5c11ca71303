//! `ferry image prune` and `check` where something cannot be read, is damaged or in use: nothing goes that an image or a container
//! needs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, names_in};
use super::image::{base, clear, image, import, run};
use super::need::Need::Ferry;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("prune_stops_where_it_cannot_read", &[Ferry], prune_unreadable),
    scenario("a_layer_in_use_is_not_repaired", &[Ferry], repair_in_use),
    scenario("nobody_else_may_write_to_a_new_store_or_above_it", &[Ferry], modes),
    scenario("one_that_everybody_may_write_to_is_refused", &[Ferry], everybodys),
];

/// Where the store has a document of the image `test`.
fn document(case: &mut Case, of: impl Fn(&serde_json::Value) -> Option<&str>) -> Result<PathBuf, Failed> {
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let digest = of(&found).ok_or_else(|| format!("no digest in {found}"))?;
    Ok(PathBuf::from(case.path("store/blobs")).join(digest.replace(':', "/")))
}

/// A directory in a document's place is what a reader gets an answer of the kernel's from (EISDIR); other bytes are damage.
fn prune_unreadable(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({"Cmd": ["/probe"]}))?;
    let manifest = document(case, |found| found["digest"].as_str())?;
    let config = document(case, |found| found["manifest"]["config"]["digest"].as_str())?;
    let kept = |case: &Case| {
        ["layers", "blobs/sha256"].map(|of| {
            let mut names = names_in(&PathBuf::from(case.path("store")).join(of));
            names.sort_unstable();
            names
        })
    };
    let before = kept(case);
    assert_eq!(before.each_ref().map(Vec::len), [1, 3], "{before:?}");
    for document in [manifest, config] {
        let bytes = fs::read(&document)?;
        fs::remove_file(&document)?;
        fs::create_dir(&document)?;
        let refused = image(case, &["prune"])?.failure()?;
        assert!(refused.stderr.contains("EISDIR") && refused.stderr.contains("image check"), "{}", refused.stderr);
        assert_eq!(kept(case), before);
        fs::remove_dir(&document)?;
        fs::write(&document, "rot")?;
        let refused = image(case, &["prune"])?.failure()?;
        assert!(refused.stderr.contains("image check"), "{}", refused.stderr);
        assert_eq!(kept(case), before);
        fs::write(&document, bytes)?;
    }
    image(case, &["prune"])?.success()?;
    run(case, "test", &[])?.success()?;
    // What nobody asks for any more is in nobody's way, damaged or not.
    let manifest = document(case, |found| found["digest"].as_str())?;
    fs::write(manifest, "rot")?;
    clear(case)
}

fn modes(case: &mut Case) -> Outcome {
    let (archive, above) = (PathBuf::from(case.path("base.tar")), PathBuf::from(case.path("above")));
    fs::write(&archive, base(case)?)?;
    for umask in ["000", "077"] {
        let store = above.join(umask).join("store");
        let verb = format!("umask {umask}; exec \"$@\"");
        let ferry = case.command(&["--store", &store.display().to_string(), "image", "import", "--name", "test"]);
        let mut command = Command::new("sh");
        command.args(["-c", &verb, "sh"]).arg(ferry.get_program()).args(ferry.get_args()).arg(&archive);
        case.finish(&mut command)?.success()?;
        for made in [above.as_path(), &above.join(umask), &store] {
            assert_eq!(fs::metadata(made)?.permissions().mode() & 0o7777, 0o700, "{}", made.display());
        }
        case.call(&["--store", &store.display().to_string(), "image", "prune", "--all"])?.success()?;
    }
    Ok(())
}

fn everybodys(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    fs::set_permissions(case.path("store"), Permissions::from_mode(0o777))?;
    for refused in [image(case, &["list"])?, image(case, &["prune"])?, run(case, "test", &[])?] {
        let told = refused.failure()?.stderr;
        assert!(told.contains("everybody may write there (mode 0777)"), "{told}");
    }
    fs::set_permissions(case.path("store"), Permissions::from_mode(0o775))?;
    run(case, "test", &["/probe", "exit", "0"])?.success()?;
    clear(case)
}

fn repair_in_use(case: &mut Case) -> Outcome {
    import(case, vec![], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    let found = image(case, &["inspect", "test"])?.success()?.json()?;
    let layer = PathBuf::from(found["directories"][0].as_str().unwrap_or_default());
    fs::write(layer.join("etc/passwd"), "")?;
    let told = image(case, &["check", "--repair", "--format", "json"])?;
    assert_eq!(told.code, 1);
    let damages = told.json()?["damages"].to_string();
    assert!(damages.contains("cannot repair layer") && damages.contains(&id), "{damages}");
    let seen = case.exec(&[], &["/probe", "read", "/etc/group"])?.success()?.json()?;
    assert!(seen["ok"].as_str().is_some_and(|text| text.contains("crew")), "{seen}");
    case.call(&["delete", "--force", &id])?.success()?;
    let told = image(case, &["check", "--repair", "--format", "json"])?.success()?.json()?;
    assert_eq!(told["repaired"].as_array().map(Vec::len), Some(1), "{told}");
    clear(case)
}
