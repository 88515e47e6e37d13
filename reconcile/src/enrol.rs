//! The enrolment desk: turns a one-time code into a node's certificate, and a certificate into a newer one.
//!
//! One two-way stream: 4-byte length and a request, then 4-byte length and an answer. The certificate's names are the
//! centre's decision; of the node's own request only the public key counts. A renewal is for the key and the names of the
//! certificate that was shown, which may have expired.

use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::enrol::{
    EnrolAnswer, Enrolled, RenewAnswer, RenewRequest, Role, SealedEnrolRequest, decode,
};
use feiqian_protocol::frame::PROTOCOL_VERSION;
use feiqian_protocol::ids::{CampusId, InstitutionId, NodeId, NodeName};
use feiqian_protocol::limits::ENROL_BYTES_MAX;
use feiqian_protocol::time::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::authority::{Authority, peer_of, validity};
use crate::driver::{Clock, CoreHandle, chain, real_now};
use crate::io::Command;

/// Enrolments at once. A campus enrols one node after the other, but whoever can reach the port can wait in one.
const ENROLMENTS_MAX: usize = 256;

/// Renewals at once, which nobody without a certificate can ask for.
const RENEWALS_MAX: usize = 32;

/// Time for each side of an enrolment.
const ENROLMENT_TIME: Duration = Duration::from_secs(10);

/// The enrolment desk.
pub struct Desk {
    authority: Arc<Authority>,
    core: CoreHandle,
    enrolments: Semaphore,
    renewals: Semaphore,
    renews: bool,
    clock: Clock,
}

/// What the core knows of a code ([`Command::LookUpEnrolment`]).
#[derive(Deserialize)]
struct Known {
    name: NodeName,
    role: Role,
    secret: String,
}

/// What the core made of it ([`Command::Enrol`]).
#[derive(Deserialize)]
struct Made {
    node: NodeId,
    incarnation: u32,
    institution: InstitutionId,
    campus: CampusId,
    name: NodeName,
    role: Role,
}

impl Desk {
    /// A desk that signs with `authority` what `core` allows, renewals only where `renews`.
    pub fn new(authority: Arc<Authority>, core: CoreHandle, renews: bool) -> Self {
        let (enrolments, renewals) = (Semaphore::new(ENROLMENTS_MAX), Semaphore::new(RENEWALS_MAX));
        Self { authority, core, enrolments, renewals, renews, clock: Arc::new(real_now) }
    }

    /// The same by the clock of a host that is not this machine.
    #[must_use]
    pub fn by_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The time by which certificates are made and judged.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Serves one connection: of a node that renews `certificate`, or of one that enrols.
    pub async fn serve(&self, connection: quinn::Connection, certificate: Option<CertificateDer<'static>>) {
        let places = if certificate.is_some() { &self.renewals } else { &self.enrolments };
        let Ok(_place) = places.try_acquire() else {
            connection.close(super::listener::code::BUSY, b"too many enrolments at once; try again");
            return;
        };
        let exchange = async {
            let (mut send, mut receive) = connection.accept_bi().await?;
            match &certificate {
                Some(certificate) => self.exchange_renewal(certificate, &mut receive, &mut send).await?,
                None => self.exchange(&mut receive, &mut send).await?,
            }
            send.finish()?;
            // The answer must be there before the connection goes.
            send.stopped().await?;
            anyhow::Ok(())
        };
        match tokio::time::timeout(ENROLMENT_TIME * 2, exchange).await {
            Ok(Ok(())) => connection.close(super::listener::code::DONE, b"done"),
            Ok(Err(error)) => {
                tracing::warn!(peer = %connection.remote_address(), %error, "enrolment failed");
                connection.close(super::listener::code::MALFORMED, error.to_string().as_bytes());
            }
            Err(_) => connection.close(super::listener::code::TIMEOUT, b"the enrolment took too long"),
        }
    }

    /// Reads a request and writes its answer.
    async fn exchange(
        &self,
        receive: &mut (impl AsyncReadExt + Unpin),
        send: &mut (impl AsyncWriteExt + Unpin),
    ) -> anyhow::Result<()> {
        let request = decode::<SealedEnrolRequest>(&read_request(receive).await?)?;
        let answer = match self.enrol(&request, self.now()).await {
            Ok(enrolled) => {
                tracing::info!(node = %enrolled.node, name = %enrolled.name, incarnation = enrolled.incarnation,
                    role = enrolled.role.name(), "node enrolled");
                EnrolAnswer::Enrolled(enrolled)
            }
            Err(why) => {
                tracing::warn!(%why, "enrolment refused");
                EnrolAnswer::Refused(why)
            }
        };
        write_answer(send, &minicbor::to_vec(&answer)?).await
    }

