//! A node that answers as it is told to, over TLS of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use feiqian_protocol::purse::values::Counter;
use feiqian_protocol::terminal::MacBytes;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

const NAME: &str = "node-1.feiqian.internal";
const SERIAL: &str = "31000000202600012345";

fn key(byte: u8) -> TerminalKey {
    TerminalKey::new([byte; 32])
}

/// What a request has, for the node to answer it.
struct Asked {
    connection: usize,
    head: String,
    body: Vec<u8>,
    mac: Option<MacBytes>,
}

/// An answer: status, body, and whose key its MAC is of.
type Told = (u16, &'static str, Option<TerminalKey>);

/// Serves until the test ends; what is asked can be read from the channel.
struct Served {
    address: SocketAddr,
    ca: String,
    asked: Receiver<Asked>,
}

fn serve(answer: impl Fn(&Asked) -> Option<Told> + Send + Sync + 'static) -> Served {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
    let secret = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .unwrap();
    let (config, answer) = (Arc::new(config), Arc::new(answer));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (ask, asked) = mpsc::channel();
    thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let (config, answer, ask) = (config.clone(), answer.clone(), ask.clone());
            thread::spawn(move || connection_of(connection, stream.unwrap(), config, &*answer, &ask));
        }
    });
    Served { address, ca: made.cert.pem(), asked }
}

