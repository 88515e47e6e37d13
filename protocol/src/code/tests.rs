use proptest::prelude::*;

use super::*;

const INSTITUTION: InstitutionId = InstitutionId(7);

/// 2026-09-01, noon in China.
const NOON_S: u32 = 1_788_235_200;

/// Seconds of two hours.
const LIFE_S: u32 = 7_200;

fn centre() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn phone(algorithm: PhoneAlgorithm, seed: u8) -> PhoneSecret {
    PhoneSecret::new(algorithm, &[seed; 32]).unwrap()
}

fn keys() -> Vec<VoucherKey> {
    let at = |seconds| Timestamp(i64::from(seconds) * 1_000);
    let key = centre().verifying_key();
    vec![VoucherKey { number: 3, key, from_ms: at(NOON_S - 86_400), to_ms: at(NOON_S + 86_400) }]
}

fn terms(secret: &PhoneSecret) -> Voucher {
    Voucher {
        institution: INSTITUTION,
        centre_key: 3,
        account: AccountId(42),
        number: 9,
        issued: NOON_S,
        life_minutes: 120,
        ceiling: Fen::new(1_500),
        phone: secret.key(),
    }
}

fn voucher(secret: &PhoneSecret) -> SignedVoucher {
    terms(secret).sign(&centre()).unwrap()
}

fn exactly(seconds: u32) -> CentreTime {
    CentreTime::about(Timestamp(i64::from(seconds) * 1_000), 0)
}

/// What becomes of bytes that are shown at noon.
fn verdict(bytes: &[u8]) -> Result<(), CodeFault> {
    Code::from_bytes(bytes)?.check(INSTITUTION, &keys()).judge(&exactly(NOON_S))
}

const BOTH: [PhoneAlgorithm; 2] = [PhoneAlgorithm::P256, PhoneAlgorithm::Ed25519];

#[test]
fn a_code_has_the_layout_of_the_table_and_comes_back_from_every_form() {
    for (algorithm, length, digits) in [(PhoneAlgorithm::P256, 195, 476), (PhoneAlgorithm::Ed25519, 194, 474)]
    {
        let secret = phone(algorithm, 1);
        let code = Code::sign(&voucher(&secret), &secret, NOON_S, 258).unwrap();
        let bytes = code.to_bytes();
        assert_eq!((bytes.len(), code.to_digits().len()), (length, digits));
        assert_eq!(bytes[..4], [0x10 | algorithm.number(), 0, 7, 3]);
        assert_eq!(bytes[4..16], [0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 9]);
        assert_eq!(bytes[16..20], NOON_S.to_be_bytes());
        assert_eq!(bytes[20..27], [0, 120, 0, 0x05, 0xdc, 0, 0]);
        assert_eq!(bytes[27..27 + algorithm.key_bytes()], *secret.key().as_bytes());
        let stamp = &bytes[algorithm.voucher_bytes()..][..7];
        assert_eq!(*stamp, [&[1][..], &NOON_S.to_be_bytes(), &[1, 2]].concat());
        for text in [code.to_digits(), code.to_base64url()] {
            assert_eq!(Code::from_text(&text), Ok(code.clone()), "{text}");
        }
        assert_eq!(SignedVoucher::from_text(&code.voucher.to_base64url()), Ok(code.voucher.clone()));
        assert_eq!(verdict(&bytes), Ok(()));
        assert_eq!(Code::sign(&code.voucher, &secret, NOON_S, 0), None, "counters start at 1");
    }
}

#[test]
fn digits_of_another_length_or_beyond_a_block_are_no_code() {
    let secret = phone(PhoneAlgorithm::P256, 1);
    let digits = Code::sign(&voucher(&secret), &secret, NOON_S, 1).unwrap().to_digits();
    let beyond = |at: usize, block: &str| {
        let mut text = digits.clone();
        text.replace_range(at..at + block.len(), block);
        text
    };
    // 2^56 in the first block, 2^48 in the last.
    let first = beyond(2, "72057594037927936");
    let last = beyond(461, "281474976710656");
    let bad = [
        &digits[..475],
        &format!("{digits}0"),
        &first,
        &last,
        &digits[2..],
        "",
        "90",
        "91",
        "90x",
        "E\u{4e00}",
    ];
    for text in bad {
        assert_eq!(Code::from_text(text), Err(CodeFault::Layout), "{text}");
    }
    // What just fits a block is read, and is another code.
    assert!(Code::from_text(&beyond(461, "281474976710655")).is_ok());
}

