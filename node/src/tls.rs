//! TLS at a node: towards the centre as a client with the node's certificate, towards terminals as a server with the same.
//!
//! Always TLS 1.3 with *ring*, always roots of the institution's own CA.

use std::sync::Arc;

use feiqian_protocol::ids::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::NodeFiles;

/// The DNS name in the centre's certificate.
pub const CENTRE_NAME: &str = "centre.feiqian.internal";

/// When this build was made, in seconds since 1970.
const BUILD_SECONDS: &str = env!("FEIQIAN_BUILD_SECONDS");

/// Why TLS cannot be set up with what the data directory holds.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key does not fit.
    #[error("TLS cannot be set up with the keys and certificates of the data directory")]
    Rustls(#[from] rustls::Error),
    /// The CA's certificate is no CA certificate.
    #[error("the CA's certificate cannot be trusted")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The DNS name in a node's certificate.
pub fn node_name(node: NodeId) -> String {
    format!("node-{node}.feiqian.internal")
}

/// The cryptography that everything here uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The time by which certificates are judged: the wall clock, but never before this build was made. A controller without
/// a battery wakes up in 1970, and must still find its centre.
#[derive(Debug)]
pub struct CertificateTime;

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let built = std::time::Duration::from_secs(BUILD_SECONDS.parse().unwrap_or(0));
        Some(UnixTime::now().max(UnixTime::since_unix_epoch(built)))
    }
}

/// Judges certificates that must come from this CA.
///
/// # Errors
/// [`TlsError`] where the certificate is none of a CA.
pub fn verifier(ca: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}

/// TLS towards the centre.
///
/// # Errors
/// [`TlsError`] where keys and certificates do not fit together.
pub fn link_config(files: &NodeFiles, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(CertificateTime))
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(verifier(&files.ca)?)
        .with_client_auth_cert(vec![files.certificate.clone()], files.tls_key.clone_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// TLS towards terminals, which prove themselves by their key and not by a certificate.
///
/// # Errors
/// [`TlsError`] where keys and certificates do not fit together.
pub fn terminal_config(files: &NodeFiles) -> Result<ServerConfig, TlsError> {
    let chain = vec![files.certificate.clone(), files.ca.clone()];
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(CertificateTime))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, files.tls_key.clone_key())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_never_judged_by_a_time_before_the_build() {
        let built: u64 = BUILD_SECONDS.parse().unwrap();
        assert!(built > 1_700_000_000);
        assert!(CertificateTime.current_time().unwrap().as_secs() >= built);
    }
}
