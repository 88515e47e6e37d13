//! Terminals: tasks that ask a node as its HTTP handlers do, ask again, double, give up; and what they are told.

use std::time::Duration;

use feiqian_node::drive::{Answer, Request};
use feiqian_node::io::{SettingDone, SettingError, TapError};
use feiqian_node::settings::SettingRequest;
use feiqian_protocol::ids::Key;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, ReversalRequest, TapKey, TapKind, TapRequest};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::run::{Run, Shared};
use crate::plan::{Ask, Manner, Tap};
use crate::promises::ledger::{Sent, Told};
use crate::promises::{Coverage, Promise};
use crate::world::Trust;

/// How long a terminal waits for an answer before it asks again, and how often it does.
const RESEND_MS: u64 = 2_000;
const TIMES_MAX: u32 = 8;

/// Numbers of reversals that a terminal makes by itself.
const OWN_REVERSAL: u32 = 1 << 30;

/// A card is held to a terminal.
pub(super) fn tap(run: &Shared, tap: &Tap) {
    let index = run.borrow_mut().begin(tap);
    let run = run.clone();
    let (number, manner) = (tap.number, tap.manner);
    spawn_local(async move {
        match manner {
            Manner::Overtaken => {
                // Its reversal is there first.
                reverse(&run, number, None, OWN_REVERSAL | number);
                sleep(Duration::from_millis(30)).await;
                ask_until_told(run, index).await;
            }
            Manner::Double => {
                transmit(&run, index);
                let later_ms = run.borrow_mut().chance.below(40);
                again_after(&run, index, later_ms);
                again_after(&run, index, RESEND_MS * 3);
                sleep(Duration::from_millis(RESEND_MS)).await;
                ask_until_told(run, index).await;
            }
            Manner::Leaves => transmit(&run, index),
            Manner::Reuses => {
                transmit(&run, index);
                again_after(&run, index, RESEND_MS * 2);
                sleep(Duration::from_millis(RESEND_MS)).await;
                ask_until_told(run, index).await;
            }
            Manner::Patient | Manner::Reverses => {
                transmit(&run, index);
                let wait_ms = RESEND_MS + run.borrow_mut().chance.below(500);
                sleep(Duration::from_millis(wait_ms)).await;
                ask_until_told(run, index).await;
            }
        }
    });
}

/// A terminal gives one of its taps back.
pub(super) fn reverse(run: &Shared, of: u32, amount: Option<Fen>, number: u32) {
    let Some(index) = run.borrow_mut().begin_reversal(of, amount, number) else { return };
    transmit(run, index);
    let run = run.clone();
    spawn_local(async move {
        sleep(Duration::from_millis(RESEND_MS)).await;
        ask_until_told(run, index).await;
    });
}

/// Asks again, ever more rarely, until there is an answer.
async fn ask_until_told(run: Shared, index: usize) {
    loop {
        let (number, is_tap, sent_before) = {
            let state = run.borrow();
            let request = &state.seen.ledger.requests[index];
            if matches!(request.told, Some(Told::Decided(_)))
                || request.given_up
                || request.times >= TIMES_MAX
            {
                return;
            }
            (request.number, !request.is_reversal(), request.times > 0)
        };
        if is_tap && sent_before && run.borrow().manner(index) == Manner::Reverses {
            // It asks no more, and undoes what may have been done.
            reverse(&run, number, None, OWN_REVERSAL | number);
            let mut state = run.borrow_mut();
            state.seen.ledger.requests[index].given_up = true;
            state.say(|state| {
                format!("a terminal gives up {:?}", state.seen.ledger.requests[index].sent.key())
            });
            return;
        }
        transmit(&run, index);
        let wait_ms = {
            let mut state = run.borrow_mut();
            let times = u64::from(state.seen.ledger.requests[index].times);
            RESEND_MS + RESEND_MS * times / 2 + state.chance.below(500)
        };
        sleep(Duration::from_millis(wait_ms)).await;
    }
}

