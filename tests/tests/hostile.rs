//! Strangers, old certificates, wrong codes, wrong clocks, garbage and dawdlers: that connection suffers, nothing else, and
//! the log says why.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use feiqian_protocol::enrol::{EnrolAnswer, EnrolCode, EnrolRequest, SealedEnrolRequest, decode};
use feiqian_protocol::frame::{ALPN_ENROL, ALPN_RENEW, ALPN_REPLICATION};
use feiqian_protocol::ids::{InstitutionId, NodeId};
use feiqian_protocol::limits::ENROL_TRIES_MAX;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::authority::{Authority, validity};
use feiqian_reconcile::driver::real_now;
use feiqian_tests::clock::WrongClock;
use feiqian_tests::kept::number;
use feiqian_tests::liar::{Shown, block_on, connect, ended};
use feiqian_tests::stand::{NODE, Plan, Stand, Till, wait_for};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

const CARD: &str = "card-1001";
const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// A certificate for node 1, first enrolment, signed at `at` by the authority in `ca`.
fn signed(ca: &Path, key_pem: &str, at: Timestamp) -> Result<Shown> {
    let key = KeyPair::from_pem(key_pem)?;
    let authority = Authority::open(ca, real_now())?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let requested = authority.check_request(request.der())?;
    let certificate = authority.sign_node(&requested, NodeId(1), 1, at)?;
    Ok(Shown { certificate, key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes())? })
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
        let stranger = signed(&other, &key, real_now())?;
        let reason = match connect(&stand, Some(stranger), ALPN_REPLICATION).await {
            Ok((_endpoint, connection)) => ended(&connection).await?,
            Err(error) => error.to_string(),
        };
        ensure!(reason.contains("UnknownCA") || reason.contains("certificate"), "{reason}");
        stand.centre.wait_for_log("handshake failed")?;

        // Nor is anything renewed that is not shown.
        let (_endpoint, connection) = connect(&stand, None, ALPN_RENEW).await?;
        let reason = ended(&connection).await?;
        ensure!(reason.contains("needs the certificate of a node"), "{reason}");

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

/// Turns renewal on or off in the centre's configuration.
fn renews(stand: &Stand, on: bool) -> Result<()> {
    let config = std::fs::read_to_string(&stand.centre.config)?;
    let config: String =
        config.lines().filter(|line| !line.starts_with("renew_")).map(|line| format!("{line}\n")).collect();
    Ok(std::fs::write(&stand.centre.config, format!("{config}renew_certificates = {on}\n"))?)
}

