//! JSON bodies into typed requests. What is wrong is said by the field's name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use feiqian_protocol::code::{CheckedCode, Code, ShortCode};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::{CardNumber, Key, TerminalId};
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::limits::PIN_DIGITS;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::{PaymentPin, PinError};
use feiqian_protocol::tap::{DeclineReason, Pin, ReversalRequest, TapKey, TapKind, TapRequest};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::io::Presented;
use crate::settings::{SettingKind, SettingRequest};

/// Why a body is no request.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// Not a JSON object.
    #[error("the body must be a JSON object: {0}")]
    Json(String),
    /// A field is not what it must be.
    #[error("field {field:?} {why}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// What was entered is no PIN. It is in no message.
    #[error("field {0:?} must be a text of {PIN_DIGITS} digits")]
    Pin(&'static str),
    /// What was chosen is no choice.
    #[error("field \"new_pin\": {0}")]
    Guessable(PinError),
    /// The quantity is a number beyond every range.
    #[error("field \"quantity\" is out of range")]
    Quantity,
}

/// What a tap is, and the PIN that was entered, which is not hashed yet.
pub type Read = (TapRequest, Option<PaymentPin>);

/// Reads a tap of this terminal, and has the code checked that stands in place of a card. The decline where what was presented
/// as one is none: a scanner that misread is nothing that the terminal did wrong.
///
/// # Errors
/// [`BodyError`].
pub fn tap(
    terminal: &TerminalId,
    body: &[u8],
    check: impl FnOnce(Code) -> CheckedCode,
) -> Result<Result<Read, DeclineReason>, BodyError> {
    let mut fields = Fields::parse(body)?;
    let key = fields.key(terminal)?;
    let (card, code) = fields.presented()?;
    let amount = fields.amount()?;
    let quantity = fields.optional("quantity")?.map(quantity).transpose()?;
    let pin = fields.optional("pin")?.map(|value| pin("pin", value)).transpose()?;
    let kind = match (fields.required("kind")?.as_str(), amount, quantity) {
        (Some("purchase"), Some(amount), None) => TapKind::Amount(amount),
        (Some("purchase"), None, Some(quantity)) => TapKind::Quantity(quantity),
        (Some("purchase"), None, None) => {
            return Err(wrong("amount_fen", "is missing (or amount, or quantity)"));
        }
        (Some("purchase"), Some(_), Some(_)) => {
            return Err(wrong("quantity", "cannot stand beside an amount"));
        }
        (Some("access"), None, None) => TapKind::Access,
        (Some("access"), Some(_), _) => return Err(wrong("amount_fen", "cannot stand in an access")),
        (Some("access"), None, Some(_)) => return Err(wrong("quantity", "cannot stand in an access")),
        _ => return Err(wrong("kind", "must be \"purchase\" or \"access\"")),
    };
    fields.finish()?;
    if kind == TapKind::Access && pin.is_some() {
        return Err(wrong("pin", "cannot stand in an access"));
    }
    let entered = if pin.is_some() { Pin::NotHashed } else { Pin::Absent };
    let short = code.as_deref().and_then(ShortCode::from_text);
    if short.is_some() && pin.is_some() {
        return Err(wrong("pin", "cannot stand beside a short code: show the other one"));
    }
    let (card, code) = match (card, short, code) {
        (Some(card), ..) => (card, None),
        (None, Some(short), _) => (CardNumber::unnamed(&short), None),
        (None, None, code) => match Code::from_text(&code.unwrap_or_default()) {
            Ok(code) => {
                let code = check(code);
                (code.voucher().card(), Some(Box::new(code)))
            }
            Err(_) => return Ok(Err(DeclineReason::CodeUnreadable)),
        },
    };
    Ok(Ok((TapRequest { key, card, code, kind, pin: entered }, pin)))
}

/// Reads a reversal of this terminal.
///
/// # Errors
/// [`BodyError`].
pub fn reversal(terminal: &TerminalId, body: &[u8]) -> Result<ReversalRequest, BodyError> {
    let mut fields = Fields::parse(body)?;
    let key = fields.key(terminal)?;
    let Value::Object(original) = fields.required("original")? else {
        return Err(wrong("original", "must be an object with epoch and sequence"));
    };
    let mut original = Fields { prefix: "original.", values: original.into_iter().collect() };
    let original_key = original.key(terminal)?;
    original.finish()?;
    let amount = fields.amount()?;
    fields.finish()?;
    Ok(ReversalRequest { key, original: original_key, amount })
}

