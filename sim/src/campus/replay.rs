//! Reads a folder of recorded taps, accounts and top-ups.
//!
//! `taps.csv`: `time,building,terminal,terminal_seq,card,kind,weight_g,amount_fen` (kind `purchase`; an empty `amount_fen` is
//! weight x tariff). `accounts.csv`: `card,patron_class,opening_fen,single_limit_fen,daily_limit_fen`. `topups.csv`:
//! `time,card,amount_fen,channel`. Each may be gzipped (`.csv.gz`). Times are local, without zone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use csv::{Reader, StringRecord};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{Key, NodeName};
use feiqian_protocol::limits::{AMOUNT_FEN_MAX, QUANTITY_MAX};
use feiqian_protocol::money::Fen;
use flate2::read::GzDecoder;

use super::local;
use super::workload::{Account, Ask, Site, Tap, Topup, Workload};

/// Reads `dir`; of the taps and top-ups only those of the first `days` days that have taps.
///
/// # Errors
/// A missing file, or a row that cannot be read, with file, line and column.
pub fn read(dir: &Path, days: Option<u32>) -> Result<Workload> {
    let accounts = accounts(&mut Table::open(dir, "accounts")?)?;
    let mut topups = topups(&mut Table::open(dir, "topups")?)?;
    let (mut taps, names) = taps(&mut Table::open(dir, "taps")?)?;
    let cards: BTreeSet<_> = accounts.iter().map(|account| &account.card).collect();
    if let Some(topup) = topups.iter().find(|topup| !cards.contains(&topup.card)) {
        bail!("topups: card {} of the top-up at {} has no account", topup.card, local::format(topup.at));
    }
    taps.sort_by_key(|tap| tap.at);
    topups.sort_by_key(|topup| topup.at);
    if let Some(days) = days {
        let day = |at| local::CALENDAR.day(at);
        let all: BTreeSet<_> = taps.iter().map(|tap| day(tap.at)).collect();
        let Some(last) = all.iter().take(days as usize).next_back().copied() else { bail!("no taps") };
        taps.retain(|tap| day(tap.at) <= last);
        topups.retain(|topup| day(topup.at) <= last);
    }
    let buildings = sites(&names, &taps);
    Ok(Workload { buildings, tariff: tariff()?, accounts, topups, taps })
}

/// The recorded canteens' price per gram.
fn tariff() -> Result<BTreeMap<String, feiqian_protocol::money::UnitPrice>> {
    [("student", "0.0240"), ("staff", "0.0300"), ("guest", "0.0384")]
        .into_iter()
        .map(|(class, price)| Ok((class.to_owned(), price.parse()?)))
        .collect()
}

fn sites(names: &[NodeName], taps: &[Tap]) -> Vec<Site> {
    let mut terminals = vec![BTreeSet::new(); names.len()];
    for tap in taps {
        terminals[tap.building].insert(tap.terminal.clone());
    }
    names
        .iter()
        .zip(terminals)
        .map(|(name, terminals)| Site {
            name: name.clone(),
            role: Role::Pos,
            terminals: terminals.into_iter().collect(),
        })
        .collect()
}

fn accounts(table: &mut Table) -> Result<Vec<Account>> {
    let mut accounts = Vec::new();
    let mut cards = BTreeSet::new();
    while table.advance()? {
        let account = Account {
            card: table.parse("card")?,
            patron_class: table.text("patron_class")?.to_owned(),
            opening: table.fen("opening_fen", true)?,
            single_limit: table.optional("single_limit_fen", |table, key| table.fen(key, true))?,
            daily_limit: table.optional("daily_limit_fen", |table, key| table.fen(key, true))?,
        };
        if !cards.insert(account.card.clone()) {
            return Err(table.fault("card", "stands twice"));
        }
        accounts.push(account);
    }
    Ok(accounts)
}

fn topups(table: &mut Table) -> Result<Vec<Topup>> {
    let mut topups = Vec::new();
    while table.advance()? {
        topups.push(Topup {
            at: table.time("time")?,
            card: table.parse("card")?,
            amount: table.fen("amount_fen", false)?,
            channel: table.parse("channel")?,
            key: Key::new(format!("row-{}", table.line()))?,
        });
    }
    Ok(topups)
}

