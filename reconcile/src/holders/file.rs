//! Files of the desk: accounts that are to be opened (CSV), and numbers of blank cards (a line each). A file is checked whole
//! before anything of it is done.

use std::collections::BTreeMap;
use std::io::Read;

use feiqian_protocol::account::HolderField;
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::limits::AMOUNT_FEN_MAX;
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PaymentPin;
use feiqian_protocol::time::BusinessDay;
use serde::Deserialize;

use crate::import::day;

/// An account of a file: everything but the hash of its initial PIN, which takes a while.
#[derive(Clone, Debug)]
pub struct Opening {
    /// See [`super::NewHolder`].
    pub name: String,
    /// See [`super::NewHolder`].
    pub number: Key,
    /// See [`super::NewHolder`].
    pub patron_class: String,
    /// See [`super::NewHolder`].
    pub department: Option<String>,
    /// See [`super::NewHolder`].
    pub batch: Option<String>,
    /// See [`super::NewHolder`].
    pub groups: Vec<Key>,
    /// See [`super::NewHolder`].
    pub card: Option<CardNumber>,
    /// See [`super::NewHolder`].
    pub single_limit_fen: Option<Fen>,
    /// See [`super::NewHolder`].
    pub daily_limit_fen: Option<Fen>,
    /// See [`super::NewHolder`].
    pub valid_until: Option<BusinessDay>,
    /// The initial PIN by the campus's rule.
    pub initial_pin: PaymentPin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    number: String,
    patron_class: String,
    department: Option<String>,
    batch: Option<String>,
    groups: Option<String>,
    card: Option<String>,
    id_last_six: Option<String>,
    single_limit_fen: Option<i64>,
    daily_limit_fen: Option<i64>,
    valid_until: Option<String>,
}

/// Reads the accounts of a CSV file, or says for each line what is wrong with it.
///
/// # Errors
/// Line numbers, from 1, and what is wrong there.
pub fn openings(input: impl Read) -> Result<Vec<Opening>, Vec<(u64, String)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let header = match reader.headers() {
        // Spreadsheets put a byte order mark before the first name.
        Ok(header) => {
            header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect::<csv::StringRecord>()
        }
        Err(error) => return Err(vec![(1, error.to_string())]),
    };
    let (mut openings, mut errors) = (Vec::new(), Vec::new());
    let (mut numbers, mut cards) = (BTreeMap::new(), BTreeMap::new());
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                errors.push((error.position().map_or(0, csv::Position::line), error.to_string()));
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        let opening = match record.deserialize(Some(&header)).map_err(|error| told(&error)).and_then(opening)
        {
            Ok(opening) => opening,
            Err(error) => {
                errors.push((line, error));
                continue;
            }
        };
        if let Some(first) = numbers.insert(opening.number.clone(), line) {
            errors.push((line, format!("number: the same one as in line {first}")));
        }
        if let Some(first) = opening.card.clone().and_then(|card| cards.insert(card, line)) {
            errors.push((line, format!("card: the same one as in line {first}")));
        }
        openings.push(opening);
    }
    if openings.is_empty() && errors.is_empty() {
        errors.push((1, "no accounts after the header".to_owned()));
    }
    if errors.is_empty() { Ok(openings) } else { Err(errors) }
}

fn told(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        _ => error.to_string(),
    }
}

fn opening(row: Row) -> Result<Opening, String> {
    let text = |field: HolderField, text: String| match field.takes(&text) {
        true => Ok(text),
        false => Err(format!("{}: is empty, too long, or has characters that cannot be shown", field.name())),
    };
    let optional = |field, value: Option<String>| {
        value.filter(|value| !value.is_empty()).map(|value| text(field, value)).transpose()
    };
    let limit = |column: &str, fen: Option<i64>| match fen {
        Some(fen) if !(0..=AMOUNT_FEN_MAX.get()).contains(&fen) => {
            Err(format!("{column}: {fen} is not from 0 to {}", AMOUNT_FEN_MAX.get()))
        }
        fen => Ok(fen.map(Fen::new)),
    };
    if row.patron_class.is_empty() {
        return Err("patron_class: is empty".to_owned());
    }
    let number = text(HolderField::Number, row.number)?;
    let initial_pin = match row.id_last_six.filter(|six| !six.is_empty()) {
        None => PaymentPin::initial_without_id(),
        Some(six) => PaymentPin::initial(&six).map_err(|error| format!("id_last_six: {error}"))?,
    };
    Ok(Opening {
        name: text(HolderField::Name, row.name)?,
        number: Key::new(number).map_err(|error| format!("number: {error}"))?,
        patron_class: row.patron_class,
        department: optional(HolderField::Department, row.department)?,
        batch: optional(HolderField::Batch, row.batch)?,
        groups: row
            .groups
            .unwrap_or_default()
            .split_whitespace()
            .map(Key::new)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("groups: {error}"))?,
        card: match row.card.filter(|card| !card.is_empty()) {
            None => None,
            Some(card) => Some(card_number(&card)?),
        },
        single_limit_fen: limit("single_limit_fen", row.single_limit_fen)?,
        daily_limit_fen: limit("daily_limit_fen", row.daily_limit_fen)?,
        valid_until: day("valid_until", &row.valid_until.unwrap_or_default())?,
        initial_pin,
    })
}