#[test]
fn base64url_has_one_text_for_a_code() {
    let secret = phone(PhoneAlgorithm::Ed25519, 1);
    let text = Code::sign(&voucher(&secret), &secret, NOON_S, 1).unwrap().to_base64url();
    let (body, last) = text.split_at(text.len() - 1);
    // 194 bytes leave two bits of the last digit unused.
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.find(last).unwrap() + 1;
    for bad in
        [format!("{body}{}", &alphabet[next..=next]), format!("{text}="), format!("{text}A"), body.to_owned()]
    {
        assert_eq!(Code::from_text(&bad), Err(CodeFault::Layout), "{bad}");
    }
}

#[test]
fn nothing_of_a_code_can_be_changed() {
    for algorithm in BOTH {
        let secret = phone(algorithm, 1);
        let bytes = Code::sign(&voucher(&secret), &secret, NOON_S, 1).unwrap().to_bytes();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(verdict(&changed).is_err(), "{algorithm}: bit {bit} of byte {at}");
            }
        }
        for length in 0..bytes.len() {
            assert_eq!(verdict(&bytes[..length]), Err(CodeFault::Layout));
        }
        assert_eq!(verdict(&[&bytes[..], &[0]].concat()), Err(CodeFault::Layout));
    }
}

#[test]
fn a_voucher_is_worth_nothing_without_its_own_phone() {
    for algorithm in BOTH {
        let (holder, thief) = (phone(algorithm, 1), phone(algorithm, 2));
        let fault = |voucher: &SignedVoucher, secret: &PhoneSecret| {
            verdict(&Code::sign(voucher, secret, NOON_S, 1).unwrap().to_bytes())
        };
        assert_eq!(fault(&voucher(&holder), &thief), Err(CodeFault::CodeSignature));
        // What the phone signed over one voucher, under another of the same phone.
        let other = Voucher { number: 10, ..terms(&holder) }.sign(&centre()).unwrap();
        let of_one = Code::sign(&voucher(&holder), &holder, NOON_S, 1).unwrap().to_bytes();
        let moved = [other.as_bytes(), &of_one[algorithm.voucher_bytes()..]].concat();
        assert_eq!(verdict(&moved), Err(CodeFault::CodeSignature));
    }
}

