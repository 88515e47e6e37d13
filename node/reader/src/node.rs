//! The building's node, as a terminal speaks with it: JSON over HTTPS, each request and each answer with a MAC of the terminal's key.
//!
//! The node's certificate is verified against the campus's CA and under the node's own name, whatever address it is reached at. An
//! answer without a right MAC counts as none. Everything that is asked here may be asked again.
//!
//! **Nobody waits for a node that is gone.** A purchase waits for [`CHECK_WAIT`] at most; once the node has not answered,
//! purchases ask it nothing until the thread that reports has reached it again.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use feiqian_protocol::chain::hex;
use feiqian_protocol::ids::TerminalId;
use feiqian_protocol::issuance::SignedIssuance;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::load::LoadRequest;
use feiqian_protocol::purse::recovery::Evidence;
use feiqian_protocol::purse::values::{CardSerial, CardTime, Mac, TerminalNumber};
use feiqian_protocol::terminal::{MAC_HEADER, TERMINAL_HEADER, TerminalKey, parse_mac};
use feiqian_protocol::time::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::report::Report;

/// Longest that a purchase waits for the node's word on its card. A node answers within a few milliseconds, with a new
/// connection within some tens; a holder notices from half a second on. Without the word the purchase is made: it is
/// without risk, and what is known against a card only keeps its holder from losing money to a thief.
pub const CHECK_WAIT: Duration = Duration::from_millis(300);

/// Longest wait for what the node answers by itself.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// Longest wait for what the node asks the centre: 2 s where the money must come home from other buildings, and the way there. The
/// holder keeps the card on the reader meanwhile; what comes later is found at its next touch.
const CENTRE_WAIT: Duration = Duration::from_secs(5);

/// How long a connection is kept without use: less than the two minutes after which a node closes it.
const IDLE: Duration = Duration::from_secs(60);

/// Connections that are kept: a touch's, and that of reports.
const CONNECTIONS: usize = 2;

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// What is held of a request or an answer at a time; both are some hundred bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// The way to a node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    address: String,
    server_name: String,
    terminal: TerminalId,
    key: TerminalKey,
    agent: Agent,
    /// It has not answered since.
    gone: AtomicBool,
    /// It says that it reaches the centre.
    connected: AtomicBool,
    /// Why it did not answer when it was asked last.
    error: Mutex<Option<NodeError>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("address", &self.0.address).finish_non_exhaustive()
    }
}

/// What is wrong with how a node is to be reached.
#[derive(Debug, thiserror::Error)]
pub enum NodeSetupError {
    /// Not `HOST:PORT`.
    #[error("address = {0:?}: HOST:PORT is expected, as in the node's terminal_listen")]
    Address(String),
    /// No name of a server.
    #[error("server_name = {0:?}: the name that feiqian-node terminal-key shows is expected")]
    ServerName(String),
    /// No certificate.
    #[error("no certificate in PEM: {0}")]
    Authority(String),
}

/// Why the node did not do what it was asked to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeError {
    /// No answer in time, or none that is the node's. It may have heard the question.
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// An answer that nobody but the terminal's node could give would look otherwise: the key is another one, or the node is.
    #[error("the node does not answer as this terminal's: {0}")]
    Stranger(String),
    /// Not at the moment.
    #[error("{message}")]
    Later {
        /// The stable code.
        code: String,
        /// For people.
        message: String,
    },
    /// It refuses.
    #[error("{message}")]
    Refused {
        /// The stable code.
        code: String,
        /// For people.
        message: String,
    },
}

impl NodeError {
    /// The stable code.
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Stranger(_) => "not_authentic",
            Self::Later { code, .. } | Self::Refused { code, .. } => code,
        }
    }
}

/// Why something was declined, with the node's or the centre's own texts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Declined {
    /// The stable name.
    pub reason: String,
    /// What the POS shows, in English.
    pub text_en: String,
    /// What the POS shows, in Chinese.
    pub text_zh: String,
}

