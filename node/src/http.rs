//! The terminal API: JSON over HTTPS, each terminal with a key of its own.
//!
//! [`auth`] (who speaks), [`body`] (JSON to typed requests, which name the field that is wrong), [`api`] (what is asked and
//! answered, as OpenAPI documents it), [`purse`] (the same of purses), [`server`] (connections).

pub mod api;
pub mod auth;
pub mod body;
pub mod openapi;
pub mod purse;
pub mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, Request as HttpRequest, Response, StatusCode, header};
use axum::routing::{get, post};
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{CheckedCode, Code, VoucherKey};
use feiqian_protocol::entry::Proof;
use feiqian_protocol::ids::{InstitutionId, TerminalId};
use feiqian_protocol::limits::HTTP_BODY_BYTES_MAX;
use feiqian_protocol::tap::Decision;
use tokio::sync::watch;

use crate::drive::{Answer, CoreQueue, NoAnswer, Request};
use crate::io::{SettingError, TapError};
use crate::pin::hashing::PinHashing;
use crate::settings::{SettingKind, SettingRequest};
use api::{BalanceAnswer, ErrorAnswer, HealthAnswer, SettingAnswer, TapAnswer};
use auth::{MAC_HEADER, TERMINAL_HEADER, TerminalKey, TerminalSecret};
use body::PinChange;

/// How much longer than an ask may take a terminal waits for its answer, before it is told to ask again.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the handlers share.
pub struct Terminals {
    /// The way to the core.
    pub queue: CoreQueue,
    /// What the keys of terminals are derived from.
    pub secret: TerminalSecret,
    /// Whose codes are good here.
    pub institution: InstitutionId,
    /// What their vouchers are verified by.
    pub voucher_keys: watch::Receiver<Arc<[VoucherKey]>>,
    /// How long an ask may take.
    pub ask_deadline: Duration,
    /// Hashes PINs.
    pub pins: PinHashing,
    /// True while the core is open.
    pub open: Arc<AtomicBool>,
    /// True while the node is in session with the centre.
    pub in_session: Arc<AtomicBool>,
}

impl Terminals {
    /// How long an answer may take.
    pub fn answer_wait(&self) -> Duration {
        self.ask_deadline + ANSWER_GRACE
    }

    /// Checks the signatures of a code, which takes less than a millisecond.
    fn check(&self, code: Code) -> CheckedCode {
        let keys = self.voucher_keys.borrow().clone();
        code.check(self.institution, &keys)
    }
}

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// Says as little as possible to somebody unknown.
    fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "the terminal or its MAC is not valid")
    }
}

impl From<body::BodyError> for Failure {
    fn from(error: body::BodyError) -> Self {
        match error {
            body::BodyError::Pin(_) | body::BodyError::Guessable(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "pin", error.to_string())
            }
            body::BodyError::Quantity => TapError::Quantity.into(),
            _ => Self::new(StatusCode::BAD_REQUEST, "malformed", error.to_string()),
        }
    }
}

