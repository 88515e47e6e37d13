//! Status words: the last two bytes of every answer of a card.

use std::fmt;

macro_rules! status_words {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $text:literal;)*) => {
        /// A status word (ISO 7816-4, and the purse's own 93xx and 94xx).
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum StatusWord {
            $($(#[$doc])* $name,)*
            /// 61xx: so many bytes wait to be fetched by GET RESPONSE (T=0).
            More(u8),
            /// 6Cxx: ask again with this Le (T=0).
            WrongLe(u8),
            /// 63Cx: wrong PIN, so many tries left.
            WrongPin(u8),
            /// Any other.
            Other(u16),
        }

        impl StatusWord {
            /// From the two bytes.
            pub const fn from_u16(word: u16) -> Self {
                match word {
                    $($word => Self::$name,)*
                    0x6100..=0x61FF => Self::More(word as u8),
                    0x6C00..=0x6CFF => Self::WrongLe(word as u8),
                    0x63C0..=0x63CF => Self::WrongPin(word as u8 & 0x0F),
                    _ => Self::Other(word),
                }
            }

            /// The two bytes.
            pub const fn to_u16(self) -> u16 {
                match self {
                    $(Self::$name => $word,)*
                    Self::More(bytes) => 0x6100 | bytes as u16,
                    Self::WrongLe(bytes) => 0x6C00 | bytes as u16,
                    Self::WrongPin(left) => 0x63C0 | (left & 0x0F) as u16,
                    Self::Other(word) => word,
                }
            }
        }

        impl fmt::Display for StatusWord {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text)?,)*
                    Self::More(bytes) => write!(f, "{bytes} bytes more")?,
                    Self::WrongLe(bytes) => write!(f, "{bytes} bytes expected")?,
                    Self::WrongPin(left) => write!(f, "wrong PIN, {left} tries left")?,
                    Self::Other(_) => f.write_str("error of the card")?,
                }
                write!(f, " ({:04X})", self.to_u16())
            }
        }
    };
}

status_words! {
    /// Done.
    Done = 0x9000, "done";
    /// The length is wrong.
    Length = 0x6700, "wrong length";
    /// A PIN must be verified first.
    PinNotVerified = 0x6982, "PIN not verified";
    /// The PIN or key is locked.
    PinLocked = 0x6983, "PIN or key locked";
    /// Out of order: no INITIALIZE before, or the security status has fallen back.
    Conditions = 0x6985, "conditions not satisfied";
    /// The data are wrong.
    Data = 0x6A80, "wrong data";
    /// The application is locked.
    ApplicationLocked = 0x6A81, "application locked";
    /// No such file.
    NoFile = 0x6A82, "no such file";
    /// No such record.
    NoRecord = 0x6A83, "no such record";
    /// Wrong P1 or P2.
    Parameters = 0x6A86, "wrong parameters";
    /// The data that P1 and P2 refer to are not there.
    NoData = 0x6A88, "data not found";
    /// An offset outside the file.
    Offset = 0x6B00, "wrong offset";
    /// No such instruction.
    Instruction = 0x6D00, "no such instruction";
    /// No such class.
    Class = 0x6E00, "no such class";
    /// A MAC is wrong.
    WrongMac = 0x9302, "wrong MAC";
    /// The application is blocked for ever.
    Blocked = 0x9303, "application blocked for ever";
    /// The balance is too small (purchase), or there is no room for the amount (load).
    Insufficient = 0x9401, "insufficient balance";
    /// A counter is exhausted.
    CounterExhausted = 0x9402, "counter exhausted";
    /// No such key index.
    NoKey = 0x9403, "no such key";
    /// The MAC or TAC that was asked for is not there (any more).
    NoProof = 0x9406, "MAC and TAC not available";
    /// The record that a compound purchase would write is locked.
    RecordLocked = 0x9407, "record locked";
    /// The record is grey-locked.
    GreyLocked = 0x9408, "record grey-locked";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_round_trips() {
        for word in 0..=u16::MAX {
            assert_eq!(StatusWord::from_u16(word).to_u16(), word);
        }
        assert_eq!(StatusWord::from_u16(0x63C2), StatusWord::WrongPin(2));
        assert_eq!(StatusWord::from_u16(0x9401).to_string(), "insufficient balance (9401)");
    }
}
