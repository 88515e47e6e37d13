//! Whatever a peer may say: values of every kind, for properties of the codecs.

use feiqian_protocol::account::{HolderField, Intent};
use feiqian_protocol::chain::{Countersignature, Cursor, Head, SignedHead};
use feiqian_protocol::enrol::{EnrolAnswer, EnrolRequest, Enrolled, Role};
use feiqian_protocol::entry::{
    Access, AccountOpened, Actor, ActorKind, Anchor, Bearer, Body, CampusPublished, CardShown, CaseMoved,
    CaseReason, CloseOrdered, CloseRequest, Closed, CodeUse, Credit, Debit, Decline, Delta, DocumentRenewed,
    Entry, EntryRef, EpochEnd, Grant, Hint, HoldMoved, HoldPlaced, Lost, Measured, NodeEnrolled, Payout,
    PinVerifier, PinVerifiers, Pool, Posted, PostedHead, Proof, Refund, Release, Reversal, Setting,
    SettingAnswered, ShareGrant, ShareRelease, StandInGrant, TakenIn, TapRef, Tombstone, WrongPin,
};
use feiqian_protocol::ids::{
    AccountId, CampusId, CardNumber, Epoch, InstitutionId, Key, LogId, NodeId, NodeName, Unit, Wallet,
};
use feiqian_protocol::issuance::{Issuance, SignedIssuance};
use feiqian_protocol::limits::ACCOUNT_END;
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::pin::{PinDigest, PinGeneration, PinHash, PinKey, TypedPins};
use feiqian_protocol::tap::DeclineReason;
use feiqian_protocol::time::{BusinessDay, Hlc, Timestamp};
use proptest::array::{uniform16, uniform32};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::purses;

/// Kinds that this build knows; any other number is an unknown kind.
pub const KNOWN_KINDS: [u16; 40] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 35, 40, 41, 42, 43,
    44, 45, 46, 47, 50, 51, 52, 53, 60, 61, 70, 71,
];

pub const NAME: &str = "[!#-&(-+\\--~]{1,64}";

pub fn key() -> impl Strategy<Value = Key> {
    NAME.prop_map(|text| Key::new(text).unwrap())
}

pub fn card() -> impl Strategy<Value = CardNumber> {
    NAME.prop_map(|text| CardNumber::new(text).unwrap())
}

pub fn fen() -> impl Strategy<Value = Fen> {
    prop_oneof![any::<i64>(), -300_i64..300].prop_map(Fen::new)
}

pub fn account() -> impl Strategy<Value = AccountId> {
    (0..ACCOUNT_END).prop_map(AccountId)
}

pub fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u32>().prop_map(Epoch)
}

pub fn day() -> impl Strategy<Value = BusinessDay> {
    any::<i32>().prop_map(BusinessDay)
}

pub fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp)
}

pub fn wallet() -> impl Strategy<Value = Wallet> {
    select(Wallet::SPENDING_ORDER.to_vec())
}

pub fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![wallet().prop_map(Unit::Wallet), Just(Unit::Allowance)]
}

pub fn log() -> impl Strategy<Value = LogId> {
    (any::<u16>(), any::<u16>(), any::<u32>()).prop_map(|(institution, writer, stream)| LogId {
        institution: InstitutionId(institution),
        writer: NodeId(writer),
        stream,
    })
}

pub fn cursor() -> impl Strategy<Value = Cursor> {
    (any::<u64>(), uniform32(any::<u8>())).prop_map(|(position, hash)| Cursor { position, hash })
}

pub fn signature() -> impl Strategy<Value = [u8; 64]> {
    (uniform32(any::<u8>()), uniform32(any::<u8>())).prop_map(|(left, right)| {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        bytes
    })
}

pub fn signed_head() -> impl Strategy<Value = SignedHead> {
    (log(), cursor(), any::<u64>(), time(), signature()).prop_map(
        |(log, cursor, applied, anchor, signature)| SignedHead {
            head: Head { log, cursor, applied, anchor },
            signature,
        },
    )
}

