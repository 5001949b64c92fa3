//! Certificates for tests, made anew each time.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// A CA, a server certificate of it for 127.0.0.1 and localhost, and a client certificate of it. All PEM.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// What a client is to trust.
    pub ca: String,
    /// The server's certificate.
    pub server: String,
    /// The server's key.
    pub server_key: String,
    /// The client's certificate.
    pub client: String,
    /// The client's key.
    pub client_key: String,
}

const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

impl Certificates {
    /// A proper chain.
    pub fn new() -> Self {
        let ca_key = key();
        let ca_params = ca_params(&[]);
        let ca = ca_params.self_signed(&ca_key).expect("a CA can sign itself").pem();
        let issuer = Issuer::new(ca_params, ca_key);
        let signed = |names: &[&str]| {
            let key = key();
            let certificate = params(names).signed_by(&key, &issuer).expect("a CA can sign");
            (certificate.pem(), key.serialize_pem())
        };
        let (server, server_key) = signed(&NAMES);
        let (client, client_key) = signed(&["client.example"]);
        Self { ca, server, server_key, client, client_key }
    }

    /// What `openssl req -x509` makes: the server's certificate is its own CA and says so.
    pub fn self_signed() -> Self {
        let key = key();
        let certificate = ca_params(&NAMES).self_signed(&key).expect("a key can sign itself").pem();
        Self { ca: certificate.clone(), server: certificate, server_key: key.serialize_pem(), ..Self::new() }
    }

    /// For a server, one that wants the client's certificate or none.
    pub(crate) fn server_config(&self, wants_client: bool) -> ServerConfig {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("made here");
        let key = PrivateKeyDer::from_pem_slice(self.server_key.as_bytes()).expect("made here");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider's own suites fit");
        let builder = match wants_client {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(certificate(&self.ca)).expect("made here");
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.expect("there is a root"))
            }
        };
        let mut config = builder.with_single_cert(vec![certificate(&self.server)], key).expect("made here");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("there is randomness")
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    CertificateParams::new(names).expect("the names are ASCII")
}

fn ca_params(names: &[&str]) -> CertificateParams {
    let mut params = params(names);
    // OpenSSL takes what has its issuer's name for signed by itself.
    params.distinguished_name.push(DnType::CommonName, "silk's test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}