impl From<TapError> for Failure {
    fn from(error: TapError) -> Self {
        let (status, code) = match &error {
            TapError::OtherContent(_) => (StatusCode::CONFLICT, "key_reused"),
            TapError::UnknownTerminal(_) => (StatusCode::FORBIDDEN, "unknown_terminal"),
            TapError::NoMerchant(_) => (StatusCode::FORBIDDEN, "no_merchant"),
            TapError::OtherTerminal => (StatusCode::FORBIDDEN, "other_terminal"),
            TapError::Amount => (StatusCode::UNPROCESSABLE_ENTITY, "amount"),
            TapError::Quantity => (StatusCode::UNPROCESSABLE_ENTITY, "quantity"),
            TapError::ReversalTooLarge => (StatusCode::UNPROCESSABLE_ENTITY, "reversal_too_large"),
            TapError::NothingToReverse => (StatusCode::UNPROCESSABLE_ENTITY, "nothing_to_reverse"),
            TapError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        let status = match error.code() {
            "unknown_card" => StatusCode::NOT_FOUND,
            "unknown_terminal" | "role" => StatusCode::FORBIDDEN,
            "closed" => StatusCode::CONFLICT,
            "too_many" | "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<NoAnswer> for Failure {
    fn from(error: NoAnswer) -> Self {
        let code = match error {
            NoAnswer::Busy => "busy",
            NoAnswer::Unavailable | NoAnswer::Late => "unavailable",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string())
    }
}

/// The routes.
pub fn router(terminals: Arc<Terminals>) -> Router {
    purse::PATHS
        .into_iter()
        .fold(Router::new(), |router, path| router.route(path, post(serve)))
        .route("/v1/taps", post(serve))
        .route("/v1/reversals", post(serve))
        .route("/v1/balance", post(serve))
        .route("/v1/settings", post(serve))
        .route("/v1/pin", post(serve))
        .route("/v1/health", get(health))
        .route("/v1/openapi.json", get(openapi))
        .fallback(|| async {
            respond(Err(Failure::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")), None)
        })
        .method_not_allowed_fallback(|| async {
            let message = "this method is not supported here";
            respond(Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)), None)
        })
        .with_state(terminals)
}

async fn openapi() -> Response<Body> {
    respond(Ok(openapi::json().into_bytes()), None)
}

async fn health(State(terminals): State<Arc<Terminals>>) -> Response<Body> {
    if !terminals.open.load(Ordering::Relaxed) {
        return respond(Err(NoAnswer::Unavailable.into()), None);
    }
    let connected = terminals.in_session.load(Ordering::Relaxed);
    respond(Ok(to_json(&HealthAnswer { status: "ok".to_owned(), connected })), None)
}

/// A request of a terminal: read, authenticated, answered under the same key.
async fn serve(State(terminals): State<Arc<Terminals>>, request: HttpRequest<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let read = axum::body::to_bytes(body, HTTP_BODY_BYTES_MAX);
    let body = match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("a body of at most {HTTP_BODY_BYTES_MAX} bytes is expected");
            return respond(Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "body", message)), None);
        }
        Err(_) => {
            let message = "the body took too long to arrive";
            return respond(Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "body", message)), None);
        }
    };
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let terminal = header(TERMINAL_HEADER).and_then(|text| TerminalId::new(text).ok());
    let (Some(terminal), Some(mac)) = (terminal, header(MAC_HEADER).and_then(auth::parse_mac)) else {
        return respond(Err(Failure::unauthenticated()), None);
    };
    let key = terminals.secret.key(&terminal);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if !key.verify_request(parts.method.as_str(), path, &body, &mac) {
        tracing::warn!(%terminal, "a request with a wrong MAC");
        return respond(Err(Failure::unauthenticated()), None);
    }
    if let Some(known) = parts.extensions.get::<server::Known>() {
        known.set();
    }
    let answer = match (parts.method, parts.uri.path()) {
        (Method::POST, "/v1/taps") => tap(&terminals, &terminal, &body).await,
        (Method::POST, "/v1/reversals") => reversal(&terminals, &terminal, &body).await,
        (Method::POST, path) if purse::PATHS.contains(&path) => {
            purse::serve(&terminals, &terminal, path, &body).await
        }
        (Method::POST, "/v1/settings") => setting(&terminals, &terminal, &body).await,
        (Method::POST, "/v1/pin") => pin_change(&terminals, &terminal, &body).await,
        _ => balance(&terminals, &body).await,
    };
    if let Err(failure) = &answer {
        tracing::debug!(%terminal, status = failure.status.as_u16(), code = failure.code, "request refused");
    }
    respond(answer, Some((&key, &mac)))
}

async fn tap(terminals: &Terminals, terminal: &TerminalId, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let (mut request, pin) = match body::tap(terminal, body, |code| terminals.check(code))? {
        Ok(read) => read,
        Err(reason) => return Ok(to_json(&TapAnswer::decided(&Decision::Declined(reason), false))),
    };
    if let Some(pin) = pin {
        request.pin = terminals.pins.enter(terminals, &request, pin).await?;
    }
    let (epoch, sequence) = (request.key.epoch, request.key.sequence.clone());
    let answer = decided(terminals, Request::Tap(request)).await?;
    tracing::debug!(%terminal, epoch, %sequence, outcome = answer.outcome, repeat = answer.repeat, "tap");
    Ok(to_json(&answer))
}

