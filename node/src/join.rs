//! Enrolment: how a blank machine becomes a node of the institution.
//!
//! Keys are made here and stay here. The machine connects to the centre, which proves with its certificate chain that it
//! belongs to the CA that the code names, sends its request under the code's MAC, and gets its certificate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::enrol::{
    self, EnrolAnswer, EnrolCode, EnrolError, EnrolRequest, Enrolled, SealedEnrolRequest,
};
use feiqian_protocol::frame::ALPN_ENROL;
use feiqian_protocol::ids::{NodeId, NodeName};
use feiqian_protocol::limits::ENROL_BYTES_MAX;
use feiqian_protocol::pin::PinKey;
use quinn::EndpointConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::config::HostPort;
use crate::identity::{DataDir, DataDirError, NewKeys};
use crate::link::{self, Dialer, LinkError};
use crate::tls::{self, CertificateTime};

/// How long the centre may take, from the first packet to its answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The code is not one.
    #[error("the code is malformed")]
    Code(#[source] EnrolError),
    /// The data directory cannot be used.
    #[error("the data directory cannot be used")]
    DataDir(#[from] DataDirError),
    /// The centre has no address.
    #[error(transparent)]
    Address(LinkError),
    /// Nobody answers.
    #[error("the centre does not answer at {0} within 10 s; is it running, and is UDP let through?")]
    Unreachable(HostPort),
    /// Somebody else answers.
    #[error("who answers at {0} is not the centre that issued this code: its certificate is of another CA")]
    OtherAuthority(HostPort),
    /// The centre was reached, but the connection failed.
    #[error("the connection to {0} failed")]
    Connection(HostPort, #[source] LinkError),
    /// The centre says no.
    #[error("the centre refused: {0}")]
    Refused(String),
    /// What the centre answers is not what it must be.
    #[error("the centre's answer is not valid: {0}")]
    Answer(String),
    /// Keys cannot be made.
    #[error("keys cannot be made: {0}")]
    Keys(String),
}

/// Who a machine has become.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The name of its role.
    pub role: &'static str,
}

/// Enrols this machine.
///
/// # Errors
/// [`JoinError`] says why not; then nothing was joined, and the same code may be used again where the centre did not refuse.
pub async fn join(dir: &DataDir, centre: &HostPort, code: &str) -> Result<Joined, JoinError> {
    let code: EnrolCode = code.parse().map_err(JoinError::Code)?;
    if dir.is_joined() {
        return Err(DataDirError::AlreadyJoined(dir.path().to_owned()).into());
    }
    dir.create()?;
    let _lock = dir.lock()?;
    let tls_key = KeyPair::generate_for(&PKCS_ED25519).map_err(|error| JoinError::Keys(error.to_string()))?;
    let keys = NewKeys {
        tls_key_pem: tls_key.serialize_pem(),
        log_key: random()?,
        terminal_secret: random()?,
        pin_key: PinKey::new(random()?),
    };
    // Before anybody vouches for them, so that a full disk does not use the code up.
    dir.store_keys(&keys)?;
    let request = request(&code, &tls_key, &keys)?;
    let enrolled = match exchange(centre, &code, &request).await? {
        EnrolAnswer::Enrolled(enrolled) => enrolled,
        EnrolAnswer::Refused(reason) => return Err(JoinError::Refused(reason)),
    };
    check(&enrolled, &code, &tls_key).map_err(JoinError::Answer)?;
    dir.store_enrolled(&enrolled)?;
    Ok(Joined { node: enrolled.node, name: enrolled.name, role: enrolled.role.name() })
}

fn random() -> Result<[u8; 32], JoinError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| JoinError::Keys(error.to_string()))?;
    Ok(bytes)
}

fn request(code: &EnrolCode, tls_key: &KeyPair, keys: &NewKeys) -> Result<SealedEnrolRequest, JoinError> {
    // The centre chooses every name in the certificate; the request carries only the key.
    let certificate_request = CertificateParams::default()
        .serialize_request(tls_key)
        .map_err(|error| JoinError::Keys(error.to_string()))?;
    let log_key = ed25519_dalek::SigningKey::from_bytes(&keys.log_key).verifying_key().to_bytes();
    let request = EnrolRequest {
        lookup: code.lookup(),
        certificate_request: certificate_request.der().to_vec().into(),
        log_key,
        pin_key: Some(keys.pin_key),
    };
    let mac = code.mac(&request);
    Ok(SealedEnrolRequest { request, mac })
}