fn taps(table: &mut Table) -> Result<(Vec<Tap>, Vec<NodeName>)> {
    let mut taps = Vec::new();
    let mut names: Vec<NodeName> = Vec::new();
    let mut owners = BTreeMap::new();
    let mut keys = BTreeSet::new();
    while table.advance()? {
        let name: NodeName = table.parse("building")?;
        let building = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        if table.text("kind")? != "purchase" {
            return Err(table.fault("kind", "must be purchase"));
        }
        let ask = if table.text("amount_fen")?.is_empty() {
            let quantity: u32 = table.parse("weight_g")?;
            if quantity == 0 || quantity > QUANTITY_MAX {
                return Err(table.fault("weight_g", "must be from 1 to 1000000"));
            }
            Ask::Quantity(quantity)
        } else {
            Ask::Amount(table.fen("amount_fen", false)?)
        };
        let tap = Tap {
            at: table.time("time")?,
            building,
            terminal: table.parse("terminal")?,
            sequence: table.parse("terminal_seq")?,
            card: table.parse("card")?,
            ask,
        };
        if *owners.entry(tap.terminal.clone()).or_insert(building) != building {
            return Err(table.fault("terminal", "stands in two buildings"));
        }
        if !keys.insert((tap.terminal.clone(), tap.sequence.clone())) {
            return Err(table.fault("terminal_seq", "stands twice for this terminal"));
        }
        taps.push(tap);
    }
    Ok((taps, names))
}

/// A CSV file with a header row, read row by row; every complaint names file, line and column.
pub struct Table {
    path: PathBuf,
    reader: Reader<Box<dyn Read>>,
    columns: BTreeMap<String, usize>,
    row: StringRecord,
}

