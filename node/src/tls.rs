//! TLS at a node: towards the centre as a client with the node's certificate, towards terminals as a server with the same.
//!
//! Always TLS 1.3 with *ring*, always roots of the institution's own CA. The certificate may be renewed while the node runs.
//!
//! **Time.** A controller's clock may stand in 1970, or in 2038. So certificates are judged by the latest of the time of the
//! build, the last time that the centre has signed, and the wall clock; and the wall clock is not believed where it is more
//! than a year beyond the other two, which cannot be ahead.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use feiqian_protocol::ids::NodeId;
use feiqian_protocol::time::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::Notify;

use crate::identity::NodeFiles;

/// The DNS name in the centre's certificate.
pub const CENTRE_NAME: &str = "centre.feiqian.internal";

/// When this build was made, in seconds since 1970.
const BUILD_SECONDS: &str = env!("FEIQIAN_BUILD_SECONDS");

/// How far beyond what is certain the wall clock is believed, in seconds: as long as a certificate lives.
const BELIEVED_SECONDS: u64 = 366 * 24 * 3_600;

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

/// The time by which certificates are judged, and what the core hears of the node's own.
#[derive(Clone, Debug, Default)]
pub struct CertificateTime(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// The machine, where it is not this one.
    host: Option<Host>,
    /// The last centre-signed time, in milliseconds since 1970.
    centre_ms: AtomicI64,
    expired: AtomicBool,
    news: Notify,
}

/// A machine that is not this one.
struct Host {
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    built: Timestamp,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("built", &self.built).finish_non_exhaustive()
    }
}

impl CertificateTime {
    /// By the wall clock of a machine that is not this one, with software that was built then.
    pub fn of_host(wall: Arc<dyn Fn() -> Timestamp + Send + Sync>, built: Timestamp) -> Self {
        Self(Arc::new(Heard { host: Some(Host { wall, built }), ..Heard::default() }))
    }

    /// The centre has signed this time.
    pub fn centre_signed(&self, time: Timestamp) {
        self.0.centre_ms.fetch_max(time.0, Ordering::Relaxed);
    }

    /// Whether the centre says that the node's certificate has expired.
    pub fn set_expired(&self, expired: bool) {
        if expired && !self.0.expired.swap(expired, Ordering::Relaxed) {
            self.0.news.notify_one();
        } else if !expired {
            self.0.expired.store(false, Ordering::Relaxed);
        }
    }

    /// What was said last.
    pub fn is_expired(&self) -> bool {
        self.0.expired.load(Ordering::Relaxed)
    }

    /// Waits until the centre says that the certificate has expired.
    pub async fn expired(&self) {
        self.0.news.notified().await;
    }

    /// A time that is certainly over.
    fn certain(&self) -> UnixTime {
        let built = match &self.0.host {
            None => Duration::from_secs(BUILD_SECONDS.parse().unwrap_or(0)),
            Some(host) => since_1970(host.built),
        };
        let centre = since_1970(Timestamp(self.0.centre_ms.load(Ordering::Relaxed)));
        UnixTime::since_unix_epoch(built.max(centre))
    }

    /// Judges a certificate by `verify`, which takes the time to judge it by.
    ///
    /// # Errors
    /// What `verify` says. Of one that is too old or too young, only where that is certain, or the wall clock can be believed.
    fn judge<T>(
        &self,
        now: UnixTime,
        verify: impl Fn(UnixTime) -> Result<T, rustls::Error>,
    ) -> Result<T, rustls::Error> {
        let certain = self.certain();
        match verify(now) {
            // Our clock is behind: nobody but the CA makes certificates for later.
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => {
                tracing::warn!(
                    clock = now.as_secs(),
                    "by this machine's clock the certificate is not valid yet; the clock is taken to be behind"
                );
                verify(not_before)
            }
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) if now.as_secs() - certain.as_secs() > BELIEVED_SECONDS && not_after >= certain => {
                tracing::warn!(
                    clock = now.as_secs(),
                    "by this machine's clock the certificate has expired; the clock is taken to be ahead"
                );
                verify(not_after)
            }
            verdict => verdict,
        }
    }
}

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let wall = match &self.0.host {
            None => UnixTime::now(),
            Some(host) => UnixTime::since_unix_epoch(since_1970((host.wall)())),
        };
        Some(wall.max(self.certain()))
    }
}

fn since_1970(time: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(time.0).unwrap_or(0))
}

/// Judges certificates that must come from this CA, by this time.
///
/// # Errors
/// [`TlsError`] where the certificate is none of a CA.
pub fn verifier(ca: &CertificateDer<'static>, time: CertificateTime) -> Result<Arc<CaVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    Ok(Arc::new(CaVerifier { inner, time }))
}

/// See [`verifier`].
#[derive(Debug)]
pub struct CaVerifier {
    inner: Arc<WebPkiServerVerifier>,
    time: CertificateTime,
}

