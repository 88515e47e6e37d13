//! The core's loop, in production on an OS thread of its own.
//!
//! Everything that happens to the node waits in one bounded queue. The loop takes what waits, up to
//! [`INPUTS_PER_STEP_MAX`], gives it to [`NodeCore::step`], and releases the outputs once that has committed. A step that
//! fails drops the core: who waits is told that the node is unavailable, the link is closed, and the core is opened again
//! from disk, after a pause that grows.
//!
//! The loop is a future that goes by the time of its runtime, and opens its database and reads the wall clock through what
//! it is given. So a simulation runs many of them on one thread under a time of its own.

mod clock;
mod pace;
mod queue;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use feiqian_protocol::canary::{Canary, planted};
use feiqian_protocol::code::VoucherKey;
use feiqian_protocol::frame::Frame;
use feiqian_protocol::limits::{INPUT_QUEUE_MAX, INPUTS_PER_STEP_MAX};
use feiqian_protocol::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::clock::Clock;
pub use self::clock::WallClock;
use self::pace::Pace;
use self::queue::Message;
pub use self::queue::{Answer, CoreQueue, NoAnswer, Request};
use crate::core::NodeCore;
use crate::io::{Identity, Input, LinkId, Now, Output, Settings, Ticket};
use crate::link::LinkHandle;
use crate::store::StoreError;
use crate::tls::CertificateTime;

/// The pause before the core is opened again, the first time and at most.
const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(100);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Opens the node's database, again after every step that failed.
pub type OpenDatabase = Box<dyn FnMut() -> rusqlite::Result<rusqlite::Connection> + Send>;

/// What the loop needs.
pub struct Options {
    /// Opens the database.
    pub database: OpenDatabase,
    /// Who this node is.
    pub identity: Identity,
    /// The core's settings.
    pub settings: Settings,
    /// The wall clock.
    pub clock: WallClock,
    /// What is told of the centre's time, and of this node's certificate.
    pub certificates: CertificateTime,
}

/// Answers of a step, to those who wait for them.
type Answers = Vec<(oneshot::Sender<Answer>, Answer)>;

/// Hands out what the core answers, on the runtime of those who asked: to be woken by another thread takes a system call, and
/// so it is one for all answers of a step.
async fn hand_out(mut answers: mpsc::UnboundedReceiver<Answers>) {
    while let Some(step) = answers.recv().await {
        for (reply, answer) in step {
            // Who asked may have gone; it will ask again with the same key.
            let _ = reply.send(answer);
        }
    }
}

/// The core's loop, before it runs.
pub struct CoreLoop {
    queue: CoreQueue,
    driver: Driver,
    answers: mpsc::UnboundedReceiver<Answers>,
    report_open: oneshot::Sender<Result<(), StoreError>>,
    opened: Option<oneshot::Receiver<Result<(), StoreError>>>,
}

impl CoreLoop {
    /// Prepares it; nothing is opened yet.
    pub fn new(options: Options) -> Self {
        let (sender, messages) = mpsc::channel(INPUT_QUEUE_MAX);
        let (report_open, opened) = oneshot::channel();
        let (answered, answers) = mpsc::unbounded_channel();
        let driver = Driver {
            clock: Clock::new(&options.clock),
            options,
            messages,
            taken: VecDeque::new(),
            open: Arc::default(),
            in_session: Arc::default(),
            campus_version: 0,
            voucher_keys: watch::Sender::new(Arc::default()),
            link: None,
            waiting: BTreeMap::new(),
            answered,
            answers: Vec::new(),
            tickets: 0,
        };
        Self { queue: CoreQueue(sender), driver, answers, report_open, opened: Some(opened) }
    }

    /// The way to the core.
    pub fn queue(&self) -> CoreQueue {
        self.queue.clone()
    }

    /// True while the core is open.
    pub fn open_flag(&self) -> Arc<AtomicBool> {
        self.driver.open.clone()
    }

