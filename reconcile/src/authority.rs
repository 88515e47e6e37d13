//! The institution's certificate authority, and the keys of the centre.
//!
//! | file of the data directory | what |
//! |---|---|
//! | `ca.crt`, `ca.key` | the CA; 20 years; only signs the centre and its nodes |
//! | `centre.crt`, `centre.key` | the centre on the network; 1 year, renewed at a start in its last quarter |
//! | `log.key` | the seed (hex) of the key that signs the centre's streams |
//!
//! All are Ed25519 and readable by the owner only. Certificates go by the real clock.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::enrol::EnrolCode;
use feiqian_protocol::frame::{ALPN_ENROL, ALPN_RENEW, ALPN_REPLICATION};
use feiqian_protocol::ids::{InstitutionId, NodeId};
use feiqian_protocol::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, UnixTime};

/// The name that the centre's certificate is for.
pub const CENTRE_NAME: &str = "centre.feiqian.internal";

const HOUR_S: i64 = 3_600;
const YEAR_S: i64 = 365 * 24 * HOUR_S;
const CA_VALID_S: i64 = 20 * YEAR_S;

/// Remaining validity below which a start renews the centre's certificate.
const RENEW_BELOW_S: i64 = YEAR_S / 4;

/// Why the keys of the centre cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{file} is not a {expected}")]
    Form {
        /// Which.
        file: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A certificate request that is not valid or not for an Ed25519 key.
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    /// Signing failed.
    #[error("a certificate cannot be signed")]
    Sign(#[from] rcgen::Error),
    /// The operating system gives no randomness.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
    /// The TLS library refuses our keys.
    #[error("the keys do not make a TLS server")]
    Tls(#[from] rustls::Error),
    /// The TLS library refuses our CA.
    #[error("the CA does not verify clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The CA and the keys of the centre.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
    ca_public_key: Vec<u8>,
    centre: CertificateDer<'static>,
    centre_key: PrivateKeyDer<'static>,
    log_key: SigningKey,
}

/// A public key whose holder has proven to have the private one: by the signature of a certificate request, or by the
/// handshake under a certificate.
#[derive(Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl Authority {
    /// Makes all keys and certificates in an empty data directory.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn create(dir: &Path, institution: InstitutionId, now: Timestamp) -> Result<(), AuthorityError> {
        let ca_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut ca = params(&format!("Feiqian institution {institution} CA"), now, CA_VALID_S)?;
        // No certificate below it may sign further ones.
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_certificate = ca.self_signed(&ca_key)?;
        let ca_key_pem = ca_key.serialize_pem();
        let issuer = Issuer::new(ca, ca_key);

        let centre_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let centre = centre_certificate(&centre_key, &issuer, now)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(AuthorityError::Random)?;

        write_private(dir, "ca.key", ca_key_pem.as_bytes())?;
        write_private(dir, "ca.crt", ca_certificate.pem().as_bytes())?;
        write_private(dir, "centre.key", centre_key.serialize_pem().as_bytes())?;
        write_private(dir, "centre.crt", centre.pem().as_bytes())?;
        write_private(dir, "log.key", format!("{}\n", hex(&seed)).as_bytes())
    }

    /// Reads what [`Authority::create`] made, and renews the centre's certificate where it is due.
    ///
    /// # Errors
    /// [`AuthorityError`] names the file.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let key = |file: &str| {
            KeyPair::from_pem(&read(dir, file)?).map_err(|_| form(dir, file, "private key (PEM)"))
        };
        let ca = certificate(dir, "ca.crt")?;
        let ca_key = key("ca.key")?;
        let ca_public_key = ca_key.subject_public_key_info();
        if parsed(&ca).is_none_or(|parsed| parsed.public_key().raw != ca_public_key) {
            return Err(form(dir, "ca.crt", "certificate of the key in ca.key"));
        }
        let issuer = Issuer::from_ca_cert_der(&ca, ca_key)?;
        let centre_key = key("centre.key")?;
        let mut centre = certificate(dir, "centre.crt")?;
        let valid_s = parsed(&centre)
            .ok_or_else(|| form(dir, "centre.crt", "certificate (PEM)"))?
            .validity()
            .not_after
            .timestamp()
            - now.0 / 1_000;
        if valid_s < RENEW_BELOW_S {
            let renewed = centre_certificate(&centre_key, &issuer, now)?;
            write_private(dir, "centre.crt", renewed.pem().as_bytes())?;
            centre = renewed.into();
            tracing::info!("certificate of the centre renewed");
        }
        let log_key = log_key(dir)?;
        Ok(Self { issuer, ca, ca_public_key, centre, centre_key: centre_key.into(), log_key })
    }

    /// What signs the centre's streams.
    pub const fn log_key(&self) -> &SigningKey {
        &self.log_key
    }

    /// The CA's certificate.
    pub const fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The enrolment code of a secret.
    pub fn code(&self, secret: [u8; 16]) -> EnrolCode {
        EnrolCode::new(secret, &self.ca_public_key)
    }

    /// Checks a certificate request (PKCS #10, DER): its own signature must be right. Whatever it says beside its key is
    /// ignored.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn check_request(&self, request: &[u8]) -> Result<RequestedKey, AuthorityError> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request.to_vec()))
                .map_err(|error| AuthorityError::Request(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ED25519 {
            return Err(AuthorityError::Request("the key must be Ed25519".to_owned()));
        }
        Ok(RequestedKey(SubjectPublicKeyInfo::from_der(&request.public_key.subject_public_key_info())?))
    }

    /// The key of a certificate that a handshake was made with.
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn proven_key(&self, certificate: &CertificateDer<'_>) -> Result<RequestedKey, AuthorityError> {
        let parsed = parsed(certificate)
            .ok_or_else(|| AuthorityError::Request("the certificate cannot be read".to_owned()))?;
        Ok(RequestedKey(SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?))
    }

    /// Signs the certificate of a node: client towards the centre, server towards its terminals.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`].
    pub fn sign_node(
        &self,
        key: &RequestedKey,
        node: NodeId,
        incarnation: u32,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = leaf(&node_common_name(node, incarnation), &node_name(node), now)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params.signed_by(&key.0, &self.issuer)?.into())
    }

    /// TLS of the centre's endpoint. A client certificate is verified where it is shown, and not demanded: a node that
    /// enrols has none yet. Who needs one is decided by the ALPN, after the handshake; and what one that has expired is
    /// still good for, by the session.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn server_tls(&self) -> Result<rustls::ServerConfig, AuthorityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
        let verifier = Arc::new(ExpiredToo(verifier));
        // The CA is in the chain because a node that enrols knows its key only, from the code.
        let chain = vec![self.centre.clone(), self.ca.clone()];
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, self.centre_key.clone_key())?;
        tls.alpn_protocols = vec![ALPN_REPLICATION.to_vec(), ALPN_ENROL.to_vec(), ALPN_RENEW.to_vec()];
        // Every connection shows its certificate anew, so that an expired one never lives on in a ticket.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(tls)
    }
}

