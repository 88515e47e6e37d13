//! What happens in one run, to the millisecond: who taps where, what breaks when. Made from a scenario and a seed, so that the
//! same two give the same plan on every machine; and written back as a scenario of fixed events, so that a smaller one can
//! be kept.
//!
//! A plan is what is *meant* to happen. Whether a fault really struck (a process that is down cannot be killed) is for the run
//! to say.

mod doors;
mod draw;
mod imported;

use std::collections::BTreeSet;

use feiqian_protocol::campus::{Building, CampusConfig, Hours, Meal, Merchant, Policy, Span, Terminal};
use feiqian_protocol::enrol::Role;
use feiqian_protocol::ids::{CampusId, CardNumber, InstitutionId, Key, NodeName, TerminalId};
use feiqian_protocol::money::{Fen, UnitPrice};
use feiqian_protocol::tap::Pin;
use feiqian_protocol::time::{BusinessCalendar, BusinessDay, Timestamp};
use serde::{Deserialize, Serialize};

use crate::scenario::{AccountSpec, BuildingSpec, Scenario, ScenarioError, Workload};

/// The institution of every simulated campus.
pub const INSTITUTION: InstitutionId = InstitutionId(1);

/// Changes in an account's document before a simulated centre begins it anew, by seed: few, so that it often does, and what a building
/// has set is about the one before; or so many that changes meet in one document.
const DOCUMENT_CHANGES_MAX: [u64; 3] = [1, 3, 8];

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: String,
    /// What it was drawn from.
    pub seed: u64,
    /// How long, how fast.
    pub timing: Timing,
    /// Grants and stand-in.
    pub policy: Policy,
    /// Meal periods.
    pub meals: Vec<Meal>,
    /// The buildings; everything else names them by their index here.
    pub buildings: Vec<BuildingPlan>,
    /// Prices per unit by patron class.
    pub tariff: std::collections::BTreeMap<String, UnitPrice>,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// What people and operators do, by time.
    pub actions: Vec<Action>,
    /// What goes wrong, by time.
    pub faults: Vec<Fault>,
    /// The taps of a building are so far apart that its log must have exactly these, in this order.
    pub in_order: bool,
}

/// How long a run takes, in its own time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// The true time of the first moment.
    pub start: Timestamp,
    /// Milliseconds before the start in which nodes connect and take what there is; it belongs to opening the campus.
    pub warm_up_ms: u64,
    /// Milliseconds until everything is repaired.
    pub length_ms: u64,
    /// Milliseconds of quiet after that.
    pub heal_ms: u64,
    /// For how many milliseconds work that nobody waits for waits for company at its host: account streams, acknowledgements,
    /// marks. As on a busy host; it makes one step of many.
    pub attend_ms: u64,
    /// After how much silence an end takes its link for lost, in milliseconds.
    pub idle_timeout_ms: u64,
    /// How long a node asks before it decides by itself, in milliseconds.
    pub ask_deadline_ms: u64,
}

/// A building.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildingPlan {
    /// Its node's name.
    pub name: NodeName,
    /// What the node may write.
    pub role: Role,
    /// Its terminals.
    pub terminals: Vec<TerminalId>,
    /// Whose members its terminals let pass; empty: everybody's.
    pub groups: Vec<Key>,
    /// The same by terminal, where they differ; otherwise empty.
    pub terminal_groups: Vec<Vec<Key>>,
    /// When they let them pass; empty: at any hour.
    pub open: Vec<Span>,
    /// Its uplink, where nothing is wrong with it.
    pub link: LinkQuality,
}

impl BuildingPlan {
    /// Whose members a terminal lets pass; empty: everybody's.
    pub fn groups_of(&self, terminal: usize) -> &[Key] {
        self.terminal_groups.get(terminal).unwrap_or(&self.groups)
    }
}

/// What a link does to what travels on it. Loss shows as delay: the transport repeats what was lost.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LinkQuality {
    /// One way, in microseconds.
    pub latency_us: u64,
    /// Up to so much more, in microseconds.
    pub jitter_us: u64,
    /// Packets lost, per mille.
    pub loss_permille: u32,
    /// Bits per second each way; 0: as many as wanted.
    pub bits_per_s: u64,
}

impl LinkQuality {
    /// A campus network.
    pub const LAN: Self = Self { latency_us: 400, jitter_us: 300, loss_permille: 0, bits_per_s: 0 };
}

