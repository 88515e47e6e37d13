//! The promises by name, and the rare paths that a sweep must reach.

pub mod books;
pub mod closings;
pub mod ledger;
pub mod losses;
pub mod meals;
pub mod pins;
pub mod probes;
pub mod receipts;
pub mod reissues;
pub mod settings;
pub mod vouchers;

use serde::{Deserialize, Serialize};

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// What Feiqian promises.
    Promise {
        /// An approved tap is in its node's log, whatever crashed, and comes to the centre.
        Survives = "survives",
        /// A tap is decided and posted once; a repeat gets the first answer.
        ExactlyOnce = "exactly_once",
        /// Equal prefixes, equal projections; after a heal everybody has everything.
        Convergence = "convergence",
        /// Every fen is somewhere, once.
        Conservation = "conservation",
        /// Nothing is spent from rights that was not granted, and no more than there is.
        NoOverspend = "no_overspend",
        /// Stand-in, shortfall and open claims of an account stay under its cap.
        StandInCap = "stand_in_cap",
        /// No more of a day's no-PIN allowance is used than there is.
        Allowance = "allowance",
        /// Every overspent fen has one case, with a bearer.
        Cases = "cases",
        /// After a loss report the holder does not pay.
        AfterLoss = "after_loss",
        /// A closed account pays nowhere where that is known, and is paid out, once and where it was asked for.
        Closing = "closing",
        /// A card that was replaced is good nowhere where that is known, and the new one is.
        Reissue = "reissue",
        /// Over the limits only the right PIN pays, of the holder's choice, and none after three wrong ones.
        Pin = "pin",
        /// A code pays within its window, once in a building; what is held for a voucher pays once.
        Code = "code",
        /// Copies, forks, forged and replayed frames change nothing unseen.
        History = "history",
        /// A door opens to whom its groups say.
        Access = "access",
        /// A building alone decides every tap, at once.
        Alone = "alone",
        /// After a quiet heal nothing waits any more; whoever has money can spend it.
        Liveness = "liveness",
        /// Nothing panics, spins, or stops for a reason of its own.
        Sound = "sound",
    }
}

