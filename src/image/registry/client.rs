//! One server, asked by HTTP as the OCI distribution specification says: the request, the right to it, and what a refusal means.
//!
//! A request goes out with what was learned before. Where the server answers 401 it says how it wants to be asked
//! (`challenge`); that is done once, and the answer to the second request counts. The address of a token server is the
//! registry's word: a password goes there only if the way is as safe as the one to the registry. Where the registry's answer
//! leads elsewhere (`redirect`), neither password nor token goes along, and nobody there is asked how to use them.

use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use rustls::CertificateError;
use serde::Deserialize;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::typestate::WithoutBody;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector, TcpConnector};
use ureq::{Agent, RequestBuilder, ResponseExt};

use super::challenge::Challenge;
use super::credentials::Credentials;
use super::endpoint::{Endpoint, Security};
use super::{certificates, proxy, redirect, resolver, retry};
use crate::error::{Error, Result};

/// The most that is read of a token server's answer or of an error, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;
/// How long a server may take to accept a connection, and to say anything at all. A large layer may take as long as it takes.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);

/// Why a request brought nothing.
#[derive(Debug)]
pub enum Failure {
    /// The connection failed or broke: the same request may succeed.
    Broken(Error),
    /// The server understood and refused: it will do so again.
    Refused(Error),
}

impl Failure {
    /// What happened, in words.
    pub fn into_error(self) -> Error {
        match self {
            Self::Broken(error) | Self::Refused(error) => error,
        }
    }
}

/// A server, with what it wants to see.
pub struct Client {
    /// What is asked for there.
    pub endpoint: Endpoint,
    agent: Agent,
    credentials: Option<Credentials>,
    /// The value of the `Authorization` header, once the server has asked for one.
    authorization: Mutex<Option<String>>,
}

