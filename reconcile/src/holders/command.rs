//! `feiqian-reconcile account open|describe|bind|find` and `card stock|pick-up|activate|exchange|legacy`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use feiqian_protocol::account::HolderField;
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::pin::{PaymentPin, PinGeneration};
use feiqian_protocol::time::BusinessDay;
use serde_json::Value;

use super::file::{self, Opening};
use super::{NewHolder, ToPickUp};
use crate::cli::Data;
use crate::control::{Client, ClientError};
use crate::import::day;
use crate::io::{Command, SettingCommand};
use crate::pin::HashedPin;
use crate::pin::command::{Typed, hashed, hashed_for, status};

/// Accounts, or cards, of one command: one step of the core, which taps wait for.
const BATCH: usize = 100;

/// Errors that are shown of one file.
const ERRORS_SHOWN_MAX: usize = 20;

/// A day on the command line.
pub fn read_day(text: &str) -> Result<BusinessDay, String> {
    day("the day", text)?.ok_or_else(|| "a day such as 2027-06-30 is wanted".to_owned())
}

/// Setting last days.
#[derive(Args)]
pub struct Validity {
    /// A card of the account.
    #[arg(required_unless_present = "numbers")]
    card: Option<CardNumber>,
    /// All whose holders' student or staff numbers stand in this file, a line each. The file is checked whole first.
    #[arg(long, value_name = "FILE", conflicts_with = "card")]
    numbers: Option<PathBuf>,
    /// The last day, such as 2027-06-30.
    #[arg(long, value_name = "DAY", value_parser = read_day, required_unless_present = "no_end")]
    until: Option<BusinessDay>,
    /// It is good for ever.
    #[arg(long, conflicts_with = "until")]
    no_end: bool,
    /// Who says so.
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

/// Opening accounts.
#[derive(Args)]
pub struct Open {
    /// Opens the accounts of a CSV file with a header: number, name, patron_class, and where wanted department, batch, groups
    /// (separated by spaces), card (the next blank one where it is empty), id_last_six (the end of the holder's ID number, of
    /// which the initial payment PIN is made; 666666 without), single_limit_fen, daily_limit_fen, valid_until (a day). The file is checked whole first.
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["number", "name", "class"])]
    file: Option<PathBuf>,
    /// The holder's student or staff number.
    #[arg(long, required_unless_present = "file")]
    number: Option<Key>,
    /// The holder's name.
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// Patron class: selects prices.
    #[arg(long, required_unless_present = "file")]
    class: Option<String>,
    /// Department: pick-up lists go by it.
    #[arg(long)]
    department: Option<String>,
    /// With whom it is opened.
    #[arg(long)]
    batch: Option<String>,
    /// A group that the holder belongs to; may be given several times.
    #[arg(long = "group")]
    groups: Vec<Key>,
    /// The card that is given out; the next blank one where it is not given.
    #[arg(long)]
    card: Option<CardNumber>,
    /// The last day on which its cards are good, such as 2027-06-30; for ever where it is not given.
    #[arg(long, value_name = "DAY", value_parser = read_day)]
    valid_until: Option<BusinessDay>,
    /// Who opens it.
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

