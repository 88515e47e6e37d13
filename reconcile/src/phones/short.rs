//! Short codes: twenty digits of a phone that is online, checked here and nowhere else.
//!
//! Secret and alias follow from the key that signs the centre's streams and from the virtual card, so there is nothing to keep
//! but which alias is whose, and what of it was used. A code is used up by the tap that it was shown for, whatever becomes of that.

use feiqian_protocol::account::CardStatus;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{ALIAS_END, STEP_S, ShortSecret, step_at};
use feiqian_protocol::frame::{CodeAnswer, CodeAsk, Frame};
use feiqian_protocol::ids::{AccountId, CardNumber};
use feiqian_protocol::tap::DeclineReason;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::core::{Round, StoreError};
use crate::io::{Identity, LinkId, Output, Reply};
use crate::store::codes::{self, ShortUse};
use crate::store::{StoreError as Store, accounts};

/// Steps that a code may be off, to either side: the phone's clock, and the time that somebody holds it up.
const STEPS_OFF: u64 = 1;

/// Steps for which a code that is over is called so, and not wrong: ten minutes.
const STEPS_EXPIRED: u64 = 20;

/// Wrong codes in a row for an alias before it pauses. Of eight digits, three steps of which are good, so many guesses every
/// [`PAUSE_MS`] hit one in some sixty years.
const WRONG_MAX: u32 = 5;

/// How long it pauses, in milliseconds.
const PAUSE_MS: i64 = 5 * 60_000;

/// Aliases that are tried for a card: of ten digits hardly one is taken.
const ALIASES_TRIED: u8 = 16;

impl Identity {
    fn short_hash(&self, tag: &[u8], card: &CardNumber, number: u8) -> [u8; 32] {
        let hash = Sha256::new()
            .chain_update(tag)
            .chain_update(self.log_key.to_bytes())
            .chain_update([number])
            .chain_update(card.as_str());
        hash.finalize().into()
    }

    /// What a virtual card's phone makes short codes by.
    fn short_secret(&self, card: &CardNumber) -> ShortSecret {
        ShortSecret::new(self.short_hash(b"feiqian-short-secret-1\0", card, 0))
    }

    fn alias(&self, card: &CardNumber, number: u8) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.short_hash(b"feiqian-short-alias-1\0", card, number);
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % ALIAS_END
    }
}

impl Round<'_> {
    /// What a phone needs for short codes. Said again, it is the same.
    pub(crate) fn short_code(&mut self, card: &CardNumber) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = self.phone_in_use(account, card, false)? {
            return Ok(Err(error));
        }
        let alias = match codes::alias_of(self.db, card)? {
            Some(alias) => alias,
            None => {
                let aliases = (0..ALIASES_TRIED).map(|number| self.state.identity.alias(card, number));
                let mut free = None;
                for alias in aliases {
                    if codes::put_alias(self.db, alias, card)? {
                        free = Some(alias);
                        break;
                    }
                }
                free.ok_or_else(|| Store::Invariant(format!("no alias is free for {card}")))?
            }
        };
        let secret = hex(self.state.identity.short_secret(card).as_bytes());
        Ok(Ok(json!({
            "account": account, "card": card, "alias": format!("{alias:010}"), "secret": secret,
            "step_s": STEP_S, "now_ms": self.state.time,
        })))
    }

    /// A node asks whose a code is.
    pub(crate) fn code_ask(&mut self, link: LinkId, ask: CodeAsk) -> Result<(), StoreError> {
        let named = self.name_code(&ask)?;
        let answer = CodeAnswer { request: ask.request, named };
        self.outputs.push(Output::Send(link, Frame::CodeAnswer(answer)));
        Ok(())
    }

    fn name_code(
        &mut self,
        ask: &CodeAsk,
    ) -> Result<Result<(AccountId, CardNumber), DeclineReason>, StoreError> {
        let Some((card, mut known)) = codes::short_use(self.db, ask.code.alias)? else {
            return Ok(Err(DeclineReason::CodeForged));
        };
        let now = self.state.time;
        if known.paused_until > now {
            return Ok(Err(DeclineReason::CodePaused));
        }
        let (secret, step) = (self.state.identity.short_secret(&card), step_at(now));
        let is_of = |step: &u64| secret.digits(*step) == ask.code.digits;
        let Some(step) = (step.saturating_sub(STEPS_OFF)..=step + STEPS_OFF).find(is_of) else {
            if (step.saturating_sub(STEPS_EXPIRED)..step).any(|step| is_of(&step)) {
                return Ok(Err(DeclineReason::CodeExpired));
            }
            known.wrong += 1;
            if known.wrong >= WRONG_MAX {
                known = ShortUse { wrong: 0, paused_until: now.plus_ms(PAUSE_MS), ..known };
                tracing::warn!(%card, "short codes pause after wrong ones in a row");
            }
            codes::put_short_use(self.db, ask.code.alias, &known)?;
            return Ok(Err(DeclineReason::CodeForged));
        };
        let used = known.step.is_some_and(|last| step <= last) && !planted(Canary::ShortCodeUsedAgain);
        if used && (known.step != Some(step) || known.tap != ask.tap) {
            return Ok(Err(DeclineReason::CodeUsed));
        }
        let known = ShortUse { step: Some(step), tap: ask.tap, wrong: 0, ..known };
        codes::put_short_use(self.db, ask.code.alias, &known)?;
        let Some(account) = accounts::account_of_card(self.db, &card)? else {
            return Ok(Err(DeclineReason::UnknownCard));
        };
        // What stands against the account is the node's to judge, which may have heard of more.
        let status = self.settings(account)?.and_then(|settings| settings.cards.get(&card).copied());
        Ok(match status {
            Some(CardStatus::Active) => Ok((account, card)),
            Some(CardStatus::Lost) => Err(DeclineReason::Lost),
            _ => Err(DeclineReason::Void),
        })
    }
}