fn connection_of(
    connection: usize,
    stream: TcpStream,
    config: Arc<ServerConfig>,
    answer: &dyn Fn(&Asked) -> Option<Told>,
    ask: &mpsc::Sender<Asked>,
) {
    let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut stream = BufReader::new(tls);
    loop {
        let (mut head, mut length, mut mac) = (String::new(), 0, None);
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => head += &line,
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                Some((name, value)) if name.eq_ignore_ascii_case(MAC_HEADER) => mac = parse_mac(value),
                _ if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let asked = Asked { connection, head, body, mac };
        let told = answer(&asked);
        let request_mac = asked.mac;
        let _ = ask.send(asked);
        // Heard, and never answered.
        let Some((status, body, signed)) = told else { continue };
        let mac = signed.zip(request_mac).map_or_else(String::new, |(key, request)| {
            format!("{MAC_HEADER}: {}\r\n", hex(&key.answer_mac(&request, status, body.as_bytes())))
        });
        let head = format!("HTTP/1.1 {status} so\r\n{mac}content-length: {}\r\n\r\n", body.len());
        let out = stream.get_mut();
        if out.write_all(head.as_bytes()).and_then(|()| out.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

fn client(served: &Served) -> Node {
    let terminal = TerminalId::new("canteen-1").unwrap();
    Node::new(&served.address.to_string(), NAME, served.ca.as_bytes(), terminal, key(1)).unwrap()
}

fn serial() -> CardSerial {
    SERIAL.parse().unwrap()
}

const LOST: &str = r#"{"outcome":"declined","known":true,"reason":"lost","code":"41","text_en":"Card reported lost","text_zh":"卡已挂失"}"#;
const USABLE: &str =
    r#"{"outcome":"usable","known":true,"reason":null,"code":"00","text_en":"","text_zh":""}"#;
const HEALTHY: &str = r#"{"status":"ok","connected":true}"#;

#[test]
fn a_request_is_the_terminals_and_a_connection_serves_many() {
    let served = serve(|_| Some((200, LOST, Some(key(1)))));
    let node = client(&served);
    let declined = node.check(serial()).unwrap_err();
    assert_eq!((declined.reason.as_str(), declined.text_zh.as_str()), ("lost", "卡已挂失"));
    let asked = served.asked.recv().unwrap();
    assert!(asked.head.starts_with("POST /v1/purse/check HTTP/1.1\r\n"), "{}", asked.head);
    assert!(asked.head.to_lowercase().contains("x-feiqian-terminal: canteen-1\r\n"), "{}", asked.head);
    assert_eq!(asked.body, format!("{{\"serial\":\"{SERIAL}\"}}").into_bytes());
    assert!(key(1).verify_request("POST", "/v1/purse/check", &asked.body, &asked.mac.unwrap()));
    for _ in 0..3 {
        node.check(serial()).unwrap_err();
        assert_eq!(served.asked.recv().unwrap().connection, 0);
    }
}

#[test]
fn a_node_says_until_when_it_knows_of_losses() {
    let usable = r#"{"outcome":"usable","known":true,"heard_ms":1780000000000,"code":"00"}"#;
    let served = serve(move |_| Some((200, usable, Some(key(1)))));
    assert_eq!(client(&served).check(serial()), Ok(Some(Timestamp(1_780_000_000_000))));
}

#[test]
fn what_is_not_the_nodes_own_word_is_none() {
    // Without a MAC, and with another key's.
    for signed in [None, Some(key(2))] {
        let served = serve(move |_| Some((200, LOST, signed.clone())));
        let node = client(&served);
        assert_eq!(node.check(serial()), Ok(None));
        assert!(node.is_gone());
        let told = node.open_load(serial(), Instant::now() + CENTRE_WAIT);
        assert!(matches!(told, Err(NodeError::Stranger(_))), "{told:?}");
    }
    // Another campus's certificate, and another node's name.
    let (served, other) = (serve(|_| Some((200, LOST, Some(key(1))))), serve(|_| None));
    let terminal = TerminalId::new("canteen-1").unwrap();
    for (ca, name) in [(&other.ca, NAME), (&served.ca, "node-2.feiqian.internal")] {
        let address = served.address.to_string();
        let node = Node::new(&address, name, ca.as_bytes(), terminal.clone(), key(1)).unwrap();
        assert_eq!(node.check(serial()), Ok(None));
        assert!(matches!(node.ping(), Err(NodeError::Unreachable(_))));
    }
    assert!(served.asked.try_recv().is_err(), "nothing was said to a stranger");
}

#[test]
fn nobody_waits_for_a_node_that_does_not_answer() {
    let served = serve(|asked| asked.head.starts_with("GET").then_some((200, HEALTHY, None)));
    let node = client(&served);
    assert_eq!(node.check(serial()), Ok(None));
    assert!(node.is_gone() && !node.is_connected());
    served.asked.recv().unwrap();
    // Not asked again, until it was reached.
    assert_eq!(node.check(serial()), Ok(None));
    assert!(served.asked.try_recv().is_err());
    node.ping().unwrap();
    assert!(node.is_connected());
    served.asked.recv().unwrap();
    let _ = node.check(serial());
    assert!(served.asked.recv().unwrap().head.starts_with("POST"));
    let late = node.cash(serial(), Instant::now());
    assert!(matches!(late, Err(NodeError::Unreachable(_))), "no time is left: {late:?}");
}

#[test]
fn a_node_that_is_no_acquaintance_stays_away_however_healthy_it_is() {
    let served = serve(|asked| match asked.mac {
        None => Some((200, HEALTHY, None)),
        Some(_) => Some((401, r#"{"error":{"code":"unauthenticated","message":"no"}}"#, None)),
    });
    let node = client(&served);
    assert_eq!(node.check(serial()), Ok(None));
    node.ping().unwrap();
    assert!(node.is_gone(), "the health of whoever answers there says nothing of the key");
    assert!(node.json()["error"].as_str().unwrap().contains("status 401"), "{}", node.json());
}

#[test]
fn refusals_are_told_from_what_only_takes_time() {
    let report = Report::Load { serial: serial(), counter: Counter(7), tac: "2e731ec0".parse().unwrap() };
    let told = |status, body| {
        let served = serve(move |_| Some((status, body, Some(key(1)))));
        let told = client(&served).report(&report);
        let asked = served.asked.recv().unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&asked.body).unwrap(),
            json!({"serial": SERIAL, "counter": 7, "tac": "2e731ec0"})
        );
        told
    };
    assert_eq!(told(200, r#"{"outcome":"recorded","repeat":false}"#), Ok(()));
    let busy = told(503, r#"{"error":{"code":"busy","message":"later"}}"#);
    assert!(matches!(busy, Err(NodeError::Later { ref code, .. }) if code == "busy"), "{busy:?}");
    let unknown = told(403, r#"{"error":{"code":"unknown_terminal","message":"who?"}}"#);
    assert!(matches!(unknown, Err(NodeError::Refused { ref code, .. }) if code == "unknown_terminal"));
    let nonsense = told(200, r#"{"outcome":"perhaps"}"#);
    assert!(matches!(nonsense, Err(NodeError::Unreachable(_))), "{nonsense:?}");
}

#[test]
fn a_check_that_says_nothing_lets_the_card_pay() {
    let served = serve(|_| Some((200, USABLE, Some(key(1)))));
    assert_eq!(client(&served).check(serial()), Ok(None));
    let served =
        serve(|_| Some((403, r#"{"error":{"code":"unknown_terminal","message":"who?"}}"#, Some(key(1)))));
    let node = client(&served);
    assert_eq!(node.check(serial()), Ok(None));
    assert!(!node.is_gone(), "it is there, and refuses");
}

#[test]
fn a_setup_that_cannot_work_is_named() {
    let new = |address, name, ca: &str| {
        let terminal = TerminalId::new("canteen-1").unwrap();
        Node::new(address, name, ca.as_bytes(), terminal, key(1)).unwrap_err().to_string()
    };
    let ca = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap().cert.pem();
    assert!(new("10.0.0.1", NAME, &ca).contains("HOST:PORT"));
    assert!(new("10.0.0.1:8443/v1", NAME, &ca).contains("HOST:PORT"));
    assert!(new("10.0.0.1:8443", "node 1", &ca).contains("server_name"));
    assert!(new("10.0.0.1:8443", "node-1:443", &ca).contains("server_name"));
    assert!(new("10.0.0.1:8443", NAME, "").contains("the file has none"));
}
