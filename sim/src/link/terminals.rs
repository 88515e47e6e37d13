//! Terminals, desks and channels of a [`World`].

use anyhow::{Context, Result, anyhow, ensure};
use feiqian_node::io::{self as node_io, SettingDone, SettingError};
use feiqian_node::settings::{SettingKind, SettingRequest};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::{CardNumber, Key, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_reconcile::io as centre_io;

use super::{Answer, Request, World, terminal_id};

impl World {
    /// A card is held to a terminal of a building; the answer, where there is one yet, is [`World::answer`].
    ///
    /// # Errors
    /// What the core could not do.
    pub fn tap(&mut self, site: usize, card: &str, fen: i64) -> Result<Request> {
        self.sequences += 1;
        let terminal = terminal_id(self.sites[site].building, 1 + self.sequences % 3);
        let request = Request::tap(site, terminal, self.sequences, card, Fen::new(fen))?;
        self.submit(&request)?;
        Ok(request)
    }

    /// Taps, and lets time pass until there is an answer (the deadline of asks bounds it).
    ///
    /// # Errors
    /// What a core could not do, or where there is none.
    pub fn tap_and_wait(&mut self, site: usize, card: &str, fen: i64) -> Result<Answer> {
        let request = self.tap(site, card, fen)?;
        self.run(self.setup.ask_deadline_ms + 1_000)?;
        self.answer(&request).cloned().context("no answer")
    }

    /// Makes a connected building hold at least this much unspent right, by a tap that is reversed.
    ///
    /// # Errors
    /// Where it does not get it.
    pub fn hold(&mut self, site: usize, card: &str, fen: i64) -> Result<()> {
        let tap = self.tap(site, card, fen)?;
        self.run(self.setup.ask_deadline_ms + 1_000)?;
        let answer = self.answer(&tap).cloned();
        ensure!(answer.and_then(|answer| answer.approved()) == Some(Fen::new(fen)), "no right for {fen}");
        self.reverse(&tap, None)?;
        self.run(1_000)
    }

    /// Unspent right of an account's cash at a building.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn right_at(&mut self, site: usize, card: &str) -> Result<Fen> {
        let account = self.account(card)?;
        let rows = self.node_tables(site)?.rows()?;
        Ok(rows.get(&(account, Wallet::Cash)).map(|row| row.unspent).unwrap_or_default())
    }

    /// A terminal wants a tap of its own undone, whole or in part.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn reverse(&mut self, tap: &Request, fen: Option<i64>) -> Result<Request> {
        self.sequences += 1;
        let request = Request::reversal(tap, self.sequences, fen.map(Fen::new))?;
        self.submit(&request)?;
        Ok(request)
    }

    /// Makes the key of a tap known without sending it, so that something may overtake it.
    ///
    /// # Errors
    /// Where the card has no valid number.
    pub fn hold_back(&mut self, site: usize, card: &str, fen: i64) -> Result<Request> {
        self.sequences += 1;
        let terminal = terminal_id(self.sites[site].building, 1);
        Request::tap(site, terminal, self.sequences, card, Fen::new(fen))
    }

    /// Sends a request, for the first time or again.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn submit(&mut self, request: &Request) -> Result<()> {
        self.tickets += 1;
        let ticket = node_io::Ticket(self.tickets);
        self.model.sent(ticket, request);
        if !self.is_up(request.site) {
            self.model.forget_waiting(request.site);
            return Ok(());
        }
        self.step_node(request.site, vec![request.input(ticket)])
    }

    /// Sends several requests to one building, which takes them in one step.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn submit_together(&mut self, site: usize, requests: &[Request]) -> Result<()> {
        let mut inputs = Vec::new();
        for request in requests {
            self.tickets += 1;
            let ticket = node_io::Ticket(self.tickets);
            self.model.sent(ticket, request);
            inputs.push(request.input(ticket));
        }
        if !self.is_up(site) {
            self.model.forget_waiting(site);
            return Ok(());
        }
        self.step_node(site, inputs)
    }

    /// Somebody changes a setting in a building; `None` where it died over it.
    ///
    /// # Errors
    /// As [`World::step_node`].
    pub fn set(
        &mut self,
        site: usize,
        card: &str,
        kind: SettingKind,
    ) -> Result<Option<Result<SettingDone, SettingError>>> {
        self.tickets += 1;
        let ticket = node_io::Ticket(self.tickets);
        let request = SettingRequest {
            terminal: None,
            card: CardNumber::new(card)?,
            kind,
            by: Key::new("operator")?,
            proof: Proof::Login,
        };
        self.step_node(site, vec![node_io::Input::Setting(ticket, request)])?;
        Ok(self.settings.remove(&ticket))
    }

    /// What a request was told.
    pub fn answer(&self, request: &Request) -> Option<&Answer> {
        self.model.answer(request)
    }

    /// An operator or channel wants something of the centre.
    ///
    /// # Errors
    /// What the centre says, or where it died over it.
    pub fn command(&mut self, command: centre_io::Command) -> Result<serde_json::Value> {
        let credit = match &command {
            centre_io::Command::Topup { amount_fen, key, .. } => {
                self.model.crediting(key, *amount_fen);
                Some(key.clone())
            }
            _ => None,
        };
        self.tickets += 1;
        let ticket = centre_io::Ticket(self.tickets);
        let replies = self.step_centre_for_replies(vec![centre_io::Input::Command(ticket, command)])?;
        let reply = replies.into_iter().find(|(of, _)| *of == ticket).context("the centre gave no answer")?;
        let reply = reply.1.map_err(|error| anyhow!("{}: {error}", error.code))?;
        if let Some(key) = credit {
            self.model.credited(&key);
        }
        Ok(reply)
    }

    /// Tops an account up.
    ///
    /// # Errors
    /// What the centre says.
    pub fn top_up(&mut self, card: &str, fen: i64, key: &str) -> Result<()> {
        self.command(centre_io::Command::Topup {
            card: CardNumber::new(card)?,
            amount_fen: Fen::new(fen),
            wallet: Wallet::Cash,
            channel: Key::new("counter")?,
            key: Key::new(key)?,
        })?;
        Ok(())
    }
}
