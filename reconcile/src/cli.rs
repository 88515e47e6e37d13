//! The command line. Whatever changes something is said to the running service through its local socket; `verify` and
//! `export` read the database by themselves.

mod accounts;
mod cards;
mod cases;
pub(crate) mod print;
mod publish;

use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use feiqian_protocol::chain::hex;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName, Wallet};
use feiqian_protocol::limits::ENROL_CODE_SECONDS;
use feiqian_protocol::money::Fen;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::print::{print_account, print_status};
use crate::authority::{self, Authority};
use crate::config::{Config, ConfigError, read_campus};
use crate::control::Client;
use crate::driver::real_now;
use crate::export::{self, Format, Table};
use crate::io::{Command, Identity, SettingCommand};
use crate::login::command::LoginAction;
use crate::phones::command::VirtualCard;
use crate::pin::command::PinAction;
use crate::purse::command::PurseAction;
use crate::run::{self, CAMPUS, DATABASE, Origin};
use crate::verify;
use crate::{history, import, login, phones, pin, purse};

/// A configuration that is wrong (`EX_USAGE` of sysexits.h).
const EXIT_CONFIGURATION: u8 = 64;

/// The centre of a Feiqian campus: collects what the buildings did, posts it, and hands out the rights to spend.
#[derive(Parser)]
#[command(name = "feiqian-reconcile", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

/// Where the centre is.
#[derive(Args)]
pub struct Data {
    /// The data directory of the centre.
    #[arg(long = "data", value_name = "DIR", env = "FEIQIAN_DATA")]
    dir: PathBuf,
}

