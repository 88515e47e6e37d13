//! What terminals send and get; [`super::openapi`] has the document about it.
//!
//! The request types are what a client serializes; the node reads requests in [`super::body`], which names what is wrong.

use feiqian_protocol::tap::{BalanceView, Decision, DeclineReason};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A tap. A retry carries the same epoch and sequence and gets the first answer.
///
/// It carries either `card` or `code`. A purchase carries exactly one of `amount_fen`, `amount` and `quantity`; access carries none of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TapBody {
    /// Grows when the terminal loses its memory and starts its sequence again.
    #[schema(example = 1)]
    pub epoch: u32,
    /// Unique within the epoch: 1 to 64 visible ASCII characters other than comma and quotes.
    #[schema(example = "269-1", max_length = 64)]
    pub sequence: String,
    /// The card presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "c02346", max_length = 64)]
    pub card: Option<String>,
    /// The code of a phone presented in place of a card, as the scanner read it: digits, or base64url. Twenty digits that begin with 91 are
    /// a short code, which takes the centre, and no PIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 476)]
    pub code: Option<String>,
    /// Purchase or access.
    pub kind: Kind,
    /// Fen of a purchase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1250, minimum = 1, maximum = 10_000_000)]
    pub amount_fen: Option<i64>,
    /// Yuan of a purchase as text with at most two decimals; the same as `amount_fen`, as people type it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "12.50")]
    pub amount: Option<String>,
    /// Measured quantity of a purchase (grams, millilitres, seconds), priced by the merchant's tariff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 552, minimum = 1, maximum = 1_000_000)]
    pub quantity: Option<u32>,
    /// The payment PIN of a purchase, where the holder was asked for it: six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "271828", pattern = "^[0-9]{6}$")]
    pub pin: Option<String>,
}

/// What a tap is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person wants to pass a door.
    Access,
    /// A purchase.
    Purchase,
}

/// Undoes a tap of the same terminal, wholly or partly. It may arrive before its tap, which is then declined.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ReversalBody {
    /// The reversal's own epoch.
    #[schema(example = 1)]
    pub epoch: u32,
    /// The reversal's own sequence; taps and reversals of a terminal share their sequences.
    #[schema(example = "270-1", max_length = 64)]
    pub sequence: String,
    /// The tap to reverse.
    pub original: OriginalBody,
    /// Fen to give back; all that is left of the tap where neither this nor `amount` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1250, minimum = 1, maximum = 10_000_000)]
    pub amount_fen: Option<i64>,
    /// The same in yuan, as text with at most two decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "12.50")]
    pub amount: Option<String>,
}

/// Names a tap of the same terminal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct OriginalBody {
    /// Its epoch.
    #[schema(example = 1)]
    pub epoch: u32,
    /// Its sequence.
    #[schema(example = "269-1", max_length = 64)]
    pub sequence: String,
}

/// A balance enquiry, by `card` or by `code`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct BalanceBody {
    /// The card presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "c02346", max_length = 64)]
    pub card: Option<String>,
    /// What a phone shows in its place, as with a tap; not the short one. It is not used up by this, and one that has just paid is good
    /// for it as long as its window lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 476)]
    pub code: Option<String>,
}

/// A change of settings that narrows, or a card that this building has not heard of with the centre's word for it. It acts in this
/// building at once, cut off or not; what narrows, in the others as they hear of it. Asking again does no harm.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SettingBody {
    /// A card of the account.
    #[schema(example = "c02346", max_length = 64)]
    pub card: String,
    /// What is to be changed.
    pub change: Change,
    /// Of `lower_limits`: the no-PIN limit of a purchase in fen, no higher than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1_000, minimum = 0)]
    pub single_limit_fen: Option<i64>,
    /// Of `lower_limits`: the no-PIN allowance of a day in fen, no higher than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 3_000, minimum = 0)]
    pub daily_limit_fen: Option<i64>,
    /// Of `show_card`: what the centre has signed for the card, as a file of the card or a slip of paper carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 344)]
    pub issuance: Option<String>,
    /// Who wants it, where the terminal has somebody logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "li.lei", max_length = 64)]
    pub operator: Option<String>,
}

