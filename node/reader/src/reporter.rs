//! The thread that tells the node what is over, until the node has it.
//!
//! In order, one after another; what cannot be told is tried again with growing pauses. A report that the node refuses is
//! passed by, shown in `status`, and tried again now and then: most refusals end once somebody has set the terminal up. While there
//! is nothing to tell the node is asked how it is, so that a touch finds a connection that stands.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::journal::reports::Refusal;
use crate::journal::{JournalError, JournalFile};
use crate::node::{Node, NodeError};
use crate::report::Report;

/// The first pause after the node did not take a report.
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// The longest one: a node that comes back is found this soon.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often the node is asked how it is.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How often what was refused is tried again.
const REFUSED_EVERY: Duration = Duration::from_secs(600);

/// How the node is told.
pub trait Told {
    /// Tells it; it has it when this returns.
    ///
    /// # Errors
    /// [`NodeError`].
    fn tell(&self, report: &Report) -> Result<(), NodeError>;
}

impl Told for Node {
    fn tell(&self, report: &Report) -> Result<(), NodeError> {
        self.report(report)
    }
}

/// Runs until nobody can wake it any more. Woken, it looks for reports at once.
pub fn run(node: &Node, journal: &Mutex<JournalFile>, wake: &Receiver<()>) {
    let mut pauses = Pauses::default();
    let mut refused_at = Instant::now();
    loop {
        let again = Instant::now() >= refused_at;
        let passed = pass(node, journal, again);
        let reached = match passed {
            Ok(()) => {
                if again {
                    refused_at = Instant::now() + REFUSED_EVERY;
                }
                node.ping().is_ok()
            }
            Err(Stopped::Node(error)) => {
                tracing::debug!(%error, code = error.code(), "reports wait");
                false
            }
            Err(Stopped::Journal(error)) => {
                tracing::error!(%error, "journal");
                false
            }
        };
        match wake.recv_timeout(pauses.next(reached)) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Why reports wait.
#[derive(Debug)]
enum Stopped {
    Node(NodeError),
    Journal(JournalError),
}

impl From<JournalError> for Stopped {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// Tells all that is to be told; what was refused before, too, where `again`.
fn pass(node: &impl Told, journal: &Mutex<JournalFile>, again: bool) -> Result<(), Stopped> {
    tell_all(node, journal, false)?;
    if again {
        tell_all(node, journal, true)?;
    }
    Ok(())
}

fn tell_all(node: &impl Told, journal: &Mutex<JournalFile>, refused: bool) -> Result<(), Stopped> {
    let mut after = 0;
    // Not within the condition, where the journal would stay locked while the node is told.
    loop {
        let next = lock(journal).unrecorded_after(after, refused)?;
        let Some(next) = next else { return Ok(()) };
        after = next.id;
        match node.tell(&next.report) {
            Ok(()) => lock(journal).recorded(next.id)?,
            Err(NodeError::Refused { code, message }) => {
                tracing::warn!(id = next.id, code, message, "the node refuses a report");
                lock(journal).refused(next.id, &Refusal { code, message })?;
            }
            Err(error) => return Err(Stopped::Node(error)),
        }
    }
}

fn lock(journal: &Mutex<JournalFile>) -> MutexGuard<'_, JournalFile> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long until the next look.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Pauses {
    fn next(&mut self, reached: bool) -> Duration {
        if reached {
            self.failures = 0;
            return PING_EVERY;
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        pause.min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use feiqian_protocol::purse::torn::Outcome;

    use super::*;
    use crate::journal::reports::Counts;
    use crate::journal::testing::{A, entry};

    /// Answers as it is told to, and notes what it hears.
    #[derive(Default)]
    struct Script {
        answers: RefCell<Vec<Result<(), NodeError>>>,
        heard: RefCell<Vec<Report>>,
    }

    impl Script {
        fn of(answers: impl IntoIterator<Item = Result<(), NodeError>>) -> Self {
            let mut answers: Vec<_> = answers.into_iter().collect();
            answers.reverse();
            Self { answers: RefCell::new(answers), heard: RefCell::default() }
        }
    }

    impl Told for Script {
        fn tell(&self, report: &Report) -> Result<(), NodeError> {
            self.heard.borrow_mut().push(report.clone());
            self.answers.borrow_mut().pop().expect("no more than the script has")
        }
    }

    fn journal(purchases: u32) -> (tempfile::TempDir, Mutex<JournalFile>, Vec<Report>) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = JournalFile::open(folder.path()).unwrap();
        let outcome = Outcome::Completed { tac: "0102030405060708".parse().unwrap() };
        let mut reports = Vec::new();
        for sequence in 1..=purchases {
            let id = journal.begin(&sequence.to_string(), &entry(A, sequence)).unwrap();
            journal.resolve(id, &outcome).unwrap();
            reports.extend(Report::purchase(&entry(A, sequence), &outcome));
        }
        (folder, Mutex::new(journal), reports)
    }

    fn refused() -> Result<(), NodeError> {
        Err(NodeError::Refused { code: "key_reused".into(), message: "used".into() })
    }

    #[test]
    fn reports_go_in_order_and_what_does_not_arrive_is_told_again() {
        let (_folder, journal, reports) = journal(3);
        let gone = || Err(NodeError::Unreachable("no route".into()));
        let script = Script::of([Ok(()), gone()]);
        assert!(pass(&script, &journal, true).is_err());
        assert_eq!(*script.heard.borrow(), reports[..2]);
        let busy = Err(NodeError::Later { code: "busy".into(), message: "busy".into() });
        let script = Script::of([busy]);
        assert!(pass(&script, &journal, true).is_err());
        assert_eq!(lock(&journal).report_counts().unwrap(), Counts { waiting: 2, refused: 0 });
        let script = Script::of([Ok(()), Ok(())]);
        pass(&script, &journal, true).unwrap();
        assert_eq!(*script.heard.borrow(), reports[1..]);
        pass(&Script::default(), &journal, true).unwrap();
    }

    #[test]
    fn what_is_refused_blocks_nothing_and_is_tried_again_later() {
        let (_folder, journal, reports) = journal(3);
        let script = Script::of([refused(), Ok(()), Ok(())]);
        pass(&script, &journal, false).unwrap();
        assert_eq!(*script.heard.borrow(), reports);
        assert_eq!(lock(&journal).report_counts().unwrap(), Counts { waiting: 0, refused: 1 });
        pass(&Script::default(), &journal, false).unwrap();
        pass(&Script::of([refused()]), &journal, true).unwrap();
        pass(&Script::of([Ok(())]), &journal, true).unwrap();
        assert_eq!(lock(&journal).report_counts().unwrap(), Counts { waiting: 0, refused: 0 });
    }

    #[test]
    fn pauses_grow_and_end_with_the_first_answer() {
        let mut pauses = Pauses::default();
        let seconds: Vec<u64> = (0..7).map(|_| pauses.next(false).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses.next(true), PING_EVERY);
        assert_eq!(pauses.next(false), PAUSE_FIRST);
    }
}
