//! The session with the centre: Hello, what is sent, what comes, and what a refusal means.
//!
//! Everything sent here is released after the step's commit. Money moves only by entries: asks, noes, recalls and marks may
//! be lost with the link and are then simply said again.

mod recalls;
mod refused;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::chain::Countersignature;
use feiqian_protocol::entry::PostedHead;
use feiqian_protocol::frame::{
    Ack, Ask, CentreHello, Entries, Frame, LogCursor, LossNotice, Mark, No, NodeHello, PROTOCOL_VERSION,
    RefusalReason,
};
use feiqian_protocol::ids::{AccountId, LogId, NodeId, Unit};
use feiqian_protocol::limits::{CLOCK_AHEAD_MS_MAX, ENTRIES_PER_FRAME_MAX, SHARDS};
use feiqian_protocol::money::Fen;
use feiqian_protocol::session::{Sender, pack};
use feiqian_protocol::time::{Hlc, Timestamp};

use crate::apply::Fault;
use crate::core::NodeCore;
use crate::edge::Waiting;
use crate::io::{LinkId, LinkState, Now, Output};
use crate::store::StoreError;

/// How often a quiet node looks whether its clock has moved enough for a mark, in milliseconds of real time.
const MARK_INTERVAL_MS: u64 = 250;

/// Bytes of entries that are kept while the Hello before them, which travels in another lane, is still to come: some times
/// what the lane has under way unread.
const EARLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How far the log's clock must have moved for another mark, in milliseconds; and how much real time must have passed where it
/// stands.
const MARK_STEP_MS: i64 = 1_000;

/// The last mark.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marked {
    /// When it was last looked whether one is due, by real time.
    pub looked_ms: u64,
    /// When it was said.
    pub said_ms: u64,
    /// What it said.
    pub clock: Hlc,
}

/// Frames of the log that one step reads for the centre: taps wait for the step, and the rest follows in the next one.
const FRAMES_READ_PER_STEP: usize = 4;

/// The link to the centre.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    /// No connection.
    Down,
    /// Connected, no Hello back yet.
    Opening(LinkId),
    /// In session.
    Up(LinkId, u64),
    /// Refused: uploads only.
    Refused(LinkId, u64, RefusalReason),
    /// Accepted, but this database is damaged: uploads only, and nothing is taken in.
    Damaged(LinkId, u64),
    /// The centre has come back from an old copy and takes back what it lacks; until it has, taps are decided without it.
    Returning(LinkId, u64),
}

impl Link {
    /// True while in session: the centre can be asked.
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self, Self::Up(..))
    }

    /// The connection.
    const fn id(&self) -> Option<LinkId> {
        match self {
            Self::Down => None,
            Self::Opening(link)
            | Self::Up(link, _)
            | Self::Refused(link, ..)
            | Self::Damaged(link, _)
            | Self::Returning(link, _) => Some(*link),
        }
    }

    /// As the status shows it.
    pub(crate) const fn state(&self) -> LinkState {
        match self {
            Self::Down => LinkState::Down,
            Self::Opening(_) => LinkState::Opening,
            Self::Up(..) => LinkState::Up,
            Self::Refused(..) | Self::Damaged(..) => LinkState::Refused,
            Self::Returning(..) => LinkState::Returning,
        }
    }

    /// The number of the session.
    pub(crate) const fn session(&self) -> u64 {
        match self {
            Self::Up(_, session)
            | Self::Refused(_, session, _)
            | Self::Damaged(_, session)
            | Self::Returning(_, session) => *session,
            Self::Down | Self::Opening(_) => 0,
        }
    }

    /// Why it was refused, where it was.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            Self::Refused(_, _, reason) => Some(reason.name().to_owned()),
            _ => None,
        }
    }
}

/// True for refusals that mean that this node is no continuation of what the centre knows: its rights are nothing until it
/// is enrolled anew. The others say that the two cannot talk at present, and leave it its rights.
const fn ends_rights(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::StaleGrants
        | RefusalReason::ShortLog
        | RefusalReason::ForkedLog
        | RefusalReason::ForeignGrants
        | RefusalReason::Incarnation
        | RefusalReason::Revoked => true,
        RefusalReason::Version
        | RefusalReason::Identity
        | RefusalReason::CentreBehind
        | RefusalReason::Expired => false,
    }
}

