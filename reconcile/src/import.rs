//! What comes in from files. Accounts from a CSV file: the whole file is checked first, then it goes to the service in
//! batches. The log of a closed node, as `feiqian-node export log` writes it: frame by frame, each proven by the service.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use feiqian_protocol::chain::hex;
use feiqian_protocol::frame::LOG_FILE_MAGIC;
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, FRAME_BYTES_MAX};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PaymentPin;
use feiqian_protocol::time::BusinessDay;

use crate::control::{Client, ClientError};
use crate::io::{Command, ImportedAccount};
use crate::pin::command::hashed;

/// Accounts of one command: one step of the core, which taps wait for.
const BATCH: usize = 100;

/// Errors that are shown of one file.
const ERRORS_SHOWN_MAX: usize = 20;

const COLUMNS: [&str; 10] = [
    "card",
    "patron_class",
    "opening_fen",
    "subsidy_fen",
    "single_limit_fen",
    "daily_limit_fen",
    "groups",
    "opened",
    "valid_until",
    "id_last_six",
];
const COLUMNS_REQUIRED: usize = 3;

/// Imports a file through the running service; says on `out` how many.
///
/// # Errors
/// What is wrong with the file, by line, where nothing was imported; or what the service refused, and how far it came.
pub fn accounts(out: &mut impl Write, file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let input = std::fs::File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let accounts = match parse(input) {
        Ok(accounts) => accounts,
        Err(errors) => {
            for (line, error) in errors.iter().take(ERRORS_SHOWN_MAX) {
                eprintln!("{}:{line}: {error}", file.display());
            }
            bail!("{} errors in {}; nothing was imported", errors.len(), file.display());
        }
    };
    let total = accounts.len();
    let mut client = Client::connect(data_dir)?;
    let mut done = 0;
    let progress = std::io::stderr().is_terminal();
    for batch in accounts.chunks(BATCH) {
        let accounts = with_pins(batch)?;
        if let Err(error) = client.command(&Command::ImportAccounts { accounts }) {
            let state = match &error {
                ClientError::Refused { .. } => format!("{done} of {total} accounts were imported before"),
                // The service may have done it and could not say so any more.
                _ => format!(
                    "{done} of {total} accounts were imported before, the next {} perhaps",
                    batch.len()
                ),
            };
            let (first, last) = (done + 1, done + batch.len());
            return Err(error).with_context(|| format!("accounts {first} to {last} were refused; {state}"));
        }
        done += batch.len();
        if progress {
            eprint!("\r{done} of {total} accounts");
            // A progress line that does not show is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprintln!();
    }
    writeln!(out, "{done} accounts imported")?;
    Ok(())
}

/// The accounts of a batch, each with its initial PIN hashed: by all processors, since it takes a while.
fn with_pins(batch: &[(ImportedAccount, Option<PaymentPin>)]) -> anyhow::Result<Vec<ImportedAccount>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hash = |(account, pin): &(ImportedAccount, Option<PaymentPin>)| {
        let initial_pin = pin.map(hashed).transpose()?;
        anyhow::Ok(ImportedAccount { initial_pin, ..account.clone() })
    };
    std::thread::scope(|scope| {
        let parts = batch.chunks(batch.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(hash).collect::<anyhow::Result<Vec<_>>>()))
            .collect();
        let mut accounts = Vec::with_capacity(batch.len());
        for part in parts {
            let part = part.join().map_err(|_| anyhow::anyhow!("a PIN could not be hashed"))??;
            accounts.extend(part);
        }
        Ok(accounts)
    })
}

