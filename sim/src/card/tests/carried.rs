//! What a card carries of its issuance: signed for it, or nothing.

use ed25519_dalek::SigningKey;
use feiqian_protocol::ids::{AccountId, CardNumber, InstitutionId};
use feiqian_protocol::issuance::{Issuance, SignedIssuance};
use feiqian_protocol::purse::carried::{CarryError, read, write};
use feiqian_protocol::purse::identify::Identified;
use feiqian_protocol::time::Timestamp;

use super::*;
use crate::card::applet::ISSUANCE_SFI;

const SERIAL: &str = "31000000202600012345";

fn signed(card: &str) -> SignedIssuance {
    Issuance {
        institution: InstitutionId(1),
        account: AccountId(7),
        card: CardNumber::new(card).unwrap(),
        replaces: CardNumber::new("31000000202600012344").ok(),
        time: Timestamp(1_788_232_907_836),
    }
    .sign(&SigningKey::from_bytes(&[9; 32]))
}

fn carrying() -> CardProfiles {
    let profile = CardProfile { issuance: Some(ISSUANCE_SFI), ..profile(Algorithm::Des, false) };
    CardProfiles::new(ApplicationName::feiqian(), vec![profile]).unwrap()
}

/// The card comes, and says who it is.
fn touch(field: &mut Field, profiles: &CardProfiles, cut: Option<(usize, Cut)>) -> Identified {
    // Two commands of every touch say who the card is.
    field.touch(cut.map(|(at, cut)| (at + 2, cut)));
    touch::identify(field, profiles).unwrap()
}

#[test]
fn an_issuance_is_carried_whole_or_not_at_all() {
    let (mut field, profiles) = (Field::new(new_card(Algorithm::Des)), carrying());
    let issuance = signed(SERIAL);
    let card = touch(&mut field, &profiles, None);
    assert_eq!(read(&mut field, &card), None, "a new card carries nothing");
    for cut in cuts() {
        for at in 0..2 {
            let mut torn = Field::new(new_card(Algorithm::Des));
            let card = touch(&mut torn, &profiles, Some((at, cut)));
            assert!(write(&mut torn, &card, &issuance).is_err(), "{at} {cut:?}");
            let card = touch(&mut torn, &profiles, None);
            let carried = read(&mut torn, &card);
            assert!(carried.is_none() || carried.as_ref() == Some(&issuance), "{at} {cut:?}");
            write(&mut torn, &card, &issuance).unwrap();
            assert_eq!(read(&mut torn, &card), Some(issuance.clone()));
        }
    }
    // Half of another one over it: neither.
    write(&mut field, &card, &issuance).unwrap();
    let half = Command::UpdateBinary { sfi: ISSUANCE_SFI, offset: 40, data: vec![0xFF; 30] };
    assert_eq!(field.transmit(&half.encode()).unwrap(), answer(StatusWord::Done, &[]));
    assert_eq!(read(&mut field, &card), None);
}

#[test]
fn nothing_is_carried_that_is_not_of_the_card() {
    let (mut field, profiles) = (Field::new(new_card(Algorithm::Des)), carrying());
    let card = touch(&mut field, &profiles, None);
    let other = signed("31000000202600012346");
    assert!(matches!(write(&mut field, &card, &other), Err(CarryError::OtherCard(_))));
    // Somebody puts another card's onto it by himself.
    let bytes = other.to_bytes();
    let file = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    field.transmit(&Command::UpdateBinary { sfi: ISSUANCE_SFI, offset: 0, data: file }.encode()).unwrap();
    assert_eq!(read(&mut field, &card), None);
    for garbage in [vec![0xFF; 254], vec![0, 0], vec![0, 1, 0xA0], vec![1, 0, 0]] {
        let update = Command::UpdateBinary { sfi: ISSUANCE_SFI, offset: 0, data: garbage };
        field.transmit(&update.encode()).unwrap();
        assert_eq!(read(&mut field, &card), None);
    }
    let plain = CardProfiles::new(ApplicationName::feiqian(), vec![profile(Algorithm::Des, false)]).unwrap();
    let card = touch(&mut field, &plain, None);
    assert!(matches!(write(&mut field, &card, &signed(SERIAL)), Err(CarryError::NoFile(_))));
    // No other file may be written.
    let over = Command::UpdateBinary { sfi: 0x15, offset: 0, data: vec![0] };
    assert_eq!(field.transmit(&over.encode()).unwrap(), answer(StatusWord::PinNotVerified, &[]));
}