/// An expired certificate uploads what was sold, and gets nothing but a new one; both sides say so.
#[test]
fn an_expired_certificate_uploads_and_renews_and_nothing_else() -> Result<()> {
    let mut stand = Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })?;
    stand.till(0)?.hold("hold", CARD, 1_000)?;
    stand.settle()?;
    stand.centre.stop()?;
    renews(&stand, false)?;
    ensure!(stand.till(0)?.tap("1", CARD, 100)?.approved_fen() == 100);
    stand.nodes[0].stop()?;
    let file = stand.nodes[0].data.join("node.crt");
    let key = std::fs::read_to_string(stand.nodes[0].data.join("tls.key"))?;
    let expired = signed(&stand.centre.data, &key, real_now().plus_ms(-2 * YEAR_MS))?;
    std::fs::write(&file, pem(&expired.certificate)?)?;
    stand.centre.start()?;
    stand.nodes[0].start()?;
    stand.nodes[0].wait_for_log("the centre refuses this node")?;
    let status = stand.nodes[0].status()?;
    ensure!(status["link"] == "refused" && status["refused"] == "expired", "{status}");
    stand.centre.wait_for_log("the certificate of this node has expired")?;
    ensure!(stand.centre.log().contains("reason=\"expired\""), "{}", stand.centre.log());
    // What it sold arrives.
    wait_for("its upload", || Ok(stand.balances()?[CARD] == 100_000 - 100))?;
    wait_for("its acknowledgement", || {
        let status = stand.nodes[0].status()?;
        Ok(status["acked"] == status["position"])
    })?;
    // Its right is its own, and it gets nothing of what is new. (Its terminals see the certificate expire as well.)
    let before = stand.nodes[0].status()?;
    ensure!(before["unspent_fen"].as_i64() > Some(0), "{before}");
    let out = stand.at_centre("canteen")?["out_fen"].as_i64().context("a figure")?;
    stand.centre.run_ok(["topup", "--card", CARD, "--fen", "500", "--channel", "bank", "--key", "k1"]);
    wait_for("the shop", || Ok(stand.nodes[1].status()?["shards"] != before["shards"]))?;
    let after = stand.nodes[0].status()?;
    for same in ["shards", "applied", "unspent_fen", "epoch"] {
        ensure!(after[same] == before[same], "{same}: {after}, was {before}");
    }
    ensure!(stand.at_centre("canteen")?["out_fen"] == out, "nothing is granted");
    stand.nodes[0].wait_for_log("renew_certificates")?;
    stand.centre.wait_for_log("renewal refused")?;

    // The operator allows renewal: it takes care of itself.
    stand.centre.stop()?;
    renews(&stand, true)?;
    stand.centre.start()?;
    stand.nodes[0].stop()?;
    stand.nodes[0].start()?;
    wait_for("a session", || Ok(stand.nodes[0].status()?["link"] == "up"))
        .with_context(|| stand.nodes[0].log())?;
    ensure!(stand.nodes[0].log().contains("certificate renewed"), "{}", stand.nodes[0].log());
    ensure!(stand.centre.log().contains("certificate renewed"), "{}", stand.centre.log());
    let (_, until) = validity(&CertificateDer::from_pem_file(&file)?).context("a certificate")?;
    ensure!(until.ms_since(real_now()) > YEAR_MS / 2, "{until:?}");
    stand.till(0)?.sell("2", CARD, 1_000)?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_500 - 100 - 1_000);

    // One that is near its end is renewed in time, while the building is in session.
    stand.nodes[0].stop()?;
    let old = signed(&stand.centre.data, &key, real_now().plus_ms(-YEAR_MS / 4 * 3))?;
    std::fs::write(&file, pem(&old.certificate)?)?;
    stand.nodes[0].start()?;
    wait_for("renewal", || Ok(CertificateDer::from_pem_file(&file)? != old.certificate))?;
    wait_for("a session", || Ok(stand.nodes[0].status()?["link"] == "up"))?;
    let session = stand.nodes[0].status()?["session"].clone();
    undisturbed(&stand, &session, "5")?;
    // Terminals see the new one as well; and it is not asked for again.
    ensure!(stand.nodes[0].log().matches("certificate renewed").count() == 2, "{}", stand.nodes[0].log());
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

    // Altered on its way: the seal is the code's, and the request another.
    let code: EnrolCode = stand.code("canteen", "pos")?.parse()?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let mut request = EnrolRequest {
        lookup: code.lookup(),
        certificate_request: request.der().to_vec().into(),
        log_key: ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes(),
        pin_key: None,
    };
    let mac = code.mac(&request);
    request.log_key = ed25519_dalek::SigningKey::from_bytes(&[2; 32]).verifying_key().to_bytes();
    for attempt in 0..=ENROL_TRIES_MAX {
        let why = block_on(enrol(&stand, &SealedEnrolRequest { request: request.clone(), mac }))?;
        let expected =
            if attempt < ENROL_TRIES_MAX { "not sealed with this code" } else { "tried too often" };
        ensure!(why.contains(expected), "{attempt}: {why}");
    }
    // Nobody gets any further by guessing; the code is used up, for its owner as well.
    refused(&stand, &code.to_string(), "tried too often")?;

    let code = stand.code("canteen", "pos")?;
    let fresh = stand.path("fresh");
    ensure!(stand.join(&fresh, &code).status.success(), "a good one is good");
    refused(&stand, &code, "was used")?;
    let nobody = stand.join(&stand.path("refused"), &stand.code("shop", "door")?);
    ensure!(nobody.status.success(), "what was refused may try again with a good code");
    stand.no_panic()
}

/// Says an enrolment request to the desk; returns why it is refused.
async fn enrol(stand: &Stand, sealed: &SealedEnrolRequest) -> Result<String> {
    let (_endpoint, connection) = connect(stand, None, ALPN_ENROL).await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let bytes = minicbor::to_vec(sealed)?;
    send.write_all(&u32::try_from(bytes.len())?.to_be_bytes()).await?;
    send.write_all(&bytes).await?;
    send.finish()?;
    let answer = receive.read_to_end(20_000).await?;
    match decode(answer.get(4..).context("an answer")?)? {
        EnrolAnswer::Refused(why) => Ok(why),
        EnrolAnswer::Enrolled(_) => anyhow::bail!("enrolled"),
    }
}

