//! The desk at the centre: what operators look up and change about an account and its cards.
//!
//! Whatever narrows acts in every connected building within milliseconds. A loss is shown with its proof: which buildings
//! have it, and what can still be spent in those that do not.

use feiqian_protocol::account::{AccountError, AccountSettings, CardStatus, Intent};
use feiqian_protocol::campus::Mode;
use feiqian_protocol::ids::{AccountId, CardNumber, Key, LogId, NodeId, Wallet};
use feiqian_protocol::money::Fen;
use serde_json::json;

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::holds::TAKEN_AFTER_END_MS;
use crate::io::{Building, CardLoss, Reply, SettingCommand};
use crate::store::{StoreError as Store, accounts, holders, holds};

impl Round<'_> {
    /// Changes a setting of the account that a card belongs to.
    pub(crate) fn change_setting(
        &mut self,
        card: &CardNumber,
        change: SettingCommand,
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        let intents = match change {
            SettingCommand::Freeze => {
                // The place of the entry makes the key unique.
                let position = self.state.log(self.state.shard(account)).cursor.position + 1;
                let key = Key::new(format!("freeze-{position}"))
                    .map_err(|error| Store::Invariant(error.to_string()))?;
                if settings.frozen { Vec::new() } else { vec![Intent::Freeze { key }] }
            }
            SettingCommand::Unfreeze if !settings.frozen => {
                return Ok(refused("not_frozen", "the account is not frozen"));
            }
            SettingCommand::Unfreeze => {
                let document = self.document(account)?;
                let keys = document.map(|document| document.freezes()).transpose()?;
                vec![Intent::Unfreeze { keys: keys.unwrap_or_default() }]
            }
            SettingCommand::Limits { single_limit_fen, daily_limit_fen } => vec![Intent::SetLimits {
                single: single_limit_fen.unwrap_or(settings.single_limit),
                daily: daily_limit_fen.unwrap_or(settings.daily_limit),
            }],
            SettingCommand::VoidCard => vec![Intent::VoidCard { card: card.clone() }],
            // Said again, as by an operator who has lost the answer.
            SettingCommand::ReplaceCard { new_card }
                if settings.cards.get(card) == Some(&CardStatus::Void)
                    && settings.cards.get(&new_card) == Some(&CardStatus::Active) =>
            {
                return self.given(card, account, new_card);
            }
            SettingCommand::ReplaceCard { new_card } => {
                if let Some(error) = self.replaceable(card, &new_card, &settings)? {
                    return Ok(error);
                }
                let issued = Intent::IssueCard { card: new_card };
                match settings.cards.get(card) {
                    Some(CardStatus::Void) => vec![issued],
                    _ => vec![issued, Intent::VoidCard { card: card.clone() }],
                }
            }
            SettingCommand::HandOverCard if settings.inactive.get(card) == Some(&true) => Vec::new(),
            SettingCommand::HandOverCard => vec![Intent::HandOverCard { card: card.clone() }],
            SettingCommand::ActivateCard => vec![Intent::ActivateCard { card: card.clone() }],
            SettingCommand::ReissueMissing { new_card } => {
                match settings.cards.get(card) {
                    Some(CardStatus::Inactive) => {}
                    Some(CardStatus::Void) => {
                        return Ok(refused("card_void", "the card was replaced or withdrawn before"));
                    }
                    _ => {
                        let error = AccountError::NotInactive;
                        return Ok(refused(error.code(), error.to_string()));
                    }
                }
                if settings.inactive.get(card) == Some(&true) {
                    return Ok(refused(
                        "handed_over",
                        "the card was picked up; report it lost where it is gone",
                    ));
                }
                match self.card_to_issue(new_card)? {
                    Ok(new) => {
                        vec![Intent::VoidCard { card: card.clone() }, Intent::IssueInactiveCard { card: new }]
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            SettingCommand::ExchangeCard { new_card } => {
                match settings.cards.get(card) {
                    Some(CardStatus::Active) => {}
                    Some(CardStatus::Lost) => {
                        return Ok(refused("card_lost", "the card is reported lost; replace it instead"));
                    }
                    Some(CardStatus::Void) => {
                        return Ok(refused("card_void", "the card was replaced or withdrawn before"));
                    }
                    _ => return Ok(refused("not_active", "only a card that is active is exchanged")),
                }
                if card.is_virtual() {
                    return Ok(refused("not_active", "a virtual card is revoked and activated anew"));
                }
                match self.card_to_issue(new_card)? {
                    Ok(new) => vec![Intent::IssueCard { card: new }, Intent::VoidCard { card: card.clone() }],
                    Err(error) => return Ok(Err(error)),
                }
            }
            SettingCommand::IssueLegacyCard { new_card, group } => {
                match self.card_to_issue(Some(new_card))? {
                    Ok(card) => vec![Intent::IssueLegacyCard { card, group }],
                    Err(error) => return Ok(Err(error)),
                }
            }
            SettingCommand::Describe { field, value } => {
                if let Err(error) = self.describable(account, field, value.as_deref())? {
                    return Ok(Err(error));
                }
                vec![Intent::Describe { field, value }]
            }
            SettingCommand::Validity { until } => vec![Intent::SetValidity { until }],
            SettingCommand::Class { class } => vec![Intent::SetClass { class }],
            SettingCommand::JoinGroup { group } => vec![Intent::JoinGroup { group }],
            SettingCommand::LeaveGroup { group } => vec![Intent::LeaveGroup { group }],
        };
        // All of it or nothing: each of several is tried on the settings that those before it leave.
        if intents.len() > 1
            && let Some(mut tried) = self.document(account)?
        {
            for intent in &intents {
                if let Err(error) = tried.carry_out(intent, self.state.time) {
                    return Ok(refused(error.code(), error.to_string()));
                }
            }
        }
        let mut replaced_by = None;
        for intent in intents {
            // Here it is given out for another one, and good at once.
            if let Intent::IssueCard { card } = &intent {
                replaced_by = Some(card.clone());
            }
            let issued = match &intent {
                Intent::IssueCard { card }
                | Intent::IssueInactiveCard { card }
                | Intent::IssueLegacyCard { card, .. } => Some(card.clone()),
                _ => None,
            };
            if let Err(error) = self.settle(account, intent, operator.clone())? {
                return Ok(Err(error));
            }
            if let Some(card) = issued {
                holders::take_blank(self.db, &card)?;
            }
        }
        match replaced_by {
            Some(new) => self.given(card, account, new),
            None => self.account(card),
        }
    }

    /// The account, and what the holder shows of the new card where nobody has heard of it.
    fn given(&mut self, card: &CardNumber, account: AccountId, new: CardNumber) -> Result<Reply, StoreError> {
        let mut reply = self.account(card)?;
        if let Ok(shown) = &mut reply {
            shown["issuance"] = self.sign_issuance(account, new, Some(card.clone())).into();
        }
        Ok(reply)
    }

    /// Whether a card can be replaced by another one; the refusal where it cannot.
    fn replaceable(
        &self,
        card: &CardNumber,
        new_card: &CardNumber,
        settings: &AccountSettings,
    ) -> Result<Option<Reply>, StoreError> {
        if accounts::account_of_card(self.db, new_card)?.is_some() {
            return Ok(Some(refused("card_in_use", "the new card belongs to an account already")));
        }
        // Who has no other card any more gets one for that which was withdrawn, as a copied one is.
        match settings.card_in_use() {
            Some(other) if settings.cards.get(card) == Some(&CardStatus::Void) => {
                let message =
                    format!("the card was replaced or withdrawn before, and the account has {other}");
                Ok(Some(refused("card_void", message)))
            }
            _ => Ok(None),
        }
    }

    /// An account, as an operator sees it.
    pub(crate) fn account(&mut self, card: &CardNumber) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        let mut wallets = serde_json::Map::new();
        let mut rights = Vec::new();
        let mut vouchers = Vec::new();
        for wallet in [Wallet::Cash, Wallet::Subsidy] {
            let holding = self.holding(account, wallet)?;
            if !holding.is_stored() {
                continue;
            }
            let state = holding.wallet;
            let rows: Vec<_> = holding.rows.iter().map(|(key, row)| (*key, *row)).collect();
            wallets.insert(
                wallet.to_string(),
                json!({ "funds_fen": state.funds, "at_the_centre_fen": state.free, "owed_fen": state.claims }),
            );
            for ((node, epoch), row) in rows {
                if node == NodeId::CENTRE {
                    vouchers.extend(self.shown_hold(account, epoch.0, row.out)?);
                } else if row.out != Fen::ZERO || row.si_out != Fen::ZERO || row.residue != Fen::ZERO {
                    rights.push(json!({
                        "node": self.state.nodes.get(&node).map(|node| node.display_name()),
                        "wallet": wallet,
                        "right_fen": row.out + row.residue,
                        "stand_in_fen": row.si_out,
                    }));
                }
            }
        }
        Ok(Ok(json!({
            "account": account,
            "patron_class": settings.class,
            "holder": settings.holder,
            "cards": settings.cards,
            "legacy": settings.legacy,
            "frozen": settings.frozen,
            "closed": settings.closed,
            "valid_until": settings.valid_until.map(|day| day.to_string()),
            "single_limit_fen": settings.single_limit,
            "daily_limit_fen": settings.daily_limit,
            "groups": settings.groups,
            "wallets": wallets,
            "rights": rights,
            "vouchers": vouchers,
            "closing": self.closing_view(account)?,
        })))
    }

    /// How far a card's loss is known, and what can still be spent where it is not.
    pub(crate) fn card_loss(&mut self, card: &CardNumber) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some((reported, position)) = accounts::standing_loss(self.db, card)? else {
            return Ok(refused("not_lost", "the card is not reported lost"));
        };
        let log = self.state.shard(account);
        let vouchers = self.takeable_vouchers(account, card)?;
        let mut at_most = Fen::ZERO;
        let mut unaware = Vec::new();
        let (mut known, mut buildings) = (0, 0);
        let nodes: Vec<NodeId> = self.state.nodes.keys().copied().collect();
        for id in nodes {
            let mut exposed = self.spendable_at(account, id)?;
            let Some(node) = self.state.nodes.get(&id) else { continue };
            let aware = self.state.known_position(id, log) >= position;
            if node.spends() {
                let elsewhere = vouchers.iter().filter(|(taken_by, _)| *taken_by != Some(id));
                exposed += elsewhere.map(|(_, ceiling)| *ceiling).sum::<Fen>();
            }
            // Of those that are gone for good only what they may still spend counts.
            if !node.holds() && (aware || exposed == Fen::ZERO) {
                continue;
            }
            buildings += 1;
            if aware {
                known += 1;
            } else {
                at_most += exposed;
                unaware.push(Building { node: node.display_name(), heard: node.heard, at_most_fen: exposed });
            }
        }
        let bounded = self.state.mode() != Mode::Optimistic || unaware.is_empty();
        let loss = CardLoss { reported, buildings, known, unaware, at_most_fen: bounded.then_some(at_most) };
        Ok(Ok(serde_json::to_value(loss).map_err(|error| Store::Invariant(error.to_string()))?))
    }

    /// What a building that has not heard of a phone's loss may take of its vouchers, each once: whose debit is known, and the ceiling.
    /// Such a building need not have heard either that a voucher has paid elsewhere.
    fn takeable_vouchers(
        &self,
        account: AccountId,
        card: &CardNumber,
    ) -> Result<Vec<(Option<NodeId>, Fen)>, StoreError> {
        let institution = self.state.identity.institution;
        let from = self.state.time.plus_ms(-TAKEN_AFTER_END_MS).0.div_euclid(1_000);
        let holds = holds::not_over(self.db, institution, account, from)?.into_iter();
        let of_card = holds.filter(|hold| hold.card == *card);
        Ok(of_card.map(|hold| (hold.debit.map(|debit| debit.log.writer), hold.ceiling)).collect())
    }

    /// What of an account a node may still spend, as the centre must assume.
    fn spendable_at(&mut self, account: AccountId, node: NodeId) -> Result<Fen, StoreError> {
        let mut spendable = Fen::ZERO;
        for wallet in [Wallet::Cash, Wallet::Subsidy] {
            let holding = self.holding(account, wallet)?;
            spendable += holding
                .rows
                .iter()
                .filter(|((of, _), _)| *of == node)
                .map(|(_, row)| (row.out + row.si_out + row.residue).or_zero())
                .sum::<Fen>();
        }
        Ok(spendable)
    }

    /// A node has said how far it has an account stream on its disk.
    pub(crate) fn note_known(&mut self, node: NodeId, log: LogId, position: u64) {
        if log.as_shard().is_some() {
            let known = self.state.known.entry((node, log)).or_default();
            let before = std::mem::replace(known, position.max(*known));
            self.note_closings_known(log, before, position);
        }
    }
}
