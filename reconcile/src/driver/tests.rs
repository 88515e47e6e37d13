use super::*;
use feiqian_protocol::frame::Mark;
use feiqian_protocol::ids::{InstitutionId, LogId, NodeId};
use feiqian_protocol::limits::LINK_QUEUE_MAX;
use feiqian_protocol::time::Hlc;
use std::sync::Mutex;

const PEER: Peer = Peer { node: NodeId(1), incarnation: 1, expired: false };

#[derive(Debug, thiserror::Error)]
#[error("disk")]
struct DiskError;

/// Answers status with its wall clock, fails on demand, and floods a link that says anything.
/// Its timer is the second.
struct FakeCore(Arc<Mutex<Vec<String>>>, Option<u64>);

impl Core for FakeCore {
    type Error = DiskError;

    fn step(&mut self, now: Now, inputs: Vec<Input>, outputs: &mut Vec<Output>) -> Result<(), DiskError> {
        for input in inputs {
            match input {
                Input::Command(ticket, Command::Status {}) => {
                    outputs.push(Output::Reply(ticket, Ok(now.wall.0.into())));
                }
                Input::Command(..) => return Err(DiskError),
                Input::Frame(link, frame) => {
                    outputs.extend((0..=LINK_QUEUE_MAX).map(|_| Output::Send(link, frame.clone())));
                }
                other => self.0.lock().unwrap().push(format!("{other:?} at {}", now.wall.0)),
            }
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<u64> {
        self.1
    }
}

fn mark() -> Frame {
    Frame::Mark(Mark { position: 1, clock: Hlc::default() })
}

fn start(clock: WallClock) -> (CoreHandle, Arc<Mutex<Vec<String>>>, std::thread::JoinHandle<()>) {
    let (handle, events) = queue();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let runtime = tokio::runtime::Handle::current();
    let inner = Arc::clone(&seen);
    let thread = std::thread::spawn(move || {
        let open = || Ok::<_, DiskError>(FakeCore(Arc::clone(&inner), None));
        drive(&runtime, events, clock, open, oneshot::channel().0).unwrap();
    });
    (handle, seen, thread)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driven_clock_is_waited_for_never_falls_and_runs_the_timer() {
    let (handle, seen, thread) = start(WallClock::Driven);
    assert_eq!(handle.command(Command::Status {}).await.unwrap_err().code, "clock_not_set");
    handle.set_clock(Timestamp(50)).await.unwrap();
    assert_eq!(handle.command(Command::Status {}).await.unwrap(), 50);
    handle.set_clock(Timestamp(70)).await.unwrap();
    handle.set_clock(Timestamp(60)).await.unwrap();
    assert_eq!(handle.command(Command::Status {}).await.unwrap(), 70);
    handle.stop().await;
    thread.join().unwrap();
    assert_eq!(*seen.lock().unwrap(), ["Timer at 70", "Timer at 70"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_cuts_links_off_and_answers_nothing_but_goes_on() {
    let (handle, seen, thread) = start(WallClock::Real);
    let (outgoing, mut queues) = Outgoing::new();
    handle.link_up(LinkId(1), PEER, outgoing).await.unwrap();
    let failing = Command::LookUpEnrolment { lookup: String::new() };
    assert_eq!(handle.command(failing).await.unwrap_err().code, "interrupted");
    queues.close.wait_for(Option::is_some).await.unwrap();
    // What is left of the old link does not reach the new core.
    handle.frame(LinkId(1), mark()).await.unwrap();
    handle.link_down(LinkId(1)).await.unwrap();
    assert!(handle.command(Command::Status {}).await.is_ok());
    handle.stop().await;
    thread.join().unwrap();
    assert_eq!(seen.lock().unwrap().len(), 1, "only the first LinkUp");
    assert_eq!(handle.command(Command::Status {}).await.unwrap_err().code, "stopping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_does_not_keep_up_is_closed_and_goes_down_once() {
    let (handle, seen, thread) = start(WallClock::Real);
    let (outgoing, mut queues) = Outgoing::new();
    handle.link_up(LinkId(4), PEER, outgoing).await.unwrap();
    handle.frame(LinkId(4), mark()).await.unwrap();
    queues.close.wait_for(Option::is_some).await.unwrap();
    handle.link_down(LinkId(4)).await.unwrap();
    handle.link_down(LinkId(4)).await.unwrap();
    handle.stop().await;
    thread.join().unwrap();
    assert_eq!(seen.lock().unwrap().iter().filter(|line| line.starts_with("LinkDown")).count(), 1);
}

#[tokio::test]
async fn a_status_speaks_of_the_entries_queued_before_it_and_asks_overtake_them() {
    let (handle, mut events) = queue();
    let seen = Arc::default();
    let (outgoing, _queues) = Outgoing::new();
    let mut run = Run {
        core: FakeCore(seen, None),
        real: real_now,
        opened: Instant::now(),
        driven: None,
        tickets: 0,
        waiting: BTreeMap::new(),
        links: BTreeMap::from([(LinkId(1), Some(outgoing))]),
        urgent: None,
        pace: Pace::default(),
        rest_until: Instant::now(),
        statuses: VecDeque::new(),
        frames_taken: 0,
    };
    let log = LogId::node(InstitutionId(1), NodeId(1));
    let entries = |records| {
        let records = vec![Vec::new().into(); records];
        Frame::Entries(feiqian_protocol::frame::Entries { log, first: 1, records, heads: Vec::new() })
    };
    for _ in 0..10 {
        handle.frame(LinkId(1), entries(ENTRIES_PER_STEP_MAX / 2)).await.unwrap();
    }
    handle.frame(LinkId(2), entries(1)).await.unwrap();
    let mut inputs = Vec::new();
    run.admit_bulk(&mut events, &mut inputs, usize::MAX, ENTRIES_PER_STEP_MAX);
    assert_eq!(inputs.len(), 2, "a step stays short");
    run.admit_bulk(&mut events, &mut inputs, usize::MAX, usize::MAX);
    assert_eq!(inputs.len(), 10, "and what no link of this core sent is left out");
    handle.frame(LinkId(1), mark()).await.unwrap();
    handle.frame(LinkId(1), entries(1)).await.unwrap();
    assert!(matches!(events.events.try_recv(), Ok(Event::Frame(..))));
    assert!(run.admit(Event::LinkDown(LinkId(1))).is_some());
    assert!(run.admit(Event::LinkDown(LinkId(1))).is_none());
}

#[test]
fn beside_what_others_wait_for_the_timer_and_entries_take_turns() {
    let mut pace = Pace::default();
    assert_eq!([true, true, true].map(|busy| pace.timer_goes_alone(busy)), [true, false, true]);
    assert_eq!([false, false, true].map(|busy| pace.timer_goes_alone(busy)), [false, false, true]);
}

#[tokio::test]
async fn while_it_rests_from_a_backlog_it_takes_what_somebody_waits_for() {
    let (handle, mut events) = queue();
    let mut run = Run {
        core: FakeCore(Arc::default(), Some(0)),
        real: real_now,
        opened: Instant::now(),
        driven: None,
        tickets: 0,
        waiting: BTreeMap::new(),
        links: BTreeMap::new(),
        urgent: None,
        pace: Pace::default(),
        rest_until: Instant::now() + Duration::from_secs(3_600),
        statuses: VecDeque::new(),
        frames_taken: 0,
    };
    let log = LogId::node(InstitutionId(1), NodeId(1));
    let entries = feiqian_protocol::frame::Entries { log, first: 1, records: Vec::new(), heads: Vec::new() };
    handle.frame(LinkId(1), Frame::Entries(entries)).await.unwrap();
    handle.frame(LinkId(1), mark()).await.unwrap();
    assert!(matches!(run.wait(&mut events).await, Some(Event::Frame(..))));
    let later = tokio::time::timeout(Duration::from_millis(20), run.wait(&mut events)).await;
    assert!(later.is_err() && events.first_bulk.is_none(), "the backlog and the timer wait");
    run.rest_until = Instant::now();
    assert!(run.wait(&mut events).await.is_none() && events.first_bulk.is_some(), "until it has rested");
}
