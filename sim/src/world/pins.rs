//! Payment PINs of the simulated campus, and what the shell of a node makes of one that is typed.
//!
//! Most accounts have a PIN of their holder's choice, one in eight has the initial one, and one in eight has none. The shell's
//! Argon2 is left out: what it gives is any function of the PIN as far as the cores can tell.

use anyhow::Result;
use feiqian_node::io::Identity;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::limits::PIN_TRIES_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::{PinGeneration, PinHash, PinKey, SealedPins, TypedPins};
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapRequest};
use feiqian_reconcile::io::Command;
use feiqian_reconcile::pin::{HashedPin, PinStatus};
use rusqlite::OptionalExtension;

use super::hosts::Trust;
use super::{MS, World};
use crate::plan::{Ask, Manner, Tap};
use crate::promises::Promise;
use crate::promises::ledger::{Sent, Told};
use crate::promises::pins::{PinKind, kind_of, pin_of};
use crate::promises::probes::is_probe;

/// Accounts whose tries are looked at at the end.
const ACCOUNTS_LOOKED_AT: usize = 64;

/// How soon an answer, and word of a PIN, is there when all is quiet.
const TOLD_WITHIN_MS: u64 = 5_000;

/// Numbers of taps that are not in the plan.
const OWN_TAP: u32 = 1_400_000_000;

const RIGHT: PinHash = PinHash::new([1; 32]);
const WRONG: PinHash = PinHash::new([2; 32]);

/// The key that a node makes its digests with: any that is its own.
pub(super) fn key_of(identity: &Identity) -> PinKey {
    PinKey::new(identity.log_key.to_bytes())
}

/// What somebody makes up who has a node's keys and does not know the PIN that an account has.
pub(super) fn guessed(identity: &Identity, account: AccountId, generation: PinGeneration) -> SealedPins {
    key_of(identity).seal(account, generation, &TypedPins { current: WRONG, chosen: WRONG })
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
        let account = self.ledger.account_of(self.plan, &tap.card);
        let generation: Option<PinGeneration> = account.map(pin_of);
        let pin = generation.map_or(Pin::NotHashed, |generation| Pin::Entered {
            generation,
            digest: key_of(&self.sites[site].identity).digest(generation, &hash),
        });
        Sent::Tap(TapRequest { pin, ..tap.clone() })
    }

    /// Once everybody was heard, the centre shows the wrong tries that each building has counted; and where a PIN is locked, it stays so
    /// until the tries are forgotten at the centre.
    pub(super) fn check_tries(&mut self) -> Result<()> {
        let mut locked = None;
        for account in 0..self.plan.accounts.len().min(ACCOUNTS_LOOKED_AT) {
            let card = self.plan.accounts[account].card.clone();
            let Some(Ok(reply)) = self.command(Command::PinStatus { card: card.clone() }) else { continue };
            let shown: PinStatus = serde_json::from_value(reply)?;
            for building in 0..self.buildings.len() {
                let site = self.buildings[building].site;
                // Tries are shown by building, whichever box counted them.
                let boxes = self.sites.iter().filter(|other| other.building == building).count();
                if self.sites[site].trust != Trust::Sound || boxes > 1 {
                    continue;
                }
                let connection = self.node_tables(site)?.connection();
                let counted: Option<u8> = connection
                    .query_row("SELECT tries FROM pins WHERE account = ?1", [shown.account.0 as i64], |row| {
                        row.get(0)
                    })
                    .optional()?;
                let Some(counted) = counted else { continue };
                let name = self.plan.buildings[building].name.to_string();
                let told = shown.tries.get(&name).copied().unwrap_or(0);
                if told != counted {
                    let text = format!(
                        "{name} has counted {counted} wrong PINs of {card}, and the centre shows {told}"
                    );
                    self.violated(Promise::Pin, text);
                }
                let sells = self.plan.buildings[building].role != Role::Door;
                if counted >= PIN_TRIES_MAX && sells && !self.ledger.closings.contains_key(&account) {
                    locked.get_or_insert((building, card.clone()));
                }
            }
        }
        match locked {
            Some((building, card)) => self.unlock(building, &card),
            None => Ok(()),
        }
    }

    fn unlock(&mut self, building: usize, card: &CardNumber) -> Result<()> {
        let lost = self.centre_tables()?.lost_cards()?.contains(card);
        let locked = Decision::Declined(DeclineReason::PinLocked);
        for unlocked in [false, true] {
            if unlocked {
                self.must(Command::UnlockPin { card: card.clone() })?;
                self.run_until(self.now + TOLD_WITHIN_MS * MS)?;
            }
            let tap = Tap {
                number: OWN_TAP + u32::from(unlocked),
                building,
                terminal: 0,
                card: card.clone(),
                ask: Ask::Amount(Fen::new(10)),
                pin: Pin::Right,
                manner: Manner::Patient,
            };
            let index = self.begin(self.buildings[building].site, &tap);
            self.transmit(index);
            self.run_until(self.now + TOLD_WITHIN_MS * MS)?;
            let told = self.ledger.requests[index].told.clone();
            let is_locked = told == Some(Told::Decided(locked));
            if !lost && is_locked == unlocked {
                let what = if unlocked { "unlocked" } else { "locked" };
                let place = self.site_name(self.buildings[building].site);
                let text =
                    format!("the PIN of {card} is {what} at {place}, and the right one is told {told:?}");
                self.violated(Promise::Pin, text);
            }
        }
        Ok(())
    }
}