/// One two-way stream: a request, an answer, each with 4 bytes of length.
async fn exchange(
    centre: &HostPort,
    code: &EnrolCode,
    request: &SealedEnrolRequest,
) -> Result<EnrolAnswer, JoinError> {
    let failed = |error: LinkError| match &error {
        LinkError::Connection(quinn::ConnectionError::TimedOut) | LinkError::Silent(_) => {
            JoinError::Unreachable(centre.clone())
        }
        LinkError::Address(..) => JoinError::Address(error),
        LinkError::Connection(quinn::ConnectionError::TransportError(cause))
            if cause.reason.contains(OTHER_AUTHORITY) =>
        {
            JoinError::OtherAuthority(centre.clone())
        }
        _ => JoinError::Connection(centre.clone(), error),
    };
    let talk = async {
        let addresses = link::addresses(centre).await.map_err(failed)?;
        let config = link::client_config(tls_config(code)?, TIMEOUT).map_err(failed)?;
        let runtime: Arc<dyn quinn::Runtime> = Arc::new(quinn::TokioRuntime);
        let dialer = link::bind(&*runtime)
            .and_then(|socket| Dialer::new(runtime, socket, EndpointConfig::default()))
            .map_err(|error| failed(error.into()))?;
        let connection = dialer.connect_any(&config, addresses, TIMEOUT).await.map_err(failed)?;
        let answer = send_and_read(&connection, request).await.map_err(|error| {
            // The connection's own end says more than that of the stream which broke with it.
            connection.close_reason().map_or(error, |reason| failed(reason.into()))
        });
        connection.close(quinn::VarInt::from_u32(0), b"enrolled");
        let _ = tokio::time::timeout(Duration::from_secs(1), dialer.wait_idle()).await;
        answer
    };
    tokio::time::timeout(TIMEOUT, talk).await.unwrap_or_else(|_| Err(JoinError::Unreachable(centre.clone())))
}

async fn send_and_read(
    connection: &quinn::Connection,
    request: &SealedEnrolRequest,
) -> Result<EnrolAnswer, JoinError> {
    let broken = |error: io::Error| JoinError::Answer(format!("the connection broke: {error}"));
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(error.into()))?;
    let request = minicbor::to_vec(request).expect("writing to a Vec cannot fail");
    let length = u32::try_from(request.len()).expect("a request is short");
    send.write_all(&length.to_be_bytes()).await.map_err(|error| broken(error.into()))?;
    send.write_all(&request).await.map_err(|error| broken(error.into()))?;
    // Fails only where the stream is closed, which reading reports.
    let _ = send.finish();
    let answer = read_answer(&mut receive).await.map_err(broken)?;
    enrol::decode(&answer).map_err(|error| JoinError::Answer(error.to_string()))
}

/// The bytes of an answer of the desk: 4 bytes of length, then so many.
///
/// # Errors
/// Where the stream breaks, or they are too many.
pub(crate) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if length > ENROL_BYTES_MAX {
        return Err(io::Error::other(EnrolError::TooLong(length)));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn tls_config(code: &EnrolCode) -> Result<ClientConfig, JoinError> {
    let keys = |error: rustls::Error| JoinError::Keys(error.to_string());
    let mut config =
        ClientConfig::builder_with_details(tls::provider(), Arc::new(CertificateTime::default()))
            .with_protocol_versions(&[&TLS13])
            .map_err(keys)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedAuthority { pin: code.ca }))
            .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    Ok(config)
}

/// What makes the cause known again after it went through QUIC.
const OTHER_AUTHORITY: &str = "the certificate is not of the CA that the code names";

/// Accepts a server whose chain holds the CA that an enrolment code names, and whose own certificate that CA has signed for
/// the centre's name.
#[derive(Debug)]
struct PinnedAuthority {
    pin: [u8; 16],
}