pub fn countersignature() -> impl Strategy<Value = Countersignature> {
    (log(), cursor(), signature()).prop_map(|(log, cursor, signature)| Countersignature {
        log,
        cursor,
        signature,
    })
}

pub fn tap() -> impl Strategy<Value = TapRef> {
    (any::<u32>(), key()).prop_map(|(epoch, sequence)| TapRef { epoch, sequence })
}

pub fn unit_price() -> impl Strategy<Value = UnitPrice> {
    (0_u64..10_000_000, 0_usize..8).prop_map(|(digits, scale)| {
        let digits = format!("{digits:08}");
        let (yuan, rest) = digits.split_at(digits.len() - scale);
        let text = if rest.is_empty() { yuan.to_owned() } else { format!("{yuan}.{rest}") };
        text.parse().unwrap()
    })
}

pub fn measured() -> impl Strategy<Value = Measured> {
    (any::<u32>(), unit_price(), any::<u32>()).prop_map(|(quantity, unit_price, tariff_version)| Measured {
        quantity,
        unit_price,
        tariff_version,
    })
}

pub fn code() -> impl Strategy<Value = Option<CodeUse>> {
    let code_use = (any::<u32>(), any::<u16>(), any::<u32>());
    option::of(code_use.prop_map(|(voucher, counter, until)| CodeUse { voucher, counter, until }))
}

pub fn debit() -> impl Strategy<Value = Debit> {
    (
        (tap(), account(), wallet(), epoch(), fen(), fen()),
        (fen(), day(), any::<u16>(), card(), option::of(measured()), code()),
        (option::of(fen()), option::of(any::<u16>())),
    )
        .prop_map(
            |(
                (tap, account, wallet, epoch, from_right, stand_in),
                (allowance, day, merchant, card, measured, code),
                (from_voucher, meal),
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
                meal,
            },
        )
}