#[test]
fn a_voucher_says_what_the_centre_signed() {
    let secret = phone(PhoneAlgorithm::P256, 1);
    let shown = |voucher: &[u8]| {
        let signed = SignedVoucher::from_bytes(voucher)?;
        verdict(&Code::sign(&signed, &secret, NOON_S, 1).unwrap().to_bytes())
    };
    let signed = voucher(&secret);
    assert_eq!(shown(signed.as_bytes()), Ok(()));
    let with = |at: usize, byte: u8| {
        let mut bytes = signed.as_bytes().to_vec();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(shown(&with(22, 0xff)), Err(CodeFault::VoucherSignature), "a raised ceiling");
    assert_eq!(shown(&with(3, 4)), Err(CodeFault::CentreKey), "another key's number");
    assert_eq!(shown(&with(2, 8)), Err(CodeFault::Institution));
    assert_eq!(shown(&with(25, 1)), Err(CodeFault::Layout), "a patron class that nobody reads");
    // A chain of one's own making: whoever signs, it is not the key of that number.
    let forger = SigningKey::from_bytes(&[6; 32]);
    let forged = terms(&secret).sign(&forger).unwrap();
    assert_eq!(shown(forged.as_bytes()), Err(CodeFault::VoucherSignature));
    // Issued when its key was not in use yet, or no more.
    for issued in [NOON_S - 86_401, NOON_S + 86_400] {
        let early = Voucher { issued, ..terms(&secret) }.sign(&centre()).unwrap();
        assert_eq!(shown(early.as_bytes()), Err(CodeFault::CentreKey));
    }
    for (field, bad) in [
        ("account", Voucher { account: AccountId(0), ..terms(&secret) }),
        ("account", Voucher { account: AccountId(ACCOUNT_END), ..terms(&secret) }),
        ("number", Voucher { number: 0, ..terms(&secret) }),
        ("life", Voucher { life_minutes: 0, ..terms(&secret) }),
        ("ceiling", Voucher { ceiling: Fen::new(1 << 24), ..terms(&secret) }),
        ("ceiling", Voucher { ceiling: Fen::new(-1), ..terms(&secret) }),
    ] {
        assert_eq!(bad.sign(&centre()), Err(CodeFault::Layout), "{field}");
    }
}

#[test]
fn of_two_signatures_that_mean_the_same_one_is_taken() {
    let secret = phone(PhoneAlgorithm::P256, 1);
    let bytes = Code::sign(&voucher(&secret), &secret, NOON_S, 1).unwrap().to_bytes();
    // s as the order of P-256 (FIPS 186-5) less s.
    let order = unhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
    let mut high = bytes.clone();
    let mut borrow = 0;
    for at in (0..32).rev() {
        let digit = i32::from(order[at]) - i32::from(bytes[163 + at]) - borrow;
        borrow = i32::from(digit < 0);
        high[163 + at] = digit.rem_euclid(256) as u8;
    }
    let of = |bytes: &[u8]| p256::ecdsa::Signature::from_slice(&bytes[131..]).unwrap();
    assert_eq!(of(&high).normalize_s(), of(&bytes), "the arithmetic would take both");
    assert_eq!(verdict(&high), Err(CodeFault::CodeSignature));

    // Ed25519: s and s + the order of the group (RFC 8032).
    let secret = phone(PhoneAlgorithm::Ed25519, 1);
    let bytes = Code::sign(&voucher(&secret), &secret, NOON_S, 1).unwrap().to_bytes();
    let order = unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    for start in [162, 91] {
        let mut other = bytes.clone();
        let mut carry = 0;
        for at in 0..32 {
            let digit = u32::from(bytes[start + at]) + u32::from(order[at]) + carry;
            (other[start + at], carry) = (digit as u8, digit >> 8);
        }
        assert!(verdict(&other).is_err(), "at {start}");
    }
}

#[test]
fn keys_have_one_form_and_are_points() {
    let p256 = phone(PhoneAlgorithm::P256, 1).key();
    let hybrid = [&[5], &p256.as_bytes()[1..]].concat();
    let nowhere = [&[2][..], &[0xff; 32]].concat();
    for bad in [&hybrid[..], &nowhere, &p256.as_bytes()[1..], &[0; 33]] {
        assert!(PhoneKey::new(PhoneAlgorithm::P256, bad).is_err(), "{bad:?}");
    }
    // The neutral point, under which anything is signed; and a point whose y is not reduced.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut unreduced = [0xff; 32];
    (unreduced[0], unreduced[31]) = (0xf0, 0x7f);
    for bad in [&neutral[..], &unreduced, &[0; 31]] {
        assert!(PhoneKey::new(PhoneAlgorithm::Ed25519, bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_voucher_ends_when_it_says_as_far_as_the_clock_knows() {
    let secret = phone(PhoneAlgorithm::P256, 1);
    let at = |time: u32, now: CentreTime| {
        let code = Code::sign(&voucher(&secret), &secret, time, 1).unwrap();
        code.check(INSTITUTION, &keys()).judge(&now)
    };
    let end = NOON_S + LIFE_S;
    let doubtful = |seconds: u32| CentreTime::about(Timestamp(i64::from(seconds) * 1_000), 2_000);
    assert_eq!(at(end, exactly(end)), Ok(()));
    assert_eq!(at(end, exactly(end + 1)), Err(CodeFault::Period));
    assert_eq!(at(end, doubtful(end + 1)), Ok(()));
    assert_eq!(at(end, doubtful(end + 3)), Err(CodeFault::Period));
    assert_eq!(at(NOON_S - 10, exactly(NOON_S - 10)), Ok(()), "issued by a clock that is ahead a little");
    assert_eq!(at(NOON_S - 11, exactly(NOON_S - 11)), Err(CodeFault::Period));
    let unproven = |earliest: u32| CentreTime { latest: None, ..exactly(earliest) };
    assert_eq!(at(end, unproven(NOON_S - 86_400)), Ok(()));
    assert_eq!(at(end, unproven(end + 1)), Err(CodeFault::Period), "it cannot be earlier than that");
}

#[test]
fn a_screenshot_dies_with_its_window() {
    let secret = phone(PhoneAlgorithm::P256, 1);
    let code = Code::sign(&voucher(&secret), &secret, NOON_S + 60, 1).unwrap().check(INSTITUTION, &keys());
    let now = |seconds: u32, doubt_s: i64| {
        code.judge(&CentreTime::about(Timestamp(i64::from(NOON_S + seconds) * 1_000), doubt_s * 1_000))
    };
    for (seconds, doubt_s, expected) in [
        (60, 0, Ok(())),
        (100, 0, Ok(())),
        (101, 0, Err(CodeFault::Time)),
        (101, 2, Ok(())),
        (103, 2, Err(CodeFault::Time)),
        (50, 0, Ok(())),
        (49, 0, Err(CodeFault::Time)),
        (49, 2, Ok(())),
        (47, 2, Err(CodeFault::Time)),
    ] {
        assert_eq!(now(seconds, doubt_s), expected, "{seconds} s, {doubt_s} s of doubt");
    }
}

#[test]
fn the_first_fault_in_the_order_of_checks_is_named() {
    let (secret, thief) = (phone(PhoneAlgorithm::P256, 1), phone(PhoneAlgorithm::P256, 2));
    let late = exactly(NOON_S + LIFE_S + 100);
    let judged =
        |institution: u16, centre_key: u8, key: &SigningKey, secret: &PhoneSecret, now: CentreTime| {
            let terms = Voucher {
                institution: InstitutionId(institution),
                centre_key,
                ..terms(&phone(PhoneAlgorithm::P256, 1))
            };
            let code = Code::sign(&terms.sign(key).unwrap(), secret, NOON_S, 1).unwrap();
            code.check(INSTITUTION, &keys()).judge(&now)
        };
    let forger = SigningKey::from_bytes(&[6; 32]);
    assert_eq!(judged(8, 4, &forger, &thief, late), Err(CodeFault::Institution));
    assert_eq!(judged(7, 4, &forger, &thief, late), Err(CodeFault::CentreKey));
    assert_eq!(judged(7, 3, &forger, &thief, late), Err(CodeFault::VoucherSignature));
    assert_eq!(judged(7, 3, &centre(), &thief, late), Err(CodeFault::Period));
    assert_eq!(judged(7, 3, &centre(), &thief, exactly(NOON_S + 100)), Err(CodeFault::CodeSignature));
    assert_eq!(judged(7, 3, &centre(), &secret, exactly(NOON_S + 100)), Err(CodeFault::Time));
    assert_eq!(judged(7, 3, &centre(), &secret, exactly(NOON_S)), Ok(()));
}

#[test]
fn a_virtual_card_has_the_number_of_its_phone() {
    let card = CardNumber::of_phone(&phone(PhoneAlgorithm::P256, 1).key());
    assert!(card.is_virtual() && card != CardNumber::of_phone(&phone(PhoneAlgorithm::P256, 2).key()));
    assert!(!CardNumber::new("c00001").unwrap().is_virtual());
}

proptest! {
    #[test]
    fn whatever_is_read_as_a_code_is_written_alike(text in "90[0-9]{0,500}|[A-Za-z0-9_-]{0,300}") {
        if let Ok(code) = Code::from_text(&text) {
            prop_assert!(text == code.to_digits() || text == code.to_base64url());
        }
    }

    #[test]
    fn every_voucher_and_code_comes_back(
        seed in 1..255_u8, account in 1..ACCOUNT_END, number in 1_u32.., issued: u32, life in 1_u16..,
        ceiling in 0_i64..1 << 24, time: u32, counter in 1_u16.., which in 0_usize..2,
    ) {
        let secret = phone(BOTH[which], seed);
        let terms = Voucher {
            account: AccountId(account), number, issued, life_minutes: life, ceiling: Fen::new(ceiling),
            ..terms(&secret)
        };
        let code = Code::sign(&terms.sign(&centre()).unwrap(), &secret, time, counter).unwrap();
        prop_assert_eq!(code.voucher.voucher(), &terms);
        prop_assert_eq!(Code::from_text(&code.to_digits()), Ok(code.clone()));
        prop_assert_eq!(Code::from_text(&code.to_base64url()), Ok(code));
    }
}
