//! Whom to believe: the certificates of the system, and those an operator put beside a registry's name
//! (containers-certs.d(5), docker's `certs.d`): `*.crt` are authorities, `NAME.cert` with `NAME.key` is shown to the server.
//!
//! The files are read here and not by the TLS library: which folder a system keeps them in is not known when ferry is built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::endpoint::{Endpoint, Security};
use super::pinned::{self, Pinned};
use crate::error::{Error, Result};

/// The system's bundle, by distribution: Debian, Fedora, openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How TLS is spoken with this server, and with those that show a certificate the operator put there.
pub fn tls(endpoint: &Endpoint) -> Result<(TlsConfig, Pinned)> {
    let mut roots = system()?;
    let mut own = Own::default();
    for folder in folders(&endpoint.host) {
        let more = read_folder(&folder)?;
        own.authorities.extend(more.authorities);
        own.client = own.client.or(more.client);
    }
    let Own { authorities, client } = own;
    roots.extend_from_slice(&authorities);
    let pinned = if authorities.is_empty() || endpoint.security != Security::Verified {
        Pinned(None)
    } else {
        let config = pinned::config(&roots, &authorities, client.as_ref());
        let failed = |why: rustls::Error| Error::said("use the certificates for", &endpoint.host, why.to_string());
        Pinned(Some(Arc::new(config.map_err(failed)?)))
    };
    // Without a bundle the list built into the library is better than none.
    let roots = if roots.is_empty() { RootCerts::WebPki } else { RootCerts::Specific(Arc::new(roots)) };
    let config = TlsConfig::builder()
        .root_certs(roots)
        .client_cert(client)
        .disable_verification(endpoint.security == Security::Unverified)
        .build();
    Ok((config, pinned))
}

fn system() -> Result<Vec<Certificate<'static>>> {
    if let Some(file) = std::env::var_os("SSL_CERT_FILE") {
        return read_certificates(Path::new(&file));
    }
    match BUNDLES.iter().map(Path::new).find(|file| file.exists()) {
        Some(file) => read_certificates(file),
        None => Ok(Vec::new()),
    }
}

fn folders(host: &str) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/etc/containers/certs.d"), PathBuf::from("/etc/docker/certs.d")];
    places.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/containers/certs.d")));
    places.iter().map(|place| place.join(host)).filter(|place| place.is_dir()).collect()
}

#[derive(Default)]
struct Own {
    authorities: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

fn read_folder(folder: &Path) -> Result<Own> {
    let mut own = Own::default();
    let failed = |error: std::io::Error| Error::said("read", folder.display().to_string(), error.to_string());
    for entry in folder.read_dir().map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => own.authorities.extend(read_certificates(&file)?),
            Some("cert") => {
                own.client =
                    Some(ClientCert::new_with_certs(&read_certificates(&file)?, read_key(&file.with_extension("key"))?))
            }
            _ => {}
        }
    }
    Ok(own)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| Error::said("read certificate", file.display().to_string(), error.to_string()))
}

/// A bundle may hold one that this library does not understand; the others count all the same.
fn read_certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = read(file)?;
    let certificates = parse_pem(&text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = certificates.collect();
    if found.is_empty() {
        return Err(Error::said("read certificate", file.display().to_string(), "it holds none in PEM form"));
    }
    Ok(found)
}

fn read_key(file: &Path) -> Result<PrivateKey<'static>> {
    PrivateKey::from_pem(&read(file)?)
        .map_err(|error| Error::said("read key", file.display().to_string(), error.to_string()))
}