impl PinnedAuthority {
    fn holds(&self, certificate: &CertificateDer<'_>) -> bool {
        tls::public_key(certificate).is_some_and(|key| EnrolCode::ca_pin(&key) == self.pin)
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::General(OTHER_AUTHORITY.to_owned());
        let ca = intermediates.iter().find(|certificate| self.holds(certificate)).ok_or_else(other)?;
        let time = CertificateTime::default();
        let verifier = tls::verifier(&ca.clone().into_owned(), time).map_err(|_| other())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now).map_err(|error| {
            match error {
                // Anybody can send the CA's certificate along with one of his own.
                rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                ) => other(),
                error => error,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Checks that what the centre gave is of the CA in the code, for our key, and for the number it names.
fn check(enrolled: &Enrolled, code: &EnrolCode, tls_key: &KeyPair) -> Result<(), String> {
    let ca = CertificateDer::from(enrolled.ca.to_vec());
    let certificate = CertificateDer::from(enrolled.certificate.to_vec());
    if !(PinnedAuthority { pin: code.ca }).holds(&ca) {
        return Err("the CA's certificate is not of the CA that the code names".to_owned());
    }
    let key = tls_key.subject_public_key_info();
    tls::check_certificate(&certificate, &ca, &key, enrolled.node, &CertificateTime::default())?;
    if ed25519_dalek::VerifyingKey::from_bytes(&enrolled.centre_log_key).is_err() {
        return Err("the centre's log key is no Ed25519 key".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::enrol::Role;
    use feiqian_protocol::ids::{CampusId, InstitutionId};
    use rcgen::{BasicConstraints, Certificate, IsCa, Issuer};

    use rustls::time_provider::TimeProvider;

    use super::*;
    use crate::tls::CENTRE_NAME;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: Certificate,
    }

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            Self { issuer: Issuer::new(params, key), certificate }
        }

        fn code(&self) -> EnrolCode {
            EnrolCode::new([1; 16], &self.issuer.key().subject_public_key_info())
        }

        fn certify(&self, name: &str, key: &KeyPair) -> CertificateDer<'static> {
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            params.signed_by(key, &self.issuer).unwrap().der().clone()
        }
    }

    fn verify(
        code: &EnrolCode,
        chain: &[CertificateDer<'static>],
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from(CENTRE_NAME).unwrap();
        let now = CertificateTime::default().current_time().unwrap();
        PinnedAuthority { pin: code.ca }.verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
    }

    #[test]
    fn only_the_centre_of_the_authority_in_the_code_is_accepted() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (our_ca, their_ca) = (ours.certificate.der().clone(), theirs.certificate.der().clone());
        let centre = ours.certify(CENTRE_NAME, &key);
        let fake = theirs.certify(CENTRE_NAME, &key);
        let node = ours.certify("node-1.feiqian.internal", &key);
        let code = ours.code();
        assert!(verify(&code, &[centre.clone(), our_ca.clone()]).is_ok());
        assert!(verify(&code, std::slice::from_ref(&centre)).is_err());
        assert!(verify(&theirs.code(), &[centre, our_ca.clone()]).is_err());
        assert!(verify(&code, &[fake.clone(), their_ca.clone()]).is_err());
        assert!(verify(&code, &[fake.clone(), our_ca.clone()]).is_err());
        assert!(verify(&code, &[fake, our_ca.clone(), their_ca]).is_err());
        assert!(verify(&code, &[node, our_ca]).is_err());
    }

    #[test]
    fn what_the_centre_gives_must_fit() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let other_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let enrolled = |authority: &Authority, name: &str, key: &KeyPair| Enrolled {
            institution: InstitutionId(1),
            campus: CampusId(1),
            node: NodeId(3),
            name: NodeName::new("canteen-red").unwrap(),
            role: Role::Pos,
            incarnation: 1,
            certificate: authority.certify(name, key).to_vec().into(),
            ca: authority.certificate.der().to_vec().into(),
            centre_log_key: ed25519_dalek::SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes(),
        };
        let name = "node-3.feiqian.internal";
        assert_eq!(check(&enrolled(&ours, name, &key), &ours.code(), &key), Ok(()));
        assert!(check(&enrolled(&theirs, name, &key), &ours.code(), &key).is_err());
        assert!(check(&enrolled(&ours, name, &other_key), &ours.code(), &key).is_err());
        assert!(check(&enrolled(&ours, "node-4.feiqian.internal", &key), &ours.code(), &key).is_err());
        let mixed = Enrolled {
            certificate: theirs.certify(name, &key).to_vec().into(),
            ..enrolled(&ours, name, &key)
        };
        assert!(check(&mixed, &ours.code(), &key).is_err());
    }

    #[tokio::test]
    async fn nobody_there_a_bad_code_and_a_joined_directory_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(temp.path());
        let centre: HostPort = "127.0.0.1:9".parse().unwrap();
        let code = Authority::new().code().to_string();
        assert!(matches!(join(&dir, &centre, "12-34").await, Err(JoinError::Code(_))));
        std::fs::write(temp.path().join("identity.json"), "{}").unwrap();
        let joined = join(&dir, &centre, &code).await;
        assert!(matches!(joined, Err(JoinError::DataDir(DataDirError::AlreadyJoined(_)))), "{joined:?}");
    }

    #[tokio::test]
    async fn an_answer_is_read_within_bounds() {
        let refused = minicbor::to_vec(EnrolAnswer::Refused("used".to_owned())).unwrap();
        let mut bytes = u32::try_from(refused.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&refused);
        let answer = read_answer(&mut &bytes[..]).await.unwrap();
        assert_eq!(enrol::decode::<EnrolAnswer>(&answer).unwrap(), EnrolAnswer::Refused("used".to_owned()));
        assert!(read_answer(&mut &[0xff; 8][..]).await.is_err());
        assert!(read_answer(&mut &bytes[..6]).await.is_err());
    }
}
