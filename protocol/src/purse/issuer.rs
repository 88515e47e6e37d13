//! The centre's part: it alone holds the load and TAC master keys.

use super::journal::JournalEntry;
use super::key::{Algorithm, MacKey, MasterKey, Purpose};
use super::load::{LoadRefusal, LoadRequest};
use super::mac::Terms;
use super::profile::CardProfile;
use super::recovery::{Evidence, LoadProbe, PROBE_LOAD_FEN};
use super::torn::{Outcome, ProofSeen, Seen, resolve_load};
use super::values::{CardSerial, CardTime, Kind, Mac, PurseFen, TerminalSequence};

/// The institution as the one that issues cards and lets money onto them.
#[derive(Clone, Debug)]
pub struct Issuer {
    load: MasterKey,
    tac: MasterKey,
}

impl Issuer {
    /// From the master keys.
    pub const fn new(load: MasterKey, tac: MasterKey) -> Self {
        Self { load, tac }
    }

    /// Judges a load, and makes its MAC2 (the entry's `mac`). The entry must be durable before MAC2 leaves, and a card must
    /// have no other load that is not resolved. Whether the account has the money is not judged here.
    ///
    /// # Errors
    /// [`LoadRefusal`]. A card whose MAC1 is wrong is no card of ours: without this check an account would be debited for it.
    pub fn authorize_load(
        &self,
        profile: &CardProfile,
        request: &LoadRequest,
        time: CardTime,
    ) -> Result<JournalEntry, LoadRefusal> {
        let begun = &request.begun;
        profile.fits_load(begun.algorithm_id, begun.key_version)?;
        let (amount, balance, max) = (request.amount, begun.balance, profile.balance_fen_max);
        let after = balance.checked_add(amount).filter(|after| *after <= max);
        if amount == PurseFen::ZERO || after.is_none() {
            return Err(LoadRefusal::Amount { amount: amount.get(), balance: balance.get(), max: max.get() });
        }
        begun.counter.next().ok_or(LoadRefusal::CounterExhausted)?;
        let terms = load_terms(request, time);
        let session = self.session(profile.algorithm, request.serial, &terms);
        if terms.mac1(&session) != begun.mac1 {
            return Err(LoadRefusal::WrongProof);
        }
        Ok(JournalEntry {
            serial: request.serial,
            algorithm: profile.algorithm,
            key_version: begun.key_version,
            terms,
            mac: terms.mac2(&session),
        })
    }

    /// A load that was authorized before, from what was kept of it: its terms say all that MAC2 binds.
    pub fn load_again(
        &self,
        algorithm: Algorithm,
        key_version: u8,
        serial: CardSerial,
        terms: Terms,
    ) -> JournalEntry {
        let mac = terms.mac2(&self.session(algorithm, serial, &terms));
        JournalEntry { serial, algorithm, key_version, terms, mac }
    }

    /// Whether a TAC is the card's own, of a load or of a purchase. One that is not is no card's, or a card's of which somebody
    /// holds the purchase key alone.
    pub fn tac_is_right(&self, entry: &JournalEntry, tac: Mac) -> bool {
        let key = self.tac.diversify(entry.algorithm, entry.serial, Purpose::Tac).tac(entry.algorithm);
        entry.terms.tac(&key) == Some(tac)
    }

    /// What became of a load that was cut, from what the card said to a probe that was drawn for this.
    pub fn resolve_load(
        &self,
        profile: &CardProfile,
        entry: &JournalEntry,
        probe: &LoadProbe,
        evidence: &Evidence,
    ) -> Outcome {
        let proof = match evidence.seen.proof {
            ProofSeen::Unchecked(tac) | ProofSeen::Right(tac) => {
                if self.tac_is_right(entry, tac) {
                    ProofSeen::Right(tac)
                } else {
                    ProofSeen::Wrong
                }
            }
            other => other,
        };
        // The counter and balance that MAC1 binds, not those that somebody says.
        let (seen, proven) = match &evidence.begun {
            Some(begun) => {
                let amount = PurseFen::new(PROBE_LOAD_FEN).expect("one fen fits into a purse");
                let request =
                    LoadRequest { serial: entry.serial, amount, terminal: probe.challenge, begun: *begun };
                let terms = load_terms(&request, entry.terms.time);
                let session = self.session(entry.algorithm, entry.serial, &terms);
                let proven = terms.mac1(&session) == begun.mac1;
                let log = evidence.seen.log.clone();
                (Seen { counter: begun.counter, balance: begun.balance, proof, log }, proven)
            }
            None => (Seen { proof, ..evidence.seen.clone() }, false),
        };
        resolve_load(entry, profile, &seen, proven)
    }