impl ServerCertVerifier for CaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.time.judge(now, |now| {
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The public key of a certificate, as DER of its SubjectPublicKeyInfo.
pub fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    ParsedCertificate::try_from(certificate).ok().map(|parsed| parsed.subject_public_key_info().to_vec())
}

/// Checks that a certificate that the centre gave is this CA's, for this key (DER SubjectPublicKeyInfo) and this node.
///
/// # Errors
/// What is wrong with it.
pub fn check_certificate(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'static>,
    key: &[u8],
    node: NodeId,
    time: &CertificateTime,
) -> Result<(), String> {
    if public_key(certificate).is_none_or(|found| found != key) {
        return Err("the certificate is for another key".to_owned());
    }
    let now = time.current_time().ok_or("there is no clock")?;
    let name = ServerName::try_from(node_name(node)).map_err(|error| error.to_string())?;
    verifier(ca, time.clone())
        .map_err(|error| error.to_string())?
        .verify_server_cert(certificate, &[], &name, &[], now)
        .map_err(|error| error.to_string())?;
    Ok(())
}

/// The node's certificate and key, as every handshake finds them: a renewal replaces the certificate.
#[derive(Debug)]
pub struct NodeCertificate {
    ca: CertificateDer<'static>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl NodeCertificate {
    /// That of the data directory.
    ///
    /// # Errors
    /// [`TlsError`] where key and certificate do not fit together.
    pub fn new(files: &NodeFiles) -> Result<Arc<Self>, TlsError> {
        let chain = vec![files.certificate.clone(), files.ca.clone()];
        let current = CertifiedKey::from_der(chain, files.tls_key.clone_key(), &provider())?;
        Ok(Arc::new(Self { ca: files.ca.clone(), current: RwLock::new(Arc::new(current)) }))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.current().cert.first().cloned()
    }

    /// The institution's CA.
    pub const fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// Takes a newer certificate for the same key.
    pub fn replace(&self, certificate: CertificateDer<'static>) {
        let key = self.current().key.clone();
        let renewed = CertifiedKey::new(vec![certificate, self.ca.clone()], key);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(renewed);
    }
}

impl ResolvesClientCert for NodeCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for NodeCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// TLS towards the centre.
///
/// # Errors
/// [`TlsError`] where keys and certificates do not fit together.
pub fn link_config(
    certificate: &Arc<NodeCertificate>,
    time: &CertificateTime,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(time.clone()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier(certificate.ca(), time.clone())?)
        .with_client_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![alpn.to_vec()];
    // Every connection shows the certificate of its time: none is resumed under an older one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// TLS towards terminals, which prove themselves by their key and not by a certificate.
///
/// # Errors
/// [`TlsError`] where keys and certificates do not fit together.
pub fn terminal_config(
    certificate: &Arc<NodeCertificate>,
    time: &CertificateTime,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(time.clone()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_S: u64 = 365 * 24 * 3_600;

    fn built() -> u64 {
        BUILD_SECONDS.parse().unwrap()
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// What a certificate that is valid between two times is judged to be.
    fn valid(time: &CertificateTime, now: u64, from: u64, until: u64) -> bool {
        let verify = |now: UnixTime| {
            let (time, not_before, not_after) = (now, at(from), at(until));
            let error = if now < not_before {
                CertificateError::NotValidYetContext { time, not_before }
            } else if now > not_after {
                CertificateError::ExpiredContext { time, not_after }
            } else {
                return Ok(());
            };
            Err(rustls::Error::InvalidCertificate(error))
        };
        // As the handshake does: never before what is certain.
        time.judge(at(now).max(time.certain()), verify).is_ok()
    }

    #[test]
    fn certificates_are_never_judged_by_a_time_before_the_build_or_what_the_centre_signed() {
        assert!(built() > 1_700_000_000);
        let time = CertificateTime::default();
        assert!(time.current_time().unwrap().as_secs() >= built());
        time.centre_signed(Timestamp((built() + 9 * YEAR_S) as i64 * 1_000));
        time.centre_signed(Timestamp(5_000));
        assert_eq!(time.current_time().unwrap(), at(built() + 9 * YEAR_S));
    }

    #[test]
    fn a_clock_of_1970_or_2038_finds_the_centre_and_what_has_expired_stays_expired() {
        let time = CertificateTime::default();
        let issued = built() + YEAR_S / 2;
        // Of today, by a clock of 1970 and one of 2038.
        assert!(valid(&time, 5, issued, issued + YEAR_S));
        assert!(valid(&time, 2_147_483_647, issued, issued + YEAR_S));
        // It has expired by the build, by a clock that can be believed, by what the centre signed.
        assert!(!valid(&time, 5, built() - 2 * YEAR_S, built() - YEAR_S));
        assert!(!valid(&time, 2_147_483_647, built() - 2 * YEAR_S, built() - YEAR_S));
        assert!(!valid(&time, built() + YEAR_S / 2, built() - YEAR_S, built() + YEAR_S / 4));
        time.centre_signed(Timestamp((issued + YEAR_S / 4) as i64 * 1_000));
        assert!(valid(&time, 2_147_483_647, issued, issued + YEAR_S));
        time.centre_signed(Timestamp((issued + YEAR_S + 1) as i64 * 1_000));
        assert!(!valid(&time, 2_147_483_647, issued, issued + YEAR_S));
        assert!(!valid(&time, 5, issued, issued + YEAR_S));
    }

    #[test]
    fn that_the_certificate_has_expired_is_news_once() {
        let time = CertificateTime::default();
        let heard = |time: &CertificateTime| {
            let mut waiting = std::pin::pin!(time.expired());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            waiting.as_mut().poll(&mut context).is_ready()
        };
        time.set_expired(true);
        time.set_expired(true);
        assert!(heard(&time) && !heard(&time) && time.is_expired());
        time.set_expired(false);
        time.set_expired(true);
        assert!(heard(&time));
    }
}