impl Data {
    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

#[derive(Subcommand)]
enum Action {
    /// Makes the keys, the certificate authority and the empty database of a new institution.
    Init {
        #[command(flatten)]
        data: Data,
        /// The campus: its buildings, terminals and merchants (TOML).
        #[arg(long, value_name = "FILE.toml")]
        campus: PathBuf,
    },
    /// Makes the one-time code that a building's node joins with. An enrolled node that enrols anew gets new keys, and the
    /// old ones are refused.
    Enroll {
        /// The node's name, as in the campus file.
        node: NodeName,
        /// What it may write: door, pos, kiosk or desk.
        #[arg(long)]
        role: Role,
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Closes a node's rights: asks it to end its epoch, and gives it none until it is enrolled anew.
    Retire {
        /// The node's name.
        node: NodeName,
        /// Closes at what has come in so far, without waiting for the node; what it spends beyond is the risk fund's.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        data: Data,
    },
    /// Revokes a node's certificates, of a stolen controller for one: closes its rights at what has come in, ends its session
    /// at once, and takes nothing of it any more. What its disk holds can be brought in with `import log`.
    Revoke {
        /// The node's name.
        node: NodeName,
        /// Which of its enrolments, counted from 1; the newest where it is not given.
        #[arg(long, value_name = "NUMBER")]
        enrolment: Option<u32>,
        #[command(flatten)]
        data: Data,
    },
    /// Runs the centre.
    Run {
        /// Its configuration (TOML).
        #[arg(long, value_name = "FILE.toml")]
        config: PathBuf,
        /// The data directory was restored from a backup: before anything is granted, the centre takes back what the
        /// buildings hold of what it had written since. Found out by itself where the database is another file than before;
        /// needed where a whole disk or machine was put back.
        #[arg(long, conflicts_with = "moved")]
        restored: bool,
        /// The data directory was moved here whole after the centre had stopped, and nothing needs to be taken back. Said
        /// of an older copy this loses money.
        #[arg(long)]
        moved: bool,
    },
    /// Publishes a changed campus file, and shows what it changes; the buildings get it at once, cut-off ones when they are back.
    Publish(publish::Publish),
    /// Brings accounts in, or the log of a closed node.
    Import {
        #[command(subcommand)]
        what: Import,
    },
    /// Credits an account, once per channel and key.
    Topup {
        /// A card of the account.
        #[arg(long)]
        card: CardNumber,
        #[command(flatten)]
        amount: Amount,
        /// The wallet: cash or subsidy.
        #[arg(long, default_value = "cash")]
        wallet: Wallet,
        /// The channel that took the money.
        #[arg(long)]
        channel: Key,
        /// The channel's own id of it; the same one credits once.
        #[arg(long)]
        key: Key,
        #[command(flatten)]
        data: Data,
    },
    /// Reports a card lost, lifts the report, or shows how far it is known.
    Loss {
        #[command(subcommand)]
        what: cards::Loss,
    },
    /// Shows the account of a card, or changes it.
    Account {
        #[command(subcommand)]
        what: accounts::Account,
    },
    /// Replaces a card or withdraws it.
    Card {
        #[command(subcommand)]
        what: cards::Card,
    },
    /// Decides a case that waits for a person: of a tap after a loss report above the refund cap, or by a code that was used twice.
    Case {
        #[command(subcommand)]
        what: cases::Case,
    },
    /// Purses of cards: what is on them by the books, and what explains a card that says something else.
    Purse {
        #[command(subcommand)]
        what: PurseAction,
    },
    /// Virtual cards: the keys of phones, and what they pay and open doors by.
    VirtualCard {
        #[command(subcommand)]
        what: VirtualCard,
    },
    /// The payment PIN of an account: what a purchase over the limits is asked for. PINs are read from standard input, never
    /// from arguments, and go no further than this process, which hashes them.
    Pin {
        #[command(subcommand)]
        what: PinAction,
    },
    /// The login password of an account, for an app; apart from the payment PIN. Read from standard input, never from arguments.
    Login {
        #[command(subcommand)]
        what: LoginAction,
    },
    /// Shows how the centre stands.
    Status {
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Recomputes everything from the entries and compares it with what the database says. Ends with 1 where it finds a
    /// problem.
    Verify {
        #[command(flatten)]
        data: Data,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Writes out what the database holds.
    Export {
        /// What.
        what: What,
        #[command(flatten)]
        data: Data,
        /// The format.
        #[arg(long, default_value = "csv")]
        format: As,
        /// Where to; standard output where it is not given.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Import {
    /// Purchases that another system booked, from a CSV file with a header: time (local, 2025-09-08T11:30), card, node (of the
    /// building), amount_fen. Rights are handed out by these habits from the first day on; no money moves. The history that
    /// policy.history_days names (28 days) is enough. Running it again with the same file changes nothing.
    History {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
    /// Accounts from a CSV file with a header: card, patron_class, opening_fen, and where wanted subsidy_fen,
    /// single_limit_fen, daily_limit_fen, groups (separated by spaces), opened (a day; an account younger than two weeks is not
    /// stood in for), valid_until (a day, the last one), id_last_six (the end of the holder's ID number, of which the initial
    /// payment PIN is made; hashing takes some tens of milliseconds for each).
    Accounts {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
    /// The log of a retired, refused or revoked node, as `feiqian-node export log` wrote it. It is proven and posted as
    /// entries of a closed epoch; what is there already is not taken twice.
    Log {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Amount {
    /// In fen.
    #[arg(long)]
    fen: Option<i64>,
    /// In yuan, at most two decimals.
    #[arg(long, value_parser = Fen::parse_yuan)]
    yuan: Option<Fen>,
}

/// A card, and who says so of it.
#[derive(Args)]
pub(crate) struct OfCard {
    /// The card.
    pub(crate) card: CardNumber,
    /// Who says so.
    #[arg(long, default_value = "operator")]
    pub(crate) operator: Key,
    #[command(flatten)]
    pub(crate) data: Data,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Balances,
    Postings,
    Entries,
    Cases,
}

impl From<What> for Table {
    fn from(what: What) -> Self {
        match what {
            What::Balances => Self::Balances,
            What::Postings => Self::Postings,
            What::Entries => Self::Entries,
            What::Cases => Self::Cases,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum As {
    Csv,
    Jsonl,
}

impl From<As> for Format {
    fn from(form: As) -> Self {
        match form {
            As::Csv => Self::Csv,
            As::Jsonl => Self::Jsonl,
        }
    }
}

/// Runs a command line, its first argument being the program's name.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, errors to standard error; where neither is there, nothing can be said.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match act(cli.command, &mut std::io::stdout().lock()) {
        Ok(code) => code,
        // Whoever reads our output, such as `head`, has had enough.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` has the causes, which the library's own messages leave out.
            eprintln!("feiqian-reconcile: {error:#}");
            if error.is::<ConfigError>() { EXIT_CONFIGURATION.into() } else { ExitCode::FAILURE }
        }
    }
}

fn act(action: Action, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match action {
        Action::Init { data, campus } => init(out, &data.dir, &campus)?,
        Action::Enroll { node, role, data, json } => enroll(out, &data.dir, node, role, json)?,
        Action::Retire { node, force, data } => {
            say(&data.dir, &Command::Retire { node, force })?;
            writeln!(out, "{}", if force { "closed" } else { "closing; see feiqian-reconcile status" })?;
        }
        Action::Revoke { node, enrolment, data } => {
            let reply = say(&data.dir, &Command::Revoke { node: node.clone(), enrolment })?;
            let enrolment = reply.get("enrolment").and_then(Value::as_u64).unwrap_or_default();
            writeln!(out, "revoked: {node}, enrolment {enrolment}")?;
        }
        Action::Run { config, restored, moved } => {
            let config = Config::read(&config)?;
            start_log(config.log_json);
            let origin = match (restored, moved) {
                (true, _) => Origin::Restored,
                (_, true) => Origin::Moved,
                _ => Origin::Unsaid,
            };
            run::run(&config, origin)?;
        }
        Action::Publish(publish) => publish::act(publish, out)?,
        Action::Import { what: Import::Accounts { file, data } } => import::accounts(out, &file, &data.dir)?,
        Action::Import { what: Import::Log { file, data } } => import::log(out, &file, &data.dir)?,
        Action::Import { what: Import::History { file, data } } => history::import(out, &file, &data.dir)?,
        Action::Topup { card, amount, wallet, channel, key, data } => {
            let amount_fen = amount.fen.map(Fen::new).or(amount.yuan).unwrap_or_default();
            let reply = say(&data.dir, &Command::Topup { card, amount_fen, wallet, channel, key })?;
            // A repeat gets its first answer, so this is the balance after the credit, not after a repeat of it.
            let posted = reply.get("posted_fen").and_then(Value::as_i64).unwrap_or_default();
            writeln!(out, "credited {amount_fen} yuan; {wallet} was {} yuan then", Fen::new(posted))?;
        }
        Action::Account { what } => accounts::act(what, out)?,
        Action::Card { what } => cards::act(what, out)?,
        Action::Loss { what } => cards::act_on_loss(what, out)?,
        Action::Case { what } => cases::act(what, out)?,
        Action::Purse { what } => purse::command::act(what, out)?,
        Action::Pin { what } => pin::command::act(what, out)?,
        Action::Login { what } => login::command::act(what, out)?,
        Action::VirtualCard { what } => phones::command::act(what, out)?,
        Action::Status { data, json } => {
            let status = without_ok(say(&data.dir, &Command::Status {})?);
            if json {
                writeln!(out, "{status}")?;
            } else {
                print_status(out, &serde_json::from_value(status)?)?;
            }
        }
        Action::Verify { data, json } => return verify(out, &data.dir, json),
        Action::Export { what, data, format, output } => {
            export(out, &data.dir, what.into(), format.into(), output.as_deref())?
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn start_log(json: bool) {
    let level = std::env::var("FEIQIAN_LOG").ok().and_then(|level| level.parse().ok());
    let level = level.unwrap_or(LevelFilter::INFO);
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(colours).with_writer(std::io::stderr);
    // Spans of documents that are loaded, with what is in them in words, are a twentieth of the work with them.
    let filter = Targets::new().with_default(level).with_target("automerge", LevelFilter::WARN.min(level));
    // Somebody who runs us inside their own process may have a log of their own already.
    let _ =
        if json { log.json().finish().with(filter).try_init() } else { log.finish().with(filter).try_init() };
}

pub(crate) fn say(dir: &Path, command: &Command) -> anyhow::Result<Value> {
    Ok(Client::connect(dir)?.command(command)?)
}

pub(crate) fn without_ok(mut reply: Value) -> Value {
    if let Value::Object(fields) = &mut reply {
        fields.remove("ok");
    }
    reply
}

/// Changes a setting of the card's account.
pub(super) fn change(out: &mut impl Write, of: OfCard, change: SettingCommand) -> anyhow::Result<()> {
    let OfCard { card, operator, data } = of;
    let reply = without_ok(say(&data.dir, &Command::ChangeSetting { card, change, operator })?);
    print_account(out, &reply)
}

fn init(out: &mut impl Write, dir: &Path, campus_file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let (campus, text) = read_campus(campus_file)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("{} cannot be made", dir.display()))?;
    let mut files = std::fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))?;
    if files.next().is_some() {
        anyhow::bail!("{} is not empty; an institution is made once, in an empty directory", dir.display());
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    Authority::create(dir, campus.institution, real_now())?;
    let identity = Identity { institution: campus.institution, log_key: authority::log_key(dir)? };
    // SQLite makes its other files as private as this one.
    authority::write_private(dir, DATABASE, b"")?;
    let connection = Connection::open(dir.join(DATABASE))?;
    drop(crate::core::ReconcileCore::open(connection, identity)?);
    // Last, since its presence says that the rest is there.
    authority::write_private(dir, CAMPUS, text.as_bytes())?;

    let node = campus.buildings.first().map_or("NODE", |building| building.node.as_str());
    writeln!(out, "Institution {} is ready in {dir}.", campus.institution, dir = dir.display())?;
    writeln!(
        out,
        "Keep a copy of ca.key and log.key in {} offline: whoever has them is the centre.",
        dir.display()
    )?;
    writeln!(out)?;
    writeln!(out, "Next:")?;
    writeln!(out, "  1. Write the configuration (data_dir = \"{}\") and start the centre:", dir.display())?;
    writeln!(out, "       feiqian-reconcile run --config FILE.toml")?;
    writeln!(out, "  2. Bring the accounts in:")?;
    writeln!(out, "       feiqian-reconcile import accounts FILE.csv --data {}", dir.display())?;
    writeln!(out, "  3. Make a code for each building, and carry it there:")?;
    writeln!(out, "       feiqian-reconcile enroll {node} --role pos --data {}", dir.display())?;
    writeln!(out, "       feiqian-node join --data DIR --centre HOST:PORT --code CODE")?;
    Ok(())
}

fn enroll(out: &mut impl Write, dir: &Path, node: NodeName, role: Role, as_json: bool) -> anyhow::Result<()> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret)
        .map_err(|error| anyhow::anyhow!("no randomness from the operating system: {error}"))?;
    let code = authority::code(dir, secret)?;
    let (name, lookup) = (node.clone(), hex(&code.lookup()));
    say(dir, &Command::CreateEnrolment { name, role, lookup, secret: hex(&secret) })?;
    let minutes = ENROL_CODE_SECONDS / 60;
    if as_json {
        let code = code.to_string();
        writeln!(
            out,
            "{}",
            json!({"node": node, "role": role, "code": code, "valid_s": ENROL_CODE_SECONDS})
        )?;
    } else {
        writeln!(out, "{code}")?;
        writeln!(out)?;
        writeln!(
            out,
            "Good once, for {node} as {}, for {minutes} minutes. At the building's controller:",
            role.name()
        )?;
        writeln!(out, "  feiqian-node join --data DIR --centre HOST:PORT --code {code}")?;
    }
    Ok(())
}

fn verify(out: &mut impl Write, dir: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let identity = run::identity(dir)?;
    let centre_key = identity.log_key.verifying_key();
    let report = verify::verify(&open_read_only(dir)?, identity.institution, &centre_key)?;
    if as_json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(out, "{}: {} entries in all logs", report.node, report.entries)?;
        for (log, position) in &report.positions {
            writeln!(out, "{log}: {position}")?;
        }
        writeln!(out, "digest of the tables   {}", report.digest_tables)?;
        writeln!(out, "digest of the entries  {}", report.digest_folded)?;
        for problem in &report.problems {
            writeln!(out, "problem: {problem}")?;
        }
        writeln!(out, "{}", if report.ok { "ok" } else { "NOT OK" })?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn export(
    out: &mut impl Write,
    dir: &Path,
    table: Table,
    format: Format,
    output: Option<&Path>,
) -> anyhow::Result<()> {
    let institution = run::identity(dir)?.institution;
    let connection = open_read_only(dir)?;
    match output {
        None => export::export(&connection, institution, table, format, &mut BufWriter::new(out))?,
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
            let mut file = BufWriter::new(file);
            export::export(&connection, institution, table, format, &mut file)?;
            file.flush().with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Beside the running service, or without it.
fn open_read_only(dir: &Path) -> anyhow::Result<Connection> {
    let database = dir.join(DATABASE);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(&database, flags).with_context(|| database.display().to_string())
}
