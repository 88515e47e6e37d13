//! What operators, channels and the enrolment desk ask for: accounts, credits, losses, the campus, nodes, status.
//!
//! A command is checked whole before anything of it is written; one that is refused leaves no trace.

use std::collections::BTreeSet;

use feiqian_protocol::account::{
    AccountError, AccountSettings, CardStatus, Document, FIRST_EPOCH, HolderField, Intent, NewAccount,
    actor_id,
};
use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{
    AccountOpened, Actor, ActorKind, Bearer, CampusPublished, Credit, EntryRef, Proof, Setting,
};
use feiqian_protocol::frame::{Frame, LossNotice};
use feiqian_protocol::ids::{AccountId, CardNumber, Epoch, Key, LogId, NodeId, NodeName, Wallet};
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, LOSSES_PER_LIFT_MAX};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessDay, Timestamp};
use serde_json::{Value, json};

use crate::core::{Round, StoreError};
use crate::io::{Command, CommandError, ImportedAccount, NodeStatus, Output, Reply, Revoked, Status};
use crate::ledger::{MIGRATION, SUSPENSE, WRITE_OFF, channel_ledger, is_own_channel, wallet_ledger};
use crate::store::accounts::{self, StoredAccount};
use crate::store::holders;
use crate::store::money;
use crate::store::nodes;
use crate::store::{StoreError as Store, cases, meta_number, put_meta};

/// An account so young is not stood in for: nothing is known of its habits, and an account is easily opened to be emptied.
pub(crate) const YOUNG_DAYS: i32 = 14;

pub(crate) fn refused(code: &'static str, message: impl Into<String>) -> Reply {
    Err(CommandError { code, message: message.into() })
}

/// A card of an account that a command names.
type Named = Result<AccountId, CommandError>;

