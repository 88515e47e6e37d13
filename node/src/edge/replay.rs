//! Entries of the own log that come back from the centre after a restored copy had lost them: into the tables they go as
//! when they were written, rights excepted, which are nothing by then. So a terminal's retry still gets its first answer.

use feiqian_protocol::entry::{Actor, Body, CodeUse, Debit, Delta, Entry, Reversal, TapRef};
use feiqian_protocol::ids::{AccountId, CardNumber, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{DeclineReason, Pin, TapKey, TapKind, TapRequest};
use feiqian_protocol::time::Hlc;

use crate::core::NodeCore;
use crate::edge::digest::digest_with;
use crate::store::StoreError;
use crate::store::purses::ReportRow;
use crate::store::taps::{DebitRow, TapRow, TapUse};

impl NodeCore {
    /// Takes one such entry back.
    pub(crate) fn replay(&mut self, position: u64, entry: &Entry) -> Result<(), StoreError> {
        let place = (position, entry.clock);
        match &entry.body {
            Body::Debit(debit) => self.replay_debit(place, &entry.actor, debit),
            Body::Reversal(reversal) => self.replay_reversal(place, &entry.actor, reversal),
            Body::Decline(decline) => {
                let used = if decline.access { TapUse::Access } else { TapUse::Purchase };
                let row = TapRow {
                    reason: Some(decline.reason),
                    amount: decline.amount,
                    card: Some(decline.card.clone()),
                    ..row(used, decline.account.unwrap_or(AccountId(0)), place)
                };
                if let (Some(account), Some(tries)) = (decline.account, decline.pin_tries) {
                    self.store.put_pin_tries(account, tries)?;
                }
                self.put_tap_row(&key(&entry.actor, &decline.tap)?, &row)
            }
            Body::Access(access) => {
                let digest = digest(&entry.actor, &access.tap, &access.card, TapKind::Access, access.code)?;
                self.replay_code(access.account, access.code)?;
                let row = TapRow {
                    digest,
                    card: Some(access.card.clone()),
                    ..row(TapUse::Access, access.account, place)
                };
                self.put_tap_row(&key(&entry.actor, &access.tap)?, &row)
            }
            Body::Tombstone(tombstone) => {
                let reversal = row(TapUse::Reversal, AccountId(0), place);
                self.put_tap_row(&key(&entry.actor, &tombstone.tap)?, &reversal)?;
                let original = key(&entry.actor, &tombstone.original)?;
                match self.tap_row(&original)? {
                    None => self.put_tap_row(&original, &TapRow { used: TapUse::Tombstone, ..reversal }),
                    Some(_) => Ok(()),
                }
            }
            Body::PursePurchase(purchase) => {
                let terminal = key(&entry.actor, &purchase.tap)?.terminal;
                self.state.totals.exposed += purchase.amount;
                self.store.put_purse_purchase(&ReportRow::new(&terminal, purchase, position), purchase.amount)
            }
            Body::WrongPin(wrong) => self.store.put_pin_tries(wrong.account, wrong.tries),
            Body::EpochEnd(end) => {
                self.state.saved.epoch = end.epoch.next();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn replay_debit(
        &mut self,
        (position, clock): (u64, Hlc),
        actor: &Actor,
        debit: &Debit,
    ) -> Result<(), StoreError> {
        if actor.proof.has_pin() {
            self.store.put_pin_tries(debit.account, 0)?;
        }
        self.store.put_debit(&DebitRow::new(position, debit))?;
        self.replay_code(debit.account, debit.code)?;
        if let Some(code) = debit.code.filter(|_| debit.from_voucher.is_some()) {
            self.store.put_spent_voucher(debit.account, code.voucher, code.until)?;
        }
        let amount = debit.amount();
        self.effect(position, &Delta { account: debit.account, wallet: debit.wallet, amount: -amount })?;
        self.state.totals.exposed += amount;
        self.state.saved.last_day = self.state.saved.last_day.max(debit.day);
        let key = key(actor, &debit.tap)?;
        if let Some(tap) = self.tap_row(&key)?
            && tap.used != TapUse::Tombstone
        {
            // The second wallet of the same tap. What was asked for cannot be told from its parts, so any repeat fits.
            let (amount, stand_in) = (tap.amount + amount, tap.stand_in + debit.stand_in);
            return self.replace_tap_row(
                &key,
                &TapRow {
                    digest: tap.digest.filter(|_| debit.measured.is_none() && tap.debits == 0),
                    amount,
                    stand_in,
                    debits: tap.debits + 1,
                    ..tap
                },
            );
        }
        let kind = match &debit.measured {
            Some(measured) => TapKind::Quantity(measured.quantity),
            None => TapKind::Amount(amount),
        };
        let row = TapRow {
            digest: digest(actor, &debit.tap, &debit.card, kind, debit.code)?,
            card: Some(debit.card.clone()),
            amount,
            stand_in: debit.stand_in,
            debits: 1,
            ..row(TapUse::Purchase, debit.account, (position, clock))
        };
        self.put_tap_row(&key, &row)
    }

    /// A code that was used stays used.
    fn replay_code(&self, account: AccountId, code: Option<CodeUse>) -> Result<(), StoreError> {
        code.map_or(Ok(()), |code| self.store.put_counter(account, &code))
    }

    fn replay_reversal(
        &mut self,
        (position, clock): (u64, Hlc),
        actor: &Actor,
        reversal: &Reversal,
    ) -> Result<(), StoreError> {
        let amount = reversal.amount();
        for mut debit in self.store.debits(reversal.debit, reversal.debit)? {
            debit.reverse(reversal);
            self.store.put_rest(&debit)?;
        }
        let delta = Delta { account: reversal.account, wallet: reversal.wallet, amount };
        self.store.put_reversal(position, &delta)?;
        self.effect(position, &delta)?;
        self.store.add_reversed_at(reversal.debit, amount)?;
        let key = key(actor, &reversal.tap)?;
        match self.tap_row(&key)? {
            Some(tap) => self.replace_tap_row(&key, &TapRow { amount: tap.amount + amount, ..tap }),
            None => {
                let row = TapRow { amount, ..row(TapUse::Reversal, reversal.account, (position, clock)) };
                self.put_tap_row(&key, &row)
            }
        }
    }

    /// An own effect, unless a posted batch has named it.
    fn effect(&mut self, position: u64, delta: &Delta) -> Result<(), StoreError> {
        if position <= self.store.posted_head(delta.account.shard())? {
            return Ok(());
        }
        let mut purse = self.store.purse(delta.account)?;
        let wallet = purse.wallet_mut(delta.wallet);
        wallet.own += delta.amount;
        self.store.put_wallet(delta.account, delta.wallet, wallet)
    }

    fn replace_tap_row(&mut self, key: &TapKey, row: &TapRow) -> Result<(), StoreError> {
        match self.terminal_number(&key.terminal)? {
            Some(terminal) => {
                self.store.drop_tap(terminal, key.epoch, &key.sequence)?;
                self.put_tap_row(key, row)
            }
            None => Err(StoreError::damaged("a tap of no known terminal")),
        }
    }
}

fn row(used: TapUse, account: AccountId, (position, clock): (u64, Hlc)) -> TapRow {
    TapRow {
        used,
        digest: None,
        card: None,
        account,
        reason: None::<DeclineReason>,
        amount: Fen::ZERO,
        stand_in: Fen::ZERO,
        reversed: Fen::ZERO,
        clock,
        position,
        debits: 0,
    }
}

fn key(actor: &Actor, tap: &TapRef) -> Result<TapKey, StoreError> {
    let terminal = TerminalId::new(actor.id.as_str())
        .map_err(|_| StoreError::damaged("an entry of this node has no terminal"))?;
    Ok(TapKey { terminal, epoch: tap.epoch, sequence: tap.sequence.clone() })
}

/// Nothing where it cannot be told from what was written: the digits of a short code are in no entry, so any repeat fits.
fn digest(
    actor: &Actor,
    tap: &TapRef,
    card: &CardNumber,
    kind: TapKind,
    code: Option<CodeUse>,
) -> Result<Option<[u8; 16]>, StoreError> {
    if card.is_virtual() && code.is_none() {
        return Ok(None);
    }
    let pin = if actor.proof.has_pin() { Pin::Right } else { Pin::Absent };
    let request = TapRequest { key: key(actor, tap)?, card: card.clone(), code: None, kind, pin };
    Ok(Some(digest_with(&request, code)))
}