/// An account.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its card.
    pub card: CardNumber,
    /// True where its holder pays with a phone.
    pub phone: bool,
    /// Patron class.
    pub patron_class: String,
    /// Opening cash.
    pub opening: Fen,
    /// Opening subsidy.
    pub subsidy: Fen,
    /// No-PIN limit of a purchase; the campus's default where absent.
    pub single_limit: Option<Fen>,
    /// No-PIN allowance of a day; the campus's default where absent.
    pub daily_limit: Option<Fen>,
    /// Groups (doors).
    pub groups: Vec<Key>,
    /// The last day on which its cards are good; for ever where there is none.
    pub valid_until: Option<BusinessDay>,
}

/// Something that a person, a channel or an operator does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Action {
    /// When, in milliseconds from the start.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// What is done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// A card is held to a terminal.
    Tap(Tap),
    /// A terminal gives one of its taps back.
    Reversal {
        /// The number of the tap.
        of: u32,
        /// How much of it; all that is left where absent.
        amount: Option<Fen>,
        /// The reversal's own number.
        number: u32,
    },
    /// Money is paid in at the centre; said again until it is confirmed.
    TopUp {
        /// For whom: an index into [`Plan::accounts`].
        account: usize,
        /// How much.
        amount: Fen,
        /// The channel.
        channel: Key,
        /// The channel's own id of it.
        key: Key,
    },
    /// A card is reported lost; said again until it is confirmed.
    Loss {
        /// Whose: an index into [`Plan::accounts`].
        account: usize,
        /// In which building; at the centre where absent.
        building: Option<usize>,
    },
    /// It was found again.
    Lift {
        /// Whose: an index into [`Plan::accounts`].
        account: usize,
    },
    /// An account is closed at the centre, and its money paid out; said again until it is answered.
    Close {
        /// Which: an index into [`Plan::accounts`].
        account: usize,
    },
    /// The card is withdrawn at the centre and another one given out for it; said again until it is answered.
    Reissue {
        /// Whose: an index into [`Plan::accounts`].
        account: usize,
    },
    /// The holder shows up at the centre, and wrong tries of the PIN are forgotten; said again until it is confirmed.
    Unlock {
        /// Whose: an index into [`Plan::accounts`].
        account: usize,
    },
}

/// A tap. Its number is its identity in the plan and the sequence of its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tap {
    /// Unique in the plan.
    pub number: u32,
    /// Where: an index into [`Plan::buildings`].
    pub building: usize,
    /// At which terminal of it.
    pub terminal: usize,
    /// The card.
    pub card: CardNumber,
    /// What for.
    pub ask: Ask,
    /// The payment PIN.
    pub pin: Pin,
    /// How the terminal behaves.
    pub manner: Manner,
}

/// What a tap is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// Passing a door.
    Access,
    /// A purchase of a fixed amount.
    Amount(Fen),
    /// A purchase of a measured quantity.
    Quantity(u32),
}

/// How a terminal behaves about a tap.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// Asks again with the same key until it has an answer, a bounded number of times.
    #[default]
    Patient,
    /// Sends the same key twice at once, and once more later though it was answered.
    Double,
    /// Sends once and never listens.
    Leaves,
    /// Uses the same key for another amount afterwards.
    Reuses,
    /// Where no answer comes in time, gives up and reverses the tap.
    Reverses,
    /// Its reversal overtakes it.
    Overtaken,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Patient, Self::Double, Self::Leaves, Self::Reuses, Self::Reverses, Self::Overtaken];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Double => "double",
            Self::Leaves => "leaves",
            Self::Reuses => "reuses",
            Self::Reverses => "reverses",
            Self::Overtaken => "overtaken",
        }
    }
}

/// A machine.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Host {
    /// The centre.
    Centre,
    /// The node of a building: an index into [`Plan::buildings`].
    Node(usize),
}

