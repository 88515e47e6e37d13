//! What people, terminals and tools write: names, amounts, configurations, requests, commands, imports.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use feiqian_node::config::HostPort;
use feiqian_node::http::{auth, body};
use feiqian_protocol::campus::{CampusConfig, Mode};
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::code::{Code, SignedReceipt, SignedVoucher};
use feiqian_protocol::enrol::{EnrolCode, Role};
use feiqian_protocol::ids::{CardNumber, InstitutionId, Key, NodeName, TerminalId, Wallet};
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, QUANTITY_MAX};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::{config, import};
use serde_json::{Value, json};

/// What reads as something is shown as a text that reads as the same.
fn round_trip<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().expect("what is shown is read"), value);
    }
}

/// Names, numbers and codes.
pub fn names(data: &[u8]) {
    if let Ok(code) = Code::from_bytes(data) {
        assert_eq!(code.to_bytes(), data);
    }
    if let Ok(receipt) = SignedReceipt::from_bytes(data) {
        assert_eq!(SignedReceipt::from_text(&receipt.to_digits()), Ok(receipt));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::<CardNumber>(text);
    round_trip::<HostPort>(text);
    round_trip::<Key>(text);
    round_trip::<NodeName>(text);
    round_trip::<TerminalId>(text);
    round_trip::<UnitPrice>(text);
    round_trip::<Wallet>(text);
    round_trip::<EnrolCode>(text);
    if let Ok(role) = text.parse::<Role>() {
        assert_eq!(role.name(), text);
    }
    if let Ok(mode) = text.parse::<Mode>() {
        assert_eq!(mode.name(), text);
    }
    if let Ok(fen) = Fen::parse_yuan(text) {
        assert_eq!(Fen::parse_yuan(&fen.to_string()), Ok(fen));
    }
    if let Ok(price) = text.parse::<UnitPrice>() {
        let bytes = minicbor::to_vec(price).expect("writing to a Vec cannot fail");
        assert_eq!(minicbor::decode::<UnitPrice>(&bytes).ok(), Some(price));
        for quantity in [0, 1, 552, QUANTITY_MAX, u32::MAX] {
            assert!(
                price.amount(quantity).is_ok_and(|fen| !fen.is_negative()) || price.amount(quantity).is_err()
            );
        }
    }
    if let Some(bytes) = unhex(text) {
        assert_eq!(hex(&bytes), text.to_ascii_lowercase());
    }
    auth::parse_mac(text);
    if let Ok(code) = Code::from_text(text) {
        assert!(text == code.to_digits() || text == code.to_base64url(), "a code has one text in each form");
    }
    if let Ok(voucher) = SignedVoucher::from_text(text) {
        assert_eq!(voucher.to_base64url(), text);
    }
    if let Ok(receipt) = SignedReceipt::from_text(text) {
        assert_eq!(receipt.to_digits(), text);
    }
}

/// A campus configuration: as JSON, as it is published, and as TOML, as an operator writes it.
pub fn campus(data: &[u8]) {
    if let Ok(campus) = CampusConfig::from_bytes(data)
        && let Ok(bytes) = campus.to_bytes()
    {
        let again = CampusConfig::from_bytes(&bytes).expect("what is published is read");
        assert_eq!(again, campus);
        assert_eq!(again.to_bytes().ok(), Some(bytes));
        for time in [Timestamp(i64::MIN), Timestamp(0), Timestamp(i64::MAX)] {
            campus.calendar.start(campus.calendar.day(time));
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("campus.toml");
    match config::parse_campus(file, text) {
        Ok(campus) => assert!(campus.check().is_ok() && campus.to_bytes().is_ok()),
        Err(error) => assert!(error.to_string().starts_with("campus.toml")),
    }
}

/// The configuration of a node and of the centre.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = feiqian_node::config::Config::parse(Path::new("node.toml"), text) {
        assert!(error.to_string().starts_with("node.toml"));
    }
    if let Err(error) = config::Config::parse(Path::new("reconcile.toml"), text) {
        assert!(error.to_string().starts_with("reconcile.toml"));
    }
}

/// A terminal's request; the first byte says which.
pub fn terminal(data: &[u8]) {
    let Some((which, json)) = data.split_first() else { return };
    let terminal = TerminalId::new("pos-1").expect("letters and a digit make a name");
    let check = |code: Code| code.check(InstitutionId(1), &[]);
    let said = match which % 3 {
        0 => body::tap(&terminal, json, check).map(drop),
        1 => body::reversal(&terminal, json).map(|request| {
            assert_eq!(request.key.terminal, request.original.terminal);
        }),
        _ => body::balance(json, check).map(|presented| {
            let Ok(presented) = presented else { return };
            if presented.code.is_none() {
                let again = json!({ "card": presented.card }).to_string();
                assert_eq!(body::balance(again.as_bytes(), check), Ok(Ok(presented)));
            }
        }),
    };
    if let Err(error) = said {
        assert!(error.to_string().len() < 1_024, "an error is a line, not what was sent");
    }
}

/// A line on the local socket of a node, or of the centre.
pub fn control(data: &[u8]) {
    if let Ok(command) = serde_json::from_slice::<feiqian_node::control::Command>(data) {
        let line = serde_json::to_string(&command).expect("a command is plain data");
        serde_json::from_str::<feiqian_node::control::Command>(&line).expect("what is said is understood");
    }
    if let Ok(request) = serde_json::from_slice::<Value>(data)
        && let Ok(command) = serde_json::from_value::<feiqian_reconcile::io::Command>(request)
    {
        let line = serde_json::to_value(&command).expect("a command is plain data");
        let again: feiqian_reconcile::io::Command =
            serde_json::from_value(line.clone()).expect("what is said is understood");
        assert_eq!(serde_json::to_value(again).ok(), Some(line));
    }
}

/// A file of accounts.
pub fn accounts(data: &[u8]) {
    match import::parse(data) {
        Ok(accounts) => {
            assert!(!accounts.is_empty());
            for (account, _) in accounts {
                assert!(!account.opening_fen.is_negative() && account.opening_fen <= AMOUNT_FEN_MAX);
            }
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
}

/// A file of purchases that another system booked.
pub fn history(data: &[u8]) {
    match feiqian_reconcile::history::parse(data) {
        Ok(purchases) => {
            assert!(!purchases.is_empty());
            for purchase in purchases {
                assert!(purchase.amount_fen.is_positive() && purchase.amount_fen <= AMOUNT_FEN_MAX);
            }
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
}
