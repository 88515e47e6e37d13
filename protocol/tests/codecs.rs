//! Properties of every codec: what was written is read back, and what was not written by us is an error, never a panic.

#![allow(clippy::unwrap_used, clippy::panic)] // A failed unwrap is a failed property.

use feiqian_protocol::account::{HolderField, Intent};
use feiqian_protocol::chain::{Countersignature, Cursor, Head, SignedHead, hex, unhex};
use feiqian_protocol::enrol::{
    self, EnrolAnswer, EnrolCode, EnrolRequest, Enrolled, Role, SealedEnrolRequest,
};
use feiqian_protocol::entry::{
    Access, AccountOpened, Actor, ActorKind, Anchor, Bearer, Body, CampusPublished, CaseMoved, CaseReason,
    CloseOrdered, CloseRequest, Closed, CodeUse, Credit, Debit, Decline, Delta, Entry, EntryRef, EpochEnd,
    Grant, Hint, Measured, NodeEnrolled, Payout, PinVerifier, PinVerifiers, Pool, Posted, PostedHead, Proof,
    RecordError, Refund, Release, Reversal, Setting, SettingAnswered, ShareGrant, ShareRelease, StandInGrant,
    TakenIn, TapRef, Tombstone,
};
use feiqian_protocol::frame::{
    Ack, Ask, Branch, CentreHello, Entries, Frame, FrameError, LogCursor, LossNotice, Mark, No, NodeHello,
    Recall, Recalled, RefusalReason,
};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, Unit, Wallet,
};
use feiqian_protocol::limits::{
    ACCOUNT_END, ENTRIES_PER_FRAME_MAX, FRAME_BYTES_MAX, HELLO_LIST_MAX, RECORD_BYTES_MAX,
};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::pin::{PinDigest, PinGeneration, PinKey};
use feiqian_protocol::snapshot::{CampusState, SignedSnapshot, Snapshot, SnapshotAck, SnapshotPiece};
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::{BusinessDay, Hlc, Timestamp};
use proptest::array::{uniform16, uniform32};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Kinds that this build knows; any other number is an unknown kind.
const KNOWN_KINDS: [u16; 36] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 35, 40, 41, 42, 43, 44, 45,
    46, 50, 51, 52, 60, 61, 70, 71,
];

const NAME: &str = "[!#-&(-+\\--~]{1,64}";

fn key() -> impl Strategy<Value = Key> {
    NAME.prop_map(|text| Key::new(text).unwrap())
}

fn card() -> impl Strategy<Value = CardNumber> {
    NAME.prop_map(|text| CardNumber::new(text).unwrap())
}

fn fen() -> impl Strategy<Value = Fen> {
    prop_oneof![any::<i64>(), -300_i64..300].prop_map(Fen::new)
}

