//! ferry is killed at moments of a fixed sequence while it pulls, imports, commits and prunes: the store is whole each time, with
//! the image in it or not.

use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, names_in};
use super::image::{base, clear, ferry, image};
use super::need::Need::Ferry;
use super::output;
use super::registry_server::{Content, Registry};
use super::scenario::{Outcome, Scenario, scenario};
use super::stage;
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[scenario("the_store_is_whole_whenever_ferry_is_killed", &[Ferry], killed)];

/// How often each of the deeds is cut off.
fn rounds() -> u32 {
    if stage::is_long() { 50 } else { 6 }
}

/// A layer each; pressed down, they take a while.
fn layers(case: &Case) -> Result<Vec<Vec<u8>>, Failed> {
    let mut layers = vec![base(case)?];
    for index in 0..6 {
        layers.push(Layer::new().file(&format!("file-{index}"), 0o644, &vec![b'a' + index; 300_000])?.finish()?);
    }
    Ok(layers)
}

/// Puts the same image into a registry, as `app:1`.
fn registry(layers: &[Vec<u8>]) -> Result<Registry, Failed> {
    let mut content = Content { ranges: true, ..Content::default() };
    let config = fixtures::config(layers, &json!({"Cmd": ["/probe"]})).to_string().into_bytes();
    let mut described = Vec::new();
    for layer in layers {
        let packed = fixtures::gzip(layer)?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        described.push(json!({"mediaType": media_type, "digest": content.blob(&packed), "size": packed.len()}));
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let document = json!({
        "schemaVersion": 2, "mediaType": media_type, "layers": described,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": content.blob(&config), "size": config.len()},
    });
    content.manifest(media_type, "1", &document);
    Registry::start(content)
}

/// Runs `ferry image ARGS` to its end, or to `moment`.
fn cut_off(case: &Case, args: &[&str], moment: Option<Duration>) -> Outcome {
    let store = case.path("store");
    let mut command = case.command(&[&["--store", &store, "image"], args].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let ended = output::wait_for_pid(child.id(), moment.unwrap_or(case.patience()))?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    if moment.is_none() && !status.success() {
        return Err(format!("{args:?} ended with {status}").into());
    }
    Ok(())
}

fn killed(case: &mut Case) -> Outcome {
    let layers = layers(case)?;
    let registry = registry(&layers)?;
    let (layout, pulled) = (case.path("layout"), format!("{}/app:1", registry.host()));
    fixtures::layout(layout.as_ref(), "test:1", &layers, &json!({"Cmd": ["/probe"]}))?;
    let small = case.path("small");
    fixtures::layout(small.as_ref(), "base:1", &[base(case)?], &json!({}))?;
    image(case, &["import", &small])?.success()?;
    // A container that has changed something, to be made images of.
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&["--store", &store, "run", "-d", "--image", "base:1", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    for number in 0..20 {
        case.exec(&[], &["/probe", "write", &format!("/new-{number}"), &"x".repeat(5000)])?.success()?;
    }
    let import = ["import", "--name", "test:1", &layout];
    let (commit, pull) = (["commit", &id, "made:1"], ["pull", "--insecure", &pulled]);
    let deeds: [(&[&str], &[&str]); 4] =
        [(&import, &["test:1"]), (&commit, &["made:1"]), (&pull, &[&pulled]), (&["prune"], &[])];
    for (deed, made) in deeds {
        // What the deed does is there to be done anew each time.
        let undo = |case: &mut Case| -> Outcome {
            for name in made {
                // It may not have come to a name.
                image(case, &["remove", name])?;
            }
            match deed[0] {
                "prune" => drop(image(case, &["import", "--name", "gone:1", &layout])?.success()?),
                _ => drop(image(case, &["prune"])?.success()?),
            }
            image(case, &["remove", "gone:1"])?;
            Ok(())
        };
        undo(case)?;
        let began = Instant::now();
        cut_off(case, deed, None)?;
        let whole = began.elapsed();
        for round in 0..rounds() {
            case.forget_transcript();
            undo(case)?;
            // Spread over the time that all of it takes.
            cut_off(case, deed, Some(whole * (round * 37 % rounds()) / rounds()))?;
            let found = image(case, &["check"])?;
            assert_eq!(found.code, 0, "{deed:?}, round {round}: {} {}", found.stdout, found.stderr);
            let names = image(case, &["list", "-q"])?.success()?.stdout;
            for name in names.lines() {
                // What is there is there whole: the last layer of each.
                let (path, size) = match name {
                    "base:1" => ("/etc/group", 25),
                    "made:1" => ("/new-19", 5000),
                    _ => ("/file-5", 300_000),
                };
                let read = ferry(case, &["run", "--image", name, "--", "/probe", "read", path])?.success()?.json()?;
                assert_eq!(read["ok"].as_str().map(str::len), Some(size), "{deed:?}, round {round}: {name}");
            }
            assert!(names.lines().any(|name| name == "base:1"), "{deed:?}, round {round}: {names}");
        }
        undo(case)?;
    }
    case.call(&["delete", "--force", &id])?.success()?;
    image(case, &["prune"])?.success()?;
    assert_eq!(names_in(case.path("store/tmp").as_ref()), Vec::<String>::new());
    clear(case)
}