/// Not the text itself: errors end up in mails and logs.
fn card_number(text: &str) -> Result<CardNumber, String> {
    CardNumber::new(text).map_err(|_| {
        "card: 1 to 64 visible ASCII characters without comma and quotes are expected".to_owned()
    })
}

/// Reads numbers of blank cards, a line each; empty lines count for nothing.
///
/// # Errors
/// Line numbers, from 1, and what is wrong there.
pub fn blank_cards(text: &str) -> Result<Vec<CardNumber>, Vec<(u64, String)>> {
    let (mut cards, mut errors, mut lines) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (line, text) in (1_u64..).zip(text.lines().map(str::trim)).filter(|(_, text)| !text.is_empty()) {
        match card_number(text) {
            Ok(card) => {
                if let Some(first) = lines.insert(card.clone(), line) {
                    errors.push((line, format!("card: the same one as in line {first}")));
                }
                cards.push(card);
            }
            Err(error) => errors.push((line, error)),
        }
    }
    if cards.is_empty() && errors.is_empty() {
        errors.push((1, "no cards".to_owned()));
    }
    if errors.is_empty() { Ok(cards) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_freshmen_is_read_and_what_is_left_out_is_the_rule() {
        let text = "\u{feff}number,name,patron_class,department,groups,card,id_last_six\n\
                    25001,李雷,student,数学系,dorm-1 lab,b7,12345X\n25002,韩梅梅,student,,,,\n";
        let openings = openings(text.as_bytes()).unwrap();
        assert_eq!(openings.len(), 2);
        assert_eq!((openings[0].name.as_str(), openings[0].department.as_deref()), ("李雷", Some("数学系")));
        assert_eq!(openings[0].groups.len(), 2);
        assert_eq!((openings[0].card.is_some(), openings[1].card.is_some()), (true, false));
        assert_eq!(openings[0].initial_pin, "123450".parse().unwrap());
        assert_eq!(openings[1].initial_pin, "666666".parse().unwrap());
        assert_eq!((openings[1].department.as_deref(), openings[1].batch.as_deref()), (None, None));
    }

    #[test]
    fn every_wrong_line_is_named() {
        let text = "number,name,patron_class,card,id_last_six,daily_limit_fen\n1,a,student,c1,,\n1,b,student,,,\n\
                    2,b,student,c1,,\n3,,student,,,\n4,d,,,,\n5,e,student,,12,\n6,f,student,,,-1\n7,g,student,,,x\n";
        let errors = openings(text.as_bytes()).unwrap_err();
        let lines: Vec<u64> = errors.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9], "{errors:?}");
        for (text, expected) in [
            ("number,name,patron_class,colour\n1,a,s,red\n", "colour"),
            ("number,name\n1,a\n", "patron_class"),
            ("number,name,patron_class\n", "no accounts"),
        ] {
            let errors = openings(text.as_bytes()).unwrap_err();
            assert!(errors[0].1.contains(expected), "{text:?}: {errors:?}");
        }
    }

    #[test]
    fn blank_cards_are_read_line_by_line() {
        assert_eq!(blank_cards("b1\n\n b2 \r\n").unwrap().len(), 2);
        let errors = blank_cards("b1\nb,2\nb1\n").unwrap_err();
        assert_eq!(errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(blank_cards("\n").unwrap_err()[0].1, "no cards");
    }
}
