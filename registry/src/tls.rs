//! TLS for one host: whom to believe, and who we are. Called when a client is made; no I/O but the system's root
//! certificates, read once, and the files that [`Tls`] is given.
//!
//! Go's TLS, and so containerd, takes a self-signed server certificate that the operator names as `ca`, even if it says of
//! itself that it is a CA (what `openssl req -x509` makes). The strict verifier here refuses that, so such a certificate
//! is compared byte for byte with those the operator named: it is believed for its own names, whatever its dates. One that
//! lies among the system's roots is believed as there: for its own names, while it is valid.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, InconsistentKeys,
    RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use tracing::{debug, warn};

use crate::{
    Error,
    error::CertificateFault,
    hosts::{Host, Identity, Pem},
};

/// TLS to what is no registry, by the same rules: whom to believe, and who we are, by files.
#[derive(Debug, Default)]
pub struct Tls {
    roots: Roots,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// The system's root certificates, read at first need.
#[derive(Debug, Default)]
pub(crate) struct Roots(OnceLock<System>);

#[derive(Debug)]
struct System {
    store: RootCertStore,
    /// The same, whole: the store keeps their names and keys only.
    whole: Arc<HashSet<CertificateDer<'static>>>,
}

/// Root certificates, plus those the operator named for this host.
#[derive(Debug)]
struct Verifier {
    /// None: there is not one root certificate.
    strict: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    system: Arc<HashSet<CertificateDer<'static>>>,
    skip: bool,
    provider: Arc<CryptoProvider>,
}

/// Offers the first client certificate whose key can sign what the server accepts.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

/// Seeds the random numbers of TLS on a thread of its own. aws-lc measures jitter for that, once in a process, which takes a
/// processor 21 ms: the first handshake, and with it the first pull, would wait for them.
pub(crate) fn seed() {
    let seeds = || aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
    if let Err(error) = std::thread::Builder::new().name("silk-seed".to_owned()).spawn(seeds) {
        debug!(%error, "the first handshake seeds random numbers");
    }
}

/// What reqwest is given for `host`.
pub(crate) fn client_config(host: &Host, roots: &Roots, http2: bool) -> Result<ClientConfig, Error> {
    let mut config = config(&host.ca, &host.identities, host.skip_verify, roots)?;
    config.alpn_protocols = if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(config)
}

fn config(ca: &[Pem], identities: &[Identity], skip: bool, roots: &Roots) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let keys = identities.iter().map(|identity| certified_key(identity, &provider)).collect::<Result<Vec<_>, _>>()?;
    let verifier = Verifier::new(ca, skip, roots, provider.clone())?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider's own suites fit the protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    Ok(match keys.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(Identities(keys))),
    })
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(fault(pem, CertificateFault::Empty)),
    }
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let chain = certificates(&identity.certificate)?;
    let pem = identity.key.as_ref().unwrap_or(&identity.certificate);
    let key = PrivateKeyDer::from_pem_slice(&pem.bytes).map_err(|_| fault(pem, CertificateFault::Empty))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| fault(pem, error.into()))?;
    let key = CertifiedKey::new(chain, key);
    // Certificates of version 1, as `openssl x509 -req` makes them, cannot be read here, and need not be: the server reads them.
    match key.keys_match() {
        Err(error @ TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(fault(pem, error.into())),
        _ => Ok(Arc::new(key)),
    }
}

fn fault(pem: &Pem, cause: CertificateFault) -> Error {
    Error::Certificate { path: pem.path.clone(), cause }
}

// === impl Tls ===

impl Tls {
    /// By PEM files: certificates to believe besides the system's; the client's own certificate, and its key if that is in a file of its own.
    pub fn new(ca: Option<PathBuf>, certificate: Option<PathBuf>, key: Option<PathBuf>) -> Self {
        Self { roots: Roots::default(), ca, certificate, key }
    }

    /// What a connection is made with. Reads the files, each time, so that new ones take effect; the system's certificates once.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`]: a file cannot be read or used.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        let read = |path: &PathBuf| Pem::read(path.clone());
        let ca: Vec<Pem> = self.ca.iter().map(read).collect::<Result<_, _>>()?;
        let identity = match &self.certificate {
            Some(path) => Some(Identity { certificate: read(path)?, key: self.key.as_ref().map(read).transpose()? }),
            None => None,
        };
        Ok(Arc::new(config(&ca, identity.as_slice(), false, &self.roots)?))
    }
}

// === impl Roots ===

impl Roots {
    fn get(&self) -> &System {
        self.0.get_or_init(|| {
            let system = System::of(rustls_native_certs::load_native_certs().certs);
            if system.store.is_empty() {
                warn!("no root certificates on this machine: only hosts whose CA is configured can be reached by TLS");
            }
            system
        })
    }
}

impl System {
    fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        Self { store, whole: Arc::new(certificates.into_iter().collect()) }
    }
}

// === impl Verifier ===

