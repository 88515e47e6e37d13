//! Settings that people change in this building: a loss report at a kiosk, a lower limit, a card withdrawn at a desk, a PIN.
//!
//! What narrows acts here with the commit that writes it, cut off or not, and everywhere else as the log arrives. The document
//! itself is changed by the account's stream alone; until the stream has it, taps here go by the document narrowed by what was
//! written here ([`crate::store::settings`]). What widens is the centre's; so is a new PIN ([`crate::pin::change`]), which is written
//! here for the centre to judge. Of a card that was given out since the building was cut off, the holder brings the centre's word.

use std::mem::discriminant;

use feiqian_protocol::account::{AccountError, AccountSettings, CardStatus, Intent, actor_id};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{Actor, ActorKind, CardShown, Proof, Setting, SettingAnswered};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, TerminalId};
use feiqian_protocol::issuance::{Issuance, SignedIssuance};
use feiqian_protocol::money::Fen;

use crate::apply::Fault;
use crate::core::NodeCore;
use crate::io::{Now, Output, SettingDone, SettingError, Ticket};
use crate::pin::change::NewPin;
use crate::store::StoreError;
use crate::store::settings::OwnSetting;

/// Settings of one kind and account that may wait for the centre: a log and a document are not to be filled at a kiosk, where
/// somebody presses a button again and again.
const WAITING_PER_KIND_MAX: usize = 16;

/// What is to be changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SettingKind {
    /// The card was lost.
    ReportLoss,
    /// The no-PIN limits of the card's account, each no higher than before; those that are not named stay.
    LowerLimits {
        /// Fen per purchase.
        single: Option<Fen>,
        /// Fen per business day.
        daily: Option<Fen>,
    },
    /// No purchases from the card's account.
    Freeze,
    /// The card is withdrawn, for ever.
    VoidCard,
    /// Another payment PIN.
    SetPin(Box<NewPin>),
    /// The card is good by the centre's word, though this building may not have heard of it.
    ShowCard(Box<SignedIssuance>),
}

/// A change of settings that somebody wants here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingRequest {
    /// The terminal that asks; nothing where it is the local socket.
    pub terminal: Option<TerminalId>,
    /// The card.
    pub card: CardNumber,
    /// What is to be changed.
    pub kind: SettingKind,
    /// Who wants it: the terminal, or the operator at a desk.
    pub by: Key,
    /// What showed that it was them.
    pub proof: Proof,
}

impl NodeCore {
    pub(crate) fn on_setting(
        &mut self,
        now: &Now,
        ticket: Ticket,
        request: &SettingRequest,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let done = match self.guarded(|core| core.set(now, request))? {
            Ok(done) => done,
            Err(_) => Err(SettingError::OutOfService),
        };
        outputs.push(Output::Setting(ticket, done));
        Ok(())
    }

    fn set(
        &mut self,
        now: &Now,
        request: &SettingRequest,
    ) -> Result<Result<SettingDone, SettingError>, StoreError> {
        if self.state.saved.tail_until.is_some() || self.damage.is_some() {
            return Ok(Err(SettingError::OutOfService));
        }
        if let Some(terminal) = &request.terminal
            && !self.campus.as_ref().is_some_and(|campus| campus.terminals.contains_key(terminal))
        {
            return Ok(Err(SettingError::UnknownTerminal(terminal.to_string())));
        }
        if let SettingKind::ShowCard(signed) = &request.kind {
            return self.show_card(now, request, signed);
        }
        let Some(account) = self.store.account_of(&request.card) else {
            return Ok(Err(SettingError::UnknownCard));
        };
        let saved = self
            .store
            .document(account)?
            .ok_or_else(|| StoreError::damaged(format!("account {account} has no document")))?;
        let waiting = self.store.own_settings(account)?;
        let (institution, node) = (self.identity.institution, self.identity.node);
        let damaged =
            |error: AccountError| StoreError::damaged(format!("the document of account {account}: {error}"));
        let document = self.read_document(account, &saved).map_err(damaged)?;
        let document_epoch = document.epoch().map_err(damaged)?;
        let author = actor_id(institution, node, self.identity.incarnation, document_epoch, account);
        let mut document = document.written_by(author);
        let mut settings = document.settings().map_err(damaged)?;
        for own in &waiting {
            own.act_on(&mut settings)?;
            // One that builds on what was refused since does not fit any more; the centre will carry it out by itself.
            let _ = document.merge_change(&own.change);
        }
        let Some(intent) = self.intent(request, &settings) else {
            return Ok(Ok(SettingDone { account, position: None }));
        };
        if let SettingKind::SetPin(new) = &request.kind
            && intent.is_open_to(self.identity.role)
            && let Err(error) = self.check_new_pin(now, account, new, &settings, &waiting, request)?
        {
            return Ok(Err(error));
        }
        if let Err(error) = settings.check_of_node(&intent, self.identity.role) {
            return Ok(Err(error.into()));
        }
        let alike = |own: &&OwnSetting| discriminant(&own.intent) == discriminant(&intent);
        if waiting.iter().filter(alike).count() >= WAITING_PER_KIND_MAX {
            return Ok(Err(SettingError::TooMany));
        }
        let change = match document.carry_out(&intent, now.wall) {
            Ok(change) => change,
            Err(error) => return Ok(Err(error.into())),
        };
        let typed = match &request.kind {
            SettingKind::SetPin(new) => Some(new.typed),
            _ => None,
        };
        let setting = Setting {
            account,
            document_epoch,
            intent: intent.clone(),
            change: change.clone().into(),
            typed,
            of: None,
        };
        let (position, _) = self.append(now, self.author(request), setting.into())?;
        self.store.put_own_setting(account, &OwnSetting { position, intent, change })?;
        self.put_in_force(account)?;
        Ok(Ok(SettingDone { account, position: Some(position) }))
    }

