//! Login passwords (登录密码): what a holder logs into an app with. Apart from the payment PIN in everything: nothing is paid by
//! one, no building knows it, and whoever has changed the one has not changed the other.
//!
//! As with PINs, the hash is made by whoever knows the password ([`command`], or the app's backend by the same parameters), and
//! the password comes into no core and no database. Five wrong ones in a row close an account's login for a quarter of an hour.

pub mod command;

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use feiqian_protocol::ids::{AccountId, CardNumber, Key};
use feiqian_protocol::pin::{PinGeneration, PinHash};
use feiqian_protocol::time::Timestamp;
use serde_json::json;

use crate::accounts::refused;
use crate::core::{Round, StoreError};
use crate::io::{CommandError, Reply};
use crate::pin::HashedPin;
use crate::store::holders::{self, StoredLogin};

/// Argon2id: memory in KiB, passes, lanes. The first of the settings of the OWASP Password Storage Cheat Sheet.
const ARGON2_KIB: u32 = 19 * 1024;
const ARGON2_PASSES: u32 = 2;
const ARGON2_LANES: u32 = 1;

/// Characters of a password: NIST SP 800-63B has eight at least, and 64 that must be taken.
const CHARACTERS_MIN: usize = 8;
const CHARACTERS_MAX: usize = 64;

/// Wrong ones in a row, and for how long the login is closed then.
const TRIES_MAX: u8 = 5;
const LOCKED_MS: i64 = 15 * 60_000;

/// A password as somebody typed it. It shows itself nowhere.
#[derive(Clone, Eq, PartialEq)]
pub struct LoginPassword(String);

/// Why a text is no login password. The text itself is not in the message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LoginError {
    /// Too short or too long.
    #[error("a login password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters")]
    Length,
    /// A number, such as a birthday or a payment PIN written twice.
    #[error("a login password is not made of digits alone, nor of one character")]
    Guessable,
}

impl LoginPassword {
    /// A password that somebody chooses.
    ///
    /// # Errors
    /// [`LoginError`].
    pub fn chosen(text: &str) -> Result<Self, LoginError> {
        let password = Self::typed(text)?;
        let mut characters = text.chars();
        let first = characters.next();
        if text.chars().all(|character| character.is_numeric())
            || characters.all(|other| Some(other) == first)
        {
            return Err(LoginError::Guessable);
        }
        Ok(password)
    }

    /// A password that somebody types to be let in.
    ///
    /// # Errors
    /// [`LoginError::Length`].
    pub fn typed(text: &str) -> Result<Self, LoginError> {
        if !(CHARACTERS_MIN..=CHARACTERS_MAX).contains(&text.chars().count()) {
            return Err(LoginError::Length);
        }
        Ok(Self(text.to_owned()))
    }

    /// The Argon2id hash under a salt (RFC 9106). Takes tens of milliseconds: no core calls it.
    pub fn hash(&self, salt: PinGeneration) -> PinHash {
        let params = Params::new(ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES, Some(32))
            .expect("parameters within the bounds of Argon2");
        let mut memory = vec![Block::default(); params.block_count()];
        let mut hash = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(self.0.as_bytes(), &salt.0, &mut hash, &mut memory)
            .expect("lengths within the bounds of Argon2");
        PinHash::new(hash)
    }
}

/// Shows nothing of it.
impl fmt::Debug for LoginPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginPassword(..)")
    }
}

impl Round<'_> {
    fn open_account_of(&self, card: &CardNumber) -> Result<Result<AccountId, CommandError>, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match self.settings(account)? {
            Some(settings) if settings.closed => {
                Err(CommandError { code: "closed", message: "the account is closed".to_owned() })
            }
            _ => Ok(account),
        })
    }

    /// Under which salt a password that is typed must be hashed.
    pub(crate) fn login_salt(&self, card: &CardNumber) -> Result<Reply, StoreError> {
        let account = match self.named(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match holders::login(self.db, account)? {
            Some(login) => Ok(json!({ "salt": PinGeneration(login.salt), "since": login.since })),
            None => refused("no_login", "no login password is set"),
        })
    }

    /// An operator, who has seen who it is, has the holder set one.
    pub(crate) fn set_login(
        &mut self,
        card: &CardNumber,
        login: &HashedPin,
        operator: &Key,
    ) -> Result<Reply, StoreError> {
        let account = match self.open_account_of(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        tracing::info!(%account, %operator, "a login password was set");
        self.put_login(account, login)?;
        Ok(Ok(json!({ "account": account })))
    }

    /// Whether a password is the right one.
    pub(crate) fn check_login(&mut self, card: &CardNumber, typed: &HashedPin) -> Result<Reply, StoreError> {
        let account = match self.open_account_of(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.shown_login(account, typed)?.map(|()| json!({ "account": account })))
    }

    /// The holder changes it by showing the one that there is.
    pub(crate) fn change_login(
        &mut self,
        card: &CardNumber,
        current: &HashedPin,
        login: &HashedPin,
    ) -> Result<Reply, StoreError> {
        let account = match self.open_account_of(card)? {
            Ok(account) => account,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = self.shown_login(account, current)? {
            return Ok(Err(error));
        }
        self.put_login(account, login)?;
        Ok(Ok(json!({ "account": account })))
    }

    fn shown_login(
        &mut self,
        account: AccountId,
        typed: &HashedPin,
    ) -> Result<Result<(), CommandError>, StoreError> {
        let error = |code, message: &str| Ok(Err(CommandError { code, message: message.to_owned() }));
        let Some(login) = holders::login(self.db, account)? else {
            return error("no_login", "no login password is set");
        };
        let now = self.state.time;
        if login.tries >= TRIES_MAX && now < login.tried.plus_ms(LOCKED_MS) {
            return error(
                "login_locked",
                "too many wrong login passwords; come again in a quarter of an hour",
            );
        }
        if typed.generation.0 != login.salt {
            return error("login_changed", "the login password was changed meanwhile; try again");
        }
        let right = typed.hash == login.hash;
        // Once it is open again, there are as many tries as before.
        let before = if login.tries >= TRIES_MAX { 0 } else { login.tries };
        let tries = if right { 0 } else { before + 1 };
        if tries != login.tries {
            holders::put_login(self.db, account, &StoredLogin { tries, tried: now, ..login })?;
        }
        if right { Ok(Ok(())) } else { error("wrong_login", "the login password is wrong") }
    }

    fn put_login(&mut self, account: AccountId, login: &HashedPin) -> Result<(), StoreError> {
        let stored = StoredLogin {
            salt: login.generation.0,
            hash: login.hash,
            since: self.state.time,
            tries: 0,
            tried: Timestamp(0),
        };
        holders::put_login(self.db, account, &stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_long_enough_and_no_number() {
        assert!(LoginPassword::chosen("correct horse").is_ok());
        assert!(LoginPassword::chosen("校园卡密码要八个字").is_ok());
        for (text, error) in [
            ("short", LoginError::Length),
            (&*"x1".repeat(33), LoginError::Length),
            ("20040229", LoginError::Guessable),
            ("aaaaaaaa", LoginError::Guessable),
        ] {
            assert_eq!(LoginPassword::chosen(text).unwrap_err(), error, "{text}");
        }
        assert!(LoginPassword::typed("20040229").is_ok(), "one of before may be shown");
        assert_eq!(format!("{:?}", LoginPassword::typed("correct horse")), "Ok(LoginPassword(..))");
    }
}