/// What a frame that came too early takes to keep.
fn bytes_of(frame: &Frame) -> usize {
    match frame {
        Frame::Entries(entries) => entries.records.iter().map(|record| record.len()).sum(),
        Frame::Snapshot(signed) => {
            let campus = signed.snapshot.campus.as_ref().map_or(0, |campus| campus.config.len());
            campus + signed.snapshot.posted.len() * size_of::<PostedHead>()
        }
        _ => 0,
    }
}

impl NodeCore {
    /// A connection stands: say Hello.
    pub(crate) fn on_link_up(
        &mut self,
        now: &Now,
        link: LinkId,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        self.drop_link(now, outputs)?;
        self.link = Link::Opening(link);
        self.state.centre_clock.hello(now.elapsed_ms);
        let shards: Vec<LogCursor> = (0..SHARDS)
            .zip(self.state.shards)
            .map(|(shard, cursor)| LogCursor { log: LogId::shard(self.identity.institution, shard), cursor })
            .collect();
        let kept_after = shards.iter().map(|end| self.store.kept_after(end.log, end.cursor));
        let kept_after = kept_after.collect::<Result<_, _>>()?;
        let mut heads = Vec::new();
        for log in shards.iter().map(|end| end.log).chain([self.to_node_log()]) {
            heads.extend(self.store.last_head(log)?);
        }
        // What the step has appended so far must be under a head: the Hello names the end of the log.
        self.sign_head()?;
        let hello = NodeHello {
            version: PROTOCOL_VERSION,
            institution: self.identity.institution,
            node: self.identity.node,
            incarnation: self.identity.incarnation,
            log: self.state.writer.cursor(),
            to_node: self.state.to_node,
            shards,
            countersigned: self.state.saved.countersigned,
            refused: self.state.saved.refused,
            kept_after,
            heads,
            branch: self.state.saved.branch,
        };
        outputs.push(Output::Send(link, Frame::NodeHello(Box::new(hello))));
        Ok(())
    }

    /// The connection is gone.
    pub(crate) fn on_link_down(
        &mut self,
        now: &Now,
        link: LinkId,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        if self.link.id() == Some(link) { self.drop_link(now, outputs) } else { Ok(()) }
    }

    /// Forgets the session; whatever waits for the centre is decided without it.
    fn drop_link(&mut self, now: &Now, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        if self.link.is_up() {
            // The link lived until about now, whatever was said last.
            self.heard(now);
            self.state.dirty = true;
        }
        self.link = Link::Down;
        self.drop_purses(outputs);
        self.drop_naming(outputs)?;
        self.sender = Sender::default();
        self.recalls.clear();
        self.early.clear();
        self.acks.clear();
        self.more_to_send = false;
        self.blocked.clear();
        self.decide_waiting(now, self.queues.accounts(), outputs)
    }

    fn heard(&mut self, now: &Now) {
        self.state.saved.heard = Some(now.wall);
    }

    /// A frame from the centre. A fault in it closes the link and changes nothing.
    pub(crate) fn on_frame(
        &mut self,
        now: &Now,
        link: LinkId,
        frame: Frame,
        outputs: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        if self.link.id() != Some(link) {
            return Ok(());
        }
        let said = outputs.len();
        match self.guarded_frame(|core| core.take_frame(now, link, frame, outputs))? {
            Ok(()) => {
                self.heard(now);
                Ok(())
            }
            Err(what) => {
                outputs.truncate(said);
                // A snapshot that is under way may be what was wrong: it is asked for anew.
                self.store.drop_staged(None)?;
                tracing::error!(%what, "the centre's word is not taken");
                outputs.push(Output::CloseLink(link, what));
                self.drop_link(now, outputs)
            }
        }
    }

