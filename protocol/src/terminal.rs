//! Who speaks in the terminal API: HMAC-SHA-256 (RFC 2104) with a key per terminal, over requests and over answers.
//!
//! TLS alone would let anybody on the building's network pose as a terminal, and anybody who can answer in the node's
//! place say "approved" to a terminal that checks no certificate.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::chain::{hex, unhex};

/// Names the terminal, in a request.
pub const TERMINAL_HEADER: &str = "x-feiqian-terminal";

/// The MAC as hexadecimal digits, in a request and in its answer.
pub const MAC_HEADER: &str = "x-feiqian-mac";

/// A MAC.
pub type MacBytes = [u8; 32];

/// The key of one terminal.
#[derive(Clone)]
pub struct TerminalKey([u8; 32]);

impl TerminalKey {
    /// From its bytes: the terminal's side.
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Its bytes, to be carried to the terminal.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The MAC of a request.
    pub fn request_mac(&self, method: &str, path: &str, body: &[u8]) -> MacBytes {
        self.request(method, path, body).finalize().into_bytes().into()
    }

    /// True where the MAC is of this request; compared in constant time.
    pub fn verify_request(&self, method: &str, path: &str, body: &[u8], mac: &MacBytes) -> bool {
        self.request(method, path, body).verify_slice(mac).is_ok()
    }

    /// The MAC of the answer to the request with this MAC, which goes in as lower-case hexadecimal digits.
    pub fn answer_mac(&self, request: &MacBytes, status: u16, body: &[u8]) -> MacBytes {
        self.answer(request, status, body).finalize().into_bytes().into()
    }

    /// True where the MAC is of this answer; compared in constant time.
    pub fn verify_answer(&self, request: &MacBytes, status: u16, body: &[u8], mac: &MacBytes) -> bool {
        self.answer(request, status, body).verify_slice(mac).is_ok()
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> Hmac<Sha256> {
        let parts = [&b"feiqian-request-1\n"[..], method.as_bytes(), b"\n", path.as_bytes(), b"\n", body];
        keyed(&self.0, &parts)
    }

    fn answer(&self, request: &MacBytes, status: u16, body: &[u8]) -> Hmac<Sha256> {
        let (request, status) = (hex(request), status.to_string());
        let parts = [&b"feiqian-answer-1\n"[..], request.as_bytes(), b"\n", status.as_bytes(), b"\n", body];
        keyed(&self.0, &parts)
    }
}

/// The bytes of a MAC in a header.
pub fn parse_mac(text: &str) -> Option<MacBytes> {
    unhex(text)?.try_into().ok()
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_of_one_terminal_and_one_request() {
        let mac = TerminalKey::new([7; 32]).request_mac("POST", "/v1/taps", b"{}");
        assert!(TerminalKey::new([7; 32]).verify_request("POST", "/v1/taps", b"{}", &mac));
        assert!(!TerminalKey::new([8; 32]).verify_request("POST", "/v1/taps", b"{}", &mac));
        assert!(!TerminalKey::new([7; 32]).verify_request("POST", "/v1/reversals", b"{}", &mac));
        assert!(!TerminalKey::new([7; 32]).verify_request("POST", "/v1/taps", b"{} ", &mac));
        assert_eq!(parse_mac(&hex(&mac)), Some(mac));
        assert_eq!(parse_mac("00"), None);
        assert_eq!(parse_mac("no hexadecimal digits"), None);
    }

    #[test]
    fn an_answer_belongs_to_its_request_and_status() {
        let request = TerminalKey::new([7; 32]).request_mac("POST", "/v1/taps", b"{}");
        let mac = TerminalKey::new([7; 32]).answer_mac(&request, 200, b"yes");
        assert!(TerminalKey::new([7; 32]).verify_answer(&request, 200, b"yes", &mac));
        assert!(!TerminalKey::new([7; 32]).verify_answer(&[0; 32], 200, b"yes", &mac));
        assert!(!TerminalKey::new([7; 32]).verify_answer(&request, 503, b"yes", &mac));
        assert!(!TerminalKey::new([7; 32]).verify_answer(&request, 200, b"no", &mac));
        assert_ne!(request, mac);
    }
}
