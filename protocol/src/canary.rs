//! Planted bugs. The simulator must catch each of them by a promise that it checks, or its checks are worth nothing.
//!
//! A canary stands in the code that ships, at the place of the rule that it breaks, as one `if planted(Canary::…)`. Without the
//! feature `canaries` [`planted`] is a constant and nothing of it is compiled; with it, the simulator plants one bug in a
//! process of its own. No configuration, argument or variable of a release build can.

#[cfg(feature = "canaries")]
use std::sync::OnceLock;

macro_rules! canaries {
    ($(#[doc = $what:literal] $variant:ident = $name:literal,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Eq, PartialEq)]
        pub enum Canary { $(#[doc = $what] $variant,)* }

        impl Canary {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it is.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what.trim_ascii(),)* }
            }

            /// What every place of it leaves in a binary that it is compiled into.
            pub const fn marker(self) -> &'static str {
                match self { $(Self::$variant => concat!("planted bug: ", $name, "\n"),)* }
            }
        }
    };
}

canaries! {
    /// A building or the centre acknowledges what it has not committed; here the centre.
    AckBeforeCommit = "ack-before-commit",
    /// A purchase without a PIN leaves the day's allowance as it was.
    AllowanceNotCounted = "allowance-not-counted",
    /// What came altered into a branch stays lost, though it comes whole.
    AlteredIsLost = "altered-is-lost",
    /// A building answers, and commits with the next step.
    AnswerBeforeCommit = "answer-before-commit",
    /// A case that is resolved again is opened again.
    CaseOpenedAgain = "case-opened-again",
    /// Which codes were used is forgotten when a building's process ends.
    CodeCounterForgotten = "code-counter-forgotten",
    /// How old a code is does not matter.
    CodeWindowUnchecked = "code-window-unchecked",
    /// An account that is closed goes on paying.
    ClosedStillPays = "closed-still-pays",
    /// What was out when a node was closed by force is declared without the grants under way.
    ClosedWithoutUnderWay = "closed-without-under-way",
    /// A terminal's retry is decided anew.
    DedupeSkipped = "dedupe-skipped",
    /// An account goes on paying after its last day.
    ExpiredStillPays = "expired-still-pays",
    /// A step that failed releases what it said.
    FailedStepAnswers = "failed-step-answers",
    /// A log with two histories is taken for one.
    ForkAccepted = "fork-accepted",
    /// A row that was given up counts like any other when its building is heard again.
    GivenUpCountsAgain = "given-up-counts-again",
    /// A grant that is delivered again is added again.
    GrantAddedOnEveryDelivery = "grant-added-on-every-delivery",
    /// What a voucher holds is free again though it is not over and nobody has brought a receipt.
    HoldReturnedEarly = "hold-returned-early",
    /// Grants under way when a session begins are granted once more.
    GrantResentAfterRestart = "grant-resent-after-restart",
    /// A door lets a group pass at any hour.
    HoursIgnored = "hours-ignored",
    /// The PIN by the campus rule, which anybody may guess, pays like one of the holder's choice.
    InitialPinPays = "initial-pin-pays",
    /// A card is good by whatever is shown for it.
    IssuanceNotChecked = "issuance-not-checked",
    /// A case, once opened, is not lowered by what a late entry shows.
    LateEntryUnsettlesCase = "late-entry-unsettles-case",
    /// A setting that a node has no role for is taken.
    RoleNotChecked = "role-not-checked",
    /// Entries of a closed epoch are booked as if it were open.
    LateEntryAsUsual = "late-entry-as-usual",
    /// Lifting a loss also withdraws a report that the lift had not seen.
    LiftUnseen = "lift-unseen",
    /// A loss is told by its entry alone, behind whatever is under way.
    LossBehindBulk = "loss-behind-bulk",
    /// A tap after a loss report is the holder's where it comes late, from a building that had not heard of the report.
    LossOnlyWhereHeard = "loss-only-where-heard",
    /// A meal period's limit asks for no PIN.
    MealLimitIgnored = "meal-limit-ignored",
    /// A centre that has come back goes by what posted batches call a log, whatever history that is here.
    NamedByNameAlone = "named-by-name-alone",
    /// A setting that a building has written does not act there before the centre has it.
    OwnSettingForgotten = "own-setting-forgotten",
    /// Wrong PINs are forgotten when a building's process ends.
    PinTriesForgotten = "pin-tries-forgotten",
    /// Wrong PINs are not counted.
    PinTriesNotCounted = "pin-tries-not-counted",
    /// A load onto a purse is given back at the terminal's word, without the card's proof.
    PurseLoadReversedUnproven = "purse-load-reversed-unproven",
    /// What is left on a withdrawn card is given back while a building may have written a purchase of it.
    PurseReturnedUnheard = "purse-returned-unheard",
    /// What a purse paid is believed without its TAC.
    PurseTacNotVerified = "purse-tac-not-verified",
    /// A recall is obeyed beyond what is there.
    RecallBeyondUnspent = "recall-beyond-unspent",
    /// A node forgets refunds where it adds up balances.
    RefundForgotten = "refund-forgotten",
    /// What was paid between a loss report in a cut-off building and its arrival stays the holder's.
    RefundSinceReportForgotten = "refund-since-report-forgotten",
    /// A release that is delivered again counts again.
    ReleaseCountedTwice = "release-counted-twice",
    /// A reversal names the epoch of its debit.
    ReversalNamesDebitsEpoch = "reversal-names-debits-epoch",
    /// A reversal restores the node's stand-in.
    ReversalRestoresStandIn = "reversal-restores-stand-in",
    /// A tap that its terminal has repeated meanwhile leaves the right as it was.
    RightNotDebitedOnRetry = "right-not-debited-on-retry",
    /// An amount is rounded to tenths of a fen, and then to fen.
    RoundedTwice = "rounded-twice",
    /// The centre lets a short code stand for another tap.
    ShortCodeUsedAgain = "short-code-used-again",
    /// A snapshot is installed without its balances.
    SnapshotWithoutBalances = "snapshot-without-balances",
    /// A Hello that shows fewer grants than were acknowledged is accepted.
    StaleGrantsAccepted = "stale-grants-accepted",
    /// A session of an older enrolment is accepted.
    StaleIncarnationAccepted = "stale-incarnation-accepted",
    /// Stand-in is granted whatever is overspent already.
    StandInAboveCap = "stand-in-above-cap",
    /// A new session gives a node all its stand-in back.
    StandInRefreshedByFlap = "stand-in-refreshed-by-flap",
    /// A building's disk is told to sync only now and then.
    SynchronousNormal = "synchronous-normal",
    /// A tap is approved though its reversal was there first.
    TombstoneIgnored = "tombstone-ignored",
    /// A card that is withdrawn goes on paying.
    VoidStillPays = "void-still-pays",
    /// A second debit of a voucher is paid out of what was held for it, too.
    VoucherPaidOutTwice = "voucher-paid-out-twice",
    /// A building without a link waits for the centre all the same.
    WaitsThoughCut = "waits-though-cut",
}

#[cfg(feature = "canaries")]
static PLANTED: OnceLock<&'static str> = OnceLock::new();

/// Plants a bug in this process, for as long as it lives.
///
/// # Panics
/// Where one is planted already.
#[cfg(feature = "canaries")]
pub fn plant(canary: Canary) {
    assert!(PLANTED.set(canary.marker()).is_ok(), "one bug is planted in a process");
}

/// True where this bug is planted.
// Compared by text, and inlined, so that each place holds its own marker.
#[cfg(feature = "canaries")]
#[inline(always)]
pub fn planted(canary: Canary) -> bool {
    PLANTED.get().is_some_and(|planted| *planted == canary.marker())
}

/// False: nothing is planted in what ships.
#[cfg(not(feature = "canaries"))]
pub const fn planted(_: Canary) -> bool {
    false
}
