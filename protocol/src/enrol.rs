//! Enrolment: how a blank node becomes one of the institution's.
//!
//! The operator carries a code from the centre to the node: a secret of 128 bits, and 128 bits of the SHA-256 of the
//! institution CA's public key. The node connects, checks that the centre's certificate comes from that CA, and sends
//! its request under a MAC keyed with the secret, so that the code is good for this request only.

use hmac::{Hmac, KeyInit, Mac};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chain::{hex, unhex};
use crate::ids::{CampusId, InstitutionId, NodeId, NodeName};
use crate::limits::ENROL_BYTES_MAX;
use crate::pin::PinKey;

/// What a node may write; checked at ingest.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Purchases and access.
    #[n(0)]
    Pos,
    /// Access only.
    #[n(1)]
    Door,
    /// Purchases, access, and narrowing of settings.
    #[n(2)]
    Kiosk,
    /// As a kiosk, and cash taken in.
    #[n(3)]
    Desk,
}

impl Role {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pos => "pos",
            Self::Door => "door",
            Self::Kiosk => "kiosk",
            Self::Desk => "desk",
        }
    }

    /// Whether a node of this role may write an entry of this kind.
    pub const fn may_write(self, body: &crate::entry::Body) -> bool {
        use crate::entry::Body;
        match body {
            Body::Access(_)
            | Body::CardShown(_)
            | Body::Decline(_)
            | Body::EpochEnd(_)
            | Body::Release(_)
            | Body::ShareRelease(_)
            | Body::Tombstone(_)
            | Body::Unknown { .. } => true,
            Body::Debit(_) | Body::Reversal(_) | Body::PursePurchase(_) | Body::PurseLoaded(_) => {
                !matches!(self, Self::Door)
            }
            Body::Setting(_) | Body::WrongPin(_) => matches!(self, Self::Kiosk | Self::Desk),
            Body::TakenIn(_) => matches!(self, Self::Desk),
            _ => false,
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pos" => Ok(Self::Pos),
            "door" => Ok(Self::Door),
            "kiosk" => Ok(Self::Kiosk),
            "desk" => Ok(Self::Desk),
            _ => Err(format!("{text:?} is no role (pos, door, kiosk, desk)")),
        }
    }
}

/// A one-time enrolment code.
#[derive(Clone, Eq, PartialEq)]
pub struct EnrolCode {
    /// The secret.
    pub secret: [u8; 16],
    /// The first half of the SHA-256 of the CA's public key (DER SubjectPublicKeyInfo).
    pub ca: [u8; 16],
}

impl EnrolCode {
    /// Makes the code for a CA.
    pub fn new(secret: [u8; 16], ca_public_key_der: &[u8]) -> Self {
        Self { secret, ca: Self::ca_pin(ca_public_key_der) }
    }

    /// What is pinned of a CA.
    pub fn ca_pin(ca_public_key_der: &[u8]) -> [u8; 16] {
        let hash: [u8; 32] = Sha256::digest(ca_public_key_der).into();
        std::array::from_fn(|index| hash[index])
    }

    /// By what the centre finds the code; tells nothing of the secret.
    pub fn lookup(&self) -> [u8; 32] {
        Sha256::new().chain_update(b"feiqian-enrol-lookup-1\0").chain_update(self.secret).finalize().into()
    }

    /// The MAC (HMAC-SHA-256, RFC 2104) that binds a request to the code.
    pub fn mac(&self, request: &EnrolRequest) -> [u8; 32] {
        self.keyed(request).finalize().into_bytes().into()
    }

    /// True where the MAC is of this request, compared in constant time.
    pub fn verify(&self, request: &EnrolRequest, mac: &[u8; 32]) -> bool {
        self.keyed(request).verify_slice(mac).is_ok()
    }

    fn keyed(&self, request: &EnrolRequest) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(b"feiqian-enrol-request-1\0");
        mac.update(&minicbor::to_vec(request).expect("writing to a Vec cannot fail"));
        mac
    }
}

impl std::fmt::Display for EnrolCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", hex(&self.secret), hex(&self.ca))
    }
}

/// Shows nothing of the secret.
impl std::fmt::Debug for EnrolCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EnrolCode(..)")
    }
}

impl std::str::FromStr for EnrolCode {
    type Err = EnrolError;
    fn from_str(text: &str) -> Result<Self, EnrolError> {
        let half = |part: &str| unhex(part).and_then(|bytes| bytes.try_into().ok());
        text.trim()
            .split_once('-')
            .and_then(|(secret, ca)| Some(Self { secret: half(secret)?, ca: half(ca)? }))
            .ok_or(EnrolError::Code)
    }
}