    /// A card that this building has not heard of is good from here on, and the one that it replaces is void. What the building
    /// does know of the card, it goes by.
    fn show_card(
        &mut self,
        now: &Now,
        request: &SettingRequest,
        signed: &SignedIssuance,
    ) -> Result<Result<SettingDone, SettingError>, StoreError> {
        let Issuance { institution, account, card, replaces, .. } = &signed.issuance;
        if *institution != self.identity.institution || *card != request.card {
            return Ok(Err(SettingError::OtherCard));
        }
        if !signed.is_signed_by(&self.identity.centre_key) && !planted(Canary::IssuanceNotChecked) {
            return Ok(Err(SettingError::NotIssued));
        }
        let Some(settings) = self.store.settings_in_force(*account)? else {
            return Ok(Err(AccountError::NoSuchAccount.into()));
        };
        if settings.closed {
            return Ok(Err(AccountError::Closed.into()));
        }
        let replaced = |card: &CardNumber| settings.cards.get(card) == Some(&CardStatus::Void);
        if settings.cards.contains_key(card) && replaces.as_ref().is_none_or(replaced) {
            return Ok(Ok(SettingDone { account: *account, position: None }));
        }
        let alike = |own: &&OwnSetting| matches!(own.intent, Intent::IssueCard { .. });
        if self.store.own_settings(*account)?.iter().filter(alike).count() >= WAITING_PER_KIND_MAX {
            return Ok(Err(SettingError::TooMany));
        }
        let shown = CardShown { issuance: signed.clone() };
        let actor = Actor { kind: ActorKind::Terminal, id: request.by.clone(), proof: request.proof };
        let (position, _) = self.append(now, actor, shown.into())?;
        self.store.put_own_setting(*account, &OwnSetting::shown(position, signed))?;
        self.put_in_force(*account)?;
        Ok(Ok(SettingDone { account: *account, position: Some(position) }))
    }

    /// Who writes what somebody wants here.
    pub(crate) fn author(&self, request: &SettingRequest) -> Actor {
        let kind = match self.identity.role {
            Role::Desk => ActorKind::Cashier,
            _ => ActorKind::Kiosk,
        };
        Actor { kind, id: request.by.clone(), proof: request.proof }
    }

    /// What a request means for the account as it is; nothing where it is so for ever. Whatever else was said before, here or
    /// elsewhere, does not count: it may be undone by now, by somebody who has not seen this.
    fn intent(&self, request: &SettingRequest, settings: &AccountSettings) -> Option<Intent> {
        let card = request.card.clone();
        // The place of the entry makes a key unique in the institution.
        let key = || {
            let place = self.state.writer.cursor().position + 1;
            Key::new(format!("n{}-{place}", self.identity.node)).expect("digits and a dash make a key")
        };
        Some(match &request.kind {
            SettingKind::ReportLoss => Intent::ReportLoss { card, loss: key() },
            SettingKind::Freeze => Intent::Freeze { key: key() },
            SettingKind::LowerLimits { single, daily } => Intent::SetLimits {
                single: single.unwrap_or(settings.single_limit),
                daily: daily.unwrap_or(settings.daily_limit),
            },
            // It was done with before.
            SettingKind::ShowCard(_) => return None,
            SettingKind::VoidCard if settings.cards.get(&card) == Some(&CardStatus::Void) => return None,
            SettingKind::VoidCard => Intent::VoidCard { card },
            SettingKind::SetPin(new) => Intent::SetPin {
                generation: new.generation,
                replaces: new.shown.map(|(generation, _)| generation).into_iter().collect(),
            },
        })
    }

