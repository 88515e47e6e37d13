//! What can be asked of the centre.

use feiqian_protocol::account::HolderField;
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{AccountId, CardNumber, Key, NodeId, NodeName, Wallet};
use feiqian_protocol::money::Fen;
use feiqian_protocol::pin::PinKey;
use feiqian_protocol::purse::values::CardSerial;
use feiqian_protocol::time::BusinessDay;
use serde::{Deserialize, Serialize};

use crate::holders::NewHolder;
use crate::pin::HashedPin;

/// What can be asked of the centre. The same JSON stands on the local socket, tagged by `command`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Opens accounts, all or none of them. A card that an account has already is an error.
    ImportAccounts {
        /// The accounts.
        accounts: Vec<ImportedAccount>,
    },
    /// Takes over purchases that another system booked, as the habits that grants go by. Moves no money. A part of a file
    /// counts once.
    ImportHistory {
        /// Names the file: a digest of it.
        file: Key,
        /// Which part of it.
        part: u32,
        /// True for its last part.
        last: bool,
        /// The purchases.
        purchases: Vec<PastPurchase>,
    },
    /// Credits an account once per (channel, key).
    Topup {
        /// A card of the account.
        card: CardNumber,
        /// Fen.
        amount_fen: Fen,
        /// The wallet.
        #[serde(default = "cash")]
        wallet: Wallet,
        /// The channel.
        channel: Key,
        /// The channel's own id of it.
        key: Key,
    },
    /// Ends what an account owes at the risk fund's cost: nobody will pay it any more.
    WriteOff {
        /// A card of the account.
        card: CardNumber,
        /// The wallet.
        #[serde(default = "cash")]
        wallet: Wallet,
        /// Who says so.
        operator: Key,
    },
    /// Reports a card lost, at once.
    ReportLoss {
        /// The card.
        card: CardNumber,
        /// Who reported it.
        operator: Key,
    },
    /// Lifts all reports of a card that the centre has seen.
    LiftLoss {
        /// The card.
        card: CardNumber,
        /// Who lifted it.
        operator: Key,
    },
    /// A person decides a case of a tap after a loss report above the cap, of a code that was used twice, or of a purchase of a
    /// purse that the card did not prove or the books do not have.
    DecideCase {
        /// Its name, as exports have it.
        case: String,
        /// What.
        decision: CaseDecision,
        /// Who decides.
        operator: Key,
    },
    /// How far a card's loss is known: [`CardLoss`].
    CardLoss {
        /// The card.
        card: CardNumber,
    },
    /// Makes a virtual card of the key of a phone, whose holder is logged in. Answered with the card's number.
    ActivateVirtualCard {
        /// A card of the account.
        card: CardNumber,
        /// `p256` or `ed25519`.
        algorithm: String,
        /// The key as hex: 33 bytes compressed, or 32.
        key: String,
        /// Who says so: the channel, or an operator.
        operator: Key,
    },
    /// Signs a voucher for a virtual card. Answered with its text, its number, what it holds, its end, and the centre's time.
    Voucher {
        /// The virtual card.
        card: CardNumber,
        /// How long it is good; where absent three days, or one where it is to hold money.
        #[serde(default)]
        life_minutes: Option<u16>,
        /// What it is to hold, in fen: so much, or as much as there is, no more than the limit of a purchase and what is left of the day's
        /// allowance. It then pays once in a building that can ask nobody.
        #[serde(default)]
        ceiling_fen: Fen,
        /// The number of the last one that the phone has used up. Without it, or said again, an unspent one is given again.
        #[serde(default)]
        after: Option<u32>,
    },
    /// What the phone of a virtual card makes short codes by. Answered with `alias`, `secret` (hexadecimal), `step_s` and the centre's time.
    ShortCode {
        /// The virtual card.
        card: CardNumber,
    },
    /// A phone brings the receipt that a terminal showed: what the voucher did not spend is free at once.
    Receipt {
        /// Its digits.
        receipt: String,
    },
    /// Shows a purse and what explains its difference to the books: [`crate::purse::show::PurseView`].
    Purse {
        /// The card.
        serial: CardSerial,
    },
    /// Gives what is left on a withdrawn card back to its account, once no building can still report a purchase of it.
    ReturnPurse {
        /// The card.
        serial: CardSerial,
        /// Who wants it.
        operator: Key,
    },
    /// Shows the account of a card.
    Account {
        /// The card.
        card: CardNumber,
    },
    /// Signs, of a card that is good, that it was given out: what its holder shows in a building that has been cut off since.
    Issuance {
        /// The card.
        card: CardNumber,
    },
    /// Opens accounts for holders, all or none of them, each with an inactive card. Answered with their cards, in this order.
    OpenAccounts {
        /// The accounts.
        accounts: Vec<NewHolder>,
        /// Who opened them.
        operator: Key,
    },
    /// Takes blank cards into the stock, in this order.
    StockCards {
        /// The cards.
        cards: Vec<CardNumber>,
    },
    /// A page of the cards of a department that are not active: [`crate::holders::ToPickUp`].
    PickUpList {
        /// The department.
        department: String,
        /// Goes on after this account.
        after: AccountId,
    },
    /// The holder activates a card by the chosen payment PIN.
    ActivateCard {
        /// The card.
        card: CardNumber,
        /// What was typed, hashed for each PIN that the account has.
        typed: Vec<HashedPin>,
    },
    /// By which salts a PIN must be hashed for [`Command::Bind`]; answered alike for numbers that nobody has.
    BindSalts {
        /// The holder's number.
        number: Key,
    },
    /// Binds the user of an app to the account of whoever knows number, name and chosen payment PIN.
    Bind {
        /// The holder's number.
        number: Key,
        /// The holder's name.
        name: String,
        /// The PIN that was typed, hashed under those salts.
        typed: Vec<HashedPin>,
        /// The user, as the app names them.
        user: Key,
    },
    /// The account of a holder, by the number or by the user that it is bound to.
    FindHolder {
        /// The number.
        #[serde(default)]
        number: Option<Key>,
        /// The user.
        #[serde(default)]
        user: Option<Key>,
    },
    /// Under which salt a login password must be hashed.
    LoginSalt {
        /// A card of the account.
        card: CardNumber,
    },
    /// The holder stands before an operator and has typed a new login password.
    SetLogin {
        /// A card of the account.
        card: CardNumber,
        /// Its hash, under a salt of its own.
        login: HashedPin,
        /// Who set it.
        operator: Key,
    },
    /// Whether a login password is the right one.
    CheckLogin {
        /// A card of the account.
        card: CardNumber,
        /// What was typed, hashed.
        typed: HashedPin,
    },
    /// The holder changes the login password by showing the one that there is.
    ChangeLogin {
        /// A card of the account.
        card: CardNumber,
        /// The one that there is, hashed.
        current: HashedPin,
        /// The new one, under a salt of its own.
        login: HashedPin,
    },
    /// Closes the account of a card, for ever. What it has is paid out as it comes home.
    CloseAccount {
        /// A card of the account.
        card: CardNumber,
        /// Who pays the holder's own money out.
        channel: Key,
        /// Where the rest of the subsidy goes.
        subsidy_channel: Key,
        /// Who closed it.
        operator: Key,
    },
    /// Changes the account of a card, or the card.
    ChangeSetting {
        /// The card.
        card: CardNumber,
        /// What is changed.
        change: SettingCommand,
        /// Who changes it.
        operator: Key,
    },
    /// Shows the campus configuration in force: `version` and `config`.
    Campus {},
    /// Publishes a campus configuration.
    PublishCampus {
        /// The configuration, as JSON of [`feiqian_protocol::campus::CampusConfig`].
        config: serde_json::Value,
    },
    /// Makes an enrolment code known; the shell made the secret.
    CreateEnrolment {
        /// The node's name.
        name: NodeName,
        /// What it may write.
        role: Role,
        /// `EnrolCode::lookup` as hex.
        lookup: String,
        /// The secret as hex.
        secret: String,
    },
    /// What is known of the code behind a lookup: for the enrolment desk, before it signs. Counts a try.
    LookUpEnrolment {
        /// `EnrolCode::lookup` as hex.
        lookup: String,
    },
    /// Uses a code up and creates the node, or enrols it anew.
    Enrol {
        /// `EnrolCode::lookup` as hex.
        lookup: String,
        /// The node's log key, as hex.
        log_key: String,
        /// Its key for verifiers of PINs, where it told one.
        #[serde(default)]
        pin_key: Option<PinKey>,
    },
    /// Closes a node's rights: orderly (asks it to end its epoch; right comes home when it has), or by force, at the
    /// head ingested so far. A closed node gets no rights until it is enrolled anew.
    Retire {
        /// The node's name.
        node: NodeName,
        /// Do not wait for the node.
        #[serde(default)]
        force: bool,
    },
    /// Revokes a node's certificates: closes its rights by force, ends its session at once, and takes nothing of it any
    /// more. Its log can be brought in from a file.
    Revoke {
        /// The node's name.
        node: NodeName,
        /// Which of its enrolments; the newest where absent.
        #[serde(default)]
        enrolment: Option<u32>,
    },
    /// Whether a node may have its certificate renewed: for the enrolment desk, before it signs.
    Renew {
        /// The node.
        node: NodeId,
        /// Its enrolment.
        incarnation: u32,
    },
    /// Takes a frame of a closed node's log from a file.
    ImportLog {
        /// [`Frame::Entries`], encoded, as hex.
        frame: String,
        /// The branch that an earlier frame of the file went to.
        #[serde(default)]
        branch: Option<u32>,
    },
    /// How an account's payment PIN stands; says for which PINs one that is typed must be hashed.
    PinStatus {
        /// A card of the account.
        card: CardNumber,
    },
    /// The holder stands before an operator and has typed a new PIN.
    SetPin {
        /// A card of the account.
        card: CardNumber,
        /// The new PIN.
        pin: HashedPin,
        /// Who set it.
        operator: Key,
    },
    /// The holder changes the PIN by showing the one that there is.
    ChangePin {
        /// A card of the account.
        card: CardNumber,
        /// The one that there is, hashed for each that the account has; empty where the account has none.
        current: Vec<HashedPin>,
        /// The new one.
        pin: HashedPin,
    },
    /// Makes the PIN the initial one again.
    ResetPin {
        /// A card of the account.
        card: CardNumber,
        /// The initial PIN.
        pin: HashedPin,
        /// Who reset it.
        operator: Key,
    },
    /// Of several PINs, set at once, the holder has typed this one before an operator.
    ConfirmPin {
        /// A card of the account.
        card: CardNumber,
        /// What was typed, hashed for each that the account has.
        typed: Vec<HashedPin>,
        /// Who confirmed it.
        operator: Key,
    },
    /// Forgets wrong tries, everywhere.
    UnlockPin {
        /// A card of the account.
        card: CardNumber,
    },
    /// How the centre stands.
    Status {},
}

