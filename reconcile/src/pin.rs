//! Payment PINs at the centre: set, changed, reset, confirmed, unlocked; and told to the nodes as verifiers.
//!
//! The document says which PIN an account has, the table `pins` its hash. A change of either gets a number; for each node
//! whose key is known the centre keeps the number up to which verifiers were written into its stream. So a node that is cut
//! off, or enrolled later, gets all of them in its next session, some hundreds a step. Initial PINs pay nothing and are
//! told to no node.
//!
//! The hash is made by whoever knows the PIN ([`command`]); the PIN itself comes into no core and no database. A PIN that is changed at
//! a node comes with the node's log, sealed, beside the one that was shown there; the centre judges that one.

pub mod command;

use std::collections::BTreeMap;

use feiqian_protocol::account::{AccountSettings, Intent};
use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::entry::{Actor, ActorKind, Debit, Entry, PinVerifier, PinVerifiers, Proof, Setting};
use feiqian_protocol::ids::{AccountId, CardNumber, Key, NodeId};
use feiqian_protocol::limits::{PIN_TRIES_MAX, PIN_VERIFIERS_PER_ENTRY_MAX};
use feiqian_protocol::pin::{PinGeneration, PinHash, PinKey, TypedPins};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::{CommandError, Reply};
use crate::store::pins::{self, KeyState};

/// A PIN that somebody typed, hashed for one that an account has or is to have.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HashedPin {
    /// Which PIN it was hashed for.
    pub generation: PinGeneration,
    /// Its hash.
    pub hash: PinHash,
}

/// How an account's PIN stands: the answer to [`crate::io::Command::PinStatus`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PinStatus {
    /// The account.
    pub account: AccountId,
    /// `none` (the initial one of whoever told no ID number), `initial`, `chosen`, or `unconfirmed`: several, of which none
    /// pays.
    pub state: String,
    /// Its PINs, by name.
    pub pins: Vec<PinView>,
    /// Wrong tries in a row by building, as far as heard; `centre` for those here.
    pub tries: BTreeMap<String, u8>,
}

/// One of them.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct PinView {
    /// Its name.
    pub generation: PinGeneration,
    /// True for one by the campus rule.
    pub initial: bool,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// False where its hash is not here, as after the centre was restored from before it was set: then it cannot be told to
    /// nodes, and must be set anew.
    pub held: bool,
}

/// What of PINs is kept in memory.
pub(crate) struct Pins {
    changes: u64,
    keys: BTreeMap<NodeId, KeyState>,
}

impl Pins {
    pub(crate) fn load(db: &Connection) -> Result<Self, StoreError> {
        Ok(Self { changes: pins::changes(db)?, keys: pins::keys(db)? })
    }
}

/// Verifiers that a step makes, for all nodes together: a millisecond or two. Where somebody waits, or entries come in, fewer.
const PINS_PER_STEP: usize = 256;
const PINS_PER_BUSY_STEP: usize = 32;

type Found = Result<(AccountId, AccountSettings), CommandError>;

