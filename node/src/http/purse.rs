//! Purses of cards, as terminals and reader services speak of them.

use axum::http::StatusCode;
use feiqian_protocol::ids::{Key, TerminalId};
use feiqian_protocol::purse::apdu::LoadBegun;
use feiqian_protocol::purse::entry::PurseLoaded;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::question::{LoadFate, PurseRefusal};
use feiqian_protocol::purse::recovery::Evidence;
use feiqian_protocol::purse::values::{
    CardSerial, CardTime, Counter, Kind, Mac, PurseFen, TerminalNumber, TerminalSequence,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::TapAnswer;
use super::{Failure, Terminals, to_json};
use crate::drive::{Answer, NoAnswer, Request};
use crate::purse::{PurchaseReport, PurseDone, PurseError, PurseRequest};

/// Whether a card may pay: asked before it is debited.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurseCheckBody {
    /// The serial of the card: 20 hex digits, which are its number too.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
}

/// The answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PurseCheckAnswer {
    /// `usable` or `declined`.
    #[schema(example = "usable")]
    pub outcome: String,
    /// False where this building knows no account of the card. What is on it is its holder's all the same.
    pub known: bool,
    /// Until when losses and withdrawals are known here, in milliseconds since 1970; absent where the card is not
    /// known, nothing was ever heard, or the card is declined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<i64>,
    /// Why it was declined.
    #[schema(example = json!(null))]
    pub reason: Option<String>,
    /// The same as two digits, as in the answer to a tap.
    #[schema(example = "00")]
    pub code: String,
    /// What the terminal shows, in English; empty where the card is usable.
    pub text_en: String,
    /// What the terminal shows, in Chinese; empty where the card is usable.
    pub text_zh: String,
}

/// A purchase that a card has made. Reported until the answer comes: the node keeps it once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PursePurchaseBody {
    /// The terminal's epoch. Reports of purses are numbered apart from taps.
    #[schema(example = 1)]
    pub epoch: u32,
    /// Unique in the epoch.
    #[schema(value_type = String, example = "37", max_length = 64)]
    pub sequence: Key,
    /// The serial of the card.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
    /// `purchase` or `compound`.
    #[schema(value_type = String, example = "purchase")]
    pub kind: Kind,
    /// Fen.
    #[schema(value_type = u32, example = 1250, minimum = 1, maximum = 10_000_000)]
    pub amount_fen: PurseFen,
    /// Fen on the card before.
    #[schema(value_type = u32, example = 5150)]
    pub balance_before_fen: PurseFen,
    /// The offline counter that INITIALIZE answered.
    #[schema(value_type = u16, example = 41)]
    pub counter: Counter,
    /// The number of the terminal (of its SAM): 12 hex digits.
    #[schema(value_type = String, example = "000000000117")]
    pub terminal_number: TerminalNumber,
    /// The number of the purchase there.
    #[schema(value_type = u32, example = 107_187)]
    pub terminal_sequence: TerminalSequence,
    /// When, as the card was told: `YYYYMMDDhhmmss`.
    #[schema(value_type = String, example = "20260901121533")]
    pub time: CardTime,
    /// The card's TAC, 8 or 16 hex digits; absent where it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "c1af23cd")]
    pub tac: Option<Mac>,
    /// True where MAC2 was right, so that something was handed out.
    pub proven: bool,
}

/// It is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PurseRecordedAnswer {
    /// `recorded`.
    #[schema(example = "recorded")]
    pub outcome: String,
    /// True where it was kept already.
    pub repeat: bool,
}

/// What a card answered to INITIALIZE FOR LOAD.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurseLoadBody {
    /// The serial of the card.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
    /// Fen, as the card was asked.
    #[schema(value_type = u32, example = 5000, minimum = 1, maximum = 10_000_000)]
    pub amount_fen: PurseFen,
    /// The number of the terminal, as the card was told.
    #[schema(value_type = String, example = "000000000117")]
    pub terminal_number: TerminalNumber,
    /// The answer, with `balance`, `counter`, `key_version`, `algorithm_id`, `random` and `mac1`.
    #[schema(value_type = Object)]
    pub begun: LoadBegun,
}

