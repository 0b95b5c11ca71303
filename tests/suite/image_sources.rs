//! `ferry image import` of what other tools write: docker archives in any order, layouts that say nothing of platforms, and what
//! else stands beside images in an index.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ferry::image::digest::{Algorithm, Digest, Hasher};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::image::{base, clear, image, run};
use super::need::Need::{Ferry, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("docker_archives_of_other_tools", &[Ferry], docker_archives),
    scenario("one_of_several_without_names_is_taken_by_its_id", &[Ferry], by_id),
    scenario("a_root_filesystem_may_begin_with_files", &[Ferry], files_first),
    scenario("a_configuration_tells_the_platform", &[Ferry], configured_platforms),
    scenario("what_is_no_image_is_passed_over", &[Ferry], foreign),
    scenario("a_name_has_no_digest_but_its_own", &[Ferry], digests_in_names),
    scenario("no_name_shadows_a_digest", &[Ferry], names_like_digests),
    scenario("documents_and_layers_by_sha512", &[Ferry], by_sha512),
    scenario("of_two_images_one_broken_none_comes", &[Ferry], one_of_two),
    scenario("a_pipe_is_read_as_standard_input_is", &[Ferry, Tool("cat")], pipes),
    scenario("texts_of_an_image_command_no_terminal", &[Ferry], commands),
];

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

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

/// As `docker save ID1 ID2` writes them; the last has a name, and its configuration is not called after its digest.
fn by_id(case: &mut Case) -> Outcome {
    let (path, layers) = (case.path("several.tar"), [base(case)?]);
    let (mut archive, mut rows, mut ids) = (Layer::new().file("layer.tar", 0o644, &layers[0])?, Vec::new(), Vec::new());
    for (text, tags) in [("one", json!(null)), ("two", json!([])), ("three", json!(["three:1"]))] {
        let config = fixtures::config(&layers, &json!({"Cmd": ["/probe", "say", text]})).to_string();
        let id = Digest::of(config.as_bytes());
        let file = if tags == json!(["three:1"]) { "config.json".to_owned() } else { format!("{}.json", id.hex()) };
        archive = archive.file(&file, 0o644, config.as_bytes())?;
        rows.push(json!({"Config": file, "RepoTags": tags, "Layers": ["layer.tar"]}));
        ids.push(id);
    }
    fs::write(&path, archive.file("manifest.json", 0o644, json!(rows).to_string().as_bytes())?.finish()?)?;
    let known = format!("SOURCE:NAME, with --name where it has none: {}, {}, three:1", ids[0].short(), ids[1].short());
    for flags in [&[][..], &["--name", "x:1"]] {
        let refused = image(case, &[&["import", &path], flags].concat())?.failure()?;
        assert!(refused.stderr.contains(&known), "{}", refused.stderr);
    }
    for (id, text) in ids.iter().zip(["one", "two", "three"]) {
        for called in [id.short(), id.hex(), &id.to_string()] {
            image(case, &["import", &format!("{path}:{called}"), "--name", "x:1"])?.success()?;
            assert_eq!(run(case, "x:1", &[])?.success()?.stdout.trim(), text, "{called}");
        }
    }
    let refused = image(case, &["import", &format!("{path}:{}", ids[0].short())])?.failure()?;
    assert!(refused.stderr.contains("give it one with --name"), "{}", refused.stderr);
    let refused = image(case, &["import", &format!("{path}:nothing")])?.failure()?;
    assert!(refused.stderr.contains(&format!("there is {}, ", ids[0].short())), "{}", refused.stderr);
    image(case, &["import", &format!("{path}:three:1")])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "three:1\nx:1\n");
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

/// A manifest in a layout, whose configuration says this architecture.
fn built_for(path: &Path, architecture: &str, layers: &[Vec<u8>], execution: &Value) -> Result<Value, Failed> {
    let mut config = fixtures::config(layers, execution);
    config["architecture"] = json!(architecture);
    let config = fixtures::blob(path, CONFIG, config.to_string().as_bytes())?;
    let layers = layers.iter().map(|layer| fixtures::blob(path, LAYER, &fixtures::gzip(layer)?));
    let layers = layers.collect::<std::io::Result<Vec<_>>>()?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    Ok(fixtures::blob(path, MANIFEST, manifest.as_bytes())?)
}

