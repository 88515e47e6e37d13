//! Strangers, old certificates, wrong codes, wrong clocks, garbage and dawdlers: that connection suffers, nothing else, and
//! the log says why.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use feiqian_protocol::enrol::EnrolCode;
use feiqian_protocol::frame::{ALPN_ENROL, ALPN_REPLICATION};
use feiqian_protocol::ids::{InstitutionId, NodeId};
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::authority::Authority;
use feiqian_reconcile::driver::real_now;
use feiqian_tests::kept::number;
use feiqian_tests::stand::{NODE, Plan, Stand, wait_for};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const CARD: &str = "card-1001";
const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// What a client shows of itself.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// That of a node, from its data directory.
    fn of_node(data: &Path) -> Result<Self> {
        let certificate = CertificateDer::from_pem_file(data.join("node.crt"))?;
        Ok(Self { certificate, key: PrivateKeyDer::from_pem_file(data.join("tls.key"))? })
    }

    /// A certificate for node 1, first enrolment, signed at `at` by the authority in `ca`.
    fn signed(ca: &Path, key_pem: &str, at: Timestamp) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem)?;
        let authority = Authority::open(ca, real_now())?;
        let request = CertificateParams::default().serialize_request(&key)?;
        let requested = authority.check_request(request.der())?;
        let certificate = authority.sign_node(&requested, NodeId(1), 1, at)?;
        Ok(Self { certificate, key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes())? })
    }
}

/// A QUIC connection to the centre of a stand.
async fn connect(
    stand: &Stand,
    identity: Option<Identity>,
    alpn: &[u8],
) -> Result<(quinn::Endpoint, quinn::Connection)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(stand.centre.data.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(identity) => builder.with_client_auth_cert(vec![identity.certificate], identity.key)?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, stand.centre_port));
    let connection = endpoint.connect_with(config, address, "centre.feiqian.internal")?.await?;
    Ok((endpoint, connection))
}

/// How the centre ends a connection, which it must do soon.
async fn ended(connection: &quinn::Connection) -> Result<String> {
    let reason = tokio::time::timeout(Duration::from_secs(20), connection.closed()).await;
    Ok(reason.context("the centre does not end the connection")?.to_string())
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(work)
}

/// The stand's own building is as it was: in the same session, and selling.
fn undisturbed(stand: &Stand, session: &serde_json::Value, sequence: &str) -> Result<()> {
    let status = stand.nodes[0].status()?;
    ensure!(status["link"] == "up" && status["session"] == *session, "{status}\n{}", stand.centre.log());
    ensure!(stand.till(0)?.tap(sequence, CARD, 10)?.approved_fen() == 10);
    Ok(())
}

#[test]
fn who_has_no_certificate_of_the_institution_gets_no_session() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let session = stand.nodes[0].status()?["session"].clone();
    block_on(async {
        let (_endpoint, connection) = connect(&stand, None, ALPN_REPLICATION).await?;
        let reason = ended(&connection).await?;
        ensure!(reason.contains("needs the certificate of a node"), "{reason}");
        stand.centre.wait_for_log("connection refused")?;

        let other = stand.path("other-institution");
        std::fs::create_dir(&other)?;
        Authority::create(&other, InstitutionId(2), real_now())?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?.serialize_pem();
        let stranger = Identity::signed(&other, &key, real_now())?;
        let reason = match connect(&stand, Some(stranger), ALPN_REPLICATION).await {
            Ok((_endpoint, connection)) => ended(&connection).await?,
            Err(error) => error.to_string(),
        };
        ensure!(reason.contains("UnknownCA") || reason.contains("certificate"), "{reason}");
        stand.centre.wait_for_log("handshake failed")?;

        // Nobody's certificate can be used for a name of an own choice, and no other protocol is spoken.
        let none = connect(&stand, None, b"h3").await;
        ensure!(none.is_err(), "an unknown protocol is refused in the handshake");
        Ok(())
    })?;
    undisturbed(&stand, &session, "1")?;
    stand.finish()
}

