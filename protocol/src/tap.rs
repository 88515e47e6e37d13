//! A tap and its answer, as the authorizer, the terminal API and the simulator share them.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::code::CheckedCode;
use crate::ids::{AccountId, CardNumber, Key, TerminalId};
use crate::money::Fen;
use crate::pin::{PinDigest, PinGeneration};
use crate::time::Timestamp;

/// The identity of a tap, made by the terminal: a retry carries the same key and gets the first answer.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct TapKey {
    /// The terminal.
    pub terminal: TerminalId,
    /// Grows when the terminal loses its memory and starts its sequence again.
    pub epoch: u32,
    /// Unique within the terminal's epoch.
    pub sequence: Key,
}

/// What a terminal asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TapRequest {
    /// Identity; see [`TapKey`].
    pub key: TapKey,
    /// The card presented; where a code was, the virtual card of its phone.
    pub card: CardNumber,
    /// The code that was presented in place of a card. Its signatures are checked outside of the core, like a PIN.
    pub code: Option<Box<CheckedCode>>,
    /// Purchase or access.
    pub kind: TapKind,
    /// What is known of the payment PIN.
    pub pin: Pin,
}

/// Purchase or access.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TapKind {
    /// A person wants to pass a door.
    Access,
    /// A purchase of a fixed amount, in fen, above zero.
    Amount(Fen),
    /// A purchase of a measured quantity (grams, litres, minutes), priced by the tariff of the terminal's merchant
    /// for the holder's patron class.
    Quantity(u32),
}

/// The payment PIN as the core sees it; hashing happens outside. [`Pin::Right`] and [`Pin::Wrong`] are what the core makes of
/// one that was entered; a shell never says them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pin {
    /// None was entered.
    Absent,
    /// One was entered, and hashed under the salt of this generation and this node's key.
    Entered {
        /// The PIN that it was hashed to be compared with.
        generation: PinGeneration,
        /// What is compared.
        digest: PinDigest,
    },
    /// One was entered, and not hashed: there was nothing here to compare it with.
    NotHashed,
    /// The right one was entered.
    Right,
    /// A wrong one was entered.
    Wrong,
}

/// What a terminal wants undone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReversalRequest {
    /// The reversal's own identity.
    pub key: TapKey,
    /// The tap to reverse; same terminal.
    pub original: TapKey,
    /// How much to give back, in fen; `None` for all that is left of it.
    pub amount: Option<Fen>,
}

/// The answer to a tap or a reversal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Done. `amount` is what was charged (purchase) or given back (reversal), `stand_in` the part of a purchase
    /// beyond the node's spending right; both 0 for access.
    Approved {
        /// The account.
        account: AccountId,
        /// Fen charged or given back.
        amount: Fen,
        /// Fen of it that were stand-in.
        stand_in: Fen,
    },
    /// Not done, for this reason.
    Declined(DeclineReason),
}

macro_rules! decline_reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $transient:literal, $en:literal, $zh:literal;)*) => {
        /// Why a tap was declined, highest precedence first. The numbers follow ISO 8583 field 39 where it has one
        /// for the case; they are on the wire and on disk and are never renumbered.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum DeclineReason { $($(#[$doc])* $name = $code,)* }

        impl DeclineReason {
            /// All reasons in order of precedence.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable number.
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The reason of a stable number.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The stable name used in JSON, CSV and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// True where the same card may be approved later without anybody changing anything about it.
            pub const fn transient(self) -> bool {
                match self { $(Self::$name => $transient,)* }
            }

            /// What the terminal shows, in English.
            pub const fn text_en(self) -> &'static str {
                match self { $(Self::$name => $en,)* }
            }

            /// What the terminal shows, in Chinese.
            pub const fn text_zh(self) -> &'static str {
                match self { $(Self::$name => $zh,)* }
            }
        }
    };
}

