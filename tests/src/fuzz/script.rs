//! Bytes read as a script: choices, numbers that like to be at an edge, and entries made of them.

use arbitrary::Unstructured;
use feiqian_protocol::account::Intent;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::entry::{
    Access, AccountOpened, Actor, ActorKind, Anchor, Bearer, Body, CampusPublished, CaseMoved, CaseReason,
    CloseRequest, Closed, Credit, Debit, Decline, Delta, DocumentRenewed, EntryRef, EpochEnd, Grant, Hint,
    NodeEnrolled, PinVerifier, PinVerifiers, Pool, Posted, PostedHead, Proof, Refund, Release, Reversal,
    Setting, ShareGrant, ShareRelease, StandInGrant, TakenIn, TapRef, Tombstone, WrongPin,
};
use feiqian_protocol::ids::{
    AccountId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, Unit, Wallet,
};
use feiqian_protocol::limits::ACCOUNT_END;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::{PinDigest, PinGeneration};
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::{BusinessDay, Timestamp};

/// The institution of every script.
pub const INSTITUTION: InstitutionId = InstitutionId(1);

/// When every script begins: 2022-11-07, 08:00 in China.
pub const START: Timestamp = Timestamp(1_667_779_200_000);

/// The bytes of one run, read front to back. Where they are used up every choice is the first one.
pub struct Script<'a>(Unstructured<'a>);

