//! The runs of one seed: the same taps under the same outages for every contender.

use anyhow::{Context, Result, ensure};
use feiqian_protocol::money::Fen;
use feiqian_protocol::time::Timestamp;

use super::Scope;
use super::cell::{Found, Kind};
use super::college;
use super::ground::{Ground, HOUR_MS, Moment, SHORT_HALF_HOURS};
use super::instruments::{Carried, Instrument, Instruments};
use super::mode::{Contender, Sketch};
use super::play::{Gate, Open, Play, Purses, Tally};
use super::rig::{Rig, Snapshot};
use super::rules::Campus;
use super::stage::{Workload, publish, stage};
use crate::campus::local::CALENDAR;

/// One account in so many is hostile.
const HOSTILE_EVERY: usize = 100;

/// What a hostile account tries at every building every hour, again and again while it gets something.
const HOSTILE_FEN: [i64; 3] = [2_000, 500, 100];
const HOSTILE_TRIES: usize = 6;

impl Ground {
    /// Runs everything of one seed.
    ///
    /// # Errors
    /// What a core could not do.
    pub fn run(&self, seed: u64, scope: &Scope, found: &mut dyn FnMut(Found) -> Result<()>) -> Result<()> {
        for short in [true, false] {
            let outages: Vec<(Kind, u32)> = scope
                .outages
                .iter()
                .filter(|(_, half_hours)| (*half_hours <= SHORT_HALF_HOURS) == short)
                .copied()
                .collect();
            let Some((_, longest)) = outages.iter().max_by_key(|(_, half_hours)| *half_hours) else {
                continue;
            };
            let moment = self.moment(seed, *longest)?;
            let mut staged = Staged::default();
            for kind in Kind::ALL {
                let mut lengths: Vec<u32> =
                    outages.iter().filter(|outage| outage.0 == kind).map(|outage| outage.1).collect();
                lengths.sort_unstable();
                lengths.dedup();
                if !lengths.is_empty() {
                    self.run_kind(seed, kind, &lengths, moment, scope, &mut staged, found)?;
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one run is named by all of these")]
    fn run_kind(
        &self,
        seed: u64,
        kind: Kind,
        lengths: &[u32],
        moment: Moment,
        scope: &Scope,
        staged: &mut Staged,
        found: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let longest = lengths.last().copied().unwrap_or(0);
        let until = moment.cut.plus_ms(i64::from(longest) * HOUR_MS / 2);
        let mut outage = college::Outage {
            from: moment.cut,
            until,
            cut: vec![true; self.buildings()],
            topups: kind != Kind::CentreDown,
        };
        let mut workload = self.workload(seed, &outage)?;
        if scope.rules {
            let campus = Campus::new(&workload, moment.cut);
            for contender in &scope.contenders {
                campus.play(seed, kind, *contender, lengths).into_iter().try_for_each(&mut *found)?;
            }
            return Ok(());
        }
        let cut = self.cut(kind, &workload);
        if cut != outage.cut {
            outage.cut.clone_from(&cut);
            workload = self.workload(seed, &outage)?;
        }
        let stake = match kind {
            Kind::Adversary => Some(500),
            Kind::AdversaryRich => Some(10_000),
            _ => None,
        };
        let hostile: Vec<bool> = (0..workload.opening.len())
            .map(|person| stake.is_some() && person % HOSTILE_EVERY == 0)
            .collect();
        workload.events.retain(|event| !hostile[event.person as usize] || event.at < moment.midnight);
        if stake.is_some() {
            *staged = Staged::default();
        }
        let equipped = (self.instruments != Instruments::Account).then_some(Contender::Hybrid);
        let by_account = Contender::ALL.into_iter().map(|contender| (contender, Instruments::Account));
        for (contender, instruments) in
            by_account.chain(equipped.map(|contender| (contender, self.instruments)))
        {
            let place = Contender::ALL.iter().position(|other| *other == contender).unwrap_or_default();
            let wanted = if stake.is_some() && instruments != Instruments::Account {
                // What a hostile holder does with a purse or a phone is no question of the policy.
                false
            } else if stake.is_some() {
                matches!(contender, Contender::Optimistic | Contender::Strict | Contender::Hybrid)
            } else {
                scope.contenders.contains(&contender)
            };
            if !wanted {
                continue;
            }
            let slot = match instruments {
                Instruments::Account if contender.is_reference() => &mut staged.reference,
                Instruments::Account => &mut staged.product,
                _ => &mut staged.equipped,
            };
            let (snapshot, purses, carried) = match slot {
                Some(staged) => staged,
                None => {
                    slot.insert(self.before(&workload, contender, instruments, moment, &hostile, stake)?)
                }
            };
            let mut rig = Rig::resume(snapshot)?;
            rig.advance(moment.cut)?;
            for building in 0..self.buildings() {
                rig.connect(building)?;
            }
            publish(&mut rig, &workload, &contender.policy(), instruments)?;
            rig.settle()?;
            let mut purses = purses.clone();
            purses.cut();
            let mut gate: Box<dyn Gate> = match contender {
                Contender::Sketch => Box::new(Sketch::new(&rig, &workload, moment.cut, purses.fen())?),
                _ => Box::new(Open),
            };
            let bounds = lengths
                .iter()
                .map(|length| bound(&rig, contender, &cut, moment.cut, *length, &purses))
                .collect::<Result<Vec<_>>>()?;
            for (building, cut) in cut.iter().enumerate() {
                if *cut {
                    rig.cut(building)?;
                }
            }
            let limits = workload.limits.clone();
            let mut play =
                Play::new(rig, purses, cut.len(), limits, gate.as_mut(), &hostile, carried.clone());
            play.centre_answers = kind != Kind::CentreDown;
            let mut at = moment.cut;
            for (length, bound_fen) in lengths.iter().zip(bounds) {
                if scope.says_bounds {
                    let name = Found::name_of(seed, kind, *length, contender, instruments);
                    eprintln!("{name}: at most {} yuan can be overspent", Fen::new(bound_fen));
                }
                let end = moment.cut.plus_ms(i64::from(*length) * HOUR_MS / 2);
                self.play(&mut play, &workload, &hostile, at, end)?;
                at = end;
                let mut after = Rig::resume(&play.rig.snapshot())?;
                after.advance(end.max(play.rig.now()))?;
                after.collect()?;
                let (stand_in_fen, overspent) = resolved(&after, moment.cut)?;
                let of_purse = |(account, _): &&(i64, i64)| {
                    // Accounts are numbered from 1 in the order of their import.
                    instruments.of(usize::try_from(account - 1).unwrap_or_default()) == Instrument::Purse
                };
                let overspend_fen = overspent.iter().map(|(_, fen)| fen).sum();
                let card_overspend_fen = overspent.iter().filter(of_purse).map(|(_, fen)| fen).sum();
                let (mut all, mut at_cut) = (Tally::default(), Tally::default());
                for (tally, cut) in play.tallies.iter().zip(&cut) {
                    all.add(tally);
                    if *cut {
                        at_cut.add(tally);
                    }
                }
                found(Found {
                    seed,
                    contender: place,
                    instruments,
                    kind,
                    half_hours: *length,
                    taps: all.taps,
                    false_declines: all.false_declines,
                    unreachable: all.unreachable,
                    pins_asked: all.pins_asked,
                    approved_fen: all.approved_fen,
                    stand_in_fen,
                    overspend_fen,
                    bound_fen,
                    cut_taps: at_cut.taps,
                    cut_false_declines: at_cut.false_declines + at_cut.unreachable,
                    card_taps: all.card_taps,
                    card_false_declines: all.card_false_declines,
                    card_unreachable: all.card_unreachable,
                    card_overspend_fen,
                })?;
            }
        }
        if stake.is_some() {
            *staged = Staged::default();
        }
        Ok(())
    }

    /// Everything as it is right before the outage: the references at the moment itself, the product after real hours.
    fn before(
        &self,
        workload: &Workload,
        contender: Contender,
        instruments: Instruments,
        moment: Moment,
        hostile: &[bool],
        stake: Option<i64>,
    ) -> Result<(Snapshot, Purses, Carried)> {
        let policy = if contender.is_reference() { contender.policy() } else { Contender::Hybrid.policy() };
        let from = if contender.is_reference() { moment.cut } else { moment.midnight };
        let stakes = |person: usize| stake.filter(|_| hostile[person]);
        let base = if instruments == Instruments::Account { &self.base } else { &self.equipped };
        let carried = Carried::at(instruments, workload, from);
        let base = base.as_ref().context("no cores")?;
        let (rig, purses) = stage(base, workload, &policy, from, stakes, &carried)?;
        let mut gate = Open;
        let (buildings, limits) = (workload.buildings.len(), workload.limits.clone());
        let mut play = Play::new(rig, purses, buildings, limits, &mut gate, &[], carried);
        play.equip()?;
        play.events(workload.between(from, moment.cut))?;
        let declined: u64 = play.tallies.iter().map(|tally| tally.false_declines + tally.unreachable).sum();
        ensure!(declined == 0, "{declined} purchases were declined while everything was connected");
        Ok((play.rig.snapshot(), play.purses, play.carried))
    }

    /// Plays from one time to another, hostile visits included.
    fn play(
        &self,
        play: &mut Play<'_>,
        workload: &Workload,
        hostile: &[bool],
        from: Timestamp,
        until: Timestamp,
    ) -> Result<()> {
        let people: Vec<u32> =
            (0_u32..).zip(hostile).filter(|(_, is)| **is).map(|(person, _)| person).collect();
        if people.is_empty() {
            return play.events(workload.between(from, until));
        }
        let mut at = from;
        while at < until {
            let next = at.plus_ms(HOUR_MS).min(until);
            play.rig.advance(at)?;
            for building in 0..self.buildings() {
                for fen in HOSTILE_FEN {
                    let mut trying = people.clone();
                    for _ in 0..HOSTILE_TRIES {
                        let tries: Vec<_> = trying.iter().map(|person| (*person, building, fen)).collect();
                        let approved = play.try_all(&tries)?;
                        let mut approved = approved.iter();
                        trying.retain(|_| approved.next() == Some(&true));
                        if trying.is_empty() {
                            break;
                        }
                    }
                }
            }
            play.events(workload.between(at, next))?;
            at = next;
        }
        Ok(())
    }
}

/// What runs of one moment have in common.
#[derive(Default)]
struct Staged {
    reference: Option<(Snapshot, Purses, Carried)>,
    product: Option<(Snapshot, Purses, Carried)>,
    equipped: Option<(Snapshot, Purses, Carried)>,
}

/// The most that can be overspent, as it stands now: what stand-in was granted, and no more than the pools let through.
/// Where nothing was granted, a contender that stands in all the same is bounded by what people have.
fn bound(
    rig: &Rig,
    contender: Contender,
    cut: &[bool],
    from: Timestamp,
    half_hours: u32,
    purses: &Purses,
) -> Result<i64> {
    let others = cut.len() as i64 - 1;
    match contender {
        Contender::StrictReference | Contender::Strict => return Ok(0),
        Contender::Optimistic | Contender::Sketch => {
            return Ok(purses.fen().iter().map(|fen| fen.max(&0) * others).sum());
        }
        Contender::Hybrid | Contender::Price(_) | Contender::Pool(_) => {}
    }
    let until = from.plus_ms(i64::from(half_hours) * HOUR_MS / 2 - 1);
    let days = i64::from(CALENDAR.day(until).0 - CALENDAR.day(from).0 + 1);
    let mut sum = 0;
    for (building, is_cut) in cut.iter().enumerate() {
        let node = rig.node(building).0;
        let granted: i64 = rig.tables().query_row(
            "SELECT COALESCE(SUM(si_out), 0) FROM rights WHERE node = ?1",
            [node],
            |row| row.get(0),
        )?;
        let pool: i64 = rig.tables().query_row(
            "SELECT COALESCE(pool_per_day, 0) FROM nodes WHERE node = ?1",
            [node],
            |row| row.get(0),
        )?;
        // To a connected node more may be granted meanwhile.
        sum += if *is_cut { granted.min(pool * days) } else { pool * days };
    }
    Ok(sum)
}

/// After the heal: fen stood in for since the cut, and fen overspent by the centre's cases, by account.
fn resolved(rig: &Rig, cut: Timestamp) -> Result<(i64, Vec<(i64, i64)>)> {
    let stand_in = rig.tables().query_row(
        "SELECT COALESCE(SUM(stand_in), 0) FROM movements WHERE order_key >= ?1",
        [cut.0],
        |row| row.get(0),
    )?;
    let sql = "SELECT account, SUM(opened) FROM cases WHERE loss = 0 GROUP BY account";
    let mut statement = rig.tables().prepare(sql)?;
    let overspent = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((stand_in, overspent.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(scope: &Scope, seed: u64) -> Vec<Found> {
        let ground = Ground::new(scope).unwrap();
        let mut all = Vec::new();
        let mut keep = |found| {
            all.push(found);
            Ok(())
        };
        ground.run(seed, scope, &mut keep).unwrap();
        all
    }

    fn scope(outages: &[(Kind, u32)]) -> Scope {
        let contenders =
            vec![Contender::StrictReference, Contender::Optimistic, Contender::Strict, Contender::Hybrid];
        Scope {
            replay: None,
            people: 150,
            outages: outages.to_vec(),
            contenders,
            says_bounds: false,
            rules: false,
            instruments: Instruments::Account,
        }
    }

    #[test]
    fn rights_alone_overspend_nothing_and_nothing_goes_beyond_its_bound() {
        let found = found(&scope(&[(Kind::Isolation, 48), (Kind::Adversary, 8)]), 1);
        let of = |kind, contender: Contender| {
            let place = Contender::ALL.iter().position(|other| *other == contender).unwrap();
            found.iter().find(|one| one.kind == kind && one.contender == place).unwrap()
        };
        let all = [Contender::StrictReference, Contender::Optimistic, Contender::Strict, Contender::Hybrid];
        let isolated = all.map(|contender| of(Kind::Isolation, contender));
        assert!(isolated.iter().all(|one| one.taps == isolated[0].taps && one.taps > 150), "{isolated:?}");
        assert!(found.iter().all(|one| one.overspend_fen <= one.bound_fen), "{found:?}");
        let declines = isolated.map(|one| one.false_declines + one.unreachable);
        assert!(declines[0] > declines[2] && declines[2] > declines[3], "{declines:?}");
        assert_eq!((isolated[0].stand_in_fen, isolated[2].stand_in_fen), (0, 0));
        assert!(isolated[3].stand_in_fen > 0 && isolated[3].bound_fen > 0);
        // Who has five yuan and goes everywhere gets more than that where only the balance is looked at.
        assert!(of(Kind::Adversary, Contender::Optimistic).overspend_fen > 500, "{found:?}");
        assert_eq!(of(Kind::Adversary, Contender::Strict).overspend_fen, 0);
    }

    #[test]
    fn a_connected_building_declines_nobody_but_for_what_is_cut_off() {
        let found = found(&scope(&[(Kind::LargestCanteen, 5)]), 2);
        for one in &found {
            assert!(one.cut_taps > 0 && one.cut_taps < one.taps, "{one:?}");
        }
        let hybrid = &found[3];
        assert!(hybrid.false_declines + hybrid.unreachable <= one_in(hybrid.taps, 20), "{hybrid:?}");
    }

    const fn one_in(taps: u64, of: u64) -> u64 {
        taps / of
    }

    #[test]
    fn cores_do_what_the_rules_say() {
        let cores = found(&scope(&[(Kind::Isolation, 48)]), 3);
        let rules = found(&Scope { rules: true, ..scope(&[(Kind::Isolation, 48)]) }, 3);
        assert_eq!(cores.len(), rules.len());
        for (cores, rules) in cores.iter().zip(&rules) {
            let of = |one: &Found| (one.contender, one.taps, one.overspend_fen);
            assert_eq!(of(cores), of(rules), "{cores:?}\n{rules:?}");
            // The product has had some hours before the cut in which rights wore down where people bought.
            let apart =
                (cores.false_declines + cores.unreachable).abs_diff(rules.false_declines + rules.unreachable);
            let of_a_reference = Contender::ALL[cores.contender].is_reference();
            assert!(apart <= if of_a_reference { 0 } else { one_in(cores.taps, 50) }, "{cores:?}\n{rules:?}");
        }
    }

    #[test]
    fn purses_and_phones_decline_less_than_accounts_and_purses_overspend_nothing() {
        let scope = Scope { instruments: Instruments::Mix, ..scope(&[(Kind::Isolation, 48)]) };
        let found = found(&scope, 1);
        let of = |instruments| {
            let hybrid = Contender::ALL.iter().position(|other| *other == Contender::Hybrid);
            let is = |one: &&Found| one.instruments == instruments && Some(one.contender) == hybrid;
            found.iter().find(is).unwrap()
        };
        let (account, mix) = (of(Instruments::Account), of(Instruments::Mix));
        assert_eq!((account.taps, account.card_taps), (mix.taps, 0));
        assert!(mix.card_taps > mix.taps / 2 && mix.card_taps < mix.taps, "{mix:?}");
        let declines = |one: &Found| one.false_declines + one.unreachable;
        assert!(2 * declines(mix) < declines(account), "{account:?}\n{mix:?}");
        assert!(mix.overspend_fen <= account.overspend_fen && mix.overspend_fen <= mix.bound_fen);
        assert_eq!(mix.card_overspend_fen, 0, "{mix:?}");
        let cell = super::super::cell::Frontier::new(&found);
        assert!(cell.cells.iter().any(|cell| cell.instruments == "mix" && cell.f.is_some()));
        assert!(cell.table().contains("hybrid mix"), "{}", cell.table());
    }

    #[test]
    fn the_same_seed_finds_the_same() {
        let scope = scope(&[(Kind::Islands, 5)]);
        assert_eq!(found(&scope, 4), found(&scope, 4));
    }
}