/// Reads a balance enquiry, and has the code checked that stands in place of a card; the decline where that is none.
///
/// # Errors
/// [`BodyError`].
pub fn balance(
    body: &[u8],
    check: impl FnOnce(Code) -> CheckedCode,
) -> Result<Result<Presented, DeclineReason>, BodyError> {
    let mut fields = Fields::parse(body)?;
    let presented = fields.presented()?;
    fields.finish()?;
    match presented {
        (Some(card), _) => Ok(Ok(card.into())),
        (None, code) => {
            let text = code.unwrap_or_default();
            if ShortCode::from_text(&text).is_some() {
                return Err(wrong("code", "must be the long one: a short code shows no balance"));
            }
            Ok(Code::from_text(&text)
                .map_err(|_| DeclineReason::CodeUnreadable)
                .map(|code| check(code).into()))
        }
    }
}

/// Reads a change of settings.
///
/// # Errors
/// [`BodyError`].
pub fn setting(terminal: &TerminalId, body: &[u8]) -> Result<SettingRequest, BodyError> {
    let mut fields = Fields::parse(body)?;
    let card = fields.text("card")?;
    let change = fields.required("change")?;
    let mut limit = |name: &str| match fields.optional(name)?.map(|fen| fen.as_i64()) {
        None => Ok(None),
        Some(Some(fen)) => Ok(Some(Fen::new(fen))),
        Some(None) => Err(wrong(name, "must be a whole number of fen")),
    };
    let limits = (limit("single_limit_fen")?, limit("daily_limit_fen")?);
    let kind = match (change.as_str(), limits) {
        (Some("lower_limits"), (None, None)) => {
            return Err(wrong("single_limit_fen", "is missing (or daily_limit_fen)"));
        }
        (Some("lower_limits"), (single, daily)) => SettingKind::LowerLimits { single, daily },
        (_, (Some(_), _)) => return Err(wrong("single_limit_fen", "stands with lower_limits only")),
        (_, (_, Some(_))) => return Err(wrong("daily_limit_fen", "stands with lower_limits only")),
        (Some("report_loss"), _) => SettingKind::ReportLoss,
        (Some("freeze"), _) => SettingKind::Freeze,
        (Some("void_card"), _) => SettingKind::VoidCard,
        (Some("show_card"), _) => {
            let issuance = fields.required("issuance")?;
            let signed = issuance.as_str().and_then(|text| SignedIssuance::from_text(text).ok());
            let signed =
                signed.ok_or_else(|| wrong("issuance", "must be a text that the centre has signed"))?;
            SettingKind::ShowCard(Box::new(signed))
        }
        _ => {
            let known =
                "must be \"report_loss\", \"lower_limits\", \"freeze\", \"void_card\" or \"show_card\"";
            return Err(wrong("change", known));
        }
    };
    let (by, proof) = if fields.values.contains_key("operator") {
        (fields.text("operator")?, Proof::Login)
    } else {
        (at(terminal)?, Proof::None)
    };
    fields.finish()?;
    Ok(SettingRequest { terminal: Some(terminal.clone()), card, kind, by, proof })
}

/// A holder wants another PIN.
pub struct PinChange {
    /// A card of the account.
    pub card: CardNumber,
    /// The PIN that is shown.
    pub shown: PaymentPin,
    /// The one that the holder has chosen.
    pub chosen: PaymentPin,
    /// Where.
    pub by: Key,
}

/// Reads a change of a PIN at this terminal.
///
/// # Errors
/// [`BodyError`].
pub fn pin_change(terminal: &TerminalId, body: &[u8]) -> Result<PinChange, BodyError> {
    let mut fields = Fields::parse(body)?;
    let card = fields.text("card")?;
    let shown = pin("pin", fields.required("pin")?)?;
    let chosen = pin("new_pin", fields.required("new_pin")?)?;
    fields.finish()?;
    let chosen = chosen.chosen().map_err(BodyError::Guessable)?;
    Ok(PinChange { card, shown, chosen, by: at(terminal)? })
}