impl Verifier {
    fn new(ca: &[Pem], skip: bool, roots: &Roots, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let System { store, whole } = roots.get();
        let (mut store, system) = (store.clone(), Arc::clone(whole));
        let mut pinned = Vec::new();
        for ca in ca {
            for certificate in certificates(ca)? {
                store.add(certificate.clone()).map_err(|error| fault(ca, error.into()))?;
                pinned.push(certificate);
            }
        }
        let strict = WebPkiServerVerifier::builder_with_provider(store.into(), provider.clone()).build().ok();
        Ok(Self { strict, pinned, system, skip, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if self.skip {
            return Ok(ServerCertVerified::assertion());
        }
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let Some(strict) = &self.strict else {
            return Err(TlsError::General(
                "this machine has no root certificates: install ca-certificates, or name its CA (hosts.toml, or share.redis.ca_file)".into(),
            ));
        };
        match strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // That it is a CA itself, or has no issuer, is found once its dates are; its names are looked at last.
            Err(TlsError::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer))
                if self.system.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // It would read the certificate, and refuse one of version 1.
        if self.skip {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // It would read the certificate, and refuse one of version 1.
        if self.skip {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

impl ResolvesClientCert for Identities {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::{
        ClientConnection, ServerConfig, ServerConnection,
        sign::SingleCertAndKey,
        version::{TLS12, TLS13},
    };
    use silk_testkit::Certificates;

    use super::*;
    use crate::hosts::Capabilities;

    /// Of version 1: what `openssl x509 -req` makes without a file of extensions.
    const OLD: &str = "-----BEGIN CERTIFICATE-----
MIIBKDCBzwIUdNyknKGwhE5dNF9ZtRChqpW0YcQwCgYIKoZIzj0EAwIwFjEUMBIG
A1UEAwwLb2xkLmV4YW1wbGUwIBcNMjYxMjAxMDE1NzIyWhgPMjEyNjExMDcwMTU3
MjJaMBYxFDASBgNVBAMMC29sZC5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEsE4ypSqGJo4W9TEZOQ3K1Ds3zMDIlf+6D5S8uuzBZOT41T8XEPP2LLH+
NSXOEYuxERUFpOadrTEYOqeWhSKxwjAKBggqhkjOPQQDAgNIADBFAiEAzHuHoPzn
BrtxZWmNBAJBPq6Gu9IA2DgZ29pzpslvOe8CICP9C/wf94WwmB/01UrTyoYzF+9/
mF7XwuipuSdY6DsE
-----END CERTIFICATE-----
";
    /// Its key.
    const OLD_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgc5JSoOPXB2tAD3xa
t2NDmIHJieH1bNPtl8H8S9KhAiehRANCAASwTjKlKoYmjhb1MRk5DcrUOzfMwMiV
/7oPlLy67MFk5PjVPxcQ8/Yssf41Jc4Ri7ERFQWk5p2tMRg6p5aFIrHC
-----END PRIVATE KEY-----
";

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(aws_lc_rs::default_provider())
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn host() -> Host {
        Host {
            tls: true,
            may_fall_back: false,
            authority: "localhost".into(),
            path: "/v2".into(),
            capabilities: Capabilities { pull: true, resolve: true, push: true },
            ca: Vec::new(),
            identities: Vec::new(),
            skip_verify: false,
            headers: Vec::new(),
            dial_timeout: None,
        }
    }

    #[test]
    fn a_self_signed_certificate_among_the_systems_roots_is_believed() {
        let own = der(&Certificates::self_signed().server);
        let verify = |roots: Vec<CertificateDer<'static>>, name: &'static str, now| {
            let roots = Roots(System::of(roots).into());
            let verifier = Verifier::new(&[], false, &roots, provider()).unwrap();
            verifier.verify_server_cert(&own, &[], &name.try_into().unwrap(), &[], now).map(drop)
        };
        let (now, other) = (UnixTime::now(), der(&Certificates::self_signed().server));
        verify(vec![other.clone(), own.clone()], "localhost", now).unwrap();
        verify(vec![other], "localhost", now).unwrap_err();
        verify(vec![own.clone()], "other.example", now).unwrap_err();
        verify(vec![own.clone()], "localhost", UnixTime::since_unix_epoch(Duration::ZERO)).unwrap_err();
    }

    fn identity(certificate: &str, key: &str) -> Identity {
        let pem = |text: &str| Pem { path: "client.pem".into(), bytes: text.into() };
        Identity { certificate: pem(certificate), key: Some(pem(key)) }
    }

    #[test]
    fn a_client_certificate_of_version_1_is_shown() {
        certified_key(&identity(OLD, OLD_KEY), &provider()).unwrap();
        let new = Certificates::new();
        certified_key(&identity(&new.client, &new.client_key), &provider()).unwrap();
        for key in [OLD_KEY, &new.server_key] {
            let error = certified_key(&identity(&new.client, key), &provider()).unwrap_err();
            assert!(error.to_string().contains("client.pem: "), "{error}");
        }
    }

    #[test]
    fn a_server_that_is_not_verified_may_show_a_certificate_of_version_1() {
        for version in [&TLS12, &TLS13] {
            let shown = certified_key(&identity(OLD, OLD_KEY), &provider()).unwrap();
            let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
            let server = server.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
            let mut server = ServerConnection::new(server.into()).unwrap();
            let host = Host { skip_verify: true, ..host() };
            let client = client_config(&host, &Roots(System::of(Vec::new()).into()), false).unwrap();
            let mut client = ClientConnection::new(client.into(), "localhost".try_into().unwrap()).unwrap();
            while client.is_handshaking() || server.is_handshaking() {
                let (mut sent, mut answered) = (Vec::new(), Vec::new());
                client.write_tls(&mut sent).unwrap();
                server.read_tls(&mut &*sent).unwrap();
                server.process_new_packets().unwrap();
                while server.wants_write() {
                    server.write_tls(&mut answered).unwrap();
                }
                let mut answered = &*answered;
                while !answered.is_empty() {
                    client.read_tls(&mut answered).unwrap();
                    client.process_new_packets().unwrap();
                }
            }
        }
    }
}
