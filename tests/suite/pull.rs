//! Images from a registry: by tag and digest, with a password, over connections that break, from mirrors, and what is refused.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need;
use super::output::Output;
use super::registry_server::{Content, Registry};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;
use libtest_mimic::Failed;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("by_tag_and_by_digest", &[Need::Ferry], by_tag_and_by_digest),
    scenario("what_was_pulled_by_digest_is_called_so", &[Need::Ferry], what_was_pulled_by_digest_is_called_so),
    scenario("an_index_gives_the_image_for_this_machine", &[Need::Ferry], an_index_gives_the_image_for_this_machine),
    scenario("a_password_opens_a_repository", &[Need::Ferry], a_password_opens_a_repository),
    scenario("a_wrong_password_is_refused", &[Need::Ferry], a_wrong_password_is_refused),
    scenario("only_the_registry_itself_is_shown_a_secret", &[Need::Ferry], only_the_registry_itself_is_shown_a_secret),
    scenario("a_way_that_leads_nowhere_is_left", &[Need::Ferry], a_way_that_leads_nowhere_is_left),
    scenario("a_broken_connection_is_taken_up", &[Need::Ferry], a_broken_connection_is_taken_up),
    scenario("a_server_without_ranges_is_read_again", &[Need::Ferry], a_server_without_ranges_is_read_again),
    scenario(
        "a_connection_that_always_breaks_is_an_error",
        &[Need::Ferry],
        a_connection_that_always_breaks_is_an_error,
    ),
    scenario("no_proxy_stands_before_this_machine", &[Need::Ferry], no_proxy_stands_before_this_machine),
    scenario("a_mirror_is_asked_first", &[Need::Ferry], a_mirror_is_asked_first),
    scenario("other_content_is_refused", &[Need::Ferry], other_content_is_refused),
    scenario("more_and_fewer_bytes_are_refused", &[Need::Ferry], more_and_fewer_bytes_are_refused),
    scenario("a_layer_beyond_the_limit_is_not_asked_for", &[Need::Ferry], a_layer_beyond_the_limit_is_not_asked_for),
    scenario("what_is_not_there_is_named", &[Need::Ferry], what_is_not_there_is_named),
    scenario("a_fault_of_the_registry_is_told", &[Need::Ferry], a_fault_of_the_registry_is_told),
    scenario("a_fault_that_passes_is_waited_for", &[Need::Ferry], a_fault_that_passes_is_waited_for),
    scenario("the_way_is_chosen", &[Need::Ferry], the_way_is_chosen),
    scenario(
        "layers_become_erofs_images",
        &[Need::Ferry, Need::Root, Need::Tool("mkfs.erofs")],
        layers_become_erofs_images,
    ),
];

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer with one file, `/hello`.
fn layer(text: &[u8]) -> Vec<u8> {
    // Nothing fails in memory; an empty archive would be found out by every test.
    Layer::new().file("hello", 0o644, text).and_then(Layer::finish).unwrap_or_default()
}

/// Puts an image under `tag`; the digest of its layer.
pub(super) fn publish(content: &mut Content, tag: &str, architecture: &str, text: &[u8]) -> (String, Value) {
    let bytes = layer(text);
    let layer = content.blob(&bytes);
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let config_bytes = config.to_string().into_bytes();
    let config_digest = content.blob(&config_bytes);
    let document = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config_bytes.len()},
        "layers": [{"mediaType": LAYER, "digest": layer, "size": bytes.len()}],
    });
    let digest = content.manifest(MANIFEST, tag, &document);
    let size = document.to_string().len();
    (
        layer,
        json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}}),
    )
}

/// A registry with one image, `app:1`.
fn registry(text: &[u8]) -> Result<(Registry, String, Value), Failed> {
    let mut content = Content { ranges: true, ..Content::default() };
    let (layer, descriptor) = publish(&mut content, "1", machine(), text);
    Ok((Registry::start(content)?, layer, descriptor))
}

pub(super) fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `image …` on a store of the case's own.
pub(super) fn image(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    image_with(case, args, None)
}

