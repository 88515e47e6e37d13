//! The middleware: how a command gets to a card in a PC/SC reader, and its answer back.
//!
//! A link that drops in the middle of a command looks like success with an empty or a short answer, so that the length of
//! every answer is judged where it is decoded, and what cannot be judged counts as unknown.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use feiqian_protocol::purse::apdu::{ANSWER_BYTES_MAX, split_answer};
use feiqian_protocol::purse::status::StatusWord;
use feiqian_protocol::purse::touch::Link;
use pcsc::{Card, Context, Disposition, Protocols, ReaderState, Scope, ShareMode, State};

use crate::slot::Watch;

/// Parts that an answer of T=0 may be fetched in.
const PARTS_MAX: usize = 8;

/// How often somebody who waits for a card looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Why there is no card.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoCard {
    /// None was put onto the reader in time.
    #[error("no card was put onto the reader")]
    Absent,
    /// No such reader, or no middleware.
    #[error("the reader is not there: {0}")]
    Reader(pcsc::Error),
    /// There is a card, and it does not start.
    #[error("the card does not start: {0}")]
    Mute(pcsc::Error),
}

/// The readers that there are.
///
/// # Errors
/// Where the middleware does not run.
pub fn readers() -> Result<Vec<String>, pcsc::Error> {
    let context = Context::establish(Scope::User)?;
    match context.list_readers_owned() {
        Ok(readers) => Ok(readers.iter().map(|name| name.to_string_lossy().into_owned()).collect()),
        Err(pcsc::Error::NoReadersAvailable) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A card that is in a reader, for this process alone; it is reset when this is dropped.
pub struct Inserted<'a> {
    card: Option<Card>,
    watch: &'a Watch,
}

/// Waits for a card until `wait` is over, or until nobody waits for it any more.
///
/// # Errors
/// [`NoCard`].
pub fn insert<'a>(reader: &CStr, wait: Duration, watch: &'a Watch) -> Result<Inserted<'a>, NoCard> {
    let context = Context::establish(Scope::User).map_err(NoCard::Reader)?;
    let deadline = Instant::now() + wait;
    loop {
        let connected = {
            // A card may be silent from its first byte on.
            let _sent = watch.transmitting();
            context.connect(reader, ShareMode::Exclusive, Protocols::ANY)
        };
        match connected {
            Ok(card) => return Ok(Inserted { card: Some(card), watch }),
            Err(pcsc::Error::NoSmartcard | pcsc::Error::RemovedCard) => {}
            // Somebody else has the card, or it is on its way in or out.
            Err(error) if Instant::now() >= deadline => {
                return Err(match error {
                    pcsc::Error::UnknownReader | pcsc::Error::ReaderUnavailable => NoCard::Reader(error),
                    _ => NoCard::Mute(error),
                });
            }
            Err(_) => {}
        }
        if Instant::now() >= deadline || watch.is_abandoned() {
            return Err(NoCard::Absent);
        }
        // A mute card is present all the time: then this returns at once.
        let mut states = [ReaderState::new(reader.to_owned(), State::EMPTY)];
        match context.get_status_change(LOOK, &mut states) {
            Ok(()) => std::thread::sleep(LOOK / 4),
            Err(pcsc::Error::Timeout) => {}
            Err(error) => return Err(NoCard::Reader(error)),
        }
    }
}

impl Link for Inserted<'_> {
    fn transmit(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        let card = self.card.as_ref()?;
        let watch = self.watch;
        let answer = exchange(command, &mut |command| {
            let mut buffer = [0; ANSWER_BYTES_MAX];
            let _sent = watch.transmitting();
            card.transmit(command, &mut buffer).ok().map(<[u8]>::to_vec)
        });
        if answer.is_none() {
            self.card = None;
        }
        answer
    }
}

impl Drop for Inserted<'_> {
    fn drop(&mut self) {
        if let Some(card) = self.card.take() {
            let _sent = self.watch.transmitting();
            // A card that is gone cannot be reset.
            let _ = card.disconnect(Disposition::ResetCard);
        }
    }
}

/// A command and its answer, where the card may say that the answer is to be fetched (61xx), or that it wants another Le (6Cxx), as
/// cards and SAMs do in T=0. Neither means that a command was executed twice.
fn exchange(command: &[u8], send: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut answer = send(command)?;
    if let Some((StatusWord::WrongLe(length), [])) = split_answer(&answer) {
        let mut again = command.to_vec();
        // The last byte is Le, of every command here that can be answered so.
        *again.last_mut()? = length;
        answer = send(&again)?;
    }
    let mut data = Vec::new();
    for _ in 0..PARTS_MAX {
        match split_answer(&answer) {
            Some((StatusWord::More(length), part)) => {
                data.extend_from_slice(part);
                answer = send(&[0x00, 0xC0, 0x00, 0x00, length])?;
            }
            _ if data.is_empty() => return Some(answer),
            Some(_) => return Some([data, answer].concat()),
            None => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one after another, with what each must be the answer to.
    fn play(command: &[u8], script: &[(&[u8], &[u8])]) -> Option<Vec<u8>> {
        let mut script = script.iter();
        let answer = exchange(command, &mut |sent| {
            let (expected, answer) = script.next().expect("another command");
            assert_eq!(sent, *expected);
            Some(answer.to_vec())
        });
        assert!(script.next().is_none());
        answer
    }

    #[test]
    fn what_t0_makes_of_an_answer_is_put_together() {
        let balance = [0x80, 0x5C, 0x00, 0x02, 0x04];
        assert_eq!(play(&balance, &[(&balance, &[1, 2, 3, 4, 0x90, 0])]), Some(vec![1, 2, 3, 4, 0x90, 0]));
        let fetched = [(&balance[..], &[0x61, 4][..]), (&[0, 0xC0, 0, 0, 4], &[1, 2, 3, 4, 0x90, 0])];
        assert_eq!(play(&balance, &fetched), Some(vec![1, 2, 3, 4, 0x90, 0]));
        let parts = [
            (&balance[..], &[0x61, 2][..]),
            (&[0, 0xC0, 0, 0, 2], &[1, 2, 0x61, 2]),
            (&[0, 0xC0, 0, 0, 2], &[3, 4, 0x90, 0]),
        ];
        assert_eq!(play(&balance, &parts), Some(vec![1, 2, 3, 4, 0x90, 0]));
        let asked = [0x80, 0x5C, 0x00, 0x02, 0x08];
        assert_eq!(
            play(&asked, &[(&asked, &[0x6C, 4]), (&balance, &[1, 2, 3, 4, 0x90, 0])]),
            Some(vec![1, 2, 3, 4, 0x90, 0])
        );
    }

    #[test]
    fn an_answer_that_never_ends_or_was_cut_is_none() {
        let more = |_: &[u8]| Some(vec![0x61, 0]);
        assert_eq!(exchange(&[0x80, 0x5C, 0, 2, 4], &mut { more }), None);
        // Empty: for the decoder to judge.
        assert_eq!(exchange(&[0x80, 0x5C, 0, 2, 4], &mut |_| Some(Vec::new())), Some(Vec::new()));
        let mut turn = 0;
        let cut = exchange(&[0x80, 0x5C, 0, 2, 4], &mut |_| {
            turn += 1;
            Some(if turn == 1 { vec![1, 0x61, 1] } else { Vec::new() })
        });
        assert_eq!(cut, None);
    }
}
