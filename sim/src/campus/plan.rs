//! What goes wrong and when: outages, kills, losses.
//!
//! Intervals are half-open: a building that is cut from 11:30 to 13:00 is out of reach at 11:30:00 and back at 13:00:00.

use std::collections::BTreeMap;
use std::str::FromStr;

use feiqian_protocol::ids::CardNumber;
use feiqian_protocol::time::Timestamp;

use super::local;
use super::workload::Workload;

/// What an outage or a kill is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Every building's link.
    All,
    /// The centre's process.
    Centre,
    /// One building.
    Building(String),
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a building is missing before @".to_owned()),
            "all" => Ok(Self::All),
            "centre" => Ok(Self::Centre),
            name => Ok(Self::Building(name.to_owned())),
        }
    }
}

/// `BUILDING@FROM-TO`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outage {
    /// Where.
    pub place: Place,
    /// Its first moment.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
}

impl FromStr for Outage {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (place, times) = text.split_once('@').ok_or("expected BUILDING@FROM-TO")?;
        let (from, to) = split_times(times)?;
        if from >= to {
            return Err(format!("the outage {text:?} must end after it begins"));
        }
        Ok(Self { place: place.parse()?, from, to })
    }
}

/// Splits `FROM-TO` at the hyphen that has a local time on either side.
fn split_times(text: &str) -> Result<(Timestamp, Timestamp), String> {
    text.match_indices('-')
        .find_map(|(at, _)| Some((local::parse(&text[..at]).ok()?, local::parse(&text[at + 1..]).ok()?)))
        .ok_or_else(|| format!("{text:?} is no FROM-TO (expected e.g. 2022-11-08T11:30-2022-11-08T13:00)"))
}

/// `BUILDING@TIME`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kill {
    /// Whose process.
    pub place: Place,
    /// When; it happens among the first taps from then on.
    pub at: Timestamp,
}

impl FromStr for Kill {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (place, at) = text.split_once('@').ok_or("expected BUILDING@TIME")?;
        Ok(Self { place: place.parse()?, at: local::parse(at)? })
    }
}

/// `CARD@TIME`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loss {
    /// The card.
    pub card: CardNumber,
    /// When it is reported at the centre.
    pub at: Timestamp,
}

impl FromStr for Loss {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (card, at) = text.split_once('@').ok_or("expected CARD@TIME")?;
        Ok(Self { card: card.parse().map_err(|error| format!("{error}"))?, at: local::parse(at)? })
    }
}

/// Disjoint half-open intervals, by time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Intervals(Vec<(Timestamp, Timestamp)>);

impl Intervals {
    /// Joins what overlaps or touches.
    pub fn new(mut intervals: Vec<(Timestamp, Timestamp)>) -> Self {
        intervals.sort_unstable();
        let mut joined: Vec<(Timestamp, Timestamp)> = Vec::new();
        for (from, to) in intervals {
            match joined.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        Self(joined)
    }

    /// The beginning of the interval that `at` is in.
    pub fn since(&self, at: Timestamp) -> Option<Timestamp> {
        self.0.iter().find(|(from, to)| (*from..*to).contains(&at)).map(|(from, _)| *from)
    }

    /// Where an interval begins or ends.
    pub fn edges(&self) -> impl Iterator<Item = Timestamp> {
        self.0.iter().flat_map(|(from, to)| [*from, *to])
    }

    /// Their total length in whole seconds.
    pub fn seconds(&self) -> i64 {
        self.0.iter().map(|(from, to)| to.ms_since(*from)).sum::<i64>() / 1_000
    }
}

/// What happens to a process by kill -9.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Victim {
    /// The centre.
    Centre,
    /// The node of this building.
    Node(usize),
}

/// All of it, resolved against the buildings.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// When the relay of each building drops everything.
    pub cuts: Vec<Intervals>,
    /// When the centre's process is down.
    pub centre: Intervals,
    /// Cuts and the centre's absence together, by building.
    pub unreachable: Vec<Intervals>,
    /// Kills, by time.
    pub kills: Vec<(Timestamp, Victim)>,
    /// Losses, by time.
    pub losses: Vec<(Timestamp, CardNumber)>,
}