/// The same with an authentication file.
pub(super) fn image_with(case: &mut Case, args: &[&str], auth: Option<&str>) -> Result<Output, Failed> {
    let mut command = image_command(case, args)?;
    if let Some(auth) = auth {
        command.env("REGISTRY_AUTH_FILE", auth);
    }
    case.finish(&mut command)
}

/// The command line, not yet run.
pub(super) fn image_command(case: &mut Case, args: &[&str]) -> Result<Command, Failed> {
    let store = case.path("store");
    let mut command = case.command(&["--store", &store, "image"]);
    let home = case.host_directory("home")?;
    command.args(args).env("HOME", home).env_remove("XDG_RUNTIME_DIR").env_remove("REGISTRY_AUTH_FILE");
    command.env("CONTAINERS_REGISTRIES_CONF", case.path("registries.conf"));
    Ok(command)
}

fn names(case: &mut Case) -> Result<String, Failed> {
    Ok(image(case, &["list"])?.success()?.stdout)
}

/// What went wrong is said, and the store has no image.
fn refused(case: &mut Case, name: &str, words: &[&str]) -> Outcome {
    let answer = image(case, &["pull", name])?.failure()?;
    for word in words {
        assert!(answer.stderr.contains(word), "{word:?} is not in {:?}", answer.stderr);
    }
    let listed = names(case)?;
    assert!(!listed.contains(name), "{listed}");
    image(case, &["check"])?.success()?;
    Ok(())
}

fn by_tag_and_by_digest(case: &mut Case) -> Outcome {
    let (registry, _, descriptor) = registry(b"hello")?;
    let name = format!("{}/app:1", registry.host());
    image(case, &["pull", &name])?.success()?;
    assert!(names(case)?.contains(&format!("{}/app", registry.host())));
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let by_digest = format!("{}/app@{digest}", registry.host());
    let before = registry.requests().len();
    image(case, &["pull", &by_digest])?.success()?;
    let asked = registry.requests().split_off(before);
    assert!(
        !asked
            .iter()
            .any(|request| request.contains("/blobs/") && request.contains("sha256") && is_layer(&registry, request)),
        "{asked:?}"
    );
    Ok(())
}

/// Also where the digest is an index's, which no image in the store has.
fn what_was_pulled_by_digest_is_called_so(case: &mut Case) -> Outcome {
    let mut content = Content { ranges: true, ..Content::default() };
    let (_, descriptor) = publish(&mut content, "1", machine(), b"hello");
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
    let index = json!(content.manifest(INDEX, "2", &index));
    let registry = Registry::start(content)?;
    for digest in [&descriptor["digest"], &index].map(|digest| digest.as_str().unwrap_or_default()) {
        for tag in ["", ":1"] {
            let name = format!("{}/app{tag}@{digest}", registry.host());
            image(case, &["pull", &name])?.success()?;
            assert_eq!(image(case, &["list", "-q"])?.success()?.stdout.trim(), name);
            image(case, &["inspect", &name])?.success()?;
            assert_eq!(image(case, &["remove", &name])?.success()?.stdout.trim(), name);
        }
    }
    assert_eq!(image(case, &["list", "-q"])?.success()?.stdout, "");
    Ok(())
}

/// Whether a request is for the layer, which is there already.
fn is_layer(registry: &Registry, request: &str) -> bool {
    let mut found = false;
    registry.change(|content| {
        found = content.blobs.iter().any(|(digest, bytes)| request.contains(digest.as_str()) && bytes.len() >= 1024);
    });
    found
}