/// Something goes wrong, for a while.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// From when on, in milliseconds from the start.
    pub at_ms: u64,
    /// For how long. What that means stands at each kind.
    pub for_ms: u64,
    /// What.
    pub kind: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FaultKind {
    /// Nothing passes between these buildings and the centre. Each end finds out by its idle timeout.
    Partition {
        /// Indices into [`Plan::buildings`]; all of them: the centre is cut off.
        buildings: Vec<usize>,
    },
    /// The links of these buildings are worse than usual.
    Link {
        /// Indices into [`Plan::buildings`].
        buildings: Vec<usize>,
        /// What they are like meanwhile.
        quality: LinkQuality,
    },
    /// The power goes at the n-th write from then on, and comes back after `for_ms`.
    PowerCut {
        /// Whose.
        host: Host,
        /// Writes and syncs until then; 0: at once.
        after: u64,
    },
    /// The process dies at the n-th write from then on, and is started again after `for_ms`.
    Crash {
        /// Whose.
        host: Host,
        /// Writes and syncs until then; 0: at once.
        after: u64,
    },
    /// The process is stopped in order, and started again after `for_ms`.
    Restart {
        /// Whose.
        host: Host,
    },
    /// The disk takes so many more bytes and then is full.
    DiskFull {
        /// Whose.
        host: Host,
        /// Bytes that still fit.
        room: u64,
    },
    /// The disk says that it synced and did not; after `for_ms` the power goes, and the disk is an honest one again.
    LyingDisk {
        /// Whose.
        building: usize,
    },
    /// A bit of the database turns; the process is started again after `for_ms`.
    BitRot {
        /// Whose.
        building: usize,
        /// Which: taken modulo the size of the file.
        bit: u64,
    },
    /// The wall clock is wrong.
    Clock {
        /// Whose.
        host: Host,
        /// How.
        wrong: WrongClock,
    },
    /// The disk is copied, and after `for_ms` the copy is put in its place.
    StaleBackup {
        /// Whose.
        host: Host,
    },
    /// The disk is copied; after `for_ms` a second process runs on the copy, with half of the building's terminals.
    Clone {
        /// Whose.
        building: usize,
    },
    /// The node's rights are closed; after `for_ms` the building is enrolled anew on an empty disk.
    Retire {
        /// Whose.
        building: usize,
        /// Do not wait for the node.
        force: bool,
    },
    /// The disk is destroyed; after `for_ms` the building is enrolled anew on an empty one.
    Destroyed {
        /// Whose.
        building: usize,
    },
    /// Frames of this link are delivered again later, also those of earlier links.
    Replayed {
        /// Whose.
        building: usize,
    },
    /// Entries on this link have a bit turned, though their transport holds them for sound.
    Forged {
        /// Whose.
        building: usize,
        /// Also those that the node sends: then it is the node that says what it did not write, and loses what it forges.
        up: bool,
    },
    /// The box is in wrong hands: its keys are valid, its program is not ours. After `for_ms` the building is enrolled anew on another
    /// one.
    Compromised {
        /// Whose.
        building: usize,
    },
    /// The node's certificate is revoked; after `for_ms` the building is enrolled anew on an empty disk.
    Revoked {
        /// Whose.
        building: usize,
    },
}

/// How a wall clock is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrongClock {
    /// It is off by so many milliseconds.
    Off(i64),
    /// It runs too fast (or too slow) by so many parts in a million.
    Drifts(i64),
    /// It stands in 1970, as that of a board without a battery does.
    In1970,
    /// It stands in 2038.
    In2038,
}

impl FaultKind {
    /// The stable name of the kind.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Partition { .. } => "partition",
            Self::Link { .. } => "link",
            Self::PowerCut { .. } => "power_cut",
            Self::Crash { .. } => "crash",
            Self::Restart { .. } => "restart",
            Self::DiskFull { .. } => "disk_full",
            Self::LyingDisk { .. } => "lying_disk",
            Self::BitRot { .. } => "bit_rot",
            Self::Clock { .. } => "clock",
            Self::StaleBackup { .. } => "stale_backup",
            Self::Clone { .. } => "clone",
            Self::Retire { .. } => "retire",
            Self::Destroyed { .. } => "destroyed",
            Self::Replayed { .. } => "replayed",
            Self::Forged { .. } => "forged",
            Self::Compromised { .. } => "compromised",
            Self::Revoked { .. } => "revoked",
        }
    }

    /// Names of all kinds.
    pub const NAMES: [&'static str; 17] = [
        "partition",
        "link",
        "power_cut",
        "crash",
        "restart",
        "disk_full",
        "lying_disk",
        "bit_rot",
        "clock",
        "stale_backup",
        "clone",
        "retire",
        "destroyed",
        "replayed",
        "forged",
        "revoked",
        "compromised",
    ];
}

