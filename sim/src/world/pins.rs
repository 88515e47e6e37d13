//! Payment PINs of the simulated campus, and what the shell of a node makes of one that is typed.
//!
//! Most accounts have a PIN of their holder's choice, one in eight has the initial one, and one in eight has none. The shell's
//! Argon2 is left out: what it gives is any function of the PIN as far as the cores can tell.

use anyhow::Result;
use feiqian_node::io::Identity;
use feiqian_protocol::ids::Key;
use feiqian_protocol::pin::{PinGeneration, PinHash, PinKey};
use feiqian_protocol::tap::{Pin, TapRequest};
use feiqian_reconcile::io::Command;
use feiqian_reconcile::pin::HashedPin;

use super::World;
use crate::promises::ledger::Sent;
use crate::promises::pins::{PinKind, is_probe, kind_of, pin_of};

const RIGHT: PinHash = PinHash::new([1; 32]);
const WRONG: PinHash = PinHash::new([2; 32]);

/// The key that a node makes its digests with: any that is its own.
pub(super) fn key_of(identity: &Identity) -> PinKey {
    PinKey::new(identity.log_key.to_bytes())
}

/// The initial PIN of an account, where it has one.
pub(super) fn initial(account: usize) -> Option<HashedPin> {
    (kind_of(account) == PinKind::Initial).then(|| HashedPin { generation: pin_of(account), hash: RIGHT })
}

impl World<'_> {
    /// Has holders choose their PINs.
    pub(super) fn choose_pins(&mut self) -> Result<()> {
        let operator = Key::new("operator")?;
        for account in 0..self.plan.accounts.len() {
            if kind_of(account) == PinKind::Chosen {
                let card = self.plan.accounts[account].card.clone();
                let pin = HashedPin { generation: pin_of(account), hash: RIGHT };
                self.must(Command::SetPin { card, pin, operator: operator.clone() })?;
            }
        }
        Ok(())
    }

    /// A request as the shell of this site gives it to the core.
    pub(super) fn hashed(&self, site: usize, sent: &Sent) -> Sent {
        let Sent::Tap(tap) = sent else { return sent.clone() };
        let hash = match tap.pin {
            // What is asked at the end is about money.
            _ if is_probe(&tap.key) => return sent.clone(),
            Pin::Right => RIGHT,
            Pin::Wrong => WRONG,
            _ => return sent.clone(),
        };
        let account = self.plan.accounts.iter().position(|account| account.card == tap.card);
        let generation: Option<PinGeneration> = account.map(pin_of);
        let pin = generation.map_or(Pin::NotHashed, |generation| Pin::Entered {
            generation,
            digest: key_of(&self.sites[site].identity).digest(generation, &hash),
        });
        Sent::Tap(TapRequest { pin, ..tap.clone() })
    }
}
