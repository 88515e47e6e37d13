//! Meal periods (餐次): parts of the day in which an account pays so much in a building without its PIN, and no more.
//!
//! A building counts its own purchases, since a count over all of them would need shares that follow people to where they
//! eat within the hour. What a stolen card may take over all buildings is the day's allowance, whatever the meals.

use serde::{Deserialize, Serialize};

use super::hours::{LocalTime, Span};
use crate::money::Fen;

/// Meal periods of a campus at most: more is a mistake in the file.
pub const MEALS_MAX: usize = 16;

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

/// The first two that overlap.
pub(super) fn overlapping(meals: &[Meal]) -> Option<(&Meal, &Meal)> {
    let pairs =
        meals.iter().enumerate().flat_map(|(index, one)| meals[..index].iter().map(move |of| (of, one)));
    pairs.into_iter().find(|(one, other)| one.time.overlaps(&other.time))
}
