//! One outage of one kind and length under one contender, summed over seeds, and what is said about it.
#![allow(clippy::float_arithmetic, reason = "rates and F are for reading; nothing is decided by them")]

use std::collections::BTreeMap;
use std::fmt::Write;

use feiqian_protocol::money::Fen;
use serde::{Deserialize, Serialize};

use super::instruments::Instruments;
use super::mode::Contender;

/// Kinds of outages.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Every building is alone; the centre goes on taking top-ups.
    Isolation,
    /// The building with the most purchases is cut off.
    LargestCanteen,
    /// Every other building is cut off and alone.
    Islands,
    /// The centre is down: nobody can top up.
    CentreDown,
    /// Isolation, and one person in a hundred takes what there is to take; all of them have five yuan.
    Adversary,
    /// The same with a hundred yuan each.
    AdversaryRich,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Isolation,
        Self::LargestCanteen,
        Self::Islands,
        Self::CentreDown,
        Self::Adversary,
        Self::AdversaryRich,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Isolation => "isolation",
            Self::LargestCanteen => "largest_canteen",
            Self::Islands => "islands",
            Self::CentreDown => "centre_down",
            Self::Adversary => "adversary",
            Self::AdversaryRich => "adversary_rich",
        }
    }

    const fn heading(self) -> &'static str {
        match self {
            Self::Isolation => "all buildings isolated 全部楼宇断网",
            Self::LargestCanteen => "largest canteen cut 最大食堂断网",
            Self::Islands => "every other building isolated 半数楼宇断网",
            Self::CentreDown => "centre down, no top-ups 中心停机，无法充值",
            Self::Adversary => "isolated, 1 % hostile with 5 yuan each 断网，1% 恶意账户各 5 元",
            Self::AdversaryRich => "isolated, 1 % hostile with 100 yuan each 断网，1% 恶意账户各 100 元",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| {
            format!("{text:?} is no kind of outage ({})", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// What a worker found out, one line each.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// Index in [`Contender::ALL`].
    pub contender: usize,
    /// By what people paid.
    pub instruments: Instruments,
    /// The kind of outage.
    pub kind: Kind,
    /// Its length.
    pub half_hours: u32,
    /// As in [`Cell`].
    pub taps: u64,
    /// As in [`Cell`].
    pub false_declines: u64,
    /// As in [`Cell`].
    pub unreachable: u64,
    /// As in [`Cell`].
    pub pins_asked: u64,
    /// As in [`Cell`].
    pub approved_fen: i64,
    /// As in [`Cell`].
    pub stand_in_fen: i64,
    /// As in [`Cell`].
    pub overspend_fen: i64,
    /// As in [`Cell`].
    pub bound_fen: i64,
    /// As in [`Cell`].
    pub cut_taps: u64,
    /// As in [`Cell`].
    pub cut_false_declines: u64,
    /// As in [`Cell`].
    pub card_taps: u64,
    /// As in [`Cell`].
    pub card_false_declines: u64,
    /// As in [`Cell`].
    pub card_unreachable: u64,
    /// As in [`Cell`].
    pub card_overspend_fen: i64,
}

impl Found {
    /// Nothing yet.
    pub const fn none(seed: u64, contender: usize, kind: Kind) -> Self {
        Self {
            seed,
            contender,
            instruments: Instruments::Account,
            kind,
            half_hours: 0,
            taps: 0,
            false_declines: 0,
            unreachable: 0,
            pins_asked: 0,
            approved_fen: 0,
            stand_in_fen: 0,
            overspend_fen: 0,
            bound_fen: 0,
            cut_taps: 0,
            cut_false_declines: 0,
            card_taps: 0,
            card_false_declines: 0,
            card_unreachable: 0,
            card_overspend_fen: 0,
        }
    }

    /// Which run it was.
    pub fn name(&self) -> String {
        let contender = Contender::ALL[self.contender];
        Self::name_of(self.seed, self.kind, self.half_hours, contender, self.instruments)
    }

    /// How a run is named.
    pub fn name_of(
        seed: u64,
        kind: Kind,
        half_hours: u32,
        contender: Contender,
        instruments: Instruments,
    ) -> String {
        let (kind, hours) = (kind.name(), f64::from(half_hours) / 2.0);
        let setting = setting_of(contender, instruments);
        let name = format!("seed {seed}, {kind} {hours} h, {} {setting}", contender.mode());
        name.trim_end().to_owned()
    }
}

/// What differs from the default, for people.
fn setting_of(contender: Contender, instruments: Instruments) -> String {
    match instruments {
        Instruments::Account => contender.setting(),
        _ => format!("{} {}", instruments.name(), contender.setting()).trim_end().to_owned(),
    }
}

/// A sum over seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// `strict`, `hybrid`, `optimistic`, or a reference.
    pub mode: &'static str,
    /// What differs from the default; empty where nothing does.
    pub setting: String,
    /// True for the product as delivered.
    pub default: bool,
    /// Hours.
    pub outage_h: f64,
    /// The kind of outage.
    pub kind: Kind,
    /// By what people paid: `account`, `card`, `mix`.
    pub instruments: &'static str,
    /// Seeds.
    pub seeds: u64,
    /// Purchases tried.
    pub taps: u64,
    /// Declined though the money was there and known to somebody before the outage.
    pub false_declines: u64,
    /// Declined though the money was there, topped up since. Not in `false_declines`; F counts both.
    pub unreachable: u64,
    /// A PIN was asked for though the day's limit was not used up. Not a decline: it is given.
    pub pins_asked: u64,
    /// Overspent, as the centre's cases say after the heal.
    pub overspend_fen: i64,
    /// Approved.
    pub approved_fen: i64,
    /// Approved beyond rights.
    pub stand_in_fen: i64,
    /// The most that could have been overspent, as it stood when the outage began.
    pub bound_fen: i64,
    /// Seeds in which more was overspent than that.
    pub bound_exceeded: u64,
    /// Purchases tried at buildings that were cut off.
    pub cut_taps: u64,
    /// Of them false declines, money topped up since included.
    pub cut_false_declines: u64,
    /// Purchases tried by purses on cards.
    pub card_taps: u64,
    /// Of `false_declines` those of purses: the money was there at the cut.
    pub card_false_declines: u64,
    /// Of `unreachable` those of purses: it was topped up since.
    pub card_unreachable: u64,
    /// Of `overspend_fen` what the accounts of people with purses overspent.
    pub card_overspend_fen: i64,
    /// (false declines / those of strict-reference) + (overspend / that of optimistic), both by accounts alone; absent without
    /// these.
    pub f: Option<f64>,
}

/// All cells.
#[derive(Clone, Debug, Serialize)]
pub struct Frontier {
    /// Sorted by kind, length, contender.
    pub cells: Vec<Cell>,
}

impl Frontier {
    /// Sums up; sums over seeds come before any division.
    pub fn new(found: &[Found]) -> Self {
        let mut sums: BTreeMap<(Kind, u32, usize, Instruments), Cell> = BTreeMap::new();
        for one in found {
            let contender = Contender::ALL[one.contender];
            let key = (one.kind, one.half_hours, one.contender, one.instruments);
            let cell = sums.entry(key).or_insert_with(|| Cell {
                mode: contender.mode(),
                setting: setting_of(contender, one.instruments),
                default: contender == Contender::Hybrid && one.instruments == Instruments::Account,
                outage_h: f64::from(one.half_hours) / 2.0,
                kind: one.kind,
                instruments: one.instruments.name(),
                seeds: 0,
                taps: 0,
                false_declines: 0,
                unreachable: 0,
                pins_asked: 0,
                overspend_fen: 0,
                approved_fen: 0,
                stand_in_fen: 0,
                bound_fen: 0,
                bound_exceeded: 0,
                cut_taps: 0,
                cut_false_declines: 0,
                card_taps: 0,
                card_false_declines: 0,
                card_unreachable: 0,
                card_overspend_fen: 0,
                f: None,
            });
            cell.seeds += 1;
            cell.taps += one.taps;
            cell.false_declines += one.false_declines;
            cell.unreachable += one.unreachable;
            cell.pins_asked += one.pins_asked;
            cell.overspend_fen += one.overspend_fen;
            cell.approved_fen += one.approved_fen;
            cell.stand_in_fen += one.stand_in_fen;
            cell.bound_fen += one.bound_fen;
            cell.bound_exceeded += u64::from(one.overspend_fen > one.bound_fen);
            cell.cut_taps += one.cut_taps;
            cell.cut_false_declines += one.cut_false_declines;
            cell.card_taps += one.card_taps;
            cell.card_false_declines += one.card_false_declines;
            cell.card_unreachable += one.card_unreachable;
            cell.card_overspend_fen += one.card_overspend_fen;
        }
        let place = |contender| Contender::ALL.iter().position(|other| *other == contender).unwrap_or(0);
        let (strict, optimistic) = (place(Contender::StrictReference), place(Contender::Optimistic));
        let references: BTreeMap<(Kind, u32), (u64, i64)> = sums
            .iter()
            .filter(|((.., contender, instruments), _)| {
                *contender == strict && *instruments == Instruments::Account
            })
            .filter_map(|((kind, length, ..), cell)| {
                let over = sums.get(&(*kind, *length, optimistic, Instruments::Account))?.overspend_fen;
                Some(((*kind, *length), (cell.declines(), over)))
            })
            .collect();
        let cells = sums.into_iter().map(|((kind, length, ..), mut cell)| {
            if let Some((declines, over)) = references.get(&(kind, length)) {
                cell.f = ratio(cell.declines() as f64, *declines as f64)
                    .zip(ratio(cell.overspend_fen as f64, *over as f64))
                    .map(|(declines, over)| declines + over);
            }
            cell
        });
        Self { cells: cells.collect() }
    }

    /// True where nothing was overspent beyond its bound, and nothing at all by rights alone.
    pub fn holds(&self) -> bool {
        self.cells.iter().all(|cell| cell.bound_exceeded == 0)
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut heading = None;
        for cell in &self.cells {
            let this = (cell.kind, cell.outage_h.to_bits());
            if heading != Some(this) {
                heading = Some(this);
                let (hours, seeds) = (cell.outage_h, cell.seeds);
                let _ = writeln!(
                    text,
                    "\n{}: {hours} h, {seeds} seeds, {} taps each 每次刷卡数",
                    cell.kind.heading(),
                    cell.taps / seeds.max(1)
                );
                let _ = writeln!(
                    text,
                    "  {:28} {:>9} {:>9} {:>8} {:>9} {:>9} {:>7} {:>11} {:>11} {:>12} {:>6}",
                    "mode 模式",
                    "declined‰",
                    "topped-up‰",
                    "cut‰",
                    "PIN‰",
                    "over bp",
                    "over ¥",
                    "stand-in ¥",
                    "approved ¥",
                    "bound ¥",
                    "F"
                );
            }
            let _ = writeln!(text, "{}", cell.line());
            if cell.card_taps > 0 {
                let _ = writeln!(text, "{}", cell.cards_line());
            }
        }
        if !self.holds() {
            let _ = writeln!(text, "\nMORE WAS OVERSPENT THAN THE BOUND ALLOWS 透支超过上限");
        }
        text
    }
}

/// Nothing of nothing is nothing; something of nothing has no ratio.
fn ratio(part: f64, of: f64) -> Option<f64> {
    if of > 0.0 { Some(part / of) } else { (part == 0.0).then_some(0.0) }
}

impl Cell {
    fn declines(&self) -> u64 {
        self.false_declines + self.unreachable
    }

    fn cards_line(&self) -> String {
        let percent = |count: u64| count as f64 * 100.0 / self.card_taps.max(1) as f64;
        format!(
            "    purses on cards 实体卡电子钱包: {:.3} % declined of money there at the cut, {:.3} % of money topped up since, ¥{} overspent, {} taps",
            percent(self.card_false_declines),
            percent(self.card_unreachable),
            Fen::new(self.card_overspend_fen),
            self.card_taps
        )
    }

    fn line(&self) -> String {
        let per_mille = |count: u64, of: u64| count as f64 * 1_000.0 / of.max(1) as f64;
        let yuan = |fen: i64| Fen::new(fen / i64::try_from(self.seeds.max(1)).unwrap_or(1)).to_string();
        let name = match (self.setting.is_empty(), self.default) {
            (false, _) => format!("{} {}", self.mode, self.setting),
            (true, true) => format!("{} (default 默认)", self.mode),
            (true, false) => self.mode.to_owned(),
        };
        format!(
            "  {name:28} {:>9.2} {:>10.2} {:>8.2} {:>9.2} {:>9.2} {:>7} {:>11} {:>11} {:>12} {:>6}",
            per_mille(self.false_declines, self.taps),
            per_mille(self.unreachable, self.taps),
            per_mille(self.cut_false_declines, self.cut_taps),
            per_mille(self.pins_asked, self.taps),
            self.overspend_fen as f64 * 10_000.0 / self.approved_fen.max(1) as f64,
            yuan(self.overspend_fen),
            yuan(self.stand_in_fen),
            yuan(self.approved_fen),
            yuan(self.bound_fen),
            self.f.map_or_else(|| "-".to_owned(), |f| format!("{f:.3}")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(seed: u64, contender: Contender, declines: u64, over: i64) -> Found {
        let place = Contender::ALL.iter().position(|other| *other == contender).unwrap();
        Found {
            seed,
            contender: place,
            instruments: Instruments::Account,
            kind: Kind::Isolation,
            half_hours: 48,
            taps: 100,
            false_declines: declines - 1,
            unreachable: 1,
            pins_asked: 0,
            approved_fen: 10_000,
            stand_in_fen: 0,
            overspend_fen: over,
            bound_fen: 50,
            cut_taps: 100,
            cut_false_declines: declines,
            card_taps: 0,
            card_false_declines: 0,
            card_unreachable: 0,
            card_overspend_fen: 0,
        }
    }

    #[test]
    fn sums_come_before_divisions() {
        let mut all = Vec::new();
        for (seed, strict, optimistic, ours) in [(1, 10, 40, (2, 4)), (2, 30, 0, (6, 6))] {
            all.push(found(seed, Contender::StrictReference, strict, 0));
            all.push(found(seed, Contender::Optimistic, 1, optimistic));
            all.push(found(seed, Contender::Hybrid, ours.0, ours.1));
        }
        let frontier = Frontier::new(&all);
        let default = frontier.cells.iter().find(|cell| cell.default).unwrap();
        assert_eq!((default.seeds, default.false_declines, default.unreachable), (2, 6, 2));
        assert!((default.f.unwrap() - (8.0 / 40.0 + 10.0 / 40.0)).abs() < 1e-9, "{default:?}");
        assert!(frontier.holds());
        assert!(frontier.table().contains("0.450"), "{}", frontier.table());
        all.push(found(3, Contender::Hybrid, 1, 51));
        let exceeded = Frontier::new(&all);
        assert!(!exceeded.holds() && exceeded.table().contains("MORE WAS OVERSPENT"));
    }

    #[test]
    fn without_references_there_is_no_f() {
        let frontier = Frontier::new(&[found(1, Contender::Hybrid, 2, 0)]);
        assert_eq!(frontier.cells[0].f, None);
        let json = serde_json::to_value(&frontier).unwrap();
        assert_eq!(json["cells"][0]["kind"], "isolation");
        assert_eq!(json["cells"][0]["outage_h"], 24.0);
    }
}