/// A terminal that misbehaves sends a key again: the same once more, or for something else.
fn again_after(run: &Shared, index: usize, after_ms: u64) {
    let run = run.clone();
    spawn_local(async move {
        sleep(Duration::from_millis(after_ms)).await;
        if run.borrow().manner(index) != Manner::Reuses {
            return transmit(&run, index);
        }
        let (site, other) = {
            let state = run.borrow();
            let request = &state.seen.ledger.requests[index];
            // A key that nothing was decided under may still become anything.
            if request.given_up || !matches!(request.told, Some(Told::Decided(_))) {
                return;
            }
            let Sent::Tap(tap) = &request.sent else { return };
            (request.site, TapRequest { kind: TapKind::Amount(Fen::new(7)), pin: Pin::Absent, ..tap.clone() })
        };
        let answer = ask(&run, site, Request::Tap(other)).await;
        let mut state = run.borrow_mut();
        match answer {
            Some(Answer::Refused(TapError::OtherContent(_))) => state.reached(Coverage::KeyReused),
            Some(Answer::Decided { decision, .. }) if !state.seen.ledger.requests[index].given_up => {
                let key = state.seen.ledger.requests[index].sent.key().clone();
                let text = format!("{key:?} was taken for something else: {decision:?}");
                state.violated(Promise::ExactlyOnce, text);
            }
            _ => {}
        }
    });
}

/// Sends a request to its process, which may be down; whoever has left does not hear the answer.
fn transmit(run: &Shared, index: usize) {
    let (site, sent) = {
        let mut state = run.borrow_mut();
        let request = &mut state.seen.ledger.requests[index];
        if request.given_up {
            return;
        }
        request.times += 1;
        let (site, sent) = (request.site, request.sent.clone());
        state.say(|state| format!("{}: a terminal sends {sent:?}", state.site_name(site)));
        (site, sent)
    };
    let run = run.clone();
    spawn_local(async move {
        let request = match sent {
            Sent::Reversal(reversal) => Request::Reversal(reversal),
            Sent::Tap(tap) => Request::Tap(tap),
        };
        let asked_ns = run.borrow().time.now_ns();
        let answer = ask(&run, site, request).await;
        let to_show = {
            let mut state = run.borrow_mut();
            match answer {
                Some(Answer::Decided { decision, repeat, .. }) => {
                    state.told(index, decision, repeat, asked_ns);
                    let unknown = decision == Decision::Declined(DeclineReason::UnknownCard) && !repeat;
                    unknown.then(|| state.card_unknown(index)).flatten()
                }
                Some(Answer::Refused(error)) => {
                    state.refused(index, error);
                    None
                }
                _ => None,
            }
        };
        let Some(to_show) = to_show else { return };
        if let Some(Answer::Setting(done)) = ask(&run, site, Request::Setting(to_show)).await {
            run.borrow_mut().shown(index, &done);
        }
    });
}

/// Asks as the HTTP handlers do, with a terminal's patience; `None` where no answer comes.
pub(super) async fn ask(run: &Shared, site: usize, request: Request) -> Option<Answer> {
    let queue = run.borrow().campus.sites[site].process.as_ref().and_then(|(_, process)| process.queue())?;
    // Why there is none is nothing to a terminal: it asks again with the same key.
    queue.ask(request, Duration::from_millis(RESEND_MS)).await.ok()
}

impl Run {
    /// The site that a terminal of a building talks to.
    pub(super) fn route(&self, building: usize, terminal: usize) -> usize {
        let place = &self.places[building];
        match place.clone {
            Some(clone) if terminal % 2 == 1 => clone,
            _ => self.seen.in_service[building],
        }
    }

    /// Makes a request of a tap, and remembers it by its number.
    pub(super) fn begin(&mut self, tap: &Tap) -> usize {
        let site = self.route(tap.building, tap.terminal);
        let terminal = self.plan.buildings[tap.building].terminals[tap.terminal].clone();
        let sequence = Key::new(tap.number.to_string()).expect("a number is a key");
        let kind = match tap.ask {
            Ask::Access => TapKind::Access,
            Ask::Amount(amount) => TapKind::Amount(amount),
            Ask::Quantity(quantity) => TapKind::Quantity(quantity),
        };
        let key = TapKey { terminal, epoch: 1, sequence };
        let card = self.seen.ledger.card_shown(&tap.card, tap.number);
        let sent = Sent::Tap(TapRequest { key, card, code: None, kind, pin: tap.pin });
        let now_ns = self.time.now_ns();
        let index = self.seen.ledger.begin(site, tap.number, sent, now_ns);
        self.seen.ledger.requests[index].may_be_lost = self.seen.sites[site].may_lose;
        self.numbers.insert(tap.number, index);
        index
    }

