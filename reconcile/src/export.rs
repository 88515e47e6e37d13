//! What the centre holds, as files for people and their tools.
//!
//! | export | columns |
//! |---|---|
//! | balances | `card` (the account's first), `wallet`, `posted_fen`: negative while overspent and not recovered |
//! | postings | `log`, `position`, `line`, `ledger`, `amount_fen`, `day` (open when posted), `own_day` |
//! | entries | `log`, `position`, `hash`, `kind`, `critical`, `clock_ms`, `order_key_ms`, `actor`, `body` |
//! | cases | `case` (`<node>:<position>`, on a branch `<node>/b1:<position>`), `card`, `reason`, `bearer`, `opened_fen`, `recovered_fen`, `refunded_fen` |

use std::collections::BTreeMap;
use std::io::Write;

use feiqian_protocol::chain::hex;
use feiqian_protocol::entry::{Bearer, Entry};
use feiqian_protocol::ids::{InstitutionId, LogId, NodeId};
use feiqian_protocol::time::BusinessDay;
use rusqlite::Connection;
use serde_json::{Map, Value, json};

use crate::purse::case;
use crate::store::cases::{bearer_of, reason_of};
use crate::store::money::wallet_of;
use crate::store::{StoreError, check, nodes, purses};

/// What can be exported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Table {
    /// Posted balances.
    Balances,
    /// Lines of the ledger.
    Postings,
    /// Entries of all logs.
    Entries,
    /// Cases.
    Cases,
}

/// In what form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// One JSON object per line.
    Jsonl,
}

impl Table {
    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Balances => &["card", "wallet", "posted_fen"],
            Self::Postings => &["log", "position", "line", "ledger", "amount_fen", "day", "own_day"],
            Self::Entries => {
                &["log", "position", "hash", "kind", "critical", "clock_ms", "order_key_ms", "actor", "body"]
            }
            Self::Cases => {
                &["case", "card", "reason", "bearer", "opened_fen", "recovered_fen", "refunded_fen"]
            }
        }
    }
}

/// Writes an export of a database, which may be open read-only.
///
/// # Errors
/// [`StoreError`] where it cannot be read, or the output not be written.
pub fn export(
    connection: &Connection,
    institution: InstitutionId,
    table: Table,
    format: Format,
    output: &mut dyn Write,
) -> Result<(), StoreError> {
    check(connection, institution)?;
    let mut sink = Sink { columns: table.columns(), form: Form::new(format, output) };
    sink.begin()?;
    match table {
        Table::Balances => balances(connection, &mut sink)?,
        Table::Postings => postings(connection, institution, &mut sink)?,
        Table::Entries => entries(connection, institution, &mut sink)?,
        Table::Cases => cases(connection, institution, &mut sink)?,
    }
    sink.end()
}

enum Form<'a> {
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
    Jsonl(&'a mut dyn Write),
}

impl<'a> Form<'a> {
    fn new(format: Format, output: &'a mut dyn Write) -> Self {
        match format {
            Format::Csv => Self::Csv(Box::new(csv::Writer::from_writer(output))),
            Format::Jsonl => Self::Jsonl(output),
        }
    }
}

struct Sink<'a> {
    columns: &'static [&'static str],
    form: Form<'a>,
}

fn csv_error(error: csv::Error) -> StoreError {
    StoreError::Output(std::io::Error::other(error))
}

impl Sink<'_> {
    fn begin(&mut self) -> Result<(), StoreError> {
        match &mut self.form {
            Form::Csv(writer) => writer.write_record(self.columns).map_err(csv_error),
            Form::Jsonl(_) => Ok(()),
        }
    }

    /// Writes one row, its values in the order of the columns.
    fn row(&mut self, values: Vec<Value>) -> Result<(), StoreError> {
        match &mut self.form {
            Form::Csv(writer) => {
                let text = |value: Value| match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                writer.write_record(values.into_iter().map(text)).map_err(csv_error)
            }
            Form::Jsonl(output) => {
                let object: Map<String, Value> =
                    self.columns.iter().map(|column| (*column).to_owned()).zip(values).collect();
                Ok(writeln!(output, "{}", Value::Object(object))?)
            }
        }
    }

    fn end(&mut self) -> Result<(), StoreError> {
        match &mut self.form {
            Form::Csv(writer) => Ok(writer.flush()?),
            Form::Jsonl(output) => Ok(output.flush()?),
        }
    }
}

