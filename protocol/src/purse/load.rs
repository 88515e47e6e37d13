//! A load (圈存) at a terminal that reaches the centre, step by step; also collection (领款), which is a load from the own account.
//!
//! ```text
//! (VERIFY PIN) -> INITIALIZE -> centre: checks MAC1, journal, MAC2 -> CREDIT -> centre: checks the TAC
//! ```
//!
//! The terminal holds no key: it carries what the card and the centre say to each other. The journal is the centre's.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::apdu::{AnswerError, Command, LoadBegun, data, tac};
use super::identify::{Event, Identified};
use super::profile::{Misfit, in_time};
use super::values::{CardSerial, CardTime, Mac, PurseFen, TerminalNumber};

/// Index of the PIN key of our cards.
pub const PIN_KEY: u8 = 0;

/// What is to be loaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadOrder {
    /// Fen, above zero.
    pub amount: PurseFen,
    /// At which terminal.
    pub terminal: TerminalNumber,
    /// The terminal's time.
    pub time: CardTime,
    /// The card PIN, 2 to 6 bytes, on cards that want one before a load.
    pub pin: Option<Vec<u8>>,
}

/// What the centre is asked: may this card have this amount?
#[derive(Clone, Copy, Debug, Decode, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct LoadRequest {
    /// The card.
    #[n(0)]
    pub serial: CardSerial,
    /// Fen.
    #[n(1)]
    pub amount: PurseFen,
    /// Where.
    #[n(2)]
    pub terminal: TerminalNumber,
    /// What the card said.
    #[n(3)]
    pub begun: LoadBegun,
}

/// What is to be done next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoadStep {
    /// Send this to the card.
    Transmit(Command),
    /// Ask the centre; [`Load::authorized`] or [`Load::refused`] takes its answer.
    Ask(LoadRequest),
    /// It is over.
    Done(LoadEnd),
}

/// How a load ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LoadEnd {
    /// Credited; the centre is to check the TAC before it believes that.
    Credited {
        /// For the centre.
        tac: Mac,
    },
    /// Nothing was credited.
    Refused(LoadRefusal),
    /// CREDIT was sent, and what became of it is not known.
    Unknown(Option<AnswerError>),
}

/// Why nothing was credited.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LoadRefusal {
    /// Zero, or more than a purse may hold.
    #[error("a load of {amount} fen on {balance} is not possible: a purse holds at most {max}")]
    Amount {
        /// Fen.
        amount: u32,
        /// On the card.
        balance: u32,
        /// Most that it may hold.
        max: u32,
    },
    /// Not as its profile, or not in its time.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The card's MAC1 is wrong: no genuine card, or something on the way.
    #[error("the card's proof (MAC1) is wrong")]
    WrongProof,
    /// The card has taken all the loads that it can.
    #[error("the card's counter is exhausted")]
    CounterExhausted,
    /// The centre said no.
    #[error("the centre refused the load")]
    Centre,
    /// The card refused, or answered what it may not.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The card went away.
    #[error("the card was taken away too early")]
    Lost,
}

/// A load under way at its terminal.
#[derive(Debug)]
pub struct Load {
    order: LoadOrder,
    identified: Identified,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Verifying,
    Beginning,
    Asking,
    Crediting,
    Over,
}

impl Load {
    /// Begins; the first thing to send.
    ///
    /// # Errors
    /// [`LoadRefusal`], before anything is sent.
    pub fn start(identified: Identified, order: LoadOrder) -> Result<(Self, Command), LoadRefusal> {
        in_time(&identified.card, order.time)?;
        let mut load = Self { order, identified, state: State::Verifying };
        let command = match &load.order.pin {
            Some(pin) => Command::VerifyPin { key: PIN_KEY, pin: pin.clone() },
            None => load.begin(),
        };
        Ok((load, command))
    }

    /// Takes what the card did.
    pub fn handle(&mut self, event: Event<'_>) -> LoadStep {
        let refused = |refusal| LoadStep::Done(LoadEnd::Refused(refusal));
        match (std::mem::replace(&mut self.state, State::Over), event) {
            (State::Verifying, Event::Answer(answer)) => match data(answer, 0) {
                Ok(_) => LoadStep::Transmit(self.begin()),
                Err(error) => refused(error.into()),
            },
            (State::Beginning, Event::Answer(answer)) => match self.begun(answer) {
                Ok(request) => {
                    self.state = State::Asking;
                    LoadStep::Ask(request)
                }
                Err(refusal) => refused(refusal),
            },
            (State::Crediting, Event::Answer(answer)) => {
                LoadStep::Done(match tac(answer, self.identified.profile.algorithm) {
                    Ok(tac) => LoadEnd::Credited { tac },
                    Err(error) => LoadEnd::Unknown(Some(error)),
                })
            }
            (State::Crediting, _) => LoadStep::Done(LoadEnd::Unknown(None)),
            _ => refused(LoadRefusal::Lost),
        }
    }

    /// The centre's yes: its time and MAC2.
    pub fn authorized(&mut self, time: CardTime, mac2: Mac) -> LoadStep {
        match std::mem::replace(&mut self.state, State::Crediting) {
            State::Asking => LoadStep::Transmit(Command::CreditForLoad { time, mac2 }),
            _ => {
                self.state = State::Over;
                LoadStep::Done(LoadEnd::Refused(LoadRefusal::Lost))
            }
        }
    }

    /// The centre's no.
    pub const fn refused(&mut self) -> LoadStep {
        self.state = State::Over;
        LoadStep::Done(LoadEnd::Refused(LoadRefusal::Centre))
    }

    const fn begin(&mut self) -> Command {
        self.state = State::Beginning;
        Command::BeginLoad {
            key: self.identified.profile.load_key,
            amount: self.order.amount,
            terminal: self.order.terminal,
            algorithm: self.identified.profile.algorithm,
        }
    }

    fn begun(&self, answer: &[u8]) -> Result<LoadRequest, LoadRefusal> {
        let profile = &self.identified.profile;
        let begun = LoadBegun::decode(answer, profile.algorithm)?;
        profile.fits_load(begun.algorithm_id, begun.key_version)?;
        let (serial, amount, terminal) =
            (self.identified.card.serial, self.order.amount, self.order.terminal);
        Ok(LoadRequest { serial, amount, terminal, begun })
    }
}