/// A machine whose clock stands in 1970, and one whose clock stands in 2038: they join, find their centre, sell, and are
/// kept out of the books; both sides say whose clock is wrong.
#[test]
fn a_machine_of_1970_or_2038_joins_and_sells() -> Result<()> {
    const BUILDINGS: [&str; 3] = ["old", "new", "right"];
    let clocks = [Some(5), Some(2_147_483_647), None];
    let mut stand = Stand::centre_alone(Plan { buildings: BUILDINGS.to_vec(), ..Plan::default() })?;
    let shim = WrongClock::build(stand.directory.path())?;
    for (name, clock) in BUILDINGS.iter().zip(clocks) {
        let data = stand.path(name);
        let code = stand.code(name, "pos")?;
        let mut join = std::process::Command::new(feiqian_tests::binaries::binary(NODE));
        join.args(["join", "--centre", &stand.centre_address(), "--code", &code, "--data"]).arg(&data);
        let mut node = stand.service(&data)?;
        let mut run = node.command();
        if let Some(clock) = clock {
            shim.set(&mut join, clock);
            shim.set(&mut run, clock);
        }
        let joined = join.output()?;
        ensure!(joined.status.success(), "{name}: {}", String::from_utf8_lossy(&joined.stderr));
        node.start_as(run)?;
        wait_for("a session", || Ok(node.status()?["link"] == "up")).with_context(|| node.log())?;
        if let Some(clock) = clock {
            let shown = node.status()?["wall"].as_i64().context("a clock")? / 1_000;
            ensure!((clock..clock + 60).contains(&shown), "{name} lives at {shown}");
        }
        stand.nodes.push(node);
    }
    for (node, building) in BUILDINGS.iter().enumerate() {
        stand.till(node)?.sell("online", CARD, 100).with_context(|| *building)?;
        stand.till(node)?.hold("hold", CARD, 1_000).with_context(|| *building)?;
    }
    stand.settle()?;
    stand.centre.stop()?;
    for (node, building) in BUILDINGS.iter().enumerate() {
        let told = stand.till(node)?.tap("offline", CARD, 100)?;
        ensure!(told.approved_fen() == 100, "{building}: {told:?}");
    }
    stand.centre.start()?;
    for node in &stand.nodes {
        wait_for("a session", || Ok(node.status()?["link"] == "up"))?;
    }
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 600, "{:?}", stand.balances()?);
    let now = real_now().0;
    for debit in stand.export("entries")?.iter().filter(|row| row["kind"] == "debit") {
        ensure!(
            (now - 600_000..=now).contains(&number(debit, "order_key_ms")),
            "ordered by a wrong clock: {debit:?}"
        );
    }
    for (node, direction) in [(0, "behind"), (1, "ahead")] {
        let log = stand.nodes[node].log();
        ensure!(log.contains("the clock of this machine is not the centre's"), "{log}");
        ensure!(log.contains(&format!("direction=\"{direction}\"")), "{log}");
        let said = format!("the clock of a node is wrong node={}", node + 1);
        let named = |line: &str| line.contains(&said) && line.contains(&format!("direction=\"{direction}\""));
        wait_for("the centre's word", || Ok(stand.centre.log().lines().any(named)))
            .with_context(|| stand.centre.log())?;
    }
    ensure!(!stand.nodes[2].log().contains("the clock of this machine"), "{}", stand.nodes[2].log());
    // That of 2038 says as well why it believes the centre.
    ensure!(stand.nodes[1].log().contains("the clock is taken to be ahead"), "{}", stand.nodes[1].log());
    stand.finish()
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
            let identity = Shown::of_node(&stand.nodes[0].data)?;
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
            let identity = (n % 2 == 0).then(|| Shown::of_node(&stand.nodes[0].data)).transpose()?;
            let alpn = if n % 2 == 0 { ALPN_REPLICATION } else { ALPN_ENROL };
            let (endpoint, connection) = connect(&stand, identity, alpn).await?;
            if n % 2 == 0 {
                // The connection is over already where the building has too many.
                let mut lane = connection.open_uni().await.ok();
                if let Some(lane) = &mut lane {
                    let _ = lane.write_all(&[0, 0, 0]).await;
                }
                idle.push((endpoint, connection, lane));
            } else {
                idle.push((endpoint, connection, None));
            }
        }
        tokio::task::block_in_place(|| undisturbed(&stand, &session, "beside"))?;
        // Of one building only some are let in, and who says nothing is not waited for.
        ensure!(stand.centre.log().contains("too many connections of this node"), "{}", stand.centre.log());
        let (_, waiting, _) = &idle[0];
        let reason = ended(waiting).await?;
        ensure!(reason.contains("no word for too long"), "{reason}");
        anyhow::Ok(())
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

