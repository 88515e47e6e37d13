//! A phone for trying virtual cards out: a key in a file, the voucher that the centre gave for it, and fresh codes.
//!
//! A real phone keeps its key in hardware and gets its vouchers from the backend of its app, which asks the centre's local
//! socket as `fetch` does here. What a terminal's scanner would read is printed, and drawn where wanted.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};
use feiqian_protocol::chain::{hex, unhex};
use feiqian_protocol::code::{
    Code, PhoneAlgorithm, PhoneSecret, ShortCode, ShortSecret, SignedReceipt, SignedVoucher,
};
use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::control::Client;
use feiqian_reconcile::io::Command;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What to do with a phone.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Makes a key, and prints its public half for `feiqian-reconcile virtual-card activate --key`.
    New {
        /// Where the phone is kept.
        file: PathBuf,
        /// p256 or ed25519.
        #[arg(long, default_value = "p256")]
        algorithm: PhoneAlgorithm,
    },
    /// Prints the number of the phone's virtual card.
    Card {
        /// Where the phone is kept.
        file: PathBuf,
    },
    /// Asks the centre of a data directory for what short codes are made by and for a voucher, as an app's backend does, and keeps them
    /// with the centre's time.
    Fetch {
        /// Where the phone is kept.
        file: PathBuf,
        /// The data directory of the centre.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// How long the voucher is to be good; three days where it is not given, or one where it holds money.
        #[arg(long)]
        minutes: Option<u16>,
        /// Wants money held for it, by which it pays once where nobody can be asked: at most so many yuan.
        #[arg(long, value_name = "YUAN", num_args = 0..=1, default_missing_value = "20.00", value_parser = Fen::parse_yuan)]
        pay: Option<Fen>,
    },
    /// Brings the receipt that a terminal showed to the centre of a data directory, as an app's backend does. What the voucher did not
    /// spend is free at once, and the next fetch gets another one.
    Receipt {
        /// Where the phone is kept.
        file: PathBuf,
        /// The data directory of the centre.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Its 240 digits, as scanned.
        digits: String,
    },
    /// Prints a short code, for a building that has a link to the centre: twenty digits, good for one tap of this half minute or the next.
    Short {
        /// Where the phone is kept.
        file: PathBuf,
    },
    /// Prints a fresh code. Each is another one, and good for 40 seconds.
    Code {
        /// Where the phone is kept.
        file: PathBuf,
        /// As a scanner types it, or shorter for whoever reads by camera.
        #[arg(long, value_enum, default_value = "digits")]
        form: Form,
        /// Draws it, too.
        #[arg(long)]
        qr: bool,
    },
}

/// In which form a code is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Form {
    /// 476 digits.
    Digits,
    /// 260 characters.
    Base64url,
}

/// What a phone keeps.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Phone {
    algorithm: String,
    secret: String,
    voucher: Option<String>,
    /// The number of the last voucher that has paid.
    #[serde(default)]
    spent: Option<u32>,
    /// The counter of the last code under this voucher.
    counter: u16,
    /// How far the centre's clock was ahead of ours when the voucher came.
    ahead_ms: i64,
    /// What short codes are made by: the alias, and the secret in hexadecimal.
    #[serde(default)]
    short: Option<(u64, String)>,
}

impl Phone {
    /// A new phone.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn new(algorithm: PhoneAlgorithm) -> Result<Self> {
        loop {
            let mut random = [0; 32];
            getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
            if PhoneSecret::new(algorithm, &random).is_some() {
                let algorithm = algorithm.to_string();
                let secret = hex(&random);
                return Ok(Self {
                    algorithm,
                    secret,
                    voucher: None,
                    spent: None,
                    counter: 0,
                    ahead_ms: 0,
                    short: None,
                });
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no phone", file.display()))
    }

    /// Writes it, whole or not at all, for its owner alone.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut new = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
        new.write_all(&serde_json::to_vec(self)?)?;
        new.as_file().sync_all()?;
        new.persist(file).with_context(|| file.display().to_string())?;
        Ok(())
    }

    fn secret(&self) -> Result<PhoneSecret> {
        let random = unhex(&self.secret).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let secret = random.and_then(|random| PhoneSecret::new(self.algorithm.parse().ok()?, &random));
        secret.context("the file has no secret key")
    }

    /// Its public key in hexadecimal.
    ///
    /// # Errors
    /// Where its key does not read back.
    pub fn key(&self) -> Result<String> {
        Ok(hex(self.secret()?.key().as_bytes()))
    }

