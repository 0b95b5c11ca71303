//! A blob as a stream that outlives its connections: where one breaks, the next takes up at the same byte, as often as each
//! brings something. Size and digest are for the reader to verify, as for any other source.

use std::io::{self, Read};

use ureq::BodyReader;
use ureq::http::StatusCode;

use super::client::{Client, Failure};

/// Connections in a row that brought not one byte, after which it is given up.
const FRUITLESS: u32 = 3;

/// The bytes of a blob. Nothing is asked for before the first is read.
pub struct Stream<'a> {
    client: &'a Client,
    /// Below the image's address.
    path: String,
    /// How many bytes there are to be.
    size: u64,
    /// How many were read.
    at: u64,
    body: Option<BodyReader<'static>>,
    fruitless: u32,
}

impl<'a> Stream<'a> {
    /// The blob of this digest and size.
    pub fn new(client: &'a Client, digest: &str, size: u64) -> Self {
        Self { client, path: format!("blobs/{digest}"), size, at: 0, body: None, fruitless: 0 }
    }

    /// A connection that goes on where the last one ended.
    fn connect(&self) -> Result<BodyReader<'static>, Failure> {
        let answer = self.client.get(&self.path, &[], self.at)?;
        let whole = answer.status() == StatusCode::OK;
        let mut body = answer.into_body().into_reader();
        if whole && self.at > 0 {
            // A server that knows no ranges begins anew; what was read before is passed over.
            let passed = io::copy(&mut (&mut body).take(self.at), &mut io::sink());
            passed.map_err(|error| self.client.broken(&self.path, &ureq::Error::Io(error)))?;
        }
        Ok(body)
    }

    /// One try brought nothing, and why: three in a row are an error.
    fn fruitless(&mut self, why: io::Error) -> io::Result<()> {
        self.body = None;
        self.fruitless += 1;
        if self.fruitless == FRUITLESS { Err(why) } else { Ok(()) }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than there should be is asked for, so that too long a blob is seen as such.
        while !buffer.is_empty() && self.at <= self.size {
            let body = match &mut self.body {
                Some(body) => body,
                None if self.at == self.size => return Ok(0),
                None => match self.connect() {
                    Ok(body) => self.body.insert(body),
                    Err(Failure::Refused(error)) => return Err(io::Error::other(error.to_string())),
                    Err(Failure::Broken(error)) => {
                        self.fruitless(io::Error::other(error.to_string()))?;
                        continue;
                    }
                },
            };
            match body.read(buffer) {
                Ok(0) if self.at == self.size => return Ok(0),
                Ok(0) => self.fruitless(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the registry sends less than the manifest says",
                ))?,
                Ok(count) => {
                    self.at += count as u64;
                    self.fruitless = 0;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.fruitless(error)?,
            }
        }
        Ok(0)
    }
}