impl<'a> Script<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// True where nothing is left to read.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A choice among so many (at most 256; 0 where there are none).
    pub fn choice(&mut self, of: usize) -> usize {
        usize::from(self.byte()).checked_rem(of).unwrap_or_default()
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.choice(from.len())]
    }

    /// True in one of `of` cases.
    pub fn rarely(&mut self, of: u8) -> bool {
        of > 0 && self.byte() % of == of - 1
    }

    /// At most so many of the bytes that come next.
    pub fn bytes(&mut self, at_most: usize) -> &'a [u8] {
        let length = (usize::from(self.byte()) << 4).min(at_most).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// A signed number: mostly small, sometimes at an edge, sometimes anything.
    pub fn i64(&mut self) -> i64 {
        match self.byte() {
            byte @ 0..=127 => i64::from(byte),
            byte @ 128..=199 => i64::from(byte - 128) * 500,
            200..=209 => -i64::from(self.byte()),
            210 => i64::MIN,
            211 => i64::MAX,
            212 => i64::MIN + 1,
            213 => i64::MAX - 1,
            214 => 10_000_000,
            215 => 10_000_001,
            216 => 1 << 52,
            217 => -(1 << 52),
            218 => 1 << 32,
            219 => i64::from(u32::MAX),
            220 => 1 << 47,
            _ => self.0.arbitrary().unwrap_or_default(),
        }
    }

    /// An unsigned number, likewise.
    pub fn u64(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..=199 => u64::from(byte),
            200 => u64::MAX,
            201 => u64::MAX - 1,
            202 => i64::MAX as u64,
            203 => i64::MAX as u64 + 1,
            204 => u64::from(u32::MAX),
            205 => u64::from(u32::MAX) + 1,
            _ => self.0.arbitrary().unwrap_or_default(),
        }
    }

    /// An unsigned number of 32 bits, likewise.
    pub fn u32(&mut self) -> u32 {
        match self.byte() {
            byte @ 0..=229 => u32::from(byte),
            230 => u32::MAX,
            231 => u32::MAX - 1,
            232 => 0x8000_0000,
            233 => 0x7fff_ffff,
            _ => self.0.arbitrary().unwrap_or_default(),
        }
    }

    /// A number near another one: that one, its neighbours, or anything.
    pub fn near(&mut self, number: u64) -> u64 {
        match self.byte() {
            0..=127 => number,
            128..=159 => number.saturating_sub(1),
            160..=191 => number.saturating_add(1),
            192..=223 => number.saturating_sub(u64::from(self.byte())),
            _ => self.u64(),
        }
    }

    /// An amount.
    pub fn fen(&mut self) -> Fen {
        Fen::new(self.i64())
    }

    /// A time: mostly around the start, sometimes anything.
    pub fn time(&mut self) -> Timestamp {
        match self.byte() {
            byte @ 0..=200 => START.plus_ms(i64::from(byte) * 60_000),
            201..=220 => START.plus_ms(-i64::from(self.byte()) * 3_600_000),
            _ => Timestamp(self.i64()),
        }
    }

    /// A business day: mostly around the start.
    pub fn day(&mut self) -> BusinessDay {
        match self.byte() {
            byte @ 0..=200 => BusinessDay(19_303 + i32::from(byte % 8) - 2),
            201 => BusinessDay(i32::MAX),
            202 => BusinessDay(i32::MIN),
            _ => BusinessDay(self.u32() as i32),
        }
    }

    /// An account: mostly one of four.
    pub fn account(&mut self) -> AccountId {
        match self.byte() {
            byte @ 0..=239 => AccountId(u64::from(byte % 4) + 1),
            // No other gets past a decoder.
            _ => AccountId(self.u64() % ACCOUNT_END),
        }
    }

    /// A wallet.
    pub fn wallet(&mut self) -> Wallet {
        self.pick(&[Wallet::Cash, Wallet::Cash, Wallet::Subsidy])
    }

    /// A unit.
    pub fn unit(&mut self) -> Unit {
        match self.choice(3) {
            0 => Unit::Allowance,
            _ => Unit::Wallet(self.wallet()),
        }
    }

    /// An epoch near the open one.
    pub fn epoch(&mut self, open: Epoch) -> Epoch {
        match self.byte() {
            0..=199 => open,
            200..=219 => Epoch(open.0.saturating_sub(1)),
            220..=229 => Epoch(open.0.saturating_add(1)),
            _ => Epoch(self.u32()),
        }
    }

    /// A short key, from few.
    pub fn key(&mut self) -> Key {
        let byte = self.byte();
        let name = if byte == 255 { "k".repeat(64) } else { format!("k{}", byte % 24) };
        Key::new(name).expect("letters and digits make a name")
    }

    /// One of six cards, of which four have an account.
    pub fn card(&mut self) -> CardNumber {
        CardNumber::new(format!("c{}", self.choice(6) + 1)).expect("letters and digits make a name")
    }

    /// How far some log is posted.
    pub fn posted_head(&mut self) -> PostedHead {
        PostedHead { log: self.log(), position: self.u64(), hash: [self.byte(); 32] }
    }

    /// A log: mostly one of the usual ones.
    pub fn log(&mut self) -> LogId {
        let node = NodeId(u16::from(self.byte() % 3) + 1);
        match self.byte() {
            0..=79 => LogId::node(INSTITUTION, node),
            80..=119 => LogId::to_node(INSTITUTION, node),
            byte @ 120..=219 => LogId::shard(INSTITUTION, byte % 17),
            220..=239 => LogId::branch(INSTITUTION, node, self.u32()),
            _ => LogId {
                institution: InstitutionId(self.u32() as u16),
                writer: NodeId(self.u32() as u16),
                stream: self.u32(),
            },
        }
    }

    /// An actor.
    pub fn actor(&mut self) -> Actor {
        let kind = self.pick(&[ActorKind::Terminal, ActorKind::System, ActorKind::Kiosk, ActorKind::Cashier]);
        let proof = self.pick(&[Proof::Card, Proof::None, Proof::CardAndPin]);
        Actor { kind, id: self.key(), proof }
    }

    /// A tap's name.
    pub fn tap(&mut self) -> TapRef {
        TapRef { epoch: u32::from(self.byte() % 2), sequence: self.key() }
    }

    /// A change of settings.
    pub fn intent(&mut self) -> Intent {
        let (card, key) = (self.card(), self.key());
        match self.choice(12) {
            0 => Intent::ReportLoss { card, loss: key },
            1 => Intent::LiftLoss { card, losses: (0..self.choice(3)).map(|_| self.key()).collect() },
            2 => Intent::SetLimits { single: self.fen(), daily: self.fen() },
            3 => Intent::IssueCard { card },
            4 => Intent::VoidCard { card },
            5 => Intent::Freeze { key },
            6 => Intent::Unfreeze { keys: (0..self.choice(3)).map(|_| self.key()).collect() },
            7 => Intent::JoinGroup { group: key },
            8 => Intent::LeaveGroup { group: key },
            9 => Intent::SetPin {
                generation: self.pin(),
                replaces: (0..self.choice(3)).map(|_| self.pin()).collect(),
            },
            10 => Intent::ConfirmPin {
                generation: self.pin(),
                others: (0..self.choice(3)).map(|_| self.pin()).collect(),
            },
            _ => Intent::Close,
        }
    }

    /// A PIN, one of few.
    pub fn pin(&mut self) -> PinGeneration {
        PinGeneration([self.byte() % 4; 16])
    }

    fn entry_ref(&mut self) -> EntryRef {
        EntryRef { log: self.log(), position: self.u64() }
    }

    fn reason(&mut self) -> CaseReason {
        self.pick(&CaseReason::ALL)
    }

    fn grant(&mut self, epoch: Epoch) -> Grant {
        Grant {
            account: self.account(),
            wallet: self.wallet(),
            epoch: self.epoch(epoch),
            amount: self.fen(),
            total: self.fen(),
            time: self.time(),
        }
    }

    /// What a node writes; `position` is where its log ends.
    pub fn node_body(&mut self, epoch: Epoch, position: u64) -> Body {
        let (tap, account, wallet) = (self.tap(), self.account(), self.wallet());
        let epoch = self.epoch(epoch);
        match self.choice(12) {
            0..=2 => Debit {
                tap,
                account,
                wallet,
                epoch,
                from_right: self.fen(),
                stand_in: self.fen(),
                allowance: self.fen(),
                day: self.day(),
                merchant: u16::from(self.byte()),
                card: self.card(),
                measured: None,
                code: None,
                from_voucher: None,
                meal: None,
            }
            .into(),
            3 => Reversal {
                tap,
                debit: self.near(position),
                account,
                wallet,
                epoch,
                right_back: self.fen(),
                right_home: self.fen(),
                stand_in_home: self.fen(),
                allowance_back: self.fen(),
                day: self.day(),
            }
            .into(),
            4 => Release { account, wallet, epoch, amount: self.fen(), released_total: self.fen() }.into(),
            5 => TakenIn { tap, account, wallet, epoch, amount: self.fen() }.into(),
            6 => EpochEnd { epoch }.into(),
            7 => ShareRelease { account, epoch, from_day: self.day(), amount: self.fen() }.into(),
            8 => Tombstone { tap, original: self.tap() }.into(),
            9 if self.rarely(2) => Access { tap, account, card: self.card(), code: None }.into(),
            9 => Decline {
                tap,
                account: self.rarely(2).then_some(account),
                card: self.card(),
                amount: self.fen(),
                reason: self.pick(DeclineReason::ALL),
                access: self.rarely(2),
                pin_tries: self.rarely(2).then_some(1),
            }
            .into(),
            10 => WrongPin { account, tries: self.byte() }.into(),
            _ => Body::Unknown {
                kind: 1_000 + u16::from(self.byte()),
                critical: self.rarely(2),
                body: self.bytes(64).to_vec(),
            },
        }
    }

    /// What the centre writes for a node.
    pub fn to_node_body(&mut self, epoch: Epoch) -> Body {
        match self.choice(11) {
            0 => Anchor { session: self.u64(), time: self.time() }.into(),
            1 | 2 => self.grant(epoch).into(),
            3 => StandInGrant(self.grant(epoch)).into(),
            4 => CloseRequest { epoch: self.epoch(epoch) }.into(),
            5 => Closed { epoch: self.epoch(epoch), declared_head: self.u64() }.into(),
            6 => ShareGrant {
                account: self.account(),
                epoch: self.epoch(epoch),
                from_day: self.day(),
                amount: self.fen(),
                total: self.fen(),
                time: self.time(),
            }
            .into(),
            7 => Hint {
                account: self.account(),
                elsewhere_per_day: self.fen(),
                purchase_mean: self.fen(),
                elsewhere_per_meal: self.fen(),
                habit: self.rarely(2),
                seasoned: !self.rarely(4),
            }
            .into(),
            8 => NodeEnrolled {
                node: NodeId(u16::from(self.byte())),
                name: NodeName::new("n1").expect("a letter and a digit make a name"),
                role: self.pick(&[Role::Pos, Role::Kiosk]),
                incarnation: self.u32(),
                log_key: [self.byte(); 32],
            }
            .into(),
            9 => PinVerifiers {
                verifiers: (0..self.choice(3))
                    .map(|_| PinVerifier {
                        account: self.account(),
                        generation: self.pin(),
                        digest: PinDigest::new([self.byte() % 2; 32]),
                    })
                    .collect(),
            }
            .into(),
            _ => Pool { from_day: self.day(), per_day: self.fen(), habit_only: self.fen() }.into(),
        }
    }

    /// What the centre writes into an account stream; `change` is what goes along with a setting.
    pub fn shard_body(&mut self, account: AccountId, change: impl FnOnce(&Intent) -> Vec<u8>) -> Body {
        let wallet = self.wallet();
        match self.choice(8) {
            0 => Credit { account, wallet, amount: self.fen(), channel: self.key(), key: self.key() }.into(),
            1 => {
                let intent = self.intent();
                let change = change(&intent).into();
                Setting { account, document_epoch: 1, intent, change, typed: None, of: None }.into()
            }
            2 => Posted {
                heads: (0..self.choice(3)).map(|_| self.posted_head()).collect(),
                deltas: (0..self.choice(4))
                    .map(|_| Delta { account, wallet: self.wallet(), amount: self.fen() })
                    .collect(),
                lost: None,
            }
            .into(),
            3 => CaseMoved {
                debit: self.entry_ref(),
                account,
                wallet,
                reason: self.reason(),
                bearer: self.pick(&[Bearer::Suspense, Bearer::Holder, Bearer::RiskFund]),
                opened: self.fen(),
                recovered: self.fen(),
            }
            .into(),
            4 => {
                Refund { debit: self.entry_ref(), account, wallet, amount: self.fen(), reason: self.reason() }
                    .into()
            }
            5 => {
                let document = self.bytes(256).to_vec().into();
                AccountOpened { account, document, seasoned: self.rarely(2) }.into()
            }
            6 => {
                let config = self.bytes(256).to_vec().into();
                CampusPublished { version: self.u32(), config }.into()
            }
            _ => {
                let document = self.bytes(256).to_vec().into();
                DocumentRenewed { account, document }.into()
            }
        }
    }
}
