//! Renewal of the node's certificate, under the certificate itself: from two thirds of its life on, and where the centre says
//! that it has expired.
//!
//! The node connects with its certificate, says that it wants a newer one, and gets one for the same key and names. It is
//! kept in the data directory first; from then on every handshake shows it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use feiqian_protocol::enrol::{self, RenewAnswer, RenewRequest};
use feiqian_protocol::frame::{ALPN_RENEW, PROTOCOL_VERSION};
use feiqian_protocol::ids::NodeId;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;

use crate::config::HostPort;
use crate::drive::Chain;
use crate::identity::{DataDir, DataDirError};
use crate::join::read_answer;
use crate::link::{self, Dialer, LinkError};
use crate::tls::{self, CertificateTime, NodeCertificate, TlsError};

/// How long the centre may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a renewal that came to nothing. The centre may be out of reach for days, and there is time.
const RETRY_PAUSE: Duration = Duration::from_secs(600);

/// The same where the certificate has expired: until it is renewed the building has no session.
const RETRY_PAUSE_EXPIRED: Duration = Duration::from_secs(20);

/// How often the time is looked at, and a centre that said no is asked again: a wall clock may be set, and so may the centre.
const LOOK: Duration = Duration::from_secs(3_600);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The connection.
    #[error("the centre cannot be reached for it")]
    Link(#[from] LinkError),
    /// TLS with what there is.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The exchange broke.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    /// The centre says no.
    #[error("the centre refused: {0}")]
    Refused(String),
    /// What it gave is not what it must be.
    #[error("the centre's answer is not valid: {0}")]
    Answer(String),
    /// It cannot be kept.
    #[error("the new certificate cannot be kept")]
    DataDir(#[from] DataDirError),
}

/// What a renewal needs.
pub struct Renewal {
    /// Where the certificate is kept.
    pub dir: DataDir,
    /// This node.
    pub node: NodeId,
    /// The centre.
    pub centre: HostPort,
    /// What connects to it.
    pub dialer: Dialer,
    /// The certificate that is renewed.
    pub certificate: Arc<NodeCertificate>,
    /// What it is judged by.
    pub time: CertificateTime,
    /// Told once an expired certificate was renewed: the link is to be made anew.
    pub renewed: Arc<Notify>,
}

impl Renewal {
    /// Renews the certificate whenever it is time, for ever.
    pub async fn run(self) {
        // True where the link may still be one that was made under the certificate before.
        let mut fresh = false;
        loop {
            if fresh && self.time.is_expired() {
                fresh = false;
                self.time.set_expired(false);
                self.renewed.notify_one();
                // What the core says next may still be about the old link.
                tokio::time::sleep(RETRY_PAUSE_EXPIRED).await;
            }
            let now = self.time.current_time().unwrap_or_else(UnixTime::now);
            let due = self.certificate.certificate().as_ref().and_then(due);
            let wait = match due {
                _ if self.time.is_expired() => Duration::ZERO,
                Some(due) => Duration::from_secs(due.as_secs().saturating_sub(now.as_secs())).min(LOOK),
                None => LOOK,
            };
            if !wait.is_zero() {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(wait) => {}
                    () = self.time.expired() => {}
                }
                continue;
            }
            let expired = self.time.is_expired();
            match self.renew().await {
                Ok(()) => {
                    tracing::info!("certificate renewed");
                    fresh = true;
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the certificate is not renewed");
                    let pause = match error {
                        RenewError::Refused(_) => LOOK,
                        _ if expired => RETRY_PAUSE_EXPIRED,
                        _ => RETRY_PAUSE,
                    };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Renews it once.
    ///
    /// # Errors
    /// [`RenewError`]; the certificate is what it was.
    async fn renew(&self) -> Result<(), RenewError> {
        let tls = tls::link_config(&self.certificate, &self.time, ALPN_RENEW)?;
        let config = link::client_config(tls, TIMEOUT)?;
        let addresses = link::addresses(&self.centre).await?;
        let connection = self.dialer.connect_any(&config, addresses, TIMEOUT).await?;
        let answer = tokio::time::timeout(TIMEOUT, ask(&connection))
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()));
        let answer = answer.map_err(|error| match connection.close_reason() {
            // The connection's own end says more than that of the stream which broke with it.
            Some(reason) => RenewError::Link(reason.into()),
            None => error.into(),
        });
        connection.close(quinn::VarInt::from_u32(0), b"renewed");
        let renewed = match enrol::decode(&answer?) {
            Ok(RenewAnswer::Renewed(renewed)) => CertificateDer::from(Vec::from(renewed)),
            Ok(RenewAnswer::Refused(why)) => return Err(RenewError::Refused(why)),
            Err(error) => return Err(RenewError::Answer(error.to_string())),
        };
        let held = self.certificate.certificate();
        let key = held.as_ref().and_then(tls::public_key).unwrap_or_default();
        let ca = self.certificate.ca();
        tls::check_certificate(&renewed, ca, &key, self.node, &self.time).map_err(RenewError::Answer)?;
        self.dir.store_certificate(&renewed)?;
        self.certificate.replace(renewed);
        Ok(())
    }
}

/// One two-way stream: a request, an answer, each with 4 bytes of length.
async fn ask(connection: &quinn::Connection) -> io::Result<Vec<u8>> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let request = RenewRequest { version: PROTOCOL_VERSION };
    let request = minicbor::to_vec(request).expect("writing to a Vec cannot fail");
    let length = u32::try_from(request.len()).expect("a request is short");
    send.write_all(&length.to_be_bytes()).await?;
    send.write_all(&request).await?;
    // Fails only where the stream is closed, which reading reports.
    let _ = send.finish();
    read_answer(&mut receive).await
}

/// When a certificate is to be renewed: at two thirds of its life.
fn due(certificate: &CertificateDer<'static>) -> Option<UnixTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (from, until) = (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after));
    Some(UnixTime::since_unix_epoch(Duration::from_secs(from + until.saturating_sub(from) / 3 * 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2025, 1, 31);
        let certificate = params.self_signed(&key).unwrap();
        let due = due(certificate.der()).unwrap();
        assert_eq!(due.as_secs(), rcgen::date_time_ymd(2025, 1, 21).unix_timestamp() as u64);
    }
}
