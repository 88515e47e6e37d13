//! The books against what is in the cards, and against what terminals handed something out for.

use anyhow::Result;
use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::purse::values::{CardSerial, PurseFen};
use rusqlite::OptionalExtension as _;

use super::Touch;
use crate::promises::{Coverage, Promise};
use crate::world::World;

impl World<'_> {
    /// Everybody brings back the cards of which it is not known what became of them.
    pub(in crate::world) fn bring_cards_back(&mut self) {
        let open: Vec<(usize, usize, CardSerial)> = self
            .purses
            .terminals
            .iter()
            .flat_map(|((building, terminal), pos)| {
                pos.open.keys().map(|serial| (*building, *terminal, *serial))
            })
            .filter(|(.., serial)| {
                !self.purses.cards.values().any(|chip| chip.serial == *serial && chip.busy)
            })
            .collect();
        for (building, terminal, serial) in open {
            let (card, amount) = (serial.card_number(), PurseFen::ZERO);
            let touch = Touch { building, terminal, card, amount, copied: false, last: true };
            self.recover_open(&touch);
        }
        let in_doubt: Vec<CardNumber> = self
            .purses
            .cards
            .iter()
            .filter(|(_, chip)| chip.in_doubt && !chip.busy)
            .map(|(card, _)| card.clone())
            .collect();
        for card in in_doubt {
            let touch =
                Touch { building: 0, terminal: 0, card, amount: PurseFen::ZERO, copied: false, last: true };
            if let Some(chip) = self.purses.cards.get_mut(&touch.card) {
                chip.busy = true;
            }
            self.go_on(touch);
        }
    }

    /// The books against what is in the cards, and against what terminals handed something out for.
    pub(in crate::world) fn check_purses(&mut self) -> Result<()> {
        if self.purses.is_empty() {
            return Ok(());
        }
        self.check_given_back()?;
        let Some(core) = &self.centre.core else { return Ok(()) };
        let db = core.connection();
        let mut found = Vec::new();
        let number = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| -> Result<i64> {
            Ok(db.prepare_cached(sql)?.query_row(parameters, |row| row.get(0))?)
        };
        let balance = "SELECT COALESCE((SELECT balance FROM ledger WHERE ledger = ?1), 0)";
        let mut clones = 0;
        for (card, chip) in &self.purses.cards {
            let books = number(balance, &[&format!("purse:{card}")])?;
            let in_transit = number(balance, &[&format!("purse_transit:{card}")])?;
            let text = card.to_string();
            let cloned =
                number("SELECT COUNT(*) FROM purse_purchases WHERE serial = ?1 AND became = 3", &[&text])?;
            let settings =
                "SELECT settings FROM accounts WHERE account = (SELECT account FROM cards WHERE card = ?1)";
            let settings: Option<String> = db.query_row(settings, [&text], |row| row.get(0)).optional()?;
            // Nobody was given it.
            let Some(settings) = settings else { continue };
            let void = settings.contains(&format!("\"{card}\":\"void\""));
            clones += cloned;
            if in_transit != 0 && !void {
                found.push((
                    Promise::Liveness,
                    format!("{in_transit} fen are on their way onto {card} for ever"),
                ));
            }
            if books < 0 {
                found.push((
                    Promise::NoOverspend,
                    format!("{card} has paid {} fen more than were loaded", -books),
                ));
            }
            let truth = i64::from(chip.applet.state.balance.get());
            let unproven: i64 = self
                .purses
                .unproven
                .iter()
                .filter(|((serial, _), _)| *serial == chip.serial)
                .map(|(_, fen)| *fen)
                .sum();
            let decided = number(
                "SELECT COALESCE(SUM(amount), 0) FROM purse_decisions WHERE serial = ?1 AND source = 3",
                &[&text],
            )?;
            let returned =
                number("SELECT COALESCE(SUM(amount), 0) FROM purse_returns WHERE serial = ?1", &[&text])?;
            // Of a card from which all was given back: what it paid after that, and a load that it never took.
            let (mut later, mut untaken) = (0, 0);
            if returned > 0 {
                later = number(
                    "SELECT COALESCE(SUM(amount), 0) FROM purse_purchases WHERE serial = ?1 AND became = 4",
                    &[&text],
                )?;
                untaken = number(
                    "SELECT COALESCE(SUM(amount), 0) FROM purse_loads WHERE serial = ?1 AND state = 1 AND counter >= ?2",
                    &[&text, &chip.applet.state.online.0],
                )?;
            }
            let too_soon = number(
                "SELECT COUNT(*) FROM purse_purchases p JOIN entries e USING (log, position) JOIN purse_voids v USING (serial)
                   WHERE serial = ?1 AND p.became = 4 AND e.order_key < v.at",
                &[&text],
            )?;
            if returned > 0 && too_soon > 0 && chip.copy.is_none() && !self.bounds.wrong_clocks {
                let text = format!(
                    "{returned} were given back of {card}, and a building had written a purchase before it was withdrawn"
                );
                found.push((Promise::NoOverspend, text));
            }
            let by_books = books + in_transit + decided + returned - later - untaken;
            if chip.copy.is_none() && by_books != truth + unproven {
                let text = format!(
                    "{card} has {truth} fen and debited {unproven} that nobody can prove, and by the books {books}, \
                     {in_transit} on their way, {decided} by decisions and {returned} given back, of which it paid \
                     {later} later and never took {untaken}"
                );
                found.push((Promise::Conservation, text));
            }
            // A card whose account is closed is not withdrawn besides.
            let account = self.ledger.account_of(self.plan, card);
            let closed = account.is_some_and(|account| self.ledger.closings.contains_key(&account));
            let replaced = self.ledger.reissues.values().any(|reissue| reissue.old == *card);
            if (cloned > 0) != void && !closed && !replaced {
                found.push((Promise::History, format!("{card}: {cloned} purchases of a copy, void: {void}")));
            }
            if cloned > 0 && chip.copy.is_none() {
                found.push((Promise::History, format!("{card} is taken for a copy, and there is none")));
            }
        }
        for report in &self.purses.reports {
            if !report.told {
                found.push((Promise::Survives, format!("a report is not kept: {:?}", report.request)));
            }
        }
        for (serial, counter, terminal, sequence) in &self.purses.approved {
            let paid = number(
                "SELECT COUNT(*) FROM purse_purchases WHERE serial = ?1 AND counter = ?2 AND terminal = ?3
                   AND sequence = ?4 AND became IN (0, 2, 3, 4)",
                &[&serial.to_string(), counter, &terminal.to_string(), sequence],
            )?;
            if paid != 1 {
                let text = format!(
                    "the purchase {counter} of {serial} at {terminal} {sequence} is paid {paid} times"
                );
                found.push((Promise::ExactlyOnce, text));
            }
        }
        let decided = number("SELECT COUNT(*) FROM purse_decisions", &[])?;
        if clones > 0 {
            self.reached(Coverage::PurseCloneFound);
        }
        if decided > 0 {
            self.reached(Coverage::PurseCaseDecided);
        }
        for (promise, text) in found {
            self.violated(promise, text);
        }
        Ok(())
    }
}