    fn begin_reversal(&mut self, of: u32, amount: Option<Fen>, number: u32) -> Option<usize> {
        let request = &self.seen.ledger.requests[*self.numbers.get(&of)?];
        let site = request.site;
        if request.given_up || self.seen.sites[site].gone {
            return None;
        }
        let original = request.sent.key().clone();
        let sequence = Key::new(format!("r{number}")).expect("a number is a key");
        let key = TapKey { sequence, ..original.clone() };
        let sent = Sent::Reversal(ReversalRequest { key, original, amount });
        if amount.is_some() {
            self.reached(Coverage::ReversalPart);
        }
        let now_ns = self.time.now_ns();
        let index = self.seen.ledger.begin(site, number, sent, now_ns);
        self.seen.ledger.requests[index].may_be_lost = self.seen.sites[site].may_lose;
        Some(index)
    }

    fn manner(&self, index: usize) -> Manner {
        let number = self.seen.ledger.requests[index].number;
        self.manners.get(&number).copied().unwrap_or_default()
    }

    fn told(&mut self, index: usize, decision: Decision, repeat: bool, asked_ns: u64) {
        let site = self.seen.ledger.requests[index].site;
        self.say(|state| {
            let request = &state.seen.ledger.requests[index];
            format!(
                "{}: {:?} is told {decision:?}, repeat {repeat}",
                state.site_name(site),
                request.sent.key()
            )
        });
        if repeat {
            self.reached(Coverage::RetryFromLog);
            if self.seen.ledger.requests[index].first_ns < self.fates[site].started_ns {
                self.reached(Coverage::RetryAfterRestart);
            }
        }
        if self.manner(index) == Manner::Leaves {
            return;
        }
        let first = self.seen.ledger.requests[index].told.is_none();
        self.seen.ledger.decided(index, decision, repeat);
        let waited_ns = self.time.now_ns() - asked_ns;
        if first {
            self.note_latency(waited_ns);
        }
        match decision {
            Decision::Approved { stand_in, .. } if stand_in.is_positive() => {
                self.reached(Coverage::StandInUsed);
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
        if waited_ns > 4_000_000 && !repeat {
            match decision {
                _ if waited_ns >= self.plan.timing.ask_deadline_ms * 1_000_000 => {
                    self.reached(Coverage::AskTimedOut);
                }
                Decision::Approved { stand_in: Fen::ZERO, .. } => self.reached(Coverage::GrantedOnAsk),
                _ => {}
            }
        }
    }

    /// What the holder of a card that is not known here shows for it.
    fn card_unknown(&mut self, index: usize) -> Option<SettingRequest> {
        let seen = &self.seen.sites[self.seen.ledger.requests[index].site];
        let sound = seen.trust == Trust::Sound && !seen.gone;
        match self.seen.ledger.card_unknown(index, sound) {
            Ok(to_show) => to_show,
            Err(text) => {
                self.violated(Promise::Reissue, text);
                None
            }
        }
    }

    fn shown(&mut self, index: usize, done: &Result<SettingDone, SettingError>) {
        self.say(|_| format!("what is shown for tap {index}: {done:?}"));
        let now_ns = self.time.now_ns();
        match self.seen.ledger.shown(index, done, now_ns) {
            Ok(path) => path.into_iter().for_each(|path| self.reached(path)),
            Err(text) => self.violated(Promise::Reissue, text),
        }
    }

    fn refused(&mut self, index: usize, error: TapError) {
        let request = &self.seen.ledger.requests[index];
        let (site, key) = (request.site, request.sent.key().clone());
        self.say(|state| format!("{}: {key:?} is refused: {error}", state.site_name(site)));
        if matches!(error, TapError::OtherContent(_)) && !self.seen.ledger.requests[index].given_up {
            self.violated(Promise::ExactlyOnce, format!("{key:?} was never anything else"));
        }
        self.seen.ledger.refused(index, error);
    }

    /// What terminals do not know about a process whose disk is another one now.
    pub(super) fn give_up_requests(&mut self, site: usize) {
        for request in &mut self.seen.ledger.requests {
            if request.site == site {
                request.given_up = true;
            }
        }
    }

    pub(super) fn count_taps(&mut self) {
        let taps = &mut self.outcome.taps;
        for request in self.seen.ledger.requests.iter().filter(|request| !request.is_reversal()) {
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
        let bucket = (ns / 1_000).max(1).ilog2() as usize;
        let counts = &mut self.outcome.timeline.latency_us;
        if counts.len() <= bucket {
            counts.resize(bucket + 1, 0);
        }
        counts[bucket] += 1;
    }
}
