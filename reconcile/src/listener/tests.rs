use super::*;
use crate::authority::{Authority, CENTRE_NAME};
use crate::driver::{Core, WallClock, drive, queue, real_now};
use crate::io::{Input, Now, Output};
use feiqian_protocol::frame::Mark;
use feiqian_protocol::ids::InstitutionId;
use feiqian_protocol::time::Hlc;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::PrivateKeyDer;

fn on_the_wire(frame: &Frame) -> Vec<u8> {
    let bytes = frame.to_bytes();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

fn mark(position: u64) -> Frame {
    Frame::Mark(Mark { position, clock: Hlc::default() })
}

#[tokio::test]
async fn frames_are_read_one_after_the_other_to_the_end_of_the_lane() {
    let bytes = [on_the_wire(&mark(1)), on_the_wire(&mark(2))].concat();
    let mut stream = &bytes[..];
    assert_eq!(read_frame(&mut stream, Lane::Control).await.unwrap(), Some(mark(1)));
    assert_eq!(read_frame(&mut stream, Lane::Control).await.unwrap(), Some(mark(2)));
    assert_eq!(read_frame(&mut stream, Lane::Control).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_no_frame_ends_the_lane() {
    let good = on_the_wire(&mark(1));
    for cut in 1..good.len() {
        let read = read_frame(&mut &good[..cut], Lane::Control).await;
        assert!(matches!(read, Err(LaneError::Broken(_))), "cut at {cut}");
    }
    let long = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    let read = read_frame(&mut &long[..], Lane::Control).await;
    assert!(matches!(read, Err(LaneError::Frame(FrameError::TooLong(_)))));
    let read = read_frame(&mut &[0, 0, 0, 2, 0xff, 0xff][..], Lane::Control).await;
    assert!(matches!(read, Err(LaneError::Frame(FrameError::Malformed(_)))));
    assert!(matches!(read_frame(&mut &[0; 4][..], Lane::Control).await, Err(LaneError::Frame(_))));
    let read = read_frame(&mut &good[..], Lane::Bulk).await;
    assert!(matches!(read, Err(LaneError::Misplaced)));
}

/// Sends every mark back, and refuses the link after mark 9.
struct FakeCore;

impl Core for FakeCore {
    type Error = std::io::Error;

    fn step(&mut self, _: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> std::io::Result<()> {
        for input in inputs {
            let Input::Frame(link, frame) = input else { continue };
            let last = frame == mark(9);
            outputs.push(Output::Send(link, frame));
            if last {
                outputs.push(Output::CloseLink(link, "enough".to_owned()));
            }
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<u64> {
        None
    }
}

struct Centre {
    _dir: tempfile::TempDir,
    authority: Arc<Authority>,
    endpoint: quinn::Endpoint,
}

/// A centre on the loopback interface in front of a fake core.
fn centre() -> Centre {
    let dir = tempfile::tempdir().unwrap();
    Authority::create(dir.path(), InstitutionId(1), real_now()).unwrap();
    let authority = Arc::new(Authority::open(dir.path(), real_now()).unwrap());
    let (core, events) = queue();
    let handle = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let ready = tokio::sync::oneshot::channel().0;
        drive(&handle, events, WallClock::Real, || Ok::<_, std::io::Error>(FakeCore), ready)
    });
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = runtime.wrap_udp_socket(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let tls = authority.server_tls().unwrap();
    let endpoint =
        endpoint(runtime, socket, quinn::EndpointConfig::default(), tls, Duration::from_secs(5)).unwrap();
    let desk = Arc::new(Desk::new(Arc::clone(&authority), core.clone(), true));
    tokio::spawn(serve(endpoint.clone(), core, desk));
    Centre { _dir: dir, authority, endpoint }
}

/// Connects as a node of `signer`'s, or without a certificate; trusts `centre`.
async fn connect(
    centre: &Centre,
    signer: Option<&Authority>,
    alpn: &[u8],
) -> (quinn::Endpoint, quinn::Connection) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(centre.authority.ca().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match signer {
        None => tls.with_no_client_auth(),
        Some(signer) => {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
            let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
            let requested = signer.check_request(request.der()).unwrap();
            let certificate = signer.sign_node(&requested, NodeId(3), 1, real_now()).unwrap();
            tls.with_client_auth_cert(vec![certificate], PrivateKeyDer::from(key)).unwrap()
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = centre.endpoint.local_addr().unwrap();
    let connection = client.connect_with(config, address, CENTRE_NAME).unwrap().await.unwrap();
    (client, connection)
}

async fn reason_of(connection: &quinn::Connection) -> String {
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        other => other.to_string(),
    }
}

async fn open_lane(connection: &quinn::Connection, tag: u8) -> quinn::SendStream {
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(&[tag]).await.unwrap();
    stream
}

/// The frames of the centre's control lane.
async fn control_lane(connection: &quinn::Connection) -> quinn::RecvStream {
    loop {
        let mut stream = connection.accept_uni().await.unwrap();
        if stream.read_u8().await.unwrap() == Lane::Control.tag() {
            return stream;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_both_ways_and_a_close_comes_after_what_was_said_before() {
    let centre = centre();
    let (_client, connection) = connect(&centre, Some(&centre.authority), ALPN_REPLICATION).await;
    let mut lane = open_lane(&connection, Lane::Control.tag()).await;
    let mut answers = control_lane(&connection).await;
    for position in [1, 9] {
        lane.write_all(&on_the_wire(&mark(position))).await.unwrap();
        let answer = read_frame(&mut answers, Lane::Control).await.unwrap();
        assert_eq!(answer, Some(mark(position)));
    }
    assert_eq!(reason_of(&connection).await, "enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_needs_a_certificate_of_this_institution() {
    let centre = centre();
    let (_client, connection) = connect(&centre, None, ALPN_REPLICATION).await;
    assert!(reason_of(&connection).await.contains("certificate"));
    let (_client, connection) = connect(&centre, None, ALPN_ENROL).await;
    assert!(connection.close_reason().is_none(), "enrolment needs none");

    let other = self::centre();
    let (_client, connection) = connect(&centre, Some(&other.authority), ALPN_REPLICATION).await;
    let reason = reason_of(&connection).await;
    assert!(reason.contains("certificate") || reason.contains("crypto"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_closes_the_connection_and_says_why() {
    let centre = centre();
    for (bytes, expected) in [
        (vec![7], "no lane"),
        (vec![0, 0xff, 0xff, 0xff, 0xff], "more than"),
        ([&[Lane::Bulk.tag()][..], &on_the_wire(&mark(1))].concat(), "wrong lane"),
    ] {
        let (_client, connection) = connect(&centre, Some(&centre.authority), ALPN_REPLICATION).await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let reason = reason_of(&connection).await;
        assert!(reason.contains(expected), "{reason}");
    }
    let (_client, connection) = connect(&centre, Some(&centre.authority), ALPN_REPLICATION).await;
    let _first = open_lane(&connection, 0).await;
    let _second = open_lane(&connection, 0).await;
    assert!(reason_of(&connection).await.contains("one lane"));
}
