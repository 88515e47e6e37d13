//! Terminals: taps and reversals, sent, sent again, doubled, given up; and what they are told.

use feiqian_node::io::{Input, SettingDone, SettingError, TapError, Ticket};
use feiqian_protocol::code::SignedReceipt;
use feiqian_protocol::ids::{Key, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, ReversalRequest, TapKey, TapKind, TapRequest};

use super::hosts::{NodeMessage, TicketFor, Trust};
use super::phones::Decided;
use super::{Event, MS, World};
use crate::plan::{Ask, Manner, Tap, What};
use crate::promises::ledger::{Sent, Told};
use crate::promises::{Coverage, Promise};

/// How long a terminal waits for an answer before it asks again, and how often it does.
const RESEND_MS: u64 = 2_000;
const TIMES_MAX: u32 = 8;

/// Numbers of reversals that a terminal makes by itself.
const OWN_REVERSAL: u32 = 1 << 30;

impl World<'_> {
    /// The process that a terminal of a building talks to.
    pub(super) fn route(&self, building: usize, terminal: usize) -> usize {
        let place = &self.buildings[building];
        match place.clone {
            Some(clone) if terminal % 2 == 1 => clone,
            _ => place.site,
        }
    }

    pub(super) fn terminal(&self, building: usize, terminal: usize) -> TerminalId {
        self.plan.buildings[building].terminals[terminal].clone()
    }

    pub(super) fn act(&mut self, index: usize) {
        let plan = self.plan;
        match &plan.actions[index].what {
            What::Tap(tap) if self.is_touch(tap) => self.touch(tap),
            What::Tap(tap) => match self.phone_of(tap) {
                Some(account) => self.tap_by_phone(account, tap),
                None => self.tap(tap),
            },
            What::Reversal { of, amount, number } => self.reverse(*of, *amount, *number),
            other => self.operate(index, other),
        }
    }

    pub(super) fn tap(&mut self, tap: &Tap) {
        let site = self.route(tap.building, tap.terminal);
        let index = self.begin(site, tap);
        self.outcome.taps.begun += 1;
        self.go_about(index, tap);
    }

    /// A terminal sends a tap, in its manner.
    pub(super) fn go_about(&mut self, index: usize, tap: &Tap) {
        match tap.manner {
            Manner::Overtaken => {
                // Its reversal is there first.
                self.reverse(tap.number, None, OWN_REVERSAL | tap.number);
                self.after_ms(30, Event::Resend(index));
            }
            Manner::Double => {
                self.transmit(index);
                let later = self.chance.below(40);
                self.after_ms(later, Event::Again(index));
                self.after_ms(RESEND_MS * 3, Event::Again(index));
                self.after_ms(RESEND_MS, Event::Resend(index));
            }
            Manner::Leaves => self.transmit(index),
            Manner::Reuses => {
                self.transmit(index);
                self.after_ms(RESEND_MS * 2, Event::Again(index));
                self.after_ms(RESEND_MS, Event::Resend(index));
            }
            Manner::Patient | Manner::Reverses => {
                self.transmit(index);
                let wait = RESEND_MS + self.chance.below(500);
                self.after_ms(wait, Event::Resend(index));
            }
        }
    }

    /// Makes a request of a tap, and remembers it by its number.
    pub(super) fn begin(&mut self, site: usize, tap: &Tap) -> usize {
        let terminal = self.terminal(tap.building, tap.terminal);
        let sequence = Key::new(tap.number.to_string()).expect("a number is a key");
        let kind = match tap.ask {
            Ask::Access => TapKind::Access,
            Ask::Amount(amount) => TapKind::Amount(amount),
            Ask::Quantity(quantity) => TapKind::Quantity(quantity),
        };
        let key = TapKey { terminal, epoch: 1, sequence };
        let card = self.ledger.card_shown(&tap.card, tap.number);
        let sent = Sent::Tap(TapRequest { key, card, code: None, kind, pin: tap.pin });
        let index = self.ledger.begin(site, tap.number, sent, self.now);
        self.ledger.requests[index].may_be_lost = self.sites[site].may_lose;
        self.numbers.insert(tap.number, index);
        index
    }

    fn manner(&self, index: usize) -> Manner {
        self.manners.get(&self.ledger.requests[index].number).copied().unwrap_or_default()
    }

    fn reverse(&mut self, of: u32, amount: Option<Fen>, number: u32) {
        let Some(original) = self.numbers.get(&of).copied() else { return };
        let request = &self.ledger.requests[original];
        if request.given_up || self.sites[request.site].gone {
            return;
        }
        let site = request.site;
        let original = request.sent.key().clone();
        let sequence = Key::new(format!("r{number}")).expect("a number is a key");
        let key = TapKey { sequence, ..original.clone() };
        let sent = Sent::Reversal(ReversalRequest { key, original, amount });
        let index = self.ledger.begin(site, number, sent, self.now);
        self.ledger.requests[index].may_be_lost = self.sites[site].may_lose;
        if amount.is_some() {
            self.reached(Coverage::ReversalPart);
        }
        self.transmit(index);
        self.after_ms(RESEND_MS, Event::Resend(index));
    }

    /// Sends a request to its process, which may be down.
    pub(super) fn transmit(&mut self, index: usize) {
        let request = &mut self.ledger.requests[index];
        if request.given_up {
            return;
        }
        request.times += 1;
        let (site, sent) = (request.site, request.sent.clone());
        self.submit(site, TicketFor::Request(index), &sent);
    }

    fn submit(&mut self, site: usize, what: TicketFor, sent: &Sent) {
        self.audit.event(self.now, 9, site as u64);
        self.audit.say(self.now, || format!("{}: a terminal sends {sent:?}", self.site_name(site)));
        if self.sites[site].core.is_none() {
            return;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let now = self.now;
        self.sites[site].waiting.insert(ticket, (what, now));
        let sent = match self.hashed(site, sent) {
            Sent::Tap(tap) => Sent::Tap(self.with_code(site, what, tap)),
            reversal => reversal,
        };
        self.tell_node(site, NodeMessage::Ask(sent.input(ticket)));
    }

    /// A terminal looks for its answer, and asks again where it has none.
    pub(super) fn resend(&mut self, index: usize) {
        let request = &self.ledger.requests[index];
        // A terminal that is not configured yet may be later; any other refusal is the last word.
        let answered = match &request.told {
            None | Some(Told::Refused(TapError::UnknownTerminal(_))) => false,
            Some(_) => true,
        };
        if answered || request.given_up || request.times >= TIMES_MAX {
            return;
        }
        let (number, is_tap, sent_before) = (request.number, !request.is_reversal(), request.times > 0);
        if is_tap && sent_before && self.manner(index) == Manner::Reverses {
            // It asks no more, and undoes what may have been done.
            let site = self.ledger.requests[index].site;
            self.reverse(number, None, OWN_REVERSAL | number);
            self.ledger.requests[index].given_up = true;
            self.audit.say(self.now, || format!("{}: a terminal gives up", self.site_name(site)));
            return;
        }
        self.transmit(index);
        let times = u64::from(self.ledger.requests[index].times);
        let wait = RESEND_MS + RESEND_MS * times / 2 + self.chance.below(500);
        self.after_ms(wait, Event::Resend(index));
    }

    /// A terminal that misbehaves sends a key again: the same once more, or for something else.
    pub(super) fn send_again(&mut self, index: usize) {
        if self.manner(index) != Manner::Reuses {
            return self.transmit(index);
        }
        let request = &self.ledger.requests[index];
        // A key that nothing was decided under may still become anything.
        if request.given_up
            || !matches!(&request.told, Some(Told::Decided(told)) if !request.is_unwritten(*told))
        {
            return;
        }
        let Sent::Tap(tap) = &request.sent else { return };
        let site = request.site;
        let other =
            Sent::Tap(TapRequest { kind: TapKind::Amount(Fen::new(7)), pin: Pin::Absent, ..tap.clone() });
        self.submit(site, TicketFor::Reuse(index), &other);
    }

    pub(super) fn answered(
        &mut self,
        site: usize,
        ticket: Ticket,
        decision: Decision,
        repeat: bool,
        receipt: Option<&SignedReceipt>,
    ) {
        let Some((what, asked)) = self.sites[site].waiting.remove(&ticket) else { return };
        self.audit.event(self.now, 10, ticket.0);
        let index = match what {
            TicketFor::Request(index) => index,
            TicketFor::Reuse(index) => {
                let key = self.ledger.requests[index].sent.key().clone();
                if !self.ledger.requests[index].given_up {
                    self.violated(
                        Promise::ExactlyOnce,
                        format!("{key:?} was taken for something else: {decision:?}"),
                    );
                }
                return;
            }
            TicketFor::Report(_) | TicketFor::Shown(_) | TicketFor::Carried(_) => return,
        };
        self.audit.say(self.now, || {
            let request = &self.ledger.requests[index];
            format!(
                "{}: {:?} is told {decision:?}, repeat {repeat}",
                self.site_name(site),
                request.sent.key()
            )
        });
        if repeat {
            self.reached(Coverage::RetryFromLog);
            if self.ledger.requests[index].first_ns < self.sites[site].opened {
                self.reached(Coverage::RetryAfterRestart);
            }
        }
        if self.manner(index) == Manner::Leaves {
            return;
        }
        let first = self.ledger.requests[index].told.is_none();
        self.ledger.decided(index, decision, repeat);
        self.check_receipt(index, receipt);
        if first {
            self.note_latency(self.now - asked);
            let decided = Decided { asked_ns: asked, repeat };
            self.code_decided(index, decided, decision, receipt);
            if decision == Decision::Declined(DeclineReason::UnknownCard) {
                self.card_unknown(index);
            }
        }
        match decision {
            Decision::Approved { stand_in, .. } if stand_in.is_positive() => {
                self.reached(Coverage::StandInUsed)
            }
            Decision::Approved { .. } => {}
            Decision::Declined(reason) => {
                if let Some(coverage) = Coverage::of_reason(reason) {
                    self.reached(coverage);
                }
                if reason == DeclineReason::Reversed {
                    self.reached(Coverage::TombstoneHit);
                }
            }
        }
        // A tap that waited for the centre, and got what it asked for.
        let waited = self.now - asked > 4 * MS;
        if waited && !repeat {
            let timed_out = self.now - asked >= self.plan.timing.ask_deadline_ms * MS;
            match decision {
                _ if timed_out => self.reached(Coverage::AskTimedOut),
                Decision::Approved { stand_in, .. } if stand_in == Fen::ZERO => {
                    self.reached(Coverage::GrantedOnAsk);
                }
                _ => {}
            }
        }
    }

    /// A holder whose card is not known here shows what there is to show for it.
    fn card_unknown(&mut self, index: usize) {
        let site = self.ledger.requests[index].site;
        let sound = self.sites[site].trust == Trust::Sound && !self.sites[site].gone;
        match self.ledger.card_unknown(index, sound) {
            Ok(Some(request)) => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.sites[site].waiting.insert(ticket, (TicketFor::Shown(index), self.now));
                self.tell_node(site, NodeMessage::Ask(Input::Setting(ticket, request)));
            }
            Ok(None) => {}
            Err(text) => self.violated(Promise::Reissue, text),
        }
    }

    pub(super) fn shown(&mut self, index: usize, done: &Result<SettingDone, SettingError>) {
        self.audit.say(self.now, || format!("what is shown for tap {index}: {done:?}"));
        match self.ledger.shown(index, done, self.now) {
            Ok(path) => path.into_iter().for_each(|path| self.reached(path)),
            Err(text) => self.violated(Promise::Reissue, text),
        }
    }

    pub(super) fn refused(&mut self, site: usize, ticket: Ticket, error: TapError) {
        let Some((what, _)) = self.sites[site].waiting.remove(&ticket) else { return };
        self.audit.event(self.now, 11, ticket.0);
        match what {
            TicketFor::Request(index) => {
                self.audit.say(self.now, || {
                    let key = self.ledger.requests[index].sent.key();
                    format!("{}: {key:?} is refused: {error}", self.site_name(site))
                });
                if matches!(error, TapError::OtherContent(_)) && !self.ledger.requests[index].given_up {
                    let key = self.ledger.requests[index].sent.key().clone();
                    self.violated(Promise::ExactlyOnce, format!("{key:?} was never anything else"));
                }
                self.ledger.refused(index, error);
            }
            TicketFor::Report(_) | TicketFor::Shown(_) | TicketFor::Carried(_) => {}
            TicketFor::Reuse(_) => {
                if matches!(error, TapError::OtherContent(_)) {
                    self.reached(Coverage::KeyReused);
                }
            }
        }
    }

    /// After a step: a building alone decides at once.
    pub(super) fn note_waiting(&mut self, site: usize) {
        let host = &self.sites[site];
        if host.link.is_some() {
            return;
        }
        // What a step was given without a link it has answered: without one, only a waiting tap wants a timer.
        if host.core.as_ref().is_some_and(|core| core.next_timer().is_some()) {
            let name = self.site_name(site);
            self.violated(Promise::Alone, format!("a tap waits at {name}, which has no link"));
        }
    }

    /// What terminals do not know about a process whose disk is another one now.
    pub(super) fn give_up_requests(&mut self, site: usize) {
        for request in &mut self.ledger.requests {
            if request.site == site {
                request.given_up = true;
            }
        }
    }

    pub(super) fn count_taps(&mut self) {
        let taps = &mut self.outcome.taps;
        for request in self.ledger.requests.iter().filter(|request| !request.is_reversal()) {
            match &request.told {
                Some(Told::Decided(Decision::Approved { amount, stand_in, .. })) => {
                    taps.approved += 1;
                    taps.approved_fen += amount.get();
                    taps.stand_in_fen += stand_in.get();
                }
                Some(_) => taps.declined += 1,
                None => taps.unanswered += 1,
            }
        }
    }

    fn note_latency(&mut self, ns: u64) {
        let us = (ns / 1_000).max(1);
        let bucket = us.ilog2() as usize;
        let counts = &mut self.outcome.timeline.latency_us;
        if counts.len() <= bucket {
            counts.resize(bucket + 1, 0);
        }
        counts[bucket] += 1;
    }
}
