//! Which cards are served, and how they are spoken to. A profile comes from the centre, never from the card: what a card says of
//! its algorithm and key version must be what its profile says, or the touch ends (no downgrade).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::apdu::APPLICATION_NAME_BYTES_MAX;
use super::file::{CARD_SFI, HOLDER_SFI, LOG_SFI};
use super::key::Algorithm;
use super::values::{CardDate, CardSerial, CardTime, Counter, PurseFen};
use crate::chain::{hex, unhex};

/// The name of an application on a card (ISO 7816-4), 5 to 16 bytes. Text: hex.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApplicationName(Vec<u8>);

impl ApplicationName {
    /// Ours, of the unregistered category (first digit F): `FEIQIAN` and 01.
    pub fn feiqian() -> Self {
        Self([&[0xF0][..], b"FEIQIAN", &[0x01]].concat())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ApplicationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for ApplicationName {
    type Err = ProfileError;
    fn from_str(text: &str) -> Result<Self, ProfileError> {
        unhex(text)
            .filter(|bytes| (5..=APPLICATION_NAME_BYTES_MAX).contains(&bytes.len()))
            .map(Self)
            .ok_or(ProfileError::Application)
    }
}

impl Serialize for ApplicationName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ApplicationName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which counter a card's log records hold.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogCounter {
    /// The counter after the transaction.
    After,
    /// The counter before it, as on our cards.
    #[default]
    Before,
}

/// Where a card keeps the record of compound purchases.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RecordPlace {
    /// Short file identifier, 1 to 30.
    pub sfi: u8,
    /// Record, from 1.
    pub number: u8,
}

/// Cards of a range of serials.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CardProfile {
    /// First serial.
    pub first: CardSerial,
    /// Last serial.
    pub last: CardSerial,
    /// How MACs and keys are computed.
    pub algorithm: Algorithm,
    /// The algorithm id that these cards answer; that of [`Algorithm::id`] where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm_id: Option<u8>,
    /// Index of the purchase key.
    #[serde(default = "one")]
    pub purchase_key: u8,
    /// Version of the purchase key.
    #[serde(default = "one")]
    pub purchase_key_version: u8,
    /// Index of the load key.
    #[serde(default = "one")]
    pub load_key: u8,
    /// Version of the load key.
    #[serde(default = "one")]
    pub load_key_version: u8,
    /// Which counter the log holds.
    #[serde(default)]
    pub log_counter: LogCounter,
    /// Most fen that a purse of these cards may hold.
    pub balance_fen_max: PurseFen,
    /// Where the record of compound purchases is; none where these cards have no such purchases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordPlace>,
    /// Short file identifier (1 to 30) of the binary file that carries the card's issuance; none where these cards have no such file. It
    /// may be written by anybody: what stands in it proves itself, or counts as nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuance: Option<u8>,
}

const fn one() -> u8 {
    1
}

/// Why a card does not fit its profile, or is out of its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Misfit {
    /// Another algorithm than the profile's.
    #[error("the card says algorithm {got:02x}, its profile {expected:02x}")]
    Algorithm {
        /// Of the profile.
        expected: u8,
        /// Of the card.
        got: u8,
    },
    /// Another key version than the profile's.
    #[error("the card says key version {got}, its profile {expected}")]
    KeyVersion {
        /// Of the profile.
        expected: u8,
        /// Of the card.
        got: u8,
    },
    /// After its last day.
    #[error("the card was valid until {0}")]
    Expired(CardDate),
    /// Before its first day.
    #[error("the card is valid from {0} on")]
    NotYetValid(CardDate),
}

impl CardProfile {
    /// Of one card of the standard's algorithm, for tests.
    #[cfg(test)]
    pub(super) fn of_one(serial: CardSerial) -> Self {
        Self {
            first: serial,
            last: serial,
            algorithm: Algorithm::Des,
            algorithm_id: None,
            purchase_key: 1,
            purchase_key_version: 1,
            load_key: 1,
            load_key_version: 1,
            log_counter: LogCounter::Before,
            balance_fen_max: PurseFen::new(100_000).expect("a purse holds it"),
            record: None,
            issuance: None,
        }
    }

    /// The algorithm id that these cards answer.
    pub fn expected_id(&self) -> u8 {
        self.algorithm_id.unwrap_or(self.algorithm.id())
    }

    /// Refuses an algorithm or a version of the purchase key that is not the profile's.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn fits_purchase(&self, algorithm_id: u8, key_version: u8) -> Result<(), Misfit> {
        self.fits(algorithm_id, key_version, self.purchase_key_version)
    }

    /// Refuses an algorithm or a version of the load key that is not the profile's.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn fits_load(&self, algorithm_id: u8, key_version: u8) -> Result<(), Misfit> {
        self.fits(algorithm_id, key_version, self.load_key_version)
    }

    /// The counter in the log record of the transaction whose INITIALIZE answered `counter`.
    pub fn logged(&self, counter: Counter) -> Option<Counter> {
        match self.log_counter {
            LogCounter::Before => Some(counter),
            LogCounter::After => counter.next(),
        }
    }

    fn fits(&self, algorithm_id: u8, key_version: u8, version: u8) -> Result<(), Misfit> {
        if algorithm_id != self.expected_id() {
            return Err(Misfit::Algorithm { expected: self.expected_id(), got: algorithm_id });
        }
        if key_version != version {
            return Err(Misfit::KeyVersion { expected: version, got: key_version });
        }
        Ok(())
    }
}

/// Refuses a card before its first day and after its last.
///
/// # Errors
/// [`Misfit`].
pub fn in_time(card: &super::file::CardData, time: CardTime) -> Result<(), Misfit> {
    if time.date() < card.start {
        return Err(Misfit::NotYetValid(card.start));
    }
    if time.date() > card.expiry {
        return Err(Misfit::Expired(card.expiry));
    }
    Ok(())
}

