//! Every bound of the system, each with its reason.

use crate::money::Fen;

/// Account shards of the centre. Fixed at init: an account's shard is its number modulo this.
pub const SHARDS: u8 = 16;

/// Numbers of accounts stay below this, so that an account and its wallet together fit the key of a table.
pub const ACCOUNT_END: u64 = 1 << 60;

/// Largest single amount, in fen (¥100,000): far above any purchase or top-up, and small enough that 2^63 fen holds
/// the sum of 900 thousand million of them.
pub const AMOUNT_FEN_MAX: Fen = Fen::new(10_000_000);

/// Largest total or sum in anything that a peer says: far above all the money of an institution, and small enough that
/// two thousand of them fit in 64 bits. What is beyond it is no amount.
pub const SUM_FEN_MAX: Fen = Fen::new(1 << 52);

/// Largest measured quantity of one tap (grams, millilitres, seconds).
pub const QUANTITY_MAX: u32 = 1_000_000;

/// Longest name: terminal, card, node, key, patron class.
pub const NAME_BYTES_MAX: usize = 64;

/// Largest entry record. A setting change of a large document is the largest thing that is logged.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Entries in one frame: what stands between two signed heads always fits.
pub const ENTRIES_PER_FRAME_MAX: usize = 256;

/// Elements of a list in a frame that are decoded before the list is judged: an element may be one byte on the wire and
/// takes some tens of bytes in memory.
pub const FRAME_LIST_MAX: usize = 1_024;

/// Elements of a list in a Hello: there is one for each stream of the centre that the node has, and each may cost a look-up
/// and the check of a signature.
pub const HELLO_LIST_MAX: usize = 64;

/// So many milliseconds after something that somebody waited for, the next one is likely: until then both ends take backlogs in short
/// steps.
pub const BUSY_FOR_MS: u64 = 1_000;

/// Entries that a sender puts into one frame before it starts the next one, and entries between two signed heads of one
/// commit. A frame is the least that a step takes: so many are a millisecond or two of work at their receiver, for which
/// everything else there waits, and a signature for so many still costs little.
pub const ENTRIES_PER_FRAME_TARGET: usize = 32;

/// Payload of records that a sender puts into one frame before it starts the next one; the same holds of it.
pub const FRAME_RECORDS_BYTES_TARGET: usize = 32 * 1024;

/// Largest frame on the wire, length prefix excluded. A receiver allocates nothing for a longer one.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Frames of one log that one side of a session may have under way unacknowledged: what a receiver may have to hold. Enough
/// to keep a link of 20 ms busy.
pub const FRAMES_IN_FLIGHT_MAX: usize = 64;

/// Largest enrolment request or answer.
pub const ENROL_BYTES_MAX: usize = 16 * 1024;

/// How long an enrolment code is valid, in seconds of real time.
pub const ENROL_CODE_SECONDS: i64 = 15 * 60;

/// Tries against one enrolment code before it is void.
pub const ENROL_TRIES_MAX: u32 = 5;

/// How far ahead a received clock may push ours, in milliseconds.
pub const CLOCK_AHEAD_MS_MAX: i64 = 60_000;

/// Deadline of an ask, in milliseconds of real time, from tap to answer; then the offline policy decides.
pub const ASK_DEADLINE_MS: u64 = 300;

/// Longest that an ask may wait at the centre, in milliseconds, whatever it says of its deadline; no node waits longer.
pub const ASK_DEADLINE_MS_MAX: u64 = 10_000;

/// Asks of one node that may wait at the centre. What comes beyond it is not answered, so that node decides by itself.
pub const ASKS_PER_NODE_MAX: usize = 1_024;

/// Pending taps at one node. A terminal has one tap at a time, so this is a bound on terminals.
pub const PENDING_TAPS_MAX: usize = 4_096;

/// Inputs that one step of a core takes together: the size of a group commit.
pub const INPUTS_PER_STEP_MAX: usize = 256;

/// Inputs that may wait before a core; beyond it the caller is told to slow down.
pub const INPUT_QUEUE_MAX: usize = 4_096;

/// Frames that may wait for one link; beyond it the link is closed and resumes from its cursors.
pub const LINK_QUEUE_MAX: usize = 1_024;

/// Largest body of a terminal's HTTP request.
pub const HTTP_BODY_BYTES_MAX: usize = 16 * 1024;

/// Largest campus configuration.
pub const CAMPUS_CONFIG_BYTES_MAX: usize = 60 * 1024;

/// Parts of a day that one time table of doors has at most: more is a mistake in the file.
pub const SPANS_MAX: usize = 16;

/// Meal periods of a campus at most: more is a mistake in the file.
pub const MEALS_MAX: usize = 16;

/// Largest account document, saved.
pub const DOCUMENT_BYTES_MAX: usize = 48 * 1024;

/// Of it kept free for changes that take possibilities away, such as a report of loss; and as much again is kept free of
/// changes by nodes, so that the centre can lift what a node has reported.
pub const DOCUMENT_BYTES_KEPT: usize = 12 * 1024;

/// Of it kept free for replicas, which may save the same document in somewhat more bytes.
pub const DOCUMENT_BYTES_SLACK: usize = 1024;

/// Changes in an account document before the centre begins it anew: a holder makes some a year, and every change makes each later one
/// dearer to read.
pub const DOCUMENT_CHANGES_MAX: u64 = 256;

/// A document of more bytes is begun anew after an eighth of them: before it has no room for what does not narrow.
pub const DOCUMENT_BYTES_WORN: usize = 16 * 1024;

/// Operations (or changes) in one account document: more than fit into its bytes where each says something of its own.
pub const DOCUMENT_OPERATIONS_MAX: u64 = 16 * 1024;