async fn reversal(terminals: &Terminals, terminal: &TerminalId, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let request = body::reversal(terminal, body)?;
    let (epoch, sequence) = (request.key.epoch, request.key.sequence.clone());
    let answer = decided(terminals, Request::Reversal(request)).await?;
    tracing::debug!(%terminal, epoch, %sequence, outcome = answer.outcome, repeat = answer.repeat, "reversal");
    Ok(to_json(&answer))
}

async fn decided(terminals: &Terminals, request: Request) -> Result<TapAnswer, Failure> {
    match terminals.queue.ask(request, terminals.answer_wait()).await {
        Ok(Answer::Decided { decision, repeat, receipt }) => {
            let receipt = receipt.map(|receipt| receipt.to_digits());
            Ok(TapAnswer { receipt, ..TapAnswer::decided(&decision, repeat) })
        }
        Ok(Answer::Refused(error)) => Err(error.into()),
        Ok(_) => Err(NoAnswer::Unavailable.into()),
        Err(NoAnswer::Late) => Ok(TapAnswer::pending()),
        Err(error) => Err(error.into()),
    }
}

async fn balance(terminals: &Terminals, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let presented = match body::balance(body, |code| terminals.check(code))? {
        Ok(presented) => presented,
        Err(reason) => return Ok(to_json(&BalanceAnswer::from(Err(reason)))),
    };
    match terminals.queue.ask(Request::Balance(presented), terminals.answer_wait()).await? {
        Answer::Balance(view) => Ok(to_json(&BalanceAnswer::from(view))),
        Answer::Refused(error) => Err(error.into()),
        _ => Err(NoAnswer::Unavailable.into()),
    }
}

async fn setting(terminals: &Terminals, terminal: &TerminalId, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let request = body::setting(terminal, body)?;
    let shows = matches!(request.kind, SettingKind::ShowCard(_));
    match terminals.queue.ask(Request::Setting(request), terminals.answer_wait()).await? {
        Answer::Setting(done) => {
            let was_so = done?.position.is_none();
            let answer = if shows { SettingAnswer::shown(was_so) } else { SettingAnswer::done(was_so) };
            Ok(to_json(&answer))
        }
        _ => Err(NoAnswer::Unavailable.into()),
    }
}

async fn pin_change(terminals: &Terminals, terminal: &TerminalId, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let PinChange { card, shown, chosen, by } = body::pin_change(terminal, body)?;
    let new = terminals.pins.change(terminals, card.clone(), shown, chosen).await?;
    let request = SettingRequest {
        terminal: Some(terminal.clone()),
        card,
        kind: SettingKind::SetPin(Box::new(new)),
        by,
        proof: Proof::CardAndPin,
    };
    match terminals.queue.ask(Request::Setting(request), terminals.answer_wait()).await? {
        Answer::Setting(done) => done.map(|_| to_json(&SettingAnswer::new_pin())).map_err(Failure::from),
        _ => Err(NoAnswer::Unavailable.into()),
    }
}

/// The HTTP answer; authenticated where the terminal is known.
fn respond(answer: Result<Vec<u8>, Failure>, to: Option<(&TerminalKey, &auth::MacBytes)>) -> Response<Body> {
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(failure) => {
            (failure.status, to_json(&ErrorAnswer::new(failure.code.to_owned(), failure.message)))
        }
    };
    let mac = to.map(|(key, request)| key.answer_mac(request, status.as_u16(), &body));
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Some(mac) = mac {
        let value = HeaderValue::from_str(&hex(&mac)).expect("hexadecimal digits are visible ASCII");
        headers.insert(MAC_HEADER, value);
    }
    response
}

fn to_json(answer: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("plain fields always make JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_authenticated_where_the_terminal_is_known() {
        let key = TerminalSecret::new([1; 32]).key(&TerminalId::new("pos-1").unwrap());
        let failure = || Err(Failure::from(TapError::Amount));
        let response = respond(failure(), Some((&key, &[2; 32])));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let body =
            br#"{"error":{"code":"amount","message":"the amount must be from 0.01 to 100000.00 yuan"}}"#;
        assert_eq!(
            response.headers()[MAC_HEADER].to_str().unwrap(),
            hex(&key.answer_mac(&[2; 32], 422, body))
        );
        assert!(respond(failure(), None).headers().get(MAC_HEADER).is_none());
    }
}
