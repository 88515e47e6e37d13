//! Declines of cards that nobody knows: how many of them are written.

use std::collections::BTreeMap;

use feiqian_protocol::ids::TerminalId;

/// Declines of unknown cards that one terminal has written in one minute (of the running clock). What is beyond them is
/// declined alike, and not kept: it is about nobody's money, and whoever holds a card emulator to a terminal must not fill
/// the disk. A retry of such a tap is decided anew.
const UNKNOWN_CARDS_PER_MINUTE_MAX: u32 = 30;

/// Declines of unknown cards, by terminal; terminals are those of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnknownCards {
    /// The minute that is counted, and how many were written in it.
    by_terminal: BTreeMap<TerminalId, (u64, u32)>,
    /// How many were not written since the core was opened, and the minute in which that was last said.
    pub(crate) not_kept: u64,
    said: Option<u64>,
}

impl UnknownCards {
    /// True where one more may be written.
    pub(super) fn admit(&mut self, terminal: &TerminalId, elapsed_ms: u64) -> bool {
        let minute = elapsed_ms / 60_000;
        let (counted, count) = self.by_terminal.entry(terminal.clone()).or_default();
        if *counted != minute {
            (*counted, *count) = (minute, 0);
        }
        *count += 1;
        if *count <= UNKNOWN_CARDS_PER_MINUTE_MAX {
            return true;
        }
        self.not_kept += 1;
        if self.said.replace(minute) != Some(minute) {
            tracing::warn!(%terminal, not_kept = self.not_kept, "more unknown cards than are kept");
        }
        false
    }
}
