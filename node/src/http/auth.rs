//! Who speaks: [`feiqian_protocol::terminal`], with a key for each terminal that follows from one secret of the node.

use feiqian_protocol::ids::TerminalId;
pub use feiqian_protocol::terminal::{MAC_HEADER, MacBytes, TERMINAL_HEADER, TerminalKey, parse_mac};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What the keys of all terminals of a node are derived from.
#[derive(Clone)]
pub struct TerminalSecret([u8; 32]);

impl TerminalSecret {
    /// From its bytes.
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The key of a terminal.
    pub fn key(&self, terminal: &TerminalId) -> TerminalKey {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"feiqian-terminal-key-1\0");
        mac.update(terminal.as_str().as_bytes());
        TerminalKey::new(mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_terminal_has_a_key_of_its_own() {
        let key =
            |terminal| *TerminalSecret::new([7; 32]).key(&TerminalId::new(terminal).unwrap()).as_bytes();
        assert_eq!(key("pos-1"), key("pos-1"));
        assert_ne!(key("pos-1"), key("pos-2"));
    }
}
