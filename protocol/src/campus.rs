//! The campus configuration: what the centre publishes, signed and versioned, and both ends decide by.

mod hours;
mod meals;

use std::collections::BTreeMap;

pub use hours::{Hours, Span};
use jiff::civil::Date;
pub use meals::{Meal, check_meals};
use serde::{Deserialize, Serialize};

use crate::code::{VOUCHER_KEYS_MAX, VoucherKey};
use crate::ids::{CampusId, InstitutionId, Key, NodeName, TerminalId};
use crate::limits::{CAMPUS_CONFIG_BYTES_MAX, SPANS_MAX};
use crate::money::{Fen, UnitPrice};
use crate::time::{BusinessCalendar, Timestamp};

/// A campus configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CampusConfig {
    /// The institution.
    pub institution: InstitutionId,
    /// The campus.
    pub campus: CampusId,
    /// How business days are cut.
    #[serde(default = "china")]
    pub calendar: BusinessCalendar,
    /// No-PIN limit of a purchase where an account has none of its own, in fen.
    #[serde(default = "default_single_limit")]
    pub single_limit_fen: Fen,
    /// No-PIN allowance of a business day where an account has none of its own, in fen.
    #[serde(default = "default_daily_limit")]
    pub daily_limit_fen: Fen,
    /// How nodes decide when they cannot ask.
    #[serde(default)]
    pub policy: Policy,
    /// What vouchers of phones are verified by; `feiqian-reconcile virtual-card key` writes an entry. To be published a month
    /// before its first use, so that cut-off buildings have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voucher_keys: Vec<VoucherKey>,
    /// When doors let members of groups pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<Hours>,
    /// Days on which [`Hours::holidays`] hold, such as `2026-10-01`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holidays: Vec<Date>,
    /// What may be spent without a PIN at which time of the day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meals: Vec<Meal>,
    /// Who is paid.
    pub merchants: Vec<Merchant>,
    /// The buildings, each with one node.
    pub buildings: Vec<Building>,
}

fn china() -> BusinessCalendar {
    BusinessCalendar::CHINA
}

fn default_single_limit() -> Fen {
    Fen::new(2_000)
}

fn default_daily_limit() -> Fen {
    Fen::new(5_000)
}

/// A merchant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Merchant {
    /// Its number, unique.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Price per unit by patron class, for what is weighed or metered.
    #[serde(default)]
    pub tariff: BTreeMap<String, UnitPrice>,
}

/// A building.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Building {
    /// The node's name.
    pub node: NodeName,
    /// Its terminals.
    pub terminals: Vec<Terminal>,
}

/// A terminal.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Its name, unique in the institution.
    pub id: TerminalId,
    /// Who is paid for purchases here; absent where it only opens doors.
    #[serde(default)]
    pub merchant: Option<u16>,
    /// Groups whose members may pass; empty: any account in good standing.
    #[serde(default)]
    pub groups: Vec<Key>,
}

/// What a node does beyond its spending right when the centre does not answer in time.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Rights only.
    Strict,
    /// Granted stand-in, where its price is right.
    #[default]
    Hybrid,
    /// Last known balance minus own spending; the reference to compare with.
    Optimistic,
}

impl Mode {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Hybrid => "hybrid",
            Self::Optimistic => "optimistic",
        }
    }
}

impl std::str::FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "hybrid" => Ok(Self::Hybrid),
            "optimistic" => Ok(Self::Optimistic),
            _ => Err(format!("{text:?} is no mode (strict, hybrid, optimistic)")),
        }
    }
}

/// Grants and stand-in. The defaults were chosen by simulation; docs/policy.md has the figures.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How nodes decide beyond their rights.
    pub mode: Mode,
    /// Stand-in per account and node where the account has a habit, in fen.
    pub stand_in_habit_fen: Fen,
    /// Stand-in per account and node where it has none, in fen.
    pub stand_in_other_fen: Fen,
    /// All stand-in, shortfall and open claims of one account together, in fen.
    pub stand_in_account_cap_fen: Fen,
    /// A node's stand-in pool of a business day, in percent of its usual daily turnover.
    pub pool_percent: u32,
    /// Share of the pool that is closed to accounts without a habit at the node, in percent.
    pub pool_habit_percent: u32,
    /// A node's usual daily turnover until there is a history, in fen.
    pub pool_turnover_fen: Fen,
    /// What avoiding one false decline is worth, in fen.
    pub decline_price_fen: Fen,
    /// What right is handed out in, in percent of the account's mean purchase at a node; where it is 0, all is split in
    /// proportion to where the account spends.
    pub lump_percent: u32,
    /// Days of history that habits come from.
    pub history_days: u32,
    /// Minutes after which a cut-off node no longer stands in.
    pub view_age_minutes_max: u32,
    /// What the risk fund refunds by itself for one tap after a loss report, in fen; above it a person looks.
    pub refund_cap_fen: Fen,
    /// Minutes after which a shortfall is claimed though not all nodes have been heard.
    pub claim_term_minutes: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Hybrid,
            stand_in_habit_fen: Fen::new(2_000),
            stand_in_other_fen: Fen::new(1_000),
            stand_in_account_cap_fen: Fen::new(20_000),
            pool_percent: 15,
            pool_habit_percent: 50,
            pool_turnover_fen: Fen::new(1_000_000),
            decline_price_fen: Fen::new(200),
            lump_percent: 120,
            history_days: 28,
            view_age_minutes_max: 7 * 24 * 60,
            refund_cap_fen: Fen::new(50_000),
            claim_term_minutes: 7 * 24 * 60,
        }
    }
}