impl Round<'_> {
    fn account_with_pins(&self, card: &CardNumber) -> Result<Found, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match self.settings(account)? {
            Some(settings) => Ok((account, settings)),
            None => Err(CommandError { code: "account", message: "the account has no document".to_owned() }),
        })
    }

    pub(crate) fn pin_status(&self, card: &CardNumber) -> Result<Reply, StoreError> {
        let (account, settings) = match self.account_with_pins(card)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let mut views = Vec::new();
        for (generation, pin) in &settings.pins {
            views.push(PinView {
                generation: *generation,
                initial: pin.initial,
                since_ms: pin.since.0,
                held: pins::hash(self.db, account, *generation)?.is_some(),
            });
        }
        let state = match views.as_slice() {
            [] => "none",
            [PinView { initial: true, .. }] => "initial",
            [_] => "chosen",
            _ => "unconfirmed",
        };
        let name = |node: NodeId| match self.state.nodes.get(&node) {
            Some(node) => node.name.to_string(),
            None => "centre".to_owned(),
        };
        let tries = pins::tries(self.db, account)?.into_iter().map(|(node, tries)| (name(node), tries));
        let status = PinStatus { account, state: state.to_owned(), pins: views, tries: tries.collect() };
        let value = serde_json::to_value(status).map_err(|error| StoreError::Invariant(error.to_string()))?;
        Ok(Ok(value))
    }

    /// An operator sets the PIN that the holder has typed, or makes it the initial one again.
    pub(crate) fn set_pin(
        &mut self,
        card: &CardNumber,
        pin: &HashedPin,
        initial: bool,
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let (account, settings) = match self.account_with_pins(card)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        self.replace_pins(account, &settings, pin, initial, actor)
    }

    /// The holder changes the PIN, by showing the one that there is, which may be the initial one. `current` holds what was
    /// typed, hashed for each PIN of the account; it is empty where there is none and the shell has compared what was typed
    /// with the initial PIN of those who told no ID number.
    pub(crate) fn change_pin(
        &mut self,
        card: &CardNumber,
        current: &[HashedPin],
        pin: &HashedPin,
    ) -> Result<Reply, StoreError> {
        let (account, settings) = match self.account_with_pins(card)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        if settings.pins.len() > 1 {
            return Ok(refused(
                "pin_unconfirmed",
                "the account has several PINs; one must be confirmed first",
            ));
        }
        if let Some(generation) = settings.pins.keys().next() {
            match self.shown_pin(account, &[*generation], current)? {
                Ok(_) => {}
                Err(error) => return Ok(Err(error)),
            }
        } else if !current.is_empty() {
            return Ok(refused("pin_changed", "the PIN was changed meanwhile; try again"));
        }
        let actor = Actor { kind: ActorKind::Holder, id: holder_key(account)?, proof: Proof::CardAndPin };
        self.replace_pins(account, &settings, pin, false, actor)
    }

    /// Of several PINs the holder has typed one: it stays.
    pub(crate) fn confirm_pin(
        &mut self,
        card: &CardNumber,
        typed: &[HashedPin],
        operator: Key,
    ) -> Result<Reply, StoreError> {
        let (account, settings) = match self.account_with_pins(card)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        if settings.pins.len() < 2 {
            return Ok(refused("pin_confirmed", "there are not several PINs to choose from"));
        }
        let chosen: Vec<PinGeneration> =
            settings.pins.iter().filter(|(_, pin)| !pin.initial).map(|(generation, _)| *generation).collect();
        let generation = match self.shown_pin(account, &chosen, typed)? {
            Ok(generation) => generation,
            Err(error) => return Ok(Err(error)),
        };
        let Some(hash) = pins::hash(self.db, account, generation)? else {
            return Ok(refused("wrong_pin", "it is none of the account's PINs"));
        };
        let others: Vec<PinGeneration> =
            settings.pins.keys().copied().filter(|other| *other != generation).collect();
        let actor = Actor { kind: ActorKind::Operator, id: operator, proof: Proof::Login };
        let intent = Intent::ConfirmPin { generation, others: others.clone() };
        if let Err(error) = self.settle_as(account, intent, actor)? {
            return Ok(Err(error));
        }
        for other in others {
            pins::remove(self.db, account, other)?;
        }
        self.keep_pin(account, generation, &hash)?;
        Ok(Ok(json!({ "account": account, "generation": generation })))
    }

    /// Wrong tries are forgotten everywhere, as word of it comes.
    pub(crate) fn unlock_pin(&mut self, card: &CardNumber) -> Result<Reply, StoreError> {
        let (account, settings) = match self.account_with_pins(card)? {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        for (generation, _) in settings.pins.iter().filter(|(_, pin)| !pin.initial) {
            if let Some(hash) = pins::hash(self.db, account, *generation)? {
                self.keep_pin(account, *generation, &hash)?;
            }
        }
        pins::put_tries(self.db, account, NodeId::CENTRE, 0)?;
        Ok(Ok(json!({ "account": account })))
    }

    /// Which of these PINs was typed. A wrong one counts as a try at the centre, and the right one ends the count.
    pub(crate) fn shown_pin(
        &mut self,
        account: AccountId,
        among: &[PinGeneration],
        typed: &[HashedPin],
    ) -> Result<Result<PinGeneration, CommandError>, StoreError> {
        let error = |code, message: &str| Ok(Err(CommandError { code, message: message.to_owned() }));
        if !typed.iter().any(|typed| among.contains(&typed.generation)) {
            return error("pin_changed", "the PIN was changed meanwhile; try again");
        }
        let tries = pins::tries(self.db, account)?.get(&NodeId::CENTRE).copied().unwrap_or(0);
        if tries >= PIN_TRIES_MAX {
            return error("pin_locked", "too many wrong PINs; an operator can unlock or reset it");
        }
        for typed in typed.iter().filter(|typed| among.contains(&typed.generation)) {
            if pins::hash(self.db, account, typed.generation)?.as_ref() == Some(&typed.hash) {
                pins::put_tries(self.db, account, NodeId::CENTRE, 0)?;
                return Ok(Ok(typed.generation));
            }
        }
        pins::put_tries(self.db, account, NodeId::CENTRE, tries + 1)?;
        error("wrong_pin", "the PIN is wrong")
    }

    fn replace_pins(
        &mut self,
        account: AccountId,
        settings: &AccountSettings,
        pin: &HashedPin,
        initial: bool,
        actor: Actor,
    ) -> Result<Reply, StoreError> {
        let generation = pin.generation;
        let replaces: Vec<PinGeneration> = settings.pins.keys().copied().collect();
        let intent = if initial {
            Intent::ResetPin { generation, replaces: replaces.clone() }
        } else {
            Intent::SetPin { generation, replaces: replaces.clone() }
        };
        if let Err(error) = self.settle_as(account, intent, actor)? {
            return Ok(Err(error));
        }
        if initial {
            // Whoever comes with a PIN from before a reset has nothing to show any more.
            pins::retire(self.db, account, &[])?;
            self.keep_initial_pin(account, pin)?;
            pins::put_tries(self.db, account, NodeId::CENTRE, 0)?;
        } else {
            self.keep_chosen_pin(account, settings, generation, &pin.hash)?;
        }
        Ok(Ok(json!({ "account": account, "generation": generation })))
    }

    /// The account's document has a PIN of the holder's choice that it did not have before. The hashes of those that it had then stay
    /// until the next change: where a building has not heard of this one, the holder shows the one before.
    pub(crate) fn keep_chosen_pin(
        &mut self,
        account: AccountId,
        before: &AccountSettings,
        generation: PinGeneration,
        hash: &PinHash,
    ) -> Result<(), StoreError> {
        let before: Vec<PinGeneration> = before.pins.keys().copied().collect();
        pins::retire(self.db, account, &before)?;
        self.keep_pin(account, generation, hash)?;
        pins::put_tries(self.db, account, NodeId::CENTRE, 0)
    }

    /// A node's change of a PIN was taken before, and the document has it; its hash may have been lost since, with a centre
    /// that came back from an older copy.
    pub(crate) fn regain_pin(
        &mut self,
        node: NodeId,
        setting: &Setting,
        settings: &AccountSettings,
    ) -> Result<(), StoreError> {
        let Intent::SetPin { generation, .. } = &setting.intent else { return Ok(()) };
        if settings.pins.contains_key(generation)
            && pins::hash(self.db, setting.account, *generation)?.is_none()
            && let Some(typed) = self.typed_pins(node, setting, *generation)
        {
            self.keep_pin(setting.account, *generation, &typed.chosen)?;
        }
        Ok(())
    }

    fn typed_pins(&self, node: NodeId, setting: &Setting, generation: PinGeneration) -> Option<TypedPins> {
        let KeyState { key, .. } = self.state.pins.keys.get(&node)?;
        key.unseal(setting.account, generation, setting.typed.as_ref()?)
    }

    /// The PIN that the holder has chosen at a node, hashed; nothing where the setting is about something else. Otherwise the
    /// stable code of why it is refused: what was typed is not the PIN that it is to replace (that counts as a try here), or
    /// cannot be read any more, or it comes too late.
    pub(crate) fn typed_pin(
        &mut self,
        node: NodeId,
        setting: &Setting,
        settings: &AccountSettings,
    ) -> Result<Result<Option<PinHash>, &'static str>, StoreError> {
        let Intent::SetPin { generation, replaces } = &setting.intent else { return Ok(Ok(None)) };
        let Some(typed) = self.typed_pins(node, setting, *generation) else {
            return Ok(Err("pin_unreadable"));
        };
        match replaces.as_slice() {
            // Who had told no ID number: the initial PIN is known to everybody, and shows no more than itself.
            [] if settings.pins.is_empty() => Ok(Ok(Some(typed.chosen))),
            // It is neither the account's PIN nor the one before: no try was made at it.
            [shown] if pins::hash(self.db, setting.account, *shown)?.is_none() => Ok(Err("pin_changed")),
            [shown] => {
                let current = HashedPin { generation: *shown, hash: typed.current };
                let shown = self.shown_pin(setting.account, &[*shown], &[current])?;
                Ok(shown.map(|_| Some(typed.chosen)).map_err(|error| error.code))
            }
            _ => Ok(Err("pin_changed")),
        }
    }

    /// Keeps the hash of a PIN that pays, as news for every node.
    pub(crate) fn keep_pin(
        &mut self,
        account: AccountId,
        generation: PinGeneration,
        hash: &PinHash,
    ) -> Result<(), StoreError> {
        self.state.pins.changes += 1;
        let changes = self.state.pins.changes;
        pins::put_changes(self.db, changes)?;
        pins::put(self.db, account, generation, hash, Some(changes))
    }

    /// Keeps the hash of an initial PIN: no node needs it.
    pub(crate) fn keep_initial_pin(&mut self, account: AccountId, pin: &HashedPin) -> Result<(), StoreError> {
        if planted(Canary::InitialPinPays) {
            return self.keep_pin(account, pin.generation, &pin.hash);
        }
        pins::put(self.db, account, pin.generation, &pin.hash, None)
    }

    /// Keeps a new node's key. Its stream has no verifiers yet.
    pub(crate) fn keep_pin_key(&mut self, node: NodeId, key: PinKey) -> Result<(), StoreError> {
        let state = KeyState { key, sent: 0 };
        self.state.pins.keys.insert(node, state);
        pins::put_key(self.db, node, &state)
    }

    /// Writes what the nodes in session do not have yet, those first that lack most.
    pub(crate) fn send_pins(&mut self) -> Result<(), StoreError> {
        let changes = self.state.pins.changes;
        let keys = &self.state.pins.keys;
        let mut lacking: Vec<(u64, NodeId, PinKey)> = self
            .receivers()
            .into_iter()
            .filter_map(|node| keys.get(&node).map(|state| (state.sent, node, state.key)))
            .filter(|(sent, ..)| *sent < changes)
            .collect();
        lacking.sort_by_key(|(sent, node, _)| (*sent, *node));
        let mut room = if self.urgent || self.taken > 0 { PINS_PER_BUSY_STEP } else { PINS_PER_STEP };
        for (sent, node, key) in lacking {
            let count = room.min(PIN_VERIFIERS_PER_ENTRY_MAX);
            if count == 0 {
                self.more_to_send = true;
                break;
            }
            let changed = pins::changed_after(self.db, sent, count)?;
            room -= changed.len();
            let whole = changed.len() < count;
            let sent = if whole { changes } else { changed.last().map_or(changes, |last| last.change) };
            let mut verifiers = Vec::new();
            for pin in changed {
                let settings: AccountSettings = serde_json::from_str(&pin.settings)
                    .map_err(|error| StoreError::Corrupt(format!("settings of {}: {error}", pin.account)))?;
                if settings.paying_pin() != Some(pin.generation) {
                    continue;
                }
                let digest = key.digest(pin.generation, &pin.hash);
                verifiers.push(PinVerifier { account: pin.account, generation: pin.generation, digest });
                pins::put_tries(self.db, pin.account, node, 0)?;
            }
            if !verifiers.is_empty() {
                self.append(self.state.to_node(node), Actor::centre(), PinVerifiers { verifiers })?;
            }
            let state = KeyState { key, sent };
            self.state.pins.keys.insert(node, state);
            pins::put_key(self.db, node, &state)?;
            self.more_to_send |= sent < changes;
        }
        Ok(())
    }

    /// A node was shown a wrong PIN, so many in a row.
    pub(crate) fn note_wrong_pin(
        &mut self,
        node: NodeId,
        account: AccountId,
        tries: u8,
    ) -> Result<(), StoreError> {
        pins::put_tries(self.db, account, node, tries)
    }

    /// A node has taken a purchase: with the PIN, wrong ones before it are over.
    pub(crate) fn note_right_pin(
        &mut self,
        node: NodeId,
        entry: &Entry,
        debit: &Debit,
    ) -> Result<(), StoreError> {
        if !entry.actor.proof.has_pin() {
            return Ok(());
        }
        pins::put_tries(self.db, debit.account, node, 0)
    }
}

/// The holder of an account, as an actor.
pub(crate) fn holder_key(account: AccountId) -> Result<Key, StoreError> {
    Key::new(format!("account-{account}")).map_err(|error| StoreError::Invariant(error.to_string()))
}
