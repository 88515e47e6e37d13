//! Loads: judged, in transit, settled.

use feiqian_protocol::account::CardStatus;
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, EntryRef, PurseLoad, PurseLoadSettled, PurseLoaded};
use feiqian_protocol::frame::Frame;
use feiqian_protocol::ids::{AccountId, NodeId, Unit, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::purse::load::{LoadRefusal, LoadRequest};
use feiqian_protocol::purse::profile::CardProfile;
use feiqian_protocol::purse::question::{
    LoadFate, PurseAnswer, PurseAsk, PurseQuestion, PurseRefusal, PurseReply, StreamPlace,
};
use feiqian_protocol::purse::recovery::{Evidence, LoadProbe};
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::values::{CardSerial, CardTime, Counter, TerminalNumber};
use feiqian_protocol::time::Timestamp;
use sha2::{Digest, Sha256};

use super::{Purses, purse_ledger, transit_ledger};
use crate::core::{Round, StoreError};
use crate::io::{LinkId, Output};
use crate::ledger::{MIGRATION, wallet_ledger};
use crate::store::purses::{self, LoadRow, LoadState, PurseState};
use crate::store::{StoreError as Store, accounts};

/// Loads of one node that may wait: a building has fewer terminals that load cards.
const WAITING_PER_NODE_MAX: usize = 32;

/// How long a load may wait for right to come home, in milliseconds: the card lies on the reader meanwhile.
const WAIT_MS_MAX: u64 = 2_000;

/// The wallet that a card is loaded from: subsidies have purposes, and a purse has none.
const WALLET: Wallet = Wallet::Cash;

/// A load that waits.
#[derive(Clone, Debug)]
pub(crate) struct WaitingLoad {
    node: NodeId,
    link: LinkId,
    request: u64,
    load: LoadRequest,
    account: Option<AccountId>,
    deadline_ms: u64,
    recalled: bool,
}

impl WaitingLoad {
    /// When it is too late for it, in `mono_ms`.
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }
}

/// What a load comes to.
enum Judged {
    Answer(PurseReply, Option<StreamPlace>),
    Wait,
}

const fn refused(refusal: PurseRefusal) -> Judged {
    Judged::Answer(PurseReply::Refused(refusal), None)
}