    fn session(&self, algorithm: Algorithm, serial: CardSerial, terms: &Terms) -> MacKey {
        terms.session_key(algorithm, &self.load.diversify(algorithm, serial, Purpose::Load))
    }
}

const fn load_terms(request: &LoadRequest, time: CardTime) -> Terms {
    Terms {
        kind: Kind::Load,
        amount: request.amount,
        terminal: request.terminal,
        sequence: TerminalSequence(0),
        time,
        balance_before: request.begun.balance,
        counter: request.begun.counter,
        random: request.begun.random,
    }
}

#[cfg(test)]
mod tests {
    use super::super::apdu::LoadBegun;
    use super::super::values::Counter;
    use super::*;

    fn issuer() -> Issuer {
        Issuer::new(
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0".parse().unwrap(),
            "5566778899aabbccddeeff0011223344".parse().unwrap(),
        )
    }

    fn profile() -> CardProfile {
        CardProfile::of_one(request().serial)
    }

    fn request() -> LoadRequest {
        LoadRequest {
            serial: "31000000202600012345".parse().unwrap(),
            amount: PurseFen::new(5_000).unwrap(),
            terminal: "000000000117".parse().unwrap(),
            begun: LoadBegun {
                balance: PurseFen::new(150).unwrap(),
                counter: Counter(7),
                key_version: 1,
                algorithm_id: 0,
                random: "9c4e21b7".parse().unwrap(),
                mac1: "a221ce5f".parse().unwrap(),
            },
        }
    }

    fn time() -> CardTime {
        "20260901113005".parse().unwrap()
    }

    #[test]
    fn the_example_load_is_authorized_and_its_tac_is_right() {
        let entry = issuer().authorize_load(&profile(), &request(), time()).unwrap();
        assert_eq!(entry.mac.to_string(), "b85f2237");
        assert!(issuer().tac_is_right(&entry, "2e731ec0".parse().unwrap()));
        assert!(!issuer().tac_is_right(&entry, "2e731ec1".parse().unwrap()));
    }

    #[test]
    fn a_load_for_a_card_that_proves_nothing_is_refused() {
        let mut forged = request();
        forged.begun.mac1 = "a221ce5e".parse().unwrap();
        assert_eq!(issuer().authorize_load(&profile(), &forged, time()), Err(LoadRefusal::WrongProof));
        // The amount that the card was asked for is the one that it proves.
        let more = LoadRequest { amount: PurseFen::new(5_001).unwrap(), ..request() };
        assert_eq!(issuer().authorize_load(&profile(), &more, time()), Err(LoadRefusal::WrongProof));
    }

    #[test]
    fn a_load_beyond_the_purse_or_of_nothing_is_refused() {
        let small = CardProfile { balance_fen_max: PurseFen::new(5_149).unwrap(), ..profile() };
        let refusal = issuer().authorize_load(&small, &request(), time()).unwrap_err();
        assert_eq!(refusal, LoadRefusal::Amount { amount: 5_000, balance: 150, max: 5_149 });
        let nothing = LoadRequest { amount: PurseFen::ZERO, ..request() };
        assert!(matches!(
            issuer().authorize_load(&profile(), &nothing, time()),
            Err(LoadRefusal::Amount { amount: 0, .. })
        ));
        let mut worn = request();
        worn.begun.counter = Counter(u16::MAX);
        assert_eq!(issuer().authorize_load(&profile(), &worn, time()), Err(LoadRefusal::CounterExhausted));
    }

    #[test]
    fn a_downgraded_load_is_refused() {
        let modern = CardProfile { algorithm: Algorithm::AesCmac, ..profile() };
        assert!(matches!(
            issuer().authorize_load(&modern, &request(), time()),
            Err(LoadRefusal::Misfit(super::super::profile::Misfit::Algorithm { expected: 0x11, got: 0 }))
        ));
    }
}