    /// The same for a renewal.
    async fn exchange_renewal(
        &self,
        certificate: &CertificateDer<'_>,
        receive: &mut (impl AsyncReadExt + Unpin),
        send: &mut (impl AsyncWriteExt + Unpin),
    ) -> anyhow::Result<()> {
        let request = decode::<RenewRequest>(&read_request(receive).await?)?;
        let answer = match self.renew(&request, certificate, self.now()).await {
            Ok(renewed) => RenewAnswer::Renewed(renewed.to_vec().into()),
            Err(why) => {
                let node = peer_of(certificate).map_or(0, |(node, _)| node.0);
                tracing::warn!(node, %why, "renewal refused");
                RenewAnswer::Refused(why)
            }
        };
        write_answer(send, &minicbor::to_vec(&answer)?).await
    }

    /// Decides a renewal under a certificate that the handshake has proven, be it expired.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn renew(
        &self,
        request: &RenewRequest,
        certificate: &CertificateDer<'_>,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, String> {
        if request.version != PROTOCOL_VERSION {
            return Err(format!("the centre speaks version {PROTOCOL_VERSION}"));
        }
        let (node, incarnation) = peer_of(certificate).ok_or("the certificate names no node")?;
        let (from, until) = validity(certificate).ok_or_else(|| internal("certificate"))?;
        if !self.renews {
            return Err("renewal is switched off (renew_certificates); enrol the building anew".to_owned());
        }
        let allowed = self.core.command(Command::Renew { node, incarnation }).await;
        let allowed = allowed.map_err(|error| error.message)?;
        // A node asks at two thirds; sooner it would only make work.
        if until.ms_since(now) > until.ms_since(from) / 2 {
            return Err("the certificate is good for more than half of its time yet".to_owned());
        }
        let signed = self
            .authority
            .proven_key(certificate)
            .and_then(|key| self.authority.sign_node(&key, node, incarnation, now));
        let renewed = signed.map_err(|error| {
            tracing::error!(error = %chain(&error), "certificate not signed");
            internal("certificate")
        })?;
        let expired = until <= now;
        tracing::info!(%node, name = %allowed["name"], incarnation, expired, "certificate renewed");
        Ok(renewed)
    }

    /// Decides a request.
    ///
    /// # Errors
    /// Why it is refused, for the operator at the node.
    pub async fn enrol(&self, sealed: &SealedEnrolRequest, now: Timestamp) -> Result<Enrolled, String> {
        let request = &sealed.request;
        let lookup = hex(&request.lookup);
        // The core counts this as a try, so a wrong MAC is one.
        let known = self
            .core
            .command(Command::LookUpEnrolment { lookup: lookup.clone() })
            .await
            .map_err(|error| error.message)?;
        let known: Known = serde_json::from_value(known).map_err(|_| internal("lookup"))?;
        let secret = unhex(&known.secret)
            .and_then(|secret| <[u8; 16]>::try_from(secret).ok())
            .ok_or_else(|| internal("secret"))?;
        if !self.authority.code(secret).verify(request, &sealed.mac) {
            return Err("the request is not sealed with this code".to_owned());
        }
        let key = self.authority.check_request(&request.certificate_request).map_err(|e| e.to_string())?;
        if ed25519_dalek::VerifyingKey::from_bytes(&request.log_key).is_err() {
            return Err("the log key is not an Ed25519 public key".to_owned());
        }

        let (log_key, pin_key) = (hex(&request.log_key), request.pin_key);
        let enrol = Command::Enrol { lookup, log_key, pin_key };
        let made = self.core.command(enrol).await.map_err(|error| error.message)?;
        let made: Made = serde_json::from_value(made).map_err(|_| internal("enrolment"))?;
        if (&made.name, made.role) != (&known.name, known.role) {
            return Err(internal("name"));
        }
        let certificate =
            self.authority.sign_node(&key, made.node, made.incarnation, now).map_err(|error| {
                tracing::error!(error = %chain(&error), "certificate not signed");
                internal("certificate")
            })?;
        Ok(Enrolled {
            institution: made.institution,
            campus: made.campus,
            node: made.node,
            name: made.name,
            role: made.role,
            incarnation: made.incarnation,
            certificate: certificate.to_vec().into(),
            ca: self.authority.ca().to_vec().into(),
            centre_log_key: self.authority.log_key().verifying_key().to_bytes(),
        })
    }
}

