//! Phones among the holders: virtual cards whose phones fetch vouchers over a network of their own, make a fresh code for every tap,
//! and bring the receipts that terminals show; and people who copy codes, go on with a phone that was revoked, or make receipts up.
//!
//! A tap of an account with a phone is a code, unless a PIN is typed: then it is its card's. A phone is online or not as its seed says, tap
//! by tap. What is true is what phones have signed and when; the answers of terminals and the books are held against that.

mod checks;
mod device;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{Code, ShortCode, SignedReceipt, SignedVoucher, VoucherKey};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, LogId};
use feiqian_protocol::limits::VOUCHER_CEILING_FEN_DEFAULT;
use feiqian_protocol::money::Fen;
use feiqian_protocol::tap::{Decision, DeclineReason, Pin, TapKind, TapRequest};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::{self as centre_io, Command, SettingCommand};

pub(in crate::world) use checks::Decided;
use device::{Device, forged_code, forged_receipt};

use super::hosts::{CentreMessage, TicketFor};
use super::operators::Wanted;
use super::{Event, MS, World};
use crate::plan::{Ask, INSTITUTION, Manner, Tap};
use crate::promises::ledger::{Loss, Sent};
use crate::promises::{Coverage, Promise};
use crate::seed::Seed;

/// The number of the campus's only voucher key.
const VOUCHER_KEY: u8 = 1;

/// How long a holder waits for a voucher before he shows what the phone has, and what else is said is said again.
const PATIENCE_MS: u64 = 1_500;
const AGAIN_MS: u64 = 3_000;

/// Minutes that vouchers are good for at most: short, so that what they hold is free again within a run.
const LIFE_MINUTES_MAX: u64 = 3;

/// Taps of a phone that is not online, receipts that are scanned but not brought at once, and receipts brought twice: one in so many.
const OFFLINE_EVERY: u64 = 4;
const KEPT_EVERY: u64 = 3;
const BROUGHT_TWICE_EVERY: u64 = 5;

/// Taps for which a phone that is online shows a short code: one in so many.
const SHORT_EVERY: u64 = 4;

/// Codes that somebody copies, codes that are made up, and receipts that are made up: one in so many.
const COPIED_EVERY: u64 = 5;
const FORGED_CODE_EVERY: u64 = 25;
const FORGED_RECEIPT_EVERY: u64 = 6;

/// A phone of so many is withdrawn during a run: half of these are reported lost, half revoked.
const WITHDRAWN_EVERY: u64 = 3;

/// Numbers of taps that are not in the plan.
const OWN_TAP: u32 = 1_500_000_000;

/// All phones of a run.
pub(super) struct Phones {
    /// By account.
    devices: BTreeMap<usize, Device>,
    /// What was shown, by the index of its request.
    shown: BTreeMap<usize, Shown>,
    errands: Vec<Errand>,
    copies: Vec<Copied>,
    /// Codes that were approved: by site, account, voucher and counter, the key's request.
    approved: BTreeMap<(usize, usize, u32, u16), usize>,
    /// Short codes that were approved, and the key's request: wherever that was.
    approved_short: BTreeMap<ShortCode, usize>,
    /// Loss reports of virtual cards: how far logs had come, and what could still be spent at most.
    bounds: Vec<(CardNumber, BTreeMap<LogId, u64>, Fen)>,
    own_taps: u32,
    seed: Seed,
}

/// What a phone shows.
#[derive(Clone)]
enum Made {
    Code(Box<Code>),
    Short(ShortCode),
}

/// A code at a terminal.
#[derive(Clone)]
struct Shown {
    account: usize,
    code: Made,
    /// When the phone signed it.
    made_ns: u64,
    /// It is not as a phone has made it.
    forged: bool,
    /// The building knew already that the virtual card is withdrawn.
    known_withdrawn: bool,
    receipt: Option<String>,
}