/// Largest turnover that a node may be reckoned with a day (¥100 million): its pool stays an amount that nodes take.
const TURNOVER_FEN_MAX: Fen = Fen::new(10_000_000_000);

/// What is wrong with a campus configuration.
#[derive(Debug, thiserror::Error)]
pub enum CampusError {
    /// Not the JSON of a configuration.
    #[error("the campus configuration is malformed")]
    Malformed(#[from] serde_json::Error),
    /// Too large.
    #[error("the campus configuration has {0} bytes, more than {CAMPUS_CONFIG_BYTES_MAX}")]
    TooLarge(usize),
    /// A name or number stands twice.
    #[error("{what} {name:?} stands twice in the campus configuration")]
    Twice {
        /// What it names.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A terminal names a merchant that is not there.
    #[error("terminal {terminal:?} names merchant {merchant}, which is not in the campus configuration")]
    NoMerchant {
        /// The terminal.
        terminal: String,
        /// The merchant.
        merchant: u16,
    },
    /// Hours name a building that is not there.
    #[error("hours name building {0:?}, which is not in the campus configuration")]
    NoBuilding(String),
    /// A meal period names a merchant that is not there.
    #[error("meal {meal:?} names merchant {merchant}, which is not in the campus configuration")]
    NoMealMerchant {
        /// The meal period.
        meal: String,
        /// The merchant.
        merchant: u16,
    },
    /// The limit of a meal period is no amount of a purchase.
    #[error("the limit of meal {0:?} must be from 0 to 10000000 fen")]
    MealLimit(String),
    /// Two meal periods are at one time.
    #[error("meals {0:?} and {1:?} overlap")]
    MealsOverlap(String, String),
    /// A limit is out of range.
    #[error("{key} must be {range}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

impl CampusConfig {
    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// [`CampusError`] names what is wrong.
    pub fn check(&self) -> Result<(), CampusError> {
        fn once<'a>(what: &'static str, names: impl Iterator<Item = String> + 'a) -> Result<(), CampusError> {
            let mut seen = std::collections::BTreeSet::new();
            for name in names {
                if !seen.insert(name.clone()) {
                    return Err(CampusError::Twice { what, name });
                }
            }
            Ok(())
        }
        once("merchant", self.merchants.iter().map(|merchant| merchant.id.to_string()))?;
        once("node", self.buildings.iter().map(|building| building.node.to_string()))?;
        once("meal", self.meals.iter().map(|meal| meal.name.clone()))?;
        once("voucher key", self.voucher_keys.iter().map(|key| key.number.to_string()))?;
        if self.voucher_keys.len() > VOUCHER_KEYS_MAX {
            return Err(CampusError::OutOfRange { key: "voucher_keys", range: "at most 8" });
        }
        if self.voucher_keys.iter().any(|key| key.from_ms >= key.to_ms) {
            return Err(CampusError::OutOfRange { key: "to_ms", range: "after from_ms of its voucher key" });
        }
        for hours in &self.hours {
            if hours.open.len() > SPANS_MAX
                || hours.holidays.as_ref().is_some_and(|spans| spans.len() > SPANS_MAX)
            {
                return Err(CampusError::OutOfRange { key: "hours", range: "at most 16 parts of a day" });
            }
            if let Some(unknown) = hours.nodes.iter().find(|node| self.building(node).is_none()) {
                return Err(CampusError::NoBuilding(unknown.to_string()));
            }
        }
        let terminals = || self.buildings.iter().flat_map(|building| &building.terminals);
        once("terminal", terminals().map(|terminal| terminal.id.to_string()))?;
        for terminal in terminals() {
            if let Some(merchant) = terminal.merchant
                && self.merchant(merchant).is_none()
            {
                return Err(CampusError::NoMerchant { terminal: terminal.id.to_string(), merchant });
            }
        }
        check_meals(&self.meals)?;
        for meal in &self.meals {
            if let Some(merchant) = meal.merchants.iter().find(|id| self.merchant(**id).is_none()) {
                return Err(CampusError::NoMealMerchant { meal: meal.name.clone(), merchant: *merchant });
            }
        }
        let day = 24 * 60;
        if !(-day..=day).contains(&self.calendar.utc_offset_minutes) {
            return Err(CampusError::OutOfRange { key: "utc_offset_minutes", range: "from -1440 to 1440" });
        }
        if self.calendar.cutoff_minutes >= day as u32 {
            return Err(CampusError::OutOfRange { key: "cutoff_minutes", range: "from 0 to 1439" });
        }
        for (key, fen) in [
            ("single_limit_fen", self.single_limit_fen),
            ("daily_limit_fen", self.daily_limit_fen),
            ("stand_in_habit_fen", self.policy.stand_in_habit_fen),
            ("stand_in_other_fen", self.policy.stand_in_other_fen),
            ("stand_in_account_cap_fen", self.policy.stand_in_account_cap_fen),
            ("decline_price_fen", self.policy.decline_price_fen),
            ("refund_cap_fen", self.policy.refund_cap_fen),
        ] {
            if fen.is_negative() || fen > crate::limits::AMOUNT_FEN_MAX {
                return Err(CampusError::OutOfRange { key, range: "from 0 to 10000000 fen" });
            }
        }
        if self.policy.pool_turnover_fen.is_negative() || self.policy.pool_turnover_fen > TURNOVER_FEN_MAX {
            return Err(CampusError::OutOfRange {
                key: "pool_turnover_fen",
                range: "from 0 to 10000000000 fen",
            });
        }
        if self.policy.lump_percent > 1_000 {
            return Err(CampusError::OutOfRange { key: "lump_percent", range: "at most 1000" });
        }
        if self.policy.pool_percent > 1_000 || self.policy.pool_habit_percent > 100 {
            return Err(CampusError::OutOfRange {
                key: "pool_percent",
                range: "at most 1000, habit at most 100",
            });
        }
        Ok(())
    }

    /// The canonical bytes that are published.
    ///
    /// # Errors
    /// [`CampusError::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, CampusError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > CAMPUS_CONFIG_BYTES_MAX {
            return Err(CampusError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads published bytes.
    ///
    /// # Errors
    /// [`CampusError`] names what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CampusError> {
        let config: Self = serde_json::from_slice(bytes)?;
        config.check()?;
        Ok(config)
    }

    /// Whether a building's doors that are open to a group are so now.
    pub fn is_open(&self, node: &NodeName, group: &Key, time: Timestamp) -> bool {
        let mut tables = self.hours.iter().filter(|hours| hours.is_about(group, node)).peekable();
        if tables.peek().is_none() {
            return true;
        }
        let Some(at) = hours::LocalTime::of(time, &self.calendar) else { return false };
        let is_holiday = self.holidays.contains(&at.day);
        tables.any(|hours| hours.is_open(at, is_holiday))
    }

    /// The meal period that a purchase now counts in, if any.
    pub fn meal_at(&self, time: Timestamp, merchant: u16) -> Option<&Meal> {
        let at = hours::LocalTime::of(time, &self.calendar)?;
        self.meals.iter().find(|meal| meal.is_at(at, merchant))
    }

    /// The merchant of a number.
    pub fn merchant(&self, id: u16) -> Option<&Merchant> {
        self.merchants.iter().find(|merchant| merchant.id == id)
    }

    /// The building of a node.
    pub fn building(&self, node: &NodeName) -> Option<&Building> {
        self.buildings.iter().find(|building| building.node == *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turnover_whose_pool_would_not_fit_is_refused() {
        let json = |fen: i64| {
            format!(
                r#"{{"institution":1,"campus":1,"merchants":[],"buildings":[],"policy":{{"pool_turnover_fen":{fen}}}}}"#
            )
        };
        assert!(CampusConfig::from_bytes(json(10_000_000_000).as_bytes()).is_ok());
        for fen in [i64::MAX, i64::MIN, -1, 10_000_000_001] {
            let error = CampusConfig::from_bytes(json(fen).as_bytes()).unwrap_err();
            assert!(
                matches!(error, CampusError::OutOfRange { key: "pool_turnover_fen", .. }),
                "{fen}: {error}"
            );
        }
    }
}