impl Table {
    /// Opens `dir/name.csv.gz` or `dir/name.csv`.
    ///
    /// # Errors
    /// Where there is neither, or no header row.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let zipped = dir.join(format!("{name}.csv.gz"));
        if zipped.exists() {
            let file = File::open(&zipped).with_context(|| format!("cannot open {}", zipped.display()))?;
            return Self::read(zipped, Box::new(GzDecoder::new(file)));
        }
        let plain = dir.join(format!("{name}.csv"));
        let file = File::open(&plain)
            .with_context(|| format!("cannot open {} (nor {name}.csv.gz beside it)", plain.display()))?;
        Self::read(plain, Box::new(file))
    }

    /// Reads anything; `path` is for messages.
    ///
    /// # Errors
    /// Where there is no header row.
    pub fn read(path: PathBuf, input: Box<dyn Read>) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().from_reader(input);
        let headers = reader.headers().with_context(|| format!("{}: no header row", path.display()))?;
        let columns =
            headers.iter().enumerate().map(|(index, name)| (name.trim().to_owned(), index)).collect();
        Ok(Self { path, reader, columns, row: StringRecord::new() })
    }

    /// Goes to the next row; false at the end.
    ///
    /// # Errors
    /// Where the row is no CSV or has another number of fields than the header.
    pub fn advance(&mut self) -> Result<bool> {
        self.reader.read_record(&mut self.row).with_context(|| format!("{}", self.path.display()))
    }

    /// The line of the row.
    pub fn line(&self) -> u64 {
        self.row.position().map_or(0, csv::Position::line)
    }

    /// An error about a column of the row.
    pub fn fault(&self, column: &str, why: impl Display) -> anyhow::Error {
        anyhow::anyhow!("{}:{}: {column} {why}", self.path.display(), self.line())
    }

    /// A column of the row, as it is.
    ///
    /// # Errors
    /// Where the file has no such column.
    pub fn text(&self, column: &str) -> Result<&str> {
        let index = self
            .columns
            .get(column)
            .with_context(|| format!("{}: there is no column {column:?}", self.path.display()))?;
        Ok(self.row.get(*index).unwrap_or_default().trim())
    }

    /// A column of the row, parsed.
    ///
    /// # Errors
    /// Where it does not parse.
    pub fn parse<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|error| self.fault(column, format!("{text:?}: {error}")))
    }

    /// A local time.
    ///
    /// # Errors
    /// Where it is none.
    pub fn time(&self, column: &str) -> Result<feiqian_protocol::time::Timestamp> {
        local::parse(self.text(column)?).map_err(|error| self.fault(column, error))
    }

    /// An amount within the product's bounds.
    ///
    /// # Errors
    /// Where it is none.
    pub fn fen(&self, column: &str, zero: bool) -> Result<Fen> {
        let amount = Fen::new(self.parse(column)?);
        if amount.is_negative() || amount > AMOUNT_FEN_MAX || (amount == Fen::ZERO && !zero) {
            return Err(self.fault(column, "is out of range"));
        }
        Ok(amount)
    }

    /// A column that may be empty.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn optional<T>(
        &self,
        column: &str,
        read: impl FnOnce(&Self, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.text(column)?.is_empty() { Ok(None) } else { read(self, column).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn folder(taps: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let accounts = "card,patron_class,opening_fen,single_limit_fen,daily_limit_fen\nc1,student,900,,\n";
        std::fs::write(dir.path().join("accounts.csv"), accounts).unwrap();
        let topups = "time,card,amount_fen,channel\n2022-11-08T12:00:00,c1,500,alipay\n";
        let mut zip = flate2::write::GzEncoder::new(
            File::create(dir.path().join("topups.csv.gz")).unwrap(),
            flate2::Compression::fast(),
        );
        zip.write_all(topups.as_bytes()).unwrap();
        zip.finish().unwrap();
        let header = "time,building,terminal,terminal_seq,card,kind,weight_g,amount_fen\n";
        std::fs::write(dir.path().join("taps.csv"), format!("{header}{taps}")).unwrap();
        dir
    }

    #[test]
    fn a_folder_is_read_and_cut_to_its_first_days() {
        let dir = folder(
            "2022-11-08T12:00:02,b,t1,2,c1,purchase,552,\n2022-11-07T12:00:02,a,t2,1,c9,purchase,,1250\n",
        );
        let all = read(dir.path(), None).unwrap();
        assert_eq!(all.taps.len(), 2);
        assert_eq!(all.taps[0].ask, Ask::Amount(Fen::new(1250)));
        assert_eq!(all.asked(&all.taps[1], Some("student")), Some(Fen::new(1325)));
        assert_eq!(all.buildings[all.taps[0].building].name.as_str(), "a");
        assert_eq!(all.topups.len(), 1);
        all.campus(feiqian_protocol::campus::Mode::Strict).check().unwrap();
        let first = read(dir.path(), Some(1)).unwrap();
        assert_eq!((first.taps.len(), first.topups.len()), (1, 0));
    }

    #[test]
    fn a_bad_row_is_named_by_file_line_and_column() {
        for (row, names) in [
            ("noon,b,t1,2,c1,purchase,552,", "taps.csv:2: time"),
            ("2022-11-08T12:00:02,b,t1,2,c1,purchase,0,", "taps.csv:2: weight_g"),
            ("2022-11-08T12:00:02,b,t1,2,c1,purchase,,-5", "taps.csv:2: amount_fen"),
            ("2022-11-08T12:00:02,b,t1,2,c 1,purchase,,5", "taps.csv:2: card"),
            ("2022-11-08T12:00:02,b,t1,2,c1,door,,5", "taps.csv:2: kind"),
        ] {
            let error = format!("{:#}", read(folder(&format!("{row}\n")).path(), None).unwrap_err());
            assert!(error.contains(names), "{error}");
        }
        let twice = "2022-11-08T12:00:02,b,t1,2,c1,purchase,,5\n2022-11-08T12:00:03,b,t1,2,c1,purchase,,5\n";
        let error = format!("{:#}", read(folder(twice).path(), None).unwrap_err());
        assert!(error.contains("taps.csv:3: terminal_seq"), "{error}");
        assert!(read(Path::new("/nonexistent"), None).is_err());
    }
}