/// The centre's word on a load.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PurseLoadAnswer {
    /// `authorized`: credit the card, at once. `unresolved`: an older load of the card must be settled first. `declined`.
    #[schema(example = "authorized")]
    pub outcome: String,
    /// For CREDIT FOR LOAD: `YYYYMMDDhhmmss`.
    #[schema(value_type = Option<String>, example = "20260901113005")]
    pub time: Option<CardTime>,
    /// For CREDIT FOR LOAD.
    #[schema(value_type = Option<String>, example = "b85f2237")]
    pub mac2: Option<Mac>,
    /// The older load.
    #[schema(value_type = Option<Object>)]
    pub load: Option<JournalEntry>,
    /// The number to probe the card under, in place of the terminal's.
    #[schema(value_type = Option<String>)]
    pub challenge: Option<TerminalNumber>,
    /// Why it was declined.
    #[schema(example = json!(null))]
    pub reason: Option<String>,
    /// What the terminal shows, in English; empty where there is nothing to show.
    pub text_en: String,
    /// What the terminal shows, in Chinese; empty where there is nothing to show.
    pub text_zh: String,
}

/// Asks for the load of a card of which nobody knows what became: at any touch of a card whose load was torn.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurseOpenBody {
    /// The serial of the card.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
}

/// A card has taken a load.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurseLoadedBody {
    /// The serial of the card.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
    /// The online counter that INITIALIZE answered.
    #[schema(value_type = u16, example = 7)]
    pub counter: Counter,
    /// The TAC that CREDIT answered.
    #[schema(value_type = String, example = "2e731ec0")]
    pub tac: Mac,
}

/// What a card said when it was probed about an older load.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurseEvidenceBody {
    /// The serial of the card.
    #[schema(value_type = String, example = "31000000202600012345")]
    pub serial: CardSerial,
    /// `seen` (counter, balance, proof, log) and `begun` (INITIALIZE of one fen under the number that was given).
    #[schema(value_type = Object)]
    pub evidence: Evidence,
}

/// What became of the older load.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PurseSettledAnswer {
    /// `done`: the card has the money. `reversed`: the account has it. `in_transit`: still not known. `nothing`: none is open.
    #[schema(example = "reversed")]
    pub outcome: String,
}

/// Paths of purses.
pub(super) const PATHS: [&str; 6] = [
    "/v1/purse/check",
    "/v1/purse/purchases",
    "/v1/purse/loads",
    "/v1/purse/loads/open",
    "/v1/purse/loads/finish",
    "/v1/purse/loads/evidence",
];

/// Answers a request to one of them.
pub(super) async fn serve(
    terminals: &Terminals,
    terminal: &TerminalId,
    path: &str,
    body: &[u8],
) -> Result<Vec<u8>, Failure> {
    let request = match path {
        "/v1/purse/check" => PurseRequest::Check(read::<PurseCheckBody>(body)?.serial),
        "/v1/purse/purchases" => PurseRequest::Purchase(Box::new(report(read(body)?))),
        "/v1/purse/loads" => {
            let PurseLoadBody { serial, amount_fen, terminal_number, begun } = read(body)?;
            PurseRequest::Load(LoadRequest { serial, amount: amount_fen, terminal: terminal_number, begun })
        }
        "/v1/purse/loads/open" => PurseRequest::Open(read::<PurseOpenBody>(body)?.serial),
        "/v1/purse/loads/finish" => {
            let PurseLoadedBody { serial, counter, tac } = read(body)?;
            PurseRequest::Loaded(PurseLoaded { serial, counter, tac })
        }
        _ => {
            let PurseEvidenceBody { serial, evidence } = read(body)?;
            PurseRequest::Evidence(serial, Box::new(evidence))
        }
    };
    let asked = Request::Purse(terminal.clone(), request);
    match terminals.queue.ask(asked, terminals.answer_wait()).await? {
        Answer::Purse(done) => Ok(answer(done?)),
        _ => Err(NoAnswer::Unavailable.into()),
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, "malformed", error.to_string()))
}

