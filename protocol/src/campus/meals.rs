//! Meal periods (餐次): parts of the day in which an account pays so much in a building without its PIN, and no more.
//!
//! A building counts its own purchases, since a count over all of them would need shares that follow people to where they
//! eat within the hour. What a stolen card may take over all buildings is the day's allowance, whatever the meals.

use serde::{Deserialize, Serialize};

use super::CampusError;
use super::hours::{LocalTime, Span};
use crate::limits::{AMOUNT_FEN_MAX, MEALS_MAX};
use crate::money::Fen;

/// A meal period.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Meal {
    /// Its name, unique.
    pub name: String,
    /// When it is; no two overlap.
    pub time: Span,
    /// What an account may spend in it in one building without its PIN, in fen.
    pub limit_fen: Fen,
    /// The merchants whose purchases count; all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merchants: Vec<u16>,
}

impl Meal {
    /// The minute of the day at which it begins: no two of a campus have the same, so purchases are labelled with it.
    pub const fn label(&self) -> u16 {
        self.time.from
    }

    pub(super) fn is_at(&self, at: LocalTime, merchant: u16) -> bool {
        self.time.contains(at.minute) && (self.merchants.is_empty() || self.merchants.contains(&merchant))
    }
}

/// Checks meal periods by themselves.
///
/// # Errors
/// [`CampusError`]: there are too many, two overlap, or a limit is out of range.
pub fn check_meals(meals: &[Meal]) -> Result<(), CampusError> {
    if meals.len() > MEALS_MAX {
        return Err(CampusError::OutOfRange { key: "meals", range: "at most 16" });
    }
    for (index, meal) in meals.iter().enumerate() {
        if let Some(before) = meals[..index].iter().find(|before| before.time.overlaps(&meal.time)) {
            return Err(CampusError::MealsOverlap(before.name.clone(), meal.name.clone()));
        }
        if meal.limit_fen.is_negative() || meal.limit_fen > AMOUNT_FEN_MAX {
            return Err(CampusError::MealLimit(meal.name.clone()));
        }
    }
    Ok(())
}
