//! A scenario: what kind of campus, what people do there, what goes wrong. A TOML file that a person can write; the seed
//! decides the rest ([`crate::plan`]). docs/simulator.md describes the format.

mod file;
mod units;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};

use feiqian_protocol::campus::{Meal, Mode, Policy, Span};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CardNumber, Key, NodeName};
use feiqian_protocol::money::Fen;

use crate::plan::{Action, Fault, LinkQuality, Timing};

/// A scenario, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name: what the file is called, without `.toml`.
    pub name: String,
    /// What it is about, in English.
    pub title: String,
    /// What it is about, in Chinese.
    pub title_zh: String,
    /// True where one run takes long: a sweep of all scenarios leaves it out.
    pub large: bool,
    /// The seed that `run` plays where it is given none.
    pub seed: Option<u64>,
    /// How long, how fast.
    pub timing: Timing,
    /// Grants and stand-in.
    pub policy: Policy,
    /// Meal periods, as in a campus file.
    pub meals: Vec<Meal>,
    /// Modes of the policy that a seed chooses among; the policy's own where there are none.
    pub modes: Vec<Mode>,
    /// The buildings. Empty where the workload brings its own.
    pub buildings: Vec<BuildingSpec>,
    /// The accounts. Empty where the workload brings its own.
    pub accounts: Vec<AccountSpec>,
    /// What people do.
    pub workload: Workload,
    /// Things that go wrong in every seed.
    pub faults: Vec<Fault>,
    /// Things that are drawn.
    pub drawn: Option<Drawn>,
}

/// Buildings of one kind; they are called `name`, or `name-1`, `name-2`, … where there are several.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildingSpec {
    /// The name.
    pub name: NodeName,
    /// How many.
    pub count: u32,
    /// What the node may write.
    pub role: Role,
    /// How many terminals.
    pub terminals: usize,
    /// Share of the taps, relative to the others.
    pub weight: u32,
    /// Whose members its terminals let pass; empty: everybody's.
    pub groups: Vec<Key>,
    /// The same by terminal, where they differ; otherwise empty.
    pub terminal_groups: Vec<Vec<Key>>,
    /// When they let them pass; empty: at any hour.
    pub open: Vec<Span>,
    /// Its uplink.
    pub link: LinkQuality,
}

/// Accounts of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountSpec {
    /// True where the cards have purses: their numbers are serials then, and a tap is a touch of the purse.
    pub purse: bool,
    /// True where the holders pay with their phones: a tap is a code of the account's virtual card.
    pub phone: bool,
    /// The card of a single account; several are called `c1`, `c2`, … over all kinds.
    pub card: Option<CardNumber>,
    /// How many.
    pub count: u32,
    /// Patron class.
    pub patron_class: String,
    /// Opening cash: at least, at most.
    pub opening: (Fen, Fen),
    /// Opening subsidy: at least, at most.
    pub subsidy: (Fen, Fen),
    /// No-PIN limit of a purchase.
    pub single_limit: Option<Fen>,
    /// No-PIN allowance of a day.
    pub daily_limit: Option<Fen>,
    /// How often they use their favourite building, in percent.
    pub favourite: u32,
    /// Groups (doors).
    pub groups: Vec<Key>,
    /// So many days after the first one their cards are still good; for ever where absent.
    pub valid_days: Option<i32>,
}

/// What people do.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Exactly this.
    Fixed(Vec<Action>),
    /// Drawn evenly, or by the day's profile, over the length.
    Drawn(DrawnWorkload),
    /// The generated college day of `feiqian-sim campus`.
    College {
        /// People.
        people: u32,
        /// Days.
        days: u32,
    },
    /// Recorded door events: `doors.csv`.
    Doors {
        /// The directory; empty where it is yet to be named.
        dir: PathBuf,
    },
    /// Files as `feiqian-sim campus --replay` reads them.
    Replay {
        /// The directory.
        dir: PathBuf,
        /// The first so many days of it.
        days: Option<u32>,
    },
}

