//! What targets start from: real encodings of everything, and scripts by chance. And small changes of what is there, for
//! running a corpus without libFuzzer.

use std::path::{Path, PathBuf};

use feiqian_protocol::campus::Mode;
use feiqian_protocol::chain::{Countersignature, Cursor, Head};
use feiqian_protocol::code::{Code, PhoneAlgorithm, PhoneSecret, Voucher};
use feiqian_protocol::enrol::{
    EnrolAnswer, EnrolCode, EnrolRequest, Enrolled, RenewAnswer, RenewRequest, Role, SealedEnrolRequest,
};
use feiqian_protocol::entry::{Body, Entry, PostedHead};
use feiqian_protocol::frame::{
    Ack, Ask, Branch, CentreHello, Entries, Frame, LOG_FILE_MAGIC, LogCursor, LossNotice, Mark, No,
    NodeHello, PROTOCOL_VERSION, Recall, Recalled, RefusalReason,
};
use feiqian_protocol::ids::{AccountId, CampusId, Epoch, InstitutionId, LogId, NodeId, NodeName, Wallet};
use feiqian_protocol::limits::SHARDS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinKey;
use feiqian_protocol::snapshot::{
    AccountState, CampusState, PieceDigest, PieceWriter, SignedSnapshot, Snapshot, SnapshotAck, SnapshotPiece,
};
use feiqian_protocol::time::Hlc;
use feiqian_sim::seed::Seed;
use minicbor::Encode;

use super::codecs::key;
use super::documents::{body_of, samples};
use super::script::{INSTITUTION, START, Script};

/// Scripts by chance, and the bytes of each.
const SCRIPTS: u64 = 16;
const SCRIPT_BYTES: u64 = 600;

/// Records of each kind of writer.
const RECORDS: u64 = 24;

/// Changes of one input are at most so long.
const MUTATED_BYTES_MAX: usize = 4_096;

/// Where the corpus of a target is.
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// What a target starts from.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "accounts" => texts(&[ACCOUNTS, "card,patron_class,opening_fen\nc1,student,5\nc1,student,-1\n,,\n"]),
        "campus" => campuses(),
        "configuration" => texts(&[
            include_str!("../../../deploy/node.example.toml"),
            include_str!("../../../deploy/reconcile.example.toml"),
            "data_dir = \"d\"\ncentre = \"[::1]:7443\"\nask_deadline_ms = 5\nidle_timeout_ms = 100\ndriven_clock = true\n",
        ]),
        "control" => texts(&COMMANDS),
        "document" => documents(),
        "enrolment" => enrolments(),
        "frame" => frames().iter().map(Frame::to_bytes).collect(),
        "heads" => heads(),
        "history" => texts(&[HISTORY]),
        "log_file" => log_files(),
        "names" => texts(&NAMES).into_iter().chain(codes()).collect(),
        "piece" => vec![[&[1][..], &piece()].concat()],
        "record" => entries().iter().map(Entry::to_record).collect(),
        "terminal" => texts(&REQUESTS),
        "card" | "centre" | "chain" | "node" | "replicas" => {
            let from = target.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
            (0..SCRIPTS).map(|number| script(from + number)).collect()
        }
        _ => Vec::new(),
    }
}

