//! Phones of a [`World`]: virtual cards, vouchers with money, codes, and the receipts that terminals gave.

use anyhow::{Context, Result};
use feiqian_protocol::chain::hex;
use feiqian_protocol::code::{Code, PhoneAlgorithm, PhoneSecret, SignedVoucher, VoucherKey};
use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;
use feiqian_reconcile::io::Command;

use super::{INSTITUTION, Request, World, terminal_id};

/// A phone whose holder does as the app says: no voucher is shown at a second building.
pub struct Phone {
    secret: PhoneSecret,
    voucher: Option<SignedVoucher>,
    /// The number of the last voucher that was shown.
    shown: Option<u32>,
}

impl Phone {
    /// The virtual card.
    pub fn card(&self) -> CardNumber {
        CardNumber::of_phone(&self.secret.key())
    }

    /// The voucher that it has and has not shown yet.
    pub fn voucher(&self) -> Option<&SignedVoucher> {
        self.voucher.as_ref().filter(|signed| Some(signed.voucher().number) != self.shown)
    }
}

impl World {
    /// The key of this world's vouchers, as its campus has it.
    pub(super) fn voucher_keys(&self) -> Vec<VoucherKey> {
        vec![VoucherKey {
            number: 1,
            key: self.centre.identity.voucher_key(1).verifying_key(),
            from_ms: Timestamp(0),
            to_ms: Timestamp(i64::from(u32::MAX) * 1_000),
        }]
    }

    /// Makes a phone a card of an account.
    ///
    /// # Errors
    /// What the centre says.
    pub fn activate(&mut self, card: &str, seed: u8) -> Result<Phone> {
        let secret = PhoneSecret::new(PhoneAlgorithm::Ed25519, &[seed; 32]).context("a phone's key")?;
        self.command(Command::ActivateVirtualCard {
            card: CardNumber::new(card)?,
            algorithm: PhoneAlgorithm::Ed25519.name().to_owned(),
            key: hex(secret.key().as_bytes()),
            operator: Key::new("app")?,
        })?;
        Ok(Phone { secret, voucher: None, shown: None })
    }

    /// A phone fetches a voucher that holds up to so much; what it holds.
    ///
    /// # Errors
    /// What the centre says.
    pub fn fetch(&mut self, phone: &mut Phone, ceiling_fen: Fen) -> Result<Fen> {
        let (card, after) = (phone.card(), phone.shown);
        let reply = self.command(Command::Voucher { card, life_minutes: None, ceiling_fen, after })?;
        let signed = SignedVoucher::from_text(reply["voucher"].as_str().context("no voucher")?)?;
        let ceiling = signed.voucher().ceiling;
        phone.voucher = Some(signed);
        Ok(ceiling)
    }

    /// A phone shows a code of its voucher, for the first time; `None` where it has none to show.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn show(&mut self, site: usize, phone: &mut Phone, fen: i64) -> Result<Option<Request>> {
        let Some(voucher) = phone.voucher().cloned() else { return Ok(None) };
        phone.shown = Some(voucher.voucher().number);
        self.show_again(site, phone, 1, fen)
    }

    /// A phone shows its voucher with this counter, whether it was shown before or not.
    ///
    /// # Errors
    /// What the core could not do.
    pub fn show_again(
        &mut self,
        site: usize,
        phone: &Phone,
        counter: u16,
        fen: i64,
    ) -> Result<Option<Request>> {
        let Some(voucher) = &phone.voucher else { return Ok(None) };
        let time = u32::try_from(self.wall().0.div_euclid(1_000)).context("the time")?;
        let code = Code::sign(voucher, &phone.secret, time, counter).context("a counter")?;
        let code = code.check(INSTITUTION, &self.voucher_keys());
        self.sequences += 1;
        let terminal = terminal_id(self.sites[site].building, 1 + self.sequences % 3);
        let number = self.sequences;
        let card = phone.card();
        let request = Request::tap(site, terminal, number, card.as_str(), Fen::new(fen))?.by_code(code);
        self.submit(&request)?;
        Ok(Some(request))
    }

    /// A phone brings a receipt, or somebody brings it again.
    ///
    /// # Errors
    /// What the centre says.
    pub fn bring(&mut self, receipt: usize) -> Result<()> {
        let receipt = self.receipts.get(receipt).context("no receipt")?.to_digits();
        self.command(Command::Receipt { receipt }).map(drop)
    }
}