/// What is told of a holder. An empty text takes it away.
#[derive(Args)]
pub struct Describe {
    /// A card of the account.
    card: CardNumber,
    /// The name.
    #[arg(long)]
    name: Option<String>,
    /// The student or staff number.
    #[arg(long)]
    number: Option<String>,
    /// The department.
    #[arg(long)]
    department: Option<String>,
    /// The batch.
    #[arg(long)]
    batch: Option<String>,
    /// The phone number, once it was verified.
    #[arg(long)]
    phone: Option<String>,
    /// The kinds of notices that the holder wants, such as "purchase loss".
    #[arg(long)]
    notices: Option<String>,
    /// The user that the account is bound to; empty, it is bound to none.
    #[arg(long)]
    user: Option<String>,
    /// Who says so.
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

/// Binding an account to the user of an app.
#[derive(Args)]
pub struct Bind {
    /// The holder's student or staff number.
    #[arg(long)]
    number: Key,
    /// The holder's name.
    #[arg(long)]
    name: String,
    /// The user, as the app names them.
    #[arg(long)]
    user: Key,
    #[command(flatten)]
    data: Data,
}

/// Finding an account.
#[derive(Args)]
#[group(required = true, multiple = false, args = ["number", "user"])]
pub struct Find {
    /// By the holder's number.
    #[arg(long)]
    number: Option<Key>,
    /// By the user that it is bound to.
    #[arg(long)]
    user: Option<Key>,
    #[command(flatten)]
    data: Data,
}

/// Cards on their way to their holders.
#[derive(Subcommand)]
pub enum PickUp {
    /// Lists the cards of a department that are not active: in the office, or picked up and not activated.
    List {
        /// The department.
        #[arg(long)]
        department: String,
        /// The centre.
        #[command(flatten)]
        data: Data,
        /// Prints JSON, a card on each line.
        #[arg(long)]
        json: bool,
    },
    /// Notes that cards were picked up: the named ones, or all of a department.
    HandOver {
        /// The cards.
        #[arg(required_unless_present = "department", conflicts_with = "department")]
        cards: Vec<CardNumber>,
        /// All of this department that are still in the office.
        #[arg(long)]
        department: Option<String>,
        /// Who says so.
        #[arg(long, default_value = "operator")]
        operator: Key,
        /// The centre.
        #[command(flatten)]
        data: Data,
    },
    /// A card was not there to be picked up: it is void for ever, and the next blank one takes its place.
    Missing {
        /// The card.
        card: CardNumber,
        /// The card that takes its place; the next blank one where it is not given.
        #[arg(long)]
        new: Option<CardNumber>,
        /// Who says so.
        #[arg(long, default_value = "operator")]
        operator: Key,
        /// The centre.
        #[command(flatten)]
        data: Data,
    },
}

/// Opens accounts; says on `out` which cards they have.
///
/// # Errors
/// What is wrong with the file or the arguments, or what the service refused, and how far it came.
pub fn open(out: &mut impl Write, open: Open) -> anyhow::Result<()> {
    let openings = match (&open.file, open.number, open.name, open.class) {
        (Some(file), ..) => read(file)?,
        (None, Some(number), Some(name), Some(patron_class)) => {
            let line = Typed::standard_input().line("Last six of the ID number, or nothing")?;
            let initial_pin = match line.trim() {
                "" => PaymentPin::initial_without_id(),
                six => PaymentPin::initial(six)?,
            };
            vec![Opening {
                name,
                number,
                patron_class,
                department: open.department,
                batch: open.batch,
                groups: open.groups,
                card: open.card,
                single_limit_fen: None,
                daily_limit_fen: None,
                valid_until: open.valid_until,
                initial_pin,
            }]
        }
        _ => bail!("a number, a name and a class are needed, or a file"),
    };
    let total = openings.len();
    let mut client = Client::connect(open.data.path())?;
    let mut done = 0;
    let progress = std::io::stderr().is_terminal() && total > BATCH;
    for batch in openings.chunks(BATCH) {
        let accounts = with_pins(batch)?;
        let command = Command::OpenAccounts { accounts, operator: open.operator.clone() };
        let reply = match client.command(&command) {
            Ok(reply) => reply,
            Err(error) => {
                // The service may have done it and could not say so any more.
                let perhaps =
                    if matches!(error, ClientError::Refused { .. }) { "" } else { ", the next perhaps" };
                let (first, last) = (done + 1, done + batch.len());
                return Err(error).with_context(|| {
                    format!("accounts {first} to {last} were refused; {done} of {total} were opened before{perhaps}")
                });
            }
        };
        let opened = reply["accounts"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (account, opening) in opened.iter().zip(batch) {
            let card = account["card"].as_str().unwrap_or_default();
            writeln!(
                out,
                "account {}, {}, {}: card {card}",
                account["account"], opening.number, opening.name
            )?;
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
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<Opening>> {
    let input = std::fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    file::openings(input).map_err(|errors| shown(path, &errors, "accounts were opened"))
}

/// Shows what is wrong with a file, and says that nothing was done.
fn shown(path: &Path, errors: &[(u64, String)], what: &str) -> anyhow::Error {
    for (line, error) in errors.iter().take(ERRORS_SHOWN_MAX) {
        eprintln!("{}:{line}: {error}", path.display());
    }
    anyhow::anyhow!("{} errors in {}; no {what}", errors.len(), path.display())
}

/// The accounts of a batch with their initial PINs hashed: by all processors, since it takes a while.
fn with_pins(batch: &[Opening]) -> anyhow::Result<Vec<NewHolder>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        let parts = batch.chunks(batch.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(new_holder).collect::<anyhow::Result<Vec<_>>>()))
            .collect();
        let mut accounts = Vec::with_capacity(batch.len());
        for part in parts {
            accounts.extend(part.join().map_err(|_| anyhow::anyhow!("a PIN could not be hashed"))??);
        }
        Ok(accounts)
    })
}

fn new_holder(opening: &Opening) -> anyhow::Result<NewHolder> {
    let Opening { name, number, patron_class, department, batch, groups, card, .. } = opening.clone();
    Ok(NewHolder {
        name,
        number,
        patron_class,
        department,
        batch,
        groups,
        card,
        single_limit_fen: opening.single_limit_fen,
        daily_limit_fen: opening.daily_limit_fen,
        valid_until: opening.valid_until,
        initial_pin: hashed(opening.initial_pin)?,
    })
}

/// Tells something of a holder; returns how the account stands then.
///
/// # Errors
/// What the service refused; what came before it is done.
pub fn describe(describe: Describe) -> anyhow::Result<Value> {
    let Describe { card, name, number, department, batch, phone, notices, user, operator, data } = describe;
    let told = [
        (HolderField::Name, name),
        (HolderField::Number, number),
        (HolderField::Department, department),
        (HolderField::Batch, batch),
        (HolderField::Phone, phone),
        (HolderField::Notices, notices),
        (HolderField::User, user),
    ];
    let mut client = Client::connect(data.path())?;
    let mut reply = None;
    for (field, text) in told.into_iter().filter_map(|(field, text)| Some((field, text?))) {
        let value = Some(text).filter(|text| !text.is_empty());
        let change = SettingCommand::Describe { field, value };
        let command = Command::ChangeSetting { card: card.clone(), change, operator: operator.clone() };
        reply = Some(client.command(&command).with_context(|| field.name())?);
    }
    reply.context("nothing to tell: see --help for what can be told")
}

/// Sets the last day of an account, or of all in a list.
///
/// # Errors
/// Who is not known, before anything is done; or what the service refused, and how many were done before.
pub fn validity(out: &mut impl Write, validity: Validity) -> anyhow::Result<()> {
    let Validity { card, numbers, until, no_end: _, operator, data } = validity;
    let mut client = Client::connect(data.path())?;
    let cards = match (card, &numbers) {
        (Some(card), _) => vec![card],
        (None, Some(path)) => cards_of(&mut client, path)?,
        (None, None) => bail!("a card or a list of numbers is needed"),
    };
    for (done, card) in cards.iter().enumerate() {
        let change = SettingCommand::Validity { until };
        let command = Command::ChangeSetting { card: card.clone(), change, operator: operator.clone() };
        client.command(&command).with_context(|| {
            format!(
                "account {} of {}; those before are done, and to say it again does no harm",
                done + 1,
                cards.len()
            )
        })?;
    }
    match until {
        Some(day) => writeln!(out, "{} accounts are good until {day}", cards.len())?,
        None => writeln!(out, "{} accounts are good for ever", cards.len())?,
    }
    Ok(())
}

/// A card of each holder whose number stands on a line of a file.
fn cards_of(client: &mut Client, path: &Path) -> anyhow::Result<Vec<CardNumber>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let (mut cards, mut errors) = (Vec::new(), Vec::new());
    // Spreadsheets put a byte order mark before the first line.
    for (line, number) in (1..).zip(text.trim_start_matches('\u{feff}').lines().map(str::trim)) {
        if number.is_empty() {
            continue;
        }
        let found = Key::new(number).map_err(|error| error.to_string()).and_then(|number| {
            let find = Command::FindHolder { number: Some(number), user: None };
            client.command(&find).map_err(|error| error.to_string())
        });
        let card =
            found.map(|account| account["cards"].as_object().and_then(|cards| cards.keys().next().cloned()));
        match card {
            Ok(Some(card)) => cards.push(CardNumber::new(card)?),
            Ok(None) => errors.push((line, "the account has no card".to_owned())),
            Err(error) => errors.push((line, error)),
        }
    }
    if cards.is_empty() && errors.is_empty() {
        errors.push((1, "no number stands in it".to_owned()));
    }
    if errors.is_empty() { Ok(cards) } else { Err(shown(path, &errors, "account was changed")) }
}