fn report(body: PursePurchaseBody) -> PurchaseReport {
    PurchaseReport {
        epoch: body.epoch,
        sequence: body.sequence,
        serial: body.serial,
        kind: body.kind,
        amount: body.amount_fen,
        balance_before: body.balance_before_fen,
        counter: body.counter,
        terminal_number: body.terminal_number,
        terminal_sequence: body.terminal_sequence,
        time: body.time,
        tac: body.tac,
        proven: body.proven,
    }
}

fn answer(done: PurseDone) -> Vec<u8> {
    let nothing = || PurseLoadAnswer {
        outcome: String::new(),
        time: None,
        mac2: None,
        load: None,
        challenge: None,
        reason: None,
        text_en: String::new(),
        text_zh: String::new(),
    };
    match done {
        PurseDone::Usable { known, heard } => to_json(&PurseCheckAnswer {
            outcome: "usable".to_owned(),
            known,
            heard_ms: heard.map(|heard| heard.0),
            reason: None,
            code: "00".to_owned(),
            text_en: String::new(),
            text_zh: String::new(),
        }),
        PurseDone::Declined(reason) => {
            let TapAnswer { outcome, reason, code, text_en, text_zh, .. } = TapAnswer::declined(reason);
            to_json(&PurseCheckAnswer {
                outcome,
                known: true,
                heard_ms: None,
                reason,
                code,
                text_en,
                text_zh,
            })
        }
        PurseDone::Recorded { repeat } => {
            to_json(&PurseRecordedAnswer { outcome: "recorded".to_owned(), repeat })
        }
        PurseDone::Authorized(time, mac2) => to_json(&PurseLoadAnswer {
            outcome: "authorized".to_owned(),
            time: Some(time),
            mac2: Some(mac2),
            ..nothing()
        }),
        PurseDone::Unresolved(load, challenge) => to_json(&PurseLoadAnswer {
            outcome: "unresolved".to_owned(),
            load: Some(*load),
            challenge: Some(challenge),
            ..nothing()
        }),
        PurseDone::Refused(refusal) => to_json(&refused(refusal, nothing())),
        PurseDone::Settled(fate) => {
            let outcome = match fate {
                LoadFate::Done => "done",
                LoadFate::Reversed => "reversed",
                LoadFate::InTransit => "in_transit",
                LoadFate::Nothing => "nothing",
            };
            to_json(&PurseSettledAnswer { outcome: outcome.to_owned() })
        }
    }
}

fn refused(refusal: PurseRefusal, nothing: PurseLoadAnswer) -> PurseLoadAnswer {
    PurseLoadAnswer {
        outcome: "declined".to_owned(),
        reason: Some(refusal.name().to_owned()),
        text_en: refusal.text_en().to_owned(),
        text_zh: refusal.text_zh().to_owned(),
        ..nothing
    }
}

impl From<PurseError> for Failure {
    fn from(error: PurseError) -> Self {
        let status = match &error {
            PurseError::UnknownTerminal(_) | PurseError::NoMerchant(_) | PurseError::Role => {
                StatusCode::FORBIDDEN
            }
            PurseError::Amount => StatusCode::UNPROCESSABLE_ENTITY,
            PurseError::OtherContent => StatusCode::CONFLICT,
            PurseError::Unreachable | PurseError::Busy | PurseError::OutOfService => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_wrong_is_refused_by_name() {
        let message = |body: &str| match read::<PurseCheckBody>(body.as_bytes()) {
            Err(failure) => failure.message,
            Ok(body) => panic!("{body:?}"),
        };
        assert!(message(r#"{"serial":"3100"}"#).contains("card serial (20 hex digits)"));
        assert!(message(r#"{"card":"c1"}"#).contains("unknown field `card`"));
        assert!(message("{}").contains("missing field `serial`"));
        let twice = r#"{"serial":"31000000202600012345","serial":"31000000202600012345"}"#;
        assert!(message(twice).contains("duplicate field `serial`"));
    }

    #[test]
    fn a_refusal_says_why_in_both_languages() {
        let json: serde_json::Value =
            serde_json::from_slice(&answer(PurseDone::Refused(PurseRefusal::Insufficient))).unwrap();
        assert_eq!((&json["outcome"], &json["reason"]), (&"declined".into(), &"insufficient".into()));
        assert_eq!((&json["text_zh"], &json["mac2"]), (&"余额不足".into(), &serde_json::Value::Null));
    }
}