fn configured_platforms(case: &mut Case) -> Outcome {
    let path = PathBuf::from(case.path("layout"));
    let own = ferry::image::manifest::host_platform().architecture;
    let layers = [base(case)?];
    let other = built_for(&path, "s390x", &layers, &json!({"Cmd": ["/probe", "say", "other"]}))?;
    let mine = built_for(&path, &own, &layers, &json!({"Cmd": ["/probe", "say", "mine"]}))?;
    let shown = path.display().to_string();
    fixtures::index(&path, std::slice::from_ref(&other))?;
    let refused = image(case, &["import", &shown, "--name", "x:1"])?.failure()?;
    let said = format!("there is no image for linux/{own} (hint: there is one for linux/s390x");
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    image(case, &["import", &shown, "--name", "z:1", "--platform", "linux/s390x"])?.success()?;
    assert_eq!(run(case, "z:1", &[])?.success()?.stdout.trim(), "other");
    fixtures::index(&path, &[other, mine])?;
    image(case, &["import", &shown, "--name", "m:1"])?.success()?;
    assert_eq!(run(case, "m:1", &[])?.success()?.stdout.trim(), "mine");
    let refused = image(case, &["import", &shown, "--name", "x:1", "--platform", "linux/riscv64"])?.failure()?;
    assert!(refused.stderr.contains("there is no image for linux/riscv64"), "{}", refused.stderr);
    // A docker archive says it nowhere else.
    let docker = case.path("docker.tar");
    fixtures::docker(docker.as_ref(), "localhost/docker:1", &layers, &json!({}))?;
    let refused = image(case, &["import", "--platform", "linux/s390x", &docker])?.failure()?;
    assert!(refused.stderr.contains("there is no image for linux/s390x"), "{}", refused.stderr);
    clear(case)
}

fn foreign(case: &mut Case) -> Outcome {
    let path = PathBuf::from(case.path("layout"));
    let named = |mut entry: Value, name: &str| {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    let image_of = fixtures::manifest(&path, &[base(case)?], &json!({"Cmd": ["/probe", "say", "hello"]}))?;
    // What cosign signs with is an image but for its layers, an artifact but for its configuration; others are neither.
    let config = fixtures::blob(&path, CONFIG, b"{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}")?;
    let payload = fixtures::blob(&path, "application/vnd.dev.cosign.simplesigning.v1+json", b"{}")?;
    let signature = json!({"schemaVersion": 2, "config": config, "layers": [payload]}).to_string();
    let signature = fixtures::blob(&path, MANIFEST, signature.as_bytes())?;
    let empty = fixtures::blob(&path, "application/vnd.oci.empty.v1+json", b"{}")?;
    let artifact = json!({"schemaVersion": 2, "config": empty, "layers": [empty]}).to_string();
    let artifact = fixtures::blob(&path, MANIFEST, artifact.as_bytes())?;
    let unknown = fixtures::blob(&path, "application/vnd.cncf.helm.config.v1+json", b"{}")?;
    let inner = json!({"schemaVersion": 2, "manifests": [unknown, image_of]}).to_string();
    let inner = fixtures::blob(&path, "application/vnd.oci.image.index.v1+json", inner.as_bytes())?;
    fixtures::index(
        &path,
        &[named(signature, "app:sig"), named(artifact, "app:sbom"), named(unknown, "app:chart"), named(inner, "app:1")],
    )?;
    let shown = path.display().to_string();
    image(case, &["import", &shown])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "app:1\n");
    assert_eq!(run(case, "app:1", &[])?.success()?.stdout.trim(), "hello");
    for (name, media_type) in [("app:sig", "simplesigning"), ("app:sbom", "oci.empty"), ("app:chart", "helm.config")] {
        let refused = image(case, &["import", &format!("{shown}:{name}")])?.failure()?;
        let said = refused.stderr.contains("cannot understand media type") && refused.stderr.contains(media_type);
        assert!(said, "{}", refused.stderr);
    }
    clear(case)
}