impl Round<'_> {
    pub(crate) fn handle_command(&mut self, command: Command) -> Result<Reply, StoreError> {
        match command {
            Command::ImportAccounts { accounts } => self.import(&accounts),
            Command::ImportHistory { file, part, last, purchases } => {
                self.import_history(&file, part, last, &purchases)
            }
            Command::Topup { card, amount_fen, wallet, channel, key } => {
                self.topup(&card, wallet, amount_fen, &channel, &key)
            }
            Command::ReportLoss { card, operator } => self.report_loss(&card, operator),
            Command::LiftLoss { card, operator } => self.lift_loss(&card, operator),
            Command::CardLoss { card } => self.card_loss(&card),
            Command::ActivateVirtualCard { card, algorithm, key, operator } => {
                self.activate_virtual_card(&card, &algorithm, &key, operator)
            }
            Command::WriteOff { card, wallet, operator } => self.write_off(&card, wallet, operator),
            Command::DecideCase { case, decision, operator } => self.decide_case(&case, decision, operator),
            Command::ShortCode { card } => self.short_code(&card),
            Command::Voucher { card, life_minutes, ceiling_fen, after } => {
                self.voucher(&card, life_minutes, ceiling_fen, after)
            }
            Command::Receipt { receipt } => self.take_receipt(&receipt),
            Command::Purse { serial } => self.purse_view(serial),
            Command::ReturnPurse { serial, operator } => self.return_purse(serial, operator),
            Command::Account { card } => self.account(&card),
            Command::Issuance { card } => self.issuance(&card),
            Command::OpenAccounts { accounts, operator } => self.open_accounts(&accounts, operator),
            Command::StockCards { cards } => self.stock_cards(&cards),
            Command::PickUpList { department, after } => self.pick_up_list(&department, after),
            Command::ActivateCard { card, typed } => self.activate_by_pin(&card, &typed),
            Command::BindSalts { number } => self.bind_salts(&number),
            Command::Bind { number, name, typed, user } => self.bind(&number, &name, &typed, user),
            Command::FindHolder { number, user } => self.find_holder(number.as_ref(), user.as_ref()),
            Command::LoginSalt { card } => self.login_salt(&card),
            Command::SetLogin { card, login, operator } => self.set_login(&card, &login, &operator),
            Command::CheckLogin { card, typed } => self.check_login(&card, &typed),
            Command::ChangeLogin { card, current, login } => self.change_login(&card, &current, &login),
            Command::CloseAccount { card, channel, subsidy_channel, operator } => {
                self.close_account(&card, channel, subsidy_channel, operator)
            }
            Command::ChangeSetting { card, change, operator } => self.change_setting(&card, change, operator),
            Command::Campus {} => {
                Ok(Ok(json!({ "version": self.state.campus_version, "config": self.state.campus })))
            }
            Command::PublishCampus { config } => self.publish_campus(&config),
            Command::CreateEnrolment { name, role, lookup, secret } => {
                self.create_enrolment(name, role, &lookup, &secret)
            }
            Command::LookUpEnrolment { lookup } => self.look_up_enrolment(&lookup),
            Command::Enrol { lookup, log_key, pin_key } => self.enrol(&lookup, &log_key, pin_key),
            Command::PinStatus { card } => self.pin_status(&card),
            Command::SetPin { card, pin, operator } => self.set_pin(&card, &pin, false, operator),
            Command::ResetPin { card, pin, operator } => self.set_pin(&card, &pin, true, operator),
            Command::ChangePin { card, current, pin } => self.change_pin(&card, &current, &pin),
            Command::ConfirmPin { card, typed, operator } => self.confirm_pin(&card, &typed, operator),
            Command::UnlockPin { card } => self.unlock_pin(&card),
            Command::Retire { node, force } => self.retire(&node, force),
            Command::Revoke { node, enrolment } => self.revoke(&node, enrolment),
            Command::Renew { node, incarnation } => Ok(self.renew(node, incarnation)),
            Command::ImportLog { frame, branch } => self.import_log(&frame, branch),
            Command::Status {} => self.status(),
        }
    }

    pub(crate) fn named(&self, card: &CardNumber) -> Result<Named, StoreError> {
        let unknown =
            || CommandError { code: "unknown_card", message: "no account has this card".to_owned() };
        Ok(accounts::account_of_card(self.db, card)?.ok_or_else(unknown))
    }

    fn import(&mut self, imported: &[ImportedAccount]) -> Result<Reply, StoreError> {
        let opened = self.open_all(imported, None, &Actor::centre())?;
        Ok(opened.map(|opened| json!({ "accounts": opened.len() })))
    }

    /// Opens accounts, all or none of them; returns their numbers. Where it is told who their holders are, their cards are inactive.
    pub(crate) fn open_all(
        &mut self,
        imported: &[ImportedAccount],
        told: Option<Vec<Vec<(HolderField, String)>>>,
        actor: &Actor,
    ) -> Result<Result<Vec<AccountId>, CommandError>, StoreError> {
        let refused = |code, message: String| Ok(Err(CommandError { code, message }));
        let Some(campus) = self.state.campus.clone() else { return Ok(no_campus().map(|_| Vec::new())) };
        let institution = self.state.identity.institution;
        let mut cards = BTreeSet::new();
        let mut opened = Vec::with_capacity(imported.len());
        let last = accounts::count(self.db)?;
        for (index, new) in imported.iter().enumerate() {
            let row = index + 1;
            if !cards.insert(&new.card) || accounts::account_of_card(self.db, &new.card)?.is_some() {
                return refused("card_in_use", format!("row {row}: the card belongs to an account already"));
            }
            let in_range = |fen: Fen| !fen.is_negative() && fen <= AMOUNT_FEN_MAX;
            if !in_range(new.opening_fen) || !in_range(new.subsidy_fen) {
                return refused(
                    "amount",
                    format!("row {row}: a balance must be from 0 to {AMOUNT_FEN_MAX} yuan"),
                );
            }
            if new.opened.is_some_and(|day| !(BusinessDay(0)..=self.state.day).contains(&day)) {
                return refused("account", format!("row {row}: it cannot have been opened on that day"));
            }
            let account = AccountId(last + row as u64);
            let told = told.as_ref().and_then(|told| told.get(index));
            let active = if told.is_none() { vec![new.card.clone()] } else { Vec::new() };
            let terms = NewAccount {
                class: new.patron_class.clone(),
                cards: active,
                single_limit: new.single_limit_fen.unwrap_or(campus.single_limit_fen),
                daily_limit: new.daily_limit_fen.unwrap_or(campus.daily_limit_fen),
                groups: new.groups.clone(),
                valid_until: new.valid_until,
            };
            let document = Document::create(
                &terms,
                actor_id(institution, NodeId::CENTRE, 1, 1, account),
                self.state.time,
            )
            .and_then(|mut document| {
                if let Some(told) = told {
                    document
                        .carry_out(&Intent::IssueInactiveCard { card: new.card.clone() }, self.state.time)?;
                    for (field, text) in told {
                        let intent = Intent::Describe { field: *field, value: Some(text.clone()) };
                        document.carry_out(&intent, self.state.time)?;
                    }
                }
                if let Some(pin) = &new.initial_pin {
                    let intent = Intent::ResetPin { generation: pin.generation, replaces: Vec::new() };
                    document.carry_out(&intent, self.state.time)?;
                }
                Ok((document.settings()?, document.heads(), document.save()))
            });
            match document {
                Ok(document) => opened.push((account, new, document)),
                Err(error) => return refused("account", format!("row {row}: {error}")),
            }
        }
        let accounts = opened.iter().map(|(account, ..)| *account).collect();
        for (account, new, (settings, heads, document)) in opened {
            self.open_account(account, new, document, (&settings, &heads), actor.clone())?;
            if let Some(pin) = &new.initial_pin {
                self.keep_initial_pin(account, pin)?;
            }
            for (wallet, amount) in [(Wallet::Cash, new.opening_fen), (Wallet::Subsidy, new.subsidy_fen)] {
                if amount.is_positive() {
                    let key = Key::new(format!("opening-{account}-{wallet}"));
                    let key = key.map_err(|error| Store::Invariant(error.to_string()))?;
                    let channel = Key::new(MIGRATION).map_err(|error| Store::Invariant(error.to_string()))?;
                    self.credit(account, wallet, amount, channel, key, Actor::centre())?;
                    self.state.hand_out.later(account);
                }
            }
        }
        Ok(Ok(accounts))
    }

    fn open_account(
        &mut self,
        account: AccountId,
        new: &ImportedAccount,
        document: Vec<u8>,
        (settings, heads): (&AccountSettings, &[String]),
        actor: Actor,
    ) -> Result<(), StoreError> {
        let log = self.state.shard(account);
        let seasoned_on =
            new.opened.map_or(BusinessDay(0), |day| BusinessDay(day.0.saturating_add(YOUNG_DAYS)));
        let seasoned = seasoned_on <= self.state.day;
        let entry = AccountOpened { account, document: document.clone().into(), seasoned };
        self.append(log, actor, entry)?;
        let stored = StoredAccount { document_epoch: FIRST_EPOCH, document, seasoned_on };
        accounts::insert(self.db, account, &new.card, &stored, settings, heads)?;
        accounts::insert_card(self.db, &new.card, account)?;
        if !settings.holder.is_empty() {
            holders::put(self.db, account, settings)?;
        }
        self.state.hand_out.later(account);
        Ok(())
    }

    fn credit(
        &mut self,
        account: AccountId,
        wallet: Wallet,
        amount: Fen,
        channel: Key,
        key: Key,
        actor: Actor,
    ) -> Result<(), StoreError> {
        let log = self.state.shard(account);
        let from = channel_ledger(channel.as_str());
        let position = self.append(log, actor, Credit { account, wallet, amount, channel, key })?;
        let at = EntryRef { log, position };
        let day = self.state.day;
        self.post(at, day, amount, from, wallet_ledger(account, wallet))?;
        self.move_funds(at, self.state.time, (account, wallet), amount)
    }

    fn topup(
        &mut self,
        card: &CardNumber,
        wallet: Wallet,
        amount: Fen,
        channel: &Key,
        key: &Key,
    ) -> Result<Reply, StoreError> {
        if !amount.is_positive() || amount > AMOUNT_FEN_MAX {
            return Ok(refused("amount", format!("the amount must be from 0.01 to {AMOUNT_FEN_MAX} yuan")));
        }
        if is_own_channel(channel.as_str()) {
            return Ok(refused("channel", format!("{channel} is no channel that money comes in by")));
        }
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        if let Some((former, former_wallet, former_amount, answer)) =
            money::credit(self.db, channel.as_str(), key.as_str())?
        {
            if (former, former_wallet, former_amount) != (account, wallet, amount) {
                return Ok(refused("key_reused", "this key credited something else before"));
            }
            let answer = serde_json::from_str(&answer)
                .map_err(|error| Store::Corrupt(format!("the answer to a credit: {error}")))?;
            return Ok(Ok(answer));
        }
        if let Some(settings) = self.settings(account)?
            && settings.closed
        {
            // Late word of a purchase may have left a debt.
            let owed = (-self.holding(account, wallet)?.wallet.funds).or_zero();
            if amount > owed {
                let message = if owed.is_positive() {
                    format!("the account is closed, and owes {owed} yuan: no more is taken in")
                } else {
                    AccountError::Closed.to_string()
                };
                return Ok(refused(AccountError::Closed.code(), message));
            }
        }
        let actor = Actor { kind: ActorKind::Channel, id: channel.clone(), proof: Proof::None };
        self.credit(account, wallet, amount, channel.clone(), key.clone(), actor)?;
        self.state.hand_out.soon(account);
        let posted = self.holding(account, wallet)?.wallet.funds;
        let answer = json!({
            "account": account, "wallet": wallet, "amount_fen": amount, "posted_fen": posted,
        });
        let text = answer.to_string();
        let content = (account, wallet, amount, text.as_str());
        money::insert_credit(self.db, channel.as_str(), key.as_str(), content)?;
        Ok(Ok(answer))
    }

    /// What an account's document comes to.
    pub(crate) fn settings(&self, account: AccountId) -> Result<Option<AccountSettings>, StoreError> {
        accounts::settings(self.db, account)
    }

    /// Ends what an account owes, once it is settled that its holder owes it.
    fn write_off(&mut self, card: &CardNumber, wallet: Wallet, operator: Key) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let owed = (-self.holding(account, wallet)?.wallet.funds).or_zero();
        if owed == Fen::ZERO {
            return Ok(refused("nothing_owed", "the account owes nothing"));
        }
        let open = cases::overspend_cases(self.db, self.state.identity.institution, account, wallet)?;
        if open.iter().any(|case| case.bearer == Bearer::Suspense && case.outstanding().is_positive()) {
            let message = "a building that was not heard since may still change what is owed; say this again when it was, or after \
                           the term";
            return Ok(refused("not_yet", message));
        }
        let key_of = |text: &str| Key::new(text).map_err(|error| Store::Invariant(error.to_string()));
        let channel = key_of(WRITE_OFF)?;
        // The place of the entry makes the key unique.
        let position = self.state.log(self.state.shard(account)).cursor.position + 1;
        let key = key_of(&format!("write-off-{position}"))?;
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        self.credit(account, wallet, owed, channel, key, actor)?;
        Ok(Ok(json!({ "account": account, "wallet": wallet, "amount_fen": owed })))
    }

    /// An account's document; the centre writes later changes.
    pub(crate) fn document(&self, account: AccountId) -> Result<Option<Document>, StoreError> {
        let Some(stored) = accounts::load(self.db, account)? else { return Ok(None) };
        let actor =
            actor_id(self.state.identity.institution, NodeId::CENTRE, 1, stored.document_epoch, account);
        Ok(Some(Document::load(&stored.document, actor)?))
    }

    fn report_loss(&mut self, card: &CardNumber, operator: Key) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        if settings.cards.get(card) == Some(&CardStatus::Lost) {
            return Ok(refused("already_lost", "the card is reported lost already"));
        }
        // The place of the entry makes the key unique.
        let position = self.state.log(self.state.shard(account)).cursor.position + 1;
        let loss =
            Key::new(format!("loss-{position}")).map_err(|error| Store::Invariant(error.to_string()))?;
        let intent = Intent::ReportLoss { card: card.clone(), loss: loss.clone() };
        let reply = self.settle(account, intent, operator)?;
        Ok(reply.map(|()| json!({ "account": account, "loss": loss })))
    }

    fn lift_loss(&mut self, card: &CardNumber, operator: Key) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused("account", "the account has no document"));
        };
        let losses: Vec<Key> =
            settings.losses.iter().filter(|(_, lost)| *lost == card).map(|(loss, _)| loss.clone()).collect();
        if losses.is_empty() {
            return Ok(refused("not_lost", "the card is not reported lost"));
        }
        for part in losses.chunks(LOSSES_PER_LIFT_MAX) {
            let intent = Intent::LiftLoss { card: card.clone(), losses: part.to_vec() };
            if let Err(error) = self.settle(account, intent, operator.clone())? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(json!({ "account": account, "lifted": losses.len() })))
    }

    /// Carries out an operator's intent.
    pub(crate) fn settle(
        &mut self,
        account: AccountId,
        intent: Intent,
        operator: Key,
    ) -> Result<Result<(), CommandError>, StoreError> {
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        self.settle_as(account, intent, actor)
    }

    /// Carries out an intent of whoever it is.
    pub(crate) fn settle_as(
        &mut self,
        account: AccountId,
        intent: Intent,
        actor: Actor,
    ) -> Result<Result<(), CommandError>, StoreError> {
        let Some(mut document) = self.document(account)? else {
            return Ok(Err(CommandError {
                code: "account",
                message: "the account has no document".to_owned(),
            }));
        };
        match document.carry_out(&intent, self.state.time) {
            Ok(change) => {
                self.write_setting(account, document, intent, change, actor, None)?;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(CommandError { code: error.code(), message: error.to_string() })),
        }
    }

    /// Writes a setting that was carried out or merged, and what it means beyond the document. `of` is the entry of the node that
    /// wrote it, where one did.
    pub(crate) fn write_setting(
        &mut self,
        account: AccountId,
        mut document: Document,
        intent: Intent,
        change: Vec<u8>,
        actor: Actor,
        of: Option<EntryRef>,
    ) -> Result<(), StoreError> {
        if matches!(intent, Intent::ReportLoss { .. }) && self.state.gathered.touches(account) {
            // What was ingested of an account before a report is posted before it: a centre that comes back from an old copy goes
            // by that. Nobody's report waits for what others have moved.
            self.write_posted()?;
        }
        let log = self.state.shard(account);
        let time = self.state.time;
        let document_epoch = document.epoch()?;
        let change = change.into();
        let setting = Setting { account, document_epoch, intent: intent.clone(), change, typed: None, of };
        let position = self.append(log, actor, setting)?;
        let saved = document.save();
        let settings = accounts::update(self.db, account, &saved, &mut document)?;
        self.renew_worn(account, &document, saved.len())?;
        if matches!(intent, Intent::ReportLoss { .. }) {
            // Money is nobody's to wait for then.
            self.state.hand_out.later(account);
        } else {
            self.state.hand_out.soon(account);
        }
        match intent {
            Intent::ReportLoss { card, loss } => {
                accounts::insert_loss(self.db, &card, &loss, account, time, position)?;
                self.state.cards_lost.insert(card.clone());
                let notice = LossNotice { account, card, log, position };
                for link in self.sessions().into_iter().filter(|_| !planted(Canary::LossBehindBulk)) {
                    self.outputs.push(Output::Send(link, Frame::LossNotice(notice.clone())));
                }
            }
            Intent::LiftLoss { card, losses } => accounts::lift_losses(self.db, &card, &losses, time)?,
            Intent::IssueCard { card }
            | Intent::ActivateVirtualCard { card, .. }
            | Intent::IssueInactiveCard { card }
            | Intent::IssueLegacyCard { card, .. } => {
                accounts::insert_card(self.db, &card, account)?;
            }
            Intent::Describe { .. } => holders::put(self.db, account, &settings)?,
            Intent::SetLimits { .. } => self.state.debts.check_allowance(account),
            Intent::VoidCard { card } => self.note_void(&card, time)?,
            _ => {}
        }
        Ok(())
    }

    fn publish_campus(&mut self, config: &Value) -> Result<Reply, StoreError> {
        let checked = CampusConfig::from_bytes(config.to_string().as_bytes())
            .and_then(|config| config.to_bytes().map(|bytes| (config, bytes)));
        let (config, bytes) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                let cause =
                    std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                return Ok(refused("campus", format!("{error}{cause}")));
            }
        };
        if config.institution != self.state.identity.institution {
            return Ok(refused("campus", "the configuration is of another institution"));
        }
        if let Some(number) = self.foreign_voucher_key(&config) {
            let message = format!(
                "voucher key {number} is not this centre's; feiqian-reconcile virtual-card key writes its keys"
            );
            return Ok(refused("voucher_key", message));
        }
        if self.state.campus.as_ref() == Some(&config) {
            return Ok(Ok(json!({ "version": self.state.campus_version })));
        }
        let version = self.state.campus_version + 1;
        self.state.campus = Some(config);
        self.state.campus_version = version;
        let json = String::from_utf8_lossy(&bytes).into_owned();
        put_meta(self.db, "campus", json)?;
        put_meta(self.db, "campus_version", version)?;
        if self.state.mode() == Mode::Optimistic {
            put_meta(self.db, "unlimited", 1)?;
        }
        let log = LogId::shard(self.state.identity.institution, 0);
        self.append(log, Actor::centre(), CampusPublished { version, config: bytes.into() })?;
        // Policy and calendar may be others.
        self.state.sweep.start(true);
        Ok(Ok(json!({ "version": version })))
    }

    /// What a building, in all its enrolments, may have spent that will not be covered: what was out when it was closed
    /// without its word, as long as that has not come.
    fn exposed(&self, name: &NodeName) -> Result<Fen, StoreError> {
        let closed =
            self.state.nodes.iter().filter(|(_, node)| node.name == *name && node.epoch > Epoch::FIRST);
        let mut exposed = Fen::ZERO;
        for (id, _) in closed {
            exposed += nodes::exposed(self.db, *id, self.state.own_log(*id))?;
        }
        Ok(exposed)
    }

    pub(crate) fn status(&self) -> Result<Reply, StoreError> {
        let accounts = accounts::count(self.db)?;
        let waiting = self.state.hand_out.waiting() + self.state.sweep.left(accounts);
        let mut nodes = Vec::new();
        for (id, node) in self.state.nodes.iter().filter(|(_, node)| node.is_shown()) {
            let link = self.state.links.values().find(|link| link.node == *id && link.is_accepted());
            let state = match &node.reason {
                Some(reason) if !node.is_open() => format!("{}: {reason}", node.state.name()),
                _ => node.state.name().to_owned(),
            };
            let own = self.state.log(self.state.own_log(*id));
            let exposed = self.exposed(&node.name)?;
            let state =
                if exposed.is_positive() { format!("{state}, {exposed} yuan exposed") } else { state };
            let state = match own.quarantined {
                Some(position) => format!("{state}, quarantined at {position}"),
                None => state,
            };
            nodes.push(NodeStatus {
                node: node.name.to_string(),
                connected: link.is_some(),
                state,
                ingested: own.cursor.position,
                to_node: self.state.log(self.state.to_node(*id)).cursor.position,
                to_node_acked: node.to_node_acked,
                backlog: link.map_or(0, |link| link.backlog() + waiting + self.state.debts.under_way(*id)),
                out_fen: node.out.get(),
                stand_in_out_fen: node.si_out.get(),
            });
        }
        let (open_cases, open_cases_fen) = cases::open_cases(self.db)?;
        let revoked = self.state.revoked.iter().filter_map(|(id, at)| {
            let node = self.state.nodes.get(id)?;
            Some(Revoked { node: node.name.to_string(), enrolment: node.incarnation, number: *id, at: *at })
        });
        let status = Status {
            nodes,
            revoked: revoked.collect(),
            shards: self.shard_positions(),
            accounts,
            campus_version: self.state.campus_version,
            asks: self.state.asks.len(),
            open_cases,
            open_cases_fen: open_cases_fen.get(),
            suspense_fen: -money::ledger_balance(self.db, SUSPENSE)?.get(),
            recovery: self.recovery_status(),
            recovered_until: meta_number(self.db, "recovered_until")?.map(Timestamp),
            wall: self.state.time,
        };
        let value = serde_json::to_value(status).map_err(|error| Store::Invariant(error.to_string()))?;
        Ok(Ok(value))
    }
}

pub(crate) fn no_campus() -> Reply {
    refused("campus", "no campus configuration is published yet")
}