impl Plan {
    /// Draws a plan.
    ///
    /// # Errors
    /// [`ScenarioError`] where the scenario is impossible, or what it replays cannot be read.
    pub fn draw(scenario: &Scenario, seed: u64) -> Result<Self, ScenarioError> {
        draw::draw(scenario, seed)
    }

    /// The campus configuration.
    pub fn campus(&self) -> CampusConfig {
        let (mut merchants, mut buildings, mut hours) = (Vec::new(), Vec::new(), Vec::new());
        for (building, id) in self.buildings.iter().zip(1_u16..) {
            let merchant = (building.role != Role::Door).then_some(id);
            if merchant.is_some() {
                let name = building.name.to_string();
                merchants.push(Merchant { id, name, tariff: self.tariff.clone() });
            }
            let terminal = |(index, id): (usize, &TerminalId)| Terminal {
                id: id.clone(),
                merchant,
                groups: building.groups_of(index).to_vec(),
            };
            let groups: BTreeSet<&Key> =
                (0..building.terminals.len()).flat_map(|index| building.groups_of(index)).collect();
            hours.extend(groups.into_iter().filter(|_| !building.open.is_empty()).map(|group| Hours {
                group: group.clone(),
                nodes: vec![building.name.clone()],
                open: building.open.clone(),
                holidays: None,
            }));
            buildings.push(Building {
                node: building.name.clone(),
                terminals: building.terminals.iter().enumerate().map(terminal).collect(),
            });
        }
        CampusConfig {
            institution: INSTITUTION,
            campus: CampusId(1),
            calendar: BusinessCalendar::CHINA,
            single_limit_fen: Fen::new(2_000),
            daily_limit_fen: Fen::new(5_000),
            policy: self.policy.clone(),
            voucher_keys: Vec::new(),
            hours,
            holidays: Vec::new(),
            meals: self.meals.clone(),
            merchants,
            buildings,
        }
    }

    /// Changes in an account's document before the centre begins it anew.
    pub const fn document_changes_max(&self) -> u64 {
        DOCUMENT_CHANGES_MAX[(self.seed % DOCUMENT_CHANGES_MAX.len() as u64) as usize]
    }

    /// The business day on which it begins.
    fn first_day(&self) -> BusinessDay {
        BusinessCalendar::CHINA.day(self.timing.start)
    }

    /// A scenario of fixed events that gives this plan with any seed.
    pub fn to_scenario(&self) -> Scenario {
        let buildings = self.buildings.iter().map(|building| BuildingSpec {
            name: building.name.clone(),
            count: 1,
            role: building.role,
            terminals: building.terminals.len(),
            weight: 1,
            groups: building.groups.clone(),
            terminal_groups: building.terminal_groups.clone(),
            open: building.open.clone(),
            link: building.link,
        });
        let accounts = self.accounts.iter().map(|account| AccountSpec {
            purse: false,
            phone: account.phone,
            card: Some(account.card.clone()),
            count: 1,
            patron_class: account.patron_class.clone(),
            opening: (account.opening, account.opening),
            subsidy: (account.subsidy, account.subsidy),
            single_limit: account.single_limit,
            daily_limit: account.daily_limit,
            favourite: 0,
            groups: account.groups.clone(),
            valid_days: account.valid_until.map(|last| last.0 - self.first_day().0),
        });
        Scenario {
            name: self.scenario.clone(),
            title: format!("{} of seed {}", self.scenario, self.seed),
            title_zh: format!("{}，种子{}", self.scenario, self.seed),
            large: false,
            seed: Some(self.seed),
            timing: self.timing,
            policy: self.policy.clone(),
            meals: self.meals.clone(),
            modes: Vec::new(),
            buildings: buildings.collect(),
            accounts: accounts.collect(),
            workload: Workload::Fixed(self.actions.clone()),
            faults: self.faults.clone(),
            drawn: None,
        }
    }

    /// When everything ends, in milliseconds from the start.
    pub const fn end_ms(&self) -> u64 {
        self.timing.length_ms + self.timing.heal_ms
    }

    /// The name of a host.
    pub fn host_name(&self, host: Host) -> &str {
        match host {
            Host::Centre => "centre",
            Host::Node(index) => self.buildings[index].name.as_str(),
        }
    }
}
