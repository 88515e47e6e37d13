//! A card in software with somebody between it and the terminal, who changes what passes, and what is on the wire at all.

use feiqian_protocol::purse::apdu::Command;
use feiqian_protocol::purse::carried;
use feiqian_protocol::purse::file::LogRecord;
use feiqian_protocol::purse::journal::JournalEntry;
use feiqian_protocol::purse::key::Algorithm;
use feiqian_protocol::purse::profile::{ApplicationName, CardProfile, CardProfiles};
use feiqian_protocol::purse::purchase::{PurchaseEnd, PurchaseOrder};
use feiqian_protocol::purse::sam::SoftSam;
use feiqian_protocol::purse::torn::Outcome;
use feiqian_protocol::purse::touch::{self, Journal, Link};
use feiqian_protocol::purse::values::{CardSerial, CardTime, PurseFen, TerminalNumber};
use feiqian_sim::card::applet::{Applet, ISSUANCE_SFI};
use feiqian_sim::card::state::{CardState, Masters};

use super::script::{START, Script};

/// Purchases of a script.
const TOUCHES: usize = 4;

struct Between<'a, 'b> {
    applet: &'a mut Applet,
    script: &'a mut Script<'b>,
}

impl Link for Between<'_, '_> {
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        let mut command = command.to_vec();
        self.change(&mut command);
        let mut answer = self.applet.process(&command, self.script.u64().to_be_bytes());
        self.change(&mut answer);
        (!self.script.rarely(30)).then_some(answer)
    }
}

impl Between<'_, '_> {
    fn change(&mut self, bytes: &mut Vec<u8>) {
        match self.script.choice(24) {
            20 => bytes.truncate(self.script.choice(bytes.len() + 1)),
            21 => bytes.extend_from_slice(self.script.bytes(40)),
            22 => *bytes = self.script.bytes(64).to_vec(),
            23 if !bytes.is_empty() => {
                let at = self.script.choice(bytes.len());
                bytes[at] ^= 1 << self.script.choice(8);
            }
            _ => {}
        }
    }
}

struct Written(Option<JournalEntry>);

impl Journal for Written {
    type Error = std::convert::Infallible;

    fn persist(&mut self, entry: &JournalEntry) -> Result<(), Self::Error> {
        self.0 = Some(entry.clone());
        Ok(())
    }
}

/// Purchases of a card, and finding out what became of them: whatever somebody makes of the messages, nothing is taken for paid
/// that the card has not debited.
pub fn card(data: &[u8]) {
    wire(data);
    let mut script = Script::new(data);
    let serial: CardSerial = "31000000202600012345".parse().expect("20 digits");
    let algorithm = script.pick(&[Algorithm::Des, Algorithm::AesCmac]);
    let mut state = CardState::issue(&Masters::example(), serial, algorithm);
    state.balance = PurseFen::new(5_000).expect("it fits into a purse");
    let mut applet = Applet::new(state);
    let profile = CardProfile {
        first: serial,
        last: serial,
        algorithm,
        algorithm_id: None,
        purchase_key: 1,
        purchase_key_version: 1,
        load_key: 1,
        load_key_version: 1,
        log_counter: Default::default(),
        balance_fen_max: PurseFen::new(100_000).expect("it fits into a purse"),
        record: None,
        issuance: Some(ISSUANCE_SFI),
    };
    let profiles = CardProfiles::new(ApplicationName::feiqian(), vec![profile]).expect("one range");
    let mut sam = SoftSam::new(TerminalNumber([0, 0, 0, 0, 1, 23]), Masters::example().purchase, 1, None);
    let time = CardTime::at(START, 480).expect("a time of our years");
    for _ in 0..TOUCHES {
        let amount = PurseFen::new(1 + u32::from(script.byte()) * 8).expect("it fits into a purse");
        let before = applet.state.balance.get();
        let mut written = Written(None);
        let mut link = Between { applet: &mut applet, script: &mut script };
        let Ok(identified) = touch::identify(&mut link, &profiles) else { continue };
        assert_eq!(carried::read(&mut link, &identified), None, "nobody has signed anything for this card");
        let order = PurchaseOrder { amount, time, record: None };
        let Ok(end) = touch::purchase(&mut link, &mut sam, &mut written, identified, order);
        applet.reset();
        let paid = before - applet.state.balance.get() == amount.get();
        match (end, written.0) {
            (PurchaseEnd::Approved(_), _) => assert!(paid, "approved, and the card has not debited itself"),
            (PurchaseEnd::Declined(_), _) => assert!(!paid, "declined, and the card has debited itself"),
            (PurchaseEnd::Unknown(_), written) => {
                let entry = written.expect("it is written down before DEBIT is sent");
                let mut link = Between { applet: &mut applet, script: &mut script };
                let found = touch::identify(&mut link, &profiles).ok().and_then(|identified| {
                    touch::recover_purchase(&mut link, &mut sam, identified, &entry).ok()
                });
                if matches!(found, Some(Outcome::Completed { .. })) {
                    assert!(paid, "completed, and the card has not debited itself");
                }
            }
        }
        applet.reset();
    }
}

/// Commands and records as bytes.
fn wire(data: &[u8]) {
    if let Ok(command) = Command::decode(data) {
        let again = Command::decode(&command.encode()).expect("what was written is read");
        assert_eq!(again, command);
    }
    if let Some(record) = LogRecord::decode(data) {
        assert_eq!(LogRecord::decode(&record.encode()), Some(record));
    }
}
