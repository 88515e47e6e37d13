//! Cards that are out of use: replaced, or of an account that is closed. Where that is known they pay nothing more, and what is left on
//! them goes back to the account once nobody can report a purchase of them any more.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::purse::values::CardSerial;
use feiqian_reconcile::io::{Command, Ticket};

use super::Asked;
use crate::promises::{Coverage, Promise};
use crate::world::hosts::{CentreMessage, Site, Trust};
use crate::world::{MS, World};

/// What an operator asks for.
fn give_back(serial: CardSerial) -> Result<Command> {
    Ok(Command::ReturnPurse { serial, operator: Key::new("operator")? })
}

impl World<'_> {
    /// Cards with purses that the centre was told are out of use, and since when who has heard of it.
    fn out_of_use(&self) -> impl Iterator<Item = (CardSerial, Promise, &BTreeMap<usize, u64>)> {
        let replaced = self.ledger.reissues.values().filter(|reissue| reissue.told_ns.is_some());
        let replaced = replaced.map(|reissue| (&reissue.old, Promise::Reissue, &reissue.heard));
        let closed = self.ledger.closings.iter().filter(|(_, closing)| closing.told_ns.is_some());
        let closed = closed
            .map(|(account, closing)| (&self.plan.accounts[*account].card, Promise::Closing, &closing.heard));
        let purse = |card: &CardNumber| CardSerial::of_card(card).filter(|_| self.purses.has(card));
        replaced.chain(closed).filter_map(move |(card, promise, heard)| Some((purse(card)?, promise, heard)))
    }

    /// A building has said that a card may pay: not one that it knows to be out of use.
    pub(super) fn check_usable(&mut self, card: CardSerial, asked: Asked) {
        let host = &self.sites[asked.site];
        // A disk that came back older may have forgotten it.
        if host.trust != Trust::Sound || host.gone {
            return;
        }
        let knew =
            |heard: &BTreeMap<usize, u64>| heard.get(&asked.site).is_some_and(|at_ns| *at_ns < asked.at_ns);
        let found = self.out_of_use().find(|(of, _, heard)| *of == card && knew(heard));
        if let Some((_, promise, _)) = found {
            let name = self.site_name(asked.site);
            self.violated(promise, format!("{name} knew that {card} is good no more, and lets it pay"));
        }
    }

    /// Somebody at the centre asks for what is left on cards that are out of use.
    pub(in crate::world) fn give_purses_back(&mut self) -> Result<()> {
        let cards: Vec<CardSerial> = self.out_of_use().map(|(card, ..)| card).collect();
        for card in cards {
            let command = give_back(card)?;
            self.tickets += 1;
            self.audit.say(self.now, || format!("the centre is asked: {command:?}"));
            self.tell_centre(CentreMessage::Command(Ticket(self.tickets), command));
        }
        Ok(())
    }

    /// Once everybody was heard, all of it comes back.
    pub(super) fn check_given_back(&mut self) -> Result<()> {
        // Who was shut out, or has another disk, may not have been heard.
        let all_heard = self.sites.iter().all(Site::comes_whole) && !self.bounds.wrong_clocks;
        let cards: Vec<CardSerial> = self.out_of_use().map(|(card, ..)| card).collect();
        for card in cards {
            match self.command(give_back(card)?).context("the centre gave no answer")? {
                Err(error) if error.code != "empty" => {
                    if all_heard {
                        let text = format!("what is left on {card} does not come back: {error}");
                        self.violated(Promise::Liveness, text);
                    }
                }
                _ => self.reached(Coverage::PurseReturned),
            }
        }
        self.run_until(self.now + MS)
    }
}
