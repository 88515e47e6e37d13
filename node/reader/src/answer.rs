//! What a POS is told, with the texts that people read.

use feiqian_protocol::purse::apdu::AnswerError;
use feiqian_protocol::purse::identify::IdentifyError;
use feiqian_protocol::purse::load::LoadRefusal;
use feiqian_protocol::purse::profile::Misfit;
use feiqian_protocol::purse::purchase::Decline;
use feiqian_protocol::purse::status::StatusWord;
use serde_json::{Value, json};

use crate::node::Declined;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $en:literal, $zh:literal;)*) => {
        /// Why a purchase or a load was not made. The codes are stable; the node and the centre have more of their own.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// The stable code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What the POS shows, in English.
            pub const fn text_en(self) -> &'static str {
                match self { $(Self::$name => $en,)* }
            }

            /// What the POS shows, in Chinese.
            pub const fn text_zh(self) -> &'static str {
                match self { $(Self::$name => $zh,)* }
            }
        }
    };
}

reasons! {
    /// Blocked for ever, or locked.
    Blocked = "blocked", "This card is blocked", "此卡已锁死";
    /// The card answered what it may not.
    CardError = "card_error", "The card cannot be read, please try again", "读卡出错，请重试";
    /// All its purchases are made.
    CounterExhausted = "counter_exhausted", "This card is worn out, please have it exchanged", "此卡交易次数已用尽，请换卡";
    /// No room on the card.
    CardFull = "card_full", "The card is full", "卡内余额已达上限";
    /// The day's limit by what the card carries.
    DayLimit = "day_limit", "The limit of the day is reached", "超过当日消费限额";
    /// After its last day.
    Expired = "expired", "This card has expired", "此卡已过有效期";
    /// Nobody with a newer hotlist has looked at it.
    HotlistOld = "hotlist_old", "Please use the card at a connected terminal first", "请先在联网终端使用此卡";
    /// Not enough on it.
    Insufficient = "insufficient", "Not enough money on the card", "卡内余额不足";
    /// Not as its profile says.
    Misfit = "misfit", "This card is not what it should be", "此卡与登记不符";
    /// Before its first day.
    NotYetValid = "not_yet_valid", "This card is not valid yet", "此卡尚未生效";
    /// The account has nothing to collect.
    NothingToCollect = "nothing_to_collect", "The account has no money to collect", "账户无可领款项";
    /// No purse, or none of ours.
    NotServed = "not_served", "This card is not served here", "此卡不能在此使用";
    /// The key belongs to a purchase that another card has not finished.
    OtherCard = "other_card", "Please use the card that this purchase was begun with", "请使用开始这笔交易的那张卡";
    /// The card wants its PIN before a load.
    PinRequired = "pin_required", "Please enter the card's PIN", "请输入卡片密码";
    /// The SAM.
    Sam = "sam", "The terminal's security module has failed", "终端安全模块故障";
    /// Taken away before anything was done.
    TakenAway = "taken_away", "Taken away too early, please hold the card again", "移开过早，请重新贴卡";
    /// The node or the centre.
    Unreachable = "unreachable", "Not possible at the moment, please try again later", "暂时无法办理，请稍后再试";
    /// What the card did before could not be found out.
    Unresolved = "unresolved", "The card's last transaction is not resolved, please hold the card again", "上一笔交易尚未查清，请重新贴卡";
    /// The card's PIN.
    WrongPin = "wrong_pin", "Wrong PIN", "卡片密码错误";
}

impl From<&Decline> for Reason {
    fn from(decline: &Decline) -> Self {
        match decline {
            Decline::Amount | Decline::Day(_) => Self::CardError,
            Decline::Insufficient(_) | Decline::Answer(AnswerError::Status(StatusWord::Insufficient)) => {
                Self::Insufficient
            }
            Decline::DayLimit { .. } => Self::DayLimit,
            Decline::HotlistOld { .. } => Self::HotlistOld,
            Decline::Misfit(Misfit::Expired(_)) => Self::Expired,
            Decline::Misfit(Misfit::NotYetValid(_)) => Self::NotYetValid,
            Decline::Misfit(Misfit::Algorithm { .. } | Misfit::KeyVersion { .. }) => Self::Misfit,
            Decline::CounterExhausted => Self::CounterExhausted,
            Decline::Answer(AnswerError::Status(StatusWord::Blocked | StatusWord::ApplicationLocked)) => {
                Self::Blocked
            }
            Decline::Answer(AnswerError::Status(_)) => Self::CardError,
            // A card that leaves in the middle of a command looks like an answer that is too short.
            Decline::Lost | Decline::Answer(AnswerError::Malformed { .. }) => Self::TakenAway,
            Decline::Sam(_) => Self::Sam,
        }
    }
}

