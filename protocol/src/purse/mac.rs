//! What the MACs of a load and a purchase bind.
//!
//! MAC1 says that the asking side is genuine (load: the card to the centre; purchase: the terminal to the card), MAC2 that the
//! other one is (load: the centre to the card; purchase: the card to the terminal), the TAC that the card did it (to the centre).
//! In algorithm 11 all three bind everything; what is not known yet when MAC1 of a load is made, its time, counts as zeros.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::key::{Algorithm, CardKey, MacKey};
use super::values::{CardTime, Counter, Kind, Mac, PurseFen, Random, TerminalNumber, TerminalSequence};

/// Everything that the MACs of one transaction speak of.
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct Terms {
    /// Load or purchase.
    #[n(0)]
    pub kind: Kind,
    /// How much, in fen.
    #[n(1)]
    pub amount: PurseFen,
    /// At which terminal.
    #[n(2)]
    pub terminal: TerminalNumber,
    /// The number of the purchase at the terminal; 0 in a load.
    #[n(3)]
    pub sequence: TerminalSequence,
    /// When, by the terminal's clock (purchase) or the centre's (load).
    #[n(4)]
    pub time: CardTime,
    /// The balance before.
    #[n(5)]
    pub balance_before: PurseFen,
    /// The counter before.
    #[n(6)]
    pub counter: Counter,
    /// The card's random number.
    #[n(7)]
    pub random: Random,
}

/// Which of the three; the number separates them in algorithm 11.
#[derive(Clone, Copy)]
enum Which {
    Mac1 = 1,
    Mac2 = 2,
    Tac = 3,
}

impl Terms {
    /// The balance after; `None` where the purse does not hold it.
    pub fn balance_after(&self) -> Option<PurseFen> {
        match self.kind {
            Kind::Load => self.balance_before.checked_add(self.amount),
            Kind::Purchase | Kind::Compound => self.balance_before.checked_sub(self.amount),
        }
    }

    /// The key of this transaction, from the card's key for loads or purchases.
    pub fn session_key(&self, algorithm: Algorithm, key: &CardKey) -> MacKey {
        let (random, counter) = (self.random.as_ref(), self.counter.0.to_be_bytes());
        let sequence = self.sequence.0.to_be_bytes();
        match (algorithm, self.kind) {
            (Algorithm::Des, Kind::Load) => key.session(algorithm, &[&random[..4], &counter, &[0x80, 0x00]]),
            (Algorithm::Des, _) => key.session(algorithm, &[&random[..4], &counter, &sequence[2..]]),
            (Algorithm::AesCmac, _) => {
                let parts = [&[0x01, self.kind.code()], random, &counter, &sequence, self.terminal.as_ref()];
                key.session(algorithm, &parts)
            }
        }
    }

    /// MAC1, under the session key. In a load it does not depend on the time.
    pub fn mac1(&self, session: &MacKey) -> Mac {
        match (session, self.kind) {
            (MacKey::Des(_), Kind::Load) => {
                let (balance, amount) = (self.balance_before.to_bytes(), self.amount.to_bytes());
                session.mac(&[&balance, &amount, &[self.kind.code()], self.terminal.as_ref()])
            }
            (MacKey::Des(_), _) => self.mac_of_amount_terminal_time(session),
            (MacKey::AesCmac(_), _) => self.mac_of_all(session, Which::Mac1),
        }
    }

    /// MAC2, under the session key.
    pub fn mac2(&self, session: &MacKey) -> Mac {
        match (session, self.kind) {
            (MacKey::Des(_), Kind::Load) => self.mac_of_amount_terminal_time(session),
            (MacKey::Des(_), _) => session.mac(&[&self.amount.to_bytes()]),
            (MacKey::AesCmac(_), _) => self.mac_of_all(session, Which::Mac2),
        }
    }