fn digests_in_names(case: &mut Case) -> Outcome {
    let path = PathBuf::from(case.path("layout"));
    let mut entry = fixtures::manifest(&path, &[base(case)?], &json!({"Cmd": ["/probe"]}))?;
    let (own, other) = (entry["digest"].as_str().unwrap_or_default().to_owned(), format!("sha256:{}", "0".repeat(64)));
    let shown = path.display().to_string();
    fixtures::index(&path, std::slice::from_ref(&entry))?;
    let refused = image(case, &["import", &shown, "--name", &format!("app@{own}")])?.failure()?;
    assert!(refused.stderr.contains("has a digest, which is no name to give"), "{}", refused.stderr);
    for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
        entry["annotations"] = json!({key: format!("app:1@{other}")});
        fixtures::index(&path, std::slice::from_ref(&entry))?;
        let refused = image(case, &["import", &shown])?.failure()?;
        assert!(refused.stderr.contains("the image has no name"), "{}", refused.stderr);
        entry["annotations"] = json!({key: format!("app:1@{own}")});
        fixtures::index(&path, std::slice::from_ref(&entry))?;
        image(case, &["import", &shown])?.success()?;
        run(case, &format!("app:1@{own}"), &[])?.success()?;
    }
    let docker = case.path("docker.tar");
    fixtures::docker(docker.as_ref(), &format!("app@{other}"), &[base(case)?], &json!({}))?;
    let refused = image(case, &["import", &docker])?.failure()?;
    assert!(refused.stderr.contains("the image has no name"), "{}", refused.stderr);
    clear(case)
}

/// Whoever runs an image by its digest runs that one, whatever others are called.
fn names_like_digests(case: &mut Case) -> Outcome {
    let (path, docker) = (PathBuf::from(case.path("layout")), case.path("docker.tar"));
    let (shown, layers) = (path.display().to_string(), [base(case)?]);
    fixtures::layout(&path, "mine:1", &layers, &json!({"Cmd": ["/probe", "say", "mine"]}))?;
    image(case, &["import", &shown])?.success()?;
    let found = image(case, &["inspect", "mine:1"])?.success()?.json()?;
    let digest = found["digest"].as_str().unwrap_or_default().to_owned();
    let bare = digest.trim_start_matches("sha256:").to_owned();
    let mut entry = fixtures::manifest(&path, &layers, &json!({"Cmd": ["/probe", "say", "theirs"]}))?;
    for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
        for name in [&digest, &format!("{bare}:latest")] {
            entry["annotations"] = json!({key: name});
            fixtures::index(&path, std::slice::from_ref(&entry))?;
            let refused = image(case, &["import", &shown])?.failure()?;
            assert!(refused.stderr.contains("the image has no name"), "{}", refused.stderr);
        }
    }
    for name in [&digest, &bare, "sha512:1"] {
        fixtures::docker(docker.as_ref(), name, &layers, &json!({"Cmd": ["/probe", "say", "theirs"]}))?;
        for told in [&["import", &docker][..], &["tag", "mine:1", name], &["import", &shown, "--name", name]] {
            let refused = image(case, told)?.failure()?;
            assert!(refused.stderr.contains("it could be taken for a digest"), "{}", refused.stderr);
        }
    }
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "mine:1\n");
    for wanted in [&digest, &bare, &bare[..12]] {
        assert_eq!(run(case, wanted, &[])?.success()?.stdout.trim(), "mine");
    }
    clear(case)
}

/// A blob under the other digest that is registered.
fn blob_by_sha512(layout: &Path, media_type: &str, bytes: &[u8]) -> Result<Value, Failed> {
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(bytes);
    let digest = hasher.finish();
    fs::create_dir_all(layout.join("blobs/sha512"))?;
    fs::write(layout.join("blobs/sha512").join(digest.hex()), bytes)?;
    Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()}))
}

fn by_sha512(case: &mut Case) -> Outcome {
    let (path, layers) = (PathBuf::from(case.path("layout")), [base(case)?]);
    let config = fixtures::config(&layers, &json!({"Cmd": ["/probe", "say", "hello"]})).to_string();
    let config = blob_by_sha512(&path, CONFIG, config.as_bytes())?;
    let layer = blob_by_sha512(&path, LAYER, &fixtures::gzip(&layers[0])?)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let mut entry = blob_by_sha512(&path, MANIFEST, manifest.as_bytes())?;
    let digest = entry["digest"].as_str().unwrap_or_default().to_owned();
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "long:1"});
    fixtures::index(&path, &[entry])?;
    let (archive, blobs) = (case.path("archive.tar"), PathBuf::from(case.path("store/blobs/sha512")));
    for source in [&path.display().to_string(), &archive] {
        image(case, &["import", source])?.success()?;
        for wanted in ["long:1", &digest, &digest[..20]] {
            assert_eq!(run(case, wanted, &[])?.success()?.stdout.trim(), "hello", "{wanted}");
        }
        assert_eq!(names_in(&blobs).len(), 3);
        image(case, &["check"])?.success()?;
        image(case, &["prune"])?.success()?;
        image(case, &["export", "long:1", "--output", &archive])?.success()?;
        image(case, &["remove", &digest])?.success()?;
        clear(case)?;
        assert_eq!(names_in(&blobs), Vec::<String>::new());
    }
    Ok(())
}