named! {
    /// Rare paths: one that `sweep all` never reaches is not simulated at all.
    Coverage {
        /// A tap was approved beyond the right.
        StandInUsed = "stand_in_used",
        /// A node gave right back.
        RightReleased = "right_released",
        /// A node gave allowance back.
        AllowanceReleased = "allowance_released",
        /// A waiting tap was decided by what the centre granted.
        GrantedOnAsk = "granted_on_ask",
        /// The centre said that there is no more, finally.
        NoFinal = "no_final",
        /// The centre said that the rest is out of reach.
        NoForNow = "no_for_now",
        /// A waiting tap was decided at the deadline.
        AskTimedOut = "ask_timed_out",
        /// Entries were refused into a branch, posted to suspense.
        QuarantineEntered = "quarantine_entered",
        /// A case was opened.
        CaseOpened = "case_opened",
        /// A case was borne by its holder.
        CaseClaimed = "case_claimed",
        /// A case was borne by the risk fund.
        CaseAtRiskFund = "case_at_risk_fund",
        /// A credit recovered a case.
        CaseRecovered = "case_recovered",
        /// A tap after a loss report was refunded.
        LossRefunded = "loss_refunded",
        /// A loss report was lifted.
        LossLifted = "loss_lifted",
        /// A loss was reported in a building.
        LossInBuilding = "loss_in_building",
        /// A loss notice came before entries that were written before it.
        UrgentOvertook = "urgent_overtook",
        /// A retry was answered from the log.
        RetryFromLog = "retry_from_log",
        /// A retry after a restart was answered from the log.
        RetryAfterRestart = "retry_after_restart",
        /// A key that was used for something else was refused.
        KeyReused = "key_reused",
        /// A tap that came after its reversal was declined.
        TombstoneHit = "tombstone_hit",
        /// A reversal in another epoch than its debit's.
        ReversalHome = "reversal_home",
        /// A reversal of a part.
        ReversalPart = "reversal_part",
        /// An epoch was closed in order.
        ClosedInOrder = "closed_in_order",
        /// An epoch was closed by force.
        ClosedByForce = "closed_by_force",
        /// An entry of a closed epoch was ingested.
        LateEntry = "late_entry",
        /// A session was refused: the centre's stream is behind.
        RefusedStaleGrants = "refused_stale_grants",
        /// A session was refused: the log is short.
        RefusedShortLog = "refused_short_log",
        /// A session was refused: the log is another one.
        RefusedForkedLog = "refused_forked_log",
        /// A session was refused: an older enrolment.
        RefusedIncarnation = "refused_incarnation",
        /// A session was refused: the centre is an old copy.
        RefusedCentreBehind = "refused_centre_behind",
        /// The centre was restored from an old copy.
        CentreRestored = "centre_restored",
        /// A restored node got its tail back.
        TailReturned = "tail_returned",
        /// A node's certificate was revoked.
        Revoked = "revoked",
        /// A building was enrolled anew and served.
        EnrolledAnew = "enrolled_anew",
        /// A step failed and the core was opened again.
        CoreReopened = "core_reopened",
        /// The disk was full, and taps went without an answer for it.
        DiskFull = "disk_full",
        /// A power cut in the middle of a commit.
        CutMidCommit = "cut_mid_commit",
        /// A connection replaced an older one that an end still believed in.
        LinkReplaced = "link_replaced",
        /// A frame of an older connection was dropped.
        StaleFrame = "stale_frame",
        /// A frame came twice.
        DuplicateFrame = "duplicate_frame",
        /// A forged frame was refused.
        ForgedRefused = "forged_refused",
        /// A session ended with entries under way and went on from the cursors.
        Resumed = "resumed",
        /// A step took several taps.
        GroupCommit = "group_commit",
        /// A business day began.
        DayChanged = "day_changed",
        /// A card took a load.
        PurseLoaded = "purse_loaded",
        /// A load was torn, or its terminal gave up.
        PurseLoadTorn = "purse_load_torn",
        /// A torn load was found to have happened.
        PurseLoadFoundDone = "purse_load_found_done",
        /// A torn load was given back.
        PurseLoadReversed = "purse_load_reversed",
        /// A purchase of a purse was torn.
        PurseTorn = "purse_torn",
        /// It was found out what became of one.
        PurseRecovered = "purse_recovered",
        /// A card that was forged with a stolen SAM paid.
        PurseForged = "purse_forged",
        /// A copied card was found by its counter.
        PurseCloneFound = "purse_clone_found",
        /// A person has decided a case of a purse.
        PurseCaseDecided = "purse_case_decided",
        /// A building refused a card that it knows to be withdrawn.
        PurseRefused = "purse_refused",
        /// A building that had not heard of a new card with a purse was shown what it carries.
        PurseCardShown = "purse_card_shown",
        /// What was left on a card that was replaced, or of a closed account, was given back.
        PurseReturned = "purse_returned",
        /// Money that was held for a voucher paid.
        VoucherPaid = "voucher_paid",
        /// A voucher paid in a second building that had not heard of the first.
        VoucherPaidTwice = "voucher_paid_twice",
        /// What a voucher held was freed by a receipt.
        ReceiptTaken = "receipt_taken",
        /// A receipt that was made up was refused.
        ReceiptForgedRefused = "receipt_forged_refused",
        /// What a voucher held was free again at its end.
        HoldReturned = "hold_returned",
        /// A code that two buildings took was found.
        CodeReplayFound = "code_replay_found",
        /// A building that is in doubt about the time asked for the PIN.
        CodeAskedForPin = "code_asked_for_pin",
        /// A code paid with the PIN.
        CodePaidByPin = "code_paid_by_pin",
        /// A short code paid, or opened a door.
        ShortCodePaid = "short_code_paid",
        /// A phone was revoked.
        PhoneRevoked = "phone_revoked",
        /// A withdrawn phone paid where that was not known.
        CodeAfterWithdrawal = "code_after_withdrawal",
        /// A setting that a node forged was refused with its reason.
        SettingRefused = "setting_refused",
        /// A card was replaced by another.
        CardReissued = "card_reissued",
        /// The new one paid.
        ReissuedPaid = "reissued_paid",
        /// It was shown where it was not known, with the centre's word.
        CardShown = "card_shown",
        /// A word that the centre never gave was refused.
        MadeUpIssuanceRefused = "made_up_issuance_refused",
        /// A document was begun anew.
        DocumentRenewed = "document_renewed",
        /// A closed account was paid out.
        ClosedPaidOut = "closed_paid_out",
        /// What came home later was paid out, too.
        ClosedPaidOutAgain = "closed_paid_out_again",
        /// A closed account was paid out without word of a building.
        ClosedGivenUp = "closed_given_up",
        /// Whoever wrote into the log of another was not listened to any longer.
        ForeignLogRefused = "foreign_log_refused",
        /// Wrong tries of a PIN were forgotten at the holder's wish.
        PinUnlocked = "pin_unlocked",
        /// A decline: out of service.
        DeclinedOutOfService = "declined_out_of_service",
        /// A decline: already reversed.
        DeclinedReversed = "declined_reversed",
        /// A decline: unknown card.
        DeclinedUnknownCard = "declined_unknown_card",
        /// A decline: lost.
        DeclinedLost = "declined_lost",
        /// A decline: withdrawn.
        DeclinedVoid = "declined_void",
        /// A decline: a code that was used.
        DeclinedCodeUsed = "declined_code_used",
        /// A decline: a short code where the centre cannot be asked.
        DeclinedCodeNeedsCentre = "declined_code_needs_centre",
        /// A decline: a code whose window is over.
        DeclinedCodeExpired = "declined_code_expired",
        /// A decline: a code that its phone has not signed.
        DeclinedCodeForged = "declined_code_forged",
        /// A decline: a voucher that the centre has not signed.
        DeclinedVoucherForged = "declined_voucher_forged",
        /// A decline: a voucher that is over.
        DeclinedVoucherExpired = "declined_voucher_expired",
        /// A decline: a closed account.
        DeclinedClosed = "declined_closed",
        /// A decline: an account whose last day is over.
        DeclinedExpired = "declined_expired",
        /// A decline: no price.
        DeclinedNoTariff = "declined_no_tariff",
        /// A decline: wrong PIN.
        DeclinedWrongPin = "declined_wrong_pin",
        /// A decline: too many wrong PINs.
        DeclinedPinLocked = "declined_pin_locked",
        /// A decline: no PIN that pays.
        DeclinedPinNotSet = "declined_pin_not_set",
        /// A decline: PIN required.
        DeclinedPinRequired = "declined_pin_required",
        /// It was for the limit of a meal period.
        MealLimitReached = "meal_limit_reached",
        /// A decline: not enough money.
        DeclinedInsufficient = "declined_insufficient",
        /// A decline: the view is too old.
        DeclinedViewTooOld = "declined_view_too_old",
        /// A decline: not permitted here.
        DeclinedNotPermitted = "declined_not_permitted",
    }
}

impl Coverage {
    /// The coverage of a decline reason, where one is counted.
    pub fn of_reason(reason: feiqian_protocol::tap::DeclineReason) -> Option<Self> {
        let name = format!("declined_{}", reason.name());
        Self::ALL.iter().find(|coverage| coverage.name() == name).copied()
    }
}
