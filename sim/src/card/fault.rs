//! When a card is torn out of the field, or falls silent.

use std::str::FromStr;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// Torn away before the command is executed.
    Before,
    /// Torn away after the command is executed and before it is answered.
    After,
    /// Executed, never answered, and torn away some seconds later.
    Silent,
}

/// A fault that happens once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What goes wrong.
    pub moment: Moment,
    /// The instruction at which.
    pub instruction: u8,
    /// At which of these instructions, from 1.
    pub occurrence: u32,
}

/// Instructions by name.
const INSTRUCTIONS: [(&str, u8); 11] = [
    ("select", 0xA4),
    ("read-binary", 0xB0),
    ("update-binary", 0xD6),
    ("read-record", 0xB2),
    ("verify-pin", 0x20),
    ("balance", 0x5C),
    ("initialize", 0x50),
    ("credit", 0x52),
    ("cache", 0xDC),
    ("debit", 0x54),
    ("prove", 0x5A),
];

impl FromStr for Fault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let moment = match parts.next() {
            Some("before") => Moment::Before,
            Some("after") => Moment::After,
            Some("silent") => Moment::Silent,
            _ => return Err(format!("{text:?} does not start with before:, after: or silent:")),
        };
        let name = parts.next().unwrap_or_default();
        let instruction = INSTRUCTIONS.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
        let instruction = instruction.ok_or_else(|| {
            let names: Vec<&str> = INSTRUCTIONS.iter().map(|(name, _)| *name).collect();
            format!("{name:?} is no instruction ({})", names.join(", "))
        })?;
        let occurrence = match parts.next().map(str::parse) {
            None => 1,
            Some(Ok(occurrence)) if occurrence > 0 => occurrence,
            Some(_) => return Err(format!("{text:?} does not end with a number from 1")),
        };
        match parts.next() {
            None => Ok(Self { moment, instruction, occurrence }),
            Some(_) => Err(format!("{text:?} is no fault (MOMENT:INSTRUCTION[:N])")),
        }
    }
}

/// Faults that are still to come.
#[derive(Clone, Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// From a list.
    pub const fn new(faults: Vec<Fault>) -> Self {
        Self(faults)
    }

    /// Adds one.
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The fault of this command, which is used up by it.
    pub fn at(&mut self, command: &[u8]) -> Option<Moment> {
        let instruction = *command.get(1)?;
        let mut due = None;
        for (at, fault) in self.0.iter_mut().enumerate().filter(|(_, fault)| fault.instruction == instruction)
        {
            fault.occurrence -= 1;
            if fault.occurrence == 0 && due.is_none() {
                due = Some(at);
            }
        }
        let moment = due.map(|at| self.0[at].moment);
        self.0.retain(|fault| fault.occurrence > 0);
        moment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_happens_once_at_its_turn() {
        let mut faults = Faults::new(vec!["after:debit:2".parse().unwrap(), "before:prove".parse().unwrap()]);
        let debit = [0x80, 0x54, 0x01, 0x00];
        assert_eq!(faults.at(&debit), None);
        assert_eq!(faults.at(&debit), Some(Moment::After));
        assert_eq!(faults.at(&debit), None);
        assert_eq!(faults.at(&[0x80, 0x5A]), Some(Moment::Before));
        assert_eq!(faults.at(&[0x80]), None);
    }

    #[test]
    fn a_fault_that_is_none_is_named() {
        for bad in ["debit", "after:pay", "after:debit:0", "after:debit:x", "after:debit:1:1", ""] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}
