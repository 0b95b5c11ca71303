//! Where a name leads: which server is asked for an image, under which path, and how. Pure: a name and what registries.conf(5)
//! says become a list of places to try in turn.
//!
//! A name without a host is docker.io's, as everywhere, unless the file names another registry for such names. Where it names
//! several, the name is refused: trying one after the other would let whoever registers a name in the first take the place of
//! the image that is meant.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::image::reference::Reference;

/// A server and a path on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port, as in the name: what credentials and certificates are kept under.
    pub host: String,
    /// The path of the image there, without tag.
    pub repository: String,
    /// How the server is spoken to.
    pub security: Security,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// TLS, with a certificate that is checked.
    Verified,
    /// TLS with any certificate: only where the operator says so.
    Unverified,
    /// No TLS: only to this machine itself, or where the operator says so.
    Plain,
}

impl Endpoint {
    /// The address of a path below the image's: `manifests/latest`.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.security == Security::Plain { "http" } else { "https" };
        // Docker's registry is asked for at another name than its images have.
        let server = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        format!("{scheme}://{server}/v2/{}/{path}", self.repository)
    }
}

/// registries.conf, as far as it says where images are.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Registries {
    /// Whose names are meant where one has no host.
    pub unqualified_search_registries: Vec<String>,
    /// Places with rules of their own.
    pub registry: Vec<Registry>,
}

/// The rules for names that begin alike.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// What the command line adds.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Servers to ask first, by `HOST[:PORT][/PATH]`; the repository's own path is appended.
    pub mirrors: Vec<String>,
    /// Any certificate will do, and so will none.
    pub insecure: bool,
}

/// The places to ask for `image`, in order.
pub fn endpoints(image: &Reference, registries: &Registries, wishes: &Wishes) -> Result<Vec<Endpoint>> {
    let (host, path) = host_and_path(&image.name, registries)?;
    let full = format!("{host}/{path}");
    let rules = registries.rules(&full);
    if rules.is_some_and(|rules| rules.blocked) {
        return Err(Error::said("pull", full, "registries.conf blocks it"));
    }
    let mut endpoints = Vec::new();
    for mirror in &wishes.mirrors {
        endpoints.extend(securities(&format!("{mirror}/{path}"), wishes.insecure)?);
    }
    if let Some(rules) = rules {
        let by_digest = image.digest.is_some();
        for mirror in rules.mirror.iter().filter(|mirror| mirror.serves(by_digest, rules.mirror_by_digest_only)) {
            endpoints.extend(securities(&rules.moved(&full, &mirror.location), mirror.insecure || wishes.insecure)?);
        }
        let own = rules.location.as_ref().map_or_else(|| full.clone(), |location| rules.moved(&full, location));
        endpoints.extend(securities(&own, rules.insecure || wishes.insecure)?);
    } else {
        endpoints.extend(securities(&full, wishes.insecure)?);
    }
    Ok(endpoints)
}

/// `debian` is `docker.io/library/debian`; the first part is a host if it looks like one.
fn host_and_path(name: &str, registries: &Registries) -> Result<(String, String)> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.to_owned(), rest.to_owned())
        }
        _ => match registries.unqualified_search_registries.as_slice() {
            [] => ("docker.io".to_owned(), name.to_owned()),
            [only] => (only.clone(), name.to_owned()),
            several => {
                let candidates: Vec<_> = several.iter().map(|host| format!("{host}/{name}")).collect();
                return Err(Error::said(
                    "pull",
                    name,
                    "registries.conf names several registries for names without a host",
                )
                .hint(format!("say which is meant: {}", candidates.join(", "))));
            }
        },
    };
    let host = if host == "index.docker.io" { "docker.io".to_owned() } else { host };
    let path = if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
    Ok((host, path))
}