/// Imports a node's log through the running service; says on `out` what became of it.
///
/// # Errors
/// What is wrong with the file, or what the service refused. What came before it is imported, and to import the file again
/// takes nothing twice.
pub fn log(out: &mut impl Write, file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let input = std::fs::File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let mut input = std::io::BufReader::new(input);
    let mut magic = [0; LOG_FILE_MAGIC.len()];
    if input.read_exact(&mut magic).is_err() || magic != *LOG_FILE_MAGIC {
        bail!("{} is no log of a node (feiqian-node export log writes one)", file.display());
    }
    let mut client = Client::connect(data_dir)?;
    let (mut frames, mut new, mut branch, mut log) = (0_u64, 0, None, String::new());
    let progress = std::io::stderr().is_terminal();
    while let Some(frame) = next_frame(&mut input).with_context(|| file.display().to_string())? {
        let command = Command::ImportLog { frame: hex(&frame), branch };
        let part = frames + 1;
        let reply = client.command(&command).with_context(|| {
            format!("part {part} of {} was refused; {new} entries were imported before", file.display())
        })?;
        frames = part;
        new += reply.get("new").and_then(serde_json::Value::as_u64).unwrap_or_default();
        let stream = reply.get("branch").and_then(serde_json::Value::as_u64);
        branch = stream.and_then(|stream| u32::try_from(stream).ok());
        reply.get("log").and_then(serde_json::Value::as_str).unwrap_or_default().clone_into(&mut log);
        if progress {
            eprint!("\r{frames} parts, {new} new entries");
            // A progress line that does not show is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprintln!();
    }
    writeln!(out, "{new} new entries imported into {log}")?;
    if branch.is_some() {
        writeln!(out, "it is not the history that the centre held: a copy, a fork, or altered")?;
    }
    Ok(())
}

/// The next frame of a log file: 4 bytes of length, then so many; `None` at the end.
///
/// # Errors
/// Where the file breaks off, or a frame is too long.
pub fn next_frame(input: &mut impl Read) -> anyhow::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if input.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[1..]).context("it breaks off")?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    anyhow::ensure!(length <= FRAME_BYTES_MAX, "a part of {length} bytes is too long");
    let mut frame = vec![0; length];
    input.read_exact(&mut frame).context("it breaks off")?;
    Ok(Some(frame))
}

/// An account of a file, and its initial PIN.
pub type Parsed = (ImportedAccount, Option<PaymentPin>);

/// Reads all accounts with their initial PINs where they are told, or says for each line what is wrong with it.
///
/// # Errors
/// Line numbers, from 1, and what is wrong there.
pub fn parse(input: impl Read) -> Result<Vec<Parsed>, Vec<(u64, String)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let columns = match reader.headers() {
        Ok(header) => columns(header).map_err(|error| vec![(1, error)])?,
        Err(error) => return Err(vec![(1, error.to_string())]),
    };
    let mut accounts = Vec::new();
    let mut errors = Vec::new();
    let mut lines = BTreeMap::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                errors.push((line, error.to_string()));
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        match account(&columns, &record) {
            Ok((account, pin)) => {
                if let Some(first) = lines.insert(account.card.clone(), line) {
                    errors.push((line, format!("card: the same one as in line {first}")));
                }
                accounts.push((account, pin));
            }
            Err(error) => errors.push((line, error)),
        }
    }
    if accounts.is_empty() && errors.is_empty() {
        errors.push((1, "no accounts after the header".to_owned()));
    }
    if errors.is_empty() { Ok(accounts) } else { Err(errors) }
}

/// The place of each column, in the order of [`COLUMNS`].
fn columns(header: &csv::StringRecord) -> Result<[Option<usize>; COLUMNS.len()], String> {
    let mut places = [None; COLUMNS.len()];
    for (place, name) in header.iter().enumerate() {
        // Spreadsheets put a byte order mark before the first name.
        let name = name.trim_start_matches('\u{feff}');
        let column = COLUMNS.iter().position(|column| *column == name);
        let column = column
            .ok_or_else(|| format!("column {name:?} is not known; the columns are {}", COLUMNS.join(", ")))?;
        if places[column].replace(place).is_some() {
            return Err(format!("column {name:?} stands twice"));
        }
    }
    match (0..COLUMNS_REQUIRED).find(|column| places[*column].is_none()) {
        Some(missing) => Err(format!("column {:?} is missing", COLUMNS[missing])),
        None => Ok(places),
    }
}

fn account(
    columns: &[Option<usize>; COLUMNS.len()],
    record: &csv::StringRecord,
) -> Result<(ImportedAccount, Option<PaymentPin>), String> {
    let [card, class, opening, subsidy, single, daily, groups, opened, valid_until, id_last_six] =
        columns.map(|place| place.and_then(|place| record.get(place)).unwrap_or_default());
    if class.is_empty() {
        return Err("patron_class: is empty".to_owned());
    }
    let account = ImportedAccount {
        // Not the text itself: errors end up in mails and logs.
        card: CardNumber::new(card).map_err(|_| {
            "card: 1 to 64 visible ASCII characters without comma and quotes are expected".to_owned()
        })?,
        patron_class: class.to_owned(),
        opening_fen: fen("opening_fen", opening)?.ok_or("opening_fen: is empty")?,
        subsidy_fen: fen("subsidy_fen", subsidy)?.unwrap_or_default(),
        single_limit_fen: fen("single_limit_fen", single)?,
        daily_limit_fen: fen("daily_limit_fen", daily)?,
        groups: groups
            .split_whitespace()
            .map(Key::new)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("groups: {error}"))?,
        initial_pin: None,
        opened: day("opened", opened)?,
        valid_until: day("valid_until", valid_until)?,
    };
    let pin = (!id_last_six.is_empty()).then(|| PaymentPin::initial(id_last_six)).transpose();
    Ok((account, pin.map_err(|error| format!("id_last_six: {error}"))?))
}

