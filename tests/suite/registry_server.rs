//! A registry of the suite's own on loopback: the pull half of the distribution specification over plain HTTP, with the faults
//! that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::Failed;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

/// What the registry has, and how it behaves.
#[derive(Debug, Default)]
pub struct Content {
    /// By tag and by digest: media type and bytes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// By digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// `user:password` in base64, where a token is wanted.
    pub password: Option<String>,
    /// How TLS is spoken, where it is.
    pub tls: Option<Arc<ServerConfig>>,
    /// Connections that end after so many bytes of a blob, one after the other.
    pub cuts: Vec<usize>,
    /// Whether `Range` is understood.
    pub ranges: bool,
    /// Blobs are elsewhere: what their digest is appended to. Under `/moved/` every registry gives out its own.
    pub moved: Option<String>,
    /// Every answer to a request for a manifest or blob, in place of it.
    pub status: Option<u16>,
    /// The same for so many requests alone, for manifests and for blobs.
    pub faults: [Vec<u16>; 2],
}

impl Content {
    /// Adds a blob; its digest.
    pub fn blob(&mut self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Adds a manifest or an index under its digest and `tag`; its digest.
    pub fn manifest(&mut self, media_type: &str, tag: &str, document: &serde_json::Value) -> String {
        let bytes = document.to_string().into_bytes();
        let digest = digest(&bytes);
        for name in [digest.as_str(), tag] {
            self.manifests.insert(name.to_owned(), (media_type.to_owned(), bytes.clone()));
        }
        digest
    }
}

/// `sha256:…` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A registry that answers until the test's process ends.
#[derive(Debug, Clone)]
pub struct Registry {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    /// `METHOD PATH RANGE` of each request.
    requests: Arc<Mutex<Vec<String>>>,
    /// The `Authorization` of each that had one.
    secrets: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    /// Starts one.
    pub fn start(content: Content) -> Result<Self, Failed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let content = Arc::new(Mutex::new(content));
        let registry = Self { address, content, requests: Arc::default(), secrets: Arc::default() };
        let server = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that goes away in the middle is what some tests are about.
                std::thread::spawn(move || server.welcome(stream).unwrap_or_default());
            }
        });
        Ok(registry)
    }

    fn welcome(&self, stream: TcpStream) -> std::io::Result<()> {
        let tls = self.content.lock().unwrap_or_else(PoisonError::into_inner).tls.clone();
        let Some(tls) = tls else { return serve(stream, self) };
        let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
        serve(StreamOwned::new(connection, stream), self)
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The requests until now.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it was shown until now: `Basic …`, `Bearer …`.
    pub fn secrets(&self) -> Vec<String> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what it has.
    pub fn change(&self, how: impl FnOnce(&mut Content)) {
        how(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// An answer: status, more header lines, body.
type Answer = (u16, String, Vec<u8>);

fn serve(stream: impl Read + Write, server: &Registry) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let header = |name: &str| {
            let found = lines.iter().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
            found.map(|line| line[name.len() + 2..].to_owned())
        };
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        let range = header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        server.requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("GET {path} {range}"));
        let secret = header("authorization");
        server.secrets.lock().unwrap_or_else(PoisonError::into_inner).extend(secret.clone());
        let mut content = server.content.lock().unwrap_or_else(PoisonError::into_inner);
        let faults = &mut content.faults[usize::from(path.contains("/blobs/"))];
        if !faults.is_empty() {
            let status = faults.remove(0);
            drop(content);
            write!(reader.get_mut(), "HTTP/1.1 {status} Status\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let (status, more, body) = answer(&content, server.address, &path, secret.as_deref(), range);
        let cut = (path.contains("/blobs/") && !content.cuts.is_empty()).then(|| content.cuts.remove(0));
        drop(content);
        let out = reader.get_mut();
        write!(out, "HTTP/1.1 {status} Status\r\n{more}Content-Length: {}\r\n\r\n", body.len())?;
        match cut {
            Some(cut) => {
                out.write_all(&body[..cut.min(body.len())])?;
                return Ok(());
            }
            None => out.write_all(&body)?,
        }
    }
}

fn answer(content: &Content, address: SocketAddr, path: &str, authorization: Option<&str>, range: usize) -> Answer {
    if let Some(query) = path.strip_prefix("/token") {
        let right = authorization == content.password.as_deref().map(|password| format!("Basic {password}")).as_deref();
        return match right && query.contains("scope=repository%3A") | query.contains("scope=repository:") {
            true => (200, String::new(), br#"{"token":"opened"}"#.to_vec()),
            false => (401, String::new(), br#"{"errors":[{"code":"DENIED","message":"wrong password"}]}"#.to_vec()),
        };
    }
    if content.password.is_some() && authorization != Some("Bearer opened") {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"test\"\r\n");
        return (401, challenge, Vec::new());
    }
    if let Some(status) = content.status {
        let more = "Retry-After: 0\r\n".to_owned();
        return (status, more, br#"{"errors":[{"code":"BROKEN","message":"as the test wants it"}]}"#.to_vec());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let none = || (404, String::new(), br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#.to_vec());
    if path.contains("/manifests/") {
        return content
            .manifests
            .get(name)
            .map_or_else(none, |(kind, bytes)| (200, format!("Content-Type: {kind}\r\n"), bytes.clone()));
    }
    if let Some(place) = content.moved.as_ref().filter(|_| path.contains("/blobs/")) {
        return (307, format!("Location: {place}{name}\r\n"), b"<a>moved</a>".to_vec());
    }
    match content.blobs.get(name) {
        Some(bytes) if content.ranges && range > 0 => {
            (206, String::new(), bytes.get(range..).unwrap_or_default().to_vec())
        }
        Some(bytes) => (200, String::new(), bytes.clone()),
        None => none(),
    }
}