/// One place becomes several where more than one way of speaking to it is permitted.
fn securities(location: &str, insecure: bool) -> Result<Vec<Endpoint>> {
    let Some((host, repository)) = location.split_once('/') else {
        return Err(Error::said("understand the registry", location, "it reads HOST[:PORT]/PATH"));
    };
    let kinds: &[Security] = match (insecure, is_loopback(host)) {
        (true, _) => &[Security::Unverified, Security::Plain],
        (false, true) => &[Security::Verified, Security::Plain],
        (false, false) => &[Security::Verified],
    };
    let endpoint = |security| Endpoint {
        host: host.to_owned(),
        repository: repository.trim_end_matches('/').to_owned(),
        security,
    };
    Ok(kinds.iter().map(|kind| endpoint(*kind)).collect())
}

/// This machine, by a name or address that cannot lead elsewhere.
pub fn is_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Registries {
    /// What the system's files say, and the user's own in place of them.
    ///
    /// # Errors
    /// A file is there and cannot be read or understood.
    pub fn read() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let own = variable("HOME").map(|home| home.join(".config/containers/registries.conf"));
        let place = match variable("CONTAINERS_REGISTRIES_CONF") {
            Some(place) => place,
            None => {
                own.filter(|place| place.exists()).unwrap_or_else(|| PathBuf::from("/etc/containers/registries.conf"))
            }
        };
        let mut all = Self::read_file(&place)?;
        for drop_in in drop_ins(&place.with_extension("conf.d"))? {
            let more = Self::read_file(&drop_in)?;
            if !more.unqualified_search_registries.is_empty() {
                all.unqualified_search_registries = more.unqualified_search_registries;
            }
            // Later ones come first, so that they count where the prefix is the same.
            all.registry.splice(0..0, more.registry);
        }
        Ok(all)
    }

    fn read_file(place: &Path) -> Result<Self> {
        let failed = |why: String| Error::said("read", place.display().to_string(), why);
        match std::fs::read_to_string(place) {
            Ok(text) => toml::from_str(&text).map_err(|error| failed(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The rules with the longest prefix of `name`.
    fn rules(&self, name: &str) -> Option<&Registry> {
        let matching =
            self.registry.iter().filter(|registry| registry.prefix().is_some_and(|prefix| begins(name, prefix)));
        // The first of several equals counts.
        matching.rev().max_by_key(|registry| registry.prefix().map(str::len))
    }
}

/// The files in a folder of them, in order of their names.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::said("read", folder.display().to_string(), error.to_string());
    let mut files = Vec::new();
    match folder.read_dir() {
        Ok(entries) => {
            for entry in entries {
                let file = entry.map_err(failed)?.path();
                files.extend(Some(file).filter(|file| file.extension().is_some_and(|extension| extension == "conf")));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    files.sort();
    Ok(files)
}

/// Whether `prefix` is `name` or one of its parents; `*.example.com` stands for any host below example.com.
fn begins(name: &str, prefix: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or(name);
        return host.ends_with(domain);
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Registry {
    fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref().or(self.location.as_deref())
    }

    /// `name` with `location` where the prefix was.
    fn moved(&self, name: &str, location: &str) -> String {
        match self.prefix() {
            Some(prefix) if !prefix.starts_with('*') => format!("{location}{}", &name[prefix.len()..]),
            // For a wildcard it is the host alone that is replaced.
            _ => format!("{location}{}", name.find('/').map_or("", |slash| &name[slash..])),
        }
    }
}

impl Mirror {
    fn serves(&self, by_digest: bool, digest_only: bool) -> bool {
        match self.pull_from_mirror.as_deref() {
            Some("digest-only") => by_digest,
            Some("tag-only") => !by_digest,
            _ => by_digest || !digest_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(image: &str, registries: &str, wishes: &Wishes) -> Result<Vec<String>> {
        let registries: Registries = toml::from_str(registries).unwrap();
        let endpoints = endpoints(&image.parse().unwrap(), &registries, wishes)?;
        Ok(endpoints.iter().map(|endpoint| format!("{} {:?}", endpoint.url("x"), endpoint.security)).collect())
    }

    #[test]
    fn names_without_a_host_are_dockers() {
        let places = |image| places(image, "", &Wishes::default()).unwrap();
        assert_eq!(places("debian:12"), ["https://registry-1.docker.io/v2/library/debian/x Verified"]);
        assert_eq!(places("team/app"), ["https://registry-1.docker.io/v2/team/app/x Verified"]);
        assert_eq!(places("index.docker.io/debian"), ["https://registry-1.docker.io/v2/library/debian/x Verified"]);
    }

    #[test]
    fn only_this_machine_may_do_without_tls() {
        let places = |image| places(image, "", &Wishes::default()).unwrap();
        assert_eq!(
            places("localhost:5000/a"),
            ["https://localhost:5000/v2/a/x Verified", "http://localhost:5000/v2/a/x Plain"]
        );
        assert_eq!(places("127.0.0.9/a/b"), ["https://127.0.0.9/v2/a/b/x Verified", "http://127.0.0.9/v2/a/b/x Plain"]);
        assert_eq!(places("localhost.example:5000/a"), ["https://localhost.example:5000/v2/a/x Verified"]);
        assert_eq!(places("10.0.0.1:5000/a"), ["https://10.0.0.1:5000/v2/a/x Verified"]);
    }

    #[test]
    fn insecure_is_asked_for() {
        let wishes = Wishes { insecure: true, ..Wishes::default() };
        let expected = ["https://r.example/v2/a/x Unverified", "http://r.example/v2/a/x Plain"];
        assert_eq!(places("r.example/a", "", &wishes).unwrap(), expected);
    }

    #[test]
    fn mirrors_come_first() {
        let file = r#"
            [[registry]]
            prefix = "docker.io"
            [[registry.mirror]]
            location = "mirror.example/hub"
            [[registry.mirror]]
            location = "by-digest.example"
            pull-from-mirror = "digest-only"
        "#;
        assert_eq!(
            places("debian", file, &Wishes { mirrors: vec!["first.example".to_owned()], insecure: false }).unwrap(),
            [
                "https://first.example/v2/library/debian/x Verified",
                "https://mirror.example/v2/hub/library/debian/x Verified",
                "https://registry-1.docker.io/v2/library/debian/x Verified",
            ]
        );
        let by_digest = format!("debian@sha256:{}", "0".repeat(64));
        assert_eq!(
            places(&by_digest, file, &Wishes::default()).unwrap()[1],
            "https://by-digest.example/v2/library/debian/x Verified"
        );
    }

    #[test]
    fn a_prefix_ends_where_a_part_ends() {
        let file = "[[registry]]\nprefix = \"r.example/team\"\nlocation = \"other.example/t\"";
        assert_eq!(
            places("r.example/team/app", file, &Wishes::default()).unwrap(),
            ["https://other.example/v2/t/app/x Verified"]
        );
        assert_eq!(
            places("r.example/teams/app", file, &Wishes::default()).unwrap(),
            ["https://r.example/v2/teams/app/x Verified"]
        );
    }

    #[test]
    fn a_wildcard_replaces_the_host() {
        let file = "[[registry]]\nprefix = \"*.example\"\nlocation = \"cache.internal\"";
        assert_eq!(
            places("a.example/app", file, &Wishes::default()).unwrap(),
            ["https://cache.internal/v2/app/x Verified"]
        );
        assert_eq!(
            places("a.example.org/app", file, &Wishes::default()).unwrap(),
            ["https://a.example.org/v2/app/x Verified"]
        );
    }

    #[test]
    fn blocked_and_ambiguous_names_are_refused() {
        let error = places("r.example/a", "[[registry]]\nlocation = \"r.example\"\nblocked = true", &Wishes::default());
        assert!(error.unwrap_err().to_string().contains("blocks it"));
        let error =
            places("a", "unqualified-search-registries = [\"one.example\", \"two.example\"]", &Wishes::default());
        assert!(error.unwrap_err().to_string().contains("one.example/a, two.example/a"));
    }
}
