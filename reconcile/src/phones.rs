//! Virtual cards at the centre: a phone's key becomes one, vouchers are signed for it, and a code that was used at two
//! buildings is found.
//!
//! Whoever talks to the local socket (the backend of the phone's app) has seen to it that the holder is who they say. The
//! centre's voucher keys follow from the key that signs its streams, by number, so that there is nothing to keep beside it.
//! Numbers of vouchers grow with the clock, so that a centre restored from a backup uses none again.
//!
//! **Replays.** A code pays once per building, so one that is shown at two of them in its window pays at both. What is ingested
//! later of the two is a fault and, if it took money without the PIN, a case of reason `code_replayed` in suspense. Nothing is given back
//! by rule, since people can lend codes on purpose: a person decides.

pub(crate) mod command;
mod short;

use ed25519_dalek::SigningKey;
use feiqian_protocol::account::{AccountSettings, CardStatus, Intent, phone_text, read_phone};
use feiqian_protocol::chain::unhex;
use feiqian_protocol::code::{PhoneAlgorithm, PhoneKey, SignedVoucher, Voucher};
use feiqian_protocol::entry::{Actor, CaseReason, CodeUse, EntryRef, TapRef};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, Wallet};
use feiqian_protocol::limits::VOUCHER_CEILING_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::{CommandError, Identity, Reply};
use crate::store::codes::{self, FirstUse};
use crate::store::holds;
use crate::store::{StoreError as Store, accounts, cases, corrupt};

/// Virtual cards that an account may have at once: a few devices.
const VIRTUAL_CARDS_MAX: usize = 4;

/// How long a voucher is good where that is not said, in minutes: over a weekend without network.
const LIFE_MINUTES: u16 = 3 * 24 * 60;

/// How long at most: a phone that is revoked still opens doors of a building that has not heard of it for so long.
const LIFE_MINUTES_MAX: u16 = 14 * 24 * 60;

/// The same where it holds money: until tomorrow's lunch; and at most, since for so long nobody else can spend that.
const PAYING_LIFE_MINUTES: u16 = 24 * 60;
const PAYING_LIFE_MINUTES_MAX: u16 = 3 * 24 * 60;

impl Identity {
    /// The key of a number that vouchers are signed with.
    pub fn voucher_key(&self, number: u8) -> SigningKey {
        let seed = Sha256::new()
            .chain_update(b"feiqian-voucher-key-1\0")
            .chain_update(self.log_key.to_bytes())
            .chain_update([number])
            .finalize();
        SigningKey::from_bytes(&seed.into())
    }
}