/// Bytes of a document's columns, inflated.
pub const DOCUMENT_INFLATED_BYTES_MAX: usize = 1024 * 1024;

/// Operations in one change of an account document: an intent is some, a lift of many reports one for each.
pub const CHANGE_OPERATIONS_MAX: u64 = 1024;

/// Reports of loss that an account may have by nodes: far more than kiosks at which one holder may stand, and few enough
/// that an account fits a piece of a snapshot.
pub const LOSSES_PER_ACCOUNT_MAX: usize = 256;

/// Reports of loss that one setting lifts; more are lifted by several settings, since each stands in it twice.
pub const LOSSES_PER_LIFT_MAX: usize = 128;

/// Digits of a payment PIN, as campus cards have them.
pub const PIN_DIGITS: usize = 6;

/// Wrong PINs in a row at one node after which the PIN is locked there: with a million PINs, three guesses at each building
/// of a large campus stay far below one in a thousand.
pub const PIN_TRIES_MAX: u8 = 3;

/// Argon2id of a PIN: memory in KiB, passes, lanes. One of the equally strong settings of the OWASP Password Storage Cheat
/// Sheet, the one with the least memory: a node is a small machine, and hashes while taps are decided. A PIN has a million
/// values only, so no setting makes a stolen hash safe (RFC 9106 section 4 has the trade); this one makes each guess cost
/// some tens of milliseconds.
pub const PIN_ARGON2_KIB: u32 = 7 * 1024;
/// See [`PIN_ARGON2_KIB`].
pub const PIN_ARGON2_PASSES: u32 = 5;
/// See [`PIN_ARGON2_KIB`].
pub const PIN_ARGON2_LANES: u32 = 1;

/// PINs that an account may have at once: more than kiosks at which one holder may stand, and few in a document.
pub const PINS_PER_ACCOUNT_MAX: usize = 16;

/// What a paying voucher holds where that is not said, in fen: the usual no-PIN limit of a purchase.
pub const VOUCHER_CEILING_FEN_DEFAULT: Fen = Fen::new(2_000);

/// What a voucher may hold, in fen: what a stolen phone, or a second building that cannot know of the first, may cost.
pub const VOUCHER_CEILING_FEN_MAX: Fen = Fen::new(20_000);

/// Vouchers of an account that may hold money at once: those that phones have spent and whose receipts are under way, and one
/// to spend for each phone.
pub const HOLDS_PER_ACCOUNT_MAX: usize = 8;

/// Verifiers of PINs in one entry, so that it fits a record and is a millisecond of work; and a step writes one such entry
/// for a node, since taps wait for it.
pub const PIN_VERIFIERS_PER_ENTRY_MAX: usize = 256;

/// Deltas or heads in one posted batch entry, so that it fits a record.
pub const DELTAS_PER_POSTED_MAX: usize = 2_000;

/// Bytes of accounts that a piece of a snapshot holds before the next one starts: a unit of work of a few milliseconds.
pub const SNAPSHOT_PIECE_BYTES_TARGET: usize = 64 * 1024;

/// Largest piece: one that was almost full, and the largest account in it, whose settings take a few times the bytes that
/// they take in its document.
pub const SNAPSHOT_PIECE_BYTES_MAX: usize = 512 * 1024;

/// Pieces under way unacknowledged, for which their receiver needs no more than a few of its largest frames.
pub const SNAPSHOT_PIECES_IN_FLIGHT_MAX: u32 = 8;

/// How long the centre and the nodes keep the entries of account streams that a snapshot stands for, by the centre's time: a
/// backup of the centre that is younger than this can be completed from what the nodes hold.
pub const STREAM_KEPT_MS: i64 = 30 * 24 * 3_600_000;

/// Logs of which a snapshot says how far they are posted: every node that a campus may have had, so that it fits a frame.
pub const SNAPSHOT_POSTED_MAX: usize = 16_384;

const _: () = assert!(SNAPSHOT_PIECE_BYTES_MAX < FRAME_BYTES_MAX - 1_024);
const _: () = assert!(SNAPSHOT_POSTED_MAX * 32 + CAMPUS_CONFIG_BYTES_MAX < FRAME_BYTES_MAX - 4_096);
const _: () = assert!(FRAME_RECORDS_BYTES_TARGET + RECORD_BYTES_MAX + 64 * 1024 < FRAME_BYTES_MAX);
const _: () = assert!(CAMPUS_CONFIG_BYTES_MAX < RECORD_BYTES_MAX && DOCUMENT_BYTES_MAX < RECORD_BYTES_MAX);
const _: () =
    assert!(ENTRIES_PER_FRAME_TARGET <= ENTRIES_PER_FRAME_MAX && FRAMES_IN_FLIGHT_MAX < LINK_QUEUE_MAX);
const _: () = assert!(PIN_VERIFIERS_PER_ENTRY_MAX * 72 < FRAME_RECORDS_BYTES_TARGET);
const _: () = assert!(DELTAS_PER_POSTED_MAX * 24 < RECORD_BYTES_MAX);
const _: () = assert!(ENTRIES_PER_FRAME_MAX < FRAME_LIST_MAX && (SHARDS as usize) < HELLO_LIST_MAX);
const _: () =
    assert!(DOCUMENT_BYTES_SLACK < DOCUMENT_BYTES_KEPT && 2 * DOCUMENT_BYTES_KEPT < DOCUMENT_BYTES_MAX);
const _: () = assert!(DOCUMENT_BYTES_WORN + 2 * DOCUMENT_BYTES_KEPT < DOCUMENT_BYTES_MAX);
const _: () = assert!(LOSSES_PER_LIFT_MAX * 4 * NAME_BYTES_MAX < RECORD_BYTES_MAX);