/// What an operator may change about an account.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SettingCommand {
    /// No purchases.
    Freeze,
    /// Purchases again.
    Unfreeze,
    /// The no-PIN limits; one that is absent stays.
    Limits {
        /// Fen per purchase.
        #[serde(default)]
        single_limit_fen: Option<Fen>,
        /// Fen per business day.
        #[serde(default)]
        daily_limit_fen: Option<Fen>,
    },
    /// The card is withdrawn, for ever.
    VoidCard,
    /// The card is withdrawn and another one given out for it: after a loss, or because it is worn.
    ReplaceCard {
        /// The new one.
        new_card: CardNumber,
    },
    /// The holder has picked the card up; it is still not active.
    HandOverCard,
    /// The card is good from now on: the operator has seen whose it is.
    ActivateCard,
    /// A card that was to be picked up is not there: it is withdrawn, and another one given out for it, inactive.
    ReissueMissing {
        /// The new one; the next blank one where absent.
        #[serde(default)]
        new_card: Option<CardNumber>,
    },
    /// A worn card, which is there, is exchanged for another one that is good at once.
    ExchangeCard {
        /// The new one; the next blank one where absent.
        #[serde(default)]
        new_card: Option<CardNumber>,
    },
    /// A card of an older system goes on to open the doors of one group, and pays nothing.
    IssueLegacyCard {
        /// That card.
        new_card: CardNumber,
        /// The group.
        group: Key,
    },
    /// What is told of the holder; nothing where the value is absent.
    Describe {
        /// What.
        field: HolderField,
        /// The text.
        #[serde(default)]
        value: Option<String>,
    },
    /// The last business day on which the account's cards are good, in days since 1970; for ever where it is absent.
    Validity {
        /// That day.
        #[serde(default)]
        until: Option<BusinessDay>,
    },
    /// Another patron class.
    Class {
        /// Its name.
        class: String,
    },
    /// Membership of a group.
    JoinGroup {
        /// The group.
        group: Key,
    },
    /// Membership ends.
    LeaveGroup {
        /// The group.
        group: Key,
    },
}