    /// Its virtual card.
    ///
    /// # Errors
    /// Where its key does not read back.
    pub fn card(&self) -> Result<CardNumber> {
        Ok(CardNumber::of_phone(&self.secret()?.key()))
    }

    /// Keeps a voucher, as the centre answered it at a time by our clock.
    ///
    /// # Errors
    /// Where it is none, or for another phone.
    pub fn keep(&mut self, answer: &Value, now_ms: i64) -> Result<()> {
        let text = answer.get("voucher").and_then(Value::as_str).unwrap_or_default();
        let voucher = SignedVoucher::from_text(text).context("the centre's answer has no voucher")?;
        ensure!(voucher.voucher().phone == self.secret()?.key(), "the voucher is for another phone");
        let centre_ms = answer.get("now_ms").and_then(Value::as_i64).context("the answer has no time")?;
        self.ahead_ms = centre_ms - now_ms;
        if self.voucher.as_deref() != Some(text) {
            (self.voucher, self.counter) = (Some(text.to_owned()), 0);
        }
        Ok(())
    }

    /// What to ask the centre for: a voucher that holds up to so much.
    ///
    /// # Errors
    /// Where the phone's key does not read back.
    pub fn wants(&self, life_minutes: Option<u16>, ceiling_fen: Fen) -> Result<Command> {
        Ok(Command::Voucher { card: self.card()?, life_minutes, ceiling_fen, after: self.spent })
    }

    /// Keeps what the centre answered to [`Command::ShortCode`].
    ///
    /// # Errors
    /// Where that is not what it answers.
    pub fn keep_short(&mut self, answer: &Value, now_ms: i64) -> Result<()> {
        let text = |field: &str| {
            answer.get(field).and_then(Value::as_str).context("the centre answers something else")
        };
        self.short = Some((text("alias")?.parse()?, text("secret")?.to_owned()));
        let centre_ms = answer.get("now_ms").and_then(Value::as_i64).context("the centre says no time")?;
        self.ahead_ms = centre_ms - now_ms;
        Ok(())
    }

    /// The short code of a time by our clock.
    ///
    /// # Errors
    /// Where the centre has not said what they are made by.
    pub fn short_code(&self, now_ms: i64) -> Result<ShortCode> {
        let (alias, secret) = self.short.as_ref().context("the phone makes no short codes yet; fetch")?;
        let secret =
            unhex(secret).and_then(|secret| secret.try_into().ok()).context("a secret that is none")?;
        Ok(ShortSecret::new(secret).code(*alias, Timestamp(now_ms + self.ahead_ms)))
    }

    /// Takes a receipt for the voucher that it has, and says what to tell the centre. Of any other voucher it is left alone.
    ///
    /// # Errors
    /// Where it is none, or for another voucher.
    pub fn take_receipt(&mut self, digits: &str) -> Result<Command> {
        let signed = SignedReceipt::from_text(digits).context("this is no receipt")?;
        let voucher = SignedVoucher::from_text(self.voucher.as_deref().unwrap_or_default())?;
        let (receipt, voucher) = (signed.receipt(), voucher.voucher());
        ensure!(
            (receipt.account, receipt.voucher) == (voucher.account, voucher.number),
            "the receipt is for another voucher"
        );
        self.spent = Some(receipt.voucher);
        Ok(Command::Receipt { receipt: digits.to_owned() })
    }

    /// A fresh code at a time by our clock. The phone must be written before it is shown.
    ///
    /// # Errors
    /// Where there is no voucher, or none that is good for another code.
    pub fn code(&mut self, now_ms: i64) -> Result<Code> {
        let text = self.voucher.as_deref().context("the phone has no voucher; fetch one")?;
        let voucher = SignedVoucher::from_text(text)?;
        let Some(counter) = self.counter.checked_add(1) else {
            bail!("the voucher is used up; fetch another")
        };
        let time =
            u32::try_from((now_ms + self.ahead_ms).div_euclid(1_000)).context("a clock before 1970")?;
        let code = Code::sign(&voucher, &self.secret()?, time, counter).context("counters start at 1")?;
        self.counter = counter;
        Ok(code)
    }
}