pub fn reversal() -> impl Strategy<Value = Reversal> {
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

pub fn grant() -> impl Strategy<Value = Grant> {
    (account(), wallet(), epoch(), fen(), fen(), time()).prop_map(
        |(account, wallet, epoch, amount, total, time)| Grant { account, wallet, epoch, amount, total, time },
    )
}

pub fn intent() -> impl Strategy<Value = Intent> {
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

pub fn pin() -> impl Strategy<Value = PinGeneration> {
    uniform16(any::<u8>()).prop_map(PinGeneration)
}

pub fn entry_ref() -> impl Strategy<Value = EntryRef> {
    (log(), any::<u64>()).prop_map(|(log, position)| EntryRef { log, position })
}

pub fn reason() -> impl Strategy<Value = CaseReason> {
    use CaseReason::{AfterClose, CodeReplayed, Loss, NodeFault, StandIn};
    select(vec![StandIn, AfterClose, Loss, NodeFault, CodeReplayed])
}

pub fn node_body() -> impl Strategy<Value = Body> {
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
    let wrong_pin =
        (account(), any::<u8>()).prop_map(|(account, tries)| Body::from(WrongPin { account, tries }));
    let issuance = (any::<u16>(), account(), card(), option::of(card()), time(), any::<[u8; 32]>()).prop_map(
        |(institution, account, card, replaces, time, half)| {
            let issuance =
                Issuance { institution: InstitutionId(institution), account, card, replaces, time };
            let mut signature = [0; 64];
            signature[16..48].copy_from_slice(&half);
            SignedIssuance { issuance, signature }
        },
    );
    let card_shown = issuance.prop_map(|issuance| Body::from(CardShown { issuance }));
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
        wrong_pin,
        card_shown,
        access,
        share_release,
        (tap(), tap()).prop_map(|(tap, original)| Body::from(Tombstone { tap, original })),
    ]
}

pub fn to_node_body() -> impl Strategy<Value = Body> {
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

pub fn shard_body() -> impl Strategy<Value = Body> {
    let bytes = || vec(any::<u8>(), 0..200);
    let opened = (account(), bytes(), any::<bool>()).prop_map(|(account, document, seasoned)| {
        Body::from(AccountOpened { account, document: document.into(), seasoned })
    });
    let of = option::of(entry_ref());
    let renewed = (account(), bytes())
        .prop_map(|(account, document)| Body::from(DocumentRenewed { account, document: document.into() }));
    let setting = (account(), any::<u32>(), intent(), bytes(), option::of(any::<[u8; 32]>()), of).prop_map(
        |(account, document_epoch, intent, change, pins, of)| {
            let typed = pins.map(|pin| {
                let typed = TypedPins { current: PinHash::new(pin), chosen: PinHash::new(pin) };
                PinKey::new(pin).seal(account, PinGeneration([1; 16]), &typed)
            });
            Body::from(Setting { account, document_epoch, intent, change: change.into(), typed, of })
        },
    );
    let credit =
        (account(), wallet(), fen(), key(), key()).prop_map(|(account, wallet, amount, channel, key)| {
            Body::from(Credit { account, wallet, amount, channel, key })
        });
    let posted = (
        vec(
            (log(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(log, position, hash)| PostedHead {
                log,
                position,
                hash,
            }),
            0..4,
        ),
        vec(
            (account(), wallet(), fen()).prop_map(|(account, wallet, amount)| Delta {
                account,
                wallet,
                amount,
            }),
            0..20,
        ),
        option::of(vec(
            (log(), any::<u64>(), any::<u64>()).prop_map(|(log, first, last)| Lost { log, first, last }),
            0..3,
        )),
    )
        .prop_map(|(heads, deltas, lost)| Body::from(Posted { heads, deltas, lost }));
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
    let placed = (account(), any::<u32>(), fen(), any::<u32>(), any::<u32>(), card(), day()).prop_map(
        |(account, voucher, amount, issued, until, card, day)| {
            Body::from(HoldPlaced { account, voucher, amount, issued, until, card, day })
        },
    );
    let moved = (account(), any::<u32>(), any::<u32>(), fen(), option::of(entry_ref())).prop_map(
        |(account, voucher, until, kept, debit)| {
            Body::from(HoldMoved { account, voucher, until, kept, debit })
        },
    );
    prop_oneof![
        opened, setting, renewed, credit, posted, case, refund, campus, closing, payout, placed, moved
    ]
}

pub fn known_body() -> impl Strategy<Value = Body> {
    prop_oneof![node_body(), to_node_body(), shard_body(), purses::body()]
}

pub fn unknown_body() -> impl Strategy<Value = Body> {
    let kind = any::<u16>().prop_filter("an unknown kind", |kind| !KNOWN_KINDS.contains(kind));
    (kind, any::<bool>(), vec(any::<u8>(), 0..100)).prop_map(|(kind, critical, body)| Body::Unknown {
        kind,
        critical,
        body,
    })
}

pub fn actor() -> impl Strategy<Value = Actor> {
    use ActorKind::{Cashier, Channel, Holder, Kiosk, Operator, System, Terminal};
    let kind = select(vec![System, Terminal, Cashier, Holder, Kiosk, Operator, Channel]);
    use Proof::{Card, CardAndPin, Code, CodeAndPin, Login, None};
    let proof = select(vec![None, Card, CardAndPin, Code, Login, CodeAndPin]);
    (kind, key(), proof).prop_map(|(kind, id, proof)| Actor { kind, id, proof })
}

pub fn with_body(body: impl Strategy<Value = Body>) -> impl Strategy<Value = Entry> {
    (any::<u64>(), any::<u8>(), actor(), body).prop_map(|(clock, campus, actor, body)| Entry {
        clock: Hlc::from_bits(clock),
        campus: CampusId(campus),
        actor,
        body,
    })
}

pub fn entry() -> impl Strategy<Value = Entry> {
    with_body(prop_oneof![9 => known_body(), 1 => unknown_body()])
}

pub fn enrol_request() -> impl Strategy<Value = EnrolRequest> {
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

pub fn enrol_answer() -> impl Strategy<Value = EnrolAnswer> {
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