/// A request: 4 bytes of length, then so many.
async fn read_request(receive: &mut (impl AsyncReadExt + Unpin)) -> anyhow::Result<Vec<u8>> {
    tokio::time::timeout(ENROLMENT_TIME, async {
        let length = receive.read_u32().await?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        anyhow::ensure!(length <= ENROL_BYTES_MAX, "an enrolment request of {length} bytes is too long");
        let mut bytes = vec![0; length];
        receive.read_exact(&mut bytes).await?;
        Ok(bytes)
    })
    .await?
}

async fn write_answer(send: &mut (impl AsyncWriteExt + Unpin), answer: &[u8]) -> anyhow::Result<()> {
    send.write_u32(u32::try_from(answer.len())?).await?;
    send.write_all(answer).await?;
    Ok(())
}

fn internal(what: &str) -> String {
    format!("the centre failed ({what}); make a new code and look at the centre's log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Core, WallClock, drive, queue};
    use crate::io::{CommandError, Input, Now, Output, Reply};
    use feiqian_protocol::enrol::{EnrolCode, EnrolRequest};
    use feiqian_protocol::limits::{ENROL_CODE_SECONDS, ENROL_TRIES_MAX};
    use serde_json::json;

    const SECRET: [u8; 16] = [9; 16];

    /// One code, as the core keeps it: good once, for a time, for a few tries.
    struct FakeCore {
        valid_until: Timestamp,
        tries: u32,
        used: bool,
    }

    impl FakeCore {
        fn answer(&mut self, command: &Command, real: Timestamp) -> Reply {
            let refuse = |code, message: &str| Err(CommandError { code, message: message.to_owned() });
            let lookup = EnrolCode { secret: SECRET, ca: [0; 16] }.lookup();
            match command {
                Command::LookUpEnrolment { lookup: asked } if *asked == hex(&lookup) => {
                    self.tries += 1;
                    if self.used {
                        refuse("enrolment_used", "the code was used")
                    } else if real > self.valid_until {
                        refuse("enrolment_expired", "the code has expired")
                    } else if self.tries > ENROL_TRIES_MAX {
                        refuse("enrolment_used", "too many tries")
                    } else {
                        Ok(json!({"name": "canteen-red", "role": "pos", "secret": hex(&SECRET)}))
                    }
                }
                Command::Enrol { .. } => {
                    self.used = true;
                    Ok(json!({"node": 3, "incarnation": 1, "institution": 1, "campus": 2,
                              "name": "canteen-red", "role": "pos"}))
                }
                Command::Renew { node: NodeId(3), incarnation: 1 } => Ok(json!({"name": "canteen-red"})),
                _ => refuse("enrolment_unknown", "no such code"),
            }
        }
    }

    impl Core for FakeCore {
        type Error = std::io::Error;

        fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> std::io::Result<()> {
            for input in inputs {
                if let Input::Command(ticket, command) = input {
                    outputs.push(Output::Reply(ticket, self.answer(&command, now.real)));
                }
            }
            Ok(())
        }

        fn next_timer(&self) -> Option<u64> {
            None
        }
    }

    /// A desk whose code is valid for so long.
    fn desk(valid_ms: i64) -> (tempfile::TempDir, Arc<Authority>, Desk) {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), InstitutionId(1), real_now()).unwrap();
        let authority = Arc::new(Authority::open(dir.path(), real_now()).unwrap());
        let (core, events) = queue();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            let open = || {
                let valid_until = real_now().plus_ms(valid_ms);
                Ok::<_, std::io::Error>(FakeCore { valid_until, tries: 0, used: false })
            };
            drive(&runtime, events, WallClock::Real, open, tokio::sync::oneshot::channel().0)
        });
        (dir, Arc::clone(&authority), Desk::new(authority, core, true))
    }

    const DAY_MS: i64 = 24 * 3_600_000;

    /// A certificate of node 3 that was signed so many days ago.
    fn certificate(authority: &Authority, days_ago: i64) -> CertificateDer<'static> {
        let code = authority.code(SECRET);
        let key = authority.check_request(&request(&code).certificate_request).unwrap();
        authority.sign_node(&key, NodeId(3), 1, real_now().plus_ms(-days_ago * DAY_MS)).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_is_renewed_late_enough_for_the_same_key_and_name() {
        let (_dir, authority, desk) = desk(0);
        let request = RenewRequest { version: PROTOCOL_VERSION };
        for days_ago in [200, 800] {
            let old = certificate(&authority, days_ago);
            let renewed = desk.renew(&request, &old, real_now()).await.unwrap();
            assert_eq!(peer_of(&renewed), Some((NodeId(3), 1)));
            let spki = |certificate: &CertificateDer<'_>| {
                let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
                parsed.public_key().raw.to_vec()
            };
            assert_eq!(spki(&old), spki(&renewed));
            assert!(validity(&renewed).unwrap().1.ms_since(real_now()) > 300 * DAY_MS);
        }
        let early = desk.renew(&request, &certificate(&authority, 100), real_now()).await.unwrap_err();
        assert!(early.contains("more than half"), "{early}");
        let other = RenewRequest { version: PROTOCOL_VERSION + 1 };
        assert!(desk.renew(&other, &certificate(&authority, 200), real_now()).await.is_err());
        let off = Desk { renews: false, ..desk };
        let refused = off.renew(&request, &certificate(&authority, 200), real_now()).await.unwrap_err();
        assert!(refused.contains("renew_certificates"), "{refused}");
    }

    fn request(code: &EnrolCode) -> EnrolRequest {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let log_key = ed25519_dalek::SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes();
        EnrolRequest {
            lookup: code.lookup(),
            certificate_request: request.der().to_vec().into(),
            log_key,
            pin_key: None,
        }
    }

    fn sealed(code: &EnrolCode) -> SealedEnrolRequest {
        let request = request(code);
        SealedEnrolRequest { mac: code.mac(&request), request }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_code_enrols_one_node_once() {
        let (_dir, authority, desk) = desk(ENROL_CODE_SECONDS * 1_000);
        let code = authority.code(SECRET);
        let enrolled = desk.enrol(&sealed(&code), real_now()).await.unwrap();
        assert_eq!((enrolled.node, enrolled.campus), (NodeId(3), CampusId(2)));
        let certificate = CertificateDer::from(enrolled.certificate.to_vec());
        assert_eq!(peer_of(&certificate), Some((NodeId(3), 1)));
        assert_eq!(enrolled.centre_log_key, authority.log_key().verifying_key().to_bytes());
        let again = desk.enrol(&sealed(&code), real_now()).await.unwrap_err();
        assert!(again.contains("used"), "{again}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_wrong_seal_is_refused_and_counts_as_a_try() {
        let (_dir, authority, desk) = desk(ENROL_CODE_SECONDS * 1_000);
        let code = authority.code(SECRET);
        for _ in 0..ENROL_TRIES_MAX {
            let mut forged = sealed(&code);
            forged.request.log_key[0] ^= 1;
            let why = desk.enrol(&forged, real_now()).await.unwrap_err();
            assert!(why.contains("sealed"), "{why}");
        }
        let why = desk.enrol(&sealed(&code), real_now()).await.unwrap_err();
        assert!(why.contains("tries"), "{why}");
        let unknown = authority.code([1; 16]);
        assert_eq!(desk.enrol(&sealed(&unknown), real_now()).await.unwrap_err(), "no such code");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_late_code_is_refused() {
        let (_dir, authority, desk) = desk(-1);
        let why = desk.enrol(&sealed(&authority.code(SECRET)), real_now()).await.unwrap_err();
        assert!(why.contains("expired"), "{why}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_is_not_its_keys_is_refused_and_the_code_stays() {
        let (_dir, authority, desk) = desk(ENROL_CODE_SECONDS * 1_000);
        let code = authority.code(SECRET);
        let mut request = request(&code);
        let mut bytes = request.certificate_request.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        request.certificate_request = bytes.into();
        let broken = SealedEnrolRequest { mac: code.mac(&request), request };
        assert!(desk.enrol(&broken, real_now()).await.is_err());
        assert!(desk.enrol(&sealed(&code), real_now()).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_exchange_is_bounded_and_answers_in_one_message() {
        let (_dir, authority, desk) = desk(ENROL_CODE_SECONDS * 1_000);
        let mut sent = Vec::new();
        let long = (ENROL_BYTES_MAX as u32 + 1).to_be_bytes();
        assert!(desk.exchange(&mut &long[..], &mut sent).await.is_err());
        assert!(desk.exchange(&mut &[0, 0, 0, 2, 1][..], &mut sent).await.is_err(), "cut short");
        assert!(desk.exchange(&mut &[0, 0, 0, 1, 1][..], &mut sent).await.is_err(), "no request");
        assert!(sent.is_empty());

        let bytes = minicbor::to_vec(sealed(&authority.code(SECRET))).unwrap();
        let mut message = (bytes.len() as u32).to_be_bytes().to_vec();
        message.extend(bytes);
        desk.exchange(&mut message.as_slice(), &mut sent).await.unwrap();
        assert_eq!(sent.len() - 4, u32::from_be_bytes(sent[..4].try_into().unwrap()) as usize);
        assert!(matches!(decode::<EnrolAnswer>(&sent[4..]).unwrap(), EnrolAnswer::Enrolled(_)));
    }
}
