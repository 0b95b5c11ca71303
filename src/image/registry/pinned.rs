//! TLS with a server whose very certificate the operator put beside its name. `openssl req -x509` makes one that is the server's
//! and an authority at once; webpki takes none for both. OpenSSL's and Go's clients do, where it is a root itself.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use ureq::tls::{Certificate, ClientCert};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// How TLS is spoken where `own`, which are among the `roots`, may be servers' as well.
///
/// # Errors
/// The roots or the client's certificate cannot be used.
pub fn config(
    roots: &[Certificate],
    own: &[Certificate],
    client: Option<&ClientCert>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let mut store = RootCertStore::empty();
    // As from the system's bundle: one that is not understood is none.
    store.add_parsable_certificates(roots.iter().map(der));
    let rules = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|why| rustls::Error::General(why.to_string()))?;
    let verifier = Verifier { rules, own: own.iter().map(der).collect() };
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let Some(client) = client else { return Ok(config.with_no_client_auth()) };
    let key =
        PrivateKeyDer::try_from(client.private_key().der()).map_err(|why| rustls::Error::General(why.to_owned()))?;
    config.with_client_auth_cert(client.certs().iter().map(der).collect(), key.clone_key())
}

fn der(certificate: &Certificate) -> CertificateDer<'static> {
    CertificateDer::from(certificate.der().to_vec())
}

/// webpki's rules, but for one.
#[derive(Debug)]
struct Verifier {
    rules: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.rules.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the time first, at what a certificate is for next (this answer), and at the name last.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.supported_verify_schemes()
    }
}

/// Speaks TLS as configured; where nothing is, the next connector does.
#[derive(Debug)]
pub struct Pinned(pub Option<Arc<ClientConfig>>);

impl<In: Transport> Connector<In> for Pinned {
    type Out = Either<In, Tls>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        let config = match &self.0 {
            Some(config) if details.needs_tls() && !transport.is_tls() => config,
            _ => return Ok(Some(Either::A(transport))),
        };
        let bare = details.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(bare).map_err(|_| ureq::Error::Tls("no certificate has such a name"))?;
        let mut connection = ClientConnection::new(Arc::clone(config), name)?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(Tls { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

/// A connection over TLS.
pub struct Tls {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Transport for Tls {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        Ok(std::io::Write::write_all(&mut self.stream, output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let count = std::io::Read::read(&mut self.stream, self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An authority and a server's at once, for `localhost`, from 2026 to 2126.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUCaSzQeMj8b0f9wLjm0o5o3h1lwkwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzAxMTc0MFoYDzIxMjYxMDMw
MDExNzQwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQvnXSCz/9XbWA5YfY5yl5RKzhKWrIp/dAdFto64vhlRl2hVT9pIF03
LAy3tEbYO4R5l1wLVbYNnec5Nv/2eTcNo2kwZzAdBgNVHQ4EFgQUneB+AdPrhYSO
j0a8ScDj1ZzNHhIwHwYDVR0jBBgwFoAUneB+AdPrhYSOj0a8ScDj1ZzNHhIwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgDp/gUk81TkvWZSfmwoPPiNKWDGByqjBUpur2V/HSLX8CIDbAH62Mhx66
J4WK+jsWsIlXShEPGRfOerxHmWpiJPv/
-----END CERTIFICATE-----";

    #[test]
    fn a_server_may_be_its_own_authority_where_the_operator_says_so() {
        let pem = Certificate::from_pem(CERTIFICATE.as_bytes()).unwrap();
        let verify = |own: &[Certificate], name: &'static str, year: u64| {
            let mut store = RootCertStore::empty();
            store.add(der(&pem)).unwrap();
            let provider = Arc::new(ring::default_provider());
            let rules = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
            let verifier = Verifier { rules, own: own.iter().map(der).collect() };
            let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&der(&pem), &[], &name, &[], now).map(drop).map_err(|why| why.to_string())
        };
        let own = [pem.clone()];
        assert_eq!(verify(&own, "localhost", 2030), Ok(()));
        assert!(verify(&[], "localhost", 2030).is_err(), "a root of the system is no server");
        let refused = |name, year| verify(&own, name, year).unwrap_err();
        assert!(
            refused("registry.example", 2030).contains("not valid for name"),
            "{}",
            refused("registry.example", 2030)
        );
        assert!(refused("localhost", 2130).contains("expired"), "{}", refused("localhost", 2130));
        assert!(refused("localhost", 2020).contains("not valid yet"), "{}", refused("localhost", 2020));
    }
}