/// Accepts what the verifier in it accepts, and what it accepted until it expired: a building that was cut off for too long
/// must still be able to upload what it sold, and to renew.
#[derive(Debug)]
struct ExpiredToo(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiredToo {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.0.verify_client_cert(end_entity, intermediates, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => self.0.verify_client_cert(end_entity, intermediates, not_after),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The key that signs the centre's streams, of a data directory.
///
/// # Errors
/// [`AuthorityError`] names the file.
pub fn log_key(dir: &Path) -> Result<SigningKey, AuthorityError> {
    let seed = unhex(read(dir, "log.key")?.trim())
        .and_then(|seed| <[u8; 32]>::try_from(seed).ok())
        .ok_or_else(|| form(dir, "log.key", "key of 64 hexadecimal digits"))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// The enrolment code of a secret, for the CA of a data directory.
///
/// # Errors
/// [`AuthorityError`] names the file.
pub fn code(dir: &Path, secret: [u8; 16]) -> Result<EnrolCode, AuthorityError> {
    let ca = certificate(dir, "ca.crt")?;
    let ca = parsed(&ca).ok_or_else(|| form(dir, "ca.crt", "certificate (PEM)"))?;
    Ok(EnrolCode::new(secret, ca.public_key().raw))
}

/// The subject alternative name of a node.
pub fn node_name(node: NodeId) -> String {
    format!("node-{node}.feiqian.internal")
}

fn node_common_name(node: NodeId, incarnation: u32) -> String {
    format!("node-{node}.{incarnation}")
}

/// From when until when a certificate is valid.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let parsed = parsed(certificate)?;
    let ms = |time: x509_parser::time::ASN1Time| Timestamp(time.timestamp().saturating_mul(1_000));
    Some((ms(parsed.validity().not_before), ms(parsed.validity().not_after)))
}

/// Node and enrolment of a verified client certificate; `None` where its common name is not `node-N.I`.
pub fn peer_of(certificate: &CertificateDer<'_>) -> Option<(NodeId, u32)> {
    let parsed = parsed(certificate)?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    let (node, incarnation) = name.strip_prefix("node-")?.split_once('.')?;
    let peer = (NodeId(node.parse().ok()?), incarnation.parse().ok()?);
    // Parsing forgives a sign and leading zeros; a name is only what we would have written.
    (name == node_common_name(peer.0, peer.1)).then_some(peer)
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Option<x509_parser::certificate::X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(certificate).ok().map(|(_, parsed)| parsed)
}

fn centre_certificate(
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
    now: Timestamp,
) -> Result<rcgen::Certificate, AuthorityError> {
    let mut params = leaf("centre", CENTRE_NAME, now)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.signed_by(key, issuer)?)
}

fn leaf(common_name: &str, dns_name: &str, now: Timestamp) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(common_name, now, YEAR_S)?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(dns_name.try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Valid from an hour ago: the clock of a controller may be behind.
fn params(common_name: &str, now: Timestamp, valid_s: i64) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(AuthorityError::Random)?;
    // Positive (RFC 5280), and with a leading bit, so that every certificate of a name has the same size.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let from_s = (now.0 / 1_000 - HOUR_S).max(0);
    let at = |seconds: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    params.not_before = at(from_s);
    params.not_after = at(from_s + valid_s);
    Ok(params)
}

fn read(dir: &Path, file: &str) -> Result<String, AuthorityError> {
    let path = dir.join(file);
    std::fs::read_to_string(&path)
        .map_err(|source| AuthorityError::File { file: path.display().to_string(), source })
}

fn certificate(dir: &Path, file: &str) -> Result<CertificateDer<'static>, AuthorityError> {
    CertificateDer::from_pem_slice(read(dir, file)?.as_bytes())
        .map_err(|_| form(dir, file, "certificate (PEM)"))
}

fn form(dir: &Path, file: &str, expected: &'static str) -> AuthorityError {
    AuthorityError::Form { file: dir.join(file).display().to_string(), expected }
}

/// Writes a file that only its owner may read, whole or not at all, even across a power cut.
///
/// # Errors
/// [`AuthorityError::File`].
pub fn write_private(dir: &Path, file: &str, bytes: &[u8]) -> Result<(), AuthorityError> {
    let path = dir.join(file);
    let temporary = dir.join(format!(".{file}.new"));
    let write = || {
        // A leftover of a crash would keep its own mode.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| AuthorityError::File { file: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::{ServerName, UnixTime};
    use std::os::unix::fs::PermissionsExt;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn authority() -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), InstitutionId(7), NOW).unwrap();
        let authority = Authority::open(dir.path(), NOW).unwrap();
        (dir, authority)
    }

    fn request(key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "node-9.9");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn unix(now: Timestamp) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(now.0 as u64))
    }

    fn accepts_client(authority: &Authority, certificate: &CertificateDer<'_>, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.ca().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let strict = verifier.verify_client_cert(certificate, &[], unix(now)).is_ok();
        let accepted = ExpiredToo(verifier).verify_client_cert(certificate, &[], unix(now)).is_ok();
        let expired = validity(certificate).is_some_and(|(_, until)| until < now);
        assert_eq!(strict, accepted && !expired, "it differs in what has expired, and in nothing else");
        accepted
    }

    #[test]
    fn a_request_becomes_a_certificate_with_the_name_that_the_centre_gives() {
        let (_dir, authority) = authority();
        let node_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = authority.check_request(&request(&node_key)).unwrap();
        let certificate = authority.sign_node(&key, NodeId(3), 2, NOW).unwrap();
        assert_eq!(peer_of(&certificate), Some((NodeId(3), 2)));
        assert!(accepts_client(&authority, &certificate, NOW));
        assert!(!accepts_client(&authority, &certificate, NOW.plus_ms(-2 * HOUR_S * 1_000)), "not valid yet");
        assert!(accepts_client(&authority, &certificate, NOW.plus_ms((YEAR_S + HOUR_S) * 1_000)));
        let again = authority.proven_key(&certificate).unwrap();
        let renewed = authority.sign_node(&again, NodeId(3), 2, NOW.plus_ms(YEAR_S * 1_000)).unwrap();
        assert_eq!(self::parsed(&renewed).unwrap().public_key().raw, node_key.subject_public_key_info());
        let parsed = parsed(&certificate).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(parsed.public_key().raw, node_key.subject_public_key_info());
    }

    #[test]
    fn what_another_ca_or_nobody_signed_is_refused() {
        let (_dir, ours) = authority();
        let (_other_dir, other) = authority();
        let key = other.check_request(&request(&KeyPair::generate_for(&PKCS_ED25519).unwrap())).unwrap();
        let foreign = other.sign_node(&key, NodeId(3), 2, NOW).unwrap();
        assert!(!accepts_client(&ours, &foreign, NOW));
        assert!(!accepts_client(&ours, &foreign, NOW.plus_ms(2 * YEAR_S * 1_000)), "expired or not");
        let own_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let own = leaf("node-3.2", &node_name(NodeId(3)), NOW).unwrap().self_signed(&own_key).unwrap();
        assert!(!accepts_client(&ours, own.der(), NOW));
        // The centre's own certificate is for serving only.
        assert!(!accepts_client(&ours, &ours.centre, NOW));
    }

    #[test]
    fn the_centre_is_what_a_node_verifies_it_to_be() {
        let (dir, authority) = authority();
        assert!(authority.server_tls().is_ok());
        let mut roots = RootCertStore::empty();
        roots.add(authority.ca().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let verify = |name: &'static str| {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&authority.centre, &[], &name, &[], unix(NOW))
        };
        assert!(verify(CENTRE_NAME).is_ok());
        assert!(verify("node-1.feiqian.internal").is_err());
        assert!(authority.code([1; 16]) == code(dir.path(), [1; 16]).unwrap());
    }

    #[test]
    fn a_broken_request_is_refused() {
        let (_dir, authority) = authority();
        let mut bytes = request(&KeyPair::generate_for(&PKCS_ED25519).unwrap());
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert!(matches!(authority.check_request(&bytes), Err(AuthorityError::Request(_))));
        let ecdsa = request(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
        assert!(matches!(authority.check_request(&ecdsa), Err(AuthorityError::Request(_))));
        assert!(authority.check_request(b"").is_err());
    }

    #[test]
    fn files_are_private_and_a_certificate_is_renewed_before_it_expires() {
        let (dir, authority) = authority();
        for file in ["ca.crt", "ca.key", "centre.crt", "centre.key", "log.key"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let half_a_year = NOW.plus_ms(YEAR_S / 2 * 1_000);
        assert_eq!(Authority::open(dir.path(), half_a_year).unwrap().centre, authority.centre);
        let nearly = NOW.plus_ms(YEAR_S * 900);
        let renewed = Authority::open(dir.path(), nearly).unwrap();
        assert_ne!(renewed.centre, authority.centre);
        assert_eq!(renewed.log_key(), authority.log_key());
        assert_eq!(Authority::open(dir.path(), nearly).unwrap().centre, renewed.centre);
    }

    #[test]
    fn only_a_name_that_we_would_write_is_a_name() {
        let (_dir, authority) = authority();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        for bad in ["centre", "node-1", "node-01.1", "node-1.+1", "node-70000.1", "node-1.1 "] {
            let certificate =
                leaf(bad, "x.feiqian.internal", NOW).unwrap().signed_by(&key, &authority.issuer);
            assert_eq!(peer_of(certificate.unwrap().der()), None, "{bad}");
        }
    }
}