/// Another institution's centre is no centre: the building says so, and goes on with its rights.
#[test]
fn a_building_does_not_talk_to_another_institutions_centre() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    let other = Stand::centre_alone(Plan::default())?;
    stand.nodes[0].stop()?;
    let config = std::fs::read_to_string(&stand.nodes[0].config)?;
    std::fs::write(&stand.nodes[0].config, config.replace(&stand.centre_address(), &other.centre_address()))?;
    stand.nodes[0].start()?;
    stand.nodes[0].wait_for_log("the centre cannot be reached")?;
    ensure!(stand.nodes[0].log().contains("certificate"), "{}", stand.nodes[0].log());
    ensure!(stand.till(0)?.tap("1", CARD, 100)?.approved_fen() == 100, "from right");
    ensure!(other.centre.log().contains("handshake failed"), "{}", other.centre.log());
    stand.nodes[0].stop()?;
    std::fs::write(&stand.nodes[0].config, config)?;
    stand.nodes[0].start()?;
    wait_for("its own centre", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 100);
    stand.finish()
}

/// An expired certificate opens no session; both sides say so. What was sold meanwhile is uploaded by a valid one.
#[test]
fn an_expired_certificate_is_named_by_both_sides() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    stand.centre.stop()?;
    ensure!(stand.till(0)?.tap("1", CARD, 100)?.approved_fen() == 100);
    stand.nodes[0].stop()?;
    let file = stand.nodes[0].data.join("node.crt");
    let valid = std::fs::read(&file)?;
    let key = std::fs::read_to_string(stand.nodes[0].data.join("tls.key"))?;
    let expired = Identity::signed(&stand.centre.data, &key, real_now().plus_ms(-2 * YEAR_MS))?;
    std::fs::write(&file, pem(&expired.certificate)?)?;
    stand.centre.start()?;
    stand.nodes[0].start()?;
    stand.nodes[0].wait_for_log("xpired")?;
    stand.centre.wait_for_log("handshake failed")?;
    ensure!(stand.centre.log().contains("xpired"), "{}", stand.centre.log());
    ensure!(stand.nodes[0].status()?["link"] != "up");
    stand.nodes[0].stop()?;
    std::fs::write(&file, valid)?;
    stand.nodes[0].start()?;
    wait_for("a session", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 100);
    stand.finish()
}

/// A certificate as PEM, made by the system's own tool.
fn pem(certificate: &CertificateDer<'_>) -> Result<String> {
    use std::process::{Command, Stdio};
    let mut child = Command::new("base64").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(certificate)?;
    let lines = String::from_utf8(child.wait_with_output()?.stdout)?;
    Ok(format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n"))
}

#[test]
fn a_wrong_used_or_late_code_makes_no_node() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })?;
    let refused = |stand: &Stand, code: &str, why: &str| -> Result<()> {
        let data = stand.path("refused");
        let output = stand.join(&data, code);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(why), "{why:?}: {said}");
        ensure!(!data.join("identity.json").exists(), "it has not joined");
        let node = feiqian_tests::stand::Service::new(NODE, &data);
        ensure!(!node.run(["terminal-key", "canteen-1"]).status.success());
        Ok(())
    };
    let code = stand.code("canteen", "pos")?;
    let parsed: EnrolCode = code.parse()?;
    let mut wrong = parsed.clone();
    wrong.secret[0] ^= 1;
    refused(&stand, &wrong.to_string(), "no such enrolment code")?;
    let mut elsewhere = parsed;
    elsewhere.ca[0] ^= 1;
    refused(&stand, &elsewhere.to_string(), "not the centre that issued this code")?;
    refused(&stand, "AAAA-BBBB", "malformed")?;
    ensure!(stand.centre.log().contains("enrolment refused"), "{}", stand.centre.log());

    // Late: as the centre's own clock sees it.
    stand.centre.stop()?;
    let db = rusqlite::Connection::open(stand.centre.data.join("centre.db"))?;
    db.execute("UPDATE enrolments SET expires = ?1 WHERE used = 0", [real_now().0 - 1])?;
    drop(db);
    stand.centre.start()?;
    refused(&stand, &code, "has expired")?;

    let code = stand.code("canteen", "pos")?;
    let fresh = stand.path("fresh");
    ensure!(stand.join(&fresh, &code).status.success(), "a good one is good");
    refused(&stand, &code, "was used")?;
    let nobody = stand.join(&stand.path("refused"), &stand.code("shop", "door")?);
    ensure!(nobody.status.success(), "what was refused may try again with a good code");
    stand.no_panic()
}