fn an_index_gives_the_image_for_this_machine(case: &mut Case) -> Outcome {
    let mut content = Content { ranges: true, ..Content::default() };
    let (_, other) = publish(&mut content, "other", "s390x", b"other");
    let (_, ours) = publish(&mut content, "ours", machine(), b"ours");
    let chosen = ours["digest"].clone();
    content.manifest(INDEX, "1", &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours]}));
    let registry = Registry::start(content)?;
    let name = format!("{}/app:1", registry.host());
    image(case, &["pull", &name])?.success()?;
    let asked = registry.requests();
    let path = format!("/manifests/{}", chosen.as_str().unwrap_or_default());
    assert!(asked.iter().any(|request| request.contains(&path)), "{asked:?}");
    let answer = image(case, &["pull", "--platform", "linux/riscv64", &name])?.failure()?;
    assert!(answer.stderr.contains("linux/riscv64") && answer.stderr.contains("s390x"), "{}", answer.stderr);
    Ok(())
}

fn a_password_opens_a_repository(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    registry.change(|content| content.password = Some("dTpw".to_owned()));
    let auth = case.path("auth.json");
    fs::write(&auth, json!({"auths": {registry.host(): {"auth": "dTpw"}}}).to_string())?;
    let name = format!("{}/app:1", registry.host());
    image_with(case, &["pull", &name], Some(&auth))?.success()?;
    image(case, &["pull", "--authfile", &auth, &name])?.success()?;
    let answer = image(case, &["pull", "--authfile", "/nowhere.json", &name])?.failure()?;
    assert!(answer.stderr.contains("/nowhere.json"), "{}", answer.stderr);
    Ok(())
}

fn a_wrong_password_is_refused(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    registry.change(|content| content.password = Some("dTpw".to_owned()));
    let name = format!("{}/app:1", registry.host());
    refused(case, &name, &["401", "log in"])?;
    let auth = case.path("auth.json");
    fs::write(&auth, json!({"auths": {registry.host(): {"auth": "dTp3cm9uZw=="}}}).to_string())?;
    let answer = image_with(case, &["pull", &name], Some(&auth))?.failure()?;
    assert!(answer.stderr.contains("wrong password") && !answer.stderr.contains("dTp3cm9uZw"), "{}", answer.stderr);
    Ok(())
}

fn only_the_registry_itself_is_shown_a_secret(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    let (other, ..) = self::registry(b"hello")?;
    registry.change(|content| content.password = Some("dTpw".to_owned()));
    let auth = case.path("auth.json");
    fs::write(&auth, json!({"auths": {registry.host(): {"auth": "dTpw"}}}).to_string())?;
    let name = format!("{}/app:1", registry.host());
    // Another server keeps the blobs, and would like to know the password.
    registry.change(|content| content.moved = Some(format!("http://{}/moved/", other.host())));
    other.change(|content| content.password = Some("dTpw".to_owned()));
    let answer = image_with(case, &["pull", &name], Some(&auth))?.failure()?;
    let words = format!("from {}: the server answers 401", other.host());
    assert!(answer.stderr.contains(&words) && !answer.stderr.contains("log in"), "{}", answer.stderr);
    assert!(other.requests().iter().all(|request| request.contains(" /moved/")), "{:?}", other.requests());
    other.change(|content| content.password = None);
    image_with(case, &["pull", &name], Some(&auth))?.success()?;
    assert_eq!((other.requests().len() > 1, other.secrets()), (true, Vec::new()));
    // At another address of its own it wants to see the token again.
    for place in ["/moved/".to_owned(), format!("http://{}/moved/", registry.host())] {
        image(case, &["remove", &name])?.success()?;
        image(case, &["prune"])?.success()?;
        registry.change(|content| content.moved = Some(place));
        image_with(case, &["pull", &name], Some(&auth))?.success()?;
    }
    Ok(())
}

fn a_way_that_leads_nowhere_is_left(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    let name = format!("{}/app:1", registry.host());
    registry.change(|content| content.moved = Some("/v2/app/blobs/".to_owned()));
    refused(case, &name, &["leads to another address 10 times"])?;
    let blobs = registry.requests().iter().filter(|request| request.contains("/blobs/")).count();
    assert_eq!(blobs, 11, "{:?}", registry.requests());
    registry.change(|content| content.moved = Some("file:///".to_owned()));
    refused(case, &name, &["leads to what is no address"])
}