fn one_of_two(case: &mut Case) -> Outcome {
    let path = PathBuf::from(case.path("layout"));
    let named = |mut entry: Value, name: &str| {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    let good = fixtures::manifest(&path, &[base(case)?], &json!({"Cmd": ["/probe"]}))?;
    let before = names_in(&path.join("blobs/sha256"));
    let broken = fixtures::manifest(&path, &[Layer::new().file("x", 0o644, b"x")?.finish()?], &json!({}))?;
    let layer = fixtures::gzip(&Layer::new().file("x", 0o644, b"x")?.finish()?)?;
    let layer = names_in(&path.join("blobs/sha256")).into_iter().find(|name| {
        !before.contains(name) && fs::read(path.join("blobs/sha256").join(name)).is_ok_and(|bytes| bytes == layer)
    });
    fs::write(path.join("blobs/sha256").join(layer.ok_or("no layer")?), "rot")?;
    fixtures::index(&path, &[named(good, "good:1"), named(broken, "broken:1")])?;
    let shown = path.display().to_string();
    let told = image(case, &["import", &shown])?.failure()?;
    assert_eq!((told.stdout.as_str(), image(case, &["list", "-q"])?.success()?.stdout.as_str()), ("", ""));
    image(case, &["import", &format!("{shown}:good:1")])?.success()?;
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "good:1\n");
    clear(case)
}

/// By whatever name: a shell hands its `<(…)` on as one below /dev/fd.
fn pipes(case: &mut Case) -> Outcome {
    let (docker, gzip, store) = (case.path("docker.tar"), case.path("docker.tgz"), case.path("store"));
    fixtures::docker(docker.as_ref(), "piped:1", &[base(case)?], &json!({"Cmd": ["/probe", "say", "hello"]}))?;
    fs::write(&gzip, fixtures::gzip(&fs::read(&docker)?)?)?;
    for source in [&docker, &gzip] {
        let mut cat = Command::new("cat").arg(source).stdout(Stdio::piped()).spawn()?;
        let mut command = case.command(&["--store", &store, "image", "import", "/dev/stdin"]);
        let end = case.finish(command.stdin(cat.stdout.take().ok_or("no pipe")?));
        // Nobody is left who could read what it has.
        drop(command);
        cat.wait()?;
        end?.success()?;
        assert_eq!(run(case, "piped:1", &[])?.success()?.stdout.trim(), "hello");
        clear(case)?;
    }
    Ok(())
}

fn commands(case: &mut Case) -> Outcome {
    let (path, layers) = (PathBuf::from(case.path("layout")), [base(case)?]);
    let mut config = fixtures::config(&layers, &json!({"Cmd": ["/probe"]}));
    config["created"] = json!("2026-\u{1b}[2J");
    config["history"] = json!([{"created": "\u{9b}2J", "created_by": "\u{1b}]0;owned\u{7}\r COPY"}]);
    let config = fixtures::blob(&path, CONFIG, config.to_string().as_bytes())?;
    let layer = fixtures::blob(&path, LAYER, &fixtures::gzip(&layers[0])?)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let mut entry = fixtures::blob(&path, MANIFEST, manifest.as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "test:1"});
    fixtures::index(&path, &[entry])?;
    image(case, &["import", &path.display().to_string()])?.success()?;
    let mut broken = layers[0].clone();
    // The first header's checksum, which the error quotes.
    broken[148..156].copy_from_slice(b"\x1b[2J\x1b[0m"[..8].as_ref());
    let archive = case.path("broken.tar");
    fs::write(&archive, broken)?;
    let (list, history) = (image(case, &["list"])?.success()?, image(case, &["history", "test:1"])?.success()?);
    let refused = image(case, &["import", "--format", "rootfs", "--name", "b:1", &archive])?.failure()?;
    assert!(list.stdout.contains("2026-\u{fffd}[2J") && history.stdout.contains("COPY"), "{}", list.stdout);
    assert!(refused.stderr.contains("\u{fffd}[2J"), "{}", refused.stderr);
    for told in [list.stdout, history.stdout, refused.stderr] {
        assert!(!told.contains(|letter: char| letter.is_control() && letter != '\n'), "{told:?}");
    }
    clear(case)
}
