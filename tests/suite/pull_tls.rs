//! `image pull` over TLS from a server with a certificate that nobody else vouches for.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::Failed;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::case::Case;
use super::need::Need::{Ferry, Tool};
use super::pull::{image, machine, publish};
use super::registry_server::{Content, Registry};
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] =
    &[scenario("a_server_may_be_its_own_authority", &[Ferry, Tool("openssl")], a_server_may_be_its_own_authority)];

/// A server's side with a certificate for `names`. It is an authority too, as `openssl req -x509` makes them; one that is not is
/// asked of the client as well.
fn server(case: &mut Case, authority: bool, names: &str) -> Result<ServerConfig, Failed> {
    let request = "[req]\ndistinguished_name=name\nx509_extensions=more\nprompt=no\n[name]\nCN=registry\n[more]";
    let more = format!("basicConstraints=CA:{authority}\nsubjectAltName={names}");
    fs::write(case.path("request"), format!("{request}\n{more}\n"))?;
    let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let mut openssl = Command::new("openssl");
    openssl.args(words).args(["-config", "request", "-keyout", "tls.key", "-out", "tls.crt"]);
    case.finish(openssl.current_dir(&case.directory))?.success()?;
    let certificate = CertificateDer::from_pem_file(case.path("tls.crt"))?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = if authority {
        config.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        config.with_client_cert_verifier(verifier.build()?)
    };
    Ok(config.with_single_cert(vec![certificate], PrivateKeyDer::from_pem_file(case.path("tls.key"))?)?)
}

fn a_server_may_be_its_own_authority(case: &mut Case) -> Outcome {
    for (authority, names, fits) in
        [(true, "IP:127.0.0.1", true), (false, "IP:127.0.0.1", true), (true, "DNS:registry.example", false)]
    {
        let mut content = Content { tls: Some(Arc::new(server(case, authority, names)?)), ..Content::default() };
        publish(&mut content, "1", machine(), b"hello");
        let registry = Registry::start(content)?;
        let name = format!("{}/app:1", registry.host());
        let told = image(case, &["pull", &name])?.failure()?.stderr;
        let hinted = told.contains("/etc/containers/certs.d/HOST/ca.crt");
        assert!(told.contains("invalid peer certificate") && hinted, "{told}");
        let folder = case.host_directory("home")?.join(".config/containers/certs.d").join(registry.host());
        fs::create_dir_all(&folder)?;
        for (from, to) in [("tls.crt", "ca.crt"), ("tls.crt", "own.cert"), ("tls.key", "own.key")] {
            fs::copy(case.path(from), folder.join(to))?;
        }
        let answer = image(case, &["pull", &name])?;
        if fits {
            answer.success()?;
            continue;
        }
        let told = answer.failure()?.stderr;
        assert!(told.contains("not valid for name"), "{told}");
    }
    Ok(())
}