/// A controller whose battery is dead, and one whose clock is set by a prankster.
#[test]
fn a_clock_of_1970_or_2038_decides_and_is_kept_out_of_the_books() -> Result<()> {
    const NOW: i64 = 1_767_586_400_000;
    const BUILDINGS: [&str; 3] = ["old", "new", "right"];
    let clocks = [5_000, 2_147_483_647_000, NOW];
    let plan = Plan { buildings: BUILDINGS.to_vec(), clock_ms: Some(NOW), ..Plan::default() };
    let mut stand = Stand::centre_alone(plan)?;
    for (name, clock) in BUILDINGS.iter().zip(clocks) {
        let data = stand.path(name);
        let joined = stand.join(&data, &stand.code(name, "pos")?);
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        let mut node = stand.service(&data)?;
        node.clock_ms = Some(clock);
        node.start()?;
        wait_for("a session", || Ok(node.status()?["link"] == "up")).with_context(|| node.log())?;
        stand.nodes.push(node);
    }
    stand.settle()?;
    for (node, building) in BUILDINGS.iter().enumerate() {
        let till = stand.till(node)?;
        till.sell("online", CARD, 100).with_context(|| *building)?;
        till.hold("hold", CARD, 1_000).with_context(|| *building)?;
    }
    stand.settle()?;
    stand.centre.stop()?;
    for (node, building) in BUILDINGS.iter().enumerate() {
        let told = stand.till(node)?.tap("offline", CARD, 100)?;
        ensure!(told.approved_fen() == 100, "{building}: {told:?}");
    }
    stand.centre.start()?;
    for node in 0..3 {
        wait_for("a session", || Ok(stand.nodes[node].status()?["link"] == "up"))?;
    }
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 600, "{:?}", stand.balances()?);
    let debits: Vec<_> = stand.export("entries")?.into_iter().filter(|row| row["kind"] == "debit").collect();
    ensure!(debits.len() == 9, "{debits:?}");
    for debit in &debits {
        let key = number(debit, "order_key_ms");
        ensure!((NOW - 60_000..=NOW).contains(&key), "ordered by a wrong clock: {debit:?}");
    }
    let days: std::collections::BTreeSet<_> =
        stand.export("postings")?.into_iter().map(|row| row["own_day"].clone()).collect();
    ensure!(days.len() == 1, "{days:?}");
    stand.finish()
}