/// Another payment PIN, which the holder types after the one that there is. It pays once the centre has confirmed it; until
/// then the one before does.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PinBody {
    /// A card of the account.
    #[schema(example = "c02346", max_length = 64)]
    pub card: String,
    /// The PIN that there is, the initial one where none was chosen yet: six digits.
    #[schema(example = "271828")]
    pub pin: String,
    /// The one that the holder has chosen: six digits, not all alike and no run such as 123456.
    #[schema(example = "314159")]
    pub new_pin: String,
}

/// What is to be changed about a card or its account.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The card was lost. At a kiosk or a desk.
    ReportLoss,
    /// Lower no-PIN limits. At a kiosk or a desk.
    LowerLimits,
    /// No purchases from the account. At a desk.
    Freeze,
    /// The card is withdrawn, for ever. At a desk.
    VoidCard,
    /// The card is good by the centre's word, and the one that it replaces is void. Everywhere: for a card that is not known.
    ShowCard,
}

/// The change acts in this building.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SettingAnswer {
    /// `done`.
    #[schema(example = "done")]
    pub outcome: String,
    /// True where it is so already (a card that is withdrawn for ever, or known), and nothing was written.
    pub was_so: bool,
    /// What the terminal shows, in English.
    #[schema(example = "Done. Other buildings follow as they hear of it.")]
    pub text_en: String,
    /// What the terminal shows, in Chinese.
    #[schema(example = "已生效，其他楼宇收到后同步生效")]
    pub text_zh: String,
}

impl SettingAnswer {
    /// Of a PIN that waits for the centre.
    pub fn new_pin() -> Self {
        Self {
            outcome: "done".to_owned(),
            was_so: false,
            text_en: "The new PIN pays once the centre has confirmed it; until then the old one does."
                .to_owned(),
            text_zh: "新密码经中心确认后生效，此前请使用原密码".to_owned(),
        }
    }

    /// Of a card that is known here now.
    pub fn shown(was_so: bool) -> Self {
        Self {
            outcome: "done".to_owned(),
            was_so,
            text_en: "The card can be used here now. Present it again.".to_owned(),
            text_zh: "新卡已可在本楼使用，请重新刷卡".to_owned(),
        }
    }

    /// Of a change that acts.
    pub fn done(was_so: bool) -> Self {
        Self {
            outcome: "done".to_owned(),
            was_so,
            text_en: "Done. Other buildings follow as they hear of it.".to_owned(),
            text_zh: "已生效，其他楼宇收到后同步生效".to_owned(),
        }
    }
}

/// The answer to a tap or a reversal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TapAnswer {
    /// `approved`, `declined`, or `pending`: not decided yet, ask again with the same epoch and sequence.
    #[schema(example = "approved")]
    pub outcome: String,
    /// Fen charged, or given back by a reversal.
    #[schema(example = 1250)]
    pub amount_fen: i64,
    /// Fen of a purchase beyond the building's right to spend, which the campus stands in for.
    #[schema(example = 0)]
    pub stand_in_fen: i64,
    /// Why it was declined.
    #[schema(example = json!(null))]
    pub reason: Option<String>,
    /// The same as two digits, after ISO 8583 field 39; `00` for approved, `09` for pending.
    #[schema(example = "00")]
    pub code: String,
    /// What the terminal shows, in English.
    #[schema(example = "Approved")]
    pub text_en: String,
    /// What the terminal shows, in Chinese.
    #[schema(example = "交易成功")]
    pub text_zh: String,
    /// True for a first answer given again.
    pub repeat: bool,
    /// Of a purchase that a phone's voucher paid, or part of it: what the terminal shows as a picture (240 digits, QR version 6-M) or prints,
    /// for the phone to bring to the centre, which then frees the rest of what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(null))]
    pub receipt: Option<String>,
}

impl TapAnswer {
    /// Of a decision.
    pub fn decided(decision: &Decision, repeat: bool) -> Self {
        match decision {
            Decision::Approved { amount, stand_in, .. } => Self {
                amount_fen: amount.get(),
                stand_in_fen: stand_in.get(),
                repeat,
                ..Self::plain("approved", "00", "Approved", "交易成功")
            },
            Decision::Declined(reason) => Self { repeat, ..Self::declined(*reason) },
        }
    }

    /// Not decided yet.
    pub fn pending() -> Self {
        Self::plain("pending", "09", "Please wait and try again", "处理中，请稍候重试")
    }

