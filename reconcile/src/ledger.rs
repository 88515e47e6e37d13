//! Double entry. A positive amount is a credit of the ledger account, a negative one a debit; the lines of one entry sum
//! to zero, so all postings together do.
//!
//! | what | lines |
//! |---|---|
//! | opening of an imported account | `migration` - , `wallet` + |
//! | credit of a channel, cash taken in | `channel:<name>` - , `wallet` + |
//! | debit | `wallet` - , `merchant` + |
//! | reversal | `merchant` - , `wallet` + |
//! | debit of an account that is not there | `suspense` - , `merchant` + |
//! | load of a card begins | `wallet` - , `purse_transit:<serial>` + (and `migration` - , `purse:<serial>` + for what is taken over) |
//! | load is done, or reversed | `purse_transit:<serial>` - , `purse:<serial>` or `wallet` + |
//! | what is left on a withdrawn card | `purse:<serial>` - , `wallet` + |
//! | purchase of a card | `purse:<serial>` - , `merchant` + ; see [`crate::purse::purchase`] for the others |
//! | payout of a closed account | `wallet` - , `channel:<name>` + |
//! | refund after a loss report | `risk_fund` - , `wallet` + |
//! | a debt is written off | `risk_fund` - , `wallet` + |
//! | a case moves | `claims:<bearer>` - , `wallet` + , by what is opened and not recovered |
//!
//! A case takes the shortfall out of the wallet's ledger account and into `claims:suspense` or `claims:holder`, so the
//! ledger's wallets are not negative at rest; recovering it is the same posting the other way round. What people and nodes
//! see as the posted balance is `funds` (credits - debits + reversals + refunds), which is negative until recovered:
//! `funds = wallet in the ledger - open claims`.
//!
//! A line carries the business day that was open when it was posted, and the entry's own.

use feiqian_protocol::entry::{Bearer, EntryRef};
use feiqian_protocol::ids::{AccountId, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::BusinessDay;

use crate::core::{Round, StoreError};
use crate::store::money;

/// The ledger account of a wallet.
pub fn wallet_ledger(account: AccountId, wallet: Wallet) -> String {
    format!("wallet:{account}:{wallet}")
}

/// The wallet of a ledger account, where it is one's.
pub fn of_wallet_ledger(ledger: &str) -> Option<(AccountId, Wallet)> {
    let (account, wallet) = ledger.strip_prefix("wallet:")?.split_once(':')?;
    let wallet = Wallet::SPENDING_ORDER.into_iter().find(|known| known.name() == wallet)?;
    Some((AccountId(account.parse().ok()?), wallet))
}

/// The ledger account of a merchant.
pub fn merchant_ledger(merchant: u16) -> String {
    format!("merchant:{merchant}")
}

/// The ledger account of a top-up channel.
pub fn channel_ledger(channel: &str) -> String {
    match channel {
        MIGRATION => MIGRATION.to_owned(),
        WRITE_OFF => RISK_FUND.to_owned(),
        _ => format!("channel:{channel}"),
    }
}

/// True for channels that only the centre itself credits by, and nobody is paid out by.
pub fn is_own_channel(channel: &str) -> bool {
    matches!(channel, MIGRATION | WRITE_OFF)
}

/// The ledger account of claims, by bearer.
pub fn claims_ledger(bearer: Bearer) -> String {
    format!("claims:{}", bearer.name())
}

/// Where the balances of imported accounts come from.
pub const MIGRATION: &str = "migration";

/// The channel of credits that end a debt which nobody will pay.
pub const WRITE_OFF: &str = "write_off";

/// What was approved but belongs to no account.
pub const SUSPENSE: &str = "suspense";

/// What the institution bears.
pub const RISK_FUND: &str = "risk_fund";

impl Round<'_> {
    /// Posts from one ledger account to another: `amount` is debited to `from` and credited to `to`.
    pub(crate) fn post(
        &mut self,
        at: EntryRef,
        own_day: BusinessDay,
        amount: Fen,
        from: String,
        to: String,
    ) -> Result<(), StoreError> {
        self.post_lines(at, own_day, vec![(from, -amount), (to, amount)])
    }

    /// Posts the lines of one entry.
    pub(crate) fn post_lines(
        &mut self,
        at: EntryRef,
        own_day: BusinessDay,
        lines: Vec<(String, Fen)>,
    ) -> Result<(), StoreError> {
        let sum: Fen = lines.iter().map(|(_, amount)| *amount).sum();
        if sum != Fen::ZERO {
            return Err(StoreError::Invariant(format!(
                "the lines of {}:{} sum to {sum}",
                at.log, at.position
            )));
        }
        for (line, (ledger, amount)) in lines.into_iter().enumerate() {
            money::insert_posting(self.db, at, line, &ledger, amount, (self.state.day, own_day))?;
            if !ledger.starts_with("wallet:") {
                *self.ledger.entry(ledger).or_default() += amount;
            }
        }
        Ok(())
    }

    /// The risk fund gives back (or takes back, where the amount is negative).
    pub(crate) fn post_refund(
        &mut self,
        at: EntryRef,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
    ) -> Result<(), StoreError> {
        let day = self.state.day;
        self.post(at, day, amount, RISK_FUND.to_owned(), wallet_ledger(account, wallet))
    }
}