impl Plan {
    /// Resolves names.
    ///
    /// # Errors
    /// An unknown building or card, or a kill of a centre that is down; for a person.
    pub fn new(
        workload: &Workload,
        outages: &[Outage],
        kills: &[Kill],
        losses: &[Loss],
    ) -> Result<Self, String> {
        let count = workload.buildings.len();
        let find = |name: &str| {
            workload.building(name).ok_or_else(|| {
                let names: Vec<_> = workload.buildings.iter().map(|site| site.name.as_str()).collect();
                format!("there is no building {name:?} (there are: {}, all, centre)", names.join(", "))
            })
        };
        let mut cuts = vec![Vec::new(); count];
        let mut centre = Vec::new();
        for outage in outages {
            let interval = (outage.from, outage.to);
            match &outage.place {
                Place::All => cuts.iter_mut().for_each(|cuts| cuts.push(interval)),
                Place::Centre => centre.push(interval),
                Place::Building(name) => cuts[find(name)?].push(interval),
            }
        }
        let unreachable =
            cuts.iter().map(|cuts| Intervals::new(cuts.iter().chain(&centre).copied().collect())).collect();
        let centre = Intervals::new(centre);
        let mut resolved = Vec::new();
        for kill in kills {
            match &kill.place {
                Place::Centre if centre.since(kill.at).is_some() => {
                    return Err(format!("the centre is down already at {}", local::format(kill.at)));
                }
                Place::Centre => resolved.push((kill.at, Victim::Centre)),
                Place::All => {
                    resolved.extend((0..count).map(|building| (kill.at, Victim::Node(building))));
                }
                Place::Building(name) => resolved.push((kill.at, Victim::Node(find(name)?))),
            }
        }
        resolved.sort_by_key(|(at, _)| *at);
        let known: BTreeMap<_, _> = workload.accounts.iter().map(|account| (&account.card, ())).collect();
        let mut losses: Vec<_> = losses.iter().map(|loss| (loss.at, loss.card.clone())).collect();
        if let Some((_, card)) = losses.iter().find(|(_, card)| !known.contains_key(card)) {
            return Err(format!("there is no account with card {card}"));
        }
        losses.sort();
        let cuts = cuts.into_iter().map(Intervals::new).collect();
        Ok(Self { cuts, centre, unreachable, kills: resolved, losses })
    }

    /// Every moment at which a link or the centre changes, once.
    pub fn edges(&self) -> Vec<Timestamp> {
        let mut edges: Vec<_> =
            self.cuts.iter().flat_map(Intervals::edges).chain(self.centre.edges()).collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    /// Since when `building` is out of the centre's reach at `at`; `None` where it is within.
    pub fn unreachable_since(&self, building: usize, at: Timestamp) -> Option<Timestamp> {
        self.unreachable.get(building)?.since(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campus::workload::Site;

    fn workload() -> Workload {
        let site = |name: &str| Site {
            name: name.parse().unwrap(),
            role: feiqian_protocol::enrol::Role::Pos,
            terminals: Vec::new(),
        };
        Workload {
            buildings: vec![site("canteen-red"), site("b")],
            tariff: BTreeMap::new(),
            accounts: Vec::new(),
            topups: Vec::new(),
            taps: Vec::new(),
        }
    }

    #[test]
    fn outages_are_half_open_joined_and_counted_once() {
        let outage = |text: &str| text.parse::<Outage>().unwrap();
        let outages = [
            outage("canteen-red@2022-11-08T11:30-2022-11-08T13:00"),
            outage("all@2022-11-08T12:00:00-2022-11-08T12:30:00"),
            outage("centre@2022-11-08T12:50-2022-11-08T13:10"),
        ];
        let plan = Plan::new(&workload(), &outages, &[], &[]).unwrap();
        let at = |text: &str| local::parse(text).unwrap();
        assert_eq!(plan.cuts[0].since(at("2022-11-08T11:29:59")), None);
        assert_eq!(plan.cuts[0].since(at("2022-11-08T11:30")), Some(at("2022-11-08T11:30")));
        assert_eq!(plan.cuts[0].since(at("2022-11-08T13:00")), None);
        assert_eq!(plan.unreachable_since(0, at("2022-11-08T13:00")), Some(at("2022-11-08T11:30")));
        assert_eq!(plan.unreachable[0].seconds(), 6_000);
        assert_eq!(plan.unreachable[1].seconds(), 3_000);
        assert_eq!(plan.edges().len(), 6);
    }

    #[test]
    fn what_cannot_be_is_said_clearly() {
        for (text, says) in [
            ("canteen-red", "BUILDING@FROM-TO"),
            ("b@2022-11-08T11:30", "FROM-TO"),
            ("b@2022-11-08T13:00-2022-11-08T13:00", "must end after"),
            ("b@noon-2022-11-08T13:00", "FROM-TO"),
            ("@2022-11-08T11:30-2022-11-08T13:00", "building is missing"),
        ] {
            let error = text.parse::<Outage>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!("b@2022-11-08".parse::<Kill>().is_err());
        assert!("c 1@2022-11-08T11:30".parse::<Loss>().is_err());
        let kill = |text: &str| text.parse::<Kill>().unwrap();
        let unknown = Plan::new(&workload(), &[], &[kill("x@2022-11-08T11:30")], &[]).unwrap_err();
        assert!(unknown.contains("canteen-red, b"), "{unknown}");
        let down = "centre@2022-11-08T11:00-2022-11-08T12:00".parse().unwrap();
        assert!(Plan::new(&workload(), &[down], &[kill("centre@2022-11-08T11:30")], &[]).is_err());
        let loss = "c1@2022-11-08T11:30".parse().unwrap();
        assert!(Plan::new(&workload(), &[], &[], &[loss]).is_err());
    }
}