    pub(super) fn declined(reason: DeclineReason) -> Self {
        let code = format!("{:02}", reason.code());
        Self {
            reason: Some(reason.name().to_owned()),
            ..Self::plain("declined", &code, reason.text_en(), reason.text_zh())
        }
    }

    fn plain(outcome: &str, code: &str, text_en: &str, text_zh: &str) -> Self {
        Self {
            outcome: outcome.to_owned(),
            amount_fen: 0,
            stand_in_fen: 0,
            reason: None,
            code: code.to_owned(),
            text_en: text_en.to_owned(),
            text_zh: text_zh.to_owned(),
            repeat: false,
            receipt: None,
        }
    }
}

/// The answer to a balance enquiry.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct BalanceAnswer {
    /// `shown` or `declined`.
    #[schema(example = "shown")]
    pub outcome: String,
    /// Cash in fen, as far as this building knows.
    #[schema(example = 10_250)]
    pub cash_fen: Option<i64>,
    /// Subsidy in fen, likewise.
    #[schema(example = 0)]
    pub subsidy_fen: Option<i64>,
    /// The time of the newest word from the centre that this building holds, in milliseconds since 1970.
    #[schema(example = 1_667_800_000_000_i64)]
    pub as_of_ms: Option<i64>,
    /// Why it was declined.
    #[schema(example = json!(null))]
    pub reason: Option<String>,
    /// The same as two digits, as in the answer to a tap.
    #[schema(example = "00")]
    pub code: String,
    /// What the terminal shows, in English; empty where the balance is shown.
    pub text_en: String,
    /// What the terminal shows, in Chinese; empty where the balance is shown.
    pub text_zh: String,
}

impl From<Result<BalanceView, DeclineReason>> for BalanceAnswer {
    fn from(view: Result<BalanceView, DeclineReason>) -> Self {
        match view {
            Ok(view) => Self {
                outcome: "shown".to_owned(),
                cash_fen: Some(view.cash.get()),
                subsidy_fen: Some(view.subsidy.get()),
                as_of_ms: Some(view.as_of.0),
                reason: None,
                code: "00".to_owned(),
                text_en: String::new(),
                text_zh: String::new(),
            },
            Err(reason) => {
                let TapAnswer { outcome, reason, code, text_en, text_zh, .. } = TapAnswer::declined(reason);
                Self {
                    outcome,
                    cash_fen: None,
                    subsidy_fen: None,
                    as_of_ms: None,
                    reason,
                    code,
                    text_en,
                    text_zh,
                }
            }
        }
    }
}

/// How the node is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct HealthAnswer {
    /// `ok`: taps are decided.
    #[schema(example = "ok")]
    pub status: String,
    /// Whether the node is in session with the centre. Taps are decided either way.
    pub connected: bool,
}

/// A request that was not a tap, a reversal or an enquiry at all. Nothing was written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ErrorAnswer {
    /// What is wrong.
    pub error: ErrorBody,
}

/// What is wrong with a request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// A stable code.
    #[schema(example = "malformed")]
    pub code: String,
    /// For a person.
    #[schema(example = "unknown field \"sum\"")]
    pub message: String,
}

impl ErrorAnswer {
    /// Of a code and a message.
    pub const fn new(code: String, message: String) -> Self {
        Self { error: ErrorBody { code, message } }
    }
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::ids::AccountId;
    use feiqian_protocol::money::Fen;

    use super::*;

    #[test]
    fn answers_say_what_was_decided() {
        let decision =
            Decision::Approved { account: AccountId(1), amount: Fen::new(1250), stand_in: Fen::new(50) };
        let answer = TapAnswer::decided(&decision, true);
        assert_eq!((answer.outcome.as_str(), answer.amount_fen, answer.stand_in_fen), ("approved", 1250, 50));
        assert!(answer.repeat);
        let answer = TapAnswer::decided(&Decision::Declined(DeclineReason::Insufficient), false);
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(json["outcome"], "declined");
        assert_eq!(json["reason"], "insufficient");
        assert_eq!(json["code"], "51");
        assert_eq!(json["amount_fen"], 0);
        let pending = serde_json::to_value(TapAnswer::pending()).unwrap();
        assert_eq!((&pending["outcome"], &pending["reason"]), (&"pending".into(), &serde_json::Value::Null));
    }
}
