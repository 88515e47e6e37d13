//! What terminals ask for.

use feiqian_node::io::{Input, Ticket};
use feiqian_protocol::ids::TerminalId;
use feiqian_protocol::pin::PinDigest;
use feiqian_protocol::tap::{Pin, ReversalRequest, TapKey, TapKind, TapRequest};

use crate::fuzz::script::Script;

/// What somebody at a terminal asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    Tap(TapRequest),
    Reversal(ReversalRequest),
}

impl Asked {
    pub(super) fn key(&self) -> &TapKey {
        match self {
            Self::Tap(tap) => &tap.key,
            Self::Reversal(reversal) => &reversal.key,
        }
    }

    pub(super) fn input(&self, ticket: Ticket) -> Input {
        match self.clone() {
            Self::Tap(tap) => Input::Tap(ticket, tap),
            Self::Reversal(reversal) => Input::Reversal(ticket, reversal),
        }
    }
}

/// A key of a tap, mostly of a terminal that there is.
fn key(script: &mut Script<'_>) -> TapKey {
    let terminal = script.pick(&["t1", "t1", "t1", "t2", "door", "t9"]);
    TapKey {
        terminal: TerminalId::new(terminal).expect("letters and digits make a name"),
        epoch: u32::from(script.rarely(8)),
        sequence: script.key(),
    }
}

/// A tap of anything.
pub(super) fn tap(script: &mut Script<'_>) -> Asked {
    let (key, card) = (key(script), script.card());
    let kind = match script.choice(5) {
        0 => TapKind::Access,
        1 => TapKind::Quantity(script.u32()),
        _ => TapKind::Amount(script.fen()),
    };
    let (generation, digest) = (script.pin(), PinDigest::new([script.byte() % 2; 32]));
    let entered = Pin::Entered { generation, digest };
    let pin = script.pick(&[Pin::Absent, Pin::Absent, entered, Pin::NotHashed]);
    Asked::Tap(TapRequest { key, card, code: None, kind, pin })
}

/// A reversal, mostly by the terminal of its tap.
pub(super) fn reversal(script: &mut Script<'_>) -> Asked {
    let (key, mut original) = (key(script), key(script));
    if !script.rarely(6) {
        original.terminal = key.terminal.clone();
    }
    let amount = script.rarely(2).then(|| script.fen());
    Asked::Reversal(ReversalRequest { key, original, amount })
}