/// A terminal as an actor.
fn at(terminal: &TerminalId) -> Result<Key, BodyError> {
    Key::new(terminal.as_str()).map_err(|_| wrong("operator", "is missing"))
}

fn wrong(field: &str, why: impl Into<String>) -> BodyError {
    BodyError::Field { field: field.to_owned(), why: why.into() }
}

fn pin(field: &'static str, value: Value) -> Result<PaymentPin, BodyError> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or(BodyError::Pin(field))
}

/// A whole number that no quantity can be is a quantity out of range, not a malformed one.
fn quantity(value: Value) -> Result<u32, BodyError> {
    if value.is_i64() || value.is_u64() {
        value.as_u64().and_then(|number| u32::try_from(number).ok()).ok_or(BodyError::Quantity)
    } else {
        Err(wrong("quantity", "must be a whole number"))
    }
}

/// The fields of an object that were not looked at yet.
struct Fields {
    prefix: &'static str,
    values: BTreeMap<String, Value>,
}

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let Object(values) =
            serde_json::from_slice(body).map_err(|error| BodyError::Json(error.to_string()))?;
        Ok(Self { prefix: "", values })
    }

    /// A field that may be absent or null.
    fn optional(&mut self, name: &str) -> Result<Option<Value>, BodyError> {
        Ok(self.values.remove(name).filter(|value| !value.is_null()))
    }

    fn required(&mut self, name: &str) -> Result<Value, BodyError> {
        self.optional(name)?.ok_or_else(|| self.wrong(name, "is missing"))
    }

    fn text<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Result<T, BodyError> {
        match self.required(name)? {
            Value::String(text) => {
                // The value itself stays out of the message: a card number must reach no log.
                text.parse().map_err(|_| {
                    self.wrong(name, "must be 1 to 64 visible ASCII characters, no comma or quotes")
                })
            }
            _ => Err(self.wrong(name, "must be a text")),
        }
    }

    /// A card, or a code in place of one.
    fn presented(&mut self) -> Result<(Option<CardNumber>, Option<String>), BodyError> {
        match self.optional("code")? {
            None if !self.values.contains_key("card") => Err(wrong("card", "is missing (or code)")),
            None => Ok((Some(self.text("card")?), None)),
            Some(_) if self.optional("card")?.is_some() => Err(wrong("code", "cannot stand beside card")),
            Some(Value::String(text)) => Ok((None, Some(text))),
            Some(_) => Err(wrong("code", "must be a text")),
        }
    }

    fn key(&mut self, terminal: &TerminalId) -> Result<TapKey, BodyError> {
        let epoch = self.required("epoch")?.as_u64().and_then(|epoch| u32::try_from(epoch).ok());
        let epoch =
            epoch.ok_or_else(|| self.wrong("epoch", "must be a whole number from 0 to 4294967295"))?;
        Ok(TapKey { terminal: terminal.clone(), epoch, sequence: self.text("sequence")? })
    }

    /// `amount_fen` or `amount`, not both. Their range is the core's to judge.
    fn amount(&mut self) -> Result<Option<Fen>, BodyError> {
        let fen = self.optional("amount_fen")?;
        let yuan = self.optional("amount")?;
        match (fen, yuan) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(self.wrong("amount", "cannot stand beside amount_fen")),
            (Some(fen), None) => match fen.as_i64() {
                Some(fen) => Ok(Some(Fen::new(fen))),
                None => Err(self.wrong("amount_fen", "must be a whole number of fen")),
            },
            (None, Some(Value::String(yuan))) => Fen::parse_yuan(&yuan)
                .map(Some)
                .map_err(|error| self.wrong("amount", format!("is wrong: {error}"))),
            (None, Some(_)) => Err(self.wrong("amount", "must be yuan as text, such as \"12.50\"")),
        }
    }

    fn finish(self) -> Result<(), BodyError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.wrong(&name.chars().take(64).collect::<String>(), "is not known")),
        }
    }

    fn wrong(&self, name: &str, why: impl Into<String>) -> BodyError {
        wrong(&format!("{}{name}", self.prefix), why)
    }
}