    fn take_frame(
        &mut self,
        now: &Now,
        link: LinkId,
        frame: Frame,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        match (frame, self.link) {
            (Frame::CentreHello(hello), _) => {
                self.on_centre_hello(now, link, &hello, outputs)?;
                for early in std::mem::take(&mut self.early) {
                    self.take_frame(now, link, early, outputs)?;
                }
                Ok(())
            }
            (early @ (Frame::Entries(_) | Frame::Fresh(_) | Frame::Snapshot(_)), Link::Opening(_)) => {
                let early_bytes: usize = self.early.iter().map(bytes_of).sum();
                if early_bytes + bytes_of(&early) > EARLY_BYTES_MAX {
                    return Err(Fault::peer("entries, but no Hello"));
                }
                self.early.push(early);
                Ok(())
            }
            (Frame::Entries(entries) | Frame::Fresh(entries), _) => self.on_entries(now, entries, outputs),
            (Frame::Snapshot(signed), _) => self.on_snapshot(now, link, *signed, outputs),
            (Frame::SnapshotPiece(piece), Link::Up(..) | Link::Refused(..) | Link::Damaged(..)) => {
                self.on_piece(now, link, &piece, outputs)
            }
            (Frame::Ack(ack), Link::Up(..) | Link::Refused(..) | Link::Damaged(..) | Link::Returning(..)) => {
                self.on_ack(&ack)
            }
            (Frame::PurseAnswer(answer), Link::Up(..)) => {
                self.on_purse_answer(*answer);
                Ok(())
            }
            (Frame::CodeAnswer(answer), Link::Up(..)) => Ok(self.on_code_answer(now, answer, outputs)?),
            (Frame::No(no), Link::Up(..)) => Ok(self.on_no(now, &no, outputs)?),
            (Frame::Recall(recall), Link::Up(..)) => self.on_recall(now, recall, outputs),
            // What was said before a refusal was known.
            (
                Frame::No(_) | Frame::Recall(_),
                Link::Refused(..) | Link::Damaged(..) | Link::Returning(..),
            ) => Ok(()),
            (Frame::LossNotice(notice), _) => self.on_loss(now, &notice, outputs),
            _ => Err(Fault::peer("a frame out of place")),
        }
    }

    fn on_entries(&mut self, now: &Now, entries: Entries, outputs: &mut Vec<Output>) -> Result<(), Fault> {
        if self.damage.is_some() {
            return Ok(());
        }
        if entries.log == self.own_log() {
            self.on_own_tail(entries)?;
        } else {
            self.on_centre_entries(now, entries, outputs)?;
        }
        self.finish_tail(now)?;
        Ok(self.obey_recalls(now, outputs)?)
    }

    fn on_centre_hello(
        &mut self,
        now: &Now,
        link: LinkId,
        hello: &CentreHello,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        if hello.version != PROTOCOL_VERSION && hello.refused.is_none() {
            return Err(Fault::peer(format!("the centre speaks version {}", hello.version)));
        }
        self.state.centre_clock.answered(hello.time, now.elapsed_ms);
        let ahead_ms = now.wall.ms_since(hello.time);
        if ahead_ms.unsigned_abs() > CLOCK_AHEAD_MS_MAX.unsigned_abs() {
            let (seconds, direction) =
                (ahead_ms.unsigned_abs() / 1_000, if ahead_ms > 0 { "ahead" } else { "behind" });
            tracing::warn!(seconds, direction, "the clock of this machine is not the centre's; set it right");
        }
        if let Some(reason) = hello.refused {
            return self.on_refusal(now, link, hello, reason, outputs);
        }
        let own = self.own_log();
        let end = self.state.writer.cursor().position;
        if hello.log.position > end {
            return Err(Fault::peer("the centre accepts a log that is longer than this one"));
        }
        self.link = match self.state.saved.refused {
            _ if hello.returning.is_some() => Link::Returning(link, hello.session),
            // It was refused before, and only enrolling anew ends that.
            Some(reason) => Link::Refused(link, hello.session, reason),
            None if self.damage.is_some() => Link::Damaged(link, hello.session),
            None => Link::Up(link, hello.session),
        };
        if planted(Canary::StandInRefreshedByFlap) {
            self.store
                .run("UPDATE wallets SET stand_in_left = stand_in_granted")
                .map_err(StoreError::from)?;
        }
        self.sender = Sender::default();
        match hello.branch.filter(|branch| Some(branch.log) == self.state.saved.branch) {
            Some(branch) => self.sender.open(branch.log, branch.after.min(end), end),
            None => self.sender.open(own, hello.log.position, end),
        }
        if hello.log.position < self.state.saved.acked {
            // The centre has come back from an old copy: it gets again what it lacks, and until then it is exposed here.
            tracing::error!(
                holds = hello.log.position,
                acked = self.state.saved.acked,
                "the centre holds less than it has acknowledged"
            );
            self.state.saved.acked = hello.log.position;
            self.state.totals.exposed = self.store.debited(hello.log.position, i64::MAX as u64)?;
        } else if self.hash_at(hello.log.position)? == Some(hello.log.hash) {
            self.note_acked(hello.log.position)?;
        }
        match &hello.returning {
            Some(wanted) => self.give_back(wanted)?,
            None => tracing::info!(session = hello.session, "in session"),
        }
        self.marked.looked_ms = now.mono_ms;
        self.decide_waiting(now, self.queues.accounts(), outputs)?;
        Ok(())
    }