/// An account of an import.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedAccount {
    /// Its card.
    pub card: CardNumber,
    /// Patron class.
    pub patron_class: String,
    /// Opening cash.
    pub opening_fen: Fen,
    /// Opening subsidy.
    #[serde(default)]
    pub subsidy_fen: Fen,
    /// No-PIN limit of a purchase; the campus's default where absent.
    #[serde(default)]
    pub single_limit_fen: Option<Fen>,
    /// No-PIN allowance of a day; the campus's default where absent.
    #[serde(default)]
    pub daily_limit_fen: Option<Fen>,
    /// Groups (doors).
    #[serde(default)]
    pub groups: Vec<Key>,
    /// The initial PIN by the end of the holder's ID number; absent where that was not told.
    #[serde(default)]
    pub initial_pin: Option<HashedPin>,
    /// The day on which the account was opened, where that was lately: a young one is not stood in for.
    #[serde(default)]
    pub opened: Option<BusinessDay>,
    /// The last day on which its cards are good; absent for no end.
    #[serde(default)]
    pub valid_until: Option<BusinessDay>,
}

/// A purchase of an imported history.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PastPurchase {
    /// When, on the campus's wall clock: milliseconds since 1970 without regard to zones.
    pub local_ms: i64,
    /// Whose.
    pub card: CardNumber,
    /// Where: the node of the building.
    pub node: NodeName,
    /// Fen.
    pub amount_fen: Fen,
}

