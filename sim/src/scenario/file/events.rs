//! Events that a file lists one by one.

use feiqian_protocol::ids::{CardNumber, Key};
use feiqian_protocol::limits::QUANTITY_MAX;
use feiqian_protocol::tap::Pin;
use serde::Deserialize;

use super::{At, Names, Source};
use crate::plan::{Action, Ask, Manner, Tap, Timing, What};
use crate::scenario::units::yuan;
use crate::scenario::{AccountSpec, ScenarioError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventTable {
    pub(super) at: At<String>,
    kind: At<String>,
    number: Option<At<i64>>,
    building: Option<At<String>>,
    terminal: Option<At<i64>>,
    card: Option<At<String>>,
    amount: Option<At<String>>,
    grams: Option<At<i64>>,
    pin: Option<At<String>>,
    manner: Option<Manner>,
    of: Option<At<i64>>,
    channel: Option<At<String>>,
    key: Option<At<String>>,
}

impl Source<'_> {
    pub(super) fn event(
        &self,
        table: &EventTable,
        names: &Names,
        accounts: &[AccountSpec],
        timing: &Timing,
    ) -> Result<Action, ScenarioError> {
        let kind = &table.kind;
        let number = |value: Option<&At<i64>>, key: &str| {
            let value = self.required(value, key, kind)?;
            self.number(Some(value), key, 0, 0..=u32::MAX)
        };
        let card = || {
            let card = self.required(table.card.as_ref(), "card", kind)?;
            self.check(card, "card", |text| CardNumber::new(text.as_str()).map_err(|error| error.to_string()))
        };
        let account = || {
            let given = self.required(table.card.as_ref(), "card", kind)?;
            self.check(given, "card", |text| account_of(accounts, text))
        };
        let amount = |value: Option<&At<String>>| {
            value.map(|value| self.check(value, "amount", |text| yuan(text))).transpose()
        };
        let key = |value: Option<&At<String>>, key: &str| {
            let value = self.required(value, key, kind)?;
            self.check(value, key, |text| Key::new(text.as_str()).map_err(|error| error.to_string()))
        };
        let what = match kind.get_ref().as_str() {
            "tap" => {
                let building = self.required(table.building.as_ref(), "building", kind)?;
                let building = self.check(building, "building", |name| names.find(name))?;
                let terminals = u32::try_from(names.0[building].1).unwrap_or(u32::MAX);
                let ask = match (&table.amount, &table.grams) {
                    (Some(_), Some(grams)) => {
                        let message = "a tap has an amount or grams".to_owned();
                        return Err(self.error(Some(grams.span()), Some("grams"), message));
                    }
                    (Some(value), None) => Ask::Amount(amount(Some(value))?.unwrap_or_default()),
                    (None, Some(grams)) => {
                        Ask::Quantity(self.number(Some(grams), "grams", 1, 1..=QUANTITY_MAX)?)
                    }
                    (None, None) => Ask::Access,
                };
                What::Tap(Tap {
                    number: number(table.number.as_ref(), "number")?,
                    building,
                    terminal: self.number(table.terminal.as_ref(), "terminal", 1, 1..=terminals)? as usize
                        - 1,
                    card: card()?,
                    ask,
                    pin: match &table.pin {
                        None => Pin::Absent,
                        Some(pin) => self.check(pin, "pin", |text| match text.as_str() {
                            "right" => Ok(Pin::Right),
                            "wrong" => Ok(Pin::Wrong),
                            _ => Err(format!("{text:?} is no PIN here (right, wrong)")),
                        })?,
                    },
                    manner: table.manner.unwrap_or_default(),
                })
            }
            "reversal" => What::Reversal {
                of: number(table.of.as_ref(), "of")?,
                amount: amount(table.amount.as_ref())?,
                number: number(table.number.as_ref(), "number")?,
            },
            "top_up" => What::TopUp {
                account: account()?,
                amount: amount(Some(self.required(table.amount.as_ref(), "amount", kind)?))?
                    .unwrap_or_default(),
                channel: key(table.channel.as_ref(), "channel")?,
                key: key(table.key.as_ref(), "key")?,
            },
            "loss" => {
                let find = |name: &At<String>| self.check(name, "building", |name| names.find(name));
                let building = table.building.as_ref().map(find).transpose()?;
                What::Loss { account: account()?, building }
            }
            "lift" => What::Lift { account: account()? },
            "close" => What::Close { account: account()? },
            "reissue" => What::Reissue { account: account()? },
            "unlock" => What::Unlock { account: account()? },
            other => {
                let message = format!(
                    "{other:?} is no event (tap, reversal, top_up, loss, lift, close, reissue, unlock)"
                );
                return Err(self.error(Some(kind.span()), Some("kind"), message));
            }
        };
        Ok(Action { at_ms: self.at(&table.at, timing)?, what })
    }
}

/// The index of an account by its card, in the order of the plan.
fn account_of(accounts: &[AccountSpec], card: &str) -> Result<usize, String> {
    let mut index = 0;
    for spec in accounts {
        match &spec.card {
            Some(own) if own.as_str() == card => return Ok(index),
            Some(_) => index += 1,
            None => {
                let number = card.strip_prefix('c').and_then(|number| number.parse::<usize>().ok());
                let number = number.and_then(|number| number.checked_sub(1));
                if let Some(number) = number
                    && (index..index + spec.count as usize).contains(&number)
                {
                    return Ok(number);
                }
                index += spec.count as usize;
            }
        }
    }
    Err(format!("no account has the card {card:?}"))
}