fn a_broken_connection_is_taken_up(case: &mut Case) -> Outcome {
    let text = vec![b'x'; 300_000];
    let (registry, layer, _) = registry(&text)?;
    let name = format!("{}/app:1", registry.host());
    // The first blob asked for is the configuration; the next three connections are the layer's.
    registry.change(|content| content.cuts = vec![usize::MAX, 100_000, 50_000, 1]);
    image(case, &["pull", &name])?.success()?;
    let asked: Vec<String> = registry.requests().into_iter().filter(|request| request.contains(&layer)).collect();
    assert!(asked.len() == 4 && asked[1].ends_with(" 100000") && asked[2].ends_with(" 150000"), "{asked:?}");
    Ok(())
}

fn a_server_without_ranges_is_read_again(case: &mut Case) -> Outcome {
    let text = vec![b'x'; 300_000];
    let (registry, ..) = registry(&text)?;
    registry.change(|content| (content.ranges, content.cuts) = (false, vec![usize::MAX, 200_000]));
    image(case, &["pull", &format!("{}/app:1", registry.host())])?.success()?;
    image(case, &["check"])?.success()?;
    Ok(())
}

fn a_connection_that_always_breaks_is_an_error(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    registry.change(|content| content.cuts = [vec![usize::MAX], vec![0; 20]].concat());
    refused(case, &format!("{}/app:1", registry.host()), &["sha256:"])
}

fn no_proxy_stands_before_this_machine(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    // Whatever comes by this proxy ends there.
    let proxy = Registry::start(Content { status: Some(502), ..Content::default() })?;
    let here = format!("{}/app:1", registry.host());
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        let mut through = |args: &[&str]| {
            let mut command = image_command(case, args)?;
            command.env(variable, format!("http://{}", proxy.host()));
            case.finish(&mut command)
        };
        through(&["pull", &here])?.success()?;
        assert_eq!(proxy.requests(), Vec::<String>::new(), "{variable}");
        through(&["remove", &here])?.success()?;
        through(&["prune"])?.success()?;
    }
    let mut elsewhere = image_command(case, &["pull", "registry.invalid/app:1"])?;
    case.finish(elsewhere.env("HTTPS_PROXY", format!("http://{}", proxy.host())))?.failure()?;
    assert!(proxy.requests().iter().any(|request| request.contains("registry.invalid:443")), "{:?}", proxy.requests());
    Ok(())
}

fn a_mirror_is_asked_first(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    let conf = "[[registry]]\nprefix = \"registry.invalid\"\n[[registry.mirror]]\nlocation = \"MIRROR\"\n";
    fs::write(case.path("registries.conf"), conf.replace("MIRROR", &registry.host()))?;
    image(case, &["pull", "registry.invalid/app:1"])?.success()?;
    assert!(names(case)?.contains("registry.invalid/app"), "kept under the name that was asked for");
    let answer = image(case, &["pull", "registry.invalid/app:none"])?.failure()?;
    assert!(
        answer.stderr.contains("404") && answer.stderr.contains("registry.invalid"),
        "both answers: {}",
        answer.stderr
    );
    image(case, &["pull", "--mirror", &registry.host(), "other.invalid/app:1"])?.success()?;
    assert!(names(case)?.contains("other.invalid/app"));
    Ok(())
}

fn other_content_is_refused(case: &mut Case) -> Outcome {
    let (registry, digest, _) = registry(b"hello")?;
    registry.change(|content| content.blobs.get_mut(&digest).into_iter().for_each(|bytes| *bytes = layer(b"HELLO")));
    refused(case, &format!("{}/app:1", registry.host()), &[&digest])?;
    // A manifest that is not the one its digest names.
    let (registry, _, descriptor) = self::registry(b"hello")?;
    let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
    registry.change(|content| {
        publish(content, "2", machine(), b"other");
        let other = content.manifests["2"].clone();
        content.manifests.insert(digest.clone(), other);
    });
    refused(case, &format!("{}/app@{digest}", registry.host()), &["what the registry sent"])
}