    fn on_ack(&mut self, ack: &Ack) -> Result<(), Fault> {
        let news = self.sender.acked(ack.log, ack.position).map_err(Fault::peer)?;
        // Of what is given back there is nothing to note.
        if !news || ack.log.writer == NodeId::CENTRE {
            return Ok(());
        }
        if let Some(countersigned) = ack.countersignature {
            self.check_countersignature(ack, &countersigned)?;
            if ack.log == self.own_log() {
                self.state.saved.countersigned = Some(countersigned);
            }
        }
        Ok(self.note_acked(ack.position)?)
    }

    fn check_countersignature(&self, ack: &Ack, countersigned: &Countersignature) -> Result<(), Fault> {
        if countersigned.log != ack.log
            || countersigned.cursor.position != ack.position
            || !countersigned.is_signed_by(&self.identity.centre_key)
        {
            return Err(Fault::peer(format!("the countersignature of {} is not the centre's", ack.log)));
        }
        // A branch keeps the hashes that its entries were written with.
        match self.hash_at(ack.position)? {
            Some(hash) if hash == countersigned.cursor.hash => Ok(()),
            _ => Err(Fault::peer(format!("the centre holds another entry at {} {}", ack.log, ack.position))),
        }
    }

    /// The centre holds the log up to here. Kept with the next commit: to forget it costs nothing but a repeat.
    fn note_acked(&mut self, position: u64) -> Result<(), StoreError> {
        let before = self.state.saved.acked;
        if position > before {
            let secured = self.store.debited(before, position)?;
            self.state.totals.exposed -= secured;
            self.state.saved.acked = position;
        }
        Ok(())
    }

    /// Asks for a level, unless this very ask is under way.
    pub(crate) fn ask(
        &mut self,
        now: &Now,
        account: AccountId,
        unit: Unit,
        want: Fen,
        waiting: &mut Waiting,
        outputs: &mut Vec<Output>,
    ) {
        let Link::Up(link, session) = self.link else { return };
        if waiting.asks.note(unit, want, session) {
            let ask = Ask {
                account,
                unit,
                epoch: self.state.saved.epoch,
                want,
                at: self.state.writer.cursor().position,
                ms_left: waiting.deadline_ms().saturating_sub(now.mono_ms),
            };
            outputs.push(Output::Send(link, Frame::Ask(ask)));
        }
    }

    fn on_no(&mut self, now: &Now, no: &No, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        let heard = self.queues.head_mut(no.account).is_some_and(|head| head.asks.hear(no));
        if heard { self.decide_waiting(now, [no.account], outputs) } else { Ok(()) }
    }

    /// A loss that is ahead of its entry. The entry is in the account's own stream, or the notice would
    /// be kept for ever.
    fn on_loss(&mut self, now: &Now, notice: &LossNotice, outputs: &mut Vec<Output>) -> Result<(), Fault> {
        let stream = LogId::shard(self.identity.institution, notice.account.shard());
        let Some(applied) = self.centre_cursor(notice.log).filter(|_| notice.log == stream) else {
            return Err(Fault::peer(format!("a loss of account {} in {}", notice.account, notice.log)));
        };
        if i64::try_from(notice.position).is_err() {
            return Err(Fault::peer(format!("a loss at {}", notice.position)));
        }
        if notice.position <= applied.position {
            return Ok(());
        }
        self.store.put_loss(&notice.card, notice.account, notice.log, notice.position)?;
        self.losses = self.store.losses()?;
        Ok(self.decide_waiting(now, [notice.account], outputs)?)
    }