fn balances(db: &Connection, sink: &mut Sink<'_>) -> Result<(), StoreError> {
    // Every account has a line for its cash; other wallets have one where they were ever used.
    let mut statement = db.prepare(
        "SELECT card, 1 AS wallet,
           COALESCE((SELECT funds FROM wallets WHERE wallets.account = accounts.account AND wallet = 1), 0), account
         FROM accounts
         UNION ALL
         SELECT card, wallet, funds, account FROM wallets JOIN accounts USING (account) WHERE wallet <> 1
         ORDER BY 4, 2",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (card, wallet): (String, u8) = (row.get(0)?, row.get(1)?);
        sink.row(vec![card.into(), wallet_of(wallet)?.name().into(), row.get::<_, i64>(2)?.into()])?;
    }
    Ok(())
}

fn postings(db: &Connection, institution: InstitutionId, sink: &mut Sink<'_>) -> Result<(), StoreError> {
    let mut statement = db.prepare(
        "SELECT log, position, line, ledger, amount, day, own_day FROM postings ORDER BY log, position, line",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let numbers: (i64, i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(4)?);
        let (ledger, day, own_day): (String, i32, i32) = (row.get(3)?, row.get(5)?, row.get(6)?);
        sink.row(vec![
            LogId::from_key(institution, numbers.0).to_string().into(),
            numbers.1.into(),
            numbers.2.into(),
            ledger.into(),
            numbers.3.into(),
            BusinessDay(day).to_string().into(),
            BusinessDay(own_day).to_string().into(),
        ])?;
    }
    Ok(())
}

fn entries(db: &Connection, institution: InstitutionId, sink: &mut Sink<'_>) -> Result<(), StoreError> {
    let mut statement =
        db.prepare("SELECT log, position, hash, order_key, record FROM entries ORDER BY log, position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let record: Vec<u8> = row.get(4)?;
        let entry = Entry::from_record(&record)?;
        let json = |value: serde_json::Result<Value>| {
            value.map_err(|error| StoreError::Corrupt(format!("an entry as JSON: {error}")))
        };
        // The kind stands in a column of its own.
        let body = match json(serde_json::to_value(&entry.body))? {
            Value::Object(tagged) if tagged.len() == 1 => {
                tagged.into_iter().next().map(|(_, body)| body).unwrap_or_default()
            }
            other => other,
        };
        sink.row(vec![
            LogId::from_key(institution, row.get(0)?).to_string().into(),
            row.get::<_, i64>(1)?.into(),
            hex(&row.get::<_, Vec<u8>>(2)?).into(),
            entry.body.name().into(),
            entry.body.critical().into(),
            entry.clock.time().0.into(),
            row.get::<_, i64>(3)?.into(),
            json(serde_json::to_value(&entry.actor))?,
            body,
        ])?;
    }
    Ok(())
}

/// What a case is called: after its debit, in the log of a node of this name.
pub(crate) fn case_name(node: Option<String>, log: LogId, position: u64) -> String {
    let node = node.unwrap_or_else(|| log.to_string());
    if log.stream == 0 { format!("{node}:{position}") } else { format!("{node}/b{}:{position}", log.stream) }
}

fn cases(db: &Connection, institution: InstitutionId, sink: &mut Sink<'_>) -> Result<(), StoreError> {
    let names: BTreeMap<NodeId, String> =
        nodes::all(db)?.into_iter().map(|(id, node)| (id, node.display_name())).collect();
    let mut statement = db.prepare(
        "SELECT log, position, card, reason, bearer, opened, recovered, refunded FROM cases
         ORDER BY order_key, log, position, loss",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let log = LogId::from_key(institution, row.get(0)?);
        let name = case_name(names.get(&log.writer).cloned(), log, row.get::<_, i64>(1)? as u64);
        let fen = |index| Ok::<_, StoreError>(json!(row.get::<_, i64>(index)?));
        sink.row(vec![
            name.into(),
            row.get::<_, String>(2)?.into(),
            reason_of(row.get(3)?)?.name().into(),
            bearer_of(row.get(4)?)?.name().into(),
            fen(5)?,
            fen(6)?,
            fen(7)?,
        ])?;
    }
    for (serial, purchase) in purses::cases(db, institution)? {
        let Some(reason) = purchase.became.case() else { continue };
        let log = purchase.at.log;
        let decided = purses::decision_of(db, purchase.at)?.map(|row| row.decided);
        let bearer = decided.as_ref().map_or(Bearer::Suspense.name(), case::bearer);
        let (recovered, refunded) = decided.as_ref().map(case::moved).unwrap_or_default();
        let name = case_name(names.get(&log.writer).cloned(), log, purchase.at.position);
        sink.row(vec![
            name.into(),
            serial.to_string().into(),
            reason.into(),
            bearer.into(),
            json!(purchase.amount.get()),
            json!(recovered.get()),
            json!(refunded.get()),
        ])?;
    }
    Ok(())
}