/// Binds an account; the PIN is a line of standard input.
///
/// # Errors
/// What the service refused.
pub fn bind(out: &mut impl Write, bind: Bind) -> anyhow::Result<()> {
    let Bind { number, name, user, data } = bind;
    let mut client = Client::connect(data.path())?;
    let reply = client.command(&Command::BindSalts { number: number.clone() })?;
    let salts: Vec<PinGeneration> =
        serde_json::from_value(reply["salts"].clone()).context("an answer that is no answer")?;
    let pin = Typed::standard_input().pin("Payment PIN")?;
    let typed: Vec<HashedPin> =
        salts.into_iter().map(|generation| HashedPin { generation, hash: pin.hash(generation) }).collect();
    let reply = client.command(&Command::Bind { number, name, typed, user })?;
    writeln!(out, "account {} is bound to {}", reply["account"], reply["user"].as_str().unwrap_or_default())?;
    Ok(())
}

/// Finds an account.
///
/// # Errors
/// Where there is none.
pub fn find(find: Find) -> anyhow::Result<Value> {
    let Find { number, user, data } = find;
    Ok(Client::connect(data.path())?.command(&Command::FindHolder { number, user })?)
}

/// Brings blank cards into the stock.
///
/// # Errors
/// What is wrong with the file, or what the service refused.
pub fn stock(out: &mut impl Write, path: &Path, data: &Data) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let cards = file::blank_cards(&text).map_err(|errors| shown(path, &errors, "cards were brought in"))?;
    let mut client = Client::connect(data.path())?;
    let (mut added, mut given_out, mut blank) = (0, 0, 0);
    for batch in cards.chunks(BATCH) {
        let reply = client.command(&Command::StockCards { cards: batch.to_vec() })?;
        let number = |field: &str| reply[field].as_u64().unwrap_or_default();
        added += number("added");
        given_out += number("given_out");
        blank = number("blank_cards");
    }
    writeln!(
        out,
        "{added} brought in, {given_out} of the file are given out already; {blank} blank cards in stock"
    )?;
    Ok(())
}