    /// Sends what the commit of this step makes true: acknowledgements, entries, and the mark of a quiet log.
    pub(crate) fn replicate(&mut self, now: &Now, outputs: &mut Vec<Output>) -> Result<(), StoreError> {
        let link = match self.link {
            Link::Down | Link::Opening(_) => return Ok(()),
            Link::Up(link, _)
            | Link::Refused(link, ..)
            | Link::Damaged(link, _)
            | Link::Returning(link, _) => link,
        };
        for log in std::mem::take(&mut self.acks) {
            if let Some(cursor) = self.centre_cursor(log) {
                let ack = Ack { log, position: cursor.position, countersignature: None };
                outputs.push(Output::Send(link, Frame::Ack(ack)));
            }
        }
        let end = self.state.writer.cursor().position;
        self.sender.extend(self.state.saved.branch.unwrap_or_else(|| self.own_log()), end);
        self.sender.extend(self.own_log(), end);
        let mut read = 0;
        self.more_to_send = false;
        while let Some((log, after)) = self.sender.next_due() {
            if read == FRAMES_READ_PER_STEP {
                self.more_to_send = true;
                break;
            }
            let Some(entries) = self.packed(log, after)? else { break };
            self.sender.sent(log, after + entries.records.len() as u64, false);
            outputs.push(Output::Send(link, Frame::Entries(entries)));
            read += 1;
        }
        self.mark(now, link, outputs);
        Ok(())
    }

    /// The next frame of a log. A branch is the own log under another name, with every head: where records were altered,
    /// each commit is proven by itself.
    fn packed(&self, log: LogId, after: u64) -> Result<Option<Entries>, StoreError> {
        let own = self.own_log();
        if log != own && log.writer != NodeId::CENTRE {
            return self.store.every_commit(own, log, after);
        }
        let records = self.store.records_after(log, after, ENTRIES_PER_FRAME_MAX)?;
        let heads = self.store.heads_after(log, after, ENTRIES_PER_FRAME_MAX)?;
        Ok(pack(log, after, records, heads))
    }

    fn mark(&mut self, now: &Now, link: LinkId, outputs: &mut Vec<Output>) {
        let Marked { looked_ms, said_ms, clock: last } = self.marked;
        if !self.link.is_up() || !self.sender.drained() || now.mono_ms < looked_ms + MARK_INTERVAL_MS {
            return;
        }
        self.marked.looked_ms = now.mono_ms;
        let clock = self.state.writer.clock().max(Hlc::at(now.wall));
        if clock.time().ms_since(last.time()) >= MARK_STEP_MS {
            // No later entry may fall below it, through a restart neither: it is kept in this same commit.
            self.state.writer.observe(clock, now.wall);
            self.heard(now);
            self.state.dirty = true;
        } else if clock.time() <= now.wall || now.mono_ms < said_ms + MARK_STEP_MS.unsigned_abs() {
            return;
        }
        // Where the wall clock was wrong once, the log's clock stands until that time comes. The centre takes what is ahead for its own
        // time; without a mark it would wait for this building with whatever ends once everybody was heard.
        self.marked = Marked { looked_ms: now.mono_ms, said_ms: now.mono_ms, clock };
        let position = self.state.writer.cursor().position;
        outputs.push(Output::Send(link, Frame::Mark(Mark { position, clock })));
    }

    /// True while it is in session with the centre.
    pub const fn in_session(&self) -> bool {
        matches!(self.link, Link::Up(..))
    }

    /// Until when what the centre has to say is known here: losses, withdrawals, grants.
    pub(crate) fn heard_until(&self, now: &Now) -> Option<Timestamp> {
        if self.in_session() { Some(now.wall) } else { self.state.saved.heard }
    }

    /// True where the centre says that this node's certificate has expired.
    pub fn certificate_expired(&self) -> bool {
        matches!(self.link, Link::Refused(_, _, RefusalReason::Expired))
    }

    /// The latest time that the centre has signed, as far as this node has heard.
    pub fn centre_time(&self) -> Timestamp {
        self.state.saved.centre_time.max(self.state.saved.anchor)
    }

    /// At once, where the link has room for more of the log than the last step has read.
    pub(crate) fn next_send(&self) -> Option<u64> {
        self.more_to_send.then_some(0)
    }

    /// When a mark may be due.
    pub(crate) fn next_mark(&self) -> Option<u64> {
        (self.link.is_up() && self.sender.drained()).then_some(self.marked.looked_ms + MARK_INTERVAL_MS)
    }
}