fn script(seed: u64) -> Vec<u8> {
    let mut seed = Seed::new(seed);
    let length = 40 + seed.below(SCRIPT_BYTES - 40);
    (0..length).map(|_| seed.draw() as u8).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const ACCOUNTS: &str = "\u{feff}opening_fen, card,patron_class,groups,daily_limit_fen,subsidy_fen,single_limit_fen\n\
                        500,c1,student,a b,,100,\n0,c2,staff,,7,,5000\n";

const HISTORY: &str = "\u{feff}amount_fen,till, card,node,time\n450,7,c1,canteen,2025-09-08T11:30\n\
                       80,7,c2,shop,2025-09-08T11:30:05\n";

const NAMES: [&str; 14] = [
    "12.34",
    "-0.05",
    "0.0240",
    "79228162514264337593543950335",
    "c00001",
    "cash",
    "subsidy",
    "pos",
    "hybrid",
    "centre.example.edu:7443",
    "[::1]:7443",
    "07070707070707070707070707070707-00000000000000000000000000000000",
    "00ff0A",
    "\u{540d}",
];

/// The first byte of each says which kind of request it is.
const REQUESTS: [&str; 7] = [
    "0{\"epoch\":1,\"sequence\":\"269-1\",\"card\":\"c02346\",\"kind\":\"purchase\",\"amount_fen\":1250}",
    "0{\"epoch\":1,\"sequence\":\"269-1\",\"card\":\"c02346\",\"kind\":\"purchase\",\"amount\":\"12.50\"}",
    "0{\"epoch\":1,\"sequence\":\"269-1\",\"card\":\"c02346\",\"kind\":\"purchase\",\"quantity\":552}",
    "0{\"epoch\":1,\"sequence\":\"269-1\",\"card\":\"c02346\",\"kind\":\"access\",\"pin\":null}",
    "1{\"epoch\":1,\"sequence\":\"270-1\",\"original\":{\"epoch\":1,\"sequence\":\"269-1\"},\"amount_fen\":1}",
    "1{\"epoch\":1,\"sequence\":\"270-1\",\"original\":{\"epoch\":4294967295,\"sequence\":\"a\"},\"amount\":\"0.01\"}",
    "2{\"card\":\"c02346\"}",
];

const COMMANDS: [&str; 15] = [
    "{\"command\":\"status\"}",
    "{\"command\":\"clock\",\"now_ms\":1667800000000}",
    "{\"command\":\"import_accounts\",\"accounts\":[{\"card\":\"c1\",\"patron_class\":\"student\",\"opening_fen\":5}]}",
    "{\"command\":\"topup\",\"card\":\"c1\",\"amount_fen\":100,\"wallet\":\"subsidy\",\"channel\":\"counter\",\"key\":\"k1\"}",
    "{\"command\":\"report_loss\",\"card\":\"c1\",\"operator\":\"li\"}",
    "{\"command\":\"lift_loss\",\"card\":\"c1\",\"operator\":\"li\"}",
    "{\"command\":\"publish_campus\",\"config\":{\"institution\":1}}",
    "{\"command\":\"create_enrolment\",\"name\":\"n1\",\"role\":\"pos\",\"lookup\":\"00\",\"secret\":\"00\"}",
    "{\"command\":\"look_up_enrolment\",\"lookup\":\"00\"}",
    "{\"command\":\"enrol\",\"lookup\":\"00\",\"log_key\":\"00\"}",
    "{\"command\":\"retire\",\"node\":\"n1\",\"force\":true}",
    "{\"command\":\"revoke\",\"node\":\"n1\",\"enrolment\":2}",
    "{\"command\":\"renew\",\"node\":3,\"incarnation\":1}",
    "{\"command\":\"import_log\",\"frame\":\"00\",\"branch\":1}",
    "{\"command\":\"status\",\"now_ms\":5}",
];

/// A code in its three forms, and its voucher.
fn codes() -> Vec<Vec<u8>> {
    let secret = PhoneSecret::new(PhoneAlgorithm::P256, &[1; 32]).expect("a small number is a secret");
    let voucher = Voucher {
        institution: InstitutionId(1),
        centre_key: 1,
        account: AccountId(1),
        number: 1,
        issued: 1_788_235_200,
        life_minutes: 60,
        ceiling: Fen::ZERO,
        phone: secret.key(),
    };
    let voucher = voucher.sign(&ed25519_dalek::SigningKey::from_bytes(&[1; 32])).expect("every field fits");
    let code = Code::sign(&voucher, &secret, 1_788_235_200, 1).expect("the counter is 1");
    vec![
        code.to_digits().into_bytes(),
        code.to_base64url().into_bytes(),
        voucher.to_base64url().into_bytes(),
        code.to_bytes(),
    ]
}

fn campuses() -> Vec<Vec<u8>> {
    let json = super::node::campus(Mode::Optimistic).to_bytes().expect("a small configuration");
    vec![json, include_bytes!("../../../deploy/campus.example.toml").to_vec()]
}

fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for number in 0..RECORDS {
        let bytes = script(1_000 + number);
        let mut script = Script::new(&bytes);
        let bodies: [Body; 3] = [
            script.node_body(Epoch::FIRST, number),
            script.to_node_body(Epoch::FIRST),
            script.shard_body(AccountId(1), |_| samples().1.clone()),
        ];
        for body in bodies {
            let (clock, actor) = (Hlc::at(START.plus_ms(number as i64)), script.actor());
            entries.push(Entry { clock, campus: CampusId(1), actor, body });
        }
    }
    entries
}