decline_reasons! {
    /// The node cannot keep what it would approve (disk), or has been shut out by the centre.
    OutOfService = 96, "out_of_service", true, "Out of service", "设备暂停服务";
    /// The tap was reversed before it arrived.
    Reversed = 94, "reversed", false, "Already reversed", "该笔已冲正";
    /// What was presented as a code is none.
    CodeUnreadable = 30, "code_unreadable", true, "Code not readable", "无法识别二维码";
    /// A code of another institution.
    CodeForeign = 31, "code_foreign", false, "Code of another institution", "非本校二维码";
    /// The voucher names a key that this building does not know (yet).
    CodeKeyUnknown = 15, "code_key_unknown", true, "Cannot verify this code here", "此处暂无法验证该二维码";
    /// The centre has not signed the voucher.
    VoucherForged = 63, "voucher_forged", false, "Invalid code", "二维码无效";
    /// The voucher is over, or not yet issued: the phone must fetch a new one.
    VoucherExpired = 54, "voucher_expired", true, "Code out of date, connect the phone", "二维码凭证已过期，请联网更新";
    /// The phone has not signed the code.
    CodeForged = 88, "code_forged", false, "Invalid code", "二维码无效";
    /// The code is older than it may be, or from the future.
    CodeExpired = 68, "code_expired", true, "Code expired, show a fresh one", "二维码已失效，请刷新";
    /// Only the centre can check a short code, and it cannot be asked. ISO 8583 has 92 for what cannot be routed.
    CodeNeedsCentre = 92, "code_needs_centre", true, "Offline here, show the large code", "本机离线，请出示大码";
    /// Too many wrong short codes in a row.
    CodePaused = 65, "code_paused", true, "Too many wrong codes, wait some minutes", "错误次数过多，请稍后再试";
    /// No account has this card.
    UnknownCard = 14, "unknown_card", true, "Unknown card. If new, show its slip", "无此卡，新卡请出示凭证";
    /// The card was replaced.
    Void = 33, "void", false, "Card no longer valid", "卡已作废";
    /// The card was reported lost.
    Lost = 41, "lost", false, "Card reported lost", "卡已挂失";
    /// The card was given out and not activated yet. Code 78 is the card schemes' "blocked, first used".
    CardInactive = 78, "card_inactive", false, "Card not activated yet", "卡未激活，请先激活";
    /// The account is frozen.
    Frozen = 62, "frozen", false, "Account frozen", "账户已冻结";
    /// The account is closed.
    Closed = 46, "closed", false, "Account closed", "账户已注销";
    /// The account's last day is over. Code 36 is a restricted card; 54, ISO 8583's expired one, is a voucher's here.
    Expired = 36, "expired", false, "Account expired, see the card office", "账户已过有效期，请到卡务中心办理";
    /// The code, or a later one, was used here before.
    CodeUsed = 26, "code_used", true, "Code was used, show a fresh one", "二维码已使用，请刷新";
    /// The holder has no permission here or now.
    NotPermitted = 57, "not_permitted", true, "Not permitted here or now", "此处或此时无权限";
    /// No tariff for this holder at this terminal.
    NoTariff = 58, "no_tariff", false, "No price for this holder", "无适用费率";
    /// A PIN was entered, and the account has none here that pays: none was chosen, or two were and neither is confirmed, or
    /// word of it has not come yet. Code 86 is the card schemes' "PIN cannot be verified".
    PinNotSet = 86, "pin_not_set", true, "No valid PIN here; choose or confirm one", "支付密码未生效，请先修改或确认";
    /// Too many wrong PINs in a row at this building.
    PinLocked = 75, "pin_locked", true, "PIN locked here after wrong tries", "支付密码错误次数超限，已锁定";
    /// A wrong payment PIN was entered.
    WrongPin = 55, "wrong_pin", true, "Wrong PIN", "支付密码错误";
    /// Over the no-PIN limit of a purchase or of the day.
    PinRequired = 70, "pin_required", true, "PIN required", "超限额，请输入支付密码";
    /// Not enough money within reach.
    Insufficient = 51, "insufficient", true, "Insufficient funds", "余额不足";
    /// This building has been cut off for too long to stand in.
    ViewTooOld = 91, "view_too_old", true, "Cannot check the balance now", "离线过久，暂不能扣款";
}

impl fmt::Display for DeclineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<C> Encode<C> for DeclineReason {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(self.code())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for DeclineReason {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_code(d.u8()?).ok_or_else(|| minicbor::decode::Error::message("unknown decline reason"))
    }
}

/// What a holder may see at a terminal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BalanceView {
    /// The account.
    pub account: AccountId,
    /// Cash as far as this node knows: last posted balance minus own spending that is not in it yet.
    pub cash: Fen,
    /// Subsidy, likewise.
    pub subsidy: Fen,
    /// The time of the newest word from the centre that this node holds.
    pub as_of: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_codes_are_unique_and_round_trip() {
        for reason in DeclineReason::ALL {
            assert_eq!(DeclineReason::from_code(reason.code()), Some(*reason));
        }
    }
}
