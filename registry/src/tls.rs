//! TLS for one host: whom to believe, and who we are. Called when a client is made; no I/O but the system's root
//! certificates, read once.
//!
//! Go's TLS, and so containerd, takes a self-signed server certificate that the operator names as `ca`, even if it says of
//! itself that it is a CA (what `openssl req -x509` makes). The strict verifier here refuses that, so such a certificate
//! is compared byte for byte with those the operator named: it is believed for its own names, whatever its dates.

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, SignatureScheme,
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

/// The system's root certificates, read at first need.
#[derive(Debug, Default)]
pub(crate) struct Roots(OnceLock<RootCertStore>);

/// Root certificates, plus those the operator named for this host.
#[derive(Debug)]
struct Verifier {
    /// None: there is not one root certificate.
    strict: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
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
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut store = roots.get().clone();
    let mut pinned = Vec::new();
    for ca in &host.ca {
        for certificate in certificates(ca)? {
            store.add(certificate.clone()).map_err(|error| fault(ca, error.into()))?;
            pinned.push(certificate);
        }
    }
    let keys =
        host.identities.iter().map(|identity| certified_key(identity, &provider)).collect::<Result<Vec<_>, _>>()?;
    let strict = WebPkiServerVerifier::builder_with_provider(store.into(), provider.clone()).build().ok();
    let verifier = Verifier { strict, pinned, skip: host.skip_verify, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider's own suites fit the protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match keys.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(Identities(keys))),
    };
    config.alpn_protocols = if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(config)
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
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| fault(pem, error.into()))?;
    Ok(Arc::new(key))
}

fn fault(pem: &Pem, cause: CertificateFault) -> Error {
    Error::Certificate { path: pem.path.clone(), cause }
}

// === impl Roots ===

impl Roots {
    fn get(&self) -> &RootCertStore {
        self.0.get_or_init(|| {
            let mut store = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                warn!("no root certificates on this machine: only registries with a CA in hosts.toml can be reached by TLS");
            }
            store
        })
    }
}

// === impl Verifier ===

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
        match &self.strict {
            Some(strict) => strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(TlsError::General(
                "this machine has no root certificates: install ca-certificates, or name a ca in hosts.toml".into(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
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