/// A code that somebody has copied, and where it is shown again.
struct Copied {
    shown: Shown,
    building: usize,
    terminal: usize,
    amount: Fen,
}

/// Something that a phone, or somebody about one, wants of the centre.
struct Errand {
    account: usize,
    wanted: ErrandKind,
    done: bool,
}

#[derive(Clone)]
enum ErrandKind {
    Bring { receipt: String, forged: bool },
    Fetch { life_minutes: u16, asked_ns: u64, tap: Option<Tap> },
    ReportLoss(usize),
    Revoke,
}

/// Something about phones that is to happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Somebody shows what he has copied.
    Copied(usize),
    /// A holder has waited long enough for a voucher.
    Patience(usize),
    /// A holder types the PIN that a terminal asked for, with a fresh code.
    Typed(usize),
    /// A phone is withdrawn.
    Withdrawn(usize),
}

impl Phones {
    pub(super) const fn new(seed: Seed) -> Self {
        Self {
            devices: BTreeMap::new(),
            shown: BTreeMap::new(),
            errands: Vec::new(),
            copies: Vec::new(),
            approved: BTreeMap::new(),
            approved_short: BTreeMap::new(),
            bounds: Vec::new(),
            own_taps: 0,
            seed,
        }
    }
}

impl World<'_> {
    /// The key of the campus's vouchers, where anybody has a phone.
    pub(super) fn voucher_keys(&self) -> Vec<VoucherKey> {
        let key = || VoucherKey {
            number: VOUCHER_KEY,
            key: self.centre.identity.voucher_key(VOUCHER_KEY).verifying_key(),
            from_ms: Timestamp(0),
            to_ms: Timestamp(i64::from(u32::MAX) * 1_000),
        };
        self.plan.accounts.iter().any(|account| account.phone).then(key).into_iter().collect()
    }

    /// Makes the phones of the plan virtual cards of their accounts.
    pub(super) fn activate_phones(&mut self) -> Result<()> {
        for account in 0..self.plan.accounts.len() {
            if !self.plan.accounts[account].phone {
                continue;
            }
            let mut device = Device::new(&mut self.phones.seed);
            let card = device.card.clone();
            self.must(Command::ActivateVirtualCard {
                card: self.plan.accounts[account].card.clone(),
                algorithm: device.secret.key().algorithm().name().to_owned(),
                key: hex(device.secret.key().as_bytes()),
                operator: Key::new("app")?,
            })?;
            device.keep_short(&self.must(Command::ShortCode { card: card.clone() })?);
            self.ledger.further.insert(card, account);
            self.phones.devices.insert(account, device);
        }
        Ok(())
    }

    /// Draws whose phone is withdrawn, and when.
    pub(super) fn plan_phones(&mut self) {
        let length = self.plan.timing.length_ms * MS;
        for account in self.phones.devices.keys().copied().collect::<Vec<_>>() {
            if self.phones.seed.chance(1, WITHDRAWN_EVERY) {
                let at = self.origin + length / 3 + self.phones.seed.below(length / 2);
                self.at(at, Event::Phone(Step::Withdrawn(account)));
            }
        }
    }

    /// The account whose phone a tap is made with.
    pub(super) fn phone_of(&self, tap: &Tap) -> Option<usize> {
        let measured = matches!(tap.ask, Ask::Quantity(_));
        let (account, _) = self
            .phones
            .devices
            .iter()
            .find(|(account, _)| self.plan.accounts[**account].card == tap.card && !measured)?;
        (tap.pin == Pin::Absent).then_some(*account)
    }

    /// A holder wants to pay or to pass with his phone.
    pub(super) fn tap_by_phone(&mut self, account: usize, tap: &Tap) {
        let Some(device) = self.phones.devices.get(&account) else { return };
        let online = !self.phones.seed.chance(1, OFFLINE_EVERY);
        let now = device.centre_time(self.true_time());
        if online {
            self.bring_kept(account);
            if self.phones.seed.chance(1, SHORT_EVERY) {
                return self.show_short(account, tap);
            }
        }
        if !online || self.centre.core.is_none() || !self.phones.devices[&account].wants_voucher(now) {
            return self.show(account, tap);
        }
        let life_minutes = 1 + self.phones.seed.below(LIFE_MINUTES_MAX) as u16;
        let wanted = ErrandKind::Fetch { life_minutes, asked_ns: self.now, tap: Some(tap.clone()) };
        let errand = self.go_for(account, wanted);
        self.after_ms(PATIENCE_MS, Event::Phone(Step::Patience(errand)));
    }

    pub(super) fn phone_step(&mut self, step: Step) {
        match step {
            Step::Copied(copy) => self.show_copy(copy),
            Step::Patience(errand) => {
                let errand = &mut self.phones.errands[errand];
                let account = errand.account;
                if let ErrandKind::Fetch { tap, .. } = &mut errand.wanted
                    && let Some(tap) = tap.take()
                {
                    self.show(account, &tap);
                }
            }
            Step::Typed(request) => self.show_again_with_pin(request),
            Step::Withdrawn(account) => self.withdraw(account),
        }
    }

    fn true_time(&self) -> Timestamp {
        self.epoch().plus_ms((self.now / MS) as i64)
    }

    fn own_tap(&mut self) -> u32 {
        self.phones.own_taps += 1;
        OWN_TAP + self.phones.own_taps
    }

    /// Shows a fresh code; without a voucher the holder takes the card.
    fn show(&mut self, account: usize, tap: &Tap) {
        let now = self.true_time();
        let Some(device) = self.phones.devices.get_mut(&account) else { return };
        let Some(code) = device.sign(now) else {
            if self.numbers.contains_key(&tap.number) {
                return;
            }
            return self.tap(tap);
        };
        let card = device.card.clone();
        let forged = self.phones.seed.chance(1, FORGED_CODE_EVERY);
        let code = if forged { forged_code(code, now, &mut self.phones.seed) } else { code };
        self.hold_up(account, Tap { card, ..tap.clone() }, Made::Code(Box::new(code)), forged);
    }

    /// Shows a short code, or what somebody takes for one.
    fn show_short(&mut self, account: usize, tap: &Tap) {
        let now = self.true_time();
        let device = &self.phones.devices[&account];
        let Some(code) = device.short_code(now) else { return };
        let card = device.card.clone();
        let forged = self.phones.seed.chance(1, FORGED_CODE_EVERY);
        let code = ShortCode { digits: code.digits ^ u32::from(forged), ..code };
        self.hold_up(account, Tap { card, ..tap.clone() }, Made::Short(code), forged);
    }

    /// A code is held to a terminal by its holder, and may be seen by others.
    fn hold_up(&mut self, account: usize, tap: Tap, code: Made, forged: bool) {
        let shown = Shown { account, code, made_ns: self.now, forged, known_withdrawn: false, receipt: None };
        if !forged && self.phones.seed.chance(1, COPIED_EVERY) {
            self.copy(&shown, &tap);
        }
        self.present(&tap, shown);
    }

    /// A code is held to a terminal.
    fn present(&mut self, tap: &Tap, mut shown: Shown) {
        let site = self.route(tap.building, tap.terminal);
        shown.known_withdrawn =
            self.node_tables(site).and_then(|tables| tables.is_lost(&tap.card)).unwrap_or(false);
        let index = self.begin(site, tap);
        self.ledger.requests[index].short_code = matches!(shown.code, Made::Short(_));
        self.phones.shown.insert(index, shown);
        self.outcome.taps.begun += 1;
        self.go_about(index, tap);
    }

    /// Somebody has seen a code, and shows it at another terminal: at once in a second building, at once in the same one, or when
    /// its window is over.
    fn copy(&mut self, shown: &Shown, tap: &Tap) {
        let seed = &mut self.phones.seed;
        let late = seed.chance(1, 2);
        let elsewhere = seed.index(self.plan.buildings.len());
        let building = if seed.chance(1, 3) { tap.building } else { elsewhere };
        let terminal = seed.index(self.plan.buildings[building].terminals.len());
        let after_ms = if late { 65_000 + seed.below(40_000) } else { 20 + seed.below(30_000) };
        let amount = Fen::new(100 + 10 * seed.below(80) as i64);
        self.phones.copies.push(Copied { shown: shown.clone(), building, terminal, amount });
        let copy = self.phones.copies.len() - 1;
        self.after_ms(after_ms, Event::Phone(Step::Copied(copy)));
    }

    fn show_copy(&mut self, copy: usize) {
        let number = self.own_tap();
        let Copied { shown, building, terminal, amount } = &self.phones.copies[copy];
        let sells = self.plan.buildings[*building].role != Role::Door;
        let tap = Tap {
            number,
            building: *building,
            terminal: *terminal,
            card: self.phones.devices[&shown.account].card.clone(),
            ask: if sells { Ask::Amount(*amount) } else { Ask::Access },
            pin: Pin::Absent,
            manner: Manner::Patient,
        };
        self.present(&tap, shown.clone());
    }

    fn show_again_with_pin(&mut self, request: usize) {
        let Some(account) = self.phones.shown.get(&request).map(|shown| shown.account) else { return };
        let Sent::Tap(asked) = self.ledger.requests[request].sent.clone() else { return };
        let TapKind::Amount(amount) = asked.kind else { return };
        let site = self.ledger.requests[request].site;
        let building = self.sites[site].building;
        let terminals = &self.plan.buildings[building].terminals;
        let terminal = terminals.iter().position(|terminal| *terminal == asked.key.terminal).unwrap_or(0);
        let number = self.own_tap();
        let (card, ask, manner) = (asked.card, Ask::Amount(amount), Manner::Patient);
        let tap = Tap { number, building, terminal, card, ask, pin: Pin::Right, manner };
        self.show(account, &tap);
    }

    /// A phone is lost or sold: its virtual card is withdrawn. Whoever has it goes on showing codes, first of all at once.
    fn withdraw(&mut self, account: usize) {
        let lost = self.phones.seed.chance(1, 2);
        let card = self.phones.devices[&account].card.clone();
        let wanted = if lost {
            let loss = Loss { card, asked: BTreeMap::new(), confirmed: None };
            self.ledger.losses.push(loss);
            ErrandKind::ReportLoss(self.ledger.losses.len() - 1)
        } else {
            ErrandKind::Revoke
        };
        self.go_for(account, wanted);
    }

    /// A new errand; returns its number.
    fn go_for(&mut self, account: usize, wanted: ErrandKind) -> usize {
        self.phones.errands.push(Errand { account, wanted, done: false });
        let errand = self.phones.errands.len() - 1;
        self.say_errand(errand);
        errand
    }

    /// Says it to the centre, and again until it is answered; a voucher is asked for once.
    pub(super) fn say_errand(&mut self, errand: usize) {
        let Errand { account, wanted, done } = &self.phones.errands[errand];
        if *done {
            return;
        }
        let device = &self.phones.devices[account];
        let card = device.card.clone();
        let operator = Key::new("app").expect("letters are a key");
        let (command, loss) = match wanted {
            ErrandKind::Bring { receipt, .. } => (Command::Receipt { receipt: receipt.clone() }, None),
            ErrandKind::Fetch { life_minutes, .. } => {
                let (life_minutes, ceiling_fen) = (Some(*life_minutes), VOUCHER_CEILING_FEN_DEFAULT);
                (Command::Voucher { card, life_minutes, ceiling_fen, after: device.says }, None)
            }
            ErrandKind::ReportLoss(loss) => (Command::ReportLoss { card, operator }, Some(*loss)),
            ErrandKind::Revoke => {
                let change = SettingCommand::VoidCard;
                (Command::ChangeSetting { card, change, operator }, None)
            }
        };
        let once = matches!(wanted, ErrandKind::Fetch { .. });
        self.tickets += 1;
        self.audit.event(self.now, 14, errand as u64);
        self.audit.say(self.now, || format!("a phone wants of the centre: {command:?}"));
        let wanted = Wanted::Phone(errand, loss);
        if self.centre.core.is_some() {
            self.commands.insert(self.tickets, wanted);
            self.tell_centre(CentreMessage::Command(centre_io::Ticket(self.tickets), command));
        }
        if !once {
            self.after_ms(AGAIN_MS, Event::Want(wanted));
        }
    }

    /// The centre answers.
    pub(super) fn errand_answered(&mut self, errand: usize, ticket: u64, reply: centre_io::Reply) {
        self.audit.say(self.now, || format!("the centre answers a phone: {reply:?}"));
        if std::mem::replace(&mut self.phones.errands[errand].done, true) {
            return;
        }
        let account = self.phones.errands[errand].account;
        match (self.phones.errands[errand].wanted.clone(), reply) {
            (ErrandKind::Fetch { asked_ns, tap, .. }, reply) => {
                if let Ok(told) = reply {
                    self.keep_voucher(account, asked_ns, &told);
                }
                if let ErrandKind::Fetch { tap, .. } = &mut self.phones.errands[errand].wanted {
                    *tap = None;
                }
                if let Some(tap) = tap {
                    self.show(account, &tap);
                }
            }
            (ErrandKind::Bring { receipt, forged }, reply) => self.receipt_answered(&receipt, forged, reply),
            (ErrandKind::ReportLoss(loss), Ok(_)) => {
                let positions = self.ingested_at.remove(&ticket);
                self.ledger.losses[loss].confirmed = positions;
                self.note_bound(account);
                self.go_on_with_withdrawn(account);
            }
            (ErrandKind::Revoke, Ok(_)) => {
                self.reached(Coverage::PhoneRevoked);
                self.go_on_with_withdrawn(account);
            }
            // Somebody was first.
            (ErrandKind::ReportLoss(_) | ErrandKind::Revoke, Err(_)) => {}
        }
    }

    fn keep_voucher(&mut self, account: usize, asked_ns: u64, told: &serde_json::Value) {
        let text = told["voucher"].as_str().unwrap_or_default();
        let (Ok(voucher), Some(now_ms)) = (SignedVoucher::from_text(text), told["now_ms"].as_i64()) else {
            return self.violated(Promise::Sound, format!("this is no voucher: {told}"));
        };
        // The answer was made while the phone waited for it.
        let waited_ms = ((self.now - asked_ns) / MS) as i64;
        let offset_ms = now_ms - self.true_time().plus_ms(-waited_ms / 2).0;
        let Some(device) = self.phones.devices.get_mut(&account) else { return };
        device.keep(voucher, offset_ms);
    }

    /// What a phone has scanned and not brought yet.
    fn bring_kept(&mut self, account: usize) {
        let Some(device) = self.phones.devices.get_mut(&account) else { return };
        for receipt in std::mem::take(&mut device.receipts) {
            self.go_for(account, ErrandKind::Bring { receipt, forged: false });
        }
    }

    /// Everybody brings what there is.
    pub(super) fn bring_receipts(&mut self) {
        for account in self.phones.devices.keys().copied().collect::<Vec<_>>() {
            self.bring_kept(account);
        }
    }

    /// A terminal shows a receipt to whoever showed it a code.
    fn scan(&mut self, account: usize, receipt: &SignedReceipt) {
        let text = receipt.to_digits();
        let Some(device) = self.phones.devices.get_mut(&account) else { return };
        device.has_spent(receipt.receipt().voucher);
        let seed = &mut self.phones.seed;
        if seed.chance(1, FORGED_RECEIPT_EVERY) {
            let receipt = forged_receipt(receipt, seed);
            self.go_for(account, ErrandKind::Bring { receipt, forged: true });
        }
        if self.phones.seed.chance(1, KEPT_EVERY) {
            if let Some(device) = self.phones.devices.get_mut(&account) {
                device.receipts.push(text);
            }
            return;
        }
        if self.phones.seed.chance(1, BROUGHT_TWICE_EVERY) {
            self.go_for(account, ErrandKind::Bring { receipt: text.clone(), forged: false });
        }
        self.go_for(account, ErrandKind::Bring { receipt: text, forged: false });
    }

    /// A terminal was told what becomes of a code, for the first time it heard.
    pub(super) fn code_decided(
        &mut self,
        index: usize,
        decided: Decided,
        decision: Decision,
        receipt: Option<&SignedReceipt>,
    ) {
        let Some(shown) = self.phones.shown.get(&index).cloned() else { return };
        let Sent::Tap(TapRequest { pin, .. }) = &self.ledger.requests[index].sent else { return };
        let pin = *pin;
        match decision {
            Decision::Approved { .. } => {
                if pin == Pin::Right {
                    self.reached(Coverage::CodePaidByPin);
                }
                self.check_approved(index, &shown, decided, receipt);
                if let Some(receipt) = receipt {
                    self.reached(Coverage::VoucherPaid);
                    self.scan(shown.account, receipt);
                }
            }
            Decision::Declined(DeclineReason::PinRequired) if pin == Pin::Absent && !shown.forged => {
                self.reached(Coverage::CodeAskedForPin);
                if self.phones.seed.chance(1, 2) {
                    let later = 2_000 + self.phones.seed.below(5_000);
                    self.after_ms(later, Event::Phone(Step::Typed(index)));
                }
            }
            Decision::Declined(_) => {}
        }
    }

    /// The phones' cards, for checks that go by cards.
    pub(super) fn withdrawn_phones(&self) -> BTreeSet<CardNumber> {
        let withdrawn = |errand: &&Errand| {
            errand.done && matches!(errand.wanted, ErrandKind::ReportLoss(_) | ErrandKind::Revoke)
        };
        let card = |errand: &Errand| self.phones.devices[&errand.account].card.clone();
        self.phones.errands.iter().filter(withdrawn).map(card).collect()
    }

    /// Whoever has a withdrawn phone shows it in all buildings, one after the other.
    fn go_on_with_withdrawn(&mut self, account: usize) {
        let now = self.true_time();
        for building in 0..self.plan.buildings.len() {
            let Some(code) = self.phones.devices.get_mut(&account).and_then(|device| device.sign(now)) else {
                return;
            };
            let (code, made_ns) = (Made::Code(Box::new(code)), self.now);
            let shown =
                Shown { account, code, made_ns, forged: false, known_withdrawn: false, receipt: None };
            let amount = Fen::new(100 + 10 * self.phones.seed.below(60) as i64);
            let after_ms = 50 + self.phones.seed.below(30_000);
            self.phones.copies.push(Copied { shown, building, terminal: 0, amount });
            let copy = self.phones.copies.len() - 1;
            self.after_ms(after_ms, Event::Phone(Step::Copied(copy)));
        }
    }

    /// A request for the core as the shell has it: with the code that is shown, as it is checked there.
    pub(super) fn with_code(&self, site: usize, what: TicketFor, tap: TapRequest) -> TapRequest {
        let (TicketFor::Request(request) | TicketFor::Reuse(request)) = what else { return tap };
        let Some(shown) = self.phones.shown.get(&request) else { return tap };
        match &shown.code {
            Made::Short(code) => TapRequest { card: CardNumber::unnamed(code), ..tap },
            Made::Code(code) => {
                let keys = self.sites[site].core.as_ref().map_or(&[][..], |core| core.voucher_keys().1);
                let code = Code::clone(code).check(INSTITUTION, keys);
                TapRequest { code: Some(Box::new(code)), ..tap }
            }
        }
    }
}