    /// The centre has taken a setting of this node, or refused it.
    pub(crate) fn setting_answered(&mut self, answered: &SettingAnswered) -> Result<(), Fault> {
        let refused = answered.refused.as_ref().map(Key::as_str);
        let account = self.store.answer_own_setting(answered.position, answered.stream_position, refused)?;
        if let (Some(account), Some(reason)) = (account, refused) {
            tracing::warn!(position = answered.position, reason, "the centre has refused a setting");
            self.put_in_force(account)?;
            self.store.forget_cards(account)?;
        }
        Ok(())
    }

    /// Settings that the account streams have by now stand in the documents.
    pub(crate) fn settle_settings(&mut self) -> Result<(), StoreError> {
        for account in self.store.settle_own_settings(&self.state.shards)? {
            self.put_in_force(account)?;
        }
        Ok(())
    }

    /// Writes again what taps read of an account.
    fn put_in_force(&mut self, account: AccountId) -> Result<(), StoreError> {
        let saved = self
            .store
            .document(account)?
            .ok_or_else(|| StoreError::damaged(format!("account {account} has no document")))?;
        let damaged =
            |error: AccountError| StoreError::damaged(format!("the document of account {account}: {error}"));
        let mut document = self.read_document(account, &saved).map_err(damaged)?;
        let settings = document.settings().map_err(damaged)?;
        self.store.put_account(account, &saved, &document.heads(), &settings)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use feiqian_protocol::account::Document;
    use feiqian_protocol::campus::Mode;
    use feiqian_protocol::entry::{Body, DocumentRenewed};
    use feiqian_protocol::ids::{AccountId, LogId};
    use feiqian_protocol::tap::{DeclineReason, TapKind};
    use feiqian_protocol::time::Timestamp;

    use super::*;
    use crate::core::testing::{ALICE, INSTITUTION, World, approved, decided, declined, fen, key, tap};
    use crate::io::Input;

    fn world_of(role: Role) -> World {
        let mut world = World::connected(Mode::Hybrid);
        world.core.identity.role = role;
        world
    }

    fn request(kind: SettingKind) -> SettingRequest {
        let card = CardNumber::new("alice").unwrap();
        SettingRequest { terminal: None, card, kind, by: Key::new("till").unwrap(), proof: Proof::None }
    }

    fn set(world: &mut World, request: SettingRequest) -> Result<SettingDone, SettingError> {
        let outputs = world.step(vec![Input::Setting(Ticket(0), request)]);
        world.ingest(&outputs);
        outputs
            .into_iter()
            .find_map(|output| match output {
                Output::Setting(_, done) => Some(done),
                _ => None,
            })
            .unwrap()
    }

    fn lower(single: Option<i64>, daily: Option<i64>) -> SettingKind {
        SettingKind::LowerLimits { single: single.map(fen), daily: daily.map(fen) }
    }

    /// What the node has written of settings, as it went into its log.
    fn written(world: &World) -> Vec<(u64, Setting)> {
        let written = (1..).zip(world.uploaded()).filter_map(|(position, body)| match body {
            Body::Setting(setting) => Some((position, setting)),
            _ => None,
        });
        written.collect()
    }

    #[test]
    fn a_loss_reported_while_cut_off_declines_from_then_on_and_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::on_disk(Mode::Hybrid, directory.path());
        world.core.identity.role = Role::Kiosk;
        world.grant(ALICE, 1_000);
        world.share_grant(ALICE, 1_000);
        world.disconnect();
        assert_eq!(decided(&world.buy("1", "alice", 100)), approved(ALICE, 100, 0));
        let done = set(&mut world, request(SettingKind::ReportLoss)).unwrap();
        assert_eq!((done.account, done.position), (ALICE, Some(2)));
        assert_eq!(decided(&world.buy("2", "alice", 100)), declined(DeclineReason::Lost));
        let again = set(&mut world, request(SettingKind::ReportLoss)).unwrap().position;
        assert_eq!(again, Some(4), "the first one may be lifted by now");
        world.reopen();
        world.core.identity.role = Role::Kiosk;
        assert_eq!(decided(&world.buy("3", "alice", 100)), declined(DeclineReason::Lost));
        assert_eq!(world.status().settings_waiting, 2);
        world.check();
    }