/// A card emulator at a till: thousands of cards that nobody has. Each is declined, some are written down, the log and the
/// disk do not grow with them, and who has a card pays as before.
#[test]
fn a_flood_of_unknown_cards_is_declined_and_not_kept() -> Result<()> {
    let mut stand = Stand::start(Plan::default())?;
    let (till, second) = (stand.till(0)?, Till::new(&stand.nodes[0], "canteen-2")?);
    let before = stand.nodes[0].status()?["position"].as_u64().context("a position")?;
    let mut stream = till.keep_alive()?;
    for n in 0..2_000 {
        // Alike for most of their length, as one who wants them to collide would choose them.
        let card = format!("{:0>50}-{n:08}", "");
        let body = json!({"epoch": 1, "sequence": format!("u{n}"), "card": card, "kind": "purchase", "amount_fen": 1});
        let told = till.ask_on(&mut stream, "/v1/taps", body.to_string().as_bytes())?;
        ensure!(told.status == 200 && told.authentic, "{told:?}");
        ensure!(told.outcome() == "declined" && told.reason() == "unknown_card", "{told:?}");
        if n % 500 == 0 {
            ensure!(till.tap(&format!("good-{n}"), CARD, 10)?.approved_fen() == 10);
        }
    }
    ensure!(second.tap("1", "card-9999", 10)?.reason() == "unknown_card");
    ensure!(second.tap("2", CARD, 10)?.approved_fen() == 10);
    let status = stand.nodes[0].status()?;
    let grown = status["position"].as_u64().context("a position")? - before;
    // Thirty a minute of each till, and the flood may have taken some minutes on a slow machine.
    ensure!((36..400).contains(&grown), "{grown} entries");
    ensure!(status["unknown_cards_not_kept"].as_u64() > Some(1_600), "{status}");
    stand.nodes[0].wait_for_log("more unknown cards than are kept")?;
    ensure!(!stand.nodes[0].log().contains("00000000-0000"), "a card number in the log");

    // As many fields as fit a request, and fields that are as long as they can be.
    let fields: String = (0..1_200).map(|n| format!("\"k{n}\":{n},")).collect();
    for body in [format!("{{{fields}\"z\":1}}"), format!("{{\"{}\":1}}", "k".repeat(16_000))] {
        let told = till.ask("/v1/taps", body.as_bytes())?;
        ensure!(told.status == 400 && told.code() == "malformed", "{told:?}");
    }
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 100_000 - 50);
    stand.finish()
}

/// More strangers than there is room for take one another's places, and no terminal's.
#[test]
fn a_crowd_of_strangers_keeps_no_terminal_out() -> Result<()> {
    let stand = Stand::start(Plan::default())?;
    let till = stand.till(0)?;
    let mut known = till.keep_alive()?;
    let body = |n: u32| {
        json!({"epoch": 1, "sequence": format!("k{n}"), "card": CARD, "kind": "purchase", "amount_fen": 10})
            .to_string()
    };
    ensure!(till.ask_on(&mut known, "/v1/taps", body(0).as_bytes())?.approved_fen() == 10);
    // They are slow, as who has no key may be for a while: TLS, and half a request.
    let mut crowd = Vec::new();
    for _ in 0..300 {
        let mut stranger = till.connect()?;
        stranger.write_all(b"POST /v1/taps HTTP/1.1\r\n")?;
        stranger.flush()?;
        crowd.push(stranger);
    }
    // Who was there is still there, and a new terminal gets in.
    ensure!(till.ask_on(&mut known, "/v1/taps", body(1).as_bytes())?.approved_fen() == 10);
    ensure!(till.tap("new", CARD, 10)?.approved_fen() == 10);
    // The first of the crowd had to make room, long before anybody would wait for it no more.
    crowd[0].sock.set_read_timeout(Some(Duration::from_secs(20)))?;
    let hung_up = crowd[0].read(&mut [0]);
    let waits = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    ensure!(!hung_up.as_ref().is_err_and(waits), "it still has its place: {hung_up:?}");
    drop(crowd);
    ensure!(till.ask_on(&mut known, "/v1/taps", body(2).as_bytes())?.approved_fen() == 10);
    stand.finish()
}
