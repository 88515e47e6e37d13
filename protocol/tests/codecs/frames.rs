//! Whatever a peer may say in a session, as frames.

use feiqian_protocol::code::ShortCode;
use feiqian_protocol::entry::PostedHead;
use feiqian_protocol::frame::{
    Ack, Ask, Branch, CentreHello, CodeAnswer, CodeAsk, Entries, Frame, LogCursor, LossNotice, Mark, No,
    NodeHello, Recall, Recalled, RefusalReason,
};
use feiqian_protocol::ids::{InstitutionId, NodeId};
use feiqian_protocol::snapshot::{CampusState, SignedSnapshot, Snapshot, SnapshotAck, SnapshotPiece};
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::Hlc;
use proptest::array::uniform32;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::purses;
use super::strategies::*;

pub fn frame() -> impl Strategy<Value = Frame> {
    let log_cursors = || vec((log(), cursor()).prop_map(|(log, cursor)| LogCursor { log, cursor }), 0..17);
    let refusal = select(vec![
        RefusalReason::Version,
        RefusalReason::Identity,
        RefusalReason::StaleGrants,
        RefusalReason::ShortLog,
        RefusalReason::ForkedLog,
        RefusalReason::ForeignGrants,
        RefusalReason::Incarnation,
        RefusalReason::CentreBehind,
    ]);
    let node_hello = (
        (any::<u16>(), any::<u16>(), any::<u16>(), any::<u32>()),
        (cursor(), cursor(), log_cursors(), option::of(countersignature())),
        (option::of(refusal.clone()), vec(any::<u64>(), 0..17), vec(signed_head(), 0..3), option::of(log())),
    )
        .prop_map(
            |(
                (version, institution, node, incarnation),
                (log, to_node, shards, countersigned),
                (refused, kept_after, heads, branch),
            )| {
                Frame::NodeHello(Box::new(NodeHello {
                    version,
                    institution: InstitutionId(institution),
                    node: NodeId(node),
                    incarnation,
                    log,
                    to_node,
                    shards,
                    countersigned,
                    refused,
                    kept_after,
                    heads,
                    branch,
                }))
            },
        );
    let branch = (log(), any::<u64>()).prop_map(|(log, after)| Branch { log, after });
    let centre_hello = (
        (any::<u16>(), any::<u64>(), time(), cursor()),
        (option::of(refusal), option::of(branch), option::of(log_cursors())),
    )
        .prop_map(|((version, session, time, log), (refused, branch, returning))| {
            Frame::CentreHello(CentreHello { version, session, time, log, refused, branch, returning })
        });
    let record = entry().prop_map(|entry| entry.to_record().into());
    let entries = (log(), any::<u64>(), vec(record, 1..20), vec(signed_head(), 0..4))
        .prop_map(|(log, first, records, heads)| Frame::Entries(Entries { log, first, records, heads }));
    let ack = (log(), any::<u64>(), option::of(countersignature()))
        .prop_map(|(log, position, countersignature)| Frame::Ack(Ack { log, position, countersignature }));
    let short = (any::<u64>(), any::<u32>()).prop_map(|(alias, digits)| ShortCode { alias, digits });
    let code_ask = (any::<u64>(), short, any::<[u8; 16]>())
        .prop_map(|(request, code, tap)| Frame::CodeAsk(CodeAsk { request, code, tap }));
    let named =
        prop_oneof![(account(), card()).prop_map(Ok), select(DeclineReason::ALL.to_vec()).prop_map(Err)];
    let code_answer =
        (any::<u64>(), named).prop_map(|(request, named)| Frame::CodeAnswer(CodeAnswer { request, named }));
    let ask = (account(), unit(), epoch(), fen(), any::<u64>(), any::<u64>()).prop_map(
        |(account, unit, epoch, want, at, ms_left)| {
            Frame::Ask(Ask { account, unit, epoch, want, at, ms_left })
        },
    );
    let no = (account(), unit(), fen(), any::<bool>(), fen(), any::<u64>()).prop_map(
        |(account, unit, want, r#final, free, unheard_ms)| {
            Frame::No(No { account, unit, want, r#final, free, unheard_ms })
        },
    );
    let recall = (account(), unit(), epoch(), fen(), any::<u64>(), day()).prop_map(
        |(account, unit, epoch, amount, after, from_day)| {
            Frame::Recall(Recall { account, unit, epoch, amount, after, from_day })
        },
    );
    let recalled = (account(), unit(), any::<u64>())
        .prop_map(|(account, unit, at)| Frame::Recalled(Recalled { account, unit, at }));
    let mark = (any::<u64>(), any::<u64>())
        .prop_map(|(position, clock)| Frame::Mark(Mark { position, clock: Hlc::from_bits(clock) }));
    let loss = (account(), card(), log(), any::<u64>()).prop_map(|(account, card, log, position)| {
        Frame::LossNotice(LossNotice { account, card, log, position })
    });
    prop_oneof![
        code_ask,
        code_answer,
        node_hello,
        centre_hello,
        entries,
        ack,
        ask,
        no,
        recall,
        recalled,
        mark,
        loss,
        snapshot(),
        snapshot_piece(),
        snapshot_ack(),
        purses::frame(),
    ]
}

pub fn snapshot() -> impl Strategy<Value = Frame> {
    let posted = (log(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(log, position, hash)| PostedHead {
        log,
        position,
        hash,
    });
    let campus = (any::<u32>(), vec(any::<u8>(), 0..50), any::<bool>())
        .prop_map(|(version, config, unlimited)| CampusState { version, config: config.into(), unlimited });
    let fields = (signed_head(), time(), any::<u64>(), any::<u32>(), uniform32(any::<u8>()));
    (fields, "[0-9a-f]{0,64}", vec(posted, 0..4), option::of(campus), any::<u8>()).prop_map(
        |((end, time, accounts, pieces, digest), projection, posted, campus, byte)| {
            let snapshot = Snapshot { end, time, accounts, pieces, digest, projection, posted, campus };
            Frame::Snapshot(Box::new(SignedSnapshot { snapshot, signature: [byte; 64] }))
        },
    )
}

pub fn snapshot_piece() -> impl Strategy<Value = Frame> {
    (log(), any::<u64>(), any::<u32>(), vec(any::<u8>(), 0..300)).prop_map(
        |(log, position, index, accounts)| {
            Frame::SnapshotPiece(SnapshotPiece { log, position, index, accounts: accounts.into() })
        },
    )
}

pub fn snapshot_ack() -> impl Strategy<Value = Frame> {
    (log(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(log, position, pieces, differs)| {
        Frame::SnapshotAck(SnapshotAck { log, position, pieces, differs })
    })
}