impl From<&IdentifyError> for Reason {
    fn from(error: &IdentifyError) -> Self {
        match error {
            IdentifyError::NoApplication | IdentifyError::NoProfile(_) => Self::NotServed,
            IdentifyError::Locked | IdentifyError::Blocked => Self::Blocked,
            IdentifyError::Lost | IdentifyError::Answer(AnswerError::Malformed { .. }) => Self::TakenAway,
            IdentifyError::Data(_) | IdentifyError::Answer(AnswerError::Status(_)) => Self::CardError,
        }
    }
}

impl From<&LoadRefusal> for Reason {
    fn from(refusal: &LoadRefusal) -> Self {
        match refusal {
            // The card itself has no more room than its profile says.
            LoadRefusal::Amount { .. }
            | LoadRefusal::Answer(AnswerError::Status(StatusWord::Insufficient)) => Self::CardFull,
            LoadRefusal::Misfit(Misfit::Expired(_)) => Self::Expired,
            LoadRefusal::Misfit(Misfit::NotYetValid(_)) => Self::NotYetValid,
            LoadRefusal::Misfit(Misfit::Algorithm { .. } | Misfit::KeyVersion { .. }) => Self::Misfit,
            LoadRefusal::CounterExhausted => Self::CounterExhausted,
            LoadRefusal::Answer(AnswerError::Status(status)) => match status {
                StatusWord::Blocked | StatusWord::ApplicationLocked | StatusWord::PinLocked => Self::Blocked,
                StatusWord::PinNotVerified => Self::PinRequired,
                StatusWord::WrongPin(_) => Self::WrongPin,
                _ => Self::CardError,
            },
            LoadRefusal::Lost | LoadRefusal::Answer(AnswerError::Malformed { .. }) => Self::TakenAway,
            LoadRefusal::WrongProof | LoadRefusal::Centre => Self::CardError,
        }
    }
}

/// A request that cannot be carried out: `{"ok":false,"code":…,"error":…}`. Nothing was changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Stable.
    pub code: &'static str,
    /// For people.
    pub error: String,
}

impl Failure {
    /// From its code and text.
    pub fn new(code: &'static str, error: impl ToString) -> Self {
        Self { code, error: error.to_string() }
    }

    /// As sent.
    pub fn json(&self) -> Value {
        json!({ "ok": false, "code": self.code, "error": self.error })
    }
}

/// `declined`: nothing has moved, and the key may be used again.
pub fn declined(reason: Reason, detail: &str) -> Value {
    let (text_en, text_zh) = (reason.text_en().to_owned(), reason.text_zh().to_owned());
    declined_by(&Declined { reason: reason.code().to_owned(), text_en, text_zh }, detail)
}

/// The same where it was the node or the centre that declined, with its own reason and texts.
pub fn declined_by(declined: &Declined, detail: &str) -> Value {
    json!({
        "ok": true,
        "outcome": "declined",
        "reason": declined.reason,
        "detail": detail,
        "text_en": declined.text_en,
        "text_zh": declined.text_zh,
    })
}

/// `unknown`: the card may have been debited. The same key, and the same card, tell.
pub fn unknown(detail: &str) -> Value {
    json!({
        "ok": true,
        "outcome": "unknown",
        "detail": detail,
        "text_en": "Not known yet whether the card has paid: please hold the same card again",
        "text_zh": "结果未知：请让持卡人用同一张卡再贴一次",
    })
}

/// `unknown` of a load: the card may have the money. Nobody can spend it meanwhile but the card.
pub fn load_unknown(detail: &str) -> Value {
    json!({
        "ok": true,
        "outcome": "unknown",
        "detail": detail,
        "text_en": "Not known yet whether the money is on the card: please hold the same card again",
        "text_zh": "结果未知：请用同一张卡再贴一次，未到账的款项会退回账户",
    })
}

/// `unproven`: the card says that it has paid, or contradicts itself, and cannot prove it. Nothing is handed out; the centre judges.
pub fn unproven(outcome: &str) -> Value {
    json!({
        "ok": true,
        "outcome": "unproven",
        "detail": outcome,
        "text_en": "The card cannot prove that it has paid: hand out nothing, the card office will look into it",
        "text_zh": "卡片无法证明已付款：请勿交付，由卡务中心核查",
    })
}