/// Does it.
///
/// # Errors
/// What keeps it from being done.
pub fn run(action: Action) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match action {
        Action::New { file, algorithm } => {
            ensure!(!file.exists(), "{} exists already", file.display());
            let phone = Phone::new(algorithm)?;
            phone.write(&file)?;
            writeln!(out, "{}", phone.key()?)?;
        }
        Action::Card { file } => writeln!(out, "{}", Phone::read(&file)?.card()?)?,
        Action::Fetch { file, data, minutes, pay } => {
            let mut phone = Phone::read(&file)?;
            let answer = Client::connect(&data)?.command(&Command::ShortCode { card: phone.card()? })?;
            phone.keep_short(&answer, now_ms())?;
            phone.write(&file)?;
            let command = phone.wants(minutes, pay.unwrap_or_default())?;
            let answer = Client::connect(&data)?.command(&command)?;
            phone.keep(&answer, now_ms())?;
            phone.write(&file)?;
            let until = answer.get("until_ms").and_then(Value::as_i64).unwrap_or_default();
            let until = jiff::Timestamp::from_millisecond(until).map(|until| until.to_string());
            let until = until.unwrap_or_default();
            match answer.get("ceiling_fen").and_then(Value::as_i64) {
                Some(fen) if fen > 0 => writeln!(out, "a voucher of {} yuan until {until}", Fen::new(fen))?,
                _ => writeln!(out, "a voucher until {until}")?,
            }
        }
        Action::Receipt { file, data, digits } => {
            let mut phone = Phone::read(&file)?;
            let command = phone.take_receipt(&digits)?;
            // That it is spent holds whatever the centre says.
            phone.write(&file)?;
            let answer = Client::connect(&data)?.command(&command)?;
            let yuan = |field: &str| Fen::new(answer.get(field).and_then(Value::as_i64).unwrap_or_default());
            writeln!(out, "{} yuan paid, {} yuan free again", yuan("amount_fen"), yuan("freed_fen"))?;
        }
        Action::Short { file } => writeln!(out, "{}", Phone::read(&file)?.short_code(now_ms())?)?,
        Action::Code { file, form, qr } => {
            let mut phone = Phone::read(&file)?;
            let code = phone.code(now_ms())?;
            // A counter that was shown is not used again, whatever happens now.
            phone.write(&file)?;
            let text = match form {
                Form::Digits => code.to_digits(),
                Form::Base64url => code.to_base64url(),
            };
            if qr {
                writeln!(out, "{}", picture(&text)?.render::<Dense1x2>().build())?;
            }
            writeln!(out, "{text}")?;
        }
    }
    Ok(())
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The QR code of a text: with the error correction that a screen needs.
fn picture(text: &str) -> Result<QrCode> {
    QrCode::with_error_correction_level(text, EcLevel::M)
        .map_err(|error| anyhow::anyhow!("no QR code: {error}"))
}

#[cfg(test)]
mod tests {
    use feiqian_protocol::code::Voucher;
    use feiqian_protocol::ids::{AccountId, InstitutionId};
    use qrcode::Version;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_phone_shows_another_code_each_time_by_the_centres_clock() {
        for algorithm in [PhoneAlgorithm::P256, PhoneAlgorithm::Ed25519] {
            let mut phone = Phone::new(algorithm).unwrap();
            assert!(phone.code(0).is_err(), "no voucher");
            let voucher = Voucher {
                institution: InstitutionId(1),
                centre_key: 1,
                account: AccountId(1),
                number: 1,
                issued: 1_000,
                life_minutes: 1,
                ceiling: Fen::ZERO,
                phone: phone.secret().unwrap().key(),
            };
            let centre = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
            let text = voucher.sign(&centre).unwrap().to_base64url();
            phone.keep(&json!({ "voucher": text, "now_ms": 1_000_000 }), 400_000).unwrap();
            let codes = [phone.code(401_000).unwrap(), phone.code(401_000).unwrap()];
            assert_eq!(codes.each_ref().map(|code| (code.time, code.counter)), [(1_001, 1), (1_001, 2)]);
            let other = Phone::new(algorithm).unwrap().keep(&json!({ "voucher": text, "now_ms": 1 }), 1);
            assert!(other.is_err(), "another phone's voucher");
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("phone.json");
            phone.write(&file).unwrap();
            assert_eq!(Phone::read(&file).unwrap().code(401_000).unwrap().counter, 3);
            // 57 by 57 modules; letters take 65 by 65.
            for text in [codes[0].to_digits(), codes[0].to_base64url()] {
                let version = picture(&text).unwrap().version();
                let expected = if text.starts_with("90") { 10 } else { 12 };
                assert_eq!(version, Version::Normal(expected), "{} characters", text.len());
            }
        }
    }
}