impl Client {
    /// A client for `endpoint`. Nothing is sent yet.
    pub fn new(endpoint: Endpoint, credentials: Option<Credentials>) -> Result<Self> {
        let (tls, pinned) = certificates::tls(&endpoint)?;
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(endpoint.security != Security::Plain)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("ferry/", env!("CARGO_PKG_VERSION")))
            .build();
        let connection = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
        let agent =
            Agent::with_parts(config, connection.chain(pinned).chain(RustlsConnector::default()), resolver::Getent);
        Ok(Self { endpoint, agent, credentials, authorization: Mutex::new(None) })
    }

    /// `GET` of a path below the image's, from byte `from` on. The answer's status is 200, or 206 where `from` was honoured.
    pub fn get(&self, path: &str, accept: &[&str], from: u64) -> Result<Response<ureq::Body>, Failure> {
        let url = self.endpoint.url(path);
        let own: Uri = url.parse().map_err(|_| Failure::Refused(Error::said("get", &url, "it is no address")))?;
        let send = || retry::patiently(|| self.send(&own, accept, from));
        let first = send()?;
        let challenged = first.status() == StatusCode::UNAUTHORIZED && redirect::same_origin(first.get_uri(), &own);
        let answer = if challenged {
            let value = self.meet(&first, &url)?;
            *self.known() = Some(value);
            send()?
        } else {
            first
        };
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            _ => {
                let (what, elsewhere) = (seen(answer.get_uri(), &own), !redirect::same_origin(answer.get_uri(), &own));
                Err(refusal(answer, &what, (!elsewhere).then_some(self.credentials.is_some())))
            }
        }
    }

    /// Asks for `own`, and wherever that leads.
    fn send(&self, own: &Uri, accept: &[&str], from: u64) -> Result<Response<ureq::Body>, Failure> {
        let mut at = own.clone();
        for _ in 0..=redirect::MOST {
            let mut request = proxy::unless_near(self.agent.get(&at));
            for kind in accept {
                request = request.header(header::ACCEPT, *kind);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(value) = self.known().as_deref().filter(|_| redirect::same_origin(&at, own)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let answer = request.call().map_err(|error| broken(&seen(&at, own), &error))?;
            if !redirect::leads(answer.status()) {
                return Ok(answer);
            }
            let next = redirect::target(&at, answer.headers().get(header::LOCATION));
            at = next.map_err(|why| Failure::Refused(Error::said("get", seen(&at, own), why)))?;
            // A connection whose answer was read to its end serves the next request.
            read_bounded(answer).map(drop).unwrap_or_default();
        }
        let why = format!("it leads to another address {} times in a row", redirect::MOST);
        Err(Failure::Refused(Error::said("get", own.to_string(), why)))
    }

    /// The failure of a connection on which `path` was being read.
    pub fn broken(&self, path: &str, error: &ureq::Error) -> Failure {
        broken(&self.endpoint.url(path), error)
    }

    /// A thread that panicked while it held this has changed nothing halfway.
    fn known(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The header's value that answers the challenge in `refused`.
    fn meet(&self, refused: &Response<ureq::Body>, url: &str) -> Result<String, Failure> {
        let values = refused.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = values.iter().filter_map(|value| value.to_str().ok()).find_map(Challenge::parse);
        match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => Ok(basic(user, password)),
            (Some(Challenge::Basic), _) => Err(Failure::Refused(not_logged_in(url, &self.endpoint.host))),
            (Some(Challenge::Bearer { realm, service, .. }), _) => self.token(&realm, service.as_deref()),
            (None, _) => Err(Failure::Refused(Error::said(
                "get",
                url,
                "the registry wants to be asked in a way it does not name",
            ))),
        }
    }

    /// A token for this image from the server at `realm`. The scope is our own: the right to pull this and nothing else.
    fn token(&self, realm: &str, service: Option<&str>) -> Result<String, Failure> {
        if self.endpoint.security != Security::Plain && !realm.starts_with("https://") {
            let why = "the registry is asked over TLS and sends its callers to a server without";
            return Err(Failure::Refused(Error::said("ask for a token", realm, why)));
        }
        let scope = format!("repository:{}:pull", self.endpoint.repository);
        let parameters = [("service", service.unwrap_or_default()), ("scope", &scope)];
        let ask = || match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let grant = [("grant_type", "refresh_token"), ("client_id", "ferry"), ("refresh_token", token)];
                proxy::unless_near(self.agent.post(realm)).send_form(grant.into_iter().chain(parameters))
            }
            Some(Credentials::Password { user, password }) => following(self.agent.get(realm))
                .query_pairs(parameters)
                .query("account", user)
                .header(header::AUTHORIZATION, basic(user, password))
                .call(),
            None => following(self.agent.get(realm)).query_pairs(parameters).call(),
        };
        let answer = retry::patiently(|| ask().map_err(|error| broken(realm, &error)))?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer, realm, Some(self.credentials.is_some())));
        }
        let text = read_bounded(answer).map_err(|error| broken(realm, &ureq::Error::Io(error)))?;
        match serde_json::from_slice::<Token>(&text).ok().and_then(|token| token.token.or(token.access_token)) {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(Failure::Refused(Error::said("ask for a token", realm, "the answer holds none"))),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The specification's form of an error.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// To wherever it leads: the library takes the password to no second address.
fn following(request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
    proxy::unless_near(request).config().max_redirects(redirect::MOST).build()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn read_bounded(answer: Response<ureq::Body>) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    answer.into_body().into_reader().take(LONGEST_ANSWER).read_to_end(&mut text)?;
    Ok(text)
}

/// What is asked for, and by whom where that is another than the registry: of its address the rest is its own secret.
fn seen(at: &Uri, own: &Uri) -> String {
    match at.authority().filter(|_| !redirect::same_origin(at, own)) {
        Some(server) => format!("{own} from {}", server.as_str().rsplit('@').next().unwrap_or_default()),
        None => own.to_string(),
    }
}

fn broken(url: &str, error: &ureq::Error) -> Failure {
    let error_text = Error::said("get", url, error.to_string());
    // What ends a handshake comes as a failure to read or write.
    let tls = match error {
        ureq::Error::Rustls(why) => Some(why),
        ureq::Error::Io(why) => why.get_ref().and_then(|why| why.downcast_ref()),
        _ => None,
    };
    Failure::Broken(match (error, tls) {
        (ureq::Error::HostNotFound, _) => {
            error_text.hint("the system knows no address for this name: see getent ahosts")
        }
        (_, Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))) => {
            error_text.hint("put the registry's authority into /etc/containers/certs.d/HOST/ca.crt, or say --insecure")
        }
        _ => error_text,
    })
}

/// What the server says of a request that it did not grant. A fault of the server's own may be over when it is asked again.
/// `logged_in`: whether it was told who asks; `None`: that is not its concern.
fn refusal(answer: Response<ureq::Body>, url: &str, logged_in: Option<bool>) -> Failure {
    let status = answer.status();
    let said = read_bounded(answer).ok().and_then(|text| serde_json::from_slice::<Errors>(&text).ok());
    let first =
        said.and_then(|said| said.errors.into_iter().next()).map(|error| format!(": {} {}", error.code, error.message));
    let error = Error::said("get", url, format!("the server answers {status}{}", first.unwrap_or_default()));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if logged_in == Some(false) => {
            Failure::Refused(error.hint("log in with podman login or docker login; the name may also be wrong"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if logged_in == Some(true) => {
            Failure::Refused(error.hint("the password is wrong or opens something else; the name may also be wrong"))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            Failure::Refused(error.hint("it allows so many requests in a time: wait, or log in"))
        }
        _ if status.is_server_error() && !retry::passes(status) => Failure::Broken(error),
        _ => Failure::Refused(error),
    }
}

fn not_logged_in(url: &str, host: &str) -> Error {
    Error::said("get", url, format!("{host} wants a user and a password"))
        .hint("log in with podman login or docker login")
}