/// A drawn workload. Shares are in percent of the taps.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnWorkload {
    /// Taps.
    pub taps: u32,
    /// A purchase: at least, at most.
    pub amount: (Fen, Fen),
    /// The most that a burst of taps has: people queue.
    pub burst: u32,
    /// Times follow the day's profile of a college, instead of being spread evenly.
    pub day_profile: bool,
    /// Taps at doors, in percent, where a building has both; a `door` building has nothing else.
    pub access: u32,
    /// Taps priced by a tariff, in percent.
    pub measured: u32,
    /// Taps that are reversed, in percent.
    pub reversals: u32,
    /// Of the reversals, those of a part, in percent.
    pub partial: u32,
    /// Taps of cards that nobody has, in percent.
    pub strangers: u32,
    /// Taps with a PIN, right or wrong, in percent.
    pub pins: u32,
    /// Terminals that misbehave in one way or another, in percent of the taps.
    pub misbehaving: u32,
    /// Top-ups over the length.
    pub top_ups: u32,
    /// A top-up: at least, at most.
    pub top_up: (Fen, Fen),
    /// Loss reports over the length.
    pub losses: u32,
    /// Of those, made at a kiosk or a desk where there is one, in percent; the others at the centre.
    pub losses_in_buildings: u32,
    /// Of those, lifted again, in percent.
    pub lifts: u32,
    /// Accounts that are closed.
    pub closings: u32,
    /// Cards that are withdrawn, and replaced by others.
    pub reissues: u32,
    /// Cards that are stolen: the thief tries PINs in several buildings, and the holder finds the PIN locked.
    pub thefts: u32,
}

/// How faults are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Kinds that may come. Each seed switches some of them on, each with a rate of its own.
    pub kinds: Vec<String>,
    /// How many faults a seed gets: at least, at most.
    pub count: (u32, u32),
    /// How long one lasts, in milliseconds: at least, at most.
    pub length_ms: (u64, u64),
    /// No fault begins in the first so many milliseconds.
    pub after_ms: u64,
    /// One seed in so many gets faults that a promise does not hold against in full (a lying disk, a turned bit, a copied or
    /// destroyed disk).
    pub hostile_every: u32,
}

/// What is wrong with a scenario file, and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{file}{}{}: {message}", At(":", line.map(|line| line.to_string()).as_deref()), At(": ", key.as_deref()))]
pub struct ScenarioError {
    /// The file, or the name of a built-in scenario.
    pub file: String,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
}

struct At<'a>(&'static str, Option<&'a str>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.map_or(Ok(()), |text| write!(f, "{}{text}", self.0))
    }
}

impl ScenarioError {
    /// Something is wrong with the whole.
    pub fn new(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: file.into(), line: None, key: None, message: message.into() }
    }
}

macro_rules! built_in {
    ($($name:literal,)*) => {
        /// The scenarios that come with the simulator: name and text.
        pub const BUILT_IN: &[(&str, &str)] = &[$(($name, include_str!(concat!("../scenarios/", $name, ".toml"))),)*];
    };
}

built_in! {
    "lunch-uplink-cut",
    "centre-down",
    "islands",
    "flapping-link",
    "rolling-restart",
    "power-cut-storm",
    "clock-chaos",
    "clone-and-restore",
    "centre-restored",
    "retired-bus",
    "loss-during-outage",
    "closings",
    "loss-behind-backlog",
    "everyone-everywhere",
    "term-start",
    "slow-uplink",
    "refused-twice",
    "branch-restored",
    "altered-return",
    "campus-day",
    "doors",
    "eight-buildings",
    "long-away",
    "purses",
    "purses-centre-restored",
    "purses-replaced",
    "phones",
    "phones-centre-restored",
    "wrong-hands",
}