/// What a command answers, or why nothing was done.
pub type Reply = Result<serde_json::Value, CommandError>;

/// Why a command did nothing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// A stable code: `unknown_card`, `card_in_use`, `not_lost`, `already_lost`, `amount`, `key_reused`,
    /// `enrolment_unknown`, `enrolment_expired`, `enrolment_used`, `campus`, `account`, `unknown_node`, `time`, `node_open`,
    /// `not_renewed`, `log`, `in_use`, `not_yet`, `empty`, `phone_key`, `too_many_phones`, `not_virtual`, `card_lost`, `card_void`, `life`, `voucher_key`, `ceiling`,
    /// `frozen`, `expired`, `receipt_unreadable`, `receipt_foreign`, `receipt_forged`, `receipt_contradicted`, `nothing_held`, `voucher_spent`, `voucher_over`, `owes`,
    /// `number_in_use`, `no_blank_card`, `handed_over`, `not_active`, `pin_initial`, `bind_mismatch`, `bind_locked`, `user_bound`,
    /// `account_bound`, `holder`, `unknown_holder`, `no_login`, `wrong_login`, `login_locked`, `login_changed`; those about PINs
    /// (`wrong_pin`, `pin_locked`, `pin_changed`, `pin_unconfirmed`, `pin_confirmed`), and of
    /// [`feiqian_protocol::account::AccountError::code`].
    pub code: &'static str,
    /// What is wrong, for a person.
    pub message: String,
}

const fn cash() -> Wallet {
    Wallet::Cash
}

/// What a person decides of a case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseDecision {
    /// The holder does not pay.
    Refund,
    /// The holder pays.
    Deny,
    /// The merchant is not paid.
    ChargeBack,
}
