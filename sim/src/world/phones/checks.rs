//! What phones have signed and when, against what terminals approved; receipts, against what the centre made of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feiqian_protocol::code::{CODE_AGE_MS_MAX, STEP_S, SignedReceipt};
use feiqian_protocol::entry::Body;
use feiqian_protocol::ids::{AccountId, CardNumber, LogId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Pin, TapKind};
use feiqian_reconcile::io::{self as centre_io, CardLoss, Command};

use super::{Device, Made, Shown};
use crate::promises::ledger::Sent;
use crate::promises::{Coverage, Promise};
use crate::world::hosts::Trust;
use crate::world::{MS, World};

/// By how much a building with trusted time may be wrong either way, in milliseconds: two seconds, and what its Hello took on the
/// slowest line that a scenario with phones has.
const DOUBT_MS_MAX: i64 = 10_000;

/// How a terminal heard of a decision.
#[derive(Clone, Copy)]
pub(in crate::world) struct Decided {
    /// When it had asked.
    pub(in crate::world) asked_ns: u64,
    /// It is the first answer, given again: what was known when it was given is not known any more.
    pub(in crate::world) repeat: bool,
}

impl World<'_> {
    /// A code was approved for the first time under its key.
    pub(super) fn check_approved(
        &mut self,
        index: usize,
        shown: &Shown,
        decided: Decided,
        receipt: Option<&SignedReceipt>,
    ) {
        let Sent::Tap(tap) = &self.ledger.requests[index].sent else { return };
        let (key, by_pin, pays) = (tap.key.clone(), tap.pin == Pin::Right, tap.kind != TapKind::Access);
        let site = self.ledger.requests[index].site;
        let name = self.site_name(site);
        let what = match &shown.code {
            Made::Code(code) => {
                let number = code.voucher.voucher().number;
                format!("{key:?} at {name}, code {} of voucher {number}", code.counter)
            }
            Made::Short(code) => format!("{key:?} at {name}, short code {code}"),
        };
        let host = &self.sites[site];
        let (sound, opened, connected_at) = (host.trust == Trust::Sound, host.opened, host.connected_at);
        let mut found = Vec::new();
        if shown.forged {
            found.push(format!("{what}: approved, and nobody's phone has made it"));
        }
        let first_ns = self.ledger.requests[index].first_ns;
        let asked_ns = if decided.repeat { first_ns } else { decided.asked_ns };
        let age_ms = (asked_ns.saturating_sub(shown.made_ns) / MS) as i64;
        let age_ms_max = match &shown.code {
            Made::Code(_) => CODE_AGE_MS_MAX + 2 * DOUBT_MS_MAX,
            Made::Short(_) => 2 * STEP_S * 1_000 + DOUBT_MS_MAX,
        };
        if pays && !by_pin && !self.bounds.wrong_centre_clock && age_ms > age_ms_max {
            found.push(format!("{what}: approved {age_ms} ms after it was made"));
        }
        if pays && !by_pin && !decided.repeat && connected_at < opened {
            found.push(format!("{what}: approved without a PIN, and the building has not heard the centre since it was started"));
        }
        if shown.known_withdrawn {
            found.push(format!("{what}: approved, and the building knew that the phone is withdrawn"));
        }
        let other = match &shown.code {
            Made::Code(code) => {
                let used = (site, shown.account, code.voucher.voucher().number, code.counter);
                self.phones.approved.insert(used, index)
            }
            Made::Short(code) => {
                self.reached(Coverage::ShortCodePaid);
                self.phones.approved_short.insert(*code, index)
            }
        };
        match other {
            // A centre that comes back from an old copy has forgotten the last short codes, too.
            Some(_) if matches!(shown.code, Made::Short(_)) && self.centre_was_restored() => {}
            Some(other) if sound && self.ledger.requests[other].sent.key() != &key => {
                let other = self.ledger.requests[other].sent.key();
                found.push(format!("{what}: approved, as it was before for {other:?}"));
            }
            _ => {}
        }
        if let (Made::Short(_), Some(_)) = (&shown.code, receipt) {
            found.push(format!("{what}: a receipt, though it has no voucher"));
        }
        if let (Made::Code(code), Some(receipt)) = (&shown.code, receipt) {
            let voucher = code.voucher.voucher();
            let said = receipt.receipt();
            let fits = receipt.is_signed_by(&self.sites[site].identity.log_key.verifying_key())
                && said.node == self.sites[site].identity.node
                && (said.voucher, said.counter) == (voucher.number, code.counter)
                && said.amount <= voucher.ceiling;
            if !fits {
                found.push(format!("{what}, which holds {}: the receipt says {said:?}", voucher.ceiling));
            }
        }
        for text in found {
            self.violated(Promise::Code, text);
        }
        if self.withdrawn_phones().contains(&self.phones.devices[&shown.account].card) {
            self.reached(Coverage::CodeAfterWithdrawal);
        }
    }

    /// A terminal shows the same receipt whenever it is asked about a tap.
    pub(in crate::world) fn check_receipt(&mut self, index: usize, receipt: Option<&SignedReceipt>) {
        let Some(shown) = self.phones.shown.get_mut(&index) else { return };
        let Some(text) = receipt.map(SignedReceipt::to_digits) else { return };
        let first = shown.receipt.get_or_insert_with(|| text.clone());
        if *first != text && !self.ledger.requests[index].given_up {
            let key = self.ledger.requests[index].sent.key().clone();
            self.violated(Promise::ExactlyOnce, format!("{key:?}: another receipt than before"));
        }
    }

    /// What the centre made of a receipt.
    pub(super) fn receipt_answered(&mut self, text: &str, forged: bool, reply: centre_io::Reply) {
        if forged {
            match reply {
                Ok(told) => {
                    self.violated(Promise::Code, format!("a receipt that was made up is taken: {told}"))
                }
                Err(_) => self.reached(Coverage::ReceiptForgedRefused),
            }
            return;
        }
        let Ok(signed) = SignedReceipt::from_text(text) else { return };
        let receipt = signed.receipt();
        match reply {
            Ok(told) => {
                if told["amount_fen"] != receipt.amount.get() {
                    self.violated(Promise::Code, format!("{receipt:?} is answered by {told}"));
                }
                if told["known"] == false {
                    self.reached(Coverage::ReceiptTaken);
                }
            }
            // The voucher has paid elsewhere, too, or was over before anybody said so.
            Err(error) if ["voucher_spent", "voucher_over"].contains(&error.code) => {}
            Err(error) => {
                let of = |site: &crate::world::hosts::Site| site.identity.node == receipt.node;
                let sound = self.sites.iter().filter(|site| of(site)).all(|site| site.trust == Trust::Sound);
                if sound && !self.centre_was_restored() {
                    self.violated(Promise::Code, format!("{receipt:?} is refused: {}", error.code));
                }
            }
        }
    }

    /// Notes what may still be spent with a phone that was reported lost, as an operator is shown it.
    pub(super) fn note_bound(&mut self, account: usize) {
        let card = self.phones.devices[&account].card.clone();
        let Some(Ok(reply)) = self.command(Command::CardLoss { card: card.clone() }) else { return };
        let (Ok(loss), Ok(positions)) = (serde_json::from_value::<CardLoss>(reply), self.ingested()) else {
            return;
        };
        if let Some(at_most) = loss.at_most_fen {
            self.phones.bounds.push((card, positions, at_most));
        }
    }

    /// What holds at the end.
    pub(in crate::world) fn check_phones(&mut self) -> Result<()> {
        if self.phones.devices.is_empty() || self.centre_was_restored() {
            return Ok(());
        }
        self.check_bounds()?;
        let left = self.phones.devices.values().map(|device: &Device| device.receipts.len()).sum::<usize>();
        if left > 0 {
            self.violated(Promise::Liveness, format!("{left} receipts were not brought"));
        }
        let waiting = self.phones.errands.iter().filter(|errand| !errand.done && !errand.asks_once()).count();
        if waiting > 0 {
            self.violated(Promise::Liveness, format!("{waiting} things that phones wanted are not answered"));
        }
        Ok(())
    }

    /// No more was spent with a lost phone, where that was not known, than an operator was told; purchases that were reversed there
    /// meanwhile give right to spend once more.
    fn check_bounds(&mut self) -> Result<()> {
        let bounds: Vec<(CardNumber, BTreeMap<LogId, u64>, Fen)> = self.phones.bounds.clone();
        for (card, positions, at_most) in bounds {
            let (mut spent, mut of) = (Fen::ZERO, None);
            let mut back: BTreeMap<AccountId, Fen> = BTreeMap::new();
            for site in 0..self.sites.len() {
                let node = self.sites[site].identity.node;
                let first = self.sites.iter().position(|host| host.identity.node == node);
                if first != Some(site) || self.sites[site].trust != Trust::Sound {
                    continue;
                }
                let log = crate::link::tables::node_log(node);
                let known = positions.get(&log).copied().unwrap_or(0);
                let known = usize::try_from(known).context("a position")?;
                for entry in self.node_tables(site)?.entries(log)?.iter().skip(known) {
                    match &entry.body {
                        Body::Debit(debit) if debit.card == card => {
                            of = Some(debit.account);
                            spent += debit.amount();
                        }
                        Body::Reversal(reversal) => {
                            *back.entry(reversal.account).or_default() += reversal.right_back;
                        }
                        _ => {}
                    }
                }
            }
            let back = of.and_then(|account| back.get(&account).copied()).unwrap_or_default();
            if spent > at_most + back {
                let text = format!(
                    "{card} was lost, and {spent} were spent with it that nobody knew of then; at most {at_most} could be, an operator was told"
                );
                self.violated(Promise::AfterLoss, text);
            }
        }
        Ok(())
    }
}

impl super::Errand {
    const fn asks_once(&self) -> bool {
        matches!(self.wanted, super::ErrandKind::Fetch { .. })
    }
}
