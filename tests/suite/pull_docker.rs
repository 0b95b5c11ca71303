//! `image pull` from docker's own registry, over TLS, with a password, of an image that skopeo put there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::need::Need::{Ferry, Tool};
use super::pull::{image, image_with};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[scenario(
    "from_dockers_registry_with_tls_and_a_password",
    &[Ferry, Tool("docker-registry"), Tool("skopeo"), Tool("openssl")],
    from_dockers_registry,
)];

/// docker's registry, which ends with this value.
struct Docker(Child);

impl Docker {
    /// Starts one on a free port of loopback, over TLS with a certificate of its own; answers it and `HOST:PORT`.
    fn start(case: &mut Case) -> Result<(Self, String), Failed> {
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let folder = case.directory.clone();
        let path = |name: &str| folder.join(name).display().to_string();
        let request = "[req]\ndistinguished_name=name\nx509_extensions=more\nprompt=no\n[name]\nCN=registry\n\
                       [more]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(path("request"), request)?;
        let (key, certificate) = (path("tls.key"), path("tls.crt"));
        let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let mut openssl = Command::new("openssl");
        openssl.args(words).args(["-config", &path("request"), "-keyout", &key, "-out", &certificate]);
        case.finish(&mut openssl)?.success()?;
        // The password is "pass word", in bcrypt.
        let line = "ship:$2y$05$CCCCCCCCCCCCCCCCCCCCC.i.eZGeK4cu9eHTekgko4I5gZ3MMQi6K\n";
        fs::write(path("htpasswd"), line)?;
        let config = json!({
            "version": "0.1", "storage": {"filesystem": {"rootdirectory": path("registry")}},
            "http": {"addr": host, "tls": {"certificate": certificate, "key": key}},
            "auth": {"htpasswd": {"realm": "ferry", "path": path("htpasswd")}},
        });
        // JSON is YAML.
        fs::write(path("registry.yml"), config.to_string())?;
        let mut command = Command::new("docker-registry");
        command
            .args(["serve", &path("registry.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = child.stderr.take().map(BufReader::new);
        let docker = Self(child);
        let mut lines = log.into_iter().flat_map(BufRead::lines);
        let listens = lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.contains("listening on")));
        listens.ok_or_else(|| Failed::from("docker-registry ended before it listened"))??;
        // Whatever else it says must find a reader.
        std::thread::spawn(move || lines.count());
        Ok((docker, host))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).map(drop).unwrap_or_default();
    }
}

fn from_dockers_registry(case: &mut Case) -> Outcome {
    let layout = case.path("layout");
    let base = fixtures::base(&case.stage.probe)?.finish()?;
    let layers = vec![base, Layer::new().file("hello", 0o644, b"on top")?.finish()?];
    fixtures::layout(layout.as_ref(), "one", &layers, &json!({"Cmd": ["/probe", "read", "/hello"]}))?;
    let (_docker, host) = Docker::start(case)?;
    let auth = case.path("auth.json");
    fs::write(&auth, json!({"auths": {&host: {"auth": "c2hpcDpwYXNzIHdvcmQ="}}}).to_string())?;
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--insecure-policy", "--dest-tls-verify=false", "--dest-authfile", &auth]);
    skopeo.args([&format!("oci:{layout}:one"), &format!("docker://{host}/team/app:1")]);
    case.finish(skopeo.env("XDG_RUNTIME_DIR", &case.directory))?.success()?;
    let name = format!("{host}/team/app:1");
    // Nobody vouches for its certificate, and without TLS it does not speak.
    let answer = image_with(case, &["pull", &name], Some(&auth))?.failure()?;
    assert!(answer.stderr.contains("certificate"), "{}", answer.stderr);
    let answer = image(case, &["pull", "--insecure", &name])?.failure()?;
    assert!(answer.stderr.contains("wants a user and a password"), "{}", answer.stderr);
    image_with(case, &["pull", "--insecure", &name], Some(&auth))?.success()?;
    image(case, &["remove", &name])?.success()?;
    image(case, &["prune"])?.success()?;
    // An authority that the user trusts for this host.
    let folder = case.host_directory("home")?.join(".config/containers/certs.d").join(&host);
    fs::create_dir_all(&folder)?;
    fs::copy(case.path("tls.crt"), folder.join("ca.crt"))?;
    image_with(case, &["pull", &name], Some(&auth))?.success()?;
    image(case, &["check"])?.success()?;
    let store = case.path("store");
    let ended = case.call(&["--store", &store, "run", "--image", &name])?.success()?;
    assert_eq!(ended.json()?["ok"], "on top");
    Ok(())
}