    #[test]
    fn what_the_stream_has_is_forgotten_and_what_is_refused_is_undone() {
        let mut world = world_of(Role::Desk);
        world.grant(ALICE, 9_000);
        world.share_grant(ALICE, 9_000);
        set(&mut world, request(lower(Some(500), None))).unwrap();
        set(&mut world, request(SettingKind::Freeze)).unwrap();
        assert_eq!(decided(&world.buy("1", "alice", 501)), declined(DeclineReason::Frozen));
        let [(limits_at, limits), (freeze_at, _)] = <[_; 2]>::try_from(written(&world)).unwrap();

        // The stream has the first one as the centre carried it out; the second one is refused.
        let position = world.centre.end(LogId::shard(INSTITUTION, ALICE.shard())).position + 1;
        let answer = |position, stream_position, refused: Option<&str>| -> Body {
            let refused = refused.map(|code| Key::new(code).unwrap());
            SettingAnswered { position, stream_position, refused }.into()
        };
        world.tell(vec![answer(limits_at, position, None), answer(freeze_at, position, Some("closed"))]);
        let status = world.status();
        assert_eq!((status.settings_waiting, status.settings_refused), (1, 1), "the stream is not here yet");
        assert_eq!(decided(&world.buy("2", "alice", 501)), declined(DeclineReason::PinRequired));
        world.check();
        let frame = world.setting(ALICE, limits.intent);
        world.frame(frame);
        assert_eq!(world.status().settings_waiting, 0);
        assert_eq!(decided(&world.buy("3", "alice", 501)), declined(DeclineReason::PinRequired));
        assert_eq!(decided(&world.buy("4", "alice", 500)), approved(ALICE, 500, 0));
        world.check();

        let tampered = "DELETE FROM own_settings";
        set(&mut world, request(SettingKind::Freeze)).unwrap();
        world.core.store.connection().execute(tampered, []).unwrap();
        let report = crate::verify::verify(world.core.store.connection(), &world.core.identity).unwrap();
        assert!(report.problems.iter().any(|problem| problem.contains("wait for the centre")), "{report:?}");
    }

    #[test]
    fn a_building_narrows_as_its_role_may_and_widens_nothing() {
        let code = |done: Result<SettingDone, SettingError>| done.unwrap_err().code();
        let mut pos = world_of(Role::Pos);
        assert_eq!(code(set(&mut pos, request(SettingKind::ReportLoss))), "role");
        let mut kiosk = world_of(Role::Kiosk);
        assert_eq!(code(set(&mut kiosk, request(SettingKind::Freeze))), "role");
        assert_eq!(code(set(&mut kiosk, request(lower(Some(2_001), None)))), "limit_raised");
        assert_eq!(code(set(&mut kiosk, request(lower(None, Some(-1))))), "limit_out_of_range");
        let unknown = CardNumber::new("nobody").unwrap();
        let other = SettingRequest { card: unknown, ..request(SettingKind::ReportLoss) };
        assert_eq!(code(set(&mut kiosk, other)), "unknown_card");
        let terminal = Some(TerminalId::new("elsewhere").unwrap());
        let stranger = SettingRequest { terminal, ..request(SettingKind::ReportLoss) };
        assert_eq!(code(set(&mut kiosk, stranger)), "unknown_terminal");
        for number in 0..16 {
            set(&mut kiosk, request(lower(Some(1_000 - number), None))).unwrap();
        }
        assert_eq!(code(set(&mut kiosk, request(lower(Some(1), None)))), "too_many");
        assert_eq!(written(&kiosk).len(), 16, "what is refused is not written");
        set(&mut kiosk, request(SettingKind::ReportLoss)).unwrap();
        kiosk.check();
    }

    fn number(text: &str) -> CardNumber {
        CardNumber::new(text).unwrap()
    }

    /// The centre's word for a card of Alice.
    fn issuance(card: &str, replaces: &str) -> Issuance {
        let (card, replaces) = (number(card), Some(number(replaces)));
        Issuance { institution: INSTITUTION, account: ALICE, card, replaces, time: Timestamp(1) }
    }