/// The centre's word on a load.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoadWord {
    /// Credit the card.
    Authorized(CardTime, Mac),
    /// Probe the card about this load first, under this number.
    Unresolved(Box<JournalEntry>, TerminalNumber),
    /// Nothing moves.
    Declined(Declined),
    /// No load of the card is open.
    Nothing,
}

/// What became of a load at the centre.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The card has the money.
    Done,
    /// The account has it.
    Reversed,
    /// Still not known.
    InTransit,
    /// There is no such load.
    Nothing,
    /// It says nothing of it.
    Declined,
}

impl Node {
    /// `ca` is PEM; `server_name` is the name in the node's certificate.
    ///
    /// # Errors
    /// [`NodeSetupError`].
    pub fn new(
        address: &str,
        server_name: &str,
        ca: &[u8],
        terminal: TerminalId,
        key: TerminalKey,
    ) -> Result<Self, NodeSetupError> {
        let dial: Uri = format!("https://{address}/")
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.port_u16().is_some() && uri.path() == "/")
            .ok_or_else(|| NodeSetupError::Address(address.to_owned()))?;
        let named: Option<Uri> = format!("https://{server_name}/").parse().ok();
        if !named.is_some_and(|uri| uri.host() == Some(server_name) && uri.port().is_none()) {
            return Err(NodeSetupError::ServerName(server_name.to_owned()));
        }
        let config = Agent::config_builder()
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::from(certificates(ca)?))
                    .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .build(),
            )
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            // Whatever the environment says: the node is in the building.
            .proxy(None)
            .max_idle_age(IDLE)
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new(), At(dial));
        Ok(Self(Arc::new(Inner {
            address: address.to_owned(),
            server_name: server_name.to_owned(),
            terminal,
            key,
            agent,
            gone: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            error: Mutex::new(None),
        })))
    }

    /// How it stands, as `status` shows it.
    pub fn json(&self) -> Value {
        json!({
            "address": self.0.address,
            "terminal": self.0.terminal,
            "reachable": !self.is_gone(),
            "connected": self.is_connected(),
            "error": self.error().as_ref().map(ToString::to_string),
        })
    }

    /// True once it has not answered, until it does again.
    pub fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Relaxed)
    }

    /// True where it answered when it was last asked, and reached the centre then.
    pub fn is_connected(&self) -> bool {
        !self.is_gone() && self.0.connected.load(Ordering::Relaxed)
    }

    /// Whether anything is known against a card, and until when. `Ok(None)`: nobody can say.
    ///
    /// # Errors
    /// What is known.
    pub fn check(&self, serial: CardSerial) -> Result<Option<Timestamp>, Declined> {
        if self.is_gone() {
            return Ok(None);
        }
        let answer = self.ask::<Answer>("/v1/purse/check", &json!({ "serial": serial }), CHECK_WAIT);
        match answer {
            Ok(answer) if answer.outcome == "declined" => Err(answer.declined()),
            Ok(answer) => Ok(answer.heard_ms.map(Timestamp)),
            Err(error) => {
                tracing::warn!(%error, code = error.code(), "a card is not checked");
                Ok(None)
            }
        }
    }

    /// Shows what the centre has signed for a card. Of one that the building knows, nothing comes of it.
    ///
    /// # Errors
    /// [`NodeError`]; one that is gone is not asked.
    pub fn show(&self, serial: CardSerial, signed: &SignedIssuance) -> Result<(), NodeError> {
        if self.is_gone() {
            return Err(NodeError::Unreachable("it has not answered for a while".to_owned()));
        }
        let body = json!({ "card": serial, "change": "show_card", "issuance": signed.to_text() });
        self.ask::<Answer>("/v1/settings", &body, CHECK_WAIT).map(drop)
    }

    /// Fen of cash that the card's account has, as far as the building knows.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn cash(&self, serial: CardSerial, until: Instant) -> Result<Result<i64, Declined>, NodeError> {
        let answer: Answer =
            self.ask("/v1/balance", &json!({ "card": serial }), left(until)?.min(ANSWER_WAIT))?;
        match answer.cash_fen {
            Some(cash) => Ok(Ok(cash)),
            None => Ok(Err(answer.declined())),
        }
    }

    /// May this card have this amount?
    ///
    /// # Errors
    /// [`NodeError`]. The centre may have let the money go all the same; the card's next touch tells.
    pub fn load(&self, request: &LoadRequest, until: Instant) -> Result<LoadWord, NodeError> {
        let body = json!({
            "serial": request.serial,
            "amount_fen": request.amount,
            "terminal_number": request.terminal,
            "begun": request.begun,
        });
        self.ask::<Answer>("/v1/purse/loads", &body, left(until)?.min(CENTRE_WAIT))?.load_word()
    }

    /// Has this card a load of which nobody knows what became?
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn open_load(&self, serial: CardSerial, until: Instant) -> Result<LoadWord, NodeError> {
        self.ask::<Answer>(
            "/v1/purse/loads/open",
            &json!({ "serial": serial }),
            left(until)?.min(CENTRE_WAIT),
        )?
        .load_word()
    }

    /// Hands the centre what a card said of an open load.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn evidence(
        &self,
        serial: CardSerial,
        evidence: &Evidence,
        until: Instant,
    ) -> Result<Fate, NodeError> {
        let body = json!({ "serial": serial, "evidence": evidence });
        let Settled { outcome } =
            self.ask("/v1/purse/loads/evidence", &body, left(until)?.min(CENTRE_WAIT))?;
        Ok(outcome)
    }

    /// Reports something that is over; kept when this returns.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn report(&self, report: &Report) -> Result<(), NodeError> {
        let (path, body) = match report {
            Report::Purchase(purchase) => {
                ("/v1/purse/purchases", serde_json::to_value(purchase).expect("a report is JSON"))
            }
            Report::Load { serial, counter, tac } => {
                ("/v1/purse/loads/finish", json!({ "serial": serial, "counter": counter, "tac": tac }))
            }
        };
        let answer: Answer = self.ask(path, &body, ANSWER_WAIT)?;
        if answer.outcome == "recorded" { Ok(()) } else { Err(not_understood(&answer.outcome)) }
    }

    /// Whether it is there, and reaches the centre. Keeps a connection alive.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn ping(&self) -> Result<(), NodeError> {
        let url = format!("https://{}/v1/health", self.0.server_name);
        let asked = self.0.agent.get(&url).config().timeout_global(Some(ANSWER_WAIT)).build().call();
        let pinged = asked.and_then(|mut response| {
            let status = response.status();
            let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
            Ok((status.as_u16(), body))
        });
        let pinged = match pinged {
            Ok((200, body)) => serde_json::from_slice::<Health>(&body).map_err(not_understood),
            // It answers no taps at the moment, and still takes what is reported once it does again.
            Ok((status, _)) => Err(NodeError::Unreachable(format!("it answers {status}"))),
            Err(error) => Err(NodeError::Unreachable(error.to_string())),
        };
        // Its health needs no key, so that it tells nothing about one that is wrong.
        let stranger = matches!(*self.error(), Some(NodeError::Stranger(_)));
        if pinged.is_err() || !stranger {
            self.heard(pinged.as_ref().err());
        }
        let Health { connected } = pinged?;
        self.0.connected.store(connected, Ordering::Relaxed);
        Ok(())
    }

    fn ask<T: DeserializeOwned>(&self, path: &str, body: &Value, wait: Duration) -> Result<T, NodeError> {
        let asked = self.answered(path, body.to_string().as_bytes(), wait);
        self.heard(asked.as_ref().err());
        serde_json::from_slice(&asked?).map_err(not_understood)
    }

    /// The body of an answer that is the node's.
    fn answered(&self, path: &str, body: &[u8], wait: Duration) -> Result<Vec<u8>, NodeError> {
        let Inner { server_name, terminal, key, agent, .. } = &*self.0;
        let mac = key.request_mac("POST", path, body);
        let unreachable = |error: ureq::Error| NodeError::Unreachable(error.to_string());
        let mut response = agent
            .post(format!("https://{server_name}{path}"))
            .header("content-type", "application/json")
            .header(TERMINAL_HEADER, terminal.as_str())
            .header(MAC_HEADER, hex(&mac))
            .config()
            .timeout_global(Some(wait))
            .build()
            .send(body)
            .map_err(unreachable)?;
        let status = response.status().as_u16();
        let of_answer = response.headers().get(MAC_HEADER).and_then(|value| value.to_str().ok());
        let of_answer = of_answer.and_then(parse_mac);
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(unreachable)?;
        if !of_answer.is_some_and(|answer| key.verify_answer(&mac, status, &body, &answer)) {
            // A node that does not know the terminal says so, and cannot prove that it is itself.
            return Err(NodeError::Stranger(format!("status {status}, without a right MAC")));
        }
        if status == 200 {
            return Ok(body);
        }
        let Refusal { error: Named { code, message } } =
            serde_json::from_slice(&body).map_err(not_understood)?;
        Err(if status == 503 {
            NodeError::Later { code, message }
        } else {
            NodeError::Refused { code, message }
        })
    }

    fn heard(&self, error: Option<&NodeError>) {
        let error = error.filter(|error| matches!(error, NodeError::Unreachable(_) | NodeError::Stranger(_)));
        let gone = error.is_some();
        if self.0.gone.swap(gone, Ordering::Relaxed) != gone {
            match error {
                Some(error) => tracing::warn!(%error, "the node is gone"),
                None => tracing::info!("the node is there again"),
            }
        }
        *self.error() = error.cloned();
    }

    fn error(&self) -> MutexGuard<'_, Option<NodeError>> {
        self.0.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of a touch's time.