fn account() -> impl Strategy<Value = AccountId> {
    (0..ACCOUNT_END).prop_map(AccountId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u32>().prop_map(Epoch)
}

fn day() -> impl Strategy<Value = BusinessDay> {
    any::<i32>().prop_map(BusinessDay)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

fn wallet() -> impl Strategy<Value = Wallet> {
    select(Wallet::SPENDING_ORDER.to_vec())
}

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![wallet().prop_map(Unit::Wallet), Just(Unit::Allowance)]
}

fn log() -> impl Strategy<Value = LogId> {
    (any::<u16>(), any::<u16>(), any::<u32>()).prop_map(|(institution, writer, stream)| LogId {
        institution: InstitutionId(institution),
        writer: NodeId(writer),
        stream,
    })
}

fn cursor() -> impl Strategy<Value = Cursor> {
    (any::<u64>(), uniform32(any::<u8>())).prop_map(|(position, hash)| Cursor { position, hash })
}

fn signature() -> impl Strategy<Value = [u8; 64]> {
    (uniform32(any::<u8>()), uniform32(any::<u8>())).prop_map(|(left, right)| {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        bytes
    })
}

fn signed_head() -> impl Strategy<Value = SignedHead> {
    (log(), cursor(), any::<u64>(), time(), signature()).prop_map(
        |(log, cursor, applied, anchor, signature)| SignedHead {
            head: Head { log, cursor, applied, anchor },
            signature,
        },
    )
}

fn countersignature() -> impl Strategy<Value = Countersignature> {
    (log(), cursor(), signature()).prop_map(|(log, cursor, signature)| Countersignature {
        log,
        cursor,
        signature,
    })
}

fn tap() -> impl Strategy<Value = TapRef> {
    (any::<u32>(), key()).prop_map(|(epoch, sequence)| TapRef { epoch, sequence })
}

fn unit_price() -> impl Strategy<Value = UnitPrice> {
    (0_u64..10_000_000, 0_usize..8).prop_map(|(digits, scale)| {
        let digits = format!("{digits:08}");
        let (yuan, rest) = digits.split_at(digits.len() - scale);
        let text = if rest.is_empty() { yuan.to_owned() } else { format!("{yuan}.{rest}") };
        text.parse().unwrap()
    })
}

fn measured() -> impl Strategy<Value = Measured> {
    (any::<u32>(), unit_price(), any::<u32>()).prop_map(|(quantity, unit_price, tariff_version)| Measured {
        quantity,
        unit_price,
        tariff_version,
    })
}

fn code() -> impl Strategy<Value = Option<CodeUse>> {
    let code_use = (any::<u32>(), any::<u16>(), any::<u32>());
    option::of(code_use.prop_map(|(voucher, counter, until)| CodeUse { voucher, counter, until }))
}

fn debit() -> impl Strategy<Value = Debit> {
    (
        (tap(), account(), wallet(), epoch(), fen(), fen()),
        (fen(), day(), any::<u16>(), card(), option::of(measured()), code(), option::of(fen())),
    )
        .prop_map(
            |(
                (tap, account, wallet, epoch, from_right, stand_in),
                (allowance, day, merchant, card, measured, code, from_voucher),
            )| Debit {
                tap,
                account,
                wallet,
                epoch,
                from_right,
                stand_in,
                allowance,
                day,
                merchant,
                card,
                measured,
                code,
                from_voucher,
            },
        )
}

fn reversal() -> impl Strategy<Value = Reversal> {
    ((tap(), any::<u64>(), account(), wallet(), epoch()), (fen(), fen(), fen(), fen(), day())).prop_map(
        |((tap, debit, account, wallet, epoch), (right_back, right_home, stand_in_home, back, day))| {
            Reversal {
                tap,
                debit,
                account,
                wallet,
                epoch,
                right_back,
                right_home,
                stand_in_home,
                allowance_back: back,
                day,
            }
        },
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    (account(), wallet(), epoch(), fen(), fen(), time()).prop_map(
        |(account, wallet, epoch, amount, total, time)| Grant { account, wallet, epoch, amount, total, time },
    )
}

fn intent() -> impl Strategy<Value = Intent> {
    prop_oneof![
        (card(), key()).prop_map(|(card, loss)| Intent::ReportLoss { card, loss }),
        (card(), vec(key(), 0..3)).prop_map(|(card, losses)| Intent::LiftLoss { card, losses }),
        (fen(), fen()).prop_map(|(single, daily)| Intent::SetLimits { single, daily }),
        card().prop_map(|card| Intent::IssueCard { card }),
        card().prop_map(|card| Intent::VoidCard { card }),
        key().prop_map(|key| Intent::Freeze { key }),
        vec(key(), 0..3).prop_map(|keys| Intent::Unfreeze { keys }),
        Just(Intent::Close),
        key().prop_map(|group| Intent::JoinGroup { group }),
        key().prop_map(|group| Intent::LeaveGroup { group }),
        (card(), key()).prop_map(|(card, phone)| Intent::ActivateVirtualCard { card, phone }),
        (pin(), vec(pin(), 0..3)).prop_map(|(generation, replaces)| Intent::SetPin { generation, replaces }),
        (pin(), vec(pin(), 0..3))
            .prop_map(|(generation, replaces)| Intent::ResetPin { generation, replaces }),
        (pin(), vec(pin(), 0..3)).prop_map(|(generation, others)| Intent::ConfirmPin { generation, others }),
        (select(HolderField::ALL.to_vec()), option::of(".{0,20}"))
            .prop_map(|(field, value)| Intent::Describe { field, value }),
        card().prop_map(|card| Intent::IssueInactiveCard { card }),
        card().prop_map(|card| Intent::HandOverCard { card }),
        card().prop_map(|card| Intent::ActivateCard { card }),
        (card(), key()).prop_map(|(card, group)| Intent::IssueLegacyCard { card, group }),
    ]
}

fn pin() -> impl Strategy<Value = PinGeneration> {
    uniform16(any::<u8>()).prop_map(PinGeneration)
}

fn entry_ref() -> impl Strategy<Value = EntryRef> {
    (log(), any::<u64>()).prop_map(|(log, position)| EntryRef { log, position })
}

fn reason() -> impl Strategy<Value = CaseReason> {
    use CaseReason::{AfterClose, CodeReplayed, Loss, NodeFault, StandIn};
    select(vec![StandIn, AfterClose, Loss, NodeFault, CodeReplayed])
}

fn node_body() -> impl Strategy<Value = Body> {
    let release = (account(), wallet(), epoch(), fen(), fen()).prop_map(
        |(account, wallet, epoch, amount, released_total)| {
            Body::from(Release { account, wallet, epoch, amount, released_total })
        },
    );
    let taken_in =
        (tap(), account(), wallet(), epoch(), fen()).prop_map(|(tap, account, wallet, epoch, amount)| {
            Body::from(TakenIn { tap, account, wallet, epoch, amount })
        });
    let decline = (
        tap(),
        option::of(account()),
        card(),
        fen(),
        select(DeclineReason::ALL.to_vec()),
        any::<bool>(),
        option::of(any::<u8>()),
    )
        .prop_map(|(tap, account, card, amount, reason, access, pin_tries)| {
            Body::from(Decline { tap, account, card, amount, reason, access, pin_tries })
        });
    let access = (tap(), account(), card(), code())
        .prop_map(|(tap, account, card, code)| Body::from(Access { tap, account, card, code }));
    let share_release = (account(), epoch(), day(), fen()).prop_map(|(account, epoch, from_day, amount)| {
        Body::from(ShareRelease { account, epoch, from_day, amount })
    });
    prop_oneof![
        debit().prop_map(Body::from),
        reversal().prop_map(Body::from),
        release,
        taken_in,
        epoch().prop_map(|epoch| Body::from(EpochEnd { epoch })),
        decline,
        access,
        share_release,
        (tap(), tap()).prop_map(|(tap, original)| Body::from(Tombstone { tap, original })),
    ]
}

fn to_node_body() -> impl Strategy<Value = Body> {
    let share = (account(), epoch(), day(), fen(), fen(), time()).prop_map(
        |(account, epoch, from_day, amount, total, time)| {
            Body::from(ShareGrant { account, epoch, from_day, amount, total, time })
        },
    );
    let hint = (account(), fen(), fen(), fen(), any::<bool>(), any::<bool>()).prop_map(
        |(account, elsewhere_per_day, purchase_mean, elsewhere_per_meal, habit, seasoned)| {
            Body::from(Hint {
                account,
                elsewhere_per_day,
                purchase_mean,
                elsewhere_per_meal,
                habit,
                seasoned,
            })
        },
    );
    let verifier = (account(), pin(), uniform32(any::<u8>())).prop_map(|(account, generation, digest)| {
        PinVerifier { account, generation, digest: PinDigest::new(digest) }
    });
    let pins = vec(verifier, 0..4).prop_map(|verifiers| Body::from(PinVerifiers { verifiers }));
    let role = select(vec![Role::Pos, Role::Door, Role::Kiosk, Role::Desk]);
    let enrolled = (
        any::<u16>(),
        "[a-z][a-z0-9-]{0,20}[a-z]".prop_map(|name| NodeName::new(name).unwrap()),
        role,
        any::<u32>(),
        uniform32(any::<u8>()),
    )
        .prop_map(|(node, name, role, incarnation, log_key)| {
            Body::from(NodeEnrolled { node: NodeId(node), name, role, incarnation, log_key })
        });
    prop_oneof![
        (any::<u64>(), time()).prop_map(|(session, time)| Body::from(Anchor { session, time })),
        grant().prop_map(Body::from),
        grant().prop_map(|grant| Body::from(StandInGrant(grant))),
        epoch().prop_map(|epoch| Body::from(CloseRequest { epoch })),
        (epoch(), any::<u64>())
            .prop_map(|(epoch, declared_head)| Body::from(Closed { epoch, declared_head })),
        share,
        hint,
        (day(), fen(), fen()).prop_map(|(from_day, per_day, habit_only)| Body::from(Pool {
            from_day,
            per_day,
            habit_only
        })),
        enrolled,
        (any::<u64>(), any::<u64>(), option::of(key())).prop_map(|(position, stream_position, refused)| {
            Body::from(SettingAnswered { position, stream_position, refused })
        }),
        pins,
    ]
}

fn shard_body() -> impl Strategy<Value = Body> {
    let bytes = || vec(any::<u8>(), 0..200);
    let opened = (account(), bytes(), any::<bool>()).prop_map(|(account, document, seasoned)| {
        Body::from(AccountOpened { account, document: document.into(), seasoned })
    });
    let setting =
        (account(), any::<u32>(), intent(), bytes()).prop_map(|(account, document_epoch, intent, change)| {
            Body::from(Setting { account, document_epoch, intent, change: change.into() })
        });
    let credit =
        (account(), wallet(), fen(), key(), key()).prop_map(|(account, wallet, amount, channel, key)| {
            Body::from(Credit { account, wallet, amount, channel, key })
        });
    let posted = (
        vec((log(), any::<u64>()).prop_map(|(log, position)| PostedHead { log, position }), 0..4),
        vec(
            (account(), wallet(), fen()).prop_map(|(account, wallet, amount)| Delta {
                account,
                wallet,
                amount,
            }),
            0..20,
        ),
    )
        .prop_map(|(heads, deltas)| Body::from(Posted { heads, deltas }));
    let bearer = select(vec![Bearer::Suspense, Bearer::Holder, Bearer::RiskFund]);
    let case = (entry_ref(), account(), wallet(), reason(), bearer, fen(), fen()).prop_map(
        |(debit, account, wallet, reason, bearer, opened, recovered)| {
            Body::from(CaseMoved { debit, account, wallet, reason, bearer, opened, recovered })
        },
    );
    let refund = (entry_ref(), account(), wallet(), fen(), reason()).prop_map(
        |(debit, account, wallet, amount, reason)| {
            Body::from(Refund { debit, account, wallet, amount, reason })
        },
    );
    let campus = (any::<u32>(), bytes())
        .prop_map(|(version, config)| Body::from(CampusPublished { version, config: config.into() }));
    let closing = (account(), key(), key()).prop_map(|(account, channel, subsidy_channel)| {
        Body::from(CloseOrdered { account, channel, subsidy_channel })
    });
    let payout = (account(), wallet(), fen(), key()).prop_map(|(account, wallet, amount, channel)| {
        Body::from(Payout { account, wallet, amount, channel })
    });
    prop_oneof![opened, setting, credit, posted, case, refund, campus, closing, payout]
}

fn unknown_body() -> impl Strategy<Value = Body> {
    let kind = any::<u16>().prop_filter("an unknown kind", |kind| !KNOWN_KINDS.contains(kind));
    (kind, any::<bool>(), vec(any::<u8>(), 0..100)).prop_map(|(kind, critical, body)| Body::Unknown {
        kind,
        critical,
        body,
    })
}

fn actor() -> impl Strategy<Value = Actor> {
    use ActorKind::{Cashier, Channel, Holder, Kiosk, Operator, System, Terminal};
    let kind = select(vec![System, Terminal, Cashier, Holder, Kiosk, Operator, Channel]);
    use Proof::{Card, CardAndPin, Code, CodeAndPin, Login, None};
    let proof = select(vec![None, Card, CardAndPin, Code, Login, CodeAndPin]);
    (kind, key(), proof).prop_map(|(kind, id, proof)| Actor { kind, id, proof })
}

fn with_body(body: impl Strategy<Value = Body>) -> impl Strategy<Value = Entry> {
    (any::<u64>(), any::<u8>(), actor(), body).prop_map(|(clock, campus, actor, body)| Entry {
        clock: Hlc::from_bits(clock),
        campus: CampusId(campus),
        actor,
        body,
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    with_body(prop_oneof![3 => node_body(), 3 => to_node_body(), 3 => shard_body(), 1 => unknown_body()])
}

fn frame() -> impl Strategy<Value = Frame> {
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
        (option::of(refusal.clone()), vec(any::<u64>(), 0..17), vec(signed_head(), 0..3)),
    )
        .prop_map(
            |(
                (version, institution, node, incarnation),
                (log, to_node, shards, countersigned),
                (refused, kept_after, heads),
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
        snapshot_ack()
    ]
}

fn snapshot() -> impl Strategy<Value = Frame> {
    let posted = (log(), any::<u64>()).prop_map(|(log, position)| PostedHead { log, position });
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

fn snapshot_piece() -> impl Strategy<Value = Frame> {
    (log(), any::<u64>(), any::<u32>(), vec(any::<u8>(), 0..300)).prop_map(
        |(log, position, index, accounts)| {
            Frame::SnapshotPiece(SnapshotPiece { log, position, index, accounts: accounts.into() })
        },
    )
}

fn snapshot_ack() -> impl Strategy<Value = Frame> {
    (log(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(log, position, pieces, differs)| {
        Frame::SnapshotAck(SnapshotAck { log, position, pieces, differs })
    })
}

fn enrol_request() -> impl Strategy<Value = EnrolRequest> {
    let pin_key = option::of(uniform32(any::<u8>()));
    (uniform32(any::<u8>()), vec(any::<u8>(), 0..300), uniform32(any::<u8>()), pin_key).prop_map(
        |(lookup, certificate_request, log_key, pin_key)| EnrolRequest {
            lookup,
            certificate_request: certificate_request.into(),
            log_key,
            pin_key: pin_key.map(PinKey::new),
        },
    )
}

fn enrol_answer() -> impl Strategy<Value = EnrolAnswer> {
    let enrolled = (
        (any::<u16>(), any::<u8>(), any::<u16>(), NAME),
        (select(vec![Role::Pos, Role::Door, Role::Kiosk, Role::Desk]), any::<u32>()),
        (vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300), uniform32(any::<u8>())),
    )
        .prop_map(
            |((institution, campus, node, name), (role, incarnation), (certificate, ca, centre_log_key))| {
                EnrolAnswer::Enrolled(Enrolled {
                    institution: InstitutionId(institution),
                    campus: CampusId(campus),
                    node: NodeId(node),
                    name: NodeName::new(name).unwrap(),
                    role,
                    incarnation,
                    certificate: certificate.into(),
                    ca: ca.into(),
                    centre_log_key,
                })
            },
        );
    prop_oneof![enrolled, ".{0,80}".prop_map(EnrolAnswer::Refused)]
}

/// Where damage is done: flips one bit, then cuts.
fn damaged(bytes: &[u8], bit: prop::sample::Index, end: prop::sample::Index) -> (Vec<u8>, &[u8]) {
    let mut flipped = bytes.to_vec();
    let bit = bit.index(bytes.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    (flipped, &bytes[..end.index(bytes.len())])
}

/// The record of an entry as a newer build might write it: `extra` after the fields of the body and of the record.
fn with_appended_fields(entry: &Entry, extra: &str) -> Vec<u8> {
    let record = entry.to_record();
    let mut d = minicbor::Decoder::new(&record);
    d.array().unwrap();
    for _ in 0..5 {
        d.skip().unwrap();
    }
    let before_body = d.position();
    let body = d.bytes().unwrap();
    let mut body_d = minicbor::Decoder::new(body);
    let body_fields = body_d.array().unwrap().unwrap();
    // Absent last fields are left out, and hold their places with nulls once another one follows.
    let absent_last = match &entry.body {
        Body::Debit(debit) if debit.from_voucher.is_some() => 0,
        Body::Debit(debit) if debit.code.is_some() => 1,
        Body::Debit(debit) => 2 + u64::from(debit.measured.is_none()),
        Body::Access(access) => u64::from(access.code.is_none()),
        Body::Decline(decline) => u64::from(decline.pin_tries.is_none()),
        Body::SettingAnswered(answered) => u64::from(answered.refused.is_none()),
        _ => 0,
    };
    let mut longer_body = Vec::new();
    minicbor::Encoder::new(&mut longer_body).array(body_fields + absent_last + 1).unwrap();
    longer_body.extend_from_slice(&body[body_d.position()..]);
    for _ in 0..absent_last {
        minicbor::Encoder::new(&mut longer_body).null().unwrap();
    }
    minicbor::Encoder::new(&mut longer_body).array(2).unwrap().str(extra).unwrap().u8(7).unwrap();
    let mut longer = Vec::new();
    minicbor::Encoder::new(&mut longer).array(7).unwrap();
    longer.extend_from_slice(&record[1..before_body]);
    minicbor::Encoder::new(&mut longer).bytes(&longer_body).unwrap().str(extra).unwrap();
    longer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_entry_round_trips(entry in entry()) {
        let record = entry.to_record();
        prop_assert!(record.len() <= RECORD_BYTES_MAX);
        let read = Entry::from_record(&record).unwrap();
        prop_assert_eq!(&read, &entry);
        prop_assert_eq!(read.to_record(), record, "equal entries have equal bytes");
    }

    #[test]
    fn a_damaged_record_is_an_error_or_another_entry_but_never_a_panic(
        entry in entry(), bit: prop::sample::Index, end: prop::sample::Index, tail in any::<u8>(),
    ) {
        let record = entry.to_record();
        let (flipped, cut) = damaged(&record, bit, end);
        if let Ok(other) = Entry::from_record(&flipped) {
            other.to_record();
        }
        prop_assert!(Entry::from_record(cut).is_err(), "a prefix of a record is no record");
        let mut longer = record;
        longer.push(tail);
        prop_assert!(Entry::from_record(&longer).is_err(), "nothing may follow a record");
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_any_decoder(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Entry::from_record(&bytes);
        let _ = Frame::from_bytes(&bytes);
        let _ = enrol::decode::<SealedEnrolRequest>(&bytes);
        let _ = enrol::decode::<EnrolAnswer>(&bytes);
        let _ = minicbor::decode::<SignedHead>(&bytes);
        let _ = minicbor::decode::<Countersignature>(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Fen::parse_yuan(&text);
        let _ = text.parse::<EnrolCode>();
        let _ = text.parse::<UnitPrice>();
        let _ = unhex(&text);
    }

    #[test]
    fn an_unknown_kind_is_kept_as_it_is_with_its_critical_bit(entry in with_body(unknown_body())) {
        let record = entry.to_record();
        let read = Entry::from_record(&record).unwrap();
        prop_assert_eq!(read.body.critical(), entry.body.critical());
        prop_assert_eq!(read.body.kind(), entry.body.kind());
        prop_assert_eq!(read.to_record(), record);
    }

    #[test]
    fn fields_that_a_newer_build_appends_are_skipped(
        entry in with_body(prop_oneof![node_body(), to_node_body(), shard_body()]), extra in ".{0,40}",
    ) {
        prop_assert_eq!(Entry::from_record(&with_appended_fields(&entry, &extra)).unwrap(), entry);
    }

    #[test]
    fn every_frame_round_trips(frame in frame()) {
        let bytes = frame.to_bytes();
        prop_assert_eq!(Frame::from_bytes(&bytes).unwrap(), frame);
    }

    #[test]
    fn a_damaged_frame_is_an_error_or_another_frame_but_never_a_panic(
        frame in frame(), bit: prop::sample::Index, end: prop::sample::Index,
    ) {
        let bytes = frame.to_bytes();
        let (flipped, cut) = damaged(&bytes, bit, end);
        let _ = Frame::from_bytes(&flipped);
        prop_assert!(Frame::from_bytes(cut).is_err(), "a prefix of a frame is no frame");
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(matches!(Frame::from_bytes(&longer), Err(FrameError::TrailingBytes)));
    }

    #[test]
    fn enrolment_messages_round_trip(
        request in enrol_request(), answer in enrol_answer(), secret in uniform16(any::<u8>()),
        key in vec(any::<u8>(), 0..60), bit: prop::sample::Index, end: prop::sample::Index,
    ) {
        let code = EnrolCode::new(secret, &key);
        prop_assert_eq!(&code.to_string().parse::<EnrolCode>().unwrap(), &code);
        let mac = code.mac(&request);
        prop_assert!(code.verify(&request, &mac));
        let sealed = SealedEnrolRequest { request, mac };
        let bytes = minicbor::to_vec(&sealed).unwrap();
        prop_assert_eq!(&enrol::decode::<SealedEnrolRequest>(&bytes).unwrap(), &sealed);
        let (flipped, cut) = damaged(&bytes, bit, end);
        prop_assert!(enrol::decode::<SealedEnrolRequest>(cut).is_err());
        if let Ok(other) = enrol::decode::<SealedEnrolRequest>(&flipped) && other != sealed {
            prop_assert!(!code.verify(&other.request, &other.mac), "a MAC is good for one request only");
        }
        let bytes = minicbor::to_vec(&answer).unwrap();
        prop_assert_eq!(enrol::decode::<EnrolAnswer>(&bytes).unwrap(), answer);
        let (flipped, cut) = damaged(&bytes, bit, end);
        let _ = enrol::decode::<EnrolAnswer>(&flipped);
        prop_assert!(enrol::decode::<EnrolAnswer>(cut).is_err());
    }

    #[test]
    fn heads_and_cursors_round_trip(head in signed_head(), countersigned in countersignature()) {
        let bytes = minicbor::to_vec(head).unwrap();
        prop_assert_eq!(minicbor::decode::<SignedHead>(&bytes).unwrap(), head);
        let bytes = minicbor::to_vec(countersigned).unwrap();
        prop_assert_eq!(minicbor::decode::<Countersignature>(&bytes).unwrap(), countersigned);
        prop_assert_eq!(LogId::from_key(head.head.log.institution, head.head.log.key()), head.head.log);
        prop_assert_eq!(unhex(&hex(&head.signature)).unwrap(), head.signature.to_vec());
    }

    #[test]
    fn money_text_round_trips(fen in any::<i64>().prop_map(Fen::new), price in unit_price()) {
        prop_assert_eq!(Fen::parse_yuan(&fen.to_string()).unwrap(), fen);
        let json = serde_json::to_string(&fen).unwrap();
        prop_assert_eq!(serde_json::from_str::<Fen>(&json).unwrap(), fen);
        prop_assert_eq!(price.to_string().parse::<UnitPrice>().unwrap(), price);
        let bytes = minicbor::to_vec(price).unwrap();
        prop_assert_eq!(minicbor::decode::<UnitPrice>(&bytes).unwrap(), price);
    }

    #[test]
    fn a_typed_amount_is_read_exactly(yuan in 0_i64..1_000_000, decimals in 0_i64..100) {
        let fen = Fen::new(yuan * 100 + decimals);
        prop_assert_eq!(Fen::parse_yuan(&format!("{yuan}.{decimals:02}")).unwrap(), fen);
        prop_assert_eq!(Fen::parse_yuan(&format!("{yuan}.{decimals:02}00")).unwrap(), fen);
        let finer = format!("{yuan}.{decimals:02}1");
        prop_assert!(Fen::parse_yuan(&finer).is_err());
    }
}

#[test]
fn the_list_of_known_kinds_is_complete() {
    for kind in KNOWN_KINDS {
        let body = Body::Unknown { kind, critical: true, body: vec![0x80] };
        let entry = Entry { clock: Hlc::default(), campus: CampusId(1), actor: Actor::node(), body };
        let read = Entry::from_record(&entry.to_record());
        assert!(read.is_err(), "kind {kind} has a body of its own, and an empty array is none");
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    assert!(Entry::from_record(&vec![0; RECORD_BYTES_MAX + 1]).is_err());
    assert!(matches!(Frame::from_bytes(&vec![0; FRAME_BYTES_MAX + 1]), Err(FrameError::TooLong(_))));
    let log = LogId::node(InstitutionId(1), NodeId(1));
    for count in [0, ENTRIES_PER_FRAME_MAX + 1] {
        let records = vec![vec![0_u8].into(); count];
        let bytes = Frame::Entries(Entries { log, first: 1, records, heads: Vec::new() }).to_bytes();
        assert!(matches!(Frame::from_bytes(&bytes), Err(FrameError::Entries(n)) if n == count));
    }
    // A list is not decoded beyond what it may have, however little an element takes on the wire.
    let records = vec![Vec::new().into(); 500_000];
    let bytes = Frame::Entries(Entries { log, first: 1, records, heads: Vec::new() }).to_bytes();
    assert!(matches!(Frame::from_bytes(&bytes), Err(FrameError::Malformed(_))));
    let cursor = Cursor { position: 1, hash: [0; 32] };
    let signed = Head { log, cursor, applied: 0, anchor: Timestamp(0) };
    let head = SignedHead { head: signed, signature: [0; 64] };
    for (count, fits) in [(HELLO_LIST_MAX, true), (HELLO_LIST_MAX + 1, false)] {
        let lists: [(usize, usize, usize); 3] = [(count, 0, 0), (0, count, 0), (0, 0, count)];
        for (shards, kept_after, heads) in lists {
            let bytes = Frame::NodeHello(Box::new(NodeHello {
                version: 1,
                institution: InstitutionId(1),
                node: NodeId(1),
                incarnation: 1,
                log: cursor,
                to_node: cursor,
                shards: vec![LogCursor { log, cursor }; shards],
                countersigned: None,
                refused: None,
                kept_after: vec![0; kept_after],
                heads: vec![head; heads],
            }))
            .to_bytes();
            assert_eq!(Frame::from_bytes(&bytes).is_ok(), fits, "{shards} {kept_after} {heads}");
        }
    }
    // An array that claims 2^32 records, in a frame of a few bytes.
    let claim = [0x82, 0x02, 0x81, 0x84, 0x83, 1, 1, 0, 1, 0x9a, 0xff, 0xff, 0xff, 0xff];
    assert!(Frame::from_bytes(&claim).is_err());
}

#[test]
fn nothing_may_follow_the_body_within_a_record() {
    let body = Body::from(EpochEnd { epoch: Epoch(1) });
    let entry = Entry { clock: Hlc::default(), campus: CampusId(1), actor: Actor::node(), body };
    let record = entry.to_record();
    // The body is the record's last three bytes: a length, and an array of one number.
    let (before, body) = record.split_at(record.len() - 3);
    assert_eq!(body, [0x42, 0x81, 1]);
    let longer = [before, &[0x43, 0x81, 1, 0]].concat();
    assert!(matches!(Entry::from_record(&longer), Err(RecordError::TrailingBytes)));
}

#[test]
fn an_account_beyond_all_numbers_is_no_account() {
    for (number, is_one) in [(0, true), (ACCOUNT_END - 1, true), (ACCOUNT_END, false), (u64::MAX, false)] {
        let bytes = minicbor::to_vec(AccountId(number)).unwrap();
        assert_eq!(minicbor::decode::<AccountId>(&bytes).is_ok(), is_one, "{number}");
    }
}

#[test]
fn sums_of_what_a_peer_may_say_do_not_overflow() {
    for extreme in [Fen::new(i64::MIN), Fen::new(i64::MAX)] {
        let sum = extreme.saturating_add(extreme);
        assert_eq!((-sum).is_negative(), extreme.is_positive());
    }
}

#[test]
fn every_refusal_has_its_own_name() {
    use RefusalReason as R;
    let all = [
        R::Version,
        R::Identity,
        R::StaleGrants,
        R::ShortLog,
        R::ForkedLog,
        R::ForeignGrants,
        R::Incarnation,
        R::CentreBehind,
    ];
    let names: std::collections::BTreeSet<_> = all.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), all.len());
}