/// An object in which every name stands once: of two equal names, two readers could take different ones.
struct Object(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if values.contains_key(&name) {
                        return Err(serde::de::Error::custom(format_args!("field {name:?} stands twice")));
                    }
                    values.insert(name, value);
                }
                Ok(Object(values))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use feiqian_protocol::code::{PhoneAlgorithm, PhoneSecret, Voucher};
    use feiqian_protocol::ids::{AccountId, InstitutionId};
    use feiqian_protocol::issuance::Issuance;
    use feiqian_protocol::time::Timestamp;

    use super::super::api::{BalanceBody, Change, Kind, OriginalBody, ReversalBody, SettingBody, TapBody};
    use super::*;

    fn terminal() -> TerminalId {
        TerminalId::new("pos-1").unwrap()
    }

    fn key(epoch: u32, sequence: &str) -> TapKey {
        TapKey { terminal: terminal(), epoch, sequence: Key::new(sequence).unwrap() }
    }

    fn parsed(fields: &str) -> Result<TapKind, String> {
        let body = format!(r#"{{"epoch":1,"sequence":"2","card":"c1",{fields}}}"#);
        read(body.as_bytes()).map(|tap| tap.unwrap().0.kind).map_err(|error| error.to_string())
    }

    fn read(body: &[u8]) -> Result<Result<Read, DeclineReason>, BodyError> {
        tap(&terminal(), body, |code| code.check(InstitutionId(1), &[]))
    }

    #[test]
    fn what_a_client_serializes_is_what_the_node_reads() {
        let client = TapBody {
            epoch: 1,
            sequence: "269-1".to_owned(),
            card: Some("c02346".to_owned()),
            code: None,
            kind: Kind::Purchase,
            amount_fen: Some(1250),
            amount: None,
            quantity: None,
            pin: None,
        };
        let (request, pin) = read(&serde_json::to_vec(&client).unwrap()).unwrap().unwrap();
        assert_eq!(pin, None);
        let card = CardNumber::new("c02346").unwrap();
        let kind = TapKind::Amount(Fen::new(1250));
        let expected =
            TapRequest { key: key(1, "269-1"), card: card.clone(), code: None, kind, pin: Pin::Absent };
        assert_eq!(request, expected);

        let original = OriginalBody { epoch: 1, sequence: "269-1".to_owned() };
        let client =
            ReversalBody { epoch: 2, sequence: "1".to_owned(), original, amount_fen: None, amount: None };
        let request = reversal(&terminal(), &serde_json::to_vec(&client).unwrap()).unwrap();
        assert_eq!(request, ReversalRequest { key: key(2, "1"), original: key(1, "269-1"), amount: None });

        let client = BalanceBody { card: Some("c02346".to_owned()), code: None };
        let no_code = |_| panic!("there is none");
        assert_eq!(balance(&serde_json::to_vec(&client).unwrap(), no_code), Ok(Ok(card.into())));
    }

    #[test]
    fn a_change_of_settings_says_what_and_no_more() {
        let read = |fields: &str| {
            let body = format!(r#"{{"card":"c1",{fields}}}"#);
            setting(&terminal(), body.as_bytes()).map_err(|error| error.to_string())
        };
        let client = SettingBody {
            card: "c1".to_owned(),
            change: Change::LowerLimits,
            single_limit_fen: Some(1_000),
            daily_limit_fen: None,
            issuance: None,
            operator: Some("li.lei".to_owned()),
        };
        let request = setting(&terminal(), &serde_json::to_vec(&client).unwrap()).unwrap();
        assert_eq!(request.kind, SettingKind::LowerLimits { single: Some(Fen::new(1_000)), daily: None });
        assert_eq!((request.by.as_str(), request.proof), ("li.lei", Proof::Login));
        let request = read(r#""change":"report_loss""#).unwrap();
        assert_eq!((request.kind, request.proof), (SettingKind::ReportLoss, Proof::None));
        assert_eq!(request.by.as_str(), "pos-1");
        let issuance = Issuance {
            institution: InstitutionId(1),
            account: AccountId(2),
            card: CardNumber::new("c1").unwrap(),
            replaces: None,
            time: Timestamp(3),
        };
        let signed = issuance.sign(&SigningKey::from_bytes(&[1; 32]));
        let client = SettingBody {
            change: Change::ShowCard,
            single_limit_fen: None,
            issuance: Some(signed.to_text()),
            ..client
        };
        let request = setting(&terminal(), &serde_json::to_vec(&client).unwrap()).unwrap();
        assert_eq!(request.kind, SettingKind::ShowCard(Box::new(signed)));
        let cases = [
            (r#""change":"show_card""#, "field \"issuance\" is missing"),
            (r#""change":"show_card","issuance":"abc""#, "field \"issuance\" must be"),
            (r#""change":"freeze","issuance":"abc""#, "field \"issuance\" is not known"),
            (r#""operator":"x""#, "field \"change\" is missing"),
            (r#""change":"lift_loss""#, "field \"change\" must be"),
            (r#""change":"lower_limits""#, "field \"single_limit_fen\" is missing"),
            (r#""change":"lower_limits","daily_limit_fen":1.5"#, "field \"daily_limit_fen\" must be a whole"),
            (
                r#""change":"freeze","daily_limit_fen":1"#,
                "field \"daily_limit_fen\" stands with lower_limits only",
            ),
            (r#""change":"freeze","sum":1"#, "field \"sum\" is not known"),
        ];
        for (fields, expected) in cases {
            let error = read(fields).unwrap_err();
            assert!(error.starts_with(expected), "{fields}: {error}");
        }
    }

    #[test]
    fn a_code_stands_in_place_of_a_card() {
        let secret = PhoneSecret::new(PhoneAlgorithm::P256, &[1; 32]).unwrap();
        let voucher = Voucher {
            institution: InstitutionId(1),
            centre_key: 1,
            account: AccountId(1),
            number: 1,
            issued: 1,
            life_minutes: 1,
            ceiling: Fen::ZERO,
            phone: secret.key(),
        };
        let voucher = voucher.sign(&ed25519_dalek::SigningKey::from_bytes(&[1; 32])).unwrap();
        let code = Code::sign(&voucher, &secret, 1, 1).unwrap();
        let body = |fields: &str| format!(r#"{{"epoch":1,"sequence":"2","kind":"access",{fields}}}"#);
        for text in [code.to_digits(), code.to_base64url()] {
            let (request, _) = read(body(&format!(r#""code":"{text}""#)).as_bytes()).unwrap().unwrap();
            assert_eq!(request.card, CardNumber::of_phone(&secret.key()));
            assert_eq!(request.code, Some(Box::new(code.clone().check(InstitutionId(1), &[]))));
        }
        let check = |code: Code| code.check(InstitutionId(1), &[]);
        let enquiry = format!(r#"{{"code":"{}"}}"#, code.to_digits());
        assert_eq!(balance(enquiry.as_bytes(), check), Ok(Ok(check(code).into())));
        assert_eq!(balance(br#"{"code":"9012"}"#, check), Ok(Err(DeclineReason::CodeUnreadable)));
        for (body, expected) in [
            (
                r#"{"code":"91000000004200000007"}"#,
                "field \"code\" must be the long one: a short code shows no balance",
            ),
            (r#"{"code":"90","card":"c1"}"#, "field \"code\" cannot stand beside card"),
            ("{}", "field \"card\" is missing (or code)"),
        ] {
            assert_eq!(balance(body.as_bytes(), check).unwrap_err().to_string(), expected);
        }
        let (request, _) = read(body(r#""code":"91000000004200000007""#).as_bytes()).unwrap().unwrap();
        assert_eq!(
            (request.card.short_code(), request.code),
            (ShortCode::from_text("91000000004200000007"), None)
        );
        let with_pin = r#"{"epoch":1,"sequence":"2","kind":"purchase","amount_fen":1,"code":"91000000004200000007","pin":"271828"}"#;
        let error = read(with_pin.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "field \"pin\" cannot stand beside a short code: show the other one");
        let misread = read(body(r#""code":"9012""#).as_bytes());
        assert_eq!(misread, Ok(Err(DeclineReason::CodeUnreadable)));
        for (fields, expected) in [
            (r#""code":1"#, "field \"code\" must be a text"),
            (r#""code":"90","card":"c1""#, "field \"code\" cannot stand beside card"),
            (r#""amount":null"#, "field \"card\" is missing (or code)"),
            (r#""card":null"#, "field \"card\" is missing"),
        ] {
            let error = read(body(fields).as_bytes()).unwrap_err().to_string();
            assert_eq!(error, expected, "{fields}");
        }
    }

    #[test]
    fn a_tap_is_a_purchase_of_one_amount_or_an_access() {
        assert_eq!(parsed(r#""kind":"purchase","amount_fen":1250"#), Ok(TapKind::Amount(Fen::new(1250))));
        assert_eq!(parsed(r#""kind":"purchase","amount":"12.5""#), Ok(TapKind::Amount(Fen::new(1250))));
        assert_eq!(parsed(r#""kind":"purchase","quantity":552"#), Ok(TapKind::Quantity(552)));
        assert_eq!(parsed(r#""kind":"purchase","amount_fen":-1"#), Ok(TapKind::Amount(Fen::new(-1))));
        assert_eq!(parsed(r#""kind":"access","amount_fen":null"#), Ok(TapKind::Access));
    }

    #[test]
    fn what_is_wrong_is_said_by_name() {
        let cases = [
            (r#""kind":"purchase""#, "field \"amount_fen\" is missing"),
            (
                r#""kind":"purchase","amount_fen":1,"amount":"1""#,
                "field \"amount\" cannot stand beside amount_fen",
            ),
            (
                r#""kind":"purchase","amount_fen":1,"quantity":1"#,
                "field \"quantity\" cannot stand beside an amount",
            ),
            (r#""kind":"access","quantity":1"#, "field \"quantity\" cannot stand in an access"),
            (r#""kind":"purchase","amount_fen":1.5"#, "field \"amount_fen\" must be a whole number of fen"),
            (r#""kind":"purchase","amount_fen":"1""#, "field \"amount_fen\" must be a whole number of fen"),
            (
                r#""kind":"purchase","amount":"0.005""#,
                "field \"amount\" is wrong: \"0.005\" has more than two",
            ),
            (r#""kind":"purchase","amount":1"#, "field \"amount\" must be yuan as text"),
            (r#""kind":"purchase","quantity":"1""#, "field \"quantity\" must be a whole number"),
            (r#""kind":"purchase","quantity":4294967296"#, "field \"quantity\" is out of range"),
            (r#""kind":"refund","amount_fen":1"#, "field \"kind\" must be \"purchase\" or \"access\""),
            (r#""amount_fen":1"#, "field \"kind\" is missing"),
            (r#""kind":"access","pin":"123456""#, "field \"pin\" cannot stand in an access"),
            (r#""kind":"purchase","amount_fen":1,"pin":"12345""#, "field \"pin\" must be a text of 6 digits"),
            (
                r#""kind":"purchase","amount_fen":1,"pin":"12345a""#,
                "field \"pin\" must be a text of 6 digits",
            ),
            (r#""kind":"purchase","amount_fen":1,"pin":123456"#, "field \"pin\" must be a text of 6 digits"),
            (r#""kind":"access","sum":1"#, "field \"sum\" is not known"),
            (r#""kind":"access","epoch":1"#, "the body must be a JSON object: field \"epoch\" stands twice"),
        ];
        for (fields, expected) in cases {
            let error = parsed(fields).unwrap_err();
            assert!(error.starts_with(expected), "{fields}: {error}");
        }
        let error = read(b"[]").unwrap_err().to_string();
        assert!(error.starts_with("the body must be a JSON object"), "{error}");
        let error = read(br#"{"epoch":-1}"#).unwrap_err().to_string();
        assert!(error.starts_with("field \"epoch\" must be"), "{error}");
        let body = br#"{"epoch":1,"sequence":"1","original":{"epoch":1}}"#;
        let error = reversal(&terminal(), body).unwrap_err().to_string();
        assert_eq!(error, "field \"original.sequence\" is missing");
        let secret = "c'secret";
        let no_code = |_| panic!("there is none");
        let error = balance(format!(r#"{{"card":"{secret}"}}"#).as_bytes(), no_code).unwrap_err().to_string();
        assert!(!error.contains(secret), "{error}");
    }
}