impl Scenario {
    /// A built-in scenario by its name, or a file by its path.
    ///
    /// # Errors
    /// [`ScenarioError`] names file, line and key where it can.
    pub fn load(name: &str) -> Result<Self, ScenarioError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !name.ends_with(".toml") && !path.exists() {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let message = format!("no such scenario, and no such file; there are: {}", names.join(", "));
            return Err(ScenarioError::new(name, message));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError::new(name, format!("cannot be read: {error}")))?;
        Self::parse(name, &text)
    }

    /// Checks the text of a file; `file` is only named.
    ///
    /// # Errors
    /// As [`Scenario::load`].
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        file::parse(file, text)
    }

    /// The text of a file that says the same.
    pub fn to_toml(&self) -> String {
        write::write(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    const CAMPUS: &str = "title = \"t\"\nlength = \"1min\"\n[[building]]\nname = \"b\"\ncount = 2\n\
        [[account]]\ncount = 2\nopening = \"5.00\"\n";

    fn parse(rest: &str) -> Result<Scenario, String> {
        Scenario::parse("s.toml", &format!("{CAMPUS}{rest}")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_built_in_scenario_is_sound_and_says_what_it_is() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(name, text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(scenario.name, *name);
            assert!(!scenario.title.is_empty() && !scenario.title_zh.is_empty(), "{name}");
            if !scenario.large {
                let plan = Plan::draw(&scenario, 1).unwrap();
                assert!(!plan.actions.is_empty() && !plan.faults.is_empty(), "{name}");
            }
        }
        assert!(Scenario::load("no-such").unwrap_err().to_string().contains("lunch-uplink-cut"));
    }

    #[test]
    fn a_mistake_names_line_and_key() {
        // The campus has lines 1 to 8.
        let cases = [
            (
                "[[fault]]\nat = \"1s\"\nkind = \"partition\"\nbuilding = \"c\"",
                "s.toml:12: building: there is no building \"c\" (there are: b-1, b-2)",
            ),
            (
                "[[fault]]\nat = \"1s\"\nkind = \"crash\"\nhost = \"b-3\"",
                "s.toml:12: host: there is no building \"b-3\"",
            ),
            ("[[fault]]\nat = \"1s\"\nkind = \"crash\"", "s.toml:11: host: \"crash\" needs host"),
            (
                "[[fault]]\nat = \"1s\"\nfor = \"-5s\"\nkind = \"crash\"\nhost = \"centre\"",
                "s.toml:11: for: \"-5s\": a length of time cannot be negative",
            ),
            (
                "[[fault]]\nat = \"2min\"\nkind = \"crash\"\nhost = \"centre\"",
                "s.toml:10: at: \"2min\" is after the end",
            ),
            ("[[fault]]\nat = \"1s\"\nkind = \"fire\"", "s.toml:11: kind: \"fire\" is no fault"),
            ("[workload]\ntaps = -1", "s.toml:10: taps: must be from 0 to 10000000"),
            ("[workload]\ntap = 1", "s.toml:10: tap: unknown field `tap`"),
            ("[workload]\ntaps = 1\namount = [\"5\", \"1\"]", "s.toml:11: amount: 5.00 is more than 1.00"),
            (
                "[[event]]\nat = \"1s\"\nkind = \"loss\"\ncard = \"c3\"",
                "s.toml:12: card: no account has the card \"c3\"",
            ),
            (
                "[[event]]\nat = \"soon\"\nkind = \"loss\"\ncard = \"c1\"",
                "s.toml:10: at: \"soon\" is no length of time",
            ),
            (
                "[[event]]\nat = \"1s\"\nkind = \"tap\"\nnumber = 1\nbuilding = \"b-1\"\nterminal = 9\ncard = \"c1\"",
                "s.toml:14: terminal: must be from 1 to 2",
            ),
            ("[[building]]\nname = \"b-1\"", "s.toml:10: name: \"b-1\" stands twice"),
            ("[faults]\nkinds = [\"plague\"]", "s.toml:10: kinds: \"plague\" is no fault"),
            ("[[account]]\nopening = 5", "s.toml:10: opening"),
            (
                "[[meals]]\nname = \"a\"\ntime = \"11:00-13:00\"\nlimit_fen = 1\n\
                 [[meals]]\nname = \"b\"\ntime = \"12:00-14:00\"\nlimit_fen = 1",
                "s.toml:13: meals: meals \"a\" and \"b\" overlap",
            ),
            ("[policy]\nmode = \"bold\"", "s.toml:10: mode: unknown variant `bold`"),
        ];
        for (rest, expected) in cases {
            let error = parse(rest).unwrap_err();
            assert!(error.starts_with(expected), "{error:?} does not start with {expected:?}");
        }
        let no_campus = Scenario::parse("s.toml", "title = \"t\"\nlength = \"1s\"").unwrap_err();
        assert_eq!(no_campus.to_string(), "s.toml: building: a campus needs at least one building");
    }

    #[test]
    fn a_plan_written_back_is_the_same_plan() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(name, text).unwrap();
            if scenario.large {
                continue;
            }
            for seed in 0..20 {
                let plan = Plan::draw(&scenario, seed).unwrap();
                let text = plan.to_scenario().to_toml();
                let again = Scenario::parse(name, &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
                let mut again = Plan::draw(&again, 0).unwrap();
                again.seed = seed;
                assert!(again == plan, "{name} seed {seed}");
            }
        }
    }
}