    fn show(world: &mut World, card: &str, issuance: Issuance, key: u8) -> Result<SettingDone, SettingError> {
        let signed = issuance.sign(&SigningKey::from_bytes(&[key; 32]));
        let kind = SettingKind::ShowCard(Box::new(signed));
        set(world, SettingRequest { card: number(card), ..request(kind) })
    }

    const CENTRE: u8 = 2;

    #[test]
    fn a_card_that_was_given_out_since_the_cut_is_good_by_the_centres_word() {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::on_disk(Mode::Hybrid, directory.path());
        world.grant(ALICE, 1_000);
        world.share_grant(ALICE, 1_000);
        world.disconnect();
        assert_eq!(decided(&world.buy("1", "new", 100)), declined(DeclineReason::UnknownCard));
        let done = show(&mut world, "new", issuance("new", "alice"), CENTRE).unwrap();
        assert_eq!((done.account, done.position), (ALICE, Some(2)));
        assert_eq!(decided(&world.buy("2", "new", 100)), approved(ALICE, 100, 0));
        assert_eq!(decided(&world.buy("3", "alice", 100)), declined(DeclineReason::Void));
        let again = show(&mut world, "new", issuance("new", "alice"), CENTRE).unwrap();
        assert_eq!(again.position, None, "it is known here");
        world.check();
        world.reopen();
        assert_eq!(decided(&world.buy("4", "new", 100)), approved(ALICE, 100, 0));
        assert_eq!(decided(&world.buy("5", "alice", 100)), declined(DeclineReason::Void));
        world.check();

        // The stream has it by now.
        let issued = world.setting(ALICE, Intent::IssueCard { card: number("new") });
        let void = world.setting(ALICE, Intent::VoidCard { card: number("alice") });
        world.connect();
        world.frame(issued);
        world.frame(void);
        let stream_position = world.centre.end(LogId::shard(INSTITUTION, ALICE.shard())).position;
        world.tell(vec![SettingAnswered { position: 2, stream_position, refused: None }.into()]);
        assert_eq!(world.status().settings_waiting, 0);
        assert_eq!(decided(&world.buy("6", "new", 100)), approved(ALICE, 100, 0));
        assert_eq!(decided(&world.buy("7", "alice", 100)), declined(DeclineReason::Void));
        world.check();
    }

    #[test]
    fn what_is_shown_for_a_card_must_be_the_centres_and_for_this_card_and_undoes_nothing() {
        let mut world = world_of(Role::Pos);
        world.grant(ALICE, 1_000);
        world.share_grant(ALICE, 1_000);
        let good = || issuance("new", "alice");
        let code = |done: Result<SettingDone, SettingError>| done.unwrap_err().code();
        assert_eq!(code(show(&mut world, "new", good(), CENTRE + 1)), "not_issued");
        assert_eq!(code(show(&mut world, "other", good(), CENTRE)), "other_card");
        let foreign = Issuance { institution: feiqian_protocol::ids::InstitutionId(99), ..good() };
        assert_eq!(code(show(&mut world, "new", foreign, CENTRE)), "other_card");
        let nobody = Issuance { account: AccountId(77), ..good() };
        assert_eq!(code(show(&mut world, "new", nobody, CENTRE)), "no_such_account");
        assert_eq!(decided(&world.buy("1", "new", 100)), declined(DeclineReason::UnknownCard));
        assert_eq!(decided(&world.buy("2", "alice", 100)), approved(ALICE, 100, 0));

        // The third card comes first; what was shown for the second one before it makes that one good no more.
        show(&mut world, "third", issuance("third", "second"), CENTRE).unwrap();
        let late = show(&mut world, "second", issuance("second", "alice"), CENTRE);
        assert!(late.unwrap().position.is_some(), "it says that the first one is void");
        for (sequence, card, decision) in [
            ("3", "third", approved(ALICE, 100, 0)),
            ("4", "second", declined(DeclineReason::Void)),
            ("5", "alice", declined(DeclineReason::Void)),
        ] {
            assert_eq!(decided(&world.buy(sequence, card, 100)), decision, "{card}");
        }
        world.check();

        // A loss that is told of the card is no news to be undone.
        let lost = world.setting(ALICE, Intent::IssueCard { card: number("fourth") });
        world.frame(lost);
        let report = Intent::ReportLoss { card: number("fourth"), loss: Key::new("l").unwrap() };
        let report = world.setting(ALICE, report);
        world.frame(report);
        assert!(show(&mut world, "fourth", issuance("fourth", "third"), CENTRE).unwrap().position.is_some());
        assert_eq!(decided(&world.buy("6", "fourth", 100)), declined(DeclineReason::Lost));
        assert_eq!(decided(&world.buy("7", "third", 100)), declined(DeclineReason::Void));
        let closed = world.setting(ALICE, Intent::Close);
        world.frame(closed);
        assert_eq!(code(show(&mut world, "fifth", issuance("fifth", "fourth"), CENTRE)), "closed");
        world.check();
    }

