//! The command line.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use feiqian_protocol::chain::hex;
use feiqian_protocol::ids::{CardNumber, Key, TerminalId};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::{BusinessCalendar, Timestamp};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, ConfigError, EXIT_CONFIG, HostPort};
use crate::control::{self, Command as ControlCommand};
use crate::drive::Chain;
use crate::export;
use crate::identity::{DataDir, NodeFiles};
use crate::join;
use crate::run;
use crate::store::StoreError;
use crate::tls;
use crate::verify;

/// Names the data directory where `--data` does not.
const DATA_VARIABLE: &str = "FEIQIAN_DATA";

/// Sets the level of the log.
const LOG_VARIABLE: &str = "FEIQIAN_LOG";

/// A building of a Feiqian campus: decides taps from its own disk, through days without network.
#[derive(Parser)]
#[command(name = "feiqian-node", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed or problems found, 2 wrong usage, 64 bad configuration.
Environment: FEIQIAN_DATA names the data directory where --data does not; FEIQIAN_LOG sets the level of the log
(error, warn, info, debug, trace; default info).";

#[derive(Subcommand)]
enum Command {
    /// Makes this machine a node, with a one-time code from `feiqian-reconcile enroll`
    Join {
        #[command(flatten)]
        data: Data,
        /// Where the centre is (UDP)
        #[arg(long, value_name = "HOST:PORT")]
        centre: HostPort,
        /// The one-time code, valid for 15 minutes
        #[arg(long)]
        code: String,
    },
    /// Runs the node until it is told to stop (SIGTERM)
    Run {
        /// The configuration; see node.example.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Shows how the running node stands
    Status {
        #[command(flatten)]
        data: Data,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Reports a card lost, lowers limits, freezes an account or withdraws a card, in this building at once and cut off or not; the
    /// others follow as they hear of it. What a building may change is its role's (kiosk, desk)
    Set {
        #[command(subcommand)]
        what: Set,
    },
    /// Recomputes everything that the database claims from its entries; exit code 1 where something differs
    Verify {
        #[command(flatten)]
        data: Data,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes out what the node holds
    Export {
        #[command(subcommand)]
        what: Export,
    },
    /// Shows what a terminal needs: its key, the name in the node's certificate, and the CA
    TerminalKey {
        /// The terminal
        terminal: TerminalId,
        #[command(flatten)]
        data: Data,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Set {
    /// The card was lost
    Loss(SetOf),
    /// Lower no-PIN limits; one that is not given stays
    Limits {
        /// In fen per purchase
        #[arg(long, value_name = "FEN", required_unless_present = "daily")]
        single: Option<i64>,
        /// In fen per day
        #[arg(long, value_name = "FEN")]
        daily: Option<i64>,
        #[command(flatten)]
        of: SetOf,
    },
    /// No purchases from the card's account; withdrawn at the centre only
    Freeze(SetOf),
    /// The card is no longer valid, for ever
    Void(SetOf),
    /// A card that this building has not heard of is good by the centre's word (`feiqian-reconcile card issuance`)
    Shown {
        /// What the centre has signed
        issuance: String,
        /// Who says so
        #[arg(long, default_value = "operator")]
        operator: Key,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Args)]
struct SetOf {
    /// The card
    card: CardNumber,
    /// Who says so
    #[arg(long, default_value = "operator")]
    operator: Key,
    #[command(flatten)]
    data: Data,
}

#[derive(Subcommand)]
enum Export {
    /// Every tap and reversal that this node has decided, and what purses have paid here, in the order of its log
    Decisions {
        #[command(flatten)]
        data: Data,
        /// The format
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// Where to; standard output where absent
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// This node's whole log with its signatures, for `feiqian-reconcile import log` where the centre takes nothing from this
    /// node any more
    Log {
        #[command(flatten)]
        data: Data,
        /// Where to
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One line per row, the first one names the fields
    Csv,
    /// One JSON object per line
    Jsonl,
}

#[derive(Args)]
struct Data {
    /// The node's data directory [env: FEIQIAN_DATA]
    #[arg(long = "data", value_name = "DIR")]
    path: Option<PathBuf>,
}

impl Data {
    fn dir(&self) -> Result<DataDir, anyhow::Error> {
        self.path
            .clone()
            .or_else(|| std::env::var_os(DATA_VARIABLE).map(PathBuf::from))
            .map(DataDir::new)
            .ok_or_else(|| anyhow::anyhow!("name the data directory with --data or {DATA_VARIABLE}"))
    }
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where the terminal is gone nobody reads it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            if broken_pipe(&*error) {
                return ExitCode::SUCCESS;
            }
            eprintln!("feiqian-node: {}", Chain(&*error));
            let config = error.downcast_ref::<ConfigError>().is_some();
            if config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: Command) -> Result<ExitCode, anyhow::Error> {
    match command {
        Command::Join { data, centre, code } => join(&data.dir()?, &centre, &code),
        Command::Run { config } => {
            let config = Config::read(&config)?;
            start_log(config.log_json);
            run::run(&config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status { data, json } => status(&data.dir()?, json),
        Command::Set { what } => set(what),
        Command::Verify { data, json } => verify(&data.dir()?, json),
        Command::Export { what: Export::Decisions { data, format, output } } => {
            export_decisions(&data.dir()?, format, output)
        }
        Command::Export { what: Export::Log { data, output } } => export_log(&data.dir()?, &output),
        Command::TerminalKey { terminal, data, json } => terminal_key(&data.dir()?, &terminal, json),
    }
}

/// Logs to standard error. Where somebody else set a log up in this process already, that one stays.
fn start_log(json: bool) {
    let level = std::env::var(LOG_VARIABLE).ok().and_then(|level| level.parse().ok());
    let level = level.unwrap_or(LevelFilter::INFO);
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    // Spans of documents that are loaded, with what is in them in words, are a twentieth of the work with them.
    let filter = Targets::new().with_default(level).with_target("automerge", LevelFilter::WARN.min(level));
    let _ = if json {
        log.json().finish().with(filter).try_init()
    } else {
        log.with_ansi(io::stderr().is_terminal()).finish().with(filter).try_init()
    };
}

fn join(dir: &DataDir, centre: &HostPort, code: &str) -> Result<ExitCode, anyhow::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joined = runtime.block_on(join::join(dir, centre, code))?;
    println!("This machine is {}, node {}, role {}.", joined.name, joined.node, joined.role);
    Ok(ExitCode::SUCCESS)
}

fn set(what: Set) -> Result<ExitCode, anyhow::Error> {
    let (of, command) = match what {
        Set::Loss(of) => {
            let command = ControlCommand::ReportLoss { card: of.card, operator: of.operator };
            (of.data, command)
        }
        Set::Limits { single, daily, of } => {
            let command = ControlCommand::LowerLimits {
                card: of.card,
                single_limit_fen: single.map(Fen::new),
                daily_limit_fen: daily.map(Fen::new),
                operator: of.operator,
            };
            (of.data, command)
        }
        Set::Freeze(of) => {
            let command = ControlCommand::Freeze { card: of.card, operator: of.operator };
            (of.data, command)
        }
        Set::Void(of) => {
            let command = ControlCommand::VoidCard { card: of.card, operator: of.operator };
            (of.data, command)
        }
        Set::Shown { issuance, operator, data } => (data, ControlCommand::ShowCard { issuance, operator }),
    };
    let answer = control::call(&of.dir()?.control_socket(), &command)?;
    let (was_so, done) = match command {
        ControlCommand::ShowCard { .. } => {
            ("the card is known here already", "the card can be used here now")
        }
        _ => ("the card was withdrawn before", "done here; the other buildings follow as they hear of it"),
    };
    println!("{}", if answer["position"].is_null() { was_so } else { done });
    Ok(ExitCode::SUCCESS)
}

fn status(dir: &DataDir, json: bool) -> Result<ExitCode, anyhow::Error> {
    let status = control::call(&dir.control_socket(), &ControlCommand::Status {})?;
    let text = if json { format!("{status}\n") } else { status_table(&status) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A status for people: label and value per line.
fn status_table(status: &Value) -> String {
    let text = |name: &str| match &status[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let yuan =
        |name: &str| status[name].as_i64().map_or("-".to_owned(), |fen| format!("{} yuan", Fen::new(fen)));
    let time = |name: &str| status[name].as_i64().map_or("never".to_owned(), |ms| local_time(Timestamp(ms)));
    let shards: u64 = status["shards"].as_array().into_iter().flatten().filter_map(Value::as_u64).sum();
    let link = match &status["refused"] {
        Value::String(reason) => format!("refused by the centre: {reason}"),
        _ => text("link"),
    };
    let acked = format!("{} of {} entries", text("acked"), text("position"));
    let rows = [
        ("node", text("node")),
        ("terminals", text("terminals")),
        ("damage", text("damage")),
        ("link to the centre", link),
        ("centre last heard", time("heard")),
        ("session", text("session")),
        ("rights epoch", text("epoch")),
        ("safe at the centre", acked),
        ("lost with this disk", yuan("exposed_fen")),
        ("from the centre", format!("{} for this node, {shards} of the accounts", text("applied"))),
        ("accounts", text("accounts")),
        ("campus configuration", text("campus_version")),
        ("waiting taps", text("pending")),
        (
            "waiting settings",
            format!("{} ({} refused lately)", text("settings_waiting"), text("settings_refused")),
        ),
        ("unspent right", yuan("unspent_fen")),
        ("stand-in left", yuan("stand_in_left_fen")),
        ("wall clock", time("wall")),
    ];
    rows.iter().map(|(label, value)| format!("{label:<22}{value}\n")).collect()
}

fn local_time(time: Timestamp) -> String {
    let offset = BusinessCalendar::CHINA.utc_offset_minutes * 60;
    let zoned = jiff::Timestamp::from_millisecond(time.0).ok().and_then(|time| {
        let offset = jiff::tz::Offset::from_seconds(offset).ok()?;
        Some(offset.to_datetime(time).strftime("%Y-%m-%d %H:%M:%S +08:00").to_string())
    });
    zoned.unwrap_or_else(|| format!("{} ms", time.0))
}

fn verify(dir: &DataDir, json: bool) -> Result<ExitCode, anyhow::Error> {
    let (files, connection) = open_read_only(dir)?;
    let report = verify::verify(&connection, &files.identity)?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(out, "{}: {} entries of its own log", report.node, report.entries)?;
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

fn export_decisions(
    dir: &DataDir,
    format: Format,
    output: Option<PathBuf>,
) -> Result<ExitCode, anyhow::Error> {
    let (files, connection) = open_read_only(dir)?;
    let mut out: Box<dyn Write> = match &output {
        None => Box::new(BufWriter::new(io::stdout().lock())),
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| anyhow::Error::new(error).context(path.display().to_string()))?;
            Box::new(BufWriter::new(file))
        }
    };
    match format {
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(&mut out);
            export::decisions::<anyhow::Error>(&connection, &files.identity, |row| Ok(csv.serialize(row)?))?;
            csv.flush()?;
        }
        Format::Jsonl => {
            export::decisions::<anyhow::Error>(&connection, &files.identity, |row| {
                serde_json::to_writer(&mut out, row)?;
                Ok(out.write_all(b"\n")?)
            })?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn export_log(dir: &DataDir, output: &Path) -> Result<ExitCode, anyhow::Error> {
    let (files, connection) = open_read_only(dir)?;
    let file = File::create(output)
        .map_err(|error| anyhow::Error::new(error).context(output.display().to_string()))?;
    let mut out = BufWriter::new(file);
    let entries =
        export::log::<anyhow::Error>(connection, &files.identity, |bytes| Ok(out.write_all(bytes)?))?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    println!("{entries} entries of {}", files.identity.name);
    Ok(ExitCode::SUCCESS)
}

fn terminal_key(dir: &DataDir, terminal: &TerminalId, json: bool) -> Result<ExitCode, anyhow::Error> {
    let files = dir.load()?;
    let key = hex(files.terminal_secret.key(terminal).as_bytes());
    let server_name = tls::node_name(files.identity.node);
    let ca = std::path::absolute(dir.ca_file())?;
    let mut out = io::stdout().lock();
    if json {
        let shown = json!({
            "node": files.identity.name, "terminal": terminal, "key": key, "server_name": server_name, "ca": ca,
        });
        writeln!(out, "{shown}")?;
    } else {
        writeln!(out, "terminal     {terminal}")?;
        writeln!(out, "key          {key}")?;
        writeln!(out, "server name  {server_name}")?;
        writeln!(out, "CA           {}", ca.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open_read_only(dir: &DataDir) -> Result<(NodeFiles, Connection), anyhow::Error> {
    let files = dir.load()?;
    let database = dir.database();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&database, flags).map_err(|error| {
        anyhow::Error::new(StoreError::from(error)).context(database.display().to_string())
    })?;
    Ok((files, connection))
}

/// True where who reads our output has gone away, such as `head`.
fn broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let kind = |error: &(dyn Error + 'static)| {
        let csv = error.downcast_ref::<csv::Error>().map(csv::Error::kind);
        match csv {
            Some(csv::ErrorKind::Io(error)) => Some(error.kind()),
            _ => error
                .downcast_ref::<io::Error>()
                .map(io::Error::kind)
                .or_else(|| error.downcast_ref::<serde_json::Error>()?.io_error_kind()),
        }
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        if kind(error) == Some(io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run_with(args: &[&str]) -> ExitCode {
        main(["feiqian-node"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn exit_codes_tell_usage_configuration_and_failure_apart() {
        let temp = tempfile::tempdir().unwrap();
        let config = temp.path().join("node.toml");
        std::fs::write(&config, "speed = 1\n").unwrap();
        let data = temp.path().to_str().unwrap();
        assert_eq!(run_with(&["fly"]), ExitCode::from(2));
        assert_eq!(run_with(&["run", "--config", config.to_str().unwrap()]), ExitCode::from(EXIT_CONFIG));
        assert_eq!(run_with(&["status", "--data", data]), ExitCode::FAILURE);
        assert_eq!(run_with(&["terminal-key", "pos-1", "--data", data]), ExitCode::FAILURE);
        assert_eq!(run_with(&["--help"]), ExitCode::SUCCESS);
    }

    #[test]
    fn a_status_reads_well() {
        let status = json!({
            "node": "canteen-red", "link": "up", "refused": null, "exposed_fen": 1250, "position": 7, "acked": 5,
            "shards": [1, 2], "heard": 1_667_800_000_000_i64,
        });
        let table = status_table(&status);
        assert!(table.contains("lost with this disk   12.50 yuan\n"), "{table}");
        assert!(table.contains("safe at the centre    5 of 7 entries\n"), "{table}");
        assert!(table.contains("centre last heard     2022-11-07 13:46:40 +08:00\n"), "{table}");
    }
}