fn left(until: Instant) -> Result<Duration, NodeError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(NodeError::Unreachable("no time is left".to_owned())) } else { Ok(left) }
}

/// An answer that says something else than it should.
fn not_understood(answer: impl fmt::Display) -> NodeError {
    NodeError::Unreachable(format!("an answer that is not understood: {answer}"))
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>, NodeSetupError> {
    let mut found = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(NodeSetupError::Authority(error.to_string())),
        }
    }
    if found.is_empty() { Err(NodeSetupError::Authority("the file has none".to_owned())) } else { Ok(found) }
}

/// Dials the node's address, whatever name its certificate has.
#[derive(Debug)]
struct At(Uri);

impl Resolver for At {
    fn resolve(
        &self,
        _: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

/// What may stand in an answer, of which each has some.
#[derive(Debug, Deserialize)]
struct Answer {
    outcome: String,
    cash_fen: Option<i64>,
    heard_ms: Option<i64>,
    time: Option<CardTime>,
    mac2: Option<Mac>,
    load: Option<JournalEntry>,
    challenge: Option<TerminalNumber>,
    reason: Option<String>,
    #[serde(default)]
    text_en: String,
    #[serde(default)]
    text_zh: String,
}

impl Answer {
    fn declined(self) -> Declined {
        let reason = self.reason.unwrap_or(self.outcome);
        Declined { reason, text_en: self.text_en, text_zh: self.text_zh }
    }

    fn load_word(self) -> Result<LoadWord, NodeError> {
        match (self.outcome.as_str(), self.time, self.mac2, &self.load, self.challenge) {
            ("authorized", Some(time), Some(mac2), ..) => Ok(LoadWord::Authorized(time, mac2)),
            ("unresolved", _, _, Some(load), Some(challenge)) => {
                Ok(LoadWord::Unresolved(Box::new(load.clone()), challenge))
            }
            ("nothing", ..) => Ok(LoadWord::Nothing),
            ("declined", ..) => Ok(LoadWord::Declined(self.declined())),
            (other, ..) => Err(not_understood(other)),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Settled {
    outcome: Fate,
}

#[derive(Debug, Deserialize)]
struct Health {
    connected: bool,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: Named,
}

#[derive(Debug, Deserialize)]
struct Named {
    code: String,
    message: String,
}

#[cfg(test)]
mod tests;
