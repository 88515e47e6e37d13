//! What channels and operators say to the centre, and what they take its answers for.

use feiqian_protocol::account::AccountError;
use feiqian_protocol::ids::{CardNumber, Key, Wallet};
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::values::CardSerial;
use feiqian_reconcile::io::{Command, Reply, SettingCommand};

use super::{Credit, Ledger, Reissue};
use crate::plan::{Plan, What};
use crate::promises::Coverage;

/// Who pays out what was the holder's own, where an account is closed.
pub(in crate::promises) const CLOSING_CHANNEL: &str = "counter";

/// Where the rest of the subsidy goes.
pub(in crate::promises) const CLOSING_SUBSIDY_CHANNEL: &str = "subsidies";

fn key(text: &str) -> Key {
    Key::new(text).expect("letters are a key")
}

/// True where the answer to a closing is that the account is closed, by this or before.
pub fn is_closed(reply: &Reply) -> bool {
    match reply {
        Ok(_) => true,
        Err(error) => error.code == AccountError::Closed.code(),
    }
}

/// The card that a holder is given for another one; for one with a purse it is one with a purse.
pub fn replacement(old: &CardNumber) -> CardNumber {
    let new = match CardSerial::of_card(old) {
        Some(_) => format!("32{}", &old.as_str()[2..]),
        None => format!("n{old}"),
    };
    CardNumber::new(new).expect("letters and digits make a card number")
}

impl Ledger {
    /// An action of the plan is said to the centre, for the first time or again; `None` where nobody says it there.
    pub fn said(&mut self, plan: &Plan, what: &What, now_ns: u64) -> Option<Command> {
        let operator = key("operator");
        let card = |account: &usize| plan.accounts[*account].card.clone();
        Some(match what {
            What::TopUp { account, amount, channel, key } => {
                let credit = Credit { account: *account, amount: *amount, confirmed: false };
                self.credits.entry((channel.clone(), key.clone())).or_insert(credit);
                Command::Topup {
                    card: card(account),
                    amount_fen: *amount,
                    wallet: Wallet::Cash,
                    channel: channel.clone(),
                    key: key.clone(),
                }
            }
            What::Loss { account, .. } => {
                self.reports.insert(*account, now_ns);
                Command::ReportLoss { card: card(account), operator }
            }
            What::Lift { account } => {
                self.lifts.insert(*account, now_ns);
                Command::LiftLoss { card: card(account), operator }
            }
            What::Unlock { account } => Command::UnlockPin { card: card(account) },
            What::Close { account } => {
                self.closings.entry(*account).or_default();
                let (channel, subsidy_channel) = (key(CLOSING_CHANNEL), key(CLOSING_SUBSIDY_CHANNEL));
                Command::CloseAccount { card: card(account), channel, subsidy_channel, operator }
            }
            What::Reissue { account } => {
                let new_card = self.reissue(*account, &card(account)).card.clone();
                let change = SettingCommand::ReplaceCard { new_card };
                Command::ChangeSetting { card: card(account), change, operator }
            }
            What::Tap(_) | What::Reversal { .. } => return None,
        })
    }

    /// The centre has answered; returns the rare path that this was. A report of loss is noted with how far logs were ingested, by
    /// whoever looks at them.
    pub fn answered(&mut self, plan: &Plan, what: &What, reply: &Reply, now_ns: u64) -> Option<Coverage> {
        match what {
            What::Close { account } if is_closed(reply) => {
                self.closings.entry(*account).or_default().told_ns = Some(now_ns);
                None
            }
            // A card that is reported already, or was not.
            _ if reply.is_err() => None,
            What::TopUp { channel, key, .. } => {
                if let Some(credit) = self.credits.get_mut(&(channel.clone(), key.clone())) {
                    credit.confirmed = true;
                }
                None
            }
            What::Reissue { account } => {
                let card = &plan.accounts[*account].card;
                let reissue = self.reissue(*account, card);
                reissue.told_ns.get_or_insert(now_ns);
                let issuance = reply.as_ref().ok().and_then(|account| account["issuance"].as_str());
                reissue.issuance = issuance.and_then(|text| SignedIssuance::from_text(text).ok());
                Some(Coverage::CardReissued)
            }
            What::Lift { .. } => Some(Coverage::LossLifted),
            What::Unlock { .. } => Some(Coverage::PinUnlocked),
            _ => None,
        }
    }

    /// What a restored centre has confirmed since its copy was made it may know no more. `loss`: the number of the report.
    pub fn forgotten(&mut self, plan: &Plan, what: &What, loss: Option<usize>) {
        if let Some(loss) = loss.and_then(|loss| self.losses.get_mut(loss)) {
            loss.confirmed = None;
        }
        match what {
            What::TopUp { channel, key, .. } => {
                if let Some(credit) = self.credits.get_mut(&(channel.clone(), key.clone())) {
                    credit.confirmed = false;
                }
            }
            What::Close { account } => self.closings.entry(*account).or_default().told_ns = None,
            What::Reissue { account } => {
                let card = &plan.accounts[*account].card;
                self.reissue(*account, card).told_ns = None;
            }
            _ => {}
        }
    }

    /// An operator is to give out another card for an account's own.
    fn reissue(&mut self, account: usize, old: &CardNumber) -> &mut Reissue {
        let card = replacement(old);
        self.further.insert(card.clone(), account);
        let reissue =
            Reissue { old: old.clone(), card, told_ns: None, issuance: None, heard: Default::default() };
        self.reissues.entry(account).or_insert(reissue)
    }
}