    #[test]
    fn a_card_that_the_centre_has_thought_better_of_is_forgotten() {
        let mut world = world_of(Role::Pos);
        world.grant(ALICE, 1_000);
        world.share_grant(ALICE, 1_000);
        let position = show(&mut world, "new", issuance("new", "alice"), CENTRE).unwrap().position.unwrap();
        assert_eq!(decided(&world.buy("1", "new", 100)), approved(ALICE, 100, 0));
        let refused = Some(Key::new("card_void").unwrap());
        world.tell(vec![SettingAnswered { position, stream_position: 0, refused }.into()]);
        assert_eq!(decided(&world.buy("2", "new", 100)), declined(DeclineReason::UnknownCard));
        assert_eq!(decided(&world.buy("3", "alice", 100)), approved(ALICE, 100, 0));
        world.check();
    }

    #[test]
    fn a_holder_who_shows_cards_without_end_fills_no_log() {
        let mut world = world_of(Role::Pos);
        let cards: Vec<String> = (0..=WAITING_PER_KIND_MAX).map(|number| format!("n{number}")).collect();
        let results: Vec<_> =
            cards.iter().map(|card| show(&mut world, card, issuance(card, "alice"), CENTRE)).collect();
        let (last, taken) = results.split_last().unwrap();
        assert!(taken.iter().all(Result::is_ok));
        assert_eq!(last.clone().unwrap_err().code(), "too_many");
    }

    #[test]
    fn a_withdrawn_card_opens_no_door() {
        let mut desk = world_of(Role::Desk);
        set(&mut desk, request(SettingKind::VoidCard)).unwrap();
        let mut door = tap("1", "alice", TapKind::Access);
        door.key = feiqian_protocol::tap::TapKey { terminal: TerminalId::new("door").unwrap(), ..key("1") };
        assert_eq!(decided(&desk.tap(door)), declined(DeclineReason::Void));
        desk.check();
    }

    #[test]
    fn a_document_begun_anew_takes_the_place_of_the_one_before() {
        let mut world = world_of(Role::Desk);
        world.grant(ALICE, 9_000);
        world.share_grant(ALICE, 9_000);
        set(&mut world, request(SettingKind::ReportLoss)).unwrap();
        let saved = world.core.store.document(ALICE).unwrap().unwrap();
        let reader = |epoch| actor_id(INSTITUTION, feiqian_protocol::ids::NodeId::CENTRE, 1, epoch, ALICE);
        let before = Document::load(&saved, reader(1)).unwrap();
        let mut new = before.renewed(2, reader(2)).unwrap();
        let renewed = |account, document: Vec<u8>| -> Body {
            DocumentRenewed { account, document: document.into() }.into()
        };
        let log = LogId::shard(INSTITUTION, ALICE.shard());
        let wall = world.now.wall;
        let frame = world.centre.write(log, wall, vec![renewed(ALICE, new.save())]);
        world.frame(frame);
        let kept = world.core.store.document(ALICE).unwrap().unwrap();
        let mut kept = Document::load(&kept, reader(2)).unwrap();
        assert_eq!((kept.epoch().unwrap(), kept.heads()), (2, new.heads()));
        // What was said here still acts, and what is said from now on is made on the new one.
        assert_eq!(decided(&world.buy("1", "alice", 100)), declined(DeclineReason::Lost));
        set(&mut world, request(SettingKind::Freeze)).unwrap();
        let epochs: Vec<u32> = written(&world).iter().map(|(_, setting)| setting.document_epoch).collect();
        assert_eq!(epochs, [1, 2]);
        let (_, freeze) = written(&world).pop().unwrap();
        kept.merge_change(&freeze.change).unwrap();
        assert!(kept.settings().unwrap().frozen);
        world.check();

        // Of nobody's account it is no entry that the centre writes.
        let nobody = AccountId(ALICE.0 + u64::from(feiqian_protocol::limits::SHARDS) * 100);
        let frame = world.centre.write(log, wall, vec![renewed(nobody, new.save())]);
        let outputs = world.frame(frame);
        assert!(outputs.iter().any(|output| matches!(output, Output::CloseLink(..))), "{outputs:?}");
    }
}
