//! Images from a registry: the pull half of the OCI distribution specification.
//!
//! ```text
//! name -> endpoint: mirrors, then the registry itself      credentials: what docker or podman login left
//!      -> client: GET manifests/TAG   <- 401, challenge -> token -> again
//!      -> an image layout's documents and blobs, by digest: read like any other source
//!         redirect: GET wherever the answer leads
//!         stream: GET blobs/DIGEST, a connection each, taken up where it breaks
//! ```
//!
//! Nothing a registry says is believed: documents are bounded and checked by their digest, blobs by digest and size while they
//! stream into the store. A tag is the one thing that is taken on trust, as it is everywhere: a name with a digest has none.

use std::io::Read;
use std::path::Path;

use ureq::http::header;

use super::digest::Digest;
use super::manifest::{self, Descriptor, Kind, LARGEST};
use super::reference::Reference;
use crate::error::{Error, Result};

mod certificates;
mod challenge;
mod client;
mod credentials;
mod endpoint;
mod pinned;
mod proxy;
mod redirect;
mod resolver;
mod retry;
mod stream;

use client::{Client, Failure};
pub use endpoint::Wishes;
use endpoint::{Registries, endpoints};

/// The repository of an image, and the document that its name leads to.
pub struct Registry {
    client: Client,
    /// What the name means: a manifest, or an index of them.
    root: Descriptor,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("endpoint", &self.client.endpoint)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Finds what `name` means. The places are asked in order; the first that has it serves it all.
///
/// # Errors
/// No place can be reached, has it, or gives it out; each one's answer is named.
pub fn find(name: &Reference, wishes: &Wishes, auth_file: Option<&Path>) -> Result<Registry> {
    let mut answers: Vec<Error> = Vec::new();
    for endpoint in endpoints(name, &Registries::read()?, wishes)? {
        let credentials = credentials::find(&endpoint.host, &endpoint.repository, auth_file)?;
        match find_at(Client::new(endpoint, credentials)?, name) {
            Ok(found) => return Ok(found),
            Err(failure) => answers.push(failure.into_error()),
        }
    }
    // The last place asked is the registry itself: its answer comes first.
    let last = answers.pop().unwrap_or_else(|| Error::said("pull", &name.name, "there is no place to ask"));
    if answers.is_empty() {
        return Err(last);
    }
    let earlier: Vec<String> = answers.iter().map(Error::to_string).collect();
    Err(Error::said("pull", &name.name, format!("{last}; asked before: {}", earlier.join("; "))))
}

fn find_at(client: Client, name: &Reference) -> Result<Registry, Failure> {
    let wanted = match (&name.digest, &name.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => "latest".to_owned(),
    };
    let (bytes, said) = document(&client, &format!("manifests/{wanted}"))?;
    let kind = manifest::document_kind(&bytes, &said, &wanted).map_err(Failure::Refused)?;
    let root = Descriptor::of(&bytes, kind);
    match &name.digest {
        Some(digest) if !digest.is_of(&bytes) => Err(Failure::Refused(Error::said(
            "get",
            client.endpoint.url(&wanted),
            format!("what the registry sent is {}", root.digest),
        ))),
        _ => Ok(Registry { client, root, bytes }),
    }
}

/// A document by its path, with the media type that the server gives it.
fn document(client: &Client, path: &str) -> Result<(Vec<u8>, String), Failure> {
    let kinds = manifest::MEDIA_TYPES.iter().filter(|(_, kind)| matches!(kind, Kind::Manifest | Kind::Index));
    let accept: Vec<&str> = kinds.map(|(name, _)| *name).collect();
    let answer = client.get(path, &accept, 0)?;
    let said = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Parameters (`; charset=…`) and what a server says of files in general tell nothing of the document.
    let said =
        said.split(';').next().map(str::trim).filter(|said| accept.contains(said)).unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    let read = answer.into_body().into_reader().take(LARGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| client.broken(path, &ureq::Error::Io(error)))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::Refused(Error::said(
            "get",
            client.endpoint.url(path),
            format!("it is larger than {LARGEST} bytes"),
        )));
    }
    Ok((bytes, said))
}

impl Registry {
    /// What the name means.
    pub fn root(&self) -> &Descriptor {
        &self.root
    }

    /// A document, unverified.
    ///
    /// # Errors
    /// The registry does not give it out.
    pub fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>> {
        if wanted.digest == self.root.digest {
            return Ok(self.bytes.clone());
        }
        if matches!(manifest::kind(&wanted.media_type), Ok(Kind::Manifest | Kind::Index)) {
            let answer = document(&self.client, &format!("manifests/{}", wanted.digest));
            return answer.map(|(bytes, _)| bytes).map_err(Failure::into_error);
        }
        let mut bytes = Vec::new();
        let read = self.blob(&wanted.digest, wanted.size).take(LARGEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::said("get", wanted.digest.to_string(), error.to_string()))?;
        Ok(bytes)
    }

    /// A blob, unverified.
    pub fn blob(&self, digest: &Digest, size: u64) -> stream::Stream<'_> {
        stream::Stream::new(&self.client, &digest.to_string(), size)
    }
}
