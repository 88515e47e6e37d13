//! The machines of a touch, run over a link to a card and a journal. What a link and a journal are is the caller's.

use super::identify::{Event, Identified, Identify, IdentifyError, Step};
use super::journal::JournalEntry;
use super::load::{Load, LoadEnd, LoadOrder, LoadRefusal, LoadRequest, LoadStep};
use super::profile::CardProfiles;
use super::purchase::{Purchase, PurchaseEnd, PurchaseOrder};
use super::recovery::{Evidence, LoadProbe, Recovery, RecoveryError};
use super::sam::Sam;
use super::torn::{Outcome, resolve_purchase};
use super::values::{CardTime, Mac};

/// The way to a card.
pub trait Link {
    /// The card's answer to a command, status word included; `None` where the card or the answer is gone.
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>>;
}

/// Where entries are written down.
pub trait Journal {
    /// Why it could not be.
    type Error;

    /// Writes an entry, and returns once it is durable.
    ///
    /// # Errors
    /// Where it is not.
    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Self::Error>;
}

/// The centre, as a load asks it.
pub trait Centre {
    /// Its time and MAC2; `None` for a no.
    fn authorize(&mut self, request: &LoadRequest) -> Option<(CardTime, Mac)>;
}

/// Who the card is.
///
/// # Errors
/// [`IdentifyError`].
pub fn identify(link: &mut dyn Link, profiles: &CardProfiles) -> Result<Identified, IdentifyError> {
    let (mut identify, mut command) = Identify::start(profiles);
    loop {
        let answer = link.transmit(&command.encode());
        match identify.handle(event(answer.as_deref())) {
            Step::Transmit(next) => command = next,
            Step::Done(identified) => return identified,
            Step::Persist(_) => unreachable!("identifying writes nothing down"),
        }
    }
}

/// A purchase.
///
/// # Errors
/// The journal's; nothing has moved then.
pub fn purchase<J: Journal>(
    link: &mut dyn Link,
    sam: &mut dyn Sam,
    journal: &mut J,
    identified: Identified,
    order: PurchaseOrder,
) -> Result<PurchaseEnd, J::Error> {
    let (mut purchase, command) = match Purchase::start(identified, order, sam) {
        Ok(started) => started,
        Err(decline) => return Ok(PurchaseEnd::Declined(decline)),
    };
    let mut step = Step::Transmit(command);
    loop {
        step = match step {
            Step::Transmit(command) => {
                let answer = link.transmit(&command.encode());
                purchase.handle(event(answer.as_deref()), sam)
            }
            Step::Persist(entry) => {
                journal.persist(&entry)?;
                purchase.handle(Event::Persisted, sam)
            }
            Step::Done(end) => return Ok(end),
        };
    }
}

/// What became of a purchase that was cut.
///
/// # Errors
/// [`RecoveryError`]; the entry stays open.
pub fn recover_purchase(
    link: &mut dyn Link,
    sam: &mut dyn Sam,
    identified: Identified,
    entry: &JournalEntry,
) -> Result<Outcome, RecoveryError> {
    let profile = identified.profile.clone();
    let (recovery, command) = Recovery::purchase(identified, entry.clone())?;
    let evidence = gather(link, sam, recovery, command)?;
    Ok(resolve_purchase(entry, &profile, &evidence.seen))
}

/// What a card says of a load that was cut; the centre resolves it.
///
/// # Errors
/// [`RecoveryError`]; the entry stays open.
pub fn probe_load(
    link: &mut dyn Link,
    sam: &mut dyn Sam,
    identified: Identified,
    entry: &JournalEntry,
    probe: LoadProbe,
) -> Result<Evidence, RecoveryError> {
    let (recovery, command) = Recovery::load(identified, entry.clone(), probe)?;
    gather(link, sam, recovery, command)
}

/// A load.
pub fn load(
    link: &mut dyn Link,
    centre: &mut dyn Centre,
    identified: Identified,
    order: LoadOrder,
) -> LoadEnd {
    let (mut load, command) = match Load::start(identified, order) {
        Ok(started) => started,
        Err(refusal) => return LoadEnd::Refused(refusal),
    };
    let mut step = LoadStep::Transmit(command);
    loop {
        step = match step {
            LoadStep::Transmit(command) => {
                let answer = link.transmit(&command.encode());
                load.handle(event(answer.as_deref()))
            }
            LoadStep::Ask(request) => match centre.authorize(&request) {
                Some((time, mac2)) => load.authorized(time, mac2),
                None => return LoadEnd::Refused(LoadRefusal::Centre),
            },
            LoadStep::Done(end) => return end,
        };
    }
}

fn gather(
    link: &mut dyn Link,
    sam: &mut dyn Sam,
    mut recovery: Recovery,
    mut command: super::apdu::Command,
) -> Result<Evidence, RecoveryError> {
    loop {
        let answer = link.transmit(&command.encode());
        match recovery.handle(event(answer.as_deref()), sam) {
            Step::Transmit(next) => command = next,
            Step::Done(evidence) => return evidence,
            Step::Persist(_) => unreachable!("finding out writes nothing down"),
        }
    }
}

fn event(answer: Option<&[u8]>) -> Event<'_> {
    answer.map_or(Event::Lost, Event::Answer)
}