fn frames() -> Vec<Frame> {
    let (node, epoch) = (NodeId(1), Epoch::FIRST);
    let log = LogId::node(INSTITUTION, node);
    let cursor = Cursor { position: 7, hash: [3; 32] };
    let countersignature = Some(Countersignature::sign(log, cursor, &key()));
    let shards = (0..SHARDS).map(|shard| LogCursor { log: LogId::shard(INSTITUTION, shard), cursor });
    let hello = |refused, branch: Option<Branch>| {
        let (version, session, time) = (PROTOCOL_VERSION, 3, START);
        let returning = branch.is_some().then(|| vec![LogCursor { log, cursor }]);
        Frame::CentreHello(CentreHello { version, session, time, log: cursor, refused, branch, returning })
    };
    let bytes = script(2_000);
    let mut script = Script::new(&bytes);
    let (account, unit, card) = (AccountId(1), script.unit(), script.card());
    let batch = |first: usize, count| {
        let records =
            entries().iter().skip(first).take(count).map(|entry| entry.to_record().into()).collect();
        let heads = vec![Head { log, cursor, applied: 5, anchor: START }.sign(&key())];
        Frame::Entries(Entries { log, first: 1, records, heads })
    };
    vec![
        Frame::NodeHello(Box::new(NodeHello {
            version: PROTOCOL_VERSION,
            institution: INSTITUTION,
            node,
            incarnation: 1,
            log: cursor,
            to_node: cursor,
            shards: shards.collect(),
            countersigned: countersignature,
            refused: Some(RefusalReason::ForkedLog),
            kept_after: vec![4; 2],
            heads: vec![Head { log, cursor, applied: 5, anchor: START }.sign(&key())],
            branch: Some(LogId::branch(INSTITUTION, node, 1)),
        })),
        hello(None, None),
        hello(
            Some(RefusalReason::ForkedLog),
            Some(Branch { log: LogId::branch(INSTITUTION, node, 1), after: 4 }),
        ),
        batch(0, 1),
        batch(1, 9),
        Frame::Ack(Ack { log, position: 7, countersignature }),
        Frame::Ack(Ack { log, position: 7, countersignature: None }),
        Frame::Ask(Ask { account, unit, epoch, want: script.fen(), at: 7, ms_left: 300 }),
        Frame::No(No { account, unit, want: script.fen(), r#final: true, free: script.fen(), unheard_ms: 0 }),
        Frame::Recall(Recall {
            account,
            unit,
            epoch,
            amount: script.fen(),
            after: 9,
            from_day: script.day(),
        }),
        Frame::Recalled(Recalled { account, unit, at: 7 }),
        Frame::Mark(Mark { position: 7, clock: Hlc::at(START) }),
        Frame::LossNotice(LossNotice { account, card, log: LogId::shard(INSTITUTION, 1), position: 9 }),
        Frame::Snapshot(Box::new(snapshot(cursor))),
        Frame::SnapshotPiece(SnapshotPiece {
            log: LogId::shard(INSTITUTION, 1),
            position: 7,
            index: 0,
            accounts: piece().into(),
        }),
        Frame::SnapshotAck(SnapshotAck {
            log: LogId::shard(INSTITUTION, 1),
            position: 7,
            pieces: 1,
            differs: false,
        }),
    ]
}

fn piece() -> Vec<u8> {
    let mut writer = PieceWriter::default();
    writer.add(&AccountState {
        account: AccountId(1),
        document: vec![7; 40].into(),
        settings: "{}".to_owned(),
        heads: vec![vec![1; 32].into()],
        balances: vec![(Wallet::Cash, Fen::new(5))],
    });
    writer.finish().unwrap_or_default()
}

fn snapshot(cursor: Cursor) -> SignedSnapshot {
    let log = LogId::shard(INSTITUTION, 1);
    let snapshot = Snapshot {
        end: Head { log, cursor, applied: 0, anchor: START }.sign(&key()),
        time: START,
        accounts: 1,
        pieces: 1,
        digest: PieceDigest::default().with(&piece()).0,
        projection: String::new(),
        posted: vec![PostedHead { log: LogId::node(INSTITUTION, NodeId(1)), position: 7, hash: [7; 32] }],
        campus: Some(CampusState { version: 1, config: vec![b'{', b'}'].into(), unlimited: false }),
    };
    snapshot.sign(&key())
}

fn encoded(value: impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a Vec cannot fail")
}

fn heads() -> Vec<Vec<u8>> {
    let log = LogId::node(INSTITUTION, NodeId(1));
    let cursor = Cursor { position: 7, hash: [3; 32] };
    // Of another key than the target's, which says that nobody signed what it is given.
    let other = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    vec![
        encoded(Head { log, cursor, applied: 5, anchor: START }.sign(&other)),
        encoded(Countersignature::sign(log, cursor, &other)),
    ]
}

fn enrolments() -> Vec<Vec<u8>> {
    let code = EnrolCode { secret: [8; 16], ca: [0; 16] };
    let request = EnrolRequest {
        lookup: code.lookup(),
        certificate_request: vec![0x30; 40].into(),
        log_key: key().verifying_key().to_bytes(),
        pin_key: Some(PinKey::new([5; 32])),
    };
    let mac = code.mac(&request);
    let enrolled = Enrolled {
        institution: INSTITUTION,
        campus: CampusId(1),
        node: NodeId(3),
        name: NodeName::new("canteen").expect("letters make a name"),
        role: Role::Kiosk,
        incarnation: 1,
        certificate: vec![0x30; 40].into(),
        ca: vec![0x30; 20].into(),
        centre_log_key: [5; 32],
    };
    vec![
        encoded(SealedEnrolRequest { request, mac }),
        encoded(EnrolAnswer::Enrolled(enrolled)),
        encoded(EnrolAnswer::Refused("no such code".to_owned())),
        encoded(RenewRequest { version: PROTOCOL_VERSION }),
        encoded(RenewAnswer::Renewed(vec![0x30; 40].into())),
        encoded(RenewAnswer::Refused("not now".to_owned())),
    ]
}

fn log_files() -> Vec<Vec<u8>> {
    let framed = |frame: &Frame| {
        let bytes = frame.to_bytes();
        let length = u32::try_from(bytes.len()).expect("a frame is shorter than its bound");
        [&length.to_be_bytes()[..], &bytes].concat()
    };
    let frames: Vec<u8> = frames()[3..5].iter().flat_map(framed).collect();
    vec![[&LOG_FILE_MAGIC[..], &frames].concat(), frames]
}

/// The first byte says what the rest is; see [`super::documents::document`].
fn documents() -> Vec<Vec<u8>> {
    let (document, change) = samples();
    let with = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
    vec![
        with(0, document),
        with(1, change),
        with(2, body_of(document)),
        [&[3, 0][..], body_of(change)].concat(),
        with(4, &script(3_000)[..40]),
        with(5, &script(3_001)[..40]),
    ]
}

/// The input with a few bytes changed, left out, said twice, or put in.
pub fn mutated(input: &[u8], other: &[u8], seed: &mut Seed) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=seed.below(4) {
        let at = seed.index(bytes.len() + 1);
        let end = (at + seed.index(16)).min(bytes.len());
        match seed.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let from = seed.index(other.len());
                let part = &other[from..(from + seed.index(32)).min(other.len())];
                bytes.splice(at..end, part.iter().copied());
            }
            4 => bytes.insert(at, seed.draw() as u8),
            _ if at < bytes.len() => {
                bytes[at] = seed.pick(&[0, 1, 0x7f, 0x80, 0x9f, 0xff]).copied().unwrap_or(0)
                    ^ (seed.draw() as u8 & 7);
            }
            _ => {}
        }
    }
    bytes.truncate(MUTATED_BYTES_MAX);
    bytes
}