fn more_and_fewer_bytes_are_refused(case: &mut Case) -> Outcome {
    for change in [|bytes: &mut Vec<u8>| bytes.extend([0; 512]), |bytes: &mut Vec<u8>| bytes.truncate(1024)] {
        let (registry, digest, _) = registry(b"hello")?;
        registry.change(|content| content.blobs.get_mut(&digest).into_iter().for_each(change));
        refused(case, &format!("{}/app:1", registry.host()), &[&digest])?;
    }
    Ok(())
}

/// However little it would unpack to: what is read of it is kept.
fn a_layer_beyond_the_limit_is_not_asked_for(case: &mut Case) -> Outcome {
    let (registry, digest, _) = registry(b"hello")?;
    registry.change(|content| {
        let size = content.blobs[&digest].len();
        let (kind, bytes) = content.manifests["1"].clone();
        let text = String::from_utf8_lossy(&bytes).replace(&format!("\"size\":{size}"), "\"size\":1125899906842624");
        content.manifests.insert("1".to_owned(), (kind, text.into_bytes()));
    });
    refused(case, &format!("{}/app:1", registry.host()), &["1125899906842624 bytes", "--max-size raises it"])?;
    let asked = registry.requests();
    assert!(!asked.iter().any(|request| request.contains(&digest)), "{asked:?}");
    Ok(())
}

fn what_is_not_there_is_named(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    refused(case, &format!("{}/app:2", registry.host()), &["404", "MANIFEST_UNKNOWN", "/v2/app/manifests/2"])?;
    refused(case, "127.0.0.1:1/app:1", &["127.0.0.1:1"])
}

fn a_fault_of_the_registry_is_told(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    let name = format!("{}/app:1", registry.host());
    registry.change(|content| content.status = Some(503));
    refused(case, &name, &["503", "as the test wants it"])?;
    registry.change(|content| content.status = Some(429));
    refused(case, &name, &["429", "wait"])
}

fn a_fault_that_passes_is_waited_for(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(b"hello")?;
    let name = format!("{}/app:1", registry.host());
    registry.change(|content| content.faults = [vec![429, 503, 502], vec![504, 429, 503]]);
    image(case, &["pull", &name])?.success()?;
    // Three times, and no more; what is no fault, never.
    for (status, asked) in [(503, 4), (404, 1)] {
        registry.change(|content| content.faults[0] = vec![status; 4]);
        let before = registry.requests().len();
        image(case, &["pull", &name])?.failure()?;
        assert_eq!(registry.requests().len() - before, asked, "{status}");
        registry.change(|content| content.faults[0].clear());
    }
    Ok(())
}

fn layers_become_erofs_images(case: &mut Case) -> Outcome {
    let (registry, _, _) = registry(b"hello")?;
    let name = format!("{}/app:1", registry.host());
    let images = |case: &Case| {
        let layers = case.path("store/layers");
        let files = fs::read_dir(layers)?.flatten().map(|layer| layer.path().join("erofs/image"));
        Ok::<_, Failed>(files.filter(|image| image.is_file()).count())
    };
    image(case, &["pull", "--progress", "none", &name])?.success()?;
    assert_eq!(images(case)?, 0);
    image(case, &["pull", "--erofs", "--progress", "none", &name])?.success()?;
    assert_eq!(images(case)?, 1);
    image(case, &["check"])?.success().map(drop)
}

fn the_way_is_chosen(case: &mut Case) -> Outcome {
    let (registry, ..) = registry(&vec![b'x'; 100_000])?;
    let name = format!("{}/app:1", registry.host());
    let answer = image(case, &["pull", "--max-size", "50k", &name])?.failure()?;
    assert!(answer.stderr.contains("--max-size raises it"), "{}", answer.stderr);
    assert!(!names(case)?.contains(&name));
    let told = image(case, &["pull", "--insecure", "--progress", "json", &name])?.success()?;
    let lines: Vec<Value> = told.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let last = lines.last().unwrap_or(&Value::Null);
    assert_eq!((&last["event"], &last["names"]), (&json!("done"), &json!([name])), "{lines:?}");
    Ok(())
}