/// A day such as 2025-09-01, or nothing.
pub(crate) fn day(column: &str, text: &str) -> Result<Option<BusinessDay>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let date: jiff::civil::Date =
        text.parse().map_err(|_| format!("{column}: {text:?} is no day such as 2025-09-01"))?;
    let since = date.since(jiff::civil::date(1970, 1, 1)).map_err(|error| format!("{column}: {error}"))?;
    Ok(Some(BusinessDay(since.get_days())))
}

fn fen(column: &str, text: &str) -> Result<Option<Fen>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let fen: i64 = text.parse().map_err(|_| format!("{column}: {text:?} is not a number of fen"))?;
    if !(0..=AMOUNT_FEN_MAX.get()).contains(&fen) {
        return Err(format!("{column}: {fen} is not from 0 to {}", AMOUNT_FEN_MAX.get()));
    }
    Ok(Some(Fen::new(fen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_in_any_order_and_what_is_left_out_is_the_campus_default() {
        let text = "\u{feff}opening_fen, card,patron_class,groups,daily_limit_fen,opened\n500,c1,student,a b,,\n\
                    0,c2,staff,,7,2025-09-08\n";
        let accounts: Vec<_> =
            parse(text.as_bytes()).unwrap().into_iter().map(|(account, _)| account).collect();
        assert_eq!(accounts.len(), 2);
        assert_eq!((accounts[0].opening_fen, accounts[0].subsidy_fen), (Fen::new(500), Fen::ZERO));
        assert_eq!((accounts[0].daily_limit_fen, accounts[1].daily_limit_fen), (None, Some(Fen::new(7))));
        assert_eq!(accounts[0].groups.len(), 2);
        assert_eq!((accounts[0].opened, accounts[1].opened), (None, Some(BusinessDay(20_339))));
    }

    #[test]
    fn the_end_of_an_id_number_becomes_the_initial_pin() {
        let text = "card,patron_class,opening_fen,id_last_six\nc1,student,5,12345X\nc2,student,5,\n";
        let accounts = parse(text.as_bytes()).unwrap();
        let pins: Vec<_> = accounts.iter().map(|(_, pin)| *pin).collect();
        assert_eq!(pins, ["123450".parse().ok(), None]);
        let hashed = with_pins(&accounts).unwrap();
        let pin = hashed[0].initial_pin.as_ref().unwrap();
        assert_eq!(pin.hash, "123450".parse::<PaymentPin>().unwrap().hash(pin.generation));
        assert!(hashed[1].initial_pin.is_none());
        let error = parse("card,patron_class,opening_fen,id_last_six\nc1,student,5,1234\n".as_bytes());
        assert!(error.unwrap_err()[0].1.starts_with("id_last_six"));
    }

    #[test]
    fn every_wrong_line_is_named() {
        let text = "card,patron_class,opening_fen\nc1,student,5\nc1,student,5\n,student,5\nc3,,5\nc4,student,-1\n\
                    c5,student,1.5\nc6,student\nc7,student,10000001\n";
        let errors = parse(text.as_bytes()).unwrap_err();
        let lines: Vec<u64> = errors.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9], "{errors:?}");
        assert!(errors[0].1.contains("line 2"));
        assert!(errors[4].1.starts_with("opening_fen"));
    }

    #[test]
    fn a_header_must_be_there_and_known() {
        for (text, expected) in [
            ("card,patron_class,opening_fen,colour\n", "colour"),
            ("card,opening_fen\n", "patron_class"),
            ("card,card,patron_class,opening_fen\n", "twice"),
            ("card,patron_class,opening_fen\n", "no accounts"),
            ("c1,student,5\n", "not known"),
            ("", "missing"),
        ] {
            let errors = parse(text.as_bytes()).unwrap_err();
            assert!(errors[0].0 == 1 && errors[0].1.contains(expected), "{text:?}: {errors:?}");
        }
    }
}