#[test]
fn garbage_frames_cost_their_connection_only() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let session = stand.nodes[0].status()?["session"].clone();
    let log_before = stand.centre.log().len();
    block_on(async {
        // Even under a certificate that is good: that of the building itself.
        let too_long = [&[0][..], &u32::MAX.to_be_bytes()].concat();
        let no_frame = [&[0][..], &5_u32.to_be_bytes(), b"hello"].concat();
        let truncated = [&[2][..], &1_000_u32.to_be_bytes(), &[0x81, 0x00]].concat();
        let empty = [&[1][..], &0_u32.to_be_bytes()].concat();
        let random: Vec<u8> = (0..40_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (what, bytes) in [
            ("an unknown lane", vec![9, 1, 2, 3]),
            ("a frame too long", too_long),
            ("no frame", no_frame),
            ("a truncated frame", truncated),
            ("an empty frame", empty),
            ("noise", random),
        ] {
            let identity = Identity::of_node(&stand.nodes[0].data)?;
            let (_endpoint, connection) = connect(&stand, Some(identity), ALPN_REPLICATION).await?;
            let mut stream = connection.open_uni().await?;
            // The other end may hang up in the middle of it.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.finish();
            let reason = ended(&connection).await.with_context(|| what.to_owned())?;
            ensure!(!reason.is_empty(), "{what}");
            // And to the desk, without a certificate.
            let (_endpoint, connection) = connect(&stand, None, ALPN_ENROL).await?;
            let (mut send, _receive) = connection.open_bi().await?;
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            ended(&connection).await.with_context(|| format!("{what} at the desk"))?;
        }
        anyhow::Ok(())
    })?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for size in [0, 1, 7, 64, 1_200, 9_000, 60_000] {
        let datagram: Vec<u8> = (0..size).map(|n: u32| (n.wrapping_mul(193) >> 3) as u8).collect();
        for _ in 0..50 {
            socket.send_to(&datagram, (Ipv4Addr::LOCALHOST, stand.centre_port))?;
        }
    }
    let log = stand.centre.log();
    let since = &log[log_before..];
    ensure!(since.matches("link down").count() >= 6 && since.contains("reason"), "{since}");
    ensure!(since.contains("enrolment failed"), "{since}");
    undisturbed(&stand, &session, "1")?;
    stand.finish()
}

#[test]
fn dawdlers_and_crowds_do_not_keep_others_from_being_served() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let session = stand.nodes[0].status()?["session"].clone();
    let till = stand.till(0)?;
    // Terminals that never finish: no TLS, half a head, a head without its body, a body that drips.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(till.address)?);
    }
    let mut slow = Vec::new();
    for n in 0..60 {
        let mut stream = till.connect()?;
        let mac = till.mac("/v1/taps", b"{}");
        let head = format!(
            "POST /v1/taps HTTP/1.1\r\nhost: node\r\nx-feiqian-terminal: {}\r\nx-feiqian-mac: {mac}\r\n",
            till.terminal
        );
        match n % 3 {
            0 => stream.write_all(&head.as_bytes()[..40])?,
            1 => stream.write_all(format!("{head}content-length: 2\r\n\r\n").as_bytes())?,
            _ => stream.write_all(format!("{head}content-length: 16000\r\n\r\n{{").as_bytes())?,
        }
        stream.flush()?;
        slow.push(stream);
    }
    // And garbage instead of TLS or HTTP.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 4_096]] {
        TcpStream::connect(till.address)?.write_all(bytes)?;
    }
    let mut stream = till.connect()?;
    let _ = stream.write_all(&vec![b'A'; 64 * 1024]);
    let begun = Instant::now();
    for n in 0..20 {
        ensure!(till.tap(&n.to_string(), CARD, 10)?.approved_fen() == 10);
    }
    ensure!(begun.elapsed() < Duration::from_secs(10), "20 taps took {:?}", begun.elapsed());

    // At the centre: connections that say nothing, or start an enrolment and wait.
    block_on(async {
        let mut idle = Vec::new();
        for n in 0..60 {
            let identity = (n % 2 == 0).then(|| Identity::of_node(&stand.nodes[0].data)).transpose()?;
            let alpn = if n % 2 == 0 { ALPN_REPLICATION } else { ALPN_ENROL };
            let (endpoint, connection) = connect(&stand, identity, alpn).await?;
            if n % 2 == 0 {
                let mut lane = connection.open_uni().await?;
                // The connection may be over already where too many are open.
                let _ = lane.write_all(&[0, 0, 0]).await;
                idle.push((endpoint, connection, Some(lane)));
            } else {
                idle.push((endpoint, connection, None));
            }
        }
        tokio::task::block_in_place(|| undisturbed(&stand, &session, "beside"))
    })?;
    // Whoever dawdles over a body is told so and hung up on.
    wait_for("the end of a dawdler", || {
        let told = till.answer(&mut slow[1], &till.mac("/v1/taps", b"{}"));
        Ok(told.map_or(true, |told| told.status == 408))
    })?;
    drop((silent, slow));
    undisturbed(&stand, &session, "after")?;
    stand.finish()
}
