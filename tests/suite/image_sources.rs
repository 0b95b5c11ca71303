//! `ferry image import` of what other tools write: docker archives in any order.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::case::Case;
use super::image::{base, clear, image, run};
use super::need::Need::Ferry;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("docker_archives_of_other_tools", &[Ferry], docker_archives),
    scenario("a_root_filesystem_may_begin_with_files", &[Ferry], files_first),
];

/// The names of the configuration and the layer, in the order that each tool writes them; `manifest.json` comes last.
fn docker_archives(case: &mut Case) -> Outcome {
    let layer = base(case)?;
    let packed = fixtures::gzip(&layer)?;
    let config =
        fixtures::config(std::slice::from_ref(&layer), &json!({"Cmd": ["/probe", "say", "hello"]})).to_string();
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let (crane, jib) =
        ((format!("sha256:{a}"), format!("{b}.tar.gz")), ("config.json".to_owned(), format!("{b}.tar.gz")));
    let cases = [
        ("crane:1", crane, &packed, true),
        ("jib:1", jib, &packed, false),
        ("plain:1", ("config.json".to_owned(), "layer.tar".to_owned()), &layer, false),
    ];
    for (name, (config_name, layer_name), bytes, config_first) in cases {
        let rows = json!([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]).to_string();
        let (config, layer) = ((&config_name, config.as_bytes()), (&layer_name, bytes.as_slice()));
        let files = if config_first { [config, layer] } else { [layer, config] };
        let mut archive = Layer::new();
        for (name, bytes) in files {
            archive = archive.file(name, 0o644, bytes)?;
        }
        let archive = archive.file("manifest.json", 0o644, rows.as_bytes())?.finish()?;
        let (path, gzip) = (case.path("archive.tar"), case.path("archive.tgz"));
        fs::write(&gzip, fixtures::gzip(&archive)?)?;
        fs::write(&path, archive)?;
        for path in [&path, &gzip] {
            image(case, &["import", path])?.success()?;
            assert_eq!(run(case, name, &[])?.success()?.stdout.trim(), "hello", "{name}");
            image(case, &["remove", name])?.success()?;
        }
    }
    clear(case)
}

/// Files that only sound like an image's documents make none of it.
fn files_first(case: &mut Case) -> Outcome {
    let path = case.path("rootfs.tar");
    let layer = Layer::new().file("index.html", 0o644, b"")?.file("index.json", 0o644, b"{}")?;
    let layer = layer.file("manifest.json", 0o644, b"{\"name\": \"app\"}")?.file(
        "probe",
        0o755,
        &fs::read(&case.stage.probe)?,
    )?;
    fs::write(&path, layer.finish()?)?;
    image(case, &["import", &path, "--name", "files:1"])?.success()?;
    let found = image(case, &["inspect", "files:1"])?.success()?.json()?;
    let layer = PathBuf::from(found["directories"][0].as_str().unwrap_or_default());
    assert!(layer.join("index.html").is_file() && layer.join("manifest.json").is_file(), "{found}");
    let layer = Layer::new().file("init", 0o755, b"")?.directory("opt/")?.file("manifest.json", 0o644, b"[]")?;
    fs::write(&path, layer.finish()?)?;
    image(case, &["import", &path, "--name", "files:1"])?.success()?;
    clear(case)
}