/// Does something about cards that are to be picked up.
///
/// # Errors
/// What the service refused; what came before it is done.
pub fn pick_up(out: &mut impl Write, action: PickUp) -> anyhow::Result<()> {
    match action {
        PickUp::List { department, data, json } => {
            let cards = waiting(&mut Client::connect(data.path())?, &department)?;
            for card in &cards {
                if json {
                    writeln!(out, "{}", serde_json::to_string(card)?)?;
                } else {
                    let state = if card.handed_over { "picked up, not activated" } else { "in the office" };
                    writeln!(out, "{:<12} {:<24} {:<20} {state}", card.number, card.card, card.name)?;
                }
            }
            if !json {
                let missing = cards.iter().filter(|card| !card.handed_over).count();
                writeln!(
                    out,
                    "{missing} to be picked up, {} picked up and not activated",
                    cards.len() - missing
                )?;
            }
        }
        PickUp::HandOver { mut cards, department, operator, data } => {
            let mut client = Client::connect(data.path())?;
            if let Some(department) = department {
                let in_office =
                    waiting(&mut client, &department)?.into_iter().filter(|card| !card.handed_over);
                cards = in_office.map(|card| card.card).collect();
            }
            for (done, card) in cards.iter().enumerate() {
                let change = SettingCommand::HandOverCard;
                let command =
                    Command::ChangeSetting { card: card.clone(), change, operator: operator.clone() };
                client.command(&command).with_context(|| {
                    format!("card {} of {}; those before are noted", done + 1, cards.len())
                })?;
            }
            writeln!(out, "{} cards picked up", cards.len())?;
        }
        PickUp::Missing { card, new, operator, data } => {
            let change = SettingCommand::ReissueMissing { new_card: new };
            let reply =
                Client::connect(data.path())?.command(&Command::ChangeSetting { card, change, operator })?;
            let new =
                reply["cards"].as_object().into_iter().flatten().filter(|(_, status)| *status == "inactive");
            for (card, _) in new {
                writeln!(out, "card {card} takes its place")?;
            }
        }
    }
    Ok(())
}

/// The whole pick-up list of a department.
fn waiting(client: &mut Client, department: &str) -> anyhow::Result<Vec<ToPickUp>> {
    let mut cards = Vec::new();
    let mut after = AccountId(0);
    loop {
        let command = Command::PickUpList { department: department.to_owned(), after };
        let reply = client.command(&command)?;
        let page: Vec<ToPickUp> =
            serde_json::from_value(reply["cards"].clone()).context("an answer that is no answer")?;
        cards.extend(page);
        match reply["next"].as_u64() {
            Some(next) => after = AccountId(next),
            None => return Ok(cards),
        }
    }
}

/// Activates a card: by the operator's word, or by the payment PIN on standard input.
///
/// # Errors
/// What the service refused.
pub fn activate(card: CardNumber, by_pin: bool, operator: Key, data: &Data) -> anyhow::Result<Value> {
    let command = if by_pin {
        let status = status(data.path(), &card)?;
        let typed = hashed_for(&Typed::standard_input().pin("Payment PIN")?, &status);
        Command::ActivateCard { card, typed }
    } else {
        Command::ChangeSetting { card, change: SettingCommand::ActivateCard, operator }
    };
    Ok(Client::connect(data.path())?.command(&command)?)
}