/// What a node asks for.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct EnrolRequest {
    /// By what the centre finds the code.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub lookup: [u8; 32],
    /// A PKCS #10 certificate request (DER) for the node's TLS key.
    #[n(1)]
    pub certificate_request: ByteVec,
    /// The public key (Ed25519) of the node's log.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub log_key: [u8; 32],
    /// The key under which the centre makes verifiers of PINs for this node; absent from nodes that cannot check a PIN.
    #[n(3)]
    pub pin_key: Option<PinKey>,
}

/// A request and the MAC that binds it to a code.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SealedEnrolRequest {
    /// The request.
    #[n(0)]
    pub request: EnrolRequest,
    /// See [`EnrolCode::mac`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// What a node gets.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum EnrolAnswer {
    /// Welcome.
    #[n(0)]
    Enrolled(#[n(0)] Enrolled),
    /// No, and why; for the operator.
    #[n(1)]
    Refused(#[n(0)] String),
}

/// A node's identity, as the centre gives it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Enrolled {
    /// The institution.
    #[n(0)]
    pub institution: InstitutionId,
    /// The campus.
    #[n(1)]
    pub campus: CampusId,
    /// The node's number.
    #[n(2)]
    pub node: NodeId,
    /// Its name.
    #[n(3)]
    pub name: NodeName,
    /// What it may write.
    #[n(4)]
    pub role: Role,
    /// Counts its enrolments from 1.
    #[n(5)]
    pub incarnation: u32,
    /// Its certificate (DER).
    #[n(6)]
    pub certificate: ByteVec,
    /// The CA's certificate (DER).
    #[n(7)]
    pub ca: ByteVec,
    /// The public key (Ed25519) that the centre signs its streams with.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub centre_log_key: [u8; 32],
}

/// What a node sends to have its certificate renewed. Who asks, and for which key, says the certificate that it shows.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct RenewRequest {
    /// [`crate::frame::PROTOCOL_VERSION`] of the sender.
    #[n(0)]
    pub version: u16,
}

/// What it gets.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum RenewAnswer {
    /// A new certificate (DER) for the same node and key.
    #[n(0)]
    Renewed(#[n(0)] ByteVec),
    /// No, and why.
    #[n(1)]
    Refused(#[n(0)] String),
}

/// Why enrolment data is not valid.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Not an enrolment code.
    #[error("not an enrolment code: two groups of 32 hexadecimal digits joined by a hyphen are expected")]
    Code,
    /// Longer than [`ENROL_BYTES_MAX`].
    #[error("an enrolment message of {0} bytes, more than {ENROL_BYTES_MAX}")]
    TooLong(usize),
    /// Not the CBOR that is expected.
    #[error("the enrolment message is malformed")]
    Malformed(#[from] minicbor::decode::Error),
    /// Something follows the message.
    #[error("the enrolment message has bytes after its end")]
    TrailingBytes,
}

/// Reads one of the messages of enrolment and renewal.
///
/// # Errors
/// [`EnrolError`] says what is wrong.
pub fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, EnrolError> {
    if bytes.len() > ENROL_BYTES_MAX {
        return Err(EnrolError::TooLong(bytes.len()));
    }
    let mut decoder = minicbor::Decoder::new(bytes);
    let message = decoder.decode()?;
    if decoder.position() == bytes.len() { Ok(message) } else { Err(EnrolError::TrailingBytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_round_trips_and_binds_one_request() {
        let code = EnrolCode::new([7; 16], b"public key");
        assert_eq!(code.to_string().parse::<EnrolCode>().unwrap(), code);
        assert!("7".parse::<EnrolCode>().is_err());
        let request = EnrolRequest {
            lookup: code.lookup(),
            certificate_request: vec![1, 2].into(),
            log_key: [3; 32],
            pin_key: None,
        };
        let mac = code.mac(&request);
        assert!(code.verify(&request, &mac));
        let other = EnrolRequest { pin_key: Some(PinKey::new([4; 32])), ..request };
        assert!(!code.verify(&other, &mac));
        let sealed = SealedEnrolRequest { request: other, mac };
        let bytes = minicbor::to_vec(&sealed).unwrap();
        assert_eq!(decode::<SealedEnrolRequest>(&bytes).unwrap(), sealed);
        assert!(decode::<SealedEnrolRequest>(&bytes[1..]).is_err());
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<SealedEnrolRequest>(&longer), Err(EnrolError::TrailingBytes)));
    }
}