impl Round<'_> {
    /// Makes a virtual card of a phone's key. Said again, it changes nothing.
    pub(crate) fn activate_virtual_card(
        &mut self,
        card: &CardNumber,
        algorithm: &str,
        key: &str,
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let phone = match algorithm.parse::<PhoneAlgorithm>() {
            Ok(algorithm) => PhoneKey::new(algorithm, &unhex(key).unwrap_or_default()),
            Err(error) => return Ok(refused("phone_key", error.to_string())),
        };
        let phone = match phone {
            Ok(phone) => phone,
            Err(error) => return Ok(refused("phone_key", error.to_string())),
        };
        let virtual_card = CardNumber::of_phone(&phone);
        let reply = json!({ "account": account, "card": virtual_card });
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        match accounts::account_of_card(self.db, &virtual_card)? {
            Some(other) if other != account => {
                return Ok(refused("card_in_use", "the phone's key is a virtual card of another account"));
            }
            Some(_) if settings.cards.get(&virtual_card) != Some(&CardStatus::Void) => return Ok(Ok(reply)),
            _ => {}
        }
        let in_use =
            settings.phones.keys().filter(|card| settings.cards.get(card) != Some(&CardStatus::Void));
        if in_use.count() >= VIRTUAL_CARDS_MAX {
            let message = format!("the account has {VIRTUAL_CARDS_MAX} virtual cards; revoke one first");
            return Ok(refused("too_many_phones", message));
        }
        let intent = Intent::ActivateVirtualCard { card: virtual_card, phone: phone_text(&phone) };
        Ok(self.settle(account, intent, operator)?.map(|()| reply))
    }

    /// The key of a virtual card's phone, and the settings of its account, where it can be used; and paid with, where that is wanted.
    fn phone_in_use(
        &self,
        account: AccountId,
        card: &CardNumber,
        pays: bool,
    ) -> Result<Result<(AccountSettings, PhoneKey), CommandError>, StoreError> {
        let refused = |code, message: &str| Ok(Err(CommandError { code, message: message.to_owned() }));
        let Some(settings) = self.settings(account)? else {
            return refused("account", "the account has no document");
        };
        let Some(phone) = settings.phones.get(card).and_then(|phone| read_phone(phone)) else {
            return refused("not_virtual", "the card is no virtual card");
        };
        match settings.cards.get(card) {
            _ if settings.closed => refused("closed", "the account is closed"),
            _ if settings.frozen && pays => refused("frozen", "the account is frozen"),
            Some(CardStatus::Active) if settings.is_expired(self.state.day) => {
                refused("expired", "the account's last day is over")
            }
            Some(CardStatus::Active) => Ok(Ok((settings, phone))),
            Some(CardStatus::Lost) => refused("card_lost", "the phone is reported lost"),
            _ => refused("card_void", "the virtual card was revoked"),
        }
    }

    /// Signs a voucher for a virtual card. It stands for the account, and up to its ceiling money is held for it: what is asked
    /// for, or as much as there is. `after` is one that its phone has used; an unused one is given again.
    pub(crate) fn voucher(
        &mut self,
        card: &CardNumber,
        life_minutes: Option<u16>,
        wanted: Fen,
        after: Option<u32>,
    ) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let pays = wanted.is_positive();
        let (usual, most) = match pays {
            true => (PAYING_LIFE_MINUTES, PAYING_LIFE_MINUTES_MAX),
            false => (LIFE_MINUTES, LIFE_MINUTES_MAX),
        };
        let life_minutes = life_minutes.unwrap_or(usual);
        if !(1..=most).contains(&life_minutes) {
            return Ok(refused("life", format!("a voucher is good for 1 to {most} minutes")));
        }
        if wanted.is_negative() || wanted > VOUCHER_CEILING_FEN_MAX {
            let message = format!("a voucher holds from 0 to {VOUCHER_CEILING_FEN_MAX} yuan");
            return Ok(refused("ceiling", message));
        }
        let (settings, phone) = match self.phone_in_use(account, card, pays)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let now = self.state.time;
        let Ok(issued) = u32::try_from(now.0.div_euclid(1_000)) else {
            return Ok(refused("time", "the clock of the centre is none that a voucher can carry"));
        };
        let Some((centre_key, key)) = self.key_in_use(Timestamp(i64::from(issued) * 1_000)) else {
            let message = "the campus configuration has no voucher key for this time; feiqian-reconcile virtual-card key \
                           writes one";
            return Ok(refused("voucher_key", message));
        };
        let ceiling = if pays { self.can_hold(account, &settings, wanted)? } else { Fen::ZERO };
        let institution = self.state.identity.institution;
        if let Some(used) = after {
            holds::give_no_more(self.db, account, card, used)?;
        }
        if pays && let Some(signed) = self.unspent(account, card, ceiling)? {
            return Ok(Ok(self.told(&signed)));
        }
        let last = codes::last_voucher(self.db, account)?;
        let Some(number) = last.map_or(Some(issued), |last| last.checked_add(1).map(|next| next.max(issued)))
        else {
            return Ok(refused("voucher", "all numbers of vouchers are used"));
        };
        let voucher =
            Voucher { institution, centre_key, account, number, issued, life_minutes, ceiling, phone };
        let signed = voucher.sign(&key).map_err(|error| Store::Invariant(format!("a voucher: {error}")))?;
        codes::put_last_voucher(self.db, account, number)?;
        if pays {
            self.place_hold(&voucher, signed.as_bytes())?;
        }
        Ok(Ok(self.told(&signed)))
    }

    /// Of the vouchers of a virtual card whose money is held and that its phone is not known to have used, the one with the most:
    /// where it is no older than half its life and another would hold no more, or another would hold less. It is the older ones, too,
    /// that have the money of who has little.
    fn unspent(
        &self,
        account: AccountId,
        card: &CardNumber,
        ceiling: Fen,
    ) -> Result<Option<SignedVoucher>, StoreError> {
        let now = self.state.time.0.div_euclid(1_000);
        let institution = self.state.identity.institution;
        let mut held = holds::to_give_again(self.db, institution, account, card, now)?;
        held.retain(|hold| {
            let is_young = now < (i64::from(hold.issued) + i64::from(hold.until)) / 2;
            hold.ceiling > ceiling || (is_young && hold.ceiling == ceiling)
        });
        let most = held.into_iter().max_by_key(|hold| (hold.ceiling, hold.voucher));
        most.map(|hold| corrupt(SignedVoucher::from_bytes(&hold.signed).ok(), "a voucher")).transpose()
    }

    fn told(&self, signed: &SignedVoucher) -> Value {
        let voucher = signed.voucher();
        json!({
            "account": voucher.account,
            "card": voucher.card(),
            "voucher": signed.to_base64url(),
            "number": voucher.number,
            "ceiling_fen": voucher.ceiling,
            "issued_ms": i64::from(voucher.issued) * 1_000,
            "until_ms": i64::from(voucher.until()) * 1_000,
            "now_ms": self.state.time,
        })
    }

    /// Of the keys that are published for a voucher issued at this time, by its own second, the one that came last.
    fn key_in_use(&self, issued: Timestamp) -> Option<(u8, SigningKey)> {
        let published = &self.state.campus.as_ref()?.voucher_keys;
        let in_use = published.iter().filter(|key| (key.from_ms..key.to_ms).contains(&issued));
        let number = in_use.max_by_key(|key| (key.from_ms, key.number))?.number;
        Some((number, self.state.identity.voucher_key(number)))
    }

    /// The number of a published voucher key that is not this centre's, where there is one.
    pub(crate) fn foreign_voucher_key(&self, campus: &feiqian_protocol::campus::CampusConfig) -> Option<u8> {
        let own = |number| self.state.identity.voucher_key(number).verifying_key();
        campus.voucher_keys.iter().find(|key| own(key.number) != key.key).map(|key| key.number)
    }

    /// Notes what a code was used for; true where it had been used for something else before, and that is not what was
    /// taken for the replay.
    pub(crate) fn note_code(
        &mut self,
        at: EntryRef,
        actor: &Actor,
        account: AccountId,
        tap: &TapRef,
        code: Option<&CodeUse>,
    ) -> Result<bool, StoreError> {
        let Some(code) = code else { return Ok(false) };
        let tap = format!("{} {} {}", actor.id, tap.epoch, tap.sequence);
        let institution = self.state.identity.institution;
        let Some(FirstUse { at: first, tap: first_tap }) =
            codes::first_use(self.db, institution, account, code)?
        else {
            codes::put_first_use(self.db, account, code, &FirstUse { at, tap })?;
            codes::forget_uses(self.db, self.state.time)?;
            return Ok(false);
        };
        if (first.log, &first_tap) == (at.log, &tap) {
            return Ok(false);
        }
        for wallet in Wallet::SPENDING_ORDER {
            // A centre that has come back from an old copy may hear the two in the other order.
            let case = cases::loss_case(self.db, account, wallet, first)?;
            if case.is_some_and(|case| case.reason == CaseReason::CodeReplayed) {
                return Ok(false);
            }
        }
        let CodeUse { voucher, counter, .. } = code;
        let what = format!(
            "code {counter} of voucher {voucher} was used before, in {} {}",
            first.log, first.position
        );
        self.fault(at.log, at.position, &what)?;
        Ok(true)
    }
}