    /// The TAC, under [`CardKey::tac`]; `None` where the purse does not hold the balance after.
    pub fn tac(&self, key: &MacKey) -> Option<Mac> {
        let after = self.balance_after()?.to_bytes();
        let (amount, kind, time) = (self.amount.to_bytes(), [self.kind.code()], self.time.to_bytes());
        let (counter, sequence) = (self.counter.0.to_be_bytes(), self.sequence.0.to_be_bytes());
        Some(match (key, self.kind) {
            (MacKey::Des(_), Kind::Load) => {
                key.mac(&[&after, &counter, &amount, &kind, self.terminal.as_ref(), &time])
            }
            (MacKey::Des(_), _) => key.mac(&[&amount, &kind, self.terminal.as_ref(), &sequence, &time]),
            (MacKey::AesCmac(_), _) => self.mac_of_all(key, Which::Tac),
        })
    }

    fn mac_of_amount_terminal_time(&self, session: &MacKey) -> Mac {
        let (amount, time) = (self.amount.to_bytes(), self.time.to_bytes());
        session.mac(&[&amount, &[self.kind.code()], self.terminal.as_ref(), &time])
    }

    fn mac_of_all(&self, key: &MacKey, which: Which) -> Mac {
        let time = match (self.kind, which) {
            (Kind::Load, Which::Mac1) => [0; 7],
            _ => self.time.to_bytes(),
        };
        key.mac(&[
            &[which as u8],
            &self.amount.to_bytes(),
            &[self.kind.code()],
            self.terminal.as_ref(),
            &self.sequence.0.to_be_bytes(),
            &time,
            &self.balance_before.to_bytes(),
            &self.counter.0.to_be_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::unhex;

    /// Amounts as a number, the rest as text.
    struct Text {
        kind: Kind,
        amount: u32,
        balance: u32,
        counter: u16,
        random: &'static str,
        sequence: u32,
        time: &'static str,
    }

    fn terms(terminal: &str, text: &Text) -> Terms {
        Terms {
            kind: text.kind,
            amount: PurseFen::new(text.amount).unwrap(),
            terminal: terminal.parse().unwrap(),
            sequence: TerminalSequence(text.sequence),
            time: text.time.parse().unwrap(),
            balance_before: PurseFen::new(text.balance).unwrap(),
            counter: Counter(text.counter),
            random: text.random.parse().unwrap(),
        }
    }

    fn des(text: &str) -> MacKey {
        MacKey::Des(unhex(text).unwrap().try_into().unwrap())
    }

    fn key(text: &str) -> CardKey {
        text.parse().unwrap()
    }

    /// The one worked example that is public. Its load is of type 01 (passbook), which has no kind here: the parts are given.
    #[test]
    fn the_public_example() {
        let card = key("11223344556677888877665544332211");
        let session = card.session(Algorithm::Des, &[&[0x11, 0x22, 0x33, 0x44], &[0, 0], &[0x80, 0]]);
        assert!(session == des("9b1d924e05595603"));
        let terminal = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55];
        let (balance, amount) = ([0; 4], [0x00, 0x00, 0x10, 0x00]);
        assert_eq!(session.mac(&[&balance, &amount, &[0x01], &terminal]).to_string(), "2988ae5a");
        let time = [0x20, 0x11, 0x12, 0x21, 0x21, 0x48, 0x22];
        assert_eq!(session.mac(&[&amount, &[0x01], &terminal, &time]).to_string(), "3a845bf0");

        let purchase = Text {
            kind: Kind::Purchase,
            amount: 0x1000,
            balance: 0x1000,
            counter: 0,
            random: "11223344",
            sequence: 1,
            time: "20120229135100",
        };
        let purchase = terms("001122334455", &purchase);
        let session = purchase.session_key(Algorithm::Des, &card);
        assert!(session == des("003238abc57659dd"));
        assert_eq!(purchase.mac1(&session).to_string(), "f15cab75");
        assert_eq!(purchase.mac2(&session).to_string(), "56988a13");
    }

    fn our_purchase(random: &'static str) -> Terms {
        let purchase = Text {
            kind: Kind::Purchase,
            amount: 1_250,
            balance: 5_150,
            counter: 0x29,
            random,
            sequence: 0x1A2B3,
            time: "20260901121533",
        };
        terms("000000000117", &purchase)
    }

    #[test]
    fn a_load_in_algorithm_00() {
        let load = Text {
            kind: Kind::Load,
            amount: 5_000,
            balance: 150,
            counter: 7,
            random: "9c4e21b7",
            sequence: 0,
            time: "20260901113005",
        };
        let load = terms("000000000117", &load);
        let session = load.session_key(Algorithm::Des, &key("a0cb3cc0f11ba10a7e7313ffc39a55d6"));
        assert!(session == des("2461b94588eb97bb"));
        assert_eq!(load.mac1(&session).to_string(), "a221ce5f");
        assert_eq!(load.mac2(&session).to_string(), "b85f2237");
        let tac_key = key("ba0f6bc2adcaf5a063da3dae37adf6eb").tac(Algorithm::Des);
        assert_eq!(load.tac(&tac_key).unwrap().to_string(), "2e731ec0");
    }

    #[test]
    fn a_purchase_in_algorithm_00() {
        let purchase = our_purchase("5d08f3a6");
        let session = purchase.session_key(Algorithm::Des, &key("90ec321bab8d2bad9d8bf86a24ab6d0b"));
        assert!(session == des("44737fa268c233b2"));
        assert_eq!(purchase.mac1(&session).to_string(), "28d69d85");
        assert_eq!(purchase.mac2(&session).to_string(), "9c4c21d9");
        let tac_key = key("ba0f6bc2adcaf5a063da3dae37adf6eb").tac(Algorithm::Des);
        assert_eq!(purchase.tac(&tac_key).unwrap().to_string(), "c1af23cd");
    }

    #[test]
    fn a_purchase_in_algorithm_11() {
        let purchase = our_purchase("5d08f3a6c1e47b92");
        let session = purchase.session_key(Algorithm::AesCmac, &key("d076f13cd56d81a22e80769acc5560cb"));
        let expected = unhex("caf6ebb413ef060af582d9621871d9a7").unwrap().try_into().unwrap();
        assert!(session == MacKey::AesCmac(expected));
        assert_eq!(purchase.mac1(&session).to_string(), "ef513801e04e126c");
        assert_eq!(purchase.mac2(&session).to_string(), "5fb9b0cc4330c33c");
    }

    #[test]
    fn mac1_of_a_load_is_made_before_its_time_is_known() {
        for algorithm in [Algorithm::Des, Algorithm::AesCmac] {
            let card = key("a0cb3cc0f11ba10a7e7313ffc39a55d6");
            let load =
                Terms { kind: Kind::Load, sequence: TerminalSequence(0), ..our_purchase("5d08f3a6c1e47b92") };
            let later = Terms { time: "20260901121534".parse().unwrap(), ..load };
            let session = load.session_key(algorithm, &card);
            assert_eq!(load.mac1(&session), later.mac1(&session));
            assert_ne!(load.mac2(&session), later.mac2(&session));
        }
    }

    proptest! {
        /// In algorithm 11 no field can be changed without changing all three.
        #[test]
        fn algorithm_11_binds_everything(change in 0..7_usize, by in 1..255_u8) {
            let purchase = our_purchase("5d08f3a6c1e47b92");
            let mut other = purchase;
            match change {
                0 => other.amount = PurseFen::new(1_250 + u32::from(by)).unwrap(),
                1 => other.terminal.0[0] ^= by,
                2 => other.sequence.0 += u32::from(by),
                3 => other.balance_before = PurseFen::new(5_150 + u32::from(by)).unwrap(),
                4 => other.counter.0 += u16::from(by),
                5 => other.kind = Kind::Compound,
                _ => other.time = "20260901121534".parse().unwrap(),
            }
            let session = purchase.session_key(Algorithm::AesCmac, &key("d076f13cd56d81a22e80769acc5560cb"));
            prop_assert_ne!(purchase.mac1(&session), other.mac1(&session));
            prop_assert_ne!(purchase.mac2(&session), other.mac2(&session));
            let tac_key = key("ba0f6bc2adcaf5a063da3dae37adf6eb").tac(Algorithm::AesCmac);
            prop_assert_ne!(purchase.tac(&tac_key), other.tac(&tac_key));
        }
    }
}
