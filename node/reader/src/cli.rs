//! The command line of `feiqian-reader`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::desk::Desk;
use crate::serve;

/// The exit code for a bad configuration: `EX_USAGE` of sysexits(3).
const EXIT_CONFIG: u8 = 64;

/// Speaks with purse cards over PC/SC, for a POS.
#[derive(Debug, Parser)]
#[command(name = "feiqian-reader", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the POS until it is stopped. It may be killed at any time: what is open is in the journal.
    Run {
        /// The configuration, in TOML; see docs/purse.md.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Sends one request to a running service and prints its answer. Ends with 0 where the answer says `"ok":true`, else with 1.
    #[command(after_help = "\
        Requests:\n  {\"command\":\"status\"}\n  {\"command\":\"info\"}\n  \
        {\"command\":\"purchase\",\"key\":\"pos1-42\",\"amount_fen\":1250}\n  \
        {\"command\":\"collect\",\"key\":\"pos1-43\"}\n  \
        {\"command\":\"load\",\"key\":\"pos1-44\",\"amount_fen\":5000}\n  {\"command\":\"recover\"}\n  \
        {\"command\":\"carry_issuance\",\"issuance\":\"TEXT\"}\n  \
        {\"command\":\"journal\",\"after\":0}\n  {\"command\":\"loads\",\"after\":0}\n\n\
        Those that want a card take \"reader\" (a name) where there are several, and \"wait_ms\" (how long to wait for it). load and \
        collect need the node ([node] in the configuration), and take \"pin\" for cards that ask for one. What is not reported to \
        the node yet is counted in status; journal and loads say it of each.")]
    Call {
        /// The service's Unix socket.
        socket: PathBuf,
        /// One JSON object.
        request: String,
    },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let done = match command {
        Command::Run { config } => run(&config).map(|()| true),
        Command::Call { socket, request } => call(&socket, &request),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("feiqian-reader: {error:#}");
            if error.is::<ConfigError>() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn run(config: &std::path::Path) -> Result<()> {
    let filter = tracing_subscriber::filter::LevelFilter::INFO;
    tracing_subscriber::fmt().with_max_level(filter).with_writer(std::io::stderr).init();
    let config = Config::load(config)?;
    std::fs::create_dir_all(&config.data_dir).with_context(|| config.data_dir.display().to_string())?;
    let (socket, listen) = (config.socket.clone(), config.listen);
    // First: it keeps a second process away from the socket.
    let desk = Desk::open(config).context("opening the journal (is another reader service running?)")?;
    let unix = serve::bind(&socket).with_context(|| socket.display().to_string())?;
    let tcp = match listen {
        Some(address) => Some(TcpListener::bind(address).with_context(|| address.to_string())?),
        None => None,
    };
    tracing::info!(socket = %socket.display(), listen = ?listen, "serving");
    serve::serve(&Arc::new(desk), unix, tcp);
    Ok(())
}

fn call(socket: &std::path::Path, request: &str) -> Result<bool> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.write_all(request.replace(['\n', '\r'], " ").as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    print!("{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).context("the service gave no answer")?;
    Ok(answer["ok"] == true)
}
