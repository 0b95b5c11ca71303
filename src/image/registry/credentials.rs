//! Who the user is to a registry: what `docker login` and `podman login` left behind (containers-auth.json(5), docker's
//! `config.json`), and the programs either may name to keep it (docker-credential-helpers).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use serde::Deserialize;

use crate::error::{Error, Result};

/// The name under which docker has kept its own registry's password since before registries had versions.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a helper answers as the user where the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// The most that is read of an authentication file, in bytes.
const LONGEST: u64 = 1 << 20;

/// What is shown to a registry or its token server.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the token server changes for one that opens a repository (OAuth2's refresh token).
    IdentityToken(String),
}

/// Secrets are not for logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "password of {user:?}"),
            Self::IdentityToken(_) => write!(f, "identity token"),
        }
    }
}

/// An authentication file, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// `user:password` in base64.
    auth: String,
    identitytoken: String,
}

/// What a helper answers to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credentials for `host` and, more closely, `repository` of it; from `file` alone if given, else from the first of the usual
/// places that has any. `None`: nobody has logged in.
pub fn find(host: &str, repository: &str, file: Option<&Path>) -> Result<Option<Credentials>> {
    let places = match file {
        Some(file) => vec![file.to_owned()],
        None => usual_places(&|name| std::env::var_os(name).map(PathBuf::from)),
    };
    for place in places {
        let Some(text) = read(&place, file.is_some())? else { continue };
        let parsed: AuthFile = serde_json::from_slice(&text).map_err(|error| {
            Error::said("read", place.display().to_string(), error.to_string())
                .hint("it is made by docker login or podman login")
        })?;
        if let Some(found) = parsed.find(host, repository, &place)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// In the order in which podman asks, then docker's.
fn usual_places(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME");
    let under_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let config = variable("XDG_CONFIG_HOME").or_else(|| under_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| under_home(".docker"));
    [
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(place: &Path, must_exist: bool) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let failed = |error: std::io::Error| Error::said("read", place.display().to_string(), error.to_string());
    let file = match std::fs::File::open(place) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    Ok(Some(text))
}

impl AuthFile {
    /// A helper named for the host comes first, then an entry, the longest path first, then the store for all hosts.
    fn find(&self, host: &str, repository: &str, place: &Path) -> Result<Option<Credentials>> {
        if let Some(helper) = self.cred_helpers.get(host) {
            return ask(helper, host);
        }
        for key in keys(host, repository) {
            if let Some(entry) = self.auths.iter().find(|(name, _)| without_scheme(name) == key).map(|(_, entry)| entry)
                && let Some(found) = entry.credentials(&key, place)?
            {
                return Ok(Some(found));
            }
        }
        match &self.creds_store {
            Some(helper) => ask(helper, if host == "docker.io" { DOCKER_HUB } else { host }),
            None => Ok(None),
        }
    }
}

/// The names under which an entry may stand: `host/a/b`, `host/a`, `host`.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let whole = format!("{host}/{repository}");
    let mut keys: Vec<String> =
        std::iter::successors(Some(whole.as_str()), |key| key.rsplit_once('/').map(|(parent, _)| parent))
            .map(str::to_owned)
            .collect();
    if host == "docker.io" {
        keys.push(without_scheme(DOCKER_HUB).to_owned());
    }
    keys
}

/// Old files have addresses for keys.
fn without_scheme(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    bare.trim_end_matches('/')
}

impl Entry {
    /// `None`: the entry only says that a helper has the password.
    fn credentials(&self, key: &str, place: &Path) -> Result<Option<Credentials>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = text.as_deref().and_then(|text| text.split_once(':')) else {
            return Err(Error::said(
                "understand the entry",
                format!("{key:?} of {}", place.display()),
                "its auth is not user:password in base64",
            )
            .hint("log in again with docker login or podman login"));
        };
        // Some versions of docker padded the password with NUL.
        let password = password.trim_end_matches('\0');
        Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }))
    }
}

/// Asks `docker-credential-NAME get` for the password of `server`; the helper says that it has none with a status and a word.
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    // The name comes from a file; it must not lead to another folder's program.
    if helper.contains('/') {
        return Err(Error::said("ask for credentials", program, "the name of a credential helper has no slash"));
    }
    let failed = |why: String| {
        Error::said("ask for credentials", format!("{program} for {server}"), why)
            .hint("the authentication file names this helper; install it, or log in again without it")
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that ends without reading says why in its answer.
        match input.write_all(server.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(failed(error.to_string())),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not what a helper says".to_owned()))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Password { user: answer.username, password: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str, repository: &str) -> Result<Option<Credentials>> {
        serde_json::from_str::<AuthFile>(text).unwrap().find(host, repository, Path::new("auth.json"))
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn the_closest_entry_counts() {
        let text = r#"{"auths": {"r.example": {"auth": "YTpi"}, "r.example/team": {"auth": "Yzpk"}}}"#;
        assert_eq!(found(text, "r.example", "team/app").unwrap(), password("c", "d"));
        assert_eq!(found(text, "r.example", "other").unwrap(), password("a", "b"));
        assert_eq!(found(text, "other.example", "team/app").unwrap(), None);
    }

    #[test]
    fn keys_may_be_addresses() {
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "http://r.example/": {"identitytoken": "t"}}}"#;
        assert_eq!(found(text, "docker.io", "library/debian").unwrap(), password("a", "b"));
        assert_eq!(found(text, "r.example", "x").unwrap(), Some(Credentials::IdentityToken("t".to_owned())));
    }

    #[test]
    fn a_password_may_hold_colons() {
        let text = r#"{"auths": {"r.example": {"auth": "YTpiOmM="}}}"#;
        assert_eq!(found(text, "r.example", "x").unwrap(), password("a", "b:c"));
    }

    #[test]
    fn a_broken_entry_is_named() {
        let error = found(r#"{"auths": {"r.example": {"auth": "%%%"}}}"#, "r.example", "x").unwrap_err().to_string();
        assert!(error.contains("\"r.example\" of auth.json"), "{error}");
    }

    #[test]
    fn a_helper_is_a_name_and_no_path() {
        let error = found(r#"{"credHelpers": {"r.example": "../../x"}}"#, "r.example", "x").unwrap_err().to_string();
        assert!(error.contains("no slash"), "{error}");
    }

    #[test]
    fn an_own_file_is_the_only_place() {
        let none = |_: &str| None;
        assert!(usual_places(&none).is_empty());
        let own = |name: &str| (name == "REGISTRY_AUTH_FILE").then(|| PathBuf::from("/f"));
        assert_eq!(usual_places(&own), [PathBuf::from("/f")]);
        let usual = |name: &str| {
            matches!(name, "HOME" | "XDG_RUNTIME_DIR").then(|| PathBuf::from("/").join(name.to_lowercase()))
        };
        let places = [
            "/xdg_runtime_dir/containers/auth.json",
            "/home/.config/containers/auth.json",
            "/home/.docker/config.json",
        ];
        assert_eq!(usual_places(&usual), places.map(PathBuf::from));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?} {:?}", password("u", "secret"), Credentials::IdentityToken("secret".to_owned()));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