    /// True while the core is in session with the centre.
    pub fn session_flag(&self) -> Arc<AtomicBool> {
        self.driver.in_session.clone()
    }

    /// What vouchers of codes are verified by, as the campus configuration has it.
    pub fn voucher_keys(&self) -> watch::Receiver<Arc<[VoucherKey]>> {
        self.driver.voucher_keys.subscribe()
    }

    /// Told once how the first opening went; `None` where somebody is told already.
    pub const fn opened(&mut self) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        self.opened.take()
    }

    /// Runs until told to stop, on the thread that polls it: a step occupies that thread while it lasts. Dropped, it is a
    /// process that was killed: whatever the database has not committed is gone.
    pub async fn run(self) {
        // The queue ends with its users, of which this is none.
        drop(self.queue);
        tokio::join!(self.driver.run(self.report_open), hand_out(self.answers));
    }
}

/// The running thread.
pub struct CoreThread {
    queue: CoreQueue,
    open: Arc<AtomicBool>,
    in_session: Arc<AtomicBool>,
    voucher_keys: watch::Receiver<Arc<[VoucherKey]>>,
    opened: Option<oneshot::Receiver<Result<(), StoreError>>>,
    ended: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl CoreThread {
    /// Starts it. It opens the core at once, or with a driven clock when the first time comes.
    ///
    /// # Errors
    /// Where the system gives no thread.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, which is where answers are handed out.
    pub fn start(options: Options) -> std::io::Result<Self> {
        let CoreLoop { queue, driver, answers, report_open, opened } = CoreLoop::new(options);
        tokio::spawn(hand_out(answers));
        let (report_end, ended) = oneshot::channel();
        let (open, in_session) = (driver.open.clone(), driver.in_session.clone());
        let voucher_keys = driver.voucher_keys.subscribe();
        // Its timers are its own: on the runtime of another thread each would wake that one.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("core".to_owned()).spawn(move || {
            runtime.block_on(driver.run(report_open));
            drop(report_end);
        })?;
        Ok(Self { queue, open, in_session, voucher_keys, opened, ended, thread: Some(thread) })
    }

    /// The way to the core.
    pub fn queue(&self) -> CoreQueue {
        self.queue.clone()
    }

    /// True while the core is open.
    pub fn open_flag(&self) -> Arc<AtomicBool> {
        self.open.clone()
    }

    /// True while the core is in session with the centre.
    pub fn session_flag(&self) -> Arc<AtomicBool> {
        self.in_session.clone()
    }

    /// What vouchers of codes are verified by, as the campus configuration has it.
    pub fn voucher_keys(&self) -> watch::Receiver<Arc<[VoucherKey]>> {
        self.voucher_keys.clone()
    }

    /// Waits until the core was opened for the first time.
    ///
    /// # Errors
    /// Why it cannot be opened; `None` where the thread ended.
    pub async fn opened(&mut self) -> Result<(), Option<StoreError>> {
        match self.opened.take() {
            None => Ok(()),
            Some(opened) => opened.await.map_err(|_| None)?.map_err(Some),
        }
    }

    /// Waits until the thread ends, which it does by itself only where there is a bug.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.ended).await;
    }

    /// Ends it: closes the database, which checkpoints it. False where the thread had panicked.
    pub async fn stop(mut self) -> bool {
        self.queue.stop().await;
        if !self.ended.is_terminated() {
            self.ended().await;
        }
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

/// Adds an input to those of a step. A loss that was reported goes first, but for the link that tells of it: whoever shows the card
/// in the same step is refused.
fn line_up(inputs: &mut Vec<Input>, input: Input) {
    let at = match &input {
        Input::Frame(_, Frame::LossNotice(_)) => {
            let is_link = |input: &Input| matches!(input, Input::LinkUp(_) | Input::LinkDown(_));
            inputs.iter().rposition(is_link).map_or(0, |at| at + 1)
        }
        _ => inputs.len(),
    };
    inputs.insert(at, input);
}

/// The clocks at the time when a core was opened.
struct Opened {
    at: Instant,
    wall: Timestamp,
}

/// What a wait ended with.
enum Taken {
    Messages,
    Timeout,
    /// Nobody is left who could send.
    Closed,
}

/// Set while one is told to stop.
struct Stopped;

struct Driver {
    options: Options,
    messages: mpsc::Receiver<Message>,
    /// Taken from the queue and not yet looked at.
    taken: VecDeque<Message>,
    open: Arc<AtomicBool>,
    in_session: Arc<AtomicBool>,
    /// The version of the campus configuration that the keys are from.
    campus_version: u32,
    voucher_keys: watch::Sender<Arc<[VoucherKey]>>,
    clock: Clock,
    link: Option<(LinkId, LinkHandle)>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Answer>>,
    /// Answers of this step, and where they go with its end.
    answers: Answers,
    answered: mpsc::UnboundedSender<Answers>,
    tickets: u64,
}

impl Driver {
    async fn run(mut self, report_open: oneshot::Sender<Result<(), StoreError>>) {
        let mut report_open = Some(report_open);
        let mut pause = REOPEN_PAUSE_MIN;
        if self.await_clock().await.is_err() {
            return;
        }
        loop {
            match self.open_core() {
                Ok(core) => {
                    self.tell_voucher_keys(&core);
                    self.open.store(true, Ordering::Relaxed);
                    if let Some(report) = report_open.take() {
                        // Nobody may listen any more where the process is about to stop.
                        let _ = report.send(Ok(()));
                    }
                    let opened = Instant::now();
                    let result = self.drive(core).await;
                    self.open.store(false, Ordering::Relaxed);
                    self.in_session.store(false, Ordering::Relaxed);
                    let Err(error) = result else { return };
                    tracing::error!(error = %Chain(&error), "a step failed; the core is opened again from disk");
                    if opened.elapsed() > REOPEN_PAUSE_MAX {
                        pause = REOPEN_PAUSE_MIN;
                    }
                }
                Err(error) => match report_open.take() {
                    Some(report) => {
                        let _ = report.send(Err(error));
                        return;
                    }
                    None => tracing::error!(error = %Chain(&error), "the core cannot be opened"),
                },
            }
            if self.refuse_for(pause).await.is_err() {
                return;
            }
            pause = (pause * 2).min(REOPEN_PAUSE_MAX);
        }
    }

    fn open_core(&mut self) -> Result<NodeCore, StoreError> {
        let connection = (self.options.database)()?;
        NodeCore::open(connection, self.options.identity.clone(), self.options.settings)
    }

    /// With a driven clock, waits for the first time; the message stays first in line, so that it is acknowledged by the
    /// open core.
    async fn await_clock(&mut self) -> Result<(), Stopped> {
        while matches!(self.clock, Clock::Driven(None)) {
            match self.next(None).await? {
                Some(Message::Clock(to, reply)) => {
                    self.clock.set(to);
                    self.taken.push_front(Message::Clock(to, reply));
                }
                Some(message) => self.refuse(message)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Gives the core what comes, until told to stop.
    async fn drive(&mut self, mut core: NodeCore) -> Result<(), StoreError> {
        let opened = Opened { at: Instant::now(), wall: self.clock.read() };
        let mut inputs = Vec::new();
        let mut pace = Pace::default();
        loop {
            let due = core.next_timer();
            let wait = due.map(|due| Duration::from_millis(due.saturating_sub(self.now(&opened).mono_ms)));
            if self.taken.is_empty() && matches!(self.take(wait).await, Taken::Closed) {
                return Ok(());
            }
            self.take_what_came();
            let allowed = pace.room(self.taken.iter().any(Message::is_waited_for), Instant::now());
            let mut room = allowed;
            let mut bulk = VecDeque::new();
            while inputs.len() < INPUTS_PER_STEP_MAX
                && let Some(message) = self.taken.pop_front()
            {
                if matches!(message, Message::Clock(..) | Message::Stop) {
                    inputs.extend(
                        std::mem::take(&mut bulk).into_iter().filter_map(|message| self.input(message)),
                    );
                }
                match message {
                    message if room == 0 && message.bulk() > 0 => bulk.push_back(message),
                    Message::Stop => return self.step(&mut core, &opened, &mut inputs),
                    Message::Clock(to, reply) => {
                        // What came before goes by the time before.
                        self.step(&mut core, &opened, &mut inputs)?;
                        let in_force = self.clock.set(to);
                        inputs.push(Input::Timer);
                        let result = self.step(&mut core, &opened, &mut inputs);
                        // The time holds even where the step failed.
                        let _ = reply.send(in_force);
                        result?;
                    }
                    message => {
                        room = room.saturating_sub(message.bulk());
                        if let Some(input) = self.input(message) {
                            line_up(&mut inputs, input);
                        }
                    }
                }
            }
            pace.stepped(allowed, !bulk.is_empty());
            bulk.append(&mut self.taken);
            self.taken = bulk;
            if due.is_some_and(|due| due <= self.now(&opened).mono_ms) {
                inputs.push(Input::Timer);
            }
            self.step(&mut core, &opened, &mut inputs)?;
        }
    }

    /// What a message means to the core; nothing where it is of a link that was replaced.
    fn input(&mut self, message: Message) -> Option<Input> {
        match message {
            Message::Ask(request, reply) => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, reply);
                Some(match request {
                    Request::Balance(presented) => Input::Balance(ticket, presented),
                    Request::Pin(tap) => Input::Pin(ticket, tap),
                    Request::PinToShow(card) => Input::PinToShow(ticket, card),
                    Request::Reversal(request) => Input::Reversal(ticket, request),
                    Request::Purse(terminal, request) => Input::Purse(ticket, terminal, request),
                    Request::Setting(request) => Input::Setting(ticket, request),
                    Request::Status => Input::Status(ticket),
                    Request::Tap(request) => Input::Tap(ticket, request),
                })
            }
            Message::Frame(link, frame, _permit) => {
                self.is_current(link).then_some(Input::Frame(link, frame))
            }
            Message::LinkDown(link) if self.is_current(link) => {
                self.link = None;
                Some(Input::LinkDown(link))
            }
            Message::LinkUp(link, handle) => {
                if let Some((_, older)) = self.link.replace((link, handle)) {
                    older.close("replaced by a newer connection");
                }
                Some(Input::LinkUp(link))
            }
            Message::LinkDown(_) | Message::Clock(..) | Message::Stop => None,
        }
    }

    fn step(
        &mut self,
        core: &mut NodeCore,
        opened: &Opened,
        inputs: &mut Vec<Input>,
    ) -> Result<(), StoreError> {
        if inputs.is_empty() {
            return Ok(());
        }
        let mut outputs = Vec::new();
        let stepped = core.step(self.now(opened), std::mem::take(inputs), &mut outputs);
        if stepped.is_err() && !planted(Canary::FailedStepAnswers) {
            return stepped;
        }
        self.tell_voucher_keys(core);
        self.in_session.store(core.in_session(), Ordering::Relaxed);
        self.options.certificates.set_expired(core.certificate_expired());
        // A driven clock is the centre's, too, and no time that certificates live by.
        if !matches!(self.options.clock, WallClock::Driven) {
            self.options.certificates.centre_signed(core.centre_time());
        }
        for output in outputs {
            self.release(output);
        }
        if !self.answers.is_empty() {
            // Nobody takes them where the process is about to stop.
            let _ = self.answered.send(std::mem::take(&mut self.answers));
        }
        stepped
    }

    /// Tells those who check codes of a new campus configuration.
    fn tell_voucher_keys(&mut self, core: &NodeCore) {
        let (version, keys) = core.voucher_keys();
        if version != self.campus_version {
            self.campus_version = version;
            self.voucher_keys.send_replace(keys.into());
        }
    }

    fn release(&mut self, output: Output) {
        match output {
            Output::Balance(ticket, view) => self.answer(ticket, Answer::Balance(view)),
            Output::CloseLink(link, reason) => {
                if let Some((current, handle)) = &self.link
                    && *current == link
                {
                    handle.close(&reason);
                }
            }
            Output::Decided { ticket, decision, repeat, receipt } => {
                self.answer(ticket, Answer::Decided { decision, repeat, receipt });
            }
            Output::PinGeneration(ticket, generation) => {
                self.answer(ticket, Answer::PinGeneration(generation));
            }
            Output::PinToShow(ticket, pin) => self.answer(ticket, Answer::PinToShow(pin)),
            Output::Refused(ticket, error) => self.answer(ticket, Answer::Refused(error)),
            Output::Send(link, frame) => {
                if let Some((current, handle)) = &self.link
                    && *current == link
                {
                    handle.send(frame);
                }
            }
            Output::Purse(ticket, done) => self.answer(ticket, Answer::Purse(done)),
            Output::Setting(ticket, done) => self.answer(ticket, Answer::Setting(done)),
            Output::Status(ticket, status) => self.answer(ticket, Answer::Status(status)),
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(reply) = self.waiting.remove(&ticket) {
            self.answers.push((reply, answer));
        }
    }

    /// Refuses everything for a while, the core being closed.
    async fn refuse_for(&mut self, pause: Duration) -> Result<(), Stopped> {
        self.waiting.clear();
        if let Some((_, handle)) = self.link.take() {
            handle.close("the node's core is opened again");
        }
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.next(Some(left)).await? {
                Some(message) => self.refuse(message)?,
                None if left.is_zero() => return Ok(()),
                None => {}
            }
        }
    }

    fn refuse(&mut self, message: Message) -> Result<(), Stopped> {
        match message {
            // Dropping the sender tells who waits.
            Message::Ask(..) | Message::Frame(..) | Message::LinkDown(_) => {}
            Message::Clock(to, reply) => {
                let _ = reply.send(self.clock.set(to));
            }
            Message::LinkUp(_, handle) => handle.close("the node's core is not open"),
            Message::Stop => return Err(Stopped),
        }
        Ok(())
    }

    /// The next message, or `None` after waiting for this long.
    async fn next(&mut self, wait: Option<Duration>) -> Result<Option<Message>, Stopped> {
        if self.taken.is_empty() && matches!(self.take(wait).await, Taken::Closed) {
            return Err(Stopped);
        }
        Ok(self.taken.pop_front())
    }

    /// Waits for messages and takes those that are there.
    async fn take(&mut self, wait: Option<Duration>) -> Taken {
        let mut batch = Vec::new();
        let receive = self.messages.recv_many(&mut batch, INPUTS_PER_STEP_MAX);
        let count = match wait {
            None => Some(receive.await),
            Some(wait) => tokio::time::timeout(wait, receive).await.ok(),
        };
        self.taken.extend(batch);
        match count {
            None => Taken::Timeout,
            Some(0) => Taken::Closed,
            Some(_) => Taken::Messages,
        }
    }

    /// Takes what has come while something taken before was left, which it may go before.
    fn take_what_came(&mut self) {
        while self.taken.len() < INPUTS_PER_STEP_MAX
            && let Ok(message) = self.messages.try_recv()
        {
            self.taken.push_back(message);
        }
    }

    fn is_current(&self, link: LinkId) -> bool {
        self.link.as_ref().is_some_and(|(current, _)| *current == link)
    }

    fn now(&self, opened: &Opened) -> Now {
        let mono_ms = u64::try_from(opened.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = self.clock.read();
        let elapsed_ms = match self.clock {
            Clock::Hosted(_) | Clock::System => mono_ms,
            Clock::Driven(_) => u64::try_from(wall.ms_since(opened.wall)).unwrap_or(0),
        };
        Now { mono_ms, wall, elapsed_ms }
    }
}

/// An error and what caused it, in one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