impl Round<'_> {
    /// A node asks about a purse.
    pub(crate) fn purse_ask(&mut self, link: LinkId, node: NodeId, ask: PurseAsk) -> Result<(), StoreError> {
        let request = ask.request;
        match ask.question {
            PurseQuestion::Load(load) => {
                let waiting = &mut self.state.purse_loads;
                if waiting.iter().filter(|other| other.node == node).count() >= WAITING_PER_NODE_MAX {
                    let reply = PurseReply::Refused(PurseRefusal::Elsewhere);
                    self.answer_purse(link, request, reply, None);
                    return Ok(());
                }
                let deadline_ms = self.now.mono_ms.saturating_add(ask.ms_left.min(WAIT_MS_MAX));
                let (account, recalled) = (None, false);
                waiting.push(WaitingLoad { node, link, request, load, account, deadline_ms, recalled });
            }
            PurseQuestion::Evidence(serial, evidence) => {
                let (reply, after) = self.resolve_load(serial, &evidence)?;
                self.answer_purse(link, request, reply, after);
            }
            PurseQuestion::Open(serial) => {
                let (reply, after) = self.open_load(serial)?;
                self.answer_purse(link, request, reply, after);
            }
        }
        Ok(())
    }

    /// Whether a card has a load in transit, and the number to probe it under.
    fn open_load(&self, serial: CardSerial) -> Result<(PurseReply, Option<StreamPlace>), StoreError> {
        let Some(purses) = &self.state.purses else {
            return Ok((PurseReply::Refused(PurseRefusal::NotServed), None));
        };
        let Some(profile) = purses.profile(serial) else {
            return Ok((PurseReply::Refused(PurseRefusal::UnknownCard), None));
        };
        match purses::open_load(self.db, self.state.identity.institution, serial)? {
            Some(open) => self.unresolved(purses, profile, &open),
            None => Ok((PurseReply::Settled(LoadFate::Nothing), None)),
        }
    }

    /// Nobody is there any more to be answered.
    pub(crate) fn forget_loads(&mut self, link: LinkId) {
        self.state.purse_loads.retain(|waiting| waiting.link != link);
    }

    /// True while a load waits for money of an account: nothing of it is handed out meanwhile.
    pub(crate) fn load_waits(&self, account: AccountId, unit: Unit) -> bool {
        unit == Unit::Wallet(WALLET)
            && self.state.purse_loads.iter().any(|waiting| waiting.account == Some(account))
    }

    /// Answers the loads that can be, oldest first.
    pub(crate) fn serve_loads(&mut self) -> Result<(), StoreError> {
        for mut waiting in std::mem::take(&mut self.state.purse_loads) {
            if !self.state.links.get(&waiting.link).is_some_and(crate::session::Link::is_accepted) {
                continue;
            }
            let anchored = self.state.links.get(&waiting.link).is_some_and(crate::session::Link::is_anchored);
            let judged = match anchored {
                true => self.judge_load(&mut waiting)?,
                false => Judged::Wait,
            };
            let done = match judged {
                Judged::Answer(reply, after) => Some((reply, after)),
                Judged::Wait if waiting.deadline_ms <= self.now.mono_ms => {
                    Some((PurseReply::Refused(PurseRefusal::Elsewhere), None))
                }
                Judged::Wait => None,
            };
            match done {
                Some((reply, after)) => {
                    self.answer_purse(waiting.link, waiting.request, reply, after);
                    if let Some(account) = waiting.account {
                        self.state.hand_out.soon(account);
                    }
                }
                None => self.state.purse_loads.push(waiting),
            }
        }
        Ok(())
    }

    fn answer_purse(&mut self, link: LinkId, request: u64, reply: PurseReply, after: Option<StreamPlace>) {
        let answer = Box::new(PurseAnswer { request, reply, after });
        self.outputs.push(Output::Send(link, Frame::PurseAnswer(answer)));
    }

    fn judge_load(&mut self, waiting: &mut WaitingLoad) -> Result<Judged, StoreError> {
        let load = waiting.load;
        let Some(purses) = self.state.purses.clone() else { return Ok(refused(PurseRefusal::NotServed)) };
        if !self.state.nodes.get(&waiting.node).is_some_and(|node| node.is_open() && node.spends()) {
            return Ok(refused(PurseRefusal::Role));
        }
        let card = load.serial.card_number();
        let account = accounts::account_of_card(self.db, &card)?;
        let (Some(profile), Some(account)) = (purses.profile(load.serial), account) else {
            return Ok(refused(PurseRefusal::UnknownCard));
        };
        let Some(settings) = self.settings(account)? else {
            return Ok(refused(PurseRefusal::UnknownCard));
        };
        let standing = match settings.cards.get(&card) {
            _ if settings.closed => Some(PurseRefusal::Closed),
            Some(CardStatus::Lost) => Some(PurseRefusal::Lost),
            Some(CardStatus::Active) if settings.frozen => Some(PurseRefusal::Frozen),
            Some(CardStatus::Active) if settings.is_expired(self.state.day) => Some(PurseRefusal::Expired),
            Some(CardStatus::Active) => None,
            _ => Some(PurseRefusal::Void),
        };
        let institution = self.state.identity.institution;
        if let Some(open) = purses::open_load(self.db, institution, load.serial)? {
            return self.judge_again(&purses, profile, &load, &open, standing.is_none());
        }
        if let Some(standing) = standing {
            return Ok(refused(standing));
        }
        let offset = self.state.calendar().utc_offset_minutes;
        let Some(time) = CardTime::at(self.state.time, offset) else {
            return Err(Store::Invariant("the time of the centre is none that a card can take".to_owned()));
        };
        let authorized = match purses.issuer.authorize_load(profile, &load, time) {
            Ok(authorized) => authorized,
            Err(refusal) => return Ok(refused(of_load(&refusal))),
        };
        let (begun, known) = (load.begun, purses::purse(self.db, load.serial)?);
        let books = self.ledger_now(&purse_ledger(load.serial))?;
        let beyond = (begun.balance.to_fen() - books).or_zero();
        let takes_over = purses.take_over && known.is_none();
        if known.is_some_and(|known| known.online != begun.counter) || (beyond.is_positive() && !takes_over) {
            tracing::warn!(
                account = account.0,
                counter = begun.counter.0,
                balance = begun.balance.get(),
                %books,
                "a card and the books disagree; see purse show"
            );
            return Ok(refused(PurseRefusal::Disagrees));
        }
        let amount = load.amount.to_fen();
        waiting.account = Some(account);
        if let Some(not_yet) = self.raise(waiting, account, amount)? {
            return Ok(not_yet);
        }
        let entry = PurseLoad {
            account,
            wallet: WALLET,
            amount,
            serial: load.serial,
            counter: begun.counter,
            balance_before: begun.balance.to_fen(),
            terminal: load.terminal,
            time,
            random: begun.random,
            key_version: begun.key_version,
            node: waiting.node,
            taken_over: beyond,
        };
        let log = self.state.shard(account);
        let position = self.append(log, Actor::centre(), entry.clone())?;
        self.apply_load(EntryRef { log, position }, self.state.time, &entry)?;
        let reply = PurseReply::Authorized(time, authorized.mac);
        Ok(Judged::Answer(reply, Some(StreamPlace { log, position })))
    }

    /// A card with a load in transit: the same request is answered as before, another one must wait until that is settled.
    fn judge_again(
        &mut self,
        purses: &Purses,
        profile: &CardProfile,
        load: &LoadRequest,
        open: &LoadRow,
        stands: bool,
    ) -> Result<Judged, StoreError> {
        let (kept, begun) = (&open.load, &load.begun);
        let is_same = stands
            && (kept.amount, kept.terminal, kept.counter)
                == (load.amount.to_fen(), load.terminal, begun.counter)
            && (kept.random, kept.balance_before) == (begun.random, begun.balance.to_fen());
        let after = Some(StreamPlace { log: open.at.log, position: open.at.position });
        if is_same && let Ok(authorized) = purses.issuer.authorize_load(profile, load, kept.time) {
            return Ok(Judged::Answer(PurseReply::Authorized(kept.time, authorized.mac), after));
        }
        let (reply, after) = self.unresolved(purses, profile, open)?;
        Ok(Judged::Answer(reply, after))
    }

    /// What is said of a load in transit: which it is, and the number to probe its card under.
    fn unresolved(
        &self,
        purses: &Purses,
        profile: &CardProfile,
        open: &LoadRow,
    ) -> Result<(PurseReply, Option<StreamPlace>), StoreError> {
        let kept = &open.load;
        let Some(terms) = kept.terms() else {
            return Err(Store::Corrupt("a load of an amount that no purse holds".to_owned()));
        };
        let entry = purses.issuer.load_again(profile.algorithm, kept.key_version, kept.serial, terms);
        let after = StreamPlace { log: open.at.log, position: open.at.position };
        Ok((PurseReply::Unresolved(entry, self.challenge(open)), Some(after)))
    }

    /// The number that a card is probed under about a load: nobody can know it before the load, and the probe itself ends
    /// what MAC2 was good for, so that one is enough for each load.
    fn challenge(&self, open: &LoadRow) -> TerminalNumber {
        let drawn = Sha256::new()
            .chain_update(b"feiqian-purse-probe-1\0")
            .chain_update(self.state.identity.log_key.to_bytes())
            .chain_update(open.load.serial.0)
            .chain_update(open.at.log.key().to_be_bytes())
            .chain_update(open.at.position.to_be_bytes())
            .finalize();
        let [a, b, c, d, e, f, ..] = <[u8; 32]>::from(drawn);
        TerminalNumber([a, b, c, d, e, f])
    }

    /// Sees to it that the money is free; until it is, what the load comes to. What lies with buildings is called home once.
    fn raise(
        &mut self,
        waiting: &mut WaitingLoad,
        account: AccountId,
        amount: Fen,
    ) -> Result<Option<Judged>, StoreError> {
        let holding = self.holding(account, WALLET)?;
        let (funds, free) = (holding.wallet.funds, holding.wallet.free);
        if funds < amount {
            return Ok(Some(refused(PurseRefusal::Insufficient)));
        }
        if free >= amount {
            return Ok(None);
        }
        let out: Vec<NodeId> = holding
            .rows
            .iter()
            .filter(|(_, row)| row.out.is_positive())
            .map(|((node, _), _)| *node)
            .collect();
        let receivers = self.receivers();
        let mut reachable = false;
        for node in out.into_iter().filter(|node| receivers.contains(node)) {
            reachable = true;
            if !waiting.recalled {
                self.recall_surplus(account, Unit::Wallet(WALLET), node, amount - free.or_zero())?;
            }
        }
        waiting.recalled = true;
        Ok(Some(if reachable { Judged::Wait } else { refused(PurseRefusal::Elsewhere) }))
    }

    /// What an entry of a load does: the money leaves the account.
    pub(crate) fn apply_load(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        load: &PurseLoad,
    ) -> Result<(), StoreError> {
        let PurseLoad { account, wallet, amount, serial, .. } = *load;
        let own_day = self.state.calendar().day(time);
        let mut lines = vec![(wallet_ledger(account, wallet), -amount), (transit_ledger(serial), amount)];
        if load.taken_over.is_positive() {
            lines.push((MIGRATION.to_owned(), -load.taken_over));
            lines.push((purse_ledger(serial), load.taken_over));
        }
        self.post_lines(at, own_day, lines)?;
        self.move_wallet(at, time, (account, wallet), -amount)?;
        let counter = load.counter;
        let first =
            PurseState { online: counter, offline: Counter(0), balance: load.balance_before, at: time };
        self.note_purse(serial, first, |state| {
            state.online = counter;
            (state.balance, state.at) = (load.balance_before, time);
        })?;
        purses::insert_load(self.db, at, load)
    }

    /// Money leaves a wallet for a card, or comes back, at the centre.
    pub(super) fn move_wallet(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        (account, wallet): (AccountId, Wallet),
        amount: Fen,
    ) -> Result<(), StoreError> {
        self.move_funds(at, time, (account, wallet), amount)?;
        self.state.hand_out.soon(account);
        Ok(())
    }

    /// What became of a load is known.
    pub(super) fn settle_load(&mut self, row: &LoadRow, reversed: bool) -> Result<StreamPlace, StoreError> {
        let PurseLoad { account, wallet, amount, serial, .. } = row.load;
        let log = row.at.log;
        let settled = PurseLoadSettled { account, wallet, amount, serial, load: row.at.position, reversed };
        let fresh = std::mem::replace(&mut self.fresh, true);
        let position = self.append(log, Actor::centre(), settled.clone())?;
        self.fresh = fresh;
        self.apply_load_settled(EntryRef { log, position }, self.state.time, &settled)?;
        Ok(StreamPlace { log, position })
    }

    /// What an entry that settles a load does.
    pub(crate) fn apply_load_settled(
        &mut self,
        at: EntryRef,
        time: Timestamp,
        settled: &PurseLoadSettled,
    ) -> Result<(), StoreError> {
        let PurseLoadSettled { account, wallet, amount, serial, reversed, .. } = *settled;
        let own_day = self.state.calendar().day(time);
        let to = if reversed { wallet_ledger(account, wallet) } else { purse_ledger(serial) };
        self.post(at, own_day, amount, transit_ledger(serial), to)?;
        let load = EntryRef { log: at.log, position: settled.load };
        let state = if reversed { LoadState::Reversed } else { LoadState::Done };
        purses::settle_load(self.db, load, state)?;
        if reversed {
            return self.move_wallet(at, time, (account, wallet), amount);
        }
        if let Some(row) = purses::load_at(self.db, load)? {
            let counter = row.load.counter;
            let after = counter.next().unwrap_or(counter);
            let first = PurseState { online: after, offline: Counter(0), balance: amount, at: time };
            self.note_purse(serial, first, |state| {
                state.online = after;
                (state.balance, state.at) = (row.load.balance_before + amount, time);
            })?;
        }
        Ok(())
    }

    /// A terminal has the card's word that it has taken a load.
    pub(crate) fn purse_loaded(&mut self, at: EntryRef, loaded: &PurseLoaded) -> Result<(), StoreError> {
        let PurseLoaded { serial, counter, tac } = *loaded;
        let institution = self.state.identity.institution;
        let found = purses::loads_with(self.db, institution, serial, counter)?;
        let Some(open) = found.iter().find(|row| row.state == LoadState::InTransit) else {
            if found.iter().any(|row| row.state == LoadState::Done) {
                return Ok(());
            }
            return self.fault(at.log, at.position, "a card has taken a load that is not in transit");
        };
        let right = self.state.purses.as_ref().zip(open.load.terms());
        let right = right.is_some_and(|(purses, terms)| purses.tac_is_right(serial, terms, tac));
        if !right {
            return self.fault(at.log, at.position, "the TAC of a load is wrong: it stays in transit");
        }
        self.settle_load(open, false).map(drop)
    }

    /// What a card said about its load when it was probed.
    fn resolve_load(
        &mut self,
        serial: CardSerial,
        evidence: &Evidence,
    ) -> Result<(PurseReply, Option<StreamPlace>), StoreError> {
        let nothing = |fate| (PurseReply::Settled(fate), None);
        let institution = self.state.identity.institution;
        let Some(open) = purses::open_load(self.db, institution, serial)? else {
            return Ok(nothing(LoadFate::Nothing));
        };
        let Some(purses) = self.state.purses.clone() else {
            return Ok((PurseReply::Refused(PurseRefusal::NotServed), None));
        };
        let (Some(profile), Some(terms)) = (purses.profile(serial), open.load.terms()) else {
            return Ok((PurseReply::Refused(PurseRefusal::UnknownCard), None));
        };
        let entry = purses.issuer.load_again(profile.algorithm, open.load.key_version, serial, terms);
        let probe = LoadProbe { challenge: self.challenge(&open), pin: None };
        let outcome = purses.issuer.resolve_load(profile, &entry, &probe, evidence);
        let outcome = match outcome {
            Outcome::InTransit { .. } if planted(Canary::PurseLoadReversedUnproven) => Outcome::NeverHappened,
            outcome => outcome,
        };
        let reversed = match outcome {
            Outcome::Completed { .. } | Outcome::CompletedWithoutProof { .. } => false,
            Outcome::NeverHappened => true,
            Outcome::InTransit { reason } => {
                tracing::warn!(account = open.load.account.0, ?reason, "a load stays in transit");
                return Ok(nothing(LoadFate::InTransit));
            }
        };
        let after = self.settle_load(&open, reversed)?;
        let fate = if reversed { LoadFate::Reversed } else { LoadFate::Done };
        Ok((PurseReply::Settled(fate), Some(after)))
    }
}

const fn of_load(refusal: &LoadRefusal) -> PurseRefusal {
    match refusal {
        LoadRefusal::Amount { .. } => PurseRefusal::Amount,
        LoadRefusal::Misfit(_) => PurseRefusal::Misfit,
        LoadRefusal::CounterExhausted => PurseRefusal::Worn,
        LoadRefusal::WrongProof | LoadRefusal::Answer(_) | LoadRefusal::Lost | LoadRefusal::Centre => {
            PurseRefusal::WrongProof
        }
    }
}