/// All cards that are served: one application, profiles by serial.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CardProfiles {
    application: ApplicationName,
    profiles: Vec<CardProfile>,
}

/// Profiles that do not make sense.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// No application name.
    #[error("the name of an application has 5 to 16 bytes, in hex")]
    Application,
    /// A range that ends before it starts.
    #[error("the profile of cards {first} to {last} ends before it starts")]
    Backwards {
        /// First serial.
        first: CardSerial,
        /// Last serial.
        last: CardSerial,
    },
    /// Two ranges share a serial.
    #[error("card {0} would have two profiles")]
    Overlap(CardSerial),
    /// A short file identifier or a record number that cannot be.
    #[error("the profile of cards from {0} on has its record in no file (sfi 1 to 30, number from 1)")]
    Record(CardSerial),
    /// The same of the file for the issuance, or one that has another use.
    #[error(
        "the profile of cards from {0} on has its issuance in no file of its own (1 to 30, none of 21, 22, 24 and the record's)"
    )]
    Issuance(CardSerial),
}

impl CardProfiles {
    /// # Errors
    /// [`ProfileError`].
    pub fn new(application: ApplicationName, mut profiles: Vec<CardProfile>) -> Result<Self, ProfileError> {
        profiles.sort_by_key(|profile| profile.first);
        for profile in &profiles {
            let (first, last) = (profile.first, profile.last);
            if last < first {
                return Err(ProfileError::Backwards { first, last });
            }
            if profile.record.is_some_and(|place| !(1..=30).contains(&place.sfi) || place.number == 0) {
                return Err(ProfileError::Record(first));
            }
            let used =
                [CARD_SFI, HOLDER_SFI, LOG_SFI].into_iter().chain(profile.record.map(|place| place.sfi));
            if let Some(sfi) = profile.issuance
                && (!(1..=30).contains(&sfi) || used.into_iter().any(|other| other == sfi))
            {
                return Err(ProfileError::Issuance(first));
            }
        }
        for (one, next) in profiles.iter().zip(profiles.iter().skip(1)) {
            if next.first <= one.last {
                return Err(ProfileError::Overlap(next.first));
            }
        }
        Ok(Self { application, profiles })
    }

    /// The application that is selected.
    pub const fn application(&self) -> &ApplicationName {
        &self.application
    }

    /// The profile of a card; `None` for a card that is not served.
    pub fn of(&self, serial: CardSerial) -> Option<&CardProfile> {
        self.profiles.iter().find(|profile| (profile.first..=profile.last).contains(&serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(first: &str, last: &str) -> CardProfile {
        let text =
            format!(r#"{{"first":"{first}","last":"{last}","algorithm":"11","balance_fen_max":100000}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn profiles(ranges: &[(&str, &str)]) -> Result<CardProfiles, ProfileError> {
        let profiles = ranges.iter().map(|(first, last)| profile(first, last)).collect();
        CardProfiles::new(ApplicationName::feiqian(), profiles)
    }

    const A: &str = "31000000202600000000";
    const B: &str = "31000000202600009999";
    const C: &str = "31000000202600010000";

    #[test]
    fn a_card_has_the_profile_of_its_range() {
        let profiles = profiles(&[(C, C), (A, B)]).unwrap();
        assert_eq!(profiles.of(B.parse().unwrap()).unwrap().first.to_string(), A);
        assert_eq!(profiles.of(C.parse().unwrap()).unwrap().first.to_string(), C);
        assert_eq!(profiles.of("31000000202600010001".parse().unwrap()), None);
        assert_eq!(profiles.application().to_string(), "f04645495149414e01");
    }

    #[test]
    fn ranges_that_make_no_sense_are_named() {
        assert!(matches!(profiles(&[(B, A)]), Err(ProfileError::Backwards { .. })));
        assert_eq!(profiles(&[(A, B), (B, C)]), Err(ProfileError::Overlap(B.parse().unwrap())));
        let mut odd = profile(A, B);
        odd.record = Some(RecordPlace { sfi: 31, number: 1 });
        let odd = CardProfiles::new(ApplicationName::feiqian(), vec![odd]);
        assert_eq!(odd, Err(ProfileError::Record(A.parse().unwrap())));
        for sfi in [0, 31, 0x15, 0x18, 0x19] {
            let mut odd = profile(A, B);
            odd.record = Some(RecordPlace { sfi: 0x19, number: 1 });
            odd.issuance = Some(sfi);
            let odd = CardProfiles::new(ApplicationName::feiqian(), vec![odd]);
            assert_eq!(odd, Err(ProfileError::Issuance(A.parse().unwrap())), "{sfi}");
        }
        assert_eq!("f0".parse::<ApplicationName>(), Err(ProfileError::Application));
    }

    #[test]
    fn a_card_that_says_a_weaker_algorithm_or_an_older_key_is_refused() {
        let modern = profile(A, B);
        assert_eq!(modern.fits_purchase(0x11, 1), Ok(()));
        assert_eq!(modern.fits_purchase(0x00, 1), Err(Misfit::Algorithm { expected: 0x11, got: 0x00 }));
        assert_eq!(modern.fits_load(0x11, 0), Err(Misfit::KeyVersion { expected: 1, got: 0 }));
        let foreign = CardProfile { algorithm: Algorithm::Des, algorithm_id: Some(0x01), ..modern };
        assert_eq!(foreign.fits_purchase(0x01, 1), Ok(()));
        assert!(foreign.fits_purchase(0x00, 1).is_err());
    }
}
